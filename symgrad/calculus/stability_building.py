"""Nodes from forms: products, exponents, shifted exponentials and logarithms, built stably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import sympy

from symgrad.calculus import stability_ratios as rt
from symgrad.calculus.bodies import uses_axes
from symgrad.calculus.building import is_extent_one
from symgrad.calculus.stability_forms import Form, Value, combined, inverse, literal, times
from symgrad.graph import functions as fn
from symgrad.graph.dims import Shape
from symgrad.graph.dtypes import DType
from symgrad.graph.functions import P, placeholder
from symgrad.graph.nodes import Constant, Map, Node, broadcast, einsum_node
from symgrad.graph.reductions import shifted

Coefficients = Mapping[Value, Fraction]

# max(a, b) + softplus(-|a - b|), with a as the larger of equal ones; two equal infinities are kept
_FIRST = fn.less_equal(P[1], P[0])
_HIGH, _LOW = fn.select(_FIRST, P[0], P[1]), fn.select(_FIRST, P[1], P[0])
_INFINITE = fn.logical_and(fn.equal(P[0], P[1]), fn.logical_not(fn.isfinite(P[0])))
LOG_ADD_EXP = _HIGH + fn.softplus(fn.select(_INFINITE, 0, _LOW - _HIGH))
SHIFTED_EXP = fn.exp(P[0] - P[1])
SHIFT = fn.stop_gradient(fn.select(fn.isfinite(P[0]), P[0], 0))
# x L, with L = log x: 0 at 0, where all derivatives of sqrt are infinite as those of x log x are
X_LOG_X = fn.select(fn.equal(P[0], 0), P[0] - fn.sqrt(P[0]), P[0] * P[1])
POWER_LOG_X = fn.select(fn.equal(P[0], 0), 0, P[0] * P[1])


def rational(c: Fraction) -> sympy.Rational:
    """A Fraction as SymPy's."""
    return sympy.Rational(c.numerator, c.denominator)


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
    """`node` repeated to a shape that it broadcasts to."""
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

    def wrap(self, node: Node) -> Value:
        """The value of a node that is taken as it is; of a literal, its number."""
        value = self.wrapped.get(node)
        if value is None:
            value = self.wrapped[node] = Value(node.dtype, made=node)
            if isinstance(node, Constant) and not node.shape and node.dtype.kind == "f":
                value.form = literal(float(node.value)) or value.form
        return value

    def inline(self, expr: sympy.Expr, shape: Shape | None = None) -> Value:
        """A number, dim or axis index, written into bodies; `shape` is whose axes it counts."""
        if not uses_axes(expr):
            shape = None
        value = self.numbers.get((expr, shape))
        if value is None:
            value = self.numbers[expr, shape] = Value(None, inline=expr, shape=shape)
            if expr.is_number and expr.is_real and not expr.has(fn.Applied):
                value.form = literal(float(expr)) or value.form
        return value

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
        body = sympy.Add(*[rational(c) * P[k] for k, c in enumerate(exponent.values())])
        return self.over(body, list(exponent), dtype)

    def exponential(self, exponent: Coefficients, dtype: DType) -> Node:
        """`e^exponent`; of a difference in one step, as the verbs write it."""
        signs = {c: v for v, c in exponent.items() if v.inline is None}
        if len(exponent) == 2 and set(signs) == {1, -1}:
            return mapped(SHIFTED_EXP, [signs[Fraction(1)].node, signs[Fraction(-1)].node], dtype)
        return mapped(fn.exp(P[0]), [self.combination(exponent, dtype)], dtype)

    def shift(self, x: Node, axes: tuple[int, ...]) -> tuple[Node, Node]:
        """`e^(x - m)` and m, without the axes, for m = max x over them."""
        m, wide = shifted(x, axes)
        return Map((x, wide), SHIFTED_EXP, x.shape, x.dtype), m

    # -- products --------------------------------------------------------------------------------
    def product(self, form: Form, dtype: DType) -> Node:
        """A form as a node: one Map over its factors, an exponential, and its closed form."""
        operands: list[Value] = []
        body: sympy.Expr = rational(form.number)

        def factor(value: Value) -> sympy.Expr:
            operands.append(value)
            return placeholder(len(operands) - 1)

        exponent = dict(form.exponent)
        parts: list[sympy.Expr] = []
        if form.ratio is not None:
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

    # -- logarithms ------------------------------------------------------------------------------
    def logarithm(self, form: Form, dtype: DType) -> tuple[str, Node] | None:
        """(rule, log of a form with exponentials); None where it may be negative."""
        rule, pieces = "logarithm", list[tuple[Fraction, Node]]()
        if form.ratio is not None and form.number < 0 and not form.factors:
            ratio = rt.scaled(form.ratio, Fraction(-1))
            form = Form(-form.number, {}, form.exponent, ratio, form.base)
        rest = Form(form.number, form.factors)
        exponent: Coefficients = form.exponent
        if form.ratio is not None:
            pair = self._pair(form, dtype)
            if pair is not None:
                rule, c, node = pair
                pieces.append((c, node))
                rest, exponent = Form(Fraction(1), form.factors), {}
            else:
                found = rt.log_form(form.ratio)
                if found is None:
                    return None
                number, terms = found
                rest = Form(form.number * number, form.factors)
                rule = "softplus"
                for term in terms:
                    if term.kind == "itself":
                        exponent = combined(exponent, form.base, term.count * term.scale)
                        continue
                    u = self.combination(times(form.base, term.scale), dtype)
                    if term.kind == "log1mexp":
                        rule = "log1mexp"
                        pieces.append((term.count, mapped(rt.LOG1MEXP, [u], dtype)))
                    else:
                        offset = sympy.Float(np.log(float(term.inner)))
                        body = P[0] if term.inner == 1 else P[0] - offset
                        pieces.append((term.count, mapped(fn.softplus(body), [u], dtype)))
        operands: list[Value] = []
        total: list[sympy.Expr] = []
        if rest.factors:
            # log(1/a) = -log(a)
            sign = -1 if all(k < 0 for k in rest.factors.values()) else 1
            body = rational(rest.number**sign)
            for value, power in rest.factors.items():
                operands.append(value)
                body *= placeholder(len(operands) - 1) ** (sign * power)
            total.append(sign * fn.log(body))
        elif rest.number < 0:
            return None
        elif rest.number != 1:
            total.append(sympy.Float(np.log(float(rest.number))))
        for c, node in pieces:
            operands.append(self.wrap(node))
            total.append(rational(c) * placeholder(len(operands) - 1))
        for value, c in exponent.items():
            operands.append(value)
            total.append(rational(c) * placeholder(len(operands) - 1))
        return rule, self.over(sympy.Add(*total), operands, dtype)

    def _pair(self, form: Form, dtype: DType) -> tuple[str, Fraction, Node] | None:
        # log of c e^s t^j (t^n + b), b > 0:  log(e^(s + (j+n) u + log c) + e^(s + j u + log(b c)))
        assert form.ratio is not None
        sign, parts = Fraction(1), rt.parts_of(form.ratio)
        if parts.above.degree() == 0 and parts.below.degree() == 1:
            sign, form = Fraction(-1), inverse(Form(form.number, {}, form.exponent, form.ratio,
                                                    form.base))
            parts = rt.parts_of(form.ratio)
        if parts.above.degree() != 1 or parts.below.degree():
            return None
        inner = rt.fraction(dict(parts.above.terms()).get((0,), 0))
        number = form.number * parts.number
        if inner <= 0 or number <= 0:
            return None
        n, j = parts.step, parts.shift
        if not form.exponent and inner == 1 and number == 1 and j in (0, -n):
            u = self.combination(times(form.base, Fraction(-n if j else n)), dtype)
            return "softplus", sign, mapped(fn.softplus(P[0]), [u], dtype)
        ends = [
            self._offset(combined(form.exponent, form.base, Fraction(k)), c, dtype)
            for k, c in ((j + n, number), (j, number * inner))
        ]
        ends.sort(key=lambda end: end.inline is not None)
        return "log-add-exp", sign, self.over(LOG_ADD_EXP, ends, dtype)

    def _offset(self, exponent: Coefficients, c: Fraction, dtype: DType) -> Value:
        """`exponent + log c`."""
        offset = sympy.Float(np.log(float(c))) if c != 1 else sympy.S.Zero
        if not exponent:
            return self.inline(offset)
        return self.wrap(mapped(P[0] + offset, [self.combination(exponent, dtype)], dtype))

