"""Recurrences and their derivatives, compiled, against `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.nodes import Node
from tests import test_folds_calculus as calculus
from tests.calculus_judges import sample, weighed
from tests.codegen_cases import Case, Cases, real, whole

cases = Cases()
LENGTHS = {"5": 5, "1": 1, "0": 0}


def at_order_two(make: Callable[[], calculus.Made]) -> Callable[[Case], None]:
    """A case of the calculus: its value, gradients, and the gradients of one of those."""

    def build(c: Case) -> None:
        c.rtol, c.atol = 1e-11, 1e-12
        out, wrt = make()
        leaves = [n for n in wrt if not n.args]
        first = sg.grad(weighed(out, 1), wrt)
        second = sg.grad(weighed(first[-1], 2), wrt)
        told = {leaf: c.input(value) for leaf, value in sample(leaves, 3).items()}
        c.out(*sg.substitute([out, *first, *second], told))

    return build


for _make in calculus.CASES:
    cases.add(at_order_two(_make), _make.__name__)


@cases.add_each({f"{n}-{dtype}": (n, dtype) for n in LENGTHS for dtype in ("f4", "f8")})
def network(c: Case, option: tuple[str, str]) -> None:
    """Symbolic length and batch; the weights' gradients sum over both."""
    length, dtype = LENGTHS[option[0]], option[1]
    c.rtol, c.atol = (1e-5, 1e-5) if dtype == "f4" else (1e-12, 1e-12)
    t, b = c.dim("t"), c.dim("b")
    xs = c.input(real(1, length, 3, 2, dtype=dtype), t, b, 2)
    h = c.input(real(2, 3, 5, dtype=dtype), b, 5)
    w, u = c.input(0.4 * real(3, 2, 5, dtype=dtype)), c.input(0.4 * real(4, 5, 5, dtype=dtype))

    def step(h: Node, x: Node) -> tuple[Node, Node]:
        new = sg.tanh(x @ w + h @ u)
        return new, (new * h).sum(axis=1)

    last, ys = sg.scan(step, h, xs)
    loss = (last * last).sum() + (ys * ys).sum()
    first = sg.grad(loss, [w, u, h, xs])
    c.out(last, ys, loss, *first, *sg.grad((first[1] ** 2).sum(), [w, u]))


@cases.add_each({f"{t}-{s}": (t, s) for t in LENGTHS for s in LENGTHS})
def inside_each_other(c: Case, lengths: tuple[str, str]) -> None:
    """Both lengths symbolic; the inner recurrence has an outer carry among its constants."""
    c.rtol, c.atol = 1e-12, 1e-12
    t, s = c.dim("t"), c.dim("s")
    xs = c.input(real(1, LENGTHS[lengths[0]], 3, dtype="f8"), t, 3)
    zs = c.input(real(2, LENGTHS[lengths[1]], 3, dtype="f8"), s, 3)
    h, w = c.input(real(3, 3, dtype="f8")), c.input(real(4, 3, dtype="f8"))

    def outer(c: Node, x: Node) -> tuple[Node, Node]:
        def inner(d: Node, z: Node) -> tuple[Node, Node]:
            d = sg.sin(d * w + z * c)
            return d, d * x

        last, ys = sg.scan(inner, c * x, zs)
        return last + c, ys.sum(axis=0)

    last, ys = sg.scan(outer, h, xs, reverse=True)
    loss = (last**2).sum() + (ys * ys).sum()
    c.out(last, ys, *sg.grad(loss, [xs, zs, h, w]))


@cases.add
def whole_numbers_and_truth(c: Case) -> None:
    xs = c.input(whole(1, 5, 3, dtype=np.int32))
    a, b = c.input(whole(2, 3, dtype=np.int32)), c.input(whole(3, 3, dtype=np.int64))

    def step(carry: tuple[Node, ...], x: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        a, b, seen = carry
        # the carries change places
        return (b.astype("int32"), a.astype("int64"), seen | (x > a)), (a, seen, x.max())

    (p, q, seen), ys = sg.scan(step, (a, b, a > 9), xs)
    c.out(p, q, seen, *ys)


@cases.add
def look_ups(c: Case) -> None:
    """Places that are elements, and places that a step finds for the next."""
    table = c.input(whole(1, 7, 3))
    words = c.input(np.array([[6, 0], [-1, 2], [2, 2], [5, 0]], np.int32))
    h = c.input(whole(2, 2, 3))

    def step(h: Node, now: Node) -> tuple[Node, tuple[Node, Node]]:
        seen = sg.take(table, now, axis=0)
        place = sg.argmax(seen + h, axis=1)
        return seen - h, (place, sg.take(table, place, axis=0) * h)

    last, (places, ys) = sg.scan(step, h, words)
    c.out(last, places, ys, *sg.grad((last * last).sum() + ys.sum(), [table, h]))


@cases.add
def rows_in_a_step(c: Case) -> None:
    """Reductions, running sums, joins and products stand in one step."""
    c.rtol, c.atol = 1e-5, 1e-5
    n = c.dim()
    xs, h = c.input(real(1, 3, 4, 5), 3, n, 5), c.input(real(2, 4, 5), n, 5)

    def step(h: Node, x: Node) -> tuple[Node, Node]:
        weights = sg.softmax(h @ x.T, axis=1)
        new = weights @ x + sg.cumsum(h, axis=1)
        new = sg.concatenate([new[:, 2:], new[:, :2]], axis=1)
        return new / (1 + sg.std(new, axis=0)), sg.logsumexp(new, axis=1)

    last, ys = sg.scan(step, h, xs)
    c.out(last, ys, *sg.grad(ys.sum() + (last * last).sum(), [xs, h]))


@cases.add
def what_is_carried(c: Case) -> None:
    """A leaf, a constant, a view and one value twice as the first carry; unused results."""
    n = c.dim()
    xs = c.input(whole(1, 4, 3), n, 3)
    a = c.input(whole(2, 3))

    def step(carry: Any, x: Node) -> tuple[Any, Any]:
        p, q, r, s = carry
        return (p + x, q * 2, p, s + r), (q, p, p)

    (p, q, r, s), ys = sg.scan(step, (a, sg.ones((3,)), a[::-1], a), xs)
    c.out(p, q, r, s, *ys, a, xs)
    last, _ = sg.scan(lambda c, x: (c + x, c * x), a, xs)
    c.out(last)


@pytest.mark.parametrize("name", cases.makers)
def test_interpreted(name: str) -> None:
    cases.interpret(name)


# All of them are a minute's work for the compiler; these have every kind of loop between them.
few = Cases()
few.makers = {
    name: cases.makers[name]
    for name in (
        *("nested", "network-5-f4", "inside_each_other-5-0", "whole_numbers_and_truth"),
        *("look_ups", "rows_in_a_step", "what_is_carried"),
    )
}


@pytest.mark.parametrize("name", few.makers)
def test_compiled(name: str) -> None:
    few.judge(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.makers)
def test_all_compiled(name: str) -> None:
    cases.judge(name)
