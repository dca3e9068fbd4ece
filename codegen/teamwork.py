"""Programs for several workers: when they are worth it, and the memory of one thread's calls.

A program compiled for several threads exists twice: for one worker, exactly as with `threads=1`,
and for a team. Which one runs is decided for each call from the dims, by a rough estimate of the
work that is shared and of the meetings (`codegen/work.py`): small work stays on one core. Each is
compiled when it is first needed. Where an index is out of range the program for one worker tells
which: a team that fails has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codegen import workers
from codegen.host_memory import HostInvocation
from codegen.loading import Loaded
from codegen.loop_ir import Kernel, Wait
from codegen.meetings import with_meetings
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.state import Array, Invocation
from codegen.work import CALL, MEETING, START, work_of
from symgrad.graph.dims import Dim, Extent, at_most, free_dims, size, typical, value

if TYPE_CHECKING:
    from codegen.targets import Target

#: The part of the time that a team must save to be worth it, and of what perfect sharing would save
#: that it does: the rest goes into fetching what other workers wrote.
WORTH, EFFICIENCY = 0.1, 0.75
#: Decisions that are remembered, since dims come and go.
REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Work:
    """Picoseconds of a program on one worker, shared and not, and meetings of a team.

    rows: of each loop of kernels that take turns: so few that they do not come out even, or fewer
          than workers, leave some of these without work.
    """

    shared: Extent
    alone: Extent
    meetings: Extent
    rows: tuple[Extent, ...] = ()


@dataclass(slots=True, eq=False)
class TeamProgram:
    """A program for `workers` workers: its plan, its source, and how to compile it.

    used:  workers of the last call.
    order: the dims that the work depends on.
    """

    workers: int
    plan: Plan
    source: str
    load: Callable[[], Loaded]
    work: Work
    loaded: Loaded | None = None
    used: int = 0
    order: tuple[Dim, ...] = ()
    _decided: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def is_worth(self, dims: Mapping[Dim, int] | None = None) -> bool:
        """Whether a team is faster than one worker, for these dims or for typical ones."""
        work = (self.work.shared, self.work.alone, self.work.meetings, *self.work.rows)
        if dims is None:
            return self._worth(*map(typical, work))
        key = tuple(dims[d] for d in self.order)
        if key not in self._decided:
            if len(self._decided) >= REMEMBERED:
                self._decided.clear()
            self._decided[key] = self._worth(*(value(e, dims) for e in work))
        return self._decided[key]

    def _worth(self, shared: int, alone: int, meetings: int, *rows: int) -> bool:
        longest = max([-(-n // self.workers) / n for n in rows if n], default=1 / self.workers)
        saved = EFFICIENCY * shared * (1 - longest)
        return saved - meetings * MEETING - START > WORTH * (shared + alone)

    @property
    def meetings_in_a_step(self) -> int:
        """Meetings in one turn of the innermost recurrence that meets most."""
        return max(_meetings_inside(self.plan.calls))

    def code(self) -> Loaded:
        """The program's code, compiled if it was not yet."""
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded

    def __str__(self) -> str:
        used = "a team" if self.is_worth() else "one worker"
        turns = ""
        if self.workers > workers.cores():
            turns = f" They have {workers.cores()} cores and take turns."
        asked = f"threads={self.workers}: {used} for typical dims.{turns}"
        return "\n".join([asked, *_grouped(self.plan.calls, "  ")])


def make_team(plan: Plan, back: Target, dims: tuple[Dim, ...], key: str) -> TeamProgram:
    """The program of a plan for several workers."""
    met = with_meetings(plan)
    source = back.print_program(met, dims, key)
    work = work_of_calls(met.calls)
    order = free_dims((work.shared, work.alone, work.meetings, *work.rows))
    load = partial(back.load_program, source, key)
    return TeamProgram(plan.workers, met, source, load, work, order=order)


def work_of_calls(calls: Sequence[Invoked | InvokedLoop]) -> Work:
    """What the calls of a plan for a team cost."""
    shared: Extent = 0
    alone: Extent = 0
    meetings: Extent = 1
    rows: list[Extent] = []
    for call in calls:
        meetings = meetings + int(call.meet) + int(bool(call.tells))
        if isinstance(call, InvokedLoop):
            inner = work_of_calls(call.loop.calls)
            length = call.loop.length
            meetings = meetings + (0 if call.loop.live is None else length)
            rows += [*inner.rows, *([length] if call.loop.rows is not None else [])]
            shared = shared + size((length, inner.shared))
            alone = alone + size((length, inner.alone))
            meetings = meetings + size((length, inner.meetings - 1))
        elif call.kernel.alone:
            alone = alone + work_of(call.kernel.body) + CALL
        else:
            shared = shared + work_of(call.kernel.body)
            alone = alone + CALL
            meetings = meetings + sum(isinstance(s, Wait) for s in call.kernel.body)
    return Work(at_most(shared), at_most(alone), at_most(meetings), tuple(map(at_most, rows)))


def _meetings_inside(calls: Sequence[Invoked | InvokedLoop]) -> Iterator[int]:
    """The meetings of these calls, and of each recurrence among them."""
    own = 0
    for call in calls:
        own += call.meet + bool(call.tells)
        if isinstance(call, InvokedLoop):
            yield from _meetings_inside(call.loop.calls)
        else:
            own += sum(isinstance(s, Wait) for s in call.kernel.body)
    yield own


