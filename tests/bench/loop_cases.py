"""Programs of elementwise work, reductions and moves, of any size: what `loops` measures.

A case gives expressions over leaves whose first axis is symbolic, what their values are drawn from,
and what one element of its largest leaf costs: floating-point operations (a product and the sum
that takes it in are two), and calls of functions that take longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import symgrad as sg
from symgrad.graph.dims import Dim
from symgrad.graph.nodes import Node

Array = np.ndarray[Any, Any]
# The levels of memory in which a case is timed.
USUAL = ("L1", "L2", "L3")
EVERYWHERE = (*USUAL, "memory")


@dataclass
class Leaves:
    """The leaves of a case; `n` is the extent that its size sets."""

    dtype: str
    n: Dim = field(default_factory=lambda: sg.dim("n"))
    draws: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = field(
        default_factory=dict
    )

    def normal(self, *rest: int, fixed: bool = False) -> Node:
        """A leaf (n, *rest) of normal numbers; `fixed` leaves out n."""
        return self._leaf(lambda rng, shape: rng.normal(size=shape), self.dtype, rest, fixed)

    def positive(self, *rest: int, fixed: bool = False) -> Node:
        """A leaf of numbers from 0.5 to 2."""
        return self._leaf(lambda rng, shape: rng.uniform(0.5, 2, shape), self.dtype, rest, fixed)

    def places(self, extent: int, *rest: int) -> Node:
        """A leaf of indices below `extent`."""
        return self._leaf(lambda rng, shape: rng.integers(extent, size=shape), "int32", rest, False)

    def _leaf(self, draw: Any, dtype: str, rest: tuple[int, ...], fixed: bool) -> Node:
        name = f"x{len(self.draws)}"
        self.draws[name] = draw
        return sg.input(name, rest if fixed else (self.n, *rest), dtype=dtype)


@dataclass(frozen=True)
class Case:
    """A program to measure.

    flops, calls: of one element of the largest leaf.
    terms:        of the longest sum, 0 where it is n: sums in another order differ by that.
    """

    name: str
    make: Callable[[Leaves], Any]
    flops: float = 1
    calls: Mapping[str, float] = field(default_factory=dict)
    terms: int = 1
    dtype: str = "float32"
    levels: tuple[str, ...] = USUAL


def cases() -> list[Case]:
    """All cases, by group."""
    return [*_operands(), *_chains(), *_layers(), *_rows(), *_columns(), *_moves(), *_running()]


def _sum_of(k: int) -> Callable[[Leaves], Any]:
    def make(leaves: Leaves) -> Node:
        xs = [leaves.normal() for _ in range(k)]
        total = xs[0] * 0.5
        for x in xs[1:]:
            total = total + 0.5 * x
        return total

    return make


def _adam(leaves: Leaves) -> Any:
    w, g, m, v = leaves.normal(), leaves.normal(), leaves.normal(), leaves.positive()
    new_m, new_v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return [w - 0.01 * new_m / (sg.sqrt(new_v) + 1e-8), new_m, new_v]


def _operands() -> list[Case]:
    """From one operand to ten, and several results."""
    done = [
        Case(f"elements {k} operands", _sum_of(k), 2 * k - 1, levels=EVERYWHERE)
        for k in (1, 2, 3, 5, 10)
    ]
    return [
        *done,
        Case("elements f64 3 operands", _sum_of(3), 10, dtype="float64"),
        Case("elements adam", _adam, 11, {"sqrt": 1, "div": 1}, levels=EVERYWHERE),
        Case("elements divide", lambda a: a.normal() / a.positive(), 0, {"div": 1}),
        Case("elements select", lambda a: sg.where(a.normal() > 0, a.normal(), 1.0), 2),
        Case("elements clip", lambda a: sg.clip(a.normal(), -1.0, 1.0), 2),
        Case("elements leaky relu", lambda a: sg.leaky_relu(a.normal()), 3),
        Case("elements to float64", lambda a: sg.astype(a.normal(), "float64") * 0.5, 1),
        Case("elements row of biases", lambda a: a.normal(64) + a.normal(64, fixed=True), 1),
        Case("elements column of scales", lambda a: a.normal(64) * a.normal(1), 1),
        Case("elements short rows", lambda a: a.normal(10) + a.normal(10, fixed=True), 1),
        Case("elements dropout", _dropout, 2, {"uniform_float32": 1}),
    ]


def _dropout(leaves: Leaves) -> Node:
    x = leaves.normal()
    return sg.where(sg.random.uniform(x.shape) < 0.5, 2.0 * x, 0.0)


def _cheap_chain(length: int) -> Callable[[Leaves], Any]:
    def make(leaves: Leaves) -> Node:
        x, y = leaves.normal(), leaves.normal()
        total = x
        for k in range(length):
            total = total * y + (0.5 + k)
        return total * 1e-3

    return make


def _dear_chain(functions: list[str]) -> Callable[[Leaves], Any]:
    def make(leaves: Leaves) -> Node:
        x = leaves.normal()
        for name in functions:
            x = getattr(sg, name)(0.5 * x)
        return x

    return make


def _chains() -> list[Case]:
    """Operations in a row: cheap ones, and functions."""
    done = [
        Case(f"chain {n} multiply-adds", _cheap_chain(n), 2 * n + 1, levels=USUAL)
        for n in (1, 3, 10, 30)
    ]
    for dtype in ("float32", "float64"):
        double = 2 if dtype == "float64" else 1
        mark = "" if double == 1 else "f64 "
        for name in ("exp", "tanh", "sigmoid", "sin", "erf"):
            calls = {f"{mark}{name}": 1}
            done.append(
                Case(f"chain {mark}{name}", _dear_chain([name]), double, calls, dtype=dtype)
            )
        for n in (3, 10, 30):
            names = [("tanh", "sigmoid", "sin")[k % 3] for k in range(n)]
            calls = {f"{mark}{name}": float(names.count(name)) for name in dict.fromkeys(names)}
            done.append(
                Case(
                    f"chain {mark}{n} functions", _dear_chain(names), double * n, calls, dtype=dtype
                )
            )
    done.append(Case("chain pow", lambda a: sg.power(a.positive(), a.normal()), 0, {"pow": 1}))
    done.append(
        Case(
            "chain f64 pow",
            lambda a: sg.power(a.positive(), a.normal()),
            0,
            {"f64 pow": 1},
            dtype="float64",
        )
    )
    return done


def _gates(leaves: Leaves) -> Any:
    """The elementwise part of an LSTM's step."""
    z, c = leaves.normal(4 * 64), leaves.normal(64)
    i, f, g, o = (z[:, 64 * k : 64 * (k + 1)] for k in range(4))
    c1 = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
    return [c1, sg.sigmoid(o) * sg.tanh(c1)]


