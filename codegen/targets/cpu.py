"""The CPU target: loop IR -> Python for Numba.

Each kernel is a function of typed pointers and extents; a program calls kernels in order. Kernels with the
same text are emitted once and called with other pointers. Names are generated: no text of a user's
program gets into the source, so that programs which differ in names alone share a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import sympy

from codegen import loop_ir as ir
from codegen.loading import Loaded, load
from codegen.loop_ir import Affine, For, Kernel, Let, Load, Statement, Store
from codegen.memory import Plan
from codegen.runtime import checks, linalg, memory, vector_math
from codegen.runtime.vector_math import PRIMITIVES
from symgrad.graph.dims import Dim, Extent
from symgrad.graph.dtypes import BOOL, FLOAT64, INT32, INT64, SHORT, DType
from symgrad.graph.errors import CompileError

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {"less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
LOGIC = {"logical_and": "&", "logical_or": "|", "logical_xor": "^"}
# A single loop at least this long takes its extent as an argument, so that kernels are shared.
SHARED_FROM = 4
SCOPES = 32


@dataclass(slots=True)
class _Function:
    """The text of a kernel apart from its name, and what it asks of its caller."""

    lines: list[str] = field(default_factory=list)
    extents: dict[Extent, str] = field(default_factory=dict)
    dims: dict[Dim, str] = field(default_factory=dict)
    uses: set[str] = field(default_factory=set)
    status: bool = False


def print_program(plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
    """The source of a plan: constants, kernels, and `program(table, dims)`."""
    return _Printer(plan, dims, key).text()


def load_program(source: str, key: str) -> Loaded:
    """Compile source, or fetch it from the cache."""
    return load(source, key)


class _Printer:
    def __init__(self, plan: Plan, dims: tuple[Dim, ...], key: str) -> None:
        self.plan = plan
        self.dims = dims
        self.key = key
        self.names: dict[str, str] = {}
        self.functions: list[str] = []
        self.uses: set[str] = {"FAST"}

    def text(self) -> str:
        calls = list(self.calls())
        body = [*self.pointers(), *calls]
        scalars = sorted(n for n in self.uses if n in ("f32", "f64", "i32", "i64", "inf", "nan"))
        runtime = self.uses - set(scalars)
        lines = ['"""A compiled graph: kernels, and the program that calls them."""', ""]
        if scalars:
            lines.append("import numpy as np")
        lines += ["from numba import cfunc, njit", ""]
        for module, names in sorted(_by_module(runtime).items()):
            lines.append(f"from codegen.runtime.{module} import {', '.join(sorted(names))}")
        lines += [""] + [_SCALARS[name] for name in scalars]
        lines += ['OPTIONS = {"fastmath": FAST, "error_model": "numpy"}', ""]
        for function in self.functions:
            lines += ["", "@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)", function]
        lines += ["", '@cfunc("int64(int64, int64)", cache=True, **OPTIONS)', "def program(table, dims):"]
        lines += [f"    {line}" for line in body]
        return "\n".join(lines) + "\n"

    def pointers(self) -> Iterator[str]:
        used: dict[tuple[int, DType], None] = {}
        for call in self.plan.calls:
            for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True):
                used[entry, buffer.dtype] = None
        if any(call.kernel.checks for call in self.plan.calls):
            self.uses |= {"address", "clear_report", "reported"}
            yield "status = address(table, 0)"
            yield "clear_report(status)"
        for k, _ in enumerate(self.dims):
            self.uses.add("extent")
            yield f"n{k} = extent(dims, {k})"
        for entry, dtype in used:
            short = SHORT[dtype]
            self.uses.add(f"pointer_{short}")
            yield f"{_pointer(entry, dtype)} = pointer_{short}(table, {entry})"

    def calls(self) -> Iterator[str]:
        names = {d: f"n{k}" for k, d in enumerate(self.dims)}
        checked = [k for k, call in enumerate(self.plan.calls) if call.kernel.checks]
        for k, call in enumerate(self.plan.calls):
            function = _print_kernel(call.kernel)
            self.uses |= function.uses
            text = "\n".join(function.lines)
            if text not in self.names:
                name = f"kernel_{len(self.names)}"
                self.names[text] = name
                self.functions.append(_definition(name, call.kernel, function))
            pointers = [
                _pointer(entry, buffer.dtype)
                for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True)
            ]
            extents = [_extent(e, names) for e in function.extents]
            numbers = [names[d] for d in function.dims]
            report = ["status"] if function.status else []
            if call.kernel.formula:
                yield f"# {call.kernel.formula}"
            yield f"{self.names[text]}({', '.join([*pointers, *extents, *numbers, *report])})"
            if checked and k == checked[-1]:  # no leaf is written before this place
                yield "if reported(status):"
                yield "    return reported(status)"
        yield "return 0"


def _pointer(entry: int, dtype: DType) -> str:
    return f"{dtype.kind}{entry}" if dtype.itemsize != 8 else f"{dtype.kind}{entry}_64"


def _definition(name: str, kernel: Kernel, function: _Function) -> str:
    report = ["status"] if function.status else []
    arguments = [b.name for b in kernel.buffers] + list(function.extents.values())
    arguments += [*function.dims.values(), *report]
    head = [f"def {name}({', '.join(arguments)}):"]
    if kernel.formula:
        head.append(f'    """{kernel.formula}"""')
    return "\n".join([*head, "    kernel_prologue()", *function.lines]) + "\n"


_SCALARS = {
    "f32": "f32 = np.float32",
    "f64": "f64 = np.float64",
    "i32": "i32 = np.int32",
    "i64": "i64 = np.int64",
    "inf": "inf = np.inf",
    "nan": "nan = np.nan",
}


def _by_module(names: set[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        for module in (memory, checks, linalg, vector_math):
            if hasattr(module, name):
                found.setdefault(module.__name__.rsplit(".", 1)[1], set()).add(name)
                break
        else:
            raise CompileError(f"the runtime has no {name!r} (codegen/runtime)")
    return found


def _extent(extent: Extent, names: dict[Dim, str]) -> str:
    if type(extent) is int:
        return str(extent)
    return str(extent.xreplace({d: sympy.Symbol(names[d]) for d in extent.free_symbols}))


def _print_kernel(kernel: Kernel) -> _Function:
    return _KernelPrinter(kernel).function


class _KernelPrinter:
    def __init__(self, kernel: Kernel) -> None:
        self.function = _Function(uses={"kernel_prologue"})
        loops = [s for s in kernel.body if isinstance(s, For)]
        # kernels of plain loops and of products are shared between extents
        self.flat = all(not any(isinstance(s, For) for s in loop.body) for loop in loops)
        self.loop_names: dict[str, str] = {}
        self.block(kernel.body, 1)

    def extent(self, extent: Extent, shared: bool = False) -> str:
        """An extent in the kernel's words: a number, an argument, or a polynomial in dims."""
        if type(extent) is int and not shared:
            return str(extent)
        if shared:
            return self.function.extents.setdefault(extent, f"m{len(self.function.extents)}")
        for d in sorted(extent.free_symbols, key=lambda s: s.name):  # type: ignore[union-attr]
            self.function.dims.setdefault(d, f"n{len(self.function.dims)}")
        return _extent(extent, self.function.dims)

    def affine(self, affine: Affine) -> str:
        parts = []
        for var, coefficient in affine.terms:
            var = self.loop_names.get(var, var)
            text = self.extent(coefficient)
            if text == "1":
                parts.append(var)
            elif text == "-1":
                parts.append(f"-{var}")
            else:
                parts.append(f"{var} * {text}" if text.isalnum() else f"{var} * ({text})")
        if not parts or affine.const != 0:
            parts.append(self.extent(affine.const))
        return " + ".join(parts).replace("+ -", "- ")

    def put(self, line: str, depth: int) -> None:
        self.function.lines.append("    " * depth + line)

    def block(self, body: Sequence[Statement], depth: int) -> None:
        for s in body:
            if isinstance(s, For):
                self.loop_names[s.var] = f"i{depth - 1}"
                shared = self.flat and (type(s.extent) is not int or s.extent >= SHARED_FROM)
                self.put(f"for i{depth - 1} in range({self.extent(s.extent, shared)}):", depth)
                self.block(s.body, depth + 1)
            elif isinstance(s, Let):
                self.put(f"{s.name} = {self.value(s)}", depth)
            elif isinstance(s, ir.Update):
                self.put(f"{s.name} = {s.value}", depth)
            elif isinstance(s, Store):
                self.function.uses.add("st")
                place = f"{s.buffer.name}, {self.affine(s.offset)}"
                self.put(f"st({place}, {s.name}, {_scope(s.buffer)})", depth)
            elif isinstance(s, ir.CheckIndex):
                self.function.uses |= {"checked_index", "i64"}
                self.function.status = True
                given = f"i64({s.index}), {self.extent(s.extent)}, status, {s.node}"
                self.put(f"{s.name} = checked_index({given})", depth)
            else:
                self.put(self.product(s), depth)

    def value(self, let: Let) -> str:
        v = let.value
        if isinstance(v, Load):
            self.function.uses.add("ld")
            return f"ld({v.buffer.name}, {self.affine(v.offset)}, {_scope(v.buffer)})"
        if isinstance(v, ir.Copy):
            return v.name
        if isinstance(v, ir.Literal):
            return self.literal(v.number, let.dtype)
        if v.operation in ("index", "extent"):
            payload = v.payload
            text = self.affine(payload) if isinstance(payload, Affine) else self.extent(payload)  # type: ignore[arg-type]
            return self.typed(text, let.dtype)
        return self.apply(v.operation, v.operands, let.dtype)

    def apply(self, operation: str, operands: tuple[str, ...], dtype: DType) -> str:
        if operation in OPERATORS:
            text = f"{operands[0]} {OPERATORS[operation]} {operands[1]}"
            return self.typed(text, dtype) if dtype == INT32 else text
        if operation == "neg":
            return self.typed(f"-{operands[0]}", dtype) if dtype == INT32 else f"-{operands[0]}"
        if operation in COMPARISONS:
            return f"{operands[0]} {COMPARISONS[operation]} {operands[1]}"
        if operation in LOGIC:
            return f"{operands[0]} {LOGIC[operation]} {operands[1]}"
        if operation == "logical_not":
            return f"not {operands[0]}"
        if operation == "stop_gradient":
            return operands[0]
        if operation not in PRIMITIVES:
            raise CompileError(
                f"{operation}: no CPU primitive; add one in codegen/runtime/vector_math.py"
            )
        self.function.uses.add(operation)
        return f"{operation}({', '.join(operands)})"

    def typed(self, text: str, dtype: DType) -> str:
        if dtype == BOOL:
            return f"({text}) != 0"
        if dtype == INT64:
            return text
        short = SHORT[dtype]
        self.function.uses.add(short)
        return f"{short}({text})"

    def literal(self, number: float | int | bool, dtype: DType) -> str:
        if dtype == BOOL:
            return str(bool(number))
        text = repr(float(number) if dtype.kind == "f" else number)
        if text.strip("-") in ("inf", "nan"):
            self.function.uses.add(text.strip("-"))
        if dtype == FLOAT64 and text.strip("-") not in ("inf", "nan"):
            return text
        return text if dtype == INT64 else self.typed(text, dtype)

    def product(self, call: ir.Call) -> str:
        short = SHORT[call.c.dtype]
        self.function.uses |= {f"gemm_{short}", short}
        m, n, k = (self.extent(e, True) for e in (call.m, call.n, call.k))
        left, right = call.transposed
        buffers = []
        for buffer, offset in zip((call.a, call.b, call.c), call.offsets, strict=True):
            if offset.terms:
                self.function.uses.add("shift")
                buffers.append(f"shift({buffer.name}, {self.affine(offset)})")
            else:
                buffers.append(buffer.name)
        a, b, c = buffers
        return (
            f"gemm_{short}({int(left)}, {int(right)}, {m}, {n}, {k}, {short}(1), "
            f"{a}, {m if left else k}, {b}, {k if right else n}, {short}(0), {c}, {n})"
        )


def _scope(buffer: ir.Buffer) -> int:
    return buffer.scope if buffer.scope < SCOPES else -1
