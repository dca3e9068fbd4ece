"""Scalar functions and bodies, compiled, against `evaluate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy

import symgrad as sg
from codegen.compiled import Compiled
from codegen.pipeline import compile
from symgrad.graph import functions as fn
from symgrad.graph.checker import check
from symgrad.graph.dims import dim
from symgrad.graph.dtypes import ALL, BOOL, INT64, DType, is_float, is_int
from symgrad.graph.errors import SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.functions import AXIS, CAST, FUNCTIONS, P
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Map, Node, map_node
from symgrad.graph.scalars import infer_dtype
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted

Array = np.ndarray[Any, Any]

# Units in the last place between a kernel and NumPy: the bound of kernels in tests/test_runtime.py,
# 4, and as much again for NumPy's vector code, which is within 4 for every function used here.
LOOSE = 8
# One rounding on either side: the same operation of IEEE 754, or a choice between its operands.
EXACT = {
    *("sqrt", "abs", "sign", "floor", "maximum", "minimum", "floor_divide", "mod", "less"),
    *("less_equal", "equal", "not_equal", "logical_and", "logical_or", "logical_xor"),
    *(
        "logical_not",
        "isnan",
        "isfinite",
        "select",
        "stop_gradient",
        *(name for name, f in FUNCTIONS.items() if f.result in ("cast", "draw")),
    ),
}


def numbers(dtype: DType, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == BOOL:
        return rng.random(80) < 0.5
    if is_int(dtype):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        usual = np.array([0, 1, -1, 2, 7, -7, high, low, high - 1, low + 1], dtype)
        return np.concatenate([usual, rng.integers(-99, 99, 70).astype(dtype)])
    usual = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 2.5], dtype)
    x = np.concatenate([usual, rng.uniform(-20, 20, 40), rng.uniform(-2, 2, 30)]).astype(dtype)
    rng.shuffle(x)
    return x


ARGUMENTS = {t: [Input(f"{t}.{k}", (80,), t) for k in range(3)] for t in ALL}
ON_TRUTH = {"maximum", "minimum", "select", "equal", "not_equal", "stop_gradient"}


def is_defined(function: fn.ScalarFunction, dtype: DType) -> bool:
    if function.name.startswith("logical_"):
        return dtype == BOOL
    if function.result == "draw":
        return dtype == INT64
    if function.result == "float" or function.name in ("isnan", "isfinite", "pow"):
        return is_float(dtype)  # an integer to a negative power is an error
    return dtype != BOOL or function.result == "cast" or function.name in ON_TRUTH


def applied(function: fn.ScalarFunction, dtype: DType) -> Node:
    args: list[Node] = [*ARGUMENTS[dtype][: function.arity]]
    if function.result == "select":
        args[0] = ARGUMENTS[BOOL][0]
    if function.result == "cast" and is_float(dtype):  # NumPy leaves NaN and infinity open
        args[0] = map_node(fn.select(fn.isfinite(P[0]), P[0], 0), args)
    return map_node(function.cls(*P[: function.arity]), args)


APPLICATIONS = {
    f"{name}-{dtype}": applied(function, dtype)
    for name, function in FUNCTIONS.items()
    for dtype in ALL
    if is_defined(function, dtype)
}


def values() -> dict[str, Array]:
    return {f"{t}.{k}": numbers(t, 3 * j + k) for j, t in enumerate(ALL) for k in range(3)}


@pytest.fixture(scope="module")
def results() -> dict[str, Array]:
    found: dict[str, Array] = call(compile(APPLICATIONS), values())
    return found


def assert_within(got: Array, expected: Array, ulps: int) -> None:
    """Equal, or apart by so many units in the last place; NaN and signs of zeros alike."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if not is_float(expected.dtype):
        np.testing.assert_array_equal(got, expected)
        return
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    with np.errstate(all="ignore"):
        apart = np.abs(got - expected)[finite] / np.spacing(np.abs(expected[finite]))
    assert np.max(apart, initial=0) <= ulps
    zeros = (got == 0) & (expected == 0)
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


@pytest.mark.parametrize("name", APPLICATIONS)
def test_function(name: str, results: dict[str, Array]) -> None:
    expected = evaluate(APPLICATIONS[name], values())
    got = results[name]
    function = name.partition("-")[0]
    assert_within(got, expected, 0 if function in EXACT else LOOSE)


def test_every_function_is_applied() -> None:
    assert {name.partition("-")[0] for name in APPLICATIONS} == set(FUNCTIONS)


