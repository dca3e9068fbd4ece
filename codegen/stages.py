"""What each pass of the compiler made, kept for a person to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.loop_ir import Kernel
from codegen.memory import Invoked, InvokedLoop, Plan, kernels_of
from codegen.reasons import told, told_moves
from codegen.schedule import FoldStage, Schedule
from symgrad.calculus.loop_parts import Moved
from symgrad.calculus.residuals import Residual, told_residuals
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input

if TYPE_CHECKING:
    from codegen.teamwork import TeamProgram


@dataclass(frozen=True, slots=True)
class Stages:
    """What each pass of the compiler made, in order; printed, what is fused and why.

    graph:     as written.
    rewritten: after stabilisation and simplification, with contractions pairwise.
    schedule:  fused stages.
    plan:      kernels in order, and where every buffer lies.
    source:    what was compiled.
    seconds:   by pass.
    team:      the same program for several workers; None for one.
    residuals: what recurrences that go back read of the way forward: saved or recomputed.
    moved:     what left recurrences.
    """

    graph: Graph
    rewritten: Graph
    schedule: Schedule
    plan: Plan
    source: str
    seconds: Mapping[str, float]
    team: TeamProgram | None = None
    residuals: tuple[Residual, ...] = ()
    moved: tuple[Moved, ...] = ()

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The loops of the stages, in order."""
        return tuple(kernels_of(self.plan.calls))

    def __str__(self) -> str:
        counts = (
            f"{_computed(self.graph)} nodes as written, {_computed(self.rewritten)} rewritten, "
            f"{len(self.schedule.stages)} stages; slots of memory: {len(self.plan.slots)}"
        )
        more = "more: print .graph .rewritten .schedule .plan .source, and each of .kernels"
        shared = f"\n\n{self.team}" if self.team else ""
        moves = f"\n\n{told_moves(self.moved)}" if self.moved else ""
        saved = f"\n\n{told_residuals(self.residuals)}" if self.residuals else ""
        taken = "".join(f"\n{line}" for line in _turns(self.plan.calls, self.schedule, ""))
        turns = f"\n{taken}" if taken else ""
        return f"{counts}\n\n{told(self.schedule)}{moves}{saved}{turns}{shared}\n\n{more}"


def _turns(
    calls: Sequence[Invoked | InvokedLoop], schedule: Schedule, prefix: str
) -> Iterator[str]:
    """Which stages take turns, those of recurrences too."""
    folds = iter([(k, s) for k, s in enumerate(schedule.stages, 1) if isinstance(s, FoldStage)])
    for call in calls:
        if not isinstance(call, InvokedLoop):
            continue
        if not call.loop.turns:
            k, stage = next(folds)
            yield from _turns(call.loop.calls, stage.inner, f"{prefix}{k}.")
            continue
        stages = sorted({kernel.stage + 1 for kernel in kernels_of(call.loop.calls)})
        yield (
            f"{len(stages)} stages from {prefix}{stages[0]} to {prefix}{stages[-1]} take turns: "
            f"each does one of {call.loop.length} rows while it is in the cache"
        )


def _computed(graph: Graph) -> int:
    """How many nodes are no leaves."""
    return sum(not isinstance(node, (Input, Constant)) for node in graph.nodes)
