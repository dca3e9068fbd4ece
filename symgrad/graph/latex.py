r"""Expressions as mathematics in LaTeX, for notebooks and derivations.

What is small and read once stands inline; the rest becomes lines `v_1 = ..` of an aligned block. A
product that is a matrix product is written `x W`, any other contraction with its indices. A
recurrence is its start and its step, `c_0 = ..`, `c_{t+1} = ..`, `y_t = ..`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import Placeholder, function_of
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
from symgrad.graph.scalar_latex import (
    ATOM,
    CALL,
    ESCAPED,
    MATRIX,
    PRODUCT,
    SUM,
    Rendered,
    body_latex as body_latex,
    decimal,
    extent_latex,
    latex_name as latex_name,
    wrapped,
)
from symgrad.graph.scalars import placeholders_in
from symgrad.graph.text import axis_letters, literal, out_labels
from symgrad.graph.traversal import outputs_of, toposort

INLINE = 8
"""A subexpression of up to this many operations stands inline."""
LINES = 60
"""A block shows this many lines."""


@verb
def latex(e: Node | Sequence[Node]) -> str:
    r"""An expression, or several, in LaTeX.

    >>> from symgrad.graph import dims as dm
    >>> from symgrad.graph.leaves import input, parameter
    >>> x, W = input("x", (dm.dim("B"), 3)), parameter("W1", (3, 5))
    >>> print(latex(x @ W))
    x\, W_{1}
    """
    outputs = outputs_of("latex", e)
    leaves = tuple(n for n in toposort(outputs) if isinstance(n, Input))
    page = _Page()
    writer = _Writer(Graph(leaves, tuple(outputs)), page)
    lines = page.lines
    results = [writer.rendered[o] for o in outputs]
    if not lines and len(results) == 1:
        return results[0][0]
    hidden = max(0, len(lines) - LINES)
    rows = [rf"{name} &= {rendered}" for name, rendered in lines[: LINES // 2]]
    if hidden:
        rows.append(r"&\ \,\vdots \quad " + rf"\text{{{hidden} lines}}")
        rows += [rf"{name} &= {rendered}" for name, rendered in lines[-LINES // 2 :]]
    else:
        rows += [rf"{name} &= {rendered}" for name, rendered in lines[LINES // 2 :]]
    rows += [rf"&\phantom{{=}}\ {rendered}" for rendered, _ in results]
    return r"\begin{aligned} " + r" \\ ".join(rows) + r" \end{aligned}"


def in_one_line(e: Node) -> str:
    """An expression, then the lines that it needs: `c_T, c_0 = .., c_{t+1} = ..`."""
    page = _Page()
    leaves = tuple(n for n in toposort([e]) if isinstance(n, Input))
    rendered = _Writer(Graph(leaves, (e,)), page).rendered[e][0]
    return r",\quad ".join([rendered, *(f"{name} = {line}" for name, line in page.lines)])


# -- nodes ----------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Page:
    """The lines of a block, and the names that they use."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    lets: int = 0
    taken: set[str] = field(default_factory=set)

    def name(self, wish: str) -> str:
        """The name itself, or with a number above it when it is taken."""
        found, k = wish, 1
        while found in self.taken:
            k += 1
            found = rf"{wish}^{{({k})}}"
        self.taken.add(found)
        return found


