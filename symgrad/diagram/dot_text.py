"""Records to DOT text: the one place where text of a user meets Graphviz, and where it is escaped.

Layout: the forward half walks along the picture, the backward half walks back beside it. A
backward edge is therefore declared from head to tail and drawn with its arrow reversed, so that a
layer's forward and backward boxes stand next to each other inside one cluster; residual edges,
which cross between the halves, do not take part in the ranking.
"""

from __future__ import annotations

import html
import textwrap

import graphviz

from symgrad.diagram.palette import (
    BACKWARD,
    BACKWARD_FILL,
    CLUSTER_FILL,
    CLUSTER_LINE,
    FORWARD,
    FORWARD_FILL,
    INK,
    LEAF_FILL,
    MUTED,
    RESIDUAL,
    contrast,
)
from symgrad.diagram.records import Box, Cluster, ColorBar, Diagram, Edge, Legend, Swatch

FONT = "Helvetica,Arial,sans-serif"
_OUTLINE = {
    "input": "ellipse",
    "parameter": "box",
    "constant": "plain",
    "operation": "box",
    "result": "box",
    "summary": "box",
    "carry": "ellipse",
    "element": "ellipse",
    "shared": "box",
    "between": "box",
}
# A space of a larger size keeps the line of a detail clear of the letters above it.
_STRUT = '<FONT POINT-SIZE="12">&#160;</FONT>'
_STRONG = ("input", "parameter", "result", "carry")
_EDGE_COLOR = {"forward": FORWARD, "backward": BACKWARD, "residual": RESIDUAL}


def printable(text: str) -> str:
    r"""Text on one line: control characters, line separators and lone surrogates are spelled out.

    >>> print(printable("two\nlines"), printable("sep\u2028"))
    two\nlines sep\u2028
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shorten(text: str, limit: int = 40) -> str:
    """At most `limit` characters, the rest replaced by an ellipsis.

    >>> shorten("abcdefgh", 4)
    'abc…'
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _markup(text: str, size: float, color: str, bold: bool = False) -> str:
    # Graphviz expands \N, \G and the like in HTML labels too; a doubled backslash is a plain one.
    escaped = html.escape(printable(text)).replace("\\", "\\\\")
    inner = f"<B>{escaped}</B>" if bold else escaped
    return f'<FONT POINT-SIZE="{size:g}" COLOR="{color}">{inner}</FONT>'


def _plain(text: str) -> str:
    """A quoted string in which Graphviz expands nothing; lines stay lines."""
    lines = [printable(line) for line in text.split("\n")]
    # A subclass of str that tells graphviz not to read `<..>` as HTML.
    escaped: str = graphviz.escape("\n".join(lines))
    return escaped


def dot_text(diagram: Diagram) -> str:
    """The DOT text of a diagram.

    Deterministic: equal diagrams give equal text.
    """
    graph = graphviz.Digraph(
        "symgrad",
        graph_attr={
            "rankdir": diagram.direction,
            "label": _head(diagram),
            "labelloc": "t",
            "fontname": FONT,
            "fontsize": "12",
            "nodesep": "0.18",
            "ranksep": "0.2",
            "pad": "0.2",
            "splines": "true",
            "bgcolor": "white",
        },
        node_attr={
            "fontname": FONT,
            "fontsize": "13",
            "margin": "0.11,0.05",
            "height": "0.38",
            "width": "0.4",
            "penwidth": "1.3",
        },
        edge_attr={"fontname": FONT, "fontsize": "10", "arrowsize": "0.65"},
    )
    by_id = {box.id: box for box in diagram.boxes}
    clustered: set[str] = set()
    beside = diagram.direction == "TB"  # edges from above would cross a title at the top
    drawn = {cluster.id: _cluster(cluster, by_id, beside) for cluster in diagram.clusters}
    for cluster in reversed(diagram.clusters):  # inner ones come after those around them
        clustered.update(cluster.boxes)
        if cluster.parent:
            drawn[cluster.parent].subgraph(drawn[cluster.id])
    for cluster in diagram.clusters:
        if not cluster.parent:
            graph.subgraph(drawn[cluster.id])
    for box in diagram.boxes:
        if box.id not in clustered:
            _add_box(graph, box)
    for edge in diagram.edges:
        _add_edge(graph, edge)
    for left, right in diagram.order:
        graph.edge(left, right, style="invis", weight="2")
    return str(graph.source)


