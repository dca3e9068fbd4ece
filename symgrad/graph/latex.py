r"""Expressions as mathematics in LaTeX, for notebooks and derivations.

What is small and read once stands inline; the rest becomes lines `v_1 = ..` of an aligned block. A
product that is a matrix product is written `x W`, any other contraction with its indices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import sympy

from symgrad.graph import dims as dm
from symgrad.graph.dims import Dim, printable
from symgrad.graph.functions import AxisIndex, Placeholder, function_of
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    RUNNING,
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    is_reshape,
)
from symgrad.graph.operators import verb
from symgrad.graph.scalars import number, placeholders_in
from symgrad.graph.text import axis_letters, literal, out_labels
from symgrad.graph.traversal import toposort

INLINE = 8
"""A subexpression of up to this many operations stands inline."""
LINES = 60
"""A block shows this many lines."""
ATOM, CALL, MATRIX, PRODUCT, SUM = 4, 3, 2, 1, 0
"""How tightly a piece of LaTeX holds together; looser ones get parentheses."""

Told = tuple[str, int]


@verb
def latex(e: Node | Sequence[Node]) -> str:
    r"""An expression, or several, in LaTeX.

    >>> from symgrad.graph.leaves import input, parameter
    >>> x, W = input("x", (dm.dim("B"), 3)), parameter("W1", (3, 5))
    >>> print(latex(x @ W))
    x\, W_{1}
    """
    outputs = [e] if isinstance(e, Node) else list(e)
    writer = _Writer(outputs)
    lines = [(writer.names[n], told) for n, told in writer.lets]
    results = [writer.told[o] for o in outputs]
    if not lines and len(results) == 1:
        return results[0][0]
    hidden = max(0, len(lines) - LINES)
    rows = [rf"{name} &= {told}" for name, told in lines[: LINES // 2]]
    if hidden:
        rows.append(r"&\ \,\vdots \quad " + rf"\text{{{hidden} lines}}")
        rows += [rf"{name} &= {told}" for name, told in lines[-LINES // 2 :]]
    else:
        rows += [rf"{name} &= {told}" for name, told in lines[LINES // 2 :]]
    rows += [rf"&\phantom{{=}}\ {told}" for told, _ in results]
    return r"\begin{aligned} " + r" \\ ".join(rows) + r" \end{aligned}"


def latex_name(name: str) -> str:
    r"""A user's name in math mode; nothing in it is taken for a command.

    >>> print(latex_name("W1"), latex_name("b"), latex_name("a_b}"))
    W_{1} b \mathrm{a\_b\}}
    """
    if match := re.fullmatch(r"([A-Za-z])_?([0-9]+)", name):
        return f"{match[1]}_{{{match[2]}}}"
    if re.fullmatch(r"[A-Za-z]", name):
        return name
    return r"\mathrm{" + "".join(_ESCAPED.get(c, c) for c in printable(name)) + "}"


_ESCAPED = {
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


def _wrapped(told: Told, least: int) -> str:
    inner, holds = told
    return inner if holds >= least else rf"\left({inner}\right)"


# -- scalar bodies --------------------------------------------------------------------------------
def body_latex(body: sympy.Expr, args: Sequence[Told], axes: Sequence[str] = ()) -> Told:
    """A scalar body over arguments in LaTeX, and how tightly it holds together."""
    done: dict[sympy.Basic, Told] = {}
    for expr in sympy.postorder_traversal(body):
        if expr not in done:
            done[expr] = _scalar(expr, done, args, axes)
    return done[body]


def _scalar(
    expr: sympy.Expr, done: dict[sympy.Basic, Told], args: Sequence[Told], axes: Sequence[str]
) -> Told:
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
            return rf"{{{_wrapped(first, ATOM)}}}^{{{inner[1][0]}}}", CALL
        return function.latex.format(*(told for told, _ in inner)), CALL
    if expr.is_number:
        return _number(expr)
    if isinstance(expr, sympy.Add):
        terms = [_wrapped(done[a], SUM) for a in sorted(expr.args, key=_leads_negative)]
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


def _number(expr: sympy.Expr) -> Told:
    if isinstance(expr, sympy.Float) or not isinstance(expr, sympy.Number):
        if not isinstance(expr, sympy.Float):
            return str(sympy.latex(expr)), CALL
        return _decimal(repr(float(expr)))
    if expr.is_Rational and not expr.is_Integer:
        sign = "-" if expr < 0 else ""
        return rf"{sign}\frac{{{abs(expr.p)}}}{{{expr.q}}}", PRODUCT if sign else CALL
    return _decimal(str(number(expr))) if expr.is_finite else (str(sympy.latex(expr)), ATOM)


def _decimal(shown: str) -> Told:
    names = {"inf": r"\infty", "-inf": r"-\infty", "nan": r"\mathrm{NaN}"}
    if shown in names:
        return names[shown], ATOM if shown != "-inf" else PRODUCT
    mantissa, e, exponent = shown.partition("e")
    mantissa = mantissa.removesuffix(".0")
    told = rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if e else mantissa
    return told, PRODUCT if e or told.startswith("-") else ATOM


def _power(expr: sympy.Expr, done: dict[sympy.Basic, Told]) -> Told:
    base, exponent = expr.args
    if exponent.is_Integer and exponent < 0:
        below = (
            done[base][0] if exponent == -1 else f"{{{_wrapped(done[base], ATOM)}}}^{{{-exponent}}}"
        )
        return rf"\frac{{1}}{{{below}}}", CALL
    return f"{{{_wrapped(done[base], ATOM)}}}^{{{done[exponent][0]}}}", CALL


def _product(expr: sympy.Expr, done: dict[sympy.Basic, Told]) -> Told:
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
            base = _wrapped(done[factor.base], ATOM if factor.exp < -1 else single)
            below.append(base if factor.exp == -1 else f"{{{base}}}^{{{-factor.exp}}}")
        else:
            above.append(_wrapped(done[factor], SUM if alone else CALL))
    told = r" \cdot ".join(above) or "1"
    if below:
        told = rf"\frac{{{told}}}{{{r' '.join(below)}}}"
    return sign + told, CALL if below and not sign else PRODUCT


def _is_inverse(factor: sympy.Expr) -> bool:
    return isinstance(factor, sympy.Pow) and bool(factor.exp.is_Integer) and bool(factor.exp < 0)


# -- nodes ----------------------------------------------------------------------------------------
class _Writer:
    """Each node's LaTeX, arguments first: inline where small and read once, else on a line."""

    def __init__(self, outputs: Sequence[Node]) -> None:
        leaves = tuple(n for n in toposort(outputs) if isinstance(n, Input))
        graph = Graph(leaves, tuple(outputs))
        self.letters = axis_letters(graph)
        self.told: dict[Node, Told] = {}
        self.names: dict[Node, str] = {}
        self.lets: list[tuple[Node, str]] = []
        reads: dict[Node, int] = {}
        for node in graph.nodes:
            for k, arg in enumerate(node.args):
                body = node.body if isinstance(node, Map) else None
                times = 1 if body is None else max(1, _occurrences(body, k))
                reads[arg] = reads.get(arg, 0) + times
        weight: dict[Node, int] = {}
        last = set(outputs)
        for node in graph.nodes:
            if isinstance(node, (Input, Constant)):
                self.told[node] = _leaf(node)
                weight[node] = 0
                continue
            told = _FORMULAS[type(node)](self, node)
            weight[node] = sum(weight[a] for a in node.args) + _operations(node)
            passes = _passes(node)
            atom = told[1] == ATOM and len(told[0]) <= 12
            small = weight[node] <= INLINE and (reads.get(node, 0) <= 1 or (passes and atom))
            if (node in last and not reads.get(node)) or small:
                self.told[node] = told
            else:
                name = f"v_{{{len(self.lets) + 1}}}"
                self.names[node] = name
                self.lets.append((node, told[0]))
                self.told[node] = (name, ATOM)
                weight[node] = 0

    def indexed(self, node: Node, axes: Sequence[str]) -> str:
        """A node with subscripts."""
        told, holds = self.told[node]
        if not axes:
            return told
        inner = ", ".join(axes) if any(len(a) > 1 for a in axes) else " ".join(axes)
        if holds < ATOM:
            return rf"\left({told}\right)_{{{inner}}}"
        return rf"{{{told}}}_{{{inner}}}" if "_" in told else rf"{told}_{{{inner}}}"


