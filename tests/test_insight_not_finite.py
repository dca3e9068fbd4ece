"""Where NaN and infinity come from, also in which step of a recurrence."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.errors import LeafError

X = np.linspace(0.5, 2.0, 6)


def test_the_node_that_made_it():
    x = sg.input("x", (2, 3), "float64")
    masked = sg.where(x > 1.0, x, -np.inf)  # infinite on purpose, and gone again
    y = sg.log(x - 0.75)
    loss = (y * 2.0).sum() + sg.softmax(masked).sum()
    found = sg.explain_nan([loss, sg.grad(loss, x)], {x: X.reshape(2, 3)})
    assert found.node is y and found.place == (0, 0) and np.isnan(found.value)
    assert found.count == 1 and found.steps == ()
    assert "test_insight_not_finite.py" in str(found) and "of finite arguments" in found.verdict
    assert any("from -0.25 to 1.25" in line for line in found.arguments)
    assert sg.explain_nan(loss, {x: X.reshape(2, 3) + 2}).verdict == "all values are finite"


def test_data_that_are_not_finite():
    x = sg.input("x", (3,))
    found = sg.explain_nan(sg.exp(x).sum() * 2, {x: [1.0, np.nan, 2.0]})
    assert found.node is x
    assert "'x'" in found.verdict and "its data are nan at (1,)" in found.verdict


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("asked", ["carry", "y", "gradient"])
def test_the_first_step_of_a_carry(asked, reverse):
    """The divisor is zero in step 2 alone; from there on both carries are not finite."""
    x, w = sg.input("x", (6,), "float64"), sg.input("w", (), "float64")

    def step(c, x):
        h = c["h"] * w / x
        return {"h": h - c["s"] * 0.0, "s": c["s"] + h}, h + 1.0

    init = {"h": sg.constant(1.0, "float64"), "s": sg.constant(0.0, "float64")}
    last, ys = sg.scan(step, init, x, reverse=reverse)
    given = {x: np.array([1.0, 2.0, 0.0, 4.0, 5.0, 6.0]), w: 0.5}
    asked_for = {"carry": last["s"], "y": ys.sum(), "gradient": sg.grad(last["s"], w)}[asked]
    found = sg.explain_nan(asked_for, given)
    (own,) = found.steps
    carry, told = {
        "carry": ("s", "carry 's' is not finite from step t = 2 of 6"),
        "y": ("", "in step t = 2 of 6"),
        "gradient": ("h", "carry 'h' is not finite from step t = 2 of 6"),
    }[asked]
    assert (own.t, own.length, own.carry) == (2, 6, carry) and told in str(found)
    assert found.value == np.inf and "of finite arguments" in found.verdict


def test_what_comes_into_a_recurrence_from_outside():
    x, h = sg.input("x", (4, 3)), sg.input("h", (3,))
    y = sg.log(h)
    last, _ = sg.scan(lambda c, a: (c + a, ()), y, x * 2.0)
    values = {x: np.ones((4, 3)), h: [1.0, -1.0, 2.0]}
    found = sg.explain_nan(last, values)
    assert found.node is y and found.place == (1,) and found.steps == ()
    values = {x: np.where(np.eye(4, 3) > 0, np.inf, 1.0), h: np.ones(3)}
    assert sg.explain_nan(last, values).node is x
    kept, _ = sg.scan(lambda c, a: (c, ()), y, x)
    assert sg.explain_nan(kept, {x: np.ones((4, 3)), h: -np.ones(3)}).node is y


def test_steps_inside_steps():
    x = sg.input("x", (3, 4), "float64")

    def outer(c, row):
        return sg.scan(lambda d, a: (d + sg.log(a), ()), c, row)[0], ()

    last, _ = sg.scan(outer, sg.constant(0.0, "float64"), x)
    values = np.ones((3, 4))
    values[1, 2] = 0.0
    found = sg.explain_nan(last, {x: values})
    assert [(s.t, s.length, s.carry) for s in found.steps] == [(1, 3, "carry"), (2, 4, "carry")]
    assert found.value == -np.inf
    checked, _ = sg.scan(
        lambda c, a: (c + sg.log(a), ()), sg.constant(0.0, "float64"), x[1], checkpoint=2
    )
    assert sg.explain_nan(checked, {x: values}).value == -np.inf


def test_errors():
    with pytest.raises(LeafError, match="values must be a dictionary"):
        sg.explain_nan(sg.input("x") * 2, [1.0])


def test_steps_of_chunks_are_those_of_the_whole():
    for steps, every, reverse in ((20, 5, False), (22, "sqrt", True), (5, 2, True)):
        x, u = sg.input("x", (steps,)), sg.input("u", (steps + 1,))
        last, ys = sg.scan(
            lambda c, x: (c / x[0] + x[1], c * x[0]), sg.constant(2.0), (x, u[1:]),
            reverse=reverse, checkpoint=every,
        )  # fmt: skip
        for bad in (0, 3, steps - 1):
            values = np.where(np.arange(steps) == bad, 0.0, 1.0)
            for asked in (last, ys.sum()):
                (own,) = sg.explain_nan([last, asked], {x: values, u: np.ones(steps + 1)}).steps
                assert (own.t, own.length) == (bad, steps)


def test_training_tells_the_rows_at_which_it_stopped():
    rows, w = sg.input("x", (sg.dim("B"), 7)), sg.parameter("w", (), init=2.0)
    h, _ = sg.scan(lambda h, x: (w * h / x, ()), sg.ones((rows.shape[0],)), rows.T)
    loss = (h * h).mean()
    data = {"x": np.full((10, 7), 4.0, np.float32)}
    data["x"][6, 3] = 0.0
    trainer = sg.Trainer(loss, sg.optim.sgd(1e-9))
    with pytest.raises(sg.DataError, match=r"sg.explain_nan\(loss, {\*\*trainer") as caught:
        trainer.fit(data, epochs=1, batch_size=4, progress=False)
    batch = {name: values[list(caught.value.rows)] for name, values in data.items()}
    assert len(batch["x"]) == 4 and 6 in caught.value.rows
    (own,) = sg.explain_nan(loss, {**trainer.parameters, **batch}).steps
    assert own.t == 3 and own.carry == "carry"
