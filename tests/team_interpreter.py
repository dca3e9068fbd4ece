"""Programs of a team run by Python: workers take turns at random, and no access may race.

Between two meetings a worker runs alone for as long as it likes, here one after the other in a
random order. What a worker touches is written down; where two have touched one element since the
last meeting, and one of them wrote it, nothing orders them, and the test fails.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from codegen import loop_ir as ir, meetings, sharing, teamwork
from codegen.loop_ir import WORKER, WORKERS
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.runtime.teams import GROUP_OF_ROWS
from symgrad.graph.dims import Dim, value
from symgrad.graph.dtypes import INT64
from tests.ir_interpreter import (
    Block,
    Number,
    Place,
    Translator,
    Typed,
    counted,
    interpreted,
    made,
    may_report,
    steps_of,
    translated,
    whole,
)


def first_row(rows: int, worker: int, workers: int) -> int:
    """As `codegen.runtime.teams.first_of`."""
    group = GROUP_OF_ROWS if rows >= 2 * GROUP_OF_ROWS * workers else 1
    return rows if worker == workers else rows // group * worker // workers * group


class Log:
    """Elements that each worker has read and written since the last meeting, by address."""

    def __init__(self, workers: int) -> None:
        self.reads: list[set[int]] = [set() for _ in range(workers)]
        self.writes: list[set[int]] = [set() for _ in range(workers)]
        self.worker = 0
        self.kernel = ""

    def meet(self) -> None:
        """Nobody may have touched what another one wrote."""
        for a, wrote in enumerate(self.writes):
            for b in range(len(self.writes)):
                if a != b:
                    both = wrote & (self.writes[b] | self.reads[b])
                    assert not both, f"workers {a} and {b} race before the end of {self.kernel}"
        for places in (*self.reads, *self.writes):
            places.clear()


class Tracked(Typed):
    """A block as elements of one dtype, whose accesses are written down."""

    def __init__(self, block: Block, dtype: np.dtype[Any], log: Log) -> None:
        super().__init__(block, dtype)
        self.log = log

    def note(self, places: Any, writes: bool) -> None:
        width = self.dtype.itemsize
        own = (self.log.writes if writes else self.log.reads)[self.log.worker]
        own.update((self.block.address + np.asarray(places).ravel() * width).tolist())

    def load(self, place: int) -> Any:
        self.note(place, False)
        return super().load(place)

    def store(self, place: int, item: Any) -> None:
        self.note(place, True)
        super().store(place, item)


def _product(
    a: Tracked, at: int, b: Tracked, bt: int, c: Tracked, ct: int,
    transposed: tuple[bool, bool], lengths: tuple[int, int, int], m: int, n: int, k: int,
    rows: slice, columns: slice, terms: slice, adds: bool,
) -> None:  # fmt: skip
    def places(start: int, length: int, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
        return start + length * np.arange(shape[0])[:, None] + np.arange(shape[1])

    left = places(at, lengths[0], (k, m)).T if transposed[0] else places(at, lengths[0], (m, k))
    right = places(bt, lengths[1], (n, k)).T if transposed[1] else places(bt, lengths[1], (k, n))
    left, right = left[rows, terms], right[terms, columns]
    target = places(ct, lengths[2], (m, n))[rows, columns]
    for typed, own, writes in ((a, left, False), (b, right, False), (c, target, True)):
        if not own.size or not target.size:
            continue
        typed.inside(int(own.min()), int(own.max()) + 1)
        typed.note(own, writes)
        width = typed.dtype.itemsize
        for byte in range(width):
            if writes:
                typed.block.written[own * width + byte] = True
            else:
                assert typed.block.written[own * width + byte].all(), "nothing was written"
    if target.size:
        if adds:
            c.note(target, False)
        c.items[target] = a.items[left] @ b.items[right] + (c.items[target] if adds else 0)


class TeamTranslator(Translator):
    """Kernels as generators that yield where all workers meet."""

    def block(self, body: Sequence[ir.Statement], depth: int) -> None:
        pad = "    " * depth
        for s in body:
            if isinstance(s, ir.For) and s.shared:
                first, end = self.bounds(s.parts or (s.extent, 1))
                self.lines.append(f"{pad}for {s.var} in range({first}, {end}):")
                self.block(s.body, depth + 1)
            elif isinstance(s, ir.Only):
                self.lines.append(f"{pad}if {self.dims[WORKER]} == 0:")
                self.block(s.body, depth + 1)
            elif isinstance(s, ir.Wait):
                self.lines.append(f"{pad}yield")
            elif isinstance(s, ir.Call):
                self.lines.append(pad + self.product(s))
            elif isinstance(s, ir.For):
                self.lines.append(f"{pad}for {s.var} in range({value(s.extent, self.dims)}):")
                self.block(s.body, depth + 1)
                self.lines.append(f"{pad}    pass")
            else:
                super().block((s,), depth)

    def bounds(self, parts: ir.Partition) -> tuple[int, int]:
        rows, each = (value(e, self.dims) for e in parts)
        worker, workers = self.dims[WORKER], self.dims[WORKERS]
        first, end = (first_row(rows, w, workers) for w in (worker, worker + 1))
        return first * each, end * each

    def product(self, s: ir.Call) -> str:
        m, n, k = (value(e, self.dims) for e in (s.m, s.n, s.k))
        a, b, c = (self.affine(o) for o in s.offsets)
        lengths = tuple(value(e, self.dims) for e in s.rows)
        rows = columns = terms = "slice(None)"
        if s.shared == "m":
            rows = "slice({}, {})".format(*self.bounds(s.parts or (s.m, 1)))
        elif s.shared == "n":
            columns = "slice({}, {})".format(*self.bounds((s.n, 1)))
        elif s.shared == "k":
            terms = "slice({}, {})".format(*self.bounds(s.terms or (s.k, 1)))
        return (
            f"product({s.a.name}, {a}, {s.b.name}, {b}, {s.c.name}, {c}, "
            f"{s.transposed}, {lengths}, {m}, {n}, {k}, {rows}, {columns}, {terms}, {s.adds})"
        )


def generator(kernel: ir.Kernel, dims: Mapping[Dim, int]) -> Any:
    """A kernel as a generator function of its buffers and the report of bad indices."""
    lines = ["def run(buffers, report):"]
    lines += [f"    {b.name} = buffers[{b.name!r}]" for b in kernel.buffers]
    writer = TeamTranslator(dims)
    writer.block(kernel.body, 1)
    return made([*lines, *writer.lines, "    if False:", "        yield"], writer, product=_product)


class TeamRun:
    """A plan on a table of addresses, by workers in random order."""

    def __init__(
        self, plan: Plan, table: int, dims: Mapping[Dim, int], workers: int, seed: int
    ) -> None:
        self.plan, self.workers = plan, workers
        self.log = Log(workers)
        self.order = np.random.default_rng(seed)
        entries = plan.first_slot + len(plan.slots)
        addresses = np.frombuffer((ctypes.c_int64 * entries).from_address(table), np.int64)
        self.report = np.frombuffer((ctypes.c_int64 * 4).from_address(int(addresses[0])), np.int64)
        sizes = [32]
        sizes += [
            int(np.prod([value(e, dims) for e in n.shape], initial=n.dtype.itemsize))
            for n in (*plan.leaves, *plan.constants, *plan.results)
        ]
        sizes += plan.layout.place(dims).sizes
        given = 1 + len(plan.leaves) + len(plan.constants)
        self.blocks = [
            Block(int(a), n, k < given)
            for k, (a, n) in enumerate(zip(addresses, sizes, strict=True))
        ]
        self.dims = [{**dims, WORKER: w, WORKERS: workers} for w in range(workers)]

    def run(self) -> int:
        """All workers, from one meeting to the next; returns the report's first number."""
        living = {w: self.program(w) for w in range(self.workers)}
        with np.errstate(all="ignore"):
            while living:
                ended = set()
                for w in self.order.permutation(sorted(living)).tolist():
                    self.log.worker = w
                    if next(living[w], "end") == "end":
                        ended.add(w)
                assert ended in (set(), set(living)), "workers meet in different places"
                self.log.meet()
                living = {} if ended else living
        return int(self.report[0])

    def program(self, worker: int) -> Iterator[None]:
        """One worker."""
        last = max((k for k, call in enumerate(self.plan.calls) if may_report(call)), default=-1)
        for k, call in enumerate(self.plan.calls):
            yield from self.call(call, worker, whole(self.blocks))
            if k == last:
                yield
                if self.report[0]:
                    return

    def number_in(self, place: Place) -> Number:
        """Numbers that the running worker reads where memory lies."""
        return lambda entry, k: Tracked(place(entry, INT64), INT64, self.log).load(k)

    def call(self, call: Invoked | InvokedLoop, worker: int, place: Place) -> Iterator[None]:
        """A kernel or a recurrence."""
        if call.tells:
            yield
            self.dims[worker] = counted(call, self.number_in(place), self.dims[worker])
        if call.meet:
            yield
        dims = self.dims[worker]
        if isinstance(call, InvokedLoop):
            steps = range(value(call.loop.length, dims))
            if call.loop.rows is not None:
                bounds = (first_row(len(steps), w, self.workers) for w in (worker, worker + 1))
                steps = range(*bounds)
            last = -1
            number = self.number_in(place)
            for turn, inner, told in steps_of(call, place, dims, number, steps):
                if call.loop.live is not None and last != (last := told[call.loop.live.dim]):
                    yield
                self.dims[worker] = {**told, ir.TURN: turn} if call.loop.turns else told
                for one in call.loop.calls:
                    yield from self.call(one, worker, inner)
            return
        if call.kernel.alone and worker:
            return
        self.log.kernel = call.kernel.name
        pairs = zip(call.entries, call.kernel.buffers, strict=True)
        typed = {b.name: Tracked(place(e, b.dtype), b.dtype, self.log) for e, b in pairs}
        yield from generator(call.kernel, dims)(typed, self.report)


