"""`draw`: expressions as a picture, the forward half alone or with the backward half beside it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from symgrad.calculus.vjp import as_targets, check_leaves
from symgrad.diagram import palette
from symgrad.diagram.cells import Cells, in_cells
from symgrad.diagram.dot_text import printable, shorten
from symgrad.diagram.folding import (
    CAP,
    Folding,
    Run,
    layers_folded,
    repeats_folded,
    unfolded,
)
from symgrad.diagram.formulas import Formula, formula_of, is_literal, shape_text
from symgrad.diagram.joint import joint
from symgrad.diagram.layers import Structure, segmented, structure_of
from symgrad.diagram.magnitude_scale import MagnitudeScale
from symgrad.diagram.moments import Moment
from symgrad.diagram.records import (
    Box,
    Cluster,
    Diagram,
    Edge,
    EdgeKind,
    Half,
    Kind,
    Legend,
    Magnitudes,
    Swatch,
)
from symgrad.graph.errors import GradError, SymgradError
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input, Node
from symgrad.graph.traversal import toposort

Level = Literal["auto", "nodes", "layers", "unrolled"]
Expressions = Node | Sequence[Node] | Mapping[str, Node] | Graph
_NAME = 18  # characters of a user's name that are shown in a box
_LABEL = 40  # characters of a formula that are shown in a box


def draw(
    expr: Expressions,
    wrt: Node | Sequence[Node] | None = None,
    flow: Magnitudes | None = None,
    level: Level = "auto",
) -> Diagram:
    """Draw expressions, with the backward pass when `wrt` is given.

    The forward half is blue and walks to the right, the backward half is orange and walks back
    beside it; green dashes are residuals, forward values that the backward pass reads. Edges bear
    shapes, clusters are layers: a contraction with a parameter and what follows up to the next one.

    Args:
        expr: one expression, a sequence, a dict of named ones, or a Graph.
        wrt: the nodes to differentiate `expr` (then one scalar) with respect to.
        flow: measured magnitudes to overlay as colour and width; see `gradient_flow`.
        level: "nodes" draws every node, "layers" one box per layer and half; "auto" draws nodes up
            to about 250 boxes, then repeated layers once with a counter, then layers. A recurrence
            is a cell, one step with its loop; "unrolled" draws its steps one after the other, the
            first two and the last one where they are many.
    Returns: a Diagram with `.dot`, `.svg` and `.save(path)`.
    Raises: SymgradError for an unknown level, GradError when `wrt` meets several expressions.

    >>> from symgrad.graph.leaves import input, parameter
    >>> x, w = input("x", (3,)), parameter("w", (3,))
    >>> picture = draw((x * w).sum(), wrt=w)
    >>> [edge.kind for edge in picture.edges if edge.kind == "residual"]
    ['residual']
    """
    if level not in ("auto", "nodes", "layers", "unrolled"):
        raise SymgradError(
            f'draw: no level {level!r}. Use "auto", "nodes" (every node), "layers" (one box per '
            'layer), "unrolled" (recurrences step by step) or "kernels" (what runs, with times).'
        )
    outputs, names = outputs_of(expr)
    check_leaves("draw", outputs)
    gradients: dict[Node, list[str]] = {}
    if wrt is not None:
        leaves = as_targets("draw", wrt)
        written = loss_of(outputs)
        loss, found = joint(written, leaves)
        title = names.pop(written, "L")
        outputs, names = [loss], {loss: title}
        for leaf, gradient in zip(leaves, found, strict=True):
            gradients.setdefault(gradient, []).append(f"∂{title}/∂{_name(leaf)}")
    cells = Cells()
    if level != "layers":
        roots, cells = in_cells([*outputs, *gradients], level == "unrolled")
        if level == "auto" and len(toposort(roots)) > CAP:
            roots, cells = [*outputs, *gradients], Cells()
        names = {cells.new.get(node, node): name for node, name in names.items()}
        gradients = dict(zip(roots[len(outputs) :], gradients.values(), strict=True))
        outputs = roots[: len(outputs)]
    structure = structure_of(outputs, list(gradients), cells)
    results: dict[Node, str] = dict(names)
    direct: dict[Node, str] = {}
    for node, titles in gradients.items():
        # A gradient that is a forward value, as d(w x)/dw = x, gets a box of its own.
        own = structure.half[node] == "backward" and not is_literal(node)
        (results if own else direct)[node] = ", ".join(titles)
    structure, folding = _fold(structure, level, flow)
    return _Picture(structure, folding, results, direct, flow, bool(gradients), cells).diagram()


def loss_of(outputs: Sequence[Node]) -> Node:
    """The one expression that is differentiated."""
    if len(outputs) != 1:
        raise GradError(
            f"draw: wrt needs one scalar expression, got {len(outputs)} expressions. "
            "Draw the loss."
        )
    return outputs[0]


def outputs_of(expr: Expressions) -> tuple[list[Node], dict[Node, str]]:
    """The expressions that are drawn, and the names of those that have one."""
    if isinstance(expr, Node):
        return [expr], {}
    if isinstance(expr, Graph):
        return list(expr.outputs), {}
    if isinstance(expr, Mapping):
        named = {node: str(name) for name, node in expr.items()}
        return list(expr.values()), named
    outputs = list(expr) if isinstance(expr, Iterable) else []
    if not outputs or not all(isinstance(o, Node) for o in outputs):
        raise SymgradError(
            f"draw: expected an expression or a sequence of expressions, or a compiled function "
            f"such as trainer.program; got {expr!r:.80}."
        )
    return outputs, {}


def _name(node: Node) -> str:
    if isinstance(node, Input):
        return shorten(printable(node.name), _NAME)
    return formula_of(node).label


def _fold(structure: Structure, level: Level, flow: Magnitudes | None) -> tuple[Structure, Folding]:
    if level in ("nodes", "unrolled") or (level == "auto" and len(structure.nodes) <= CAP):
        return structure, unfolded(structure)
    if level == "auto" and flow is None:
        folding = repeats_folded(structure)
        if len(set(folding.group.values())) <= CAP:
            return structure, folding
    layered = any(number > 0 for number in structure.layer.values())
    if not layered and len(structure.nodes) > 1:
        if len(structure.nodes) <= CAP and any(isinstance(n, Fold) for n in structure.nodes):
            return structure, unfolded(structure)  # a recurrence is one box
        structure = segmented(structure)
    return structure, layers_folded(structure, repeats=flow is None)


@dataclass(slots=True)
class _Group:
    """What is drawn as one box."""

    id: str
    nodes: list[Node]
    half: Half
    run: Run
    formula: Formula | None = None

    @property
    def node(self) -> Node:
        """The node that stands for the group."""
        return self.nodes[0]


@dataclass(slots=True)
class _Picture:
    """A picture under construction."""

    structure: Structure
    folding: Folding
    results: Mapping[Node, str]
    direct: Mapping[Node, str]
    flow: Magnitudes | None
    joint: bool
    cells: Cells
    groups: dict[Hashable, _Group] = field(default_factory=dict)
    scale: MagnitudeScale = field(default_factory=MagnitudeScale)

    def diagram(self) -> Diagram:
        """Collect groups, then boxes, edges and clusters."""
        for node in self.structure.nodes:
            key = self.folding.group[node]
            run = self.folding.run[self.structure.layer[node]]
            group = self.groups.get(key)
            if group is None:
                half = self.structure.half[node]
                group = self.groups[key] = _Group(f"n{len(self.groups)}", [], half, run)
            if node is key:
                group.nodes.insert(0, node)
            else:
                group.nodes.append(node)
        if self.flow is not None:
            self.scale = MagnitudeScale.of(
                [
                    m
                    for g in self.groups.values()
                    if self._shows_flow(g) and (m := self._magnitude(g)) is not None
                ]
            )
        for key, group in self.groups.items():
            if not isinstance(key, tuple):
                group.formula = formula_of(group.node)
        edges = self._edges()
        boxes = [self._box(g) for g in self.groups.values()]
        extra_boxes, extra_edges = self._direct_results()
        clusters = self._clusters()
        return Diagram(
            title=self._title(),
            caption=self._caption(),
            boxes=(*boxes, *extra_boxes),
            edges=(*edges, *extra_edges),
            clusters=clusters,
            legend=self._legend(),
            direction="TB" if self.folding.summary and len(boxes) > 12 else "LR",
            order=self._order(clusters, edges),
        )

    # -- boxes ------------------------------------------------------------------------------------
    def _box(self, group: _Group) -> Box:
        magnitude = self._magnitude(group) if self._shows_flow(group) else None
        fill = None
        if self.flow is not None:
            neutral = (
                palette.LEAF_FILL
                if self._kind(group) in ("input", "parameter")
                else (palette.NEUTRAL_FILL)
            )
            fill = neutral if magnitude is None else self.scale.color(magnitude)
        note = "" if magnitude is None else f"magnitude {magnitude:.4g}"
        if group.formula is None:
            return self._summary_box(group, fill, note)
        node = group.node
        formula = group.formula
        label, detail = formula.label, formula.detail
        if isinstance(node, Input):
            label = shorten(printable(label), _NAME)
        elif not detail and group.half == "forward" and node.origin and node.origin != label:
            detail = node.origin
        if node in self.results:
            result = self.results[node]
            detail = " · ".join(part for part in (shorten(label, _LABEL), detail) if part)
            label = result
        full = [self.results.get(node, ""), formula.label, formula.detail]
        full += [f"shape {shape_text(node.shape)}, {node.dtype}", str(node.where or ""), note]
        return Box(
            id=group.id,
            label=shorten(label, _LABEL),
            detail=shorten(detail, _LABEL),
            kind=self._kind(group),
            half=group.half,
            tooltip="\n".join(line for line in full if line),
            fill=fill,
            nodes=len(group.nodes),
        )

    def _summary_box(self, group: _Group, fill: str | None, note: str) -> Box:
        run = group.run
        title = self.structure.titles.get(run.first, "before layer 1")
        if run.times > 1 and not run.alike:
            title = _span(self.structure.titles, run)
        elif run.times > 1:
            title = f"{_span(self.structure.titles, run)}  ×{run.times}"
        made = [n for n in group.nodes if not isinstance(n, Input)]
        kinds: dict[str, int] = {}
        for node in made[:200]:
            kinds.setdefault(formula_of(node).label, 0)
        shown = ", ".join(shorten(k, 16) for k in list(kinds)[:3])
        detail = f"{len(made)} nodes" + (f": {shown}, …" if len(kinds) > 3 else f": {shown}")
        if group.half == "backward":
            title = f"∂ {title}"
        return Box(
            id=group.id,
            label=shorten(title, _LABEL),
            detail=shorten(detail, 60),
            kind="summary",
            half=group.half,
            tooltip="\n".join(line for line in (title, detail, note) if line),
            fill=fill,
            nodes=len(group.nodes),
        )

    def _kind(self, group: _Group) -> Kind:
        if group.formula is None:
            return "summary"
        node = group.node
        if isinstance(node, Input):
            return "parameter" if node.kind == "parameter" else "input"
        if isinstance(node, Constant):
            return "constant"
        if isinstance(node, Moment) and node.role != "result":
            return node.role
        return "result" if node in self.results else "operation"

    # -- magnitudes -------------------------------------------------------------------------------
    def _magnitude(self, group: _Group) -> float | None:
        """The largest magnitude among the group's nodes."""
        assert self.flow is not None
        known = [m for n in group.nodes if (m := self._measured(n)) is not None]
        return max(known, key=lambda m: (m != m, m)) if known else None

    def _measured(self, node: Node) -> float | None:
        assert self.flow is not None
        return self.flow.magnitudes.get(self.cells.old.get(node, node))

    def _shows_flow(self, group: _Group) -> bool:
        """Beside its gradients the forward half stays neutral; alone it bears the colours."""
        return self.flow is not None and (group.half == "backward" or not self.joint)

    # -- edges ------------------------------------------------------------------------------------
    def _edges(self) -> list[Edge]:
        found: dict[tuple[str, str], Edge] = {}
        labelled: set[str] = set()
        for node in self.structure.nodes:
            head = self.groups[self.folding.group[node]]
            for k, arg in enumerate(node.args):
                if arg not in self.folding.group:
                    continue
                tail = self.groups[self.folding.group[arg]]
                if tail is head or self._between_copies(tail, head, arg, node):
                    continue
                letter = ""
                if head.formula is not None and head.formula.letters:
                    letter = head.formula.letters[k]
                edge = self._edge(tail, head, arg, letter, labelled)
                known = found.get((tail.id, head.id))
                if known is None:
                    found[tail.id, head.id] = edge
                    labelled.add(tail.id)
                elif letter and letter not in known.letter.split(", "):
                    both = ", ".join(part for part in (known.letter, letter) if part)
                    found[tail.id, head.id] = replace(known, letter=both)
        return [*found.values(), *self._loops()]

    def _loops(self) -> list[Edge]:
        """From the end of a step to the beginning of the next one."""
        found = []
        for loop in self.cells.loops:
            tail, head = (self.folding.group.get(n) for n in (loop.tail, loop.head))
            if tail in self.groups and head in self.groups and tail is not head:
                ends = self.groups[tail], self.groups[head]
                kind: EdgeKind = ends[0].half
                found.append(Edge(ends[0].id, ends[1].id, loop.label, "", kind, loop=True))
        return found

    def _edge(
        self, tail: _Group, head: _Group, value: Node, letter: str, labelled: set[str]
    ) -> Edge:
        kind: EdgeKind = tail.half
        if tail.half == "forward" and head.half == "backward":
            kind = "residual"
        shape = shape_text(value.shape)
        own = "" if kind == "residual" or isinstance(value, (Input, Fold)) else shape
        if tail.id in labelled and tail.formula is not None and kind != "backward":
            own = ""
        if isinstance(value, Input) and value.kind == "input" and kind == "forward":
            own = ""
        color, width = None, 1.2
        if self.flow is not None:
            magnitude = self._magnitude(tail) if self._shows_flow(tail) else None
            color = palette.CLUSTER_LINE
            if magnitude is not None:
                color, width = self.scale.color(magnitude), self.scale.width(magnitude)
        return Edge(
            tail=tail.id,
            head=head.id,
            label=own,
            letter=letter,
            kind=kind,
            tooltip=f"{kind}: {shape}",
            color=color,
            width=width,
        )

    def _between_copies(self, tail: _Group, head: _Group, arg: Node, node: Node) -> bool:
        """Whether an edge leads from one of several layers drawn as one to another of them."""
        if tail.run is not head.run or tail.run.times == 1 or tail.formula is None:
            return False
        return self.structure.layer[arg] != self.structure.layer[node]

    # -- clusters and order -----------------------------------------------------------------------
    def _clusters(self) -> tuple[Cluster, ...]:
        if self.folding.summary:
            return ()
        boxes: dict[Run, list[str]] = {}
        steps: dict[str, list[str]] = {key: [] for key in self.cells.titles}
        broken: set[Run] = set()  # layers of which a part stands in a cell
        for group in self.groups.values():
            if group.node in self.cells.home:
                steps[self.cells.home[group.node]].append(group.id)
                broken.add(group.run)
            elif group.run.first in self.structure.titles and not isinstance(group.node, Moment):
                boxes.setdefault(group.run, []).append(group.id)
        runs = sorted((run for run in boxes if run not in broken), key=lambda run: run.first)
        cells = tuple(
            Cluster(key, self.cells.titles[key], tuple(inner), 1, self.cells.parents.get(key, ""))
            for key, inner in steps.items()
        )
        return cells + tuple(
            Cluster(
                str(run.first),
                self.structure.titles[run.first]
                if run.times == 1
                else _span(self.structure.titles, run),
                tuple(boxes[run]),
                run.times,
            )
            for run in runs
        )

    def _order(
        self, clusters: Sequence[Cluster], edges: Sequence[Edge]
    ) -> tuple[tuple[str, str], ...]:
        """Pairs of boxes, left before right: what leaves a layer stands before the next layer."""
        if self.cells.titles:
            return ()
        home = {box: k for k, cluster in enumerate(clusters) for box in cluster.boxes}
        ahead = [e for e in edges if e.kind == "forward" and e.tail in home and e.head in home]
        exits = {home[e.tail]: e.tail for e in ahead if home[e.head] == home[e.tail] + 1}
        pairs: list[tuple[str, str]] = []
        for k, cluster in enumerate(clusters[1:], start=1):
            entered = {e.head for e in edges if e.kind == "forward" and home.get(e.tail) == k}
            entered |= {e.tail for e in edges if e.kind == "backward" and home.get(e.head) == k}
            if k - 1 in exits:
                pairs += [(exits[k - 1], box) for box in cluster.boxes if box not in entered]
        return tuple(pairs)

    def _direct_results(self) -> tuple[list[Box], list[Edge]]:
        """Gradients that are forward values themselves: d(w x)/dw = x gets a box of its own."""
        boxes: list[Box] = []
        edges: list[Edge] = []
        if self.folding.summary:
            return boxes, edges
        for node, title in self.direct.items():
            group = self.groups.get(self.folding.group.get(node))
            value = formula_of(node).label
            box = Box(f"g{len(boxes)}", title, f"= {shorten(value, _LABEL)}", "result", "backward")
            boxes.append(box)
            if group is not None:
                shape = shape_text(node.shape)
                edges.append(Edge(group.id, box.id, kind="residual", tooltip=f"residual: {shape}"))
        return boxes, edges

    # -- words ------------------------------------------------------------------------------------
    def _title(self) -> str:
        both = any(g.half == "backward" for g in self.groups.values())
        if self.flow is not None:
            return "gradient flow"
        return "forward and backward pass" if both else "forward pass"

    def _caption(self) -> str:
        nodes = len(self.structure.nodes)
        lines = [self.flow.verdict] if self.flow is not None else []
        if len(self.groups) < nodes:
            lines.append(f"{nodes:,} nodes drawn as {len(self.groups)} boxes")
        return "\n".join(lines)

    def _legend(self) -> Legend:
        halves = {g.half for g in self.groups.values()}
        kinds = {self._kind(g) for g in self.groups.values()}
        swatches = []
        if self.flow is None:
            swatches.append(Swatch("box", palette.FORWARD, "forward"))
            if "backward" in halves:
                swatches.append(Swatch("box", palette.BACKWARD, "backward"))
                swatches.append(
                    Swatch("dashes", palette.RESIDUAL, "residual: read by the backward pass")
                )
        if "input" in kinds:
            swatches.append(Swatch("oval", palette.FORWARD, "input"))
        if "parameter" in kinds:
            swatches.append(Swatch("frame", palette.FORWARD, "parameter"))
        if self.flow is None:
            return Legend(tuple(swatches))
        swatches += self.scale.swatches()
        return Legend(tuple(swatches), self.scale.bar("L2 norm of the gradient"))


def _span(titles: Mapping[int, str], run: Run) -> str:
    """`layers 2–29 · 64 → 64` for a run of layers, `nodes 1–1250` for a run of segments."""
    first, last = titles.get(run.first, ""), titles.get(run.last, "")
    if first.startswith("nodes"):
        return f"{first.partition('–')[0]}–{last.partition('–')[2]}"
    tail = first.partition(" · ")[2] if run.alike else ""
    return f"layers {run.first}–{run.last}" + (f" · {tail}" if tail else "")
