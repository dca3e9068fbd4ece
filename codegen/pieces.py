"""Sums of arrays that are zero outside of disjoint boxes: one array of pieces.

rewrite:  pad(a, ..) + pad(b, ..) + c  ->  Reindex of a and b, + c, where the boxes do not overlap
keeps:    values and shapes; a -0.0 of a piece becomes 0.0, as it does when a zero is added to it

Such sums are what goes back to an array that was read in slices: the queries, keys and values of
one product, or the gates of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sympy

from codegen.access import is_view, squeezes
from symgrad.graph.dims import Shape, same
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Fold, with_outputs
from symgrad.graph.functions import P
from symgrad.graph.nodes import Constant, Einsum, Map, Node, Piece, Reindex, map_node
from symgrad.graph.passes import rewrites
from symgrad.graph.traversal import rebuild, reconnect


@rewrites
def join_pieces(outputs: Sequence[Node]) -> list[Node]:
    """Rewrite all such sums of the outputs; see the module."""

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if isinstance(node, Fold):
            return with_outputs(node, join_pieces(node.body.outputs))
        return _joined(node) if isinstance(node, Map) and _is_sum(node) else node

    return rebuild(outputs, rule)


def _is_sum(node: Map) -> bool:
    """Whether a Map adds its arguments, two or more of which are pieces."""
    if not is_float(node.dtype) or sum(map(_is_piece, node.args)) < 2:
        return False
    own = set(P[: len(node.args)])
    return isinstance(node.body, sympy.Add) and set(node.body.args) == own


def _is_piece(node: Node) -> bool:
    return isinstance(node, Reindex) and not squeezes(node) and not is_view(node)


def _joined(node: Map) -> Node:
    """A sum with as many of its pieces as do not overlap in one array."""
    pieces = [
        arg
        for arg in node.args
        if isinstance(arg, Reindex) and _is_piece(arg) and _same_shape(arg.shape, node.shape)
    ]
    # those that few others overlap come first
    taken: list[Reindex] = []
    for arg in sorted(pieces, key=lambda a: sum(not _beside(a, b) for b in pieces)):
        if all(_beside(arg, other) for other in taken):
            taken.append(arg)
    if len(taken) < 2:
        return node
    rest = [arg for arg in node.args if not any(arg is t for t in taken)]
    sources = [_with_positive_zeros(source) for t in taken for source in t.args]
    joined = Reindex(tuple(sources), tuple(p for t in taken for p in t.pieces), node.shape)
    if not rest:
        return joined
    body = sum(P[1 : len(rest) + 1], P[0])
    return map_node(body, [joined, *rest], node.dtype)


def _same_shape(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(same(x, y) is True for x, y in zip(a, b, strict=True))


def _beside(a: Reindex, b: Reindex) -> bool:
    """Whether two arrays have their pieces in different places."""
    return all(_apart(p, q) for p in a.pieces for q in b.pieces)


def _apart(a: Piece, b: Piece) -> bool:
    """Whether two boxes are known to have no element in common."""
    return any(
        _ends_before(a, b, axis) or _ends_before(b, a, axis) for axis in range(len(a.count))
    )


def _ends_before(a: Piece, b: Piece, axis: int) -> bool:
    """Whether one box lies below another along an axis."""
    count, first, stride = a.count[axis], a.offset[axis], a.stride[axis]
    other, start, step = b.count[axis], b.offset[axis], b.stride[axis]
    numbers = (count, first, stride, other, start, step)
    if not all(type(x) is int for x in numbers):
        return False
    return max(first, first + (count - 1) * stride) < min(start, start + (other - 1) * step)


def _with_positive_zeros(source: Node) -> Node:
    """A source as a sum with zeros leaves it; contractions add to a zero already."""
    if isinstance(source, Einsum) and source.summed:
        return source
    return map_node(P[0] + P[1], [source, Constant(np.zeros((), source.dtype))], source.dtype)
