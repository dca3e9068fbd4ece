"""What a graph asks of its values, and what its nodes mean."""

from __future__ import annotations

import numpy as np
import pytest

from symgrad.graph.binding import Binding, bind
from symgrad.graph.dims import dim
from symgrad.graph.errors import DataError, DTypeError, LeafError, ShapeError
from symgrad.graph.evaluator import MEANING, evaluate, evaluate_many
from symgrad.graph.folds import NODES
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import (
    constant,
    initial_value,
    input,
    inputs,
    ones,
    parameter,
    parameters,
)
from symgrad.graph.nodes import Einsum, Gather, Input, Reduce, Scatter, einsum_node
from symgrad.graph.operators import VERBS, load_verbs

load_verbs()
B, T = dim("B"), dim("T")
RNG = np.random.default_rng(17)


def test_every_class_of_node_has_a_meaning():
    assert set(NODES) - {Input} == set(MEANING)


# -- the structure of values and results ----------------------------------------------------------
def test_keys_are_nodes_or_names_and_results_have_the_structure_asked_for():
    x, w = input("x", (B, 3)), parameter("W", (3,), init=2.0)
    values = RNG.random((5, 3), np.float32)
    total = x @ w
    for given in ({x: values}, {"x": values}, {"x": values, "other": 1, input("x", (7,)): None}):
        got = evaluate(total, given)
        assert type(got) is np.ndarray and got.dtype == np.float32
        np.testing.assert_allclose(got, values @ np.full(3, 2, "f4"), rtol=1e-6)
    one, two = evaluate((total, x), {x: values, w: [1, 0, 0]})
    np.testing.assert_array_equal(one, values[:, 0])
    np.testing.assert_array_equal(two, values)
    assert isinstance(evaluate([x], {x: values}), list)
    assert set(evaluate({"a": x, "b": total}, {x: values})) == {"a", "b"}
    assert evaluate(x.sum(), {x: values}).shape == ()


def test_results_are_fresh_and_values_are_never_written():
    x = input("x", (3,))
    values = np.arange(3, dtype="f4")
    values.setflags(write=False)
    for made in (x, x[:2], x.reshape(3, 1), ones((3,)), constant([1.0, 2.0])):
        got = evaluate(made, {x: values})
        assert got.flags.writeable and got.flags.c_contiguous
        assert not np.shares_memory(got, values)
        got += 1
    np.testing.assert_array_equal(values, [0, 1, 2])
    np.testing.assert_array_equal(evaluate(ones((3,))), [1, 1, 1])


def test_missing_and_doubled_leaves():
    x, y = input("x", (B, 3)), input('a "y"\n', (B,))
    with pytest.raises(
        LeafError, match=r"no value for the input 'x'\n.*float32 \(B, 3\)"
    ) as caught:
        evaluate(x * y[:, None], {y: [1]})
    assert "test_evaluator.py" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(LeafError, match="two values for the leaf 'x'"):
        evaluate(x, {x: np.zeros((1, 3)), "x": np.zeros((1, 3))})
    with pytest.raises(LeafError, match="only leaves have values"):
        evaluate(x, {x + 1: 2})
    with pytest.raises(LeafError, match="two leaves have one name"):
        evaluate(x + input("x", (3,)), {})
    with pytest.raises(LeafError, match="evaluate: expected expressions, got str"):
        evaluate([x, "x"], {})


NAMES = [
    'x"];evil',
    "__import__('os')",
    "two\nlines",
    "line\u2028sep",
    "self",
    "naïve λ",
    " ",
    "%s{}",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_works(name):
    x = input(name, (3,))
    np.testing.assert_array_equal(evaluate(x * 2, {name: [1, 2, 3]}), [2, 4, 6])
    with pytest.raises(LeafError) as caught:
        evaluate(x * 2, {})
    assert "\u2028" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["", None, 3, b"x"])
def test_names_that_are_none(name):
    with pytest.raises(LeafError, match="the name must be a non-empty string"):
        input(name, (3,))
    with pytest.raises(LeafError, match="the name must be a non-empty string"):
        parameter(name, (3,))


