"""Arithmetic and functions of one element against NumPy, in values, types and special numbers."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import sympy

from symgrad.graph import arithmetic as ar, elementwise as ew, functions as fn
from symgrad.graph.dims import dim
from symgrad.graph.errors import DTypeError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import as_node, constant, input
from symgrad.graph.nodes import Constant, Map
from symgrad.graph.operators import VERBS, load_verbs

load_verbs()
B = dim("B")
RNG = np.random.default_rng(11)
FLOATS = ["float32", "float64"]
INTS = ["int32", "int64"]
EDGES = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -2.5]


def same(got, wanted, dtype):
    assert got.dtype == np.dtype(dtype)
    assert got.shape == np.shape(wanted)
    tolerance = 4 * np.finfo(got.dtype).eps if got.dtype.kind == "f" else 0
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    if got.dtype.kind == "f":
        exact = np.asarray(wanted) == 0
        zeros = exact & (got == 0)
        assert (np.signbit(got)[zeros] == np.signbit(np.asarray(wanted))[zeros]).all()


UNARY = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "arctan": np.arctan,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "negative": np.negative,
    "positive": np.positive,
    "square": np.square,
    "reciprocal": lambda x: 1 / x,
    "erf": scipy.special.erf,
    "sigmoid": scipy.special.expit,
    "softplus": lambda x: np.logaddexp(x.dtype.type(0), x),
    "relu": lambda x: np.where(x > 0, x, np.where(np.isnan(x), x, x.dtype.type(0))),
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: x * (1 + scipy.special.erf(x / np.sqrt(2).astype(x.dtype))) / 2,
    "stop_gradient": lambda x: x,
    "isnan": np.isnan,
    "isfinite": np.isfinite,
    "leaky_relu": lambda x: np.where(x > 0, x, x * x.dtype.type(0.01)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary_is_numpy(name, dtype):
    x = input("x", (3, B, 7), dtype)
    values = RNG.standard_normal((3, 5, 7)).astype(dtype)
    values.ravel()[: len(EDGES)] = EDGES
    with np.errstate(all="ignore"):
        wanted = UNARY[name](values)
    made = VERBS[name](x)
    assert made.shape == x.shape
    same(evaluate(made, {x: values}), wanted, "bool" if name.startswith("is") else dtype)


def test_every_scalar_function_of_one_argument_has_a_verb_that_is_tested():
    names = {n for n, f in fn.FUNCTIONS.items() if f.arity == 1 and f.result != "cast"}
    assert names - {"logical_not"} <= set(UNARY)


@pytest.mark.parametrize("name", ["exp", "tanh", "sqrt", "sigmoid", "gelu", "elu", "reciprocal"])
def test_float_functions_cast_integers_to_float32(name):
    k = input("k", (5,), "int64")
    assert VERBS[name](k).dtype == np.float32


@pytest.mark.parametrize("name", ["abs", "sign", "floor", "negative", "square", "relu"])
@pytest.mark.parametrize("dtype", INTS)
def test_some_functions_keep_integers(name, dtype):
    k = input("k", (5,), dtype)
    values = np.array([-3, 0, 2, 7, -1], dtype)
    wanted = np.maximum(values, 0) if name == "relu" else UNARY[name](values)
    same(evaluate(VERBS[name](k), {k: values}), wanted, dtype)


BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "floor_divide": np.floor_divide,
    "mod": np.mod,
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(BINARY))
def test_binary_is_numpy_with_broadcasting(name, dtype):
    a, b = input("a", (3, 1, B), dtype), input("b", (5, B), dtype)
    x = RNG.standard_normal((3, 1, 7)).astype(dtype)
    y = RNG.standard_normal((5, 7)).astype(dtype)
    x[0, 0], y[1] = EDGES, EDGES[::-1]
    with np.errstate(all="ignore"):
        wanted = BINARY[name](x, y)
    made = VERBS[name](a, b)
    assert made.shape == (3, 5, B)
    same(evaluate(made, {a: x, b: y}), wanted, "bool" if name in COMPARISONS else dtype)


@pytest.mark.parametrize("extent", [0, 1, 4])
@pytest.mark.parametrize("name", sorted(BINARY))
def test_binary_on_empty_and_single_axes(name, extent):
    a, b = input("a", (3, B)), input("b", (3, 1))
    x, y = RNG.random((3, extent), np.float32), RNG.random((3, 1), np.float32)
    got = evaluate(VERBS[name](a, b), {a: x, b: y})
    assert got.shape == (3, extent)
    np.testing.assert_allclose(got, BINARY[name](x, y), rtol=1e-6)


OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "**": lambda a, b: a**b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("sign", sorted(OPERATORS))
@pytest.mark.parametrize("other", [2, 3.5, np.float64(2.5), np.int64(3), np.float32(1.5)])
def test_operators_with_scalars_on_both_sides(sign, other):
    x = input("x", (5,))
    values = np.array([0.5, 2.0, 3.0, 3.5, 7.0], np.float32)
    operator = OPERATORS[sign]
    kind = "bool" if sign in ("==", "!=", "<", "<=", ">", ">=") else "float32"
    same(evaluate(operator(x, other), {x: values}), operator(values, np.float32(other)), kind)
    same(evaluate(operator(other, x), {x: values}), operator(np.float32(other), values), kind)


WEAK = [
    # (dtype of the array, scalar, dtype of the sum, dtype of the quotient)
    ("float32", 2, "float32", "float32"),
    ("float32", 2.5, "float32", "float32"),
    ("float32", np.float64(2.5), "float32", "float32"),
    ("float32", np.int64(2), "float32", "float32"),
    ("float32", True, "float32", None),
    ("float32", np.array([2.5]), "float64", "float64"),
    ("float32", [2.5], "float32", "float32"),
    ("float64", 2, "float64", "float64"),
    ("float64", np.float32(2), "float64", "float64"),
    ("int32", 2, "int32", "float32"),
    ("int32", 2.5, "float32", "float32"),
    ("int32", np.float64(2.5), "float32", "float32"),
    ("int32", np.int64(2), "int32", "float32"),
    ("int32", np.array([2], np.int64), "int64", "float32"),
    ("int64", 2, "int64", "float32"),
    ("int64", np.float32(2), "float32", "float32"),
    ("bool", 2, "int32", None),
    ("bool", 2.5, "float32", None),
    ("bool", True, "bool", None),
]


@pytest.mark.parametrize(("dtype", "scalar", "total", "quotient"), WEAK)
def test_weak_scalar_table(dtype, scalar, total, quotient):
    x = input("x", (3,), dtype)
    assert (x + scalar).dtype == np.dtype(total)
    assert (scalar + x).dtype == np.dtype(total)
    assert (x * scalar).dtype == np.dtype(total)
    if quotient is None:
        with pytest.raises(DTypeError, match="no arithmetic on bool"):
            x / scalar
    else:
        assert (x / scalar).dtype == np.dtype(quotient)


PAIRS = [
    ("float32", "float64", "float64", "float64"),
    ("int64", "float32", "float32", "float32"),
    ("int32", "int64", "int64", "float32"),
    ("int32", "int32", "int32", "float32"),
    ("bool", "float64", "float64", None),
    ("bool", "int32", "int32", None),
    ("bool", "bool", "bool", None),
]


@pytest.mark.parametrize(("a", "b", "total", "quotient"), PAIRS)
def test_types_of_two_arrays(a, b, total, quotient):
    x, y = input("x", (3,), a), input("y", (3,), b)
    for made in (x + y, y + x, x * y):
        assert made.dtype == np.dtype(total)
    if quotient is not None:
        assert (x / y).dtype == np.dtype(quotient) == (y / x).dtype
        assert (x - y).dtype == np.dtype(total)
    else:
        with pytest.raises(DTypeError, match="subtract: no arithmetic on bool"):
            x - y
    values = {x: np.array([1, 0, 1], a), y: np.array([1, 1, 0], b)}
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(evaluate(x + y, values), values[x] + values[y])
        np.testing.assert_array_equal(evaluate(x * y, values), values[x] * values[y])


def test_numpy_scalars_do_not_widen_the_network():
    x = input("x", (3,))
    assert (x / np.sqrt(64)).dtype == np.float32
    assert (np.sqrt(64) * x).dtype == np.float32
    assert constant(np.float64(0.1)).dtype == np.float32
    assert constant(np.arange(3.0)).dtype == np.float64
    assert constant([1, 2]).dtype == np.int32
    assert constant([1, 2.0]).dtype == np.float32
    assert constant(2**40).dtype == np.int64


def test_extents_take_part_in_formulas():
    x = input("x", (B, 3))
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    got = evaluate([x / B, B * x, x.shape[0] + x[0, 0] * 0, 1.0 / as_node(B)], {x: values})
    for one, wanted in zip(got, [values / 5, values * 5, 5.0, 0.2], strict=True):
        same(one, np.float32(wanted), "float32")


def test_literals_share_one_body_and_one_node():
    x = input("x", (3,))
    assert (x + 0.1).body is (x + 0.2).body
    assert (x + 0.1) is (x + 0.1)
    assert as_node(0.0) is not as_node(-0.0)
    assert np.signbit(as_node(-0.0).value) and not np.signbit(as_node(0.0).value)
    assert as_node(1) is not as_node(True)
    assert (x * 2.0) is (x * 2)


POWERS = [0, 1, 2, 3, 5, -1, -2, 0.5, -0.5, 1.7, 2.0, -3.0, 100]


@pytest.mark.parametrize("n", POWERS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_powers_with_literal_exponents(n, dtype):
    x = input("x", (5,), dtype)
    values = np.array([1, 2, 3, 4, 1], dtype)
    if n == 100:
        values[:] = 1
    made = x**n
    whole = isinstance(n, int) and n >= 0
    kind = dtype if dtype != "int32" or whole else "float32"
    assert made.dtype == np.dtype(kind)
    wanted = np.power(values.astype(kind), np.asarray(n, kind))
    np.testing.assert_allclose(evaluate(made, {x: values}), wanted, rtol=1e-6)


def test_forms_of_powers():
    x = input("x", (3,))
    assert (x**3).body == fn.P[0] ** 3
    assert (x**0.5).body == fn.sqrt(fn.P[0])
    assert (x**-0.5).body == fn.rsqrt(fn.P[0])
    assert (x**1) is x
    assert (x**1.5).body == fn.pow_(fn.P[0], fn.P[1])
    y = input("y", (3,))
    same(evaluate(2.0**y, {y: [1.0, 2.0, 0.5]}), np.float32([2, 4, 2**0.5]), "float32")


def test_where_and_clip():
    c, x, y = input("c", (3, 1), "bool"), input("x", (5,)), input("y", (), "int32")
    truth, values = np.array([[True], [False], [True]]), np.array([-2, -0.0, 0.5, np.nan, 9], "f4")
    same(
        evaluate(ar.where(c, x, y), {c: truth, x: values, y: 4}),
        np.where(truth, values, np.float32(4)),
        "float32",
    )
    for low, high in [(-1, 2), (None, 0.25), (0, None), (None, None), (-1.5, y)]:
        bound = 4 if high is y else high
        same(
            evaluate(ar.clip(x, low, high), {x: values, y: 4}),
            np.clip(values, low, bound),
            "float32",
        )
    with pytest.raises(DTypeError, match=r"where: the condition must be bool\n.*'x'"):
        ar.where(x, x, x)


def test_logic():
    a, b = input("a", (4,), "bool"), input("b", (4,), "bool")
    x, y = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    values = {a: x, b: y}
    for made, wanted in [
        (a & b, x & y),
        (a | b, x | y),
        (a ^ b, x ^ y),
        (~a, ~x),
        (a & True, x),
        (np.logical_and(a, b), x & y),
        (ar.maximum(a, b), x | y),
        (a == b, x == y),
    ]:
        same(evaluate(made, values), wanted, "bool")
    with pytest.raises(DTypeError, match="logical_and: needs bool"):
        input("x", (4,)) & a


@pytest.mark.parametrize("to", ["float32", "float64", "int32", "int64", "bool"])
@pytest.mark.parametrize("start", ["float32", "float64", "int32", "int64", "bool"])
def test_astype(start, to):
    x = input("x", (4,), start)
    values = np.array([0, 1, 2, 1]).astype(start)
    same(evaluate(x.astype(to), {x: values}), values.astype(to), to)
    assert x.astype(start) is x


def test_numpy_ufuncs_build_expressions():
    x = input("x", (3,))
    assert np.tanh(x) is ew.tanh(x)
    assert np.add(1.0, x) is 1.0 + x
    assert np.float64(2) * x is 2 * x
    assert np.maximum(x, 0) is ar.maximum(x, 0)
    assert np.ones(3, np.float32) * x is ar.multiply(np.ones(3, np.float32), x)
    assert np.absolute(x) is abs(x)
    with pytest.raises(SymgradError, match=r"numpy\.arcsin: no such operation"):
        np.arcsin(x)
    with pytest.raises(SymgradError, match=r"numpy\.add: no such operation on expressions with"):
        np.add.reduce(x)


def test_gelu_forms():
    x = input("x", (5,), "float64")
    v = np.array([-3.0, -0.5, 0.0, 0.7, 4.0])
    tanh = v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))) / 2
    np.testing.assert_allclose(evaluate(ew.gelu(x, approximate=True), {x: v}), tanh, rtol=1e-14)
    assert abs(evaluate(ew.gelu(x), {x: v}) - tanh).max() < 1e-3


# -- elementwise ----------------------------------------------------------------------------------
def test_elementwise_takes_functions_and_expressions():
    x, y = input("x", (3, 1)), input("y", (5,))
    v, w = RNG.random((3, 1), np.float32), RNG.random(5, np.float32)
    a, b = sympy.symbols("a b")
    wanted = v * np.tanh(w) + v**2
    for made in (
        ew.elementwise(lambda s, t: s * sympy.tanh(t) + s**2, x, y),
        ew.elementwise(a * sympy.tanh(b) + a**2, x, y),
        ew.elementwise(b * sympy.tanh(a) + b**2, y, x),
    ):
        np.testing.assert_allclose(evaluate(made, {x: v, y: w}), wanted, rtol=1e-6)


def test_elementwise_choices_and_types():
    x, k = input("x", (5,)), input("k", (5,), "int32")
    v, n = np.array([-1.5, -0.0, np.nan, 2.0, 9.0], "f4"), np.array([1, 2, 3, 4, 5], "i4")
    made = ew.elementwise(lambda t: sympy.Piecewise((t, t > 0), (t / 10, True)), x)
    same(evaluate(made, {x: v}), np.where(v > 0, v, v / np.float32(10)), "float32")
    made = ew.elementwise(lambda t: sympy.Max(t, 1), x)
    same(evaluate(made, {x: v}), np.maximum(v, np.float32(1)), "float32")
    assert ew.elementwise(lambda t: t + 1, k).dtype == np.int32
    assert ew.elementwise(lambda t: t / 2, k).dtype == np.float32
    assert ew.elementwise(lambda t: sympy.exp(t), k).dtype == np.float32
    assert ew.elementwise(lambda t: t > 2, k).dtype == np.bool_
    assert ew.elementwise(lambda s, t: s * t, x, k).dtype == np.float32
    same(evaluate(ew.elementwise(lambda t: t / 2, k), {k: n}), n / np.float32(2), "float32")
    test = ew.elementwise(lambda t: t > sympy.Float(0.1), x)
    assert not evaluate(test, {x: np.full(5, 0.1, "f4")}).any()  # the literal is float32 here


def test_elementwise_keeps_the_bits_of_floats():
    third = 0.1 + 0.2
    x = input("x", (1,), "float64")
    made = ew.elementwise(lambda t: t * third, x)
    assert evaluate(made, {x: [1.0]})[0] == third


def test_elementwise_refuses():
    x, t = input("x", (3,)), sympy.Symbol("t")
    with pytest.raises(ShapeError, match=r"2 free symbols \(t, u\), got 1 arguments"):
        ew.elementwise(t * sympy.Symbol("u"), x)
    with pytest.raises(SymgradError, match="gamma is not supported"):
        ew.elementwise(lambda s: sympy.gamma(s), x)
    with pytest.raises(DTypeError, match="no arguments: t"):
        ew.elementwise(lambda s: s * t, x)
    with pytest.raises(DTypeError, match=r"Choose with sympy\.Piecewise"):
        ew.elementwise(lambda s: s if s > 0 else 0, x)
    with pytest.raises(DTypeError, match="returned str"):
        ew.elementwise(lambda s: "__import__('os')", x)
    with pytest.raises(DTypeError, match="f must be a function"):
        ew.elementwise("x + 1", x)
    with pytest.raises(ShapeError, match=r"elementwise: shapes do not broadcast"):
        ew.elementwise(lambda s, u: s + u, x, input("z", (5,)))


# -- derivatives of bodies at kinks and far out --------------------------------------------------
@pytest.mark.parametrize(
    ("verb", "at", "wanted"),
    [
        ("relu", 0.0, 0.0),
        ("relu", 2.0, 1.0),
        ("leaky_relu", 0.0, 0.01),
        ("elu", 0.0, 1.0),
        ("elu", 100.0, 1.0),
        ("elu", -100.0, 0.0),
        ("silu", 100.0, 1.0),
        ("silu", -100.0, 0.0),
        ("gelu", 100.0, 1.0),
        ("gelu", -100.0, 0.0),
        ("softplus", -100.0, 0.0),
        ("abs", 0.0, 0.0),
    ],
)
def test_derivatives_stay_finite(verb, at, wanted):
    from symgrad.graph.scalars import derivative, evaluate_scalar

    made = VERBS[verb](input("x", ()))
    assert isinstance(made, Map)
    args = [np.float32(at)] + [a.value for a in made.args[1:] if isinstance(a, Constant)]
    with np.errstate(all="ignore"):
        out = evaluate_scalar(made.body, args, (), {}, np.dtype("float32"))
        got = evaluate_scalar(derivative(made.body, 0), args, (), {}, np.dtype("float32"), out)
    np.testing.assert_allclose(got, np.float32(wanted), atol=1e-6)


def test_stop_gradient_has_no_derivative():
    from symgrad.graph.scalars import derivative

    x = input("x", (3,))
    assert derivative(ew.stop_gradient(x).body, 0) is None
    assert ew.stop_gradient(input("k", (), "int32")).dtype == np.int32
