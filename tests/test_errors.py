"""Errors are raised where the mistake is, and say names, shapes, the line and what to do."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from symgrad.graph import errors as er
from symgrad.graph.dims import dim
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
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
    with pytest.raises(SymgradError, match="no truth value before it is evaluated"):
        if x > 0:
            pass
    with pytest.raises(
        TypeError, match=r"float: an expression has no value yet\. Use sg\.evaluate"
    ):
        float(x)
    with pytest.raises(TypeError):
        range(x)
    with pytest.raises(SymgradError, match="len: axis 0 has the extent B"):
        list(x)


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
