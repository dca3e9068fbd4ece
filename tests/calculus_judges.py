"""Three judges of derivatives, and small expressions for every node class and scalar function.

A vjp is held against central differences along random directions and against jvp:
`<Jv, w> = <v, J'w>`, and both again one order higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import symgrad.graph.operators as ops
from symgrad.calculus.jvp import jvp
from symgrad.calculus.vjp import grad, vjp
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import FUNCTIONS, P, ScalarFunction
from symgrad.graph.leaves import constant, input
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    einsum_node,
    map_node,
    reshape_node,
)
from symgrad.graph.scanning import scan

Values = dict[Node, np.ndarray]
V = ops.VERBS


def real(name: str, *shape: int) -> Input:
    return input(name, shape, "float64")


def total(x: Node) -> Node:
    return einsum_node((x,), (range(x.ndim),), ())


def sample(leaves: Sequence[Node], seed: int = 0, low: float = -1.5, high: float = 1.5) -> Values:
    rng = np.random.default_rng(seed)
    return {x: rng.uniform(low, high, size=x.shape) for x in leaves}


# -- judges ---------------------------------------------------------------------------------------
def weighed(out: Node, seed: int) -> Node:
    """A scalar that depends on every element of `out` differently."""
    rng = np.random.default_rng(seed)
    return total(out * constant(rng.uniform(0.5, 1.5, size=out.shape)))


def against_differences(
    loss: Node, leaves: Sequence[Node], values: Values, order: int = 2, rtol: float = 2e-6
) -> None:
    """<grad, v> = (loss(x + h v) - loss(x - h v)) / 2h, and the same of <grad, w> as a loss."""
    gradients = grad(loss, leaves)
    rng = np.random.default_rng(order)
    step = 1e-5
    found = evaluate(list(gradients), values)
    for leaf, g in zip(leaves, found, strict=True):
        assert g.shape == leaf.shape
        v = rng.normal(size=leaf.shape)
        above, below = (
            evaluate(loss, {**values, leaf: values[leaf] + s * step * v}) for s in (1, -1)
        )
        measured = (above - below) / (2 * step)
        scale = 1 + np.abs(found[0]).max(initial=0.0)
        np.testing.assert_allclose((g * v).sum(), measured, rtol=rtol, atol=2e-8 * scale)
    if order > 1:
        lower = sum((weighed(g, 10 + k) for k, g in enumerate(gradients)), constant(0.0, "float64"))
        against_differences(lower, leaves, values, order - 1, rtol)


def adjoint(
    out: Node, leaves: Sequence[Node], values: Values, batch: tuple[int, ...] = ()
) -> None:
    """<J v, w> = <v, J' w>, for (co)tangents with leading axes `batch`."""
    rng = np.random.default_rng(3)
    tangents = [real(f"tangent{k}", *batch, *x.shape) for k, x in enumerate(leaves)]
    cotangent = real("cotangent", *batch, *out.shape)
    known = {**values, **{t: rng.normal(size=t.shape) for t in (*tangents, cotangent)}}
    _, pushed = jvp(out, leaves, tangents)
    pulled = vjp(out, leaves, [cotangent])
    assert pushed.shape == cotangent.shape
    first, *rest = evaluate([pushed, *pulled], known)

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(axis=tuple(range(len(batch), a.ndim)))

    left = inner(first, known[cotangent])
    right = sum(inner(g, known[t]) for g, t in zip(rest, tangents, strict=True))
    size = np.abs(first).sum() * np.abs(known[cotangent]).sum()
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-13 * (1 + size))


def all_judges(out: Node, leaves: Sequence[Node], values: Values) -> None:
    against_differences(weighed(out, 5), leaves, values)
    slope = grad(weighed(out, 6), leaves[0])
    for batch in ((), (2,), (3, 2)):
        adjoint(out, leaves, values, batch)
        adjoint(slope, leaves, values, batch)


# -- expressions by node class --------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A small expression that goes through one node class."""

    name: str
    make: Callable[[], tuple[Node, list[Node]]]
    low: float = -1.5
    high: float = 1.5


def _map_cases() -> list[Case]:
    a, b, c, d = real("a", 3, 5), real("b", 5), real("c", 3, 1), real("d")
    return [
        Case("broadcast", lambda: (V["tanh"](a * b + c) * V["exp"](d * b), [a, b, c, d])),
        Case("stretched", lambda: (c * V["sin"](c) + 0.0 * a, [c, a])),
        Case("constant slope", lambda: (2.0 * a - b, [a, b])),
        Case("select", lambda: (V["where"](a > b, a * c, b), [a, b, c])),
        Case("axes", lambda: (V["tril"](a * a), [a])),
        Case("quotient", lambda: (a / (2.5 + b * b), [a, b])),
        Case("twice", lambda: (a * a * a + a, [a])),
    ]


def _einsum_cases() -> list[Case]:
    a, w, x, m = real("a", 3, 5), real("w", 5, 7), real("x", 5), real("m", 3, 3)
    y = real("y", 3)
    return [
        Case("product", lambda: (V["tanh"](a @ w), [a, w])),
        Case("transposed", lambda: (V["einsum"]("ij,jk->ki", a, w) ** 2, [a, w])),
        Case("sum", lambda: (V["sin"](a.sum(axis=0)), [a])),
        Case("keepdims", lambda: (a * a.sum(axis=1, keepdims=True), [a])),
        Case("broadcast", lambda: (V["broadcast_to"](x, (3, 5)) * a, [x, a])),
        Case("three", lambda: (V["einsum"]("ij,j,jk->i", a, x, w), [a, x, w])),
        Case("same twice", lambda: (V["einsum"]("i,ij,j->", y, m, y), [y, m])),
        Case("trace", lambda: (V["trace"](m @ m), [m])),
        Case("private labels", lambda: (V["einsum"]("ij,k->i", a, x) ** 2, [a, x])),
    ]


