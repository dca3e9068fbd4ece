"""The schedule: which nodes are computed together, and in which order.

A stage is one pass over memory. A loop stage walks a domain; its first `split` axes are rows. A member
lives on the whole domain, or on rows; a reduction over the axes behind the split gives a row value that
later members of the same row read (so softmax with cross entropy is one pass over rows); any other
reduction accumulates into memory and is ready when the stage ends.

Members are not expressions pasted into each other: each keeps its own names (let-lines) in the loop.
Requires contractions in the form of `contractions.order_contractions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from codegen.access import DYNAMIC, ZERO, Index, can_inline, is_one, is_view, reads, root_of
from codegen.contractions import Product, product_of
from codegen.loop_ir import Affine, variable
from symgrad.graph.dims import Shape, same, show
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    RUNNING,
    Constant,
    Einsum,
    Gather,
    Input,
    Node,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.traversal import toposort


@dataclass(eq=False, slots=True)
class LoopStage:
    """Fused members over a domain; the axes from `split` on are the inner ones of a row."""

    domain: Shape
    split: int
    members: list[Node] = field(default_factory=list)
    trailing: set[Node] = field(default_factory=set)
    accumulated: set[Node] = field(default_factory=set)
    is_split: bool = False

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return tuple(self.members)

    def on_rows(self, node: Node) -> bool:
        """Whether a member has one value a row."""
        return node in self.trailing or not self.is_full(domain_of(node))

    def is_full(self, domain: Shape) -> bool:
        """Whether a domain is the stage's whole one."""
        return equal_shapes(domain, self.domain)


@dataclass(eq=False, slots=True)
class ProductStage:
    """A matrix product."""

    node: Einsum
    product: Product

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return (self.node,)


@dataclass(eq=False, slots=True)
class MoveStage:
    """A Reindex of several pieces, or with zeros around; or a running reduction."""

    node: Reindex | Reduce

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return (self.node,)


