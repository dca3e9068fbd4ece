"""What `draw` puts into a picture: boxes, halves, layers, residuals, folding."""

from __future__ import annotations

import itertools
import re
import time

import numpy as np
import pytest

from symgrad.calculus.vjp import grad
from symgrad.diagram.drawing import draw
from symgrad.diagram.folding import CAP, COLUMNS
from symgrad.diagram.formulas import formula_of, number_text, shape_text
from symgrad.diagram.joint import joint
from symgrad.diagram.layers import structure_of
from symgrad.diagram.records import Box, Diagram
from symgrad.graph import functions as fn
from symgrad.graph.contractions import einsum
from symgrad.graph.dims import dim
from symgrad.graph.elementwise import exp, sin, tanh
from symgrad.graph.errors import GradError, SymgradError
from symgrad.graph.functions import AXIS, P
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input, parameter
from symgrad.graph.losses import cross_entropy
from symgrad.graph.nodes import Input, Node, map_node
from symgrad.graph.traversal import toposort

B = dim("B")


def network(sizes: tuple[int, ...], prefix: str = "") -> tuple[Node, list[Input]]:
    x = input(f"{prefix}x", (B, sizes[0]))
    y = input(f"{prefix}y", (B,), dtype="int32")
    hidden: Node = x
    leaves = []
    for k, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        weight = parameter(f"{prefix}W{k}", (before, after))
        bias = parameter(f"{prefix}b{k}", (after,))
        leaves += [weight, bias]
        hidden = hidden @ weight + bias
        if k < len(sizes) - 1:
            hidden = tanh(hidden)
    return cross_entropy(hidden, y).mean(), leaves


def box_of(diagram: Diagram, label: str) -> Box:
    return next(box for box in diagram.boxes if box.label == label)


def home(diagram: Diagram, box: Box) -> str:
    return next((c.label for c in diagram.clusters if box.id in c.boxes), "")


# -- forward -----------------------------------------------------------------------------------
def test_forward_picture_has_leaves_operations_and_layers() -> None:
    loss, _ = network((7, 5, 3))
    diagram = draw(loss)
    assert [c.label for c in diagram.clusters] == ["layer 1 · 7 → 5", "layer 2 · 5 → 3", "loss"]
    assert {box.half for box in diagram.boxes} == {"forward"}
    kinds = {box.label: box.kind for box in diagram.boxes}
    assert kinds["x"] == kinds["y"] == "input"
    assert kinds["W1"] == kinds["b2"] == "parameter"
    assert kinds["x·W1"] == kinds["tanh"] == "operation"
    assert home(diagram, box_of(diagram, "W1")) == "layer 1 · 7 → 5"
    assert home(diagram, box_of(diagram, "tanh")) == "layer 1 · 7 → 5"
    assert home(diagram, box_of(diagram, "+ b2")) == "layer 2 · 5 → 3"
    assert home(diagram, box_of(diagram, "y")) == "loss"
    assert home(diagram, box_of(diagram, "x")) == ""
    assert box_of(diagram, "x·W1").detail == "bi,ij→bj"


def test_edges_bear_shapes() -> None:
    loss, _ = network((7, 5, 3))
    diagram = draw(loss)
    product, added = box_of(diagram, "x·W1"), box_of(diagram, "+ b1")
    assert [e.label for e in diagram.edges if (e.tail, e.head) == (product.id, added.id)] == ["B×5"]


def test_every_node_is_drawn_except_literals() -> None:
    loss, _ = network((7, 5, 3))
    diagram = draw(loss, level="nodes")
    drawn = [n for n in toposort([loss]) if type(n).__name__ != "Constant"]
    assert len(diagram.boxes) == len(drawn)


def test_scalar_constants_stand_in_the_formula() -> None:
    x = input("x", (3,))
    labels = [box.label for box in draw(exp(x) * 0.5).boxes]
    assert labels == ["x", "exp(x)", "× 0.5"]


def test_operands_are_told_apart_by_letters_on_the_edges() -> None:
    x = input("x", (3,))
    diagram = draw(exp(x) - sin(x))
    box = box_of(diagram, "a − b")
    letters = {e.tail: e.letter for e in diagram.edges if e.head == box.id}
    assert letters == {
        box_of(diagram, "exp(x)").id: "a",
        box_of(diagram, "sin(x)").id: "b",
    }


def test_expressions_come_in_many_forms() -> None:
    x = input("x", (3,))
    a, b = exp(x), sin(x)
    assert len(draw([a, b]).boxes) == 3
    assert len(draw(Graph.of([a, b])).boxes) == 3
    assert {"first", "second"} <= {box.label for box in draw({"first": a, "second": b}).boxes}


