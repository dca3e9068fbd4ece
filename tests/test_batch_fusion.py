"""Kernels that take turns over rows: interpreted and compiled, against `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen import batch_fusion, records, turn_sums, turns
from codegen.compiled import Compiled
from codegen.memory import InvokedLoop
from codegen.reasons import turn_lines
from codegen.schedule import FoldStage
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Node
from tests.ir_interpreter import failures, interpreted
from tests.team_interpreter import everything_shared, teams_interpreted

LENGTH, WIDTH, HIDDEN, CLASSES = 5, 3, 7, 4


def take_turns_from(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Rows that would be too short to be worth it take turns too; programs are made anew."""
    monkeypatch.setattr(turns, "FEWEST_ROWS", rows)
    monkeypatch.setattr(batch_fusion, "LEAST_BYTES", 0)
    monkeypatch.setattr(batch_fusion, "LEAST_SHARE", 0.0)
    monkeypatch.setattr(records, "_compiler", lambda: f"turns of {rows} rows")


@pytest.fixture(autouse=True)
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns_from(monkeypatch, 2)


def loops_in_turn(f: Compiled) -> list[InvokedLoop]:
    return [c for c in f.stages.plan.calls if isinstance(c, InvokedLoop) and c.loop.turns]


def judged(f: Compiled, nodes: list[Node], values: dict[str, Any], near: float) -> None:
    for node, got, wanted in zip(nodes, f(**values), evaluate(nodes, values), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, near, near, err_msg=f"{node!r}")


def network(dtype: Any, batch: Any) -> tuple[list[Node], dict[str, Any]]:
    """A block with attention, a mask by place, layer norm and sums of all kinds; its gradients."""
    rng = np.random.default_rng(3)
    shapes = {"E": (6, WIDTH), "V": (WIDTH, HIDDEN), "b": (HIDDEN,), "W": (HIDDEN, WIDTH)}
    shapes |= {"C": (WIDTH, CLASSES)}
    values = {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}
    p = {k: sg.input(k, v.shape, dtype=v.dtype) for k, v in values.items()}
    x = sg.input("x", (batch, LENGTH), dtype="int32")
    y = sg.input("y", (batch, LENGTH), dtype="int32")
    h = p["E"][x]
    scores = h @ sg.swapaxes(h, -1, -2)
    place = sg.arange(LENGTH)
    scores = sg.where(place <= sg.expand_dims(place, 1), scores, -1e9)
    h = h + sg.softmax(scores) @ h
    middle = h - h.mean(-1, keepdims=True)
    h = h + sg.tanh(middle @ p["V"] + p["b"]) @ p["W"]
    loss = sg.cross_entropy(h @ p["C"], y).mean()
    largest = sg.max(h, (0, 1))
    return [loss, largest, h, *sg.grad(loss, list(p.values()))], values


def labels(values: dict[str, Any], n: int) -> dict[str, Any]:
    rng = np.random.default_rng(n)
    x = rng.integers(6, size=(n, LENGTH)).astype(np.int32)
    y = rng.integers(CLASSES, size=(n, LENGTH)).astype(np.int32)
    return {**values, "x": x, "y": y}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [sg.dim("B"), 11])
def test_a_block_and_its_gradients(dtype: Any, batch: Any) -> None:
    nodes, values = network(dtype, batch)
    f = sg.compile(nodes)
    (loop,) = loops_in_turn(f)
    products = [c for c in loop.loop.calls if c.nodes and " @ " in str(c.kernel)]  # type: ignore
    assert len(products) >= 10
    near = 2e-5 if dtype is np.float32 else 1e-12
    for n in [11] if batch == 11 else [1, 2, 7]:
        judged(f, nodes, labels(values, n), near)


def test_every_access_is_in_place() -> None:
    nodes, values = network(np.float64, sg.dim("B"))
    with interpreted():
        f = sg.compile(nodes)
        assert loops_in_turn(f)
        for n in (1, 3):
            judged(f, nodes, labels(values, n), 1e-12)
        assert not failures(f), failures(f)


