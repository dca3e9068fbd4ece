"""What each pass of the compiler made, kept for a person to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input

if TYPE_CHECKING:
    from codegen.chunking import Chunks
    from codegen.loop_ir import Kernel
    from codegen.memory import Plan
    from codegen.program import Program
    from codegen.schedule import Schedule
    from codegen.teamwork import TeamProgram
    from symgrad.calculus.loop_parts import Moved
    from symgrad.calculus.residuals import Residual


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What the passes made; see `Stages`."""

    rewritten: Graph
    schedule: Schedule
    plan: Plan
    source: str
    program: Program
    team: TeamProgram | None
    residuals: tuple[Residual, ...]
    moved: tuple[Moved, ...]


class Stages:
    """What each pass of the compiler made, in order; printed, what is fused and why.

    graph:     as written.
    rewritten: after all passes over the graph: stable, simple, what recurrences need not do step by
               step around them, contractions pairwise.
    schedule:  fused stages.
    plan:      kernels in order, and where every buffer lies.
    source:    what was compiled.
    seconds:   by pass, of the wait for the program: one that was found in the cache made no passes.
    team:      the same program for several workers; None for one.
    residuals: what recurrences that go back read of the way forward: saved or recomputed.
    moved:     what left recurrences.
    chunks:    what chooses the lengths of chunks, where a recurrence has a budget of memory.

    Of a program that was found in the cache, what the passes make is made when it is asked for.
    """

    def __init__(
        self,
        graph: Graph,
        seconds: Mapping[str, float],
        make: Callable[[], Made],
        made: Made | None,
    ) -> None:
        self.graph = graph
        self.seconds = seconds
        self.team = None if made is None else made.team  # only programs of one worker are found
        self.chunks: Chunks | None = None
        self._make = make
        if made is not None:
            self.__dict__["_made"] = made

    @cached_property
    def _made(self) -> Made:
        return self._make()

    @property
    def rewritten(self) -> Graph:
        """After all passes over the graph."""
        return self._made.rewritten

    @property
    def schedule(self) -> Schedule:
        """Fused stages."""
        return self._made.schedule

    @property
    def plan(self) -> Plan:
        """Kernels in order, and where every buffer lies."""
        return self._made.plan

    @property
    def source(self) -> str:
        """What was compiled."""
        return self._made.source

    @property
    def residuals(self) -> tuple[Residual, ...]:
        """What recurrences that go back read of the way forward: saved or recomputed."""
        return self._made.residuals

    @property
    def moved(self) -> tuple[Moved, ...]:
        """What left recurrences."""
        return self._made.moved

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The loops of the stages, in order."""
        from codegen.memory import kernels_of

        return tuple(kernels_of(self.plan.calls))

    def __str__(self) -> str:
        from codegen.reasons import checkpoint_lines, move_table, stage_table, turn_lines
        from symgrad.calculus.residuals import residual_table

        counts = (
            f"{_computed(self.graph)} nodes as written, {_computed(self.rewritten)} rewritten, "
            f"{len(self.schedule.stages)} stages; slots of memory: {len(self.plan.slots)}"
        )
        sections = (
            counts,
            stage_table(self.schedule),
            move_table(self.moved),
            residual_table(self.residuals) if self.residuals else "",
            "\n".join(checkpoint_lines(self.graph, self.chunks)),
            "\n".join(turn_lines(self.plan.calls, self.schedule)),
            str(self.team) if self.team else "",
            "more: print .graph .rewritten .schedule .plan .source, and each of .kernels",
        )
        return "\n\n".join(filter(None, sections))


def _computed(graph: Graph) -> int:
    """How many nodes are no leaves."""
    return sum(not isinstance(node, (Input, Constant)) for node in graph.nodes)
