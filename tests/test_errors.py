"""Errors are raised where the mistake is, and say names, shapes, the line and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import sympy

from symgrad.graph import errors as er
from symgrad.graph.dims import dim
from symgrad.graph.elementwise import elementwise
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import as_node, constant, full, input, parameter
from symgrad.graph.operators import VERBS, load_verbs

load_verbs()
B = dim("B")


def test_kinds_are_what_python_users_catch():
    kinds = {
        "ShapeError": ValueError,
        "DTypeError": TypeError,
        "LeafError": ValueError,
        "GradError": ValueError,
        "CompileError": RuntimeError,
        "DataError": ValueError,
    }
    for name, base in kinds.items():
        kind = getattr(er, name)
        assert issubclass(kind, SymgradError) and issubclass(kind, base)


def line_of(call):
    return inspect.getsourcelines(call)[1]


MISTAKES = [
    (
        lambda: input("left", (3, 5)) + input("right", (7,)),
        ShapeError,
        ["add: shapes do not broadcast", "'left'", "(3, 5)", "'right'", "(7,)", "Reshape"],
    ),
    (
        lambda: input("left", (B, 5)) @ input("right", (3, B)),
        ShapeError,
        ["matmul: inner extents differ: 5 and 3", "(B, 5)", "(3, B)"],
    ),
    (
        lambda: input("mask", (3,), "bool") - input("x", (3,)),
        DTypeError,
        ["subtract: no arithmetic on bool", "'mask'", "astype(x, 'float32')"],
    ),
    (
        lambda: VERBS["where"](input("x", (3,)), 1, 2),
        DTypeError,
        ["where: the condition must be bool", "'x'", "x != 0"],
    ),
    (
        lambda: VERBS["take"](input("x", (3,)), input("i", (2,))),
        DTypeError,
        ["take: positions must be integers", "'i'", "float32"],
    ),
    (
        lambda: input("x", (3, 5)).reshape(4, 4),
        ShapeError,
        ["reshape: (4, 4) has 16 elements, not 15", "'x'"],
    ),
    (lambda: input("x", (3, 5)).sum(2), ShapeError, ["sum: axis 2 is out of range", "(3, 5)"]),
    (lambda: VERBS["softmax"](input("x", ())), ShapeError, ["softmax: axis -1 is out of range"]),
    (
        lambda: VERBS["einsum"]("ij,jk", input("x", (3, 5)), input("y", (3, 5))),
        ShapeError,
        ["einsum 'ij,jk'", "extents 5 and 3 meet", "'x'", "'y'"],
    ),
    (lambda: VERBS["transpose"](input("x", (3, 5)), (0, 0)), ShapeError, ["no permutation", "'x'"]),
    (
        lambda: VERBS["squeeze"](input("x", (3, 5)), 0),
        ShapeError,
        ["squeeze: axis 0 has extent 3, not 1"],
    ),
    (lambda: VERBS["clip"](input("m", (3,), "bool"), 0, 1), DTypeError, ["clip", "'m'"]),
    (lambda: VERBS["mse"](input("a", (3,)), input("b", (5,))), ShapeError, ["'a'", "'b'", "(5,)"]),
    (lambda: VERBS["exp"](input("m", (3,), "bool")), DTypeError, ["exp: no arithmetic on bool"]),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_mistakes_are_named_where_they_are_made(number):
    make, kind, told = MISTAKES[number]
    with pytest.raises(kind) as caught:
        make()
    message = str(caught.value)
    for piece in told:
        assert piece in message, message
    assert f"test_errors.py:{line_of(make)}" in message
    assert len(message.splitlines()) <= 6


def test_values_that_are_no_expressions():
    x = input("x", (3,))
    for bad in ("text", None, object(), {1: 2}, 1j):
        with pytest.raises(DTypeError, match="is no expression, number or array"):
            x + bad
    with pytest.raises(DTypeError, match="a list of expressions is no expression"):
        VERBS["add"](x, [x, x])
    with pytest.raises(DTypeError, match="arrays of dtype float16 are not supported"):
        x + np.zeros(3, np.float16)
    with pytest.raises(DTypeError, match="arrays of dtype complex128 are not supported"):
        constant(np.zeros(3, complex))
    with pytest.raises(ShapeError, match="a ragged list is no array"):
        constant([[1, 2], [3]])
    with pytest.raises(DTypeError, match="does not fit into int32"):
        input("k", (3,), "int32") + 2**40
    with pytest.raises(DTypeError, match="'float16' is not supported"):
        input("h", (3,), "float16")
    with pytest.raises(ShapeError, match="full: the value must be a scalar"):
        full((3,), [1.0, 2.0])
    with pytest.raises(DTypeError, match="is an expression already"):
        constant(x, "float64")
    assert as_node(x) is x


def test_truth_length_and_number():
    x = input("x", (B,))
    with pytest.raises(TypeError, match="no truth value before it is evaluated"):
        if x > 0:
            pass
    with pytest.raises(
        TypeError, match=r"float: an expression has no value yet\. Use sg\.evaluate"
    ):
        float(x)
    with pytest.raises(TypeError):
        range(x)
    with pytest.raises(TypeError, match="len: axis 0 has the extent B"):
        list(x)


def test_functions_of_numpy_build_expressions_or_say_that_they_do_not():
    x, b = input("x", (3, 5)), input("b", (3, 5), "bool")
    assert np.sum(x) is VERBS["sum"](x) and np.max(x, axis=1).shape == (3,)
    assert np.reshape(x, (5, 3)).shape == (5, 3) and np.shape(x) == (3, 5) and np.ndim(x) == 2
    assert np.concatenate([x, x], axis=1).shape == (3, 10)
    assert np.where(b, x, 0).dtype == np.float32 and np.clip(x, 0, 1).shape == (3, 5)
    assert np.einsum("ij->j", x) is VERBS["einsum"]("ij->j", x)
    for call, message in {
        "numpy.median: no such operation on expressions": lambda: np.median(x),
        "numpy.linalg.norm: no such operation": lambda: np.linalg.norm(x),
        "numpy.sum on an expression: got an unexpected keyword": lambda: np.sum(x, dtype="f8"),
        "numpy.arctan2: no such operation": lambda: np.arctan2(x, x),
    }.items():
        with pytest.raises(TypeError, match=call):
            message()


def test_evaluate_takes_an_expression_and_a_dictionary():
    x = input("x", (3,))
    for wrong in ("x", {x}, None, [x, {"a": "x"}]):
        with pytest.raises(LeafError, match=r"evaluate: expected expressions, got (str|set|None)"):
            evaluate(wrong)
    with pytest.raises(LeafError, match=r"values must be a dictionary such as .* got list"):
        evaluate([x], [np.zeros(3)])


def test_elementwise_is_real():
    x = input("x", (3,))
    for number in (sympy.I, sympy.zoo, sympy.nan):
        with pytest.raises(DTypeError, match="expressions hold real numbers only"):
            elementwise(lambda u, number=number: u + number, x)


def test_copies_are_the_expression_itself_and_pickles_are_refused():
    e = input("x", (3,)) * 2
    assert copy.copy(e) is e and copy.deepcopy({"a": [e]})["a"][0] is e
    with pytest.raises(DTypeError, match="expressions are not pickled"):
        pickle.dumps(e)


def test_shapes_and_names():
    for bad in ((3, -1), (2.5,), "3", (None,), (True,)):
        with pytest.raises(ShapeError, match="input 'x'"):
            input("x", bad)
    with pytest.raises(LeafError, match="parameter: the name must be"):
        parameter("", (3,))
    assert input("x", 3).shape == (3,)


def test_messages_stay_on_their_lines():
    x = input("a\u2028b\nc", (3,))
    with pytest.raises(ShapeError) as caught:
        x + input("y", (5,))
    assert "a\\u2028b\\nc" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4
