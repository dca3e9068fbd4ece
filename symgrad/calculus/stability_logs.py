"""Logarithms of forms: no exponential overflows inside, and none is lost beside 1.

    log(w e^s) = log(w) + s              log(e^a + e^b) = max(a, b) + softplus(-|a - b|)
    log F + log G = log(F G)             log R = log1p(R - 1) near R = 1
    log(c x^k) = k log(c^(1/k) |x|)
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, inf

import numpy as np
import sympy

from symgrad.calculus import stability_forms as fm, stability_ratios as rt
from symgrad.calculus.stability_building import Builder, mapped
from symgrad.calculus.stability_forms import Form, Value, combined, inverse, times, value_at_zero
from symgrad.calculus.stability_scalars import Step
from symgrad.graph import functions as fn
from symgrad.graph.dtypes import DType
from symgrad.graph.functions import P, placeholder
from symgrad.graph.nodes import Node

Coefficients = Mapping[Value, Fraction]

# max(a, b) + softplus(-|a - b|), with a as the larger of equal ones; two equal infinities are kept
_FIRST = fn.less_equal(P[1], P[0])
_HIGH, _LOW = fn.select(_FIRST, P[0], P[1]), fn.select(_FIRST, P[1], P[0])
_INFINITE = fn.logical_and(fn.equal(P[0], P[1]), fn.logical_not(fn.isfinite(P[0])))
LOG_ADD_EXP = _HIGH + fn.softplus(fn.select(_INFINITE, 0, _LOW - _HIGH))
# log |1 - e^u| = max(u, 0) + log(1 - e^-|u|)
LOG_DISTANCE = fn.maximum(P[0], 0) + rt.LOG1MEXP.xreplace({P[0]: -fn.abs_(P[0])})
NEAR = fn.select(fn.less(fn.abs_(P[0]), 1), P[0], 0)
_EITHER = fn.select(fn.less(fn.abs_(P[0]), 1), P[1], P[2])


# -- steps -----------------------------------------------------------------------------------------
def logarithm(step: Step) -> Value:
    """log(x)."""
    (x,) = step.operands
    if _is_level(x.form):
        return step.written()
    if not x.form.plain:
        # log(w e^s) = log(w) + s
        return _log_of(step, x.form) or step.written()
    if x.plus_one is not None:
        # log(1 + v) = log1p(v)
        sign, v = x.plus_one

        def make() -> Node:
            return step.builder.over(fn.log1p(sign * P[0]), [v], step.dtype)

        return step.fire_node("log1p", make)
    value = _log_of_power(step, x.form) or step.written()
    value.logs = frozenset(f for f in x.form.factors if f.inline is None)
    return value


def logarithm_of_one_more(step: Step) -> Value:
    """log1p(x): log(1 + e^s) = softplus(s)."""
    (x,) = step.operands
    if x.form.exponent and x.form.ratio is None and x.form.factors and not fm.tame(x.form):
        return _log_beside_one(step, x.form)
    found = None if x.form.plain else fm.total(Form(), x.form)
    if found is None or found.form.plain:
        return step.written()
    if fm.tame(x.form) and fm.tame(inverse(found.form)):
        return step.written()
    return _log_of(step, found.form) or step.written()


def _log_beside_one(step: Step, form: Form) -> Value:
    # log1p(a e^m), and for m > 0 log(a + e^-m) + m
    builder, dtype = step.builder, step.dtype

    def make() -> Node:
        a = builder.product(Form(form.number, form.factors), dtype)
        m = builder.combination(form.exponent, dtype)
        e = mapped(fn.exp(P[0]), [mapped(rt.FOLD, [m], dtype)], dtype)
        body = fn.select(
            fn.less_equal(P[1], 0), fn.log1p(P[0] * P[2]), P[1] + fn.log(P[0] + P[2])
        )
        return mapped(body, [a, m, e], dtype)

    return step.fire_node("logarithm", make)


def softplus(step: Step) -> Value:
    """The logarithm of 1 + e^x."""
    (x,) = step.operands
    value = step.written()
    if value.inline is None:
        value.log_of = Form(ratio=1 + rt.T, base=fm.linear(x))
    return value


def joined(step: Step) -> Value | None:
    """Sums log F + log G and log F + c x that lose digits:  log(F G), log(F e^(c x))."""
    a, b = step.operands
    left, right = _as_log(a), _as_log(b)
    if left is None and right is None:
        return _less_its_largest(step)
    left = left or Form(exponent=fm.linear(a))
    right = right or Form(exponent=fm.linear(b))
    whole = fm.product(left, right if step.kind == "add" else inverse(right))
    if whole is None or whole.factors or not _cancels(left, right, whole):
        return None
    return _log_of(step, whole)


def _less_its_largest(step: Step) -> Value | None:
    # x - log(a e^m) = (x - m) - log(a)
    x, log = step.operands
    single = next(iter(log.form.factors), None) if log.form.plain else None
    if single is None or dict(log.form.factors) != {single: 1} or log.form.number != 1:
        return None
    form = single.log_of
    if step.kind != "sub" or form is None or form.ratio is not None or not form.factors:
        return None
    exponent = combined(fm.linear(x), form.exponent, Fraction(-1))
    if any(fm.height(exponent)) or not any(fm.height(form.exponent)):
        return None
    builder, dtype = step.builder, step.dtype
    rest = Form(form.number, form.factors)

    def make() -> Node:
        distance = builder.wrap(builder.combination(exponent, dtype))
        whole = builder.wrap(builder.product(rest, dtype))
        return builder.over(P[0] - fn.log(P[1]), [distance, whole], dtype)

    value = step.fire_node("logarithm", make)
    value.log_of = Form(1 / rest.number, inverse(rest).factors, exponent)
    return value


def _as_log(value: Value) -> Form | None:
    # F where a value is log F, and 1/F where it is -log F
    form = value.form
    if len(form.factors) != 1 or not form.plain or abs(form.number) != 1:
        return None
    ((single, power),) = form.factors.items()
    if power != 1 or single.log_of is None or single.log_of.ratio is None:
        return None
    return single.log_of if form.number > 0 else inverse(single.log_of)


def _cancels(a: Form, b: Form, whole: Form) -> bool:
    # two large ones make a small one at an end, or near x = 0
    base = a.base or b.base
    if whole.exponent and fm.parallel(whole.exponent, base) is None:
        return False
    parts = [fm.along(f, base) for f in (a, b)]
    if any(x and y and not z for x, y, z in zip(*parts, fm.along(whole, base), strict=True)):
        return True
    return value_at_zero(whole) == 1 and value_at_zero(a) not in (None, 1)


def _log_of(step: Step, form: Form) -> Value | None:
    probe = log_node(step.builder, form, step.dtype)
    if probe is None:
        return None
    rule, node = probe
    value = step.fire_node(rule, lambda: node)
    known = step.builder.wrap(node)
    if known.form.factors.get(known) == 1 and known.log_of is None:
        known.log_of = form
    value.form = known.form
    return value


def _is_level(form: Form) -> bool:
    # bounded away from 0 and infinity
    if form.ratio is None or form.exponent or form.factors or rt.zeros_at_one(form.ratio):
        return False
    return rt.ends(form.ratio) == (0, 0) and value_at_zero(form) != 1


def _log_of_power(step: Step, form: Form) -> Value | None:
    if not form.factors or abs(gcd(*form.factors.values())) < 2 or form.number <= 0:
        return None
    if any(f.inline is not None for f in form.factors):
        return None

    def make() -> Node:
        body, operands = _log_of_product(form)
        return step.builder.over(body, operands, step.dtype)

    return step.fire_node("logarithm of a power", make)


def _log_of_product(form: Form) -> tuple[sympy.Expr, list[Value]]:
    # log(c x^k) = k log(c^(1/k) |x|), without the bars where k is odd;  log(1/a) = -log(a)
    sign = -1 if all(k < 0 for k in form.factors.values()) else 1
    k = gcd(*form.factors.values()) if form.number > 0 else 1
    c = form.number**sign
    c = c if k == 1 or c == 1 else Fraction(float(c) ** (1 / k))
    body, operands = rt.number(c), list(form.factors)
    for place, power in enumerate(form.factors.values()):
        body *= placeholder(place) ** (sign * power // k)
    return sign * k * fn.log(fn.abs_(body) if k % 2 == 0 else body), operands


# -- nodes -----------------------------------------------------------------------------------------
def log_node(builder: Builder, form: Form, dtype: DType) -> tuple[str, Node] | None:
    """(rule, log of a form with exponentials); None where it may be negative."""
    far = _far(builder, form, dtype)
    near = None if far is None else _near(builder, form, dtype)
    if far is None or near is None:
        return far
    w, node = near
    return far[0], mapped(_EITHER, [w, node, far[1]], dtype)


def _near(builder: Builder, form: Form, dtype: DType) -> tuple[Node, Node] | None:
    # where R(1) = 1:  log R = log1p(R - 1)  for small exponents
    if form.exponent or form.factors or form.ratio is None:
        return None
    if all(max(map(abs, v.bounds)) < inf for v in form.base):
        return None
    less = fm.total(form, Form(Fraction(-1)))
    if less is None or less.form.ratio is None or not rt.zeros_at_one(less.form.ratio):
        return None
    if less.form.exponent or rt.closed_form(less.form.ratio) is None:
        return None
    degree = rt.degree(less.form.ratio)
    w = builder.combination(times(less.form.base, Fraction(degree)), dtype)
    small = builder.wrap(mapped(NEAR, [w], dtype))
    small.bounds = (-1.0, 1.0)
    form = Form(less.form.number, ratio=less.form.ratio, base={small: Fraction(1, degree)})
    return w, mapped(fn.log1p(P[0]), [builder.product(form, dtype)], dtype)


def _far(builder: Builder, form: Form, dtype: DType) -> tuple[str, Node] | None:
    rule, pieces = "logarithm", list[tuple[Fraction, Node]]()
    if form.ratio is not None and form.number < 0 and not form.factors:
        ratio = rt.scaled(form.ratio, Fraction(-1))
        form = Form(-form.number, {}, form.exponent, ratio, form.base)
    rest = Form(form.number, form.factors)
    exponent: Coefficients = form.exponent
    if form.ratio is not None:
        pair = _pair(builder, form, dtype)
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
                u = builder.combination(times(form.base, term.scale), dtype)
                if term.kind == "log1mexp":
                    if form.factors:  # x tanh(x) is positive where neither factor is
                        return None
                    rule = "log1mexp"
                    pieces.append((term.count, mapped(rt.LOG1MEXP, [u], dtype)))
                elif term.kind == "log|1mexp|":
                    rule = "log1mexp"
                    pieces.append((term.count, mapped(LOG_DISTANCE, [u], dtype)))
                elif term.polynomial is not None:
                    made = mapped(rt.log_of_polynomial(term.polynomial), [u], dtype)
                    pieces.append((term.count, made))
                else:
                    offset = sympy.Float(np.log(float(term.inner)))
                    body = P[0] if term.inner == 1 else P[0] - offset
                    pieces.append((term.count, mapped(fn.softplus(body), [u], dtype)))
    operands, total = list[Value](), list[sympy.Expr]()
    if rest.factors:
        body, operands = _log_of_product(rest)
        total.append(body)
    elif rest.number < 0:
        return None
    elif rest.number != 1:
        total.append(sympy.Float(np.log(float(rest.number))))
    for c, node in pieces:
        operands.append(builder.wrap(node))
        total.append(rt.number(c) * placeholder(len(operands) - 1))
    for value, c in exponent.items():
        operands.append(value)
        total.append(rt.number(c) * placeholder(len(operands) - 1))
    return rule, builder.over(sympy.Add(*total), operands, dtype)

def _pair(builder: Builder, form: Form, dtype: DType) -> tuple[str, Fraction, Node] | None:
    # log of c e^s t^j (t^n + b), b > 0:  log(e^(s + (j+n) u + log c) + e^(s + j u + log(b c)))
    assert form.ratio is not None
    sign, parts = Fraction(1), rt.factored(form.ratio)
    if parts.above.degree() == 0 and parts.below.degree() == 1:
        sign, form = Fraction(-1), inverse(Form(form.number, {}, form.exponent, form.ratio,
                                                form.base))
        parts = rt.factored(form.ratio)
    if parts.above.degree() != 1 or parts.below.degree():
        return None
    inner = rt.fraction(dict(parts.above.terms()).get((0,), 0))
    number = form.number * parts.number
    if inner <= 0 or number <= 0:
        return None
    n, j = parts.step, parts.shift
    if not form.exponent and inner == 1 and number == 1 and j in (0, -n):
        u = builder.combination(times(form.base, Fraction(-n if j else n)), dtype)
        return "softplus", sign, mapped(fn.softplus(P[0]), [u], dtype)
    ends = [
        _offset(builder, combined(form.exponent, form.base, Fraction(k)), c, dtype)
        for k, c in ((j + n, number), (j, number * inner))
    ]
    ends.sort(key=lambda end: end.inline is not None)
    return "log-add-exp", sign, builder.over(LOG_ADD_EXP, ends, dtype)

def _offset(builder: Builder, exponent: Coefficients, c: Fraction, dtype: DType) -> Value:
    """`exponent + log c`."""
    offset = sympy.Float(np.log(float(c))) if c != 1 else sympy.S.Zero
    if not exponent:
        return builder.inline(offset)
    return builder.wrap(mapped(P[0] + offset, [builder.combination(exponent, dtype)], dtype))

