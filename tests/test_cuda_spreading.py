"""Loops spread over threads: every access of every launch, and the shapes that launches take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.injectivity import Access, nonnegative, separate
from codegen.launches import Accumulate, Cooperate, Launch, Product, walk
from codegen.loop_ir import Affine
from codegen.pipeline import compile
from codegen.spreading import spread
from symgrad.graph.dims import dim
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted
from tests.launch_interpreter import launched
from tests.test_codegen_folds import cases as folds
from tests.test_codegen_nodes import cases
from tests.test_codegen_random import judge, program_of

n, m = dim("n"), dim("m")


CASES = {f"{k}-{name}": (c, name) for k, c in enumerate((cases, folds)) for name in c.makers}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    case = CASES[name][0].case(CASES[name][1])
    nodes = [*case.outputs, *case.further]
    with interpreted(launched, row_memory=False):
        f = compile(nodes)
    case.check(nodes, call(f, case.values))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    program, nodes = program_of(seed)
    with interpreted(launched, row_memory=False):
        f = compile(nodes)
    judge(program, nodes, call(f, program.values))


def launches_of(*outputs: Any) -> list[Launch | Product]:
    with interpreted(launched, row_memory=False):
        plan = compile(list(outputs)).stages.plan
    return [launch for c in plan.calls for launch in spread(c.kernel)]


def described(*outputs: Any) -> list[str]:
    return [str(launch).splitlines()[0] for launch in launches_of(*outputs)]


x = sg.input("x", (n, 5))
w = sg.input("w", (5, 7))


def test_elements_have_a_thread_each() -> None:
    assert described(sg.tanh(x) + 1) == ["a thread for i1 in 0..5*n:"]


def test_rows_have_a_block_each() -> None:
    (launch,) = launches_of(sg.max(x, axis=1) * sg.sum(x, axis=1))
    assert isinstance(launch, Launch) and launch.blocks
    assert launch.loops == (("i0", n),)
    shared = [s for s in walk(launch.body) if isinstance(s, Cooperate)]
    assert sorted(t.operation for s in shared for t in s.totals) == ["add", "greatest"]


def test_column_sums_have_a_thread_for_each_column() -> None:
    zero, total = launches_of(sg.sum(x, axis=0))
    assert isinstance(zero, Launch) and isinstance(total, Launch)
    assert not total.blocks and [e for _, e in total.loops] == [5]
    (sink,) = (s for s in walk(total.body) if isinstance(s, Accumulate))
    assert not sink.atomic


def test_one_number_is_one_block() -> None:
    (launch,) = launches_of(sg.sum(x * x))
    assert isinstance(launch, Launch) and launch.blocks and launch.loops == ()


def test_places_in_a_running_sum_have_a_thread_for_each_row() -> None:
    (launch,) = launches_of(sg.cumsum(x, axis=1))
    assert isinstance(launch, Launch) and not launch.blocks and launch.loops == (("i0", n),)


def test_products() -> None:
    (launch,) = launches_of(x @ w)
    assert isinstance(launch, Product) and launch.loops == ()


def test_counts_are_atomic() -> None:
    labels = sg.input("labels", (n,), "int32")
    table = sg.parameter("table", (7,))
    (slope,) = sg.grad(sg.sum(sg.take(table, labels) ** 2), [table])
    sinks = [
        s
        for launch in launches_of(slope)
        if isinstance(launch, Launch)
        for s in walk(launch.body)
        if isinstance(s, Accumulate)
    ]
    assert [s.atomic for s in sinks] == [True]


def access(terms: dict[str, Any], ranges: dict[str, Any], const: Any = 0) -> Access:
    return Access("x", Affine(tuple(terms.items()), const), True, ranges)


@pytest.mark.parametrize(
    ("accesses", "parallel", "expected"),
    [
        ([access({"i": 5, "j": 1}, {"i": n, "j": 5})], ["i", "j"], True),
        ([access({"i": 4, "j": 1}, {"i": n, "j": 5})], ["i", "j"], False),
        ([access({"i": n, "j": 1}, {"i": m, "j": n})], ["i", "j"], True),
        ([access({"i": m, "j": 1}, {"i": m, "j": n})], ["i", "j"], False),
        ([access({"j": -2}, {"j": 5})], ["j"], True),
        ([access({"j": 1}, {"i": 3, "j": 5})], ["i"], False),
        ([access({"j": 1}, {"i": 3, "j": 5})], ["j"], True),
        ([access({"k": 5, "j": 1}, {"i": 3, "j": 5, "k": 9})], ["j"], True),
        ([access({"i": 5, "j": 1}, {"i": 3, "j": 5}), access({"i": 5}, {"i": 3})], ["i"], True),
        ([access({"i": 5, "j": 1}, {"i": 3, "j": 5}), access({"i": 5}, {"i": 3})], ["j"], False),
        ([access({"i": 1}, {"i": 3}), access({"i": 1}, {"i": 3}, 1)], ["i"], False),
        ([access({"i": 1}, {"i": 3}), access({"i": 2}, {"i": 3})], ["i"], False),
    ],
)
def test_separate(accesses: list[Access], parallel: list[str], expected: bool) -> None:
    assert separate(accesses, parallel) is expected


def test_nonnegative() -> None:
    assert nonnegative(n * m + 3) and nonnegative(0) and not nonnegative(n - 1)
    assert np.all([not nonnegative(-1), not nonnegative(n - m)])