# -- conversions ----------------------------------------------------------------------------------
CONVERSIONS = [
    ("float32", "float64", True),
    ("float32", "int64", True),
    ("float64", "float32", True),
    ("float32", "bool", True),
    ("int32", "int64", True),
    ("int64", "int32", True),
    ("int32", "uint8", True),
    ("int32", "bool", True),
    ("float32", ">f4", True),
    ("int32", "float64", False),
    ("int64", "float32", False),
    ("bool", "int32", False),
    ("bool", "float32", False),
    ("float32", "complex64", False),
    ("float32", "U3", False),
    ("float32", "float16", True),
]


@pytest.mark.parametrize(("leaf", "given", "fits"), CONVERSIONS)
def test_conversions(leaf, given, fits):
    x = input("x", (3,), leaf)
    values = np.array([0, 1, 1]).astype(given)
    if fits:
        got = evaluate(x, {x: values})
        assert got.dtype == np.dtype(leaf)
        np.testing.assert_array_equal(got, [0, 1, 1])
    else:
        with pytest.raises(DataError, match=rf"input 'x' is {leaf}, got .* \(3,\)") as caught:
            evaluate(x, {x: values})
        assert isinstance(caught.value, TypeError)


def test_integers_are_range_checked():
    k = input("k", (2,), "int32")
    with pytest.raises(DataError, match=f"got {2**31}, which does not fit"):
        evaluate(k, {k: np.array([0, 2**31])})
    with pytest.raises(DataError, match=f"got {-(2**31) - 1}, which does not fit"):
        evaluate(k, {k: [-(2**31) - 1, 0]})
    with pytest.raises(DataError, match="which does not fit"):
        evaluate(input("u", (1,), "int64"), {"u": np.array([2**64 - 1], np.uint64)})


def test_strided_readonly_and_list_values():
    x = input("x", (3, 5))
    base = RNG.random((5, 6), np.float32)
    np.testing.assert_array_equal(evaluate(x, {x: base[:, ::2].T}), base[:, ::2].T)
    assert evaluate(x, {x: base[:, ::2].T.tolist()}).shape == (3, 5)
    with pytest.raises(DataError, match="the value of 'x' is no array"):
        evaluate(x, {x: [[1, 2], [3]]})
    with pytest.raises(DataError, match="is an expression, not an array"):
        evaluate(x, {x: x * 2})


# -- shapes and dims ------------------------------------------------------------------------------
def test_wrong_shapes():
    x, y = input("x", (B, 3)), input("y", (B,))
    made = x * y[:, None]
    with pytest.raises(
        ShapeError, match=r"input 'x' has the wrong shape\n.*\(B, 3\).*\n  got .*\(5, 4\)"
    ):
        evaluate(made, {x: np.zeros((5, 4)), y: np.zeros(5)})
    with pytest.raises(
        ShapeError,
        match=r"'y' has the wrong shape\n.* for B = 5\n.*\(4,\)\n  It must agree with 'x' on B\.",
    ) as caught:
        evaluate(made, {x: np.zeros((5, 3)), y: np.zeros(4)})
    assert isinstance(caught.value, DataError) and isinstance(caught.value, ValueError)
    with pytest.raises(ShapeError, match="'x' has the wrong shape"):
        evaluate(made, {x: np.zeros(3), y: np.zeros(3)})
    with pytest.raises(ShapeError, match="'w' has the wrong shape"):
        evaluate(input("w", (3, 5)), {"w": np.zeros((5, 3))})


def test_dims_are_solved_from_composite_extents():
    x, y = input("x", (2 * B + 1,)), input("y", (B * T,))
    got = evaluate([x[:B], y], {x: np.arange(7), y: np.zeros(6)})  # T is told by nothing but y
    np.testing.assert_array_equal(got[0], [0, 1, 2])
    with pytest.raises(ShapeError, match="'x' has the wrong shape"):
        evaluate(x, {x: np.zeros(6)})


def test_dims_that_no_leaf_tells():
    x = input("x", (B, 3))
    made = ones((B, 2))
    np.testing.assert_array_equal(evaluate(made, {x: np.zeros((5, 3))}), np.ones((5, 2)))
    np.testing.assert_array_equal(evaluate(made, {"B": 4}), np.ones((4, 2)))
    with pytest.raises(LeafError, match="no value tells the dim 'B'"):
        evaluate(made, {})


