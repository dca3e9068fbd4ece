"""Truncated backpropagation through time, against graphs that are unrolled and cut by hand."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.errors import SymgradError
from tests.calculus_judges import adjoint, real, sample, weighed

STEPS = 7


def leaves():
    return [real("x", STEPS, 5, 3), real("h", 5, 2), real("w", 2, 2), real("u", 3, 2)]


def step_of(w, u):
    def step(c, x):
        h, s = c
        h = sg.tanh(h @ w + x @ u + s[:, None])
        return (h, s * 0.5 + h.sum(axis=1)), h * h

    return step


def by_hand(every, reverse, x, h, w, u):
    """The steps one after another, all that enters the steps k, 2k, .. under stop_gradient."""
    c, ys = (h, sg.zeros((5,), "float64")), [None] * STEPS
    order = list(range(STEPS))[:: -1 if reverse else 1]
    for done, t in enumerate(order):
        if every and done and done % every == 0:
            c = tuple(map(sg.stop_gradient, c))
        c, ys[t] = step_of(w, u)(c, x[t])
    return c, sg.stack(ys)


def scanned(every, reverse, x, h, w, u):
    init = (h, sg.zeros((5,), "float64"))
    return sg.scan(step_of(w, u), init, x, reverse=reverse, truncate=every)


def judged(made, wrt):
    """Values, gradients, and the gradient of a sum of the gradients."""
    (h, s), ys = made
    loss = weighed(h, 1) + weighed(s, 2) + weighed(ys, 3)
    first = sg.grad(loss, wrt)
    slope = weighed(first[2], 4) + weighed(first[1], 5)
    return [h, s, ys, *first, *sg.grad(slope, wrt)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("every", [1, 2, 3, 6, 7, 100])
def test_gradients_are_those_of_the_graph_cut_by_hand(every, reverse):
    wrt = leaves()
    cut_at = every if every < STEPS else None
    wanted = judged(by_hand(cut_at, reverse, *wrt), wrt)
    got = judged(scanned(every, reverse, *wrt), wrt)
    values = sample(wrt)
    for a, b in zip(sg.evaluate(got, values), sg.evaluate(wanted, values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_cut_differs_from_the_whole_and_the_init_keeps_its_gradient():
    wrt = leaves()
    values = sample(wrt)
    whole, cut = (
        sg.evaluate(judged(scanned(k, False, *wrt), wrt), values) for k in (None, 3)
    )
    for a, b in zip(whole[:3], cut[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(whole[3:7], cut[3:7], strict=True))
    assert np.abs(cut[4]).min() > 0  # the init enters the first step, which is not cut


@pytest.mark.parametrize("every", [1, 3])
def test_forward_and_reverse_mode_agree(every):
    wrt = leaves()
    (h, s), ys = scanned(every, True, *wrt)
    values = sample(wrt)
    out = ys * s[:, None] + h
    adjoint(out, wrt, values)
    adjoint(sg.grad(weighed(out, 5), wrt[2]), wrt, values, (2,))


@pytest.mark.parametrize("reverse", [False, True])
def test_compiled(reverse):
    """One program for all chunks and lengths: it is symbolic in T, and has the three cuts."""
    T = sg.dim("T")
    x, (_, h, w, u) = sg.input("x", (T, 5, 3), "float64"), leaves()
    wrt = [h, w, u]
    outputs = []
    for every in (1, 3, 100):
        (last, s), ys = scanned(every, reverse, x, h, w, u)
        first = sg.grad(weighed(last, 1) + weighed(s, 2) + (ys * ys).sum(), wrt)
        outputs += [last, ys, *first, *sg.grad(weighed(first[1], 4), wrt)]
    f = sg.compile(outputs)
    rng = np.random.default_rng(1)
    values = {leaf.name: rng.uniform(-1.5, 1.5, leaf.shape) for leaf in wrt}
    for steps in (0, 1, 3, 7):
        values["x"] = rng.uniform(-1.5, 1.5, (steps, 5, 3))
        for a, b in zip(f(**values), sg.evaluate(outputs, values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_what_is_cut_costs_nothing_on_the_way_forward():
    x, h = sg.input("x", (5, 3)), sg.input("h", (3,))
    plain, cut = (
        sg.compile(sg.scan(lambda c, x: (sg.tanh(c + x), ()), h, x, truncate=k)[0])
        for k in (None, 2)
    )
    assert cut.stages.rewritten.key == plain.stages.rewritten.key


def test_whole_numbers_pass_a_cut():
    x = sg.input("x", (5,))
    (n, last), _ = sg.scan(
        lambda c, x: ((c[0] + 1, c[1] + x), ()), (sg.constant(0, "int32"), 0.0), x, truncate=2
    )
    assert sg.evaluate([n, last], {x: np.ones(5)}) == [5, 5]


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "2"])
def test_what_no_chunk_can_be(wrong):
    with pytest.raises(SymgradError, match=r"truncate=.*needs a whole number of steps >= 1"):
        sg.scan(lambda c, x: (c, ()), sg.constant(0.0), sg.ones((3,)), truncate=wrong)
