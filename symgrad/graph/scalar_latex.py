r"""Scalar bodies, names and numbers in LaTeX; `latex.py` writes whole expressions with them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sympy

from symgrad.graph import dims as dm
from symgrad.graph.dims import Dim, printable
from symgrad.graph.functions import AxisIndex, Placeholder, function_of
from symgrad.graph.scalars import number

ATOM, CALL, MATRIX, PRODUCT, SUM = 4, 3, 2, 1, 0
"""How tightly a piece of LaTeX holds together; looser ones get parentheses."""

Rendered = tuple[str, int]


def latex_name(name: str) -> str:
    r"""A user's name in math mode; nothing in it is taken for a command.

    >>> print(latex_name("W1"), latex_name("b"), latex_name("a_b}"))
    W_{1} b \mathrm{a\_b\}}
    """
    if match := re.fullmatch(r"([A-Za-z])_?([0-9]+)", name):
        return f"{match[1]}_{{{match[2]}}}"
    if re.fullmatch(r"[A-Za-z]", name):
        return name
    return r"\mathrm{" + "".join(ESCAPED.get(c, c) for c in printable(name)) + "}"


ESCAPED = {
    **{c: "\\" + c for c in "_&%#${}"},
    "\\": r"\backslash ",
    " ": r"\ ",
    "^": r"\wedge ",
    "~": r"\sim ",
    "<": r"\lt ",
    ">": r"\gt ",
    '"': "''",
}


def extent_latex(extent: dm.Extent) -> str:
    """An extent in LaTeX."""
    if type(extent) is int:
        return str(extent)
    names = {d: latex_name(d.name) for d in dm.free_dims(extent)}
    made: str = sympy.latex(extent, symbol_names=names)
    return made


def wrapped(rendered: Rendered, least: int) -> str:
    """In parentheses where it holds less tightly than `least`."""
    inner, holds = rendered
    return inner if holds >= least else rf"\left({inner}\right)"


# -- scalar bodies --------------------------------------------------------------------------------
def body_latex(body: sympy.Expr, args: Sequence[Rendered], axes: Sequence[str] = ()) -> Rendered:
    """A scalar body over arguments in LaTeX, and how tightly it holds together."""
    done: dict[sympy.Basic, Rendered] = {}
    for expr in sympy.postorder_traversal(body):
        if expr not in done:
            done[expr] = _scalar(expr, done, args, axes)
    return done[body]


def _scalar(
    expr: sympy.Expr,
    done: dict[sympy.Basic, Rendered],
    args: Sequence[Rendered],
    axes: Sequence[str],
) -> Rendered:
    if isinstance(expr, Placeholder):
        return ("y", ATOM) if expr.name == "y" else args[int(expr.name[1:])]
    if isinstance(expr, AxisIndex):
        k = int(expr.name[1:])
        return (axes[k] if k < len(axes) else f"i_{{{k}}}"), ATOM
    if isinstance(expr, Dim):
        return latex_name(expr.name), ATOM
    function = function_of(expr)
    if function is not None:
        (first, *_) = inner = [done[a] for a in expr.args]
        if function.name == "stop_gradient":
            return done[_shift_of(expr.args[0])]
        if function.result == "cast" and _is_test(expr.args[0]):
            return first
        if function.name == "pow":
            return rf"{{{wrapped(first, ATOM)}}}^{{{inner[1][0]}}}", CALL
        return function.latex.format(*(rendered for rendered, _ in inner)), CALL
    if expr.is_number:
        return _number(expr)
    if isinstance(expr, sympy.Add):
        terms = [wrapped(done[a], SUM) for a in sorted(expr.args, key=_leads_negative)]
        return re.sub(r"\+ -", "- ", " + ".join(terms)), SUM
    if isinstance(expr, sympy.Pow):
        return _power(expr, done)
    return _product(expr, done)


def _shift_of(expr: sympy.Expr) -> sympy.Expr:
    """Of `u where it is finite, else 0`, which shifts exponentials: u, as one would write it."""
    function = function_of(expr)
    if function is not None and function.name == "select":
        test, value, other = expr.args
        asked = function_of(test)
        if other == 0 and asked is not None and asked.name == "isfinite" and test.args[0] == value:
            return value
    return expr


def _leads_negative(term: sympy.Expr) -> bool:
    return bool(term.could_extract_minus_sign()) and isinstance(term, sympy.Mul)


def _is_test(expr: sympy.Expr) -> bool:
    function = function_of(expr)
    return function is not None and function.result == "bool"


def _number(expr: sympy.Expr) -> Rendered:
    if isinstance(expr, sympy.Float) or not isinstance(expr, sympy.Number):
        if not isinstance(expr, sympy.Float):
            return str(sympy.latex(expr)), CALL
        return decimal(repr(float(expr)))
    if expr.is_Rational and not expr.is_Integer:
        sign = "-" if expr < 0 else ""
        return rf"{sign}\frac{{{abs(expr.p)}}}{{{expr.q}}}", PRODUCT if sign else CALL
    return decimal(str(number(expr))) if expr.is_finite else (str(sympy.latex(expr)), ATOM)


def decimal(shown: str) -> Rendered:
    """A number that is printed in decimals."""
    names = {"inf": r"\infty", "-inf": r"-\infty", "nan": r"\mathrm{NaN}"}
    if shown in names:
        return names[shown], ATOM if shown != "-inf" else PRODUCT
    mantissa, e, exponent = shown.partition("e")
    mantissa = mantissa.removesuffix(".0")
    rendered = rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if e else mantissa
    return rendered, PRODUCT if e or rendered.startswith("-") else ATOM


def _power(expr: sympy.Expr, done: dict[sympy.Basic, Rendered]) -> Rendered:
    base, exponent = expr.args
    if exponent.is_Integer and exponent < 0:
        below = (
            done[base][0] if exponent == -1 else f"{{{wrapped(done[base], ATOM)}}}^{{{-exponent}}}"
        )
        return rf"\frac{{1}}{{{below}}}", CALL
    return f"{{{wrapped(done[base], ATOM)}}}^{{{done[exponent][0]}}}", CALL


def _product(expr: sympy.Expr, done: dict[sympy.Basic, Rendered]) -> Rendered:
    above: list[str] = []
    below: list[str] = []
    sign = ""
    lower = [f for f in expr.args if _is_inverse(f)]
    upper = [f for f in expr.args if not (f.is_Rational or _is_inverse(f))]
    alone = (
        len(upper) == 1
        and len(expr.args) > 1
        and not any(f.is_Rational and abs(f.p) != 1 for f in expr.args)
        and any(_is_inverse(f) or (f.is_Rational and not f.is_Integer) for f in expr.args)
    )
    for factor in expr.args:
        if factor == -1:
            sign = "-"
        elif isinstance(factor, sympy.Rational) and not factor.is_Integer:
            sign = "-" if factor < 0 else sign
            above += [str(abs(factor.p))] if abs(factor.p) != 1 else []
            below.append(str(factor.q))
        elif _is_inverse(factor):
            single = (
                SUM
                if len(lower) == 1 and all(f.is_Integer or not f.is_Rational for f in expr.args)
                else CALL
            )
            base = wrapped(done[factor.base], ATOM if factor.exp < -1 else single)
            below.append(base if factor.exp == -1 else f"{{{base}}}^{{{-factor.exp}}}")
        else:
            above.append(wrapped(done[factor], SUM if alone else CALL))
    rendered = r" \cdot ".join(above) or "1"
    if below:
        rendered = rf"\frac{{{rendered}}}{{{r' '.join(below)}}}"
    return sign + rendered, CALL if below and not sign else PRODUCT


def _is_inverse(factor: sympy.Expr) -> bool:
    return isinstance(factor, sympy.Pow) and bool(factor.exp.is_Integer) and bool(factor.exp < 0)