class _Writer:
    """Each node's LaTeX, arguments first: inline where small and read once, else on a line."""

    def __init__(
        self,
        graph: Graph,
        page: _Page,
        given: Mapping[Node, Rendered] | None = None,
        times: str = "",
        named: Mapping[Node, str] | None = None,
    ) -> None:
        self.page, self.times = page, times
        self.letters = axis_letters(graph)
        self.rendered: dict[Node, Rendered] = dict(given or {})
        self.results: dict[Node, list[Rendered]] = {}
        reads: dict[Node, int] = {}
        for node in graph.nodes:
            for k, arg in enumerate(node.args):
                body = node.body if isinstance(node, Map) else None
                count = 1 if body is None else max(1, _occurrences(body, k))
                reads[arg] = reads.get(arg, 0) + count
        weight: dict[Node, int] = {}
        last = set(graph.outputs)
        for node in graph.nodes:
            weight[node] = 0
            if isinstance(node, (Input, Constant)):
                rendered = self.rendered.setdefault(node, _leaf(node))
                page.taken.add(rendered[0])
                continue
            if isinstance(node, Fold):
                self.results[node] = _fold(self, node)
                continue
            if isinstance(node, Proj):
                self.rendered[node] = self.results[node.args[0]][node.place]
                continue
            rendered = _FORMULAS[type(node)](self, node)
            weight[node] = sum(weight[a] for a in node.args) + _operations(node)
            passes = _passes(node)
            atom = rendered[1] == ATOM and len(rendered[0]) <= 12
            if named and node in named:
                page.lines.append((named[node], rendered[0]))
                self.rendered[node] = (named[node], ATOM)
                weight[node] = 0
                continue
            small = weight[node] <= INLINE and (reads.get(node, 0) <= 1 or (passes and atom))
            if (node in last and not reads.get(node)) or small:
                self.rendered[node] = rendered
            else:
                page.lets += 1
                moment = f", {times[-1]}" if times else ""
                name = f"v_{{{page.lets}{moment}}}"
                page.lines.append((name, rendered[0]))
                self.rendered[node] = (name, ATOM)
                weight[node] = 0

    def indexed(self, node: Node, axes: Sequence[str]) -> str:
        """A node with subscripts."""
        rendered, holds = self.rendered[node]
        if not axes:
            return rendered
        inner = ", ".join(axes) if any(len(a) > 1 for a in axes) else " ".join(axes)
        if holds < ATOM:
            return rf"\left({rendered}\right)_{{{inner}}}"
        return rf"{{{rendered}}}_{{{inner}}}" if "_" in rendered else rf"{rendered}_{{{inner}}}"


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


def _leaf(node: Node) -> Rendered:
    if isinstance(node, Constant):
        if node.shape:
            return r"\mathrm{" + "".join(ESCAPED.get(c, c) for c in literal(node)) + "}", ATOM
        return decimal(str(node.value[()]))
    return latex_name(node.name), ATOM


def _fold(writer: _Writer, node: Fold) -> list[Rendered]:
    """Lines for the start and the step; the results."""
    page = writer.page
    t = "tsrq"[len(writer.times)] if len(writer.times) < 4 else f"t_{len(writer.times)}"
    length = extent_latex(node.structure.length)
    before, after, first, last = t, f"{t}+1", "0", length
    if node.structure.reverse:
        before, after, first, last = after, before, last, first
    carry, elements, consts = node.binders
    names = [page.name(_symbol(b.name)) for b in carry]
    given: dict[Node, Rendered] = {
        b: writer.rendered[a] for b, a in zip(consts, node.consts, strict=True)
    }
    for leaf, arg in zip(elements, node.xs, strict=True):
        given[leaf] = _at(writer.rendered[arg], t)
    for leaf, name, arg in zip(carry, names, node.init, strict=True):
        given[leaf] = _at((name, ATOM), before)
        page.lines.append((_at((name, ATOM), first)[0], writer.rendered[arg][0]))
    outputs = node.body.outputs
    nexts = [_at((name, ATOM), after)[0] for name in names]
    named: dict[Node, str] = {}
    for name, out in zip(nexts, outputs, strict=False):
        if not isinstance(out, (Input, Constant, Proj)):
            named.setdefault(out, name)
    inner = _Writer(node.body, page, given, writer.times + t[0], named)
    for name, out in zip(nexts, outputs, strict=False):
        if named.get(out) != name:
            page.lines.append((name, inner.rendered[out][0]))
    ys = [page.name("y") for _ in outputs[node.carries :]]
    for name, out in zip(ys, outputs[node.carries :], strict=True):
        page.lines.append((_at((name, ATOM), t)[0], inner.rendered[out][0]))
    over = rf",\quad {t} = 0, \ldots, {length} - 1"
    if node.structure.reverse:
        over = rf",\quad {t} = {length} - 1, \ldots, 0"
    if outputs:
        page.lines[-1] = (page.lines[-1][0], page.lines[-1][1] + over)
    return [*(_at((name, ATOM), last) for name in names), *((name, ATOM) for name in ys)]


