"""Small expressions that derivatives are made of: zeros, ones, sums, broadcasts, deltas, factors.

A derivative of a node is a linear map. `map_factor` and `reduce_factor` give it as a tensor to
contract with, which reverse and forward mode share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import sympy

from symgrad.calculus import bodies
from symgrad.graph import functions as fn
from symgrad.graph.dims import Extent, Shape, same, size
from symgrad.graph.dtypes import DType
from symgrad.graph.functions import AXIS, P
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    broadcast,
    einsum_node,
    reshape_node,
)
from symgrad.graph.provenance import CONTEXT
from symgrad.graph.scalars import placeholders_in

SUM_WIDTH = 8  # arguments of one sum; longer sums are trees of these


def is_extent_one(extent: Extent) -> bool:
    """Whether an extent is the number 1."""
    return type(extent) is int and extent == 1


@lru_cache(maxsize=64)
def literal(value: float, dtype: DType) -> Node:
    """A scalar constant. It is backward of nothing, since every graph may share it."""
    before = CONTEXT.origin, CONTEXT.backward_of
    CONTEXT.origin = CONTEXT.backward_of = None
    try:
        return Constant(np.asarray(value, dtype))
    finally:
        CONTEXT.origin, CONTEXT.backward_of = before


def zeros_node(shape: Shape, dtype: DType) -> Node:
    """Zeros; the only place where a cotangent that is zero becomes an expression."""
    return expanded(literal(0.0, dtype), shape)


def is_literal(node: Node, value: float) -> bool:
    """Whether a node is the scalar constant of that value."""
    return isinstance(node, Constant) and not node.shape and bool(node.value == value)


def is_unit(node: Node) -> bool:
    """Whether a node is ones: the scalar 1, or 1 repeated."""
    if isinstance(node, Einsum) and len(node.args) == 1:
        node = node.args[0]
    return is_literal(node, 1.0)


def expanded(node: Node, shape: Shape) -> Node:
    """`node`, whose axes are the last of `shape`, repeated along the leading ones."""
    lead = len(shape) - node.ndim
    if lead == 0:
        return node
    labels = range(len(shape))
    return einsum_node((node,), (labels[lead:],), labels, dict(enumerate(shape)))


# -- masks -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Mask:
    """Where a value may differ from zero: a bool body over `args`, which broadcast to its shape."""

    condition: sympy.Expr
    args: tuple[Node, ...]


def mask_of(node: Node) -> Mask | None:
    """The mask of a Map `select(c, g, 0)`."""
    if not isinstance(node, Map):
        return None
    condition = bodies.mask_of(node.body)
    if condition is None:
        return None
    used = placeholders_in(condition)
    places = [0] * len(node.args)
    for n, k in enumerate(used):
        places[k] = n
    return Mask(
        bodies.shift(condition, tuple(places), ()), tuple(node.args[k] for k in used)
    )


def masked_map(
    body: sympy.Expr, args: Sequence[Node], mask: Mask | None, shape: Shape, dtype: DType
) -> Node:
    """`Map(body, args)`, zero outside of the mask."""
    if mask is None:
        return Map(tuple(args), body, shape, dtype)
    wide, places = list(args), list[int]()
    for arg in mask.args:
        places.append(next((k for k, other in enumerate(wide) if other is arg), len(wide)))
        if places[-1] == len(wide):
            wide.append(arg)
    condition = bodies.shift(mask.condition, tuple(places), ())
    return Map(tuple(wide), bodies.restrict(condition, body), shape, dtype)


# -- sums ------------------------------------------------------------------------------------------
def total(parts: Sequence[Node]) -> Node:
    """The sum of nodes of one shape; equal parts are counted, masks and disjoint pieces are kept.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (3,))
    >>> total([x, x]).body
    2*p0
    """
    counts: dict[Node, int] = {}
    for part in parts:
        counts[part] = counts.get(part, 0) + 1
    nodes = join_pieces([n for n, count in counts.items() if count == 1])
    nodes += [n for n, count in counts.items() if count > 1]
    while len(nodes) > SUM_WIDTH:
        nodes = [
            _sum(nodes[k : k + SUM_WIDTH], counts) for k in range(0, len(nodes), SUM_WIDTH)
        ]
    return _sum(nodes, counts)


def _sum(nodes: Sequence[Node], counts: dict[Node, int]) -> Node:
    weights = tuple(counts.get(n, 1) for n in nodes)
    if weights == (1,):
        return nodes[0]
    first = nodes[0]
    masks = [mask_of(n) for n in nodes]
    mask: Mask | None = masks[0]
    for other in masks[1:]:
        mask = _union(mask, other) if mask is not None and other is not None else None
    return masked_map(bodies.weighted_sum(weights), nodes, mask, first.shape, first.dtype)


def _union(a: Mask, b: Mask) -> Mask | None:
    """The mask of what one of two masks lets through; None where that is everything."""
    args = list(a.args)
    places = []
    for arg in b.args:
        k = next((k for k, other in enumerate(args) if other is arg), len(args))
        if k == len(args):
            args.append(arg)
        places.append(k)
    condition = bodies.either(a.condition, bodies.shift(b.condition, tuple(places), ()))
    return None if condition is None else Mask(condition, tuple(args))


def join_pieces(nodes: list[Node]) -> list[Node]:
    """Summands that write disjoint regions of zeros, as one Reindex of several sources.

        zeros[a] + zeros[b] = zeros[a, b]
    """
    apart: list[Node] = []
    groups: list[list[Node]] = []
    rows: dict[object, list[tuple[int, int]]] = {}
    for node in nodes:
        spans = _spans(node)
        if spans is None:
            apart.append(node)
            continue
        for axis, (low, high) in enumerate(spans):
            # disjoint from all others along one axis is enough
            taken = rows.setdefault(axis, [])
            if all(high <= a or b <= low for a, b in taken):
                break
        else:
            apart.append(node)
            continue
        for axis, span in enumerate(spans):
            rows.setdefault(axis, []).append(span)
        if not groups:
            groups.append([])
        groups[0].append(node)
    if not groups or len(groups[0]) == 1:
        return nodes
    first = groups[0][0]
    args = tuple(a for n in groups[0] for a in n.args)
    pieces = tuple(p for n in groups[0] for p in n.pieces)  # type: ignore[attr-defined]
    return [Reindex(args, pieces, first.shape), *apart]


def _spans(node: Node) -> list[tuple[int, int]] | None:
    """Per axis the interval that a Reindex writes to, where it is static."""
    if not isinstance(node, Reindex):
        return None
    boxes = [piece_box(p) for p in node.pieces]
    if not boxes or any(b is None for b in boxes):
        return None
    known = [b for b in boxes if b is not None]
    return [
        (min(b[k][0] for b in known), max(b[k][1] for b in known)) for k in range(node.ndim)
    ]


def piece_box(piece: Piece) -> list[tuple[int, int]] | None:
    """Per axis the interval `[low, high)` that a piece writes to; None if symbolic."""
    box: list[tuple[int, int]] = []
    for count, offset, stride in zip(piece.count, piece.offset, piece.stride, strict=True):
        if type(count) is not int or type(offset) is not int:
            return None
        last = offset + stride * (count - 1)
        box.append((min(offset, last), max(offset, last) + 1) if count else (offset, offset))
    return box


# -- contraction with leading axes -----------------------------------------------------------------
def contract(
    vector: Node, batch: int, labels: Sequence[int],
    factors: Iterable[tuple[Node, Sequence[int]]], out: Sequence[int], shape: Shape,
    position: int = 0,
) -> Node:
    """`out[batch.., out] = sum vector[batch.., labels] * factors`.

    Args:
        vector:   a tangent or cotangent with `batch` leading axes.
        factors:  tensors with the labels of their axes.
        shape:    of `out`, without the leading axes.
        position: of the vector among the factors.
    """
    factors = list(factors)
    top = 1 + max([-1, *labels, *out, *(k for _, group in factors for k in group)])
    lead = tuple(range(top, top + batch))
    extents = {**dict(zip(out, shape, strict=True)), **dict(zip(lead, vector.shape, strict=False))}
    args = [*factors[:position], (vector, (*lead, *labels)), *factors[position:]]
    if not vector.shape and is_literal(vector, 1.0) and factors:
        args = factors
    if len(args) == 1 and tuple(args[0][1]) == (*lead, *out):
        return args[0][0]
    return einsum_node(
        [node for node, _ in args], [group for _, group in args], (*lead, *out), extents
    )


def reduce_to(x: Node, batch: int, full: Shape, shape: Shape) -> Node:
    """The sum of `x` over the axes along which `shape` was stretched to `full`."""
    if shape == full:
        return x
    return contract(x, batch, range(len(full)), (), aligned(shape, full, 1), shape)


def aligned(shape: Shape, full: Shape, place: int) -> tuple[int, ...]:
    """The axes of `full` that those of `shape` meet; a stretched axis has a label of its own.

    Args:
        place: 1, 2, ..: keeps the labels of stretched axes of several shapes apart.
    """
    rank = len(full)
    lead = rank - len(shape)
    return tuple(
        place * rank + k if is_extent_one(e) and not is_extent_one(full[lead + k]) else lead + k
        for k, e in enumerate(shape)
    )


def spread(x: Node, shape: Sequence[Extent]) -> Node:
    """`x` with axes of one put in where `shape` has them and `x` has no axis."""
    moved = axes_of_one(x, shape)
    return reshape_node(x, tuple(shape)) if moved is None else moved


def axes_of_one(x: Node, shape: Sequence[Extent]) -> Node | None:
    """`x` in another shape, as an Einsum, where the two differ by axes of one alone."""
    shape = tuple(shape)
    if x.shape == shape:
        return x
    core = [k for k, e in enumerate(x.shape) if not is_extent_one(e)]
    kept = [k for k, e in enumerate(shape) if not is_extent_one(e)]
    if [x.shape[k] for k in core] != [shape[k] for k in kept]:
        return None
    names = dict(zip(kept, core, strict=True))
    out = [names.get(k, x.ndim + k) for k in range(len(shape))]
    return einsum_node((x,), (range(x.ndim),), out, {x.ndim + k: 1 for k in range(len(shape))})


# -- derivatives as tensors ------------------------------------------------------------------------
def map_factor(node: Map, k: int) -> tuple[Node | None, sympy.Expr] | None:
    """The derivative of a Map by args[k], as a tensor that broadcasts to the node's shape.

    Returns: None where it is zero; else the tensor (None where it is a number) and its body.
    """
    d = bodies.factor(node.body, k)
    if d is None:
        return None
    dtype = node.dtype
    if d.body.is_Number:
        return (None if d.body == 1 else literal(float(d.body), dtype)), d.body
    args = tuple(node.args[j] for j in d.needs) + ((node,) if d.output else ())
    shape: Shape = broadcast(args, "vjp") if args else ()
    if bodies.uses_axes(d.body):
        shape = node.shape
    return Map(args, d.body, shape, dtype), d.body


def converted(x: Node, dtype: DType) -> Node:
    """`x` in another float type."""
    return x if x.dtype == dtype else Map((x,), fn.CAST[dtype](P[0]), x.shape, dtype)


@lru_cache(maxsize=8)
def delta_body(dtype: DType) -> sympy.Expr:
    """One where `i0 = i1`, else zero."""
    return fn.CAST[dtype](fn.equal(AXIS[0], AXIS[1]))


def delta(extent: Extent, dtype: DType) -> Node:
    """The unit matrix."""
    return Map((), delta_body(dtype), (extent, extent), dtype)


def unit_seed(shape: Shape, dtype: DType) -> Node:
    """`seed[a.., b..] = product of (a_k = b_k)`, of shape `shape + shape`."""
    rank = len(shape)
    if rank == 0:
        return literal(1.0, dtype)
    if rank == 1:
        return delta(shape[0], dtype)
    return einsum_node(
        [delta(extent, dtype) for extent in shape],
        [(k, rank + k) for k in range(rank)],
        range(2 * rank),
    )


@lru_cache(maxsize=64)
def _others(rank: int) -> sympy.Expr:
    """`where(i == j, 1, x_j)` on the last two axes."""
    return fn.select(fn.equal(AXIS[rank - 2], AXIS[rank - 1]), 1, P[0])


def reduce_factor(node: Reduce) -> tuple[Node, tuple[int, ...], tuple[int, ...]]:
    """The derivative of a reduction that is no sum, as a tensor.

    Returns: the tensor, its labels and the labels of the result; those of the argument are
        0, 1, .. in order.
    """
    (x,) = node.args
    labels = tuple(range(x.ndim))
    kept = tuple(k for k in labels if k not in node.axes)
    if node.op in ("max", "min"):
        return _extremal(x, node, kept), labels, kept
    if node.op == "prod":
        return _products(x, node, kept), labels, kept
    (axis,) = node.axes
    row = (*kept, axis, x.ndim)
    out = tuple(x.ndim if k == axis else k for k in labels)
    made = _running_products(x, axis, kept) if node.op == "cumprod" else _records(node, axis, kept)
    return made, row, out


def _extremal(x: Node, node: Reduce, kept: tuple[int, ...]) -> Node:
    # y = max x:  x_ct = y_ct [x = y] / sum [x = y]   (ties share equally)
    one = tuple(1 if k in node.axes else e for k, e in enumerate(x.shape))
    hit = Map(
        (x, spread(node, one)), fn.CAST[x.dtype](fn.equal(P[0], P[1])), x.shape, x.dtype
    )
    count = einsum_node((hit,), (range(x.ndim),), kept)
    return Map((hit, spread(count, one)), P[0] / P[1], x.shape, x.dtype)


def _rows(x: Node, axes: Sequence[int], kept: Sequence[int]) -> Node:
    """`x` with `axes` moved to the end and flattened into one."""
    order = (*kept, *axes)
    moved = x if order == tuple(range(x.ndim)) else einsum_node((x,), (range(x.ndim),), order)
    return reshape_node(
        moved, (*(x.shape[k] for k in kept), size(x.shape[k] for k in axes))
    )


def _all_but_one(rows: Node) -> Node:
    """`out[.., i, j] = where(i == j, 1, rows[.., j])`."""
    *lead, n = rows.shape
    return Map(
        (spread(rows, (*lead, 1, n)),), _others(len(lead) + 2), (*lead, n, n), rows.dtype
    )


def _products(x: Node, node: Reduce, kept: tuple[int, ...]) -> Node:
    # y = prod_j x_j:  dy/dx_i = prod_j where(i = j, 1, x_j)
    table = _all_but_one(_rows(x, node.axes, kept))
    rest = Reduce((table,), "prod", (table.ndim - 1,))
    order = (*kept, *node.axes)
    shaped = reshape_node(rest, tuple(x.shape[k] for k in order))
    if order == tuple(range(x.ndim)):
        return shaped
    return einsum_node((shaped,), (order,), range(x.ndim))


def _running_products(x: Node, axis: int, kept: tuple[int, ...]) -> Node:
    # y_k = prod_{j <= k} x_j:  dy_k/dx_i = [i <= k] prod_{j <= k} where(i = j, 1, x_j)
    table = _all_but_one(_rows(x, (axis,), kept))
    running = Reduce((table,), "cumprod", (table.ndim - 1,))
    i, k = AXIS[table.ndim - 2], AXIS[table.ndim - 1]
    return Map(
        (running,), fn.select(fn.less_equal(i, k), P[0], 0), running.shape, running.dtype
    )


def _records(node: Reduce, axis: int, kept: tuple[int, ...]) -> Node:
    # y_k = max_{j <= k} x_j:  dy_k/dx_i = [i <= k][x_i = y_k] / their number
    x, y = (_rows(n, (axis,), kept) for n in (node.args[0], node))
    *lead, n = x.shape
    i, k = AXIS[len(lead)], AXIS[len(lead) + 1]
    hit = Map(
        (spread(x, (*lead, n, 1)), spread(y, (*lead, 1, n))),
        fn.select(fn.less_equal(i, k), fn.CAST[x.dtype](fn.equal(P[0], P[1])), 0),
        (*lead, n, n),
        x.dtype,
    )
    axes = tuple(range(hit.ndim))
    count = einsum_node((hit,), (axes,), (*axes[:-2], axes[-1]))
    return Map((hit, spread(count, (*lead, 1, n))), P[0] / P[1], hit.shape, x.dtype)


def flip_node(x: Node, axis: int) -> Node:
    """`x` with one axis reversed."""
    rank = x.ndim
    start = tuple(x.shape[k] - 1 if k == axis else 0 for k in range(rank))
    step = tuple(-1 if k == axis else 1 for k in range(rank))
    piece = Piece(x.shape, start, step, x.shape, (0,) * rank, (1,) * rank)
    return Reindex((x,), (piece,), x.shape)


def with_batch(piece: Piece, lead: Shape) -> Piece:
    """The same move under leading axes."""
    zero, one = (0,) * len(lead), (1,) * len(lead)
    return Piece(
        lead + piece.view, zero + piece.start, one + piece.step,
        lead + piece.count, zero + piece.offset, one + piece.stride,
    )


def equal_shapes(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be equal."""
    return len(a) == len(b) and all(same(x, y) is not False for x, y in zip(a, b, strict=True))
