"""`draw(.., level="kernels")`: boxes, the memory between them, frames, colours, and the words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.machine import Level, Machine
from codegen.pipeline import compile
from symgrad.diagram import palette
from symgrad.diagram.records import Diagram, Edge
from symgrad.graph.dims import Dim
from tests.ir_interpreter import interpreted

B = Dim("B")
# 100 operations and 10 bytes a second near by, 1 byte a second far away.
ROUND = Machine("round", 100.0, 4, (Level("L1", 1000, 10.0), Level("memory", 0, 1.0)), 1.0)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("codegen.reporting.this_machine", lambda: ROUND)
    yield


def drawn(outputs: Any, updates: Any = None) -> Diagram:
    """A program that is not measured."""
    with interpreted():
        f = compile(outputs, updates=updates)
    return sg.draw(f, level="kernels")


def between(picture: Diagram, tail: str, head: str) -> list[Edge]:
    """Edges between boxes whose labels contain these texts."""
    label = {box.id: box.label for box in picture.boxes}
    return [e for e in picture.edges if tail in label[e.tail] and head in label[e.head]]


def layers(n: int, *rows: Any) -> Any:
    h = sg.input("x", (*rows, 6))
    for k in range(n):
        h = sg.tanh(h @ sg.parameter(f"W{k}", (6, 6)))
    return h


def test_memory_walks_along_edges() -> None:
    picture = drawn(layers(2, 5))
    assert [box.label for box in picture.boxes][:3] == ["x", "W0", "W1"]
    assert [e.label for e in between(picture, "x", "einsum")] == ["120 B"]
    assert [e.label for e in between(picture, "W1", "einsum")] == ["144 B"]
    assert [e.label for e in between(picture, "einsum", "tanh")] == ["120 B", "120 B"]
    weight = next(box.id for box in picture.boxes if box.label == "W0")
    assert [e.tail for e in picture.edges].count(weight) == 1
    assert not any(e.loop for e in picture.edges)
    symbolic = drawn(layers(2, B))
    assert {e.label for e in symbolic.edges} == {""}
    assert [e.tail for e in symbolic.edges] == [e.tail for e in picture.edges]


def test_what_is_written_over_comes_from_the_last_writer() -> None:
    x = sg.input("x", (3, 4))
    y = sg.cumsum(sg.cumsum(sg.cumsum(x, 0) + 1, 0) * 2, 0)  # in slots that take turns
    picture = drawn(y)
    labels = {box.id: box.label for box in picture.boxes}
    assert [(labels[e.tail], labels[e.head]) for e in picture.edges] == list(
        pairwise(labels.values())
    )


def test_a_recurrence_is_a_frame_and_reads_its_own_last_step() -> None:
    x, W = sg.input("x", (9, 2, 3)), sg.parameter("W", (3, 3))
    last, ys = sg.scan(lambda h, row: (sg.tanh(h @ W + row),) * 2, sg.zeros((2, 3)), x)
    picture = drawn([last, ys.sum()])
    (frame,) = picture.clusters
    inside = {box.id: box.label for box in picture.boxes if box.id in frame.boxes}
    assert frame.label == "9 steps" and all("×9" in label for label in inside.values())
    (back,) = [e for e in picture.edges if e.loop]
    assert back.tail in inside and back.head in inside
    assert between(picture, "W", "einsum")[0].label == f"{9 * 36} B"
    assert "cluster_" in picture.dot and "title_" in picture.dot  # edges go around a title
    assert picture.dot.count("9 steps") == 2  # the title, and the frame's tooltip


def test_large_programs_are_folded() -> None:
    picture = drawn(layers(30, 5))
    assert len(picture.boxes) == 3 and "60 kernel calls drawn as 3 boxes" in picture.caption
    assert "left out" not in drawn(layers(5, 5)).caption
    assert "inputs and parameters are left out" in drawn(layers(70, 5)).caption
    (self_loop,) = {e.label for e in between(picture, "einsum", "tanh")[:1]}
    assert self_loop == "3.48 kB"  # 29 times 120 bytes; the last tanh stands apart


def test_shares_of_the_time_are_colours() -> None:
    x, W = sg.input("x", (40, 50)), sg.parameter("W", (50, 60))
    picture = sg.draw((x @ W).sum(axis=1), level="kernels")
    assert "not measured: times are the least" in picture.caption
    product, sums = (box for box in picture.boxes if box.kind == "operation")
    # 240000 operations at 100 a second, more than 29600 bytes from far away at 1
    assert "at least 2.96e+04 s" in product.detail and "memory" in product.detail
    assert product.fill == palette.scale(1.0) and sums.fill != product.fill
    assert picture.legend.bar is not None and picture.legend.bar.steps[0][1] == "0%"
    assert drawn(x @ W).legend.bar is None
    assert {box.fill for box in drawn(x @ W).boxes} == {None, palette.NEUTRAL_FILL}


def test_a_function_that_was_called_is_measured() -> None:
    x, W = sg.input("x", (B, 5)), sg.parameter("W", (5, 3), init=0.5)
    loss = (sg.tanh(x @ W) ** 2).mean()
    f = sg.compile(loss, updates={W: W - 0.1 * sg.grad(loss, W)})
    assert "not measured: draw a compiled function after a call" in sg.draw(f).caption
    f(x=np.ones((7, 5)))
    before = f.state["W"].copy()
    picture = sg.draw(f, level="kernels")
    assert "measured at B=7" in picture.caption and picture.legend.bar is not None
    assert picture.legend.bar.title == "share of the time"
    kernels = [box for box in picture.boxes if box.kind == "operation"]
    assert all("%" in box.detail for box in kernels)
    assert {box.half for box in kernels} == {"forward", "backward"}
    np.testing.assert_array_equal(f.state["W"], before)
    assert picture.svg.startswith("<svg") or "<svg" in picture.svg


def test_expressions_are_compiled_with_their_gradients() -> None:
    x, W = sg.input("x", (4, 5)), sg.parameter("W", (5, 3))
    loss = (sg.tanh(x @ W) ** 2).mean()
    forward = sg.draw(loss, level="kernels")
    both = sg.draw(loss, wrt=W, level="kernels")
    assert len(both.boxes) > len(forward.boxes)
    assert any(box.half == "backward" for box in both.boxes)
    assert all(box.half == "forward" for box in forward.boxes)


def test_names_of_a_user_are_escaped() -> None:
    x = sg.input('<script>"&\n', (3, 4))
    picture = drawn(sg.cumsum(x, 0))
    assert "&lt;script&gt;" in picture.dot
    assert "<script>" not in picture.svg and "&lt;script" in picture.svg


def test_what_cannot_be_drawn() -> None:
    with interpreted():
        f = compile(sg.input("x", (3,)).sum())
    with pytest.raises(sg.SymgradError, match=r"such as trainer\.program; got 3"):
        sg.draw(3, level="kernels")  # type: ignore[arg-type]
    with pytest.raises(sg.SymgradError, match=r"needs expressions.*f\.stages\.graph"):
        sg.draw(f, level="nodes")
    with pytest.raises(sg.SymgradError, match="compiled function cannot be differentiated"):
        sg.draw(f, wrt=sg.input("x", (3,)), level="kernels")
    with pytest.raises(sg.SymgradError, match='"kernels"'):
        sg.draw(sg.input("x", (3,)).sum(), level="poster")  # type: ignore[arg-type]
    with pytest.raises(sg.GradError, match="got 2 expressions"):
        x = sg.input("x", (3,))
        sg.draw([x.sum(), x.mean()], wrt=x, level="kernels")
