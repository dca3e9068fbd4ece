"""Programs over live rows alone are the programs with padding: by their values, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.road import hoist_and_sink
from symgrad.calculus.loop_parts import Moved
from symgrad.calculus.residuals import save_residuals
from symgrad.calculus.simplification import simplify
from symgrad.calculus.stabilization import stabilize
from symgrad.calculus.stops import without_cuts
from symgrad.calculus.unpadding import unpad
from symgrad.graph.dims import Counted
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold
from symgrad.graph.nodes import Node
from symgrad.graph.traversal import toposort

B, T, S = sg.dim("B"), sg.dim("T"), sg.dim("S")
CASES = [(5, [5, 0, 3, 1]), (5, [5, 5]), (4, [2, 1, 2, 2, 2]), (4, [0, 0, 0]), (1, [1]), (3, [])]
K, H = 3, 2


def prepared(outputs: list[Node]) -> list[Node]:
    """As programs are when padding is taken out of them."""
    made = simplify(without_cuts(stabilize(outputs)))
    return hoist_and_sink(save_residuals(made, []), [])


def leaf(name: str, *shape: Any) -> Node:
    return sg.input(name, shape, "float64")


def lstm(n: Node, reverse: bool = False, name: str = "") -> Any:
    w, u = leaf(f"w{name}", K, 4 * H), leaf(f"u{name}", H, 4 * H)

    def step(state: Any, x: Node) -> Any:
        h, c = state
        i, f, g, o = sg.split(x @ w + h @ u, 4, axis=-1)
        c = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
        h = sg.sigmoid(o) * sg.tanh(c)
        return (h, c), h

    def run(x: Node, start: Any) -> Any:
        return sg.scan(step, start, x, reverse=reverse, lengths=n)

    return run, [w, u]


def last_states() -> tuple[list[Node], list[Node]]:
    n, x, h0 = sg.input("n", (B,), "int32"), leaf("x", T, B, K), leaf("h0", B, H)
    run, weights = lstm(n)
    (h, c), _ = run(x, (h0, 2 * h0))
    return [h, c, sg.sum(h * h) + sg.sum(c)], [*weights, x, h0]


def both_ways() -> tuple[list[Node], list[Node]]:
    """A tagger whose batch stands first; its padding is masked in the loss."""
    n, x = sg.input("n", (B,), "int64"), leaf("x", B, T, K)
    v, y = leaf("v", 2 * H, 5), sg.input("y", (B, T), "int32")
    zero = sg.zeros((B, H), "float64")
    states = []
    for name in ("f", "b"):
        run, weights = lstm(n, name == "b", name)
        states.append(run(sg.swapaxes(x, 0, 1), (zero, zero))[1])
    logits = sg.swapaxes(sg.concatenate(states, -1) @ v, 0, 1)
    losses = sg.where(sg.arange(T) < n[:, None], sg.cross_entropy(logits, y), 0.0)
    return [losses, losses.sum() / n.sum()], [*weights, v, x]


def stacked() -> tuple[list[Node], list[Node]]:
    """Two layers with a mask of dropout that is the same in all steps, and means over steps."""
    n, x, keep = sg.input("n", (B,), "int32"), leaf("x", T, B, K), leaf("keep", B, H)
    w, u, v = leaf("w", K, H), leaf("u", H, H), leaf("v", H, H)
    zero = sg.zeros((B, H), "float64")

    def first(h: Node, x: Node) -> Any:
        h = sg.tanh(x @ w + (h * keep) @ u)
        return h, h

    def second(h: Node, x: Node) -> Any:
        h = sg.tanh(x @ v + h @ u)
        return h, (h, h.sum(-1))

    _, ys = sg.scan(first, zero, x, lengths=n)
    _, (zs, sums) = sg.scan(second, zero, ys, lengths=n, truncate=2)
    means = zs.sum(0) / sg.maximum(n, 1)[:, None]
    return [means, zs, sg.sum(means**2) + sg.sum(sg.sin(sums))], [w, u, v, keep, x]


def attended() -> tuple[list[Node], list[Node]]:
    """Scores between all steps, and positions: what is around needs padding."""
    n, x, p = sg.input("n", (B,), "int32"), leaf("x", T, B, K), leaf("p", T, K)
    run, weights = lstm(n)
    zero = sg.zeros((B, H), "float64")
    _, ys = run(x + p[:, None], (zero, zero))
    scores = sg.einsum("tbh,sbh->bts", ys, ys)
    live = sg.arange(T) < n[:, None]
    weight = sg.softmax(sg.where(live[:, None, :], scores, -1e9))
    mixed = sg.einsum("bts,sbh->bth", weight, ys)
    return [mixed, sg.sum(sg.where(live[:, :, None], mixed * mixed, 0.0))], [*weights, p, x]


def mixed_rows() -> tuple[list[Node], list[Node]]:
    """A step that subtracts the mean of its rows."""
    n, x, w = sg.input("n", (B,), "int32"), leaf("x", T, B, K), leaf("w", K, H)

    def step(h: Node, x: Node) -> Any:
        h = sg.tanh(h + x @ w)
        return h - h.sum(0) / 7, h

    h, ys = sg.scan(step, sg.zeros((B, H), "float64"), x, lengths=n)
    return [h, sg.sum(ys)], [w, x]


def read_behind() -> tuple[list[Node], list[Node]]:
    """Logits that are results: they are a bias at padding."""
    n, x, b = sg.input("n", (B,), "int32"), leaf("x", T, B, K), leaf("b", H)
    run, weights = lstm(n)
    zero = sg.zeros((B, H), "float64")
    _, ys = run(x, (zero, zero))
    logits = ys + b
    return [logits, sg.sum(sg.exp(logits))], [*weights, b]


def letters_in_words() -> tuple[list[Node], list[Node]]:
    """Words that are rows of letters, in sentences that are rows of words: two sets of lengths."""
    n, m = sg.input("n", (B,), "int32"), sg.input("m", (B, T), "int32")
    x, v = leaf("x", B, T, S, K), leaf("v", H, K)
    every = sg.swapaxes(x.reshape((B * T, S, K)), 0, 1)
    of_letters, weights = lstm(m.reshape((B * T,)), name="l")
    zero, start = sg.zeros((B * T, H), "float64"), sg.zeros((B, H), "float64")
    (h, _), _ = of_letters(every, (zero, zero))
    of_words, more = lstm(n, True)
    _, ys = of_words(sg.swapaxes(h.reshape((B, T, H)) @ v, 0, 1), (start, start))
    return [ys, sg.sum(ys * ys)], [*weights, *more, v]


def pooled() -> tuple[list[Node], list[Node]]:
    """The mean of each sentence, positions, and what stands before the rows."""
    n, p, e = sg.input("n", (B,), "int32"), leaf("p", T, K), leaf("e", 5, K)
    run, weights = lstm(n)
    zero = sg.zeros((B, H), "float64")
    x = sg.take(e, sg.input("words", (T, B), "int32"), axis=0) + p[:, None]
    _, ys = run(x, (zero, zero))
    means = sg.moveaxis(ys, 2, 0).sum(1) / sg.maximum(n, 1)
    return [means, sg.sum(means * means)], [*weights, p, e]


def neighbours() -> tuple[list[Node], list[Node]]:
    """What a word adds to the next one, which the row may not have any more."""
    n, x = sg.input("n", (B,), "int32"), leaf("x", T, B, K)
    run, weights = lstm(n)
    zero = sg.zeros((B, H), "float64")
    _, ys = run(x, (zero, zero))
    late = sg.pad(ys, ((1, 0), (0, 0), (0, 0)))[:-1]
    both = ys + late
    return [both, sg.sum(both * both)], [*weights, x]


PROGRAMS = [
    pooled, neighbours, last_states, both_ways, stacked, attended, mixed_rows, read_behind,
    letters_in_words,
]
# The passes that take padding out, and those that leave it, by the programs above.
STAY = {"mixed_rows"}


def derived(made: tuple[list[Node], list[Node]]) -> list[Node]:
    """The outputs, gradients of the last one, and a gradient of these."""
    outputs, wrt = made
    first = sg.grad(outputs[-1], wrt)
    return [*outputs, *first, *sg.grad(sg.sum(first[0] * first[0]), wrt)]


def drawn(outputs: list[Node], steps: int, lengths: list[int]) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    extents = {B: len(lengths), T: steps, S: 4}
    values: dict[str, Any] = {"n": lengths}
    for x in toposort(outputs):
        if getattr(x, "kind", None) == "input" and x.name != "n":
            shape = [extents.get(e, e) for e in x.shape]
            whole = x.dtype.kind == "i"
            values[x.name] = rng.integers(0, 5, shape) if whole else rng.normal(size=shape)
    return values


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_without_padding(program: Any) -> None:
    outputs = derived(program())
    before = prepared(outputs)
    notes: list[Moved] = []
    after = unpad(before, notes)
    how = "with padding" if program.__name__ in STAY else "without padding"
    assert {n.how for n in notes} == {how}, notes
    folds = [n for n in toposort(after) if isinstance(n, Fold)]
    assert all((f.structure.rows is None) == (program.__name__ in STAY) for f in folds)
    if program is pooled:
        assert not any({B, T} <= set(n.shape) for n in toposort(after) if n.dtype == "float64")
    for steps, lengths in CASES:
        values = drawn(outputs, steps, lengths)
        for a, b in zip(evaluate(after, values), evaluate(before, values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_no_axis_of_padding_is_left_around_a_tagger() -> None:
    """Its products, its loss and its gradients have an axis of words."""
    outputs, wrt = both_ways()
    made = unpad(prepared([outputs[-1], *sg.grad(outputs[-1], wrt[:3])]))
    wide = [n for n in toposort(made) if n.ndim == 3 and {B, T} <= set(n.shape[:2])]
    assert all(n.dtype != "float64" or n.name == "x" or not n.args for n in wide), wide
    assert any(isinstance(n.shape[0], Counted) for n in toposort(made) if n.ndim == 2)


def test_bad_indices_are_told_where_they_stand() -> None:
    """In the user's array, not among the live words; what stands behind a row is not read."""
    x, y = sg.input("x", (B, T), "int32"), sg.input("y", (B, T), "int32")
    n, table = sg.input("n", (B,), "int32"), sg.parameter("E", (10, 4))
    w = sg.parameter("w", (4, 5))

    def step(h: Node, word: Node) -> Any:
        h = sg.tanh(sg.take(table, word, axis=0) + h)
        return h, h

    _, ys = sg.scan(step, sg.zeros((B, 4)), sg.swapaxes(x, 0, 1), lengths=n)
    losses = sg.nn.sequence_cross_entropy(sg.swapaxes(ys @ w, 0, 1), y, n)
    loss = losses.sum() / n.sum()
    data = {"x": np.zeros((3, 6), int), "y": np.zeros((3, 6), int), "n": np.array([2, 6, 4])}
    f, trainer = sg.compile([loss, *sg.grad(loss, [w])]), sg.Trainer(loss, sg.optim.sgd(0.1))

    def fit() -> None:
        trainer.fit(data, epochs=1, batch_size=2, progress=False)

    runs = (lambda: evaluate(loss, data), lambda: f(**data), fit)
    data["y"][0, 3], data["x"][0, 4] = 77, -99  # behind the end
    for run in runs:
        run()
    data["y"][2, 3] = 7
    places = (r"at \(2, 3\) of  'y'", r"at \(2, 3\) of  'y'", r"at row 2, \(3,\), of  'y'")
    for run, place in zip(runs, places, strict=True):
        with pytest.raises(sg.DataError, match=rf"(?s)label 7 is out of range.*{place}"):
            run()
    data["y"][2, 3], data["x"][2, 1] = 0, 17
    for run in runs:
        with pytest.raises(sg.DataError, match=r"(?s)index 17 is out of range.*'x'"):
            run()


