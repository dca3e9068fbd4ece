"""Nodes from forms: products, exponents, shifted exponentials and logarithms, built stably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import sympy

from symgrad.calculus import stability_ratios as rt
from symgrad.calculus.bodies import uses_axes
from symgrad.calculus.building import is_extent_one
from symgrad.calculus.stability_forms import LEVEL, Degree, Form, Value, combined, literal, times
from symgrad.graph import functions as fn
from symgrad.graph.dims import Dim, Shape
from symgrad.graph.dtypes import DType
from symgrad.graph.functions import P, placeholder
from symgrad.graph.nodes import Constant, Map, Node, broadcast, einsum_node, reshape_node
from symgrad.graph.reductions import shifted

Coefficients = Mapping[Value, Fraction]

SHIFTED_EXP = fn.exp(P[0] - P[1])
SHIFT = fn.stop_gradient(fn.select(fn.isfinite(P[0]), P[0], 0))
# x L, with L = log x: 0 at 0, where all derivatives of sqrt are infinite as those of x log x are
X_LOG_X = fn.select(fn.equal(P[0], 0), P[0] - fn.sqrt(P[0]), P[0] * P[1])
POWER_LOG_X = fn.select(fn.equal(P[0], 0), 0, P[0] * P[1])


def mapped(
    body: sympy.Expr, args: Sequence[Node], dtype: DType, shape: Shape | None = None
) -> Node:
    """A Map over the broadcast of its arguments; an argument itself where it does nothing.

    shape: what it has instead where the body counts along axes.
    """
    if body == P[0] and len(args) == 1:
        return args[0]
    if shape is None:
        shape = broadcast(args, "stabilize") if args else ()
    return Map(tuple(args), body, shape, dtype)


def moved(node: Node, labels: Sequence[int], out: Sequence[int]) -> Node:
    """`node`, aligned to the right of `labels`, aligned to the right of `out`.

    An axis that it does not have, or of one, is of one in the result, or absent.
    """
    own = tuple(labels[len(labels) - node.ndim :])
    real = [k for k, e in zip(own, node.shape, strict=True) if not is_extent_one(e)]
    kept = tuple(out[min(map(out.index, real)) :]) if real else ()
    if len(kept) == len(own) and all(
        a == b if a in real else b not in real for a, b in zip(own, kept, strict=True)
    ):
        return node
    return einsum_node((node,), (own,), kept, {k: 1 for k in kept if k not in own})


def fitted(node: Node, shape: Shape) -> Node:
    """`node` repeated to a shape that it broadcasts to, leading axes of one element left out."""
    if node.ndim > len(shape):
        node = reshape_node(node, node.shape[node.ndim - len(shape) :])
    if node.shape == shape:
        return node
    if isinstance(node, Map) and all(a.ndim <= len(shape) for a in node.args):
        return Map(node.args, node.body, shape, node.dtype)
    labels = range(len(shape))
    lead = len(shape) - node.ndim
    own = [
        lead + k if e == shape[lead + k] else len(shape) + k for k, e in enumerate(node.shape)
    ]
    return einsum_node((node,), (own,), labels, dict(enumerate(shape)))


class Builder:
    """Values of the new graph, one per node, and what is built from forms of them."""

    def __init__(self) -> None:
        self.wrapped: dict[Node, Value] = {}
        self.numbers: dict[tuple[sympy.Expr, Shape | None], Value] = {}
        self.exponents: dict[frozenset[tuple[Value, Fraction]], Value] = {}
        self.magnitudes: dict[Value, Value] = {}
        self.signs: dict[Value, Value] = {}
        self.values = 0
        self.fired: set[tuple[object, ...]] = set()

    def wrap(self, node: Node) -> Value:
        """The value of a node that is taken as it is; of a literal, its number."""
        value = self.wrapped.get(node)
        if value is None:
            value = self.wrapped[node] = Value(node.dtype, made=node, degree=self.direction())
            if isinstance(node, Constant) and not node.shape and node.dtype.kind == "f":
                value.form = literal(float(node.value)) or value.form
            if isinstance(node, Constant):
                value.degree = LEVEL
        return value

    def direction(self) -> Degree:
        """A degree of its own for each value, so that two rarely grow together by chance."""
        self.values += 1
        own = Fraction(self.values * 61 % 97 - 48 or 1, 48)
        return Fraction(1), Fraction(-1), own, -own

    def inline(self, expr: sympy.Expr, shape: Shape | None = None) -> Value:
        """A number, dim or axis index, written into bodies; `shape` is whose axes it counts."""
        if not uses_axes(expr):
            shape = None
        value = self.numbers.get((expr, shape))
        if value is None:
            value = self.numbers[expr, shape] = Value(None, inline=expr, shape=shape, degree=LEVEL)
            if expr.is_number and expr.is_real and not expr.has(fn.Applied):
                value.form = literal(float(expr)) or value.form
            elif isinstance(expr, (sympy.Mul, sympy.Pow)):
                value.form = self._monomial(expr) or value.form
        return value

    def _monomial(self, expr: sympy.Expr) -> Form | None:
        # a product of dims
        number, factors = Fraction(1), dict[Value, int]()
        for factor, power in expr.as_powers_dict().items():
            if isinstance(factor, Dim) and power.is_Integer:
                factors[self.inline(factor)] = int(power)
            elif factor.is_Rational and power.is_Integer:
                number *= Fraction(int(factor.p), int(factor.q)) ** int(power)
            else:
                return None
        return Form(number, factors)

    @staticmethod
    def key(form: Form) -> tuple[object, ...]:
        """What tells the ratio of a form from others: rules that made it make it again."""
        return form.ratio, frozenset(form.base.items()), frozenset(form.exponent.items())

    def over(
        self, body: sympy.Expr, operands: Sequence[Value], dtype: DType, shape: Shape | None = None
    ) -> Node:
        """A Map of one operation over values, of this shape where it counts along axes."""
        names: dict[sympy.Expr, sympy.Expr] = {}
        args: list[Node] = []
        for k, operand in enumerate(operands):
            if operand.inline is not None:
                names[placeholder(k)] = operand.inline
                shape = operand.shape if shape is None else shape
            else:
                node = operand.node
                place = next((n for n, other in enumerate(args) if other is node), len(args))
                if place == len(args):
                    args.append(node)
                names[placeholder(k)] = placeholder(place)
        body = body.xreplace(names)
        return mapped(body, args, dtype, shape if uses_axes(body) else None)

    # -- exponents -------------------------------------------------------------------------------
    def name(self, exponent: Coefficients, value: Value) -> None:
        """Remember the node of an exponent."""
        self.exponents.setdefault(frozenset(exponent.items()), value)

    def combination(self, exponent: Coefficients, dtype: DType) -> Node:
        """`sum_i c_i x_i`."""
        if len(exponent) == 1:
            ((value, c),) = exponent.items()
            if c == 1 and value.inline is None:
                return value.node
        known = self.exponents.get(frozenset(exponent.items()))
        if known is not None and known.inline is None:
            return known.node
        body = sympy.Add(*[rt.number(c) * P[k] for k, c in enumerate(exponent.values())])
        return self.over(body, list(exponent), dtype)

    def exponential(self, exponent: Coefficients, dtype: DType) -> Node:
        """`e^exponent`; of a difference in one step, as the verbs write it."""
        signs = {c: v for v, c in exponent.items() if v.inline is None}
        if len(exponent) == 2 and set(signs) == {1, -1}:
            return mapped(SHIFTED_EXP, [signs[Fraction(1)].node, signs[Fraction(-1)].node], dtype)
        for value, c in exponent.items():
            rest = frozenset((v, k) for v, k in exponent.items() if v is not value)
            known = self.exponents.get(rest) if c == -1 and value.inline is None else None
            if known is not None and known.inline is None:
                return mapped(SHIFTED_EXP, [known.node, value.node], dtype)
        return mapped(fn.exp(P[0]), [self.combination(exponent, dtype)], dtype)

    def shift(self, x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
        """`e^(x - m)` and m, without the axes, for m = max x over them."""
        m, _ = shifted(x, axes)
        wide = moved(m, [k for k in range(x.ndim) if k not in axes], range(x.ndim))
        return Map((x, wide), SHIFTED_EXP, x.shape, x.dtype), m

    # -- products --------------------------------------------------------------------------------
    @staticmethod
    def can_build(form: Form) -> bool:
        """Whether `product` knows how to write a form."""
        grows = form.ratio is not None and form.exponent and any(rt.ends(form.ratio))
        return form.ratio is None or bool(grows) or rt.closed_form(form.ratio) is not None

    def product(self, form: Form, dtype: DType) -> Node:
        """A form as a node: one Map over its factors, an exponential, and its closed form."""
        operands: list[Value] = []
        body: sympy.Expr = rt.number(form.number)

        def factor(value: Value) -> sympy.Expr:
            operands.append(value)
            return placeholder(len(operands) - 1)

        exponent = dict(form.exponent)
        parts: list[sympy.Expr] = []
        if form.ratio is not None and exponent and any(rt.ends(form.ratio)):
            # B(u) e^(s + g(u)): what R grows by goes with the other exponents
            u = self.combination(form.base, dtype)
            scaled, j, k = rt.two_sided(form.ratio)
            parts.append(factor(self.wrap(mapped(scaled, [u], dtype))))
            growth = fn.select(fn.less_equal(P[0], 0), j * P[0], k * P[0])
            exponent = combined(exponent, {self.wrap(mapped(growth, [u], dtype)): Fraction(1)},
                                Fraction(1))
        elif form.ratio is not None:
            closed = rt.closed_form(form.ratio)
            assert closed is not None
            names: dict[sympy.Expr, sympy.Expr] = {}
            for k, (kind, scale) in enumerate(closed.arguments):
                if kind == "exp":
                    exponent = combined(exponent, form.base, scale)
                    names[P[k]] = sympy.S.One
                    continue
                u = self.combination(times(form.base, scale), dtype)
                made = u if kind == "itself" else mapped(rt.ARGUMENT[kind](P[0]), [u], dtype)
                names[P[k]] = factor(self.wrap(made))
            if closed.rule == "two-sided":
                made = mapped(closed.body, [operands.pop().node], dtype)
                parts.append(factor(self.wrap(made)))
            else:
                parts.append(closed.body.xreplace(names))
        if exponent:
            parts.append(factor(self.wrap(self.exponential(exponent, dtype))))
        for value, power in form.factors.items():
            parts.append(factor(value) ** power)
        body = sympy.Mul(body, *parts)
        if not operands:
            return Constant(np.asarray(float(form.number), dtype))
        return self.over(body, operands, dtype)

    def magnitude(self, x: Value) -> Value:
        """|x|."""
        assert x.dtype is not None
        value = self.wrap(mapped(fn.abs_(P[0]), [x.node], x.dtype))
        self.magnitudes[value] = x
        return value

    def sign(self, x: Value) -> Value:
        """The sign of x, 0 at 0."""
        assert x.dtype is not None
        value = self.wrap(mapped(fn.sign(P[0]), [x.node], x.dtype))
        self.signs[value] = x
        return value
