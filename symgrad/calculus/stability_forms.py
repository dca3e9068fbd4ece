"""What a value is, as algebra: a number times factors times e^s times R(t).

    value = number * prod_j factor_j^k_j * e^(sum_i c_i x_i) * R(t),    t = e^(base)

`Form` is exact arithmetic on such values; nothing is computed and no node is built. From it the
walk in `stabilization.py` sees when a product would multiply 0 with infinity, when a sum would
cancel, and what the logarithm of a value is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, inf, isqrt, lcm, sqrt
from typing import TypeAlias

import sympy

from symgrad.calculus import stability_ratios as rt
from symgrad.calculus.stability_ratios import Ratio
from symgrad.graph.dims import Shape
from symgrad.graph.dtypes import DType
from symgrad.graph.nodes import Einsum, Node

Degree: TypeAlias = "tuple[Fraction, ...]"
LEVEL: Degree = (Fraction(0),) * 4  # the degree of a number
WIDTH = 8  # factors or exponents of a form at most: beyond, a value is taken as it is

Exponent: TypeAlias = "dict[Value, Fraction]"


@dataclass(slots=True, eq=False)
class Value:
    """A scalar step of the new graph: its form now, its node when something asks for it.

    form:     its algebra; of an opaque value, itself as the only factor.
    dtype:    None of what is written inline.
    inline:   a number, dim or axis index that is written into bodies; such a value has no node.
    shape:    of what is written inline and counts along axes: whose axes they are.
    dirty:    whether a naive form lies below it.
    fired:    whether a rule gave it a form other than the one that was written.
    settled:  whether it is a choice between equal forms, thus stable as it is written.
    gentle:   whether it is made of tanh and numbers: then its sums stay as they are written.
    logs:     the values at whose zeros it diverges as a logarithm does.
    plus_one: (sign, v) where it is `1 + sign v`.
    terms:    the exponentials that it is the sum of.
    spread:   the terms of a product with a sum that has no form.
    addends:  (a, b, sign) where it is `a + sign b`.
    log_of:   the form that it is the logarithm of.
    roots:    the values at whose zeros it vanishes as a root does.
    less_one: builds it less 1, for a cosine or a root that is near 1.
    bounds:   what is known of its size.
    below:    x where it is the test `x <= 0`.
    zero_of:  x where it is the test `x = 0` or `0 < x`, or a form that is masked at x = 0.
    degree:   how it grows where all leaves go up, or down, or some up and others down.
    indicator: the bool that it is 1 or 0 by.
    """

    dtype: DType | None
    form: Form = None  # type: ignore[assignment]  # set below to itself
    make: Callable[[], Node] | None = None
    inline: sympy.Expr | None = None
    shape: Shape | None = None
    dirty: bool = False
    fired: bool = False
    settled: bool = False
    gentle: bool = False
    logs: frozenset[Value] = frozenset()
    plus_one: tuple[int, Value] | None = None
    terms: tuple[Form, ...] = ()
    spread: tuple[Form, ...] = ()
    addends: tuple[Value, Value, int] | None = None
    log_of: Form | None = None
    roots: frozenset[Value] = frozenset()
    less_one: Callable[[], Node] | None = None
    bounds: tuple[float, float] = (-inf, inf)
    below: Value | None = None
    zero_of: Value | None = None
    degree: Degree = (Fraction(1), Fraction(-1)) * 2
    indicator: Value | None = None
    made: Node | None = None

    def __post_init__(self) -> None:
        if self.form is None:
            self.form = Form(factors={self: 1})

    @property
    def node(self) -> Node:
        """The node, built on first demand."""
        if self.made is None:
            assert self.make is not None
            self.made = self.make()
            self.make = None
        return self.made


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """`number * factors * e^exponent * ratio(e^base)`; see the module."""

    number: Fraction = Fraction(1)
    factors: Mapping[Value, int] = field(default_factory=dict)
    exponent: Mapping[Value, Fraction] = field(default_factory=dict)
    ratio: Ratio | None = None
    base: Mapping[Value, Fraction] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether no exponential takes part."""
        return self.ratio is None and not self.exponent

    @property
    def is_number(self) -> bool:
        """Whether it is a number alone."""
        return self.plain and not self.factors


