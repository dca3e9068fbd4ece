"""Sums of exponentials and variances over any axes, through moves and reads, also inside a scan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special as sp

import symgrad as sg
from symgrad.calculus.stabilization import stabilize, stabilize_graph
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Node, einsum_node

exp, log = sg.exp, sg.log
SHAPE = (3, 5, 2)
AXES = [0, 1, 2, -1, (0, 2), (1, 2), None]
OFFSETS = [0.0, 1000.0, -1000.0]


def data(offset: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape) * 3 + offset


def stable(e: Node, values: dict) -> np.ndarray:
    made = stabilize(e)
    check(Graph.of([made]))
    assert stabilize(made) is made
    assert (made.shape, made.dtype) == (e.shape, e.dtype)
    return evaluate(made, values)


LOGSUMEXP: dict[str, Callable[..., Node]] = {
    "plain": lambda x, **k: log(exp(x).sum(**k)),
    "scaled": lambda x, **k: log(2.0 * exp(x).sum(**k)) - float(np.log(2.0)),
    "shifted": lambda x, **k: log(exp(x + 1.0).sum(**k)) - 1.0,
    "halved": lambda x, **k: log((exp(x) / 4.0).sum(**k)) + float(np.log(4.0)),
    "of a double": lambda x, **k: log(exp(2.0 * (x / 2.0)).sum(**k)),
    "negative": lambda x, **k: -log(1.0 / exp(x).sum(**k)),
    "squared": lambda x, **k: log(exp(x).sum(**k) ** 2) / 2.0,
    "product": lambda x, **k: log((exp(x / 2) * exp(x / 2)).sum(**k)),
    "twice negated": lambda x, **k: log(sg.sum(exp(-(-1.0 * x)), **k)),
}


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", LOGSUMEXP)
def test_logsumexp(name: str, axis, keepdims: bool) -> None:
    x = sg.input("x", SHAPE, "float64")
    e = LOGSUMEXP[name](x, axis=axis, keepdims=keepdims)
    loss = e.sum()
    before, after = sg.grad(loss, x), sg.grad(stabilize(loss), x)
    for offset in OFFSETS:
        X = data(offset)
        want = sp.logsumexp(X, axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(stable(e, {x: X}), want, rtol=1e-12)
        slope = sp.softmax(X, axis=axis)
        np.testing.assert_allclose(stable(before, {x: X}), slope, rtol=1e-10, atol=1e-300)
        np.testing.assert_allclose(evaluate(after, {x: X}), slope, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("axis", AXES)
def test_logmeanexp_with_symbolic_extents(axis) -> None:
    B, K = sg.dim("B"), sg.dim("K")
    x = sg.input("x", (B, 5, K), "float64")
    e = log(exp(x).mean(axis=axis))
    for offset in OFFSETS:
        X = data(offset)
        count = X.size if axis is None else np.prod([SHAPE[a] for a in np.atleast_1d(axis)])
        want = sp.logsumexp(X, axis=axis) - np.log(count)
        np.testing.assert_allclose(stable(e, {x: X}), want, rtol=1e-12)


SOFTMAX: dict[str, Callable[[Node, int], Node]] = {
    "quotient": lambda x, k: exp(x) / exp(x).sum(axis=k, keepdims=True),
    "reciprocal": lambda x, k: exp(x) * (1 / exp(x).sum(axis=k, keepdims=True)),
    "power": lambda x, k: exp(x) * exp(x).sum(axis=k, keepdims=True) ** -1,
    "mean": lambda x, k: exp(x) / exp(x).mean(axis=k, keepdims=True) / SHAPE[k],
    "shared": lambda x, k: shared(x, k),
    "turned": lambda x, k: sg.moveaxis(
        sg.moveaxis(exp(x), k, 0) / exp(x).sum(axis=k), 0, k
    ),
    "broadcast": lambda x, k: exp(x) / sg.broadcast_to(exp(x).sum(axis=k, keepdims=True), SHAPE),
}


def shared(x: Node, axis: int) -> Node:
    e = exp(x)
    total = e.sum(axis=axis, keepdims=True)
    return (e / total + e * sg.reciprocal(total)) / 2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_and_its_logarithm(name: str, axis: int) -> None:
    x = sg.input("x", SHAPE, "float64")
    p = SOFTMAX[name](x, axis)
    weight = sg.constant(np.random.default_rng(2).normal(size=SHAPE))
    gradient = sg.grad((p * weight).sum(), x)
    logs = log(p) if name != "shared" else log(sg.softmax(x, axis))
    entropy = -(p * log(p)).sum() if name != "shared" else -(p * logs).sum()
    slope, flat = sg.grad(entropy, x), sg.grad(p.sum(), x)  # probabilities sum to 1
    for offset in OFFSETS:
        X = data(offset)
        np.testing.assert_allclose(stable(flat, {x: X}), 0.0, atol=1e-15)
        P, L = sp.softmax(X, axis), sp.log_softmax(X, axis)
        np.testing.assert_allclose(stable(p, {x: X}), P, rtol=1e-12)
        np.testing.assert_allclose(stable(logs, {x: X}), L, rtol=1e-11)
        W = weight.value
        want = P * (W - (P * W).sum(axis, keepdims=True))
        np.testing.assert_allclose(stable(gradient, {x: X}), want, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(stable(entropy, {x: X}), -(P * L).sum(), rtol=1e-11)
        want = -P * (L - (P * L).sum(axis, keepdims=True))
        np.testing.assert_allclose(stable(slope, {x: X}), want, rtol=1e-9, atol=1e-14)
    far = np.zeros(SHAPE)
    far[0, 0, 0] = 1e4  # probabilities that underflow to 0
    assert np.isfinite(stable(logs, {x: far})).all()
    assert np.isfinite(stable(slope, {x: far})).all()


@pytest.mark.parametrize("read", ["pairs", "rows", "slice", "take"])
def test_the_likelihood_of_labels_by_hand(read: str) -> None:
    x, y = sg.input("x", (3, 5), "float64"), sg.input("y", (3,), "int32")
    p = exp(x) / exp(x).sum(axis=1, keepdims=True)
    if read == "pairs":
        picked = p[sg.arange(3, dtype="int32"), y]
    elif read == "rows":
        picked = sg.take_along_axis(p, sg.expand_dims(y, 1), 1)[:, 0]
    elif read == "slice":
        picked = p[:, 2]
    else:
        picked = sg.take(p, [2], 1).reshape(3)
    loss = -log(picked).mean()
    labels = np.array([4, 0, 2], np.int32) if read in ("pairs", "rows") else np.full(3, 2, np.int32)
    gradient = sg.grad(loss, x)
    for offset in OFFSETS:
        X = data(offset, (3, 5)) * 40
        values = {x: X, y: labels}
        L = sp.log_softmax(X, 1)
        want = -L[np.arange(3), labels].mean()
        np.testing.assert_allclose(stable(loss, values), want, rtol=1e-11)
        slope = sp.softmax(X, 1)
        slope[np.arange(3), labels] -= 1
        np.testing.assert_allclose(stable(gradient, values), slope / 3, rtol=1e-9, atol=1e-14)
        after = sg.grad(stabilize(loss), x)
        np.testing.assert_allclose(evaluate(after, values), slope / 3, rtol=1e-9, atol=1e-14)


def test_the_joint_graph_shares_the_exponentials() -> None:
    x = sg.input("x", (3, 5), "float64")
    loss = log(exp(x).sum(axis=1)).sum()
    value, slope = stabilize(sg.value_and_grad(loss, x))
    nodes = [n for n in Graph.of(sg.simplify([value, slope])).nodes if n.args]
    assert sum("exp" in str(getattr(n, "body", "")) for n in nodes) == 1
    assert sum(getattr(n, "op", "") == "max" for n in nodes) == 1


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_logsumexp_in_both_modes(order: int) -> None:
    x = sg.input("x", (4,), "float64")
    loss = log(exp(x).sum())
    X = np.array([1000.0, 999.0, 990.0, -1000.0])
    P = sp.softmax(X)
    if order == 1:
        for made in (sg.grad(loss, x), sg.jacobian(loss, x)):
            np.testing.assert_allclose(stable(made, {x: X}), P, rtol=1e-12)
        return
    want = np.diag(P) - np.outer(P, P)
    np.testing.assert_allclose(stable(sg.hessian(loss, x), {x: X}), want, rtol=1e-9, atol=1e-15)
    v = np.array([1.0, -2.0, 0.5, 3.0])
    made = sg.hvp(loss, x, v)
    np.testing.assert_allclose(stable(made, {x: X}), want @ v, rtol=1e-9, atol=1e-15)
    gradient = sg.grad((sg.grad(loss, x) * v).sum(), x)
    np.testing.assert_allclose(stable(gradient, {x: X}), want @ v, rtol=1e-9, atol=1e-15)


def test_two_and_three_exponentials() -> None:
    a, b, c = (sg.input(n, (4,), "float64") for n in "abc")
    A, B = np.array([1000.0, -1000.0, 0.0, 7.0]), np.array([999.0, -1001.0, -50.0, 7.0])
    C = np.array([0.0, -1000.0, 50.0, -7.0])
    values = {a: A, b: B, c: C}
    two = log(exp(a) + exp(b))
    np.testing.assert_allclose(stable(two, values), np.logaddexp(A, B), rtol=1e-15)
    for grads in (sg.grad(two.sum(), [a, b]), sg.grad(stabilize(two).sum(), [a, b])):
        for g, want in zip(grads, (sp.expit(A - B), sp.expit(B - A)), strict=True):
            np.testing.assert_allclose(stable(g, values), want, rtol=1e-13)
    stack = np.stack([A, B, C])
    three = log(exp(a) + exp(b) + exp(c))
    np.testing.assert_allclose(stable(three, values), sp.logsumexp(stack, 0), rtol=1e-13)
    share = exp(b) / (exp(a) + exp(b) + exp(c))
    np.testing.assert_allclose(stable(share, values), sp.softmax(stack, 0)[1], rtol=1e-12)
    slope = sg.grad(three.sum(), c)
    np.testing.assert_allclose(stable(slope, values), sp.softmax(stack, 0)[2], rtol=1e-12)
    inf = {a: np.array([np.inf, -np.inf, np.inf, 0]), b: np.array([1, -np.inf, np.inf, -np.inf])}
    np.testing.assert_array_equal(stable(two, inf), np.logaddexp(inf[a], inf[b]))


def test_weighted_sums_and_products_of_matrices() -> None:
    x, w = sg.input("x", (3, 5), "float64"), sg.input("w", (5, 2), "float64")
    W = np.random.default_rng(0).uniform(0.1, 1.0, size=(5, 2))
    e = log(exp(x) @ w)
    mixture = log((exp(x) * w[:, 0]).sum(axis=1))
    for offset in OFFSETS:
        X = data(offset, (3, 5))
        want = sp.logsumexp(X[:, :, None], b=W[None], axis=1)
        np.testing.assert_allclose(stable(e, {x: X, w: W}), want, rtol=1e-12)
        np.testing.assert_allclose(stable(mixture, {x: X, w: W}), want[:, 0], rtol=1e-12)
        slope = sg.grad(mixture.sum(), x)
        joint = X + np.log(W[:, 0])
        np.testing.assert_allclose(
            stable(slope, {x: X, w: W}), sp.softmax(joint, 1), rtol=1e-9, atol=1e-300
        )


def test_rows_without_a_finite_element() -> None:
    x = sg.input("x", (3, 2), "float64")
    X = np.array([[-np.inf, -np.inf], [np.inf, 0.0], [np.nan, 0.0]])
    got = stable(log(exp(x).sum(axis=1)), {x: X})
    np.testing.assert_array_equal(got, [-np.inf, np.inf, np.nan])


# -- variance -------------------------------------------------------------------------------------
VARIANCE: dict[str, Callable[..., Node]] = {
    "means": lambda x, **k: (x * x).mean(**k) - x.mean(**k) ** 2,
    "square": lambda x, **k: sg.square(x).mean(**k) - sg.square(x.mean(**k)),
    "product": lambda x, **k: (x**2).mean(**k) - x.mean(**k) * x.mean(**k),
    "scaled": lambda x, **k: ((3 * x) ** 2).mean(**k) / 9 - x.mean(**k) ** 2,
    "negated": lambda x, **k: -(x.mean(**k) ** 2 - (x * x).mean(**k)),
}


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", VARIANCE)
def test_variance(name: str, axis, keepdims: bool) -> None:
    x = sg.input("x", SHAPE, "float64")
    e = VARIANCE[name](x, axis=axis, keepdims=keepdims)
    for offset in (0.0, 1e8):
        X = data(offset)
        want = np.var(X, axis=axis, keepdims=keepdims)
        if name == "negated":
            np.testing.assert_allclose(stable(e, {x: data(0.0)}),
                                       np.var(data(0.0), axis=axis, keepdims=keepdims), rtol=1e-9)
            continue
        np.testing.assert_allclose(stable(e, {x: X}), want, rtol=1e-6 if offset else 1e-12)


def test_variance_with_symbolic_extents_and_sums() -> None:
    B = sg.dim("B")
    x = sg.input("x", (B, 7), "float64")
    X = data(1e8, (6, 7))
    e = (x * x).mean(axis=0) - x.mean(axis=0) ** 2
    np.testing.assert_allclose(stable(e, {x: X}), X.var(0), rtol=1e-6)
    y = sg.input("y", (6, 7), "float64")
    by_sums = ((y * y).sum(axis=0) - y.sum(axis=0) ** 2 / 6) / 5
    np.testing.assert_allclose(stable(by_sums, {y: X}), X.var(0, ddof=1), rtol=1e-6)
    deviation = sg.sqrt((y**2).mean() - y.mean() ** 2)
    np.testing.assert_allclose(stable(deviation, {y: X}), X.std(), rtol=1e-6)


def test_covariance() -> None:
    x, y = sg.input("x", (50,), "float64"), sg.input("y", (50,), "float64")
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=50) + 1e8, rng.normal(size=50) - 1e8
    e = (x * y).mean() - x.mean() * y.mean()
    want = ((X - X.mean()) * (Y - Y.mean())).mean()
    np.testing.assert_allclose(stable(e, {x: X, y: Y}), want, rtol=1e-6)
    other = (x * x).mean() - y.mean() ** 2  # no variance
    assert stabilize(other) is other
    weighted = (x * x).sum() / 49 - x.mean() ** 2  # no variance either
    assert stabilize(weighted) is weighted


def test_the_gradient_of_a_variance_agrees() -> None:
    x = sg.input("x", (6,), "float64")
    X = data(1e4, (6,))
    loss = (x * x).mean() - x.mean() ** 2
    want = 2 * (X - X.mean()) / 6
    for g in (stabilize(sg.grad(loss, x)), sg.grad(stabilize(loss), x)):
        np.testing.assert_allclose(evaluate(g, {x: X}), want, rtol=1e-9, atol=1e-11)


# -- graphs inside, and the compiler --------------------------------------------------------------
def test_a_closed_graph_keeps_its_inputs() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (3,))
    graph = Graph((y, x), (log(1 + exp(x)),))
    made = stabilize_graph(graph)
    assert made.inputs == (y, x) and made.outputs[0].body == sg.softplus(x).body
    assert stabilize_graph(made) is made


def test_inside_the_step_of_a_scan() -> None:
    xs = sg.input("xs", (5, 3), "float64")
    h0 = sg.input("h0", (3,), "float64")

    def step(h, x):
        h = log(exp(h) + exp(x))
        return h, h

    last, ys = sg.scan(step, h0, xs)
    values = {xs: data(1000.0, (5, 3)), h0: data(900.0, (3,))}
    made = stabilize([last, ys])
    check(Graph.of(made))
    want = np.logaddexp.accumulate(np.concatenate([values[h0][None], values[xs]]), axis=0)[1:]
    got = evaluate(list(made), values)
    np.testing.assert_allclose(got[0], want[-1], rtol=1e-14)
    np.testing.assert_allclose(got[1], want, rtol=1e-14)
    before = evaluate(stabilize(sg.grad(last.sum(), xs)), values)
    after = evaluate(sg.grad(made[0].sum(), xs), values)
    slope = np.exp(values[xs] - want[-1])
    np.testing.assert_allclose(before, slope, rtol=1e-10)
    np.testing.assert_allclose(after, slope, rtol=1e-10)
    assert all(a is b for a, b in zip(stabilize(made), made, strict=True))


def test_compiled_programs_are_stable() -> None:
    x, y = sg.input("x", (3, 5)), sg.input("y", (3,), "int32")
    p = exp(x) / exp(x).sum(axis=1, keepdims=True)
    loss = -log(p[sg.arange(3, dtype="int32"), y]).mean()
    f = sg.compile([loss, sg.grad(loss, x), 1 / (1 + exp(-x))])
    X = data(300.0, (3, 5)).astype(np.float32)
    labels = np.array([4, 0, 2], np.int32)
    got = f(x=X, y=labels)
    L = sp.log_softmax(X.astype(np.float64), 1)
    np.testing.assert_allclose(got[0], -L[np.arange(3), labels].mean(), rtol=1e-5)
    slope = np.exp(L)
    slope[np.arange(3), labels] -= 1
    np.testing.assert_allclose(got[1], slope / 3, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(got[2], 1.0)
    assert "stabilize" in f.report() and "stabilize" in f.stages.seconds


def test_what_the_evaluator_means_is_not_changed() -> None:
    x = sg.input("x", (2,))
    assert np.isinf(evaluate(log(exp(x).sum()), {x: [1000.0, 0.0]}))


def test_a_sum_that_is_written_as_an_einsum() -> None:
    x = sg.input("x", (3, 5), "float64")
    e = exp(x)
    total = einsum_node((e,), ((0, 1),), (1, 2), {2: 1})
    np.testing.assert_allclose(
        stable(log(total), {x: data(1000.0, (3, 5))})[:, 0],
        sp.logsumexp(data(1000.0, (3, 5)), 0), rtol=1e-12,
    )
