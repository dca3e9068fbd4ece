"""Values by name, extents that no leaf tells, structures of results, and data that lose something.

`evaluate` and every compiled program share these manners, so that each case runs through both.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from tests.ir_interpreter import interpreted

B, C = sg.dim("B"), sg.dim("C")
x, z = sg.input("x", (B, 3)), sg.input("z", (C, 5))
X = np.arange(15, dtype=np.float32).reshape(5, 3)


def compiled(outputs: Any, **options: Any) -> Any:
    with interpreted():
        return sg.compile(outputs, **options)


def both(outputs: Any) -> list[Callable[..., Any]]:
    """The two ways to a value: a compiled call and `evaluate`."""
    return [compiled(outputs), lambda **values: sg.evaluate(outputs, values)]


# -- dims that no leaf tells -----------------------------------------------------------------------
LOST = {
    "ones": (sg.grad(x.sum(), x), {"x": X}, np.ones((5, 3))),
    "not reached": (sg.grad((z * z).sum(), x), {"x": X}, np.zeros((5, 3))),
    "constant hessian": (
        sg.hessian((x * x).sum(), x),
        {"x": X},
        2 * np.eye(15).reshape(5, 3, 5, 3),
    ),
    "jacobian": (sg.jacobian(3 * x, x), {"x": X}, 3 * np.eye(15).reshape(5, 3, 5, 3)),
}


@pytest.mark.parametrize("name", LOST)
def test_a_lost_leaf_or_a_dim_by_name_tells_the_extent(name: str) -> None:
    expr, values, expected = LOST[name]
    for f in both(expr):
        for given in (values, {"B": 5}, {"B": np.int64(5)}):
            np.testing.assert_array_equal(f(**given), expected)
    assert sg.evaluate(expr, {x: X}).shape == expected.shape
    assert both(expr)[0](B=0).size == 0


def test_several_dims_by_leaf_and_by_name() -> None:
    for f in both(sg.grad(x.sum() + z.sum(), [x, z])):
        a, b = f(x=X, C=2)
        assert a.shape == (5, 3) and b.shape == (2, 5)
    f = compiled([x * 1, sg.grad(z.sum(), z)])  # B is told by its own leaf, C by name
    a, b = f(x=X, C=2)
    assert a.shape == (5, 3) and b.shape == (2, 5)
    with pytest.raises(sg.ShapeError, match="the dim 'B' is 7 by name and 5 by the leaves' shapes"):
        f(x=X, C=2, B=7)


def test_a_lost_leaf_is_checked_where_it_is_needed() -> None:
    for f in both(sg.grad(x.sum(), x)):
        for wrong in (X[:, :2], X[0], [[1, 2, 3], [4]]):
            with pytest.raises(sg.DataError, match="'x'"):
                f(x=wrong)
    pair = sg.grad(x.sum() + sg.input("w", (B,)).sum(), [x, sg.input("v", (B, 2))])
    for f in both(list(pair)):
        assert f(v=np.ones((4, 2)))[0].shape == (4, 3)
        with pytest.raises(sg.ShapeError, match="the dim 'B' is 5 and 4"):
            f(x=X, v=np.ones((4, 2)))


def test_what_no_value_tells_is_said() -> None:
    f = compiled(sg.grad(x.sum(), x))
    with pytest.raises(sg.LeafError, match=r"(?s)no value tells the dim 'B'.*its name: B=\."):
        f()
    with pytest.raises(sg.LeafError, match=r"no leaf is named 'y'\. Leaves: none\. Dims: 'B'\."):
        f(y=X)
    for wrong in (4.0, -1, True, "5", X):
        with pytest.raises(sg.DataError, match="dim 'B': a value is an integer of at least 0"):
            f(B=wrong)


# -- names -----------------------------------------------------------------------------------------
def test_values_go_by_name() -> None:
    a, odd = sg.input("a", (3,)), sg.input("my x", (3,))
    with pytest.raises(sg.LeafError, match=r"got 1 without one\. Write f\(a=\.\.\.\)\.") as caught:
        compiled(a * 2)(np.ones(3))
    assert isinstance(caught.value, TypeError)
    with pytest.raises(TypeError, match=r"got 2 without one\. Write f\(\*\*{'my x': \.\.\., 'a': "):
        compiled(odd * a)(1, 2)


def test_reports_and_benches_take_values_as_calls_do() -> None:
    f = compiled(x * 2)
    for ask in ("report", "bench"):
        with pytest.raises(sg.LeafError, match=rf"got 2 .*\. Write f\.{ask}\(x=\.\.\.\)\.$"):
            getattr(f, ask)(X, X)


def test_initial_values_are_those_of_seed_0() -> None:
    w = sg.parameter("w", (3, 5), init=sg.init.normal())
    expected = sg.evaluate(w)
    for seed in (0, 1, -1):
        np.testing.assert_array_equal(compiled(w * 1, seed=seed)(), expected)
    np.testing.assert_array_equal(compiled([], updates={w: w * 2}, seed=7).state["w"], expected)


# -- structures ------------------------------------------------------------------------------------
def test_results_have_the_structure_of_what_was_asked() -> None:
    asked = {"a": [x, (x + 1, 2)], "b": ()}
    for f in both(asked):
        found = f(x=X)
        assert list(found) == ["a", "b"] and found["b"] == ()
        assert isinstance(found["a"], list) and isinstance(found["a"][1], tuple)
        np.testing.assert_array_equal(found["a"][1][0], X + 1)
        assert found["a"][1][1] == 2
    v = sg.input("v", (3,))
    (first, _), (_, last) = sg.evaluate(
        sg.hessian((x @ v).sum() ** 2, [x, v]), {x: X, v: np.ones(3)}
    )
    assert first.shape == (5, 3, 5, 3) and last.shape == (3, 3)


# -- options ---------------------------------------------------------------------------------------
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "target": ({"target": "gpu"}, "target 'gpu' does not exist. Choose one of: cpu"),
    "target kind": ({"target": None}, "target None does not exist"),
    "threads": ({"threads": 0}, "threads=0: needs a whole number from 1 to 64"),
    "no threads": ({"threads": True}, "threads=True"),
    "seed": ({"seed": "a"}, "seed must be an integer.*, got 'a'"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_checked_at_once(name: str) -> None:
    options, message = OPTIONS[name]
    loss = sg.mse(x @ sg.parameter("w", (3,)), 0.0)
    with pytest.raises(sg.SymgradError, match=message):
        sg.compile(loss, **options)
    with pytest.raises(sg.SymgradError, match="Trainer: " + message):
        sg.Trainer(loss, optimizer=sg.optim.sgd(0.1), **options)


def test_functions_that_are_no_initialisers() -> None:
    for init, name in ((np.zeros, "zeros"), (sg.init.zeros, "zeros"), (lambda: 0.0, "<lambda>")):
        with pytest.raises(sg.LeafError, match=rf"'p': init '{name}' is no initialiser") as caught:
            sg.parameter("p", (3, 5), init=init)
        assert "init=sg.init.zeros()" in str(caught.value)
    own = sg.parameter("p", (3, 5), init=lambda shape, rng, dtype: rng.normal(size=shape))
    assert sg.evaluate(own).shape == (3, 5)


def test_switches_are_true_or_false() -> None:
    loss = (x * sg.parameter("w", (3,))).sum(axis=1)
    trainer = sg.Trainer(loss, optimizer=sg.optim.sgd(0.1))
    for ask in (
        lambda: sg.compile(loss, training="no"),
        lambda: sg.evaluate(loss, {x: X}, training="no"),
        lambda: trainer.fit({"x": X}, 1, 5, shuffle="no"),
    ):
        with pytest.raises(sg.SymgradError, match=r"(training|shuffle) must be True or False"):
            ask()
    with pytest.raises(sg.LeafError, match=r"updates: needs a dictionary .* got list"):
        sg.compile(loss, updates=[(x, x)])
    for wrt, got in (({x}, "set"), ({"x": x}, "dict"), (3, "int")):
        with pytest.raises(sg.LeafError, match=f"Trainer: wrt must be a parameter.* got {got}"):
            sg.Trainer(loss, optimizer=sg.optim.sgd(0.1), wrt=wrt)


def test_a_program_is_not_copied() -> None:
    f = compiled(x * 2)
    for how in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(sg.CompileError, match=r"cannot be copied or pickled.*save\(path\)"):
            how(f)


# -- data that would lose something ----------------------------------------------------------------
def test_masked_values_are_refused() -> None:
    masked = np.ma.array(X, mask=X > 11)
    for f in both(x * 2):
        with pytest.raises(sg.DataError, match=r"(?s)input 'x': 3 values are masked.*filled\(0\)"):
            f(x=masked)
        np.testing.assert_array_equal(f(x=np.ma.array(X, mask=X > 99)), X * 2)
    for make in (sg.constant, lambda v: x + v):
        with pytest.raises(sg.DTypeError, match="masked"):
            make(masked)
    with pytest.raises(sg.SymgradError, match="masked"):
        sg.parameter("w", (5, 3), init=masked)


def test_finite_data_stay_finite() -> None:
    large = X.astype(np.float64)
    large[3, 1] = -1e39
    for f in both(x * 2):
        with pytest.raises(sg.DataError, match=r"(?s)got -1e\+39 at \(3, 1\), which.*float64") as e:
            f(x=large)
        assert "test_calling.py" in str(e.value)
        assert f(x=np.full((5, 3), np.inf))[0, 0] == np.inf
    with pytest.raises(sg.DataError, match=r"got 1e\+300, which does not fit"):
        sg.evaluate(sg.input("s") * 2, {"s": 1e300})
    for number in (2**128, 2**2000, -(2**3000)):
        with pytest.raises(sg.DTypeError, match=r"an integer of .* bits does not fit into float32"):
            x + number
    assert sg.evaluate(sg.input("d", dtype="float64") + 2**1000, {"d": 1.0}) == 2.0**1000


# -- one screen ------------------------------------------------------------------------------------
def test_messages_fit_on_a_screen() -> None:
    long = sg.input("n" * 5000, (3,))
    many = [sg.input(f"v{k}", (3,)) for k in range(300)]
    total = long
    for leaf in many:
        total = total + leaf
    wide = sg.input("d", (*(sg.dim("e" * 900 + str(k)) for k in range(30)), 3))
    tries: list[Callable[[], Any]] = [
        lambda: long @ sg.input("q" * 300, (7,)),
        lambda: sg.evaluate(total, {}),
        lambda: sg.evaluate(total, {"v1": np.zeros(7)}),
        lambda: compiled(total)(q=1),
        lambda: compiled(total)(1),
        lambda: sg.compile(total, updates={many[0]: long.sum()}),
        lambda: wide + np.zeros(5),
        lambda: sg.Trainer(total.sum(), optimizer=sg.optim.sgd(0.1)),
        lambda: sg.input("k" * 900, (3,)) + sg.input("k" * 900, (3, 3)) + "text" * 9000,
        lambda: sg.evaluate(sg.grad((wide * 1).sum(), wide)),
        lambda: sg.dim(["a" * 9000]),
    ]
    for attempt in tries:
        with pytest.raises(sg.SymgradError) as caught:
            attempt()
        lines = str(caught.value).splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 400, str(caught.value)