def _symbol(name: str) -> str:
    """A binder's name; a bar for cotangents, a dot for tangents."""
    for ending, accent in (("_ct", r"\overline"), ("_t", r"\dot")):
        if name.endswith(ending) and name != ending:
            return rf"{accent}{{{_symbol(name.removesuffix(ending))}}}"
    return latex_name({"carry": "c"}.get(name, name))


def _at(rendered: Rendered, moment: str) -> Rendered:
    """A value at a moment."""
    inner = wrapped(rendered, ATOM)
    if rendered[1] == ATOM and inner[:1].isdigit():
        return rendered
    return (rf"{{{inner}}}_{{{moment}}}" if "_" in inner or "^" in inner else
            rf"{inner}_{{{moment}}}"), ATOM


def _map(writer: _Writer, node: Map) -> Rendered:
    args = [writer.rendered[a] for a in node.args]
    return body_latex(node.body, args, writer.letters[node])


def _einsum(writer: _Writer, node: Einsum) -> Rendered:
    if _is_stretch(node):
        return writer.rendered[node.args[0]]
    if len(node.args) == 1 and not node.summed and node.ndim == 2 == node.args[0].ndim:
        return rf"{{{wrapped(writer.rendered[node.args[0]], ATOM)}}}^{{\top}}", CALL
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
    rendered: list[str] = []
    for place, k in enumerate(order):
        own = node.labels[k]
        straight = len(own) == 1 or own.index(inner) == 1 - place
        text = wrapped(writer.rendered[node.args[k]], MATRIX if straight else ATOM)
        rendered.append(text if straight else rf"{{{text}}}^{{\top}}")
    return r"\, ".join(rendered)


def _reduce(writer: _Writer, node: Reduce) -> Rendered:
    (arg,) = node.args
    letters = writer.letters.get(arg) or tuple("ijklmnopq"[: arg.ndim])
    over = " ".join(letters[a] for a in node.axes)
    if node.op in RUNNING:
        inner = writer.rendered[arg][0]
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


def _gather(writer: _Writer, node: Gather) -> Rendered:
    letter = dict(zip(node.out, writer.letters[node], strict=True))
    source, *indices = node.args
    axes = _subscripts(node.source_axes, node.index_labels, indices, letter, writer)
    return writer.indexed(source, axes), CALL


def _scatter(writer: _Writer, node: Scatter) -> Rendered:
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


def _reindex(writer: _Writer, node: Reindex) -> Rendered:
    if is_reshape(node):
        shape = r" \times ".join(extent_latex(e) for e in node.shape) or "1"
        inner = writer.rendered[node.args[0]][0]
        return rf"\operatorname{{reshape}}_{{{shape}}}\left({inner}\right)", CALL
    parts: list[str] = []
    for piece, arg in zip(node.pieces[:6], node.args, strict=False):
        rendered = writer.rendered[arg]
        reads = _ranges(piece)
        parts.append(rf"{wrapped(rendered, ATOM)}\left[{reads}\right]" if reads else rendered[0])
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
    rendered = []
    for view, start, step, count in zip(
        piece.view, piece.start, piece.step, piece.count, strict=True
    ):
        if count == view and step == 1:
            rendered.append(":")
        elif type(count) is int and count == 1:
            rendered.append(extent_latex(start))
        else:
            last = start + step * count
            stride = f":{step}" if step != 1 else ""
            rendered.append(f"{extent_latex(start)}:{extent_latex(last)}{stride}")
    return ", ".join(rendered)


_FORMULAS: dict[type[Node], Callable[[_Writer, Any], Rendered]] = {
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Gather: _gather,
    Scatter: _scatter,
    Reindex: _reindex,
}
