"""Epochs as expressions: their meaning in NumPy, their compiled form, and how they are seen."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.memory import Invoked, InvokedLoop
from symgrad import optim
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node
from symgrad.train.driver import Run
from symgrad.train.epochs import Epochs, make_epochs
from symgrad.train.orders import Orders
from symgrad.train.trainer import Trainer
from tests.test_train_driver import row_order

B = sg.dim("B")
N, BATCH = 23, 5
Values = dict[str, Any]


def dropping(kind: str = "float64") -> tuple[Trainer, Values]:
    """A network with dropout and Adam, whose names are those of the epoch's own leaves and dims."""
    x, y = sg.input("order", (B, 3), kind), sg.input("y", (B,), dtype="int32")
    scale = sg.input("rest", (sg.dim("epochs"),), kind)
    W = sg.parameter("sum of loss", (3, 7), sg.init.normal(0.0, 0.5), kind)
    V = sg.parameter("V", (7, 2), sg.init.normal(0.0, 0.5), kind)
    h = sg.dropout(sg.tanh(x @ W) * scale.sum(), 0.25)
    loss = sg.cross_entropy(h @ V, y)
    metrics = {"norm of the gradient": sg.argmax(h @ V, 1) == y}
    rate = 0.05 / (1.0 + 0.1 * optim.step)
    trainer = Trainer(loss, optim.adam(rate), metrics=metrics, seed=5, clip_norm=1.0)
    rng = np.random.default_rng(2)
    data = {
        "order": rng.standard_normal((N, 3)).astype(kind),
        "y": rng.integers(0, 2, N).astype(np.int32),
        "rest": np.array([0.5, 0.75], kind),
    }
    return trainer, data


def written(trainer: Trainer) -> Epochs:
    """What the trainer trains, written down once more."""
    goal = trainer.objective
    return make_epochs({**goal.outputs, "norm": goal.norm}, goal.batch, goal.updates)


