"""Graphs as text and as LaTeX, and what the checker calls legal."""

from __future__ import annotations

import numpy as np
import pytest
import sympy

from symgrad.graph.checker import check
from symgrad.graph.dims import dim
from symgrad.graph.dtypes import BOOL, FLOAT32, INT32
from symgrad.graph.errors import SymgradError
from symgrad.graph.folds import NODES
from symgrad.graph.functions import AXIS, FUNCTIONS, P, Y
from symgrad.graph.graph import Graph
from symgrad.graph.latex import body_latex, latex, latex_name
from symgrad.graph.leaves import input, parameter
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Map,
    Piece,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.operators import VERBS, load_verbs
from symgrad.graph.scanning import scan
from symgrad.graph.text import axis_letters, text_of

load_verbs()
B = dim("B")


def network():
    x, y = input("x", (B, 64)), input("y", (B,), "int32")
    W1, b1 = parameter("W1", (64, 32)), parameter("b1", (32,))
    W2, b2 = parameter("W2", (32, 10)), parameter("b2", (10,))
    logits = VERBS["tanh"](x @ W1 + b1) @ W2 + b2
    return VERBS["cross_entropy"](logits, y).mean()


TEXT = """
graph (x: f32[B,64], W1: f32[64,32], b1: f32[32], W2: f32[32,10], b2: f32[10], y: i32[B]) -> %15
  %1  = einsum 'bi,ij->bj'  x W1
  %2  = map p0 + p1  %1[b,j] b1[j]
  %3  = map tanh(p0)  %2[b,j]
  %4  = einsum 'bj,jk->bk'  %3 W2
  %5  = map p0 + p1  %4[b,k] b2[k]
  %6  = max over k  %5[b,k]
  %7  = map stop_gradient(select(isfinite(p0), p0, 0))  %6[b]
  %8  = einsum 'b->bl'  %7  to f32[B,1]
  %9  = map exp(p0 - p1)  %5[b,k] %8[b,0]
  %10 = einsum 'bk->b'  %9
  %11 = gather 'b'  %5[b,y[b]]
  %12 = map p0 - p1  %7[b] %11[b]
  %13 = map p1 + log(p0)  %10[b] %12[b]
  %14 = einsum 'b->'  %13
  %15 = map p0/B  %14
"""


def test_the_let_lines_of_a_network():
    told = str(Graph.of([network()]))
    lines = [line.split("  # ")[0].rstrip() for line in told.splitlines()]
    assert lines == TEXT.strip().splitlines()
    assert "# test_text.py:" in told and "cross_entropy" in told


def test_str_of_an_expression_is_its_graph():
    x = input("x", (3,))
    assert str(x) == "graph (x: f32[3]) -> x"
    assert str(x * 2.0).splitlines()[1].startswith("  %1 = map p0*p1  x[i] 2.0")
    assert repr(x * 2.0) == "<Map f32[3]>"


def test_every_form_has_a_text():
    x, k = input("x", (B, 5)), input("k", (3,), "int32")
    v = VERBS
    told = str(
        Graph.of(
            [
                v["concatenate"]([x, x]),
                x.reshape(-1),
                x[1:, ::-1],
                x[:, k],
                v["cumsum"](x, 1),
                v["argmax"](x, 0),
                v["eye"](3),
                x + np.ones(5, "f4"),
                v["one_hot"](k, 7),
                Scatter((x[:3], k), (0, 1), ((0,),), (~0, 1), (7, 5)),
            ]
        )
    )
    for piece in (
        "move [0:B, 0:5] = x[0:B, 0:5]; [B:2*B, 0:5] = x",
        "reshape  x  to f32[5*B]",
        "= x[1:B, 4:-1:-1]",
        "gather",
        "cumsum over",
        "argmax over",
        "with i0=",
        "to f32[3,3]",
        "f32[5]{1.0, 1.0, 1.0, 1.0, ..}",
        "scatter [k[",
    ):
        assert piece in told, piece