def _gates_gradient(leaves: Leaves) -> Any:
    """Its gradient, from stored gates."""
    i, f, g, o, c, t, h_ct, c_ct = (leaves.normal() for _ in range(8))
    c_ct = c_ct + h_ct * o * (1 - t * t)
    return [
        c_ct * g * i * (1 - i),
        c_ct * c * f * (1 - f),
        c_ct * i * (1 - g * g),
        h_ct * t * o * (1 - o),
        c_ct * f,
    ]


def _through(make: Callable[[Leaves], tuple[Any, list[Node]]]) -> Callable[[Leaves], Any]:
    """The gradients of an expression under given cotangents."""

    def backward(leaves: Leaves) -> Any:
        out, wrt = make(leaves)
        cotangent = leaves.normal(*(int(e) for e in out.shape[1:]))
        return sg.grad((out * cotangent).sum(), wrt)

    return backward


def _layer_norm(width: int) -> Callable[[Leaves], tuple[Node, list[Node]]]:
    def make(leaves: Leaves) -> tuple[Node, list[Node]]:
        x = leaves.normal(width)
        scale, shift = leaves.normal(width, fixed=True), leaves.normal(width, fixed=True)
        middle = x - x.mean(1, keepdims=True)
        y = middle * sg.rsqrt((middle * middle).mean(1, keepdims=True) + 1e-5)
        return y * scale + shift, [x, scale, shift]

    return make


