"""Sums over axes as users write them, of any x, also in the steps of recurrences: as mpmath.

x is an input, scaled and shifted, negated, a matrix product with a bias, gathered or transposed;
axes and extents differ from form to form, and half of the extents are symbolic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.nodes import Node
from tests.test_stabilization_by_hand import hand, judge

exp, log, sig, tanh, sqrt = sg.exp, sg.log, sg.sigmoid, sg.tanh, sg.sqrt
SHAPE = (3, 5, 2)
AXES = [(0, False), (1, True), (-1, False), ((0, 2), False), ((-1, 0), True), (None, False)]
OFFSETS = [(0.0, 3.0), (150.0, 5.0)]  # e^88 overflows
UNITS, FLAT = 500.0, 3e-5  # x itself is rounded before it is summed
Values = Callable[[float, float], dict]


def leaf(name: str, *shape) -> Node:
    return sg.input(name, shape)


@pytest.fixture(autouse=True)
def seeded() -> None:
    global RNG
    RNG = np.random.default_rng(5)


def some(shape: tuple[int, ...], offset: float, scale: float) -> np.ndarray:
    return (RNG.normal(size=shape) * scale + offset).astype(np.float32)


def an_x(kind: int, symbolic: bool) -> tuple[Node, Node, Values]:
    """An expression of SHAPE, the leaf that it is differentiated by, and data around an offset."""
    a, b, c = (sg.dim("B"), 5, sg.dim("K")) if symbolic else SHAPE
    if kind == 0:
        x = leaf("x", a, b, c)
        return 2 * x - 3.5, x, lambda m, s: {x: some(SHAPE, m / 2, s)}
    if kind == 1:
        x = leaf("x", a, b, c)
        return -x, x, lambda m, s: {x: -some(SHAPE, m, s)}
    if kind == 2:
        x, W, bias = leaf("x", a, b, 4), leaf("W", 4, c), leaf("bias", c)
        return x @ W + bias, W, lambda m, s: {
            x: some((3, 5, 4), m / 20, 1.0), W: some((4, 2), 4.0, s / 9), bias: some((2,), m / 5, s)
        }
    if kind == 3:
        x, k = leaf("x", 9, b, c), sg.input("k", (a,), "int32")
        return x[k], x, lambda m, s: {
            x: some((9, 5, 2), m, s), k: np.array([4, 0, 8], np.int32)
        }
    x = leaf("x", c, a, b)
    return sg.transpose(x, (1, 2, 0)), x, lambda m, s: {x: some((2, 3, 5), m, s)}


REDUCED: dict[str, Callable[..., Node]] = {
    "log mean": lambda x, w, **k: log(exp(x).mean(**k)),
    "scaled": lambda x, w, **k: 0.7 * log(exp(x / 0.7).sum(**k)),
    "negated": lambda x, w, **k: -log(exp(-x).sum(**k)),
    "beside 1": lambda x, w, **k: log(1 + exp(x).sum(**k)),
    "by log1p": lambda x, w, **k: sg.log1p(exp(x).sum(**k)),
    "beside a little": lambda x, w, **k: log(1e-6 + exp(x).sum(**k)),
    "weights": lambda x, w, **k: log((w * exp(x)).sum(**k) / w.sum(**k)),
    "two sums": lambda x, w, **k: log(exp(x).sum(**k) + exp(2 * x).sum(**k)),
    "a quotient": lambda x, w, **k: log(exp(x).sum(**k) / exp(-x).sum(**k)),
    "squares": lambda x, w, **k: log((exp(x) ** 2).sum(**k)) / 2,
    "a root": lambda x, w, **k: log(sqrt(exp(x).sum(**k))),
    "an inverse squared": lambda x, w, **k: -log(1 / exp(x).sum(**k) ** 2),
    "a product": lambda x, w, **k: log((exp(x) * exp(w)).sum(**k)),
    "a norm": lambda x, w, **k: sqrt((x * x).sum(**k)),
    "a scaled norm": lambda x, w, **k: sg.square(0.3 * x).mean(**k) ** 0.5,
    "an inverse norm": lambda x, w, **k: sg.rsqrt((3 * x**2).sum(**k)),
    "variance": lambda x, w, **k: (x * x).mean(**k) - x.mean(**k) ** 2,
    "variance turned": lambda x, w, **k: -(x.mean(**k) ** 2) + sg.square(x).mean(**k),
    "less the variance": lambda x, w, **k: x.mean(**k) ** 2 - (x * x).mean(**k),
    "weighted variance": lambda x, w, **k: (
        (w * x * x).sum(**k) / w.sum(**k) - ((w * x).sum(**k) / w.sum(**k)) ** 2
    ),
    "covariance": lambda x, w, **k: (x * w).mean(**k) - x.mean(**k) * w.mean(**k),
    "deviation": lambda x, w, **k: sqrt((x * x).mean(**k) - x.mean(**k) ** 2),
}


def softmax(x: Node, axis: int) -> Node:
    return exp(x) / exp(x).sum(axis=axis, keepdims=True)


def normed(e: Node, axis: int) -> Node:
    return e / e.sum(axis=axis, keepdims=True)


ROWS: dict[str, Callable[[Node, Node, int], Node]] = {
    "temperature": lambda x, w, a: softmax(x / 0.3, a),
    "inverse": lambda x, w, a: exp(x) * (1 / exp(x).mean(axis=a, keepdims=True)),
    "mask by -1e9": lambda x, w, a: softmax(sg.where(w > 0.6, x, -1e9), a),
    "mask by where": lambda x, w, a: normed(sg.where(w > 0.06, exp(x), 0.0), a),
    "mask by a product": lambda x, w, a: normed(sg.astype(w > 0.06, "float32") * exp(x), a),
    "weights": lambda x, w, a: normed(w * exp(x), a),
    "less its log": lambda x, w, a: exp(x - log(exp(x).sum(axis=a, keepdims=True))),
    "log": lambda x, w, a: log(softmax(x, a)),
    "log of the verb": lambda x, w, a: log(sg.softmax(x, a)),
    "log by parts": lambda x, w, a: x - log(exp(x).sum(axis=a, keepdims=True)),
    "cross entropy": lambda x, w, a: -(w * log(softmax(x, a))).sum(axis=a),
    "cross entropy, floor": lambda x, w, a: -(w * log(softmax(x, a) + 1e-9)).sum(axis=a),
    "divergence": lambda x, w, a: (w * (log(w) - log(softmax(x, a)))).sum(axis=a),
    "divergence of x": lambda x, w, a: (softmax(x, a) * log(softmax(x, a) / w)).sum(axis=a),
    "entropy": lambda x, w, a: -(softmax(x, a) * log(softmax(x, a))).sum(axis=a),
    "log ratio": lambda x, w, a: log(exp(x).sum(axis=a)) - log(exp(x + w).sum(axis=a)),
    "focal": lambda x, w, a: -((1 - softmax(x, a)) ** 2 * w * log(softmax(x, a))).sum(axis=a),
    "two logits": lambda x, w, a: exp(x) / (exp(x) + exp(w)),
    "log of two": lambda x, w, a: log(0.3 * exp(x) + 0.7 * exp(w)),
    "log of three": lambda x, w, a: log(exp(x) + exp(w) + exp(-x)),
    "log of a mixture": lambda x, w, a: log(w * exp(x) + (1 - w)),
    "cross entropy of bits": lambda x, w, a: -(w * log(hand(x)) + (1 - w) * log(1 - hand(x))),
    "unit": lambda x, w, a: x / sqrt((x * x).sum(axis=a, keepdims=True)),
    "hypot": lambda x, w, a: sqrt(x * x + 4 * w**2),
}


def check_at_offsets(name: str, y: Node, w: Node, wrt: Node, values: Values, turn: int) -> None:
    slope = sg.grad((y * 1.25).sum(), wrt)
    far = [(1e25, 3e24), (1e-25, 1e-26)] if "norm" in name else []
    for offset, scale in OFFSETS[turn:] + far:
        data = {**values(offset, scale), w: RNG.uniform(0.05, 1, SHAPE).astype(np.float32)}
        judge(name, y, data, 350, 0.0 if far else 3e-6, UNITS)
        if offset == OFFSETS[1][0] and not turn:
            judge(f"{name}, derivative", slope, data, 450, FLAT, UNITS)


@pytest.mark.parametrize("place", range(len(REDUCED)))
def test_sums_over_axes(place: int) -> None:
    name, write = list(REDUCED.items())[place]
    for turn in range(2):
        symbolic = (place + turn) % 2 == 0
        x, wrt, values = an_x((place + 2 * turn) % 5, symbolic)
        axis, keepdims = AXES[(place + 3 * turn) % len(AXES)]
        w = leaf("w", *((sg.dim("B"), 5, sg.dim("K")) if symbolic else SHAPE))
        check_at_offsets(name, write(x, w, axis=axis, keepdims=keepdims), w, wrt, values, turn)


@pytest.mark.parametrize("place", range(len(ROWS)))
def test_rows(place: int) -> None:
    name, write = list(ROWS.items())[place]
    for turn in range(2):
        symbolic = (place + turn) % 2 == 0
        x, wrt, values = an_x((place + 3 * turn) % 5, symbolic)
        w = leaf("w", *((sg.dim("B"), 5, sg.dim("K")) if symbolic else SHAPE))
        check_at_offsets(name, write(x, w, 1 if turn else -1), w, wrt, values, turn)


# -- recurrences ----------------------------------------------------------------------------------
def forward_algorithm(al, e, A):
    al = log((exp(al).reshape(3, 1) * exp(A)).sum(axis=0)) + e
    return al, al


def forward_by_matmul(al, e, A):
    al = log(exp(al) @ exp(A)) + e
    return al, al


def recurrent(h, x, W):
    h = hand(h @ W + x)
    return h, h


def recurrent_tanh(h, x, W):
    z = h @ W + x
    h = (exp(z) - exp(-z)) / (exp(z) + exp(-z))
    return h, h


def gated(h, x, W):
    z = hand(h @ W + x)
    h = (1 - z) * h + z * (x * sig(x) / 100)
    return h, h


def attention(c, x, W):
    p = softmax(c * x, 0)
    return c + p, log(p)


def mish(c, x, W):
    c = log(1 + exp(c)) + x * tanh(log(1 + exp(x)))
    return c, c


STEPS = [forward_algorithm, forward_by_matmul, recurrent, recurrent_tanh, gated, attention, mish]


@pytest.mark.parametrize("step", STEPS, ids=[s.__name__ for s in STEPS])
def test_steps_of_recurrences(step) -> None:
    T = sg.dim("T")
    xs, h0, W = leaf("xs", T, 3), leaf("h0", 3), leaf("W", 3, 3)
    _, ys = sg.scan(lambda h, x: step(h, x, W), h0, xs)
    data = {xs: some((4, 3), -90.0, 60.0), h0: some((3,), -100.0, 1.0), W: some((3, 3), 0.0, 30.0)}
    if step is forward_by_matmul:  # each factor is shifted by its own largest element
        data |= {xs: some((4, 3), -90.0, 5.0), W: some((3, 3), 0.0, 3.0)}
    if step is mish:
        data |= {xs: some((4, 3), 0.0, 60.0), h0: some((3,), 100.0, 1.0)}
    judge(step.__name__, ys, data, 500, FLAT, UNITS)
    judge(f"{step.__name__}, derivative", sg.grad((ys * 1.25).sum(), xs), data, 500, FLAT, UNITS)


def test_an_online_softmax_is_right_and_a_certificate_names_its_steps() -> None:
    T = sg.dim("T")
    xs, m0, s0 = leaf("xs", T), leaf("m0"), leaf("s0")

    def step(carry, x):
        m, s = carry
        n = sg.maximum(m, x)
        return (n, s * exp(m - n) + exp(x - n)), log(1 + exp(x))

    (m, s), ys = sg.scan(step, (m0, s0), xs)
    data = {xs: some((6,), 400.0, 10.0), m0: np.float32(350.0), s0: np.float32(1.0)}
    judge("online softmax", log(s) + m, data, 500, 0.0, UNITS)
    judge("its derivative", sg.grad(log(s) + m, xs), data, 500, FLAT, UNITS)
    _, certificate = sg.stabilize(ys, certificate=True)
    (entry,) = certificate
    assert entry.rule == "softplus" and entry.where.startswith("test_stabilization_rows.py:")
    assert entry.interval is not None
