"""The table of verbs: every verb of the face against every thing that must work for it.

    evaluate   the value is NumPy's (or SciPy's)
    vjp        the gradient agrees with central differences
    jvp        <J v, w> = <v, J' w>
    order 2    the gradient of the gradient agrees with central differences
    cpu        value, gradient, tangent and second gradient, compiled, agree with the evaluator
    cuda       likewise, in Numba's simulator

A name of the face without a row fails, a row without a name fails, and a row without a test in
some column fails. The rows stand in verb_rows.py. A new target joins `COLUMNS`.
"""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

import symgrad as sg
from tests.calculus_judges import adjoint, against_differences, weighed
from tests.cuda_cases import judged, simulator
from tests.verb_rows import PARTS, ROWS, assert_close, built, computed, expected

VERBS = """
exp log log1p expm1 sqrt rsqrt abs sign floor sin cos tan tanh sinh cosh arctan maximum minimum
where clip square reciprocal power isnan isfinite stop_gradient astype
sum mean prod max min var std argmax argmin cumsum cumprod any all
einsum matmul dot tensordot outer trace diag transpose reshape swapaxes moveaxis concatenate stack
split pad flip squeeze expand_dims broadcast_to repeat tile take take_along_axis tril triu arange
ones zeros full eye ones_like zeros_like
sigmoid softplus relu leaky_relu elu gelu silu erf softmax log_softmax logsumexp one_hot
cross_entropy mse binary_cross_entropy elementwise scan dropout
simplify stabilize substitute grad value_and_grad vjp jvp jacobian hessian hvp
"""
FACE = VERBS.split()
RANDOM = ["random.uniform", "random.normal", "random.bernoulli"]
OPERATORS = [
    "+", "-", "*", "/", "//", "%", "**", "@", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^", "~",
    "negative", "positive", "abs(x)", "2 * x", "x[a:b]", "x[i]", "x[array]", "numpy.tanh(x)", ".T",
    ".sum", ".mean", ".max", ".min", ".reshape", ".transpose", ".astype",
]
#: Names of the face whose result is no expression of leaves: they have tests of their own.
OTHERS = """
Node dim input parameter constant parameters inputs evaluate compile derive cost latex draw
gradient_flow explain_nan to_networkx to_sympy Trainer Checkpoint CsvLog EarlyStopping init nn optim
random __version__ SymgradError ShapeError DTypeError LeafError GradError CompileError DataError
"""
#: Rooms of the face that hold verbs; every name in them needs a row.
ROOMS = (
    "arithmetic", "contractions", "elementwise", "indexing", "losses", "reductions", "scanning",
    "shapes", "streams",
)


# -- the table is whole ----------------------------------------------------------------------------
def test_every_verb_of_the_face_has_a_row_and_every_row_a_verb() -> None:
    assert sorted(ROWS) == sorted([*FACE, *RANDOM, *OPERATORS])
    assert {name.removeprefix("random.") for name in RANDOM} == set(sg.random.__all__)


def test_every_name_of_the_face_is_a_verb_or_known_to_be_none() -> None:
    assert sorted([*FACE, *OTHERS.split()]) == sg.__all__


def test_every_function_in_the_rooms_of_verbs_has_a_row() -> None:
    held = {name for room in ROOMS for name in sg._ROOMS[f"graph.{room}"]}
    assert held <= set(FACE)


@pytest.mark.parametrize("name", FACE)
def test_every_verb_tells_what_it_does_with_an_example(name: str) -> None:
    told = inspect.getdoc(getattr(sg, name)) or ""
    assert doctest.DocTestParser().get_examples(told), f"{name}: write a doctest"
    assert told.splitlines()[0].endswith((".", ":")), f"{name}: the first line is a sentence"


def test_every_kind_of_cell_is_judged() -> None:
    assert set(COLUMNS) == {"evaluate", "vjp", "jvp", "order 2", *TARGETS}


# -- the cells -------------------------------------------------------------------------------------
def judge_evaluate(name: str) -> None:
    case, b = ROWS[name], built(name)
    wanted = np.asarray(case.wanted(*b.values.values()))
    assert b.out.shape == wanted.shape
    np.testing.assert_allclose(sg.evaluate(b.out, b.values), wanted, rtol=1e-12, atol=1e-13)


def judge_vjp(name: str) -> None:
    b = built(name)
    if name == "stop_gradient":  # differences see through it: the slope is the stopped factor
        wanted = sg.grad(weighed(sg.constant(b.values[b.leaves[0]]) * b.leaves[0], 5), b.leaves[0])
        np.testing.assert_array_equal(*sg.evaluate([b.outputs[1], wanted], b.values))
    else:
        against_differences(weighed(b.out, 5), b.leaves, b.values, order=1)


def judge_jvp(name: str) -> None:
    b = built(name)
    adjoint(b.out, b.leaves, b.values)


def judge_order_2(name: str) -> None:
    b = built(name)
    adjoint(sg.grad(weighed(b.out, 6), b.leaves[0]), b.leaves, b.values)
    if name != "stop_gradient":
        against_differences(b.slope, b.leaves, b.values, order=1)


def judge_target(name: str, target: str = "cuda") -> None:
    k = list(ROWS).index(name) % PARTS
    assert_close(on_target(target, k)[name], expected(k)[name])


@cache
def on_target(target: str, k: int) -> dict[str, list[np.ndarray]]:
    return computed(target, k)


def judge_cpu(name: str) -> None:
    judge_target(name, "cpu")


def judge_cuda(name: str) -> None:
    judged("tests.test_verb_table:judge_target", ROWS, name)


TARGETS = ("cpu", "cuda")
COLUMNS: dict[str, Callable[[str], None]] = {
    "evaluate": judge_evaluate,
    "vjp": judge_vjp,
    "jvp": judge_jvp,
    "order 2": judge_order_2,
    "cpu": judge_cpu,
    "cuda": judge_cuda,
}


@pytest.mark.parametrize(
    "column", [pytest.param(c, marks=simulator if c == "cuda" else ()) for c in COLUMNS]
)
@pytest.mark.parametrize("name", ROWS)
def test_cell(name: str, column: str) -> None:
    COLUMNS[column](name)
