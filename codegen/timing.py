"""A program that times its own kernels: the same calls, and after each one a lap of a clock.

    lap:  t = now();  cell.time += t - clock;  cell.laps += 1;  clock = t

A lap also adds up the extents that the program counts itself, where the kernel before it has them.

So every kernel is timed where it stands, with the caches as the kernels before it left them. A lap
is a kernel like any other, so that targets print it as they print everything. The program begins
with laps that calibrate: one that starts the clock, one with nothing before it, which tells what a
lap costs itself, and one behind a kernel of a single element, which tells what a call costs.

In a team every worker has a clock and cells of its own. A meeting ends with a lap too, into a cell
for all meetings, so that work and waiting are told apart; the end, where all wait for the last one,
is what is left of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from codegen.blas import one_blas_thread
from codegen.counted import counted_in
from codegen.loop_ir import (
    WORKER,
    Affine,
    Apply,
    Buffer,
    Kernel,
    Let,
    Literal,
    Load,
    Statement,
    Store,
    Wait,
)
from codegen.memory import InnerPlace, Invoked, InvokedLoop, Plan
from codegen.printing import may_report
from codegen.teamwork import TeamMemory
from symgrad.graph.dtypes import INT64

if TYPE_CHECKING:
    from codegen.compiled import Compiled
    from codegen.loading import Loaded
    from codegen.state import Array, Invocation, State
    from codegen.teamwork import TeamProgram
    from symgrad.graph.dims import Dim

# The operation that reads the clock.
CLOCK = "now"
# Runs of a program that is timed, and about how long they take together in seconds.
LEAST_RUNS, MOST_RUNS, SECONDS = 5, 3000, 0.4
# Cells that calibrate: the start, a lap alone, a call of a kernel of one element; and the meetings.
START, ALONE, SMALLEST, MEETINGS = range(4)
#: Words of a worker's clock or cell, a cache line: time, laps, and extents that are added up.
WORDS, EXTENTS = 8, 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call of a program.

    Fields:
        kernels: in each kernel call of the plan, recurrences included, in order: all its steps, of
                 the worker that needs the longest.
        workers: the same of every worker.
        calls:   how often each of them was called.
        waiting: of every worker, at meetings and at the end.
        launch:  the least time of a call of a kernel of one element.
        whole:   of the program as it is, without a clock.
        runs:    of which these are the medians.
        extents: of each kernel call, what the program counts itself: the mean over its steps.
    """

    kernels: tuple[float, ...]
    workers: tuple[tuple[float, ...], ...]
    calls: tuple[int, ...]
    waiting: tuple[float, ...]
    launch: float
    whole: float
    runs: int
    extents: tuple[dict[Dim, int], ...]


# -- laps ------------------------------------------------------------------------------------------
def _lap(
    clock: Buffer, cell: Buffer, own: Affine, tag: str = "v", counts: bool = True
) -> list[Statement]:
    """What a lap does; `own` is where the worker's words begin."""
    t, before, spent, sofar, more = (f"{tag}{k}" for k in range(5))
    body: list[Statement] = [
        Let(t, INT64, Apply(CLOCK)),
        Let(before, INT64, Load(clock, own)),
        Let(spent, INT64, Apply("sub", (t, before))),
        Let(sofar, INT64, Load(cell, own)),
        Let(more, INT64, Apply("add", (sofar, spent))),
        Store(cell, own, more),
    ]
    if counts:
        laps, one, after = (f"{tag}{k}" for k in range(5, 8))
        body += [
            Let(laps, INT64, Load(cell, own + 1)),
            Let(one, INT64, Literal(1)),
            Let(after, INT64, Apply("add", (laps, one))),
            Store(cell, own + 1, after),
        ]
    return [*body, Store(clock, own, t)]


def _lap_kernel(own: Affine, told: Sequence[Dim] = ()) -> Kernel:
    """A lap that also adds up extents, each in a word of its own."""
    clock, cell = (Buffer(f"x{k}", INT64, k) for k in range(2))
    body = _lap(clock, cell, own)
    for k, extent in enumerate(told):
        now, sofar, more = (f"e{k}_{j}" for j in range(3))
        body += [
            Let(now, INT64, Apply("extent", (), extent)),
            Let(sofar, INT64, Load(cell, own + (EXTENTS + k))),
            Let(more, INT64, Apply("add", (sofar, now))),
            Store(cell, own + (EXTENTS + k), more),
        ]
    return Kernel("clock", (clock, cell), tuple(body), "lap")


