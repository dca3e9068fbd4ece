"""Gradient flow: measured magnitudes against NumPy, verdicts, and the pictures made of them."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest

from symgrad.graph.dims import dim
from symgrad.graph.elementwise import exp, log, tanh
from symgrad.graph.errors import DataError, SymgradError
from symgrad.graph.leaves import input, parameter
from symgrad.graph.losses import cross_entropy
from symgrad.graph.nodes import Input, Node
from symgrad.graph.traversal import toposort
from symgrad.insight.dense_tanh import dense_tanh_layers, mean_field_growth
from symgrad.insight.explosion import explosion_figure, measure_growth
from symgrad.insight.flow import EXPLODING, VANISHING, gradient_flow
from symgrad.insight.mean_field import growth
from symgrad.insight.plots import save_figure

B = dim("B")


def network(sizes: tuple[int, ...]) -> tuple[Node, list[Input], dict[str, np.ndarray]]:
    random = np.random.default_rng(7)
    x = input("x", (B, sizes[0]), dtype="float64")
    y = input("y", (B,), dtype="int32")
    values = {"x": random.standard_normal((4, sizes[0])), "y": np.arange(4) % sizes[-1]}
    hidden: Node = x
    leaves = []
    for k in range(1, len(sizes)):
        weight = parameter(f"W{k}", (sizes[k - 1], sizes[k]), dtype="float64")
        bias = parameter(f"b{k}", (sizes[k],), dtype="float64")
        leaves += [weight, bias]
        values[f"W{k}"] = 0.5 * random.standard_normal((sizes[k - 1], sizes[k]))
        values[f"b{k}"] = 0.1 * random.standard_normal(sizes[k])
        hidden = hidden @ weight + bias
        if k < len(sizes) - 1:
            hidden = tanh(hidden)
    return cross_entropy(hidden, y).mean(), leaves, values


def gradients_by_hand(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Backpropagation of the two-layer network in plain NumPy."""
    x, y = values["x"], values["y"]
    h = np.tanh(x @ values["W1"] + values["b1"])
    z = h @ values["W2"] + values["b2"]
    softmax = np.exp(z - z.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    z_ct = (softmax - np.eye(z.shape[1])[y]) / len(x)
    h_ct = z_ct @ values["W2"].T
    a_ct = h_ct * (1 - h * h)
    return {
        "W1": x.T @ a_ct,
        "b1": a_ct.sum(axis=0),
        "W2": h.T @ z_ct,
        "b2": z_ct.sum(axis=0),
        "tanh": h_ct,
        "+ b1": a_ct,
        "+ b2": z_ct,
        "x": a_ct @ values["W1"].T,
    }


def test_magnitudes_are_the_norms_that_numpy_finds() -> None:
    loss, leaves, values = network((7, 5, 3))
    flow = gradient_flow(loss, leaves, values)
    rows = {row.name: row for row in flow.nodes}
    for name, gradient in gradients_by_hand(values).items():
        row = rows[name]
        assert row.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
        assert row.rms == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=1e-10)
        assert row.largest == pytest.approx(np.abs(gradient).max(), rel=1e-10)
        assert row.shape == gradient.shape
    assert rows["x"].primal_norm == pytest.approx(np.linalg.norm(values["x"]))
    assert rows["W1"].kind == "parameter"


def test_layers_are_measured_at_their_outputs() -> None:
    loss, leaves, values = network((7, 5, 3))
    flow = gradient_flow(loss, leaves, values)
    first, second = flow.layers
    by_hand = {k: np.linalg.norm(v) for k, v in gradients_by_hand(values).items()}
    assert first.gradient_norm == pytest.approx(by_hand["tanh"])
    assert second.gradient_norm == pytest.approx(by_hand["+ b2"])
    assert first.growth == pytest.approx(by_hand["tanh"] / by_hand["+ b2"])
    assert second.growth is None
    assert flow.factor == pytest.approx(first.growth)
    assert first.chi_1 == pytest.approx((by_hand["x"] / by_hand["tanh"]) ** 2)
    assert flow.table == (*flow.layers, *flow.nodes)


