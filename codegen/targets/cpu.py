"""The CPU target: loop IR -> Python for Numba.

Each kernel is a function of typed pointers and extents; a program calls kernels in order. Kernels
with the same text are emitted once and called with other pointers. Names are generated: no text of
a user's program gets into the source, so that programs which differ in names alone share a file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from codegen import loop_ir as ir
from codegen.access import ZERO
from codegen.compiled import Array, State
from codegen.host_memory import HostInvocation
from codegen.loading import Loaded, load
from codegen.loop_ir import WORKER, WORKERS, For, Kernel, Let, Load, Parts, Statement, Store
from codegen.loops import FULL_VECTOR
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.printing import (
    SCALARS,
    Function,
    Place,
    extent_text,
    may_report,
    memory_name,
)
from codegen.row_printing import RowPrinter, across_rows, is_row, scope_of
from codegen.runtime.export import standalone
from codegen.runtime.names import RUNTIME
from codegen.runtime.team_words import SIZE
from codegen.timing import CLOCK
from codegen.tune import interleaving, totals
from codegen.workspace import ALIGNMENT
from symgrad.graph.dims import Dim, Extent
from symgrad.graph.dtypes import INT64, SHORT, DType
from symgrad.graph.errors import CompileError
from symgrad.graph.nodes import Input

# So many calls in a row, and more, become rows of a table: a call in the program is more code.
TABLE_FROM = 64
# Kernels of that table that one function chooses from.
GROUP = 64
# A single loop at least this long takes its extent as an argument, so that kernels are shared.
SHARED_FROM = 4
# One row follows the other, so what one pass computes may wait for the next in a row of memory.
ROW_MEMORY = True
# Kernels can be timed one by one.
TIMED = True


def print_program(plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
    """The source of a plan: constants, kernels, and `program(table, dims)`.

    For a team it is `program(table, dims, team, worker)`, which all of its workers run.
    """
    return _Printer(plan, dims, key).text()


# What a saved file ends with: how `program` is called.
EXECUTE = f'''
machine_code = linked(program_code(program))


def execute(leaves, results, n):
    """Run the program on this machine's processor; its report of a bad index."""
    offsets, _, total = place(workspace(n))
    memory = np.empty(total + {ALIGNMENT}, np.uint8)
    first = -(-memory.ctypes.data // {ALIGNMENT}) * {ALIGNMENT}
    report = np.zeros(4, np.int64)
    table = [a.ctypes.data for a in (report, *leaves, *CONSTANTS, *results)]
    table = np.array([*table, *(first + offset for offset in offsets)], np.int64)
    dims = np.array([*n, 0], np.int64)
    machine_code(table.ctypes.data, dims.ctypes.data)
    return report
'''


def stand_alone(source: str) -> str:
    """Source that holds the runtime too, for a saved file."""
    return standalone(source, besides=("linked", "program_code"))


def load_program(source: str, key: str) -> Loaded:
    """Compile source, or fetch it from the cache."""
    return load(source, key)


def prepare(plan: Plan, dims: Sequence[Dim], loaded: Loaded, state: State) -> HostInvocation:
    """The memory of one thread's calls."""
    return HostInvocation(plan, dims, loaded.address)


def hold(leaves: Sequence[Input], values: Sequence[Array]) -> State:
    """The state of a program: the very arrays that it works on."""
    return State(leaves, values)


@dataclass(frozen=True, slots=True)
class _Where:
    """Where calls are printed: in the program, or in the loop of a recurrence.

    Fields:
        depth: of the lines.
        name:  of an entry of the table, read as a dtype.
        place: of an entry in the program's own table; None for what moves along a sequence.
    """

    depth: int
    name: Place
    place: Callable[[int], int | None]


class _Printer:
    def __init__(self, plan: Plan, dims: tuple[Dim, ...], key: str) -> None:
        self.plan = plan
        self.dims = dims
        self.key = key
        self.names: dict[str, str] = {}
        self.functions: list[str] = []
        self.uses: set[str] = {"kernel"}
        self.lines: list[str] = []
        self.entries: dict[tuple[int, DType], None] = {}
        self.dim_names = {d: f"n{k}" for k, d in enumerate(dims)}
        self.team = plan.workers > 1
        if self.team:
            self.dim_names |= {WORKER: "worker", WORKERS: "workers"}
        self.shares: dict[Extent, int] = {}
        self.checks = False
        self.rows: list[tuple[list[int], str]] = []
        self.codes: dict[Extent, int] = {}
        self.tabled: dict[str, tuple[Kernel, Function]] = {}

    def text(self) -> str:
        calls = self.plan.calls
        last = max((k for k, call in enumerate(calls) if may_report(call)), default=-1)
        here = _Where(1, self.entry, lambda entry: entry)
        self.block(calls[: last + 1], here)
        if last >= 0:  # no leaf is written before this place
            if self.team:
                self.lines.append("    meet(team)")
            self.lines += ["    if reported(status):", "        return reported(status)"]
        self.block(calls[last + 1 :], here)
        body = [*self.pointers(), *self.lines]
        table = self.table_lines()
        body.append("    return 0")
        scalars = sorted(n for n in self.uses if n in SCALARS)
        runtime = self.uses - set(scalars)
        lines = ['"""A compiled graph: kernels, and the program that calls them."""', ""]
        if scalars or table:
            lines += ["import numpy as np", ""]
        for module, names in sorted(_by_module(runtime).items()):
            lines.append(f"from codegen.runtime.{module} import {', '.join(sorted(names))}")
        lines += ["", *(SCALARS[name] for name in scalars), *([""] if scalars else [])]
        for function in self.functions:
            lines += ["", "@kernel", function]
        own = ", ".join(["table", "dims", *(("team", "worker") if self.team else ())])
        lines += [*table, "", "@kernel", f"def program({own}):", *body]
        return "\n".join(lines) + "\n"

    def pointers(self) -> Iterator[str]:
        """What the program reads from its table and its extents."""
        if self.checks:
            self.uses |= {"address", "reported"}
            yield "    status = address(table, 0)"
            if not self.team:  # who calls a team has cleared it: workers begin when they can
                self.uses.add("clear_report")
                yield "    clear_report(status)"
        for k, _ in enumerate(self.dims):
            self.uses.add("extent")
            yield f"    n{k} = extent(dims, {k})"
        for entry, dtype in self.entries:
            short = SHORT[dtype]
            self.uses.add(f"pointer_{short}")
            yield f"    {memory_name(entry, dtype)} = pointer_{short}(table, {entry})"
        if self.team:
            self.uses |= {"address", "meet", "first_of"}
            yield f"    workers = address(team, {SIZE})"
        for count, k in self.shares.items():
            text = extent_text(count, self.dim_names)
            yield f"    a{k} = first_of({text}, worker, workers)"
            yield f"    b{k} = first_of({text}, worker + 1, workers)"

    def entry(self, entry: int, dtype: DType) -> str:
        """The name of an entry of the table, which the program then reads."""
        self.entries[entry, dtype] = None
        return memory_name(entry, dtype)

    def share(self, parts: Parts) -> tuple[str, str]:
        """Where a worker's part of the iterations of a loop begins and ends."""
        rows, each = parts
        k = self.shares.setdefault(rows, len(self.shares))
        if type(each) is int and each == 1:
            return f"a{k}", f"b{k}"
        text = extent_text(each, self.dim_names)
        factor = text if text.isalnum() else f"({text})"
        return f"a{k} * {factor}", f"b{k} * {factor}"

    def block(self, calls: Sequence[Invoked | InvokedLoop], where: _Where) -> None:
        """The calls of a program, or of a recurrence's body."""

        def kind(call: Invoked | InvokedLoop) -> str:
            if isinstance(call, InvokedLoop):
                return "loop"
            if self.team:
                return "shared"
            moving = any(where.place(entry) is None for entry in call.entries)
            return "moving" if moving else "fixed"

        pad = "    " * where.depth
        for found, group in groupby(calls, kind):
            run = list(group)
            if found == "fixed" and len(run) >= TABLE_FROM:
                self.tabulated(run, where)  # type: ignore[arg-type]
                continue
            alone = False
            for call in run:
                if call.meet:
                    self.lines.append(f"{pad}meet(team)")
                    alone = False
                if isinstance(call, InvokedLoop):
                    self.loop(call, where)
                    continue
                inner = pad + "    " * bool(call.kernel.alone and self.team)
                if inner != pad and not alone:
                    self.lines.append(f"{pad}if worker == 0:")
                alone = inner != pad
                self.lines.append(f"{inner}# {call.kernel.formula}")
                self.lines.append(inner + self.call(call, where.name))

    def tabulated(self, calls: Sequence[Invoked], where: _Where) -> None:
        """Calls as rows of CALLS: the kernel, places in the table of addresses, extents."""
        first = len(self.rows)
        for call in calls:
            name, function = self.define(call.kernel)
            extents = [*function.extents, *function.dims, *function.checks]
            places = [where.place(entry) or 0 for entry in call.entries]
            row = [_number(name), *places, *map(self.code_of, extents)]
            self.rows.append((row, call.kernel.formula))
            self.tabled.setdefault(name, (call.kernel, function))
        pad = "    " * where.depth
        self.lines.append(f"{pad}run_calls(table, dims, {first}, {len(self.rows)})")

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
        lines = ["", "# kernel, places in the table of addresses, extents (negative: see size_of)"]
        lines.append("CALLS = np.array([")
        for row, formula in self.rows:
            padded = row + [0] * (wide - len(row))
            lines.append(f"    {padded},  # {formula}")
        lines += ["], np.int64)", "", "", "@kernel"]
        lines.append("def size_of(code, dims):")
        for extent, k in self.codes.items():
            names = {d: f"extent(dims, {j})" for j, d in enumerate(self.dims)}
            self.uses.add("extent")
            lines += [f"    if code == {-1 - k}:", f"        return {extent_text(extent, names)}"]
        lines += ["    return code", "", ""]
        return [*lines, *self.dispatch()]

    def dispatch(self) -> list[str]:
        """`run_calls`, which runs rows of the table, by groups of kernels."""
        head = "@kernel"
        lines: list[str] = []
        tests: list[str] = []
        tabled = sorted(self.tabled.items(), key=lambda item: _number(item[0]))
        for first in range(0, len(tabled), GROUP):
            group = tabled[first : first + GROUP]
            name = f"run_{first // GROUP}"
            lines += [head, f"def {name}(kernel, r, table, dims, status):"]
            for kernel, (made, function) in group:
                lines.append(f"    if kernel == {_number(kernel)}:")
                lines.append(f"        {kernel}({', '.join(self.row_arguments(made, function))})")
            lines += ["", ""]
            below = f"if kernel <= {_number(group[-1][0])}"
            tests.append(f"        {'el' if tests else ''}{below}:")
            tests.append(f"            {name}(kernel, r, table, dims, status)")
        lines += [head, "def run_calls(table, dims, first, last):"]
        lines.append(f"    status = {'address(table, 0)' if self.checks else 'table'}")
        lines += ["    for r in range(first, last):", "        kernel = CALLS[r, 0]"]
        self.uses |= {"address"} if self.checks else set()
        return lines + tests

    def row_arguments(self, kernel: Kernel, function: Function) -> list[str]:
        """What a kernel of the table is called with."""
        shorts = [SHORT[b.dtype] for b in kernel.buffers]
        self.uses.update(f"pointer_{short}" for short in shorts)
        arguments = [f"pointer_{short}(table, CALLS[r, {k}])" for k, short in enumerate(shorts, 1)]
        extents = len(function.extents) + len(function.dims) + len(function.checks)
        arguments += [
            f"size_of(CALLS[r, {k}], dims)"
            for k in range(1 + len(shorts), 1 + len(shorts) + extents)
        ]
        return arguments + (["status"] if function.status else [])

    def loop(self, call: InvokedLoop, where: _Where) -> None:
        """A recurrence: its pointers move along the sequences."""
        loop, pad = call.loop, "    " * where.depth
        t, steps = f"t{where.depth - 1}", extent_text(loop.length, self.dim_names)
        counter = f"s{where.depth - 1}" if loop.reverse else t
        head = [f"{pad}for {counter} in range({steps}):"]
        if loop.reverse:
            head.append(f"{pad}    {t} = {steps} - 1 - {counter}")
        moved: dict[tuple[int, DType], str] = {}

        def place(entry: int) -> int | None:
            inner = loop.places[entry]
            still = type(inner.step) is int and inner.step == 0
            return where.place(call.entries[inner.operand]) if still else None

        def name(entry: int, dtype: DType) -> str:
            inner = loop.places[entry]
            base = where.name(call.entries[inner.operand], dtype)
            if type(inner.step) is int and inner.step == 0:
                return base
            if (entry, dtype) not in moved:
                self.uses.add("shift")
                moved[entry, dtype] = f"{base}_{len(moved)}{t}"
                step = extent_text(inner.step, self.dim_names)
                head.append(f"{pad}    {moved[entry, dtype]} = shift({base}, {t} * ({step}))")
            return moved[entry, dtype]

        outer, self.lines = self.lines, []
        self.block(loop.calls, _Where(where.depth + 1, name, place))
        outer += [*head, *(self.lines or [f"{pad}    pass"])]
        self.lines = outer

    def define(self, kernel: Kernel) -> tuple[str, Function]:
        """A kernel's name and text; kernels that do the same on the same dtypes share one."""
        function = _print_kernel(kernel)
        self.uses |= function.uses
        self.checks = self.checks or function.status
        key = "\n".join([*(b.dtype.name for b in kernel.buffers), *function.lines])
        if key not in self.names:
            self.names[key] = f"kernel_{len(self.names)}"
            self.functions.append(_definition(self.names[key], kernel, function))
        return self.names[key], function

    def call(self, call: Invoked, memory: Place) -> str:
        """A kernel's call."""
        pointers = [
            memory(entry, buffer.dtype)
            for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True)
        ]
        if (count := call.kernel.copied) is not None:
            return self.copy(call.kernel, pointers, extent_text(count, self.dim_names))
        name, function = self.define(call.kernel)
        numbers = [extent_text(e, self.dim_names) for e in (*function.extents, *function.dims)]
        numbers += [text for parts in function.shares for text in self.share(parts)]
        numbers += map(str, function.checks)
        report = [*(["team"] if function.meets else []), *(["status"] if function.status else [])]
        return f"{name}({', '.join([*pointers, *numbers, *report])})"


    def copy(self, kernel: Kernel, pointers: Sequence[str], count: str) -> str:
        """A copy of memory, or of a worker's part of it."""
        self.uses.add("copy_block")
        loop = kernel.body[0]
        if not isinstance(loop, For) or not loop.shared:
            return f"copy_block({', '.join(pointers)}, {count})"
        self.uses.add("shift")
        first, end = self.share(loop.parts or (loop.extent, 1))
        moved = ", ".join(f"shift({pointer}, {first})" for pointer in pointers)
        return f"copy_block({moved}, {end} - {first})"


def _number(name: str) -> int:
    """The number in a kernel's name."""
    return int(name.rsplit("_", 1)[1])


def _definition(name: str, kernel: Kernel, function: Function) -> str:
    report = [*(["team"] if function.meets else []), *(["status"] if function.status else [])]
    arguments = [b.name for b in kernel.buffers] + list(function.extents.values())
    arguments += [*function.dims.values(), *(n for pair in function.shares.values() for n in pair)]
    arguments += [*function.checks.values(), *report]
    head = [f"def {name}({', '.join(arguments)}):"]
    if kernel.formula:
        head.append(f'    """{kernel.formula}"""')
    return "\n".join([*head, *function.lines]) + "\n"


def _by_module(names: set[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        room = next((module for module, known in RUNTIME.items() if name in known), None)
        if room is None:
            raise CompileError(f"the runtime has no {name!r} (codegen/runtime/names.py)")
        found.setdefault(room, set()).add(name)
    return found


def _print_kernel(kernel: Kernel) -> Function:
    return _KernelPrinter(kernel).function


class _KernelPrinter(RowPrinter):
    primitives: ClassVar[Collection[str]] = RUNTIME["vector_math"] | RUNTIME["draws"] | {CLOCK}
    room: ClassVar[str] = "codegen/runtime/vector_math.py"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        loops = [s for s in kernel.body if isinstance(s, For)]
        # kernels of plain loops and of products are shared between extents
        self.flat = all(not any(isinstance(s, For) for s in loop.body) for loop in loops)
        self.totals = frozenset(totals(kernel.body))
        self.shortest = FULL_VECTOR if across_rows(kernel.body) else 2
        self.depth = 1
        self.defined: dict[str, int] = {}
        self.block(kernel.body, 1)

    def load(self, load: Load) -> str:
        if self.row is not None and load.offset.coefficient(self.row.var) != 0:
            return self.load_row(self.row, load)
        self.function.uses.add("ld")
        return f"ld({load.buffer.name}, {self.affine(load.offset)}, {scope_of(load.buffer)})"

    def value(self, let: Let) -> str:
        """The right-hand side of a Let.

        The order of a sum of floats is free; what divides all of a loop's values is inverted once.
        """
        v = let.value
        if self.row is not None and let.name in self.totals:
            let = self.across(self.row, let)
            v = let.value
        if let.dtype.kind == "f" and isinstance(v, ir.Apply):
            steps = {"add": "plus", "mul": "times"} if let.name in self.totals else {}
            if v.operation == "div" and self.defined.get(v.operands[1], 0) < self.depth:
                steps["div"] = "ratio"
            if (operation := steps.get(v.operation)) is not None:
                self.function.uses.add(operation)
                return f"{operation}({', '.join(v.operands)})"
        return super().value(let)

    def block(self, body: Sequence[Statement], depth: int) -> None:
        self.depth = depth
        for s in body:
            if isinstance(s, For) and depth > 1 and is_row(s, self.totals, self.shortest):
                self.side_by_side(s, depth)
            elif isinstance(s, For):
                self.loop_names[s.var] = f"i{depth - 1}"
                if s.shared:
                    first, end = self.bounds(s.parts or (s.extent, 1))
                    self.head(s, f"{first}, {end}", depth)
                    self.block(s.body, depth + 1)
                    self.depth = depth
                    continue
                shared = self.flat and (type(s.extent) is not int or s.extent >= SHARED_FROM)
                self.head(s, self.extent(s.extent, shared), depth)
                self.block(s.body, depth + 1)
                self.depth = depth
            elif isinstance(s, Let):
                self.defined[s.name] = depth
                self.put(f"{s.name} = {self.value(s)}", depth)
            elif isinstance(s, ir.Update):
                self.put(f"{s.name} = {s.value}", depth)
            elif isinstance(s, Store) and self.row is not None:
                self.put(self.store_row(self.row, s), depth)
            elif isinstance(s, Store):
                self.function.uses.add("st")
                place = f"{s.buffer.name}, {self.affine(s.offset)}"
                self.put(f"st({place}, {s.name}, {scope_of(s.buffer)})", depth)
            elif isinstance(s, ir.CheckIndex):
                self.function.uses.add("i64")
                self.function.status = True
                check = "checked_index" if s.wrap else "checked_label"
                self.function.uses.add(check)
                checks = self.function.checks
                number = checks.setdefault(s.node, f"c{len(checks)}")
                given = f"i64({s.index}), {self.extent(s.extent)}, status, {number}"
                self.put(f"{s.name} = {check}({given}, {self.affine(s.position)})", depth)
            elif isinstance(s, ir.Only):
                self.put(f"if {self.extent(WORKER)} == 0:", depth)
                self.block(s.body, depth + 1)
                self.depth = depth
            elif isinstance(s, ir.Wait):
                self.function.uses.add("meet")
                self.function.meets = True
                self.put("meet(team)", depth)
            else:
                self.put(self.product(s), depth)

    def head(self, loop: For, bounds: str, depth: int) -> None:
        """The first line of a loop."""
        count = interleaving(loop)
        if count == 1:
            self.put(f"for i{depth - 1} in range({bounds}):", depth)
            return
        self.function.uses.add("interleaved")
        self.put(f"for i{depth - 1} in interleaved({count}, {bounds}):", depth)

    def bounds(self, parts: Parts) -> tuple[str, str]:
        """The names of where a worker's part of a loop begins and ends."""
        shares = self.function.shares
        return shares.setdefault(parts, (f"a{len(shares)}", f"b{len(shares)}"))

    def apply(self, operation: str, operands: tuple[str, ...], dtype: DType) -> str:
        """An operation; whole numbers wrap around."""
        if dtype == INT64 and operation in ("add", "sub", "mul"):
            self.function.uses.add(f"whole_{operation}")
            return f"whole_{operation}({', '.join(operands)})"
        return super().apply(operation, operands, dtype)

    def product(self, call: ir.Call) -> str:
        short = SHORT[call.c.dtype]
        self.function.uses |= {f"gemm_{short}", short}
        m, n, k = (self.extent(e, True) for e in (call.m, call.n, call.k))
        left, right = map(int, call.transposed)
        lda, ldb, ldc = (self.extent(e, True) for e in call.rows)
        more = ("", "", "")
        if call.shared == "m":
            first, end = self.bounds(call.parts or (call.m, 1))
            m = f"({end} - {first})"
            more = (first if left else f"{first} * {lda}", "", f"{first} * {ldc}")
        elif call.shared == "n":
            first, end = self.bounds((call.n, 1))
            n = f"({end} - {first})"
            more = ("", f"{first} * {ldb}" if right else first, first)
        buffers = []
        for buffer, offset, own in zip((call.a, call.b, call.c), call.offsets, more, strict=True):
            places = [*([self.affine(offset)] if offset != ZERO else []), *([own] if own else [])]
            if places:
                self.function.uses.add("shift")
                buffers.append(f"shift({buffer.name}, {' + '.join(places)})")
            else:
                buffers.append(buffer.name)
        a, b, c = buffers
        return (
            f"gemm_{short}({left}, {right}, {m}, {n}, {k}, {short}(1), "
            f"{a}, {lda}, {b}, {ldb}, {short}(0), {c}, {ldc})"
        )
