"""How a recurrence's step is written for loops and products: cut first, constants transposed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import symgrad as sg
from codegen.fusion import make_schedule
from codegen.products import is_product
from codegen.schedule import FoldStage, LoopStage, ProductStage
from codegen.slicing import slice_first
from codegen.transposing import transpose_constants
from symgrad.calculus.simplification import simplify
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import Gather, Node, Reindex
from symgrad.graph.scanning import scan
from symgrad.graph.traversal import toposort
from tests.calculus_judges import V, real, sample, weighed

WORDS = constant(np.random.default_rng(1).integers(-5, 5, (4, 2)).astype(np.int32))


def equal(before: Sequence[Node], after: Sequence[Node], values: dict, exact: bool = True) -> None:
    check(Graph.of(after))
    for a, b in zip(evaluate(list(before), values), evaluate(list(after), values), strict=True):
        np.testing.assert_allclose(b, a, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-13)


def gated(cut: bool = True) -> tuple[Node, list[Node]]:
    """A step whose gates are slices of a sum of a row of a table, a product and a bias."""
    table, u, b, h = real("table", 5, 9), real("u", 3, 9), real("b", 9), real("h", 2, 3)

    def step(h: Node, word: Node) -> tuple[Node, Node]:
        z = table[word] + h @ u + b
        f, g, o = (z[:, 3 * k : 3 * k + 3] for k in range(3))
        new = V["sigmoid"](f) * h + V["tanh"](g) * V["sigmoid"](o)
        return new, new if cut else z

    last, ys = scan(step, h, WORDS)
    return weighed(last, 1) + weighed(ys, 2), [table, u, b, h]


def test_slices_of_a_sum_are_computed_with_what_reads_them() -> None:
    loss, leaves = gated()
    before = list(simplify([loss, *sg.grad(loss, leaves)]))
    after = slice_first(before)
    equal(before, after, sample(leaves, 3))
    forward = next(n for n in toposort(after) if isinstance(n, Fold))
    (stage,) = [
        s for s in make_schedule(after).stages if isinstance(s, FoldStage) and s.node is forward
    ]
    assert sum(isinstance(s, ProductStage) for s in stage.inner.stages) == 1
    domains = [s.domain for s in stage.inner.stages if isinstance(s, LoopStage)]
    assert set(domains) == {(2, 3)}  # nothing is made of the width of all gates
    assert [n.shape for n in forward.body.nodes if isinstance(n, Gather)] == [(2, 3)] * 3


def test_what_others_read_whole_is_not_cut() -> None:
    loss, _ = gated(cut=False)
    before = list(simplify([loss]))
    assert slice_first(before)[0] is before[0]
    x, y = real("x", 4, 6), real("y", 6)
    z = x * y + 1.0
    kept = [
        [V["sin"](z[:, :4]) + V["sin"](z[:, 2:])],  # overlap
        [z[:, :2] @ real("w", 2, 3), V["sin"](z[:, 2:])],  # a product reads one
        [z[:, :2], V["sin"](z[:, 2:])],  # a result
        [V["sin"](V["tril"](x * y)[:, :2])],  # knows its position
        [V["sin"](x[WORDS[:, 0]][1:])],  # along the axis of indices
    ]
    for outputs in kept:
        made = list(simplify(outputs))
        assert all(a is b for a, b in zip(made, slice_first(made), strict=True))


def test_slices_of_broadcast_arguments() -> None:
    x, y, k = real("x", 4, 1), real("y", 6), real("k", 4, 6)
    z = V["tanh"](x * y) * k + y
    outputs = [V["exp"](z[:2, :3]) * V["sin"](z[2:, 3:]), V["exp"](z[2:, :3])]
    before = list(simplify(outputs))
    after = slice_first(before)
    assert any(a is not b for a, b in zip(before, after, strict=True))
    equal(before, after, sample([x, y, k], 4))
    columns = real("t", 5, 7)[WORDS]
    before = list(simplify([V["sin"](columns[..., 1:4]), V["cos"](columns[..., 4:])]))
    after = slice_first(before)
    equal(before, after, {n: np.random.default_rng(2).normal(size=n.shape)
                          for n in toposort(before) if n.name == "t"})  # fmt: skip
    assert all(isinstance(n.args[0], Reindex) for n in toposort(after) if isinstance(n, Gather))


@pytest.mark.parametrize(("steps", "transposed"), [(3, 0), (4, 1), ("T", 1)])
def test_a_constant_that_is_read_by_columns_is_transposed_once(
    steps: int | str, transposed: int
) -> None:
    number, extent = (5, sg.dim(steps)) if isinstance(steps, str) else (steps, steps)
    x, u, h = input("x", (extent, 2, 3), "float64"), real("u", 3, 3), real("h", 2, 3)
    last, _ = scan(lambda h, x: (V["tanh"](h @ u + x), ()), h, x)
    before = list(simplify([last, *sg.grad(weighed(last, 1), [u, h])]))
    after = transpose_constants(before)
    data = np.random.default_rng(3).normal(size=(number, 2, 3))
    equal(before, after, {**sample([u, h], 2), x: data}, exact=False)
    folds = [n for n in toposort(after) if isinstance(n, Fold)]
    consts = [sum(u in toposort([c]) for c in fold.consts) for fold in folds]
    assert sorted(consts) == [1, 1 + transposed]


def test_products_of_products_are_transposed_once() -> None:
    x, u, v, h = input("x", (5, 2, 3), "float64"), real("u", 3, 3), real("v", 3, 3), real("h", 2, 3)
    step = lambda h, x: (V["tanh"](V["tanh"](h @ u + x) @ v), ())  # noqa: E731
    last, _ = scan(step, h, x)
    before = list(simplify([last, *sg.grad(weighed(last, 1), [u, v, h])]))
    after = transpose_constants(before)
    data = np.random.default_rng(3).normal(size=(5, 2, 3))
    equal(before, after, {**sample([u, v, h], 2), x: data}, exact=False)

    def products(outputs: Sequence[Node]) -> list[int]:
        folds = [n for n in toposort(outputs) if isinstance(n, Fold)]
        return sorted(sum(map(is_product, fold.body.nodes)) for fold in folds)

    assert products(after) == products(before)


def test_compiled_gates() -> None:
    loss, leaves = gated()
    f = sg.compile([loss, *sg.grad(loss, leaves)])
    values = sample(leaves, 3)
    got = f(**{leaf.name: value for leaf, value in values.items()})
    wanted = evaluate([loss, *sg.grad(loss, leaves)], values)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