@dataclass(frozen=True, slots=True)
class Summed:
    """A sum over axes of one operand: the form of what is summed, and where it is summed."""

    form: Form
    operand: Value
    node: Einsum


ZERO = Form(Fraction(0))
"""What vanishes in a derivative; a user's own 0.0 is a value like any other."""


def literal(value: float) -> Form | None:
    """A literal that takes part in the algebra: neither 0 nor infinite, nor huge or tiny."""
    if value != value or value in (0.0, float("inf"), float("-inf")):
        return None
    exact = Fraction(value)
    if rt.long(exact):
        return None
    return Form(exact)


def linear(value: Value) -> Exponent:
    """A value as a sum of others with rational coefficients; itself where that is too wide."""
    found: Exponent = {}
    stack: list[tuple[Value, Fraction]] = [(value, Fraction(1))]
    steps = 0
    while stack:
        here, c = stack.pop()
        steps += 1
        if steps > 4 * WIDTH or len(found) > WIDTH:
            return {value: Fraction(1)}
        form = here.form
        single = next(iter(form.factors)) if len(form.factors) == 1 else None
        if here.addends is not None:
            a, b, sign = here.addends
            stack += [(b, sign * c), (a, c)]
        elif single is not None and single is not here and form.plain and form.factors[single] == 1:
            stack.append((single, c * form.number))
        else:
            found = combined(found, {here: Fraction(1)}, c)
    return found or {value: Fraction(1)}


# -- linear combinations ---------------------------------------------------------------------------
def combined(a: Mapping[Value, Fraction], b: Mapping[Value, Fraction], c: Fraction) -> Exponent:
    """`a + c b`, without zeros."""
    total = dict(a)
    for key, value in b.items():
        left = total.get(key, Fraction(0)) + c * value
        if left:
            total[key] = left
        else:
            total.pop(key, None)
    return total


def times(a: Mapping[Value, Fraction], c: Fraction) -> Exponent:
    """`c a`."""
    return {key: c * value for key, value in a.items()}


def parallel(a: Mapping[Value, Fraction], b: Mapping[Value, Fraction]) -> Fraction | None:
    """The q with `a = q b`; None where there is none."""
    if len(a) != len(b) or not a:
        return None
    q: Fraction | None = None
    for key, value in a.items():
        if key not in b:
            return None
        here = value / b[key]
        if q is not None and here != q:
            return None
        q = here
    return q


def height(a: Mapping[Value, Fraction]) -> Degree:
    """How e^a grows, in the directions of degrees: 0 of a difference x - max x."""
    directions = zip(*(value.degree for value in a), strict=True)
    return tuple([
        sum((c * d for c, d in zip(a.values(), degrees, strict=True)), Fraction(0))
        for degrees in directions
    ]) or LEVEL


def highest(heights: Iterable[Degree]) -> Degree:
    """How the largest of several grows."""
    return tuple([max(directions) for directions in zip(*heights, strict=True)])


def opposed(a: Mapping[Value, Fraction], b: Mapping[Value, Fraction]) -> bool:
    """Whether e^a grows where e^b vanishes."""
    return any(x * y < 0 for x, y in zip(height(a), height(b), strict=True))


# -- arithmetic ------------------------------------------------------------------------------------
def settled(form: Form) -> Form | None:
    """The normal form: R is no monomial and e^s is no power of t; None where R vanished."""
    if form.ratio is None:
        return form
    ratio, exponent = form.ratio, dict(form.exponent)
    number = form.number
    if ratio == 0:
        return None
    q = parallel(exponent, form.base) if exponent else None
    if q is not None and q.denominator == 1:
        ratio = rt.multiply(ratio, rt.power_of_t(int(q)))
        exponent = {}
    one = rt.monomial(ratio)
    if one is not None:
        c, k = one
        return Form(number * c, form.factors, combined(exponent, form.base, Fraction(k)))
    return Form(number, form.factors, exponent, ratio, form.base)


