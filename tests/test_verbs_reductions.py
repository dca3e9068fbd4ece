"""Reductions, the log-sum-exp family and losses against NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from codegen.pipeline import compile
from symgrad.calculus.vjp import grad
from symgrad.graph import losses as ls, reductions as rd
from symgrad.graph.dims import dim
from symgrad.graph.elementwise import exp, log
from symgrad.graph.errors import DataError, DTypeError, ShapeError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import input
from symgrad.graph.operators import VERBS, load_verbs
from tests.ir_interpreter import interpreted

load_verbs()
B, T = dim("B"), dim("T")
RNG = np.random.default_rng(5)
AXES = [None, 0, 1, -1, (0, 2), (1,), (-1, 0), ()]
NUMPY = {
    "sum": np.sum,
    "mean": np.mean,
    "prod": np.prod,
    "max": np.max,
    "min": np.min,
    "var": np.var,
    "std": np.std,
    "any": np.any,
    "all": np.all,
    "logsumexp": scipy.special.logsumexp,
}


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", sorted(NUMPY))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions_are_numpys(name, axis, keepdims, dtype):
    if axis == () and name == "logsumexp":
        pytest.skip("SciPy has no empty axes")
    x = input("x", (3, B, 7), dtype)
    values = RNG.standard_normal((3, 5, 7)).astype(dtype)
    values[1, 2] = 0
    made = VERBS[name](x, axis=axis, keepdims=keepdims)
    wanted = np.asarray(NUMPY[name](values, axis=axis, keepdims=keepdims))
    got = evaluate(made, {x: values})
    assert got.dtype == (np.bool_ if name in ("any", "all") else np.dtype(dtype))
    assert got.shape == wanted.shape
    tolerance = 40 * np.finfo(dtype).eps
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "mean", "any", "all", "var"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_reductions_of_integers_and_bools(name, dtype):
    x = input("x", (3, 5), dtype)
    values = RNG.integers(0, 2 if dtype == "bool" else 4, (3, 5)).astype(dtype)
    if name == "var" and dtype == "bool":
        with pytest.raises(DTypeError, match="var: no arithmetic on bool"):
            rd.var(x)
        return
    got = evaluate(VERBS[name](x, axis=1), {x: values})
    wanted = NUMPY[name](values, axis=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    kinds = {"mean": "float32", "var": "float32", "any": "bool", "all": "bool"}
    if name in ("max", "min"):
        kinds[name] = dtype
    assert got.dtype == np.dtype(kinds.get(name, "int32" if dtype == "bool" else dtype))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("keepdims", [False, True])
def test_positions_take_the_first_of_equals(name, axis, keepdims):
    x = input("x", (3, B, 7))
    values = RNG.integers(0, 3, (3, 5, 7)).astype("f4")
    got = evaluate(VERBS[name](x, axis=axis, keepdims=keepdims), {x: values})
    wanted = getattr(np, name)(values, axis=axis, keepdims=keepdims)
    np.testing.assert_array_equal(got, wanted)
    assert got.dtype == np.int32


@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_running_forms(name, axis, dtype):
    x = input("x", (3, B), dtype)
    values = (RNG.random((3, 5)) * 4).astype(dtype)
    got = evaluate(VERBS[name](x, axis=axis), {x: values})
    np.testing.assert_allclose(got, getattr(np, name)(values, axis=axis), rtol=1e-5)
    assert got.dtype == np.dtype(dtype)


def test_methods_are_the_verbs():
    x = input("x", (3, 5))
    assert x.sum() is rd.sum(x)
    assert x.mean(0) is rd.mean(x, 0)
    assert x.max(axis=1, keepdims=True) is rd.max(x, 1, True)
    assert x.min() is rd.min(x)


def test_nan_wins_and_negative_zero_stays():
    x = input("x", (2, 3))
    values = np.array([[1, np.nan, 2], [-np.inf, -0.0, -3]], "f4")
    np.testing.assert_array_equal(evaluate(rd.max(x, 1), {x: values}), [np.nan, -0.0])
    np.testing.assert_array_equal(evaluate(rd.min(x, 1), {x: values}), [np.nan, -np.inf])
    assert np.isnan(evaluate(rd.sum(x), {x: values}))
    single = input("s", (1, 1))
    for made in (rd.sum(single), rd.sum(single, 0, True), single[0], rd.max(single, 0)):
        assert np.signbit(evaluate(made, {single: [[-0.0]]})).all()


@pytest.mark.parametrize("name", ["sum", "prod", "any", "all", "mean", "logsumexp", "cumsum"])
def test_empty_axes(name):
    x = input("x", (B, 3))
    got = evaluate(
        VERBS[name](x, axis=0),
        {x: np.zeros((0, 3), "f4")} if name != "logsumexp" else {x: np.zeros((2, 3), "f4")},
    )
    wanted = {
        "sum": np.zeros(3),
        "prod": np.ones(3),
        "any": np.zeros(3, bool),
        "all": np.ones(3, bool),
        "mean": np.full(3, np.nan),
        "logsumexp": np.full(3, np.log(2)),
        "cumsum": np.zeros((0, 3)),
    }[name]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_no_extremum_of_nothing(name):
    x = input("x", (B, 3))
    with pytest.raises(DataError, match=rf"{name}: axis 0 is empty\n.*\n.*got \(0, 3\)") as caught:
        evaluate(VERBS[name](x, axis=0), {x: np.zeros((0, 3))})
    assert "test_verbs_reductions.py" in str(caught.value)
    with pytest.raises(ShapeError, match=f"{name}: axis 1 is empty"):
        VERBS[name](input("e", (3, 0)), axis=1)
    assert VERBS[name](input("e", (3, 0)), axis=0).shape == (0,)


def test_axis_errors_show_the_shape():
    x = input("x", (B, 3))
    with pytest.raises(ShapeError, match=r"sum: axis 2 is out of range for 2 axes\n.*\(B, 3\)"):
        rd.sum(x, 2)
    with pytest.raises(ShapeError, match=r"max: an axis stands twice in \(0, -2\)"):
        rd.max(x, (0, -2))
    with pytest.raises(ShapeError, match="mean: an axis must be an integer, got 'rows'"):
        rd.mean(x, "rows")


def test_mean_over_symbolic_axes():
    x = input("x", (B, 3, T))
    values = RNG.random((5, 3, 7), np.float32)
    for axis in (None, 0, (0, 2), -1):
        got = evaluate(rd.mean(x, axis), {x: values})
        np.testing.assert_allclose(got, values.mean(axis), rtol=1e-5)
    got = evaluate(rd.var(x, 0, ddof=1), {x: values})
    np.testing.assert_allclose(got, values.var(0, ddof=1), rtol=1e-5)


# -- exponentials ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [-1, 0, (0, 1)])
def test_softmax_family(dtype, axis):
    x = input("x", (3, 5), dtype)
    for values in (RNG.standard_normal((3, 5)) * 3, RNG.standard_normal((3, 5)) * 3 + 1e4):
        values = values.astype(dtype)
        eps = 30 * np.finfo(dtype).eps
        wanted = scipy.special.softmax(values.astype("f8"), axis)
        np.testing.assert_allclose(evaluate(rd.softmax(x, axis), {x: values}), wanted, eps, eps)
        wanted = scipy.special.log_softmax(values.astype("f8"), axis)
        np.testing.assert_allclose(evaluate(rd.log_softmax(x, axis), {x: values}), wanted, eps, eps)
        wanted = scipy.special.logsumexp(values.astype("f8"), axis)
        np.testing.assert_allclose(evaluate(rd.logsumexp(x, axis), {x: values}), wanted, eps, eps)


def test_exponentials_of_infinities():
    x = input("x", (4, 3))
    inf = np.inf
    values = np.array([[-inf, -inf, -inf], [inf, 0, 1], [-inf, 0, 0], [np.nan, 0, 1]], "f4")
    np.testing.assert_allclose(
        evaluate(rd.logsumexp(x, 1), {x: values}), [-inf, inf, np.log(2), np.nan], rtol=1e-6
    )
    nan = np.nan  # +inf is NaN itself, its neighbours have their limit 0
    expected = [[nan, nan, nan], [nan, 0, 0], [0, 0.5, 0.5], [nan, nan, nan]]
    np.testing.assert_allclose(evaluate(rd.softmax(x), {x: values}), expected, rtol=1e-6)
    np.testing.assert_allclose(compile(rd.softmax(x))(x=values), expected, rtol=1e-6)


def test_only_the_sum_of_exponentials_of_nothing_has_a_logarithm():
    n = dim("n")
    x, nothing = input("x", (3, n)), np.ones((3, 0), np.float32)
    naive = log(rd.sum(exp(x), axis=1))
    np.testing.assert_array_equal(evaluate(naive, {x: nothing}), np.full(3, -np.inf))
    np.testing.assert_array_equal(compile(naive)(x=nothing), np.full(3, -np.inf))
    for verb in (rd.logsumexp, rd.softmax, rd.log_softmax):
        with pytest.raises(ValueError, match="max: axis 1 is empty"):
            evaluate(verb(x, axis=1), {x: nothing})


def test_softmax_of_integers_is_float32():
    assert rd.softmax(input("k", (3, 5), "int32")).dtype == np.float32
    with pytest.raises(DTypeError, match="softmax: no arithmetic on bool"):
        rd.softmax(input("b", (3, 5), "bool"))


# -- losses ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(), (3,), (3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_cross_entropy(shape, dtype, shift):
    x, y = input("x", (*shape, 7), dtype), input("y", shape, "int32")
    values = (RNG.standard_normal((*shape, 7)) * 3).astype(dtype) + np.asarray(shift, dtype)
    labels = RNG.integers(0, 7, shape)
    log = scipy.special.log_softmax(values.astype("f8"), -1)
    wanted = -np.take_along_axis(log, np.asarray(labels)[..., None], -1)[..., 0]
    got = evaluate(ls.cross_entropy(x, y), {x: values, y: labels})
    assert got.dtype == np.dtype(dtype)
    assert got.shape == shape
    np.testing.assert_allclose(got, wanted, rtol=30 * np.finfo(dtype).eps, atol=1e-6)


def test_cross_entropy_refuses():
    x, y = input("x", (B, 7)), input("y", (B,), "int32")
    with pytest.raises(DTypeError, match=r"cross_entropy: labels must be integers\n.*'z'"):
        ls.cross_entropy(x, input("z", (B,)))
    with pytest.raises(ShapeError, match=r"labels \(\*rows\)\n.*\(B, 7\).*\n.*\(B, 1\)"):
        ls.cross_entropy(x, input("z", (B, 1), "int32"))
    with pytest.raises(ShapeError, match="cross_entropy: needs logits"):
        ls.cross_entropy(input("a", (3, 7)), input("z", (5,), "int32"))
    loss = ls.cross_entropy(x, y)
    with pytest.raises(DataError, match=r"cross_entropy: label 7 .* extent 7") as caught:
        evaluate(loss, {x: np.zeros((3, 7)), y: [0, 1, 7]})
    assert "(2,) of  'y'" in str(caught.value)
    assert "test_verbs_reductions.py" in str(caught.value)
    for bad in (-1, -7, -8, 2**31 - 1, -(2**31)):  # no label counts from the end
        with pytest.raises(DataError, match=rf"label {bad} is out of range(?s:.*)in 0\.\.6\."):
            evaluate(loss, {x: np.zeros((3, 7)), y: [0, bad, 6]})
    with pytest.raises(DataError, match=r"cross_entropy: label -1 is out of range for extent 7"):
        ls.cross_entropy(input("a", (2, 7)), [3, -1])


def test_a_bad_label_is_found_in_the_gradient_and_behind_views():
    x, y = input("x", (B, 7)), input("y", (2, 5), "int64")
    loss = ls.cross_entropy(x, y.T.reshape(10)[::-1][1:])
    labels = np.arange(10).reshape(2, 5) % 7
    labels[1, 2] = -1
    for made in (loss, grad(loss.sum(), x)):
        with pytest.raises(DataError, match=r"cross_entropy: label -1 ") as caught:
            evaluate(made, {x: np.zeros((9, 7)), y: labels})
        assert "at (1, 2) of  'y'" in str(caught.value)


def test_mse_and_binary_cross_entropy():
    x, t = input("x", (3, 5)), input("t", (5,))
    values, targets = (
        RNG.standard_normal((3, 5)).astype("f4") * 8,
        np.array([0, 1, 0.25, 1, 0], "f4"),
    )
    np.testing.assert_allclose(
        evaluate(ls.mse(x, t), {x: values, t: targets}), (values - targets) ** 2, rtol=1e-6
    )
    v = values.astype("f8")
    wanted = -targets * scipy.special.log_expit(v) - (1 - targets) * scipy.special.log_expit(-v)
    got = evaluate(ls.binary_cross_entropy(x, t), {x: values, t: targets})
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    far = evaluate(ls.binary_cross_entropy(x, t), {x: np.full((3, 5), 100.0), t: np.ones(5)})
    assert (far < 1e-40).all()
    k = input("k", (5,), "int32")
    assert ls.binary_cross_entropy(x, k).dtype == np.float32


def test_binary_cross_entropy_at_infinite_logits():
    inf = np.inf
    x, t = input("x", (8,)), input("t", (8,))
    values = {
        "x": np.array([inf, inf, inf, -inf, -inf, -inf, np.nan, 2], "f4"),
        "t": np.array([1, 0, 0.25, 0, 1, 0.25, 1, 1], "f4"),
    }
    loss = ls.binary_cross_entropy(x, t)
    slope, by_target = grad(loss.sum(), [x, t])
    last = np.log1p(np.exp(-2.0))
    wanted = [
        [0, inf, inf, 0, inf, inf, np.nan, last],
        [0, 1, 0.75, 0, -1, -0.25, np.nan, np.expm1(-last)],
        [0, -inf, -inf, 0, inf, inf, np.nan, -2],
    ]
    with interpreted():
        f = compile([loss, slope, by_target])
    for found in (f(**values), evaluate([loss, slope, by_target], values)):
        for got, expected in zip(found, wanted, strict=True):
            np.testing.assert_allclose(got, np.array(expected, "f4"), rtol=1e-6)
