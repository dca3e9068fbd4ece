"""Every pass on random graphs: equal values, legal graphs, nothing that grows.

Two kinds of random graphs: those of `tests/random_programs.py` go through every node class with
data on which floats are exact, so values are equal to the last bit; those of `symgrad fuzz` hold
recurrences, derivatives and naive forms, and values agree within their rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.contractions import order_contractions
from codegen.output_reuse import read_outputs
from codegen.pieces import join_pieces
from codegen.pipeline import compile
from codegen.slicing import slice_first
from codegen.transposing import transpose_constants
from symgrad.calculus.fold_merging import merge_folds
from symgrad.calculus.hoisting import hoist, read_inside
from symgrad.calculus.jvp import jvp
from symgrad.calculus.look_ups import read_tables
from symgrad.calculus.simplification import simplify
from symgrad.calculus.sinking import sink
from symgrad.calculus.stabilization import stabilize
from symgrad.calculus.unfolding import unfolded
from symgrad.calculus.vjp import grad
from symgrad.fuzz.drawing import random_program as program_of_seed
from symgrad.fuzz.judges import compared, loss_of, streams_in
from symgrad.fuzz.programs import Built, Program
from symgrad.fuzz.rounding import Shaken
from symgrad.graph import passes
from symgrad.graph.checker import check
from symgrad.graph.dims import dim
from symgrad.graph.dtypes import FLOAT32, FLOAT64
from symgrad.graph.errors import SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import input
from symgrad.graph.nodes import Einsum, Map, Node, Piece, Reindex, Scatter, map_node, reshape_node
from symgrad.graph.passes import PASSES, checking, makes, rewrites
from symgrad.graph.traversal import replace, toposort
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted
from tests.random_programs import assert_equal, outputs_of, random_program

B, C = dim("B"), dim("C")

Pass = Callable[[Sequence[Node]], Sequence[Node]]
REWRITES: dict[str, Pass] = {
    "simplify": simplify,
    "stabilize": stabilize,
    "order_contractions": order_contractions,
    "join_pieces": join_pieces,
    "read_outputs": read_outputs,
    "merge_folds": merge_folds,
    "sink": sink,
    "hoist": hoist,
    "read_tables": read_tables,
    "read_inside": read_inside,
    "slice_first": slice_first,
    "transpose_constants": transpose_constants,
}


# -- the switch -----------------------------------------------------------------------------------
def test_the_passes_are_marked() -> None:
    assert grad.__module__ and jvp.__module__  # the modules of the last two are imported
    assert set(PASSES) >= {*REWRITES, "tidy_folds", "pull_back", "push_forward"}


def test_the_checker_is_on_in_tests() -> None:
    x = input("x", (3,))

    @rewrites
    def wider(outputs: Sequence[Node]) -> list[Node]:
        return [map_node(n.body, n.args, FLOAT32) for n in outputs] + [x]

    try:
        with pytest.raises(SymgradError, match="wider: 1 outputs became 2"):
            wider([x + 1])
        with checking(False):
            assert len(wider([x + 1])) == 2
    finally:
        del PASSES["wider"]


def test_an_illegal_graph_names_the_pass() -> None:
    x = input("x", (3,))

    @makes
    def torn(outputs: Sequence[Node]) -> list[Node]:
        (node,) = outputs
        return [Map(node.args, node.body, (5,), FLOAT32)]  # three elements in five places

    @rewrites
    def bent(outputs: Sequence[Node]) -> list[Node]:
        return [n.T[0] for n in outputs]

    try:
        with pytest.raises(SymgradError, match="torn: illegal graph"):
            torn([x * 2])
        with pytest.raises(SymgradError, match="bent: an output changed"):
            bent([input("y", (3, 5)) * 2])
    finally:
        del PASSES["torn"], PASSES["bent"]


def seen(broken: Callable[[Node], Node], match: str) -> None:
    """A pass that puts what it makes of x (3, 5) inside a graph, or inside a body, is stopped."""
    x, xs = input("x", (3, 5)), input("xs", (4, 3, 5))
    c, e = binder("c", (), FLOAT32), binder("e", (3, 5), FLOAT32)

    def in_graph(middle: Callable[[Node], Node]) -> Node:
        return sg.exp(middle(x)).astype("float32").sum()

    def in_body(middle: Callable[[Node], Node]) -> Node:
        body = Graph((c, e), (c + sg.exp(middle(e)).astype("float32").sum(),))
        return projections(Fold((sg.constant(0.0), xs), body, Chain(4), 1, 1))[0]

    for place in (in_graph, in_body):

        @rewrites
        def breaks(outputs: Sequence[Node], place: Callable[..., Node] = place) -> list[Node]:
            return [place(broken) for _ in outputs]

        try:
            with pytest.raises(SymgradError, match=rf"(?s)^breaks: .*{match}"):
                breaks([place(lambda x: x * 2)])
        finally:
            del PASSES["breaks"]


def tampered(node: Node, name: str, value: object) -> Node:
    object.__setattr__(node, name, value)
    return node


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda x: tampered(x.sum(axis=0), "shape", (7,)), r"make it float32 \(5,\)"),
        (lambda x: tampered(x.T, "shape", (3, 5)), r"make it float32 \(5, 3\)"),
        (lambda x: tampered(x.max(axis=1), "shape", (5,)), r"make it float32 \(3,\)"),
        (lambda x: tampered(x[1:], "dtype", FLOAT64), "dtype float32 in a reindex of float64"),
        (lambda x: tampered(x[[0, 2]], "shape", (3, 5)), r"make it float32 \(2, 5\)"),
    ],
)
def test_shapes_and_dtypes_are_derived_anew(
    broken: Callable[[Node], Node], match: str
) -> None:
    seen(broken, match)


def test_extents_that_a_node_matches_are_equal() -> None:
    k, whole = sg.zeros((3,), "int32"), Piece((B, 5), (1, 0), (1, 1), (B, 5), (0, 0), (1, 1))
    seen(lambda x: Scatter((x, k), (0, 1), ((1,),), (~0, 1), (7, 5)), "extents 5 and 3 meet")
    seen(lambda x: Scatter((x, k), (0, 1), ((0,),), (~0, 1), (7, 4)), "extents 5 and 4 meet")
    long = sg.zeros((B, 5))
    seen(lambda x: Reindex((long * x[0],), (whole,), (B, 5)), "leave an axis of extent B")


def test_no_new_pair_of_extents_must_be_equal() -> None:
    """A rewrite's graph asks nothing of the dims that the graph before did not."""
    x, y = input("x", (B,)), input("y", (C,))
    seen(lambda e: sg.zeros((B,)) * e[0, 0] + sg.zeros((C,)), "B and C meet, which nothing")

    @rewrites
    def longer(outputs: Sequence[Node]) -> list[Node]:
        return [y * 2 for _ in outputs]

    @rewrites
    def flat(outputs: Sequence[Node]) -> list[Node]:
        first, *rest = outputs
        return [reshape_node(sg.exp(reshape_node(first, (15,))), first.shape), *rest]

    try:
        with pytest.raises(SymgradError, match="extents B and C meet"):
            longer([x * 2])
        assert longer([(x + y) * 2])[0].shape == (C,)  # here they are known to be equal
        fives = sg.stack([x] * 5)
        with pytest.raises(SymgradError, match=r"extents 15 and 5\*B meet"):
            flat([fives])
        assert len(flat([fives, x + sg.zeros((3,))])) == 2  # 5 B is 15, since B is 3
    finally:
        del PASSES["longer"], PASSES["flat"]


