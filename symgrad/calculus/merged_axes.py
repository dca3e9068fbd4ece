"""Nodes with several of their indices as one axis: (T, B, ..) as (N, ..), pair by pair.

    out[t, b, i] = f(a[t, b, i], c[i])            ->    out[p, i] = f(a[p, i], c[i])
    out[i, j] = sum_t,b a[t, b, i] d[t, b, j]     ->    out[i, j] = sum_p a[p, i] d[p, j]

An operation that treats all pairs alike does not see which of them there are, nor in which order.
The new axis stands where the first of the others stood.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import sympy

from symgrad.calculus.bodies import packed
from symgrad.calculus.row_axes import Axes, Axis, kept_axes, labelled
from symgrad.calculus.settling import FALSE, TRUE, ZERO, settled
from symgrad.graph.dims import Extent, Shape
from symgrad.graph.dtypes import is_bool
from symgrad.graph.functions import AxisIndex, P, axis_index, placeholder
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    einsum_node,
)

Kind = Literal["all", "some", "none", "odd"]


def merged(labels: Sequence[int], group: Collection[int]) -> tuple[int, ...]:
    """Labels of which those of a group are one: the least of them, where the first stood.

    >>> merged((5, 3, 4), (3, 5))
    (3, 4)
    """
    found: list[int] = []
    for label in labels:
        name = min(group) if label in group else label
        if label not in group or name not in found:
            found.append(name)
    return tuple(found)


class Merge:
    """The indices that become one.

    Args:
        axes:    of the graph.
        indices: an axis of each.
        extent:  of the new axis.
        nodes:   of the graph, in topological order.
        masks:   some of them which are true for all pairs that there are.
        members: of each pair the place along each index; where a node has some of the indices.
    """

    def __init__(
        self, axes: Axes, indices: Sequence[Axis], extent: Extent,
        nodes: Sequence[Node], masks: Collection[Node], members: Sequence[Node] = (),
    ) -> None:
        self.axes, self.extent, self.members = axes, extent, tuple(members)
        self.roots = [axes.find(index) for index in indices]
        self._places: dict[Node, tuple[tuple[int, ...], ...]] = {}
        self.masks: set[Node] = set()
        masks = frozenset(masks)
        for node in nodes:
            moved = isinstance(node, Einsum) and not node.summed and len(node.args) == 1
            if node in masks or (moved and node.args[0] in self.masks):
                self.masks |= {node} if self.kind(node) == "all" else set()

    def places(self, node: Node) -> tuple[tuple[int, ...], ...]:
        """For each index the axes of a node that are it."""
        if node not in self._places:
            roots = [self.axes.find((node, k)) for k in range(node.ndim)]
            self._places[node] = tuple(
                tuple(k for k, own in enumerate(roots) if own == root) for root in self.roots
            )
        return self._places[node]

    def kind(self, node: Node) -> Kind:
        """Which of the indices a node has; "odd" when it has one twice."""
        counts = [len(own) for own in self.places(node)]
        if max(counts) > 1:
            return "odd"
        return "all" if min(counts) else "some" if max(counts) else "none"

    def group(self, node: Node) -> tuple[int, ...]:
        """The axes of a node that are among the indices."""
        return tuple(sorted(k for own in self.places(node) for k in own))

    def _labels(self, node: Node) -> tuple[int, ...] | None:
        """The label of each index in a node; None where one has several, or none."""
        found: list[set[int]] = [set() for _ in self.roots]
        for operand, labels in labelled(node):
            for own, axes in zip(found, self.places(operand), strict=True):
                own.update(labels[k] for k in axes)
        alone = all(len(own) == 1 and min(own) >= 0 for own in found)
        return tuple(min(own) for own in found) if alone else None

    # -- what can be -------------------------------------------------------------------------------
    def keeps(self, node: Node) -> bool:
        """Whether a node that has all indices does the same for each pair."""
        kinds = [self.kind(a) for a in node.args]
        if "odd" in kinds or self.kind(node) != "all" or not self._may_read(node):
            return False
        group = self.group(node)
        if isinstance(node, Map):
            counts = any(axis_index(k) in node.body.free_symbols for k in group)
            return "all" in kinds and not counts
        if isinstance(node, Reduce):
            return kinds == ["all"] and not set(node.axes) & set(self.group(node.args[0]))
        if isinstance(node, Reindex):
            return set(kinds) == {"all"} and all(
                self._moves_whole(a, piece, node)
                for a, piece in zip(node.args, node.pieces, strict=True)
            )
        labels = self._labels(node)
        if labels is None or (isinstance(node, Scatter) and kinds[0] != "all"):
            return False
        return bool(node.args)

    def _may_read(self, node: Node) -> bool:
        """Whether a node reads no mask: else only a Map can be told that it is true."""
        return isinstance(node, Map) or not any(a in self.masks for a in node.args)

    def _moves_whole(self, arg: Node, piece: Piece, node: Node) -> bool:
        own = kept_axes(arg.shape, piece, node.shape)
        return all(own[k] is not None for k in self.group(node))

    def sums(self, node: Node) -> bool:
        """Whether a node that has no index sums over all pairs."""
        if self.kind(node) != "none" or not isinstance(node, (Einsum, Scatter)):
            return False
        kinds = [self.kind(a) for a in node.args]
        added = kinds[:1] if isinstance(node, Scatter) else kinds
        possible = "all" in added and "odd" not in kinds and self._may_read(node)
        return possible and self._labels(node) is not None

    # -- what it becomes ---------------------------------------------------------------------------
    def shape(self, node: Node) -> Shape:
        """The shape with one axis for all indices."""
        group = self.group(node)
        return tuple(
            self.extent if k == min(group) else e
            for k, e in enumerate(node.shape)
            if k not in group[1:]
        )

    def rebuilt(self, node: Node, args: Sequence[Node]) -> Node:
        """A node that keeps or sums pairs, over arguments whose indices are one axis each."""
        if isinstance(node, Map):
            return self._map(node, args)
        if isinstance(node, Reduce):
            names = merged(range(node.args[0].ndim), self.group(node.args[0]))
            return Reduce(tuple(args), node.op, tuple(names.index(k) for k in node.axes))
        if isinstance(node, Reindex):
            group = self.group(node)
            pieces = tuple(self._piece(piece, group) for piece in node.pieces)
            return Reindex(tuple(args), pieces, self.shape(node))
        group = self._labels(node) or ()
        *inner, out = (merged(labels, group) for _, labels in labelled(node))
        if isinstance(node, Einsum):
            if len(args) == 1 and inner[0] == out:
                return args[0]
            extents = {**dict(enumerate(node.extents)), min(group): self.extent}
            return einsum_node(args, inner, out, extents)
        first, *indices = inner
        if isinstance(node, Gather):
            return self._gather(node, args, first, indices, out)
        assert isinstance(node, Scatter)
        shape = self.shape(node) if self.kind(node) == "all" else node.shape
        return Scatter(tuple(args), first, tuple(indices), out, shape, node.wrap)

    def _gather(
        self, node: Gather, args: Sequence[Node], source: tuple[int, ...],
        indices: Sequence[tuple[int, ...]], out: tuple[int, ...],
    ) -> Node:
        """A read at a step or a row of a source reads it at that of the pair, see `members`."""
        more: list[Node] = []
        if self.kind(node.args[0]) == "some":
            axes = list(source)
            for own, member in zip(self.places(node.args[0]), self.members, strict=True):
                for k in own:
                    axes[k] = ~(len(indices) + len(more))
                    more.append(member)
            (pair,) = {label for k, label in enumerate(source) if axes[k] != label}
            source, indices = tuple(axes), [*indices, *[(pair,)] * len(more)]
        return Gather((*args, *more), source, tuple(indices), out, node.wrap)

    def _piece(self, piece: Piece, group: tuple[int, ...]) -> Piece:
        def kept(own: Sequence[Extent], there: Extent | None = None) -> tuple[Extent, ...]:
            return tuple(
                there if k == group[0] and there is not None else e
                for k, e in enumerate(own)
                if k not in group[1:]
            )

        return Piece(
            kept(piece.view, self.extent), kept(piece.start), kept(piece.step),
            kept(piece.count, self.extent), kept(piece.offset), kept(piece.stride),
        )

    def _map(self, node: Map, args: Sequence[Node]) -> Node:
        group = self.group(node)
        body, used = packed(self.live_body(node))
        own = [self._aligned(node, node.args[k], args[k]) for k in used]
        moved = {
            s: axis_index(k - sum(g < k for g in group[1:]))
            for s in body.free_symbols
            if isinstance(s, AxisIndex)
            for k in (int(s.name[1:]),)
        }
        shape = self.shape(node)
        if body == P[0] and own[0].shape == shape and own[0].dtype == node.dtype:
            return own[0]
        return Map(tuple(own), body.xreplace(moved), shape, node.dtype)

    def live_body(self, node: Map) -> sympy.Expr:
        """The body of a Map where all masks are true."""
        known = {placeholder(k): TRUE for k, a in enumerate(node.args) if a in self.masks}
        return (settled(node.body, known) if known else None) or node.body

    def _aligned(self, node: Map, old: Node, new: Node) -> Node:
        """An argument with its axes below those that they belong to."""
        if not old.ndim:
            return new
        group, shift = self.group(node), node.ndim - old.ndim
        own = self.group(old)
        names = [min(group) if k in own else k + shift for k in range(old.ndim)]
        labels: list[int] = []
        for k, name in enumerate(names):
            if k in own and name in labels:
                continue  # the other index of a pair
            # an axis of one below an index has no place of its own
            spare = k not in own and name in group
            labels.append(node.ndim + k if spare else name)
        out = merged(range(node.ndim), group)
        present = [out.index(k) for k in labels if k in out]
        if not present:
            return new if not labels else einsum_node((new,), (labels,), ())
        out = out[min(present):]
        if tuple(labels) == out:
            return new
        return einsum_node((new,), (labels,), out, dict.fromkeys(out, 1))


def dead_value(
    node: Node, merge: Merge, known: Mapping[Node, sympy.Expr]
) -> sympy.Expr | None:
    """What a node is at the pairs that there are not: a number, a truth, a carry; None: unknown.

    Args:
        known: the same of its arguments, where something is known.
    """
    if node in merge.masks:
        return FALSE
    if isinstance(node, Constant) and not node.value.any():
        return FALSE if is_bool(node.dtype) else ZERO
    if isinstance(node, (Input, Constant)) or merge.kind(node) != "all":
        return known.get(node)
    # of one pair, and not of others, which a product or a move may bring to its place
    return _dead(node, known) if isinstance(node, Map) or merge.keeps(node) else None


def _dead(node: Node, known: Mapping[Node, sympy.Expr]) -> sympy.Expr | None:
    own = [known.get(a) for a in node.args]
    if isinstance(node, Map):
        told = {placeholder(k): v for k, v in enumerate(own) if v is not None}
        value = settled(node.body, told) if told else None
        free = value.free_symbols - {*told.values(), *known.values()} if value is not None else {1}
        return None if free else value
    if isinstance(node, Einsum):
        if len(own) == 1 and not node.summed:
            return own[0]
        return ZERO if ZERO in own else None
    if isinstance(node, Reindex):
        return ZERO if all(v == ZERO for v in own) else None
    if isinstance(node, (Gather, Scatter)):
        return ZERO if own[0] == ZERO else None
    if isinstance(node, Reduce) and not node.op.startswith("arg"):
        return ZERO if own[0] == ZERO else None
    return None
