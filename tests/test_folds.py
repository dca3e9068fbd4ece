"""Recurrences as nodes: what `scan` means, how it prints, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.costs import cost
from symgrad.calculus.derivation import derive
from symgrad.graph.checker import check
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Chain, Fold, Proj, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.latex import latex
from symgrad.graph.leaves import constant, input, parameter
from symgrad.graph.scanning import scan
from symgrad.graph.text import text_of
from symgrad.graph.traversal import toposort
from tests.calculus_judges import V, real

T, B = sg.dim("T"), sg.dim("B")
RNG = np.random.default_rng(11)


def network():
    x, h0 = input("x", (T, B, 3)), input("h0", (B, 4))
    W, U = parameter("W", (4, 4)), parameter("U", (3, 4))

    def step(c, x):
        c = V["tanh"](0.5 * (c @ W) + x @ U)
        return c, V["sum"](c, axis=1)

    return scan(step, h0, x)


def fold_of(node):
    (fold,) = [n for n in toposort([node]) if isinstance(n, Fold)]
    return fold


# -- meaning --------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_is_a_loop(steps, reverse):
    x, w = input("x", (T, 3)), input("w", (3,))
    (last, count), ys = scan(
        lambda c, x: ((c[0] * w + x, c[1] + 1), {"old": c[0], "sum": V["sum"](x)}),
        (V["ones"]((3,)), constant(0, "int32")), x, reverse,
    )  # fmt: skip
    values = {x: RNG.random((steps, 3), "f4"), w: RNG.random(3, "f4")}
    got = evaluate([last, count, ys["old"], ys["sum"]], values)
    c, old = np.ones(3, "f4"), np.zeros((steps, 3), "f4")
    for t in reversed(range(steps)) if reverse else range(steps):
        old[t], c = c, c * values[w] + values[x][t]
    np.testing.assert_allclose(got[0], c, rtol=1e-6)
    assert got[1] == steps and got[1].dtype == np.int32
    np.testing.assert_allclose(got[2], old, rtol=1e-6)
    np.testing.assert_allclose(got[3], values[x].sum(axis=1), rtol=1e-6)
    assert got[2].dtype == np.float32 and got[2].shape == (steps, 3)


def test_structures_keep_their_kind_and_dicts_their_order():
    x = real("x", 4)
    init = {"b": [real("p")], "a": (real("q"), real("r"))}
    seen = []

    def step(c, x):
        seen.append(c)
        return {"a": (c["b"][0] + x, c["a"][0]), "b": [c["a"][1]]}, ()

    last, ys = scan(step, init, x)
    assert list(last) == ["b", "a"] and isinstance(last["b"], list) and ys == ()
    assert isinstance(seen[0]["a"], tuple) and len(seen) == 1
    p, q, r = (leaf for part in (init["b"], init["a"]) for leaf in part)
    got = evaluate([last["b"][0], *last["a"]], {x: np.arange(4.0), p: 1.0, q: 10.0, r: 100.0})
    b, a = 1.0, (10.0, 100.0)
    for t in range(4):
        b, a = a[1], (b + t, a[0])
    np.testing.assert_array_equal(got, [b, *a])


def test_python_numbers_and_arrays_may_start_a_carry():
    x = input("x", (4,))
    (a, b), ys = scan(lambda c, x: ((c[0] + x, c[1] * x), 1), (0.0, np.ones(3, "f4")), x)
    got = evaluate([a, b, ys], {x: [1, 2, 3, 4]})
    assert got[0] == 10 and got[1].tolist() == [24] * 3 and got[2].tolist() == [1] * 4


def test_a_step_inside_a_step_reads_both_carries():
    x = real("x", 3)

    def outer(c, a):
        inner, _ = scan(lambda d, b: (d + a * b + c, ()), c, x)
        return inner, inner

    last, ys = scan(outer, real("h"), x)
    values = {"x": np.array([1.0, 2.0, 3.0]), "h": 0.5}
    c = 0.5
    for a in values["x"]:
        d = c
        for b in values["x"]:
            d = d + a * b + c
        c = d
    assert evaluate(last, values) == c and evaluate(ys, values)[-1] == c


def test_results_are_fresh():
    x, h = input("x", (0, 3)), input("h", (3,))
    values = np.ones(3, "f4")
    last, _ = scan(lambda c, x: (c + x, c), h, x)
    got = evaluate(last, {h: values, x: np.zeros((0, 3), "f4")})
    got += 1
    assert values.tolist() == [1, 1, 1]


def test_lengths_that_only_data_can_tell_are_guarded():
    S = sg.dim("S")
    x, y = input("x", (T, 3)), input("y", (S, 3))
    last, _ = scan(lambda c, xs: (c + xs[0] * xs[1], ()), V["zeros"]((3,)), (x, y))
    graph = Graph.of([last])
    assert [{g.left, g.right} for g in graph.guards] == [{S, T}]
    assert graph.dims == (S, T)
    with pytest.raises(sg.ShapeError, match="S = 2"):
        evaluate(last, {x: np.ones((3, 3)), y: np.ones((2, 3))})


def test_a_length_that_nothing_else_tells_is_a_dim_of_the_graph():
    x = input("x", (T, 3))
    last, _ = scan(lambda c, x: (c * 2, ()), constant(1.0), x)
    (made,) = sg.simplify([last])
    assert Graph.of([made]).dims == (T,)
    assert evaluate(made, {x: np.ones((5, 3), "f4")}) == 32


# -- keys and printing ----------------------------------------------------------------------------
def test_keys_of_alpha_equal_recurrences_agree_in_every_process():
    first, second = network(), network()
    assert Graph.of(first).key == Graph.of(second).key
    assert Graph.of([first[0]]).key != Graph.of([first[1]]).key
    code = (
        "from tests.test_folds import *; from symgrad.calculus.vjp import grad;"
        "c, ys = network(); print(Graph.of(grad(c.sum() + ys.sum(), Graph.of([c]).inputs)).key)"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p or "." for p in sys.path)},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(keys) == 1


def test_keys_tell_which_dim_a_step_uses():
    x = input("x", (T, B))

    def made(extent):
        size = V["sum"](V["ones"]((extent,)))
        return scan(lambda c, x: (c + V["sum"](x) * size, ()), constant(0.0), x)[0]

    def inside(extent):
        return scan(
            lambda c, x: (c + V["sum"](V["ones"]((extent,)) * c), ()), constant(0.0), x
        )[0]

    for make in (made, inside):
        assert Graph.of([make(T)]).key != Graph.of([make(B)]).key


TEXT = """
graph (x: f32[T,B,3], h0: f32[B,4], W: f32[4,4], U: f32[3,4]) -> %2, %3
  %1 = fold over T  carry = h0; x' = x[t]
    %1.1 = einsum 'bi,ij->bj'  carry W
    %1.2 = map p0*p1  0.5 %1.1[b,j]
    %1.3 = einsum 'bk,kl->bl'  x' U
    %1.4 = map p0 + p1  %1.2[b,j] %1.3[b,j]
    %1.5 = map tanh(p0)  %1.4[b,j]
    %1.6 = einsum 'bj->b'  %1.5
    next carry = %1.5; y0 = %1.6
  %2 = last carry of %1
  %3 = all y0 of %1
