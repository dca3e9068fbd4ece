"""The CPU target: loop IR -> Python for Numba.

Each kernel is a function of typed pointers and extents; a program calls kernels in order. Kernels with the
same text are emitted once and called with other pointers. Names are generated: no text of a user's
program gets into the source, so that programs which differ in names alone share a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from codegen import loop_ir as ir
from codegen.compiled import Array, State
from codegen.host_memory import HostInvocation
from codegen.loading import Loaded, load
from codegen.loop_ir import For, Kernel, Let, Load, Statement, Store
from codegen.memory import Plan
from codegen.printing import SCALARS, BodyPrinter, Function, extent_text, memory_name
from codegen.runtime import checks, linalg, memory, vector_math
from codegen.runtime.vector_math import PRIMITIVES
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import SHORT, DType
from symgrad.graph.errors import CompileError
from symgrad.graph.nodes import Input

# A single loop at least this long takes its extent as an argument, so that kernels are shared.
SHARED_FROM = 4
SCOPES = 32
# One row follows the other, so what one pass computes may wait for the next in a row of memory.
ROW_MEMORY = True


def print_program(plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
    """The source of a plan: constants, kernels, and `program(table, dims)`."""
    return _Printer(plan, dims, key).text()


def load_program(source: str, key: str) -> Loaded:
    """Compile source, or fetch it from the cache."""
    return load(source, key)


def prepare(plan: Plan, dims: Sequence[Dim], loaded: Loaded, state: State) -> HostInvocation:
    """The memory of one thread's calls."""
    return HostInvocation(plan, dims, loaded.address)


def hold(leaves: Sequence[Input], values: Sequence[Array]) -> State:
    """The state of a program: the very arrays that it works on."""
    return State(leaves, values)


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
        lines += [""] + [SCALARS[name] for name in scalars]
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
            yield f"{memory_name(entry, dtype)} = pointer_{short}(table, {entry})"

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
                memory_name(entry, buffer.dtype)
                for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True)
            ]
            extents = [extent_text(e, names) for e in function.extents]
            numbers = [names[d] for d in function.dims]
            report = ["status"] if function.status else []
            if call.kernel.formula:
                yield f"# {call.kernel.formula}"
            yield f"{self.names[text]}({', '.join([*pointers, *extents, *numbers, *report])})"
            if checked and k == checked[-1]:  # no leaf is written before this place
                yield "if reported(status):"
                yield "    return reported(status)"
        yield "return 0"


def _definition(name: str, kernel: Kernel, function: Function) -> str:
    report = ["status"] if function.status else []
    arguments = [b.name for b in kernel.buffers] + list(function.extents.values())
    arguments += [*function.dims.values(), *report]
    head = [f"def {name}({', '.join(arguments)}):"]
    if kernel.formula:
        head.append(f'    """{kernel.formula}"""')
    return "\n".join([*head, "    kernel_prologue()", *function.lines]) + "\n"


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


def _print_kernel(kernel: Kernel) -> Function:
    return _KernelPrinter(kernel).function


class _KernelPrinter(BodyPrinter):
    primitives = PRIMITIVES
    room: ClassVar[str] = "codegen/runtime/vector_math.py"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.function.uses.add("kernel_prologue")
        loops = [s for s in kernel.body if isinstance(s, For)]
        # kernels of plain loops and of products are shared between extents
        self.flat = all(not any(isinstance(s, For) for s in loop.body) for loop in loops)
        self.block(kernel.body, 1)

    def load(self, load: Load) -> str:
        self.function.uses.add("ld")
        return f"ld({load.buffer.name}, {self.affine(load.offset)}, {_scope(load.buffer)})"

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