def test_the_meaning_of_an_epoch_is_what_the_compiled_run_does() -> None:
    """Dropout, Adam, clipping, a rate of the step, and a partial batch, in shuffled rows."""
    trainer, data = dropping()
    epochs = written(trainer)
    before = trainer.state
    history = trainer.fit(data, 3, BATCH)

    order, rest = Orders(N, True, 5).rows(0, 3, 0, N // BATCH, BATCH, 1)
    values: dict[Input, Any] = {epochs.order: order, epochs.rest: rest}
    values |= dict.fromkeys(epochs.begun, np.zeros(3))
    for leaf in Graph.of(epochs.outputs).inputs:
        if leaf not in values and not leaf.is_supplied:
            values[leaf] = before[leaf.name] if leaf.name in before else data[leaf.name]
    found = evaluate(epochs.outputs, values, seed=5, training=True)
    after = trainer.state
    # the rate is a float32: off by 2^-24 of itself, and so is a step, which is about as long
    error = trainer.state["optim.step"] * 0.05 * 2.0**-24
    for leaf, value in zip(epochs.state, found, strict=False):
        np.testing.assert_allclose(after[leaf.name], value, 1e-9, 2 * error, err_msg=leaf.name)
        assert np.any(value != before[leaf.name])
    sums = found[len(epochs.state) :]
    np.testing.assert_allclose(history.loss, sums[0] / N, rtol=1e-7)
    np.testing.assert_allclose(history.metrics["norm of the gradient"], sums[1] / N)
    np.testing.assert_allclose(history.gradient_norm, sums[2] / N, rtol=1e-6)


def test_orders_are_the_shuffles_of_their_epochs() -> None:
    orders, plain = Orders(N, True, 5), Orders(N)
    for epoch, epochs, batches, rests in ((3, 2, 4, 1), (3, 1, 4, 1), (5, 1, 2, 0), (0, 1, 0, 1)):
        for start in (0,) if epochs > 1 else (0, 5 * (4 - batches)):
            whole, rest = orders.rows(epoch, epochs, start, batches, BATCH, rests)
            assert whole.shape == (epochs, batches, 5) and rest.shape == (epochs, rests, 3)
            for e in range(epochs):
                expected = row_order(5, epoch + e, N)[start : start + 5 * batches + 3 * rests]
                assert [*whole[e].flat, *rest[e].flat] == expected
            whole, rest = plain.rows(epoch, epochs, start, batches, BATCH, rests)
            last = list(range(start, start + 5 * batches + 3 * rests))
            assert [*whole[-1].flat, *rest[-1].flat] == last


def test_chunks_change_no_bit_of_the_compiled_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, data = dropping("float32")
    first = trainer.state
    results = []
    for steps in (1, 2, 3, 5, 7, 11, 1000):
        monkeypatch.setattr(Run, "_affordable", lambda self, steps=steps: steps)
        trainer.restore(first)
        trainer.epoch = 0
        history = trainer.fit(data, 4, BATCH)
        bits = {name: value.tobytes() for name, value in trainer.state.items()}
        results.append((history.loss, history.gradient_norm, bits))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("steps", [1, 4, 1000])
def test_a_step_that_fails_leaves_the_state_before_it(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, data = dropping("float32")
    first = trainer.state
    monkeypatch.setattr(Run, "_affordable", lambda self: steps)
    spoiled = {name: value.copy() for name, value in data.items()}
    for name, bad, text in (("order", np.nan, "loss is nan"), ("y", 2, "label 2 is out of range")):
        trainer.restore(first)
        trainer.epoch = 0
        spoiled[name][17] = bad
        with pytest.raises(sg.DataError, match=text) as caught:
            trainer.fit(spoiled, 3, BATCH, shuffle=False)
        assert "epoch 1, step 4" in str(caught.value) and "17" in str(caught.value)
        stopped = trainer.state
        trainer.restore(first)
        trainer.fit({k: v[: 15 if k != "rest" else None] for k, v in data.items()}, 1, BATCH,
                    shuffle=False)
        for leaf, value in trainer.state.items():
            assert value.tobytes() == stopped[leaf].tobytes()
        spoiled[name][17] = data[name][17]


# -- how it is compiled ----------------------------------------------------------------------------
def loops_of(calls: tuple[Invoked | InvokedLoop, ...]) -> list[InvokedLoop]:
    """All recurrences of a plan, outer ones first."""
    found = [call for call in calls if isinstance(call, InvokedLoop)]
    return found + [inner for call in found for inner in loops_of(call.loop.calls)]


def test_what_is_carried_is_updated_in_place() -> None:
    trainer, _ = dropping("float32")
    plan = trainer.program.stages.plan
    epoch, whole, rest = loops_of(plan.calls)
    inside = [*whole.loop.calls, *rest.loop.calls]
    assert {call.kernel.copied for call in inside} <= {None, 1}  # at most the step count
    copied = [c.kernel.copied for c in epoch.loop.calls if isinstance(c, Invoked)]
    assert copied == [1] * 6  # the sums of three outputs, to and fro


def test_equal_kernels_of_whole_and_partial_batches_are_one() -> None:
    trainer, _ = dropping("float32")
    source = trainer.program.source
    whole, rest = source.split("for t1 in")[1:]
    names, others = ([s.split("(")[0] for s in part.split() if "kernel_" in s]
                     for part in (whole, rest))
    assert len(names) > 10 and names == others[: len(names)]


def test_calls_of_a_deep_network_stand_in_a_table() -> None:
    x, h = sg.input("x", (B, 3)), sg.input("x", (B, 3))
    h = x
    for k in range(40):
        h = sg.tanh(h @ sg.parameter(f"W{k}", (3, 3), sg.init.orthogonal()))
    trainer = Trainer((h * h).sum(1), optim.sgd(0.01))
    source = trainer.program.source
    assert source.count("run_calls(table, dims, ") >= 3
    assert source.split("def program")[1].count("kernel_") < 40
    history = trainer.fit({"x": np.eye(3)[[0, 1, 2, 0, 1]]}, 2, 2)
    assert history.loss[1] < history.loss[0]


# -- how it is seen --------------------------------------------------------------------------------
def test_the_epoch_can_be_read_and_drawn() -> None:
    trainer, _ = dropping("float32")
    graph = trainer.program.stages.graph
    outer = [n for n in graph.nodes if isinstance(n, Fold)]
    assert len(outer) == 1 and str(outer[0].structure.length) == "epochs'"
    inner = [n for n in outer[0].body.nodes if isinstance(n, Fold)]
    assert [str(f.structure.length) for f in inner] == ["batches", "rests"]
    text = str(graph)
    assert "fold" in text.lower() and "B_rest" in text
    picture = sg.draw(graph.outputs[-1])
    assert "batches" in picture.dot


def test_a_trained_recurrence_stands_inside_of_the_epochs() -> None:
    """An RNN: a recurrence over time within one over batches within one over epochs."""
    x, y = sg.input("x", (B, 4, 2)), sg.input("y", (B, 3))
    W = sg.parameter("W", (2, 3), sg.init.normal(0.0, 0.5))
    U = sg.parameter("U", (3, 3), sg.init.normal(0.0, 0.5))

    def step(h: Node, x_t: Node) -> tuple[Node, tuple[()]]:
        return sg.tanh(x_t @ W + h @ U), ()

    h, _ = sg.scan(step, sg.zeros((B, 3)), sg.swapaxes(x, 0, 1))
    trainer = Trainer(sg.mse(h, y).sum(1), optim.sgd(0.1))
    rng = np.random.default_rng(3)
    data = {"x": rng.standard_normal((7, 4, 2)), "y": rng.standard_normal((7, 3))}
    w, u = trainer.parameters["W"], trainer.parameters["U"]
    loss, norm = trainer.objective.outputs["loss"], trainer.objective.norm
    grads = sg.grad(loss, (W, U))
    history = trainer.fit(data, 2, 3, shuffle=False)
    for epoch in range(2):
        total = np.zeros(2)
        for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
            given = {"x": data["x"][rows], "y": data["y"][rows], "W": w, "U": u}
            value, size, dw, du = evaluate([loss, norm, *grads], given)
            total += len(given["x"]) * np.array([value, size])
            w, u = w - np.float32(0.1) * dw, u - np.float32(0.1) * du
        assert history.loss[epoch] == pytest.approx(total[0] / 7, rel=1e-5)
        assert history.gradient_norm[epoch] == pytest.approx(total[1] / 7, rel=1e-5)
    np.testing.assert_allclose(trainer.parameters["W"], w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trainer.parameters["U"], u, rtol=1e-4, atol=1e-6)


def test_whole_and_partial_batches_share_their_kernels() -> None:
    trainer, _ = dropping("float32")
    _, f = trainer._epochs("train")
    calls = re.findall(r"^ {12}(kernel_\d+)\(", f.stages.source, re.M)  # in the loops over batches
    half = len(calls) // 2
    assert half > 5 and calls[:half] == calls[half:]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_next_fit_works_in_the_memory_of_the_last(threads: int) -> None:
    x = sg.input("x", (B, 3), dtype="float64")
    W = sg.parameter("W", (3, 7), sg.init.normal(), dtype="float64")

    def made() -> Trainer:
        return Trainer((sg.tanh(x @ W) ** 2).sum(1), optim.sgd(0.1), seed=1, threads=threads)

    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal((n, 3)) for n in (N, 2 * N + 1)]
    first, plain, nested = arrays[0].copy(), made(), made()
    for array in (*arrays, arrays[0]):
        plain.fit({"x": array}, epochs=1, batch_size=BATCH)
    spare = plain.program._spare
    (memory,) = spare
    plain.fit({"x": first}, epochs=1, batch_size=BATCH)
    assert len(spare) == 1 and spare[0] is memory
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None  # the data of a fit are not kept

    def between(record: Any) -> None:  # while another run of the program holds its memory
        if len(nested.history.loss) == 1:
            nested.evaluate({"x": arrays[1]})
            nested.report({"x": arrays[1]}, batch_size=BATCH)

    nested.fit({"x": arrays[0]}, epochs=3, batch_size=BATCH, callbacks=[between])
    alone = made()
    alone.fit({"x": arrays[0]}, epochs=3, batch_size=BATCH)
    np.testing.assert_array_equal(nested.parameters["W"], alone.parameters["W"])
