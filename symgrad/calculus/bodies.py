"""Scalar bodies of derivatives: masked products, pullbacks of a Map, sums and substitutions.

A derivative of `select` keeps its mask: `a * select(c, g, 0)` is written `select(c, a * g, 0)`, so
that an infinite `a` in the branch that was not taken contributes zero and not NaN. Every function
here is pure and cached, because a network repeats few bodies many times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import sympy

from symgrad.graph import functions as fn
from symgrad.graph.functions import AxisIndex, P, Placeholder, Y, axis_index, placeholder
from symgrad.graph.scalars import derivative, operations, placeholders_in, uses_output

ZERO = sympy.S.Zero
_SELECT = fn.FUNCTIONS["select"].cls
_NOT = fn.FUNCTIONS["logical_not"].cls
_OR = fn.FUNCTIONS["logical_or"].cls
_AND = fn.FUNCTIONS["logical_and"].cls


@cache
def _masked(expr: sympy.Expr) -> bool:
    """Whether it is a select with a branch that is zero, or that is masked itself."""
    return isinstance(expr, _SELECT) and any(b == 0 or _masked(b) for b in expr.args[1:])


@cache
def _has_mask(expr: sympy.Expr) -> bool:
    return _masked(expr) or (
        isinstance(expr, (sympy.Add, sympy.Mul)) and any(_has_mask(a) for a in expr.args)
    )


def product(factor: sympy.Expr, term: sympy.Expr) -> sympy.Expr:
    """`factor * term`, with the masks of `term` outermost.

        f * select(c, a, 0) = select(c, f * a, 0)

    >>> product(P[0], fn.select(P[1], 1 / P[2], 0))
    select(p1, p0/p2, 0)
    """
    if term == 0:
        return ZERO
    if _masked(term):
        condition, a, b = term.args
        return fn.select(condition, product(factor, a), product(factor, b))
    if isinstance(term, sympy.Mul) and _has_mask(term):
        mask = next(a for a in term.args if _has_mask(a))
        rest = sympy.Mul(*[a for a in term.args if a is not mask])
        return product(product(factor, rest), mask)
    if isinstance(term, sympy.Add) and _has_mask(term):
        return sympy.Add(*[product(factor, a) for a in term.args])
    if _masked(factor):
        return product(term, factor)
    return factor * term


def _of_quotient(body: sympy.Expr, k: int) -> sympy.Expr | None:
    """The derivative by a denominator in terms of the quotient y, which does not overflow.

        y = a / b^n:  dy/db = -n y / b;   y = 1 / b:  dy/db = -y^2
    """
    own = placeholder(k)
    if body == 1 / own:
        return -(Y**2)
    for term in body.args if isinstance(body, sympy.Mul) else (body,):
        if isinstance(term, sympy.Pow) and term.base == own and term.exp.is_Integer:
            rest = body / term
            if term.exp < 0 and not rest.has(own):
                return term.exp * Y / own
    return None


@cache
def slope(body: sympy.Expr, k: int) -> sympy.Expr | None:
    """The derivative of a body by p_k with its masks outermost; None where it is zero."""
    d = _of_quotient(body, k)
    if d is None:
        d = derivative(body, k)
    if d is None:
        return None
    d = product(sympy.S.One, d)
    return None if d == 0 else d


@dataclass(frozen=True, slots=True)
class Factor:
    """A scalar factor of a derivative.

    body:   over p_first, p_first+1, ..: the needed arguments in order, then the output.
    needs:  which arguments of the primal Map it reads.
    output: whether it reads the primal's own value.
    """

    body: sympy.Expr
    needs: tuple[int, ...]
    output: bool

    @property
    def width(self) -> int:
        """How many arguments it reads."""
        return len(self.needs) + self.output


@cache
def factor(body: sympy.Expr, k: int, first: int = 0) -> Factor | None:
    """D body / d p_k with its placeholders numbered from `first`; None where it is zero.

    >>> factor(fn.tanh(P[0]), 0)
    Factor(body=1 - p0**2, needs=(), output=True)
    """
    d = slope(body, k)
    if d is None:
        return None
    needs = placeholders_in(d)
    output = uses_output(d)
    names = {placeholder(j): placeholder(first + n) for n, j in enumerate(needs)}
    names[Y] = placeholder(first + len(needs))
    return Factor(d.xreplace(names), needs, output)


@cache
def pullback(body: sympy.Expr, k: int) -> Factor | None:
    """`p0 * d body / d p_k`: p0 is the cotangent, the factor's arguments follow.

    >>> pullback(fn.tanh(P[0]), 0)
    Factor(body=p0*(1 - p1**2), needs=(), output=True)
    """
    d = factor(body, k, 1)
    return None if d is None else Factor(product(P[0], d.body), d.needs, d.output)


@cache
def mask_of(body: sympy.Expr) -> sympy.Expr | None:
    """The condition outside of which a body is zero by its mask; None where there is none.

    >>> mask_of(fn.select(P[0], P[1], 0)), mask_of(P[0] * P[1])
    (p0, None)
    >>> mask_of(fn.select(P[0], fn.select(P[1], P[2], 0), 0))
    logical_and(p0, p1)
    """
    if not isinstance(body, _SELECT):
        return None
    condition, a, b = body.args
    if b == 0:
        return _both(condition, mask_of(a))
    if a == 0:
        return _both(_NOT(condition), mask_of(b))
    inner_a, inner_b = mask_of(a), mask_of(b)
    if inner_b is not None:
        return _OR(condition if inner_a is None else _AND(condition, inner_a), inner_b)
    return None


def _both(a: sympy.Expr, b: sympy.Expr | None) -> sympy.Expr:
    """The condition that both hold:  (a or b) and b = b."""
    if b is None or a == b or (isinstance(b, _OR) and a in b.args):
        return a
    return b if isinstance(a, _OR) and b in a.args else _AND(a, b)


@cache
def restrict(condition: sympy.Expr, body: sympy.Expr) -> sympy.Expr:
    """`select(condition, body, 0)`; the body itself when its mask is that condition already."""
    return body if mask_of(body) == condition else fn.select(condition, body, 0)


@cache
def decided(body: sympy.Expr, k: int, truth: bool) -> sympy.Expr:
    """The body with every `select(p_k, a, b)` replaced by `a`, or by `b` where `truth` is False.

    >>> decided(fn.select(P[1], fn.exp(P[0]), P[0]), 1, False)
    p0
    """
    chosen = {
        term: term.args[1 if truth else 2]
        for term in body.atoms(_SELECT)
        if term.args[0] == placeholder(k)
    }
    while chosen and not chosen.keys().isdisjoint(sympy.preorder_traversal(body)):
        body = body.xreplace(chosen)
    return body


@cache
def either(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """The condition that one of two holds; None where one always does, as of c and not c."""
    if a in (_NOT(b), *b.args[: b.func == _NOT]):
        return None
    return a if a == b else _OR(a, b)


@cache
def weighted_sum(counts: tuple[int, ...]) -> sympy.Expr:
    """`counts[0] p0 + counts[1] p1 + ..`."""
    return sympy.Add(*[n * placeholder(k) for k, n in enumerate(counts)])


@cache
def shift(body: sympy.Expr, places: tuple[int, ...], axes: tuple[int | None, ...]) -> sympy.Expr:
    """The body with p_k renamed to p_places[k] and i_k to i_axes[k]; None stands for position 0."""
    names: dict[sympy.Expr, sympy.Expr] = {
        placeholder(k): placeholder(n) for k, n in enumerate(places)
    }
    for k, axis in enumerate(axes):
        names[axis_index(k)] = ZERO if axis is None else axis_index(axis)
    return body.xreplace(names)


@cache
def uses_axes(body: sympy.Expr) -> bool:
    """Whether the position along an axis occurs."""
    return any(isinstance(s, AxisIndex) for s in body.free_symbols)


@cache
def weight(body: sympy.Expr) -> int:
    """The number of operations of a body."""
    return sum(step.kind not in ("argument", "axis", "dim", "number") for step in operations(body))


@cache
def calls(body: sympy.Expr) -> bool:
    """Whether a scalar function other than a cast or a comparison is applied."""
    return any(
        step.kind == "call" and not step.payload.startswith("cast_") and step.payload != "equal"
        for step in operations(body)
    )


@cache
def monomial(body: sympy.Expr) -> tuple[sympy.Expr, tuple[int, ...]] | None:
    """Coefficient c and the k of `c * p_a * p_b * ..`, all distinct; None for anything else.

    >>> monomial(-P[0] * P[2]), monomial(P[0] ** 2)
    ((-1, (0, 2)), None)
    """
    coefficient: list[sympy.Expr] = []
    for term in body.args if isinstance(body, sympy.Mul) else (body,):
        if isinstance(term, Placeholder):
            if term == Y:
                return None
        elif any(isinstance(s, (Placeholder, AxisIndex)) for s in term.free_symbols):
            return None
        else:
            coefficient.append(term)
    return sympy.Mul(*coefficient), placeholders_in(body)


@cache
def linear(body: sympy.Expr) -> tuple[tuple[int, int], ...] | None:
    """(k, c) of a sum `c_a p_a + c_b p_b + ..` with integer c; None for anything else.

    >>> linear(P[0] - 2 * P[1])
    ((0, 1), (1, -2))
    """
    found: dict[int, int] = {}
    for term in body.args if isinstance(body, sympy.Add) else (body,):
        one = monomial(term)
        if one is None or len(one[1]) != 1 or not one[0].is_Integer:
            return None
        found[one[1][0]] = int(one[0])
    return tuple(sorted(found.items()))


@cache
def compose(
    outer: sympy.Expr, places: tuple[int, ...], inner: tuple[tuple[int, sympy.Expr], ...]
) -> sympy.Expr:
    """`outer` with p_k replaced by `inner[k]`, or else renamed to p_places[k].

    >>> compose(P[0] * P[1], (0, 2), ((0, P[0] + P[1]),))
    p2*(p0 + p1)
    """
    names: dict[sympy.Expr, sympy.Expr] = {
        placeholder(k): placeholder(n) for k, n in enumerate(places)
    }
    names.update({placeholder(k): body for k, body in inner})
    return collect(outer.xreplace(names))


@cache
def packed(body: sympy.Expr) -> tuple[sympy.Expr, tuple[int, ...]]:
    """The body with its placeholders numbered 0, 1, .. and which they were."""
    used = placeholders_in(body)
    names = {placeholder(k): placeholder(n) for n, k in enumerate(used) if k != n}
    return (body.xreplace(names) if names else body), used


@cache
def collect(body: sympy.Expr) -> sympy.Expr:
    """A sum with the factors that all its terms share taken out.

        a/b + c/b = (a + c)/b

    >>> collect(P[0] / P[2] - P[1] / P[2])
    (p0 - p1)/p2
    """
    if not isinstance(body, sympy.Add):
        return body
    powers = [term.as_powers_dict() for term in body.args]
    shared: list[sympy.Expr] = []
    for base in sorted(powers[0], key=sympy.default_sort_key):
        exponents = [p.get(base, ZERO) for p in powers]
        if base.is_Symbol and all(e.is_Integer for e in exponents):
            least = min(exponents, key=abs)
            if all(e * least > 0 for e in exponents):
                shared.append(base**least)
    if not shared:
        return body
    common = sympy.Mul(*shared)
    return common * sympy.Add(*[term / common for term in body.args])
