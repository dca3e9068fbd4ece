"""What `symgrad fuzz` found once, made small: each was wrong, and is right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.nodes import Node


def real(name: str, *shape: int) -> Node:
    return sg.input(name, shape, "float64")


def along(x: Node, loss: Node, mode: str) -> tuple[Node, Node]:
    """The Hessian times a vector, forward over reverse or reverse over reverse."""
    t = sg.input("t", x.shape, "float64")
    if mode == "hvp":
        return sg.hvp(loss, x, t), t
    return sg.grad(sg.sum(sg.grad(loss, x) * t), x), t


def sines(y: Node) -> Node:
    return sg.sum(sg.sin(y))


MODES = ("hvp", "grad of grad")


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_over_labels_keeps_its_columns(mode: str) -> None:
    # stabilize: the mask i1 == label was computed for the first column only
    x = real("x", 2, 3)
    loss = sines(sg.cross_entropy(x + 0.5, np.array([0, 2], np.int32)))
    second, t = along(x, loss, mode)
    values = {
        x: np.array([[0.3, 1.7, -0.4], [0.9, 0.1, 0.5]]),
        t: np.array([[1.0, 2.0, -0.5], [0.3, -0.5, 0.7]]),
    }
    got = sg.evaluate(sg.stabilize(second), values)
    np.testing.assert_allclose(got, sg.evaluate(second, values), rtol=0, atol=1e-14)
    assert np.abs(got).min() > 0.01


@pytest.mark.parametrize("mode", MODES)
def test_signs_multiply(mode: str) -> None:
    # stabilize: of sign(x)^2 one factor was lost where sqrt(x x) became |x|
    x = real("x", 1)
    wide = sg.broadcast_to(x, (2, 1))
    second, t = along(x, sines(sg.sqrt(wide * wide)), mode)
    got = sg.evaluate(sg.stabilize(second), {x: [-1.4], t: [1.0]})
    np.testing.assert_allclose(got, [-2 * np.sin(1.4)], rtol=1e-14)


@pytest.mark.parametrize(
    "softmax",
    [
        lambda e, total: e / total,
        lambda e, total: e * (1.0 / total),
    ],
)
def test_softmax_of_one(softmax: Callable[[Node, Node], Node]) -> None:
    # stabilize: over an axis of one, the exponents of x and of max x are one
    x = real("x", 1)
    e = sg.exp(x)
    slope = sg.grad(sines(softmax(e, sg.sum(e, axis=-1, keepdims=True))), x)
    assert abs(float(sg.evaluate(sg.stabilize(slope), {x: [-5.7]})[0])) < 1e-15


def test_an_empty_sum_of_exponentials() -> None:
    # stabilize: an axis of extent 0 has no largest exponent
    a, b = real("a", 0, 2), real("b", 0, 1, 2)
    y = sg.sin(a) * sg.exp(-(b**2))
    slopes = sg.stabilize(sg.grad(sines(y), [a, b]))
    for slope, shape in zip(sg.evaluate(slopes, {a: np.zeros((0, 2)), b: np.zeros((0, 1, 2))}),
                            ((0, 2), (0, 1, 2)), strict=True):  # fmt: skip
        assert slope.shape == shape


@pytest.mark.parametrize("mode", MODES)
def test_second_derivative_of_log_softmax_of_extremes(mode: str) -> None:
    # stabilize: e^(m - x) overflowed where a sum with it was multiplied by e^(x - m)
    x = real("x", 2)
    second, t = along(x, sines(sg.log(sg.softmax(x, axis=0))), mode)
    values = {x: [-657.6, 126.2], t: [1.0, 0.3]}
    stable, _ = along(x, sines(sg.log_softmax(x, axis=0)), "hvp")
    wanted = sg.evaluate(stable, {x: [-657.6, 126.2], "t": [1.0, 0.3]})
    got = sg.evaluate(sg.stabilize(second), values)
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    np.testing.assert_allclose(got[0], -0.7 * np.sin(-783.8), rtol=1e-9)


def test_a_steep_naive_softplus_at_order_2() -> None:
    # stabilize: 1 + e^(-40 x) was no polynomial of e^x of small degree, so that the second
    # derivative kept e^71 squared, which overflowed in compiled float32
    x = sg.input("x", (1, 1))
    y = sg.log(1.0 + sg.exp(x * -40.0))
    second = sg.hvp(sines(y), x, sg.ones_like(x) * 0.5)
    wanted = -0.5 * 1600 * np.sin(np.float64(np.float32(-1.7955) * -40))
    f = sg.compile([y, second])
    np.testing.assert_allclose(f(x=[[-1.7955]])[1], [[wanted]], rtol=1e-5)


def test_either_of_a_condition_and_its_opposite_masks_nothing() -> None:
    # the gradient of where(c, y, y) was masked by (c or not c), behind which e^-x e^x is unknown
    c, x = sg.input("c", (), "bool"), real("x", 2)
    y = sg.log(sg.exp(x))
    slope = sg.stabilize(sg.grad(sines(sg.where(c, y, y)), x))
    for truth in (True, False):
        got = sg.evaluate(slope, {c: np.array(truth), x: [129.0, 897.0]})
        np.testing.assert_allclose(got, np.cos([129.0, 897.0]), rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: sg.log(x * sg.tanh(x)),
        lambda x: sg.log(sg.tanh(x) ** 2),
        lambda x: sg.log((1.0 - sg.exp(x)) ** 2),
        lambda x: sg.log(sg.tanh(x) * sg.sinh(x)),
    ],
)
def test_logarithms_of_products_of_two_negative_factors(make: Callable[[Node], Node]) -> None:
    # stabilize: log(x tanh(x)) became log(x) + log(tanh(x)), NaN for negative x
    x = real("x", 4)
    values = {x: [-0.79, 0.3, -2.5, 1.9]}
    y = make(x)
    slope = sg.grad(sg.sum(y), x)
    for e in (y, slope):
        got = sg.evaluate(sg.stabilize(e), values)
        np.testing.assert_allclose(got, sg.evaluate(e, values), rtol=1e-12)


def test_a_ratio_without_a_closed_form_stays_as_written() -> None:
    x, along = (sg.input(name, (1, 1), dtype="float64") for name in ("x", "along"))
    y = sg.abs(np.sinh(x))
    loss = sg.sum(sg.sin(sg.sqrt(y * y)))
    (slope,) = sg.grad(loss, [x])
    (second,) = sg.grad(sg.sum(slope * along), [x])
    values = {x: np.full((1, 1), 0.38), along: np.ones((1, 1))}
    s, c = np.sinh(0.38), np.cosh(0.38)  # d2 sin(sinh x) = -sin(s) c^2 + cos(s) s
    found = sg.evaluate(sg.stabilize(second), values)
    np.testing.assert_allclose(found, -np.sin(s) * c**2 + np.cos(s) * s, rtol=1e-13)


def test_values_that_meet_in_axes_of_one_element_have_the_rank_of_their_node() -> None:
    x, along = (sg.input(name, (1, 1), dtype="float64") for name in ("x", "along"))
    loss = sg.sum(sg.sin(sg.log(sg.exp(-sg.max(x, keepdims=True)) + 1.0)))
    forward = sg.jvp(loss, [x], [along])[1]
    together = [loss, forward, *sg.grad(loss, [x]), *sg.hvp(loss, [x], [along])]
    values = {x: np.full((1, 1), 1.5), along: np.ones((1, 1))}
    found = sg.evaluate(list(sg.stabilize(together)), values)[-1]
    f = np.log1p(np.exp(-1.5))
    d, dd = -1 / (1 + np.exp(1.5)), np.exp(1.5) / (1 + np.exp(1.5)) ** 2  # f', f''
    np.testing.assert_allclose(found, -np.sin(f) * d**2 + np.cos(f) * dd, rtol=1e-13)


def test_a_slice_of_a_padded_empty_array_reads_the_padding() -> None:
    x = sg.input("x", (0,), dtype="float64")
    padded = sg.pad(x, (1, 0))
    read = sg.simplify(padded[::-1] + padded[:1])
    np.testing.assert_array_equal(sg.evaluate(read, {x: np.zeros(0)}), [0.0])