def _batch_norm(leaves: Leaves) -> tuple[Node, list[Node]]:
    x = leaves.normal(64)
    scale, shift = leaves.normal(64, fixed=True), leaves.normal(64, fixed=True)
    y = (x - x.mean(0)) * sg.rsqrt(sg.var(x, 0) + 1e-5)
    return y * scale + shift, [x, scale, shift]


def _softmax(width: int) -> Callable[[Leaves], tuple[Node, list[Node]]]:
    def make(leaves: Leaves) -> tuple[Node, list[Node]]:
        x = leaves.normal(width)
        return sg.softmax(x), [x]

    return make


def _cross_entropy(width: int, gradient: bool) -> Callable[[Leaves], Any]:
    def make(leaves: Leaves) -> Any:
        x, y = leaves.normal(width), leaves.places(width)
        loss = sg.cross_entropy(x, y).mean()
        return [loss, sg.grad(loss, x)] if gradient else loss

    return make


def _layers() -> list[Case]:
    """What networks are made of, forward and backward."""
    gelu, silu = (_through(lambda a, f=f: _unary(a, f)) for f in (sg.gelu, sg.silu))
    done = [
        Case("layer lstm gates", _gates, 1, {"sigmoid": 0.75, "tanh": 0.5}),
        Case("layer lstm gates backward", _gates_gradient, 21),
        Case("layer gelu", lambda a: sg.gelu(a.normal()), 4, {"erf": 1}),
        Case("layer gelu backward", gelu, 8, {"erf": 1, "exp": 1}),
        Case("layer silu", lambda a: sg.silu(a.normal()), 1, {"sigmoid": 1}),
        Case("layer silu backward", silu, 5, {"sigmoid": 1}),
        Case("layer batch norm", lambda a: _batch_norm(a)[0], 8, terms=0),
        Case("layer batch norm backward", _through(_batch_norm), 16, terms=0),
    ]
    for w in (10, 64, 1000):
        soft, norm = _softmax(w), _layer_norm(w)
        done += [
            Case(f"layer softmax {w}", lambda a, f=soft: f(a)[0], 4, {"exp": 1}, w),
            Case(f"layer softmax backward {w}", _through(soft), 8, {"exp": 1}, w),
            Case(f"layer cross entropy {w}", _cross_entropy(w, False), 3, {"exp": 1}, 0),
            Case(
                f"layer cross entropy and gradient {w}", _cross_entropy(w, True), 5, {"exp": 1}, 0
            ),
            Case(f"layer norm {w}", lambda a, f=norm: f(a)[0], 7, terms=w),
            Case(f"layer norm backward {w}", _through(norm), 18, terms=0),
        ]
    return done


def _unary(leaves: Leaves, function: Callable[[Node], Node]) -> tuple[Node, list[Node]]:
    x = leaves.normal()
    return function(x), [x]


def _reductions(axis: int, width: int) -> list[Case]:
    kind, terms = ("rows", width) if axis else ("columns", 0)
    row = {"sum": sg.sum, "max": sg.max, "min": sg.min, "mean": sg.mean, "var": sg.var}
    flops = {"sum": 1, "max": 1, "min": 1, "mean": 1, "var": 4, "argmax": 2, "logsumexp": 3}
    calls = {"logsumexp": {"exp": 1}}
    row |= {"argmax": sg.argmax, "logsumexp": sg.logsumexp}
    return [
        Case(
            f"{kind} {name} {width}",
            lambda a, f=f: f(a.normal(width), axis),
            flops[name],
            calls.get(name, {}),
            terms,
        )
        for name, f in row.items()
    ]