# -- bodies ----------------------------------------------------------------------------------------
n = dim("n")
LEAVES = {
    (dtype, wide): Input(f"{dtype}.{wide}", (3, n) if wide else (n,), dtype)
    for dtype in ALL
    for wide in (False, True)
}
DATA = {
    leaf.name: np.random.default_rng(k).integers(-4, 5, (3, 5) if wide else (5,)).astype(dtype)
    for k, ((dtype, wide), leaf) in enumerate(LEAVES.items())
}


class Bodies:
    """Random bodies of exact operations over arguments of all dtypes; P[5] is a truth value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, k: int) -> int:
        return int(self.rng.integers(k))

    def truth(self, depth: int) -> sympy.Expr:
        turn = self.pick(6) if depth else 0
        if turn == 0:
            return P[5] if self.pick(2) else fn.less(self.number(0), self.number(0))
        if turn == 1:
            return fn.less(self.number(depth - 1), self.number(depth - 1))
        if turn == 2:
            return fn.equal(self.number(depth - 1), self.number(depth - 1))
        if turn == 3:
            return fn.logical_and(self.truth(depth - 1), self.truth(depth - 1))
        if turn == 4:
            return fn.logical_not(self.truth(depth - 1))
        return CAST[BOOL](self.number(depth - 1))

    def number(self, depth: int) -> sympy.Expr:
        if not depth:
            turn = self.pick(9)
            if turn < 5:
                return P[turn]
            literal = sympy.Integer(self.pick(7) - 3)
            return (literal, sympy.Float((self.pick(17) - 8) / 4), AXIS[self.pick(2)], n)[turn - 5]
        a, b = self.number(depth - 1), self.number(depth - 1)
        cast = CAST[(*ALL[1:],)[self.pick(4)]]
        return (
            *(a + b, a * b, -a, a - b, a / 2, a + b, a * b),
            *(fn.maximum(a, b), fn.select(self.truth(depth - 1), a, b), fn.abs_(a)),
            *(fn.mod(a, sympy.Integer(3)), cast(a), cast(self.truth(depth - 1)), fn.floor(a)),
            fn.sign(a),
        )[self.pick(15)]

    def node(self) -> Node | None:
        """A legal Map, or None where the body is not."""
        depth = 1 + self.pick(3)
        body = self.number(depth) if self.pick(5) else self.truth(depth)
        if not any(P[k] in body.free_symbols for k in range(5)):
            return None
        args = [LEAVES[ALL[1 + self.pick(4)], bool(self.pick(2))] for _ in range(5)]
        args.append(LEAVES[BOOL, True])
        try:
            dtype = infer_dtype(body, [a.dtype for a in args])
            node = Map(tuple(args), body, (3, n), dtype)
            check(Graph.of([node]))
        except SymgradError:
            return None
        return node


def bodies(seed: int, count: int) -> list[Node]:
    source = Bodies(seed)
    made = [node for _ in range(count) if (node := source.node()) is not None]
    assert len(made) > count / 2
    return made


def agree(f: Compiled, nodes: list[Node]) -> None:
    for node, got, expected in zip(nodes, call(f, DATA), evaluate(nodes, DATA), strict=True):
        assert got.dtype == expected.dtype
        small = np.abs(expected.astype(np.float64)) < 2**22  # where floats are exact
        assert isinstance(node, Map)
        np.testing.assert_array_equal(got[small], expected[small], err_msg=str(node.body))


@pytest.mark.parametrize("seed", range(20))
def test_random_bodies_interpreted(seed: int) -> None:
    nodes = bodies(seed, 20)
    with interpreted():
        f = compile(nodes)
    agree(f, nodes)


def test_random_bodies_compiled() -> None:
    nodes = bodies(100, 150)
    agree(compile(nodes), nodes)


def test_functions_of_a_user() -> None:
    a, b = sympy.symbols("a b", real=True)
    mish = a * sympy.tanh(sympy.log(1 + sympy.exp(a)))
    ratio = sympy.Piecewise((a**2 / (1 + sympy.Abs(b)), a > b), (sympy.pi * b, True))
    for dtype in (np.float32, np.float64):
        x, y = sg.input("x", (7,), dtype), sg.input("y", (7,), dtype)
        data = {"x": np.linspace(-2, 2, 7).astype(dtype), "y": np.linspace(1, -1, 7).astype(dtype)}
        outputs = [
            sg.elementwise(mish, x),
            sg.elementwise(ratio, x, y),
            sg.elementwise(lambda t: t**-3 + sympy.sqrt(2) * t, x + 3),
        ]
        got = compile(outputs)(**data)
        for g, e in zip(got, evaluate(outputs, data), strict=True):
            # ten roundings, and three functions of 8 ulps, in positive terms
            np.testing.assert_allclose(g, e, rtol=40 * np.finfo(dtype).eps, atol=0)