def test_guards_name_dims_and_lines():
    a, b = input("a", (B, 3)), input("b", (T, 3))
    made = a + b
    np.testing.assert_array_equal(evaluate(made, {a: np.ones((2, 3)), b: np.ones((2, 3))}), 2)
    with pytest.raises(ShapeError, match=r"must be equal differ: .* = .* and .* = ") as caught:
        evaluate(made, {a: np.ones((2, 3)), b: np.ones((5, 3))})
    assert "B = 2" in str(caught.value) and "T = 5" in str(caught.value)
    assert "test_evaluator.py" in str(caught.value)


# -- parameters -----------------------------------------------------------------------------------
def test_initial_values():
    w, b = parameter("W", (3, 5)), parameter("b", (5,))
    one, two = initial_value(w), initial_value(w)
    np.testing.assert_array_equal(one, two)
    assert one is not two and one.dtype == np.float32 and one.flags.writeable
    assert abs(one).max() <= np.sqrt(6 / 8) and one.std() > 0.1
    assert not np.array_equal(one, initial_value(w, seed=1))
    assert not np.array_equal(one, initial_value(parameter("V", (3, 5))))
    np.testing.assert_array_equal(one, initial_value(parameter("W", (3, 5))))
    np.testing.assert_array_equal(initial_value(b), np.zeros(5))
    np.testing.assert_array_equal(evaluate(w), one)
    np.testing.assert_array_equal(evaluate(w, seed=9), one)


def test_inits():
    table = np.arange(15.0).reshape(3, 5)
    w = parameter("w", (3, 5), init=table)
    table[0] = 7
    assert w.dtype == np.float64 and initial_value(w)[0, 1] == 1
    assert parameter("w", (3, 5), init=table, dtype="float32").dtype == np.float32
    assert parameter("s", (), init=3).dtype == np.float32
    np.testing.assert_array_equal(initial_value(parameter("s", (2,), init=0.5)), [0.5, 0.5])
    np.testing.assert_array_equal(initial_value(parameter("s", (2,), init=[1, 2])), [1, 2])
    drawn = parameter("d", (3,), init=lambda shape, rng, dtype: rng.random(shape))
    assert initial_value(drawn).dtype == np.float32
    assert initial_value(parameter("d", (B, 2), init=1.0), dims={B: 4}).shape == (4, 2)
    for bad in ("zeros", object()):
        with pytest.raises(LeafError, match="init must be an initialiser, an array or a scalar"):
            parameter("p", (3,), init=bad)
    with pytest.raises(ShapeError, match=r"init has another shape\n.*\(5, 3\)\n.*\(3, 5\)"):
        parameter("p", (5, 3), init=table)
    with pytest.raises(ShapeError, match=r"initialiser returned shape \(2,\), asked for \(3,\)"):
        initial_value(parameter("p", (3,), init=lambda *_: np.zeros(2)))
    with pytest.raises(DTypeError, match="init is float64, the parameter is int32"):
        parameter("p", (3,), init=np.zeros(3), dtype="int32")
    with pytest.raises(LeafError, match="only a parameter has an initial value"):
        initial_value(input("x", ()))


def test_leaves_in_order_of_first_use():
    x, w, b = input("x", (B, 3)), parameter("w", (3, 2)), parameter("b", (2,))
    made = b + x @ w
    assert [leaf.name for leaf in parameters(made)] == ["b", "w"]
    assert [leaf.name for leaf in inputs([made, input("z", ())])] == ["x", "z"]


def test_binding_keeps_arrays_that_fit():
    x, y = input("x", (B, 3)), input("y", (B,), "int32")
    graph = Graph.of([x[y]])
    values = {"x": RNG.random((5, 3), np.float32), "y": np.zeros(5, np.int32)}
    arrays, dims = bind(graph, values)
    assert arrays[0] is values["x"] and arrays[1] is values["y"]
    assert dims == {B: 5}
    binding = Binding(graph)
    assert binding({**values, "y": np.zeros(5)[:0].astype(int), "x": values["x"][:0]})[1] == {B: 0}


