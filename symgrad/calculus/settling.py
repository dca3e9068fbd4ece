"""What a scalar body comes to where some of its arguments are known: true, false, or an expression.

    select(c, a, b) = b where c is false;   0 a = 0;   a or true = true
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from symgrad.graph import functions as fn
from symgrad.graph.functions import Placeholder

TRUE, FALSE = sympy.Symbol("true"), sympy.Symbol("false")
ZERO = sympy.S.Zero

_SELECT, _NOT, _OR, _AND = (
    fn.FUNCTIONS[name].cls for name in ("select", "logical_not", "logical_or", "logical_and")
)


def settled(body: sympy.Expr, known: Mapping[sympy.Symbol, sympy.Expr]) -> sympy.Expr | None:
    """A body where some placeholders are known; None where a truth is left in it.

    What has no value, as 1/0, is told like any other expression, but never is 0.

    >>> from symgrad.graph.functions import P
    >>> settled(fn.select(P[0], P[1], 2 * P[2]), {P[0]: FALSE})
    2*p2
    >>> settled(P[0] * P[1] + fn.select(P[2], P[0], 0), {P[0]: ZERO})
    0
    """
    found = _settled(body, known, {})
    if found.has(TRUE, FALSE) and found not in (TRUE, FALSE):
        return None
    return None if found.has(sympy.nan, sympy.zoo) else found


def _settled(
    e: sympy.Expr,
    known: Mapping[sympy.Symbol, sympy.Expr],
    done: dict[sympy.Expr, sympy.Expr],
) -> sympy.Expr:
    if isinstance(e, Placeholder):
        return known.get(e, e)
    if not e.args:
        return e
    if e not in done:
        args = [_settled(a, known, done) for a in e.args]
        done[e] = _applied(e, args)
    return done[e]


def _applied(e: sympy.Expr, args: list[sympy.Expr]) -> sympy.Expr:
    kind = e.func
    if kind is _SELECT:
        condition, a, b = args
        if condition == TRUE or a == b:
            return a
        if condition == FALSE:
            return b
    elif kind is _NOT and args[0] in (TRUE, FALSE):
        return FALSE if args[0] == TRUE else TRUE
    elif kind in (_OR, _AND):
        strong, weak = (TRUE, FALSE) if kind is _OR else (FALSE, TRUE)
        if strong in args:
            return strong
        rest = [a for a in args if a != weak]
        if len(rest) < 2:
            return rest[0] if rest else weak
    elif kind.__name__.startswith("cast_") and args[0] in (TRUE, FALSE, ZERO):
        return sympy.S.One if args[0] == TRUE else ZERO
    return kind(*args) if tuple(args) != e.args else e