def test_names_are_escaped():
    x = input('x"];evil\n\u2028', (3,))
    told = str(x + 1)
    assert '"x\\"];evil\\n\\u2028"' in told
    assert len(told.splitlines()) == 2
    assert "\u2028" not in told


def test_letters_never_clash_within_a_node():
    x = input("x", (5, 5))
    h = x
    for _ in range(30):
        h = h @ x + x.T
    letters = axis_letters(Graph.of([h]))
    for node, own in letters.items():
        assert len(own) == node.ndim == len(set(own))


def test_long_graphs_are_cut():
    x = input("x", ())
    for _ in range(500):
        x = x * 0.5
    told = str(x)
    assert len(told.splitlines()) == 202
    assert told.endswith(".. 300 more")
    assert len(text_of(Graph.of([x])).splitlines()) == 501


# -- LaTeX ----------------------------------------------------------------------------------------
def test_latex_of_small_things():
    x, W, b = input("x", (B, 3)), parameter("W1", (3, 5)), parameter("b", (5,))
    v = VERBS
    for made, wanted in [
        (x @ W + b, r"b + x\, W_{1}"),
        (v["tanh"](x @ W), r"\tanh\left(x\, W_{1}\right)"),
        (x.T @ x, r"{x}^{\top}\, x"),
        (x @ W @ W.T, r"x\, W_{1}\, {W_{1}}^{\top}"),
        (x / 2 + x**2, r"\frac{x}{2} + {x}^{2}"),
        (1 / x - 2.5e-7, r"\frac{1}{x} - \left(2.5 \cdot 10^{-7}\right)"),
        (v["einsum"]("bi,bi->b", x, x), r"\sum_{i} x_{b i}\, x_{b i}"),
        (x.max(1), r"\max_{i} x_{b i}"),
        (x.mean(), r"\frac{\sum_{b i} x_{b i}}{3 B}"),
        (x[1:, 0], r"x\left[1:B, 0\right]"),
        (x > 0, r"\left(0 < x\right)"),
        (v["eye"](3), r"\left[i = j\right]"),
    ]:
        assert latex(made) in (wanted, _swapped(wanted))


def _swapped(told):
    left, plus, right = told.partition(" + ")
    return f"{right} + {left}" if plus else told


def test_latex_of_a_network_is_a_block():
    told = latex(network())
    assert told.startswith(r"\begin{aligned}") and told.endswith(r"\end{aligned}")
    assert told.count("{") == told.count("}")
    assert r"\tanh\left(x\, W_{1} + b_{1}\right)" in told
    assert "isfinite" not in told
    assert (input("x", (3,)) * 2)._repr_latex_().startswith("$")


def test_latex_of_every_scalar_function():
    for name, f in FUNCTIONS.items():
        told, _ = body_latex(f.cls(*P[: f.arity]), [("a", 4), ("b", 4), ("c", 4)])
        assert told.count("{") == told.count("}"), name
        assert "a" in told and "p0" not in told


def test_latex_of_long_graphs_is_cut():
    x = input("x", (3,))
    for _ in range(2000):
        x = x * x + 1
    told = latex(x)
    assert r"\vdots" in told and len(told) < 20_000


@pytest.mark.parametrize(
    "name", ['x"];evil', "a\\b", "$x$", "a_b^c", "<script>", "two\nlines", "%#&~{}"]
)
def test_latex_names_are_escaped(name):
    told = latex_name(name)
    inside = told.removeprefix(r"\mathrm{").removesuffix("}")
    for c in '$%#&^~"<>\n':
        assert c not in inside.replace("\\" + c, "")
    assert inside.replace(r"\{", "").count("{") == 0
    assert latex(input(name, (3,)) * 2).count(told) == 1


# -- the checker ----------------------------------------------------------------------------------
def broken(node, match):
    with pytest.raises(SymgradError, match="illegal graph: .*" + match):
        check(Graph.of([node]))


