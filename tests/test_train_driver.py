"""Runs of a program written by hand: row order, batches, sums, chunks, stops."""

from __future__ import annotations

import numpy as np
import pytest

from symgrad.train import driver
from symgrad.train.driver import Run

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
BAD_LABEL = 77


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def row_order(seed: int, epoch: int, n: int) -> list[int]:
    """The reference: splitmix64 counters and a Fisher-Yates shuffle from the end."""
    key = mix((mix((seed + GOLDEN) & MASK) + epoch * GOLDEN) & MASK)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = ((mix((key + i * GOLDEN) & MASK) >> 32) * (i + 1)) >> 32
        order[i], order[j] = order[j], order[i]
    return order


class Problem:
    """Steps over n rows: w -= 0.5 loss; loss = mean(x - y) + w; `seen` are rows of good runs."""

    outputs = 2
    state_bytes = 0

    def __init__(self, n: int = 11, batch: int = 4, guarded: bool = False) -> None:
        rng = np.random.default_rng(5)
        self.x = rng.standard_normal((n, 3)).astype(np.float32)
        self.y = np.arange(n)
        self.w = np.float32(0.25)
        self.seen: list[int] = []
        self.runs = 0
        self.n, self.batch, self.guarded = n, batch, guarded

    def run(
        self, order: np.ndarray, rest: np.ndarray, begun: np.ndarray, fresh: bool
    ) -> tuple[int, np.ndarray]:
        assert order.dtype == rest.dtype == np.int32
        assert begun.shape == (2, len(order)) and begun.flags.c_contiguous
        self.runs += 1
        sums, weight, status = begun.copy(), self.w, 0
        seen: list[int] = []
        for epoch, batches in enumerate(zip(order, rest, strict=True)):
            for rows in (row for part in batches for row in part):
                x = self.x[rows].astype(np.float64)
                loss = np.float32((x @ [1, 10, 100] - self.y[rows]).sum() / len(rows) + weight)
                sums[:, epoch] += len(rows) * np.array([loss, 2 * len(rows)])
                weight -= np.float32(0.5) * loss
                seen += rows.tolist()
                status = BAD_LABEL if (self.y[rows] < 0).any() else status
        if self.guarded and not status and not np.isfinite(sums[0]).all():
            status = driver.Stop.NOT_FINITE
        if not status:
            self.w, self.seen = weight, self.seen + seen
        return status, sums

    def explain(self, rows: object) -> str:
        return f"bad label in {rows}"

    def made(self, epochs: int, **options: object) -> Run:
        return Run(self, self.n, epochs=epochs, batch_size=self.batch, **options)


def finish(run: Run, epochs: int) -> list[int]:
    statuses = []
    while run.epoch < epochs:
        statuses.append(run.advance(epochs))
        if statuses[-1]:
            break
    return statuses


def reference(p: Problem, orders: list[list[int]], w: float) -> tuple[np.ndarray, float]:
    """Sums per epoch and the final weight, in plain NumPy."""
    weight, sums = np.float32(w), np.zeros((len(orders), 2))
    for epoch, order in enumerate(orders):
        for start in range(0, len(order), p.batch):
            rows = order[start : start + p.batch]
            x = p.x[rows].astype(np.float64)
            loss = np.float32((x @ [1, 10, 100] - p.y[rows]).sum() / len(rows) + weight)
            sums[epoch] += len(rows) * np.array([loss, 2 * len(rows)])
            weight -= np.float32(0.5) * loss
    return sums, float(weight)


@pytest.mark.parametrize("n", [1, 3, 4, 11, 12])
def test_batches_in_order_with_a_partial_last_one(n: int) -> None:
    p = Problem(n)
    expected, weight = reference(p, [list(range(n))] * 3, 0.25)
    run = p.made(3)
    assert set(finish(run, 3)) == {0}
    assert p.seen == 3 * list(range(n))
    assert run.steps == 3 * -(-n // 4) and run.start == 0
    np.testing.assert_allclose(run.sums, expected, rtol=1e-5)
    assert p.w == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, -1])
