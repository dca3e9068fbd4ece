"""Rational functions of one exponential, R(t) with t = e^u, and forms of them that lose no digits.

A value that is built from `e^u`, `sigmoid(u)`, `tanh(u / 2)` and arithmetic alone is R(t) with
rational coefficients, exactly. SymPy's field of fractions cancels common factors, so that
`t/(1+t) - t^2/(1+t)^2` is `t/(1+t)^2`, and then

    t/(1+t) = sigmoid(u),   1/(1+t) = sigmoid(-u),   (t-1)/(t+1) = tanh(u/2),   t - 1 = expm1(u)

give a form in which nothing overflows, and nothing cancels that does not have to. All functions
here are pure and cached: a network repeats few ratios many times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import Any, TypeAlias

import sympy
from sympy import QQ
from sympy.polys.fields import field

from symgrad.graph import functions as fn
from symgrad.graph.functions import P

Ratio: TypeAlias = Any  # an element of QQ(t); SymPy ships no types
Poly: TypeAlias = Any

_FIELD, T = field("t", QQ)
ONE: Ratio = _FIELD.one
_t = _FIELD.ring.gens[0]
LENGTH = 400  # binary digits of a coefficient at most
RANGE = 100  # binary digits before or after the point at most
SHORT = 12  # binary digits of a coefficient that is written as a fraction
DEGREE = 24  # of a numerator or denominator at most; beyond, a value is taken as it is


@lru_cache(maxsize=4096)
def constant(value: Fraction) -> Ratio:
    """A number as a ratio."""
    return _FIELD(QQ(value.numerator, value.denominator))


def fraction(value: Any) -> Fraction:
    """A coefficient as Python's Fraction."""
    return Fraction(int(value.numerator), int(value.denominator))


@lru_cache(maxsize=4096)
def add(a: Ratio, b: Ratio) -> Ratio:
    """`a + b`, in lowest terms."""
    return a + b


@lru_cache(maxsize=4096)
def multiply(a: Ratio, b: Ratio) -> Ratio:
    """`a b`, in lowest terms."""
    return a * b


@lru_cache(maxsize=4096)
def invert(a: Ratio) -> Ratio:
    """`1 / a`."""
    return 1 / a


def scaled(a: Ratio, value: Fraction) -> Ratio:
    """`value a`."""
    return a if value == 1 else multiply(a, constant(value))


@lru_cache(maxsize=1024)
def power_of_t(k: int) -> Ratio:
    """`t^k`, k of either sign."""
    return T**k if k >= 0 else 1 / T**-k


@lru_cache(maxsize=4096)
def stretched(a: Ratio, n: int) -> Ratio:
    """`a(t^n)`, n a nonzero integer."""
    if n == 1:
        return a
    return _at_power(a.numer, n) / _at_power(a.denom, n)


def _at_power(p: Poly, n: int) -> Ratio:
    total = _FIELD.zero
    for (k,), c in p.terms():
        total += c * power_of_t(n * k)
    return total


@lru_cache(maxsize=4096)
def monomial(a: Ratio) -> tuple[Fraction, int] | None:
    """(c, k) of `c t^k`; None for anything else."""
    above, below = a.numer.terms(), a.denom.terms()
    if len(above) != 1 or len(below) != 1:
        return None
    ((j,), c), ((k,), d) = above[0], below[0]
    return fraction(c) / fraction(d), j - k


@lru_cache(maxsize=4096)
def too_large(a: Ratio) -> bool:
    """Whether it is beyond what is worth its algebra."""
    if degree(a) > DEGREE:
        return True
    return any(long(fraction(c)) for p in (a.numer, a.denom) for c in p.coeffs())


def long(c: Fraction) -> bool:
    """Whether a number has more digits than are worth their arithmetic, or overflows somewhere."""
    above, below = c.numerator.bit_length(), c.denominator.bit_length()
    return max(above, below) > LENGTH or abs(above - below) > RANGE


