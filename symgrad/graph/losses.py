"""Losses: one value per row or element, no reduction. Take the mean of them to train."""

from __future__ import annotations

import numpy as np

from symgrad.graph import functions as fn
from symgrad.graph.arithmetic import float_operands, square, subtract
from symgrad.graph.dims import same
from symgrad.graph.dtypes import is_int
from symgrad.graph.errors import DataError, DTypeError, ShapeError
from symgrad.graph.functions import P
from symgrad.graph.leaves import ArrayLike, as_node
from symgrad.graph.nodes import Constant, Gather, Node, describe, map_node
from symgrad.graph.operators import verb
from symgrad.graph.provenance import named
from symgrad.graph.reductions import exponentials, sum

_LOG_PLUS = fn.log(P[0]) + P[1]
_RIGHT, _WRONG = P[1] * fn.softplus(-P[0]), (1 - P[1]) * fn.softplus(P[0])
# a term without weight is 0 even where its softplus is infinite
_LOGISTIC = fn.select(
    fn.isfinite(P[0]),
    _RIGHT + _WRONG,
    fn.select(fn.equal(P[1], 0), 0, _RIGHT) + fn.select(fn.equal(P[1], 1), 0, _WRONG),
)


@verb
@named
def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Node:
    """The negative log-probability of each row's label under softmax.

        out[..] = log sum_k e^(logits[.., k] - m[..]) + m[..] - logits[.., labels[..]],   m = max_k

    Stable by construction: nothing overflows, and large logits cancel before the logarithm comes.

    Args:
        logits: float (*rows, K).
        labels: integers (*rows) in 0..K-1. Negative ones do not wrap: a label -1 is an error.
    Raises: ShapeError, DTypeError; DataError when labels out of range arrive.
    Cotangent: `softmax - onehot(label)`.

    >>> cross_entropy(as_node([[1.0, 2.0, 3.0]]), [2]).shape
    (1,)
    """
    (x,) = float_operands("cross_entropy", logits)
    y = as_node(labels)
    if not is_int(y.dtype):
        raise DTypeError(
            f"cross_entropy: labels must be integers\n  {describe(y)}\n"
            '  Declare them with dtype="int32"; take argmax of one-hot rows.'
        )
    if (
        not x.ndim
        or x.ndim != y.ndim + 1
        or any(same(a, b) is False for a, b in zip(x.shape, y.shape, strict=False))
    ):
        raise ShapeError(
            f"cross_entropy: needs logits (*rows, K) and labels (*rows)\n"
            f"  {describe(x)}\n  {describe(y)}"
        )
    rows = tuple(range(y.ndim))
    shift, e = exponentials(x, (x.ndim - 1,))
    total = sum(e, -1)
    if isinstance(y, Constant) and isinstance(n := x.shape[-1], int):
        for k in np.argwhere((y.value < 0) | (y.value >= n))[:1].tolist():
            bad = y.value[tuple(k)]
            raise DataError(
                f"cross_entropy: label {bad} is out of range for extent {n}\n"
                f"  {describe(x)}\n  {describe(y)}\n  Labels must lie in 0..{n - 1}."
            )
    picked = Gather((x, y), (*rows, ~0), (rows,), rows, wrap=False)
    return map_node(_LOG_PLUS, (total, subtract(shift, picked)), asked="cross_entropy")


@verb
@named
def mse(a: ArrayLike, b: ArrayLike) -> Node:
    """The squared distance of each element, `(a - b)^2`.

    Raises: DTypeError for bool, ShapeError where shapes do not broadcast.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.mse([1.0, 2.0], [3.0, 2.0]))
    array([4., 0.], dtype=float32)
    """
    return square(subtract(*float_operands("mse", a, b)))


@verb
@named
def binary_cross_entropy(logits: ArrayLike, targets: ArrayLike) -> Node:
    """The negative log-probability of each target under sigmoid.

        out = t softplus(-x) + (1 - t) softplus(x)

    Neither term overflows, and neither cancels the other. At infinite logits a term whose weight
    is 0 counts as 0: the right answer costs 0 however sure it is, a wrong one infinitely much.

    Args:
        logits:  any shape.
        targets: probabilities or labels 0 and 1; integers are cast.
    Raises: DTypeError for bool, ShapeError where shapes do not broadcast.
    Cotangent: `sigmoid(x) - t` by the logits, `-x` by the targets.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.binary_cross_entropy([1000.0, 0.0], [1, 1]))
    array([0.       , 0.6931472], dtype=float32)
    """
    x, t = float_operands("binary_cross_entropy", logits, targets)
    return map_node(_LOGISTIC, (x, t), asked="binary_cross_entropy")
