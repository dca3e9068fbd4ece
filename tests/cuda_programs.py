"""Programs for the CUDA target: every scalar function, the node cases, and steps of training.

`judge` runs one of them, in the simulator (`tests/cuda_cases.py`) or on a device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import symgrad as sg
from codegen.compiled import Compiled
from codegen.loading import run_module
from codegen.pipeline import compile
from symgrad.graph.functions import FUNCTIONS
from symgrad.graph.nodes import Node
from symgrad.graph.structure import flatten
from tests import (
    test_codegen_folds as folds,
    test_codegen_functions as functions,
    test_codegen_nodes as nodes,
)
from tests.codegen_cases import Case, call

Array = np.ndarray[Any, Any]
# A power of a float32 in CUDA: within 8 units in the last place (CUDA C++ Programming Guide).
LOOSE = 16


def _numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@cache
def _applied(target: str) -> dict[str, Array]:
    """All scalar functions in all dtypes that they take, in one program."""
    found: dict[str, Array] = call(
        compile(functions.APPLICATIONS, target=target), functions.values()
    )
    return found


def _function(name: str, target: str) -> None:
    for key, node in functions.APPLICATIONS.items():
        if key.partition("-")[0] != name:
            continue
        expected, result = sg.evaluate(node, functions.values()), _applied(target)[key]
        if name in ("maximum", "minimum") and result.dtype.kind == "f":
            result, expected = result + 0, expected + 0  # which of two equal zeros is open
        functions.assert_within(result, expected, 0 if name in functions.EXACT else LOOSE)


def _case(case: Case, target: str) -> None:
    for outputs in (case.outputs, case.further):
        if outputs:
            loose = Case(case.name, case.values, rtol=4 * case.rtol, atol=4 * case.atol)
            loose.check(outputs, call(compile(outputs, target=target), case.values))


# -- networks ------------------------------------------------------------------------------------
def perceptron(target: str) -> tuple[Compiled, dict[str, Array]]:
    """A step of training with momentum: two layers, softmax and cross entropy."""
    rows = sg.dim("rows")
    x = sg.input("x", (rows, 5))
    labels = sg.input("labels", (rows,), dtype="int32")
    leaves = [
        sg.parameter("W0", (5, 7)),
        sg.parameter("b0", (7,)),
        sg.parameter("W1", (7, 3)),
        sg.parameter("b1", (3,)),
    ]
    w0, b0, w1, b1 = leaves
    loss = sg.mean(sg.cross_entropy(sg.tanh(x @ w0 + b0) @ w1 + b1, labels))
    pushes = [
        sg.parameter(f"{leaf.name}.push", leaf.shape, init=sg.init.zeros()) for leaf in leaves
    ]
    updates: dict[Any, Any] = {}
    for leaf, push, slope in zip(leaves, pushes, sg.grad(loss, leaves), strict=True):
        updates[push] = 0.5 * push + slope
        updates[leaf] = leaf - 0.25 * (0.5 * push + slope)
    values = {"x": _numbers(1, 6, 5), "labels": np.array([0, 2, 1, 1, 0, 2], np.int32)}
    return compile({"loss": loss}, updates, target=target), values


def _perceptron(target: str) -> None:
    f, values = perceptron(target)
    g, _ = perceptron("cpu")
    for _ in range(3):
        np.testing.assert_allclose(f(**values)["loss"], g(**values)["loss"], rtol=2e-5)
    f.state["b0"] = np.full(7, 0.25, np.float32)
    g.state["b0"] = np.full(7, 0.25, np.float32)
    f.state["b1"][...] += 1  # an array that was read may be changed in place
    g.state["b1"][...] += 1
    np.testing.assert_allclose(f(**values)["loss"], g(**values)["loss"], rtol=2e-5)
    for name in g.state:
        np.testing.assert_allclose(f.state[name], g.state[name], rtol=2e-5, atol=1e-6)
    given = {**values, "W1": _numbers(9, 7, 3)}
    np.testing.assert_allclose(f(**given)["loss"], g(**given)["loss"], rtol=2e-5)
    np.testing.assert_allclose(f.state["W1"], g.state["W1"], rtol=2e-5, atol=1e-6)
    shorter = {"x": values["x"][:4], "labels": values["labels"][:4]}
    np.testing.assert_allclose(f(**shorter)["loss"], g(**shorter)["loss"], rtol=2e-5)


def _bad_index(target: str) -> None:
    f, values = perceptron(target)
    f(**values)
    before = {name: array.copy() for name, array in f.state.items()}
    values["labels"] = np.array([0, 2, 3, 1, 0, 2], np.int32)
    said = {}
    for name, g in (("device", f), ("cpu", perceptron("cpu")[0])):
        try:
            g(**values)
        except sg.DataError as error:
            said[name] = str(error)
    assert said["device"] == said["cpu"], said
    assert "3 is out of range" in said["device"], said["device"]
    for name, array in before.items():
        np.testing.assert_array_equal(f.state[name], array)


def _swap(target: str) -> None:
    a, b = sg.parameter("a", (3,)), sg.parameter("b", (3,))
    f = compile([a, b], {a: b, b: a}, target=target)
    first = {name: array.copy() for name, array in f.state.items()}
    got = f()
    np.testing.assert_array_equal(got[0], first["a"])
    np.testing.assert_array_equal(f.state["a"], first["b"])
    np.testing.assert_array_equal(f.state["b"], first["a"])


def _agrees(outputs: Node | list[Node], values: dict[str, Array], target: str) -> None:
    nodes = outputs if isinstance(outputs, list) else [outputs]
    got = call(compile(nodes, target=target), values)
    for node, g, e in zip(nodes, got, sg.evaluate(nodes, values), strict=True):
        assert g.dtype == e.dtype and g.shape == e.shape
        np.testing.assert_allclose(g, e, rtol=2e-5, atol=2e-6, err_msg=repr(node))


def _layer_norm(target: str) -> None:
    rows = sg.dim("rows")
    x, gain = sg.input("x", (rows, 7)), sg.input("gain", (7,))
    centred = x - sg.mean(x, axis=1, keepdims=True)
    y = gain * centred / sg.sqrt(sg.mean(centred**2, axis=1, keepdims=True) + 1e-3)
    values = {"x": _numbers(2, 5, 7), "gain": _numbers(3, 7)}
    loss = sg.sum(y**3)
    _agrees([y, loss, *sg.grad(loss, [x, gain])], values, target)


def _embedding(target: str) -> None:
    table = sg.parameter("table", (6, 3))
    words = sg.input("words", (4, 2), dtype="int32")
    loss = sg.mean(sg.take(table, words, axis=0) ** 2)
    values = {"table": _numbers(4, 6, 3), "words": np.array([[0, 5], [5, 5], [-1, 2], [2, 0]])}
    _agrees([loss, *sg.grad(loss, [table])], values, target)


def _second_order(target: str) -> None:
    x, w = sg.input("x", (5, 3)), sg.input("w", (3,))
    loss = sg.mean(sg.softplus(x @ w) + sg.tanh(x @ w) ** 2)
    values = {"x": _numbers(5, 5, 3), "w": _numbers(6, 3)}
    _agrees([sg.hessian(loss, w), *sg.hvp(loss, [w], [w])], values, target)


def _recurrence(target: str) -> None:
    """A recurrent network over a sequence, and its cotangents: a loop of launches, and back."""
    steps = sg.dim("steps")
    x, h0 = sg.input("x", (steps, 2, 3)), sg.input("h0", (2, 4))
    w, u = sg.parameter("w", (3, 4)), sg.parameter("u", (4, 4))

    def step(h: Node, now: Node) -> tuple[Node, Node]:
        h = sg.tanh(now @ w + h @ u)
        return h, sg.sum(h * h, axis=1)

    last, sizes = sg.scan(step, h0, x)
    loss = sg.mean(sizes) + sg.sum(last)
    values = {
        "x": _numbers(7, 5, 2, 3),
        "h0": _numbers(8, 2, 4),
        "w": _numbers(9, 3, 4),
        "u": _numbers(10, 4, 4),
    }
    _agrees([last, sizes, *sg.grad(loss, [w, u, h0])], values, target)


def _steps(
    outputs: list[Node], updates: dict[Any, Node], values: dict[str, Array], target: str,
    training: bool = True,
) -> None:
    """Three calls of a program with state and random numbers against `evaluate`."""
    f = compile(outputs, updates, target=target, seed=5, training=training)
    state = {name: array.copy() for name, array in f.state.items()}
    wanted = [*outputs, *updates.values()]
    for step in range(3):
        told = {**values, **state}
        expected = sg.evaluate(wanted, told, seed=5, step=step, training=training)
        state = dict(zip((x.name for x in updates), expected[len(outputs) :], strict=True))
        for got, e in zip(f(**values), expected, strict=False):
            assert got.dtype == e.dtype and got.shape == e.shape
            np.testing.assert_allclose(got, e, rtol=2e-5, atol=2e-6)
        for name, e in state.items():
            np.testing.assert_allclose(f.state[name], e, rtol=2e-5, atol=2e-6, err_msg=name)


def _dropout(target: str) -> None:
    """Masks are drawn again on the way back, with the same bits; and within a recurrence."""
    rows = sg.dim("rows")
    x, w = sg.input("x", (rows, 5)), sg.parameter("w", (5, 7))
    dropped = sg.dropout(sg.tanh(x @ w), 0.4)
    noise = sg.random.normal((rows, 7))
    loss = sg.sum(dropped * dropped) + sg.sum(dropped * noise)

    def step(h: Node, now: Node) -> tuple[Node, Node]:
        h = sg.dropout(h * now, 0.5) + sg.random.uniform((5,))
        return h, h

    last, ys = sg.scan(step, sg.ones((5,)), x)
    slopes = sg.grad(loss + sg.sum(last), [w, x])
    drawn = [
        *(sg.random.uniform((3, rows), dtype) for dtype in ("float32", "float64")),
        sg.random.bernoulli(0.3, (rows,)),
    ]
    outputs = [dropped, loss, last, ys, *slopes, *drawn]
    for training in (False, True):
        _steps(outputs, {w: w - 0.1 * slopes[0]}, {"x": _numbers(1, 4, 5)}, target, training)
    exact = [sg.random.uniform((3, 5), dtype) for dtype in ("float32", "float64")]
    for seed in (-(2**63), 2**63 - 1):
        got = compile(exact, target=target, seed=seed)()
        for one, e in zip(got, sg.evaluate(exact, seed=seed), strict=True):
            np.testing.assert_array_equal(one, e)


def _layers(target: str) -> None:
    words = sg.input("words", (sg.dim("rows"), 3), "int32")
    model = sg.nn.Sequential([
        sg.nn.Embedding(7, 4), sg.nn.LayerNorm(), sg.nn.Dense(5, sg.gelu), sg.nn.Dropout(0.3),
        sg.nn.Dense(2),
    ])
    out = model(words)
    loss = sg.mean(out**2)
    leaves = sg.parameters(loss)
    rate = sg.optim.warmup(sg.optim.cosine_decay(0.1, 5), 2)
    updates = sg.optim.adamw(rate).updates(leaves, sg.grad(loss, leaves))
    _steps([out, loss], updates, {"words": np.array([[0, 6, 2], [-1, 2, 2]], np.int32)}, target)


def _tagger(make: Callable[[], Any], target: str) -> None:
    """Rows of different lengths through a recurrent layer: values, and steps of training."""
    words = sg.input("words", (sg.dim("rows"), sg.dim("steps")), "int32")
    tags, lengths = sg.input("tags", words.shape, "int32"), sg.input("n", words.shape[:1], "int32")
    ys, carry = make().run(sg.nn.Embedding(7, 4)(words), lengths=lengths)
    logits = sg.nn.Dense(3)(ys)
    loss = sg.nn.sequence_cross_entropy(logits, tags, lengths).sum() / lengths.sum()
    leaves = sg.parameters(loss)
    updates = sg.optim.sgd(0.5).updates(leaves, sg.grad(loss, leaves))
    rng = np.random.default_rng(2)
    values = {name: rng.integers(0, k, (5, 4), np.int32) for name, k in (("words", 7), ("tags", 3))}
    _steps([loss, logits, *flatten(carry)[0]], updates, {**values, "n": N[:5]}, target)


def _too_long(target: str) -> None:
    x, lengths = sg.input("x", (3, sg.dim("steps"), 2)), sg.input("n", (3,), "int32")
    outputs = [sg.nn.RNN(4).run(x, lengths=lengths)[0]]
    values = {"x": _numbers(1, 3, 3, 2), "n": N[1:4]}
    said = []
    for one in (target, "cpu"):
        try:
            compile(outputs, target=one)(**values)
        except sg.DataError as error:
            said.append(str(error))
    assert len(said) == 2 and said[0] == said[1], said
    assert "length 4 is out of range for 3 steps" in said[0], said[0]


def _writer(target: str) -> None:
    """A sequence read by one layer and written by another, greedily and by chance."""
    words = sg.input("words", (3, sg.dim("steps")), "int32")
    table, reader, writer, out = (
        sg.nn.Embedding(7, 4), sg.nn.GRU(5), sg.nn.GRU(5, name="writer"), sg.nn.Dense(7)
    )
    _, thought = reader.run(table(words), reverse=True)

    def step(carry: Node, word: Node) -> tuple[Node, Node]:
        carry, y = writer.step(carry, table(word))
        return carry, out(y)

    written = [sg.nn.generate(step, thought, sg.constant([0, 1, 2]), 4, heat)[0] for heat in (0, 2)]
    _steps(written, {}, {"words": np.arange(12, dtype=np.int32).reshape(3, 4) % 7}, target)


def _optimiser(make: Callable[[], Any], dtype: str, target: str) -> None:
    x = sg.input("x", (sg.dim("rows"), 3), dtype)
    leaves = [sg.parameter("w", (3, 5), dtype=dtype), sg.parameter("b", (), dtype=dtype)]
    loss = sg.mean(sg.softplus(x @ leaves[0]) + leaves[1] ** 2)
    updates = make().updates(leaves, sg.grad(loss, leaves))
    _steps([loss], updates, {"x": _numbers(1, 4, 3).astype(dtype)}, target)


def _saved(target: str) -> None:
    """The file that a program is saved to gives the same bits, without symgrad."""
    f, values = perceptron(target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved_program.py"
        f.save(path)
        assert "symgrad" not in path.read_text() and "codegen" not in path.read_text()
        saved = run_module("saved_program", path.read_text(), str(path))
    given = {**values, **{name: array.copy() for name, array in f.state.items()}}
    given = {name: given[name] for name in saved.NAMES}
    for _ in range(2):
        (loss,) = saved.run(given, [6])
        np.testing.assert_array_equal(loss, f(**values)["loss"])
    for name, array in f.state.items():
        np.testing.assert_array_equal(given[name], array)
    given["labels"][2] = 3
    try:
        saved.run(given, [6])
    except IndexError as error:
        assert str(error) == "index 3 is out of range for extent 3"
    else:
        raise AssertionError("a bad label was not found")


def _trainer(target: str) -> None:
    """Epochs with dropout, clipping, a partial batch, validation, and steps that fail."""
    x = sg.input("x", (sg.dim("rows"), 5))
    labels = sg.input("labels", (x.shape[0],), "int32")
    w0 = sg.parameter("w0", (5, 7), init=sg.init.glorot_uniform())
    w1 = sg.parameter("w1", (7, 3), init=sg.init.glorot_uniform())
    logits = sg.dropout(sg.tanh(x @ w0), 0.2) @ w1
    data = {"x": _numbers(1, 11, 5), "labels": np.arange(11, dtype=np.int32) % 3}
    wrong = {**data, "labels": np.where(np.arange(11) == 6, 9, data["labels"]).astype(np.int32)}
    spoilt = {**data, "x": np.where(np.arange(55).reshape(11, 5) == 27, np.nan, data["x"])}
    found: list[Any] = []
    for one in (target, "cpu"):
        trainer = sg.Trainer(
            sg.cross_entropy(logits, labels), sg.optim.adam(0.05), clip_norm=0.5, target=one,
            metrics={"hits": sg.argmax(logits, axis=1) == labels}, seed=3,
        )  # fmt: skip
        history = trainer.fit(data, epochs=2, batch_size=4, validation=data, progress=False)
        losses = [*history.loss, *trainer.fit(data, epochs=1, batch_size=4, progress=False).loss]
        measured = trainer.evaluate(data)
        said = []
        for given in (wrong, spoilt):
            try:
                trainer.fit(given, epochs=2, batch_size=4, progress=False)
            except sg.DataError as error:
                said.append(str(error))
        numbers = [losses, *measured.values(), trainer.predict(logits, data)]
        found.append((said, [*numbers, *trainer.state.values()]))
    (said, got), (expected, wanted) = found
    assert said == expected and len(said) == 2, said
    for g, e in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


OPTIMISERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: sg.optim.sgd(0.1),
    "momentum": lambda: sg.optim.sgd(0.1, 0.9),
    "nesterov": lambda: sg.optim.sgd(sg.optim.step_decay(0.1, 2), 0.9, nesterov=True),
    "adagrad": lambda: sg.optim.adagrad(0.1),
    "rmsprop": lambda: sg.optim.rmsprop(0.1),
    "adam": lambda: sg.optim.adam(sg.optim.exponential_decay(0.1, 1)),
    "adamw": lambda: sg.optim.adamw(sg.optim.piecewise([1], [0.1, 0.01])),
}
#: Lengths of rows of four steps: none, one and all of them, unsorted.
N = np.array([2, 0, 4, 1, 4], np.int32)
RECURRENT: dict[str, Callable[[], Any]] = {
    "rnn": lambda: sg.nn.RNN(5),
    "gru": lambda: sg.nn.GRU(5),
    "gru, reset before": lambda: sg.nn.GRU(5, reset_after=False),
    "lstm": lambda: sg.nn.LSTM(5, peepholes=True),
    "both directions": lambda: sg.nn.Bidirectional(sg.nn.LSTM(3)),
    "stacked": lambda: sg.nn.Stacked([sg.nn.LSTM(3), sg.nn.Bidirectional(sg.nn.GRU(5))], 0.3),
}
NETWORKS: dict[str, Callable[[str], None]] = {
    "dropout": _dropout,
    "layers": _layers,
    "saved": _saved,
    "trainer": _trainer,
    **{
        f"{name} {dtype}": partial(_optimiser, make, dtype)
        for name, make in OPTIMISERS.items()
        for dtype in ("float32", "float64")
    },
    "perceptron": _perceptron,
    "bad index": _bad_index,
    "swapped state": _swap,
    "layer norm": _layer_norm,
    "embedding": _embedding,
    "second order": _second_order,
    "recurrence": _recurrence,
    **{f"tagger {name}": partial(_tagger, make) for name, make in RECURRENT.items()},
    "too long": _too_long,
    "writer": _writer,
}


def names() -> list[str]:
    """Programs by name: functions, networks and node cases."""
    return [
        *(f"function {name}" for name in FUNCTIONS),
        *(f"network {name}" for name in NETWORKS),
        *(f"nodes {name}" for name in nodes.cases.makers),
        *(f"folds {name}" for name in folds.cases.makers),
    ]


def judge(name: str, target: str = "cuda") -> None:
    """Run a program on a target and compare it with `evaluate` or the CPU."""
    kind, _, rest = name.partition(" ")
    if kind == "function":
        _function(rest, target)
    elif kind == "nodes":
        _case(nodes.cases.case(rest), target)
    elif kind == "folds":
        _case(folds.cases.case(rest), target)
    else:
        NETWORKS[rest](target)