def number(c: Fraction) -> sympy.Expr:
    """A coefficient in a body: exact where it is short, else the nearest float64."""
    if max(c.numerator.bit_length(), c.denominator.bit_length()) <= SHORT:
        return sympy.Rational(c.numerator, c.denominator)
    return sympy.Float(float(c))


@lru_cache(maxsize=4096)
def ends(a: Ratio) -> tuple[int, int]:
    """The powers with which |a| grows as u -> infinity and as u -> -infinity; negative: it decays.

    >>> ends(T / (1 + T)), ends(T + 1 / T)
    ((0, -1), (1, 1))
    """
    above, below = a.numer, a.denom
    return above.degree() - below.degree(), _lowest(below) - _lowest(above)


def _lowest(p: Poly) -> int:
    return int(min(k for (k,) in p.itermonoms()))


@lru_cache(maxsize=4096)
def zeros_at_one(a: Ratio) -> int:
    """The multiplicity of the zero at t = 1, which is u = 0."""
    count, p = 0, a.numer
    while p.evaluate(_t, 1) == 0:
        p, count = p.exquo(_t - 1), count + 1
    return count


@lru_cache(maxsize=4096)
def at_one(a: Ratio) -> Fraction:
    """R(1); 0 at a pole."""
    above, below = (fraction(p.evaluate(_t, 1)) for p in (a.numer, a.denom))
    return above / below if below else Fraction(0)


@lru_cache(maxsize=4096)
def degree(a: Ratio) -> int:
    """The largest power that occurs."""
    return int(max(a.numer.degree(), a.denom.degree()))


# -- factors ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Factored:
    """`number t^shift above(t^step) / below(t^step)`; above and below are coprime, not 0 at 0."""

    number: Fraction
    shift: int
    step: int
    above: Poly
    below: Poly


@lru_cache(maxsize=4096)
def factored(a: Ratio) -> Factored:
    """Take out the power of t, and the step of the powers that occur."""
    low_above, low_below = _lowest(a.numer), _lowest(a.denom)
    powers = [k - low_above for (k,) in a.numer.itermonoms()]
    powers += [k - low_below for (k,) in a.denom.itermonoms()]
    step = gcd(*powers) or 1
    above, c = _primitive(a.numer, low_above, step)
    below, d = _primitive(a.denom, low_below, step)
    return Factored(c / d, low_above - low_below, step, above, below)