def test_layer_without_loss_ends_in_its_own_activation() -> None:
    x, w = input("x", (3, 5)), parameter("w", (5, 7))
    diagram = draw(tanh(x @ w))
    assert [c.label for c in diagram.clusters] == ["layer 1 · 5 → 7"]


def test_residual_connection_stays_in_its_layer() -> None:
    x = input("x", (3, 5))
    first, second = parameter("first", (5, 5)), parameter("second", (5, 5))
    hidden = tanh(x @ first)
    diagram = draw((hidden + tanh(hidden @ second)).sum())
    assert home(diagram, box_of(diagram, "+")) == "layer 2 · 5 → 5"
    assert home(diagram, box_of(diagram, "a·second")) == "layer 2 · 5 → 5"


def test_target_belongs_to_the_loss() -> None:
    x, y, w = input("x", (3, 5)), input("y", (3, 7)), parameter("w", (5, 7))
    diagram = draw(((x @ w - y) ** 2).mean())
    assert home(diagram, box_of(diagram, "a − y")) == "loss"
    assert home(diagram, box_of(diagram, "y")) == "loss"


def test_unrolled_recurrence_has_a_layer_per_step() -> None:
    w, u = parameter("w", (5, 5)), parameter("u", (3, 5))
    hidden: Node = input("h", (2, 5))
    for k in range(4):
        hidden = tanh(hidden @ w + input(f"x{k}", (2, 3)) @ u)
    diagram = draw((hidden * hidden).sum(), wrt=[w, u])
    assert [c.label for c in diagram.clusters] == [
        "layer 1",
        "layer 2",
        "layer 3",
        "layer 4",
        "loss",
    ]
    for k in range(4):
        assert home(diagram, box_of(diagram, f"x{k}·u")) == f"layer {k + 1}"


def test_transposed_parameter_joins_its_users_layer() -> None:
    x, w = input("x", (3, 5)), parameter("w", (7, 5))
    loss = tanh(x @ w.T).sum()
    structure = structure_of([loss])
    layers = {n: structure.layer[n] for n in structure.nodes}
    assert layers[w] == 1
    assert all(number in (0, 1, 2) for number in layers.values())


# -- backward ----------------------------------------------------------------------------------
def test_backward_half_joins_the_layers_of_its_primals() -> None:
    loss, leaves = network((7, 5, 3))
    diagram = draw(loss, wrt=leaves)
    assert {box.half for box in diagram.boxes} == {"forward", "backward"}
    for name, layer in [("W1", "layer 1"), ("b1", "layer 1"), ("W2", "layer 2"), ("b2", "layer 2")]:
        box = box_of(diagram, f"∂L/∂{name}")
        assert (box.kind, box.half) == ("result", "backward")
        assert home(diagram, box).startswith(layer)
    assert home(diagram, box_of(diagram, "a (1 − b²)")).startswith("layer 1")
    assert box_of(diagram, "L").half == "forward"


def test_residual_edges_cross_from_forward_to_backward() -> None:
    loss, leaves = network((7, 5, 3))
    diagram = draw(loss, wrt=leaves)
    half = {box.id: box.half for box in diagram.boxes}
    for edge in diagram.edges:
        crosses = half[edge.tail] == "forward" and half[edge.head] == "backward"
        assert (edge.kind == "residual") == crosses
    residuals = {(e.tail, e.head) for e in diagram.edges if e.kind == "residual"}
    act = box_of(diagram, "tanh").id
    assert (act, box_of(diagram, "a (1 − b²)").id) in residuals
    assert (act, box_of(diagram, "∂L/∂W2").id) in residuals
    assert (box_of(diagram, "x").id, box_of(diagram, "∂L/∂W1").id) in residuals
    assert "style=dashed" in diagram.dot


def test_halves_and_residuals_have_three_colors() -> None:
    loss, leaves = network((7, 5, 3))
    dot = draw(loss, wrt=leaves).dot
    assert all(color in dot for color in ("#0072B2", "#D55E00", "#009E73"))


def test_gradient_that_is_a_forward_value_gets_its_own_box() -> None:
    x, w = input("x", (3,)), parameter("w", (3,))
    diagram = draw((x * w).sum(), wrt=w)
    box = box_of(diagram, "∂L/∂w")
    assert (box.kind, box.half) == ("result", "backward")
    assert [e.kind for e in diagram.edges if e.head == box.id] == ["residual"]
    assert box_of(diagram, "x").kind == "input"


def test_gradient_that_is_the_loss_itself() -> None:
    x = parameter("x", ())
    diagram = draw(exp(x), wrt=x)
    assert {box.label for box in diagram.boxes} == {"x", "L", "∂L/∂x"}


def test_gradient_that_is_a_number() -> None:
    x = parameter("x", ())
    assert box_of(draw(x * 3.0, wrt=x), "∂L/∂x").detail == "= 3"


