"""A program for the CPU as Python source: kernels, and `program`, which calls them in order.

Each kernel is a function of typed pointers and extents. Kernels with the same text are emitted once
and called with other pointers. Names are generated: no text of a user's program gets into the
source, so that programs which differ in names alone share a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from codegen.call_table import TABLE_FROM, CallTable
from codegen.counted import counted_in
from codegen.foresight import needed_after
from codegen.kernel_printing import print_kernel
from codegen.loop_ir import TURN, WORKER, WORKERS, For, Kernel, Partition, follows_turns
from codegen.memory import InnerPlace, Invoked, InvokedLoop, Live, Plan
from codegen.printing import (
    SCALARS,
    Function,
    Place,
    extent_text,
    may_report,
    memory_name,
)
from codegen.runtime.names import RUNTIME
from codegen.runtime.team_words import SIZE
from symgrad.graph.dims import Counted, Dim, Extent, is_counted
from symgrad.graph.dtypes import INT64, SHORT, DType
from symgrad.graph.errors import CompileError


def program_text(plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
    """The source of a plan for the CPU; see `codegen/targets/cpu.py`."""
    return _Printer(plan, dims, key).text()


@dataclass(frozen=True, slots=True)
class _Where:
    """Where calls are printed: in the program, or in the loop of a recurrence.

    Fields:
        depth: of the lines.
        name:  of an entry of the table, read as a dtype.
        place: of an entry in the program's own table; None for what moves along a sequence.
        ranges: of memory that a product fetches meanwhile: pointers and counts of elements in turn.
    """

    depth: int
    name: Place
    place: Callable[[int], int | None]
    ranges: Callable[[Invoked], Sequence[str]] = lambda call: ()


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
        self.table = CallTable(dims, self.team, self.uses)
        if self.team:
            self.dim_names |= {WORKER: "worker", WORKERS: "workers"}
        self.shares: dict[Extent, int] = {}
        self.counted = 0
        self.checks = False

    def text(self) -> str:
        calls = self.plan.calls
        last = max((k for k, call in enumerate(calls) if may_report(call)), default=-1)
        here = _Where(1, self.entry, lambda entry: entry)
        self.block(calls[: last + 1], here)
        if last >= 0:  # no leaf is written before this place
            if self.team:
                self.lines.append("    meet(team, worker)")
            self.lines += ["    if reported(status):", "        return reported(status)"]
        self.block(calls[last + 1 :], here)
        body = [*self.pointers(), *self.lines]
        table = self.table.lines(self.checks)
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
            yield f"    e{k} = first_of({text}, worker + 1, workers)"

    def entry(self, entry: int, dtype: DType) -> str:
        """The name of an entry of the table, which the program then reads."""
        self.entries[entry, dtype] = None
        return memory_name(entry, dtype)

    def share(self, parts: Partition) -> tuple[str, str]:
        """Where a worker's part of the iterations of a loop begins and ends."""
        rows, each = parts
        if is_counted(rows, each):
            return self.counted_share(parts)
        k = self.shares.setdefault(rows, len(self.shares))
        if type(each) is int and each == 1:
            return f"a{k}", f"e{k}"
        text = extent_text(each, self.dim_names)
        factor = text if text.isalnum() else f"({text})"
        return f"a{k} * {factor}", f"e{k} * {factor}"

    def counted_share(self, parts: Partition) -> tuple[str, str]:
        """The same of rows that the program has counted by now."""
        rows, each = (extent_text(e, self.dim_names) for e in parts)
        self.uses.add("first_of")
        factor = "" if each == "1" else f" * ({each})"
        first, end = (f"first_of({rows}, {w}, workers){factor}" for w in ("worker", "worker + 1"))
        return first, end

    def tell(self, dim: Counted, where: _Where, entry: int, place: str, pad: str) -> str:
        """The line that reads a dim from memory; it has a name from then on."""
        self.uses.add("ld")
        line = f"{pad}w{self.counted} = ld({where.name(entry, INT64)}, {place}, -1)"
        self.dim_names[dim] = f"w{self.counted}"
        self.counted += 1
        return line

    def block(self, calls: Sequence[Invoked | InvokedLoop], where: _Where) -> None:
        """The calls of a program, or of a recurrence's body."""

        def kind(call: Invoked | InvokedLoop) -> str:
            if isinstance(call, InvokedLoop):
                return "loop"
            moving = any(where.place(entry) is None for entry in call.entries)
            moving = moving or bool(where.ranges(call))
            fixed = not (moving or follows_turns(call.kernel) or counted_in(call.kernel))
            return "fixed" if fixed else "moving"

        pad = "    " * where.depth
        for found, group in groupby(calls, kind):
            run = list(group)
            if found == "fixed" and len(run) >= TABLE_FROM:
                self.tabulated(run, where)  # type: ignore[arg-type]
                continue
            alone = False
            for call in run:
                if call.tells and self.team:
                    self.lines.append(f"{pad}meet(team, worker)")
                for dim, entry in call.tells:
                    place = extent_text(dim.most, self.dim_names)
                    self.lines.append(self.tell(dim, where, entry, place, pad))
                if call.meet:
                    self.lines.append(f"{pad}meet(team, worker)")
                alone = alone and not (call.tells or call.meet)
                if isinstance(call, InvokedLoop):
                    self.loop(call, where)
                    continue
                inner = pad + "    " * bool(call.kernel.alone and self.team)
                if inner != pad and not alone:
                    self.lines.append(f"{pad}if worker == 0:")
                alone = inner != pad
                self.lines.append(f"{inner}# {call.kernel.formula}")
                self.lines.append(inner + self.call(call, where))

    def tabulated(self, calls: Sequence[Invoked], where: _Where) -> None:
        """Calls as rows of a table."""
        first = len(self.table.rows)
        for call in calls:
            name, function = self.define(call.kernel)
            self.table.add(call, name, function, [where.place(e) or 0 for e in call.entries])
        self.lines.append("    " * where.depth + self.table.run(first))

    def loop(self, call: InvokedLoop, where: _Where) -> None:
        """A recurrence: its pointers move along the sequences."""
        loop, pad = call.loop, "    " * where.depth
        t, steps = f"t{where.depth - 1}", extent_text(loop.length, self.dim_names)
        if loop.rows is not None:
            steps = ", ".join(self.share((loop.length, 1)))
        counter = f"s{where.depth - 1}" if loop.reverse else t
        head = []
        names = dict(self.dim_names)
        bound = None if loop.bound is None else where.place(call.entries[loop.bound])
        if loop.live is not None and loop.bound is not None:
            self.uses.add("ld")
            steps = f"m{where.depth - 1}"
            head.append(f"{pad}{steps} = ld({where.name(call.entries[loop.bound], INT64)}, 0, -1)")
        elif bound is not None:  # else it moves along a sequence: all steps are taken
            self.uses |= {"address", "extent"}
            steps = f"m{where.depth - 1}"
            head.append(f"{pad}{steps} = extent(address(table, {bound}), 0)")
        if loop.live is not None and self.team:
            head.append(f"{pad}l{where.depth - 1} = -1")
        head.append(f"{pad}for {counter} in range({steps}):")
        if loop.reverse:
            head.append(f"{pad}    {t} = {steps} - 1 - {counter}")
        first = f"r{where.depth - 1}"
        if loop.live is not None:
            head += self.live(loop.live, call, where, t, first)
        moved: dict[tuple[int, DType], str] = {}

        def place(entry: int) -> int | None:
            inner = loop.places[entry]
            still = type(inner.step) is int and inner.step == 0 and not inner.each
            return where.place(call.entries[inner.operand]) if still else None

        def name(entry: int, dtype: DType) -> str:
            inner = loop.places[entry]
            if inner.each:
                return own(inner, dtype)
            base = where.name(call.entries[inner.operand], dtype)
            if type(inner.step) is int and inner.step == 0:
                return base
            if (entry, dtype) not in moved:
                self.uses.add("shift")
                moved[entry, dtype] = f"{base}_{len(moved)}{t}"
                step = extent_text(inner.step, self.dim_names)
                by = first if inner.rows else t
                head.append(f"{pad}    {moved[entry, dtype]} = shift({base}, {by} * ({step}))")
            return moved[entry, dtype]

        def own(inner: InnerPlace, dtype: DType) -> str:
            first, second = (where.place(call.entries[inner.operand + k]) for k in (0, inner.each))
            assert first is not None and second == first + inner.each, "workers' entries in order"
            made = f"own_{memory_name(first, dtype)}"
            line = f"{pad}{made} = pointer_{SHORT[dtype]}(table, {first} + worker * {inner.each})"
            if line not in head:
                self.uses.add(f"pointer_{SHORT[dtype]}")
                head.insert(0, line)
            return made

        outer, self.lines = self.lines, []
        if loop.turns:
            self.dim_names[TURN] = t
        after = {} if self.team else {id(c): found for c, found in needed_after(loop)}

        def ranges(product: Invoked) -> list[str]:
            texts = []
            for entry, dtype, again in after.get(id(product), ()):
                inner = loop.places[entry]
                step = extent_text(inner.step, self.dim_names)
                following = f"({t} {'-' if loop.reverse else '+'} 1) * ({step})"
                base = where.name(call.entries[inner.operand], dtype)
                texts += [f"shift({base}, {following})" if again else name(entry, dtype), step]
            return texts

        self.block(loop.calls, _Where(where.depth + 1, name, place, ranges))
        outer += [*head, *(self.lines or [f"{pad}    pass"])]
        self.lines, self.dim_names = outer, names

    def live(
        self, live: Live, call: InvokedLoop, where: _Where, t: str, first: str
    ) -> Iterator[str]:
        """Where the rows of a step begin, and how many they are; workers have other ones then."""
        pad = "    " * (where.depth + 1)
        self.uses.add("ld")
        yield f"{pad}{first} = ld({where.name(call.entries[live.start], INT64)}, {t}, -1)"
        yield self.tell(live.dim, where, call.entries[live.count], t, pad)
        if self.team:
            now, last = self.dim_names[live.dim], f"l{where.depth - 1}"
            yield f"{pad}if {now} != {last}:"
            yield f"{pad}    meet(team, worker)"
            yield f"{pad}{last} = {now}"

    def define(self, kernel: Kernel, fetches: bool = False) -> tuple[str, Function]:
        """A kernel's name and text; kernels that do the same on the same dtypes share one."""
        function = print_kernel(kernel, fetches)
        self.uses |= function.uses
        self.checks = self.checks or function.status
        key = "\n".join([*(b.dtype.name for b in kernel.buffers), *function.lines])
        if key not in self.names:
            self.names[key] = f"kernel_{len(self.names)}"
            self.functions.append(_definition(self.names[key], kernel, function))
        return self.names[key], function

    def call(self, call: Invoked, where: _Where) -> str:
        """A kernel's call."""
        pointers = [
            where.name(entry, buffer.dtype)
            for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True)
        ]
        if (count := call.kernel.copied) is not None:
            return self.copy(call.kernel, pointers, extent_text(count, self.dim_names))
        ranges = where.ranges(call)
        name, function = self.define(call.kernel, bool(ranges))
        numbers = [extent_text(e, self.dim_names) for e in (*function.extents, *function.dims)]
        numbers += [text for parts in function.shares for text in self.share(parts)]
        numbers += map(str, function.checks)
        if ranges:
            self.uses |= {"ranges_of", "shift"}
            numbers += [f"ranges_of({', '.join(ranges)})", str(len(ranges) // 2)]
        return f"{name}({', '.join([*pointers, *numbers, *function.team_and_status])})"


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


def _definition(name: str, kernel: Kernel, function: Function) -> str:
    arguments = [b.name for b in kernel.buffers] + list(function.extents.values())
    arguments += [*function.dims.values(), *(n for pair in function.shares.values() for n in pair)]
    arguments += [*function.checks.values(), *function.ranges, *function.team_and_status]
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