def _primitive(p: Poly, low: int, step: int) -> tuple[Poly, Fraction]:
    """The polynomial in t^step without its lowest power, and with 1 for its highest coefficient."""
    lead = p.LC
    ring = p.ring
    return ring.from_dict({((k - low) // step,): c / lead for (k,), c in p.terms()}), fraction(lead)


def multiplicity(p: Poly, factor: Poly) -> tuple[int, Poly]:
    """How often a factor divides, and what is left."""
    count = 0
    while p.degree() >= factor.degree():
        quotient, rest = p.div(factor)
        if rest != 0:
            break
        p, count = quotient, count + 1
    return count, p


@dataclass(frozen=True, slots=True)
class Closed:
    """`body` over p0, p1, ..: what `arguments` names, for u = the exponent of t.

    An argument ("sigmoid", 2) is sigmoid(2 u), ("exp", -1) is e^-u, ("itself", 1) is u.
    """

    body: sympy.Expr
    arguments: tuple[tuple[str, Fraction], ...]
    rule: str


_PLUS, _MINUS = _t + 1, _t - 1


@lru_cache(maxsize=4096)
def closed_form(a: Ratio) -> Closed | None:
    """A form of R(t) that loses no digits; None where the ratio as it is written has none better.

    >>> closed_form(T / (1 + T) ** 2).arguments
    (('sigmoid', Fraction(1, 1)), ('sigmoid', Fraction(-1, 1)))
    """
    if a == 0 or monomial(a) is not None:
        return None
    parts = factored(a)
    if parts.below.degree() == 0:
        return _difference(parts)
    return _logistic(parts) or _reciprocal(parts) or _whole_two_sided(a)


def _difference(parts: Factored) -> Closed | None:
    # t - 1 = expm1(u);   (t^2 - 1) / (2 t) = sinh(u);   1 - 1/t = -expm1(-u)
    n, j = parts.step, parts.shift
    count, rest = multiplicity(parts.above, _MINUS)
    if count == 0 or rest.degree() > 0:
        return None
    if 2 * j == -n * count:
        body = _rational(parts.number) * (2 * P[0]) ** count
        return Closed(body, (("sinh", Fraction(n, 2)),), "sinh")
    if j >= 0 or j <= -n * count:
        return _power_of_expm1(parts, count, j < 0)
    return None


def _reciprocal(parts: Factored) -> Closed | None:
    # 1/(t - 1) = 1/expm1(u);   t/(t - 1) = -1/expm1(-u)
    count, rest = multiplicity(parts.below, _MINUS)
    if parts.above.degree() or rest.degree():
        return None
    if parts.shift <= 0 or parts.shift >= parts.step * count:
        return _power_of_expm1(parts, -count, parts.shift > 0)
    return None


def _power_of_expm1(parts: Factored, count: int, down: bool) -> Closed:
    """`number t^j (t^n - 1)^count` by expm1(n u), or downwards by `t^n - 1 = -t^n expm1(-n u)`."""
    n, j = parts.step, parts.shift
    body = _rational(parts.number) * (-P[0] if down else P[0]) ** count
    left = j + n * count if down else j
    arguments = [("expm1", Fraction(-n if down else n))]
    if left:
        body *= P[1]
        arguments.append(("exp", Fraction(left)))
    return Closed(body, tuple(arguments), "expm1")


def _logistic(parts: Factored) -> Closed | None:
    # with T = t^n, s = T/(1+T) = sigmoid(n u), r = 1/(1+T) = sigmoid(-n u):
    #   sum_i c_i T^i / (1+T)^k = sum_i c_i s^i r^(k-i),   (T-1)/(T+1) = tanh(n u / 2)
    n, j = parts.step, parts.shift
    k, rest = multiplicity(parts.below, _PLUS)
    if rest.degree() > 0 or j % n:
        return None
    odd, above = multiplicity(parts.above, _MINUS)
    room = k - odd - above.degree()
    if room < 0:
        return None
    first = min(max(j // n, 0), room)
    left = j - n * first
    s, r, h, e = sympy.symbols("s r h e")
    body = sympy.Add(*[
        _rational(c) * s ** (i + first) * r ** (k - odd - i - first) for (i,), c in above.terms()
    ])
    body = _rational(parts.number) * body * h**odd * (e if left else 1)
    kinds = {
        s: ("sigmoid", Fraction(n)), r: ("sigmoid", Fraction(-n)), h: ("tanh", Fraction(n, 2)),
        e: ("exp", Fraction(left)),
    }
    used = [x for x in (s, r, h, e) if x in body.free_symbols]
    body = body.xreplace({x: P[m] for m, x in enumerate(used)})
    names = [kinds[x][0] for x in used]
    rule = "tanh" if names == ["tanh"] else "sigmoid"
    return Closed(body, tuple(kinds[x] for x in used), rule)


def _rational(c: Any) -> sympy.Expr:
    return number(c if isinstance(c, Fraction) else fraction(c))


@lru_cache(maxsize=4096)
def two_sided(a: Ratio) -> tuple[sympy.Expr, int, int]:
    """(B, j, k) with `R(e^u) = B(u) e^(j u)` for u <= 0 and `B(u) e^(k u)` for u > 0; B is bounded.

    B is written with `w = -|u|`: no power of a number above 1.
    """
    parts = factored(a)
    n, j = parts.step, parts.shift
    c, d = _scale(parts.above), _scale(parts.below)
    factor = _rational(parts.number * d / c)
    above, below = parts.above * _rational_of(c), parts.below * _rational_of(d)
    low, high = (
        factor * _at(above, n, reverse) / _at(below, n, reverse) for reverse in (False, True)
    )
    return (
        fn.select(fn.less_equal(P[0], 0), low, high),
        j,
        j + n * (parts.above.degree() - parts.below.degree()),
    )


def _whole_two_sided(a: Ratio) -> Closed:
    # R(t) for u <= 0, and R(1/w) with w = e^-u for u > 0
    body, j, k = two_sided(a)
    test, low, high = body.args
    body = fn.select(test, _exp(j) * low, _exp(-k) * high)
    return Closed(body, (("itself", Fraction(1)),), "two-sided")


def _scale(p: Poly) -> Fraction:
    # by which the coefficients are short whole numbers, or else at most 1
    coefficients = [fraction(c) for c in p.coeffs()]
    whole = lcm(*(c.denominator for c in coefficients))
    if all((c * whole).numerator.bit_length() <= SHORT for c in coefficients):
        return Fraction(whole)
    return 1 / max(abs(c) for c in coefficients)


def _rational_of(c: Fraction) -> Any:
    return QQ(c.numerator, c.denominator)


FOLD = fn.select(fn.less_equal(P[0], 0), P[0], -P[0])
"""-|x|, whose derivative at 0 is that of x."""


def _exp(k: int) -> sympy.Expr:
    return fn.exp(k * FOLD) if k else sympy.S.One


def _at(p: Poly, n: int, reverse: bool) -> sympy.Expr:
    """p(t) by Horner's rule in e^(n w), w = -|u|; with `reverse`, t^degree p(1/t)."""
    zeros, p = multiplicity(p, _MINUS)
    degree = p.degree()
    table = {k: c for (k,), c in p.terms()}
    total: sympy.Expr = sympy.S.Zero
    for k in range(degree + 1):
        c = _rational(table.get(k if reverse else degree - k, 0))
        total = total * _exp(n) + c
    return total * (-fn.expm1(n * FOLD) if reverse else fn.expm1(n * FOLD)) ** zeros


# -- logarithms ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LogTerm:
    """`count f(scale u + offset)`: f is itself, softplus, log1mexp, or the log of a polynomial.

    An even power has `log|1 - e^u|`, which is defined on both sides of 0, in place of log1mexp.

    offset is the logarithm of `inner`, by which t^n is divided in a factor `t^n + inner`.
    """

    kind: str
    count: Fraction
    scale: Fraction
    inner: Fraction = Fraction(1)
    polynomial: Poly | None = None


@lru_cache(maxsize=4096)
def log_form(a: Ratio) -> tuple[Fraction, tuple[LogTerm, ...]] | None:
    """`log R(t) = log c + terms`, c of either sign; None where R may be negative by more than c.

        log (1 + t) = softplus(u)      log (t/(1+t)) = -softplus(-u)
        log (1 - t) = log1mexp(u)      log (t^n + b) = log b + softplus(n u - log b)
    """
    one = monomial(a)
    if one is not None:
        c, k = one
        return c, (LogTerm("itself", Fraction(1), Fraction(k)),) if k else ()
    parts = factored(a)
    n, j, number = parts.step, parts.shift, parts.number
    powers: dict[tuple[str, Fraction], int] = {}
    wide: list[LogTerm] = []
    for p, sign in ((parts.above, 1), (parts.below, -1)):
        if p.degree() == 0:
            continue
        lead_of_all, factors = p.factor_list()
        found_all = [_two_terms(factor) for factor, _ in factors]
        if any(found is None for found in found_all):
            if any(c < 0 for c in p.coeffs()):
                return None
            wide.append(LogTerm("sum", Fraction(sign), Fraction(n), polynomial=p))
            continue
        number *= fraction(lead_of_all) ** sign
        for (_, count), found in zip(factors, found_all, strict=True):
            assert found is not None
            kind, degree, inner, lead = found
            number *= lead ** (sign * count)
            key = (f"{kind}:{degree}", inner)
            powers[key] = powers.get(key, 0) + sign * count
    terms: list[LogTerm] = wide
    for (name, inner), count in powers.items():
        kind, _, degree_of = name.partition(":")
        width = n * int(degree_of)
        if kind == "minus":
            # t - 1 = -(1 - t);   t - 1 = t (1 - 1/t);   (t - 1)^2 = |1 - t|^2
            if count % 2 == 0:
                terms.append(LogTerm("log|1mexp|", Fraction(count), Fraction(width)))
            elif number < 0:
                number = -number
                terms.append(LogTerm("log1mexp", Fraction(count), Fraction(width)))
            else:
                j += width * count
                terms.append(LogTerm("log1mexp", Fraction(count), Fraction(-width)))
            continue
        # t^j / (1 + t)^k = t^(j-k) (t / (1+t))^k
        paired = 0
        if inner == 1 and count * j < 0:
            paired = min(abs(count), abs(j) // width) * (1 if count > 0 else -1)
        if paired:
            terms.append(LogTerm("softplus", Fraction(paired), Fraction(-width)))
            j += paired * width
            count -= paired
        if count:
            number *= inner**count
            terms.append(LogTerm("softplus", Fraction(count), Fraction(width), inner))
    if sum(name.startswith("minus") for name, _ in powers) > 1:
        return None
    if j:
        terms.append(LogTerm("itself", Fraction(1), Fraction(j)))
    return number, tuple(terms)


def _two_terms(p: Poly) -> tuple[str, int, Fraction, Fraction] | None:
    """A factor `c (t^n + b)`, b > 0, as plus; `c (t - 1)` as minus: (kind, n, b, c)."""
    terms = dict(p.terms())
    degree = p.degree()
    if len(terms) != 2 or (0,) not in terms:
        return None
    lead, last = fraction(terms[(degree,)]), fraction(terms[(0,)])
    inner = last / lead
    if inner > 0:
        return "plus", degree, inner, lead
    return ("minus", degree, Fraction(1), lead) if inner == -1 else None


@lru_cache(maxsize=256)
def log_of_polynomial(p: Poly) -> sympy.Expr:
    """`log p(e^x)` of positive coefficients, with x = p0: of w = e^-|x| above and below 0.

        log p(t) = log p_0 + log1p(sum_k (p_k / p_0) t^k) = log p_n + n x + log1p(...)
    """
    degree = p.degree()
    table = {k: fraction(c) for (k,), c in p.terms()}
    w = fn.exp(FOLD)

    def beside_one(coefficients: list[Fraction]) -> sympy.Expr:
        total: sympy.Expr = sympy.S.Zero
        for c in reversed(coefficients[1:]):
            total = (total + number(c / coefficients[0])) * w
        log = sympy.Float(float(sympy.log(number(coefficients[0]))))
        return fn.log1p(total) + (log if coefficients[0] != 1 else 0)

    rising = [table.get(k, Fraction(0)) for k in range(degree + 1)]
    low, high = beside_one(rising), beside_one(rising[::-1]) + degree * P[0]
    return fn.select(fn.less_equal(P[0], 0), low, high)


# log (1 - e^x), x < 0, as Maechler 2012: each branch where it keeps its digits
LOG1MEXP = fn.select(
    fn.less(sympy.Float(-0.6931471805599453), P[0]),
    fn.log(-fn.expm1(P[0])),
    fn.log1p(-fn.exp(P[0])),
)
ARGUMENT: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    "sigmoid": fn.sigmoid, "tanh": fn.tanh, "exp": fn.exp, "expm1": fn.expm1, "sinh": fn.sinh,
}
