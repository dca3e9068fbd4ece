"""The schedule: which nodes are computed together, and in which order.

A stage is one pass over memory. A loop stage walks a domain; its first `split` axes are rows. A
member lives on the whole domain, or on rows; a reduction over the axes behind the split gives a row
value that later members of the same row read (so softmax with cross entropy is one pass over rows);
any other reduction accumulates into memory and is ready when the stage ends.

Members are not expressions pasted into each other: each keeps its own names (let-lines) in the
loop. Requires contractions in the form of `contractions.order_contractions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from codegen.access import ZERO, Index, can_inline, is_one, reads
from codegen.loop_ir import variable
from codegen.products import Product
from symgrad.graph.dims import Shape, first_lines, same, show
from symgrad.graph.folds import Fold, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    RUNNING,
    Einsum,
    Gather,
    Node,
    Reduce,
    Reindex,
    Scatter,
)

#: Lines of a schedule, and of a memory plan, that are printed at most.
MOST_LINES = 60


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """Why a stage's first nodes did not join an earlier stage.

    stage: the place of the earlier one.
    why:   a sentence with {stage} and {node}.
    node:  the node that it speaks of.
    """

    stage: int
    why: str
    node: Node


@dataclass(eq=False, slots=True)
class LoopStage:
    """Fused members over a domain; the axes from `split` on are the inner ones of a row.

    trailing:    members that reduce within a row.
    accumulated: members that reduce into memory.
    joined:      arrays that consist of members, which are written there; see `joining`.
    apart:       why it is a stage of its own.
    """

    domain: Shape
    split: int
    members: list[Node] = field(default_factory=list)
    trailing: set[Node] = field(default_factory=set)
    accumulated: set[Node] = field(default_factory=set)
    joined: list[Reindex] = field(default_factory=list)
    is_split: bool = False
    apart: tuple[Apart, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return (*self.members, *self.joined)

    def is_full(self, domain: Shape) -> bool:
        """Whether a domain is the stage's whole one."""
        return equal_shapes(domain, self.domain)


@dataclass(eq=False, slots=True)
class ProductStage:
    """A matrix product, or several in a loop."""

    node: Einsum
    product: Product

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return (self.node,)


@dataclass(eq=False, slots=True)
class MoveStage:
    """A Reindex of several pieces, or with zeros around; or a sum that runs over rows."""

    node: Reindex | Reduce

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return (self.node,)


@dataclass(eq=False, slots=True)
class FoldStage:
    """A recurrence: the schedule of its body, run once a step.

    outputs: of the body, as the inner schedule computes them: the next carry, then what is emitted.
    """

    node: Fold
    inner: Schedule
    outputs: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return projections(self.node)


Stage: TypeAlias = LoopStage | ProductStage | MoveStage | FoldStage


