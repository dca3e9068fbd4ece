"""What a user may write by hand, judged by mpmath: right where it is representable, never worse.

Each form is taken at points where naive arithmetic overflows, cancels or is undefined, before and
after differentiation. The error is measured in units of the last place of the result or of the
data, whichever moves the result by more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import sympy

import symgrad as sg
from symgrad.calculus.stabilization import stabilize
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Node
from tests.exact_meaning import errors

exp, log, sig, tanh, sqrt = sg.exp, sg.log, sg.sigmoid, sg.tanh, sg.sqrt
Form = Callable[[Node], Node]
UNITS = 24.0  # of error allowed
ANYWHERE = (-300.0, -100.0, -20.0, -3.0, -1e-3, -1e-8, 0.0, 1e-3, 0.7, 9.0, 40.0, 89.0, 300.0)
MODERATE = (-50.0, -3.0, -1e-3, -1e-8, 1e-8, 0.1, 9.0, 40.0)
POSITIVE = (1e-30, 1e-10, 1e-3, 0.5, 0.7, 2.0, 80.0, 1000.0)
WIDE = (-1e30, -1e-30, -1.0, 1e-30, 2.0, 1e30)
SMALL = (1e-20, 1e-8, 1e-3, 0.3, -1e-8, -0.7)
FROM_ZERO = (0.0, 1e-30, 0.25, 0.5, 1.0)
FLAT = 4e-7  # what is lost beside derivatives of order 1 by 1 - y and 1 - y^2, which stay


def inside(body: Callable[[sympy.Expr], sympy.Expr]) -> Form:
    return lambda x: sg.elementwise(body, x)


def twice(value: Callable[[Node], Node], form: Callable[[Node], Node]) -> Form:
    return lambda x: form(value(x))


def hand(x: Node) -> Node:
    return 1 / (1 + exp(-x))


def logit(p: Node) -> Node:
    return log(p / (1 - p))


def bce(s: Node) -> Node:
    return -(0.3 * log(s) + 0.7 * log(1 - s))


EVERYWHERE: dict[str, Form] = {
    "softplus": lambda x: log(exp(x) + 1.0),
    "softplus of -|x|": lambda x: log(1 + exp(-sg.abs(x))),
    "softplus in two parts": lambda x: sg.maximum(x, 0.0) + log(1 + exp(-sg.abs(x))),
    "softplus of 5x": inside(lambda t: sympy.log(1 + sympy.exp(5 * t)) / 5),
    "softplus less x": lambda x: log(1 + exp(x)) - x,
    "x less softplus": lambda x: x - log(1 + exp(x)),
    "softplus of -x and x": lambda x: sg.log1p(exp(-x)) + x,
    "x less the verb": lambda x: x - sg.softplus(x),
    "log of 1 + 1/e^x": lambda x: log(1 + 1 / exp(x)),
    "log of a ratio": lambda x: log((1 + exp(x)) / exp(x)),
    "log of an inverse": lambda x: log(1 / sig(x)),
    "log of e^x sigmoid": lambda x: log(exp(x) * sig(x)),
    "log of two powers": lambda x: log(exp(x) + exp(2 * x)),
    "log of three powers": lambda x: log(1 + exp(x) + exp(2 * x)),
    "log of halves": lambda x: log(0.5 * (1 + exp(x))),
    "log of a root": lambda x: log(sqrt(exp(x))),
    "log of a square": lambda x: log(exp(x) * exp(x)),
    "log cosh": lambda x: log(sg.cosh(x)),
    "log cosh by hand": lambda x: log((exp(x) + exp(-x)) / 2),
    "log of 1 + tanh": lambda x: log(1 + tanh(x)),
    "log of 1 - tanh^2": lambda x: log(1 - tanh(x) ** 2),
    "log1p of -sigmoid": lambda x: sg.log1p(-sig(x)),
    "logit of a sigmoid": twice(sig, logit),
    "logit in two parts": twice(hand, lambda p: log(p) - log(1 - p)),
    "sigmoid": hand,
    "sigmoid as a power": lambda x: (1 + exp(-x)) ** -1,
    "sigmoid by tanh": lambda x: 0.5 + 0.5 * tanh(0.5 * x),
    "sigmoid by softplus": lambda x: exp(-sg.softplus(-x)),
    "sigmoid by its log": lambda x: exp(-log(1 + exp(-x))),
    "1 - sigmoid": lambda x: 1 - sig(x),
    "sigmoid' by hand": twice(hand, lambda s: s * (1 - s)),
    "sigmoid' of e^x": lambda x: exp(x) / (1 + exp(x)) ** 2,
    "sigmoid of 1.7 x": lambda x: x / (1 + exp(-1.702 * x)),
    "tanh of 2x": lambda x: (exp(2 * x) - 1) / (exp(2 * x) + 1),
    "tanh by halves": lambda x: ((exp(x) - exp(-x)) / 2) / ((exp(x) + exp(-x)) / 2),
    "tanh by sinh": lambda x: sg.sinh(x) / sg.cosh(x),
    "1 - tanh^2": lambda x: 1 - sg.square(tanh(x)),
    "1 - tanh": lambda x: 1 - tanh(x),
    "(1 - tanh)(1 + tanh)": lambda x: (1 - tanh(x)) * (1 + tanh(x)),
    "1 - e^-x": lambda x: 1 - exp(-x),
    "SiLU": inside(lambda t: t / (1 + sympy.exp(-t))),
    "SiLU of e^x": lambda x: x * exp(x) / (1 + exp(x)),
    "Mish": inside(lambda t: t * sympy.tanh(sympy.log(1 + sympy.exp(t)))),
    "Mish of powers": lambda x: x * ((1 + exp(x)) ** 2 - 1) / ((1 + exp(x)) ** 2 + 1),
    "SELU": lambda x: sg.where(x > 0, x, 1.67 * (exp(x) - 1)),
    "ELU": inside(lambda t: sympy.Piecewise((t, t > 0), (sympy.exp(t) - 1, True))),
    "binary cross entropy": twice(sig, bce),
    "binary cross entropy by hand": twice(hand, bce),
    "focal": twice(sig, lambda s: -((1 - s) ** 2 * log(s))),
    "Gumbel": lambda x: exp(-(sg.abs(x) + exp(-sg.abs(x)))),
    "two Gaussians": lambda x: exp(-x * x) * exp(x * x - 1),
    "log of a Gaussian": lambda x: log(exp(-x * x / 2) / 2.5066282746310002),
    "log of a mixture": lambda x: log(0.25 * exp(x) + 0.5),
}
SOMEWHERE: dict[str, tuple[Form, tuple[float, ...], int]] = {  # points, order
    "GELU": (inside(lambda t: t / 2 * (1 + sympy.tanh(t + t**3 / 20))), MODERATE, 1),
    "sinh": (lambda x: (exp(x) - exp(-x)) / 2, MODERATE, 1),
    "cosh - 1": (lambda x: (exp(x) + exp(-x)) / 2 - 1, MODERATE, 0),
    "a square of expm1": (lambda x: exp(2 * x) - 2 * exp(x) + 1, MODERATE, 0),
    "(e^x - 1) / x": (lambda x: (exp(x) - 1) / x, MODERATE, 0),
    "1 / (e^x - 1)": (lambda x: 1 / (exp(x) - 1), MODERATE, 1),
    "log(1 - e^-x)": (lambda x: log(1 - exp(-x)), POSITIVE[1:], 1),
    "log(e^x - 1)": (lambda x: log(exp(x) - 1), POSITIVE[1:], 1),
    "log sinh": (lambda x: log(sg.sinh(x)), POSITIVE[1:], 0),
    "log(1 + x)": (lambda x: log(1 + x), SMALL, 1),
    "log(1 + x) / x": (lambda x: log(x + 1) / x, SMALL, 0),
    "log(1 + x) - log(1 - x)": (lambda x: log(1 + x) - log(1 - x), SMALL, 0),
    "logit": (logit, (1e-30, 1e-3, 0.25, 0.5, 0.999), 1),
    "1 - cos": (lambda x: 1 - sg.cos(x), SMALL, 1),
    "2 cos - 2": (lambda x: 2 * sg.cos(3 * x) - 2, SMALL, 1),
    "sqrt(1 + x) - 1": (lambda x: sqrt(1 + x) - 1, SMALL, 0),
    "sqrt(x^2)": (lambda x: sqrt(sg.square(x)), WIDE, 2),
    "sqrt(4 x^2)": (lambda x: sqrt(4 * x * x), WIDE, 2),
    "sqrt(2 x^2)": (lambda x: (2 * x * x) ** 0.5, WIDE, 1),
    "x / sqrt(x^2)": (lambda x: x / sqrt(x * x), (-3.0, -1.0, 2.0), 2),
    "1 / sqrt(x^2)": (lambda x: 1 / sqrt(x * x), (-3.0, -1.0, 2.0), 2),
    "sqrt(e^x)": (lambda x: sqrt(exp(x)), (-160.0, -3.0, 0.0, 160.0), 1),
    "log(x^2)": (lambda x: log(x * x), WIDE, 1),
    "log(3 x^3)": (lambda x: log(3 * x**3), (1e-20, 3.0, 1e20), 1),
    "x log x": (lambda x: log(x) * x + 1, FROM_ZERO, 0),
    "x log2 x": (lambda x: x * (log(x) / 0.6931471805599453), FROM_ZERO, 0),
    "x^2 log x": (lambda x: x**2 * log(x), FROM_ZERO, 0),
    "sqrt(x) log x": (lambda x: sqrt(x) * log(x), FROM_ZERO, 0),
    "x log^2 x": (lambda x: x * log(x) ** 2, FROM_ZERO, 0),
    "x (-log x)": (lambda x: x * -log(x / 3), FROM_ZERO, 0),
    "two entropies": (lambda x: x * log(x) + (1 - x) * log(1 - x), FROM_ZERO, 0),
    "hypot": (lambda x: sqrt(x * x + (2 * x) ** 2), WIDE, 1),
}


def judge(name: str, node: Node, values: dict, digits: int, floor: float, units: float) -> None:
    """The stable form is right, the naive one was no better, and it is at rest."""
    made = stabilize(node)
    check(Graph.of([made]))
    assert (made.shape, made.dtype) == (node.shape, node.dtype)
    assert stabilize(made) is made, f"{name}: not at rest"
    got, naive = (np.asarray(evaluate(e, values)).ravel() for e in (made, node))
    (after, before), truth = errors(node, (got, naive), values, digits)
    with np.errstate(all="ignore"):
        near = np.isfinite(got) & (np.abs(got - truth) <= floor)
    wrong = (after > units) & ~near
    assert not wrong.any(), (name, got[wrong], truth[wrong], after[wrong])
    worse = (after > 3 * before + units / 2) & ~near
    assert not worse.any(), (name, got[worse], naive[worse], truth[worse])
    assert not (np.isinf(truth) & np.isinf(naive) & (got != naive)).any(), (name, got, naive)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_forms_that_hold_everywhere(name: str) -> None:
    x = sg.input("x", (len(ANYWHERE),))
    y = EVERYWHERE[name](x)
    values = {x: np.array(ANYWHERE, np.float32)}
    judge(name, y, values, 320, 0.0, UNITS)
    judge(f"{name}, derivative", sg.grad(y.sum(), x), values, 580, FLAT, UNITS)


@pytest.mark.parametrize("name", SOMEWHERE)
def test_forms_of_some_numbers(name: str) -> None:
    write, points, order = SOMEWHERE[name]
    x = sg.input("x", (len(points),))
    y = write(x)
    for k in range(order + 1):
        judge(f"{name}, {k}", y, {x: np.array(points, np.float32)}, 300, FLAT if k else 0.0, UNITS)
        y = sg.grad(y.sum(), x)


@pytest.mark.parametrize("name", ["softplus", "tanh of 2x", "SELU", "log cosh", "1 - sigmoid"])
def test_second_derivatives_at_far_points(name: str) -> None:
    x = sg.input("x", (6,))
    first = sg.grad(EVERYWHERE[name](x).sum(), x)
    values = {x: np.array([-1000.0, -100.0, -1.5, 0.5, 100.0, 1000.0], np.float32)}
    judge(name, sg.grad(first.sum(), x), values, 1400, FLAT, UNITS)


def test_nan_and_infinity_of_the_data_stay() -> None:
    x = sg.input("x", (3,))
    data = {x: np.array([np.nan, np.inf, -np.inf], np.float32)}
    for name, write in EVERYWHERE.items():
        assert np.isnan(evaluate(stabilize(write(x)), data)[0]), name
    for write, _, _ in SOMEWHERE.values():
        assert np.isnan(evaluate(stabilize(write(x)), data)[0])
    assert np.isinf(evaluate(stabilize(sqrt(x * x)), data)[1:]).all()
    assert evaluate(stabilize(log(x * x)), {x: [0.0, 1.0, -1.0]})[0] == -np.inf


def test_a_second_derivative_through_two_masks() -> None:
    # each branch is masked where it is not taken, also where the sum of both is not
    x = sg.input("x", (4,))
    y = sg.where(x > 0, x * x, 2.0 * (exp(x) - exp(2.0 * x)))
    second = sg.grad(sg.grad(y.sum(), x).sum(), x)
    got = evaluate(second, {x: np.array([1000.0, 89.0, 0.5, -1e3], np.float32)})
    np.testing.assert_array_equal(got, [2.0, 2.0, 2.0, 0.0])


def test_compiled_forms_are_the_stable_ones() -> None:
    outputs: dict[str, Node] = {}
    values = {}
    some = {k: v for n, (k, v) in enumerate(EVERYWHERE.items()) if n % 3 == 0}
    x = sg.input("x", (len(ANYWHERE),))
    for name, write in some.items():
        y = write(x)
        outputs |= {name: y, f"{name}, derivative": sg.grad(y.sum(), x)}
    values = {x: np.array(ANYWHERE, np.float32)}
    want = evaluate(list(stabilize(list(outputs.values()))), values)
    for (name, got), stable in zip(sg.compile(outputs)(x=values[x]).items(), want, strict=True):
        np.testing.assert_allclose(got, stable, rtol=1e-4, atol=1e-6, err_msg=name)
