"""State that passes between minibatches inside the compiled epoch, against a loop in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.errors import DTypeError, LeafError, ShapeError
from symgrad.graph.nodes import Input, Node
from symgrad.train.trainer import Trainer

LANES, PIECES, STEPS, UNITS = 3, 7, 5, 2
RATE = 0.05
RNG = np.random.default_rng(3)
STREAM = RNG.normal(size=(PIECES, LANES, STEPS))
DATA = {"x": STREAM.reshape(PIECES * LANES, STEPS), "y": RNG.normal(size=PIECES * LANES)}


def network(h: Input) -> tuple[Node, Node]:
    """The loss per row, and the hidden state after a piece."""
    B = sg.dim("B")
    x, y = sg.input("x", (B, STEPS), "float64"), sg.input("y", (B,), "float64")
    w = sg.parameter("w", (UNITS, UNITS), dtype="float64")
    u = sg.parameter("u", (UNITS,), dtype="float64")

    def step(c: Node, x: Node) -> tuple[Node, tuple[()]]:
        return sg.tanh(c @ w + x[:, None] * u), ()

    last, _ = sg.scan(step, h, x.T)
    return sg.square(last.sum(axis=1) - y), last


def zeros() -> Input:
    return sg.input("h", (LANES, UNITS), "float64")


def made(h: Input, **options: Any) -> Trainer:
    loss, last = network(h)
    return sg.Trainer(loss, optimizer=sg.optim.sgd(RATE), seed=2, state={h: last}, **options)


def by_hand(values: dict[str, np.ndarray], first: np.ndarray, epochs: int) -> list[float]:
    """Train the values in place; the losses of the epochs."""
    h = zeros()
    loss, last = network(h)
    wrt = sg.parameters(loss)
    step = sg.compile([loss.mean(), last, *sg.grad(loss.mean(), wrt)])
    losses = []
    for _ in range(epochs):
        state, total = first, 0.0
        for piece in range(PIECES):
            rows = slice(piece * LANES, (piece + 1) * LANES)
            batch = {name: array[rows] for name, array in DATA.items()}
            value, state, *grads = step(h=state, **batch, **values)
            total += float(value)
            for leaf, g in zip(wrt, grads, strict=True):
                values[leaf.name] = values[leaf.name] - RATE * g
        losses.append(total / PIECES)
    return losses


@pytest.mark.parametrize("start", ["zeros", "a parameter's init"])
def test_an_epoch_carries_and_begins_anew(start: str) -> None:
    first = np.zeros((LANES, UNITS)) if start == "zeros" else np.full((LANES, UNITS), 0.3)
    h = zeros() if start == "zeros" else sg.parameter(
        "h", (LANES, UNITS), dtype="float64", init=0.3
    )  # fmt: skip
    trainer = made(h)
    values = trainer.parameters
    assert set(values) == {"w", "u"} and {p.name for p in trainer.objective.trained} == {"w", "u"}
    losses = by_hand(values, first, 4)
    history = trainer.fit(DATA, 3, batch_size=LANES, shuffle=False)  # in chunks of 1, 8, .. steps
    history2 = trainer.fit(DATA, 1, batch_size=LANES, shuffle=False)
    np.testing.assert_allclose([*history.loss, *history2.loss], losses, rtol=1e-9)
    for name, value in trainer.parameters.items():
        np.testing.assert_allclose(value, values[name], rtol=1e-9)
    assert np.abs(trainer.state["h"] - first).max() > 0.01


def test_cutting_a_run_into_chunks_changes_no_bit() -> None:
    whole, parts = made(zeros()), made(zeros())
    whole.fit(DATA, 6, batch_size=LANES, shuffle=False)
    for _ in range(6):
        parts.fit(DATA, 1, batch_size=LANES, shuffle=False)
    for name, value in whole.state.items():
        np.testing.assert_array_equal(value, parts.state[name])


def test_measuring_starts_anew_and_disturbs_nothing() -> None:
    trainer, undisturbed = made(zeros()), made(zeros())
    undisturbed.fit(DATA, 4, batch_size=LANES, shuffle=False)
    trainer.fit(DATA, 2, batch_size=LANES, shuffle=False, validation=DATA)
    before = trainer.state
    first = trainer.evaluate(DATA)  # as many rows at a time as training took
    assert first == trainer.evaluate(DATA, batch_size=LANES)
    assert trainer.history.records[-1].validation == first
    for name, value in trainer.state.items():
        np.testing.assert_array_equal(value, before[name])
    h, total = np.zeros((LANES, UNITS)), 0.0
    leaf = zeros()
    loss, last = network(leaf)
    for piece in range(PIECES):
        rows = slice(piece * LANES, (piece + 1) * LANES)
        batch = {name: array[rows] for name, array in DATA.items()}
        value, h = sg.evaluate([loss.mean(), last], {"h": h, **batch, **trainer.parameters})
        total += float(value) / PIECES
    np.testing.assert_allclose(first["loss"], total, rtol=1e-9)
    trainer.fit(DATA, 2, batch_size=LANES, shuffle=False)
    for name, value in trainer.state.items():
        np.testing.assert_array_equal(value, undisturbed.state[name])


def test_saved_and_loaded(tmp_path: Path) -> None:
    trainer = made(zeros())
    trainer.fit(DATA, 2, batch_size=LANES, shuffle=False)
    trainer.save(tmp_path / "run.safetensors")
    h = zeros()
    loss, last = network(h)
    again = sg.Trainer.load(tmp_path / "run.safetensors", loss, state={h: last})
    for t in (trainer, again):
        t.fit(DATA, 2, batch_size=LANES, shuffle=False)
    for name, value in trainer.state.items():
        np.testing.assert_array_equal(value, again.state[name])
    with pytest.raises(LeafError, match="h"):
        sg.Trainer.load(tmp_path / "run.safetensors", loss.mean())


def test_a_step_that_fails_carries_nothing() -> None:
    trainer = made(zeros())
    bad = {**DATA, "y": DATA["y"].copy()}
    bad["y"][4 * LANES] = np.nan
    with pytest.raises(sg.DataError, match="epoch 1, step 5"):
        trainer.fit(bad, 2, batch_size=LANES, shuffle=False)
    fine = made(zeros())
    fine.fit({k: v[: 4 * LANES] for k, v in DATA.items()}, 1, batch_size=LANES, shuffle=False)
    for name, value in fine.state.items():
        np.testing.assert_array_equal(value, trainer.state[name])


def test_errors() -> None:
    h, x = zeros(), sg.input("z", (sg.dim("B"),), "float64")
    loss, last = network(h)

    def refused(kind: type[Exception], match: str, state: Any) -> None:
        with pytest.raises(kind, match=match):
            sg.Trainer(loss, optimizer=sg.optim.sgd(0.1), state=state)

    refused(LeafError, r"Trainer: state: needs a dictionary.*got list", [h])
    refused(LeafError, "Trainer: state: the key .* is no leaf", {last: h})
    refused(ShapeError, "Trainer: state: a leaf of symbolic shape cannot be kept", {x: x})
    refused(ShapeError, r"(?s)Trainer: state: a leaf keeps its shape.*'h'", {h: last[:, :1]})
    refused(DTypeError, "Trainer: state: a leaf keeps its dtype", {h: last.astype("float32")})
    trainer = made(h)
    with pytest.raises(sg.DataError, match=re.compile(
        r"differ: .*B.*The last batch has 1 rows, of 19 in batches of 3.*whole batches only", re.S
    )):  # fmt: skip
        trainer.fit({k: v[:19] for k, v in DATA.items()}, 1, batch_size=3, shuffle=False)
    with pytest.raises(sg.DataError, match="differ"):
        trainer.fit(DATA, 1, batch_size=7, shuffle=False)
