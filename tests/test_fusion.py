"""What is fused, counted in the loops that are run, and what `f.stages` says of it and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import symgrad as sg
from codegen import loop_ir as ir
from codegen.compiled import Compiled
from codegen.pipeline import compile
from codegen.schedule import LoopStage
from symgrad import nn
from symgrad.graph.nodes import Node
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted

B = sg.dim("B")
RNG = np.random.default_rng(3)
x, g = sg.input("x", (B, 7)), sg.input("g", (B, 7))
labels = sg.input("labels", (B,), "int32")
table = sg.parameter("table", (11, 7))
VALUES = {
    "x": RNG.normal(size=(5, 7)),
    "g": RNG.normal(size=(5, 7)),
    "labels": np.array([1, 0, 6, 3, 1]),
    "table": RNG.normal(size=(11, 7)),
}


def built(outputs: Sequence[Node], **options: object) -> Compiled:
    """A program run by the interpreter of loops, checked against `evaluate`."""
    with interpreted():
        f = compile(list(outputs), **options)
    names = {leaf.name for leaf in f.leaves}
    values = {k: v for k, v in VALUES.items() if k in names}
    for got, wanted in zip(call(f, values), sg.evaluate(list(outputs), values), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)
    return f


def passes(f: Compiled) -> int:
    """Loops over rows that are run one after the other; filling memory with zeros is none."""
    loops = [s for kernel in f.stages.kernels for s in kernel.body if isinstance(s, ir.For)]
    return sum(loop.var != "z" for loop in loops)


def statements(body: Sequence[ir.Statement]) -> Iterator[ir.Statement]:
    for s in body:
        yield s
        if isinstance(s, ir.For):
            yield from statements(s.body)


# -- one pass over rows ----------------------------------------------------------------------------
LAYER_NORM = nn.LayerNorm(scale=False, shift=False)(x)
ONE_PASS = {
    "softmax": [sg.softmax(x)],
    "log softmax": [sg.log_softmax(x)],
    "logsumexp": [sg.logsumexp(x, axis=1)],
    "softmax and its gradient": [sg.softmax(x), *sg.grad((sg.softmax(x) * g).sum(), [x])],
    "cross entropy": [sg.cross_entropy(x, labels)],
    "cross entropy and its gradient": [
        sg.cross_entropy(x, labels).sum(), *sg.grad(sg.cross_entropy(x, labels).sum(), [x])
    ],
    "variance": [sg.var(x, axis=1), sg.std(x, axis=1, ddof=1)],
    "layer norm": [LAYER_NORM],
    "layer norm and its gradient": [LAYER_NORM, *sg.grad((LAYER_NORM * g).sum(), [x])],
    "rows of a table": [sg.tanh(table[labels] + x) * 2],
    "rows of a table, reduced": [sg.softmax(table[labels] * x)],
    "the place of the largest": [(sg.argmax(x, axis=1) == labels).sum()],
    "a scatter and what it adds": [sg.grad((sg.square(table[labels]) * x).sum(), table)],
    "running sums between chains": [sg.exp(sg.cumsum(sg.tanh(x) * g, axis=1)) * g],
    "a running sum of a softmax": [sg.cumsum(sg.softmax(x), axis=1), sg.softmax(x)],
    "a softmax of running products": [sg.softmax(sg.cumprod(x, axis=1) + g)],
    "running sums, reduced": [sg.cumsum(x, axis=1).max(axis=1), sg.cumsum(x * g, axis=1).sum()],
    "a chain": [sg.exp(sg.tanh(x) * g + 1) / (2 + sg.square(g))],
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass_over_rows(name: str) -> None:
    f = built(ONE_PASS[name])
    assert passes(f) == 1, str(f.stages)
    assert sum(isinstance(s, LoopStage) for s in f.stages.schedule.stages) == 1


def test_products_end_a_pass() -> None:
    w = sg.parameter("w", (7, 7), 0.5)
    f = built([sg.softmax(sg.tanh(x @ w) @ w)])
    assert passes(f) == 2  # tanh, softmax; products are calls
    assert sum(isinstance(s, ir.Call) for k in f.stages.kernels for s in k.body) == 2


def test_an_optimiser_is_one_loop_for_each_parameter() -> None:
    weights = [sg.parameter(f"w{k}", shape, 0.5) for k, shape in enumerate([(7, 3), (3, 2), (2,)])]
    loss = sg.square(sg.tanh(x @ weights[0]) @ weights[1] + weights[2]).sum()
    gradients = sg.grad(loss, weights)
    with interpreted():
        bare = compile([loss, *gradients])
        f = compile([loss], updates=sg.optim.adam(0.01).updates(weights, gradients))
    scalars = [s for s in f.stages.schedule.stages if isinstance(s, LoopStage) and not s.domain]
    assert len(scalars) == 1  # 1 - beta**t, for all parameters
    # the column sum of the bias joins the loop that makes it, and its update reads it afterwards
    assert passes(f) == passes(bare) + 3


# -- memory ----------------------------------------------------------------------------------------
def test_a_chain_between_products_is_written_in_place() -> None:
    w = sg.parameter("w", (7, 7), 0.5)
    f = built([sg.tanh(sg.tanh(x @ w) @ w) @ w])
    for kernel in f.stages.kernels:
        if not any(isinstance(s, ir.Call) for s in kernel.body):
            assert len(kernel.buffers) == 1, str(kernel)
    assert len(f.stages.plan.slots) == 2


def test_products_of_a_batch_are_one_call_each() -> None:
    a, b = sg.input("a", (B, 3, 5)), sg.input("b", (B, 5, 7))
    with interpreted():
        f = compile(a @ b)
    (kernel,) = f.stages.kernels
    (loop,) = kernel.body
    assert isinstance(loop, ir.For) and str(loop.extent) == "B"
    (product,) = loop.body
    assert isinstance(product, ir.Call)
    values = {"a": RNG.normal(size=(2, 3, 5)), "b": RNG.normal(size=(2, 5, 7))}
    np.testing.assert_allclose(f(**values), values["a"] @ values["b"], rtol=1e-5, atol=1e-6)


# -- told ------------------------------------------------------------------------------------------
def test_the_table_of_a_small_network() -> None:
    w1, w2 = sg.parameter("W1", (7, 5)), sg.parameter('"W', (5, 3))
    loss = sg.cross_entropy(sg.tanh(x @ w1) @ w2, labels % 3).mean()
    with interpreted():
        f = compile([loss, *sg.grad(loss, [w1, w2])])
    told = str(f.stages)
    lines = told.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 140
    head = next(line for line in lines if line.startswith("stage"))
    column = head.index("why")
    assert {line[column - 1] for line in lines[3:-2] if len(line) >= column} == {" "}
    assert "a matrix product: one call" in told
    assert "one pass over rows, each reduced to" in told
    assert "apart: stage 1 is a product" in told
    assert "ends here: read by product" in told
    assert "is whole when the loops of stage" in told
    assert r"\"W" in told  # a user's name, quoted


def test_reasons() -> None:
    y = sg.tanh(x)
    reasons = {
        "runs along its axis": [sg.cumsum(x, axis=0)],
        "runs along the row": [sg.tanh(sg.cumsum(labels, axis=0).astype("float32"))],
        "moves pieces": [sg.pad(x, 1)],
        "at other places than": [sg.exp(y)[:, ::-1] + sg.exp(y), y],
        "adds up in memory as the loop goes": [sg.tanh(x).sum(axis=0)],
        "has other loops": [(x - x.sum(axis=0)).sum(axis=1), x[:, :3].sum(axis=1)],
        "as a whole": [y.sum()],
        "share what they make": [sg.exp(y) + y],
    }
    for reason, outputs in reasons.items():
        told = str(built(outputs).stages)
        assert reason in told, told


def test_a_long_program_is_folded() -> None:
    h = sg.input("h", (B, 16))
    weights = [sg.parameter(f"w{k}", (16, 16)) for k in range(40)]
    for w in weights:
        h = sg.tanh(h @ w)
    loss = sg.square(h).sum()
    with interpreted():
        f = compile(loss, updates=sg.optim.adam(0.01).updates(weights, sg.grad(loss, weights)))
        mixed = compile([sg.softmax(sg.input(f"m{k}", (k + 2, k + 3)), axis=0) for k in range(60)])
    told = str(f.stages)
    assert len(f.stages.schedule.stages) > 200 and len(told.splitlines()) < 40
    assert "the like 38 more times, stages 4 to 79" in told
    told = str(mixed.stages)
    assert len(told.splitlines()) < 60 and "more stages" in told


def test_a_recurrence_shows_the_stages_of_its_body() -> None:
    w = sg.parameter("w", (7, 7))
    _, ys = sg.scan(lambda h, e: (sg.tanh(h @ w + e),) * 2, sg.zeros((7,)), x)
    with interpreted():
        f = compile(ys)
    told = str(f.stages)
    assert "B steps of" in told and "  2.1  " in told and "apart: stage 2." in told


def test_rows_that_are_added_to_a_product_are_read_with_it() -> None:
    words, w = sg.input("words", (B, 3), "int32"), sg.parameter("w", (7, 7))
    step = lambda h, word: (sg.tanh(table[word] + h @ w),) * 2  # noqa: E731
    h, _ = sg.scan(step, sg.zeros((3, 7)), words)
    with interpreted():
        f = compile(h)
    assert "B steps of 2 stages" in str(f.stages)