def _reduce_cases() -> list[Case]:
    a, z = real("a", 3, 5), real("z", 3, 2, 4)

    def reduced(op: str, axes: tuple[int, ...]) -> Callable[[], tuple[Node, list[Node]]]:
        return lambda: (V["sin"](Reduce((V["tanh"](a) * a,), op, axes)), [a])

    cases = [
        Case(f"{op} over {k}", reduced(op, (k,)))
        for op in ("max", "min", "prod", "cumsum", "cumprod", "cummax")
        for k in (0, 1)
    ]
    for op in ("max", "prod"):
        cases.append(Case(f"{op} over all", reduced(op, (0, 1))))
        cases.append(
            Case(f"{op} over two", lambda op=op: (Reduce((z * z,), op, (0, 2)), [z]), 0.5, 1.5)
        )
    cases.append(
        Case("argmax", lambda: (V["astype"](V["argmax"](a, 1), "float64") * a.sum(axis=1), [a]))
    )
    return cases


def _reindex_cases() -> list[Case]:
    a, b = real("a", 3, 5), real("b", 2, 5)
    strided = Piece((3, 5), (2, 1), (-1, 2), (3, 2), (0, 1), (2, 3))
    return [
        Case("reshape", lambda: (reshape_node(a * a, (5, 3)), [a])),
        Case("flatten", lambda: (reshape_node(a, (15,)) ** 2, [a])),
        Case("strided", lambda: (Reindex((a * a,), (strided,), (5, 7)), [a])),
        Case("slice", lambda: (a[::-2, 1:4] ** 3, [a])),
        Case("joined", lambda: (V["concatenate"]([a, b * a[:2]], 0) ** 2, [a, b])),
        Case("parts", lambda: (a[0] * a[1] + a[2], [a])),
    ]


def _gather_cases() -> list[Case]:
    a = real("a", 3, 5)
    rows = constant(np.array([1, 0, -1, 1], np.int32))
    labels = constant(np.array([1, 4, -2], np.int32))
    both = constant(np.array([[0, 2, 2], [1, 1, -3]], np.int32))
    return [
        Case("rows", lambda: (Gather((a * a, rows), (~0, 1), ((0,),), (0, 1)), [a])),
        Case("columns", lambda: (Gather((a * a, rows), (0, ~0), ((1,),), (1, 0)), [a])),
        Case("labels", lambda: (Gather((a * a, labels), (0, ~0), ((0,),), (0,)), [a])),
        Case(
            "two indices",
            lambda: (Gather((a * a, both, both), (~0, ~1), ((0, 1), (0, 1)), (0, 1)), [a]),
        ),
    ]


def _scatter_cases() -> list[Case]:
    a = real("a", 3, 5)
    rows = constant(np.array([1, -1, 1], np.int32))
    return [
        Case("rows", lambda: (Scatter((a * a, rows), (0, 1), ((0,),), (~0, 1), (4, 5)), [a])),
        Case(
            "labels",
            lambda: (Scatter((a[:, 0], rows), (0,), ((0,),), (0, ~0), (3, 5)) ** 2, [a]),
        ),
    ]


def _leaf_cases() -> list[Case]:
    a = real("a", 3, 5)
    return [Case("itself", lambda: (a, [a])), Case("cube", lambda: (a * a * a, [a]))]


def _constant_cases() -> list[Case]:
    a, c = real("a", 3, 5), constant(np.arange(15.0).reshape(3, 5))
    return [Case("literal", lambda: (c * a * a, [a])), Case("alone", lambda: (c, [a]))]


def _recurrence(reverse: bool) -> tuple[Node, Node, list[Node]]:
    a, w, h = real("a", 4, 3), real("w", 3, 3), real("h", 3)

    def step(c: Node, x: Node) -> tuple[Node, Node]:
        new = V["tanh"](c @ w + x)
        return new, new * c

    carry, ys = scan(step, h * h, a, reverse)
    return carry, ys, [a, w, h]


def _fold_cases() -> list[Case]:
    (c, y, one), (d, z, two) = _recurrence(False), _recurrence(True)
    return [
        Case("both results", lambda: (c * y, one)),
        Case("reverse", lambda: (d * z, two)),
    ]


def _proj_cases() -> list[Case]:
    c, y, leaves = _recurrence(False)
    return [Case("carry", lambda: (c, leaves)), Case("y", lambda: (y, leaves))]


CASES: dict[type[Node], list[Case]] = {
    Input: _leaf_cases(),
    Constant: _constant_cases(),
    Map: _map_cases(),
    Einsum: _einsum_cases(),
    Reduce: _reduce_cases(),
    Reindex: _reindex_cases(),
    Gather: _gather_cases(),
    Scatter: _scatter_cases(),
    Fold: _fold_cases(),
    Proj: _proj_cases(),
}


def every_case() -> list[tuple[str, Case]]:
    return [(f"{cls.__name__}: {c.name}", c) for cls, cases in CASES.items() for c in cases]


def applied(function: ScalarFunction) -> tuple[Node, list[Node]]:
    """A scalar function over floats, conditions made by comparing, as float64."""
    leaves: list[Node] = []
    args: list[Node] = []
    for k in range(function.arity):
        leaf = real(f"x{k}", 3, 5)
        leaves.append(leaf)
        condition = function.name.startswith("logical") or (
            function.name == "select" and k == 0
        )
        args.append(leaf > 0.6 if condition else leaf)
    out = map_node(function.cls(*P[: function.arity]), args)
    if out.dtype != np.float64:
        out = out.astype("float64")
    return out, leaves


FUNCTION_NAMES = sorted(FUNCTIONS)
