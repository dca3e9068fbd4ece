"""Products with rows of a table, read by index: the table's product is read instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import symgrad as sg
from symgrad.calculus.hoisting import hoist, read_inside
from symgrad.calculus.look_ups import read_tables
from symgrad.calculus.loop_parts import Moved
from symgrad.calculus.simplification import simplify
from symgrad.calculus.sinking import sink
from symgrad.graph.checker import check
from symgrad.graph.errors import DataError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import Einsum, Gather, Node, Scatter
from symgrad.graph.scanning import scan
from symgrad.graph.traversal import toposort
from tests.calculus_judges import V, real, sample, weighed

WORDS = np.random.default_rng(1).integers(-5, 5, (40, 7)).astype(np.int32)


def equal(before: Sequence[Node], after: Sequence[Node], values: dict) -> None:
    check(Graph.of(after))
    for a, b in zip(evaluate(list(before), values), evaluate(list(after), values), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-12)


def count(outputs: Sequence[Node], rows: int) -> int:
    """Products of so many elements at least."""
    return sum(
        isinstance(n, Einsum) and len(n.args) == 2 and bool(n.summed)
        and int(np.prod([int(e) for e in n.extents])) >= rows
        for n in toposort(outputs)
    )  # fmt: skip


@pytest.mark.parametrize("columns", [False, True])
def test_embedding_and_projection_at_orders_one_and_two(columns: bool) -> None:
    table, w, v = real("table", *((40, 5) if columns else (5, 40))), real("w", 40, 3), real("v", 3)
    words = constant(WORDS)
    rows = sg.take(table, words, axis=1) if columns else table[words]
    if columns:
        rows = sg.moveaxis(rows, 0, -1)  # (40, 7, 40)
    z = rows @ w
    loss = weighed(V["tanh"](z) * v, 1)
    first = sg.grad(loss, [table, w])
    second = sg.grad(sum((weighed(g, k) for k, g in enumerate(first)), constant(0.0, "float64")),
                     [table, w])  # fmt: skip
    values = sample([table, w, v], 2)
    if columns:
        before = list(simplify([loss, *first, *second]))
        equal(before, read_tables(before), values)
        return
    before = list(simplify([z, loss, *first, *second]))
    made = list(simplify(read_tables(before)))
    equal(before, made, values)
    read = 40 * 7 * 40 * 3  # multiplications of a product with every row that is read
    assert count(before[:4], read) == 3 and count(made[:4], read) == 0
    assert 3 * count(made, read) < count(before, read)
    # both gradients are products with one sum of rows
    assert sum(isinstance(n, Scatter) for n in toposort(made[2:4])) == 1


def test_what_is_cheaper_stays() -> None:
    w, values = real("w", 40, 3), {}
    for rows, moves in ((5, True), (279, False), (400, False)):
        table = real("table", rows, 40)
        z = table[constant(WORDS)] @ w
        loss = V["sin"](z).sum()
        before = list(simplify([z, *sg.grad(loss, [table, w])]))
        made = read_tables(before)
        assert moves == any(a is not b for a, b in zip(before, made, strict=True))
        values = sample([table, w], 3)
        equal(before, made, values)
    narrow = real("narrow", 5, 2)  # a product of two factors an element is no work
    before = list(simplify([narrow[constant(WORDS)] @ real("u", 2, 3)]))
    assert read_tables(before)[0] is before[0]


def test_forms_that_are_none() -> None:
    table, d = real("table", 40, 40), real("d", 40, 7)
    words = constant(WORDS)
    read = real("small", 5, 40)[words]
    picked = sg.take_along_axis(table, constant(WORDS[:, :1] + 40), axis=1)  # a row of its own each
    outputs = [
        V["einsum"]("abc,ab->abc", read, d),  # sums nothing
        V["einsum"]("abc,cb->ac", read, V["einsum"]("cb->cb", real("e", 40, 7))),  # sums an index
        picked @ real("one", 1, 3),
        V["einsum"]("abc,abd->cd", read, real("f", 40, 7, 3)),  # the user's own
    ]
    before = list(simplify(outputs))
    made = read_tables(before)
    assert all(a is b for a, b in zip(before, made, strict=True))


def test_rows_that_nothing_reads_may_be_infinite() -> None:
    table, w = real("table", 6, 40), real("w", 40, 3)
    z = table[constant(np.abs(WORDS) % 5)] @ w
    values = sample([table, w], 2)
    values[table][5] = np.inf  # never read
    before = list(simplify([z, V["tanh"](z).sum()]))
    equal(before, read_tables(before), values)


def test_a_step_reads_the_projected_table() -> None:
    words = input("words", (13, 2), "int32")
    table, w, u, h = real("table", 5, 40), real("w", 40, 3), real("u", 3, 3), real("h", 2, 3)

    def step(h: Node, word: Node) -> tuple[Node, Node]:
        h = V["tanh"](table[word] @ w + h @ u)
        return h, h

    last, ys = scan(step, h, words)
    before = list(simplify([last, ys, *sg.grad(weighed(ys, 1), [table, w, u])]))
    made = list(simplify(read_inside(read_tables(hoist(before)))))
    values = {**sample([table, w, u, h], 2), words: WORDS[:13, :2]}
    equal(before, made, values)
    forward = next(n for n in toposort(made[:1]) if isinstance(n, Fold))
    (gather,) = (n for n in forward.body.nodes if isinstance(n, Gather))
    assert gather.shape == (2, 3) and [x.shape for x in forward.xs] == [(13, 2)]
    assert not any(isinstance(n, Gather) for n in toposort(made[:1]))


def test_a_sequence_that_others_read_stays_one() -> None:
    words = input("words", (13, 2), "int32")
    table, h = real("table", 5, 3), real("h", 2, 3)
    seen = table[words]
    last, _ = scan(lambda h, x: (V["tanh"](h + x), ()), h, seen)
    (kept, _) = read_inside([last, seen * 2.0])
    (moved,) = read_inside([last])
    fold, other = kept.args[0], moved.args[0]
    assert isinstance(fold, Fold) and fold.xs[0] is seen
    assert isinstance(other, Fold) and other.xs[0] is words
    values = {**sample([table, h], 2), words: WORDS[:13, :2]}
    equal([last], [moved], values)


def test_indices_with_steps_along_another_axis_are_transposed() -> None:
    words = input("words", (2, 13), "int32")
    table, h = real("table", 5, 3), real("h", 2, 3)
    seen = Gather((table, words), (~0, 2), ((1, 0),), (0, 1, 2), True)  # (13, 2, 3)
    last, _ = scan(lambda h, x: (V["tanh"](h + x), ()), h, seen)
    (moved,) = read_inside([last])
    assert isinstance(moved.args[0], Fold) and moved.args[0].xs[0].shape == (13, 2)
    values = {**sample([table, h], 2), words: WORDS[:13, :2].T}
    state = values[h]
    for t in range(13):
        state = np.tanh(state + values[table][values[words][:, t]])
    for node in (last, moved):
        np.testing.assert_allclose(evaluate(node, values), state, rtol=1e-12)


def test_layers_whose_batch_comes_before_time_read_the_projected_table() -> None:
    words = input("words", (7, 13), "int32")
    table = real("table", 5, 40)
    ys = sg.nn.RNN(3)(table[words])
    leaves = [table, *sg.parameters(ys)]
    loss = weighed(ys, 1)
    before = list(simplify([ys, loss, *sg.grad(loss, leaves)]))
    notes: list[Moved] = []
    made = list(simplify(read_inside(read_tables(hoist(sink(before)), notes), notes)))
    equal(before, made, {**sample(leaves, 2), words: WORDS.reshape(-1)[:91].reshape(7, 13)})
    assert count(made, 7 * 13 * 40 * 3) == 0  # all products with the table or W have its 5 rows
    assert [note.heading for note in notes] == [
        "looked up", *["added by rows"] * 2, *["read inside 13 steps"] * 2,
    ]
    assert len({n for n in toposort(made) if isinstance(n, Scatter)}) == 1


def test_indices_are_checked_where_the_table_is_read() -> None:
    words = input("words", (40, 7), "int32")
    table, w = real("table", 5, 40), real("w", 40, 3)
    loss = V["tanh"](table[words] @ w).sum()
    f = sg.compile([loss, *sg.grad(loss, [table, w])])
    values = {leaf.name: value for leaf, value in sample([table, w], 1).items()}
    assert any(isinstance(n, Scatter) for n in f.stages.rewritten.every_node())
    f(words=WORDS, **values)
    with pytest.raises(DataError, match="words"):
        f(words=WORDS + 1, **values)