X, K = input("X", (3, 5)), input("k", (7,), "int32")
whole = Piece((3, 5), (0, 0), (1, 1), (3, 5), (0, 0), (1, 1))

BROKEN = [
    (lambda: Map((X,), P[1], (3, 5), FLOAT32), "reads p1, of 1 arguments"),
    (lambda: Map((X,), P[0] + AXIS[2], (3, 5), FLOAT32), "reads the axis i2, of 2"),
    (lambda: Map((X,), P[0] + Y, (3, 5), FLOAT32), "reads its own output"),
    (lambda: Map((X,), P[0] * sympy.Symbol("z"), (3, 5), FLOAT32), "reads z"),
    (lambda: Map((X,), P[0], (3, 7), FLOAT32), "does not broadcast"),
    (lambda: Map((X,), P[0], (5,), FLOAT32), "more axes"),
    (lambda: Map((X,), P[0], (3, 5), INT32), "its body has the dtype float32"),
    (lambda: Map((X,), FUNCTIONS["less"].cls(P[0], 1), (3, 5), FLOAT32), "the dtype bool"),
    (lambda: Map((X,), P[0], (3, 5), BOOL), "its body has the dtype float32"),
    (lambda: Map((X,), P[0], (3, -5), FLOAT32), "no tuple of extents"),
    (lambda: Einsum((X,), ((0, 0),), (0,), (3,)), "stands twice"),
    (lambda: Einsum((X,), ((1, 0),), (0,), (3, 5)), "has no extent, or another"),
    (lambda: Einsum((X,), ((0,),), (0,), (3,)), "for an argument of shape"),
    (
        lambda: Einsum((X, K), ((0, 1), (2,)), (0,), (3, 5, 7)),
        "dtype int32 in an einsum of float32",
    ),
    (lambda: Reduce((X,), "max", (2,)), "axes .* for an argument"),
    (lambda: Reduce((X,), "max", ()), "not ascending"),
    (lambda: Reduce((X,), "cumsum", (0, 1)), "over 2 axes"),
    (
        lambda: Reindex((X,), (Piece((3, 5), (0, 1), (1, 1), (3, 5), (0, 0), (1, 1)),), (3, 5)),
        "leave an axis",
    ),
    (lambda: Reindex((X, X), (whole, whole), (3, 5)), "two pieces write one place"),
    (
        lambda: Reindex((X,), (Piece((3, 5), (0, 0), (1, 0), (3, 1), (0, 0), (1, 1)),), (3, 5)),
        "step or stride that is 0",
    ),
    (
        lambda: Reindex((X,), (Piece((3, 4), (0, 0), (1, 1), (3, 4), (0, 0), (1, 1)),), (3, 5)),
        "the view",
    ),
    (lambda: Gather((X, X), (~0, 1), ((0, 2),), (0, 2, 1)), "an index of dtype float32"),
    (lambda: Gather((X, K), (~0, 1), ((0,),), (0,)), "are not those that occur"),
    (lambda: Scatter((X, K), (0, 1), ((0,),), (1, 1), (5, 5)), "do not use each index once"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_the_checker_names_the_rule(number):
    make, match = BROKEN[number]
    broken(make(), match)


def test_the_checker_accepts_what_verbs_make():
    load_verbs()
    v = VERBS
    graph = Graph.of(
        [
            network(),
            v["tril"](X),
            v["pad"](X, 1, 2.0),
            v["var"](X),
            X[K[:3] % 3],
            v["arange"](3, dtype="float64"),
            v["any"](X),
            v["stack"]([X, X]),
            *scan(lambda c, x: (c * x, c), X[0], X),
        ]
    )
    assert check(graph) is graph
    assert {type(n) for n in graph.nodes} >= set(NODES) - {Scatter}


def test_the_checker_wants_frozen_constants():
    node = Constant(np.ones(3, "f4"))
    object.__setattr__(node, "value", np.ones(3, "f4"))
    broken(node, "can be written to")