"""


def test_text_of_a_recurrence():
    x, h0 = input("x", (T, B, 3)), input("h0", (B, 4))
    W, U = parameter("W", (4, 4)), parameter("U", (3, 4))

    def step(c, x):
        c = V["tanh"](0.5 * (c @ W) + x @ U)
        return c, V["sum"](c, axis=1)

    graph = Graph((x, h0, W, U), scan(step, h0, x))
    lines = [line.partition("#")[0].rstrip() for line in text_of(graph).split("\n")]
    assert lines == TEXT.strip().split("\n")
    assert text_of(graph, 3).endswith(".. 7 more")


def test_text_of_nested_recurrences_keeps_names_apart():
    x = input("x", (T, 3))

    def outer(c, a):
        return scan(lambda c, a: (c * a, c), c, x)

    shown = str(scan(outer, input("c", (3,)), x)[0])
    assert "carry' = carry; x'' = x[t]" in shown
    assert "fold over T, last first" in str(scan(outer, V["zeros"](3), x, reverse=True)[0])


def test_a_users_name_cannot_break_the_text():
    x = input("x", (4,))
    (last,), _ = (scan(lambda c, x: ({'a"\n': c['a"\n'] * x}, ()), {'a"\n': 1.0}, x)[0].values(), 0)
    assert "\n" not in str(last).split("\n", 1)[1].split("  %2")[0].strip().split("\n")[0]
    assert r'"a\"\n"' in str(last)


def test_latex_of_a_recurrence():
    last, ys = network()
    assert latex([last, ys]) == (
        r"\begin{aligned} c_{0} &= h_{0} \\ "
        r"c_{t+1} &= \tanh\left(0.5 \cdot \left(c_{t}\, W\right) + x_{t}\, U\right) \\ "
        r"y_{t} &= \sum_{j} {c_{t+1}}_{b j},\quad t = 0, \ldots, T - 1 \\ "
        r"&\phantom{=}\ c_{T} \\ &\phantom{=}\ y \end{aligned}"
    )
    x = input("x", (5, 3))
    back = latex(scan(lambda c, x: (c * x, ()), x[0], x, reverse=True)[0])
    assert r"c_{5} &=" in back and r"c_{t} &= c_{t+1} \cdot x_{t}" in back and "c_{0} " in back
    assert r"\overline{c}" in latex(sg.grad(V["sum"](last), Graph.of([last]).inputs[1]))


def test_cost_counts_the_step_as_often_as_it_is_taken():
    last, ys = network()
    one = cost(fold_of(last).body.outputs)
    whole = cost([last, ys])
    assert whole.flops == (one.flops * T).expand() and whole.bytes == (one.bytes * T).expand()
    known = cost([last, ys], {"T": 7, "B": 5})
    assert known.flops == 7 * cost(fold_of(last).body.outputs, {B: 5}).flops
    assert (known.depth, known.largest) == (7 * one.depth, 140)


def test_derivation_names_backpropagation_through_time():
    last, ys = network()
    W = Graph.of([last]).inputs[2]
    made = derive(V["sum"](last) + V["sum"](ys), [W, Graph.of([last]).inputs[1]])
    back = [s for s in made.steps if s.rule == "backpropagation through time"]
    assert [s.target.symbol for s in back] == ["x", "W"]
    assert r"\sum_{t} {\frac{\partial f}{\partial W}}^{\top}" in back[1].formula
    assert "c[t + 1] = tanh(" in str(made) and "<math" in made._repr_html_()


# -- legality -------------------------------------------------------------------------------------
def body_over(carry, element, *outputs):
    return Graph((carry, element), outputs)


def broken(output, match):
    with pytest.raises(SymgradError, match=match):
        check(Graph.of([output]))


def test_the_checker_names_what_is_wrong_with_a_recurrence():
    x, h = real("x", 4, 3), real("h", 3)
    c, e = binder("c", (3,), h.dtype), binder("x", (3,), x.dtype)
    body = body_over(c, e, c * e)

    def last(args, body=body, length=4, carries=1, sequences=1):
        return projections(Fold(args, body, Chain(length), carries, sequences))[0]

    check(Graph.of([last((h, x))]))
    broken(last((h, x, h)), "2 binders for 3 arguments")
    broken(last((h, x), carries=2), "2 carries and 1 sequences")
    broken(last((h, x), length=5), r"a sequence \(4, 3\) for 5 steps")
    broken(last((x, x)), r"the binder float64 \(3,\) for an argument float64 \(4, 3\)")
    broken(last((input("i", (3,)), x)), "for an argument float32")
    broken(last((h, x), body_over(c, e, V["sum"](c * e))), r"goes in as float64 \(3,\) and comes")
    leaf = input("leaf", (3,), "float64")
    broken(last((h, x), body_over(leaf, e, leaf * e)), "a body's input that is no binder")
    broken(last((h, x), body_over(c, e, c * leaf)), "not among the graph's inputs")
    fold = fold_of(last((h, x)))
    broken(fold, "no tensor")
    broken(V["astype"](fold, "float32"), "reads a recurrence itself")
    wrong = Proj((fold,), 0)
    object.__setattr__(wrong, "shape", (5,))
    broken(wrong, "not its result's")
    inner = scan(lambda d, z: (d * z, ()), c, e)[0]
    check(Graph.of([last((h, x), body_over(c, e, inner))]))
    again = projections(Fold((c, x), body, Chain(4), 1, 1))[0]
    with pytest.raises(SymgradError):
        check(Graph.of([last((h, x), body_over(c, e, again))]))
    with pytest.raises(SymgradError, match="outside its body"):
        check(Graph((c,), (c,)))


# -- errors ---------------------------------------------------------------------------------------
def refused(kind, match, step, init, xs, **options):
    with pytest.raises(kind, match=match):
        scan(step, init, xs, **options)


def test_errors_of_scan():
    h, x = input("h0", (3, 4)), input("x", (5, 3))

    def keep(c, x):
        return c, c

    refused(ShapeError, r"(?s)^scan: carry 'h' changes shape in one step\n"
            r"  carry in   float32 \(3, 4\)      init         test_folds\.py:\d+\n"
            r"  carry out  float32 \(3, 1, 4\)   step result  test_folds\.py:\d+\n"
            r".*Sum or slice away axis 1 in the step\.$",
            lambda c, x: ({"h": c["h"][:, None]}, ()), {"h": h}, x)  # fmt: skip
    refused(ShapeError, r"Sum or slice away axis 0 in the step\.$",
            lambda c, x: (V["stack"]([c, c]), ()), h, x)  # fmt: skip
    refused(ShapeError, r"Start from an init of the step's shape",
            lambda c, x: (V["zeros"]((5, 7, 2)), ()), h, x)  # fmt: skip
    refused(DTypeError, r"(?s)the carry changes dtype.*astype\(c, 'float32'\)",
            lambda c, x: (V["astype"](c, "float64"), ()), h, x)  # fmt: skip
    refused(SymgradError, r"(?s)changes its structure.*carry out  \(array, array\)",
            lambda c, x: ((c, c), ()), h, x)  # fmt: skip
    refused(SymgradError, r"must return \(carry, y\), got array", lambda c, x: c, h, x)
    refused(SymgradError, r"got \(array, None\). Return \(\)", lambda c, x: (c, None), h, x)
    refused(SymgradError, "the step must be a function", 3, h, x)
    refused(SymgradError, "scan: init: expected expressions, got str", keep, {"a": "b"}, x)
    refused(SymgradError, "scan: xs: expected expressions, got NoneType", keep, h, None)
    refused(ShapeError, r"differ in length: 5 and 4", keep, h, [x, input("z", (4, 2))])
    refused(ShapeError, "needs a leading axis", keep, h, constant(1.0))
    refused(ShapeError, "holds no sequence", keep, h, ())


def test_a_carry_that_escapes_its_step_is_named():
    h, x = input("h0", (3,)), input("x", (5, 3))
    kept = []
    scan(lambda c, x: (kept.append(c) or c, c), h, x)
    with pytest.raises(LeafError, match=r"(?s)carry of a step is used outside.*Return it"):
        evaluate(kept[0] * 2, {h: np.ones(3)})
