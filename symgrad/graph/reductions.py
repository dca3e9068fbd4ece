"""Reductions: sums and means, extrema, and the log-sum-exp family, stable by construction.

A sum is an Einsum; max, min, prod, argmax and argmin are Reduce. The exponentials are shifted by
the largest element `m` under `stop_gradient`: the value does not depend on `m`, so neither does the
derivative, and `d logsumexp = softmax` comes out with no term for the maximum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import sympy

from symgrad.graph import functions as fn
from symgrad.graph.arithmetic import (
    divide,
    equal,
    float_operands,
    not_equal,
    refuse_bool,
    same_bool,
    square,
    subtract,
)
from symgrad.graph.dims import Extent, size
from symgrad.graph.dtypes import BOOL, FLOAT32, INT32, is_float, is_int
from symgrad.graph.elementwise import sqrt
from symgrad.graph.errors import ShapeError
from symgrad.graph.functions import P
from symgrad.graph.leaves import ArrayLike, as_node, cast
from symgrad.graph.nodes import Map, Node, Reduce, ReduceOp, describe, einsum_node
from symgrad.graph.operators import verb
from symgrad.graph.provenance import named
from symgrad.graph.shapes import axes_of, expand_dims, one_axis, reshape

Axis: TypeAlias = "int | tuple[int, ...] | list[int] | None"

_SHIFT = fn.stop_gradient(fn.select(fn.isfinite(P[0]), P[0], 0))
_SHIFTED_EXP = fn.exp(P[0] - P[1])
_LOG_PLUS = fn.log(P[0]) + P[1]
_MINUS_LOG = P[0] - fn.log(P[1])
_DIFFERENCE = P[0] - P[1]


@verb
def sum(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """The sum over axes, by default over all. Integers keep their dtype; bool sums as int32.

    Sums start from 0.0, as NumPy's, so that zeros of either sign sum to 0.0; over an axis whose
    extent is written as 1 nothing is summed, and -0.0 stays.

    >>> sum(as_node([[1, 2, 3], [4, 5, 6]]), axis=1, keepdims=True).shape
    (2, 1)
    """
    node = as_node(x)
    return _sum(node, axes_of("sum", axis, node), keepdims)


def _sum(node: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    node = cast(node, INT32) if node.dtype == BOOL else node
    if not axes:
        return node
    rank = node.ndim
    kept = [k for k in range(rank) if k not in axes or keepdims]
    out = [k if k not in axes else rank + k for k in kept]
    return einsum_node((node,), (range(rank),), out, dict.fromkeys(range(rank, 2 * rank), 1))


@verb
def mean(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """The mean over axes, by default over all; of integers and bools in float32.

    >>> mean(as_node([1, 2])).dtype
    dtype('float32')
    """
    node = as_node(x)
    axes = axes_of("mean", axis, node)
    node = cast(node, FLOAT32) if is_int(node.dtype) else node
    total = _sum(node, axes, keepdims)
    total = total if is_float(total.dtype) else cast(total, FLOAT32)
    return _divide_by(total, size(node.shape[k] for k in axes))


def _divide_by(total: Node, count: Extent) -> Node:
    """`total / count`, where the count may be symbolic."""
    if type(count) is int:
        return divide(total, float(count)) if count != 1 else total
    return Map((total,), _over(count), total.shape, total.dtype)


@lru_cache(maxsize=256)
def _over(count: Extent) -> sympy.Expr:
    return P[0] / count


def _reduce(asked: ReduceOp, x: ArrayLike, axis: Axis, keepdims: bool) -> Node:
    node = as_node(x)
    axes = axes_of(asked, axis, node)
    if asked != "prod":
        for k in axes:
            if type(node.shape[k]) is int and node.shape[k] == 0:
                raise ShapeError(f"{asked}: axis {k} is empty\n  {describe(node)}")
    if node.dtype == BOOL:
        node = cast(node, INT32)
    if not axes:
        return node
    reduced: Node = Reduce((node,), asked, axes)
    return expand_dims(reduced, axes) if keepdims else reduced


@verb
def max(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """The largest element over axes, by default over all; NaN where there is one.

    Which of 0.0 and -0.0 it returns, when both are largest, is open.

    Derivative: equal largest elements share it. Raises: ShapeError over an axis that is empty.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.max([[1.0, 5.0], [3.0, 2.0]], axis=1))
    array([5., 3.], dtype=float32)
    """
    node = as_node(x)
    reduced = _reduce("max", node, axis, keepdims)
    return cast(reduced, node.dtype)


@verb
def min(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """The smallest element over axes, by default over all; NaN where there is one.

    Which of 0.0 and -0.0 it returns, when both are smallest, is open.

    Derivative: equal smallest elements share it. Raises: ShapeError over an axis that is empty.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.min([[1.0, 5.0], [3.0, 2.0]], axis=1))
    array([1., 2.], dtype=float32)
    """
    node = as_node(x)
    reduced = _reduce("min", node, axis, keepdims)
    return cast(reduced, node.dtype)


@verb
def prod(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """The product over axes, by default over all; 1 over an empty axis.

    Derivative: `d/dx[j] = prod_(i != j) x[i]`, right at zeros too.
    Raises: ShapeError for an axis that there is not.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.prod([[1.0, 5.0], [3.0, 2.0]], axis=1))
    array([5., 6.], dtype=float32)
    """
    return _reduce("prod", x, axis, keepdims)


def _position(asked: ReduceOp, x: ArrayLike, axis: int | None, keepdims: bool) -> Node:
    node = as_node(x)
    rank = node.ndim
    if axis is None:
        flat = _reduce(asked, reshape(node, (-1,)), 0, False)
        return expand_dims(flat, tuple(range(rank))) if keepdims else flat
    return _reduce(asked, node, one_axis(asked, axis, rank, node), keepdims)


@verb
def argmax(x: ArrayLike, axis: int | None = None, keepdims: bool = False) -> Node:
    """The place of the largest element, the first of equals, as int32; of all by default.

    >>> argmax(as_node([[1.0, 3.0], [2.0, 0.0]]), axis=1).dtype
    dtype('int32')
    """
    return _position("argmax", x, axis, keepdims)


@verb
def argmin(x: ArrayLike, axis: int | None = None, keepdims: bool = False) -> Node:
    """The place of the smallest element, the first of equals, as int32; of all by default.

    As `argmax` otherwise.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.argmin([[1.0, 5.0], [3.0, 2.0]], axis=1))
    array([0, 1], dtype=int32)
    """
    return _position("argmin", x, axis, keepdims)


@verb
@named
def var(x: ArrayLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Node:
    """The mean squared distance from the mean, `sum (x - mean)^2 / (n - ddof)`.

    Two passes: no digits cancel. Integers enter as float32.
    Raises: DTypeError for bool, ShapeError.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.var([1.0, 2.0, 3.0, 6.0], ddof=1))
    array(4.6666665, dtype=float32)
    """
    node = as_node(x)
    refuse_bool("var", node)
    node = node if is_float(node.dtype) else cast(node, FLOAT32)
    axes = axes_of("var", axis, node)
    distance = subtract(node, mean(node, axes, keepdims=True))
    count = size(node.shape[k] for k in axes) - ddof
    return _divide_by(_sum(square(distance), axes, keepdims), count)


@verb
@named
def std(x: ArrayLike, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Node:
    """The square root of `var`.

    Derivative: `(x - mean) / (n - ddof) / std`, which is 0/0, NaN, where all elements are equal.
    Where that may happen, add a small number to the variance: `sqrt(var(x) + 1e-5)`.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.std([1.0, 3.0]))
    array(1., dtype=float32)
    """
    return sqrt(var(x, axis, keepdims, ddof))


@verb
@named
def any(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """Whether some element is true, or not 0; false over an empty axis. NaN is not 0.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.any([[0, 2], [0, 0]], axis=1))
    array([ True, False])
    """
    return not_equal(sum(same_bool(as_node(x)), axis, keepdims), 0)


@verb
@named
def all(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """Whether every element is true, or not 0; true over an empty axis. NaN is not 0.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.all([[1, 2], [0, 3]], axis=1))
    array([ True, False])
    """
    return equal(sum(equal(as_node(x), 0), axis, keepdims), 0)


# -- running forms --------------------------------------------------------------------------------
def _running(op: ReduceOp, x: ArrayLike, axis: int | None) -> Node:
    node = as_node(x)
    node = cast(node, INT32) if node.dtype == BOOL else node
    if axis is None:
        node, axis = reshape(node, (-1,)), 0
    return Reduce((node,), op, (one_axis(op, axis, node.ndim, node),))


@verb
def cumsum(x: ArrayLike, axis: int | None = None) -> Node:
    """The running sum along an axis, `out[k] = x[0] + .. + x[k]`; of the flat array by default.

    Cotangent: the running sum from the end. Bool sums as int32.
    Raises: ShapeError for an axis that there is not.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.cumsum([1, 2, 3]))
    array([1, 3, 6], dtype=int32)
    """
    return _running("cumsum", x, axis)


@verb
def cumprod(x: ArrayLike, axis: int | None = None) -> Node:
    """The running product along an axis, `out[k] = x[0] .. x[k]`; of the flat array by default.

    Its derivative is right at zeros too.
    Raises: ShapeError for an axis that there is not.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.cumprod([1, 2, 3]))
    array([1, 2, 6], dtype=int32)
    """
    return _running("cumprod", x, axis)


# -- exponentials ---------------------------------------------------------------------------------
def shifted(x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
    """The shift `m = max x`, 0 where that is not finite: without `axes`, and with axes of one."""
    largest = _reduce("max", x, axes, False)
    shift = Map((largest,), _SHIFT, largest.shape, largest.dtype)
    return shift, expand_dims(shift, axes)


def exponentials(x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
    """The shift m without `axes`, and `e^(x - m)`."""
    shift, wide = shifted(x, axes)
    return shift, Map((x, wide), _SHIFTED_EXP, x.shape, x.dtype)


@verb
@named
def logsumexp(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Node:
    """`log sum e^x` over axes, without overflow: `log sum e^(x - m) + m`, m the largest element.

    Derivative: softmax. Raises: ShapeError over an axis that is empty, which has no maximum;
    written out, `log(sum(exp(x)))` is -inf there.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.logsumexp([-800.0, -805.0]))
    array(-799.9933, dtype=float32)
    """
    (node,) = float_operands("logsumexp", x)
    axes = axes_of("logsumexp", axis, node)
    shift, e = exponentials(node, axes)
    total = _sum(e, axes, False)
    result: Node = Map((total, shift), _LOG_PLUS, total.shape, total.dtype)
    return expand_dims(result, axes) if keepdims else result


@verb
@named
def softmax(x: ArrayLike, axis: Axis = -1) -> Node:
    """`e^x / sum e^x` along an axis, without overflow.

    Beside +inf everything is 0, its limit, and +inf itself becomes NaN: `inf / inf`. A row of -inf
    is NaN.

    Derivative: `s (x_t - sum s x_t)`, s the softmax. Raises: ShapeError over an axis that is empty.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.softmax([[1000.0, 1000.0]]))
    array([[0.5, 0.5]], dtype=float32)
    """
    (node,) = float_operands("softmax", x)
    axes = axes_of("softmax", axis, node)
    _, e = exponentials(node, axes)
    return divide(e, _sum(e, axes, True))


@verb
@named
def log_softmax(x: ArrayLike, axis: Axis = -1) -> Node:
    """`x - log sum e^x` along an axis, without overflow.

    Derivative: `x_t - sum softmax(x) x_t`. Raises: ShapeError over an axis that is empty.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.log_softmax([0.0, -1000.0]))
    array([    0., -1000.], dtype=float32)
    """
    (node,) = float_operands("log_softmax", x)
    axes = axes_of("log_softmax", axis, node)
    _, wide = shifted(node, axes)
    distance = Map((node, wide), _DIFFERENCE, node.shape, node.dtype)
    e = Map((distance,), fn.exp(P[0]), node.shape, node.dtype)
    total = _sum(e, axes, True)
    return Map((distance, total), _MINUS_LOG, node.shape, node.dtype)
