"""-0.0 survives what only moves it, and sums and extrema treat it alike, evaluated and compiled."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from codegen.pipeline import compile
from symgrad.graph.evaluator import evaluate

a, m = sg.input("a", (3,)), sg.input("m", (3, 5))
column, row = sg.input("column", (7, 1)), sg.input("row", (1, 3))
batch, high = sg.input("batch", (sg.dim("B"),)), sg.input("high", (19,), "float64")
low = sg.input("low", (19,), "float64")
VALUES = {
    "a": np.full(3, -0.0), "m": np.full((3, 5), -0.0), "column": np.full((7, 1), -0.0),
    "row": np.ones((1, 3)), "batch": np.full(1, -0.0), "high": np.zeros(19),
    "low": np.full(19, -0.0),
}  # fmt: skip
MOVES = {
    "an element": a[0],
    "the last": a[-1],
    "a row": m[1],
    "a column": m[..., 0],
    "squeeze": sg.squeeze(column, 1),
    "a sum of one": column.sum(1),
    "a product over one": column @ row,
    "running": sg.cumsum(a),
    "running rows": sg.cumsum(m, 1),
}
OTHERS = {
    "divided": 1 / a[0],
    "three factors": sg.einsum("ij,jk,ij->ik", column, row, column),
    "sum": a.sum(),
    "sum of rows": m.sum(1),
    "sum of columns": m.sum(0),
    "sum of a batch of one": batch.sum(),
    "the greater": sg.maximum(high, low),
    "the greater, turned": sg.maximum(low, high),
    "the lesser": sg.minimum(high, low),
    "the lesser, turned": sg.minimum(low, high),
    "relu": sg.relu(low),
}


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    wanted = {**MOVES, **OTHERS}
    return evaluate(wanted, VALUES), compile(wanted)(**VALUES)


@pytest.mark.parametrize("name", [*MOVES, *OTHERS])
def test_signs_agree(name: str, both: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    expected, got = (np.asarray(found[name]) for found in both)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("name", MOVES)
def test_moves_keep_the_sign(
    name: str, both: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
) -> None:
    assert all(np.signbit(found[name]).all() for found in both)


def test_equal_zeros_as_numpy_chooses(
    both: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> None:
    for name, function in (("the greater", np.maximum), ("the lesser", np.minimum)):
        wanted = np.signbit(function(VALUES["high"], VALUES["low"]))
        np.testing.assert_array_equal(np.signbit(both[1][name]), wanted)
