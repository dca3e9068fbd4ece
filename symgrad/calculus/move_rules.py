"""Simplification rules of Reindex and Scatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from symgrad.calculus import building
from symgrad.calculus.map_rules import build
from symgrad.graph import functions as fn
from symgrad.graph.dims import Extent, Shape
from symgrad.graph.folds import counted_by
from symgrad.graph.functions import AXIS, P, placeholder
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Map,
    Node,
    Piece,
    Reindex,
    Scatter,
    einsum_node,
    is_reshape,
    reshape_node,
)

FLOAT_INTEGERS = 2**24  # positions below this are exact in float32

Once = Callable[[Node], bool]


def identity(node: Reindex, once: Once) -> Node | None:
    """rewrite: x[whole] -> x;  reshape of reshape -> reshape."""
    if not is_reshape(node):
        return None
    (arg,) = node.args
    if arg.shape == node.shape:
        return arg
    return reshape_node(arg.args[0], node.shape) if is_reshape(arg) else None


def axes_of_one(node: Reindex, once: Once) -> Node | None:
    """rewrite: a reshape that puts in or takes out axes of one -> Einsum, which meets others."""
    return building.axes_of_one(node.args[0], node.shape) if is_reshape(node) else None


def move_of_scalar(node: Reindex, once: Once) -> Node | None:
    """rewrite: a reshape of one number repeated -> the number repeated."""
    if not is_reshape(node):
        return None
    (arg,) = node.args
    if isinstance(arg, Einsum) and len(arg.args) == 1 and not arg.args[0].shape:
        return building.expanded(arg.args[0], node.shape)
    return None


def move_of_move(node: Reindex, once: Once) -> Node | None:
    """rewrite: x[a + s k][b + t j] -> x[a + s b + s t j].

    requires: the slice lies in one piece of x, then it reads the source of that piece; neither
              tells a dim.
    """
    if len(node.pieces) != 1 or is_reshape(node):
        return None
    (outer,), (arg,) = node.pieces, node.args
    if any(isinstance(n, Reindex) and counted_by(n) is not None for n in (node, arg)):
        return None
    if not isinstance(arg, Reindex) or is_reshape(arg) or outer.view != arg.shape:
        return None
    for source, inner in zip(arg.args, arg.pieces, strict=True):
        joined = _joined(outer, inner, arg.shape)
        if joined is not None:
            return Reindex((source,), (joined,), node.shape)
    return None


def _joined(outer: Piece, inner: Piece, middle: Shape) -> Piece | None:
    """The move through a middle array, where the outer one reads from one inner piece alone."""
    start: list[Extent] = []
    step: list[int] = []
    for axis, extent in enumerate(middle):
        offset, stride = inner.offset[axis], inner.stride[axis]
        first, last = outer.start[axis], outer.start[axis] + outer.step[axis] * (
            outer.count[axis] - 1
        )
        everything = offset == 0 and stride == 1 and inner.count[axis] == extent
        if not everything:
            numbers = (first, last, offset, inner.count[axis], outer.count[axis])
            if not all(type(v) is int for v in numbers) or abs(stride) != 1:
                return None
            if inner.count[axis] == 0:
                return None
            low, high = sorted((offset, offset + stride * (inner.count[axis] - 1)))
            if not (low <= min(first, last) and max(first, last) <= high):
                return None
        start.append(_plain(inner.start[axis] + inner.step[axis] * stride * (first - offset)))
        step.append(inner.step[axis] * stride * outer.step[axis])
    return Piece(
        inner.view, tuple(start), tuple(step), outer.count, outer.offset, outer.stride
    )


def _plain(value: Extent) -> Extent:
    if type(value) is int:
        return value
    value = sympy.expand(value)
    return int(value) if value.is_Integer else value


def scatter_without_sum(node: Scatter, once: Once) -> Node | None:
    """rewrite: out[b, index_b] = u_b -> out[b, c] = select(c = index_b, u_b, 0).

    requires: no two updates meet, for every label of the updates is an axis of the result;
              negative positions count from the end where they wrap.
    """
    updates, *indices = node.args
    axes = node.target_axes
    if set(node.update_labels) - set(axes) or len(axes) > len(AXIS):
        return None
    if any(set(group) - set(node.update_labels) for group in node.index_labels):
        return None
    tests: list[sympy.Expr] = []
    args: list[Node] = []
    for place, axis in enumerate(axes):
        if axis >= 0:
            continue
        extent = node.shape[place]
        if type(extent) is not int or extent >= FLOAT_INTEGERS:
            return None
        index = _from_front(indices[~axis], extent) if node.wrap else indices[~axis]
        tests.append(fn.equal(AXIS[place], placeholder(1 + len(args))))
        args.append(_along(index, node.index_labels[~axis], axes))
    both = fn.FUNCTIONS["logical_and"].cls
    test = tests[0]
    for other in tests[1:]:
        test = both(test, other)
    value = _number(updates)
    if value is not None:
        return build(
            P[0] * fn.CAST[node.dtype](test), (value, *args), node.shape, node.dtype
        )
    values = _along(updates, node.update_labels, axes)
    return build(fn.select(test, P[0], 0), (values, *args), node.shape, node.dtype)


def _number(node: Node) -> Node | None:
    """The finite scalar that a node repeats."""
    if isinstance(node, Einsum) and len(node.args) == 1 and not node.args[0].shape:
        node = node.args[0]
    known = isinstance(node, (Constant, Map)) and all(isinstance(a, Constant) for a in node.args)
    return node if known and not node.shape else None


def _from_front(index: Node, extent: int) -> Node:
    """Positions in which negative ones are counted from the front."""
    body = fn.select(fn.less(P[0], 0), P[0] + extent, P[0])
    return Map((index,), body, index.shape, index.dtype)


def _along(x: Node, labels: Sequence[int], axes: Sequence[int]) -> Node:
    """`x` with its axes in the order of `axes`, and axes of one between them."""
    places = sorted(axes.index(k) for k in labels)
    if not places:
        return x
    top = 1 + max(axes)
    out = [axes[p] if axes[p] in labels else top + p for p in range(places[0], len(axes))]
    if tuple(out) == tuple(labels):
        return x
    return einsum_node((x,), (labels,), out, {top + p: 1 for p in range(len(axes))})