Stage: TypeAlias = LoopStage | ProductStage | MoveStage


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Stages in order.

    graph:   what is computed; its outputs are results, then right-hand sides of updates.
    stored:  nodes that need memory beyond a row.
    forced:  nodes that would be inline but must lie in memory.
    """

    graph: Graph
    stages: tuple[Stage, ...]
    stage_of: dict[Node, int]
    stored: frozenset[Node]
    forced: frozenset[Node]

    def inline(self, node: Node) -> bool:
        """Whether readers look through a node."""
        return can_inline(node) and node not in self.forced

    def __str__(self) -> str:
        lines = map(self.line, self.stages)
        return "\n".join(f"stage {k:<3} {line}" for k, line in enumerate(lines, 1))

    def line(self, stage: Stage) -> str:
        """A stage in one line."""
        number = self.graph.number
        done = " ".join(f"%{number[n]}{'*' if n in self.stored else ''}" for n in stage.nodes)
        if isinstance(stage, ProductStage):
            e, p = stage.node, stage.product
            left, right = (
                show(a.shape) + ("^T" if t else "")
                for a, t in zip(e.args, p.transposed, strict=True)
            )
            return f"gemm   {left} x {right} -> {show(e.shape)}   {done}"
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
    kept = tuple(a for a in range(node.args[0].ndim) if a not in node.axes)
    return kept + node.axes, frozenset(node.axes)


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


def make_schedule(outputs: Sequence[Node]) -> Schedule:
    """Group the nodes that the outputs need into stages."""
    return _Scheduler(Graph(_leaves(outputs), tuple(outputs))).run()


def _leaves(outputs: Sequence[Node]) -> tuple[Input, ...]:
    return tuple(n for n in toposort(outputs) if isinstance(n, Input))


class _Scheduler:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stages: list[Stage] = []
        self.stage_of: dict[Node, int] = {}
        self.reads_of_stage: list[set[Node]] = []
        self.forced = frozenset(self._must_lie_in_memory())
        self.stored: set[Node] = set(self.forced)

    def _must_lie_in_memory(self) -> Iterator[Node]:
        """What a kernel or the caller needs as memory; reshapes show the memory of another."""
        read = [*self.graph.outputs]
        for node in self.graph.nodes:
            if product_of(node) is not None or is_view(node):
                read.extend(node.args)
            elif isinstance(node, Reindex):
                pieces = zip(node.args, node.pieces, strict=True)
                read.extend(arg for arg, piece in pieces if piece.view != arg.shape)
        yield from (root for root in map(root_of, read) if can_inline(root))

    def inline(self, node: Node) -> bool:
        return can_inline(node) and node not in self.forced

    def roots(self, node: Node, position: Index) -> list[tuple[Node, Index]]:
        """What a member reads once inline nodes and views are looked through."""
        found: list[tuple[Node, Index]] = []
        stack = list(zip(node.args, member_reads(node, position), strict=True))
        while stack:
            arg, index = stack.pop()
            if self.inline(arg):
                stack.extend(zip(arg.args, reads(arg, index), strict=True))
            elif is_view(arg):
                found.append((root_of(arg), (Affine(((DYNAMIC, 1),)),)))
            else:
                found.append((arg, index))
        return found

    def run(self) -> Schedule:
        for node in self.graph.nodes:
            if isinstance(node, (Input, Constant)) or self.inline(node):
                continue
            if is_view(node):
                self._need(node.args[0])
                continue
            product = product_of(node)
            if product is not None and isinstance(node, Einsum):
                self._alone(ProductStage(node, product), node)
            elif isinstance(node, Reindex) and not can_inline(node):
                self._alone(MoveStage(node), node)
            elif isinstance(node, Reduce) and node.op in RUNNING:
                self._alone(MoveStage(node), node)
            else:
                self._fuse(node)
        for node in self.graph.outputs:
            self._need(node)
        return Schedule(
            self.graph, tuple(self.stages), self.stage_of, frozenset(self.stored), self.forced
        )

    def _need(self, node: Node) -> None:
        root = root_of(node)
        if not isinstance(root, (Input, Constant)):
            self.stored.add(root)

    def _alone(self, stage: Stage, node: Node) -> None:
        self.stage_of[node] = len(self.stages)
        self.stages.append(stage)
        self.stored.add(node)
        everything: set[Node] = set()
        for arg in node.args:
            stack = [arg]
            while stack:
                top = stack.pop()
                if self.inline(top):
                    stack.extend(top.args)
                else:
                    self._need(top)
                    everything.add(top)
        self.reads_of_stage.append(everything)

    def _fuse(self, node: Node) -> None:
        domain = domain_of(node)
        roots = self.roots(node, position_of(domain))
        first = max((self.stage_of.get(root, 0) for root, _ in roots), default=0)
        for number in range(len(self.stages) - 1, first - 1, -1):
            stage = self.stages[number]
            if isinstance(stage, LoopStage) and self._shares(number, node, roots):
                if self._joins(stage, number, node, domain, roots):
                    break
        else:
            stage = LoopStage(domain, len(domain))
            number = len(self.stages)
            self.stages.append(stage)
            self.reads_of_stage.append(set())
            self._joins(stage, number, node, domain, roots)
        self.stage_of[node] = number
        stage.members.append(node)
        for root, index in roots:
            self.reads_of_stage[number].add(root)
            if self.stage_of.get(root) != number:
                self._need(root)
            elif not self._aligned(stage, root, index):
                self.stored.add(root)
        if node in stage.accumulated:
            self.stored.add(node)

    def _shares(self, number: int, node: Node, roots: list[tuple[Node, Index]]) -> bool:
        """Whether a node reads what a stage makes or reads, so that fusing saves memory traffic."""
        seen = self.reads_of_stage[number]
        return any(self.stage_of.get(r) == number or r in seen for r, _ in roots)

    def _joins(
        self,
        stage: LoopStage,
        number: int,
        node: Node,
        domain: Shape,
        roots: list[tuple[Node, Index]],
    ) -> bool:
        """Whether a node may become a member; marks how it reduces."""
        full = stage.is_full(domain)
        on_rows = stage.is_split and _is_row(domain, stage)
        if not full and not on_rows:
            return False
        for root, index in roots:
            if self.stage_of.get(root) == number and (
                root in stage.accumulated
                or not (
                    self._aligned(stage, root, index) or self._within_row(stage, root, index, node)
                )
            ):
                return False
        suffix = _reduced_suffix(node)
        if suffix is None:
            return True
        reorders = suffix >= 0
        split = len(stage.domain) - suffix
        if full and reorders and (not stage.is_split or stage.split == split):
            if not stage.is_split and not all(stage.is_full(domain_of(m)) for m in stage.members):
                return False
            stage.split, stage.is_split = split, True
            stage.trailing.add(node)
            return True
        if isinstance(node, Reduce) and node.op in ("argmax", "argmin"):
            return False
        stage.accumulated.add(node)
        return True

    def _aligned(self, stage: LoopStage, root: Node, index: Index) -> bool:
        """Whether a member is read at the position where it is computed."""
        here = position_of(stage.domain)
        if root in stage.trailing:
            return index == result_index(root, place_in(stage, root))
        if stage.is_full(root.shape):
            return index == here
        rows = here[: stage.split]
        return index[: stage.split] == rows and not any(i.terms for i in index[stage.split :])

    def _within_row(self, stage: LoopStage, root: Node, index: Index, node: Node) -> bool:
        """Whether a Gather reads the row that was just computed, at a computed place."""
        here = position_of(stage.domain)
        return (
            isinstance(node, Gather)
            and stage.is_split
            and root is node.args[0]
            and stage.is_full(root.shape)
            and root not in stage.trailing
            and index[: stage.split] == here[: stage.split]
        )


def _is_row(domain: Shape, stage: LoopStage) -> bool:
    rows = stage.domain[: stage.split]
    return (
        equal_shapes(domain[: stage.split], rows)
        and all(type(e) is int and e == 1 for e in domain[stage.split :])
        and len(domain) >= stage.split
    )


def _reduced_suffix(node: Node) -> int | None:
    """How many of the last axes of its domain a member reduces; -1 for others; None for no reduction."""
    if isinstance(node, Scatter):
        return -1
    if not (isinstance(node, Einsum) and node.summed) and not isinstance(node, Reduce):
        return None
    labels, summed = domain_labels(node)
    return len(summed) if set(labels[len(labels) - len(summed) :]) == summed else -1


def levels_of(schedule: Schedule, stage: LoopStage) -> dict[Node, int]:
    """In which pass over the row each member is ready: a row reduction of level l is ready in l + 1."""
    level: dict[Node, int] = {}
    position = position_of(stage.domain)
    for node in stage.members:
        found = 0
        for root, index in member_roots(schedule, node, place_in(stage, node)):
            if root in level:
                bump = (
                    stage.is_full(root.shape)
                    and root not in stage.trailing
                    and (index != position[: len(index)])
                )
                found = max(found, level[root] + (1 if bump else 0))
        level[node] = found + (1 if node in stage.trailing else 0)
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