# -- nodes that verbs do not make in every form ----------------------------------------------------
def test_scatter_is_the_adjoint_of_gather():
    x, k, u = input("x", (5, 7)), input("k", (3, 2), "int32"), input("u", (3, 2, 7))
    index = np.array([[0, 4], [-1, 0], [2, 2]])
    made = Scatter((u, k), (0, 1, 2), ((0, 1),), (~0, 2), (5, 7))
    updates, values = RNG.random((3, 2, 7)), RNG.random((5, 7))
    wanted = np.zeros((5, 7))
    np.add.at(wanted, index, updates)
    np.testing.assert_allclose(evaluate(made, {u: updates, k: index}), wanted, rtol=1e-5)
    gathered = evaluate(Gather((x, k), (~0, 2), ((0, 1),), (0, 1, 2)), {x: values, k: index})
    left = (gathered * updates).sum()
    np.testing.assert_allclose(left, (values * wanted).sum(), rtol=1e-5)
    with pytest.raises(
        DataError, match="scatter: index 5 is out of range for extent 5"
    ):
        evaluate(made, {u: updates, k: index + 1})


def test_gather_with_shared_and_permuted_labels():
    x, i, j = input("x", (3, 5, 7)), input("i", (7, 3), "int32"), input("j", (), "int32")
    v, k = RNG.random((3, 5, 7), np.float32), RNG.integers(0, 5, (7, 3))
    # out[c, a] = x[a, i[c, a], c]
    made = Gather((x, i), (0, ~0, 2), ((2, 0),), (2, 0))
    wanted = v[np.arange(3), k, np.arange(7)[:, None]]
    np.testing.assert_array_equal(evaluate(made, {x: v, i: k}), wanted)
    np.testing.assert_array_equal(
        evaluate(Gather((x, j), (0, ~0, 1), ((),), (1, 0)), {x: v, j: -1}), v[:, -1].T
    )


def test_running_maximum_and_long_products():
    x = input("x", (3, 5))
    v = RNG.standard_normal((3, 5)).astype("f4")
    np.testing.assert_array_equal(
        evaluate(Reduce((x,), "cummax", (1,)), {x: v}), np.maximum.accumulate(v, 1)
    )
    y, z = input("y", (5, 7)), input("z", (3, 7))
    made = einsum_node((x, y, z), ((0, 1), (1, 2), (0, 2)), (2,))
    assert isinstance(made, Einsum)
    w, u = RNG.random((5, 7), np.float32), RNG.random((3, 7), np.float32)
    np.testing.assert_allclose(
        evaluate(made, {x: v, y: w, z: u}), np.einsum("ij,jk,ik->k", v, w, u), rtol=1e-5, atol=1e-6
    )


def test_integers_to_negative_powers():
    k = input("k", (2,), "int32")
    with pytest.raises(DataError, match="negative"):
        evaluate(k ** input("n", (2,), "int32"), {"k": [1, 2], "n": [-1, 1]})


def test_no_warning_at_special_values():
    x = input("x", (4,))
    got = evaluate(
        [1 / x, VERBS["log"](x), VERBS["exp"](x * 1e3), x // 0.0], {x: [0.0, -1.0, np.inf, np.nan]}
    )
    assert np.isinf(got[0][0])


def test_long_chains_are_evaluated_in_line():
    x = input("x", (3,), "float64")
    made = x
    for _ in range(20_000):
        made = made * 0.999 + 0.001
    got = evaluate(made, {x: np.array([0.0, 1.0, 2.0])})
    np.testing.assert_allclose(got, [1, 1, 1], rtol=1e-6)


def test_intermediate_values_are_freed():
    import tracemalloc

    x = input("x", (B,))
    made = x
    for _ in range(50):
        made = VERBS["tanh"](made)
    graph = Graph.of([made])
    values = np.zeros(100_000, np.float32)
    tracemalloc.start()
    evaluate_many([made], {graph.inputs[0]: values}, {B: 100_000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * values.nbytes
