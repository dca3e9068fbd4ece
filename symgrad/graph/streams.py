"""Random arrays, dropout, and the leaves that a run supplies: seed, step, training, streams.

A random array is a Map that draws each element from a Philox block of its own (`philox.py`):

    u[i..] = uniform(key, counter)      key      64 bits: the seed
                                        counter  64 bits: path * size + place of the element
                                                 32 bits: number of the stream
                                                 32 bits: step

so its bits depend on nothing else: not on the target, threads, or what is computed beside it, and
no two draws of one seed share a block. Each call of a verb here makes a *stream*, a leaf with
identity: two equal dropouts differ. Its number in a Graph is its rank by birth among the streams of
that Graph, so that an expression and its derivative, which have the same streams, draw the same
values whichever is computed first. `path` is 0 outside of recurrences; inside of one it counts the
steps, all that stand around a step together, so `uniform((n,))` in a scan draws what
`uniform((T, n))` draws outside of it.

Nothing of this is stored for differentiation: whoever reads a draw computes it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import sympy

from symgrad.graph import functions as fn
from symgrad.graph.arithmetic import float_operands
from symgrad.graph.dims import Extent, Shape, as_shape, same, show, size
from symgrad.graph.dtypes import BOOL, FLOAT32, INT32, INT64, DType, DTypeLike, as_dtype, is_float
from symgrad.graph.errors import DTypeError, ShapeError, SymgradError
from symgrad.graph.functions import AXIS, P
from symgrad.graph.leaves import ArrayLike, as_node, cast
from symgrad.graph.nodes import Constant, Input, Map, Node, broadcast, describe
from symgrad.graph.provenance import named

#: The number of steps taken so far, a leaf that every optimiser's updates advance.
step = Input("optim.step", (), INT32, kind="step")
#: What `evaluate` and `compile` take under these names.
seed = Input("seed", (), INT64, kind="seed")
training = Input("training", (), BOOL, kind="training")

#: Streams of one Graph at most; a stream's value is number + STREAMS * path.
STREAMS = 2**20
_BIRTHS = itertools.count()

_INT = fn.CAST[INT64]
_PATH, _NUMBER = fn.floor_divide(P[0], STREAMS), fn.mod(P[0], STREAMS)
# args: seed, stream, step, place
_COUNTER = (P[0], fn.mod(P[1], STREAMS) + 2**32 * _INT(P[2]), P[3])
_UNIFORM = {dtype: cls(*_COUNTER) for dtype, cls in fn.UNIFORM.items()}
_SECOND = {dtype: cls(*_COUNTER) for dtype, cls in fn.SECOND.items()}
# Box and Muller 1958: 1 - u lies in (0, 1]
_NORMAL = fn.sqrt(-2 * fn.log(1 - P[0])) * fn.cos(2 * sympy.pi * P[1])
# args: x, rate, a uniform, 1 / (1 - rate), whether training
_DROPOUT = fn.select(P[4], fn.select(fn.less_equal(P[1], P[2]), P[3] * P[0], 0), P[0])


# -- verbs ----------------------------------------------------------------------------------------
@named
def uniform(shape: object = (), dtype: DTypeLike = "float32") -> Node:
    """Random numbers, uniform in [0, 1): multiples of 2^-24, or of 2^-53 in float64.

    Args:
        shape: integers and dims; `()` is a scalar.
        dtype: float32 or float64.
    Values: made of the seed and the step of `evaluate`, `compile` or `Trainer`; new at every step.
        The same bits from `evaluate` and every target. Each call here draws anew.
    Raises: ShapeError, DTypeError.
    Derivative: none.
    Source: Salmon et al. 2011.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.random.uniform((3,)), seed=7)
    array([0.9545971 , 0.40696037, 0.00607508], dtype=float32)
    """
    extents = as_shape(shape, "random.uniform")
    return _draw(_UNIFORM, _stream(), extents, _float("random.uniform", dtype))


@named
def normal(shape: object = (), dtype: DTypeLike = "float32") -> Node:
    """Random numbers from the normal distribution of mean 0 and variance 1.

        z = sqrt(-2 log(1 - u)) cos(2 pi v)       u, v uniform, from one block

    As `uniform` otherwise; `evaluate` and the targets agree as far as their log and cos do.

    Source: Box and Muller 1958.

    >>> normal((3, 5)).shape
    (3, 5)
    """
    extents = as_shape(shape, "random.normal")
    kind = _float("random.normal", dtype)
    own = _stream()
    pair = (_draw(_UNIFORM, own, extents, kind), _draw(_SECOND, own, extents, kind))
    return Map(pair, _NORMAL, extents, kind)


@named
def bernoulli(p: ArrayLike, shape: object) -> Node:
    """Random truth values that are True with probability p: `uniform(shape) < p`.

    Args:
        p:     probabilities, an expression that broadcasts to `shape`; never True where it is 0,
               always where it is 1.
        shape: integers and dims.
    Raises: ShapeError, DTypeError.
    Derivative: none.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.random.bernoulli(0.5, (3,)), seed=7)
    array([False,  True,  True])
    """
    extents = as_shape(shape, "random.bernoulli")
    chance = as_node(p)
    if not is_float(chance.dtype):
        chance = cast(chance, FLOAT32)
    _check_share("random.bernoulli: p", chance)
    drawn = _draw(_UNIFORM, _stream(), extents, chance.dtype)
    fits = chance.ndim <= len(extents) and all(
        same(a, b) is not False or (type(a) is int and a == 1)
        for a, b in zip(reversed(chance.shape), reversed(extents), strict=False)
    )
    if not fits:
        raise ShapeError(
            f"random.bernoulli: p does not broadcast to the shape {show(extents)}\n"
            f"  {describe(chance)}\n  Extents must be equal or 1, aligned from the right."
        )
    return Map((drawn, chance), fn.less(P[0], P[1]), extents, BOOL)


@named
def dropout(x: ArrayLike, rate: ArrayLike) -> Node:
    """`x` with elements dropped at random, the others scaled up, where `training=True`; else `x`.

        y[i..] = x[i..] / (1 - rate)   where u[i..] >= rate,  else 0        u uniform

    Args:
        x:    floats of any shape.
        rate: the share that is dropped, in [0, 1]: a number, or an expression that broadcasts to
              the shape of x.
    Raises: SymgradError for a rate out of range, DTypeError where x is no float, ShapeError.
    Cotangent: dropped and scaled alike; what was dropped is drawn again, not stored. By the rate it
        is that of the scale alone.
    Source: Srivastava et al. 2014.

    >>> import symgrad as sg
    >>> y = sg.dropout(sg.ones((6,)), 0.5)
    >>> sg.evaluate(y), sg.evaluate(y, training=True)  # doctest: +NORMALIZE_WHITESPACE
    (array([1., 1., 1., 1., 1., 1.], dtype=float32),
     array([0., 2., 0., 2., 2., 0.], dtype=float32))
    """
    node = as_node(x)
    if not is_float(node.dtype):
        raise DTypeError(
            f"dropout: x must be a float\n  {describe(node)}\n"
            "  Cast it first: astype(x, 'float32')."
        )
    wide, share = float_operands("dropout", node, rate)
    _check_share("dropout: the rate", share)
    if broadcast((wide, share), "dropout") != wide.shape:
        raise ShapeError(
            f"dropout: the rate does not broadcast to x\n  {describe(node)}\n  {describe(share)}\n"
            "  Extents must be equal or 1, aligned from the right."
        )
    if isinstance(share, Constant) and not share.value.any():
        return node
    if isinstance(share, Constant):
        with np.errstate(divide="ignore"):
            scale: Node = Constant(1 / (1 - share.value))
    else:
        scale = 1 / (1 - share)
    drawn = _draw(_UNIFORM, _stream(), wide.shape, FLOAT32)
    return Map((wide, share, drawn, scale, training), _DROPOUT, wide.shape, wide.dtype)


def _check_share(asked: str, share: Node) -> None:
    """Numbers given as probabilities lie between 0 and 1."""
    if isinstance(share, Constant) and not ((share.value >= 0) & (share.value <= 1)).all():
        wrong = share.value[~((share.value >= 0) & (share.value <= 1))].flat[0]
        raise SymgradError(f"{asked} must lie between 0 and 1, got {wrong}.")


def _float(asked: str, dtype: DTypeLike) -> DType:
    kind = as_dtype(dtype)
    if not is_float(kind):
        raise DTypeError(f"{asked}: the dtype must be float32 or float64, got {kind}.")
    return kind


# -- streams --------------------------------------------------------------------------------------
def _stream() -> Input:
    """A stream of its own. `init` is when it was born."""
    return Input("random", (), INT64, kind="random", init=next(_BIRTHS))


def _draw(bodies: Mapping[DType, sympy.Expr], stream: Node, shape: Shape, dtype: DType) -> Node:
    place = Map((stream,), _place(shape), shape, INT64)
    return Map((seed, stream, step, place), bodies[dtype], shape, dtype)


def _place(shape: Shape) -> sympy.Expr:
    """Where an element lies in row-major order, behind those of earlier steps."""
    place: sympy.Expr = sympy.S.Zero
    stride: Extent = 1
    for axis in reversed(range(len(shape))):
        place = place + AXIS[axis] * stride
        stride = size((stride, shape[axis]))
    earlier = _PATH * stride
    return earlier if place == 0 else earlier + _INT(place)


def births() -> int:
    """A number that every stream made later is born at or after."""
    return next(_BIRTHS)


def stepped(stream: Input, length: Extent) -> Map:
    """The values of a stream in the steps of a recurrence, (T,): `path <- path T + t`."""
    return Map((stream,), _NUMBER + STREAMS * (_PATH * length + AXIS[0]), (length,), INT64)


# -- values ---------------------------------------------------------------------------------------
def numbers(leaves: Sequence[Input]) -> dict[Input, int]:
    """The number of each stream among the leaves of a Graph: its rank by birth.

    Raises: SymgradError for more than `STREAMS`.
    """
    streams = sorted((leaf for leaf in leaves if leaf.kind == "random"), key=lambda s: s.init)
    if len(streams) > STREAMS:
        raise SymgradError(f"random: {len(streams)} streams in one graph, at most {STREAMS} fit.")
    return {stream: k for k, stream in enumerate(streams)}


def as_seed(value: object) -> int:
    """A seed as a signed integer of 64 bits.

    Raises: SymgradError when it is no integer.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise SymgradError(f"seed must be an integer, got {value!r:.40}.")
    return (int(value) + 2**63) % 2**64 - 2**63