def test_the_stages_of_a_recurrence_keep_its_number() -> None:
    """Turns are listed below the recurrence that takes them, in whatever order loops stand."""
    B = sg.dim("B")
    W, V = sg.input("W", (WIDTH, HIDDEN)), sg.input("V", (HIDDEN, WIDTH))
    h = sg.input("h", (B, LENGTH, WIDTH))
    x = sg.input("x", (4, B, LENGTH, WIDTH))

    def once(h: Node, now: Node) -> tuple[Node, tuple[()]]:
        return sg.tanh((h + now) @ W) @ V, ()

    def twice(h: Node, now: Node) -> tuple[Node, tuple[()]]:
        return sg.tanh(once(h, now)[0] @ W) @ V, ()

    stages = sg.compile(sg.scan(twice, sg.scan(once, h, x)[0], x[:3])[0]).stages
    lines = list(turn_lines(stages.plan.calls, stages.schedule))
    numbers = [f"{k}." for k, s in enumerate(stages.schedule.stages, 1) if isinstance(s, FoldStage)]
    assert len(numbers) == len(lines) == 2 and str(stages).count("take turns") == 2
    for number, line in zip(numbers, lines, strict=True):
        assert f" from {number}1 to {number}" in line, line
    assert list(turn_lines(stages.plan.calls[::-1], stages.schedule)) == lines[::-1]


def test_no_row_at_all() -> None:
    """Sums over nothing are zero."""
    B = sg.dim("B")
    x = sg.input("x", (B, LENGTH, WIDTH))
    W, V = sg.input("W", (WIDTH, HIDDEN)), sg.input("V", (HIDDEN, WIDTH))
    total = sg.square(sg.tanh(x @ W) @ V).sum()
    nodes = [total, *sg.grad(total, [W, V])]
    f = sg.compile(nodes)
    assert loops_in_turn(f)
    values = {"W": np.ones((WIDTH, HIDDEN), "f"), "V": np.ones((HIDDEN, WIDTH), "f")}
    for n in (0, 2, 0):
        judged(f, nodes, {**values, "x": np.ones((n, LENGTH, WIDTH), "f")}, 1e-5)


def test_arrays_become_rows() -> None:
    """What nothing else reads has the memory of one row, whatever the batch."""
    nodes, _ = network(np.float32, sg.dim("B"))
    plan = sg.compile([nodes[0], *nodes[3:]]).stages.plan
    assert not plan.layout.dims, plan
    assert plan.slot_offsets({})[1] < 10_000


def test_a_mean_over_the_batch_parts_the_turns() -> None:
    B = sg.dim("B")
    x = sg.input("x", (B, LENGTH, WIDTH))
    W, V = sg.input("W", (WIDTH, HIDDEN)), sg.input("V", (HIDDEN, WIDTH))
    h = sg.tanh(x @ W) @ V
    h = (h - h.mean((0, 1))) * sg.rsqrt(sg.var(h, (0, 1)) + 1e-5)
    loss = sg.square(sg.tanh(h @ W) @ V).mean()
    nodes = [loss, h, *sg.grad(loss, [W, V])]
    f = sg.compile(nodes)
    assert len(loops_in_turn(f)) >= 2
    rng = np.random.default_rng(0)
    values = {n.name: rng.normal(size=n.shape).astype("f") for n in (W, V)}
    for n in (1, 4):
        x_value = rng.normal(size=(n, LENGTH, WIDTH)).astype("f")
        judged(f, nodes, {**values, "x": x_value}, 1e-4)


def test_random_numbers_are_those_of_their_places() -> None:
    B = sg.dim("B")
    x, W = sg.input("x", (B, LENGTH, WIDTH)), sg.input("W", (WIDTH, WIDTH))
    h = x @ W
    h = sg.where(sg.random.uniform(h.shape) < 0.5, h, 0.0) @ W
    nodes = [h, sg.square(h).sum()]
    f = sg.compile(nodes, seed=5)
    assert loops_in_turn(f) and "uniform" in f.source
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=(4, LENGTH, WIDTH)), "W": rng.normal(size=(WIDTH, WIDTH))}
    values = {k: v.astype("f") for k, v in values.items()}
    for node, got, wanted in zip(nodes, f(**values), evaluate(nodes, values, seed=5), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-5, err_msg=f"{node!r}")


def test_a_bad_index_is_told_by_its_place() -> None:
    nodes, values = network(np.float32, sg.dim("B"))
    f = sg.compile(nodes)
    assert loops_in_turn(f)
    given = labels(values, 4)
    given["x"][2, 3] = 17
    with pytest.raises(sg.DataError, match=r"index 17 .*(.|\n)*at \(2, 3\) of"):
        f(**given)