def test_order_is_a_function_of_seed_and_epoch(seed: int) -> None:
    p = Problem(11)
    orders = [row_order(seed % 2**64, epoch, 11) for epoch in range(2, 6)]
    assert len({tuple(order) for order in orders}) == 4
    expected, _ = reference(p, orders, 0.25)
    run = p.made(4, shuffle=True, seed=seed, first_epoch=2)
    finish(run, 4)
    assert p.seen == [row for order in orders for row in order]
    np.testing.assert_allclose(run.sums, expected, rtol=1e-5)


def test_orders_are_uniform() -> None:
    count = np.zeros((5, 5))
    for epoch in range(2000):
        count[np.arange(5), row_order(1, epoch, 5)] += 1
    assert np.abs(count - 400).max() < 5 * np.sqrt(400)


def test_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for steps, parts in ((1, 18), (2, 12), (3, 6), (5, 6), (7, 3), (1000, 1)):
        p = Problem(11)
        run = p.made(6, shuffle=True, seed=3)
        monkeypatch.setattr(run, "_affordable", lambda steps=steps: steps)
        assert len(finish(run, 6)) == p.runs == parts
        results.append((p.seen, run.sums.tobytes(), p.w.tobytes()))
    assert all(result == results[0] for result in results)


def test_a_chunk_ends_at_the_epoch_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(11)
    run = p.made(6)
    monkeypatch.setattr(run, "_affordable", lambda: 1000)
    for epoch in (1, 4, 6):
        assert run.advance(epoch) == 0
        assert (run.epoch, run.start) == (epoch, 0)
    assert p.runs == 3


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_a_loss_that_is_not_finite_leaves_the_step_before(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Problem(11, guarded=True)
    p.x[9, 1] = np.nan
    _, weight = reference(p, [list(range(8))], 0.25)
    run = p.made(3)
    monkeypatch.setattr(run, "_affordable", lambda: chunk)
    assert finish(run, 3)[-1] == driver.Stop.NOT_FINITE
    assert (run.epoch, run.start, run.steps) == (0, 8, 2)
    assert run.failure.rows == (8, 9, 10) and run.failure.reason == ""
    assert np.isnan(run.failure.outputs[0]) and run.failure.outputs[1] == 6.0
    assert p.w == pytest.approx(weight, rel=1e-5)
    assert np.isfinite(run.sums).all() and run.sums[0, 1] == 2 * (4 * 8)


def test_a_loss_that_is_not_finite_may_pass() -> None:
    p = Problem(11)
    p.x[9, 1] = np.nan
    run = p.made(2)
    assert set(finish(run, 2)) == {0}
    assert not np.isfinite(run.sums[:, 0]).any() and np.isfinite(run.sums[:, 1]).all()


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 1000])
@pytest.mark.parametrize("bad", range(3 * 6))
def test_a_status_of_the_program_stops_before_its_step(
    bad: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row of step `bad` has a bad label from the epoch of that step on."""
    p, q = Problem(11), Problem(11)
    run, again = p.made(6, shuffle=True, seed=4), q.made(6, shuffle=True, seed=4)
    monkeypatch.setattr(run, "_affordable", lambda: chunk)
    while run.epoch < bad // 3:
        assert run.advance(bad // 3) == 0
    p.y[run_rows(4, bad)[0]] = -1  # data are read in place
    statuses = finish(run, 6)
    assert statuses[-1] == BAD_LABEL and set(statuses[:-1]) <= {0}
    assert (run.steps, run.epoch, run.start) == (bad, bad // 3, bad % 3 * 4)
    assert run.failure.rows == tuple(run_rows(4, bad))
    assert run.failure.reason == f"bad label in {run_rows(4, bad)}"
    monkeypatch.setattr(again, "_affordable", lambda: 1)
    while again.steps < bad:
        again.advance(6)
    assert p.w == q.w and p.seen == q.seen and run.sums.tobytes() == again.sums.tobytes()


def run_rows(seed: int, step: int) -> list[int]:
    """The rows of the given step over 11 rows in batches of 4."""
    epoch, batch = divmod(step, 3)
    return row_order(seed, epoch, 11)[4 * batch : 4 * batch + 4]
