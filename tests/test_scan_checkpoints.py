"""Recurrences in chunks, whose derivatives keep a carry per chunk, against those in one piece."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.dims import DerivedDim, ceil_sqrt, quotient_of, roots, value
from symgrad.graph.errors import SymgradError
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.traversal import toposort
from tests.calculus_judges import adjoint, real, sample, weighed

T, B = sg.dim("T"), sg.dim("B")


def step_of(w, u):
    def step(c, x):
        h, count = c
        h = sg.tanh(h @ w + x @ u + 0.1 * count.astype("float64"))
        return (h, count + 1), {"h": h, "sum": h.sum(axis=1) * count.astype("float64")}

    return step


def judged(x, h, w, u, **options):
    """Values, gradients, and the gradient of a sum of the gradients."""
    (last, count), ys = sg.scan(step_of(w, u), (h, sg.constant(0, "int32")), x, **options)
    loss = (last * last).sum() + (ys["h"] ** 3).sum() + sg.sin(ys["sum"]).sum()
    wrt = [x, h, w, u]
    first = sg.grad(loss, wrt)
    slope = weighed(first[2], 4) + (first[1] ** 2).sum()
    return [last, count, ys["h"], ys["sum"], *first, *sg.grad(slope, wrt)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 7, 9])
def test_chunks_change_nothing(steps, reverse):
    leaves = [real("x", steps, 4, 3), real("h", 4, 2), real("w", 2, 2), real("u", 3, 2)]
    values = sample(leaves)
    wanted = sg.evaluate(judged(*leaves, reverse=reverse), values)
    for every in (1, 3, 4, 100, "sqrt"):
        made = judged(*leaves, reverse=reverse, checkpoint=every)
        for a, b in zip(sg.evaluate(made, values), wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def symbolic():
    x, h = sg.input("x", (T, B, 3), "float64"), sg.input("h", (B, 2), "float64")
    return x, h, real("w", 2, 2), real("u", 3, 2)


@pytest.mark.parametrize("every", [3, "sqrt"])
def test_compiled_for_any_number_of_steps(every):
    leaves = symbolic()
    n = sg.input("n", (B,), "int32")
    x, h, w, u = leaves
    (cut, _), ys = sg.scan(step_of(w, u), (h, sg.zeros((B, 1), "int32")), x, reverse=True,
                           checkpoint=every, truncate=2, lengths=n)  # fmt: skip
    outputs = [*judged(*leaves, checkpoint=every), *judged(*leaves, reverse=True, checkpoint=every),
               *sg.grad((cut * cut).sum() + ys["h"].sum(), [x, h, w, u])]  # fmt: skip
    f = sg.compile(outputs)
    rng = np.random.default_rng(0)
    for steps in (0, 1, 2, 7, 16):
        values = {"x": rng.normal(size=(steps, 4, 3)), "h": rng.normal(size=(4, 2)),
                  "w": rng.normal(size=(2, 2)), "u": rng.normal(size=(3, 2)),
                  "n": rng.integers(0, steps + 1, 4)}  # fmt: skip
        for a, b in zip(f(**values), sg.evaluate(outputs, values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_forward_and_reverse_mode_agree():
    leaves = [real("x", 7, 4, 3), real("h", 4, 2), real("w", 2, 2), real("u", 3, 2)]
    (last, _), ys = sg.scan(step_of(*leaves[2:]), (leaves[1], sg.constant(0, "int32")), leaves[0],
                            checkpoint=3)  # fmt: skip
    out = ys["h"] * ys["sum"][..., None] + last
    adjoint(out, leaves, sample(leaves), (2,))


def stacked(nodes):
    """Extents of everything that the recurrences around steps stack, outside and inside."""
    outer = [n for n in toposort(nodes) if isinstance(n, Fold)]
    inner = [n for fold in outer for n in toposort(fold.body.outputs) if isinstance(n, Fold)]
    return [
        {shape[0] for fold in group for shape, _ in fold.results[fold.carries :]}
        for group in (outer, inner)
    ]


def test_nothing_of_all_steps_is_kept():
    x, h, w, u = real("x", 12, 4, 3), real("h", 4, 2), real("w", 2, 2), real("u", 3, 2)

    def rewritten(every):
        (last, _), _ = sg.scan(step_of(w, u), (h, sg.constant(0, "int32")), x, checkpoint=every)
        return sg.compile(sg.grad((last * last).sum(), [h, w])).stages.rewritten.outputs

    assert stacked(rewritten(3)) == [{4}, {3}]
    assert stacked(rewritten(None)) == [{12}, set()]


def test_random_numbers_are_those_of_one_piece():
    x, w = sg.input("x", (7, 3, 3)), sg.parameter("w", (3, 3))

    def loss(every):
        c, ys = sg.scan(
            lambda c, x: (sg.dropout(sg.tanh(c @ w + x), 0.4), c), sg.ones((3, 3)), x,
            checkpoint=every,
        )  # fmt: skip
        return (c * c).sum() + ys.sum()

    values = {"x": np.random.default_rng(0).normal(size=(7, 3, 3)), "w": np.eye(3)}
    results = []
    for every in (None, 3):
        outputs = [loss(every), *sg.grad(loss(every), [w])]
        f = sg.compile(outputs, training=True, seed=3)
        results += [f(**values), sg.evaluate(outputs, values, seed=3, training=True)]
    for first, second in pairwise(results):
        np.testing.assert_allclose(first[0], second[0], rtol=1e-5)
        np.testing.assert_allclose(first[1], second[1], rtol=1e-4, atol=1e-5)


def test_a_trainer_may_have_chunks_of_its_rows():
    """The steps are the rows of a batch: the program has the parts of two extents."""
    x, y, w = sg.input("x", (B,)), sg.input("y", (B,)), sg.parameter("w", (), init=0.1)

    def trained(every):
        _, ys = sg.scan(lambda c, x: (0.5 * c + w * x,) * 2, sg.constant(0.0), x, checkpoint=every)
        trainer = sg.Trainer(sg.mse(ys, y), optimizer=sg.optim.sgd(0.1))
        values = np.linspace(-1, 1, 11)
        trainer.fit({"x": values, "y": values[::-1]}, epochs=3, batch_size=4, shuffle=False,
                    progress=False)  # fmt: skip
        return trainer.parameters["w"]

    for every in (3, "sqrt"):
        np.testing.assert_allclose(trained(every), trained(None), rtol=1e-5)


def test_dims_that_others_tell():
    part, root = quotient_of(T * B + 1, 3), ceil_sqrt(T)
    assert isinstance(part, DerivedDim) and str(part) == "(B*T + 1)//3" and str(root) == "sqrt(T)"
    assert quotient_of(T * B + 1, 3) == part and roots(part * root) == (B, T)
    assert value(part * 3 + root, {T: 5, B: 2}) == 12
    assert value(quotient_of(T, root), {T: 0}) == 0
    assert value(T - 3 * quotient_of(T, 3), {T: 8}) == 2

    def summed(extent):
        x = sg.input("x", (extent, 3))
        return sg.scan(lambda c, x: (c + x, ()), sg.zeros((3,)), x, checkpoint=3)[0]

    c = summed(T)
    assert [str(d) for d in Graph.of([c]).dims] == ["T", "T//3"]
    assert sg.cost(c, {"T": 7}).flops == 21
    assert Graph.of([summed(sg.dim("S"))]).key == Graph.of([c]).key


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3", "root"])
def test_what_no_checkpoint_can_be(wrong):
    with pytest.raises(SymgradError, match=r'steps >= 1 .*"sqrt", or a budget of memory'):
        sg.scan(lambda c, x: (c, ()), sg.constant(0.0), sg.ones((3,)), checkpoint=wrong)