def test_training_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses as without, in whole minibatches and in the last one; and so with dropout."""
    rng = np.random.default_rng(1)
    data = {"x": rng.normal(size=(23, LENGTH, WIDTH)).astype("f")}
    data["y"] = rng.integers(CLASSES, size=(23, LENGTH)).astype(np.int32)

    def losses() -> list[float]:
        x, y = sg.input("x", (B, LENGTH, WIDTH)), sg.input("y", (B, LENGTH), dtype="int32")
        W = sg.parameter("W", (WIDTH, HIDDEN), sg.init.normal(0.0, 0.5))
        V = sg.parameter("V", (HIDDEN, CLASSES), sg.init.normal(0.0, 0.5))
        h = sg.dropout(sg.tanh(x @ W), 0.25)
        trainer = sg.Trainer(sg.cross_entropy(h @ V, y).mean(), sg.optim.adam(0.1), seed=4)
        found = list(trainer.fit(data, epochs=3, batch_size=5, progress=False).loss)
        assert ("sums begin" in trainer.program.source) == (turns.FEWEST_ROWS == 2)
        return found

    B = sg.dim("B")
    ours = losses()
    take_turns_from(monkeypatch, LENGTH + 1)
    np.testing.assert_allclose(ours, losses(), 1e-5)


def test_short_rows_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns_from(monkeypatch, LENGTH + 1)
    nodes, _ = network(np.float32, sg.dim("B"))
    assert not loops_in_turn(sg.compile(nodes))


def test_what_is_kept_anyway_takes_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way forward whose arrays are all wanted, and one of which only the end is."""
    monkeypatch.setattr(batch_fusion, "LEAST_SHARE", 0.5)
    B = sg.dim("B")
    x = sg.input("x", (B, LENGTH, WIDTH))
    W, V = sg.input("W", (WIDTH, HIDDEN)), sg.input("V", (HIDDEN, WIDTH))
    inner = sg.tanh(x @ W)
    assert not loops_in_turn(sg.compile([x @ W, inner, inner @ V]))
    assert loops_in_turn(sg.compile(inner @ V))


def test_weights_that_do_not_fit_part_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many layers together as have weights of so many bytes."""
    rng = np.random.default_rng(0)
    x = sg.input("x", (sg.dim("B"), LENGTH, WIDTH))
    values = {"x": rng.normal(size=(4, LENGTH, WIDTH)).astype("f")}
    h = x
    for k in range(6):
        W = sg.input(f"W{k}", (WIDTH, WIDTH))
        values[f"W{k}"] = rng.normal(size=(WIDTH, WIDTH)).astype("f")
        h = sg.tanh(h @ W)
    monkeypatch.setattr(batch_fusion, "MOST_WEIGHTS", 2 * 4 * WIDTH**2)
    f = sg.compile([h])
    assert len(loops_in_turn(f)) == 3
    judged(f, [h], values, 1e-5)


# -- teams -----------------------------------------------------------------------------------------
@pytest.fixture
def small_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of any size are added up apart."""
    monkeypatch.setattr(turn_sums, "WORK_OVER_MERGING", 0)


def shared_loops(f: Compiled) -> list[InvokedLoop]:
    team = f.stages.team
    assert team is not None
    return [c for c in team.plan.calls if isinstance(c, InvokedLoop) and c.loop.rows is not None]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_turns_and_never_race(workers: int, small_sums: None) -> None:
    """Batches of no row, of fewer rows than workers, and of rows that cannot be shared fairly."""
    nodes, values = network(np.float64, sg.dim("B"))
    with teams_interpreted(workers):
        f = sg.compile(nodes, threads=workers)
        (loop,) = shared_loops(f)
        assert len(loop.loop.calls) > 10
        for n in (1, 2, 7):
            judged(f, nodes, labels(values, n), 1e-12)


def test_sums_of_a_team(small_sums: None) -> None:
    """Compiled: against the oracle, and the same bits from call to call."""
    nodes, values = network(np.float32, sg.dim("B"))
    with everything_shared():
        f = sg.compile(nodes, threads=3)
        assert shared_loops(f) and "sums end" in str(f.stages.team.source)
        for n in (1, 3, 11):
            given = labels(values, n)
            judged(f, nodes, given, 2e-5)
            for a, b in zip(f(**given), f(**given), strict=True):
                assert a.tobytes() == b.tobytes()
        given["x"][2, 3] = 17
        with pytest.raises(sg.DataError, match=r"index 17 .*(.|\n)*at \(2, 3\) of"):
            f(**given)