def test_the_switch_is_off_for_users() -> None:
    with checking(False):
        assert not passes._ON


# -- exact graphs ---------------------------------------------------------------------------------
def exact(seed: int) -> tuple[list[Node], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    program = random_program(seed, int(rng.integers(5, 40)), zeros=seed % 4 == 0)
    return outputs_of(program, everything=bool(seed % 2)), program.values


def count(nodes: Sequence[Node]) -> int:
    return len(toposort(nodes))


@pytest.mark.parametrize("name", REWRITES)
def test_exact_values(name: str) -> None:
    for seed in range(5000, 5040):
        nodes, values = exact(seed)
        made = REWRITES[name](nodes)
        check(Graph.of(made))
        for a, b in zip(evaluate(list(made), values), evaluate(nodes, values), strict=True):
            assert_equal(a, b, f"{name} of seed {seed}")


@pytest.mark.parametrize("name", ["simplify", "order_contractions", "merge_folds"])
def test_done_once_is_done(name: str) -> None:
    for seed in range(5000, 5040):
        nodes, _ = exact(seed)
        once = REWRITES[name](nodes)
        twice = REWRITES[name](once)
        assert all(a is b for a, b in zip(once, twice, strict=True)), seed


def test_simplify_does_not_explode() -> None:
    # A rule may copy a node that several read, such as a broadcast that moves towards the end;
    # no rule copies what it copied, so a graph stays below twice its size.
    for seed in range(5000, 5040):
        nodes, _ = exact(seed)
        assert count(simplify(nodes)) < 2 * count(nodes), seed


# -- programs of symgrad fuzz ---------------------------------------------------------------------
def drawn(seed: int) -> tuple[Program, list[Node]]:
    """A program and its outputs, with the slopes of their sum of sines for every third."""
    program = program_of_seed(seed)
    built = Built(program)
    nodes = [*built.outputs, *built.tellers]
    loss = loss_of(nodes)
    if seed % 3 == 0 and loss is not None and built.float_leaves:
        nodes += grad(loss, built.float_leaves)
    return program, list(stabilize(nodes))


def judge(name: str, program: Program, nodes: Sequence[Node], made: Sequence[Node]) -> None:
    streams = streams_in(nodes)
    before, after = (
        Shaken([*n, *streams], program.values, program.seed, program.training)
        for n in (nodes, made)
    )
    noise = [a + b for a, b in zip(before.noise(), after.noise(), strict=True)]
    failure = compared(name, after(), before(), noise)
    assert failure is None, (name, program.seed, failure)


@pytest.mark.parametrize("name", ["simplify", "order_contractions", "merge_folds"])
def test_values_of_programs(name: str) -> None:
    for seed in range(7000, 7030):
        program, nodes = drawn(seed)
        made = list(REWRITES[name](nodes))
        check(Graph.of(made))
        judge(name, program, nodes, made)


def test_contractions_have_two_factors() -> None:
    for seed in range(7000, 7030):
        _, nodes = drawn(seed)
        for node in Graph.of(order_contractions(nodes)).every_node():
            assert not isinstance(node, Einsum) or not node.summed or len(node.args) <= 2


def test_merging_makes_no_folds() -> None:
    def folds(nodes: Sequence[Node]) -> int:
        return sum(isinstance(n, Fold) for n in toposort(nodes))

    for seed in range(7000, 7030):
        _, nodes = drawn(seed)
        assert folds(merge_folds(nodes)) <= folds(nodes)


def test_unfolded_bodies() -> None:
    found = 0
    for seed in range(7000, 7020):
        program, nodes = drawn(seed)
        told: dict[Node, Node] = {}
        for node in toposort(nodes):
            if isinstance(node, Map) and node.dtype.kind == "f" and node.args:
                plain, leaves = unfolded(node)
                told[node] = replace([plain], dict(zip(leaves, node.args, strict=True)))[0]
                found += told[node] is not node
        for node in list(told)[:6]:
            streams = [*streams_in(nodes), *nodes[len(program.outputs) :]]
            judge("unfolded", program, [node, *streams], [told[node], *streams])
    assert found > 25


def test_scheduled_programs() -> None:
    """The loop IR of programs, run in Python: every access is checked."""
    for seed in range(7000, 7012):
        program, nodes = drawn(seed)
        with interpreted():
            f = compile(nodes, seed=program.seed, training=program.training)
        given = {leaf.name: leaf.data for leaf in program.leaves if leaf.kind != "constant"}
        names = {leaf.name for leaf in f.leaves}
        got = call(f, {k: v for k, v in given.items() if k in names})
        shaken = Shaken(list(stabilize(nodes)), program.values, program.seed, program.training)
        failure = compared("scheduled", [np.asarray(a) for a in got], shaken(), shaken.noise())
        assert failure is None, (seed, failure)