def as_flag(name: str, value: object) -> bool:
    """A switch: True or False.

    Raises: SymgradError for anything else; "no" is true in Python.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise SymgradError(f"{name} must be True or False, got {value!r:.40}.")
    return bool(value)


def as_number(name: str, value: object) -> float:
    """A real number.

    Raises: SymgradError for anything else, and for text, which `float` would read.
    """
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        pass
    raise SymgradError(f"{name} must be a number, got {value!r:.40}.")


def supplied(
    leaf: Input, numbers: Mapping[Input, int], seed: int = 0, training: bool = False
) -> np.ndarray[Any, Any]:
    """The value of a leaf that the run supplies."""
    if leaf.kind == "random":
        return np.asarray(numbers[leaf], leaf.dtype)
    return np.asarray(training if leaf.kind == "training" else as_seed(seed), leaf.dtype)


# -- for compilers --------------------------------------------------------------------------------
def is_draw(node: Node) -> bool:
    """Whether a node is uniform numbers, or the places of their elements: readers draw them again.

    >>> is_draw(uniform((3,))), is_draw(normal((3,)))
    (True, False)
    """
    return (
        isinstance(node, Map)
        and _draws(node.body)
        and all((isinstance(a, Input) and not a.shape) or is_draw(a) for a in node.args)
    )


@lru_cache(maxsize=1024)
def _draws(body: sympy.Expr) -> bool:
    if body.has(_PATH):
        return not body.has(_NUMBER)
    found = map(fn.function_of, sympy.preorder_traversal(body))
    return any(function is not None and function.result == "draw" for function in found)