def _cluster(cluster: Cluster, boxes: dict[str, Box], beside: bool) -> graphviz.Digraph:
    """A frame; its title stands at the top, or as a box of its own, around which edges go."""
    label = cluster.label if cluster.times == 1 else f"{cluster.label}  ×{cluster.times}"
    title = f"<{_markup(label, 12, MUTED, bold=True)}>"
    inner = graphviz.Digraph(
        f"cluster_{cluster.id}",
        graph_attr={
            "label": "" if beside else title,
            "labelloc": "t",
            "labeljust": "l",
            "style": "rounded,filled",
            "fillcolor": CLUSTER_FILL,
            "color": CLUSTER_LINE if cluster.times == 1 else INK,
            "penwidth": "1" if cluster.times == 1 else "2.5",
            "margin": "10",
            "tooltip": _plain(label),
        },
    )
    if beside:
        inner.node(f"title_{cluster.id}", title, shape="plaintext", style="", margin="0")
    halves = sorted({boxes[name].half for name in cluster.boxes})
    for half in halves:
        # An invisible cluster of its own keeps each half together.
        part = graphviz.Digraph(
            f"cluster_{cluster.id}_{half}",
            graph_attr={"style": "invis", "label": "", "margin": "3"},
        )
        for name in cluster.boxes:
            if boxes[name].half == half:
                _add_box(part if len(halves) > 1 else inner, boxes[name])
        if len(halves) > 1:
            inner.subgraph(part)
    return inner


def _add_box(graph: graphviz.Digraph, box: Box) -> None:
    line, own_fill = (FORWARD, FORWARD_FILL) if box.half == "forward" else (BACKWARD, BACKWARD_FILL)
    if box.kind in ("input", "parameter", "element", "shared"):
        own_fill = LEAF_FILL
    fill = box.fill or own_fill
    ink = contrast(fill)
    detail = MUTED if box.fill is None else ink
    label = _markup(box.label, 13, ink, bold=box.kind in _STRONG)
    if box.detail:
        label += f"<BR/>{_STRUT}{_markup(box.detail, 9, detail)}{_STRUT}"
    style = "filled" if box.kind in ("input", "parameter") else "rounded,filled"
    if box.kind == "shared":
        style = "filled,dashed"
    graph.node(
        box.id,
        label=f"<{label}>",
        shape=_OUTLINE[box.kind],
        style=style,
        color=line,
        fillcolor=fill,
        penwidth="2.6" if box.kind in ("result", "carry") else "1.3",
        peripheries="2" if box.kind == "parameter" else "1",
        tooltip=_plain(box.tooltip or box.label),
    )


def _add_edge(graph: graphviz.Digraph, edge: Edge) -> None:
    color = edge.color or _EDGE_COLOR[edge.kind]
    attributes = {
        "color": color,
        "penwidth": f"{edge.width:.2f}",
        "tooltip": _plain(edge.tooltip or edge.label or edge.kind),
    }
    parts = []
    if edge.letter:
        parts.append(f"<I>{_markup(edge.letter, 11, INK if edge.color else color, bold=True)}</I>")
    if edge.label:
        gap = "&#160;" if edge.width > 2 else ""
        parts.append(gap + _markup(edge.label, 9.5, MUTED))
    if parts:
        attributes["label"] = f"< {'  '.join(parts)} >"
    if edge.loop:
        attributes |= {"penwidth": "2.6", "fontsize": "12"}
        graph.edge(edge.tail, edge.head, constraint="false", **attributes)
    elif edge.kind == "residual":
        graph.edge(edge.tail, edge.head, style="dashed", constraint="false", **attributes)
    elif edge.kind == "backward":
        graph.edge(edge.head, edge.tail, dir="back", **attributes)
    else:
        graph.edge(edge.tail, edge.head, **attributes)


def _head(diagram: Diagram) -> str:
    rows = [f"<TR><TD>{_markup(diagram.title, 17, INK, bold=True)}</TD></TR>"]
    rows += [
        f"<TR><TD>{_markup(line, 12, INK)}</TD></TR>"
        for paragraph in diagram.caption.split("\n")
        for line in textwrap.wrap(printable(paragraph), 84)
    ]
    if diagram.legend.swatches:
        rows.append(f"<TR><TD>{_swatches(diagram.legend)}</TD></TR>")
    if diagram.legend.bar is not None:
        rows.append(f"<TR><TD>{_color_bar(diagram.legend.bar)}</TD></TR>")
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="3">{"".join(rows)}</TABLE>>'


_MARKS = {"box": "■", "oval": "○", "frame": "▣", "dashes": "╌╌"}


def _swatches(legend: Legend) -> str:
    # One line of text: cells of a table would be spread over the width of a colour bar below.
    return "&#160;&#160;&#160; ".join(_swatch(s) for s in legend.swatches)


def _swatch(swatch: Swatch) -> str:
    return f"{_markup(_MARKS[swatch.mark], 14, swatch.color)} {_markup(swatch.text, 11, MUTED)}"


def _color_bar(bar: ColorBar) -> str:
    colors = "".join(
        f'<TD BGCOLOR="{color}" WIDTH="46" HEIGHT="12" FIXEDSIZE="TRUE"></TD>'
        for color, _ in bar.steps
    )
    values = "".join(f"<TD>{_markup(value, 9.5, MUTED)}</TD>" for _, value in bar.steps)
    title = f'<TD ROWSPAN="2">{_markup(bar.title + "  ", 11, MUTED)}</TD>'
    return (
        '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0">'
        f"<TR>{title}{colors}</TR><TR>{values}</TR></TABLE>"
    )
