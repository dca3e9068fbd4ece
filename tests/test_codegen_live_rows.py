"""Recurrences whose steps work on some of the rows, compiled: against what they mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.live_rows import LiveRows
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Gather, Node, Scatter
from symgrad.graph.ragged import steps_alive
from tests.team_interpreter import everything_shared, teams_interpreted
from tests.test_live_rows import LENGTHS, by_rows, data

B, T = sg.dim("B"), sg.dim("T")
K, H = 3, 5
INT64 = np.dtype(np.int64)
# Sums of at most 7 x 5 terms below 10 or so, in float32, through at most 7 steps.
CLOSE = 7 * 5 * 8 * float(np.finfo("f4").eps) * 35


def agree(f: sg.Compiled, written: list[Node], values: Mapping[str, np.ndarray]) -> None:
    """A program gives what its graph means."""
    close = CLOSE if values["x"].dtype == np.float32 else 1e-12
    for a, b in zip(f(**values), evaluate(written, values), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=close)


def several(dtype: str) -> Iterator[dict[str, np.ndarray]]:
    """Batches of other lengths, numbers of rows and numbers of steps, one after the other."""
    rng = np.random.default_rng(5)
    for steps, lengths in [*((7, own) for own in LENGTHS), (4, [1, 4]), (0, [0, 0]), (7, [3, 2])]:
        rows = len(lengths)
        shapes = {"x": (steps, rows, K), "g": (steps, rows, H), "h0": (rows, H), "s": (rows,)}
        yield {
            **{name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()},
            "n": np.array(lengths, "i4"),
            "W": rng.normal(size=(K, H)).astype(dtype) / 2,
            "U": rng.normal(size=(H, H)).astype(dtype) / 2,
        }


@contextlib.contextmanager
def compiled(written: list[Node], threads: int) -> Iterator[sg.Compiled]:
    """The program, run by a team where it is for several threads, however small."""
    with everything_shared() if threads > 1 else contextlib.nullcontext():
        f = sg.compile(written, threads=threads)
        yield f
    team = f.stages.team
    assert threads == 1 if team is None else team.used == threads


def leaves(dtype: str) -> dict[str, Node]:
    shapes = {"x": (T, B, K), "g": (T, B, H), "h0": (B, H), "s": (B,), "W": (K, H), "U": (H, H)}
    own: dict[str, Node] = {k: sg.input(k, shape, dtype=dtype) for k, shape in shapes.items()}
    return {**own, "n": sg.input("n", (B,), dtype="int32")}


def pulled_back(own: dict[str, Node], reverse: bool = True) -> list[Node]:
    """Like the way back through a cell, with everything that a step may have.

    Two carries with rows, of which one is read after it is written; one without rows that adds up
    over the rows of each step; sequences with rows and without; constants with rows and without;
    emitted values with rows and without.
    """
    live = LiveRows(own["n"], T, 0)
    now = live.rows.now

    def words(x: Node) -> Node:
        return Gather((x, live.step_of, live.row_of), (~0, ~1, 1), ((0,), (0,)), (0, 1), False)

    def rows(x: Node) -> Node:
        labels = tuple(range(x.ndim))
        return Gather((x, live.order), (~0, *labels[1:]), ((0,),), labels, False)

    dtype = own["x"].dtype
    names = ("h", "c"), ("z", "g"), ("s",)
    (h, c), (z, g), (s,) = (
        [binder(k, (now, H)[: 1 if k == "s" else 2], dtype) for k in group] for group in names
    )
    total, weight = binder("total", (H, H), dtype), binder("weight", (), dtype)
    first, count, bound = (binder(k, (), INT64) for k in ("first", "count", "bound"))
    u = binder("u", (H, H), dtype)
    turned = c * s[:, None] + g @ sg.transpose(u)
    after_h = sg.tanh(z + h @ u) * weight + turned
    after_c = h - 0.5 * c  # the h before it is written
    added = total + sg.transpose(h) @ after_h
    size = sg.sum(after_h * after_h, (0, 1))
    body = Graph(
        (h, c, total, first, count, z, g, weight, bound, u, s),
        (after_h, after_c, added, turned, size, h),
    )
    structure = Chain(T, reverse, bounded=True, rows=live.rows)
    steps = sg.arange(T).astype(dtype) / 7 + 0.25
    args = (
        rows(own["h0"]), rows(own["h0"] * 0.5), sg.zeros((H, H), dtype=dtype),
        live.start, live.live, words(own["x"]) @ own["W"], words(own["g"]), steps,
        steps_alive(own["n"]), own["U"], rows(own["s"]),
    )
    last, other, summed, ys, sizes, before = projections(Fold(args, body, structure, 3, 5))
    padded = Scatter((ys, live.step_of, live.row_of), (0, 1), ((0,), (0,)), (~0, ~1, 1), (T, B, H))
    back = Gather((other, live.rank), (~0, 1), ((0,),), (0, 1), False)
    return [last, back, summed, padded, sizes, sg.sum(before * ys, 0), sg.mean(ys, 0)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_work_on_their_rows(reverse: bool, threads: int) -> None:
    written = by_rows(reverse)
    with compiled(written, threads) as f:
        for lengths in LENGTHS * 2:
            agree(f, written, data(lengths))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_may_have_carries_of_all_kinds(dtype: str, threads: int) -> None:
    written = pulled_back(leaves(dtype))
    check(Graph.of(written))
    with compiled(written, threads) as f:
        for values in several(dtype):
            agree(f, written, values)


def test_no_workers_race_for_rows() -> None:
    """Loop IR run by Python: accesses are checked, and those of the workers of a team."""
    for threads in (2, 3):
        with teams_interpreted(seed=threads):
            written = pulled_back(leaves("float64"))
            f = sg.compile(written, threads=threads)
            for values in several("float64"):
                agree(f, written, values)
            nested = epochs()
            f = sg.compile(nested, threads=threads)
            for values in batches():
                agree(f, nested, values)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_steps_inside_a_recurrence(threads: int) -> None:
    written = epochs()
    with compiled(written, threads) as f:
        for values in batches():
            agree(f, written, values)


def batches() -> Iterator[dict[str, np.ndarray]]:
    """Several batches at a time."""
    rng = np.random.default_rng(7)
    for rows, steps, own in [(5, 7, 4), (3, 4, 3), (1, 2, 0), (0, 3, 2), (4, 1, 1)]:
        shapes = {"x": (own, steps, rows, K), "g": (steps, rows, H), "h0": (rows, H), "s": (rows,)}
        values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        values["n"] = rng.integers(0, steps + 1, (own, rows)).astype("i4")
        values |= {"W": rng.normal(size=(K, H)) / 2, "U": rng.normal(size=(H, H)) / 2}
        yield values


def epochs() -> list[Node]:
    """A scan whose steps hold recurrences of their own rows, and a weight that they change."""
    own = leaves("float64")
    xs = sg.input("x", (sg.dim("E"), T, B, K), dtype="float64")
    ns = sg.input("n", (sg.dim("E"), B), dtype="int32")

    def step(u: Node, batch: tuple[Node, Node]) -> tuple[Node, Node]:
        x, n = batch
        # a mean has a number of words that depends on nothing of the step
        last, back, summed, *rest = pulled_back({**own, "x": x, "n": n, "U": u})[:-1]
        return u - 0.01 * sg.tanh(summed), (last, back, *rest)

    after, found = sg.scan(step, own["U"], (xs, ns))
    return [after, *found]
