"""Products of recurrences that fetch what the step needs after them."""

from __future__ import annotations

import re

import numpy as np
import pytest

import symgrad as sg
from codegen.foresight import needed_after
from codegen.memory import InvokedLoop
from codegen.pipeline import compile
from symgrad.graph.nodes import Node

B = sg.dim("B")
x = sg.input("x", (5, B, 64))
U, V = sg.parameter("U", (64, 64)), sg.parameter("V", (64, 64))


def values(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    shapes = {"x": (5, rows, 64), "U": (64, 64), "V": (64, 64)}
    return {k: (rng.normal(size=s) / 8).astype(np.float32) for k, s in shapes.items()}


def cell(reverse: bool = False) -> list[Node]:
    """Two products in a step, one after the other; the sum of all states, and its gradients."""

    def step(h: Node, e: Node) -> tuple[Node, Node]:
        h = sg.tanh(sg.tanh(h @ U + e) @ V)
        return h, h

    _, ys = sg.scan(step, sg.zeros((B, 64)), x, reverse=reverse)
    loss = (ys**2).sum()
    return [loss, *sg.grad(loss, [U, V])]


@pytest.mark.parametrize("reverse", [False, True])
def test_fetching_changes_no_value(reverse: bool) -> None:
    outputs = cell(reverse)
    f = compile(outputs)
    told = re.findall(r"ranges_of\((.*), \d+\)", f.source)
    assert len(told) == 4  # two products forward, two on the way back
    ahead = "".join(told)
    assert re.search(r"\(t0 \+ 1\)", ahead) and re.search(r"\(t0 - 1\)", ahead)
    for rows in (9, 3):  # that suit, and too few
        given = values(rows)
        for got, wanted in zip(f(**given), sg.evaluate(outputs, given), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5)


def test_what_is_needed_between_products() -> None:
    f = compile(cell()[:1])
    (loop,) = (c for c in f.stages.plan.calls if isinstance(c, InvokedLoop))
    first, second = needed_after(loop.loop)
    moving = [{(e, again) for e, _, again in ranges} for _, ranges in (first, second)]
    # x and, where the second product writes to it, the state; then nothing of this step but it
    assert all(loop.loop.places[e].step != 0 for found in moving for e, _ in found)
    assert not any(again for _, again in moving[0])
    assert moving[0] and not moving[0] & moving[1]


def test_small_and_shared_steps_fetch_nothing() -> None:
    small = sg.input("s", (5, 3, 4))
    _, ys = sg.scan(lambda h, e: (sg.tanh(h @ U[:4, :4] + e),) * 2, sg.zeros((3, 4)), small)
    assert "ranges_of" not in compile(ys).source
    team = compile(cell(), threads=2).stages.team
    assert team is not None and "ranges_of" not in team.source
