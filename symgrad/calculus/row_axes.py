"""Which axes of a graph's nodes are one index: those that its operations match with each other.

    out[i, j] = f(a[i, j], b[j])               i of out and a;  j of out, a and b
    out[i, j] = sum_k a[i, k] b[k, j]          i, j, and k of a and b

Two axes of one extent may still be different indices. A move keeps an index where it takes the
whole axis, a read by index on the axes that it does not index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from symgrad.calculus.building import is_extent_one
from symgrad.graph.dims import Shape
from symgrad.graph.folds import Fold, projections
from symgrad.graph.nodes import RUNNING, Einsum, Gather, Map, Node, Piece, Reduce, Reindex, Scatter

Axis = tuple[Node, int]
Name = tuple[int, int]  # of a node, in place of the node itself, and an axis


class Axes:
    """The classes of axes that are one index, a union-find.

    Args:
        nodes: of a graph, in topological order.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._known = list(nodes)
        self._above: dict[Name, Name] = {}
        for node in nodes:
            for a, b in matched(node):
                self.join(a, b)

    def join_body(self, fold: Fold) -> None:
        """The axes of a recurrence's body, and what they are of its arguments and results."""
        self._known += fold.body.nodes
        for node in fold.body.nodes:
            for a, b in matched(node):
                self.join(a, b)
        n, m = fold.carries, fold.carries + fold.sequences
        for k, (arg, leaf) in enumerate(zip(fold.args, fold.body.inputs, strict=True)):
            moves = int(n <= k < m)
            for axis in range(leaf.ndim):
                self.join((arg, axis + moves), (leaf, axis))
        results = projections(fold)
        self._known += results  # names are numbers of nodes that live
        for result, node in zip(results, fold.body.outputs, strict=True):
            emitted = int(result.place >= n)
            for axis in range(node.ndim):
                self.join((result, axis + emitted), (node, axis))
                if not emitted:
                    self.join((fold.body.inputs[result.place], axis), (node, axis))

    def find(self, axis: Axis) -> Name:
        """What stands for the class of an axis."""
        own = root = (id(axis[0]), axis[1])
        while (above := self._above.get(root, root)) != root:
            root = above
        while own != root:
            self._above[own], own = root, self._above[own]
        return root

    def join(self, a: Axis, b: Axis) -> None:
        """Two axes are one index."""
        first, second = self.find(a), self.find(b)
        if first != second:
            self._above[second] = first


def matched(node: Node) -> Iterator[tuple[Axis, Axis]]:
    """Pairs of axes, of a node and its arguments, that are one index; none of a recurrence."""
    if isinstance(node, Map):
        for arg in node.args:
            shift = node.ndim - arg.ndim
            for k, extent in enumerate(arg.shape):
                if not is_extent_one(extent):
                    yield (arg, k), (node, k + shift)
    elif isinstance(node, Reduce):
        (arg,) = node.args
        running = node.op in RUNNING
        kept = [k for k in range(arg.ndim) if running or k not in node.axes]
        yield from (((arg, k), (node, j)) for j, k in enumerate(kept))
    elif isinstance(node, Reindex):
        for arg, piece in zip(node.args, node.pieces, strict=True):
            for k, own in enumerate(kept_axes(arg.shape, piece, node.shape)):
                if own is not None:
                    yield (arg, own), (node, k)
    else:
        first: dict[int, Axis] = {}
        for operand, labels in labelled(node):
            for k, label in enumerate(labels):
                if label >= 0 and not is_extent_one(operand.shape[k]):
                    yield first.setdefault(label, (operand, k)), (operand, k)


def labelled(node: Node) -> list[tuple[Node, tuple[int, ...]]]:
    """The labels of the axes of a node's arguments, then of its own; none where it has none."""
    if isinstance(node, Einsum):
        return [*zip(node.args, node.labels, strict=True), (node, node.out)]
    if isinstance(node, Gather):
        own = (node.source_axes, *node.index_labels)
        return [*zip(node.args, own, strict=True), (node, node.out)]
    if isinstance(node, Scatter):
        own = (node.update_labels, *node.index_labels)
        return [*zip(node.args, own, strict=True), (node, node.target_axes)]
    return []


def kept_axes(source: Shape, piece: Piece, target: Shape) -> list[int | None]:
    """For each axis of a move's result the source's that it is, whole; None where it is none."""
    axes = _view_axes(source, piece.view)
    moves = zip(piece.start, piece.step, piece.count, piece.offset, piece.stride, strict=True)
    found: list[int | None] = []
    for k, (start, step, count, offset, stride) in enumerate(moves):
        still = _is(start, 0) and _is(offset, 0) and step == stride == 1
        whole = count == piece.view[k] == target[k]
        found.append(axes.get(k) if still and whole else None)
    return found


def _view_axes(source: Shape, view: Shape) -> dict[int, int]:
    """The axes of a view that are axes of its source: a reshape keeps those before and behind."""
    found: dict[int, int] = {}
    for k, (a, b) in enumerate(zip(source, view, strict=False)):
        if a != b:
            break
        found[k] = k
    for k in range(1, min(len(source), len(view)) + 1):
        if source[-k] != view[-k]:
            break
        found.setdefault(len(view) - k, len(source) - k)
    return found


def _is(extent: object, number: int) -> bool:
    return type(extent) is int and extent == number
