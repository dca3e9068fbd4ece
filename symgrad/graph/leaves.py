"""Leaves: inputs, parameters and constants, and expressions that need no input.

A Python value becomes a Constant here. Python scalars and NumPy's float64 and int64 scalars are
*weak*: they take the type of what they meet, so that `x / np.sqrt(64)` keeps `x` in float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import sympy

from symgrad.graph import dims as dm, functions as fn
from symgrad.graph.dims import Dim, Shape, as_extent, as_shape
from symgrad.graph.dtypes import (
    ALL,
    BOOL,
    BOUNDS,
    DEFAULT,
    FLOAT32,
    INT32,
    INT64,
    DType,
    DTypeLike,
    as_dtype,
    is_bool,
    is_float,
    is_int,
    promote,
)
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.functions import AXIS
from symgrad.graph.nodes import Constant, Input, Map, Node, describe, einsum_node
from symgrad.graph.operators import verb
from symgrad.graph.scalars import adopt
from symgrad.graph.traversal import toposort

ArrayLike: TypeAlias = (
    "Node | np.ndarray[Any, Any] | np.generic | float | int | bool | sympy.Expr | Sequence[Any]"
)
Initialiser: TypeAlias = Callable[[tuple[int, ...], np.random.Generator, DType], Any]
Init: TypeAlias = "Initialiser | np.ndarray[Any, Any] | float | Sequence[Any] | None"


# -- leaves ---------------------------------------------------------------------------------------
def input(name: str, shape: object = (), dtype: DTypeLike = "float32") -> Input:
    """Declare an input: values for it come with every call.

    Args:
        name:  any non-empty string, unique in a graph.
        shape: integers and dims; `()` is a scalar.
        dtype: float32, float64, int32, int64 or bool.
    Raises: LeafError for a bad name, ShapeError for a bad shape, DTypeError for a bad dtype.

    >>> input("x", (dm.dim("B"), 64))
    <Input f32[B,64]>
    """
    _check_name("input", name)
    return Input(name, as_shape(shape, f"input {dm.quoted(name)}"), as_dtype(dtype), "input")


def parameter(
    name: str, shape: object = (), init: Init = None, dtype: DTypeLike | None = None
) -> Input:
    """Declare a parameter: a value to be learned, with its initial value.

    Args:
        name:  any non-empty string, unique in a graph.
        shape: integers and dims; `()` is a scalar.
        init:  an initialiser of `symgrad.init` (called with shape, generator and dtype), an array
               of this shape, or a scalar. Default: uniform within +-sqrt(6 / (fan_in + fan_out))
               for two axes or more (Glorot and Bengio 2010), zeros for fewer.
        dtype: default: that of an array given as `init`, else float32.
    Raises: LeafError for a bad name or init, ShapeError when `init` has another shape.

    >>> parameter("b", (32,), init=0.1).init
    array(0.1, dtype=float32)
    """
    _check_name("parameter", name)
    asked = f"parameter {dm.quoted(name)}"
    extents = as_shape(shape, asked)
    if isinstance(init, np.ndarray) and dtype is None:
        dtype = init.dtype
    kind = FLOAT32 if dtype is None else as_dtype(dtype)
    if init is not None and not callable(init):
        init = _initial_array(asked, init, extents, kind)
    made = Input(name, extents, kind, "parameter", init)
    if callable(init) and not hasattr(init, "to_json") and not dm.free_dims(extents):
        initial_value(made)  # a function of the user's: does it take what it will be given?
    return made


def _check_name(asked: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise LeafError(
            f"{asked}: the name must be a non-empty string, got {dm.quoted(name)}. "
            f'Write {asked}("x", ...).'
        )


def _initial_array(asked: str, init: Any, shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
    if np.ma.is_masked(init):
        raise LeafError(f"{asked}: init has masked values. Fill them: .filled(0).")
    try:
        given = np.asarray(init)
    except ValueError:
        given = np.asarray(None)
    if given.dtype.kind not in "fiub":
        raise LeafError(
            f"{asked}: init must be an initialiser, an array or a scalar, "
            f"got {type(init).__name__}. See symgrad.init."
        )
    if is_int(dtype) and given.dtype.kind == "f":
        raise DTypeError(f"{asked}: init is {given.dtype}, the parameter is {dtype}. Cast one.")
    if given.ndim and not (
        given.ndim == len(shape)
        and all(dm.same(a, b) is not False for a, b in zip(given.shape, shape, strict=True))
    ):
        raise ShapeError(
            f"{asked}: init has another shape\n  parameter {dm.show(shape)}\n"
            f"  init      {dm.show(given.shape)}\n"
            "  Give an array of the parameter's shape, a scalar, or an initialiser of symgrad.init."
        )
    value = given.astype(dtype)
    value.setflags(write=False)
    return value


def initial_value(
    leaf: Input, seed: int = 0, dims: Mapping[Dim, int] | None = None
) -> np.ndarray[Any, Any]:
    """The value that a parameter starts from: a fresh array of its shape and dtype.

    Random initialisers draw from a generator made of `seed` and the leaf's name, so that a
    parameter starts from the same value in every graph that it occurs in.

    Args:
        leaf: a parameter.
        seed: any nonnegative integer.
        dims: values of the dims in its shape, where there are any.
    Raises: LeafError when the leaf is no parameter, ShapeError when the initialiser returns another
        shape.
    """
    asked = f"{leaf.kind} {dm.quoted(leaf.name)}"
    if leaf.kind != "parameter":
        raise LeafError(f"{asked}: only a parameter has an initial value.")
    shape = dm.values(leaf.shape, dims or {})
    if isinstance(leaf.init, np.ndarray):
        if leaf.init.ndim and leaf.init.shape != shape:
            raise ShapeError(
                f"{asked}: init has shape {leaf.init.shape}, the values ask for {shape}."
            )
        return np.array(np.broadcast_to(leaf.init, shape), order="C")
    digest = hashlib.sha256(leaf.name.encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])
    try:
        value = np.asarray((leaf.init or _default_init)(shape, rng, leaf.dtype))
    except (TypeError, ValueError) as error:
        if isinstance(error, SymgradError):
            raise
        raise LeafError(
            f"{asked}: init {getattr(leaf.init, '__name__', leaf.init)!r:.60} is no initialiser\n"
            f"  init(shape, rng, dtype) raises {type(error).__name__}: {error!s:.120}\n"
            "  Use one of symgrad.init, as in init=sg.init.zeros(), an array or a scalar."
        ) from error
    if value.shape != shape:
        raise ShapeError(
            f"{asked}: its initialiser returned shape {value.shape}, asked for {shape}."
        )
    return np.array(value, dtype=leaf.dtype, order="C")


def _default_init(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Any:
    """Uniform within +-sqrt(6 / (fan_in + fan_out)) from two axes on, else zeros."""
    if len(shape) < 2 or not is_float(dtype):
        return np.zeros(shape, dtype)
    fans = (shape[-2] + shape[-1]) * math.prod(shape[:-2])
    limit = math.sqrt(6 / max(fans, 1))
    return rng.uniform(-limit, limit, shape).astype(dtype)


def inputs(e: Node | Iterable[Node]) -> tuple[Input, ...]:
    """The inputs of an expression, or of several, in order of first use.

    >>> x = input("x", (3,))
    >>> inputs(x)[0] is x
    True
    """
    return tuple(n for n in _leaves(e) if n.kind == "input")


def parameters(e: Node | Iterable[Node]) -> tuple[Input, ...]:
    """The parameters of an expression, or of several, in order of first use."""
    return tuple(n for n in _leaves(e) if n.kind == "parameter")


def _leaves(e: Node | Iterable[Node]) -> list[Input]:
    outputs = [e] if isinstance(e, Node) else list(e)
    return [n for n in toposort(outputs) if isinstance(n, Input)]


# -- constants ------------------------------------------------------------------------------------
def constant(value: ArrayLike, dtype: DTypeLike | None = None) -> Node:
    """A literal: a scalar, a list or an array (copied).

    Arrays keep their dtype; Python scalars and lists become float32, int32 or bool.

    Raises: DTypeError for values that are no numbers.

    >>> constant([1.0, 2.0]).shape
    (2,)
    """
    return as_node(value, None if dtype is None else as_dtype(dtype), exact=dtype is not None)


def as_node(value: ArrayLike, dtype: DType | None = None, exact: bool = False) -> Node:
    """A Python value as an expression; an expression is itself.

    Args:
        value: a node, scalar, array, list, or an extent.
        dtype: what a weak scalar takes: Python's, NumPy's float64 and int64, and extents. A
               fraction never becomes an integer: it becomes float32.
        exact: whether every value takes `dtype`.
    """
    if isinstance(value, Node):
        if exact and dtype is not None and value.dtype != dtype:
            raise DTypeError(
                f"constant: {describe(value)} is an expression already. Use astype(x, '{dtype}')."
            )
        return value
    kind = type(value)
    if kind is float or kind is int or kind is bool:
        sign = math.copysign(1.0, value) if kind is float else 1.0  # type: ignore[arg-type]
        return _weak(value, sign, kind, dtype)  # type: ignore[arg-type]
    if isinstance(value, np.generic):
        if kind in (np.float64, np.int64) or isinstance(value, np.bool_):
            return as_node(value.item(), dtype)
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if np.ma.is_masked(value):
            raise DTypeError("an array with masked values is no constant. Fill them: .filled(0).")
        return Constant(_supported(value) if dtype is None or not exact else value.astype(dtype))
    if isinstance(value, (list, tuple)):
        return _listed(value, dtype if exact else None)
    if isinstance(value, sympy.Expr) and all(isinstance(s, Dim) for s in value.free_symbols):
        if not value.free_symbols:
            return as_node(int(value) if value.is_Integer else float(value), dtype)
        return Map((), adopt(value), (), INT32 if dtype is None else promote(dtype, INT32))
    raise DTypeError(
        f"{value!r} ({kind.__name__}) is no expression, number or array of numbers. "
        "Declare unknowns with input(name, shape)."
    )


@lru_cache(maxsize=1024, typed=True)
def _weak(value: float, sign: float, kind: type, dtype: DType | None) -> Node:
    """A Python scalar in the dtype that it meets; `sign` tells -0.0 from 0.0."""
    own = BOOL if kind is bool else INT32 if kind is int else DEFAULT
    met = own
    if dtype is not None and own != BOOL:
        met = dtype if is_float(dtype) else promote(dtype, own)
    if is_int(met) and not BOUNDS[met][0] <= value <= BOUNDS[met][1]:
        if dtype is None and -(2**63) <= value < 2**63:
            met = INT64
        else:
            raise DTypeError(f"{_integer(value)} does not fit into {met}. Use floats.")
    if is_float(met) and kind is int and abs(value) > float(np.finfo(str(met)).max):
        raise DTypeError(f"{_integer(value)} does not fit into {met}. Scale the formula.")
    with np.errstate(all="ignore"):
        return Constant(np.asarray(value).astype(met))


def _integer(value: float) -> str:
    """An integer for a message."""
    size = int(value).bit_length()
    return f"the integer {value}" if size <= 100 else f"an integer of {size} bits"


def _supported(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if value.dtype.newbyteorder("=") in ALL:
        return value.astype(value.dtype.newbyteorder("="), copy=False)
    names = ", ".join(str(d) for d in ALL)
    raise DTypeError(
        f"arrays of dtype {value.dtype} are not supported. Convert with .astype to one of {names}."
    )


def _listed(value: Sequence[Any], dtype: DType | None) -> Node:
    """A list of numbers, in the default type of its kind."""
    if _holds_node(value):
        raise DTypeError(
            "a list of expressions is no expression. Join them with stack or concatenate."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"a ragged list is no array: {error}") from None
    kinds = {"f": FLOAT32, "b": BOOL, "i": INT32}
    if array.dtype.kind not in kinds:
        raise DTypeError(f"a list of {array.dtype} is no array of numbers.")
    if dtype is None:
        dtype = kinds[array.dtype.kind]
        if dtype == INT32 and array.size and np.abs(array).max() > BOUNDS[INT32][1]:
            dtype = INT64
    with np.errstate(all="ignore"):
        return Constant(array.astype(dtype))


def _holds_node(value: Sequence[Any]) -> bool:
    return any(
        isinstance(v, Node) or (isinstance(v, (list, tuple)) and _holds_node(v)) for v in value
    )


def operands(*values: ArrayLike) -> tuple[Node, ...]:
    """Values as expressions; weak scalars take the type of the others.

    >>> x = input("x", (3,))
    >>> operands(x, 2)[1].dtype
    dtype('float32')
    """
    strong = [v.dtype for v in values if isinstance(v, Node)]
    if len(strong) == len(values):
        return values  # type: ignore[return-value]
    made = [None if _is_weak(v) else as_node(v) for v in values]
    known = [n.dtype for n in made if n is not None]
    if not known:  # scalars only: a fraction among them makes floats of all
        known = [as_node(v).dtype for v in values]
    dtype = promote(*known)
    return tuple(as_node(v, dtype) if n is None else n for n, v in zip(made, values, strict=True))


def _is_weak(value: object) -> bool:
    return isinstance(value, (bool, int, float, np.int64, np.bool_, sympy.Expr))


def cast(x: Node, dtype: DType) -> Node:
    """`x` in another dtype; itself when it has it. Literals are converted at once."""
    if x.dtype == dtype:
        return x
    if isinstance(x, Constant) and not x.shape:
        with np.errstate(all="ignore"):
            return Constant(x.value.astype(dtype))
    return Map((x,), fn.CAST[dtype](fn.P[0]), x.shape, dtype)


# -- expressions without inputs -------------------------------------------------------------------
@verb
def full(shape: object, value: ArrayLike, dtype: DTypeLike | None = None) -> Node:
    """An array of one value: `out[i..] = value`.

    >>> full((2, dm.dim("B")), 0.5)
    <Einsum f32[2,B]>
    """
    extents = as_shape(shape, "full")
    filled = as_node(value, None if dtype is None else as_dtype(dtype))
    if dtype is not None:
        filled = cast(filled, as_dtype(dtype))
    if filled.shape:
        raise ShapeError(
            f"full: the value must be a scalar\n  {describe(filled)}\n  Use broadcast_to."
        )
    if not extents:
        return filled
    labels = range(len(extents))
    return einsum_node((filled,), ((),), labels, dict(enumerate(extents)))


@verb
def zeros(shape: object, dtype: DTypeLike = "float32") -> Node:
    """An array of zeros."""
    return full(shape, 0, dtype)


@verb
def ones(shape: object, dtype: DTypeLike = "float32") -> Node:
    """An array of ones."""
    return full(shape, 1, dtype)


@verb
def zeros_like(x: ArrayLike, dtype: DTypeLike | None = None) -> Node:
    """Zeros in the shape and, unless told otherwise, the dtype of `x`."""
    node = as_node(x)
    return full(node.shape, 0, node.dtype if dtype is None else dtype)


@verb
def ones_like(x: ArrayLike, dtype: DTypeLike | None = None) -> Node:
    """Ones in the shape and, unless told otherwise, the dtype of `x`."""
    node = as_node(x)
    return full(node.shape, 1, node.dtype if dtype is None else dtype)


@verb
def eye(rows: object, columns: object = None, k: int = 0, dtype: DTypeLike = "float32") -> Node:
    """Ones on the k-th diagonal: `out[i, j] = (i + k == j)`.

    >>> eye(3).shape
    (3, 3)
    """
    n = as_extent(rows, "eye")
    m = n if columns is None else as_extent(columns, "eye")
    kind = as_dtype(dtype)
    return Map((), _delta(kind, k), (n, m), kind)


@lru_cache(maxsize=64)
def _delta(dtype: DType, k: int) -> sympy.Expr:
    test = fn.equal(AXIS[0] + k, AXIS[1])
    return test if is_bool(dtype) else fn.CAST[dtype](test)


@verb
def arange(
    start: object, stop: object = None, step: int | float = 1, dtype: DTypeLike | None = None
) -> Node:
    """`out[i] = start + i * step`, up to and without `stop`.

    Args:
        start, stop: as in NumPy; `stop` may be symbolic where `step` is 1.
        dtype: default int32, or float32 when a fraction occurs.

    >>> arange(dm.dim("B")).shape
    (B,)
    """
    first, last = (0, start) if stop is None else (start, stop)
    numbers = [v for v in (first, last, step) if not isinstance(v, sympy.Expr)]
    if not all(isinstance(v, (int, float, np.integer, np.floating)) for v in numbers):
        raise ShapeError(f"arange: start, stop and step must be numbers or dims, got {numbers}.")
    fractional = any(isinstance(v, (float, np.floating)) for v in numbers)
    kind = as_dtype(dtype) if dtype is not None else FLOAT32 if fractional else INT32
    if len(numbers) == 3:
        if step == 0:
            raise ShapeError("arange: the step must not be 0.")
        extent = as_extent(max(0, math.ceil((last - first) / step)), "arange")  # type: ignore[operator]
    elif isinstance(step, int) and step == 1:
        extent = as_extent(last - first, "arange")  # type: ignore[operator]
    else:
        raise ShapeError("arange: with a symbolic start or stop the step must be 1.")
    body = AXIS[0] * _scalar(step) + _scalar(first)
    return Map((), body, (extent,), kind)


def _scalar(value: Any) -> sympy.Expr:
    if isinstance(value, sympy.Expr):
        return value
    return (
        sympy.Float(float(value))
        if isinstance(value, (float, np.floating))
        else sympy.Integer(value)
    )
