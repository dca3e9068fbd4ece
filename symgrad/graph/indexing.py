"""Reads at positions: slices are affine moves (Reindex), integer expressions are Gather."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import sympy

from symgrad.graph import functions as fn
from symgrad.graph.dims import Extent, as_extent, same
from symgrad.graph.dtypes import BOOL, DTypeLike, as_dtype, is_bool, is_int
from symgrad.graph.errors import DTypeError, ShapeError
from symgrad.graph.functions import AXIS, P
from symgrad.graph.leaves import ArrayLike, as_node
from symgrad.graph.nodes import Gather, Map, Node, broadcast, describe
from symgrad.graph.operators import verb
from symgrad.graph.shapes import (
    broadcast_to,
    expand_dims,
    one_axis,
    reshape,
    sliced,
    squeeze,
)

ONE = (int, sympy.Expr)
"""What names one position of an axis: an integer, or one that depends on dims."""


@verb
def getitem(x: ArrayLike, key: Any) -> Node:
    """`x[key]` as in NumPy: integers, slices, None, `...`, and integer arrays or expressions.

    Slices of a symbolic axis count from either end; a start or stop inside it is checked when
    values arrive. Integer expressions read like NumPy's integer arrays: several broadcast together.

    Raises: ShapeError for an index that does not fit, DTypeError for a boolean or float one.

    >>> getitem(as_node([[1.0, 2.0, 3.0]]), (0, slice(None, None, -1))).shape
    (3,)
    """
    node = as_node(x)
    keys = list(key) if isinstance(key, tuple) else [key]
    keys = [_checked(node, k) for k in keys]
    keys = _spelled_out(node, keys)
    advanced = builtins.any(isinstance(k, Node) for k in keys)
    start: list[Extent] = []
    step: list[int] = []
    count: list[Extent] = []
    for axis, k in enumerate(k for k in keys if k is not None):
        extent = node.shape[axis]
        if isinstance(k, Node) or (advanced and isinstance(k, ONE)):
            k = slice(None)
        begin, stride, n = _part(node, axis, extent, k)
        start.append(begin)
        step.append(stride)
        count.append(n)
    moved = sliced(node, tuple(start), tuple(step), tuple(count))
    if not advanced:
        moved = _dropped(moved, keys)
        new = [p for p, k in enumerate(k for k in keys if not isinstance(k, ONE)) if k is None]
        return expand_dims(moved, new) if new else moved
    return _gathered(moved, keys)


def _checked(node: Node, k: Any) -> Any:
    """One part of an index: an int, a slice, None, an ellipsis or an integer node."""
    if k is None or k is Ellipsis or isinstance(k, slice):
        return k
    if isinstance(k, (bool, np.bool_)):
        raise _no_bool(node)
    if isinstance(k, (int, np.integer)):
        return int(k)
    if isinstance(k, sympy.Expr):
        position = sympy.expand(k)
        return int(position) if position.is_Integer else position
    index = as_node(k)
    if is_bool(index.dtype):
        raise _no_bool(node)
    if not is_int(index.dtype):
        raise DTypeError(
            f"index: positions must be integers\n  {describe(node)}\n  {describe(index)}\n"
            "  Cast with astype(index, 'int32')."
        )
    return index


def _no_bool(node: Node) -> DTypeError:
    return DTypeError(
        f"index: a boolean index makes a shape that depends on the data\n  {describe(node)}\n"
        "  Keep the shape and choose with where(mask, x, 0)."
    )


def _spelled_out(node: Node, keys: list[Any]) -> list[Any]:
    """The index with its ellipsis written out and all axes named."""
    used = len([k for k in keys if k is not None and k is not Ellipsis])
    ellipses = [p for p, k in enumerate(keys) if k is Ellipsis]
    if used > node.ndim or len(ellipses) > 1:
        what = "more than one '...'" if len(ellipses) > 1 else f"{used} indices"
        raise ShapeError(f"index: {what} for {node.ndim} axes\n  {describe(node)}")
    rest = [slice(None)] * (node.ndim - used)
    place = ellipses[0] if ellipses else len(keys)
    return keys[:place] + rest + keys[place + 1 :]


def _part(node: Node, axis: int, extent: Extent, k: Any) -> tuple[Extent, int, Extent]:
    """Start, step and count of an integer or a slice along one axis."""
    if isinstance(k, sympy.Expr):
        return k, 1, 1
    if isinstance(k, int):
        if type(extent) is int and not -extent <= k < extent:
            raise ShapeError(
                f"index: {k} is out of range for axis {axis} of extent {extent}\n  {describe(node)}"
            )
        return (k if k >= 0 else _sum(extent, k)), 1, 1
    step = 1 if k.step is None else k.step
    ends = (k.start, k.stop)
    if not isinstance(step, (int, np.integer)) or step == 0:
        raise ShapeError(
            f"index: a slice's step must be an integer other than 0\n  {describe(node)}"
        )
    if type(extent) is int and builtins.all(
        e is None or isinstance(e, (int, np.integer)) for e in ends
    ):
        where = range(*slice(k.start, k.stop, int(step)).indices(extent))
        return (where.start if len(where) else 0), int(step), len(where)
    return _symbolic_part(node, axis, extent, k, int(step))


def _symbolic_part(
    node: Node, axis: int, extent: Extent, k: slice, step: int
) -> tuple[Extent, int, Extent]:
    """A slice of a symbolic axis, or with a symbolic end; that it fits is checked at call."""
    first = _end(extent, k.start, 0 if step > 0 else _sum(extent, -1))
    last = _end(extent, k.stop, extent if step > 0 else -1)
    length = _sum(last, -first) if step > 0 else _sum(first, -last)
    if abs(step) == 1:
        return first, step, as_extent(length, "index")
    if type(length) is int:
        return first, step, -(-length // abs(step))
    raise ShapeError(
        f"index: a step of {step} over a symbolic length {length} on axis {axis}\n"
        f"  {describe(node)}\n"
        "  Reshape to (-1, step) and take one column, or give the axis a number."
    )


def _end(extent: Extent, value: Any, default: Extent) -> Extent:
    if value is None:
        return default
    if isinstance(value, (int, np.integer)):
        return int(value) if value >= 0 else _sum(extent, int(value))
    if isinstance(value, sympy.Expr):
        return as_extent(value, "index")
    raise ShapeError(f"index: a slice's ends must be integers or dims, got {value!r}.")


def _sum(a: Extent, b: Extent) -> Extent:
    total = a + b
    if type(total) is int:
        return total
    total = sympy.expand(total)
    return int(total) if total.is_Integer else total


def _dropped(moved: Node, keys: list[Any]) -> Node:
    ints = [a for a, k in enumerate(k for k in keys if k is not None) if isinstance(k, ONE)]
    return squeeze(moved, ints) if ints else moved


def _gathered(node: Node, keys: list[Any]) -> Node:
    """The read at integer expressions; integers join them, as in NumPy."""
    indices = [as_node(k) for k in keys if isinstance(k, (*ONE, Node))]
    shape = broadcast(indices, "index")
    indices = [i if not i.ndim else broadcast_to(i, shape) for i in indices]
    rank = len(shape)
    index_labels = tuple(tuple(range(rank)) if i.ndim else () for i in indices)
    axes: list[int] = []
    out: list[int | None] = []
    places = [p for p, k in enumerate(keys) if isinstance(k, (*ONE, Node))]
    together = places[-1] - places[0] == len(places) - 1
    label, position, met = rank, 0, 0
    for k in keys:
        if isinstance(k, (*ONE, Node)):
            axes.append(~met)
            met += 1
            if together and met == 1:
                position = len(out)
        elif k is None:
            out.append(None)
        else:
            axes.append(label)
            out.append(label)
            label += 1
    full = [*out[:position], *range(rank), *out[position:]]
    read = Gather(
        (node, *indices), tuple(axes), index_labels, tuple(k for k in full if k is not None)
    )
    new = [p for p, k in enumerate(full) if k is None]
    return expand_dims(read, new) if new else read


@verb
def take(x: ArrayLike, indices: ArrayLike, axis: int | None = None) -> Node:
    """The elements at integer positions along an axis; of the flat array by default.

        out[.., i.., ..] = x[.., indices[i..], ..]

    Raises: DTypeError for positions that are no integers; DataError when they are out of range.

    >>> take(as_node([[1.0, 2.0], [3.0, 4.0]]), [1, 0, 1], axis=0).shape
    (3, 2)
    """
    node = as_node(x)
    if axis is None:
        node, axis = reshape(node, (-1,)), 0
    k = one_axis("take", axis, node.ndim, node)
    return getitem(node, (*[slice(None)] * k, _positions("take", indices)))


def _positions(asked: str, indices: ArrayLike) -> Node:
    index = as_node(indices)
    if not is_int(index.dtype):
        raise DTypeError(f"{asked}: positions must be integers\n  {describe(index)}")
    return index


@verb
def take_along_axis(x: ArrayLike, indices: ArrayLike, axis: int) -> Node:
    """One position per row: `out[.., i, ..] = x[.., indices[.., i, ..], ..]`; other axes agree.

    Raises: ShapeError where they do not; DTypeError for positions that are no integers; DataError
    when they are out of range.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.take_along_axis([[5, 6], [7, 8]], [[1], [0]], axis=1))
    array([[6],
           [7]], dtype=int32)
    """
    node, index = as_node(x), _positions("take_along_axis", indices)
    k = one_axis("take_along_axis", axis, node.ndim, node)
    if index.ndim != node.ndim or builtins.any(
        a != k and same(e, f) is False
        for a, (e, f) in enumerate(zip(node.shape, index.shape, strict=True))
    ):
        raise ShapeError(
            f"take_along_axis: shapes must agree besides axis {k}\n"
            f"  {describe(node)}\n  {describe(index)}"
        )
    labels = tuple(range(node.ndim))
    source = tuple(~0 if a == k else a for a in labels)
    return Gather((node, index), source, (labels,), labels)


@verb
def one_hot(indices: ArrayLike, classes: object, dtype: DTypeLike = "float32") -> Node:
    """`out[.., k] = (indices[..] == k)` for k below `classes`; a position out of range gives zeros.

    Raises: DTypeError for positions that are no integers.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.one_hot([2, 0], 3))
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    index = _positions("one_hot", indices)
    extent = as_extent(classes, "one_hot")
    wide = expand_dims(index, index.ndim)
    test: sympy.Expr = fn.equal(P[0], AXIS[index.ndim])
    kind = as_dtype(dtype)
    body = test if kind == BOOL else fn.CAST[kind](test)
    return Map((wide,), body, (*index.shape, extent), kind)


def _triangle(asked: str, x: ArrayLike, k: int, lower: bool) -> Node:
    node = as_node(x)
    if node.ndim < 2:
        raise ShapeError(f"{asked}: needs two axes\n  {describe(node)}")
    i, j = AXIS[node.ndim - 2], AXIS[node.ndim - 1]
    test = fn.less_equal(j, i + k) if lower else fn.less_equal(i + k, j)
    return Map((node,), fn.select(test, P[0], 0), node.shape, node.dtype)


@verb
def tril(x: ArrayLike, k: int = 0) -> Node:
    """The elements on and below the k-th diagonal of the last two axes, else 0.

    Raises: ShapeError for fewer than two axes.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.tril([[1, 2], [3, 4]]))
    array([[1, 0],
           [3, 4]], dtype=int32)
    """
    return _triangle("tril", x, k, True)


@verb
def triu(x: ArrayLike, k: int = 0) -> Node:
    """The elements on and above the k-th diagonal of the last two axes, else 0.

    Raises: ShapeError for fewer than two axes.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.triu([[1, 2], [3, 4]]))
    array([[1, 2],
           [0, 4]], dtype=int32)
    """
    return _triangle("triu", x, k, False)