def _grouped(calls: Sequence[Invoked | InvokedLoop], pad: str) -> Iterator[str]:
    """Which calls are shared, and why others are not; copies that are alike are one line."""
    for line, alike in groupby(_lines(calls)):
        many = sum(1 for _ in alike)
        yield f"{pad}{line}" + (f"  x {many}" if many > 1 else "")


def _lines(calls: Sequence[Invoked | InvokedLoop]) -> Iterator[str]:
    for call in calls:
        if call.meet or call.tells:
            yield "all meet"
        if isinstance(call, InvokedLoop):
            kind = "turns" if call.loop.turns else "steps"
            shared = ", shared" if call.loop.rows is not None else ""
            yield f"{call.loop.length} {kind}{shared}:"
            yield from _grouped(call.loop.calls, "  ")
        else:
            own = call.kernel.name if call.nodes else call.kernel.formula  # as in `f.report()`
            name = own or "copy"
            yield f"{name:<10} {sharing_of(call)}"


def sharing_of(call: Invoked) -> str:
    """How a kernel is shared, or why it is not."""
    alone = call.kernel.alone
    return f"worker 0: {alone}" if alone else _shares(call.kernel)


def _shares(kernel: Kernel) -> str:
    from codegen import loop_ir as ir

    found: dict[str, None] = {}
    for s in ir.walk(kernel.body):
        if isinstance(s, ir.For) and s.shared:
            found[f"rows of {(s.parts or (s.extent, 1))[0]}"] = None
        elif isinstance(s, ir.Call) and s.shared == "m":
            found[f"rows of {(s.parts or (s.m, 1))[0]}"] = None
        elif isinstance(s, ir.Call) and s.shared == "n":
            found[f"columns of {s.n}"] = None
        elif isinstance(s, ir.Call) and s.shared == "k":
            found[f"terms of {(s.terms or (s.k, 1))[0]}"] = None
    inside = sum(isinstance(s, Wait) for s in kernel.body)
    if not found:
        return "each worker its own"
    met = f"; all meet {inside} x inside" if inside else ""
    return f"shared: {', '.join(found)}{met}"


class TeamMemory(HostInvocation):
    """The memory of a program for a team."""

    def __init__(self, plan: Plan, dims: Sequence[Dim], loaded: Loaded) -> None:
        super().__init__(plan, dims, loaded)
        self.address, self.workers = loaded.address, plan.workers

    def run(self) -> int:
        """Run the program by all workers."""
        self.report[0] = 0
        return workers.team().run(self.workers, self.address, *self._addresses)


class TeamInvocation:
    """The memory of one thread's calls, for a team and for one worker; see `Invocation`."""

    def __init__(
        self, program: TeamProgram, dims: Sequence[Dim], serial: Callable[[], Invocation]
    ) -> None:
        self.program, self.order, self._make_serial = program, tuple(dims), serial
        self._serial: Invocation | None = None
        self._team: TeamMemory | None = None
        self._given: Mapping[Dim, int] = {}
        self._numbers: tuple[int, ...] | None = None
        self._current: Invocation | None = None

    @property
    def current(self) -> Invocation:
        """The memory that the next run works on."""
        assert self._current is not None, "set_dims comes first"
        return self._current

    def _serial_memory(self) -> Invocation:
        if self._serial is None:
            self._serial = self._make_serial()
        return self._serial

    def set_dims(self, dims: Mapping[Dim, int]) -> None:
        """Run with these extents from now on, with a team where it is worth it."""
        numbers = tuple([dims[d] for d in self.order])
        if numbers == self._numbers:
            return
        self._numbers, self._given = numbers, dict(zip(self.order, numbers, strict=True))
        chosen: Invocation
        if self.program.is_worth(self._given):
            if self._team is None:
                program = self.program
                self._team = TeamMemory(program.plan, self.order, program.code())
            chosen = self._team
        else:
            chosen = self._serial_memory()
        self.program.used = self.program.workers if chosen is self._team else 1
        chosen.set_dims(self._given)
        before, self._current = self._current, chosen
        if before is not None and before is not chosen and before.arrays:
            chosen.set_leaves(before.arrays)

    @property
    def arrays(self) -> list[Array]:
        """The leaves' values."""
        return self.current.arrays

    @property
    def outputs(self) -> tuple[Array, ...]:
        """The results."""
        return self.current.outputs

    @property
    def dims(self) -> npt.NDArray[np.int64]:
        """The extents."""
        return self.current.dims

    @property
    def report(self) -> npt.NDArray[np.int64]:
        """The first bad index."""
        return self._serial_memory().report

    def set_leaves(self, arrays: Sequence[Array]) -> None:
        """Read the leaves from these arrays."""
        self.current.set_leaves(arrays)

    def set_leaf(self, k: int, array: Array) -> None:
        """Read one leaf from this array."""
        self.current.set_leaf(k, array)

    def set_outputs(self, outputs: Sequence[Array]) -> None:
        """Write results into these arrays."""
        self.current.set_outputs(outputs)

    def forget(self) -> None:
        """Let go of leaves and results; the workspaces stay for a later use."""
        for memory in (self._serial, self._team):
            if memory is not None:
                memory.forget()

    def run(self) -> int:
        """Run the program; a team that finds a bad index leaves it to one worker to tell which."""
        status = self.current.run()
        if status and self.current is self._team:
            serial = self._serial_memory()
            serial.set_dims(self._given)
            serial.set_leaves(self._team.arrays)
            serial.set_outputs(self._team.outputs)
            status = serial.run()
        return status
