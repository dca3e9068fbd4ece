"""Arithmetic, comparison and choice, elementwise with NumPy's broadcasting.

Each verb is one Map over one shared scalar body; literals come in as constants, so that a thousand
different numbers still share one body. Operands meet in one dtype before the body sees them: an
integer that meets a float is cast to the float's type, and bool enters `+` and `*` as an integer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy

from symgrad.graph import functions as fn
from symgrad.graph.dtypes import (
    BOOL,
    FLOAT32,
    DType,
    DTypeLike,
    as_dtype,
    is_bool,
    is_float,
    is_int,
    promote,
)
from symgrad.graph.errors import DTypeError
from symgrad.graph.functions import P
from symgrad.graph.leaves import ArrayLike, as_node, cast, ones_like, operands
from symgrad.graph.nodes import Map, Node, broadcast, describe
from symgrad.graph.operators import verb

_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE = P[0] + P[1], P[0] - P[1], P[0] * P[1], P[0] / P[1]
_NEGATIVE, _SQUARE, _RECIPROCAL = -P[0], P[0] ** 2, 1 / P[0]
_BODY = {name: f.cls(*P[: f.arity]) for name, f in fn.FUNCTIONS.items()}
_CLIP = fn.minimum(fn.maximum(P[0], P[1]), P[2])
_POWERS = 64
"""Integer exponents up to this size are written as products; larger ones call `pow`."""


def refuse_bool(asked: str, *nodes: Node) -> None:
    """Say how bool enters arithmetic.

    Raises: DTypeError when one of the nodes is bool.
    """
    if any(n.dtype == BOOL for n in nodes):
        lines = "\n".join(f"  {describe(n)}" for n in nodes)
        raise DTypeError(
            f"{asked}: no arithmetic on bool\n{lines}\n"
            "  Cast first: astype(x, 'float32'), or choose: where(x, a, b)."
        )


def _meet(asked: str, a: ArrayLike, b: ArrayLike, bools: bool = False) -> tuple[Node, Node]:
    """Both operands in the dtype in which they meet."""
    x, y = operands(a, b)
    if x.dtype == y.dtype and x.dtype != BOOL:
        return x, y
    if not bools:
        refuse_bool(asked, x, y)
    dtype = promote(x.dtype, y.dtype)
    return cast(x, dtype), cast(y, dtype)


def _binary(asked: str, body: sympy.Expr, x: Node, y: Node, dtype: DType | None = None) -> Node:
    shape = x.shape if x.shape == y.shape else broadcast((x, y), asked)
    return Map((x, y), body, shape, x.dtype if dtype is None else dtype)


@verb
def add(a: ArrayLike, b: ArrayLike) -> Node:
    """`a + b`. Two bools meet as in NumPy: `a or b`.

    >>> add(1.0, 2).dtype
    dtype('float32')
    """
    x, y = _meet("add", a, b, bools=True)
    return _binary("add", _ADD if x.dtype != BOOL else _BODY["logical_or"], x, y)


@verb
def subtract(a: ArrayLike, b: ArrayLike) -> Node:
    """`a - b`, elementwise.

    Raises: DTypeError for bool, ShapeError where shapes do not broadcast.
    """
    return _binary("subtract", _SUBTRACT, *_meet("subtract", a, b))


@verb
def multiply(a: ArrayLike, b: ArrayLike) -> Node:
    """`a * b`. Two bools meet as in NumPy: `a and b`."""
    x, y = _meet("multiply", a, b, bools=True)
    return _binary("multiply", _MULTIPLY if x.dtype != BOOL else _BODY["logical_and"], x, y)


@verb
def divide(a: ArrayLike, b: ArrayLike) -> Node:
    """`a / b`; integers divide in float32."""
    x, y = _meet("divide", a, b)
    if is_int(x.dtype):
        x, y = cast(x, FLOAT32), cast(y, FLOAT32)
    return _binary("divide", _DIVIDE, x, y)


@verb
def floor_divide(a: ArrayLike, b: ArrayLike) -> Node:
    """The largest integer not above `a / b`."""
    return _binary("floor_divide", _BODY["floor_divide"], *_meet("floor_divide", a, b))


@verb
def mod(a: ArrayLike, b: ArrayLike) -> Node:
    """`a - b floor(a / b)`: the remainder, with the sign of `b`."""
    return _binary("mod", _BODY["mod"], *_meet("mod", a, b))


@verb
def power(a: ArrayLike, b: ArrayLike) -> Node:
    """`a ** b`.

    A literal integer exponent makes a product, 0.5 a square root, -0.5 its reciprocal. An integer
    to a negative integer is a division, thus float32.
    Derivative: `b a^(b-1)` by a, zero where b = 0; `a^b log a` by b, zero where a = 0.

    >>> x = as_node([1.0, 2.0])
    >>> power(x, 2).body
    p0**2
    """
    exponent = _literal(b)
    if exponent is not None and isinstance(a, (Node, np.ndarray, list, tuple)):
        x = as_node(a)
        refuse_bool("power", x)
        if isinstance(b, (float, np.floating)) and not is_float(x.dtype):
            x = cast(x, FLOAT32)
        if exponent == 0:
            return ones_like(x)
        if exponent == 1:
            return x
        if abs(exponent) == 0.5:
            body = _BODY["sqrt" if exponent > 0 else "rsqrt"]
            return Map((x,), body, x.shape, x.dtype)
        if exponent == int(exponent) and abs(exponent) <= _POWERS:
            if exponent < 0:
                x = cast(x, FLOAT32) if is_int(x.dtype) else x
            return Map((x,), P[0] ** int(exponent), x.shape, x.dtype)
    return _binary("power", _BODY["pow"], *_meet("power", a, b))


def _literal(b: object) -> float | None:
    """The exponent as a number when it is a literal that has a form of its own."""
    if isinstance(b, (bool, np.bool_)) or not isinstance(b, (int, float, np.integer, np.floating)):
        return None
    value = float(b)
    return value if abs(value) == 0.5 or value.is_integer() else None


@verb
def negative(x: ArrayLike) -> Node:
    """`-x`."""
    node = as_node(x)
    refuse_bool("negative", node)
    return Map((node,), _NEGATIVE, node.shape, node.dtype)


@verb
def positive(x: ArrayLike) -> Node:
    """`x`."""
    return as_node(x)


@verb
def square(x: ArrayLike) -> Node:
    """`x ** 2`, in the dtype of `x`.

    Derivative: `2 x`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.square([3, -2]))
    array([9, 4], dtype=int32)
    """
    node = as_node(x)
    refuse_bool("square", node)
    return Map((node,), _SQUARE, node.shape, node.dtype)


@verb
def reciprocal(x: ArrayLike) -> Node:
    """`1 / x`; of integers in float32.

    Derivative: `-1 / x^2`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.reciprocal([2, 0]))
    array([0.5, inf], dtype=float32)
    """
    node = as_node(x)
    refuse_bool("reciprocal", node)
    node = cast(node, FLOAT32) if is_int(node.dtype) else node
    return Map((node,), _RECIPROCAL, node.shape, node.dtype)


# -- comparison and logic -------------------------------------------------------------------------
def _compare(asked: str, a: ArrayLike, b: ArrayLike) -> Node:
    x, y = _meet(asked, a, b, bools=True)
    return _binary(asked, _BODY[asked], x, y, BOOL)


@verb
def equal(a: ArrayLike, b: ArrayLike) -> Node:
    """`a == b`; false where one is NaN."""
    return _compare("equal", a, b)


@verb
def not_equal(a: ArrayLike, b: ArrayLike) -> Node:
    """`a != b`; true where one is NaN."""
    return _compare("not_equal", a, b)


@verb
def less(a: ArrayLike, b: ArrayLike) -> Node:
    """`a < b`."""
    return _compare("less", a, b)


@verb
def less_equal(a: ArrayLike, b: ArrayLike) -> Node:
    """`a <= b`."""
    return _compare("less_equal", a, b)


@verb
def greater(a: ArrayLike, b: ArrayLike) -> Node:
    """`a > b`, written `b < a`."""
    return _compare("less", b, a)


@verb
def greater_equal(a: ArrayLike, b: ArrayLike) -> Node:
    """`a >= b`, written `b <= a`."""
    return _compare("less_equal", b, a)


def _logical(asked: str, *values: ArrayLike) -> Node:
    nodes = operands(*values)
    if any(n.dtype != BOOL for n in nodes):
        lines = "\n".join(f"  {describe(n)}" for n in nodes)
        raise DTypeError(f"{asked}: needs bool\n{lines}\n  Compare first: x != 0.")
    return Map(nodes, _BODY[asked], broadcast(nodes, asked), BOOL)


@verb
def logical_and(a: ArrayLike, b: ArrayLike) -> Node:
    """`a & b`, of bools."""
    return _logical("logical_and", a, b)


@verb
def logical_or(a: ArrayLike, b: ArrayLike) -> Node:
    """`a | b`, of bools."""
    return _logical("logical_or", a, b)


@verb
def logical_xor(a: ArrayLike, b: ArrayLike) -> Node:
    """`a ^ b`, of bools."""
    return _logical("logical_xor", a, b)


@verb
def logical_not(x: ArrayLike) -> Node:
    """`~x`, of a bool."""
    return _logical("logical_not", x)


# -- choice ---------------------------------------------------------------------------------------
def _extremum(asked: str, logic: str, a: ArrayLike, b: ArrayLike) -> Node:
    x, y = _meet(asked, a, b, bools=True)
    return _binary(asked, _BODY[asked if x.dtype != BOOL else logic], x, y)


@verb
def maximum(a: ArrayLike, b: ArrayLike) -> Node:
    """The larger of two, NaN where one is NaN; of 0.0 and -0.0 the second, as NumPy.

    Derivative: equal operands share it. Raises: ShapeError where shapes do not broadcast.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.maximum([1.0, float("nan")], 2.0))
    array([ 2., nan], dtype=float32)
    """
    return _extremum("maximum", "logical_or", a, b)


@verb
def minimum(a: ArrayLike, b: ArrayLike) -> Node:
    """The smaller of two, NaN where one is NaN; of 0.0 and -0.0 the second, as NumPy.

    Derivative: equal operands share it. Raises: ShapeError where shapes do not broadcast.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.minimum([1.0, float("nan")], 2.0))
    array([ 1., nan], dtype=float32)
    """
    return _extremum("minimum", "logical_and", a, b)


@verb
def where(condition: ArrayLike, a: ArrayLike, b: ArrayLike) -> Node:
    """`a` where the condition holds, else `b`.

    Derivative: only the chosen value receives it.
    Raises: DTypeError when the condition is not bool.

    >>> x = as_node([-1.0, 2.0])
    >>> where(x > 0, x, 0).dtype
    dtype('float32')
    """
    test = as_node(condition)
    x, y = operands(a, b)
    if test.dtype != BOOL:
        raise DTypeError(
            f"where: the condition must be bool\n  {describe(test)}\n  Compare first: x != 0."
        )
    dtype = promote(x.dtype, y.dtype)
    nodes = (test, cast(x, dtype), cast(y, dtype))
    return Map(nodes, _BODY["select"], broadcast(nodes, "where"), dtype)


@verb
def clip(x: ArrayLike, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Node:
    """`min(max(x, low), high)`; a bound of None is no bound, NaN stays NaN.

    Derivative: 1 between the bounds, 0 outside, 1/2 on one, as for `maximum`.
    Raises: DTypeError for bool, ShapeError where shapes do not broadcast.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.clip([-1.0, 0.5, 2.0], 0, 1))
    array([0. , 0.5, 1. ], dtype=float32)
    """
    if low is None or high is None:
        if high is not None:
            return minimum(x, high)
        return as_node(x) if low is None else maximum(x, low)
    nodes = operands(x, low, high)
    refuse_bool("clip", *nodes)
    dtype = promote(*(n.dtype for n in nodes))
    nodes = tuple(cast(n, dtype) for n in nodes)
    return Map(nodes, _CLIP, broadcast(nodes, "clip"), dtype)


@verb
def astype(x: ArrayLike, dtype: DTypeLike) -> Node:
    """`x` in another dtype. Floats are cut towards zero; `bool` is `x != 0`.

    What integer NaN, infinities and floats out of range become is open, as in NumPy.
    Derivative: between floats itself, else 0. Raises: DTypeError for a dtype that there is not.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.astype([1.9, -1.9], "int32"))
    array([ 1, -1], dtype=int32)
    """
    return cast(as_node(x), as_dtype(dtype))


def unary(name: str, x: ArrayLike) -> Node:
    """The float function of that name, once; integers enter as float32.

    Raises: DTypeError for bool.
    """
    node = as_node(x)
    if not is_float(node.dtype):
        refuse_bool(name, node)
        node = cast(node, FLOAT32)
    return Map((node,), _BODY[name], node.shape, node.dtype)


def unary_same(name: str, x: ArrayLike) -> Node:
    """The function of that name that keeps integers."""
    node = as_node(x)
    refuse_bool(name, node)
    return Map((node,), _BODY[name], node.shape, node.dtype)


def float_operands(asked: str, *values: Any) -> tuple[Node, ...]:
    """Operands in one float dtype."""
    nodes = operands(*values)
    refuse_bool(asked, *nodes)
    dtype = promote(*(n.dtype for n in nodes))
    dtype = dtype if is_float(dtype) else FLOAT32
    return tuple(cast(n, dtype) for n in nodes)


def same_bool(x: Node) -> Node:
    """`x != 0` as bool; itself when it is bool."""
    return x if is_bool(x.dtype) else not_equal(x, 0)
