"""What a stabilisation certifies: each rewrite, and where the naive form had lost its digits.

The naive form is run as it was written, in float32 and in float64, over a wide range of x, and
compared with mpmath. There the stable form needs few digits, and the naive one many: where both are
run they must agree, or the equation would be wrong. Every other leaf of the form is 1, and where a
form sums over an axis, x stands for a few elements at distances of 1/2 along it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.calculus.stability_record import Rewrite
from symgrad.graph.dims import Dim, show
from symgrad.graph.dtypes import FLOAT32, FLOAT64, DType
from symgrad.graph.errors import SymgradError
from symgrad.graph.nodes import Constant, Einsum, Gather, Map, Node, Reduce, Reindex
from symgrad.graph.scalars import evaluate_scalar, operations

FAMILY = np.array([0.0, -0.5, -1.0])
"""Distances of the elements that x stands for along an axis that is summed."""
DIGITS = 60
"""Decimal digits in which the stable form is the truth."""
MANY_DIGITS = 200
"""Decimal digits in which the naive form must agree with it, for |x| up to 40."""
GAP = 4
"""Points between two intervals that are closed: there the naive form was right by chance."""
LARGEST = 512
"""Naive nodes of one rewrite that are still run."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Loss:
    """Where a naive form loses more than half of its digits, in one dtype.

    intervals: of x, within the range that was searched; None where the form was not run.
    """

    dtype: DType
    intervals: tuple[Interval, ...] | None

    def __str__(self) -> str:
        if self.intervals is None:
            return f"{self.dtype}: not measured"
        if not self.intervals:
            return f"{self.dtype}: nowhere"
        return f"{self.dtype}: " + ", ".join(f"[{a:.4g}, {b:.4g}]" for a, b in self.intervals)


