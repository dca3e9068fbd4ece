"""What a picture consists of, before any DOT text: boxes, edges, clusters, a legend.

Everything here is plain text as the user wrote it. Escaping happens in one place, when DOT is
printed (`dot_text.py`); ids are generated (`n12`) and never contain a user's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from symgrad.graph.nodes import Node

Kind = Literal[
    "input", "parameter", "constant", "operation", "result", "summary",
    "carry", "element", "shared", "between",
]
Half = Literal["forward", "backward"]
EdgeKind = Literal["forward", "backward", "residual"]


class Magnitudes(Protocol):
    """Measured sizes that a picture can show; `symgrad.insight.flow.GradientFlow` is one."""

    @property
    def magnitudes(self) -> Mapping[Node, float]:
        """Size of each node that has one: the norm of its gradient, or of the cotangent it is."""

    @property
    def verdict(self) -> str:
        """One sentence for the caption."""


@dataclass(frozen=True, slots=True)
class Box:
    """One drawn node, or several drawn as one.

    Fields:
        id: generated, unique in the diagram.
        label: short mathematics, one line.
        detail: a smaller second line (an einsum form, a shape); empty for none.
        kind: what it is, which decides the outline.
        half: forward or backward, which decides the colour.
        tooltip: shown on hover.
        fill: a colour that replaces the half's own (`#rrggbb`), or None.
        nodes: how many nodes of the graph it stands for.
    """

    id: str
    label: str
    detail: str = ""
    kind: Kind = "operation"
    half: Half = "forward"
    tooltip: str = ""
    fill: str | None = None
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class Edge:
    """A value that walks from `tail` to `head`.

    Fields:
        label: the value's shape.
        letter: what the formula in `head` calls the value.
        loop: whether it leads back, to the next step of a recurrence.
        color, width: of the line; the kind's own where color is None.
    """

    tail: str
    head: str
    label: str = ""
    letter: str = ""
    kind: EdgeKind = "forward"
    tooltip: str = ""
    color: str | None = None
    width: float = 1.2
    loop: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """Boxes that belong together: a layer, the loss, a step; `times` layers alike are drawn once.

    The step of a recurrence inside another's stands in its `parent`.
    """

    id: str
    label: str
    boxes: tuple[str, ...]
    times: int = 1
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Swatch:
    """One entry of the legend: a mark, its colour and what it means."""

    mark: Literal["box", "oval", "frame", "dashes"]
    color: str
    text: str


@dataclass(frozen=True, slots=True)
class ColorBar:
    """A colour scale: its title and, from small to large, a colour and a printed value each."""

    title: str
    steps: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Legend:
    """How to read the colours and outlines."""

    swatches: tuple[Swatch, ...] = ()
    bar: ColorBar | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Diagram:
    """A picture of a graph.

    `dot` is its DOT text, `svg` the rendered picture, `save` writes it to a file. In a notebook it
    shows itself. `order` has pairs of boxes of which the first stands before the second.
    """

    title: str
    caption: str
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    clusters: tuple[Cluster, ...] = ()
    legend: Legend = Legend()
    direction: Literal["LR", "TB"] = "LR"
    order: tuple[tuple[str, str], ...] = ()

    @property
    def dot(self) -> str:
        """The picture in Graphviz's DOT language, every label and id escaped."""
        from symgrad.diagram.dot_text import dot_text

        return dot_text(self)

    @property
    def svg(self) -> str:
        """The picture as a self-contained SVG element, without scripts and links.

        Raises: RenderError when Graphviz is missing, fails, or exceeds its time limit.
        """
        from symgrad.diagram.rendering import render_svg

        return render_svg(self.dot)

    def save(self, path: str | PathLike[str], timeout: float = 60.0) -> None:
        """Write the picture to `x.svg`, `x.png`, `x.pdf`, `x.dot` or `x.html`.

        The file appears complete or not at all. When nothing can render, the DOT text is written
        beside it (`x.dot`) before the error is raised.

        Args:
            path: where to; the ending says which form.
            timeout: seconds that the layout may take.
        Raises: RenderError as `svg`; DataError for an unknown ending or a folder that cannot be
            written.
        """
        from symgrad.diagram.rendering import save

        save(self.dot, path, self.title, timeout)

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        drawn = f"{len(self.boxes)} boxes, {len(self.edges)} edges, {len(self.clusters)} clusters"
        return f"<Diagram: {self.title}, {drawn}>"
