"""Verbs at the corners: NaN, infinities, -0.0, subnormals, overflow; axes of one and of none.

Everything is held against NumPy or SciPy, evaluated and compiled, in float32 and float64, with
numbers and with dims for extents. The cases of a test are outputs of one program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.special

import symgrad as sg
from symgrad.graph.nodes import Node
from tests.verb_rows import scanned, stepped

Array = np.ndarray[Any, Any]
FLOATS = ("float32", "float64")


# -- special numbers, one element ------------------------------------------------------------------
def edges(dtype: str) -> Array:
    """Specials, the ends of the range, and numbers around which functions overflow or round."""
    info = np.finfo(dtype)
    small = [info.tiny, info.smallest_subnormal, info.tiny / 3, info.eps, 1e-5, 1e-30]
    usual = [0.5, 0.9, 1, 1 + info.eps, 1 - info.epsneg, 1.5, 2, 2.5, 3, np.pi / 2, np.pi, 7, 9.5]
    large = [17, 20, 30, 88.5, 89, 100, 103.5, 709, 710, 720, 746, 1e4, 1e6, 8388608.5, 1e20, 1e30]
    positive = np.array([0.0, *small, *usual, *large, info.max, np.inf])
    return np.concatenate([positive, -positive, [np.nan]]).astype(dtype)


UNARY: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "abs": np.abs, "sign": np.sign, "floor": np.floor,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh,
    "arctan": np.arctan, "square": np.square, "reciprocal": np.reciprocal, "isnan": np.isnan,
    "isfinite": np.isfinite, "stop_gradient": lambda x: x, "sigmoid": scipy.special.expit,
    "softplus": lambda x: np.logaddexp(x.dtype.type(0), x), "erf": scipy.special.erf,
    "relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "leaky_relu": lambda x: np.where(x > 0, x, x * x.dtype.type(0.01)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "silu": lambda x: (x / (1 + np.exp(-x.astype(np.longdouble)))).astype(x.dtype),
    "clip": lambda x: np.clip(x, x.dtype.type(-1), x.dtype.type(2)),
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b, "//": lambda a, b: a // b, "%": lambda a, b: a % b,
    "**": lambda a, b: a**b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b, "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip
POWERS = (0, 1, 2, 3, 7, -1, -3, 0.5, 1.5, 65)
#: Correctly rounded by IEEE 754, or a choice: equal to the last bit.
EXACT = {
    *("sqrt", "abs", "sign", "floor", "square", "reciprocal", "isnan", "isfinite", "relu", "clip"),
    *("stop_gradient", *BINARY),
} - {"**"}
# Units in the last place otherwise: 4 of a kernel (tests/test_runtime.py), 4 of NumPy's own.
ULPS = 8


@cache
def elements() -> tuple[dict[str, Node], dict[str, Array], dict[str, Array]]:
    """Expressions, the values of their leaves, and what NumPy says."""
    made: dict[str, Node] = {}
    values: dict[str, Array] = {}
    wanted: dict[str, Array] = {}
    for dtype in FLOATS:
        x = edges(dtype)
        a, b = np.meshgrid(x, x, indexing="ij")
        values |= {f"x.{dtype}": x, f"a.{dtype}": a, f"b.{dtype}": b}
        leaf, left, right = (sg.input(f"{k}.{dtype}", v.shape, dtype) for k, v in
                             (("x", x), ("a", a), ("b", b)))
        with np.errstate(all="ignore"):
            for name, function in UNARY.items():
                verb = (lambda e: sg.clip(e, -1, 2)) if name == "clip" else getattr(sg, name)
                made[f"{name} {dtype}"], wanted[f"{name} {dtype}"] = verb(leaf), function(x)
            for name, operator in BINARY.items():
                verb = getattr(sg, name, operator)
                made[f"{name} {dtype}"] = verb(left, right)
                wanted[f"{name} {dtype}"] = operator(a, b)
            for power in POWERS:
                made[f"**{power} {dtype}"] = leaf**power
                wanted[f"**{power} {dtype}"] = np.power(x, x.dtype.type(power))
    return made, values, wanted


@cache
def computed() -> tuple[dict[str, Array], dict[str, Array]]:
    made, values, _ = elements()
    return sg.evaluate(made, values), sg.compile(made)(**values)


@pytest.mark.parametrize("name", elements()[0])
def test_special_numbers(name: str) -> None:
    wanted = elements()[2][name]
    for how, found in zip(("evaluated", "compiled"), computed(), strict=True):
        ulps = 0 if name.split()[0] in EXACT else ULPS
        # x times a sigmoid that is subnormal, where x is below 1024
        assert_like(found[name], wanted, ulps, how, flushed=1024 if "silu" in name else 1)


def assert_like(got: Array, wanted: Array, ulps: int, how: str, flushed: int = 1) -> None:
    """Equal up to units in the last place: NaN, infinities and signs of zeros alike.

    A subnormal may come out as any other of its sign, or 0: kernels may flush them. A function that
    multiplies it afterwards has so many times the smallest normal number for an error.
    """
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted, err_msg=how)
        return
    if not ulps:
        np.testing.assert_array_equal(got, wanted, err_msg=how)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~finite], wanted[~finite], err_msg=how)
    with np.errstate(all="ignore"):
        far = np.abs(got - wanted)[finite]
        unit = np.minimum(np.spacing(np.abs(wanted[finite])), np.finfo(wanted.dtype).max / 99)
        allowed = ulps * unit + bool(ulps) * flushed * np.finfo(wanted.dtype).tiny
    assert (far <= allowed).all(), (how, got[finite][far > allowed], wanted[finite][far > allowed])
    zero = wanted == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(wanted[zero]), err_msg=how)


# -- special numbers, reductions -------------------------------------------------------------------
REDUCTIONS: dict[str, Callable[..., Array]] = {
    "sum": np.sum, "mean": np.mean, "prod": np.prod, "max": np.max, "min": np.min, "var": np.var,
    "std": np.std, "any": np.any, "all": np.all, "argmax": np.argmax, "argmin": np.argmin,
    "cumsum": np.cumsum, "cumprod": np.cumprod, "logsumexp": scipy.special.logsumexp,
    "log_softmax": scipy.special.log_softmax, "softmax": lambda x, axis: by_hand(x, axis),
}  # fmt: skip


def by_hand(x: Array, axis: int) -> Array:
    """Softmax, where an infinite element does not spread NaN over its neighbours."""
    largest = x.max(axis, keepdims=True)
    e = np.exp(x - np.where(np.isfinite(largest), largest, 0))
    return e / e.sum(axis, keepdims=True)


def rows(dtype: str) -> Array:
    nan, inf, big = np.nan, np.inf, np.finfo(dtype).max
    return np.array([
        [0.0, -0.0, -0.0], [-0.0, -0.0, -0.0], [nan, 1, 2], [1, nan, inf], [inf, -inf, 1],
        [inf, inf, 0], [-inf, -inf, -inf], [1e-40, -1e-40, 1e-42], [big, big, -big], [big, 1, 2],
        [1e20, -1e20, 1e20], [1, 2, 3], [-800, -805, -803], [800, 805, 803], [-0.0, 0.0, -1],
        [5, 5, 5], [-inf, 0, 0.5], [0, 0, 0], [1e-30, 1e-30, 1e10],
    ], dtype)  # fmt: skip


@pytest.fixture(scope="module")
def reduced() -> dict[str, tuple[Array, Array, Array]]:
    """What NumPy, `evaluate` and a program say of the rows, and of them as columns."""
    made: dict[str, Node] = {}
    wanted: dict[str, Array] = {}
    values: dict[str, Array] = {}
    for dtype in FLOATS:
        data = rows(dtype)
        for form, array, axis in (("row", data, 1), ("column", data.T.copy(), 0)):
            shape = (sg.dim(f"n.{dtype}"), 3) if form == "row" else array.shape
            x = sg.input(f"{form}.{dtype}", shape, dtype)
            values[x.name] = array
            for name, function in REDUCTIONS.items():
                key = f"{name} {form} {dtype}"
                made[key] = getattr(sg, name)(x, axis=axis)
                with np.errstate(all="ignore"):
                    wanted[key] = function(array, axis=axis)
    found, program = sg.evaluate(made, values), sg.compile(made)(**values)
    return {key: (wanted[key], found[key], program[key]) for key in made}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["row", "column"])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_special_numbers(
    name: str, form: str, dtype: str, reduced: dict[str, tuple[Array, Array, Array]]
) -> None:
    wanted, *found = reduced[f"{name} {form} {dtype}"]
    for got, how in zip(found, ("evaluated", "compiled"), strict=True):
        if name in ("max", "min"):  # which of two zeros is open
            got, wanted = got + 0, wanted + 0
        if wanted.dtype.kind == "f":
            assert_like(got, wanted, ULPS, how)
        else:
            np.testing.assert_array_equal(got, wanted, err_msg=how)


# -- axes of one and of none -----------------------------------------------------------------------
EXTENTS = ((3, 5), (1, 5), (3, 1), (1, 1), (0, 5), (3, 0), (0, 0), (1, 0))


def shaped(m: Any, x: Any, y: Any, k: Any) -> Iterator[tuple[str, Any]]:
    """Verbs on x (M, N), y (N,) and k (M,), places below 4; `m` is symgrad or NumPy."""
    own = m is sg
    table = (sg.constant if own else np.asarray)(np.arange(12.0).reshape(4, 3).astype("f4"))
    yield "elementwise", m.exp(x * y) - m.maximum(x, y) / 2
    yield "comparison", (x > y) & (x[:, ::-1] < 1)
    yield "where", m.where(x > y, x, 2 * y)
    for axis in (None, 0, 1, (0, 1)):
        for name in ("sum", "prod", "any", "all"):
            yield f"{name} {axis}", getattr(m, name)(x, axis=axis)
    yield "sum kept", m.sum(x, axis=1, keepdims=True) + x.sum(0)
    for axis in (0, 1):
        yield f"cumsum {axis}", m.cumsum(x, axis=axis)
        yield f"cumprod {axis}", m.cumprod(x, axis=axis) * 2
        yield f"flip {axis}", m.flip(x, axis) + x
        yield f"concatenate {axis}", m.concatenate([x, x * 2], axis)
        yield f"stack {axis}", m.stack([x, -x], axis)
        yield f"repeat {axis}", m.repeat(x, 2, axis)
        yield f"expand_dims {axis}", m.expand_dims(x, axis) * 2
    yield "matmul", x @ x.T
    yield "matmul inner", x.T @ x
    yield "matmul vector", x @ y
    yield "batched", m.matmul(x[:, None, :] * y, m.expand_dims(x, 2))
    yield "einsum", m.einsum("ij,j,kj->ki", x, y, x)
    yield "outer", m.outer(y, y)
    yield "trace", m.trace(x.T @ x)
    yield "diag", m.diag(m.diag(y)) + y
    yield "tensordot", m.tensordot(x, x, ((0,), (0,)))
    yield "transpose", m.transpose(x) + 1
    yield "reshape", m.reshape(x, (-1,)) * 2
    yield "reshape and sum", (x * 2).reshape(-1).sum()
    yield "broadcast", m.broadcast_to(y, x.shape) * x
    yield "pad", m.pad(x, ((1, 2), (0, 1)))
    yield "tile", m.tile(x, (2, 3))
    yield "tril", m.tril(x, 1) + m.triu(x)
    yield "reversed", x[::-1, ::-1]
    yield "new axes", x[None, ..., None]
    yield "gather", table[k]
    yield "gather and sum", table[k].sum(0)
    yield "one hot", sg.one_hot(k, 4) if own else np.eye(4, dtype="f4")[k]
    yield "softplus", sg.softplus(x).sum(0) if own else np.logaddexp(0, x).sum(0)
    yield "mse", sg.mse(x, y) if own else (x - y) ** 2
    scan, tanh = (sg.scan, sg.tanh) if own else (stepped_along, np.tanh)
    yield "scan", scanned(scan, tanh, m.concatenate([y[None], x]), y)


def stepped_along(step: Any, carry: Array, xs: Array) -> tuple[Array, Array]:
    """As `stepped`; no steps give no rows."""
    return stepped(step, carry, xs) if len(xs) else (carry, np.zeros((0, *carry.shape), xs.dtype))


def largest(m: Any, x: Any, y: Any) -> Iterator[tuple[str, Any]]:
    """Verbs that need an element in each row."""
    yield "max", m.max(x, axis=1) + x.min(1)
    yield "argmax", m.argmax(x, axis=1)
    yield "mean", m.mean(x, axis=1)
    yield "var", m.var(x, axis=1)
    yield "std", m.std(x, axis=1)
    yield "softmax", (sg.softmax(x) if m is sg else scipy.special.softmax(x, 1)) + y
    yield "logsumexp", (sg if m is sg else scipy.special).logsumexp(x, axis=1)
    yield "last", x[:, -1] * x[:, 0]


def data(m: int, n: int, dtype: str) -> dict[str, Array]:
    rng = np.random.default_rng(10 * m + n)
    return {
        "x": rng.uniform(0.3, 1.5, (m, n)).astype(dtype),
        "y": rng.uniform(0.3, 1.5, n).astype(dtype),
        "k": rng.integers(0, 4, m).astype("int32"),
    }


def expressions(shape: tuple[Any, Any], dtype: str, rowed: bool) -> dict[str, Node]:
    """The verbs and, where the result is a float, their gradients by x."""
    x, y = sg.input("x", shape, dtype), sg.input("y", shape[1:], dtype)
    k = sg.input("k", shape[:1], "int32")
    made = dict(largest(sg, x, y) if rowed else shaped(sg, x, y, k))
    slopes = {
        f"gradient of {name}": sg.grad(sg.sum(e), x)
        for name, e in made.items()
        if e.dtype == np.dtype(dtype) and "gather" not in name and name != "std"
    }
    return made | slopes


@cache
def symbolic(dtype: str, rowed: bool) -> tuple[dict[str, Node], Any]:
    made = expressions((sg.dim("M"), sg.dim("N")), dtype, rowed)
    return made, sg.compile(made)


def judge(made: dict[str, Node], f: Any, values: dict[str, Array], rowed: bool) -> None:
    given = {k: v for k, v in values.items() if k in {leaf.name for leaf in f.leaves}}
    x, y, k = values["x"], values["y"], values["k"]
    wanted = dict(largest(np, x, y) if rowed else shaped(np, x, y, k))
    found, program = sg.evaluate(made, values), f(**given)
    rtol = 40 * np.finfo(x.dtype).eps  # sums and products of at most 35 positive terms
    for name, got in program.items():
        np.testing.assert_allclose(got, found[name], rtol=rtol, atol=rtol, err_msg=name)
        if name in wanted:
            assert got.shape == np.shape(wanted[name]), name
            np.testing.assert_allclose(got, wanted[name], rtol=rtol, atol=rtol, err_msg=name)
        else:
            assert got.shape == x.shape, name


@pytest.mark.parametrize("rowed", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("extents", EXTENTS)
def test_symbolic_extents(extents: tuple[int, int], dtype: str, rowed: bool) -> None:
    if rowed and not extents[1]:
        return
    judge(*symbolic(dtype, rowed), data(*extents, dtype), rowed)


@pytest.mark.parametrize("extents", [(1, 5), (3, 0)])
def test_extents_as_numbers(extents: tuple[int, int]) -> None:
    for rowed in (False, True) if extents[1] else (False,):
        made = expressions(extents, "float32", rowed)
        judge(made, sg.compile(made), data(*extents, "float32"), rowed)


@pytest.mark.parametrize("verb", [sg.max, sg.min, sg.argmax, sg.argmin, sg.softmax, sg.logsumexp])
def test_nothing_has_no_largest_element(verb: Callable[..., Node]) -> None:
    with pytest.raises(sg.ShapeError, match="axis 1 is empty"):
        verb(sg.input("x", (3, 0)), axis=1)
    e = verb(sg.input("x", (3, sg.dim("N"))), axis=1)
    for run in (lambda v: sg.evaluate(e, v), lambda v: sg.compile(e)(**v)):
        with pytest.raises(sg.ShapeError, match=r"axis 1 is empty"):
            run({"x": np.zeros((3, 0), "float32")})