Checked: TypeAlias = tuple[Gather | Scatter, Node]


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Stages in order.

    graph:   what is computed; its outputs are results, then right-hand sides of updates.
    stored:  nodes that need memory beyond a row.
    forced:  nodes that would be inline but must lie in memory.
    checked: nodes whose indices kernels check, each with the index expression, in the order of
             their numbers in reports.
    """

    graph: Graph
    stages: tuple[Stage, ...]
    stage_of: dict[Node, int]
    stored: frozenset[Node]
    forced: frozenset[Node]
    checked: list[Checked]

    def inline(self, node: Node) -> bool:
        """Whether readers look through a node."""
        return can_inline(node) and node not in self.forced

    def __str__(self) -> str:
        lines = map(self.line, self.stages)
        return first_lines(
            (f"stage {k:<3} {line}" for k, line in enumerate(lines, 1)), MOST_LINES
        )

    def line(self, stage: Stage) -> str:
        """A stage in one line."""
        number = self.graph.number
        done = " ".join(
            f"%{number[n]}{'*' if n in self.stored else ''}" for n in stage.nodes if n in number
        )
        if isinstance(stage, ProductStage):
            return f"gemm   {stage.product}   {done}"
        if isinstance(stage, FoldStage):
            body = str(stage.inner).replace("\n", "\n          ")
            length = stage.node.structure.length
            return f"fold   {length} steps   {done}\n          {body}"
        if isinstance(stage, MoveStage):
            return f"move   {show(stage.node.shape)}   {done}"
        rows, inner = stage.domain[: stage.split], stage.domain[stage.split :]
        space = f"{show(rows)} x {show(inner)}" if inner else show(rows)
        return f"loops  {space}   {done}"


def equal_shapes(a: Shape, b: Shape) -> bool:
    """Whether two shapes are known to be equal."""
    return len(a) == len(b) and all(same(x, y) is True for x, y in zip(a, b, strict=True))


def domain_labels(node: Node) -> tuple[tuple[int, ...], frozenset[int]]:
    """The axes of a reduction's domain in loop order, and which of them are summed.

    Axes are labels of an Einsum, or axes of a Reduce's argument.
    """
    if isinstance(node, Einsum):
        summed = frozenset(node.summed)
        for labels in node.labels:
            if len(labels) == len(node.extents) and (
                labels[-1] not in summed or set(labels[len(labels) - len(summed) :]) == summed
            ):
                return labels, summed
        return node.out + node.summed, summed
    assert isinstance(node, Reduce)
    axes, summed = tuple(range(node.args[0].ndim)), frozenset(node.axes)
    kept = tuple(a for a in axes if a not in summed)
    if kept and kept[-1] == axes[-1] and node.op in ("max", "min", "prod"):
        return axes, summed  # columns add up in memory while the rows go by
    return kept + node.axes, summed


def runs_along_rows(node: Node) -> bool:
    """Whether a node is a running reduction along its last axis: it has a value at each place."""
    return isinstance(node, Reduce) and node.op in RUNNING and node.axes == (node.ndim - 1,)


def domain_of(node: Node) -> Shape:
    """The extents that a member loops over."""
    if isinstance(node, Einsum) and node.summed:
        return tuple(node.extents[k] for k in domain_labels(node)[0])
    if isinstance(node, Reduce):
        return tuple(node.args[0].shape[a] for a in domain_labels(node)[0])
    if isinstance(node, Scatter):
        return node.args[0].shape
    return node.shape


def member_reads(node: Node, position: Index) -> list[Index]:
    """Where a member reads its arguments at a position of its domain."""
    if (isinstance(node, Einsum) and node.summed) or isinstance(node, Reduce):
        labels, _ = domain_labels(node)
        place = dict(zip(labels, position, strict=True))
        if isinstance(node, Einsum):
            return reads(node, tuple(place[k] for k in node.out), [place[k] for k in node.summed])
        kept = tuple(place[a] for a in labels if a not in node.axes)
        return reads(node, kept, [place[a] for a in node.axes])
    return reads(node, position)


def result_index(node: Node, position: Index) -> Index:
    """Where a reduction's result lies, at a position of its domain."""
    labels, summed = domain_labels(node)
    place = dict(zip(labels, position, strict=True))
    kept = node.out if isinstance(node, Einsum) else [a for a in labels if a not in summed]
    return tuple(place[k] for k in kept)


def axis_name(k: int) -> str:
    """The loop variable of axis k of a stage."""
    return f"i{k}"


def position_of(domain: Shape) -> Index:
    """The loop variables of a domain; an axis of extent one needs none."""
    return tuple(ZERO if is_one(e) else variable(axis_name(k)) for k, e in enumerate(domain))


def place_in(stage: LoopStage, node: Node) -> Index:
    """The position in its own domain at which a member stands; it may have further axes of one."""
    here = [*position_of(stage.domain), *[ZERO] * len(domain_of(node))]
    return tuple(ZERO if is_one(e) else here[k] for k, e in enumerate(domain_of(node)))


def levels_of(schedule: Schedule, stage: LoopStage) -> dict[Node, int]:
    """In which pass over the row each member is ready: a row's reduction one pass later.

    What runs along the row has passes before and after it: its loop is serial, theirs are not.
    """
    level: dict[Node, int] = {}
    position = position_of(stage.domain)
    for node in stage.members:
        found, inside = 0, False
        for root, index in member_roots(schedule, node, place_in(stage, node)):
            if root in level:
                bump = (
                    stage.is_full(root.shape)
                    and root not in stage.trailing
                    and (index != position[: len(index)])
                )
                found = max(found, level[root] + (1 if bump or runs_along_rows(root) else 0))
                inside = True
        own_pass = node in stage.trailing or (inside and runs_along_rows(node))
        level[node] = found + (1 if own_pass else 0)
    return level


def member_roots(schedule: Schedule, node: Node, position: Index) -> Iterator[tuple[Node, Index]]:
    """What a member reads, and where, once inline nodes are looked through."""
    stack = list(zip(node.args, member_reads(node, position), strict=True))
    while stack:
        arg, index = stack.pop()
        if schedule.inline(arg):
            stack.extend(zip(arg.args, reads(arg, index), strict=True))
        else:
            yield arg, index