@dataclass(frozen=True, slots=True)
class Entry:
    """One rewrite of a certificate, with what its naive form loses."""

    rewrite: Rewrite
    losses: tuple[Loss, ...]

    @property
    def rule(self) -> str:
        """The rule's name."""
        return self.rewrite.rule

    @property
    def equation(self) -> str:
        """What holds."""
        return self.rewrite.equation

    @property
    def where(self) -> str:
        """The user's line."""
        return "" if self.rewrite.where is None else str(self.rewrite.where)

    @property
    def interval(self) -> Interval | None:
        """The hull of the x for which the naive form loses half its digits, in its own dtype."""
        own = next((x for x in self.losses if x.dtype == self.rewrite.before.dtype), None)
        if own is None or not own.intervals:
            return None
        return own.intervals[0][0], own.intervals[-1][1]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The rewrites of one stabilisation, in the order of the graph."""

    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        if not self.entries:
            return "nothing rewritten"
        blocks: list[str] = []
        for entry in self.entries:
            title = f"{entry.rule}  {entry.where}  {show(entry.rewrite.shape)}"
            lines = [title, f"  {entry.equation}"]
            lines += [f"  loses half its digits for x in  {loss}" for loss in entry.losses]
            blocks.append("\n".join(lines))
        return "\n".join(blocks)

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(
                f"<td>{escape(cell)}</td>" for cell in (
                    e.rule, e.equation, e.where, show(e.rewrite.shape), *map(str, e.losses)
                )
            ) + "</tr>"
            for e in self.entries
        )
        heads = ("rule", "equation", "line", "shape", "loses half its digits for x in", "")
        head = "".join(f"<th>{h}</th>" for h in heads)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def certify(rewrites: Sequence[Rewrite]) -> Certificate:
    """Measure each rewrite's naive form.

    Raises: SymgradError where mpmath is missing.
    """
    arithmetic = _mpmath()
    entries: list[Entry] = []
    for rewrite in rewrites:
        probe = _probe_of(rewrite)
        losses = tuple(
            Loss(dtype, None if probe is None else _intervals(probe, dtype, arithmetic))
            for dtype in (FLOAT32, FLOAT64)
        )
        entries.append(Entry(rewrite, losses))
    return Certificate(tuple(entries))


def _mpmath() -> Any:
    try:
        import mpmath
    except ImportError:
        raise SymgradError(
            "stabilize: a certificate compares with mpmath, which is not installed. "
            'Install it: pip install mpmath, or pip install "symgrad[test]".'
        ) from None
    return mpmath


# -- the naive form as a function of x -------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Form:
    """Nodes in order, the one that x stands for, and those that are 1."""

    nodes: tuple[Node, ...]
    variable: Node
    ones: frozenset[Node]


@dataclass(frozen=True, slots=True)
class Probe:
    """A naive form and its stable one; whether they sum over an axis."""

    naive: Form
    stable: Form
    summed: bool


def _probe_of(rewrite: Rewrite) -> Probe | None:
    """Both forms over `rewrite.over`; None where one of their nodes is not run here."""
    if not rewrite.over:
        return None
    naive = _form_of(rewrite.before, [old for old, _ in rewrite.over])
    stable = _form_of(rewrite.after, [new for _, new in rewrite.over])
    if naive is None or stable is None:
        return None
    return Probe(naive, stable, any(_sums(n) for n in naive.nodes if n not in naive.ones))


def _form_of(last: Node, leaves: Sequence[Node]) -> Form | None:
    known = set(leaves)
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(last, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node not in known:
                read = node.args[:1] if isinstance(node, Gather) else node.args
                stack += [(a, False) for a in read]
    run = [n for n in order if n not in known]
    if len(order) > LARGEST or not all(isinstance(n, _RUN) for n in run) or leaves[0] not in seen:
        return None
    return Form(tuple(order), leaves[0], frozenset(n for n in leaves[1:] if n is not leaves[0]))


_RUN = (Constant, Map, Einsum, Gather, Reindex, Reduce)  # reads and moves leave x where it is


def _sums(node: Node) -> bool:
    return bool(node.summed) if isinstance(node, Einsum) else isinstance(node, Reduce)


def _run(
    form: Form, x: npt.NDArray[Any], scalar: Callable[[Map, list[Any]], Any], one: Any
) -> Any:
    """The form at x, of shape (points, family)."""
    values: dict[Node, Any] = {}
    for node in form.nodes:
        if node is form.variable:
            values[node] = x
        elif node in form.ones:
            values[node] = one
        elif isinstance(node, Constant):
            values[node] = one * float(node.value.flat[0])
        elif isinstance(node, Map):
            values[node] = scalar(node, [values[a] for a in node.args])
        elif isinstance(node, (Einsum, Reduce)):
            values[node] = _reduced(node, [values[a] for a in node.args])
        else:
            values[node] = values[node.args[0]]
    return values[form.nodes[-1]]


def _reduced(node: Einsum | Reduce, args: list[Any]) -> Any:
    """A sum over the family, as many times as the axis is longer; or the largest of it."""
    if isinstance(node, Reduce):
        (x,) = args
        return np.max(x, axis=-1, keepdims=True) if np.ndim(x) else x
    product = args[0]
    for other in args[1:]:
        product = product * other
    count = 1
    for label in node.summed:
        extent = node.extents[label]
        count *= extent if isinstance(extent, int) else len(FAMILY)
    if count == 1:
        return product
    if not np.ndim(product):
        return product * count
    total = product.sum(axis=-1, keepdims=True)
    return total if count == product.shape[-1] else total * count / product.shape[-1]


def _in_numpy(node: Map, args: list[Any], dtype: DType) -> Any:
    shape = np.broadcast_shapes(*(np.shape(a) for a in args)) if args else ()
    dims = {s: len(FAMILY) for s in node.body.free_symbols if isinstance(s, Dim)}
    kind = dtype if node.dtype.kind == "f" else node.dtype
    return evaluate_scalar(node.body, [np.asarray(a) for a in args], shape, dims, kind)


def _in_mpmath(node: Map, args: list[Any], mp: Any) -> Any:
    values: list[Any] = []
    for step in operations(node.body):
        operands = [values[k] for k in step.operands]
        if step.kind == "argument":
            values.append(args[step.payload])
        elif step.kind in ("number", "dim", "axis"):
            values.append(mp.mpf(step.payload if step.kind == "number" else len(FAMILY)))
        else:
            table: Mapping[str, Callable[..., Any]] = _exact(mp)
            f = np.frompyfunc(table[step.payload if step.kind == "call" else step.kind],
                              len(operands), 1)
            values.append(f(*operands))
    return values[-1]


@lru_cache(maxsize=1)
def _exact(mp: Any) -> Mapping[str, Callable[..., Any]]:
    """Scalar functions in mpmath."""
    inf = mp.inf
    return {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b if b else (mp.nan if not a else inf), "neg": lambda a: -a,
        "exp": mp.exp, "log": lambda a: mp.log(a) if a > 0 else (-inf if a == 0 else mp.nan),
        "log1p": lambda a: mp.log1p(a) if a > -1 else (-inf if a == -1 else mp.nan),
        "expm1": mp.expm1,
        "sqrt": lambda a: mp.sqrt(a) if a >= 0 else mp.nan,
        "rsqrt": lambda a: 1 / mp.sqrt(a) if a > 0 else mp.nan, "abs": abs, "sign": mp.sign,
        "floor": mp.floor, "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "tanh": mp.tanh,
        "sinh": mp.sinh, "cosh": mp.cosh, "arctan": mp.atan, "erf": mp.erf,
        "sigmoid": lambda a: 1 / (1 + mp.exp(-a)), "softplus": lambda a: mp.log1p(mp.exp(a)),
        "maximum": max, "minimum": min, "less": lambda a, b: a < b,
        "less_equal": lambda a, b: a <= b, "equal": lambda a, b: a == b,
        "not_equal": lambda a, b: a != b, "logical_and": lambda a, b: a and b,
        "logical_or": lambda a, b: a or b, "logical_not": lambda a: not a,
        "isfinite": mp.isfinite, "isnan": mp.isnan, "select": lambda c, a, b: a if c else b,
        "stop_gradient": lambda a: a, "pow": lambda a, b: a**b,
        "cast_float32": mp.mpf, "cast_float64": mp.mpf,
    }


# -- intervals -------------------------------------------------------------------------------------
@lru_cache(maxsize=2)
def _grid(dtype: DType) -> npt.NDArray[Any]:
    """Points that are searched: evenly around 0, and by powers of ten to where squares overflow."""
    single = dtype == FLOAT32
    near = np.linspace(-120.0, 120.0, 49) if single else np.linspace(-800.0, 800.0, 81)
    powers = np.arange(-24, 26) if single else np.concatenate(
        [np.arange(-200, -20, 10), np.arange(-20, 20), np.arange(20, 210, 10)]
    )
    far = 10.0 ** powers.astype(float)
    return np.unique(np.concatenate([near, far, -far]).astype(dtype))


def _intervals(probe: Probe, dtype: DType, mp: Any) -> tuple[Interval, ...] | None:
    points = _grid(dtype)
    try:
        if not _agree(probe, mp):
            return None
        lost = _lost(probe, points, dtype, mp)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    bad = np.flatnonzero(lost)
    groups = np.split(bad, np.flatnonzero(np.diff(bad) > GAP) + 1) if len(bad) else []
    return tuple(
        (
            _edge(probe, points, int(k[0]), int(k[0]) - 1, dtype, mp),
            _edge(probe, points, int(k[-1]), int(k[-1]) + 1, dtype, mp),
        )
        for k in groups
    )


def _edge(
    probe: Probe, points: npt.NDArray[Any], bad: int, good: int, dtype: DType, mp: Any
) -> float:
    """Where a loss begins, between a point that has it and one that has not, by bisection."""
    if not 0 <= good < len(points):
        return float(points[bad])
    a, b = float(points[bad]), float(points[good])
    for _ in range(12):
        far = a * b > 0 and not 1 / 4 < a / b < 4
        middle = math.copysign(math.sqrt(abs(a)) * math.sqrt(abs(b)), a) if far else (a + b) / 2
        if _lost(probe, np.asarray([middle], dtype), dtype, mp)[0]:
            a = middle
        else:
            b = middle
    return a


def _spread(probe: Probe, points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    x: npt.NDArray[Any] = points[:, None]
    return (x + FAMILY.astype(points.dtype)).astype(points.dtype) if probe.summed else x


def _exactly(form: Form, x: npt.NDArray[Any], digits: int, mp: Any) -> Any:
    with mp.workdps(digits):
        wide = np.frompyfunc(lambda v: mp.mpf(float(v)), 1, 1)(x)
        return np.asarray(_run(form, wide, lambda n, a: _in_mpmath(n, a, mp), mp.mpf(1)))


def _agree(probe: Probe, mp: Any) -> bool:
    """Whether the stable form is the naive one in long arithmetic.

    It is not where a leaf that is 1 depends on x: then the forms are no functions of x alone.
    """
    x = _spread(probe, np.array([-40.0, -3.25, -0.125, 0.375, 2.5, 40.0]))
    truth = _exactly(probe.naive, x, MANY_DIGITS, mp)
    found = _exactly(probe.stable, x, MANY_DIGITS, mp)
    return all(
        abs(a - b) <= mp.mpf(10) ** -9 * abs(a)
        for a, b in zip(*(np.broadcast_to(v, x.shape).flat for v in (truth, found)), strict=True)
        if mp.isfinite(a) and mp.isfinite(b)
    )


def _lost(probe: Probe, points: npt.NDArray[Any], dtype: DType, mp: Any) -> npt.NDArray[Any]:
    """Whether the naive form is wrong in more than half of its digits."""
    x = _spread(probe, points)
    with np.errstate(all="ignore"):
        naive = np.asarray(
            _run(probe.naive, x, lambda node, args: _in_numpy(node, args, dtype), dtype.type(1))
        )
    exact = _exactly(probe.stable, x, DIGITS, mp)
    naive, exact = (np.broadcast_to(a, x.shape) for a in (naive, exact))
    limits = np.finfo(np.float32 if dtype == FLOAT32 else np.float64)
    half = math.sqrt(float(limits.eps))
    least, largest = float(limits.tiny), float(limits.max)
    lost = np.zeros(len(points), bool)
    for k in range(len(points)):
        for got, true in zip(map(float, naive[k]), exact[k], strict=True):
            if not mp.isfinite(true) or abs(true) > largest:
                continue
            if not math.isfinite(got):
                lost[k] = True
            elif abs(true) < least:  # what underflows is right to be 0
                lost[k] |= abs(got) >= 2 * least
            else:
                lost[k] |= bool(abs(mp.mpf(got) - true) > half * abs(true))
    return lost


def cut(before: Node, opaque: Callable[[Node], bool]) -> tuple[Node, ...]:
    """The nodes that a naive form is a function of: below it, the first that are opaque."""
    found: list[Node] = []
    seen: set[Node] = set()
    stack = [before]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is not before and opaque(node):
            if not isinstance(node, Constant):
                found.append(node)
            continue
        stack.extend(reversed(node.args))
    return tuple(found)
