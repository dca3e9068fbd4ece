"""The compiled epoch around a step written by hand: row order, batches, sums, stops."""

from __future__ import annotations

import numpy as np
import pytest
from numba import carray, cfunc, float32

from codegen.runtime.memory import address, at_f32, at_f64, at_i64
from symgrad.train import driver
from symgrad.train.driver import Run, Step

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


@cfunc("int64(int64, int64)")
def program(table, dims):
    """w -= 0.1 * mean(x - y); loss = mean((x - y)^2 + w); remembers the rows that it saw."""
    rows = address(dims, 0)
    x = carray(at_f32(address(table, 0), 0), (rows, 3))
    y = carray(at_i64(address(table, 1), 0), rows)
    w = carray(at_f32(address(table, 2), 0), 1)
    loss = carray(at_f32(address(table, 3), 0), 1)
    norm = carray(at_f64(address(table, 4), 0), 1)
    log = carray(at_i64(address(table, 5), 0), 1000)
    total = 0.0
    status = 0
    for i in range(rows):
        if y[i] < 0:
            status = BAD_LABEL
        log[1 + log[0]] = y[i]
        log[0] += 1
        total += x[i, 0] + 10.0 * x[i, 1] + 100.0 * x[i, 2] - y[i]
    loss[0] = total / rows + w[0]
    norm[0] = 2.0 * rows
    w[0] -= float32(0.5) * loss[0]
    return status


class Problem:
    """A bound step over n rows, with the rows that it saw in `log`."""

    def __init__(self, n: int = 11, batch: int = 4) -> None:
        rng = np.random.default_rng(5)
        self.x = rng.standard_normal((n, 3)).astype(np.float32)
        self.y = np.arange(n)
        self.w = np.array([0.25], np.float32)
        self.loss, self.norm = np.zeros((), np.float32), np.zeros(())
        self.log = np.zeros(1000, np.int64)
        buffers = (np.zeros((batch, 3), np.float32), np.zeros(batch, np.int64))
        arrays = (*buffers, self.w, self.loss, self.norm, self.log)
        table = np.array([a.ctypes.data for a in arrays], np.int64)
        self.step = Step(
            program=program.address,
            full=(table, np.array([batch])),
            rest=(table.copy(), np.array([n % batch])),
            buffers=buffers,
            outputs=(self.loss, self.norm),
            state=(self.w,),
            alive=arrays,
        )
        self.batch = batch

    def run(self, epochs: int, **options: object) -> Run:
        return Run(
            self.step, (self.x, self.y), epochs=epochs, batch_size=self.batch, **options
        )

    @property
    def seen(self) -> list[int]:
        return self.log[1 : 1 + self.log[0]].tolist()


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
    run = p.run(3)
    assert set(finish(run, 3)) == {0}
    assert p.seen == 3 * list(range(n))
    assert run.steps == 3 * -(-n // 4) and run.start == 0
    np.testing.assert_allclose(run.sums, expected, rtol=1e-5)
    assert p.w[0] == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, -1])
def test_order_is_a_function_of_seed_and_epoch(seed: int) -> None:
    p = Problem(11)
    orders = [row_order(seed % 2**64, epoch, 11) for epoch in range(2, 6)]
    assert len({tuple(order) for order in orders}) == 4
    expected, _ = reference(p, orders, 0.25)
    run = p.run(4, shuffle=True, seed=seed, first_epoch=2)
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
    for steps in (1, 2, 5, 1000):
        p = Problem(11)
        run = p.run(6, shuffle=True, seed=3)
        monkeypatch.setattr(run, "_affordable", lambda steps=steps: steps)
        assert len(finish(run, 6)) == -(-18 // steps)
        results.append((p.seen, run.sums.tobytes(), p.w.tobytes()))
    assert all(result == results[0] for result in results)


def test_a_chunk_ends_at_the_epoch_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Problem(11).run(6)
    monkeypatch.setattr(run, "_affordable", lambda: 1000)
    for epoch in (1, 4, 6):
        assert run.advance(epoch) == 0
        assert (run.epoch, run.start) == (epoch, 0)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_a_loss_that_is_not_finite_leaves_the_step_before(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Problem(11)
    p.x[9, 1] = np.nan
    _, weight = reference(p, [list(range(8))], 0.25)
    run = p.run(3, stop_at_nan=True)
    monkeypatch.setattr(run, "_affordable", lambda: chunk)
    assert finish(run, 3)[-1] == driver.Stop.NOT_FINITE
    assert (run.epoch, run.start, run.steps) == (0, 8, 2)
    assert p.w[0] == pytest.approx(weight, rel=1e-5)
    assert np.isfinite(run.sums).all() and run.sums[0, 1] == 2 * (4 * 8)


def test_a_loss_that_is_not_finite_may_pass() -> None:
    p = Problem(11)
    p.x[9, 1] = np.inf
    run = p.run(2)
    assert set(finish(run, 2)) == {0}
    assert not np.isfinite(run.sums[:, 0]).any() and np.isfinite(run.sums[:, 1]).all()


def test_a_status_of_the_program_stops_before_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(11)
    run = p.run(3, shuffle=True, seed=4)
    monkeypatch.setattr(run, "_affordable", lambda: 5)
    assert run.advance(3) == 0
    p.y[row_order(4, 2, 11)[5]] = -1  # data are read in place
    batches = [set(run_rows(4, k)) for k in range(5, 9)]
    position = 5 + next(k for k, rows in enumerate(batches) if row_order(4, 2, 11)[5] in rows)
    statuses = finish(run, 3)
    assert statuses[-1] == BAD_LABEL
    assert (run.steps, run.epoch, run.start) == (position, position // 3, position % 3 * 4)
    q = Problem(11)
    again = q.run(3, shuffle=True, seed=4)
    while again.steps < position:
        monkeypatch.setattr(again, "_affordable", lambda: 1)
        again.advance(3)
    assert p.w[0] == q.w[0] and run.sums.tobytes() == again.sums.tobytes()


def run_rows(seed: int, step: int) -> list[int]:
    """The rows of the given step over 11 rows in batches of 4."""
    epoch, batch = divmod(step, 3)
    return row_order(seed, epoch, 11)[4 * batch : 4 * batch + 4]


@pytest.mark.parametrize("layout", ["reversed", "strided", "fortran", "offset", "memmap"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_layouts_of_data(layout: str, shuffle: bool, tmp_path: object) -> None:
    p = Problem(11)
    plain = p.x
    if layout == "reversed":
        p.x = np.ascontiguousarray(plain[::-1])[::-1]
    elif layout == "strided":
        wide = np.zeros((22, 5), np.float32)
        wide[::2, :3] = plain
        p.x = wide[::2, :3]
    elif layout == "fortran":
        p.x = np.asfortranarray(plain)
    elif layout == "offset":
        p.x = np.concatenate([plain[:2], plain])[2:]
    else:
        path = f"{tmp_path}/x.f32"
        plain.tofile(path)
        p.x = np.memmap(path, np.float32, "r", shape=plain.shape)
    run = p.run(2, shuffle=shuffle, seed=1)
    if layout in ("strided", "offset", "memmap"):
        assert run.data[0] is p.x
    finish(run, 2)
    expected, _ = reference(p, [row_order(1, e, 11) if shuffle else list(range(11))
                                for e in range(2)], 0.25)
    np.testing.assert_allclose(run.sums, expected, rtol=1e-5)