def test_backward_nodes_of_the_picture_have_magnitudes() -> None:
    loss, leaves, values = network((7, 5, 3))
    flow = gradient_flow(loss, leaves, values)
    diagram = flow.draw()
    results = {box.label: box for box in diagram.boxes if box.kind == "result"}
    norm = np.linalg.norm(gradients_by_hand(values)["W1"])
    assert f"{norm:.4g}" in results["∂L/∂W1"].tooltip
    assert diagram.legend.bar is not None
    assert all(box.fill is not None for box in diagram.boxes if box.half == "backward")
    assert diagram.svg.startswith("<svg")


def test_total_gradient_counts_every_path() -> None:
    x = parameter("x", (3,), dtype="float64")
    inner = exp(x)
    flow = gradient_flow((inner * inner).sum(), x, {"x": np.array([0.1, 0.2, 0.3])})
    row = next(r for r in flow.nodes if r.name == "exp(x)")
    assert row.gradient_norm == pytest.approx(np.linalg.norm(2 * np.exp([0.1, 0.2, 0.3])))


def test_fraction_of_zeros() -> None:
    x = input("x", (4,), dtype="float64")
    w = parameter("w", (4,), dtype="float64")
    values = {"x": np.array([0.0, 2.0, 0.0, 3.0]), "w": np.ones(4)}
    flow = gradient_flow((x * w).sum(), w, values)
    assert next(r for r in flow.nodes if r.name == "w").zero_fraction == 0.5


# -- verdicts ----------------------------------------------------------------------------------
def chain(depth: int, scale: float) -> tuple[Node, list[Input], dict[str, np.ndarray]]:
    x = input("x", (2, 4), dtype="float64")
    hidden: Node = x
    leaves, values = [], {"x": np.full((2, 4), 1e-9)}
    for k in range(depth):
        weight = parameter(f"W{k}", (4, 4), dtype="float64")
        values[f"W{k}"] = scale * np.eye(4)
        hidden = tanh(hidden @ weight)
        leaves.append(weight)
    return hidden.sum(), leaves, values


@pytest.mark.parametrize(
    ("scale", "state"), [(0.1, "vanishing"), (1.0, "healthy"), (4.0, "exploding")]
)
def test_verdicts(scale: float, state: str) -> None:
    loss, leaves, values = chain(12, scale)
    if scale > 1:
        values["x"] = np.full((2, 4), 1e-12)
    flow = gradient_flow(loss, leaves, values)
    assert flow.state == state
    assert flow.verdict.startswith(f"{state}: back over 11 layers")
    assert flow.factor == pytest.approx(scale**11, rel=1e-3)
    others = {"vanishing", "healthy", "exploding"} - {state}
    assert not any(word in flow.verdict for word in others)


def test_warning_levels() -> None:
    assert (VANISHING, EXPLODING) == (1e-6, 1e6)


def test_healthy_verdict_says_where_the_trend_leads() -> None:
    loss, leaves, values = chain(12, 0.8)
    flow = gradient_flow(loss, leaves, values)
    assert flow.state == "healthy"
    assert "1e-06 after 62 layers" in flow.verdict


def test_zero_gradient_is_vanishing() -> None:
    loss, leaves, values = chain(3, 0.0)
    flow = gradient_flow(loss, leaves, values)
    assert flow.state == "vanishing"
    assert "exactly zero" in flow.verdict


def test_not_finite_is_exploding_and_named() -> None:
    x = parameter("x", (3,), dtype="float64")
    flow = gradient_flow(log(x).sum(), x, {"x": np.array([1.0, -1.0, 2.0])})
    assert flow.state == "exploding"
    assert "the value of log" in flow.verdict
    assert math.isnan(flow.factor)
    assert "not finite" in flow.draw().dot


# -- text and figures ----------------------------------------------------------------------------
def test_reads_as_a_table() -> None:
    loss, leaves, values = network((7, 5, 3))
    flow = gradient_flow(loss, leaves, values)
    text = str(flow)
    assert text.startswith("healthy: ")
    assert "layer 1 · 7 → 5" in text
    assert "theory" in text
    page = flow._repr_html_()
    assert page.count("<table>") == 2
    assert "layer 2 · 5 → 3" in page


