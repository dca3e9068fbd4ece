"""What leaves recurrences: products of sequences at the beginning, sums over steps at the end.

Every result is held against the graph with everything inside, at orders one and two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.hoisting import hoist
from symgrad.calculus.loop_parts import ROWS, Notes
from symgrad.calculus.residuals import save_residuals
from symgrad.calculus.simplification import simplify
from symgrad.calculus.sinking import sink, terms_of
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold, binder
from symgrad.graph.functions import P
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import Einsum, Node, Scatter, map_node
from symgrad.graph.scanning import scan
from symgrad.graph.traversal import toposort
from tests.calculus_judges import V, adjoint, against_differences, real, sample, weighed

PASSES = {"sink": sink, "hoist": hoist}


def moved(outputs: Sequence[Node], *names: str) -> tuple[list[Node], Notes]:
    """The outputs after passes, both unless told."""
    notes: Notes = []
    made = save_residuals(simplify(outputs))
    for name in names or PASSES:
        made = PASSES[name](made, notes)
    made = list(simplify(made))
    check(Graph.of(made))
    return made, notes


def products(outputs: Sequence[Node]) -> int:
    """Contractions of several factors inside recurrences."""
    return sum(
        isinstance(node, Einsum) and len(node.args) > 1 and bool(node.summed)
        for fold in toposort(outputs) if isinstance(fold, Fold)
        for node in fold.body.every_node()
    )


def equal(before: Sequence[Node], after: Sequence[Node], values: dict, rtol: float = 1e-11) -> None:
    for a, b in zip(evaluate(list(before), values), evaluate(list(after), values), strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-12)


# -- random steps ---------------------------------------------------------------------------------
def random_step(seed: int) -> tuple[Callable, list[Node], Callable[[], dict]]:
    """A network of one random step over T steps of B rows: its loss, its leaves, their values.

    Rows of x are 5 wide, the state is 3 wide; words are below 7.
    """
    rng = np.random.default_rng(seed)
    steps, rows = int(rng.choice([0, 1, 4])), int(rng.choice([1, 2]))
    t, b = (sg.dim("T"), sg.dim("B")) if rng.random() < 0.3 else (steps, rows)
    x, words = input("x", (t, b, 5), "float64"), input("words", (t, b), "int32")
    table, h = real("table", 7, 5), input("h", (b, 3), "float64")
    u, v, w, k = real("u", 3, 3), real("v", 5, 3), real("w", 3, 5), real("k", 5)

    def step(c: Node, xs: tuple[Node, Node]) -> tuple[Node, tuple[Node, ...]]:
        x, word = xs
        seen = [x, table[word]][: 1 + int(rng.random() < 0.6)]
        if rng.random() < 0.3:
            seen.append(x * k)
        z = c @ u
        for s in seen:
            z = z + (V["sin"](s) if rng.random() < 0.3 else s) @ v
        new = V["tanh"](z) if rng.random() < 0.7 else V["sigmoid"](z) * c
        ys = [new, new @ w, V["softmax"](new @ w) * x, (c @ w).sum(axis=0), x @ v, x[:, ::-1]]
        picked = rng.permutation(len(ys))[: int(rng.integers(1, 4))]
        return new, tuple(ys[p] for p in picked)

    last, ys = scan(step, h, (x, words), reverse=bool(rng.random() < 0.3))
    out = [last, *ys]

    def values() -> dict:
        data = np.random.default_rng(seed + 1)
        found = {n: data.uniform(-1, 1, n.shape) for n in (table, u, v, w, k)}
        found |= {x: data.uniform(-1, 1, (steps, rows, 5)), h: data.uniform(-1, 1, (rows, 3))}
        return found | {words: data.integers(0, 7, (steps, rows)).astype(np.int32)}

    def loss() -> Node:
        parts = (V["sin"](o * (k + 1)).sum() for k, o in enumerate(out))
        return sum(parts, constant(0.0, "float64"))

    return lambda: (out, loss()), [table, u, v, w, k, h, x], values


@pytest.mark.parametrize("part", range(4))
def test_random_steps_at_orders_one_and_two(part: int) -> None:
    seen: set[str] = set()
    for seed in range(8 * part, 8 * part + 8):
        make, leaves, values = random_step(seed)
        out, loss = make()
        first = sg.grad(loss, leaves)
        second = sg.grad(sum((V["cos"](g).sum() for g in first), constant(0.0, "float64")), leaves)
        known, before = values(), [*out, loss, *first, *second]
        made, notes = moved(before)
        equal(before, made, known)
        seen |= {note.how for note in notes}
        alone, _ = moved([*out, loss, *first], ["sink", "hoist"][seed % 2])
        equal([*out, loss, *first], alone, known)
    assert seen == {"sunk", "hoisted"}


# -- networks -------------------------------------------------------------------------------------
def lstm(steps: int = 4) -> tuple[Node, list[Node], dict]:
    """Embedding, LSTM, output layer; extents (T, B, words, E, H) = (steps, 2, 7, 5, 3)."""
    words = constant(np.random.default_rng(1).integers(0, 7, (steps, 2)).astype(np.int32))
    table, v, u, b = real("table", 7, 5), real("v", 5, 12), real("u", 3, 12), real("b", 12)
    h, s, o = real("h", 2, 3), real("s", 2, 3), real("o", 3, 4)

    def step(c: tuple[Node, Node], word: Node) -> tuple[tuple[Node, Node], Node]:
        h, s = c
        z = table[word] @ v + h @ u + b
        i, f, g, q = (z[:, 3 * k : 3 * k + 3] for k in range(4))
        s = V["sigmoid"](f) * s + V["sigmoid"](i) * V["tanh"](g)
        h = V["sigmoid"](q) * V["tanh"](s)
        return (h, s), h @ o

    _, ys = scan(step, (h, s), words)
    leaves = [table, v, u, b, h, s, o]
    return weighed(V["tanh"](ys), 1), leaves, sample(leaves, 2)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_lstm_keeps_only_its_recurrent_products(steps: int) -> None:
    loss, leaves, values = lstm(steps)
    before = [loss, *sg.grad(loss, leaves)]
    made, _ = moved(before)
    equal(before, made, values)
    assert products(made) == 2  # h @ u, and the way back through it
    assert not any(
        isinstance(node, Scatter) for fold in toposort(made) if isinstance(fold, Fold)
        for node in fold.body.nodes
    )


def test_what_left_is_differentiated_again() -> None:
    loss, leaves, values = lstm(3)
    first = sg.grad(loss, leaves)
    made, _ = moved([loss, *first])
    against_differences(made[0], leaves, values)
    slope = sum((weighed(g, k) for k, g in enumerate(made[1:])), constant(0.0, "float64"))
    against_differences(slope, leaves, values)
    for out in (made[3], made[5]):
        adjoint(out, leaves, values, (2,))
    again, _ = moved(sg.grad(slope, leaves))
    wanted = sg.grad(sum((weighed(g, k) for k, g in enumerate(first)),
                         constant(0.0, "float64")), leaves)  # fmt: skip
    equal(wanted, again, values)


def test_jacobian_of_a_state_by_the_first() -> None:
    x, u, v, h = real("x", 4, 3), real("u", 5, 5), real("v", 3, 5), real("h", 5)
    last, _ = scan(lambda c, x: (V["tanh"](c @ u + x @ v), ()), h, x)
    before = [last, sg.jacobian(last, h), sg.jacobian(last, u)]
    made, notes = moved(before)
    equal(before, made, sample([x, u, v, h], 3))
    assert {note.how for note in notes} >= {"hoisted"}


def test_a_recurrence_in_a_recurrence() -> None:
    x, u, v, h = real("x", 2, 4, 2, 3), real("u", 5, 5), real("v", 3, 5), real("h", 2, 5)

    def outer(w: Node, x: Node) -> tuple[Node, Node]:
        def inner(c: Node, x: Node) -> tuple[Node, Node]:
            return (new := V["tanh"](c @ u + x @ w)), new

        last, ys = scan(inner, h, x)
        loss = (last * last).sum() + V["sin"](ys).sum()
        return w - 0.1 * sg.grad(loss, w), loss

    after, losses = scan(outer, v, x)
    before = [after, losses, *sg.grad(weighed(after, 1), [u, v])]
    made, notes = moved(before)
    equal(before, made, sample([x, u, v, h], 4))
    assert sum(note.how == "sunk" and note.length == 4 for note in notes) >= 2


# -- what stays -----------------------------------------------------------------------------------
def notes_of(*outputs: Node) -> list[tuple[str, int]]:
    return sorted((n.how, n.node.ndim) for n in moved(outputs)[1])


def test_large_products_stay_inside() -> None:
    for rows, leaves in ((ROWS - 1, 1), (ROWS, 0)):
        x, w = input("x", (3, rows, 2)), input("w", (2, 5))
        c, _ = scan(lambda c, x, w=w: (V["tanh"](c + x @ w), ()), V["zeros"]((rows, 5)), x)
        assert len(notes_of(c)) == leaves


def test_sums_are_stretched_to_the_shape_of_their_carry() -> None:
    """The cotangent of ys.sum() is one number: what v adds up has one column, for all of v's."""
    x, v, h = real("x", 4, 2, 3), real("v", 3, 5), real("h", 2, 3)
    _, ys = scan(lambda c, x: ((new := V["tanh"](c + x)), new @ v), h, x)
    before = [ys, *sg.grad(ys.sum(), [x, v, h])]
    made, notes = moved(before)
    assert [n.shape for n in made] == [n.shape for n in before] and notes
    equal(before, made, sample([x, v, h], 4))


