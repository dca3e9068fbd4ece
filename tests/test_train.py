"""The trainer against plain NumPy loops; seeds, partial batches, data, files, interruption."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from symgrad import init, optim
from symgrad.graph.dims import dim
from symgrad.graph.elementwise import exp, tanh
from symgrad.graph.errors import (
    DataError,
    SymgradError,
)
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import input, parameter
from symgrad.graph.losses import cross_entropy
from symgrad.graph.nodes import Node
from symgrad.graph.reductions import argmax, mean
from symgrad.optim import Optimizer
from symgrad.train.history import EpochRecord
from symgrad.train.trainer import Trainer
from tests.test_train_driver import row_order

B = dim("B")
N = 23
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: optim.sgd(0.5),
    "momentum": lambda: optim.sgd(0.2, momentum=0.8),
    "nesterov": lambda: optim.sgd(0.2, momentum=0.8, nesterov=True),
    "adam": lambda: optim.adam(0.05),
}


class Net:
    """A 5-7-3 tanh network with cross entropy, its data, and nothing shared between tests."""

    def __init__(self) -> None:
        self.x, self.y = input("x", (B, 5)), input("y", (B,), dtype="int32")
        self.W1 = parameter("W1", (5, 7), init=init.glorot_uniform())
        self.b1 = parameter("b1", (7,))
        self.W2 = parameter("W2", (7, 3), init=init.glorot_uniform())
        self.b2 = parameter("b2", (3,))
        self.logits: Node = tanh(self.x @ self.W1 + self.b1) @ self.W2 + self.b2
        self.rows: Node = cross_entropy(self.logits, self.y)
        self.hit: Node = argmax(self.logits, 1) == self.y
        rng = np.random.default_rng(11)
        self.data: dict[str, Any] = {
            "x": rng.standard_normal((N, 5)).astype(np.float32),
            "y": rng.integers(0, 3, N).astype(np.int32),
        }

    def trainer(self, optimizer: Optimizer | None = None, **options: Any) -> Trainer:
        options.setdefault("metrics", {"accuracy": self.hit})
        return Trainer(mean(self.rows), optimizer or optim.sgd(0.5), **options)


def gradients(p: dict[str, Any], x: Any, y: Any) -> tuple[float, float, dict[str, Any]]:
    """Loss, accuracy and gradients of `Net`, by hand, in float64."""
    h = np.tanh(x @ p["W1"] + p["b1"])
    z = h @ p["W2"] + p["b2"]
    e = np.exp(z - z.max(1, keepdims=True))
    s = e / e.sum(1, keepdims=True)
    rows = np.arange(len(y))
    loss, hits = -np.log(s[rows, y]).mean(), (z.argmax(1) == y).mean()
    dz = s.copy()
    dz[rows, y] -= 1
    dz /= len(y)
    da = dz @ p["W2"].T * (1 - h**2)
    return loss, hits, {"W1": x.T @ da, "b1": da.sum(0), "W2": h.T @ dz, "b2": dz.sum(0)}


def numpy_training(
    name: str, p: dict[str, Any], data: dict[str, Any], orders: list[Any], batch: int,
    clip: float | None,
) -> tuple[dict[str, Any], Any]:
    """The same training in NumPy; returns parameters and (loss, accuracy, norm) per epoch."""
    p = {k: v.astype(np.float64) for k, v in p.items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v2 = {k: np.zeros_like(v) for k, v in p.items()}
    figures, t = [], 0
    for order in orders:
        total = np.zeros(3)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            loss, hits, g = gradients(p, data["x"][rows].astype(np.float64), data["y"][rows])
            norm = np.sqrt(sum((d**2).sum() for d in g.values()))
            total += len(rows) * np.array([loss, hits, norm])
            t += 1
            for k in p:
                d = g[k] * min(1.0, clip / norm) if clip else g[k]
                if name == "adam":
                    m[k] = 0.9 * m[k] + 0.1 * d
                    v2[k] = 0.999 * v2[k] + 0.001 * d**2
                    p[k] = p[k] - 0.05 * (m[k] / (1 - 0.9**t)) / (
                        np.sqrt(v2[k] / (1 - 0.999**t)) + 1e-8
                    )
                elif name == "sgd":
                    p[k] = p[k] - 0.5 * d
                else:
                    m[k] = 0.8 * m[k] + d
                    p[k] = p[k] - 0.2 * (d + 0.8 * m[k] if name == "nesterov" else m[k])
        figures.append(total / len(order))
    return p, np.array(figures)


# -- one truth --------------------------------------------------------------------------------
@pytest.mark.parametrize("clip", [None, 0.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_against_numpy(name: str, clip: float | None) -> None:
    net = Net()
    trainer = net.trainer(OPTIMIZERS[name](), clip_norm=clip, seed=3)
    first = trainer.parameters
    history = trainer.fit(net.data, epochs=4, batch_size=8)
    orders = [row_order(3, epoch, N) for epoch in range(4)]
    expected, figures = numpy_training(name, first, net.data, orders, 8, clip)
    for k, value in trainer.parameters.items():
        np.testing.assert_allclose(value, expected[k], rtol=1e-5, atol=1e-5, err_msg=k)
    np.testing.assert_allclose(history.loss, figures[:, 0], rtol=1e-5)
    np.testing.assert_allclose(history.metrics["accuracy"], figures[:, 1], rtol=1e-6)
    np.testing.assert_allclose(history.gradient_norm, figures[:, 2], rtol=1e-5)
    if clip:
        assert (figures[:, 2] > clip).any()


@pytest.mark.parametrize("name", optim.MAKERS)
def test_every_optimizer_runs_compiled_as_it_is_written(name: str) -> None:
    """One compiled step of a float64 line, against the evaluator on the same expressions."""
    x, w = input("x", (B, 3), dtype="float64"), parameter("w", (3,), init.normal(), "float64")
    trainer = Trainer(exp(x @ w), optim.MAKERS[name](0.1), clip_norm=0.5)
    rows = np.random.default_rng(2).standard_normal((N, 3))
    goal = trainer.objective
    state = {leaf.name: np.zeros([int(e) for e in leaf.shape], leaf.dtype) for leaf in goal.kept}
    state["w"] = trainer.parameters["w"]
    losses = []
    for _ in range(3):
        loss, *values = evaluate(
            [goal.outputs["loss"], *goal.updates.values()], {**state, "x": rows}
        )
        state |= {leaf.name: v for leaf, v in zip(goal.updates, values, strict=True)}
        losses.append(float(loss))
    history = trainer.fit({"x": rows}, 3, N, shuffle=False)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(trainer.parameters["w"], state["w"], rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_order_without_shuffle_and_sizes_of_batches(batch_size: int) -> None:
    net = Net()
    trainer = net.trainer()
    first = trainer.parameters
    history = trainer.fit(net.data, epochs=2, batch_size=batch_size, shuffle=False)
    expected, figures = numpy_training("sgd", first, net.data, [range(N)] * 2, batch_size, None)
    np.testing.assert_allclose(trainer.parameters["W1"], expected["W1"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.loss, figures[:, 0], rtol=1e-4)
    assert history.steps == 2 * -(-N // batch_size)


def test_a_loss_per_row_is_its_mean() -> None:
    one, two = Net(), Net()
    a = Trainer(one.rows, optim.sgd(0.5))
    b = Trainer(mean(two.rows), optim.sgd(0.5))
    assert a.fit(one.data, 2, 8).loss == pytest.approx(b.fit(two.data, 2, 8).loss, rel=1e-6)


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    results = []
    for seed in (5, 5, 6):
        net = Net()
        trainer = net.trainer(optim.adam(), seed=seed)
        history = trainer.fit(net.data, 3, 8)
        results.append((history.loss, [v.tobytes() for v in trainer.parameters.values()]))
    assert results[0] == results[1] != results[2]


def test_repeated_fit_continues() -> None:
    whole, parts = Net(), Net()
    a, b = whole.trainer(optim.adam()), parts.trainer(optim.adam())
    history = a.fit(whole.data, 5, 8)
    first, second = b.fit(parts.data, 3, 8), b.fit(parts.data, 2, 8)
    assert first.loss + second.loss == history.loss == b.history.loss
    assert history.epochs == (1, 2, 3, 4, 5) and second.epochs == (4, 5)
    assert a.parameters["W1"].tobytes() == b.parameters["W1"].tobytes()


def test_rate_as_an_expression_of_the_step() -> None:
    net = Net()
    trainer = net.trainer(optim.sgd(0.5 * exp(-0.1 * optim.step.astype("float32"))))
    first = trainer.parameters
    trainer.fit(net.data, 1, N, shuffle=False)
    _, _, g = gradients({k: v.astype(np.float64) for k, v in first.items()}, *net.data.values())
    np.testing.assert_allclose(
        trainer.parameters["W2"], first["W2"] - 0.5 * g["W2"], rtol=1e-5, atol=1e-6
    )
    before = trainer.parameters
    trainer.fit(net.data, 1, N, shuffle=False)
    _, _, g = gradients({k: v.astype(np.float64) for k, v in before.items()}, *net.data.values())
    np.testing.assert_allclose(
        trainer.parameters["W2"], before["W2"] - 0.5 * np.exp(-0.1) * g["W2"], rtol=1e-5, atol=1e-6
    )


def test_wrt_leaves_the_rest_alone() -> None:
    net = Net()
    trainer = net.trainer(wrt=[net.W2, net.b2])
    first = trainer.parameters
    trainer.fit(net.data, 2, 8)
    last = trainer.parameters
    assert [k for k in first if (first[k] != last[k]).any()] == ["W2", "b2"]
    assert list(last) == ["W1", "b1", "W2", "b2"]


def test_parameters_are_copies() -> None:
    trainer = Net().trainer()
    trainer.parameters["W1"][...] = 0
    assert trainer.parameters["W1"].any()


# -- evaluating -------------------------------------------------------------------------------
def test_evaluate_validation_and_predict() -> None:
    net = Net()
    trainer = net.trainer()
    other = {"x": net.data["x"][:10] * 2, "y": net.data["y"][:10]}
    history = trainer.fit(net.data, 2, 8, validation=other)
    p = {k: v.astype(np.float64) for k, v in trainer.parameters.items()}
    loss, hits, _ = gradients(p, other["x"].astype(np.float64), other["y"])
    for size in (None, 1, 4, 10):
        got = trainer.evaluate(other, batch_size=size)
        assert got == pytest.approx({"loss": loss, "accuracy": hits}, rel=1e-5)
    assert history.validation["loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert len(history.validation["accuracy"]) == 2
    z = np.tanh(net.data["x"] @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]
    for size in (None, 1, 7):
        got = trainer.predict(net.logits, net.data, batch_size=size)
        np.testing.assert_allclose(got, z, rtol=1e-4, atol=1e-5)
    both = trainer.predict({"z": net.logits, "c": argmax(net.logits, 1)}, {"x": net.data["x"]})
    np.testing.assert_array_equal(both["c"], z.argmax(1))
    pair = trainer.predict((net.logits, mean(net.logits)), {net.x: net.data["x"]}, batch_size=3)
    assert isinstance(pair, tuple) and pair[1] == pytest.approx(z.mean(), rel=1e-4)
    np.testing.assert_array_equal(trainer.predict(net.W1, {}), trainer.parameters["W1"])


def test_inputs_without_the_batch_are_passed_whole() -> None:
    net = Net()
    weights = input("class weights", (3,))
    loss = net.rows * weights[net.y]
    trainer = Trainer(loss, optim.sgd(0.1))
    trainer.fit({**net.data, "class weights": [1.0, 0.0, 0.0]}, 1, 8)
    got = trainer.evaluate({**net.data, "class weights": np.array([0.0, 2.0, 0.0])})["loss"]
    rows = trainer.predict(net.rows, net.data)
    expected = (rows * np.array([0.0, 2.0, 0.0])[net.data["y"]]).mean()
    assert got == pytest.approx(expected, rel=1e-5)


# -- callbacks, Ctrl-C, progress --------------------------------------------------------------
def test_callbacks_see_every_epoch_and_may_stop() -> None:
    net = Net()
    seen: list[EpochRecord] = []
    trainer = net.trainer()

    def stop_after_three(record: EpochRecord) -> object:
        seen.append(record)
        return "stop" if record.epoch == 3 else None

    history = trainer.fit(net.data, 9, 8, callbacks=[stop_after_three, lambda r: False])
    assert [r.epoch for r in seen] == [1, 2, 3] and not history.interrupted
    assert history.records == tuple(seen) and history.epochs == (1, 2, 3)
    assert seen[0].rows == N and seen[0].steps == 3 and seen[0].seconds > 0
    plain = Net()
    assert plain.trainer().fit(plain.data, 3, 8).loss == history.loss


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell starts what runs in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_from_a_callback() -> None:
    net = Net()
    trainer = net.trainer()

    def press(record: EpochRecord) -> None:
        if record.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    history = trainer.fit(net.data, 50, 8, callbacks=[press])
    assert history.interrupted and len(history) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    more = trainer.fit(net.data, 1, 8)
    assert more.epochs == (3,) and not more.interrupted


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_inside_a_chunk() -> None:
    net = Net()
    trainer = net.trainer()
    trainer.fit(net.data, 1, 8)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    began = time.perf_counter()
    timer.start()
    history = trainer.fit(net.data, 10**8, 8)
    timer.join()
    assert history.interrupted and 0 < len(history) < 10**8
    assert time.perf_counter() - began < 60
    assert np.isfinite(trainer.evaluate(net.data)["loss"])
    assert trainer.epoch == 1 + len(history)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_a_part_of_an_epoch() -> None:
    net = Net()
    many = {k: np.concatenate([v] * 2000) for k, v in net.data.items()}
    trainer = net.trainer()
    trainer.fit(net.data, 1, 8)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    history = trainer.fit(many, 10**6, 1)
    timer.join()
    last = history.records[-1]
    assert history.interrupted and 0 < last.rows <= len(many["x"]) and np.isfinite(last.loss)


def test_another_thread_may_train() -> None:
    net = Net()
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(net.trainer().fit(net.data, 2, 8)))
    thread.start()
    thread.join()
    assert len(result[0]) == 2


def test_progress(capfd: pytest.CaptureFixture[str]) -> None:
    net = Net()
    net.trainer().fit(net.data, 2, 8)
    quiet = capfd.readouterr()
    assert quiet.out == quiet.err == ""
    net.trainer(metrics={"[red]\n": net.hit}).fit(net.data, 2, 8, progress=True)
    shown = capfd.readouterr()
    assert shown.out == "" and "epoch 2/2" in shown.err and "[red]\\n" in shown.err


def test_history_prints_as_a_table() -> None:
    net = Net()
    history = net.trainer().fit(net.data, 40, 8, validation=net.data)
    lines = str(history).splitlines()
    assert re.fullmatch(r"<History of \d+ epochs: loss [\d.]+ to [\d.]+>", repr(history))
    assert lines[0].split() == [
        "epoch", "loss", "accuracy", "gradient", "norm", "validation", "loss", "validation",
        "accuracy",
    ]
    assert len(lines) == 21 and lines[-1].split()[0] == "40"
    assert len(history.seconds) == 40 and history.steps_per_second > 0


def test_no_epochs() -> None:
    net = Net()
    history = net.trainer().fit(net.data, 0, 8)
    assert len(history) == 0 and history.loss == () and str(history)
    for option in ("shuffle", "progress"):
        with pytest.raises(SymgradError, match=f"fit: {option} must be True or False, got 'no'"):
            net.trainer().fit(net.data, 1, 8, **{option: "no"})
    with pytest.raises(DataError, match="epochs must be an integer of at least 0, got -1"):
        net.trainer().fit(net.data, -1, 8)
