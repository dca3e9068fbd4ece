"""Simplified graphs mean the same, are legal, and are as small as by hand."""

from __future__ import annotations

import numpy as np
import pytest

from symgrad.calculus.building import delta
from symgrad.calculus.jvp import jvp
from symgrad.calculus.second_order import hessian, hvp, jacobian
from symgrad.calculus.simplification import simplify, substitute
from symgrad.calculus.vjp import grad, value_and_grad, vjp
from symgrad.graph import operators as ops
from symgrad.graph.checker import check
from symgrad.graph.dims import dim
from symgrad.graph.dtypes import FLOAT64
from symgrad.graph.errors import DTypeError, ShapeError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.functions import P
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input, parameter
from symgrad.graph.nodes import Einsum, Gather, Map, Node, Reindex, Scatter, einsum_node
from symgrad.graph.traversal import toposort
from tests.calculus_judges import Case, every_case, real, sample, total, weighed

V = ops.VERBS


def nodes_of(e: Node | tuple[Node, ...]) -> list[Node]:
    return [n for n in toposort([e] if isinstance(e, Node) else list(e)) if n.args]


def agree(outputs: list[Node], values: dict, rtol: float = 1e-9) -> tuple[Node, ...]:
    made = simplify(outputs)
    check(Graph.of(made))
    before, after = evaluate(list(outputs), values), evaluate(list(made), values)
    for old, new, a, b in zip(outputs, made, before, after, strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    again = simplify(made)
    assert all(a is b for a, b in zip(made, again, strict=True)), "simplify is not at rest"
    return made


# -- the same meaning -----------------------------------------------------------------------------
@pytest.mark.parametrize("case", [c for _, c in every_case()], ids=[n for n, _ in every_case()])
def test_derivatives_of_every_node_mean_the_same(case: Case):
    out, leaves = case.make()
    first = grad(weighed(out, 1), leaves)
    second = grad(weighed(first[0], 2), leaves)
    rng = np.random.default_rng(0)
    ct = constant(rng.normal(size=(2, *out.shape)))
    tangents = [constant(rng.normal(size=(2, *x.shape))) for x in leaves]
    outputs = [out, *first, *second, *vjp(out, leaves, [ct]), jvp(out, leaves, tangents)[1]]
    agree(outputs, sample(leaves, 1, case.low, case.high))


def random_loss(seed: int) -> tuple[Node, list[Node]]:
    """A scalar from random verbs over arrays of extents 3, 5 and 7."""
    rng = np.random.default_rng(seed)
    leaves: list[Node] = [
        real("a", 3, 5), real("b", 5), real("c", 3, 1), real("w", 5, 7), real("v", 7), real("s")
    ]
    pool = list(leaves)
    labels = constant(rng.integers(-3, 3, size=4).astype(np.int32))

    def pick(condition=lambda n: True) -> Node:
        fitting = [n for n in pool if condition(n)]
        return fitting[rng.integers(len(fitting))]

    def binary() -> Node:
        x = pick()
        y = pick(lambda n: _broadcasts(n.shape, x.shape))
        return [x + y, x * y, x - y, V["maximum"](x, y), V["where"](x > y, x * y, y)][
            rng.integers(5)
        ]

    def unary() -> Node:
        return V[["tanh", "sin", "sigmoid", "negative", "square"][rng.integers(5)]](pick())

    def matrix() -> Node:
        x = pick(lambda n: n.ndim == 2)
        y = pick(lambda n: n.ndim == 2 and n.shape[0] == x.shape[1]) if _matches(x) else x.T
        return V["tanh"](x @ y)

    def _matches(x: Node) -> bool:
        return any(n.ndim == 2 and n.shape[0] == x.shape[1] for n in pool)

    def reduced() -> Node:
        x = pick(lambda n: n.ndim > 0)
        name = ["sum", "mean", "max", "logsumexp", "softmax"][rng.integers(5)]
        axis = int(rng.integers(x.ndim))
        return V[name](x, axis) if name == "softmax" else V[name](x, axis, rng.integers(2) == 1)

    def moved() -> Node:
        x = pick(lambda n: n.ndim > 0 and n.shape[0] >= 3)
        kind = rng.integers(5)
        if kind == 0:
            return V["reshape"](x, (-1,))
        if kind == 1:
            return x[::-1]
        if kind == 2:
            return V["concatenate"]([x[1:], x[:1]], 0)
        return V["take"](x, labels, 0) if kind == 3 else x.T

    for _ in range(14):
        made = [binary, binary, unary, matrix, reduced, moved][rng.integers(6)]()
        pool.append(V["tanh"](made) if made.ndim < 3 else made)
    tail = sum((total(V["sin"](n)) for n in pool[-4:]), constant(0.0, "float64"))
    return tail, [x for x in leaves if x in set(toposort([tail]))]


def _broadcasts(a: tuple, b: tuple) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(a[::-1], b[::-1], strict=False))


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_mean_the_same(seed):
    loss, leaves = random_loss(seed)
    values = sample(leaves, seed)
    first = grad(loss, leaves)
    vectors = [constant(np.cos(np.arange((x.shape and np.prod(x.shape)) or 1)).reshape(x.shape))
               for x in leaves]
    curved = hvp(loss, leaves, vectors)
    slow = jvp(list(first), leaves, vectors)[1]
    agree([loss, *first, *slow], values, 1e-8)
    for a, b in zip(evaluate(list(curved), values), evaluate(list(slow), values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_nan_and_infinity_of_the_user_stay(seed):
    loss, leaves = random_loss(100 + seed)
    values = sample(leaves, seed)
    rng = np.random.default_rng(seed)
    for x in leaves:
        if x.ndim:
            places = rng.integers(int(np.prod(x.shape)), size=2)
            values[x].flat[places] = rng.choice([np.inf, np.nan, -np.inf, 0.0, -0.0], size=2)
    nodes = [n for n in toposort([loss]) if n.dtype == FLOAT64][-8:]
    before, after = evaluate(nodes, values), evaluate(list(simplify(nodes)), values)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_hessians_of_random_graphs(seed):
    loss, leaves = random_loss(200 + seed)
    values = sample(leaves, seed)
    x = max(leaves, key=lambda leaf: leaf.ndim)
    H = hessian(loss, x)
    check(Graph.of([H]))
    found = evaluate(H, values)
    n = int(np.prod(x.shape))
    np.testing.assert_allclose(found, differences(grad(loss, x), x, values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.reshape(n, n), found.reshape(n, n).T, atol=1e-9)


# -- rules, by name -------------------------------------------------------------------------------
def test_transpose_of_transpose_and_reshape_of_reshape():
    x = real("x", 3, 5)
    assert simplify(x.T.T) is x
    assert simplify(x.reshape(5, 3).reshape(15).reshape(3, 5)) is x
    assert simplify(V["squeeze"](V["expand_dims"](x, 1), 1)) is x
    assert isinstance(simplify(x.reshape(3, 1, 5)), Einsum)


def test_casts_and_signs():
    x = input("x", (3,))
    assert simplify(x.astype("float64").astype("float32")) is x
    assert simplify(x.astype("int32").astype("float32")) is not x
    assert simplify(V["negative"](V["negative"](x))) is x
    assert simplify(1.0 * x) is x
    assert simplify(x / 1.0) is not None


def test_equal_arguments():
    x = real("x", 3)
    assert simplify(x + x).body == 2 * P[0]
    assert simplify(x + x).args == (x,) or simplify(x + x).args[0] is x
    assert len(simplify(x - x).args) == 2  # NaN - NaN is NaN
    assert len(simplify(x / x).args) == 2


def test_what_the_user_wrote_stays():
    x = real("x", 4)
    data = {x: np.array([np.inf, np.nan, -1.0, 0.0])}
    ones, zeros = V["ones"](4, "float64"), V["zeros_like"](x)
    for e in (0.0 * x, x * 0, zeros * x, x - x, x / x, 0.0 * x + 1, x * ones):
        a, b = evaluate(e, data), evaluate(simplify(e), data)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.signbit(a), np.signbit(b))
    loss = total(0.0 * x)
    assert np.isnan(evaluate(simplify(loss), data))
    assert np.isnan(evaluate(simplify(grad(total(0.0 * x * x), x)), data)[:2]).all()
    assert len(nodes_of(simplify(x + 0.0))) == 1  # -0.0 + 0.0 is 0.0


def test_contraction_of_contraction():
    a, b, c = real("a", 3, 5), real("b", 5, 7), real("c", 7, 3)
    chain = simplify(total(a @ b @ c))
    assert sum(isinstance(n, Einsum) and len(n.args) > 1 for n in nodes_of(chain)) >= 1
    once = simplify((a @ b) @ c)
    assert isinstance(once, Einsum) and len(once.args) == 3
    h = a @ b
    twice = simplify([h @ c, V["tanh"](h)])
    assert simplify(h) in set(nodes_of(twice))  # read twice, computed once
    assert len(nodes_of(simplify((a @ b).T))) == 1


def test_product_feeding_a_sum():
    a, b = real("a", 3, 5), real("b", 5)
    e = simplify((a * V["sin"](a)).sum(axis=0))
    assert isinstance(e, Einsum) and len(e.args) == 2
    outside = simplify((a * b).sum(axis=0))  # (sum a) * b
    assert isinstance(outside, Map) and any(x is b for x in outside.args)
    assert len(nodes_of(simplify((a * 2.0).sum(axis=0)))) == 2  # the user's scale stays inside


def test_slices_of_slices_and_of_joins():
    x, y = real("x", 9, 5), real("y", 4, 5)
    e = simplify(x[1:8][::-2][1:3])
    assert isinstance(e, Reindex) and e.args[0] is x
    values = sample([x, y])
    np.testing.assert_array_equal(evaluate(e, values), values[x][1:8][::-2][1:3])
    joined = V["concatenate"]([x, y], 0)
    part = simplify(joined[10:13])
    assert part.args[0] is y
    np.testing.assert_array_equal(evaluate(part, values), values[y][1:4])
    across = simplify(joined[7:11])
    assert across.args[0] is joined


def test_delta_is_eliminated():
    n = dim("n")
    x, A = input("x", (n,), "float64"), input("A", (n, n), "float64")
    d = delta(n, FLOAT64)
    assert simplify(einsum_node((d, x), ((0, 1), (1,)), (0,))) is x
    assert simplify(einsum_node((A, d), ((0, 1), (1, 2)), (0, 2))) is A
    assert simplify(V["eye"](n, dtype="float64") @ A) is A
    kept = simplify(einsum_node((A, d), ((0, 1), (0, 1)), (0,)))  # the diagonal
    values = {A: np.arange(9.0).reshape(3, 3)}
    np.testing.assert_array_equal(evaluate(kept, values), [0, 4, 8])
    everything = simplify(total(d))
    assert evaluate(everything + 0.0 * total(x), {x: np.ones(4)}) == 4


def test_broadcasts_are_not_materialised():
    x, b = real("x", 3, 5), real("b", 5)
    e = simplify(V["broadcast_to"](b, (3, 5)) * x)
    assert len(nodes_of(e)) == 1
    wide = simplify(V["tanh"](V["broadcast_to"](b, (3, 5))))
    assert isinstance(wide, Einsum) and wide.args[0].shape == (5,)


def test_provenance_is_kept():
    x = real("x", 3)
    h = V["tanh"](x * 2.0)
    g = simplify(grad(total(h * h), x))
    made = [n for n in nodes_of(g) if n.origin == "vjp"]
    assert made and all(n.backward_of is not None and n.where is not None for n in made)


# -- as small as by hand ---------------------------------------------------------------------------
def network(B):
    x, y = input("x", (B, 64)), input("y", (B,), "int32")
    W1, b1 = parameter("W1", (64, 32)), parameter("b1", (32,))
    W2, b2 = parameter("W2", (32, 10)), parameter("b2", (10,))
    h = V["tanh"](x @ W1 + b1)
    loss = V["cross_entropy"](h @ W2 + b2, y).mean()
    return loss, (W1, b1, W2, b2), (x, y)


@pytest.mark.parametrize("B", [dim("B"), 8], ids=["symbolic", "static"])
def test_the_joint_graph_of_a_network(B):
    loss, leaves, (x, y) = network(B)
    value, gradients = value_and_grad(loss, leaves)
    made = simplify((value, *gradients))
    check(Graph.of(made))
    backward = [n for n in nodes_of(made) if n.origin == "vjp"]
    assert not any(isinstance(n, (Scatter, Gather)) for n in backward)
    maps = [n for n in backward if isinstance(n, Map)]
    # softmax minus one-hot; tanh' in terms of its own output
    assert len(maps) == 2
    logits_ct, z_ct = (next(n for n in maps if n.shape == (B, k)) for k in (10, 32))
    assert "equal(i1, " in str(logits_ct.body) and "select" not in str(logits_ct.body)
    assert z_ct.body == P[0] * (1 - P[1] ** 2)
    assert len([n for n in backward if isinstance(n, Einsum) and len(n.args) == 2]) == 3
    assert len(backward) <= 10
    rng = np.random.default_rng(0)
    values = {n: rng.normal(size=n.shape).astype("float32") for n in leaves}
    values[x] = rng.normal(size=(8, 64)).astype("float32")
    values[y] = rng.integers(0, 10, size=8).astype("int32")
    before, after = evaluate([value, *gradients], values), evaluate(list(made), values)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_the_largest_logit_gets_no_cotangent():
    loss, leaves, _ = network(dim("B"))
    joint = simplify(grad(loss, leaves))
    forward = set(toposort([loss]))
    assert not [n for n in nodes_of(joint) if n.name == "reduce" and n not in forward]


def test_layers_cost_the_same_each():
    def count(layers: int) -> int:
        h = x = input("x", (dim("B"), 7))
        weights = [parameter(f"W{k}", (7, 7)) for k in range(layers)]
        for W in weights:
            h = V["tanh"](h @ W)
        loss, gradients = value_and_grad(h.mean(), weights)
        assert x is not h
        return len(nodes_of(simplify((loss, *gradients))))

    assert count(40) - count(20) == count(60) - count(40) == 20 * 5


# -- whole derivatives -----------------------------------------------------------------------------
@pytest.mark.parametrize("n", [dim("n"), 4], ids=["symbolic", "static"])
def test_the_hessian_of_a_quadratic_form_is_its_symmetric_part(n):
    A, x = input("A", (n, n)), input("x", (n,))
    for form in (x @ A @ x, (x * (A @ x)).sum(), V["einsum"]("i,ij,j->", x, A, x)):
        H = hessian(form, x)
        assert isinstance(H, Map) and H.body == P[0] + P[1]
        plain, turned = sorted(H.args, key=lambda a: a is not A)
        assert plain is A
        assert turned is simplify(A.T)


def test_the_hessian_of_logistic_regression_is_one_contraction():
    B, D = dim("B"), dim("D")
    X, y = input("X", (B, D), "float64"), input("y", (B,), "float64")
    w = input("w", (D,), "float64")
    H = hessian(V["binary_cross_entropy"](X @ w, y).mean(), w)
    assert isinstance(H, Einsum) and [a is X for a in H.args].count(True) == 2
    assert len(H.args) == 3 and H.shape == (D, D)
    rng = np.random.default_rng(0)
    values = {X: rng.normal(size=(7, 3)), y: rng.uniform(size=7), w: rng.normal(size=3)}
    s = 1 / (1 + np.exp(-values[X] @ values[w]))
    expected = (values[X].T * (s * (1 - s))) @ values[X] / 7
    np.testing.assert_allclose(evaluate(H, values), expected, rtol=1e-12)


def differences(out: Node, x: Node, values: dict) -> np.ndarray:
    """The Jacobian by central differences."""
    columns = []
    for k in range(int(np.prod(x.shape))):
        step = np.zeros(x.shape)
        step.flat[k] = 1e-6
        ends = [evaluate(out, {**values, x: values[x] + s * step}) for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / 2e-6)
    return np.stack(columns, -1).reshape(*out.shape, *x.shape)


@pytest.mark.parametrize("case", [c for _, c in every_case()], ids=[n for n, _ in every_case()])
def test_jacobian_against_differences(case: Case):
    out, leaves = case.make()
    values = sample(leaves, 4, case.low, case.high)
    found = jacobian(out, leaves)
    for x, J in zip(leaves, found, strict=True):
        assert J.shape == out.shape + x.shape
        check(Graph.of([J]))
        np.testing.assert_allclose(
            evaluate(J, values), differences(out, x, values), rtol=1e-6, atol=1e-7
        )


def test_jacobian_both_ways_and_nested():
    a, w = real("a", 3, 5), real("w", 5, 2)
    wide, narrow = V["tanh"](a @ w), V["sin"](a @ w).sum()
    table = jacobian([wide, narrow], [a, w])
    assert [[J.shape for J in row] for row in table] == [
        [(3, 2, 3, 5), (3, 2, 5, 2)], [(3, 5), (5, 2)]
    ]
    values = sample([a, w])
    for out, row in zip((wide, narrow), table, strict=True):
        for x, J in zip((a, w), row, strict=True):
            np.testing.assert_allclose(
                evaluate(J, values), differences(out, x, values), rtol=1e-6, atol=1e-8
            )


def test_hessian_and_its_product_with_vectors():
    a, w = real("a", 4, 3), real("w", 3, 2)
    loss = V["logsumexp"](V["tanh"](a @ w)).mean() + V["prod"](w, 0).sum()
    values = sample([a, w])
    H = hessian(loss, (a, w))
    vectors = (np.cos(np.arange(12.0)).reshape(4, 3), np.sin(np.arange(6.0)).reshape(3, 2))
    products = hvp(loss, (a, w), vectors)
    for k, (leaf, product) in enumerate(zip((a, w), products, strict=True)):
        assert product.shape == leaf.shape
        blocks = [evaluate(h, values) for h in H[k]]
        for x, block in zip((a, w), blocks, strict=True):
            np.testing.assert_allclose(
                block, differences(grad(loss, leaf), x, values), rtol=1e-6, atol=1e-8
            )
        expected = sum(np.tensordot(h, v, v.ndim) for h, v in zip(blocks, vectors, strict=True))
        np.testing.assert_allclose(evaluate(product, values), expected, rtol=1e-10)
    (several,) = hvp(loss, (w,), (np.stack([vectors[1], 2 * vectors[1]]),))
    one = hvp(loss, w, vectors[1])
    np.testing.assert_allclose(
        evaluate(several, values)[1], 2 * evaluate(one, values), rtol=1e-10
    )


def test_jacobian_of_symbolic_size():
    B, D = dim("B"), dim("D")
    X, w = input("X", (B, D), "float64"), input("w", (D,), "float64")
    J = jacobian(V["tanh"](X @ w), w)
    assert J.shape == (B, D) and not any(
        isinstance(n, Map) and not n.args for n in nodes_of(J)
    ), "no unit matrix is left"
    S = jacobian(V["softmax"](w), w)
    values = {X: np.random.default_rng(0).normal(size=(4, 3)), w: np.array([0.1, -0.5, 0.7])}
    t = np.tanh(values[X] @ values[w])
    np.testing.assert_allclose(evaluate(J, values), (1 - t**2)[:, None] * values[X], rtol=1e-12)
    p = np.exp(values[w]) / np.exp(values[w]).sum()
    np.testing.assert_allclose(evaluate(S, values), np.diag(p) - np.outer(p, p), atol=1e-15)


def test_literal_vectors_take_the_dtype_of_what_they_meet():
    w = input("w", (3,))
    product = hvp((w * w * w).sum(), w, np.array([1.0, 2.0, 3.0]))
    assert product.dtype == np.float32
    assert vjp(w * w, w, [[1, 2, 3]])[0].dtype == np.float32


def test_a_masked_branch_in_a_hessian():
    x = real("x", 3)
    H = hessian(total(V["where"](x > 0, V["sqrt"](x), 0)), x)
    found = evaluate(H, {x: np.array([0.0, 1.0, 4.0])})
    np.testing.assert_allclose(found, np.diag([0, -0.25, -0.03125]))


def test_a_sum_of_unit_tensors_does_not_stay():
    n = dim("n")
    x, A = input("x", (n,), "float64"), input("A", (n, n), "float64")
    J = jacobian(A @ (x + A @ x), x)
    assert not any(isinstance(m, Map) and not m.args for m in nodes_of(J))
    values = {A: np.arange(9.0).reshape(3, 3), x: np.ones(3)}
    M = values[A]
    np.testing.assert_allclose(evaluate(J, values), M + M @ M)


# -- substitute ------------------------------------------------------------------------------------
def test_substitute_at_once():
    x, y = real("x", 3), real("y", 3)
    e = substitute(x - 2.0 * y, {x: y, y: x})
    assert e is (y - 2.0 * x)
    assert substitute([x, y], {x: 1.0 * y})[1] is y
    h = V["tanh"](x)
    assert substitute(h * x, {h: x}) is (x * x)


def test_substitute_checks():
    x = input("x", (3,))
    with pytest.raises(ShapeError, match=r"\(5,\)"):
        substitute(x, {x: input("y", (5,))})
    with pytest.raises(DTypeError, match="int32"):
        substitute(x, {x: input("k", (3,), "int32")})
    with pytest.raises(ShapeError, match="got str"):
        substitute(x, {"x": x})
