"""Learning rates as formulas: against NumPy and PyTorch, compiled into a step, and in files."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad import optim
from symgrad.graph.nodes import Node
from symgrad.optim import step

B = sg.dim("B")
STEPS = 12

CASES: dict[str, tuple[Node, Callable[[int], float]]] = {
    "step_decay": (optim.step_decay(0.3, 5, 0.5), lambda t: 0.3 * 0.5 ** (t // 5)),
    "exponential_decay": (
        optim.exponential_decay(0.3, 4, 0.7), lambda t: 0.3 * 0.7 ** (t / 4),
    ),
    "cosine_decay": (
        optim.cosine_decay(0.3, 9, 0.01),
        lambda t: 0.01 + 0.29 * (1 + math.cos(math.pi * min(t / 9, 1))) / 2,
    ),
    "piecewise": (
        optim.piecewise([3, 7], [0.3, 0.1, 0.02]),
        lambda t: 0.3 if t < 3 else 0.1 if t < 7 else 0.02,
    ),
    "one piece": (optim.piecewise([], [0.3]), lambda t: 0.3),
    "warmup": (optim.warmup(0.3, 5), lambda t: 0.3 * min(1, (t + 1) / 5)),
    "warmup of a schedule": (
        optim.warmup(optim.exponential_decay(0.3, 4, 0.7), 5),
        lambda t: 0.3 * 0.7 ** (t / 4) * min(1, (t + 1) / 5),
    ),
    "pieces of schedules": (
        optim.piecewise([4], [optim.warmup(0.3, 4), optim.cosine_decay(0.3, 10)]),
        lambda t: (
            0.3 * (t + 1) / 4 if t < 4 else 0.3 * (1 + math.cos(math.pi * min(t / 10, 1))) / 2
        ),
    ),
    "a user's own": (0.3 / (1.0 + 0.1 * step.astype("float64")), lambda t: 0.3 / (1 + 0.1 * t)),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case: str) -> None:
    rate, wanted = CASES[case]
    assert rate.shape == () and rate.dtype == "float64"
    for t in (*range(STEPS), 1000):
        np.testing.assert_allclose(sg.evaluate(rate, {step: t}), wanted(t), rtol=1e-14)


@pytest.mark.parametrize("name", ["step_decay", "exponential_decay", "cosine_decay", "piecewise"])
def test_against_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    schedules = torch.optim.lr_scheduler
    peers = {
        "step_decay": lambda o: schedules.StepLR(o, 5, 0.5),
        "exponential_decay": lambda o: schedules.ExponentialLR(o, 0.7**0.25),
        "cosine_decay": lambda o: schedules.CosineAnnealingLR(o, 9, 0.01),
        "piecewise": lambda o: schedules.LambdaLR(
            o, lambda t: 1 if t < 3 else 1 / 3 if t < 7 else 1 / 15
        ),
    }
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    peer = peers[name](other)
    for t in range(10):
        wanted = other.param_groups[0]["lr"]
        np.testing.assert_allclose(sg.evaluate(CASES[name][0], {step: t}), wanted, rtol=1e-12)
        other.step()
        peer.step()


def test_all_compile_into_one_step() -> None:
    names = list(CASES)
    f = sg.compile({name: CASES[name][0] for name in names}, updates={step: step + 1})
    for t in range(STEPS):
        got = f()
        for name in names:
            np.testing.assert_allclose(got[name], CASES[name][1](t), rtol=1e-13)


def problem() -> tuple[Node, dict[str, np.ndarray]]:
    x, y = sg.input("x", (B, 3)), sg.input("y", (B,))
    loss = sg.mse(x @ sg.parameter("w", (3,), init=0.0), y)
    rng = np.random.default_rng(4)
    points = rng.normal(size=(35, 3)).astype("float32")
    return loss, {"x": points, "y": points @ np.array([1.0, -2.0, 0.5], "float32")}


def test_a_trainer_follows_the_schedule_and_resumes_bit_for_bit(tmp_path) -> None:
    loss, data = problem()
    optimizer = optim.adamw(optim.warmup(optim.cosine_decay(0.1, 40), 7), weight_decay=0.1)
    whole = sg.Trainer(loss, optimizer)
    whole.fit(data, epochs=6, batch_size=8)
    half = sg.Trainer(loss, optimizer)
    half.fit(data, epochs=3, batch_size=8)
    half.save(tmp_path / "half.safetensors")
    again = sg.Trainer.load(tmp_path / "half.safetensors", loss, optimizer=optimizer)
    again.fit(data, epochs=3, batch_size=8)
    np.testing.assert_array_equal(again.parameters["w"], whole.parameters["w"])
    with pytest.raises(sg.SymgradError, match="learning rate was an expression"):
        sg.Trainer.load(tmp_path / "half.safetensors", loss)


def test_a_trained_step_has_the_rate_of_its_step() -> None:
    loss, data = problem()
    rate, wanted = CASES["warmup of a schedule"]
    trainer = sg.Trainer(loss, optim.sgd(rate))
    w = np.zeros(3)
    for t in range(5):
        trainer.fit(data, epochs=1, batch_size=35, shuffle=False)
        g = 2 * data["x"].T.astype("float64") @ (data["x"] @ w - data["y"]) / 35
        w = w - wanted(t) * g
        np.testing.assert_allclose(trainer.parameters["w"], w, rtol=1e-5)


def test_errors() -> None:
    with pytest.raises(sg.SymgradError, match="step_decay: every must be an integer of at least 1"):
        optim.step_decay(0.1, 0)
    with pytest.raises(sg.SymgradError, match=r"factor must be in \(0, 1\], got 2"):
        optim.exponential_decay(0.1, 10, 2.0)
    with pytest.raises(sg.SymgradError, match="cosine_decay: a rate must be finite"):
        optim.cosine_decay(-0.1, 10)
    with pytest.raises(sg.SymgradError, match="piecewise: needs rising boundaries"):
        optim.piecewise([10, 5], [0.1, 0.2, 0.3])
    with pytest.raises(sg.SymgradError, match="and 1 rates"):
        optim.piecewise([10], [0.1])
    with pytest.raises(sg.ShapeError, match="warmup: the learning rate must be a scalar"):
        optim.warmup(sg.input("rate", (3,)), 5)