def _occurrences(body: sympy.Expr, k: int) -> int:
    if k not in placeholders_in(body):
        return 0
    return int(body.count(lambda e: isinstance(e, Placeholder) and e.name == f"p{k}"))


def _operations(node: Node) -> int:
    if _passes(node):
        return 0
    return max(1, int(node.body.count_ops())) if isinstance(node, Map) else 2


def _passes(node: Node) -> bool:
    """Whether a node is written as its argument: axes of one come or go, or no gradient passes."""
    if isinstance(node, Map):
        function = function_of(node.body)
        return function is not None and function.name == "stop_gradient"
    return isinstance(node, Einsum) and _is_stretch(node)


def _is_stretch(node: Einsum) -> bool:
    if len(node.args) != 1:
        return False
    (own,) = node.labels
    ones = all(type(node.extents[k]) is int and node.extents[k] == 1 for k in node.summed)
    kept = [k for k in node.out if k in own]
    return ones and kept == sorted(kept)


def _leaf(node: Node) -> Told:
    if isinstance(node, Constant):
        if node.shape:
            return r"\mathrm{" + "".join(_ESCAPED.get(c, c) for c in literal(node)) + "}", ATOM
        return _decimal(str(node.value[()]))
    return latex_name(node.name), ATOM


def _map(writer: _Writer, node: Map) -> Told:
    args = [writer.told[a] for a in node.args]
    return body_latex(node.body, args, writer.letters[node])