def product(a: Form, b: Form) -> Form | None:
    """`a b`; None where it is beyond this algebra."""
    if not a.number or not b.number:
        return ZERO
    factors = dict(a.factors)
    for key, power in b.factors.items():
        left = factors.get(key, 0) + power
        if left:
            factors[key] = left
        else:
            del factors[key]
    exponent = combined(a.exponent, b.exponent, Fraction(1)) if b.exponent else a.exponent
    ratio, base = a.ratio, a.base
    if b.ratio is not None:
        if ratio is None:
            ratio, base = b.ratio, b.base
        else:
            met = meeting(a, b)
            if met is None:
                return None
            base, m, n = met
            ratio = rt.multiply(rt.stretched(ratio, m), rt.stretched(b.ratio, n))
            if rt.too_large(ratio):
                return None
    number = a.number * b.number
    if len(factors) > WIDTH or len(exponent) > WIDTH or rt.long(number):
        return None
    return settled(Form(number, factors, exponent, ratio, base))


def meeting(a: Form, b: Form) -> tuple[Exponent, int, int] | None:
    """A base for two ratios, and the powers of its exponential that theirs are."""
    return common_base(a.base, b.base)


def common_base(
    a: Mapping[Value, Fraction], b: Mapping[Value, Fraction]
) -> tuple[Exponent, int, int] | None:
    """(c, m, n) with `a = m c` and `b = n c` for integers; None unless they are parallel."""
    q = parallel(b, a)
    if q is None:
        return None
    step = Fraction(gcd(q.numerator, q.denominator), q.denominator)
    m, n = 1 / step, q / step
    if max(abs(m), abs(n)) > rt.DEGREE:
        return None
    return times(a, step), int(m), int(n)


def inverse(a: Form) -> Form:
    """`1 / a`."""
    return Form(
        1 / a.number,
        {key: -power for key, power in a.factors.items()},
        times(a.exponent, Fraction(-1)),
        None if a.ratio is None else rt.invert(a.ratio),
        a.base,
    )


def negated(a: Form) -> Form:
    """`-a`."""
    return Form(-a.number, a.factors, a.exponent, a.ratio, a.base)