@contextlib.contextmanager
def everything_shared() -> Iterator[None]:
    """Inside, teams run whatever they can, small or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teamwork.TeamProgram, "is_worth", lambda self, dims=None: True)
        for module in (sharing, meetings):
            patch.setattr(module, "SMALL", 0)
        patch.setattr(sharing, "ITERATIONS_PER_ELEMENT", 0)
        yield


@contextlib.contextmanager
def teams_interpreted(seed: int = 0, small: bool = False) -> Iterator[list[BaseException]]:
    """Inside, programs of several threads are run here; what went wrong is listed.

    Args:
        small: leave small kernels to worker 0, as usual.
    """
    failures: list[BaseException] = []

    def run(memory: Any) -> int:
        try:
            dims = dict(zip(memory.order, map(int, memory.dims), strict=False))
            memory.report[0] = 0
            table = memory.table.ctypes.data
            return TeamRun(memory.plan, table, dims, memory.workers, seed).run()
        except BaseException as error:
            failures.append(error)
            return 0

    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(teamwork.TeamMemory, "run", run)
        if small:
            patch.setattr(teamwork.TeamProgram, "is_worth", lambda self, dims=None: True)
            yield failures
        else:
            with everything_shared():
                yield failures
    if failures:
        raise failures[0]


__all__ = ["everything_shared", "teams_interpreted", "translated"]