def _einsum(writer: _Writer, node: Einsum) -> Told:
    if _is_stretch(node):
        return writer.told[node.args[0]]
    if len(node.args) == 1 and not node.summed and node.ndim == 2 == node.args[0].ndim:
        return rf"{{{_wrapped(writer.told[node.args[0]], ATOM)}}}^{{\top}}", CALL
    if (matrix := _matrix_product(writer, node)) is not None:
        return matrix, MATRIX
    letter = dict(zip(node.out, writer.letters[node], strict=True))
    for own, arg in zip(node.labels, node.args, strict=True):
        for label, name in zip(own, writer.letters.get(arg, ()), strict=False):
            if label not in letter and name not in letter.values():
                letter[label] = name
    spare = (c for c in "ijklmnopqrstuvwxyz" if c not in letter.values())
    for label in range(len(node.extents)):
        if label not in letter:
            letter[label] = next(spare, f"a_{{{label}}}")
    factors = [
        writer.indexed(arg, [letter[k] for k in own])
        for own, arg in zip(node.labels, node.args, strict=True)
    ]
    over = rf"\sum_{{{' '.join(letter[k] for k in node.summed)}}} " if node.summed else ""
    return over + r"\, ".join(factors), PRODUCT if len(factors) > 1 or not over else SUM


def _matrix_product(writer: _Writer, node: Einsum) -> str | None:
    """`A B`, with transposes where they are needed; None when it is no matrix product."""
    if len(node.args) != 2 or len(node.summed) != 1:
        return None
    (inner,) = node.summed
    if not all(len(own) in (1, 2) and inner in own for own in node.labels):
        return None
    sides = [[k for k in own if k != inner] for own in node.labels]
    if [k for side in sides for k in side] == list(node.out):
        order = (0, 1)
    elif [k for side in reversed(sides) for k in side] == list(node.out):
        order = (1, 0)
    else:
        return None
    if len(node.out) != len(set(node.out)) or not node.out:
        return None
    told: list[str] = []
    for place, k in enumerate(order):
        own = node.labels[k]
        straight = len(own) == 1 or own.index(inner) == 1 - place
        text = _wrapped(writer.told[node.args[k]], MATRIX if straight else ATOM)
        told.append(text if straight else rf"{{{text}}}^{{\top}}")
    return r"\, ".join(told)