def root(a: Form) -> tuple[Fraction, dict[Value, int], Exponent] | None:
    """The root of `c prod f^(2k) e^s` as (sqrt c, {f: k}, s/2); None for anything else."""
    if a.ratio is not None or a.number <= 0 or any(k % 2 for k in a.factors.values()):
        return None
    return (
        root_of_number(a.number),
        {key: k // 2 for key, k in a.factors.items()},
        times(a.exponent, Fraction(1, 2)),
    )


def root_of_number(c: Fraction) -> Fraction:
    """`sqrt c`, exactly where it is rational."""
    above, below = isqrt(c.numerator), isqrt(c.denominator)
    exact = Fraction(above, below) if below else Fraction(0)
    return exact if exact**2 == c else Fraction(sqrt(c))


def same_factors(a: Form, b: Form) -> bool:
    """Whether two forms have the same factors."""
    return len(a.factors) == len(b.factors) and all(
        b.factors.get(key) == power for key, power in a.factors.items()
    )


@dataclass(frozen=True, slots=True)
class Sum:
    """`a + b`: what it is, and whether digits are lost where it is computed as it is written."""

    form: Form
    cancels: bool


def total(a: Form, b: Form) -> Sum | None:
    """`a + b` of two forms with the same factors; None where it is beyond this algebra."""
    if not a.number or not b.number:
        return Sum(b if not a.number else a, False)
    if not same_factors(a, b):
        return None
    apart = combined(a.exponent, b.exponent, Fraction(-1))
    if a.ratio is None and b.ratio is None and not apart:
        number = a.number + b.number
        if rt.long(number):
            return None
        return Sum(Form(number, a.factors, a.exponent) if number else ZERO, not number)
    base: Mapping[Value, Fraction] = a.base if a.ratio is not None else b.base
    m = n = 1
    if a.ratio is not None and b.ratio is not None:
        met = common_base(a.base, b.base)
        if met is None:
            return None
        base, m, n = met
    shift = 0
    if apart:
        if not base:
            scale = lcm(*(value.denominator for value in apart.values()))
            common = gcd(*(int(value * scale) for value in apart.values()))
            part = Fraction(scale, common)
            if 1 / part > rt.DEGREE:  # of 1 + e^(40 x) the base is 40 x
                q = parallel(b.exponent, apart)
                part = Fraction(1, 1 if q is None else q.denominator)
            base = times(apart, -part if next(iter(apart.values())) < 0 else part)
        met = common_base(base, apart)
        if met is None:
            if a.ratio is not None or b.ratio is not None:
                return None
            base, met = apart, (apart, 1, 1)  # such as e^(-1.702 x)
        base, p, shift = met
        m, n = m * p, n * p
    left, right = (
        rt.constant(f.number) if f.ratio is None else rt.scaled(rt.stretched(f.ratio, k), f.number)
        for f, k in ((a, m), (b, n))
    )
    left = rt.multiply(left, rt.power_of_t(shift))
    ratio = rt.add(left, right)
    if rt.too_large(ratio):
        return None
    form = settled(Form(Fraction(1), a.factors, b.exponent, ratio, base))
    if form is None:
        return Sum(ZERO, True)
    cancels = rt.zeros_at_one(ratio) > min(rt.zeros_at_one(left), rt.zeros_at_one(right)) or any(
        end < max(x, y)
        for end, x, y in zip(rt.ends(ratio), rt.ends(left), rt.ends(right), strict=True)
    )
    return Sum(form, cancels)


def equal(a: Form, b: Form) -> bool:
    """Whether two forms are the same value."""
    if not same_factors(a, b) or dict(a.exponent) != dict(b.exponent):
        return False
    if a.ratio is None or b.ratio is None:
        return a.ratio is b.ratio and a.number == b.number
    met = common_base(a.base, b.base)
    if met is None:
        return False
    _, m, n = met
    left, right = rt.stretched(a.ratio, m), rt.stretched(b.ratio, n)
    return bool(rt.scaled(left, a.number) == rt.scaled(right, b.number))


def value_at_zero(a: Form) -> Fraction | None:
    """The value where all exponents are 0; None where factors remain."""
    if a.factors:
        return None
    return a.number if a.ratio is None else a.number * rt.at_one(a.ratio)


def tame(a: Form) -> bool:
    """Whether its exponentials cannot overflow, because their exponents are known to be bounded."""
    if _range(a.exponent)[1] > 1:
        return False
    if a.ratio is None:
        return True
    (low, high), (up, down) = _range(a.base), rt.ends(a.ratio)
    return (up <= 0 or high <= 1) and (down <= 0 or low >= -1)


def _range(a: Mapping[Value, Fraction]) -> tuple[float, float]:
    low = high = 0.0
    for value, c in a.items():
        ends = sorted(float(c) * end for end in value.bounds if end)
        ends += [0.0] * value.bounds.count(0.0)
        low, high = low + min(ends), high + max(ends)
    return low, high


# -- growth ----------------------------------------------------------------------------------------
def along(a: Form, base: Mapping[Value, Fraction]) -> tuple[Fraction, Fraction]:
    """The powers of e^base with which a grows at both ends of the base; 0 where it is unrelated."""
    up = down = Fraction(0)
    q = parallel(a.exponent, base) if a.exponent else None
    if q is not None:
        up, down = q, -q
    if a.ratio is not None:
        q = parallel(a.base, base)
        if q is not None:
            high, low = rt.ends(a.ratio)
            up += abs(q) * (high if q > 0 else low)
            down += abs(q) * (low if q > 0 else high)
    return up, down


def fights(a: Form, b: Form) -> bool:
    """Whether a product a b multiplies what overflows with what underflows, and one form is both.

    Exponents that go together are one exponent, and one that is a ratio's own is part of the ratio;
    unrelated ones have no better form.
    """
    if a.plain or b.plain:
        return False
    if a.exponent and b.exponent:
        if opposed(a.exponent, b.exponent):
            return True
        if (parallel(a.exponent, b.exponent) or 0) < 0:
            return True
    return any(
        x * y < 0
        for base in (a.base, b.base) if base
        for x, y in zip(along(a, base), along(b, base), strict=True)
    )


def hides(a: Form, result: Form) -> bool:
    """Whether 1/a overflows inside, though the result does not: a is a sum that grows."""
    if a.ratio is None:
        return False
    inner = along(a, a.base)
    outer = along(result, a.base)
    return any(x > 0 and y <= 0 for x, y in zip(inner, outer, strict=True))
