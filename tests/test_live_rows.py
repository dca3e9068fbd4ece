"""Recurrences whose steps work on some of the rows: what they mean, on one written by hand."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.live_rows import LiveRows
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Gather, Node, Scatter
from symgrad.graph.ragged import steps_alive

B, T = sg.dim("B"), sg.dim("T")
K, H = 3, 5
LENGTHS = ([4, 0, 7, 1, 4], [7, 7], [0, 0, 0], [1], [])


def data(lengths: list[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "x": rng.normal(size=(7, len(lengths), K)).astype("f4"),
        "n": np.array(lengths, "i4"),
        "W": rng.normal(size=(K, H)).astype("f4"),
        "U": rng.normal(size=(H, H)).astype("f4"),
        "h0": rng.normal(size=(len(lengths), H)).astype("f4"),
    }


def leaves() -> dict[str, Node]:
    return {
        "x": sg.input("x", (T, B, K)),
        "n": sg.input("n", (B,), dtype="int32"),
        "W": sg.input("W", (K, H)),
        "U": sg.input("U", (H, H)),
        "h0": sg.input("h0", (B, H)),
    }


def by_rows(reverse: bool) -> list[Node]:
    """A network over the live steps alone: the last states, all states, and a sum over words."""
    own = leaves()
    live = LiveRows(own["n"], T, 0)
    now, every = live.rows.now, live.rows.all
    words = Gather((own["x"], live.step_of, live.row_of), (~0, ~1, 1), ((0,), (0,)), (0, 1), False)
    projected = words @ own["W"]  # (N, H)
    start = Gather((own["h0"], live.order), (~0, 1), ((0,),), (0, 1), False)
    first, count = (binder(k, (), sg.constant(0, "int64").dtype) for k in ("first", "count"))
    h, z = binder("h", (now, H), start.dtype), binder("z", (now, H), start.dtype)
    bound, u = binder("bound", (), first.dtype), binder("U", (H, H), start.dtype)
    after = sg.tanh(z + h @ u)
    body = Graph((h, first, count, z, bound, u), (after, after))
    structure = Chain(T, reverse, bounded=True, rows=live.rows)
    args = (start, live.start, live.live, projected, steps_alive(own["n"]), own["U"])
    final, ys = projections(Fold(args, body, structure, 1, 3))
    assert ys.shape == (every, H)
    restored = Gather((final, live.rank), (~0, 1), ((0,),), (0, 1), False)
    padded = Scatter((ys, live.step_of, live.row_of), (0, 1), ((0,), (0,)), (~0, ~1, 1), (T, B, H))
    return [restored, padded, sg.sum(ys * ys, 0)]


def by_masks(reverse: bool) -> list[Node]:
    """The same by masks."""
    own = leaves()

    def step(h: Node, x: Node) -> tuple[Node, Node]:
        h = sg.tanh(x @ own["W"] + h @ own["U"])
        return h, h

    final, ys = sg.scan(step, own["h0"], own["x"], reverse=reverse, lengths=own["n"])
    return [final, ys, sg.sum(ys * ys, (0, 1))]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_rows_of_steps_mean_what_masks_mean(lengths: list[int], reverse: bool) -> None:
    values = data(lengths)
    found = evaluate(by_rows(reverse), values)
    wanted = evaluate(by_masks(reverse), values)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=7 * 5 * 8 * np.finfo("f4").eps * 35)


def test_live_rows_are_sorted() -> None:
    n = sg.input("n", (5,), dtype="int32")
    live = LiveRows(n, 7, 0)
    asked = [live.live, live.start, live.rank, live.order, live.step_of, live.row_of]
    count, start, rank, order, t, b = evaluate(asked, {"n": [4, 0, 7, 1, 4]})
    assert count.tolist() == [4, 3, 3, 3, 1, 1, 1] and start.tolist() == [0, 4, 7, 10, 13, 14, 15]
    assert rank.tolist() == [1, 4, 0, 3, 2] and order.tolist() == [2, 0, 4, 3, 1]
    assert t.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6]
    assert b.tolist() == [2, 0, 4, 3, 2, 0, 4, 2, 0, 4, 2, 0, 4, 2, 2, 2]
