"""Variances and covariances as differences of means, also weighted.

    E[x y] - E[x] E[y] = E[(x - E[x]) (y - E[y])],   E[f] = sum w f / W,   W = sum w

W is the number of what is summed where there are no weights.  Chan, Golub and LeVeque 1983.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import sympy

from symgrad.calculus import stability_forms as fm
from symgrad.calculus.stability_building import Builder, moved
from symgrad.calculus.stability_forms import Form, Summed, Value
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import DType
from symgrad.graph.functions import P
from symgrad.graph.nodes import Einsum, Map, Node, einsum_node

Sums = Mapping[Value, Summed]


@dataclass(frozen=True, slots=True)
class Covariance:
    """`outer * sum w (x - E[x]) (y - E[y])`.

    square, first, second: the sums of w x y, w x and w y.
    weight:                w; a number where there are none.
    whole:                 W.
    """

    square: Summed
    first: Summed
    second: Summed
    weight: Form
    whole: Form
    outer: Form


def covariance(
    builder: Builder, sums: Sums, a: Form, b: Form, dtype: DType
) -> Callable[[], Node] | None:
    """What builds `a - b` where that is a covariance."""
    found = _matched(builder, sums, a, b)
    if found is None:
        return None

    def make() -> Node:
        node = found.square.node
        x = _centred(builder, found, found.first, dtype)
        parts = [x, x] if found.second is found.first else [
            x, _centred(builder, found, found.second, dtype)
        ]
        if not found.weight.is_number:
            parts.append(builder.product(found.weight, dtype))
        whole = builder.over(
            sympy.Mul(*[P[k] for k in range(len(parts))]), [builder.wrap(p) for p in parts], dtype
        )
        core = einsum_node((whole,), node.labels[:1], node.out, dict(enumerate(node.extents)))
        scale = fm.product(found.outer, Form(factors={builder.wrap(core): 1}))
        assert scale is not None
        return builder.product(scale, dtype)

    return make


def _matched(builder: Builder, sums: Sums, a: Form, b: Form) -> Covariance | None:
    if not a.plain or not b.plain:
        return None
    for value, power in a.factors.items():
        square = sums.get(value)
        if square is None or power != 1:
            continue
        means = [
            v for v, k in b.factors.items() if v in sums for _ in range(max(k, 0))
            if a.factors.get(v) is None
        ]
        if len(means) != 2:
            continue
        first, second = (sums[v] for v in means)
        if not (_alike(square.node, first.node) and _alike(square.node, second.node)):
            continue
        found = _weighted(builder, sums, a, b, value, means)
        if found is not None:
            return found
    return None


def _weighted(
    builder: Builder, sums: Sums, a: Form, b: Form, value: Value, means: list[Value]
) -> Covariance | None:
    # square = c w x y;  a = p sum c w x y;  b = p c sum w x sum w y / W
    square, first, second = sums[value], sums[means[0]], sums[means[1]]
    both = fm.product(first.form, second.form)
    weight = None if both is None else fm.product(both, fm.inverse(square.form))
    if both is None or weight is None or not weight.plain:
        return None
    if any(k < 0 for k in weight.factors.values()):
        return None
    c = 1 / weight.number
    weight = Form(factors=weight.factors)
    outer = Form(a.number, {v: k for v, k in a.factors.items() if v is not value})
    inner = Form(b.number, {v: k for v, k in b.factors.items() if v not in means})
    for whole in _wholes(builder, sums, square.node, weight, b):
        expected = fm.product(outer, fm.product(whole, Form(c)) or whole)
        if expected is None or not fm.same_factors(expected, inner):
            continue
        if _close(expected.number, inner.number):
            outer = Form(outer.number * c, outer.factors)
            return Covariance(square, first, second, weight, fm.inverse(whole), outer)
    return None


def _wholes(
    builder: Builder, sums: Sums, node: Einsum, weight: Form, b: Form
) -> list[Form]:
    # 1 / W
    if weight.is_number:
        return [_count(builder, node)]
    return [
        Form(sums[v].form.number, {v: -1}) for v, k in b.factors.items()
        if k < 0 and v in sums and _alike(sums[v].node, node)
        and fm.same_factors(sums[v].form, weight)
    ]


def _count(builder: Builder, node: Einsum) -> Form:
    """1 / n, n the number of what is summed."""
    c, factors = Fraction(1), dict[Value, int]()
    for label in node.summed:
        extent = node.extents[label]
        if isinstance(extent, int):
            c = c / extent if extent else c
            continue
        for term in sympy.Mul.make_args(extent):
            if isinstance(term, Dim):
                value = builder.inline(term)
                factors[value] = factors.get(value, 0) - 1
            else:
                c *= Fraction(0) if not term.is_Integer else 1 / Fraction(int(term))
    return Form(c, factors)


def _centred(builder: Builder, found: Covariance, total: Summed, dtype: DType) -> Node:
    """The distance from the mean, x - E[x], for the sum of w x."""
    node = found.square.node
    form = fm.product(total.form, fm.inverse(found.weight))
    assert form is not None
    summed = builder.wrap(total.node)
    mean = fm.product(summed.form, fm.inverse(found.whole))
    assert mean is not None
    if found.weight.is_number and len(total.node.args) == 1:
        x = total.operand.node
    else:
        x, mean = builder.product(Form(factors=form.factors), dtype), _over(mean, form.number)
    wide = moved(builder.product(mean, dtype), node.out, node.labels[0])
    return Map((x, wide), P[0] - P[1], x.shape, dtype)


def _over(form: Form, number: Fraction) -> Form:
    return Form(form.number / number, form.factors, form.exponent, form.ratio, form.base)


def _close(a: Fraction, b: Fraction) -> bool:
    """Equal up to the rounding of a literal such as 1/7."""
    return abs(a - b) <= abs(a) * Fraction(1, 10**6)


def _alike(a: Einsum, b: Einsum) -> bool:
    return (a.labels[:1], a.out) == (b.labels[:1], b.out) and a.extents == b.extents
