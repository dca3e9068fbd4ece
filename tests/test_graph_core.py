"""Identity of nodes, keys of graphs, walks, dims and provenance."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import sympy

from symgrad.graph import nodes as nd
from symgrad.graph.dims import Dim, as_extent, dim, same, size, value
from symgrad.graph.errors import LeafError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.functions import AXIS, P
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import arange, as_node, constant, input, parameter
from symgrad.graph.operators import VERBS, load_verbs
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import rebuild, reconnect, replace, toposort, users

load_verbs()
B, T = dim("B"), dim("T")


# -- identity -------------------------------------------------------------------------------------
def test_equal_nodes_are_one():
    x = input("x", (B, 3))
    y = parameter("y", (3, 5))
    assert x + 1 is x + 1
    assert x @ y is x @ y
    assert x[1:] is x[1:]
    assert VERBS["softmax"](x) is VERBS["softmax"](x)
    assert arange(5) is arange(5)
    assert x + 1 is not x + 2
    assert x * y[:, 0] is not y[:, 0] * x


def test_binders_have_identity():
    assert input("x", (3,)) is not input("x", (3,))


def test_constants_are_told_apart_by_type_and_bits():
    values = [1, 1.0, True, np.array(1.0), np.array([1.0]), -1.0]
    made = [constant(v) for v in values] + [constant(0.0), constant(-0.0)]
    made += [constant(np.array([np.nan], "f4")), constant(np.array([1.0], "f4"))]
    assert len({id(m) for m in made}) == len(made)
    assert constant(np.nan) is constant(np.nan)
    assert constant(0.1 + 0.2) is constant(np.float32(0.3).item())
    big = np.arange(1000.0)
    assert constant(big) is constant(big.copy())
    assert constant(big) is not constant(big[::-1])


def test_constants_are_copies():
    values = np.arange(3.0)
    node = constant(values)
    values[0] = 9
    assert node.value[0] == 0 and not node.value.flags.writeable


def test_the_table_is_weak():
    x = input("x", (3,))
    gc.collect()
    before = len(nd._TABLE)
    made = VERBS["tanh"](x * 3.25) + x
    assert len(nd._TABLE) > before
    del made
    gc.collect()
    assert len(nd._TABLE) <= before + 1  # the literal may be kept


def test_comparison_builds_an_expression():
    x = input("x", (3,))
    assert (x == x).dtype == np.bool_
    with pytest.raises(SymgradError, match="compare nodes themselves with `is`"):
        bool(x == x)
    assert {x: 1}[x] == 1


def test_interning_under_threads():
    x = input("x", (3,))
    made: list[list[int]] = []
    kept: list[object] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        node, own = x, []
        for k in range(300):
            node = node * float(k % 7) + x
            own.append(id(node))
            kept.append(node)
        made.append(own)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 8
    assert all(own == made[0] for own in made)


def test_long_chains_build_evaluate_and_die():
    x = input("x", ())
    node = x
    started = time.process_time()
    for _ in range(30_000):
        node = node + 1.0
    assert len(toposort([node])) == 30_002
    assert evaluate(node, {x: 0.0}) == 30_000
    assert time.process_time() - started < 60
    del node
    gc.collect()


# -- keys -----------------------------------------------------------------------------------------
def program(names=("x", "W", "B", "y")):
    a, b, c, d = names
    n = dim(c)
    x, w, y = input(a, (n, 3)), parameter(b, (3, 5)), input(d, (n,), "int32")
    h = VERBS["tanh"](x @ w) / n + VERBS["gelu"](x[:, :1]) * 0.5
    return VERBS["cross_entropy"](h, y).mean() + VERBS["where"](h > 0, h, 0.25).sum()


def test_alpha_equal_graphs_have_one_key():
    one = Graph.of([program()])
    two = Graph.of([program(("u", "v\n", "N", "t"))])
    assert one.key == two.key
    assert one.key != Graph.of([program() * 2]).key
    x = input("x", (3,))
    keys = {Graph.of([e]).key for e in (x + 1, x + 2, x + 1.5, x - 1, x * 1, x[1:], x[:2], x)}
    assert len(keys) == 8
    y = input("y", (3,))
    assert Graph.of([x - y]).key == Graph.of([y - x]).key
    assert Graph.of([x, y]).key != Graph.of([x, x]).key
    assert Graph.of([input("x", (B, T)).sum()]).key != Graph.of([input("x", (B, B)).sum()]).key
    assert Graph.of([input("x", (3,), "int32")]).key != Graph.of([x]).key


CHILD = """
from tests.test_graph_core import program
from symgrad.graph.graph import Graph
from symgrad.graph.text import text_of
graph = Graph.of([program()])
print(graph.key)
print(text_of(graph))
"""


def test_keys_and_text_do_not_depend_on_the_process(outside):
    told = []
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            env={**outside, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        told.append(done.stdout)
    assert told[0] == told[1] == told[2]
    assert told[0].splitlines()[0] == Graph.of([program()]).key


# -- graphs and walks -----------------------------------------------------------------------------
def test_graph_orders_leaves_by_first_use_and_nodes_by_need():
    x, y, z = input("x", (3,)), input("y", (3,)), input("z", (3,))
    graph = Graph.of([z * x + y, x])
    assert [leaf.name for leaf in graph.inputs] == ["z", "x", "y"]
    for node in graph.nodes:
        assert all(graph.number[a] < graph.number[node] for a in node.args)
    assert graph.dims == () and graph.guards == ()
    with pytest.raises(
        LeafError, match=r"two leaves have one name\n.*test_graph_core.py:\d+\n"
    ) as e:
        Graph.of([x + input("x", (3,))])
    assert str(e.value).count("test_graph_core.py:") == 2


def test_guards_are_pairs_once():
    a, b = input("a", (B, 3)), input("b", (T, 3))
    graph = Graph.of([a + b, a * b, a - b])
    assert len(graph.guards) == 1
    assert {graph.guards[0].left, graph.guards[0].right} == {B, T}
    assert graph.dims == (B, T)


def test_walks():
    x, y = input("x", (3,)), input("y", (3,))
    node = VERBS["tanh"](x * y)
    assert [type(n).__name__ for n in toposort([node])] == ["Input", "Input", "Map", "Map"]
    assert users([node])[x] == [x * y]
    assert rebuild([node], reconnect)[0] is node
    assert replace([node], {y: x})[0] is VERBS["tanh"](x * x)
    wide = input("w", (5, 3))
    assert replace([node], {y: wide})[0].shape == (5, 3)
    assert replace([node], {y: input("d", (3,), "float64")})[0].args[0].shape == (3,)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x + 1,
        lambda x: x @ x.T,
        lambda x: x.max(0),
        lambda x: x[1:],
        lambda x: x.reshape(-1),
        lambda x: x[[0, 1]],
        lambda x: VERBS["softmax"](x),
        lambda x: VERBS["stack"]([x, x * 2]),
    ],
)
def test_with_args_rebuilds(make):
    x, y = input("x", (3, 5)), input("y", (3, 5))
    made = replace([make(x)], {x: y})[0]
    assert made is make(y)


# -- dims -----------------------------------------------------------------------------------------
def test_extents():
    assert as_extent(sympy.Integer(3)) == 3 and type(as_extent(np.int64(3))) is int
    assert dim("B") == B and isinstance(B, Dim) and pickle.loads(pickle.dumps(B)) == B
    assert size((B, 3, T)) == 3 * B * T and size(()) == 1
    assert value(2 * B + 1, {B: 4}) == 9
    assert same(B * 2, B + B) is True and same(B, B + 1) is False and same(B, T) is None
    assert same(2 * B, 7) is None
    for bad in (-1, 2.5, "B", None, True, sympy.Symbol("q"), B / 0, input("k", (), "int32")):
        with pytest.raises(ShapeError):
            as_extent(bad)
    for name in ("", 3, None):
        with pytest.raises(LeafError, match="dim: the name must be a non-empty string"):
            dim(name)


def test_shapes_with_dims_meet():
    x = input("x", (B, 1, 3))
    assert (x + input("y", (T, 3))).shape == (B, T, 3)
    assert (x + input("z", (7, 1, 1))).shape == (7, 1, 3)
    assert len(Graph.of([x + input("z", (7, 1, 1))]).guards) == 1


# -- provenance -----------------------------------------------------------------------------------
def test_nodes_know_line_and_origin():
    x = input("x", (B, 3))
    node = VERBS["softmax"](x)
    assert str(node.where).startswith("test_graph_core.py:")
    assert node.origin == "softmax" and (x + 41.5).origin is None
    with provenance(origin="layer", backward_of=x):
        inner = VERBS["logsumexp"](x + 17.5)
    assert inner.origin == "layer" and inner.backward_of is x
    assert (x + 18.5).origin is None


def test_origin_is_cleared_after_an_error():
    with pytest.raises(SymgradError):
        VERBS["softmax"](input("b", (3,), "bool"))
    assert (input("x", (3,)) + 1).origin is None


# -- scalar bodies --------------------------------------------------------------------------------
def test_maps_over_positions_and_dims():
    body = AXIS[0] * 2 + P[0] * B
    x = input("x", (B, 1), "float64")
    node = nd.Map((x,), body, (B, 1), x.dtype)
    got = evaluate(node, {x: np.array([[1.0], [2.0], [5.0]])})
    np.testing.assert_array_equal(got, [[3.0], [8.0], [19.0]])
    assert evaluate(as_node(B) + 0 * x[0, 0], {x: np.zeros((3, 1))}) == 3
