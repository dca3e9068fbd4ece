"""What goes back reads outputs: against `evaluate`, and what is no longer kept."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from codegen.contractions import order_contractions
from codegen.output_reuse import read_outputs
from codegen.pipeline import compile
from codegen.schedule import LoopStage
from symgrad.calculus.simplification import simplify
from symgrad.calculus.stabilization import stabilize
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Map, Node
from tests.ir_interpreter import interpreted

RNG = np.random.default_rng(5)
x, g = sg.input("x", (3, sg.dim("B"), 7)), sg.input("g", (3, sg.dim("B"), 7))
VALUES = {leaf: RNG.normal(size=(3, 5, 7)).astype(np.float32) for leaf in (x, g)}


def there(nodes: list[Node]) -> list[Node]:
    return order_contractions(simplify(stabilize(nodes)))


def mapped(nodes: list[Node]) -> list[str]:
    return [str(n.body) for n in Graph.of(nodes).nodes if isinstance(n, Map)]


SOFTMAXES = {
    "plain": sg.softmax(x),
    "scaled": sg.softmax(x / 3),
    "rows": sg.softmax(x, axis=1),
    "first": sg.softmax(x * g, axis=0),
    "two axes": sg.exp(x) / sg.exp(x).sum((1, 2), keepdims=True),
    "squared": sg.square(sg.softmax(sg.tanh(x))),
}


@pytest.mark.parametrize("name", ["plain", "scaled", "rows", "squared"])
def test_a_softmax_goes_back_through_its_shares(name: str) -> None:
    nodes = [SOFTMAXES[name], *sg.grad((SOFTMAXES[name] * g).sum(), [x])]
    before = there(nodes)
    after = read_outputs(before)
    assert "p0/p1 + p2" in mapped(before) and "p0/p1 + p2" not in mapped(after)
    for a, b in zip(sg.evaluate(after, VALUES), sg.evaluate(nodes, VALUES), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_softmax_in_compiled_programs_at_order_two() -> None:
    nodes: list[Node] = []
    for p in SOFTMAXES.values():
        (slope,) = sg.grad((p * g).sum(), [x])
        nodes += [slope, *sg.grad(sg.square(slope).sum(), [x])]
    given = {leaf.name: value for leaf, value in VALUES.items()}
    with interpreted():
        f = compile(nodes)
    for a, b in zip(f(**given), sg.evaluate(nodes, VALUES), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_huge_and_missing_numbers_go_back_as_before() -> None:
    strange = VALUES[x].copy()
    strange[0, 0, :3] = [np.nan, 80.0, -80.0]
    strange[1, 1, :3] = [np.inf, 1e30, -1e30]
    strange[2, 2, :2] = [-np.inf, 3e38]
    nodes = sg.grad((sg.softmax(x) * g).sum(), [x])
    after = read_outputs(there(nodes))
    values = {**VALUES, x: strange}
    with np.errstate(all="ignore"):
        wanted, got = (sg.evaluate(e, values)[0] for e in (stabilize(nodes), after))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_relu_is_compared_in_the_place_of_its_argument() -> None:
    hidden = x + 1
    y = sg.relu(hidden)
    nodes = [y, *sg.grad((sg.square(y) * g).sum(), [x])]
    before = there(nodes)
    after = read_outputs(before)
    value = VALUES[x].copy()
    value[0, 0, :4] = [-1.0, np.nan, -1.0 + 1e-7, np.inf]
    for a, b in zip(
        sg.evaluate(after, {**VALUES, x: value}),
        sg.evaluate(before, {**VALUES, x: value}),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    (add,) = [n for n in Graph.of(after).nodes if isinstance(n, Map) and str(n.body) == "p0 + p1"]
    readers = [n for n in Graph.of(after).nodes if any(a is add for a in n.args)]
    assert len(readers) == 1  # the relu alone


def test_a_layer_keeps_only_its_relu() -> None:
    w, v = sg.parameter("w", (7, 4), 0.5), sg.parameter("v", (4, 2), 0.5)
    loss = sg.square(sg.relu(x @ w + g[:, :, :1]) @ v).sum()
    with interpreted():
        f = compile([loss, *sg.grad(loss, [w, v])])
    first = next(s for s in f.stages.schedule.stages if isinstance(s, LoopStage))
    assert sum(n in f.stages.schedule.stored for n in first.members) == 1
