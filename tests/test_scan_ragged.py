"""Rows of different lengths in one recurrence, against each row on its own."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.errors import DataError, DTypeError, ShapeError
from symgrad.graph.folds import Fold
from symgrad.graph.traversal import toposort
from tests.calculus_judges import adjoint, against_differences, real, weighed
from tests.team_interpreter import everything_shared

STEPS, ROWS = 5, 4
LENGTHS = {"mixed": [5, 0, 3, 1], "equal": [5] * 4, "short": [2, 1, 2, 2], "none": [0] * 4}


def leaves(*shape):
    return [
        real("x", *shape, 3), real("h", shape[1] if shape else 1, 2), real("w", 2, 2),
        real("u", 3, 2),
    ]  # fmt: skip


def step_of(w, u):
    def step(c, x):
        h, count = c
        h = sg.tanh(h @ w + x @ u + 0.1 * count[:, None].astype("float64"))
        return (h, count + 1), {"h": h * 2, "sum": h.sum(axis=1), "count": count}

    return step


def scanned(x, h, w, u, **options):
    return sg.scan(step_of(w, u), (h, sg.zeros((h.shape[0],), "int32")), x, **options)


def row_by_row(lengths, x, h, w, u, **options):
    """Each row as a recurrence of its own, cut to its length; zeros behind it."""
    lasts, counts, ys = [], [], {"h": [], "sum": [], "count": []}
    for b, n in enumerate(lengths):
        (last, count), y = scanned(x[:n, b : b + 1], h[b : b + 1], w, u, **options)
        lasts.append(last[0])
        counts.append(count[0])
        for name, all_of in ys.items():
            rest = sg.zeros((STEPS - n, *y[name].shape[2:]), y[name].dtype)
            all_of.append(sg.concatenate([y[name][:, 0], rest]))
    return (sg.stack(lasts), sg.stack(counts)), {k: sg.stack(v, axis=1) for k, v in ys.items()}


def judged(made, wrt):
    (h, count), ys = made
    loss = weighed(h, 1) + weighed(ys["h"], 2) + weighed(ys["sum"], 3)
    first = sg.grad(loss, wrt)
    slope = weighed(first[2], 4) + weighed(first[1], 5)
    return [h, count, *ys.values(), *first, *sg.grad(slope, wrt)]


def sampled(wrt, seed=0):
    rng = np.random.default_rng(seed)
    return {leaf: rng.uniform(-1.5, 1.5, leaf.shape) for leaf in wrt}


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"truncate": 2},
                                     {"truncate": 2, "reverse": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["mixed", "short"])
def test_a_row_is_what_it_is_alone(name, options):
    wrt = leaves(STEPS, ROWS)
    n = sg.input("n", (ROWS,), "int32")
    got = judged(scanned(*wrt, lengths=n, **options), wrt)
    wanted = judged(row_by_row(LENGTHS[name], *wrt, **options), wrt)
    values = sampled(wrt)
    found = sg.evaluate(got, {**values, n: LENGTHS[name]})
    for a, b in zip(found, sg.evaluate(wanted, values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_derivatives():
    wrt = leaves(STEPS, ROWS)
    (last, _), ys = scanned(*wrt, lengths=sg.constant(np.array(LENGTHS["mixed"], "int32")))
    out = ys["h"] * 3 + last
    against_differences(weighed(out, 5), wrt, sampled(wrt))
    adjoint(out, wrt, sampled(wrt))
    adjoint(sg.grad(weighed(out, 5), wrt[2]), wrt, sampled(wrt), (2,))


def test_compiled():
    """One program for all lengths, also of no steps; the rows' padding is never read."""
    T, B = sg.dim("T"), sg.dim("B")
    x, h = sg.input("x", (T, B, 3), "float64"), sg.input("h", (B, 2), "float64")
    _, _, w, u = leaves()
    n, wrt = sg.input("n", (B,), "int64"), [h, w, u]
    outputs = []
    for options in ({}, {"reverse": True, "truncate": 2}):
        (last, count), ys = scanned(x, h, w, u, lengths=n, **options)
        first = sg.grad((last * last).sum() + (ys["h"] * ys["h"]).sum() + ys["sum"].sum(), wrt)
        outputs += [last, count, *ys.values(), *first, *sg.grad(weighed(first[1], 4), wrt)]
    f = sg.compile(outputs)
    rng = np.random.default_rng(1)
    cases = [(STEPS, lengths) for lengths in LENGTHS.values()] + [(0, [0] * 3), (1, [1, 0, 1])]
    for steps, lengths in cases:
        rows = len(lengths)
        values = {"w": rng.normal(size=(2, 2)), "u": rng.normal(size=(3, 2)), "n": lengths,
                  "h": rng.normal(size=(rows, 2)), "x": rng.normal(size=(steps, rows, 3))}
        wanted = sg.evaluate(outputs, values)
        for b, length in enumerate(lengths):
            values["x"][length:, b] = np.nan
        for a, b in zip(f(**values), wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
        for a, b in zip(sg.evaluate(outputs, values), wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_words_behind_the_end_are_no_words():
    """Integers are looked up in a step: what stands in the padding may be no place at all."""
    words, n = sg.input("words", (3, 2), "int32"), sg.input("n", (2,), "int32")
    table = sg.input("table", (4,))
    c, _ = sg.scan(lambda c, w: (c + sg.take(table, w, axis=0), ()), sg.zeros((2,)), words,
                   lengths=n)  # fmt: skip
    values = {"words": [[1, 2], [3, 99], [-77, 99]], "n": [2, 1], "table": [1, 10, 100, 1000]}
    assert sg.evaluate(c, values).tolist() == sg.compile(c)(**values).tolist() == [1010, 100]


def refused(kind, match, lengths, xs=None, init=None, step=lambda c, x: (c, c)):
    with pytest.raises(kind, match=match):
        sg.scan(step, sg.zeros((4, 2)) if init is None else init,
                sg.input("x", (5, 4, 3)) if xs is None else xs, lengths=lengths)  # fmt: skip


def test_errors():
    n = sg.input("n", (4,), "int32")
    refused(DTypeError, r"(?s)lengths must be integers.*float32 \(4,\)", sg.input("n", (4,)))
    refused(ShapeError, r"(?s)lengths must be integers, one per row.*shape \(T, B", 3)
    refused(ShapeError, r"(?s)a sequence has rows: shape \(T, B, ...\) with B = 4.*'x'.*\(5, 3\)",
            n, xs=sg.input("x", (5, 3)))  # fmt: skip
    refused(ShapeError, r"a sequence has rows", n, xs=sg.input("x", (5,)))
    refused(ShapeError, r"a carry has rows: shape \(B, ...\) with B = 4", n, init=sg.zeros((2, 4)))
    refused(ShapeError, "(?s)what a step emits has rows.*Put the rows at axis 0", n,
            step=lambda c, x: (c, c.sum()))  # fmt: skip
    refused(DataError, r"(?s)row 2 is 6 long, of 5 steps.*Lengths must lie in 0..5", [5, 0, 6, 1])
    refused(DataError, "row 0 is -1 long", [-1, 0, 3, 1])


def test_lengths_that_only_data_tell_are_checked_in_every_call():
    T = sg.dim("T")
    x, n = sg.input("x", (T, 3)), sg.input("n", (3,), "int32")
    last, _ = sg.scan(lambda c, x: (c + x, ()), sg.zeros((3,)), x, lengths=n)
    wrt = sg.grad(last.sum(), x)
    message = r"(?s)^scan: lengths: length {} is out of range for 5 steps.*at \(1,\) of  'n'"
    good = {"x": np.ones((5, 3)), "n": [5, 0, 3]}
    for made in (last, wrt):
        f = sg.compile(made)
        f(**good)
        for wrong in (6, -1, 2**31 - 1):
            for call in (f, lambda made=made, **values: sg.evaluate(made, values)):
                with pytest.raises(DataError, match=message.format(wrong)):
                    call(**{**good, "n": [5, wrong, 3]})


def program():
    T, B, kind = sg.dim("T"), sg.dim("B"), "float64"
    x, h = sg.input("x", (T, B, 3), kind), sg.input("h", (B, 2), kind)
    w, u, n = sg.input("w", (2, 2), kind), sg.input("u", (3, 2), kind), sg.input("n", (B,), "int32")
    (last, _), ys = scanned(x, h, w, u, lengths=n)
    loss = (last * last).sum() + (ys["h"] * ys["h"]).sum()
    return [loss, ys["sum"], *sg.grad(loss, [x, w, u])]


def drawn(lengths, steps):
    rng = np.random.default_rng(2)
    shapes = {"x": (steps, len(lengths), 3), "h": (len(lengths), 2), "w": (2, 2), "u": (3, 2)}
    return {k: rng.normal(size=s) for k, s in shapes.items()} | {"n": lengths}


def test_steps_in_which_no_row_lives_are_left_out():
    """What such a step would write stays as it was: the memory of residuals is never read there."""
    outputs = program()
    f = sg.compile(outputs)
    assert "range(m0)" in f.source and "range(n1)" not in f.source.split("def program")[1]
    forward, back = [n for n in toposort(f.stages.rewritten.outputs) if isinstance(n, Fold)]
    assert forward.bound is back.bound is not None
    for lengths, steps in (([2, 0, 1], 9), ([9, 1, 2], 9), ([0, 0, 0], 4)):
        values = drawn(lengths, steps)
        for _ in range(2):
            for a, b in zip(f(**values), sg.evaluate(outputs, values), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def products(table, x, words, u, w, v, n, **options):
    """A recurrence whose products leave it, and whose ys are 0/0 where a carry is 0."""

    def step(h, now):
        x, word = now
        h = sg.tanh(x @ u + sg.take(table, word, axis=0) @ u + h @ w)
        z = h @ v
        z = z / sg.sqrt((z * z).sum(axis=1, keepdims=True))
        return h, sg.log_softmax(z @ w, axis=1)

    return sg.scan(step, sg.ones((n.shape[0], 2), "float64"), (x, words), lengths=n, **options)


def test_products_leave_a_bounded_recurrence():
    """At its beginning and its end; in steps left out they are what the mask says: nothing."""
    T, B, kind = sg.dim("T"), sg.dim("B"), "float64"
    shapes = {"table": (7, 3), "u": (3, 2), "w": (2, 2), "v": (2, 2)}
    p = {name: sg.input(name, shape, kind) for name, shape in shapes.items()}
    x, words = sg.input("x", (T, B, 3), kind), sg.input("words", (T, B), "int32")
    n, wrt = sg.input("n", (B,), "int32"), [*p.values(), x]
    outputs = []
    for options in ({}, {"reverse": True}):
        last, ys = products(x=x, words=words, n=n, **p, **options)
        first = sg.grad((last * last).sum() + (ys * ys).sum(), wrt)
        outputs += [last, ys, *first]
        outputs += sg.grad(sum((g * g * k).sum() for k, g in enumerate(first, 1)), wrt[1:])
    f = sg.compile(outputs)
    told = str(f.stages)
    for moved in ("sunk out of T steps", "hoisted out of T steps"):
        assert moved in told
    cases = [([2, 0, 1], 5), ([5, 1, 2], 5), ([0, 0], 4), ([1, 0, 1, 1], 1), ([0], 0)]
    for lengths, steps in cases:
        rng = np.random.default_rng(3)
        rows = len(lengths)
        values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        values |= {"x": rng.normal(size=(steps, rows, 3)), "n": lengths,
                   "words": rng.integers(0, 7, (steps, rows))}
        wanted = sg.evaluate(outputs, values)
        assert all(np.isfinite(a).all() for a in wanted)
        for b, length in enumerate(lengths):
            values["x"][length:, b], values["words"][length:, b] = np.nan, 99
        for _ in range(2):
            for a, b in zip(f(**values), wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_workers_read_one_bound():
    outputs = program()
    with everything_shared():
        f = sg.compile(outputs, threads=2)
        for lengths in ([2, 0, 1, 3, 3], [7, 1, 2, 0, 0]):
            values = drawn(lengths, 7)
            for a, b in zip(f(**values), sg.evaluate(outputs, values), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