def test_one_gradient_for_two_leaves_names_both() -> None:
    a, b = parameter("a", (3,)), parameter("b", (3,))
    diagram = draw(exp(a + b).sum(), wrt=[a, b])
    assert any("∂L/∂a" in box.label and "∂L/∂b" in box.label for box in diagram.boxes)


def test_drawn_gradient_expression_shows_its_backward_half() -> None:
    x, w = input("x", (3, 5)), parameter("w", (5, 7))
    diagram = draw(grad(exp(tanh(x @ w)).sum(), w))
    assert {box.half for box in diagram.boxes} == {"forward", "backward"}


def test_wrt_needs_one_expression() -> None:
    x = input("x", (3,))
    with pytest.raises(GradError, match="one scalar expression, got 2"):
        draw([exp(x), sin(x)], wrt=x)


def test_unknown_level_and_unknown_things_are_refused() -> None:
    with pytest.raises(SymgradError, match=r'no level .poster.*"layers"'):
        draw(input("x", (3,)), level="poster")  # type: ignore[arg-type]
    for wrong in (3, [], ["x"], [1, 2]):
        with pytest.raises(SymgradError, match="expected an expression"):
            draw(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ['x"];evil', "two\nlines", "sep\u2028", "<b>", "a\\", "self"])
def test_names_of_leaves_never_become_ids(name: str) -> None:
    x, w = input(name, (3, 5)), parameter(name + "w", (5, 7))
    diagram = draw(tanh(x @ w).sum(), wrt=w)
    assert all(re.fullmatch(r"[ng]\d+", box.id) for box in diagram.boxes)
    assert diagram.svg.count('class="node"') == len(diagram.boxes)


def test_very_long_name_is_shortened() -> None:
    diagram = draw(exp(input("long" * 100, (3,))))
    assert max(len(box.label) for box in diagram.boxes) <= 40


# -- folding -----------------------------------------------------------------------------------
def test_repeated_layers_are_drawn_once_with_a_counter() -> None:
    loss, leaves = network((7, *(5,) * 30, 3))
    diagram = draw(loss, wrt=leaves)
    (repeated,) = [c for c in diagram.clusters if c.times > 1]
    assert (repeated.label, repeated.times) == ("layers 2–30 · 5 → 5", 29)
    assert len(diagram.boxes) <= CAP
    assert "×29" in diagram.dot
    assert "nodes drawn as" in diagram.caption


def test_layers_that_differ_are_not_merged() -> None:
    loss, leaves = network((7, 5, 6, 5, 6, 3))
    assert {c.times for c in draw(loss, wrt=leaves).clusters} == {1}


def test_level_layers_draws_one_box_per_layer_and_half() -> None:
    loss, leaves = network((7, 5, 6, 3))
    diagram = draw(loss, wrt=leaves, level="layers")
    assert diagram.clusters == ()
    labels = [box.label for box in diagram.boxes]
    assert "layer 2 · 5 → 6" in labels
    assert "∂ layer 2 · 5 → 6" in labels
    assert len(diagram.boxes) == 9


def test_level_nodes_never_folds() -> None:
    loss, leaves = network((7, *(5,) * 40, 3))
    diagram = draw(loss, wrt=leaves, level="nodes")
    assert len(diagram.boxes) > CAP
    assert {c.times for c in diagram.clusters} == {1}


def test_many_different_layers_share_boxes() -> None:
    loss, leaves = network(tuple(3 + k % 2 for k in range(120)))
    diagram = draw(loss, wrt=leaves)
    assert len(diagram.boxes) <= 2 * COLUMNS + 4
    assert any(re.match(r"layers \d+–\d+", box.label) for box in diagram.boxes)


def test_ten_thousand_nodes_are_an_overview(capsys) -> None:
    began = time.perf_counter()
    node: Node = input("x", (3,))
    first = node
    for k in range(5000):
        node = tanh(node) * (1.0 + k)
    loss = node.sum()
    diagram = draw(loss, wrt=first)
    svg = diagram.svg
    with capsys.disabled():
        seconds = time.perf_counter() - began
        print(f"\n10,000 nodes and their gradient, drawn in {seconds:.1f} s: {diagram}")
    assert len(diagram.boxes) <= 40
    assert svg.count('class="node"') == len(diagram.boxes)
    assert sum(box.nodes for box in diagram.boxes) > 14_990  # literals belong to no box


# -- flow --------------------------------------------------------------------------------------
class Measured:
    """Magnitudes as `gradient_flow` would give them."""

    verdict = "healthy: nothing to see"

    def __init__(self, magnitudes: dict[Node, float]) -> None:
        self.magnitudes = magnitudes


