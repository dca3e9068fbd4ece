"""The rows of the table of verbs: for each verb a small expression and what NumPy says of it.

The cases have distinct extents, in float64; what a verb does at special numbers, in other types
and shapes, is tested in test_verb_corners.py and beside its neighbours in test_verbs_*.py. The
columns, and the tests that the table is whole, stand in test_verb_table.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.special

import symgrad as sg
from symgrad.graph.nodes import Node
from symgrad.graph.philox import second_float64, uniform_float32, uniform_float64
from symgrad.graph.streams import training
from tests.calculus_judges import Values, real, sample, weighed

LABELS = np.array([2, 0, 4], np.int32)
GRID = np.array([[0, 2, 1, 1, 0], [2, 2, 0, 1, 2]], np.int32)


@dataclass(frozen=True)
class Row:
    """A case of one verb.

    make:   from expressions to an expression.
    wanted: from arrays to an array.
    shapes: of the leaves.
    low, high: the leaves' values lie between.
    """

    make: Callable[..., Node]
    wanted: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((3, 5),)
    low: float = -1.5
    high: float = 1.5


def row(
    make: Callable[..., Any], wanted: Callable[..., Any] | None = None, *shapes: tuple[int, ...],
    low: float = -1.5, high: float = 1.5,
) -> Row:
    """A row; without `wanted`, `make(np, ..)` is asked for in place of `make(sg, ..)`."""
    return Row(
        lambda *x: make(sg, *x), wanted or (lambda *x: make(np, *x)), shapes or ((3, 5),), low, high
    )


def positive(make: Callable[..., Any], wanted: Callable[..., Any] | None = None) -> Row:
    return row(make, wanted, low=0.3, high=2.5)


BOTH = ((3, 5), (5,))


def two(make: Callable[..., Any], low: float = -1.5) -> Row:
    return row(make, None, *BOTH, low=low)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return scipy.special.softmax(x, axis)


def scanned(scan: Any, tanh: Any, x: Any, w: Any) -> Any:
    carry, ys = scan(lambda c, e: (tanh(c * w + e), c * e), x[0], x[1:])
    return carry + ys


def stepped(step: Any, carry: np.ndarray, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ys = []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return carry, np.stack(ys)


def bce(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return -t * scipy.special.log_expit(x) - (1 - t) * scipy.special.log_expit(-x)


PLACES = np.arange(15).reshape(3, 5)


def box_muller() -> np.ndarray:
    u, v = uniform_float64(0, 0, PLACES), second_float64(0, 0, PLACES)
    return np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)


ROWS: dict[str, Row] = {
    # operators and methods
    "+": two(lambda m, x, y: x + y),
    "-": two(lambda m, x, y: x - y),
    "*": two(lambda m, x, y: x * y),
    "/": two(lambda m, x, y: x / y, 0.3),
    "//": two(lambda m, x, y: (3 * x) // y, 0.3),
    "%": two(lambda m, x, y: (3 * x) % y, 0.3),
    "**": two(lambda m, x, y: x**y, 0.3),
    "@": row(lambda m, x, y: x @ y, None, (3, 5), (5, 7)),
    "==": two(lambda m, x, y: x == y),
    "!=": two(lambda m, x, y: x != y),
    "<": two(lambda m, x, y: x < y),
    "<=": two(lambda m, x, y: x <= y),
    ">": two(lambda m, x, y: x > y),
    ">=": two(lambda m, x, y: x >= y),
    "&": two(lambda m, x, y: (x > 0) & (y > 0)),
    "|": two(lambda m, x, y: (x > 0) | (y > 0)),
    "^": two(lambda m, x, y: (x > 0) ^ (y > 0)),
    "~": row(lambda m, x: ~(x > 0)),
    "negative": row(lambda m, x: -x),
    "positive": row(lambda m, x: +x * x),
    "abs(x)": row(lambda m, x: abs(x)),
    "2 * x": row(lambda m, x: (2 - x) * (3 / (2 + x)) + 2.0**x - 7 // (2 + x) + 7 % (2 + x)),
    "x[a:b]": row(lambda m, x: x[1:, ::-2] * x[:1, 1:4]),
    "x[i]": row(lambda m, x: x[-1] * x[0, 1]),
    "x[array]": row(lambda m, x: x[GRID[0][:3], LABELS] * x[:, LABELS][0]),
    "numpy.tanh(x)": row(lambda m, x: np.tanh(x) * np.add(x, x)),
    ".T": row(lambda m, x: x.T),
    ".sum": row(lambda m, x: (x * x).sum(axis=1)),
    ".mean": row(lambda m, x: (x * x).mean(axis=0)),
    ".max": row(lambda m, x: x.max(axis=1)),
    ".min": row(lambda m, x: x.min(axis=0, keepdims=True)),
    ".reshape": row(lambda m, x: x.reshape(5, 3)),
    ".transpose": row(lambda m, x: x.transpose(1, 2, 0), None, (2, 3, 5)),
    ".astype": row(lambda m, x: x * (4 * x).astype("int32")),
    # one element
    "exp": row(lambda m, x: m.exp(x)),
    "log": positive(lambda m, x: m.log(x)),
    "log1p": positive(lambda m, x: m.log1p(x)),
    "expm1": row(lambda m, x: m.expm1(x)),
    "sqrt": positive(lambda m, x: m.sqrt(x)),
    "rsqrt": positive(lambda m, x: m.rsqrt(x), lambda x: 1 / np.sqrt(x)),
    "abs": row(lambda m, x: m.abs(x)),
    "sign": row(lambda m, x: m.sign(x)),
    "floor": row(lambda m, x: m.floor(3 * x)),
    "sin": row(lambda m, x: m.sin(x)),
    "cos": row(lambda m, x: m.cos(x)),
    "tan": row(lambda m, x: m.tan(x), low=-1.2, high=1.2),
    "tanh": row(lambda m, x: m.tanh(x)),
    "sinh": row(lambda m, x: m.sinh(x)),
    "cosh": row(lambda m, x: m.cosh(x)),
    "arctan": row(lambda m, x: m.arctan(x)),
    "maximum": two(lambda m, x, y: m.maximum(x, y)),
    "minimum": two(lambda m, x, y: m.minimum(x, y)),
    "where": two(lambda m, x, y: m.where(x > y, x * y, y)),
    "clip": row(lambda m, x: m.clip(x, -0.5, 0.75)),
    "square": row(lambda m, x: m.square(x)),
    "reciprocal": positive(lambda m, x: m.reciprocal(x)),
    "power": two(lambda m, x, y: m.power(x, y), 0.3),
    "isnan": row(lambda m, x: m.isnan(x)),
    "isfinite": row(lambda m, x: m.isfinite(x)),
    "stop_gradient": row(lambda m, x: m.stop_gradient(x) * x, lambda x: x * x),
    "astype": row(lambda m, x: m.astype(3 * x, "int32"), lambda x: (3 * x).astype("i4")),
    "sigmoid": row(lambda m, x: m.sigmoid(x), scipy.special.expit),
    "softplus": row(lambda m, x: m.softplus(x), lambda x: np.logaddexp(0, x)),
    "relu": row(lambda m, x: m.relu(x), lambda x: np.maximum(x, 0)),
    "leaky_relu": row(lambda m, x: m.leaky_relu(x, 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
    "elu": row(lambda m, x: m.elu(x, 0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    "gelu": row(lambda m, x: m.gelu(x), lambda x: x * scipy.special.ndtr(x)),
    "silu": row(lambda m, x: m.silu(x), lambda x: x * scipy.special.expit(x)),
    "erf": row(lambda m, x: m.erf(x), scipy.special.erf),
    "elementwise": row(
        lambda m, x, y: m.elementwise(lambda a, b: a * b**2 / (1 + a**2), x, y),
        lambda x, y: x * y**2 / (1 + x**2), *BOTH,
    ),
    # reductions
    "sum": row(lambda m, x: m.sum(x * x, axis=1)),
    "mean": row(lambda m, x: m.mean(x * x, axis=0)),
    "prod": row(lambda m, x: m.prod(x, axis=1)),
    "max": row(lambda m, x: m.max(x, axis=1)),
    "min": row(lambda m, x: m.min(x, axis=0)),
    "var": row(lambda m, x: m.var(x, axis=1, ddof=1)),
    "std": row(lambda m, x: m.std(x, axis=1)),
    "argmax": row(lambda m, x: m.argmax(x, axis=1)),
    "argmin": row(lambda m, x: m.argmin(x)),
    "cumsum": row(lambda m, x: m.cumsum(x * x, axis=1)),
    "cumprod": row(lambda m, x: m.cumprod(x, axis=0)),
    "any": row(lambda m, x: m.any(x > 1, axis=1)),
    "all": row(lambda m, x: m.all(x < 1, axis=0)),
    "softmax": row(lambda m, x: m.softmax(x, axis=0), lambda x: softmax(x, 0)),
    "log_softmax": row(
        lambda m, x: m.log_softmax(x), lambda x: scipy.special.log_softmax(x, 1)
    ),
    "logsumexp": row(
        lambda m, x: m.logsumexp(x, axis=1), lambda x: scipy.special.logsumexp(x, 1)
    ),
    # contractions
    "einsum": row(lambda m, x, y: m.einsum("ij,jk,ij->ki", x, y, x), None, (3, 5), (5, 7)),
    "matmul": row(lambda m, x, y: m.matmul(x, y), None, (2, 3, 5), (5, 7)),
    "dot": row(lambda m, x, y: m.dot(x, y), None, (3, 5), (2, 5, 7)),
    "tensordot": row(
        lambda m, x, y: m.tensordot(x, y, ((0, 2), (1, 0))), None, (3, 2, 5), (5, 3, 7)
    ),
    "outer": row(lambda m, x, y: m.outer(x, y), None, (3,), (5,)),
    "trace": row(lambda m, x: m.trace(x @ x), None, (3, 3)),
    "diag": row(lambda m, x, y: m.diag(x * x) + m.diag(y)[0], None, (3, 3), (3,)),
    # moves
    "transpose": row(lambda m, x: m.transpose(x, (2, 0, 1)), None, (2, 3, 5)),
    "reshape": row(lambda m, x: m.reshape(x, (5, -1))),
    "swapaxes": row(lambda m, x: m.swapaxes(x, 0, 2), None, (2, 3, 5)),
    "moveaxis": row(lambda m, x: m.moveaxis(x, 0, -1), None, (2, 3, 5)),
    "concatenate": row(lambda m, x, y: m.concatenate([x, y, x * x], 0), None, (3, 5), (2, 5)),
    "stack": row(lambda m, x, y: m.stack([x, y * y], 1), None, (3, 5), (3, 5)),
    "split": row(lambda m, x: m.split(x, [1, 3], 1)[1] * m.split(x, 3, 0)[2][:, :2]),
    "pad": row(lambda m, x: m.pad(x, ((1, 2), (0, 3)))),
    "flip": row(lambda m, x: m.flip(x, 1) * x),
    "squeeze": row(lambda m, x: m.squeeze(x, 1), None, (3, 1, 5)),
    "expand_dims": row(lambda m, x: m.expand_dims(x, 1)),
    "broadcast_to": row(lambda m, x: m.broadcast_to(x, (2, 3, 5)), None, (3, 1)),
    "repeat": row(lambda m, x: m.repeat(x, 2, 1)),
    "tile": row(lambda m, x: m.tile(x, (2, 3))),
    "take": row(lambda m, x: m.take(x, GRID, axis=1)),
    "take_along_axis": row(
        lambda m, x: m.take_along_axis(x, GRID, 0),
        lambda x: np.take_along_axis(x, GRID.astype(int), 0),
    ),
    "tril": row(lambda m, x: m.tril(x, 1)),
    "triu": row(lambda m, x: m.triu(x, -1)),
    # made of nothing
    "arange": row(lambda m, x: x * m.arange(5) + m.arange(1.0, 3.5, 0.5)),
    "ones": row(lambda m, x: x + m.ones((2, 1, 5))),
    "zeros": row(lambda m, x: x + m.zeros((2, 1, 5))),
    "full": row(lambda m, x: x * m.full((2, 1, 5), 0.5)),
    "eye": row(lambda m, x: x @ m.eye(5, 7, 1)),
    "ones_like": row(lambda m, x: x * m.ones_like(x)),
    "zeros_like": row(lambda m, x: x + m.zeros_like(x)),
    "one_hot": row(lambda m, x: x * m.one_hot(LABELS, 5), lambda x: x * np.eye(5)[LABELS]),
    # recurrences
    "scan": row(lambda m, x, w: scanned(m.scan, m.tanh, x, w),
                lambda x, w: scanned(stepped, np.tanh, x, w), (4, 5), (5,)),
    # random numbers: the first block of each element under the seed 0
    "random.uniform": row(
        lambda m, x: x * x * m.random.uniform((3, 5), "float64"),
        lambda x: x * x * uniform_float64(0, 0, PLACES),
    ),
    "random.normal": row(
        lambda m, x: x * x * m.random.normal((3, 5), "float64"), lambda x: x * x * box_muller()
    ),
    "random.bernoulli": row(
        lambda m, x: m.where(m.random.bernoulli(0.4, (3, 5)), x * x, x),
        lambda x: np.where(uniform_float32(0, 0, PLACES) < np.float32(0.4), x * x, x),
    ),
    "dropout": row(
        lambda m, x: m.substitute(m.dropout(x * x, 0.4), {training: m.constant(True)}),
        lambda x: np.where(uniform_float32(0, 0, PLACES) >= 0.4, x * x / 0.6, 0),
    ),
    # transforms
    "simplify": row(lambda m, x: m.simplify(m.log(m.exp(x)) * x * 1 + 0), lambda x: x * x),
    "stabilize": row(
        lambda m, x: m.stabilize(m.log(m.sum(m.exp(x), axis=1))),
        lambda x: scipy.special.logsumexp(x, 1),
    ),
    "substitute": row(lambda m, x, y: m.substitute(x * y, {y: m.sin(x)[1]}) + y * y,
                      lambda x, y: x * np.sin(x)[1] + y * y, *BOTH),
    "grad": row(lambda m, x: m.grad(m.sum(m.exp(x) * x), x), lambda x: np.exp(x) * (1 + x)),
    "value_and_grad": row(
        lambda m, x, y: sum(m.value_and_grad(m.sum(x * y * y), y)),
        lambda x, y: (x * y * y).sum() + 2 * y * x.sum(0), *BOTH,
    ),
    "vjp": row(
        lambda m, x, y: m.vjp([x * x, m.sum(x * y)], [x, y], [y * x, m.sum(y)])[0],
        lambda x, y: 2 * x * y * x + y * y.sum(), *BOTH,
    ),
    "jvp": row(
        lambda m, x, y: m.jvp([m.sin(x) * y], [x, y], [x, y * y])[1][0],
        lambda x, y: np.cos(x) * x * y + np.sin(x) * y * y, *BOTH,
    ),
    "jacobian": row(
        lambda m, x, y: m.jacobian(m.outer(x, x * y), x),
        lambda x, y: np.eye(3)[:, None] * (x * y)[:, None]
        + x[:, None, None] * (np.eye(3) * y), (3,), (3,),
    ),
    "hessian": row(
        lambda m, x, w: m.hessian(m.sum((w @ x) ** 3), x),
        lambda x, w: 6 * np.einsum("ij,i,ik->jk", w, w @ x, w), (5,), (3, 5),
    ),
    "hvp": row(
        lambda m, x, w: m.hvp(m.sum((w @ x) ** 3), x, x),
        lambda x, w: 6 * np.einsum("ij,i,i->j", w, w @ x, w @ x), (5,), (3, 5),
    ),
    # losses
    "cross_entropy": row(
        lambda m, x: m.cross_entropy(x, LABELS),
        lambda x: -scipy.special.log_softmax(x, 1)[np.arange(3), LABELS],
    ),
    "mse": row(lambda m, x, y: m.mse(x, y), lambda x, y: (x - y) ** 2, *BOTH),
    "binary_cross_entropy": row(lambda m, x, y: m.binary_cross_entropy(x, y), bce, *BOTH),
}


@dataclass(frozen=True)
class Built:
    """A row's expression over leaves of its own, and their values.

    outputs: value, gradients, tangent, second gradients: what a target must compute.
    """

    out: Node
    leaves: list[Node]
    values: Values
    slope: Node
    outputs: list[Node]


@cache
def built(name: str) -> Built:
    case = ROWS[name]
    number = list(ROWS).index(name)
    leaves: list[Node] = [real(f"x{number}.{k}", *s) for k, s in enumerate(case.shapes)]
    out = case.make(*leaves)
    out = out if out.dtype == np.float64 else out.astype("float64")
    values = sample(leaves, seed=number, low=case.low, high=case.high)
    gradients = sg.grad(weighed(out, 5), leaves)
    slope = sum((weighed(g, 10 + k) for k, g in enumerate(gradients)), sg.constant(0.0, "float64"))
    directions = [sg.constant(v) for v in sample(leaves, seed=99).values()]
    _, tangent = sg.jvp(out, leaves, directions)
    return Built(
        out, leaves, values, slope, [out, *gradients, tangent, *sg.grad(slope, leaves)]
    )


# -- on a target -----------------------------------------------------------------------------------
PARTS = 3
"""Programs that hold the table: every PARTS-th row together."""


def part(k: int) -> list[str]:
    """The rows of one program."""
    return list(ROWS)[k::PARTS]


def computed(target: str, k: int) -> dict[str, list[np.ndarray]]:
    """What a target computes for the rows of one program."""
    f = sg.compile({name: built(name).outputs for name in part(k)}, target=target)
    return f(**{x.name: v for name in part(k) for x, v in built(name).values.items()})


@cache
def expected(k: int) -> dict[str, list[np.ndarray]]:
    """What `evaluate` says; of one program together, as its random streams are numbered in it."""
    values = {x: v for name in part(k) for x, v in built(name).values.items()}
    every = [e for name in part(k) for e in built(name).outputs]
    found = iter(sg.evaluate(every, values))
    return {name: [next(found) for _ in built(name).outputs] for name in part(k)}


def assert_close(got: list[np.ndarray], wanted: list[np.ndarray], rtol: float = 1e-11) -> None:
    """Value, gradients, tangent and second gradients of one row."""
    for one, exact in zip(got, wanted, strict=True):
        assert one.shape == exact.shape and one.dtype == exact.dtype
        np.testing.assert_allclose(one, exact, rtol=rtol, atol=rtol / 10)
