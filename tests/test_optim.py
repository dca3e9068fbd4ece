"""Optimisers: their updates against NumPy written by hand and against PyTorch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from symgrad import optim
from symgrad.graph.elementwise import exp
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import input, parameter
from symgrad.optim import Optimizer, step

Arrays = list[np.ndarray]
STEPS = 7


def numpy_sgd(w: Any, gs: Arrays, lr: float, momentum: float = 0.0, nesterov: bool = False) -> Any:
    v = np.zeros_like(w)
    for g in gs:
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
    return w


def numpy_adagrad(w: Any, gs: Arrays, lr: float, epsilon: float = 1e-10) -> Any:
    a = np.zeros_like(w)
    for g in gs:
        a = a + g**2
        w = w - lr * g / (np.sqrt(a) + epsilon)
    return w


def numpy_rmsprop(w: Any, gs: Arrays, lr: float, decay: float = 0.99, epsilon: float = 1e-8) -> Any:
    s = np.zeros_like(w)
    for g in gs:
        s = decay * s + (1 - decay) * g**2
        w = w - lr * g / (np.sqrt(s) + epsilon)
    return w


def numpy_adamw(
    w: Any, gs: Arrays, lr: float, beta1: float = 0.9, beta2: float = 0.999,
    epsilon: float = 1e-8, weight_decay: float = 0.01,
) -> Any:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gs, start=1):
        w = w - lr * weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return w


def numpy_adam(w: Any, gs: Arrays, lr: float, **options: float) -> Any:
    return numpy_adamw(w, gs, lr, weight_decay=0.0, **options)


Case = tuple[str, dict[str, Any], Callable[..., Any], str, dict[str, Any]]
CASES: dict[str, Case] = {
    "sgd": ("sgd", {}, numpy_sgd, "SGD", {}),
    "momentum": ("sgd", {"momentum": 0.8}, numpy_sgd, "SGD", {"momentum": 0.8}),
    "nesterov": (
        "sgd", {"momentum": 0.8, "nesterov": True}, numpy_sgd,
        "SGD", {"momentum": 0.8, "nesterov": True},
    ),
    "adagrad": ("adagrad", {}, numpy_adagrad, "Adagrad", {}),
    "rmsprop": ("rmsprop", {"decay": 0.9}, numpy_rmsprop, "RMSprop", {"alpha": 0.9}),
    "adam": ("adam", {}, numpy_adam, "Adam", {}),
    "adam-options": (
        "adam", {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}, numpy_adam,
        "Adam", {"betas": (0.5, 0.9), "eps": 1e-3},
    ),
    "adam-beta1-0": ("adam", {"beta1": 0.0}, numpy_adam, "Adam", {"betas": (0.0, 0.999)}),
    "adamw": ("adamw", {"weight_decay": 0.1}, numpy_adamw, "AdamW", {"weight_decay": 0.1}),
}


def data(dtype: str) -> tuple[np.ndarray, Arrays]:
    rng = np.random.default_rng(8)
    scale = 10.0 ** np.arange(-3, 4)
    return (
        rng.standard_normal((3, 7)).astype(dtype),
        [(rng.standard_normal((3, 7)) * scale).astype(dtype) for _ in range(STEPS)],
    )


def follow(optimizer: Optimizer, w: np.ndarray, gs: Arrays) -> tuple[np.ndarray, dict[str, Any]]:
    """Apply the updates with the evaluator."""
    leaf = parameter("W", w.shape, dtype=w.dtype)
    grad = input("g", w.shape, dtype=w.dtype)
    updates = optimizer.updates([leaf], [grad])
    state = {x.name: np.zeros(x.shape, x.dtype) for x in updates}
    state["W"] = w
    for g in gs:
        values = evaluate(list(updates.values()), {**state, "g": g})
        for x, value in zip(updates, values, strict=True):
            assert value.dtype == x.dtype and value.shape == x.shape
            state[x.name] = value
    return state["W"], state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_against_numpy(case: str, dtype: str) -> None:
    name, options, reference, _, _ = CASES[case]
    w, gs = data(dtype)
    got, state = follow(optim.MAKERS[name](0.03, **options), w, gs)
    expected = reference(w.astype("float64"), [g.astype("float64") for g in gs], 0.03, **options)
    np.testing.assert_allclose(got, expected, rtol=2e-6 if dtype == "float32" else 1e-13, atol=1e-6)
    assert state[step.name] == STEPS and state[step.name].dtype == "int32"


@pytest.mark.parametrize("case", CASES)
def test_against_torch(case: str) -> None:
    torch = pytest.importorskip("torch")
    name, options, _, peer, peer_options = CASES[case]
    w, gs = data("float64")
    moved = torch.nn.Parameter(torch.tensor(w))
    other = getattr(torch.optim, peer)([moved], lr=0.03, **peer_options)
    for g in gs:
        moved.grad = torch.tensor(g)
        other.step()
    got, _ = follow(optim.MAKERS[name](0.03, **options), w, gs)
    np.testing.assert_allclose(got, moved.detach().numpy(), rtol=1e-12)


def test_every_optimizer_has_a_case() -> None:
    assert {case[0] for case in CASES.values()} == set(optim.RULES) == set(optim.MAKERS)


@pytest.mark.parametrize("name", optim.MAKERS)
def test_zero_gradient_is_finite_and_moves_nothing(name: str) -> None:
    w, gs = data("float32")
    options = {"weight_decay": 0.0} if name == "adamw" else {}
    got, state = follow(optim.MAKERS[name](0.1, **options), w, [np.zeros_like(g) for g in gs])
    np.testing.assert_array_equal(got, w)
    assert all(np.isfinite(value).all() for value in state.values())


def test_adam_keeps_its_digits_in_early_and_late_steps() -> None:
    leaf, grad = parameter("W", (3,)), input("g", (3,))
    optimizer = optim.adam(1.0, beta1=0.0, beta2=0.999, epsilon=0.0)
    new = optimizer.updates([leaf], [grad])[leaf]
    g = np.array([1.0, 2.0, 3.0], np.float32)
    for t in (1, 2, 1000, 10**8):
        v = 1 - 0.999**t  # what a constant gradient of 1 has gathered
        before = (v - 0.001) / 0.999
        moved = evaluate(new, {
            "W": np.zeros(3), "g": g, step.name: np.int32(t - 1),
            "adam.m/W": np.zeros(3), "adam.v/W": (before * g**2).astype(np.float32),
        })
        np.testing.assert_allclose(moved, -1.0, rtol=2e-6)


def test_rate_as_an_expression_of_the_step() -> None:
    w, gs = data("float64")
    got, _ = follow(optim.sgd(0.1 * exp(-0.5 * step.astype("float64"))), w, gs)
    expected = w - sum(0.1 * np.exp(-0.5 * t) * g for t, g in enumerate(gs))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got, _ = follow(optim.adam(0.1 / (step + 1)), w, gs)
    assert got.dtype == "float64" and np.isfinite(got).all()


def test_state_leaves_are_made_once() -> None:
    w, b = parameter("W", (3, 5)), parameter("b", (5,), dtype="float64")
    grads = [input("gw", (3, 5)), input("gb", (5,), dtype="float64")]
    optimizer = optim.adam()
    first, second = optimizer.updates([w, b], grads), optimizer.updates([w, b], grads)
    names = ["W", "adam.m/W", "adam.v/W", "b", "adam.m/b", "adam.v/b", "optim.step"]
    assert [leaf.name for leaf in first] == names
    assert all(one is two for one, two in zip(first, second, strict=True))
    assert all(first[leaf] is second[leaf] for leaf in first)
    assert {leaf.dtype for leaf in optimizer.state(b)} == {b.dtype}
    assert all(leaf.kind == "parameter" for leaf in optimizer.state(w))
    assert optim.adam().state(w)[0] is not optimizer.state(w)[0]


@pytest.mark.parametrize("name", optim.MAKERS)
def test_text_and_json_make_it_again(name: str) -> None:
    one = optim.MAKERS[name](0.25)
    assert re.fullmatch(rf"{name}\(learning_rate=0\.25.*\)", repr(one))
    record = json.loads(json.dumps(one.to_json()))
    again = Optimizer.from_json(record)
    assert again.to_json() == record and repr(again) == repr(one)


def test_json_without_a_rate() -> None:
    record = optim.sgd(0.1 / (step + 1)).to_json()
    assert record["learning_rate"] is None
    with pytest.raises(SymgradError, match="learning rate was an expression"):
        Optimizer.from_json(record)
    with pytest.raises(SymgradError, match="describes no optimiser"):
        Optimizer.from_json({"name": "lion", "learning_rate": 0.1})


def test_errors() -> None:
    w, g = parameter("W", (3, 5)), input("g", (3, 5))
    n = parameter("n", (3,), dtype="int32")
    with pytest.raises(LeafError, match="only parameters can be updated"):
        optim.sgd(0.1).updates([g], [g])
    with pytest.raises(LeafError, match="stands twice"):
        optim.sgd(0.1).updates([w, w], [g, g])
    with pytest.raises(LeafError, match="1 parameters, but 0 gradients"):
        optim.sgd(0.1).updates([w], [])
    with pytest.raises(DTypeError, match="only floats can be trained"):
        optim.sgd(0.1).updates([n], [input("gn", (3,))])
    with pytest.raises(ShapeError, match=r"(?s)\(3, 5\).*\(5, 3\)"):
        optim.sgd(0.1).updates([w], [input("gt", (5, 3))])
    with pytest.raises(ShapeError, match="must be a scalar"):
        optim.sgd(input("rate", (3,)))
    with pytest.raises(SymgradError, match="learning_rate must be finite and at least 0, got -1"):
        optim.sgd(-1)
    with pytest.raises(SymgradError, match=r"momentum must be in \[0, 1\), got 1"):
        optim.sgd(0.1, momentum=1.0)
    with pytest.raises(SymgradError, match="nesterov needs a momentum"):
        optim.sgd(0.1, nesterov=True)
