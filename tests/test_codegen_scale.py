"""Deep programs: no recursion, and work that grows in proportion to the graph."""

from __future__ import annotations

import time

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.pipeline import compile
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Input, Node, Reduce
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted


def network(depth: int, width: int) -> tuple[Node, dict[Input, Node]]:
    n = sg.dim("n")
    x, y = sg.input("x", (n, width)), sg.input("y", (n,), "int32")
    h: Node = x
    parameters: list[Input] = []
    for k in range(depth):
        w, b = sg.parameter(f"w{k}", (width, width)), sg.parameter(f"b{k}", (width,))
        parameters += [w, b]
        h = sg.tanh(h @ w + b)
    loss = sg.cross_entropy(h, y).mean()
    gradients = sg.grad(loss, parameters)
    return loss, {p: p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)}


def told(f: Compiled, what: str, start: float) -> None:
    passes = ", ".join(f"{name} {seconds:.2f}" for name, seconds in f.stages.seconds.items())
    print(f"{what}: {time.perf_counter() - start:.1f} s ({passes})")


@pytest.mark.parametrize("depth", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_deep_network_with_its_optimiser(depth: int) -> None:
    width = 32 if depth == 200 else 7
    loss, updates = network(depth, width)
    start = time.perf_counter()
    f = compile(loss, updates=updates)
    told(f, f"{depth} layers", start)
    # forward, backward and update of every layer but the first and last are the same kernels
    assert f.stages.source.count("@kernel") < 20
    rng = np.random.default_rng(1)
    data = {"x": rng.standard_normal((5, width)).astype(np.float32), "y": np.arange(5, dtype="i4")}
    expected = evaluate([loss, *updates.values()], {**data, **f.state})
    # every layer adds a few roundings to values below 1, and tanh damps what came before
    np.testing.assert_allclose(call(f, data), expected[0], rtol=1e-5)
    for leaf, e in zip(updates, expected[1:], strict=True):
        np.testing.assert_allclose(f.state[leaf.name], e, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("depth", [3000, pytest.param(30000, marks=pytest.mark.slow)])
def test_a_long_chain(depth: int) -> None:
    n = sg.dim("n")
    x = sg.input("x", (n,))
    y: Node = x
    for k in range(depth):
        y = y * 0.5 if k % 2 else y + x
    start = time.perf_counter()
    f = compile(y)
    told(f, f"{depth} elementwise nodes", start)
    data = {"x": np.arange(-3, 4, dtype=np.float32)}
    np.testing.assert_allclose(call(f, data), evaluate(y, data), rtol=1e-6)


def test_a_long_chain_with_every_value_wanted() -> None:
    x = sg.input("x", (3,))
    nodes: list[Node] = [x]
    for k in range(600):
        nodes.append(nodes[-1] + k if k % 2 else nodes[-1] * -1)
    with interpreted():
        f = compile(nodes)
    data = {"x": np.arange(3, dtype=np.float32)}
    for got, expected in zip(call(f, data), evaluate(nodes, data), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_long_chains_of_moves_and_reductions() -> None:
    x = sg.input("x", (4, 4))
    moved, running, product = x, x, x
    for k in range(300):
        moved = sg.pad(sg.transpose(moved)[1:], ((1, 0), (0, 0))) if k % 2 else moved[::-1]
        running = Reduce((running,), "cummax", (k % 2,)) - 1
        product = (product @ x) % 5
    with interpreted():
        f = compile([moved, running, product])
    data = {"x": np.arange(16, dtype=np.float32).reshape(4, 4) % 7}
    wanted = evaluate([moved, running, product], data)
    for got, expected in zip(call(f, data), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_wide_program() -> None:
    x = sg.input("x", (3, 5))
    outputs = [(x * k).sum() + sg.max(x + k) for k in range(120)]
    with interpreted():
        f = compile(outputs)
    data = {"x": np.arange(15, dtype=np.float32).reshape(3, 5)}
    for got, expected in zip(call(f, data), evaluate(outputs, data), strict=True):
        np.testing.assert_array_equal(got, expected)
