"""Cotangents and tangents against differences and against each other, always at order 2."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import sympy

from symgrad.calculus import jvp as jvp_module, vjp as vjp_module
from symgrad.calculus.jvp import jvp
from symgrad.calculus.unfolding import is_heavy
from symgrad.calculus.vjp import grad, value_and_grad, vjp
from symgrad.graph import functions as fn, operators as ops
from symgrad.graph.checker import check
from symgrad.graph.dims import dim
from symgrad.graph.dtypes import FLOAT64
from symgrad.graph.errors import GradError, ShapeError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import NODES, Fold, Proj
from symgrad.graph.functions import AXIS, FUNCTIONS, P
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import Constant, Einsum, Input, Map, Reduce
from symgrad.graph.traversal import toposort
from tests.calculus_judges import (
    CASES,
    FUNCTION_NAMES,
    Case,
    adjoint,
    against_differences,
    all_judges,
    applied,
    every_case,
    real,
    sample,
    total,
    weighed,
)

V = ops.VERBS


# -- every node class, every scalar function ------------------------------------------------------
@pytest.mark.parametrize("cls", NODES, ids=lambda c: c.__name__)
def test_every_node_class_has_cases_and_rules(cls):
    assert CASES.get(cls), f"add cases for {cls.__name__} in tests/calculus_judges.py"
    if cls not in (Input, Constant, Fold, Proj):  # Folds have theirs in recurrences.py
        assert cls in vjp_module.RULES
        assert cls in jvp_module.RULES


@pytest.mark.parametrize("case", [c for _, c in every_case()], ids=[n for n, _ in every_case()])
def test_node(case: Case):
    out, leaves = case.make()
    all_judges(out, leaves, sample(leaves, 1, case.low, case.high))


@pytest.mark.parametrize("case", [c for _, c in every_case()], ids=[n for n, _ in every_case()])
def test_gradients_are_legal_graphs(case: Case):
    out, leaves = case.make()
    first = grad(weighed(out, 1), leaves)
    check(Graph.of(first))
    check(Graph.of(grad(weighed(first[0], 2), leaves)))
    check(Graph.of(vjp(out, leaves, [real("ct", 2, *out.shape)])))
    tangents = [real(f"t{k}", 2, *x.shape) for k, x in enumerate(leaves)]
    check(Graph.of([jvp(out, leaves, tangents)[1]]))


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_function(name):
    out, leaves = applied(FUNCTIONS[name])
    values = sample(leaves, 2, 0.2, 0.95)
    if name == "stop_gradient":
        assert not evaluate(grad(total(out), leaves[0]), values).any()
        return
    if name == "cast_float32":  # differences are lost in its rounding
        np.testing.assert_array_equal(evaluate(grad(total(out), leaves[0]), values), 1.0)
        return
    against_differences(weighed(out, 3), leaves, values)
    slope = grad(weighed(out, 4), leaves[0])
    for batch in ((), (2,)):
        adjoint(out, leaves, values, batch)
        adjoint(slope, leaves, values, batch)


# -- shapes ---------------------------------------------------------------------------------------
def test_broadcasting_of_three_shapes():
    a, b, c = real("a", 3, 1, 7), real("b", 5, 1), real("c", 7)
    out = V["sin"](a * b + c)
    assert out.shape == (3, 5, 7)
    all_judges(out, [a, b, c], sample([a, b, c]))


def test_an_axis_of_one_that_is_not_stretched():
    a, b = real("a", 1, 5), real("b", 1, 1)
    all_judges(a * b * a, [a, b], sample([a, b]))


def test_size_zero():
    a, b = real("a", 0, 5), real("b", 5)
    loss = total(V["tanh"](a * b)) + total(V["prod"](a, axis=0))
    ga, gb = evaluate(list(grad(loss, (a, b))), {a: np.zeros((0, 5)), b: np.ones(5)})
    assert ga.shape == (0, 5)
    np.testing.assert_array_equal(gb, np.zeros(5))


def test_symbolic_sizes():
    B = dim("B")
    x, w = input("x", (B, 3), "float64"), real("w", 3)
    g = grad(V["tanh"](x @ w).mean(), w)
    assert g.shape == (3,)
    rng = np.random.default_rng(0)
    for n in (1, 4):
        X, W = rng.normal(size=(n, 3)), rng.normal(size=3)
        expected = ((1 - np.tanh(X @ W) ** 2)[:, None] * X).mean(axis=0)
        np.testing.assert_allclose(evaluate(g, {x: X, w: W}), expected, rtol=1e-12)


def test_mixed_float_widths():
    a, b = input("a", (3,), "float32"), real("b", 3)
    ga, gb = grad(total(V["astype"](a, "float64") * b * b), (a, b))
    assert (ga.dtype, gb.dtype) == (np.float32, np.float64)
    values = {a: np.array([1, 2, 3], np.float32), b: np.array([0.5, 1.0, -2.0])}
    np.testing.assert_array_equal(evaluate(ga, values), np.array([0.25, 1, 4], np.float32))


# -- what grad means ------------------------------------------------------------------------------
def test_one_node_gives_one_expression_and_a_sequence_a_tuple():
    x, y = real("x", 3), real("y", 3)
    loss, g = value_and_grad(total(x * y), x)
    assert loss.shape == () and g is y
    assert grad(loss, [x, y])[1] is x
    assert grad(loss, ()) == ()


def test_any_node_may_stand_in_wrt():
    x = real("x", 3)
    h = V["tanh"](x)
    loss = total(h * h)
    gx, gh, gloss = grad(loss, (x, h, loss))
    values = {x: np.array([0.1, -0.4, 2.0])}
    t = np.tanh(values[x])
    np.testing.assert_allclose(evaluate(gh, values), 2 * t, rtol=1e-14)
    np.testing.assert_allclose(evaluate(gx, values), 2 * t * (1 - t**2), rtol=1e-14)
    assert evaluate(gloss, values) == 1


def test_what_is_not_reached_has_zeros():
    x, y = real("x", 3), input("y", (dim("B"), 2), "float64")
    g = grad(total(x), y)
    assert g.shape == y.shape
    assert not evaluate(g + y - y, {y: np.ones((4, 2))}).any()
    assert not evaluate(grad(total(V["floor"](x)), x), {x: np.ones(3)}).any()


def test_nothing_is_built_beside_the_path():
    x, y = real("x", 3), real("y", 3)
    g = grad(total(V["exp"](V["sin"](y)) * x), x)
    assert g is V["exp"](V["sin"](y))


def test_backward_nodes_know_their_primal():
    x = real("x", 3)
    h = V["tanh"](x * x)
    g = grad(total(h), x)
    born = [n for n in toposort([g]) if n.origin == "vjp" and isinstance(n, Map)]
    assert born and all(n.backward_of is not None for n in born)
    assert any(n.backward_of is h for n in born)
    assert all(n.where == n.backward_of.where for n in born)


def test_shared_literals_keep_no_graph_alive():
    x = real("x", 3)
    h = V["tanh"](x * 3.0)
    gone = weakref.ref(h)
    for e in (grad(total(h), x), grad(total(h), real("y", 2)), grad(total(2.0 * h + h), x)):
        assert all(n.backward_of is None for n in toposort([e]) if isinstance(n, Constant))
    del h, e
    gc.collect()
    assert gone() is None


def test_disjoint_parts_are_joined_and_not_added():
    x = real("x", 100)
    g = grad(V["sin"](V["stack"]([x[k] * float(k) for k in range(100)])).sum(), x)
    assert sum(isinstance(n, Map) and n.shape == (100,) for n in toposort([g])) < 10
    values = {x: np.linspace(-1, 1, 100)}
    k = np.arange(100.0)
    np.testing.assert_allclose(evaluate(g, values), k * np.cos(k * values[x]), rtol=1e-12)


def test_equal_contributions_are_counted():
    x = real("x", 3)
    assert grad(total(x * x), x).body == 2 * FUNCTIONS["exp"].derivatives[0].func("p0")


def test_ties_share():
    x = real("x", 2, 3)
    values = {x: np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])}
    third = 1 / 3
    expected = [[0, 0.5, 0.5], [third, third, third]]
    np.testing.assert_allclose(evaluate(grad(total(V["max"](x, axis=1)), x), values), expected)
    y = real("y", 3)
    g = evaluate(grad(total(V["maximum"](x, y)), y), {**values, y: np.array([1.0, 0.0, 5.0])})
    np.testing.assert_allclose(g, [0.5, 0, 2.0])


@pytest.mark.parametrize("op", ["prod", "cumprod"])
def test_products_are_right_at_zeros_at_order_two(op):
    x = real("x", 3, 4)
    for zeros in ((), ((0, 1),), ((0, 1), (0, 3)), ((0, 0), (0, 1), (0, 2))):
        values = sample([x])
        for place in zeros:
            values[x][place] = 0.0
        against_differences(weighed(Reduce((x,), op, (1,)), 1), [x], values, rtol=1e-5)


# -- masks ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sqrt", "log", "rsqrt"])
def test_a_branch_that_is_not_taken_gives_zero_at_orders_one_and_two(name):
    x = real("x", 3)
    values = {x: np.array([0.0, 1.0, 4.0])}
    loss = total(V["where"](x > 0, V[name](x) * x, 0))
    first = grad(loss, x)
    second = grad(total(first), x)
    _, pushed = jvp(loss, x, np.ones(3))
    f1, f2, t = evaluate([first, second, pushed], values)
    assert f1[0] == 0 and f2[0] == 0
    assert np.isfinite(f1).all() and np.isfinite(f2).all() and np.isfinite(t)


def test_masks_that_meet_in_a_sum():
    x = real("x", 3)
    root = V["sqrt"](x)
    loss = total(V["where"](x > 0, root, 0) + V["where"](x > 2, root * x, 1))
    f1, f2 = evaluate(
        [grad(loss, x), grad(total(grad(loss, x)), x)], {x: np.array([0.0, 1.0, 4.0])}
    )
    np.testing.assert_allclose(f1, [0, 0.5, 3.25])
    assert f2[0] == 0 and np.isfinite(f2).all()


def test_masks_with_leading_axes():
    x, ct = real("x", 3), real("ct", 2, 3)
    out = V["where"](x > 0, V["sqrt"](x), 0)
    values = {x: np.array([0.0, 1.0, 4.0]), ct: np.ones((2, 3))}
    g = evaluate(vjp(out, x, total_scaled(ct))[0], values)
    np.testing.assert_allclose(g, [[0, 0.5, 0.25]] * 2)


def total_scaled(ct):
    """A cotangent made as a contraction, as those of Jacobians are."""
    return V["einsum"]("bi,ij->bj", ct, V["eye"](3, dtype="float64"))


def test_one_body_with_a_mask():
    x = real("x", 3)
    out = V["elementwise"](lambda t: sympy.Piecewise((sympy.sqrt(t), t > 0), (0, True)), x)
    g = evaluate(grad(total(out), x), {x: np.array([0.0, 1.0, 4.0])})
    np.testing.assert_allclose(g, [0, 0.5, 0.25])


# -- depth ----------------------------------------------------------------------------------------
def test_a_long_chain():
    x = u = real("x", 3)
    for _ in range(10_000):
        u = V["sin"](u) * 1.001
    g = grad(total(u), x)
    assert len(toposort([g])) < 60_000
    assert np.isfinite(evaluate(g, {x: np.array([0.1, 0.2, 0.3])})).all()


def test_sixty_nested_products_at_order_two():
    x = u = real("x")
    for _ in range(60):
        u = u * V["sin"](u)
    second = grad(grad(u, x), x)
    assert np.isfinite(evaluate(second, {x: np.asarray(1.3)}))
    assert len(toposort([second])) < 2_000


def long_body(u, v):
    for _ in range(5):
        u = u * sympy.sin(u) + v * sympy.cos(u)
    return sympy.Piecewise((u * sympy.exp(-v), u > v), (v, True))


def test_a_long_body_is_differentiated_one_operation_at_a_time():
    a, b = real("a", 3, 5), real("b", 3, 1)
    out = V["elementwise"](long_body, a, b)
    assert is_heavy(out)
    all_judges(out, [a, b], sample([a, b]))
    g = grad(total(out), a)
    born = [n for n in toposort([g]) if n.origin == "vjp"]
    assert born and all(n.backward_of in set(toposort([total(out)])) for n in born)
    assert len(born) < 120


def test_a_long_body_with_positions_dims_and_a_mask():
    B = dim("B")
    x = input("x", (B,), "float64")
    body = P[0] * AXIS[0] / B
    for _ in range(9):
        body = fn.sin(body) * 2 + P[0]
    out = Map((x,), fn.select(fn.less(0, P[0]), fn.sqrt(P[0]) * body, 0), (B,), FLOAT64)
    assert is_heavy(out)
    values = {x: np.array([0.0, 0.5, 1.5, 2.0])}
    g = evaluate(grad(total(out), x), values)
    h = 1e-6
    ends = [evaluate(out, {x: values[x] + s * h})[1:] for s in (1, -1)]
    assert g[0] == 0
    np.testing.assert_allclose(g[1:], (ends[0] - ends[1]) / (2 * h), rtol=1e-6)
    _, pushed = jvp(out, x, np.ones(4))
    np.testing.assert_allclose(evaluate(pushed, values), g, rtol=1e-12)


# -- leading axes ---------------------------------------------------------------------------------
def test_leading_axes_are_independent():
    a, w = real("a", 3, 5), real("w", 5)
    out = V["softmax"](a * w)
    ct = np.random.default_rng(0).normal(size=(2, 3, 5))
    values = sample([a, w])
    together = evaluate(list(vjp(out, (a, w), [constant(ct)])), values)
    for k in range(2):
        apart = evaluate(list(vjp(out, (a, w), [constant(ct[k])])), values)
        for t, one in zip(together, apart, strict=True):
            np.testing.assert_allclose(t[k], one, rtol=1e-12, atol=1e-14)


def test_several_outputs():
    x = real("x", 3)
    outs = (V["sin"](x), total(x * x))
    cts = (constant(np.array([1.0, 2.0, 3.0])), constant(0.5, "float64"))
    values = {x: np.array([0.3, -0.2, 1.0])}
    (g,) = vjp(outs, (x,), cts)
    np.testing.assert_allclose(
        evaluate(g, values), np.array([1, 2, 3]) * np.cos(values[x]) + values[x], rtol=1e-14
    )
    same, pushed = jvp(outs, (x,), (np.ones(3),))
    assert same[0] is outs[0] and pushed[0].shape == (3,) and pushed[1].shape == ()


# -- errors ---------------------------------------------------------------------------------------
def test_a_loss_that_is_no_scalar():
    x = input("x", (dim("B"), 3))
    with pytest.raises(ShapeError, match=r"shape \(B, 3\)[\s\S]*sum\(\) or mean\(\)"):
        grad(x * x, x)


def test_integers_have_no_gradient():
    x, k = input("x", (3,)), input("labels", (3,), "int32")
    with pytest.raises(GradError, match=r"wrt must be float, got int32[\s\S]*labels"):
        grad((x * 2).sum(), k)
    with pytest.raises(GradError, match="the loss must be float"):
        grad(k.sum(), x)


def test_names_are_no_nodes():
    x = input("x", (3,))
    with pytest.raises(GradError, match="got str"):
        grad(x.sum(), ["x"])


def test_cotangents_that_do_not_fit():
    x = input("x", (3, 5))
    with pytest.raises(ShapeError, match=r"\(3, 4\)[\s\S]*\(3, 5\)"):
        vjp(x * x, x, [input("c", (3, 4))])
    with pytest.raises(GradError, match="1 outputs, but 2 cotangents"):
        vjp([x], [x], [x, x])
    with pytest.raises(ShapeError, match="leading axes"):
        vjp([x, 2 * x], [x], [input("c", (2, 3, 5)), input("d", (4, 3, 5))])
    with pytest.raises(GradError, match="2 nodes in wrt, but 1 tangents"):
        jvp(x, [x, x], [x])


def test_a_node_class_without_a_rule_is_named(monkeypatch):
    x = real("x", 3)
    out = total(x)
    monkeypatch.delitem(vjp_module.RULES, Einsum)
    with pytest.raises(GradError, match=r"no cotangent rule for Einsum: add one in .*vjp\.py"):
        grad(out, x)
    monkeypatch.delitem(jvp_module.RULES, Einsum)
    with pytest.raises(GradError, match=r"no tangent rule for Einsum: add one in .*jvp\.py"):
        jvp(out, x, x)


def test_a_quotient_is_differentiated_through_its_value():
    a, b = input("a", ()), input("b", ())
    ga, gb = evaluate(list(grad(a / b, (a, b))), {a: np.float32(1e-30), b: np.float32(1e-25)})
    np.testing.assert_allclose([ga, gb], [1e25, -1e20], rtol=1e-6)  # b squared would be 0
    a, b = real("a", 3), real("b", 3)
    against_differences(total(a / b + a / (b * b) + 1 / b**3), [a, b], sample([a, b], 0, 0.5, 1.5))