def test_no_row_for_a_team(small_sums: None) -> None:
    """Sums over nothing are zero; the next batch finds nothing of the last."""
    x = sg.input("x", (sg.dim("B"), LENGTH, WIDTH))
    W, V = sg.input("W", (WIDTH, HIDDEN)), sg.input("V", (HIDDEN, WIDTH))
    total = sg.square(sg.tanh(x @ W) @ V).sum()
    nodes = [total, *sg.grad(total, [W, V])]
    values = {"W": np.ones((WIDTH, HIDDEN), "f"), "V": np.ones((HIDDEN, WIDTH), "f")}
    with everything_shared():
        f = sg.compile(nodes, threads=2)
        assert shared_loops(f)
        for n in (5, 0, 2, 0):
            judged(f, nodes, {**values, "x": np.ones((n, LENGTH, WIDTH), "f")}, 1e-5)


def test_a_team_in_training(small_sums: None) -> None:
    """With dropout: the random numbers are those of one thread; the last minibatch is smaller."""
    rng = np.random.default_rng(1)
    data = {"x": rng.normal(size=(23, LENGTH, WIDTH)).astype("f")}
    data["y"] = rng.integers(CLASSES, size=(23, LENGTH)).astype(np.int32)
    B = sg.dim("B")

    def losses(threads: int) -> list[float]:
        x, y = sg.input("x", (B, LENGTH, WIDTH)), sg.input("y", (B, LENGTH), dtype="int32")
        W = sg.parameter("W", (WIDTH, HIDDEN), sg.init.normal(0.0, 0.5))
        V = sg.parameter("V", (HIDDEN, CLASSES), sg.init.normal(0.0, 0.5))
        h = sg.dropout(sg.tanh(x @ W), 0.25)
        loss = sg.cross_entropy(h @ V, y).mean()
        trainer = sg.Trainer(loss, sg.optim.adam(0.1), seed=4, threads=threads)
        found = list(trainer.fit(data, epochs=3, batch_size=9, progress=False).loss)
        assert (trainer.program.stages.team is not None) == (threads > 1)
        if threads > 1:
            team = trainer.program.stages.team
            assert team.used == threads and "own_" in team.source
        return found

    ours = losses(1)
    with everything_shared():
        np.testing.assert_allclose(losses(2), ours, 1e-5)
        np.testing.assert_allclose(losses(3), ours, 1e-5)


def test_rows_that_leave_workers_without_work(small_sums: None) -> None:
    """One row is for one worker, whatever it takes."""
    nodes, _ = network(np.float32, sg.dim("B"))
    team = sg.compile(nodes, threads=2).stages.team
    assert team is not None and team.work.rows
    (B,) = team.order
    large = replace(team, work=replace(team.work, shared=team.work.shared * 10**6), _decided={})
    assert [large.is_worth({B: n}) for n in (1, 2, 3, 8)] == [False, True, True, True]


def test_sums_as_large_as_the_work_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are added up by all workers at their places, not apart and then merged."""
    monkeypatch.setattr(turn_sums, "WORK_OVER_MERGING", 10**9)
    nodes, values = network(np.float64, sg.dim("B"))
    with teams_interpreted():
        f = sg.compile(nodes, threads=2)
        assert shared_loops(f) and "sums begin" not in f.stages.team.source
        judged(f, nodes, labels(values, 5), 1e-12)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_turns_in_a_recurrence(workers: int, small_sums: None) -> None:
    """Sums of a step begin anew after all have read those of the step before."""
    B, shape = sg.dim("B"), (4, LENGTH, WIDTH)
    x = sg.input("x", (shape[0], B, *shape[1:]), dtype="float64")
    h = sg.input("h", (B, *shape[1:]), dtype="float64")
    W = sg.input("W", (WIDTH, HIDDEN), dtype="float64")
    V = sg.input("V", (HIDDEN, WIDTH), dtype="float64")

    def step(h: Node, now: Node) -> tuple[Node, Node]:
        h = sg.tanh(sg.tanh((h + now) @ W) @ V @ W) @ V
        return h, sg.square(h).sum()

    last, sums = sg.scan(step, h, x)
    loss = sg.square(last).sum() + sums.sum()
    nodes = [loss, last, *sg.grad(loss, [W, V])]
    rng = np.random.default_rng(5)
    values = {n.name: rng.normal(size=n.shape) for n in (W, V)}
    with teams_interpreted(workers):
        f = sg.compile(nodes, threads=workers)
        team = f.stages.team
        assert team is not None
        folds = [c.loop.calls for c in team.plan.calls if isinstance(c, InvokedLoop)]
        inside = [c for calls in folds for c in calls if isinstance(c, InvokedLoop)]
        assert any(c.loop.rows is not None for c in inside)
        for n in (1, 4):
            rows = {"h": rng.normal(size=(n, *shape[1:]))}
            rows["x"] = rng.normal(size=(shape[0], n, *shape[1:]))
            judged(f, nodes, values | rows, 1e-11)
