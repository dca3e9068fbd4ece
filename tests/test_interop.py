"""Expressions as NetworkX graphs and as SymPy formulas."""

from __future__ import annotations

import json

import networkx
import numpy as np
import pytest
import sympy

import symgrad as sg
from symgrad.graph.graph import Graph
from tests.calculus_judges import every_case, sample

B = sg.dim("B")


# -- NetworkX --------------------------------------------------------------------------------------
def network() -> tuple[sg.graph.nodes.Node, sg.graph.nodes.Input]:
    x, y = sg.input("x", (B, 3)), sg.input("y", (B,), dtype="int32")
    w = sg.parameter("w<1>", (3, 5))
    return sg.cross_entropy(sg.tanh(x @ w), y).mean(), w


def test_networkx_has_the_nodes_and_edges_of_the_graph() -> None:
    loss, w = network()
    outputs = [loss, sg.grad(loss, w)]
    graph, made = Graph.of(outputs), sg.to_networkx(outputs)
    assert isinstance(made, networkx.MultiDiGraph)
    assert networkx.is_directed_acyclic_graph(made) and networkx.is_weakly_connected(made)
    assert list(made) == list(range(len(graph.nodes)))
    assert made.graph["outputs"] == [graph.number[o] for o in outputs]
    for node in graph.nodes:
        number = graph.number[node]
        read = sorted((d["position"], u) for u, _, d in made.in_edges(number, data=True))
        assert read == list(enumerate(graph.number[a] for a in node.args))
        assert made.nodes[number]["dtype"] == str(node.dtype)


def test_networkx_attributes_are_json() -> None:
    loss, w = network()
    made = sg.to_networkx([loss, sg.grad(loss, w)])
    told = json.loads(json.dumps(list(made.nodes(data=True))))
    assert [(n, data) for n, data in told] == list(made.nodes(data=True))
    assert json.loads(json.dumps([made.graph, list(made.edges(data=True))]))
    nodes = [data for _, data in told]
    kinds = {n["label"]: n["kind"] for n in nodes}
    assert kinds["x"] == "input" and kinds['"w<1>"'] == "parameter"
    by_kind = {n["kind"]: n for n in nodes}
    assert by_kind["parameter"]["shape"] == [3, 5] and by_kind["input"]["shape"][0] == "B"
    assert by_kind["einsum"]["line"].startswith("test_interop.py:")
    assert any(n["primal"] is not None for n in nodes)


def test_networkx_keeps_an_argument_that_is_read_twice() -> None:
    x = sg.input("x", (3,))
    made = sg.to_networkx(sg.einsum("i,i->", x, x))
    assert sorted(made.edges(keys=True)) == [(0, 1, 0), (0, 1, 1)]


# -- SymPy -----------------------------------------------------------------------------------------
def value_of(told: object, leaves: dict[str, np.ndarray]) -> np.ndarray:
    """A formula in numbers: SymPy with 30 digits, independent of our evaluator."""
    known = {}
    for name, array in leaves.items():
        real = {"real": True} if array.dtype.kind == "f" else {"integer": True}
        base = sympy.IndexedBase(name, shape=array.shape, **real)
        for place in np.ndindex(array.shape):
            known[base[place] if place else sympy.Symbol(name, **real)] = sympy.Float(
                float(array[place]), 30
            )
    flat = told if isinstance(told, sympy.NDimArray) else [told]
    items = [sympy.N(sympy.sympify(item).xreplace(known), 30) for item in sympy.flatten(flat)]
    made = np.array([bool(i) if i in (True, False) else float(i) for i in items])
    return made.reshape(getattr(told, "shape", ()))


@pytest.mark.parametrize(("name", "case"), every_case())
def test_sympy_says_what_the_evaluator_computes(name, case) -> None:
    out, leaves = case.make()
    values = sample(leaves, low=case.low, high=case.high)
    told = sg.to_sympy(out)
    got = value_of(told, {leaf.name: value for leaf, value in values.items()})
    assert got.shape == out.shape
    np.testing.assert_allclose(got, sg.evaluate(out, values), rtol=1e-12, atol=1e-13)