def _smallest(own: Affine) -> Kernel:
    cell = Buffer("x0", INT64, 0)
    body = (
        Let("v0", INT64, Load(cell, own + 2)),
        Let("v1", INT64, Apply("add", ("v0", "v0"))),
        Store(cell, own + 2, "v1"),
    )
    return Kernel("clock", (cell,), body, "one element")


# The entry of the clock (0) or of cell k (1 + k), in the program's table or in that of a loop.
_Entries: TypeAlias = Callable[[int], int]


def timed(plan: Plan) -> tuple[Plan, list[tuple[Dim, ...]]]:
    """A plan with laps, and which extents each of its cells adds up.

    The entries of the cells follow the plan's own.
    """
    writer = _Laps(plan.workers)
    first = plan.first_slot + len(plan.slots)

    def here(k: int) -> int:
        return first + k

    smallest = Invoked(_smallest(writer.own), (here(1 + SMALLEST),), ())
    head = [writer.lap(here, START), writer.lap(here, ALONE), smallest, writer.lap(here, SMALLEST)]
    last = max((k for k, call in enumerate(plan.calls) if may_report(call)), default=-1)
    body = writer.block(plan.calls[: last + 1], here)
    if last >= 0 and plan.workers > 1:  # behind the last check of an index all meet
        checked = writer.lap(here, MEETINGS)
        body.append(replace(checked, kernel=replace(checked.kernel, checks=True)))
        body.append(writer.lap(here, MEETINGS))
    body += writer.block(plan.calls[last + 1 :], here)
    return replace(plan, calls=(*head, *body)), writer.told