def test_names_are_escaped_in_tables() -> None:
    x = parameter("<script>\n", (3,), dtype="float64")
    flow = gradient_flow(exp(x).sum(), x, {"<script>\n": np.ones(3)})
    assert "<script>" not in flow._repr_html_()
    assert "<script>\\n" in str(flow)


@pytest.mark.parametrize("sizes", [(7, 5, 3), (7, 5)])
def test_plot(tmp_path, sizes: tuple[int, ...]) -> None:
    loss, leaves, values = network(sizes)
    figure = gradient_flow(loss, leaves, values).plot()
    assert figure.axes[0].get_yscale() == "log"
    path = tmp_path / "flow.svg"
    save_figure(figure, path)
    assert "<svg" in path.read_text(encoding="utf-8")
    with pytest.raises(DataError, match="form"):
        save_figure(figure, tmp_path / "flow.gif")


def test_plot_without_matplotlib_names_the_extra(monkeypatch) -> None:
    loss, leaves, values = network((7, 5, 3))
    flow = gradient_flow(loss, leaves, values)
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SymgradError, match=r"symgrad\[demo\]"):
        flow.plot()


# -- theory --------------------------------------------------------------------------------------
def test_dense_tanh_layers_are_found() -> None:
    loss, _, values = network((7, 5, 6, 3))
    layers = dense_tanh_layers(toposort([loss]))
    assert [layer.weight.name for layer in layers] == ["W1", "W2"]
    assert [layer.bias.name for layer in layers if layer.bias is not None] == ["b1", "b2"]
    first = layers[0]
    by_node = {
        first.source: values["x"], first.weight: values["W1"], first.bias: values["b1"],
    }  # fmt: skip
    sigma_w2 = 7 * np.mean(values["W1"] ** 2)
    q = sigma_w2 * np.mean(values["x"] ** 2) + np.mean(values["b1"] ** 2)
    assert mean_field_growth(first, by_node) == pytest.approx(growth(q, sigma_w2))


def test_transposed_weight_has_its_fan_in_last() -> None:
    x, w = input("x", (3, 5)), parameter("w", (7, 5))
    (layer,) = dense_tanh_layers(toposort([tanh(x @ w.T)]))
    assert layer.transposed
    assert layer.source is x
    assert layer.weight is w


def test_measured_chi_follows_theory_in_a_wide_network() -> None:
    random = np.random.default_rng(3)
    width, depth = 300, 8
    x = input("x", (1, width), dtype="float64")
    c = input("c", (1, width), dtype="float64")
    values = {
        "x": np.tanh(random.standard_normal((1, width))),
        "c": random.standard_normal((1, width)),
    }
    hidden: Node = x
    leaves = []
    for k in range(depth):
        leaves.append(parameter(f"W{k}", (width, width), dtype="float64"))
        values[f"W{k}"] = np.sqrt(1.5 / width) * random.standard_normal((width, width))
        hidden = tanh(hidden @ leaves[-1])
    flow = gradient_flow((hidden * c).sum(), leaves, values)
    ratios = [row.chi_1 / row.chi_1_theory for row in flow.layers if row.chi_1 is not None]
    assert len(ratios) == depth
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("sigma_w2", [1.3, 1.76, 2.5])
def test_growth_is_within_five_percent_of_chi_1(sigma_w2: float) -> None:
    result = measure_growth(sigma_w2, 0.05, depth=30, width=200, seeds=10)
    assert result.squared_norms.shape == (10, 31)
    assert result.measured == pytest.approx(result.theory, rel=0.05)
    states = {1.3: "vanishing", 1.76: "critical", 2.5: "exploding"}
    assert result.state == states[sigma_w2]


def test_growth_is_reproducible() -> None:
    first, second = (measure_growth(2.5, depth=3, width=20, seeds=2) for _ in range(2))
    assert np.array_equal(first.squared_norms, second.squared_norms)


def test_explosion_figure(tmp_path) -> None:
    path = tmp_path / "explosion.svg"
    measured = explosion_figure(path, quick=True)
    assert [m.state for m in measured] == ["vanishing", "critical", "exploding"]
    text = path.read_text(encoding="utf-8")
    assert "vanishing" in text
    assert "exploding" in text