def test_recurrences_stay_inside_with_what_reads_them() -> None:
    x, w, h = real("x", 4, 3, 2), real("w", 2, 5), real("h", 3, 5)

    def step(c: Node, x: Node) -> tuple[Node, tuple[()]]:
        last, _ = scan(lambda s, e: (V["tanh"](s + e), ()), V["zeros"]((2,), "float64"), x)
        return V["tanh"](c + V["stack"]([last, last, -last]) @ w), ()

    c, _ = scan(step, h, x)
    made, notes = moved([c])
    equal([c], made, sample([x, w, h], 3))
    assert not notes


def test_sums_that_stay_inside() -> None:
    x, y, w = real("x", 4, 2, 3), real("y", 4, 2, 5), real("w", 3, 5)

    def summed(init: Node, extra: Callable[[Node, Node], Node]) -> Callable:
        def step(c: Node, xs: tuple[Node, Node]) -> tuple[Node, tuple[()]]:
            return extra(c, xs[0]) + V["einsum"]("bi,bj->ij", *xs), ()

        return lambda: scan(step, init, (x, y))[0]

    zero, nothing = V["zeros"]((3, 5), "float64"), lambda c, x: c
    assert notes_of(summed(zero, nothing)()) == [("sunk", 2)]
    negative = V["full"]((3, 5), -0.0, "float64")
    for init, extra in (
        (w, nothing),  # begins at what may be -0.0
        (negative, nothing),
        (zero, lambda c, x: V["sin"](c)),  # is read
        (zero, lambda c, x: c * x.sum()),
        (zero, lambda c, x: c + w),  # adds what is no sum
    ):
        out = summed(init, extra)()
        assert notes_of(out) == []
    out = scan(lambda c, xs: (c + V["einsum"]("bi,bj->ij", *xs), c), zero, (x, y))
    assert notes_of(*out) == []  # each sum so far is a result

    def told(c: Node, xs: tuple[Node, Node]) -> tuple[Node, Node]:
        new = c + V["einsum"]("bi,bj->ij", *xs)
        return new, new

    out = scan(told, zero, (x, y))
    assert notes_of(*out) == []  # and so is each sum with its last term