SCALARS = {
    "exp log": lambda x, y: sg.exp(x) + sg.log(y),
    "log1p expm1": lambda x, y: sg.log1p(y) * sg.expm1(x),
    "roots": lambda x, y: sg.sqrt(y) / sg.rsqrt(y + 1),
    "angles": lambda x, y: sg.sin(x) * sg.cos(y) + sg.tan(x) * sg.arctan(y),
    "hyperbolic": lambda x, y: sg.sinh(x) + sg.cosh(y) * sg.tanh(x),
    "activations": lambda x, y: sg.sigmoid(x) + sg.softplus(x) * sg.gelu(y) + sg.relu(x),
    "steps": lambda x, y: sg.abs(x) * sg.sign(x) + sg.floor(3 * y) + (y % 0.7) + y // 0.3,
    "extrema": lambda x, y: sg.maximum(x, y) * sg.minimum(x * x, y),
    "tests": lambda x, y: sg.where((x < y) & ~(x == y) | (y <= 0) ^ (x != y), x, 2 * y),
    "power": lambda x, y: y**x,
    "not finite": lambda x, y: sg.where(sg.isfinite(x) & ~sg.isnan(x), x, 0.0),
    "casts": lambda x, y: (5 * x).astype("int32") + x.astype("bool").astype("float64"),
    "stopped": lambda x, y: sg.stop_gradient(x) * y,
    "reductions": lambda x, y: sg.logsumexp(sg.stack([x, y])) + sg.stack([x, y]).max(),
    "gradient": lambda x, y: sg.grad(sg.silu(x * y), x),
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("at", [(-0.7, 0.4), (0.3, 1.6)])
def test_sympy_of_scalars(name, at) -> None:
    x, y = sg.input("x", (), "float64"), sg.input("y", (), "float64")
    out = SCALARS[name](x, y)
    values = {"x": np.float64(at[0]), "y": np.float64(at[1])}
    told = sg.to_sympy(out)
    assert isinstance(told, sympy.Expr)
    got = value_of(told, {k: np.asarray(v) for k, v in values.items()})
    np.testing.assert_allclose(got, sg.evaluate(out, values), rtol=1e-12)


def test_sympy_differentiates_as_symgrad_does() -> None:
    x = sg.input("x", (3,), "float64")
    symbols = [sympy.IndexedBase("x", shape=(3,), real=True)[k] for k in range(3)]
    loss = sg.sum(sg.tanh(x) * x[::-1])
    told = sg.to_sympy(loss)
    for order, expr in ((1, sg.grad(loss, x)), (2, sg.hessian(loss, x))):
        wanted = sympy.derive_by_array(told, symbols) if order == 1 else sympy.derive_by_array(
            sympy.derive_by_array(told, symbols), symbols
        )
        difference = sg.to_sympy(expr) - wanted
        assert all(sympy.simplify(item) == 0 for item in sympy.flatten(difference))


def test_sympy_of_integers_bools_and_positions() -> None:
    k, b = sg.input("k", (3,), "int32"), sg.input("b", (), "bool")
    i0, i1, i2 = (sympy.IndexedBase("k", shape=(3,), integer=True)[j] for j in range(3))
    assert sg.to_sympy(k.sum()) == i0 + i1 + i2
    assert sg.to_sympy(b) == sympy.Eq(sympy.Symbol("b", integer=True), 1)
    told = sg.to_sympy(sg.argmax(k))
    for values in ((3, 1, 3), (1, 5, 2), (0, 0, 9)):
        known = dict(zip((i0, i1, i2), values, strict=True))
        assert told.xreplace(known) == np.argmax(values)
    table = sg.input("t", (3, 2), "float64")
    t = sympy.IndexedBase("t", shape=(3, 2), real=True)
    assert sg.to_sympy(sg.take(table, [2, -3], axis=0)) == sympy.Array(
        [[t[2, 0], t[2, 1]], [t[0, 0], t[0, 1]]]
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_sympy_writes_a_recurrence_out(reverse) -> None:
    x, w = sg.input("x", (3, 2), "float64"), sg.input("w", (), "float64")
    c, ys = sg.scan(lambda c, e: (sg.tanh(c * w + e), c * e), sg.zeros(2, "float64"), x, reverse)
    values = sample([x, w])
    for out in (c, ys, sg.grad(c.sum() + (ys * ys).sum(), w)):
        told = sg.to_sympy(out)
        got = value_of(told, {leaf.name: value for leaf, value in values.items()})
        np.testing.assert_allclose(got, sg.evaluate(out, values), rtol=1e-12, atol=1e-14)
    made = sg.to_networkx([c, ys])
    assert json.dumps(list(made.nodes(data=True))) and networkx.is_directed_acyclic_graph(made)
    with pytest.raises(sg.ShapeError, match=r"extents of \(T,\) must be numbers"):
        sg.to_sympy(sg.scan(lambda c, e: (c + e, ()), sg.zeros(()), sg.ones((sg.dim("T"),)))[0])


def test_sympy_refuses_what_it_cannot_tell() -> None:
    x = sg.input("x", (B, 3))
    with pytest.raises(sg.ShapeError, match=r"to_sympy: the extents of \(B, 3\) must be numbers"):
        sg.to_sympy(sg.tanh(x))
    with pytest.raises(sg.ShapeError, match="to_sympy: 10000 elements are too many"):
        sg.to_sympy(sg.input("x", (100, 100)))
    a = sg.input("a", (40, 50))
    with pytest.raises(sg.ShapeError, match="to_sympy: 100000 elements are too many"):
        sg.to_sympy(a @ sg.input("b", (50, 50)))
    k = sg.input("k", (2,), "int32")
    with pytest.raises(sg.SymgradError, match=r"position k\[0\], which depends on data"):
        sg.to_sympy(sg.take(sg.input("y", (3,)), k))
    with pytest.raises(sg.ShapeError, match="position 3 is out of range for an extent of 3"):
        sg.to_sympy(sg.take(sg.input("y", (3,)), [3]))