class _Laps:
    """Puts laps behind calls."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.own = Affine(const=WORKER * WORDS if workers > 1 else 0)
        self.kernels: dict[tuple[Dim, ...], Kernel] = {}
        self.told: list[tuple[Dim, ...]] = [()] * (MEETINGS + 1)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return len(self.told)

    def lap(self, entry: _Entries, cell: int, meet: bool = False) -> Invoked:
        """A lap into a cell."""
        told = self.told[cell]
        if told not in self.kernels:
            self.kernels[told] = _lap_kernel(self.own, told)
        return Invoked(self.kernels[told], (entry(0), entry(1 + cell)), (), meet)

    def block(
        self, calls: Sequence[Invoked | InvokedLoop], scope: _Entries
    ) -> list[Invoked | InvokedLoop]:
        """Calls with their laps."""
        done: list[Invoked | InvokedLoop] = []
        for call in calls:
            if call.tells and self.workers > 1:
                done.append(replace(self.lap(scope, MEETINGS), tells=call.tells))
                call = replace(call, tells=())
            if call.meet:
                done.append(self.lap(scope, MEETINGS, meet=True))
                call = replace(call, meet=False)
            if isinstance(call, InvokedLoop):
                done.append(self.loop(call, scope))
                continue
            told = sorted(counted_in(call.kernel), key=lambda d: d.name)
            kept = self.waits(call, scope)
            self.told.append(tuple(told[: WORDS - EXTENTS]))
            done += [kept, self.lap(scope, self.cells - 1)]
        return done

    def waits(self, call: Invoked, scope: _Entries) -> Invoked:
        """A kernel with laps around the meetings inside it."""
        kernel = call.kernel
        if not any(isinstance(s, Wait) for s in kernel.body):
            return call
        n = len(kernel.buffers)
        clock, cell, met = buffers = tuple(Buffer(f"x{n + k}", INT64, n + k) for k in range(3))
        body: list[Statement] = []
        for k, s in enumerate(kernel.body):
            if isinstance(s, Wait):
                body += _lap(clock, cell, self.own, f"t{k}_", counts=False)
                body += [s, *_lap(clock, met, self.own, f"u{k}_")]
            else:
                body.append(s)
        kernel = replace(kernel, buffers=(*kernel.buffers, *buffers), body=tuple(body))
        entries = (*call.entries, scope(0), scope(1 + self.cells), scope(1 + MEETINGS))
        return replace(call, kernel=kernel, entries=entries)

    def loop(self, call: InvokedLoop, scope: _Entries) -> InvokedLoop:
        """A recurrence, inside which the same cells are known."""
        places, entries = list(call.loop.places), list(call.entries)
        known: dict[int, int] = {}

        def entry(k: int) -> int:
            if k not in known:
                known[k] = len(places)
                places.append(InnerPlace(len(entries), 0))
                entries.append(scope(k))
            return known[k]

        inner = self.block(call.loop.calls, entry)
        if call.loop.live is not None and self.workers > 1:  # where a step has other rows all meet
            inner.insert(0, self.lap(entry, MEETINGS))
        new = replace(call.loop, calls=tuple(inner), places=tuple(places))
        return replace(call, loop=new, entries=tuple(entries))


# -- measuring -------------------------------------------------------------------------------------
class Timed:
    """The timed form of a program; made once, kept in the cache folder as programs are.

    Args:
        team: the form for several workers that is timed; without it, the one for one worker.
    """

    def __init__(self, f: Compiled, team: TeamProgram | None = None) -> None:
        self.f, self.team = f, team
        self.plan, self.told = timed(team.plan if team else f.stages.plan)
        source = f.target.print_program(self.plan, f.dims, f.stages.schedule.graph.key)
        self.loaded: Loaded = f.target.load_program(source, f"timed {f.stages.schedule.graph.key}")

    def prepared(
        self, arrays: Sequence[Array], dims: Mapping[Dim, int]
    ) -> tuple[Invocation, Invocation, npt.NDArray[np.int64]]:
        """Memory for the program as it is, for its timed form, and the clock and cells of that."""
        workers = self.plan.workers
        cells: npt.NDArray[np.int64] = np.zeros((1 + len(self.told), workers, WORDS), np.int64)
        plain, laps = (self.f.on_copies(arrays, dims, make) for make in (self.plain, self.laps))
        laps.extend([row.ctypes.data for row in cells])  # type: ignore[attr-defined]
        return plain, laps, cells

    def plain(self, state: State) -> Invocation:
        """Memory for the program as it is."""
        f, team = self.f, self.team
        if team is not None:
            return TeamMemory(team.plan, f.dims, team.code())
        return f.target.prepare(f.stages.plan, f.dims, f.loaded, state)

    def laps(self, state: State) -> Invocation:
        """Memory for its timed form."""
        f = self.f
        if self.team is not None:
            return TeamMemory(self.plan, f.dims, self.loaded)
        return f.target.prepare(self.plan, f.dims, self.loaded, state)

    def measure(
        self,
        arrays: Sequence[Array],
        dims: Mapping[Dim, int],
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Timing:
        """Run both programs in turn on these leaves; what they update is a copy."""
        from codegen.runtime.clock import TICK

        plain, laps, cells = self.prepared(arrays, dims)
        wholes: list[float] = []
        timed_wholes: list[float] = []
        rows: list[npt.NDArray[np.int64]] = []
        end = perf_counter() + SECONDS
        with around(), one_blas_thread():
            plain.run(), laps.run()
            while len(rows) < LEAST_RUNS or (perf_counter() < end and len(rows) < MOST_RUNS):
                start = perf_counter()
                plain.run()
                wholes.append(perf_counter() - start)
                cells[:] = 0
                start = perf_counter()
                laps.run()
                timed_wholes.append(perf_counter() - start)
                rows.append(cells[1:].copy())
        times, counts = np.median([r[..., 0] for r in rows], axis=0), rows[-1][..., 1]
        smallest = min(int((r[SMALLEST, :, 0] - r[ALONE, :, 0]).min()) for r in rows)
        seconds = np.maximum(times - counts * times[ALONE], 0.0) * TICK
        own = slice(MEETINGS + 1, None)
        spent = seconds[own]
        last = np.median(timed_wholes) - times[ALONE:].sum(0) * TICK  # what is left, all wait
        whole = float(np.median(wholes))
        waiting = np.minimum(seconds[MEETINGS] + np.maximum(last, 0.0), whole)
        return Timing(
            tuple(spent.max(1).tolist()),
            tuple(map(tuple, spent.tolist())),
            tuple(counts[own].max(1).tolist()),
            tuple(waiting.tolist()) if self.team else (0.0,),
            max(smallest, 0) * TICK,
            whole,
            len(rows),
            tuple(map(_means, self.told[own], rows[-1][own])),
        )


def _means(told: Sequence[Dim], cells: npt.NDArray[np.int64]) -> dict[Dim, int]:
    """The mean of each extent that laps added up, of all workers."""
    laps = max(int(cells[:, 1].sum()), 1)
    return {d: round(cells[:, EXTENTS + k].sum() / laps) for k, d in enumerate(told)}