def test_flow_colors_the_backward_half_and_explains_the_scale() -> None:
    loss, leaves = network((7, 5, 3))
    forward, gradients = joint(loss, leaves)
    known = set(toposort([forward]))
    backward = [n for n in toposort(gradients) if n not in known]
    flow = Measured({node: 10.0 ** -(k % 6) for k, node in enumerate(backward)})
    diagram = draw(loss, wrt=leaves, flow=flow)
    fills = {box.fill for box in diagram.boxes if box.half == "backward"}
    assert len(fills) > 3
    assert len({e.width for e in diagram.edges if e.kind == "backward"}) > 3
    assert {box.fill for box in diagram.boxes if box.half == "forward"} <= {"#FFFFFF", "#F1F1F1"}
    assert diagram.legend.bar is not None
    assert [text for _, text in diagram.legend.bar.steps][-1] == "1.0e+00"
    assert "healthy" in diagram.caption
    assert "healthy" in diagram.dot


def test_flow_shows_zero_and_not_finite() -> None:
    x = input("x", (3,))
    inner = exp(x)
    outer = sin(inner)
    flow = Measured({x: 0.0, inner: float("nan"), outer: 2.0})
    diagram = draw(outer.sum(), flow=flow)
    assert [s.text for s in diagram.legend.swatches][-2:] == ["exactly zero", "not finite"]


def test_deep_network_with_flow_keeps_one_color_per_layer() -> None:
    loss, leaves = network((7, *(5,) * 60, 3))
    forward, gradients = joint(loss, leaves)
    known = set(toposort([forward]))
    backward = [n for n in toposort(gradients) if n not in known]
    flow = Measured({node: 10.0 ** (-k / 50) for k, node in enumerate(backward)})
    diagram = draw(loss, wrt=leaves, flow=flow)
    assert len(diagram.boxes) <= 2 * COLUMNS + 4
    assert not any("×" in box.label.partition("·")[0] for box in diagram.boxes)
    assert len({box.fill for box in diagram.boxes if box.half == "backward"}) > 8


# -- formulas ----------------------------------------------------------------------------------
def body(expr: object) -> str:
    a, b, c = (exp(input(name, (3, 5))) for name in "uvw")
    return formula_of(map_node(expr, (a, b, c))).label  # type: ignore[arg-type]


def test_bodies_read_as_mathematics() -> None:
    assert body(fn.exp(P[0] - P[1])) == "exp(a − b)"
    assert body(P[0] * (1 - P[1] ** 2)) == "a (1 − b²)"
    assert body(P[0] / P[1] - P[2]) == "a / b − c"
    assert body((P[0] - P[1]) / B) == "(a − b) / B"
    assert body(fn.select(fn.less(P[0], 0), P[1], 0)) == "b if [a < 0] else 0"
    assert body(fn.abs_(P[0]) + fn.sqrt(P[1])) == "|a| + √b"
    assert body(P[0] * AXIS[1]) == "j a"
    assert body(P[0] ** -2 * P[1]) == "b / a²"
    assert body(P[0] * 0.5) == "0.5 a"
    assert body(fn.maximum(P[0], P[1])) == "max(a, b)"
    assert body(-P[0] - P[1]) == "−a − b"


def test_contractions_read_as_products() -> None:
    a, b = exp(input("u", (3, 5))), exp(input("v", (3, 7)))
    w = parameter("w", (7, 5))
    assert formula_of(einsum("ki,kj->ij", a, b)).label == "aᵀ·b"
    assert formula_of(einsum("ij,kj->ik", a, w)).label == "a·wᵀ"
    assert formula_of(einsum("ij->j", a)).label == "sum"
    assert formula_of(einsum("ij->ji", a)).label == "transpose"
    assert formula_of(einsum("ij,ij->ij", a, a)).label in ("a×b", "×", "a×a")


def test_every_formula_is_short_text() -> None:
    loss, leaves = network((7, 5, 3))
    for node in toposort([loss, *grad(loss, leaves)]):
        formula = formula_of(node)
        assert formula.label
        assert "p0" not in formula.label


def test_numbers_and_shapes() -> None:
    assert number_text(np.float32(-0.25)) == "−0.25"
    assert number_text(1e6) == "1e+06"
    assert shape_text((B, B * 2 + 1)) == "B×(2·B + 1)"
    assert formula_of(constant(np.arange(3.0))).label == "const"


def test_an_update_is_drawn_behind_the_gradient_that_it_reads() -> None:
    loss, (weight, *_) = network((3, 5, 2))
    update = weight - 0.1 * grad(loss, weight)
    structure = structure_of([update], [])
    assert structure.half[update] == structure.half[update.args[1]] == "backward"
    assert structure.half[weight] == "forward"
    assert "W1" in draw(update).dot