def _reduce(writer: _Writer, node: Reduce) -> Told:
    (arg,) = node.args
    letters = writer.letters.get(arg) or tuple("ijklmnopq"[: arg.ndim])
    over = " ".join(letters[a] for a in node.axes)
    if node.op in RUNNING:
        inner = writer.told[arg][0]
        return rf"\operatorname{{{node.op}}}_{{{over}}}\left({inner}\right)", CALL
    name = {"max": r"\max", "min": r"\min", "prod": r"\prod"}.get(
        node.op, rf"\operatorname{{{node.op}}}"
    )
    return rf"{name}_{{{over}}} {writer.indexed(arg, letters)}", PRODUCT


def _subscripts(
    axes: Sequence[int],
    index_labels: Sequence[Sequence[int]],
    indices: Sequence[Node],
    letter: dict[int, str],
    writer: _Writer,
) -> list[str]:
    return [
        letter[k]
        if k >= 0
        else writer.indexed(indices[~k], [letter[label] for label in index_labels[~k]])
        for k in axes
    ]


def _gather(writer: _Writer, node: Gather) -> Told:
    letter = dict(zip(node.out, writer.letters[node], strict=True))
    source, *indices = node.args
    axes = _subscripts(node.source_axes, node.index_labels, indices, letter, writer)
    return writer.indexed(source, axes), CALL


def _scatter(writer: _Writer, node: Scatter) -> Told:
    letter = dict(zip(out_labels(node), writer.letters[node], strict=True))
    updates, *indices = node.args
    groups = (node.update_labels, *node.index_labels)
    spare = (c for c in "ijklmnopqrstuvwxyz" if c not in letter.values())
    for label in (k for own in groups for k in own):
        if label not in letter:
            letter[label] = next(spare, f"a_{{{label}}}")
    axes = _subscripts(node.target_axes, node.index_labels, indices, letter, writer)
    own = [letter[k] for k in node.update_labels]
    target = ", ".join(axes)
    return (
        rf"\operatorname{{scatter}}_{{{target}}}\left({writer.indexed(updates, own)}\right)",
        CALL,
    )


def _reindex(writer: _Writer, node: Reindex) -> Told:
    if is_reshape(node):
        shape = r" \times ".join(extent_latex(e) for e in node.shape) or "1"
        inner = writer.told[node.args[0]][0]
        return rf"\operatorname{{reshape}}_{{{shape}}}\left({inner}\right)", CALL
    parts: list[str] = []
    for piece, arg in zip(node.pieces[:6], node.args, strict=False):
        told = writer.told[arg]
        reads = _ranges(piece)
        parts.append(rf"{_wrapped(told, ATOM)}\left[{reads}\right]" if reads else told[0])
    more = r",\ \ldots" if len(node.pieces) > 6 else ""
    if len(parts) == 1 and node.shape == node.pieces[0].count:
        return parts[0], CALL
    name = "pad" if len(parts) == 1 else "join"
    inner = r",\ ".join(parts)
    return rf"\operatorname{{{name}}}\left({inner}{more}\right)", CALL


def _ranges(piece: Piece) -> str:
    """Which positions a piece reads; empty when all."""
    whole = piece.count == piece.view and all(s == 1 for s in piece.step)
    if whole:
        return ""
    told = []
    for view, start, step, count in zip(
        piece.view, piece.start, piece.step, piece.count, strict=True
    ):
        if count == view and step == 1:
            told.append(":")
        elif type(count) is int and count == 1:
            told.append(extent_latex(start))
        else:
            last = start + step * count
            stride = f":{step}" if step != 1 else ""
            told.append(f"{extent_latex(start)}:{extent_latex(last)}{stride}")
    return ", ".join(told)


_FORMULAS: dict[type[Node], Callable[[_Writer, Any], Told]] = {
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Gather: _gather,
    Scatter: _scatter,
    Reindex: _reindex,
}