def test_terms_of_a_sum() -> None:
    c, a, b = binder("c", (3,), np.dtype("f8")), real("a", 3), real("b", 3)
    assert terms_of(c, c * a) is None and terms_of(c, a) is None
    assert terms_of(c, V["sin"](c)) is None and terms_of(c, c - c) is None
    after = map_node(P[1] - 2.0 * P[0] * P[2], [a, c, b])
    (one,) = terms_of(c, after) or ()
    assert float(one.weight) == -2.0 and set(one.factors) == {a, b}


def test_nan_and_infinity_stay_where_they_were() -> None:
    loss, leaves, values = lstm()
    before = [loss, *sg.grad(loss, leaves)]
    made, _ = moved(before)
    for leaf, bad in ((leaves[1], np.nan), (leaves[2], np.inf), (leaves[4], np.nan)):
        broken = {**values, leaf: values[leaf].copy()}
        broken[leaf].flat[3] = bad
        for a, b in zip(evaluate(before, broken), evaluate(made, broken), strict=True):
            assert np.array_equal(np.isnan(a), np.isnan(b))


def test_draws_are_those_of_their_step() -> None:
    x, w, h = real("x", 4, 2, 3), real("w", 3, 5), real("h", 2, 5)
    last, ys = scan(
        lambda c, x: ((new := V["tanh"](c + sg.dropout(x, 0.5) @ w)), new), h, x
    )
    before = [last, ys, *sg.grad(weighed(ys, 1), [x, w])]
    made, notes = moved(before)
    assert "hoisted" in {note.how for note in notes}
    values = sample([x, w, h], 5)
    for a, b in zip(
        evaluate(before, values, seed=3, training=True),
        evaluate(made, values, seed=3, training=True), strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=1e-12)
    assert any((a != b).any() for a, b in zip(
        evaluate(before, values, seed=3, training=True),
        evaluate(before, values, seed=4, training=True), strict=True))  # fmt: skip


def test_stages_tell_what_moved_and_why() -> None:
    loss, leaves, values = lstm()
    f = sg.compile([loss, *sg.grad(loss, leaves)])
    text = str(f.stages)
    assert "hoisted out of 4 steps" in text and "depends on no carry" in text
    assert "sunk out of 4 steps" in text and "a carry that only adds up" in text
    equal([loss, *sg.grad(loss, leaves)], [constant(v) for v in f(
        **{leaf.name: values[leaf] for leaf in leaves})], values, 1e-10)  # fmt: skip


def test_stages_tell_what_is_looked_up_sliced_and_transposed_before_the_steps() -> None:
    words = input("words", (7, 13), "int32")
    ys = sg.nn.LSTM(3, peepholes=True)(real("table", 5, 40)[words])
    leaves = sg.parameters(ys)
    f = sg.compile([ys, *sg.grad(ys.sum(), leaves)])
    lines = [line.split("  ")[0] for line in str(f.stages).splitlines()]
    assert {"looked up", "added by rows", "read inside 13 steps", "sliced in 13 steps",
            "sliced before 13 steps", "transposed before 13 steps"} <= {*lines}  # fmt: skip
    assert "a product of the 5 rows of a table, not of 91 that are read" in str(f.stages)
    made = [m.node.shape for m in f.stages.moved if m.how == "sliced before"]
    assert made == [(1, 3)] * 3  # of p, as both directions read it
    assert [m.node.shape for m in f.stages.moved if m.how == "transposed before"] == [(12, 3)]
