"""Derivations and costs: what a person is told about a derivative."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from symgrad.calculus.costs import cost
from symgrad.calculus.derivation import derive
from symgrad.calculus.formulas import mathml, plain
from symgrad.calculus.simplification import simplify
from symgrad.calculus.vjp import grad
from symgrad.graph import operators as ops
from symgrad.graph.dims import dim
from symgrad.graph.errors import GradError, ShapeError
from symgrad.graph.leaves import input, parameter
from symgrad.graph.traversal import toposort
from tests.calculus_judges import Case, every_case, real, total, weighed

V = ops.VERBS


def well_formed(html: str) -> None:
    ET.fromstring(f"<page>{html}</page>")


def small_network(name: str = "b1"):
    B = dim("B")
    x, y = input("x", (B, 5)), input("y", (B,), "int32")
    W1, b1, W2 = parameter("W1", (5, 7)), parameter(name, (7,)), parameter("W2", (7, 3))
    h = V["tanh"](x @ W1 + b1)
    return V["cross_entropy"](h @ W2, y).mean(), W1, b1, W2


# -- derivations ----------------------------------------------------------------------------------
def test_steps_of_a_network():
    loss, W1, _, W2 = small_network()
    d = derive(loss, W1)
    last = d.steps[-1]
    assert last.target.node is W1 and last.rule == "contraction"
    assert plain(last.formula) == "W1_ct = x.T v1_ct"
    assert last.einsum and [r.node.name for r in last.residuals] == ["x"]
    tanh = next(s for s in d.steps if s.rule == "chain rule, tanh")
    assert plain(tanh.formula) == "v2_ct = (1 - v3^2) · v3_ct"
    assert [r.symbol for r in tanh.residuals] == ["v_{3}"]  # in terms of its own output
    assert not any(s.target.node is W2 for s in d.steps)
    assert [s.number for s in d.steps] == list(range(1, len(d.steps) + 1))
    assert d.gradient[0] is simplify(grad(loss, W1))


def test_a_value_that_is_used_twice_collects():
    x = real("x")
    d = derive(x * V["sin"](x), x)
    shares = [s.share for s in d.steps if s.target.node is x]
    assert sorted(shares) == [(1, 2), (2, 2)]
    assert "+=" in str(d)


def test_what_is_held_constant_gets_no_step():
    loss, W1, _, _ = small_network()
    d = derive(loss, W1)
    assert "(held constant)" in str(d)
    assert not any(s.rule == "max" for s in d.steps)


@pytest.mark.parametrize("case", [c for _, c in every_case()], ids=[n for n, _ in every_case()])
def test_every_rule_can_be_told(case: Case):
    out, leaves = case.make()
    d = derive(weighed(out, 1), leaves)
    assert all(s.rule and s.why and s.formula for s in d.steps)
    assert str(d).isprintable() or "\n" in str(d)
    assert "Z_{9" not in d.latex() + str(d) and "Z9" not in str(d)
    well_formed(d._repr_html_())


EVIL = [
    'x"];evil', "__import__('os')", "a\nb\u2028c", "<script>alert(1)</script>", "\\end{x}}{",
    "&amp;",
]


@pytest.mark.parametrize("name", EVIL)
def test_names_are_escaped_everywhere(name):
    loss, _, b1, _ = small_network(name)
    html = derive(loss, b1)._repr_html_()
    well_formed(html)
    assert "<script" not in html and "http" not in html
    well_formed(mathml(derive(loss, b1).latex()))


def test_page_stands_alone():
    loss, W1, _, _ = small_network()
    html = derive(loss, W1)._repr_html_()
    assert "<math" in html and "src=" not in html and "@import" not in html
    for word in ("Forward", "Backward", "contraction", "test_calculus_told.py"):
        assert word in html


def test_derive_checks_as_grad_does():
    x = input("x", (3,))
    with pytest.raises(ShapeError, match="must be a scalar"):
        derive(x * x, x)
    with pytest.raises(GradError, match="got str"):
        derive(x.sum(), "x")


# -- formulas -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "formula",
    [
        r"\frac{a_{1}}{\sqrt{b^{2}}}", r"\sum_{b} {x}_{b i}\, y",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{cases} a & b \\ 0 & \mathrm{otherwise} \end{cases}", r"\left[a = b\right]",
        r"{{{", r"}}}", r"\left(", r"\frac{a}", r"\begin{aligned}", r"x_", "\\", r"\unknown{a}",
        "a < b & c",
        r"\left\lfloor \frac{a}{b} \right\rfloor", "{" * 500 + "a" + "}" * 500,
    ],
)
def test_any_formula_becomes_legal_markup(formula):
    well_formed(mathml(formula))
    assert isinstance(plain(formula), str)


# -- costs -----------------------------------------------------------------------------------------
def test_a_matrix_product():
    a, b = input("a", (3, 5)), input("b", (5, 7))
    c = cost(a @ b)
    assert (c.flops, c.depth, c.tree_size, c.nodes) == (2 * 3 * 5 * 7, 1, 3, 1)
    assert c.bytes == 4 * (15 + 35 + 21)
    assert c.largest == 4 * 21


def test_sums_and_maps():
    x = real("x", 3, 5)
    assert cost(x.sum()).flops == 15
    assert cost(V["tanh"](x) * x + x).flops == 45
    assert cost(V["max"](x, 1)).flops == 12
    assert cost(x).flops == cost(x).largest == cost(x).depth == 0


def test_symbolic_costs_become_numbers():
    B = dim("B")
    x, W = input("x", (B, 64)), input("W", (64, 32))
    c = cost(x @ W)
    assert c.flops == 4096 * B
    assert cost(x @ W, {B: 32}).flops == cost(x @ W, {"B": 32}).flops == 131072
    assert isinstance(cost(x @ W, {B: 32}).largest, int)
    with pytest.raises(ShapeError, match="integer >= 0"):
        cost(x, {B: -1})


def test_the_tree_of_a_derivative_explodes_and_the_graph_does_not():
    x = u = real("x")
    sizes = []
    for _ in range(60):
        u = u * V["sin"](u)
        sizes.append(cost(u).tree_size)
    c = cost(grad(total(u), x))
    assert sizes[0] == 4 and sizes[1] == 2 * 4 + 2 and c.tree_size > 10**18
    assert len(toposort([u])) == 121 and c.nodes < 600
    assert c.flops < 2000
