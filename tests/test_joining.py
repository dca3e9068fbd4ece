"""Loops that write arrays of pieces: interpreted and compiled, against `evaluate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.schedule import FoldStage, LoopStage, MoveStage, Schedule
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Node
from tests.ir_interpreter import interpreted

ROWS, WIDTH, OTHER = 3, 33, 5


def judged(nodes: list[Node], values: dict[str, Any], near: float, threads: int = 1) -> Compiled:
    f = sg.compile(nodes, threads=threads)
    for node, got, wanted in zip(nodes, f(**values), evaluate(nodes, values), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, near, near, err_msg=f"{node!r}")
    return f


def schedules(schedule: Schedule) -> list[Schedule]:
    inner = [s.inner for s in schedule.stages if isinstance(s, FoldStage)]
    return [schedule, *(deep for s in inner for deep in schedules(s))]


def counted(f: Compiled) -> tuple[int, int]:
    """How many arrays loops write piece by piece, and how many are moved together afterwards."""
    stages = [s for one in schedules(f.stages.schedule) for s in one.stages]
    joined = sum(len(s.joined) for s in stages if isinstance(s, LoopStage))
    return joined, sum(isinstance(s, MoveStage) for s in stages)


def leaves(dtype: str, width: int = WIDTH, rows: Any = ROWS) -> tuple[Any, ...]:
    x, y = (sg.input(k, (rows, width), dtype=dtype) for k in "xy")
    return x, y, sg.input("w", (2 * width, OTHER), dtype=dtype)


def numbers(dtype: str, width: int = WIDTH) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shapes = {"x": (ROWS, width), "y": (ROWS, width), "w": (2 * width, OTHER)}
    return {k: rng.normal(size=s).astype(dtype) for k, s in shapes.items()}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float64", 1e-12)])
def test_pieces_are_written_where_they_belong(dtype: str, near: float, threads: int) -> None:
    x, y, w = leaves(dtype, rows=sg.dim("B"))
    a, b = sg.tanh(x) * y, x - y
    beside, below = sg.concatenate([a, b], 1), sg.concatenate([b, a], 0)  # both of the same two
    nodes = [beside @ w, below, beside, sg.concatenate([a, sg.exp(a)], 1) @ w]
    f = judged(nodes, numbers(dtype), near, threads)
    assert counted(f) == (3, 0)
    assert "piece by piece" in str(f.stages)


def test_pieces_that_others_read_too() -> None:
    x, y, w = leaves("float64")
    a, b = sg.exp(x), x * y
    p = sg.softmax(b)  # rows in several passes
    joined = sg.concatenate([a, p], 1)
    turned = sg.swapaxes(a, 0, 1) @ b  # a and b lie in memory of their own as well
    nodes = [joined @ w, turned, joined[:, 3:40] + 1.0, sg.concatenate([p, p], 1), p.sum(0)]
    assert counted(judged(nodes, numbers("float64"), 1e-12))[0] == 2


def test_what_does_not_fit_is_moved() -> None:
    x, y, _ = leaves("float64")
    a, b = sg.exp(x), x * y
    nodes = [
        sg.concatenate([a, b[:, :7]], 1),  # pieces of two shapes
        sg.concatenate([a[:, ::2], b[:, ::2]], 1),  # parts of what is made
        sg.stack([a, b], -1),  # rows that would be written in strides
        sg.concatenate([a.sum(1, keepdims=True), b], 1),  # of other loops
    ]
    values = {k: v for k, v in numbers("float64").items() if k != "w"}
    assert counted(judged(nodes, values, 1e-12))[0] == 0
    x, y, w = leaves("float64", 7)
    short = [sg.concatenate([sg.exp(x), x * y], 1) @ w]
    assert counted(judged(short, numbers("float64", 7), 1e-12)) == (0, 1)


def test_a_reader_waits_until_the_loop_has_ended() -> None:
    x, y, w = leaves("float64")
    left, right = ((0, 0), (0, WIDTH)), ((0, 0), (WIDTH, 0))
    joined = sg.pad(sg.exp(x), left) + sg.pad(x * y, right)
    again = sg.sin(joined[:, :WIDTH])  # reads where the loop stands
    f = judged([joined @ w, again, sg.cos(joined[:, 3:36])], numbers("float64"), 1e-12)
    assert counted(f) == (1, 0)
    assert "is whole when the loops of stage 1 end" in str(f.stages)


def test_interpreted_in_order() -> None:
    x, y, w = leaves("float64")
    joined = sg.concatenate([sg.exp(x), x * y], 1)
    nodes, values = [joined @ w, sg.softmax(joined)], numbers("float64")
    with interpreted():
        judged(nodes, values, 1e-12)
    with interpreted(row_memory=False):
        judged(nodes, values, 1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cell", [sg.nn.LSTM, sg.nn.GRU])
def test_a_cell_through_time_and_its_second_order(cell: Any, threads: int) -> None:
    layer = cell(WIDTH)
    x = sg.input("x", (ROWS, 4, 5), dtype="float64")
    rng = np.random.default_rng(4)
    loss = (sg.sin(layer(x)) * sg.constant(rng.normal(size=(ROWS, 4, WIDTH)))).sum()
    own = list(sg.parameters(loss))
    first = sg.grad(loss, own)
    along = sum((g * sg.constant(rng.normal(size=g.shape))).sum() for g in first)
    second = sg.grad(along, own)
    values = {p.name: 0.3 * rng.normal(size=p.shape) for p in own}
    values["x"] = rng.normal(size=(ROWS, 4, 5))
    f = judged([*first, *second], values, 1e-10, threads)
    assert counted(f)[0] >= 1
