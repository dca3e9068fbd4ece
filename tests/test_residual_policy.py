"""What recurrences save for the way back: values against the graph without it, costs by search."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.residuals import INFINITE, Residual, minimum_cut, save_residuals
from symgrad.calculus.simplification import simplify
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.traversal import toposort
from tests import test_folds_calculus as calculus
from tests.calculus_judges import sample, weighed

T, B = sg.dim("T"), sg.dim("B")


def folds(outputs):
    return [n for n in toposort(outputs) if isinstance(n, Fold)]


@pytest.mark.parametrize("make", calculus.CASES, ids=lambda f: f.__name__)
def test_values_stay_bit_for_bit(make):
    out, wrt = make()
    leaves = [n for n in wrt if not n.args]
    first = sg.grad(weighed(out, 1), wrt)
    second = sg.grad(weighed(first[-1], 2), wrt)
    before = simplify([out, *first, *second])
    after = save_residuals(before)
    check(Graph.of(after))
    values = sample(leaves, 3)
    for a, b in zip(evaluate(list(after), values), evaluate(list(before), values), strict=True):
        np.testing.assert_array_equal(a, b)


def lstm():
    x, W, U, b = (
        sg.input("x", (T, B, 3)), sg.input("W", (3, 20)), sg.input("U", (5, 20)),
        sg.input("b", (20,)),
    )  # fmt: skip

    def step(s, x):
        c, h = s
        i, f, g, o = sg.split(x @ W + h @ U + b, 4, axis=1)
        c = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
        h = sg.sigmoid(o) * sg.tanh(c)
        return (c, h), h

    _, ys = sg.scan(step, (sg.zeros((B, 5)), sg.zeros((B, 5))), x)
    return (ys * ys).sum(), [x, W, U, b]


def test_an_lstm_saves_its_gates_and_recomputes_no_product():
    loss, wrt = lstm()
    notes: list[Residual] = []
    made = save_residuals(simplify([loss, *sg.grad(loss, wrt)]), notes)
    assert sorted(n.what for n in notes if n.how == "saved") == (
        ["sigmoid(p0)"] * 3 + ["tanh(p0)"] * 2
    )
    assert all(n.saving < n.recomputing for n in notes if n.how == "saved")
    forward, back = folds(made)
    assert len(forward.results) == 2 + 8  # both carries; h, what c and h were, and the five
    text = str(back.body)
    assert "sigmoid" not in text and "tanh" not in text
    assert text.count("einsum") == 5  # cotangents of h, x, W, U and b


def test_cheap_values_are_recomputed():
    x, h = sg.input("x", (T, B)), sg.input("h", (B,))
    last, _ = sg.scan(lambda c, x: ((c + x) * (c + x) * c, ()), h, x)
    notes: list[Residual] = []
    save_residuals([simplify(sg.grad(last.sum(), h))], notes)
    assert {n.how for n in notes} == {"recomputed"} and notes
    assert all(n.recomputing < n.saving for n in notes)


def test_what_a_recurrence_inside_the_step_stacks_is_recomputed():
    x, h = sg.input("x", (T, 4, B)), sg.input("h", (B,))

    def outer(c, a):
        return sg.scan(lambda d, b: (sg.tanh(d * b), ()), c, a)

    last, _ = sg.scan(outer, h, x)
    notes: list[Residual] = []
    made = save_residuals([simplify(sg.grad(last.sum(), [h]))[0]], notes)
    forward, back = folds(made)
    assert len(forward.results) == 2  # the carry, and what it was: one row for four steps
    inner, inner_back = folds(back.body.outputs)
    assert [(n.how, n.what) for n in notes] == [
        ("saved", "tanh(p0)"), ("recomputed", "result of a recurrence")
    ]
    assert "tanh" not in str(inner_back.body)
    assert "tanh" in str(inner.body)


def test_random_numbers_are_drawn_again():
    x, h = sg.input("x", (T, B)), sg.input("h", (B,))
    last, _ = sg.scan(lambda c, x: (sg.tanh(c * sg.dropout(x, 0.5)), ()), h, x)
    notes: list[Residual] = []
    save_residuals([simplify(sg.grad(last.sum(), h))], notes)
    (draw,) = [n for n in notes if "uniform" in n.what]
    assert (draw.how, draw.saving) == ("recomputed", INFINITE) and "drawn" in draw.why


def test_a_minimum_cut_is_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    leaves = [sg.input(f"x{k}") for k in range(2)]
    for _ in range(60):
        nodes = list(leaves)
        for k in range(4):
            a, b = rng.choice(len(nodes), 2, replace=False)
            nodes.append(nodes[a] * (nodes[b] + float(k + 2)))
        nodes = toposort(nodes)
        made = [n for n in nodes if n.args]
        costs = {
            n: (float(rng.integers(1, 9)) * 1e-9,
                float(rng.integers(0, 9)) * 1e-9 if n.args else INFINITE)
            for n in nodes
        }  # fmt: skip
        wanted = [made[k] for k in sorted(rng.choice(len(made), 2, replace=False))]
        saved, again = minimum_cut(nodes, costs, wanted)
        assert not saved & again and all(n in saved | again for n in wanted)
        assert all(a in saved | again for n in again for a in n.args)
        found = sum(costs[n][0] for n in saved) + sum(costs[n][1] for n in again)
        best = least(nodes, costs, wanted)
        assert found == pytest.approx(best, rel=1e-12)


def least(nodes, costs, wanted):
    """The least cost over all choices of what is recomputed; the rest that is read is saved."""
    best = INFINITE
    computed = [n for n in nodes if n.args]
    for flags in itertools.product((False, True), repeat=len(computed)):
        again = {n for n, flag in zip(computed, flags, strict=True) if flag}
        read = {*wanted, *(a for n in again for a in n.args)}
        total = sum(costs[n][1] for n in again) + sum(costs[n][0] for n in read - again)
        best = min(best, total)
    return best


def test_stages_tell_what_was_saved_and_why():
    loss, wrt = lstm()
    stages = sg.compile(sg.grad(loss, wrt)).stages
    assert len(stages.residuals) == 5
    text = str(stages)
    assert re.search(r"residuals +shape +value +why \(estimated\)\n", text)
    assert re.search(
        r"saved +float32 \(B, 5\) +2 x sigmoid\(p0\)  test_residual_policy\.py:\d+ +"
        r"saving [\d.]+ us, computing [\d.]+ us a step", text,
    )  # fmt: skip
