"""What simplification does to recurrences: equal values, fewer steps, fewer carries."""

from __future__ import annotations

import numpy as np

import symgrad as sg
from symgrad.calculus.fold_merging import merge_folds
from symgrad.calculus.simplification import simplify, substitute
from symgrad.graph.checker import check
from symgrad.graph.dtypes import FLOAT64, INT64
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Chain, Fold, Proj, binder
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import Einsum, Map, Node
from symgrad.graph.scanning import scan
from symgrad.graph.traversal import toposort
from tests.calculus_judges import V, real, sample, total

T = sg.dim("T")


def folds(*outputs: Node) -> list[Fold]:
    return [n for n in toposort(outputs) if isinstance(n, Fold)]


def simple(*outputs: Node, values=None) -> tuple[Node, ...]:
    made = simplify(outputs)
    check(Graph.of(made))
    assert all(a is b for a, b in zip(made, simplify(made), strict=True))
    if values is not None:
        for a, b in zip(evaluate(list(outputs), values), evaluate(list(made), values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    return made


def rnn(x: Node, w: Node, h: Node) -> tuple[Node, Node]:
    return scan(lambda c, x: ((new := V["tanh"](c @ w + x)), new), h, x)


def test_recurrences_of_two_bounds_stay_two():
    """Their carries are equal where both take steps; one of them ends earlier."""
    x, h = real("x", 4, 3), real("h", 3)
    m, n = input("m", (), "int64"), input("n", (), "int64")

    def last(bound: Node) -> Node:
        c, e, steps = binder("c", (3,), FLOAT64), binder("e", (3,), FLOAT64), binder("m", (), INT64)
        body = Graph((c, e, steps), (V["tanh"](c + e),))
        return Proj((Fold((h, x, bound), body, Chain(4, bounded=True), 1, 1),), 0)

    assert len(folds(*merge_folds([last(m), last(m)]))) == 1
    assert len(folds(*merge_folds([last(m), last(n)]))) == 2


def test_the_primal_and_its_widened_copy_are_one():
    x, w, h = real("x", 4, 3), real("w", 3, 3), real("h", 3)
    last, ys = rnn(x, w, h)
    loss = total(last * last) + total(ys)
    values = sample([x, w, h])
    both = simple(loss, *sg.grad(loss, (w, h)), values=values)
    assert [f.structure.reverse for f in folds(*both)] == [False, True]


def test_two_gradients_of_one_fold_share_both_passes():
    x, w, h = real("x", 4, 3), real("w", 3, 3), real("h", 3)
    last, _ = rnn(x, w, h)
    loss = total(last * last)
    apart = [sg.grad(loss, leaf) for leaf in (w, h, x)]
    values = sample([x, w, h])
    together = simple(loss, *apart, values=values)
    assert len(folds(*together)) == 2
    wanted = simple(loss, *sg.grad(loss, (w, h, x)), values=values)
    assert len(toposort(together)) == len(toposort(wanted))


def test_scans_written_twice_are_one_and_scans_that_read_each_other_are_not():
    x, w, h = real("x", 4, 3), real("w", 3, 3), real("h", 3)
    values = sample([x, w, h])
    (a, ys), (b, zs) = rnn(x, w, h), rnn(x, w, h)
    made = simple(a + b, ys * zs, values=values)
    assert len(folds(*made)) == 1
    c, _ = rnn(ys, w, h)
    assert len(folds(*simple(a, c, values=values))) == 2
    d, _ = rnn(x, w.T, h)
    assert len(folds(*simple(a, d, values=values))) == 2


def test_what_nothing_reads_is_dropped():
    x, h = real("x", 4, 3), real("h", 3)

    def step(carry, x):
        a, b, c, d = carry
        return (V["sin"](a + x), b * a, c + d, d * c), (b, x * 2.0, c)

    (a, *_), (_, y, _) = scan(step, (h, h + 1.0, h, h), x)
    made = simple(a, y, values=sample([x, h]))
    (fold,) = folds(*made)
    assert fold.carries == 1 and len(fold.body.outputs) == 2


def test_equal_carries_are_found_together():
    x, h = real("x", 4, 3), real("h", 3)

    def step(carry, x):
        a, b, c = carry  # a and b need each other to stay equal
        return (V["sin"](b) + x, V["sin"](a) + x, V["cos"](c) + x), a + b

    (a, b, c), ys = scan(step, (h, h, h), x)
    made = simple(a, b, c, ys, values=sample([x, h]))
    (fold,) = folds(*made)
    assert fold.carries == 2 and made[0] is made[1]


def test_equal_arguments_meet_and_still_carries_become_constants():
    x, w, h = real("x", 4, 3), real("w", 3), real("h", 3)

    def step(carry, x):
        c, k, m = carry
        return (V["sin"](c * k + x[0] * x[1] * w + m), k, w), c * k

    (c, k, m), ys = scan(step, (h, w, w), (x, x))
    made = simple(c, k, m, ys, values=sample([x, w, h]))
    (fold,) = folds(*made)
    assert (fold.carries, fold.sequences, len(fold.consts)) == (1, 1, 1)
    assert made[1] is w and made[2] is w


def test_numbers_move_inside_and_what_does_not_change_moves_outside():
    x, w, h = real("x", 4, 3), real("w", 3, 3), real("h", 3)
    k = constant(0.5, "float64")

    def step(c, x):
        return V["tanh"](k * c @ V["exp"](w @ w) + V["zeros"](3, "float64") + x), V["sum"](w)

    last, ys = scan(step, h, x)
    assert k in folds(last)[0].consts
    made = simple(last, ys, values=sample([x, w, h]))
    (fold,) = folds(*made)
    (const,) = fold.consts
    assert isinstance(const, Map) and const.shape == (3, 3)
    assert not any(isinstance(n, Map) and n.body.has(sg.exp.__class__) for n in fold.body.nodes)
    assert isinstance(made[1], Einsum)  # y is the same at every step: repeated outside


def test_a_transpose_of_a_constant_stays_inside():
    x, w, h = real("x", 4, 3), real("w", 3, 3), real("h", 3)
    last, _ = scan(lambda c, x: (w.T @ c + x, ()), h, x)
    (fold,) = folds(*simple(last, values=sample([x, w, h])))
    assert fold.consts[0] is w


def test_a_sequence_that_repeats_one_element_is_a_constant():
    x, w, h = real("x", 4, 3), real("w", 3), real("h", 3)
    last, ys = scan(lambda c, x: (c * x[1] + x[0], x[0]), h, (x, V["broadcast_to"](w, (4, 3))))
    made = simple(last, ys, values=sample([x, w, h]))
    (fold,) = folds(*made)
    assert fold.sequences == 1 and fold.consts[0] is w
    assert made[1] is x  # y[t] = x[t]


def test_inner_recurrences_are_simplified_and_hoisted():
    x, w, h = real("x", 4, 3), real("w", 3), real("h", 3)

    def outer(c, x):
        fixed, _ = scan(lambda d, z: (d * w + z, ()), w, V["stack"]([w, w * w]))
        moving, _ = scan(lambda d, z: (V["sin"](d * z + 0.0 * d), ()), c, V["stack"]([w, x]))
        return moving * fixed, ()

    last, _ = scan(outer, h, x)
    (made,) = simple(last, values=sample([x, w, h]))
    assert len(folds(made)) == 2
    (loop,) = [f for f in folds(made) if folds(*f.body.outputs)]
    assert len(folds(*loop.body.outputs)) == 1


def test_a_fold_that_nothing_reads_is_gone():
    x, h = input("x", (T, 3), "float64"), real("h", 3)
    last, _ = scan(lambda c, x: (c, x), h, x)
    assert simple(last)[0] is h


def test_substitute_reaches_what_a_step_uses():
    x, w, v, h = real("x", 4, 3), real("w", 3), real("v", 3), real("h", 3)
    gain = V["exp"](w)
    last, _ = scan(lambda c, x: (c * gain * w + x, ()), h, x)
    values = sample([x, w, v, h])
    for old, new in ((w, v), (gain, v * 2.0), (x, x * x), (h, v)):
        made = substitute(last, {old: new})
        check(Graph.of([made]))

        def step(c, x, old=old, new=new):
            inner = {gain: gain, w: w} | {old: new}
            return c * substitute(gain, {old: new}) * inner[w] + x, ()

        wanted, _ = scan(step, v if old is h else h, x * x if old is x else x)
        np.testing.assert_allclose(evaluate(made, values), evaluate(wanted, values), rtol=1e-14)


def test_a_body_is_simplified_once():
    x, w, h = real("x", 4, 3), real("w", 3, 3), real("h", 3)
    last, _ = rnn(x, w, h)
    (made,) = simple(total(last * last))
    body = folds(made)[0].body
    (again,) = simplify([made + 1.0])
    assert folds(again)[0].body is body


def test_a_step_keeps_nan_and_infinity_of_what_was_written():
    x, h = real("x", 4), real("h")
    last, ys = scan(lambda c, x: (0.0 * c + x * 0.0, c - c), h, x)
    values = {x: np.array([1.0, np.inf, 2.0, np.nan]), h: np.array(np.inf)}
    for a, b in zip(evaluate([last, ys], values), evaluate(list(simplify([last, ys])), values),
                    strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_of_scan_are_projections():
    x, h = real("x", 4), real("h")
    last, ys = scan(lambda c, x: (c + x, c), h, x)
    assert isinstance(last, Proj) and isinstance(ys, Proj)
    assert (last.name, ys.name) == ("carry 0", "y 0")
