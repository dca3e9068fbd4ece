"""Dropout: meaning, derivatives, recurrences, training; and that nothing of it is stored."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from codegen.schedule import FoldStage, Schedule
from symgrad.graph.checker import check
from symgrad.graph.dims import Extent
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Node
from symgrad.graph.streams import is_draw
from tests.codegen_cases import Cases

RNG = np.random.default_rng(0)


def real(name: str, *shape: Extent) -> Node:
    return sg.input(name, shape, dtype="float64")


# -- meaning --------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [0.25, 0.1, 0.7])
def test_it_drops_a_share_and_scales_the_rest(rate: float, dtype: str) -> None:
    x = sg.input("x", (sg.dim("B"), 500), dtype=dtype)
    y = sg.dropout(x, rate)
    value = RNG.normal(size=(40, 500)).astype(dtype)
    np.testing.assert_array_equal(sg.evaluate(y, {x: value}), value)
    np.testing.assert_array_equal(sg.compile(y)(x=value), value)
    found = sg.evaluate(y, {x: value}, seed=1, training=True)
    assert found.dtype == dtype
    kept = found != 0
    np.testing.assert_allclose(found[kept], value[kept] / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(kept.mean(), 1 - rate, atol=5 * 0.5 / np.sqrt(value.size))
    np.testing.assert_array_equal(sg.compile(y, seed=1, training=True)(x=value), found)


def test_precisions_share_their_mask() -> None:
    single, double = sg.ones((300,)), sg.ones((300,), "float64")
    kept = [
        sg.evaluate(sg.dropout(x, 0.4), seed=2, training=True) != 0 for x in (single, double)
    ]
    np.testing.assert_array_equal(*kept)


def test_rates_at_the_ends() -> None:
    x = sg.input("x", (3, 5))
    value = np.full((3, 5), np.inf, np.float32)
    assert sg.dropout(x, 0) is x and sg.dropout(x, 0.0) is x
    nothing = sg.dropout(x, 1)
    assert (sg.evaluate(nothing, {x: value}, training=True) == 0).all()
    assert (sg.compile(nothing, training=True)(x=value) == 0).all()
    np.testing.assert_array_equal(sg.compile(nothing)(x=value), value)
    gradient = sg.grad(nothing.sum(), x)
    assert (sg.evaluate(gradient, {x: value}, training=True) == 0).all()
    assert (sg.evaluate(gradient, {x: value}) == 1).all()


def test_the_rate_may_be_an_expression() -> None:
    x, r = sg.input("x", (400, 3)), sg.input("r", (3,))
    y = sg.dropout(x, r)
    values = {"x": np.ones((400, 3), np.float32), "r": np.array([0.0, 0.5, 1.0], np.float32)}
    found = sg.evaluate(y, values, training=True)
    assert (found[:, 0] == 1).all() and (found[:, 2] == 0).all()
    assert set(np.unique(found[:, 1])) == {0, 2}
    np.testing.assert_array_equal(sg.compile(y, training=True)(**values), found)
    by_step = sg.dropout(x, sg.minimum(sg.optim.step.astype("float32") / 4, 0.5))
    shares = [
        (sg.evaluate(by_step, values, step=k, training=True) == 0).mean() for k in (0, 1, 2, 9)
    ]
    np.testing.assert_allclose(shares, [0, 0.25, 0.5, 0.5], atol=0.05)


def test_errors() -> None:
    x = sg.input("x", (3, 5))
    for rate in (-0.1, 1.5, float("nan"), np.float64(2), [0.5, 0.5, 0.5, 0.5, 3.0]):
        with pytest.raises(sg.SymgradError, match="dropout: the rate must lie between 0 and 1"):
            sg.dropout(x, rate)
    with pytest.raises(sg.DTypeError, match="dropout: x must be a float"):
        sg.dropout(sg.input("i", (3,), dtype="int32"), 0.5)
    with pytest.raises(sg.ShapeError, match="dropout: the rate does not broadcast to x"):
        sg.dropout(x, sg.input("r", (7, 3, 5)))


# -- derivatives ----------------------------------------------------------------------------------
def network() -> tuple[Node, list[Node], dict[str, np.ndarray]]:
    B = sg.dim("B")
    x = real("x", B, 5)
    W1, W2 = (sg.parameter(n, s, dtype="float64") for n, s in (("W1", (5, 7)), ("W2", (7, 3))))
    hidden = sg.dropout(sg.tanh(sg.dropout(x, 0.2) @ W1), 0.4)
    loss = sg.square(hidden @ W2 + sg.random.normal((B, 3), "float64")).mean()
    values = {n: RNG.normal(size=s) for n, s in (("x", (7, 5)), ("W1", (5, 7)), ("W2", (7, 3)))}
    return loss, [x, W1, W2], values


def difference(f: Node, values: dict[str, np.ndarray], name: str, v: np.ndarray, **run) -> float:
    h = 1e-5
    above, below = (
        sg.evaluate(f, {**values, name: values[name] + s * h * v}, **run) for s in (1, -1)
    )
    return float((above - below) / (2 * h))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_both_orders_by_differences(training: bool) -> None:
    loss, leaves, values = network()
    run = {"seed": 5, "step": 3, "training": training}
    weights = [sg.constant(RNG.normal(size=values[x.name].shape)) for x in leaves]
    gradients = sg.grad(loss, leaves)
    weighed = sum(((g * w).sum() for g, w in zip(gradients, weights, strict=True)), 0.0)
    for f in (loss, weighed):
        for leaf, g in zip(leaves, sg.grad(f, leaves), strict=True):
            v = RNG.normal(size=values[leaf.name].shape)
            # a gradient alone draws the same values as the loss alone
            got = float((sg.evaluate(g, values, **run) * v).sum())
            np.testing.assert_allclose(
                got, difference(f, values, leaf.name, v, **run), rtol=1e-6, atol=1e-8
            )


def test_forward_mode_jacobian_and_hessian() -> None:
    x = real("x", 5)
    y = sg.dropout(sg.square(x), 0.5) * 3
    value = {"x": RNG.normal(size=5)}
    run = {"seed": 1, "training": True}
    kept = np.where(sg.evaluate(y, value, **run) != 0, 2.0, 0.0)
    assert 0 < (kept != 0).sum() < 5
    expected = np.diag(6 * value["x"] * kept)
    np.testing.assert_allclose(sg.evaluate(sg.jacobian(y, x), value, **run), expected)
    tangent = sg.jvp(y, [x], [sg.ones((5,), "float64")])[1]
    np.testing.assert_allclose(sg.evaluate(tangent, value, **run), expected.sum(1))
    curvature = sg.evaluate(sg.hessian(y.sum(), x), value, **run)
    np.testing.assert_allclose(curvature, np.diag(6 * kept))


def test_random_numbers_have_no_derivative() -> None:
    W = sg.parameter("W", (3,))
    noise = sg.random.normal((3,))
    assert not sg.evaluate(sg.grad(noise.sum(), W)).any()
    np.testing.assert_array_equal(
        *sg.evaluate([sg.grad((W * noise).sum(), W), noise], {"W": np.ones(3)}, seed=2)
    )


# -- in compiled programs -------------------------------------------------------------------------
def schedules(schedule: Schedule) -> list[Schedule]:
    inner = [s.inner for s in schedule.stages if isinstance(s, FoldStage)]
    return [schedule, *(found for one in inner for found in schedules(one))]


def drawn_and_stored(f) -> tuple[int, int]:
    found = schedules(f.stages.schedule)
    drawn = sum(is_draw(n) for s in found for n in s.graph.nodes)
    return drawn, sum(is_draw(n) for s in found for n in s.stored)


def test_masks_are_drawn_again_and_not_stored() -> None:
    B = sg.dim("B")
    x, y = sg.input("x", (B, 5)), sg.input("y", (B,), dtype="int32")
    W = [sg.parameter(f"W{k}", s) for k, s in enumerate([(5, 64), (64, 64), (64, 3)])]
    h = sg.dropout(sg.relu(x @ W[0]), 0.4)
    h = sg.dropout(sg.tanh(h @ W[1]), 0.3)
    loss = sg.cross_entropy(h @ W[2], y).mean()
    outputs = [loss, *sg.grad(loss, W)]
    f = sg.compile(outputs, seed=3, training=True)
    assert drawn_and_stored(f) == (4, 0)  # places and numbers of two masks
    wide = [lifetime for lifetime in f.stages.plan.lifetimes if lifetime[0].shape[-1:] == (64,)]
    assert not any(operand.dtype.kind in "bi" for operand, *_ in wide)
    plain = sg.compile(outputs)
    assert drawn_and_stored(plain) == (0, 0)
    values = {"x": RNG.normal(size=(7, 5)), "y": np.array([0, 1, 2, 0, 1, 2, 0])}
    values |= {w.name: RNG.normal(size=w.shape) for w in W}
    for step in range(2):
        expected = sg.evaluate(outputs, values, seed=3, step=step, training=True)
        for a, b in zip(f(**values), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_without_training_nothing_is_left_of_it() -> None:
    x = sg.input("x", (3, 5))
    f = sg.compile(sg.tanh(sg.dropout(x, 0.5)))
    assert "select" not in f.source and "uniform" not in f.source
    assert f.stages.rewritten.inputs == (x,)


def test_a_settled_condition_is_taken() -> None:
    x, y = sg.input("x", (3,)), sg.input("y", (5, 3))
    yes, no = Constant(np.True_), Constant(np.False_)
    assert sg.simplify(sg.where(yes, x, 2 * x)) is x
    assert sg.simplify(sg.where(no, 2 * x, x)) is x
    wide = sg.simplify(sg.where(yes, x, y))
    check(Graph.of([wide]))
    value = np.arange(3.0)
    np.testing.assert_array_equal(sg.evaluate(wide, {x: value, "B": 5}), np.tile(value, (5, 1)))


cases = Cases()


@cases.add
def draws(c) -> None:
    x = c.input(RNG.normal(size=(3, 5, 7)).astype(np.float32))
    n = c.dim()
    wide = c.input(np.zeros((4, 3), np.float32), n, 3)
    u = sg.random.uniform((3, 5, 7))
    c.out(u, u + x, (u * x).sum(axis=1), u.sum(), u.max(axis=2), sg.transpose(u), u[:, 1:4, ::-2])
    c.out(sg.random.uniform((n, 3), "float64") + wide.astype("float64"))
    c.out(sg.random.bernoulli(0.3, (3, 5)), sg.where(sg.random.bernoulli(0.5, (7,)), x, 0.0))
    c.out(sg.cumsum(sg.random.uniform((3, 5)), axis=1), sg.random.uniform((3, 5)).reshape((15,)))
    c.out(sg.random.uniform((5, 3)) @ sg.ones((3, 1)))
    c.out(sg.concatenate([sg.random.uniform((2, 3)), wide], axis=0))
    c.rtol = 1e-6


@pytest.mark.parametrize("name", list(cases.makers))
def test_interpreted(name: str) -> None:
    cases.interpret(name)


# -- recurrences ----------------------------------------------------------------------------------
def recurrence() -> tuple[list[Node], dict[str, np.ndarray]]:
    T, B = sg.dim("T"), sg.dim("B")
    xs, W = real("xs", T, B, 5), sg.parameter("W", (5, 5), dtype="float64")

    def cell(h: Node, x: Node) -> tuple[Node, Node]:
        h = sg.dropout(sg.tanh(h @ W + x), 0.4)
        return h, h * sg.random.uniform((B, 5), "float64")

    h, ys = sg.scan(cell, sg.zeros((B, 5), "float64"), xs)
    loss = sg.square(ys).sum() + h.sum()
    values = {"xs": RNG.normal(size=(7, 3, 5)), "W": 0.3 * RNG.normal(size=(5, 5))}
    return [loss, xs, W], values


def test_masks_of_a_scan_are_those_of_its_reverse() -> None:
    (loss, xs, W), values = recurrence()
    run = {"seed": 4, "step": 2, "training": True}
    first = sg.grad(loss, [W, xs])
    both = sg.square(first[0]).sum() + sg.square(first[1]).sum()
    for f in (loss, both):
        for leaf, g in zip((W, xs), sg.grad(f, [W, xs]), strict=True):
            v = RNG.normal(size=values[leaf.name].shape)
            got = float((sg.evaluate(g, values, **run) * v).sum())
            np.testing.assert_allclose(
                got, difference(f, values, leaf.name, v, **run), rtol=2e-6, atol=1e-7
            )


def test_compiled_scans_draw_what_evaluate_draws() -> None:
    (loss, xs, W), values = recurrence()
    outputs = [loss, *sg.grad(loss, [W, xs])]
    f = sg.compile(outputs, seed=4, training=True)
    drawn, stored = drawn_and_stored(f)
    assert drawn and not stored
    for step in range(2):
        expected = sg.evaluate(outputs, values, seed=4, step=step, training=True)
        for a, b in zip(f(**values), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def drawing_scan(n: int, xs: Node, **options: bool) -> Node:
    return sg.scan(
        lambda c, x: (c, sg.random.uniform((n,))), sg.constant(0.0), xs, **options
    )[1]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_draws_like_one_large_array(reverse: bool) -> None:
    xs = sg.input("xs", (sg.dim("T"),))
    values = {"xs": np.zeros(7)}
    large = sg.evaluate(sg.random.uniform((7, 5)), seed=6)
    steps = drawing_scan(5, xs, reverse=reverse)
    np.testing.assert_array_equal(sg.evaluate(steps, values, seed=6), large)
    np.testing.assert_array_equal(sg.compile(steps, seed=6)(**values), large)


def test_nested_scans_draw_like_one_large_array() -> None:
    xs = sg.input("xs", (sg.dim("T"), sg.dim("S")))
    _, steps = sg.scan(lambda c, x: (c, drawing_scan(5, x)), sg.constant(0.0), xs)
    values = {"xs": np.zeros((7, 3))}
    large = sg.evaluate(sg.random.uniform((7, 3, 5)), seed=6)
    np.testing.assert_array_equal(sg.evaluate(steps, values, seed=6), large)
    np.testing.assert_array_equal(sg.compile(steps, seed=6)(**values), large)


def test_what_is_drawn_outside_stays_through_a_scan() -> None:
    xs = sg.input("xs", (7, 40))
    mask = sg.random.bernoulli(0.5, (40,))
    _, ys = sg.scan(lambda c, x: (c, sg.where(mask, x, 0.0)), sg.constant(0.0), xs)
    values = {"xs": np.ones((7, 40))}
    found = sg.evaluate(ys, values)
    assert (found == found[0]).all() and 0 < found[0].sum() < 40
    np.testing.assert_array_equal(sg.compile(ys)(**values), found)


# -- training -------------------------------------------------------------------------------------
def trainer(seed: int = 3) -> tuple[sg.Trainer, dict[str, np.ndarray]]:
    B = sg.dim("B")
    x, y = sg.input("x", (B, 5)), sg.input("y", (B,), dtype="int32")
    W1, W2 = sg.parameter("W1", (5, 32)), sg.parameter("W2", (32, 3))
    loss = sg.cross_entropy(sg.dropout(sg.relu(x @ W1), 0.5) @ W2, y)
    rng = np.random.default_rng(1)
    data = {"x": rng.normal(size=(70, 5)), "y": rng.integers(0, 3, 70)}
    return sg.Trainer(loss, optimizer=sg.optim.sgd(0.1), seed=seed), data


def test_every_training_step_draws_anew_and_as_evaluate_says() -> None:
    t, data = trainer()
    loss, W1 = t.objective.outputs["loss"], t.objective.trained[0]
    batch = {k: v[:35] for k, v in data.items()}
    for step in range(3):
        values = {**batch, **t.parameters}
        gradient, value = sg.evaluate(
            [sg.grad(loss, W1), loss], values, seed=3, step=step, training=True
        )
        history = t.fit(batch, epochs=1, batch_size=35, shuffle=False)
        np.testing.assert_allclose(history.loss[0], value, rtol=1e-5)
        moved = t.parameters["W1"] - values["W1"]
        np.testing.assert_allclose(moved, -0.1 * gradient, rtol=1e-3, atol=1e-6)


def test_evaluation_and_prediction_drop_nothing() -> None:
    t, data = trainer()
    loss = t.objective.outputs["loss"]
    expected = sg.evaluate(loss, {**data, **t.parameters})
    np.testing.assert_allclose(t.evaluate(data)["loss"], expected, rtol=1e-5)
    x = next(x for x in sg.inputs(loss) if x.name == "x")
    np.testing.assert_array_equal(
        t.predict(sg.dropout(x, 0.9), {"x": data["x"]}), data["x"].astype(np.float32)
    )


def test_training_with_dropout_repeats_and_resumes_bit_for_bit(tmp_path) -> None:
    runs = [trainer() for _ in range(2)]
    for t, data in runs:
        t.fit(data, epochs=4, batch_size=16)
    (one, data), (two, _) = runs
    assert one.history.loss == two.history.loss
    halves, _ = trainer()
    halves.fit(data, epochs=2, batch_size=16)
    halves.save(tmp_path / "half.safetensors")
    fresh, _ = trainer()
    loaded = sg.Trainer.load(tmp_path / "half.safetensors", fresh.objective.outputs["loss"])
    loaded.fit(data, epochs=2, batch_size=16)
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], value)
    other, _ = trainer(seed=4)
    other.fit(data, epochs=4, batch_size=16)
    assert other.history.loss != one.history.loss


# -- told -----------------------------------------------------------------------------------------
def test_text_latex_and_pictures() -> None:
    x = sg.input("x", (3,))
    y = sg.dropout(sg.dropout(x, 0.5), 0.25)
    assert r"\operatorname{uniform}" in sg.latex(y)
    assert "uniform_float32" in str(y) and "random'" in str(y)
    picture = sg.draw(y)
    labels = [box.label for box in picture.boxes]
    assert labels.count("uniform") == 2 and "x" in labels
    assert not {"seed", "random", "optim.step", "training"} & set(labels)
