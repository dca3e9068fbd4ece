"""Derivatives of recurrences against differences, against jvp, and against the steps unrolled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.simplification import simplify
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import Node
from symgrad.graph.scanning import scan
from symgrad.graph.traversal import toposort
from tests.calculus_judges import (
    Case,
    V,
    adjoint,
    against_differences,
    all_judges,
    real,
    sample,
    total,
    weighed,
)

Made = tuple[Node, list[Node]]
RNG = np.random.default_rng(5)


def folds(*outputs: Node) -> list[Fold]:
    return [n for n in toposort(outputs) if isinstance(n, Fold)]


# -- the cases ------------------------------------------------------------------------------------
def dict_of_tuples() -> Made:
    a, b, h, c = real("a", 4, 3), real("b", 4), real("h", 3), real("c")

    def step(carry, x):
        new = V["tanh"](carry["h"] * carry["parts"][1] + x["a"])
        parts = (carry["parts"][0] * x["b"], carry["parts"][1] + total(new) * 0.1)
        return {"parts": parts, "h": new}, [new * parts[0], parts[1]]

    last, (ys, zs) = scan(step, {"h": h, "parts": (c, c * c)}, {"a": a, "b": b})
    return last["h"] * last["parts"][0] + zs[0] * ys[2], [a, b, h, c]


def integers() -> Made:
    table, keys = real("table", 5, 3), constant(np.array([0, 4, 4, 1], "int32"))
    w = real("w", 3)

    def step(carry, key):
        h, count = carry
        return (V["sin"](h * w + table[key]), count + key), (h * V["astype"](count, "float64"), key)

    (h, count), (ys, seen) = scan(step, (w * w, constant(1, "int32")), keys)
    assert (count.dtype, seen.dtype) == (np.int32, np.int32)
    return h + V["sum"](ys, axis=0) * V["astype"](seen[1] + count, "float64"), [table, w]


def old_carry_as_y() -> Made:
    a, h = real("a", 4, 3), real("h", 3)
    last, ys = scan(lambda c, x: (V["sin"](c) * x, (c, x, x * c)), h, a)
    return last + total(ys[0] * ys[1]) * V["max"](ys[2], axis=0), [a, h]


def new_carry_as_y() -> Made:
    a, h = real("a", 4, 3), real("h", 3)

    def step(c, x):
        new = V["exp"](-c * c) + x
        return new, (new, new)

    last, (y, z) = scan(step, h, a)
    return last * y[1] * z[2], [a, h]


def carry_that_is_not_reached() -> Made:
    a, h, w = real("a", 4, 3), real("h", 3), real("w", 3)

    def step(carry, x):
        c, d, e = carry
        return (V["sin"](c + x * w), V["cos"](d * c), e), c * e

    (c, _, _), ys = scan(step, (h, h * h, w), a)
    return c + ys[3], [a, h, w]


def stopped() -> Made:
    a, h, w = real("a", 4, 3), real("h", 3), real("w", 3)

    def step(c, x):
        return V["tanh"](c * V["stop_gradient"](w * c) + x), V["stop_gradient"](c) * w

    last, ys = scan(step, h, a)
    return last * total(ys), [w]


def computed_const() -> Made:
    a, w, v = real("a", 4, 3), real("w", 3, 3), real("v", 3)
    gain = V["exp"](w * 0.2) @ w
    last, ys = scan(lambda c, x: (V["tanh"](gain @ c + x), total(c * v)), v * v, a)
    return last * total(ys), [a, w, v, gain]


def const_as_next_carry() -> Made:
    a, v, h = real("a", 4, 3), real("v", 3), real("h", 3)
    last, ys = scan(lambda c, x: (v, V["sin"](c * x)), h, a)
    return last * V["sum"](ys, axis=0), [a, v, h]


def nested() -> Made:
    a, w, h = real("a", 3, 2), real("w", 2, 2), real("h", 2)

    def outer(c, x):
        def inner(d, z):
            new = V["tanh"](d @ w + z * c * x)
            return new, new * z

        d, ys = scan(inner, c * x, a)
        return V["sin"](d + c), ys * c

    last, ys = scan(outer, h, a * 0.5)
    return last + V["sum"](V["sum"](ys, axis=0), axis=0), [a, w, h]


def scan_over_ys() -> Made:
    a, w, h = real("a", 4, 3), real("w", 3), real("h", 3)
    first, ys = scan(lambda c, x: ((new := V["tanh"](c * w + x)), new), h, a)
    second, zs = scan(lambda c, x: ((new := V["sin"](c * x + w)), new), first, ys, reverse=True)
    return second * zs[0] + first, [a, w, h]


def reverse() -> Made:
    a, w, h = real("a", 4, 3), real("w", 3, 3), real("h", 3)
    last, ys = scan(lambda c, x: ((new := V["tanh"](w @ c + x)), new * c), h, a, reverse=True)
    return last * ys[0] + ys[3], [a, w, h]


def leaf_in_two_scans() -> Made:
    a, w = real("a", 4, 3), real("w", 3)
    one, _ = scan(lambda c, x: (V["sin"](c * w + x), ()), w, a)
    two, _ = scan(lambda c, x: (V["cos"](c + w * x), ()), one, a * w)
    return one * two, [a, w]


def one_step() -> Made:
    a, w, h = real("a", 1, 3), real("w", 3, 3), real("h", 3)
    last, ys = scan(lambda c, x: ((new := V["tanh"](w @ c + x)), new * c), h, a)
    return last * ys[0], [a, w, h]


def without_carry() -> Made:
    a, w = real("a", 4, 3), real("w", 3)
    _, ys = scan(lambda c, x: (c, V["sin"](x * w)), (), a)
    return ys, [a, w]


def kinks() -> Made:
    a, h = real("a", 4, 3), real("h", 3)

    def step(c, x):
        new = V["where"](c > x, V["sqrt"](V["abs"](c) + 1) * x, V["maximum"](c, 0.1 * x))
        return new, V["max"](new * x)

    last, ys = scan(step, h, a)
    return last * total(ys), [a, h]


def wrt_between() -> Made:
    a, w, h = real("a", 4, 3), real("w", 3), real("h", 3)
    last, ys = scan(lambda c, x: ((new := V["tanh"](c * w + x)), new), h, a)
    return V["sin"](last) * V["sum"](ys * ys, axis=0), [a, w, h]


CASES: list[Callable[[], Made]] = [
    dict_of_tuples, integers, old_carry_as_y, new_carry_as_y, carry_that_is_not_reached,
    computed_const, const_as_next_carry, nested, scan_over_ys, reverse, leaf_in_two_scans, one_step,
    without_carry, kinks, wrt_between,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_against_differences_and_jvp_at_orders_one_and_two(make):
    out, wrt = make()
    leaves = [n for n in wrt if not n.args]
    values = sample(leaves, 3)
    against_differences(weighed(out, 5), leaves, values, rtol=1e-5)
    slope = grad_of(out, leaves[-1])
    for batch in ((), (2,)):
        adjoint(out, leaves, values, batch)
        adjoint(slope, leaves, values, batch)


def grad_of(out: Node, leaf: Node) -> Node:
    return sg.grad(weighed(out, 6), leaf)


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_simplified_derivatives_are_legal_and_equal(make):
    out, wrt = make()
    values = sample([n for n in wrt if not n.args], 4)
    first = sg.grad(weighed(out, 1), wrt)
    second = sg.grad(weighed(first[-1], 2), wrt)
    tangents = sg.jvp(first[0], wrt, [constant(RNG.normal(size=x.shape)) for x in wrt])
    written = [out, *first, *second, tangents[1]]
    check(Graph.of(written))
    simple = simplify(written)
    check(Graph.of(simple))
    for a, b in zip(evaluate(written, values), evaluate(list(simple), values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    again = simplify(simple)
    assert all(a is b for a, b in zip(simple, again, strict=True))


# -- against the same steps, unrolled -------------------------------------------------------------
def lstm(c, x, w, u):
    h, s = c
    z = h @ w + x @ u
    i, f, o = (V["sigmoid"](z[..., k : k + 2]) for k in (0, 2, 4))
    s = f * s + i * V["tanh"](z[..., 6:8])
    h = o * V["tanh"](s)
    return (h, s), h


def unrolled(step, carry, xs, steps, reverse=False):
    ys = {}
    for t in reversed(range(steps)) if reverse else range(steps):
        carry, ys[t] = step(carry, xs[t])
    return carry, V["stack"]([ys[t] for t in range(steps)])


@pytest.mark.parametrize("backwards", [False, True])
def test_a_scan_is_its_steps_unrolled_at_order_two(backwards):
    xs, w, u = real("xs", 4, 5, 3), real("w", 2, 8), real("u", 3, 8)
    h, s = real("h", 5, 2), real("s", 5, 2)

    def step(c, x):
        return lstm(c, x, w, u)

    leaves = [xs, w, u, h, s]
    values = sample(leaves, 7)
    found = []
    for (last, cell), ys in (
        scan(step, (h, s), xs, reverse=backwards),
        unrolled(step, (h, s), xs, 4, backwards),
    ):
        loss = weighed(last, 1) + weighed(cell * cell, 2) + weighed(ys, 3)
        first = sg.grad(loss, leaves)
        second = sg.hvp(loss, leaves, [constant(v) for v in sample(leaves, 8).values()])
        found.append(evaluate([loss, *first, *second, ys], values))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_a_jacobian_takes_the_mode_with_fewer_columns_for_symbolic_lengths_too():
    x, h = input("x", (sg.dim("T"), 3), "float64"), real("h", 3)
    last, ys = scan(lambda c, x: (V["tanh"](c + x),) * 2, h, x)
    for out, wrt, reverse in ((ys, h, False), (last, h, True), (last, x, True), (ys, x, True)):
        (fold,) = {
            n for n in toposort([sg.jacobian(out, wrt)])
            if isinstance(n, Fold) and any("ct" in b.name or "_t" in b.name for b in n.binders[0])
        }  # fmt: skip
        assert fold.structure.reverse == reverse


def test_symbolic_length_and_batch_in_jacobian_and_hessian():
    T, B = sg.dim("T"), sg.dim("B")
    x, w = input("x", (T, B, 3), "float64"), real("w", 3, 3)
    h = input("h", (B, 3), "float64")

    def step(c, x):
        new = V["tanh"](c @ w + x)
        return new, V["sum"](new * x, axis=1)

    last, ys = scan(step, h, x)
    out = V["sum"](last * last, axis=0)
    J, K = sg.jacobian(out, w), sg.jacobian(ys, h)
    assert J.shape == (3, 3, 3) and K.shape == (T, B, B, 3)
    H = sg.hessian(total(out) + total(ys), w)
    check(Graph.of([J, K, H]))
    for steps, rows in ((4, 2), (1, 1), (0, 2)):
        values = {
            x: RNG.normal(size=(steps, rows, 3)), w: RNG.normal(size=(3, 3)),
            h: RNG.normal(size=(rows, 3)),
        }  # fmt: skip
        concrete = [real("cx", steps, rows, 3), real("ch", rows, 3)]
        known = {concrete[0]: values[x], concrete[1]: values[h], w: values[w]}
        xs, start = concrete
        if steps:
            end, zs = unrolled(step, start, xs, steps)
        else:
            end, zs = start + 0.0 * total(xs), V["zeros"]((0, rows), "float64")
        wanted = [
            sg.jacobian(V["sum"](end * end, axis=0), w),
            sg.jacobian(zs, start),
            sg.hessian(V["sum"](end * end) + V["sum"](zs), w),
        ]
        for a, b in zip(evaluate([J, K, H], values), evaluate(wanted, known), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_no_step_at_all():
    x, w, h = input("x", (sg.dim("T"), 3), "float64"), real("w", 3), real("h", 3)
    last, ys = scan(lambda c, x: (V["sin"](c * w + x), c), h, x)
    loss = total(last * last) + total(ys)
    gx, gw, gh = evaluate(
        list(sg.grad(loss, (x, w, h))),
        {x: np.zeros((0, 3)), w: np.ones(3), h: np.array([1.0, 2.0, 3.0])},
    )
    assert gx.shape == (0, 3)
    np.testing.assert_array_equal(gw, np.zeros(3))
    np.testing.assert_array_equal(gh, [2.0, 4.0, 6.0])


def test_hvp_is_forward_over_reverse_and_the_hessian():
    out, leaves = nested()
    loss = weighed(out, 3)
    values, vectors = sample(leaves, 5), [constant(v) for v in sample(leaves, 6).values()]
    pushed = evaluate(list(sg.hvp(loss, leaves, vectors)), values)
    table = evaluate([h for row in sg.hessian(loss, leaves) for h in row], values)
    for k, p in enumerate(pushed):
        row = table[3 * k : 3 * k + 3]
        wanted = sum(
            np.tensordot(h, v.value, v.ndim) for h, v in zip(row, vectors, strict=True)
        )
        np.testing.assert_allclose(p, wanted, rtol=1e-10, atol=1e-12)


def test_any_node_may_stand_in_wrt():
    a, w, h = real("a", 4, 3), real("w", 3), real("h", 3)
    last, ys = scan(lambda c, x: ((new := V["tanh"](c * w + x)), new), h, a)
    loss = total(last * last) + total(ys * ys)
    values = sample([a, w, h])
    g, gs, gl = evaluate(list(sg.grad(loss, (last, ys, loss))), values)
    np.testing.assert_allclose(g, 2 * evaluate(last, values))
    np.testing.assert_allclose(gs, 2 * evaluate(ys, values))
    assert gl == 1
    tangent = evaluate(sg.jvp(loss, last, constant(np.ones(3)))[1], values)
    np.testing.assert_allclose(tangent, g.sum())


def test_a_literal_that_a_step_reads_has_its_cotangent():
    k = constant(0.5, "float64")
    x, h = real("x", 4), real("h")
    last, _ = scan(lambda c, x: (k * c + x, ()), h, x)
    (g,) = evaluate(list(sg.grad(last * 1.0, [k])), {x: np.ones(4), h: 2.0})
    step = 1e-6

    def value(v: float) -> np.ndarray:
        return evaluate(scan(lambda c, x: (v * c + x, ()), h, x)[0], {x: np.ones(4), h: 2.0})

    above, below = value(0.5 + step), value(0.5 - step)
    np.testing.assert_allclose(g, (above - below) / (2 * step), rtol=1e-8)


def test_what_is_stopped_has_no_derivative():
    a, h, w = real("a", 4, 3), real("h", 3), real("w", 3)

    def step(c, x):
        return V["tanh"](V["stop_gradient"](w * c) + x), V["stop_gradient"](c) * w

    last, ys = scan(step, h, a)
    assert not folds(sg.grad(total(last), w))  # nothing is built for what is zero
    values = sample([a, h, w])
    _, old = evaluate([last, scan(lambda c, x: (step(c, x)[0], c), h, a)[1]], values)
    np.testing.assert_allclose(evaluate(sg.grad(total(ys), w), values), old.sum(axis=0))


def test_what_does_not_reach_the_loss_is_not_carried_back():
    a, h = real("a", 4, 3), real("h", 3)

    def step(carry, x):
        c, d, n = carry
        return (V["sin"](c + x), V["cos"](d + c), n + 1.0), d

    (c, _, _), _ = scan(step, (h, h, constant(0.0, "float64")), a)
    (back,) = [f for f in folds(sg.grad(total(c), h)) if f.structure.reverse]
    assert back.carries == 1


def test_float32_and_float64_in_one_step():
    a, h = input("a", (4, 3), "float32"), real("h", 3)
    last, ys = scan(lambda c, x: (V["sin"](c * V["astype"](x, "float64")), x * x), h, a)
    ga, gh = sg.grad(total(last) + V["astype"](total(ys), "float64"), (a, h))
    assert (ga.dtype, gh.dtype) == (np.float32, np.float64)
    check(Graph.of([ga, gh]))
    values = {a: RNG.normal(size=(4, 3)).astype("f4"), h: RNG.normal(size=3)}
    assert np.isfinite(evaluate(ga, values)).all()


def test_three_scans_inside_each_other_at_order_two():
    a, w = real("a", 2, 2), real("w")

    def deep(level):
        if level == 0:
            return lambda c, x: (V["sin"](c * w + x), c * x)
        return lambda c, x: scan(deep(level - 1), c * x, a)

    last, ys = scan(deep(2), w * a[0], a)
    out = total(ys) + total(last)
    values = sample([a, w], 2)
    against_differences(out, [a, w], values, rtol=1e-5)
    check(Graph.of(simplify(sg.grad(sg.grad(out, w), [a]))))


def test_registered_cases_are_judged_with_leading_axes():
    out, leaves = reverse()
    all_judges(out, leaves, sample(leaves))
    assert Case("reverse", reverse).make()[0].shape == out.shape