def _rows() -> list[Case]:
    """Reductions along rows, and of everything."""
    whole = [
        Case("all sum", lambda a: a.normal().sum(), 1, terms=0, levels=EVERYWHERE),
        Case("all max", lambda a: sg.max(a.normal()), 1, terms=0),
        Case(
            "all squared distance", lambda a: sg.square(a.normal() - a.normal()).mean(), 3, terms=0
        ),
        Case("all f64 sum", lambda a: a.normal().sum(), 2, terms=0, dtype="float64"),
    ]
    return [*(c for width in (10, 16, 64, 1000) for c in _reductions(1, width)), *whole]


def _columns() -> list[Case]:
    """Reductions along columns."""
    return [c for width in (10, 64, 1000) for c in _reductions(0, width)]


def _scattered(table: int, width: int) -> Callable[[Leaves], Any]:
    def make(leaves: Leaves) -> Any:
        rows, k = leaves.normal(table, width, fixed=True), leaves.places(table)
        return sg.grad((rows[k] * leaves.normal(width)).sum(), rows)

    return make


def _rows_of_table(table: int, width: int) -> Callable[[Leaves], Any]:
    def make(leaves: Leaves) -> Any:
        return leaves.normal(table, width, fixed=True)[leaves.places(table)]

    return make


def _joined(leaves: Leaves) -> Any:
    return sg.concatenate([leaves.normal(64), leaves.normal(32)], 1)


def _moves() -> list[Case]:
    """Reads and writes by index, and moves of elements."""
    return [
        Case("move rows of a table 64", _rows_of_table(100, 64), 0),
        Case("move rows of a table 10", _rows_of_table(100, 10), 0),
        Case("move rows of a table 1000", _rows_of_table(100, 1000), 0, levels=("L2", "L3")),
        Case("move scatter rows 64", _scattered(100, 64), 1, terms=0),
        Case("move scatter rows 10", _scattered(100, 10), 1, terms=0),
        Case("move elements of a table", lambda a: a.normal(1000, fixed=True)[a.places(1000)], 0),
        Case(
            "move an element of each row",
            lambda a: sg.take_along_axis(a.normal(16), sg.expand_dims(a.places(16), 1), 1),
            0,
        ),
        Case("move transpose", lambda a: sg.transpose(a.normal(64)) * 1.0, 0),
        Case("move sum with a transpose", _with_transpose, 1),
        Case("move concatenate", _joined, 0),
        Case("move flip rows", lambda a: sg.flip(a.normal(64), 1), 0),
        Case("move pad", lambda a: sg.pad(a.normal(64), ((0, 0), (1, 1))), 0),
        Case("move differences", lambda a: (lambda x: x[:, 1:] - x[:, :-1])(a.normal(65)), 1),
        Case("move one hot", lambda a: sg.astype(sg.one_hot(a.places(64), 64), "float32"), 1),
    ]


def _with_transpose(leaves: Leaves) -> Any:
    a = leaves.normal(64, 64)
    return a + sg.swapaxes(a, 1, 2)


def _running() -> list[Case]:
    """Running sums."""
    return [
        Case("running sum rows 10", lambda a: sg.cumsum(a.normal(10), 1), 1, terms=10),
        Case("running sum rows 1000", lambda a: sg.cumsum(a.normal(1000), 1), 1, terms=1000),
        Case("running sum columns 64", lambda a: sg.cumsum(a.normal(64), 0), 1, terms=0),
        Case("running sum whole", lambda a: sg.cumsum(a.normal(), 0), 1, terms=0),
        Case(
            "running sum f64 1000",
            lambda a: sg.cumsum(a.normal(1000), 1),
            2,
            terms=1000,
            dtype="float64",
        ),
        Case("running product 64", lambda a: sg.cumprod(a.positive(64), 1), 1, terms=64),
    ]
