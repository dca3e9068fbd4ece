"""Verbs that move elements and compute nothing.

A permutation of axes, and an axis of one that comes, goes or is stretched, is an Einsum that sums
nothing else: it composes with the contractions around it. All other moves are affine: one Reindex.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sympy

from symgrad.graph import dims as dm, functions as fn
from symgrad.graph.dims import Extent, Shape, as_extent, as_shape, integers, same, show
from symgrad.graph.dtypes import promote
from symgrad.graph.errors import ShapeError
from symgrad.graph.functions import AXIS, P
from symgrad.graph.leaves import ArrayLike, as_node, cast, operands
from symgrad.graph.nodes import (
    Constant,
    Map,
    Node,
    Piece,
    Reindex,
    describe,
    einsum_node,
    reshape_node,
)
from symgrad.graph.operators import verb


def one_axis(asked: str, axis: object, rank: int, node: Node | None = None) -> int:
    """An axis as a number from 0.

    Raises: ShapeError when there is no such axis.
    """
    try:
        k = axis.__index__()  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise ShapeError(f"{asked}: an axis must be an integer, got {axis!r}.") from None
    if not -rank <= k < rank:
        what = f"\n  {describe(node)}" if node is not None else ""
        raise ShapeError(f"{asked}: axis {k} is out of range for {rank} axes{what}")
    return int(k) % rank


def axes_of(asked: str, axis: object, node: Node) -> tuple[int, ...]:
    """Axes of a node, ascending: None means all, one integer one.

    Raises: ShapeError when one does not exist or stands twice.
    """
    if axis is None:
        return tuple(range(node.ndim))
    if not isinstance(axis, (tuple, list)):
        return (one_axis(asked, axis, node.ndim, node),)
    found = sorted(one_axis(asked, a, node.ndim, node) for a in axis)
    if len(set(found)) != len(found):
        raise ShapeError(f"{asked}: an axis stands twice in {tuple(axis)}\n  {describe(node)}")
    return tuple(found)


# -- axes -----------------------------------------------------------------------------------------
@verb
def transpose(x: ArrayLike, axes: Sequence[int] | None = None) -> Node:
    """Permute the axes, `out.shape[k] = x.shape[axes[k]]`; reversed when `axes` is None.

    Raises: ShapeError when `axes` is no permutation.

    >>> import symgrad as sg
    >>> sg.transpose(sg.ones((3, 5, 7)), (2, 0, 1)).shape
    (7, 3, 5)
    """
    node = as_node(x)
    order = range(node.ndim)[::-1] if axes is None else integers("transpose", "axes", axes)
    order = [one_axis("transpose", a, node.ndim, node) for a in order]
    if sorted(order) != list(range(node.ndim)):
        raise ShapeError(f"transpose: {axes} is no permutation of the axes of\n  {describe(node)}")
    if order == list(range(node.ndim)):
        return node
    return einsum_node((node,), (tuple(range(node.ndim)),), order)


@verb
def swapaxes(x: ArrayLike, axis1: int, axis2: int) -> Node:
    """Exchange two axes.

    Raises: ShapeError for an axis that there is not.

    >>> import symgrad as sg
    >>> sg.swapaxes(sg.ones((3, 5, 7)), 0, -1).shape
    (7, 5, 3)
    """
    node = as_node(x)
    a = one_axis("swapaxes", axis1, node.ndim, node)
    b = one_axis("swapaxes", axis2, node.ndim, node)
    order = list(range(node.ndim))
    order[a], order[b] = order[b], order[a]
    return transpose(node, order)


@verb
def moveaxis(x: ArrayLike, source: int | Sequence[int], destination: int | Sequence[int]) -> Node:
    """Move axes to other places; the others keep their order.

    Raises: ShapeError for axes that there are not, or that stand twice.

    >>> import symgrad as sg
    >>> sg.moveaxis(sg.ones((3, 5, 7)), 0, -1).shape
    (5, 7, 3)
    """
    node = as_node(x)
    several = isinstance(source, (tuple, list))
    froms = [one_axis("moveaxis", a, node.ndim, node) for a in (source if several else [source])]  # type: ignore[union-attr]
    several = isinstance(destination, (tuple, list))
    tos = [
        one_axis("moveaxis", a, node.ndim, node)
        for a in (destination if several else [destination])  # type: ignore[union-attr]
    ]
    if len(froms) != len(tos) or len(set(froms)) != len(froms) or len(set(tos)) != len(tos):
        raise ShapeError(
            f"moveaxis: cannot move axes {source} to {destination}\n  {describe(node)}"
        )
    order = [a for a in range(node.ndim) if a not in froms]
    for to, start in sorted(zip(tos, froms, strict=True)):
        order.insert(to, start)
    return transpose(node, order)


@verb
def expand_dims(x: ArrayLike, axis: int | Sequence[int]) -> Node:
    """Insert axes of one; `axis` counts in the result.

    Raises: ShapeError for an axis out of range, or twice.

    >>> import symgrad as sg
    >>> sg.expand_dims(sg.ones((3, 5)), (0, -1)).shape
    (1, 3, 5, 1)
    """
    node = as_node(x)
    wanted = axis if isinstance(axis, (tuple, list)) else (axis,)
    rank = node.ndim + len(wanted)
    axes = {one_axis("expand_dims", a, rank, node) for a in wanted}
    if len(axes) != len(wanted):
        raise ShapeError(f"expand_dims: an axis stands twice in {wanted}\n  {describe(node)}")
    if not axes:
        return node
    old = iter(range(node.ndim))
    out = [node.ndim + k if k in axes else next(old) for k in range(rank)]
    return einsum_node((node,), (range(node.ndim),), out, dict.fromkeys(out, 1))


@verb
def squeeze(x: ArrayLike, axis: int | Sequence[int] | None = None) -> Node:
    """Remove axes of one: those named, or all.

    Raises: ShapeError when a named axis has another extent.

    >>> import symgrad as sg
    >>> sg.squeeze(sg.ones((1, 3, 1)), 0).shape
    (3, 1)
    """
    node = as_node(x)
    if axis is None:
        axes = tuple(k for k, e in enumerate(node.shape) if type(e) is int and e == 1)
    else:
        axes = axes_of("squeeze", axis, node)
    for k in axes:
        if same(node.shape[k], 1) is not True:
            raise ShapeError(
                f"squeeze: axis {k} has extent {node.shape[k]}, not 1\n  {describe(node)}"
            )
    if not axes:
        return node
    out = [k for k in range(node.ndim) if k not in axes]
    return einsum_node((node,), (range(node.ndim),), out)


@verb
def broadcast_to(x: ArrayLike, shape: object) -> Node:
    """Stretch axes of one, and put new axes in front.

    Cotangent: the sum over what was stretched. Raises: ShapeError where extents differ.

    >>> import symgrad as sg
    >>> sg.broadcast_to(sg.ones((2, 1)), (3, 2, 5)).shape
    (3, 2, 5)
    """
    node = as_node(x)
    target = as_shape(shape, "broadcast_to")
    return _stretch("broadcast_to", node, target)


def _stretch(asked: str, node: Node, target: Shape) -> Node:
    front = len(target) - node.ndim
    labels, out = list(range(node.ndim)), list(range(node.ndim, node.ndim + len(target)))
    extents: dict[int, Extent] = dict(zip(out, target, strict=True))
    for k, extent in enumerate(node.shape):
        if front < 0:
            break
        wanted = target[front + k]
        if same(extent, wanted) is False and not (type(extent) is int and extent == 1):
            front = -1
        elif not (type(extent) is int and extent == 1) or same(wanted, 1):
            out[front + k] = labels[k]
    if front < 0:
        raise ShapeError(
            f"{asked}: cannot stretch to {show(target)}\n  {describe(node)}\n"
            "  Extents must be equal or 1, aligned from the right."
        )
    if out == labels:
        return node
    return einsum_node((node,), (labels,), out, extents)


# -- reshape --------------------------------------------------------------------------------------
@verb
def reshape(x: ArrayLike, shape: object) -> Node:
    """Another shape of the same size, in row-major order; one extent may be -1.

    Raises: ShapeError when the sizes differ.

    >>> reshape(as_node([[1.0, 2.0], [3.0, 4.0]]), (-1,)).shape
    (4,)
    """
    node = as_node(x)
    wanted = list(shape) if isinstance(shape, (tuple, list)) else [shape]
    unknown = [k for k, e in enumerate(wanted) if isinstance(e, int) and e == -1]
    if len(unknown) > 1:
        raise ShapeError(
            f"reshape: only one extent may be -1, got {tuple(wanted)}\n  {describe(node)}"
        )
    if unknown:
        others = as_shape([e for k, e in enumerate(wanted) if k != unknown[0]], "reshape")
        wanted[unknown[0]] = _quotient(node, dm.size(others), tuple(wanted))
    target = as_shape(wanted, "reshape")
    if same(dm.size(node.shape), dm.size(target)) is False:
        raise ShapeError(
            f"reshape: {show(target)} has {dm.size(target)} elements, not {dm.size(node.shape)}\n"
            f"  {describe(node)}"
        )
    return reshape_node(node, target)


def _quotient(node: Node, known: Extent, wanted: tuple[object, ...]) -> Extent:
    total = dm.size(node.shape)
    message = f"reshape: no extent for -1 in {wanted} makes {total} elements\n  {describe(node)}"
    if type(total) is int and type(known) is int:
        if known == 0 or total % known:
            raise ShapeError(message)
        return total // known
    quotient = sympy.cancel(sympy.sympify(total) / known)
    if not quotient.is_polynomial() or any(
        not c.is_Integer for c in quotient.as_coefficients_dict().values()
    ):
        raise ShapeError(message)
    return as_extent(quotient, "reshape")


# -- affine moves ---------------------------------------------------------------------------------
def sliced(x: Node, start: Shape, step: tuple[int, ...], count: Shape) -> Node:
    """`out[k] = x[start + step k]` for k in `count`; itself when that is all of `x`."""
    rank = x.ndim
    if count == x.shape and all(s == 1 for s in step):
        return x
    piece = Piece(x.shape, start, step, count, (0,) * rank, (1,) * rank)
    return Reindex((x,), (piece,), count)


@verb
def flip(x: ArrayLike, axis: int | Sequence[int] | None = None) -> Node:
    """Reverse the order along the axes, by default all: `out[k] = x[n - 1 - k]`.

    Raises: ShapeError for an axis that there is not.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.flip([1, 2, 3]))
    array([3, 2, 1], dtype=int32)
    """
    node = as_node(x)
    axes = axes_of("flip", axis, node)
    start = tuple(_less(e, 1) if k in axes else 0 for k, e in enumerate(node.shape))
    step = tuple(-1 if k in axes else 1 for k in range(node.ndim))
    return sliced(node, start, step, node.shape)


def _less(extent: Extent, by: Extent) -> Extent:
    """A difference that may be negative for an empty axis, which no element then reads."""
    if type(extent) is int and type(by) is int:
        return builtins.max(extent - by, 0)
    return sympy.expand(extent - by)


def _aligned(asked: str, arrays: Iterable[ArrayLike]) -> tuple[Node, ...]:
    single = isinstance(arrays, np.ndarray) and arrays.ndim == 0
    if single or isinstance(arrays, Node) or not isinstance(arrays, Iterable):
        got = f"one expression\n  {describe(arrays)}" if isinstance(arrays, Node) else arrays
        raise ShapeError(f"{asked}: give a list of arrays, got {got!s:.300}")
    nodes = operands(*arrays)
    if not nodes:
        raise ShapeError(f"{asked}: needs at least one array.")
    dtype = promote(*(n.dtype for n in nodes))
    return tuple(cast(n, dtype) for n in nodes)


def _agree(asked: str, nodes: tuple[Node, ...], besides: int | None) -> list[Extent]:
    """The common extents; where two are not known to be equal, a number wins."""
    common = list(nodes[0].shape)
    for node in nodes:
        fits = node.ndim == len(common) and all(
            k == besides or same(a, b) is not False
            for k, (a, b) in enumerate(zip(common, node.shape, strict=True))
        )
        if not fits:
            lines = "\n".join(f"  {describe(n)}" for n in nodes[:8])
            where = "" if besides is None else f" besides axis {besides}"
            raise ShapeError(f"{asked}: the shapes must agree{where}\n{lines}")
        common = [b if type(b) is int else a for a, b in zip(common, node.shape, strict=True)]
    return common


@verb
def concatenate(arrays: Sequence[ArrayLike], axis: int = 0) -> Node:
    """Join arrays along an axis that they have.

    Raises: ShapeError when they differ elsewhere, or there are none.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.concatenate([[1, 2], [3]]))
    array([1, 2, 3], dtype=int32)
    """
    nodes = _aligned("concatenate", arrays)
    along = one_axis("concatenate", axis, nodes[0].ndim, nodes[0])
    common = _agree("concatenate", nodes, along)
    if len(nodes) == 1:
        return nodes[0]
    rank = len(common)
    pieces: list[Piece] = []
    place: Extent = 0
    for node in nodes:
        own = (*common[:along], node.shape[along], *common[along + 1 :])
        offset = tuple(place if k == along else 0 for k in range(rank))
        pieces.append(Piece(own, (0,) * rank, (1,) * rank, own, offset, (1,) * rank))
        place = as_extent(place + node.shape[along])
    return Reindex(nodes, tuple(pieces), (*common[:along], place, *common[along + 1 :]))


@verb
def stack(arrays: Sequence[ArrayLike], axis: int = 0) -> Node:
    """Join arrays of one shape along a new axis.

    Raises: ShapeError when the shapes differ, or there are none.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.stack([[1, 2], [3, 4]], axis=1))
    array([[1, 3],
           [2, 4]], dtype=int32)
    """
    nodes = _aligned("stack", arrays)
    common = _agree("stack", nodes, None)
    rank = len(common) + 1
    along = one_axis("stack", axis, rank, nodes[0])
    own = (*common[:along], 1, *common[along:])
    pieces = tuple(
        Piece(
            own,
            (0,) * rank,
            (1,) * rank,
            own,
            tuple(k if a == along else 0 for a in range(rank)),
            (1,) * rank,
        )
        for k in range(len(nodes))
    )
    return Reindex(nodes, pieces, (*common[:along], len(nodes), *common[along:]))


@verb
def split(x: ArrayLike, parts: int | Sequence[int], axis: int = 0) -> tuple[Node, ...]:
    """Cut along an axis: into equal parts, or at the given places.

    Raises: ShapeError when equal parts do not come out even.

    >>> import symgrad as sg
    >>> [part.shape for part in sg.split(sg.ones((3, 5)), [1, 3], axis=1)]
    [(3, 1), (3, 2), (3, 2)]
    """
    node = as_node(x)
    along = one_axis("split", axis, node.ndim, node)
    extent = node.shape[along]
    if isinstance(parts, (int, np.integer)):
        if type(extent) is not int or parts < 1 or extent % parts:
            raise ShapeError(
                f"split: axis {along} of extent {extent} has no {parts} equal parts\n"
                f"  {describe(node)}"
            )
        places = [k * (extent // parts) for k in range(1, parts)]
    else:
        places = integers("split", "parts", parts)
    key: list[Any] = [slice(None)] * node.ndim
    cut: list[Node] = []
    for first, last in zip([None, *places], [*places, None], strict=True):
        key[along] = slice(first, last)
        cut.append(node[tuple(key)])
    return tuple(cut)


@verb
def pad(x: ArrayLike, widths: Any, value: ArrayLike = 0) -> Node:
    """Put `value` around: `widths` is one integer, one pair, or a pair per axis.

    Raises: ShapeError for widths below 0 or too few, or a value that is no scalar.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.pad([7], (1, 2)))
    array([0, 7, 0, 0], dtype=int32)
    """
    node = as_node(x)
    fill = cast(as_node(value, node.dtype), node.dtype)
    if fill.shape:
        raise ShapeError(f"pad: the value must be a scalar\n  {describe(fill)}")
    pairs = _widths(widths, node)
    rank = node.ndim
    if all(p == (0, 0) for p in pairs):
        return node
    shape = tuple(as_extent(a + e + b) for (a, b), e in zip(pairs, node.shape, strict=True))
    offset = tuple(a for a, _ in pairs)
    piece = Piece(node.shape, (0,) * rank, (1,) * rank, node.shape, offset, (1,) * rank)
    padded = Reindex((node,), (piece,), shape)
    if isinstance(fill, Constant) and not any(fill.value.tobytes()):  # 0, but not -0.0
        return padded
    inside: sympy.Expr | None = None
    for k, ((a, b), extent) in enumerate(zip(pairs, node.shape, strict=True)):
        tests = [fn.less_equal(a, AXIS[k])] if a else []
        tests += [fn.less(AXIS[k], a + extent)] if b else []
        for test in tests:
            inside = test if inside is None else fn.logical_and(inside, test)
    return Map((padded, fill), fn.select(inside, P[0], P[1]), shape, node.dtype)


def _widths(widths: Any, node: Node) -> list[tuple[int, int]]:
    given = [widths] if isinstance(widths, (int, np.integer)) else widths
    try:
        ends = [integers("", "", [w] if isinstance(w, (int, np.integer)) else w) for w in given]
    except (TypeError, ShapeError):
        ends = []
    if len(ends) == 1 or (len(ends) == 2 and all(isinstance(w, (int, np.integer)) for w in given)):
        ends = [[n for end in ends for n in end]] * node.ndim
    pairs = [(e[0], e[-1]) for e in ends if len(e) in (1, 2)]
    if not ends or len(pairs) != node.ndim or any(a < 0 or b < 0 for a, b in pairs):
        raise ShapeError(
            f"pad: widths must be nonnegative, one pair per axis, got {widths!r:.60}\n"
            f"  {describe(node)}"
        )
    return pairs


@verb
def repeat(x: ArrayLike, repeats: int, axis: int | None = None) -> Node:
    """Each element `repeats` times in a row; over the flattened array when `axis` is None.

    Raises: ShapeError for an axis that there is not.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.repeat([1, 2], 2))
    array([1, 1, 2, 2], dtype=int32)
    """
    node = as_node(x)
    if axis is None:
        node, axis = reshape(node, (-1,)), 0
    k = one_axis("repeat", axis, node.ndim, node)
    wide = expand_dims(node, k + 1)
    shape = (*node.shape[: k + 1], as_extent(repeats, "repeat"), *node.shape[k + 1 :])
    merged = as_extent(node.shape[k] * repeats)
    return reshape(broadcast_to(wide, shape), (*node.shape[:k], merged, *node.shape[k + 1 :]))


@verb
def tile(x: ArrayLike, repeats: int | Sequence[int]) -> Node:
    """The whole array repeated along its axes, as in NumPy.

    Raises: ShapeError for repeats below 0.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.tile([1, 2], 2))
    array([1, 2, 1, 2], dtype=int32)
    """
    node = as_node(x)
    counts = list(repeats) if isinstance(repeats, (tuple, list)) else [repeats]
    rank = builtins.max(node.ndim, len(counts))
    counts = [1] * (rank - len(counts)) + counts
    own = (1,) * (rank - node.ndim) + node.shape
    wide: list[Extent] = []
    for n, e in zip(counts, own, strict=True):
        wide += [as_extent(n, "tile"), e]
    spread = expand_dims(reshape(node, own), [2 * k for k in range(rank)])
    merged = tuple(as_extent(n * e) for n, e in zip(counts, own, strict=True))
    return reshape(broadcast_to(spread, tuple(wide)), merged)
