"""Naive forms become stable ones: as mpmath, in any spelling, before and after differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mpmath as mp
import numpy as np
import pytest
import sympy

import symgrad as sg
from symgrad.calculus.stability_record import EQUATIONS
from symgrad.calculus.stabilization import Walk, stabilize
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Node
from symgrad.graph.traversal import toposort
from tests.calculus_judges import every_case, real, sample
from tests.test_simplification import random_loss

exp, log = sg.exp, sg.log
WIDE = (-1000.0, -100.0, -88.0, -30.0, -5.0, -1.5, -1e-3, 0.0, 1e-3, 0.7, 3.0, 20.0, 88.0, 1000.0)
POSITIVE = (1e-10, 1e-3, 0.5, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Naive:
    """A function of one number as a user writes it, and its truth in mpmath."""

    name: str
    write: Callable[[Node], Node]
    truth: Callable[[mp.mpf], mp.mpf]
    points: tuple[float, ...] = WIDE
    orders: int = 2
    digits: float = 400.0  # error allowed, in units of the last place
    rules: tuple[str, ...] = field(default=())


def softplus(v):
    return mp.log1p(mp.exp(v))


def sigmoid(v):
    return 1 / (1 + mp.exp(-v))


def scalar(body: Callable[[sympy.Expr], sympy.Expr]) -> Callable[[Node], Node]:
    return lambda x: sg.elementwise(body, x)


FORMS = [
    Naive("softplus", lambda x: log(1 + exp(x)), softplus),
    Naive("softplus, turned", lambda x: log(exp(x) + 1.0), softplus),
    Naive("softplus by log1p", lambda x: sg.log1p(exp(x)), softplus),
    Naive("softplus inside", scalar(lambda t: sympy.log(1 + sympy.exp(t))), softplus),
    Naive("softplus of 2x", lambda x: log(1 + exp(2 * x)) / 2, lambda v: softplus(2 * v) / 2),
    Naive("softplus shifted", lambda x: log(3 + 3 * exp(x)), lambda v: mp.log(3) + softplus(v)),
    Naive("sigmoid", lambda x: 1 / (1 + exp(-x)), sigmoid),
    Naive("sigmoid, other", lambda x: exp(x) / (1 + exp(x)), sigmoid),
    Naive("sigmoid, reciprocal", lambda x: sg.reciprocal(1 + exp(-x)), sigmoid),
    Naive("sigmoid inside", scalar(lambda t: 1 / (1 + sympy.exp(-t))), sigmoid),
    Naive("log sigmoid", lambda x: log(sg.sigmoid(x)), lambda v: -softplus(-v), orders=1),
    Naive("log 1-sigmoid", lambda x: log(1 - sg.sigmoid(x)), lambda v: -softplus(v), orders=1),
    Naive("log sigmoid by hand", lambda x: log(1 / (1 + exp(-x))), lambda v: -softplus(-v)),
    Naive("-log sigmoid by hand", lambda x: -log(1 / (1 + exp(-x))), lambda v: softplus(-v)),
    Naive("1 - sigmoid", lambda x: 1 - sg.sigmoid(x), lambda v: sigmoid(-v), orders=0),
    Naive("1 - sigmoid by hand", lambda x: 1 - 1 / (1 + exp(-x)), lambda v: sigmoid(-v)),
    Naive("tanh", lambda x: (exp(x) - exp(-x)) / (exp(x) + exp(-x)), mp.tanh, digits=4000),
    Naive("tanh by e^-2x", lambda x: (1 - exp(-2 * x)) / (1 + exp(-2 * x)), mp.tanh, digits=4000),
    Naive("tanh by sigmoid", lambda x: 2 / (1 + exp(-2 * x)) - 1, mp.tanh, digits=4000),
    Naive("tanh inside", scalar(
        lambda t: (sympy.exp(t) - sympy.exp(-t)) / (sympy.exp(t) + sympy.exp(-t))
    ), mp.tanh, digits=4000),
    Naive("sech", lambda x: 2 / (exp(x) + exp(-x)), mp.sech, digits=4000),
    Naive("sinh", lambda x: (exp(x) - exp(-x)) / 2, mp.sinh, (-80.0, -1.0, -1e-6, 0.0, 1e-6, 9.0)),
    Naive("expm1", lambda x: exp(x) - 1, mp.expm1, (-1000.0, -1.0, -1e-8, 0.0, 1e-8, 1.0, 80.0)),
    Naive("1 - e^x", lambda x: 1.0 - exp(x), lambda v: -mp.expm1(v), (-100.0, -1e-8, 1e-8, 3.0)),
    Naive("log1p", lambda x: log(1 + x), mp.log1p, (1e-20, 1e-5, 0.1, 1.0, 5.0, 1e10), orders=1),
    Naive("log(1 - x)", lambda x: log(1 - x), lambda v: mp.log1p(-v), (-5.0, -1e-9, 1e-9, 0.5)),
    Naive("log(1 - e^-x)", lambda x: log(1 - exp(-x)), lambda v: mp.log(-mp.expm1(-v)), POSITIVE),
    Naive("log(e^x - 1)", lambda x: log(exp(x) - 1), lambda v: mp.log(mp.expm1(v)), POSITIVE),
    Naive("log cosh", lambda x: log((exp(x) + exp(-x)) / 2), lambda v: mp.log(mp.cosh(v)),
          (-1000.0, -20.0, -1.0, 0.5, 3.0, 100.0), digits=4000),
    Naive("log(1 - tanh^2)", lambda x: log(1 - sg.tanh(x) ** 2), lambda v: 2 * mp.log(mp.sech(v)),
          (-1000.0, -20.0, -1.0, 0.5, 3.0, 100.0), orders=1),
    Naive("log of a floor", lambda x: log(exp(x) + 2.0**-20),
          lambda v: mp.log(mp.exp(v) + mp.mpf(2) ** -20), orders=1, digits=4000),
    Naive("Mish", lambda x: x * sg.tanh(log(1 + exp(x))), lambda v: v * mp.tanh(softplus(v)),
          (-80.0, -5.0, -0.5, 0.0, 1.0, 5.0, 50.0, 100.0), orders=1),
    Naive("Mish inside", scalar(lambda t: t * sympy.tanh(sympy.log(1 + sympy.exp(t)))),
          lambda v: v * mp.tanh(softplus(v)),
          (-80.0, -5.0, -0.5, 0.0, 1.0, 5.0, 50.0, 100.0), orders=1),
    Naive("SiLU by hand", lambda x: x / (1 + exp(-x)), lambda v: v * sigmoid(v),
          (-80.0, -5.0, -0.5, 0.0, 1.0, 5.0, 50.0, 100.0), orders=1),
    Naive("log e^x", lambda x: log(exp(x)), lambda v: v),
    Naive("x log x", lambda x: x * log(x), lambda v: v * mp.log(v) if v else mp.mpf(0),
          (0.0, 1e-30, 0.5, 2.0), orders=0),
    Naive("x log x inside", scalar(lambda t: t * sympy.log(t)),
          lambda v: v * mp.log(v) if v else mp.mpf(0), (0.0, 1e-30, 0.5, 2.0), orders=0),
    Naive("sqrt x^2", lambda x: sg.sqrt(x * x), abs, (-1e30, -1e-30, 0.0, 1e-30, 3.0), orders=0),
    Naive("sqrt 4 x^2", lambda x: sg.sqrt(4 * x**2), lambda v: 2 * abs(v), (-1e30, 1e-30, 3.0),
          orders=0),
    Naive("ratio of exponentials", lambda x: exp(3 * x) / exp(2 * x), mp.exp, (-80.0, 0.0, 80.0)),
]


def against_mpmath(y: Node, x: Node, form: Naive, order: int) -> None:
    made = stabilize(y)
    check(Graph.of([made]))
    assert (made.shape, made.dtype) == (y.shape, y.dtype)
    assert stabilize(made) is made, "stabilize is not at rest"
    points = np.array(form.points, x.dtype)
    with mp.workdps(220):
        truth = [
            mp.diff(form.truth, mp.mpf(float(v)), order) if order else form.truth(mp.mpf(float(v)))
            for v in points
        ]
    with np.errstate(all="ignore"):
        want = np.array([float(t) for t in truth]).astype(x.dtype)
    eps = float(np.finfo(x.dtype).eps)
    floor = 1e-190 if x.dtype == np.float64 else 1e-36  # mpmath's differences, and subnormals
    got = evaluate(made, {x: points})
    np.testing.assert_allclose(got, want, rtol=form.digits * eps, atol=floor)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=[f.name for f in FORMS])
def test_naive_forms_equal_mpmath(form: Naive, dtype: str) -> None:
    x = sg.input("x", (len(form.points),), dtype)
    y = form.write(x)
    for order in range(form.orders + 1):
        against_mpmath(y, x, form, order)
        y = sg.grad(y.sum(), x)


@pytest.mark.parametrize("form", FORMS, ids=[f.name for f in FORMS])
def test_differentiating_before_and_after_agree(form: Naive) -> None:
    x = sg.input("x", (len(form.points),), "float64")
    loss = form.write(x).sum()
    values = {x: np.array(form.points)}
    before = evaluate(stabilize(sg.grad(loss, x)), values)
    after = evaluate(sg.grad(stabilize(loss), x), values)
    assert not np.isnan(before).any() and not np.isnan(after).any()
    np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("form", FORMS, ids=[f.name for f in FORMS])
def test_a_bare_name_of_the_rule_is_recorded(form: Naive) -> None:
    walk = Walk()
    walk.run([form.write(sg.input("x", (3,), "float64"))])
    assert walk.rewrites and all(r.rule in EQUATIONS and r.where for r in walk.rewrites)


# -- known answers --------------------------------------------------------------------------------
def test_logsumexp_of_small_numbers() -> None:
    x = sg.input("x", (2,), "float64")
    values = {x: [-800.0, -805.0]}
    for e in (sg.logsumexp(x), stabilize(log(exp(x).sum()))):
        assert float(evaluate(e, values)) == -799.9932846515109


@pytest.mark.parametrize("at", [0.0, 20.0, -20.0])
def test_the_fourth_derivative_of_a_hand_written_tanh(at: float) -> None:
    with mp.workdps(60):
        want = float(mp.diff(mp.tanh, mp.mpf(at), 4))
    for x in (sg.input("x", (), "float64"), sg.input("x", (1,), "float32")):
        y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))
        for _ in range(4):
            y = sg.grad(y.sum(), x)
        got = evaluate(stabilize(y), {x: np.full(x.shape, at)})
        np.testing.assert_allclose(got, want, rtol=100 * float(np.finfo(x.dtype).eps), atol=1e-45)


@pytest.mark.parametrize("function", [sg.sqrt, log])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_through_a_masked_branch(function, compiled) -> None:
    x = sg.input("x", (3,), "float64")
    loss = sg.where(x > 0, function(x), 0.0).sum()
    first = sg.grad(loss, x)
    second = sg.grad(first.sum(), x)
    data = np.array([0.0, 4.0, -1.0])
    slope = {sg.sqrt: [0, 0.25, 0], log: [0, 0.25, 0]}[function]
    curve = {sg.sqrt: [0, -1 / 32, 0], log: [0, -1 / 16, 0]}[function]
    if compiled:
        found = sg.compile([first, second])(x=data)
    else:
        found = evaluate(list(stabilize([first, second])), {x: data})
    np.testing.assert_allclose(found[0], slope, rtol=1e-12)
    np.testing.assert_allclose(found[1], curve, rtol=1e-12)


def test_mish_has_finite_gradients_in_float32() -> None:
    x = sg.input("x", (2,))
    inside = sg.elementwise(lambda t: t * sympy.tanh(sympy.log(1 + sympy.exp(t))), x)
    for y in (x * sg.tanh(log(1 + exp(x))), inside):
        first = sg.grad(y.sum(), x)
        f = sg.compile([y, first, sg.grad(first.sum(), x)])
        value, slope, curve = f(x=np.array([100.0, -100.0], np.float32))
        np.testing.assert_allclose(value, [100.0, 0.0], atol=1e-6)
        np.testing.assert_allclose(slope, [1.0, 0.0], atol=1e-6)
        np.testing.assert_allclose(curve, [0.0, 0.0], atol=1e-6)


def test_x_log_x_at_zero() -> None:
    # the derivative is log x + 1 everywhere, hence -infinity at 0, before and after
    x = sg.input("x", (3,), "float64")
    loss = (x * log(x)).sum()
    data = {x: [0.0, 0.5, 2.0]}
    assert float(evaluate(stabilize(loss), data)) == 0.5 * np.log(0.5) + 2 * np.log(2)
    want = [-np.inf, 1 + np.log(0.5), 1 + np.log(2)]
    np.testing.assert_allclose(evaluate(stabilize(sg.grad(loss, x)), data), want, rtol=1e-14)
    np.testing.assert_allclose(evaluate(sg.grad(stabilize(loss), x), data), want, rtol=1e-14)
    scaled = sg.input("w", (3,), "float64")
    e = stabilize((scaled * (3.0 * x * log(x))).sum())
    assert np.isfinite(evaluate(e, {**data, scaled: [1.0, 2.0, 3.0]}))
    q = sg.input("q", (3,), "float64")
    for divergence in (x * log(x / q), x * (log(x) - log(q))):
        e = stabilize(divergence.sum())
        assert np.isfinite(evaluate(e, {x: [0.0, 0.5, 0.5], q: [0.2, 0.3, 0.5]}))


def test_the_derivative_of_a_root_of_a_square() -> None:
    x = sg.input("x", (4,), "float64")
    y = sg.sqrt(x * x)
    data = {x: [-2.0, 0.0, 1e-200, 3.0]}
    for g in (stabilize(sg.grad(y.sum(), x)), sg.grad(stabilize(y).sum(), x)):
        np.testing.assert_array_equal(evaluate(g, data), [-1, 0, 1, 1])


# -- harmless forms stay --------------------------------------------------------------------------
HARMLESS = {
    "0.0 * x": lambda x: 0.0 * x,
    "x - x": lambda x: x - x,
    "x / x": lambda x: x / x,
    "x * (1 / x)": lambda x: x * (1 / x),
    "exp": lambda x: exp(x) * 2.0 + 1.0,
    "log": lambda x: log(x) + log(x + 2.0),
    "sqrt": lambda x: sg.sqrt(x + 1.0) / sg.sqrt(x),
    "tanh": lambda x: sg.tanh(x) * (x + 1.0),
    "cosh": lambda x: 1 / sg.cosh(x),
    "clip": lambda x: sg.clip(x, -1.0, 1.0),
    "softmax": lambda x: sg.softmax(x),
    "logsumexp": lambda x: sg.logsumexp(x),
    "log_softmax": lambda x: sg.log_softmax(x),
    "by hand": lambda x: exp(x - x.max()) / exp(x - x.max()).sum(),
    "var": lambda x: sg.var(x) + sg.std(x),
    "gelu": lambda x: sg.gelu(x) + sg.gelu(x, approximate=True) + sg.silu(x) + sg.elu(x),
    "norm": lambda x: x / sg.sqrt((x * x).sum() + 1e-6),
    "mean": lambda x: (x - x.mean()) ** 2,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_forms_are_not_touched(name: str) -> None:
    x = sg.input("x", (5,))
    y = HARMLESS[name](x)
    assert stabilize(y) is y
    if name not in ("x / x", "x * (1 / x)", "cosh"):  # x/x cancels, sinh/cosh^2 overflows
        g = sg.grad(y.sum(), x)
        assert stabilize(g) is g


def test_stable_losses_and_their_gradients_are_not_touched() -> None:
    B = sg.dim("B")
    x, y, t = sg.input("x", (B, 7)), sg.input("y", (B,), "int32"), sg.input("t", (B,))
    W, v = sg.parameter("W", (7, 5)), sg.parameter("v", (7,))
    h = sg.tanh(x @ W)
    for loss, leaves in (
        (sg.cross_entropy(h, y).mean(), [W]),
        (sg.binary_cross_entropy(x @ v, t).mean(), [v]),
        (sg.mse(sg.sigmoid(x @ v), t).mean(), [v]),
    ):
        outputs = [loss, *sg.grad(loss, leaves)]
        assert all(a is b for a, b in zip(stabilize(outputs), outputs, strict=True))


# -- properties -----------------------------------------------------------------------------------
@pytest.mark.parametrize("case", [c for _, c in every_case()], ids=[n for n, _ in every_case()])
def test_derivatives_of_every_node_mean_the_same(case) -> None:
    out, leaves = case.make()
    loss = (out * sg.sin(out + 0.3)).sum()
    first = sg.grad(loss, leaves)
    outputs = [out, *first, *sg.grad(sum((g * g).sum() for g in first), leaves)]
    agree(outputs, sample(leaves, 1, case.low, case.high))


def agree(outputs: list[Node], values: dict, rtol: float = 1e-9) -> None:
    made = stabilize(outputs)
    check(Graph.of(made))
    again = stabilize(made)
    assert all(a is b for a, b in zip(made, again, strict=True)), "stabilize is not at rest"
    for old, new, a, b in zip(
        outputs, made, evaluate(list(outputs), values), evaluate(list(made), values), strict=True
    ):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        scale = np.abs(a).max(initial=1.0)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_mean_the_same(seed: int) -> None:
    loss, leaves = random_loss(seed)
    first = sg.grad(loss, leaves)
    agree([loss, *first], sample(leaves, seed), 1e-8)


def exponential_graph(seed: int) -> tuple[list[Node], list[Node]]:
    """Values from exponentials, logarithms, sums over axes, quotients and moves."""
    rng = np.random.default_rng(seed)
    leaves: list[Node] = [real("a", 3, 5), real("b", 5), real("c", 3, 1), real("d", 3, 5)]
    positive: list[Node] = [exp(x) for x in leaves] + [sg.sigmoid(leaves[0]), 1 + exp(leaves[3])]
    values = list(leaves)

    def pick(pool: list[Node], rank: int | None = None) -> Node:
        fitting = [n for n in pool if rank is None or n.ndim == rank]
        return fitting[rng.integers(len(fitting))]

    for _ in range(12):
        kind, p = rng.integers(7), pick(positive)
        q = pick([n for n in positive if n.ndim < 2 or n.shape[-1] == 5 or n.shape == (3, 1)])
        if kind == 0:
            positive.append(p + q if _meet(p, q) else p + 1)
        elif kind == 1:
            positive.append(p / q if _meet(p, q) else 1 / p)
        elif kind == 2:
            positive.append(p * q if _meet(p, q) else 2 * p)
        elif kind == 3:
            positive.append(p.sum(axis=-1, keepdims=True) if p.ndim else p)
        elif kind == 4:
            positive.append(exp(pick(values) - 0.5))
        elif kind == 5:
            values.append(log(p))
        else:
            values.append(p - q if _meet(p, q) else p)
    outputs = [sum(((v * 0.1).sum() for v in values[-4:]), sg.constant(0.0, "float64"))]
    outputs[0] = outputs[0] + sum((p / (1 + p)).sum() for p in positive[-4:])
    used = set(toposort(outputs))
    return outputs, [x for x in leaves if x in used]


def _meet(a: Node, b: Node) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(a.shape[::-1], b.shape[::-1], strict=False))


@pytest.mark.parametrize("seed", range(60))
def test_random_exponentials_mean_the_same(seed: int) -> None:
    (loss,), leaves = exponential_graph(seed)
    values = sample(leaves, seed)
    outputs = [loss, *sg.grad(loss, leaves)]
    made = stabilize(outputs)
    check(Graph.of(made))
    for a, b in zip(evaluate(outputs, values), evaluate(list(made), values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.abs(a).max(initial=1.0))


@pytest.mark.parametrize("form", FORMS, ids=[f.name for f in FORMS])
def test_nan_and_infinity_are_limits(form: Naive) -> None:
    x = sg.input("x", (3,), "float64")
    y = stabilize(form.write(x))
    nan, high, low = evaluate(y, {x: [np.nan, np.inf, -np.inf]})
    assert np.isnan(nan)
    if form.points is WIDE:
        with mp.workdps(60):
            for got, end in ((high, 1e4), (low, -1e4)):
                limit = float(form.truth(mp.mpf(end)))
                if np.isfinite(got):
                    assert abs(got - limit) < 1e-9
                else:
                    assert np.isnan(got) or abs(limit) > 5e3


def test_a_chain_and_a_deep_network_in_linear_time() -> None:
    x = h = sg.input("x", (7,))
    for _ in range(33_333):
        h = sg.sin(h * 1.5 + x)
    assert stabilize(h) is h
    for _ in range(300):
        h = log(1 + exp(h))
    assert stabilize(h).body == sg.softplus(x).body
    n = sg.dim("n")
    y = sg.input("y", (n, 7))
    weights = [sg.parameter(f"W{k}", (7, 7)) for k in range(200)]
    for W in weights:
        y = sg.tanh(y @ W)
    loss, gradients = sg.value_and_grad(y.mean(), weights)
    assert stabilize((loss, *gradients))[0] is loss