def test_rows_that_meet_in_a_product() -> None:
    """Where B is a width too: what ended rows give to others is no padding."""
    w, x = sg.input("w", (3,)), sg.input("x", (3, 3))
    n, v = sg.input("n", (3,), "int64"), sg.input("v", (4, 3))
    _, ys = sg.scan(lambda c, _: (c, c @ x), w, v, lengths=n)
    outputs = [ys, *sg.grad(sg.sum(sg.sin(ys)), [w, x])]
    rng = np.random.default_rng(2)
    values = {"w": rng.normal(size=3), "x": rng.normal(size=(3, 3)), "v": np.ones((4, 3))}
    values["n"] = np.array([3, 1, 3])
    found = sg.compile(outputs)(**values)
    for got, wanted in zip(found, evaluate(outputs, values), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_emitted_twice_and_steps_that_read_no_sequence(reverse: bool) -> None:
    x, h = sg.input("x", (2, 2)), sg.input("h", (2,))
    n = sg.input("n", (2,), "int64")

    def step(c: tuple[Node, Node], _: Node) -> tuple[tuple[Node, Node], Node]:
        y = sg.tanh(c[0])
        return (c[0], y), y

    _, ys = sg.scan(step, (h, h), x, reverse=reverse, lengths=n)
    slope = sg.grad(sg.sin(ys).sum(), h)
    values = {"h": np.array([-0.3, 1.2], np.float32), "n": np.array([0, 2])}
    values["x"] = np.ones((2, 2), np.float32)
    for outputs in ([ys, slope], [slope]):
        found = sg.compile(outputs)(**values)
        for got, wanted in zip(found, evaluate(outputs, values), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_stages_name_the_line_of_a_recurrence() -> None:
    outputs, wrt = stacked()
    told = str(sg.compile([outputs[-1], *sg.grad(outputs[-1], wrt)]).stages)
    assert "without padding in T steps" in told and "test_unpadding.py" in told
    assert "a step works on those that live" in told
    outputs, _ = mixed_rows()
    told = str(sg.compile(outputs).stages)
    assert "with padding in T steps" in told and "a step mixes its rows" in told
