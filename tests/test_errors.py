"""Errors are raised where the mistake is, and say names, shapes, the line and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import sympy

import symgrad as sg
from symgrad.calculus.derivation import derive
from symgrad.calculus.jvp import jvp
from symgrad.calculus.second_order import hessian, hvp, jacobian
from symgrad.calculus.vjp import grad, vjp
from symgrad.diagram.drawing import draw
from symgrad.graph import errors as er
from symgrad.graph.dims import dim
from symgrad.graph.elementwise import elementwise
from symgrad.graph.errors import DTypeError, GradError, LeafError, ShapeError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import as_node, constant, full, input, parameter
from symgrad.graph.operators import VERBS, load_verbs
from symgrad.insight.flow import gradient_flow

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


def test_verbs_of_whole_expressions_take_expressions():
    x = input("x", (3,))
    for name in ("latex", "cost", "inputs", "parameters", "to_sympy", "simplify", "stabilize"):
        verb = getattr(sg, name)
        for wrong, got in (("a", "str"), (None, "None"), (3, "int"), ([x, "a"], "(str|list)")):
            with pytest.raises(LeafError, match=rf"{name}: expected an expression.* got {got}"):
                verb(wrong)


STRANGE = {
    "stack": (lambda x: sg.stack(None), "give a list of arrays, got None"),
    "stack one": (lambda x: sg.stack(np.array("a")), "stack: give a list of arrays, got a"),
    "concatenate": (lambda x: sg.concatenate(3), "give a list of arrays, got 3"),
    "concatenate one": (lambda x: sg.concatenate(np.array(2.0)), "give a list of arrays, got 2.0"),
    "scan": (
        lambda x: sg.scan(lambda c, e: (c, e), x[0], x, reverse="no"),
        "scan: reverse must be True or False, got 'no'",
    ),
    "gelu": (lambda x: sg.gelu(x, "none"), "gelu: approximate must be True or False, got 'none'"),
    "gelu of two": (lambda x: sg.gelu(x, np.ones(2, bool)), "approximate must be True or False"),
    "pad with two": (lambda x: sg.pad(x, 1, [1, 2]), "pad: the value must be a scalar"),
    "pad with text": (lambda x: sg.pad(x, 1, "a"), r"'a' \(str\) is no expression"),
    "jacobian": (lambda x: jacobian(3, x), "jacobian: expected an expression, .* got int"),
    "hessian": (lambda x: hessian(x, x), r"hessian: the loss must be a scalar, got shape \(3, 5\)"),
    "hvp": (lambda x: hvp(x, x, x), "hvp: the loss must be a scalar"),
    "substitute": (lambda x: sg.substitute(x, 3), "expected {node: replacement}, got int"),
    "substitute in": (lambda x: sg.substitute(3, {x: x}), "substitute: expected an expression"),
    "cost": (lambda x: sg.cost(x, dims=3), r"dims must be a dictionary such as \{B: 32\}, got 3"),
    "init": (lambda x: sg.init.constant("a"), "constant: value must be a number, got 'a'"),
    "uniform": (lambda x: sg.init.uniform(None), "uniform: low must be a number, got None"),
    "std": (lambda x: sg.init.normal(std="1"), "normal: std must be a number, got '1'"),
    "rate": (lambda x: sg.optim.adam(None), "learning_rate must be a number, got None"),
    "momentum": (lambda x: sg.optim.sgd(0.1, momentum="a"), "momentum must be a number, got 'a'"),
    "Dropout": (lambda x: sg.nn.Dropout("a"), "Dropout: rate must be a number, got 'a'"),
    "LayerNorm": (lambda x: sg.nn.LayerNorm("a"), "epsilon must be a number, got 'a'"),
    "Sequential": (lambda x: sg.nn.Sequential(3), "Sequential: give a list of layers, got 3"),
    "transpose": (lambda x: sg.transpose(x, 1), "axes must be integers, got 1"),
    "split": (lambda x: sg.split(x, [0.5]), r"parts must be integers, got \[0.5\]"),
    "pad": (lambda x: sg.pad(x, "ab"), "one pair per axis, got 'ab'"),
    "pad too few": (lambda x: sg.pad(x, [(1, 2), (1,), (3, 4)]), "one pair per axis"),
    "tril": (lambda x: sg.tril(x, "a"), r"k must be integers, got \['a'\]"),
    "tensordot": (lambda x: sg.tensordot(x, x, [1, 2, 3]), "a number or two sequences"),
    "einsum": (lambda x: sg.einsum("ij"), "needs at least one array"),
    "arange": (lambda x: sg.arange(np.nan), "must be finite"),
    "zeros": (lambda x: sg.zeros(3, {"a": 1}), "dtype: {'a': 1} is not supported"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_arguments_of_verbs(name):
    ask, message = STRANGE[name]
    with pytest.raises(SymgradError, match=message):
        ask(input("x", (3, 5)))


def test_integers_of_numpy_are_integers():
    x = input("x", (3, 6))
    two = np.int64(2)
    assert [part.shape for part in sg.split(x, two, axis=1)] == [(3, 3)] * 2
    assert sg.pad(x, two).shape == (7, 10) and sg.pad(x, (np.int32(1), two)).shape == (6, 9)
    assert sg.pad(x, [(1, 2), (0, 3)]).shape == (6, 9)
    assert sg.tensordot(x, x.T, np.int64(1)).shape == (3, 3)
    assert sg.transpose(x, np.array([1, 0])).shape == (6, 3)


def test_numpy_makes_no_array_of_an_expression():
    x = input("x", (3,))
    for make in (np.array, np.asarray, lambda e: np.array([e, e]), np.float32):
        with pytest.raises(TypeError, match=r"an expression has no value yet\. Use sg\.evaluate"):
            make(x)
    with pytest.raises(TypeError, match="int: an expression has no value yet"):
        int(x)


def test_a_misspelt_name_of_a_value_is_shown():
    x = input("x", (3,))
    with pytest.raises(LeafError, match=r"Give one: x=\.\.\. Given and not read: 'X'\."):
        evaluate(x, {"X": np.ones(3)})


def test_the_order_of_wrt():
    x, w = input("x", (3,)), parameter("w", (3,))
    loss = (x * w).sum()
    asking = {
        "grad": grad, "jacobian": jacobian, "hessian": hessian, "derive": derive, "draw": draw,
        "vjp": lambda e, wrt: vjp(e, wrt, 1.0), "jvp": lambda e, wrt: jvp(e, wrt, [1.0, 1.0]),
        "hvp": lambda e, wrt: hvp(e, wrt, [1.0, 1.0]),
        "gradient_flow": lambda e, wrt: gradient_flow(e, wrt, {}),
    }
    for name, ask in asking.items():
        for wrong in ({x, w}, frozenset([w])):
            with pytest.raises(GradError, match=rf"{name}: .*set\. A set has no order"):
                ask(loss, wrong)
        for wrong in ({"w": w}, "w", 3, [w, "x"]):
            with pytest.raises(GradError, match=r"list or tuple of them, got (dict|str|int)"):
                ask(loss, wrong)
    assert grad(loss, [w, x, w])[0] is x


def test_two_leaves_of_one_name():
    x, other = input("x", (3,)), parameter("x", (3,))
    loss = (x * other).sum()
    tries = [
        lambda: grad(loss, x), lambda: grad(x.sum(), other), lambda: vjp(loss, x, 1.0),
        lambda: jvp(loss, x, np.ones(3)), lambda: draw(loss), lambda: hessian(loss, x),
        lambda: evaluate(loss, {}),
    ]
    for ask in tries:
        with pytest.raises(LeafError, match=r"(?s)two leaves have one name.*test_errors.*Rename"):
            ask()


def test_casts_are_told_as_what_was_written():
    k = input("k", (3,), "int32")
    with pytest.raises(ShapeError, match=r"'k' +int32 -> float32 \(3,\)  test_errors.py"):
        VERBS["concatenate"]([k, input("x", (3, 5))])
    with pytest.raises(ShapeError, match="mse: shapes do not broadcast"):
        VERBS["mse"](k, input("x", (5,)))


def test_numbers_that_would_become_infinite():
    x = input("x", (3,))
    with pytest.raises(DTypeError, match=r"the number 1e\+39 does not fit into float32"):
        x * 1e39
    with pytest.raises(DTypeError, match=r"the number -1e\+300 does not fit into float32"):
        constant([1.0, -1e300])
    with pytest.raises(DTypeError, match=r"parameter 'w': init: the number 1e\+39 does not fit"):
        parameter("w", (), init=1e39)
    assert constant(1e300, "float64").dtype == np.float64
    assert evaluate(x * -np.inf, {x: np.ones(3)})[0] == -np.inf


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
