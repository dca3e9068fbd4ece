"""The CPU target: loop IR -> Python for Numba.

Each kernel is a function of typed pointers and extents; a program calls kernels in order. Kernels
with the same text are emitted once and called with other pointers. Names are generated: no text of
a user's program gets into the source, so that programs which differ in names alone share a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

import sympy

from codegen import loop_ir as ir
from codegen.loading import Loaded, load
from codegen.loop_ir import Affine, For, Kernel, Let, Load, Statement, Store
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.runtime import checks, linalg, memory, vector_math
from codegen.runtime.vector_math import PRIMITIVES
from symgrad.graph.dims import Dim, Extent, free_dims
from symgrad.graph.dtypes import BOOL, FLOAT64, INT32, INT64, SHORT, DType
from symgrad.graph.errors import CompileError

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {"less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
LOGIC = {"logical_and": "&", "logical_or": "|", "logical_xor": "^"}
Place: TypeAlias = Callable[[int, DType], str]
# So many calls in a row, and more, become rows of a table: Numba's time grows with every statement.
TABLE_FROM = 64
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
        self.lines: list[str] = []
        self.entries: dict[tuple[int, DType], None] = {}
        self.dim_names = {d: f"n{k}" for k, d in enumerate(dims)}
        self.checks = False
        self.rows: list[tuple[list[int], str]] = []
        self.codes: dict[Extent, int] = {}
        self.tabled: dict[str, tuple[Kernel, _Function]] = {}

    def text(self) -> str:
        calls = self.plan.calls
        last = max((k for k, call in enumerate(calls) if _may_report(call)), default=-1)
        self.block(calls[: last + 1], _pointer, 1)
        if last >= 0:  # no leaf is written before this place
            self.lines += ["    if reported(status):", "        return reported(status)"]
        self.block(calls[last + 1 :], _pointer, 1)
        body = [*self.pointers(), *self.lines]
        table = self.table_lines()
        body.append("    return 0")
        scalars = sorted(n for n in self.uses if n in _SCALARS)
        runtime = self.uses - set(scalars)
        lines = ['"""A compiled graph: kernels, and the program that calls them."""', ""]
        if scalars or table:
            lines.append("import numpy as np")
        lines += ["from numba import cfunc, njit", ""]
        for module, names in sorted(_by_module(runtime).items()):
            lines.append(f"from codegen.runtime.{module} import {', '.join(sorted(names))}")
        lines += ["", *(_SCALARS[name] for name in scalars)]
        lines += ['OPTIONS = {"fastmath": FAST, "error_model": "numpy"}', ""]
        for function in self.functions:
            lines += ["", "@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)"]
            lines.append(function)
        lines += [*table, "", '@cfunc("int64(int64, int64)", cache=True, **OPTIONS)']
        lines += ["def program(table, dims):", *body]
        return "\n".join(lines) + "\n"

    def pointers(self) -> Iterator[str]:
        """What the program reads from its table and its extents."""
        if self.checks:
            self.uses |= {"address", "clear_report", "reported"}
            yield "    status = address(table, 0)"
            yield "    clear_report(status)"
        for k, _ in enumerate(self.dims):
            self.uses.add("extent")
            yield f"    n{k} = extent(dims, {k})"
        for entry, dtype in self.entries:
            short = SHORT[dtype]
            self.uses.add(f"pointer_{short}")
            yield f"    {_pointer(entry, dtype)} = pointer_{short}(table, {entry})"

    def block(self, calls: Sequence[Invoked | InvokedLoop], place: Place, depth: int) -> None:
        """The calls of a program, or of a recurrence's body, with pointers from `place`."""
        pad = "    " * depth
        for loops, group in groupby(calls, lambda call: isinstance(call, InvokedLoop)):
            run = list(group)
            if loops:
                for call in run:
                    self.loop(call, place, depth)  # type: ignore[arg-type]
            elif depth == 1 and len(run) >= TABLE_FROM:
                self.tabulated(run)  # type: ignore[arg-type]
            else:
                for call in run:
                    self.lines.append(f"{pad}# {call.kernel.formula}")  # type: ignore[union-attr]
                    self.lines.append(pad + self.call(call, place))  # type: ignore[arg-type]

    def tabulated(self, calls: Sequence[Invoked]) -> None:
        """Calls as rows of CALLS: the kernel, places in the table of addresses, extents."""
        first = len(self.rows)
        for call in calls:
            name, function = self.define(call.kernel)
            extents = [*function.extents, *function.dims]
            row = [int(name.rsplit("_", 1)[1]), *call.entries, *map(self.code_of, extents)]
            self.rows.append((row, call.kernel.formula))
            self.tabled.setdefault(name, (call.kernel, function))
        self.lines.append(
            f"    run_calls(table, dims, {first}, {len(self.rows)})"
        )

    def code_of(self, extent: Extent) -> int:
        """An extent in a row: itself, or -1, -2, .. for one that is known when the program runs."""
        if type(extent) is int:
            return extent
        return -1 - self.codes.setdefault(extent, len(self.codes))

    def table_lines(self) -> list[str]:
        """The table of calls, and the function that runs rows of it."""
        if not self.rows:
            return []
        wide = max(len(row) for row, _ in self.rows)
        self.uses |= {"FAST", "i64"}
        lines = ["", "# kernel, places in the table of addresses, extents (negative: see size_of)"]
        lines.append("CALLS = np.array([")
        for row, formula in self.rows:
            padded = row + [0] * (wide - len(row))
            lines.append(f"    {padded},  # {formula}")
        lines += ["], np.int64)", "", "", "@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)"]
        lines.append("def size_of(code, dims):")
        for extent, k in self.codes.items():
            names = {d: f"extent(dims, {j})" for j, d in enumerate(self.dims)}
            self.uses.add("extent")
            lines += [f"    if code == {-1 - k}:", f"        return {_extent(extent, names)}"]
        lines += ["    return code", "", ""]
        lines += ["@njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)"]
        lines.append("def run_calls(table, dims, first, last):")
        if self.checks:
            self.uses.add("address")
            lines.append("    status = address(table, 0)")
        lines += ["    for r in range(first, last):", "        kernel = CALLS[r, 0]"]
        for name, (kernel, function) in self.tabled.items():
            shorts = [SHORT[b.dtype] for b in kernel.buffers]
            self.uses.update(f"pointer_{short}" for short in shorts)
            arguments = [
                f"pointer_{short}(table, CALLS[r, {k}])" for k, short in enumerate(shorts, 1)
            ]
            extents = len(function.extents) + len(function.dims)
            arguments += [
                f"size_of(CALLS[r, {k}], dims)"
                for k in range(1 + len(shorts), 1 + len(shorts) + extents)
            ]
            arguments += ["status"] if function.status else []
            lines.append(f"        if kernel == {name.rsplit('_', 1)[1]}:")
            lines.append(f"            {name}({', '.join(arguments)})")
        return lines

    def loop(self, call: InvokedLoop, place: Place, depth: int) -> None:
        """A recurrence: its pointers move along the sequences."""
        loop, pad = call.loop, "    " * depth
        t, steps = f"t{depth - 1}", _extent(loop.length, self.dim_names)
        counter = f"s{depth - 1}" if loop.reverse else t
        head = [f"{pad}for {counter} in range({steps}):"]
        if loop.reverse:
            head.append(f"{pad}    {t} = {steps} - 1 - {counter}")
        moved: dict[tuple[int, DType], str] = {}

        def inner(entry: int, dtype: DType) -> str:
            where = loop.places[entry]
            base = place(call.entries[where.operand], dtype)
            if depth == 1:
                self.entries[call.entries[where.operand], dtype] = None
            if type(where.step) is int and where.step == 0:
                return base
            if (entry, dtype) not in moved:
                self.uses.add("shift")
                name = f"{base}_{len(moved)}{t}"
                moved[entry, dtype] = name
                step = _extent(where.step, self.dim_names)
                head.append(f"{pad}    {name} = shift({base}, {t} * ({step}))")
            return moved[entry, dtype]

        outer, self.lines = self.lines, []
        self.block(loop.calls, inner, depth + 1)
        outer += [*head, *(self.lines or [f"{pad}    pass"])]
        self.lines = outer

    def define(self, kernel: Kernel) -> tuple[str, _Function]:
        """A kernel's name and text; kernels that do the same on the same dtypes share one."""
        function = _print_kernel(kernel)
        self.uses |= function.uses
        self.checks = self.checks or function.status
        key = "\n".join([*(b.dtype.name for b in kernel.buffers), *function.lines])
        if key not in self.names:
            self.names[key] = f"kernel_{len(self.names)}"
            self.functions.append(_definition(self.names[key], kernel, function))
        return self.names[key], function

    def call(self, call: Invoked, place: Place) -> str:
        """A kernel's call."""
        name, function = self.define(call.kernel)
        pointers = []
        for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True):
            pointers.append(place(entry, buffer.dtype))
            if place is _pointer:
                self.entries[entry, buffer.dtype] = None
        extents = [_extent(e, self.dim_names) for e in function.extents]
        numbers = [self.dim_names[d] for d in function.dims]
        report = ["status"] if function.status else []
        return f"{name}({', '.join([*pointers, *extents, *numbers, *report])})"


def _may_report(call: Invoked | InvokedLoop) -> bool:
    return call.loop.checks if isinstance(call, InvokedLoop) else call.kernel.checks


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
    if isinstance(extent, int):
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
        for d in free_dims(extent):
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
                self.function.uses.add("i64")
                self.function.status = True
                check = "checked_index" if s.wrap else "checked_label"
                self.function.uses.add(check)
                given = f"i64({s.index}), {self.extent(s.extent)}, status, {s.node}"
                self.put(f"{s.name} = {check}({given}, {self.affine(s.position)})", depth)
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
            text = self.affine(payload) if isinstance(payload, Affine) else self.extent(payload)
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
