"""Recurrences in a picture: one step as a cell with its loop, or the steps one after the other.

A picture has no Fold. Its step is drawn over moments: `h[t]` comes from the start and, along the
loop, from the step before; `x[t]` is an element of a sequence; what the step reads whole comes from
outside. Unrolled, each step reads the one before it, and of a long recurrence the first two steps
and the last one are drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from symgrad.diagram.formulas import extent_text, shape_text
from symgrad.diagram.moments import Moment, Role, title
from symgrad.graph.dims import Extent
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.nodes import Constant, Einsum, Input, Node
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.traversal import reconnect, toposort

STEPS = 6  # of an unrolled recurrence, at most; of longer ones the ends are drawn


@dataclass(frozen=True, slots=True)
class Loop:
    """A value that becomes a carry of the next step."""

    tail: Node
    head: Node
    label: str


@dataclass(slots=True)
class Cells:
    """Where the nodes of a picture came from, and in which cells they stand.

    new:     the node of the picture for each node of the expressions.
    old:     and back.
    home:    the cell of each node that is in one.
    titles:  a name per cell;  parents: the cell around it, if any.
    loops:   from the end of a step to its beginning.
    """

    new: dict[Node, Node] = field(default_factory=dict)
    old: dict[Node, Node] = field(default_factory=dict)
    home: dict[Node, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)


def in_cells(outputs: Sequence[Node], unrolled: bool = False) -> tuple[list[Node], Cells]:
    """The expressions without Folds, and their cells; the same expressions where there is none.

    >>> from symgrad.graph.leaves import constant
    >>> from symgrad.graph.scanning import scan
    >>> last, _ = scan(lambda c, x: (c * x, ()), constant(1.0), constant([2.0, 3.0]))
    >>> (drawn,), cells = in_cells([last])
    >>> drawn.name, list(cells.titles.values()), cells.loops[0].label
    ('carry[2]', ['t = 0 … 1'], 't → t+1')
    """
    cells = Cells()
    if not any(isinstance(n, Fold) for n in toposort(outputs)):
        return list(outputs), cells
    writer = _Writer(cells, unrolled)
    made = writer.drawn(outputs, {}, "")
    cells.new.update(made)
    return [made[o] for o in outputs], cells


class _Writer:
    """Draws bodies over moments."""

    def __init__(self, cells: Cells, unrolled: bool) -> None:
        self.cells, self.unrolled = cells, unrolled
        self.stacks: dict[Node, dict[str, Node]] = {}  # of stacked values: the one of each step
        self.steps: dict[Node, dict[str, str]] = {}  # and the cells of these steps
        self.elements: dict[tuple[Node, str], Node] = {}
        self.copies: dict[Node, dict[str, Node]] = {}  # of leaves that every step reads
        self.sources: dict[Node, Node] = {}  # of sequences: the box that an element comes from

    def drawn(
        self, outputs: Sequence[Node], given: Mapping[Node, Node], cell: str,
        varying: Collection[Node] = (),
    ) -> dict[Node, Node]:
        """The picture's node for each node that the outputs need.

        Args:
            given:   of nodes that are drawn already.
            cell:    where nodes stand that depend on the varying ones.
        """
        made = dict(given)
        results: dict[Node, list[Node]] = {}
        inside = set(varying)
        for node in toposort(outputs):
            if node in made:
                continue
            within = any(a in inside for a in node.args)
            if within:
                inside.add(node)
            with own_provenance(), provenance(node.origin, node.backward_of, node.where):
                if isinstance(node, Proj):
                    new = made[node] = results[node.args[0]][node.place]
                    if within and isinstance(new, Moment):
                        self.cells.home.setdefault(new, cell)
                elif isinstance(node, Fold):
                    around = cell if within else self.cells.parents.get(cell, "")
                    draw = self.unroll if self.unrolled else self.cell
                    results[node] = draw(node, tuple(made[a] for a in node.args), around)
                    continue
                else:
                    new = made[node] = reconnect(node, tuple(made[a] for a in node.args))
                    if within:
                        self.cells.home.setdefault(new, cell)
            if new is not node:
                self.cells.old.setdefault(new, node)
        return made

    def moment(
        self, node: Node, arg: Node, label: str, cell: str, role: Role
    ) -> Moment:
        """A value of the recurrence, in a cell."""
        zero = role == "carry" and _is_zero(arg)
        detail = f"{shape_text(node.shape)}, from 0" if zero else ""
        args = () if zero or role == "shared" else (arg,)
        made = Moment(args, label, node.shape, node.dtype, role, detail)
        if cell:
            self.cells.home[made] = cell
        return made

    def name(self, title: str, around: str) -> str:
        """A new cell."""
        key = f"cell{len(self.cells.titles)}"
        self.cells.titles[key] = title
        if around:
            self.cells.parents[key] = around
        return key

    # -- one step with its loop -------------------------------------------------------------------
    def cell(self, fold: Fold, args: tuple[Node, ...], around: str) -> list[Node]:
        """The step as a cell; the drawn results."""
        n, m = fold.carries, fold.carries + fold.sequences
        t = "tsrq"[_depth(self.cells, around) % 4]
        length, back = fold.structure.length, fold.structure.reverse
        span = f"{_last(length)} … 0" if back else f"0 … {_last(length)}"
        key = self.name(f"{t} = {span}", around)
        given: dict[Node, Node] = dict(zip(fold.body.inputs[m:], args[m:], strict=True))
        for k, leaf in enumerate(fold.body.inputs[:m]):
            role: Role = "carry" if k < n else "element"
            source = args[k] if k < n else self.sources.get(args[k], args[k])
            given[leaf] = self.moment(leaf, source, f"{title(leaf.name)}[{t}]", key, role)
            if k >= n:
                self.sources.setdefault(args[k], given[leaf])
        made = self.drawn(fold.body.outputs, given, key, fold.body.inputs[:m])
        outputs = [made[o] for o in fold.body.outputs]
        turn = f"{t} → {t}−1" if back else f"{t} → {t}+1"
        self.cells.loops += [
            Loop(outputs[k], given[leaf], turn) for k, leaf in enumerate(fold.body.inputs[:n])
        ]
        end = "0" if back else extent_text(length)
        found: list[Node] = []
        for k, (shape, dtype) in enumerate(fold.results):
            label, detail = f"{title(fold.body.inputs[min(k, n)].name)}[{end}]", ""
            if k >= n:
                label, detail = _stacked(fold, k, t), f"stacked, {t} = {span}"
            result = Moment((outputs[k],), label, shape, dtype, "result", detail)
            found.append(result)
            if k >= n:
                self.sources[result] = outputs[k]
        return found

    # -- the steps one after the other ------------------------------------------------------------
    def unroll(self, fold: Fold, args: tuple[Node, ...], around: str) -> list[Node]:
        """The steps, each in a cell; the drawn results."""
        n, m = fold.carries, fold.carries + fold.sequences
        moments = _moments(fold.structure.length)
        if fold.structure.reverse:
            moments.reverse()
        known = next((self.steps[a] for a in args[n:m] if a in self.steps), {})
        letter = "tsrq"[_depth(self.cells, around) % 4]
        carry = list(args[:n])
        ys: list[list[Node]] = [[] for _ in fold.body.outputs[n:]]
        own: dict[str, str] = {}
        stacks: list[dict[str, Node]] = [{} for _ in ys]
        for t in moments:
            if not t:
                carry = [self.moment(c, c, "⋯", around, "between") for c in carry]
                continue
            key = known.get(t) or self.name(f"{letter} = {t}", around)
            if not own:
                start = _last(fold.structure.length + 1) if fold.structure.reverse else "0"
                carry = [
                    self.moment(leaf, arg, f"{title(leaf.name)}[{start}]", key, "carry")
                    for leaf, arg in zip(fold.body.inputs[:n], args[:n], strict=True)
                ]
            own[t] = key
            given: dict[Node, Node] = dict(zip(fold.body.inputs[:n], carry, strict=True))
            for leaf, arg in zip(fold.body.inputs[m:], args[m:], strict=True):
                given[leaf] = self.shared(arg, key)
            for leaf, arg in zip(fold.body.inputs[n:m], args[n:m], strict=True):
                element = self.stacks.get(arg, {}).get(t, self.elements.get((arg, key)))
                if element is None:
                    label = f"{title(leaf.name)}[{t}]"
                    element = self.moment(leaf, arg, label, key, "element")
                    self.elements[arg, key] = element
                given[leaf] = element
            made = self.drawn(fold.body.outputs, given, key, fold.body.inputs[:m])
            carry = [made[o] for o in fold.body.outputs[:n]]
            for k, o in enumerate(fold.body.outputs[n:]):
                ys[k].append(made[o])
                stacks[k][t] = made[o]
        found: list[Node] = list(carry)
        for k, (parts, (shape, dtype)) in enumerate(zip(ys, fold.results[n:], strict=True)):
            stacked = Moment(tuple(parts), _stacked(fold, n + k, "t"), shape, dtype, "result",
                             "stacked")
            self.stacks[stacked], self.steps[stacked] = stacks[k], own
            found.append(stacked)
        return found


    def shared(self, node: Node, key: str) -> Node:
        """A leaf that every step reads; drawn anew in each step after the first one."""
        if not isinstance(node, Input):
            return node
        copies = self.copies.setdefault(node, {})
        if key not in copies:
            copies[key] = self.moment(node, node, node.name, key, "shared") if copies else node
            if copies[key] is node and node.kind == "parameter":
                self.cells.home.setdefault(node, key)
        return copies[key]


def _is_zero(node: Node) -> bool:
    if isinstance(node, Einsum) and len(node.args) == 1:
        node = node.args[0]
    return isinstance(node, Constant) and not node.shape and not node.value


def _depth(cells: Cells, around: str) -> int:
    depth = 0
    while around:
        depth, around = depth + 1, cells.parents.get(around, "")
    return depth


def _last(length: Extent) -> str:
    """The last step."""
    return extent_text(length - 1).strip("()").replace(" - ", "−")


def _stacked(fold: Fold, k: int, t: str) -> str:
    """What the stacked values are called: as the carry that they are, else y."""
    y = fold.body.outputs[k]
    for leaf, after in zip(fold.binders[0], fold.body.outputs, strict=False):
        if y is leaf:
            return f"{title(leaf.name)}[{t}]"
        if y is after:
            step = f"{t}+1" if not fold.structure.reverse else t
            return f"{title(leaf.name)}[{step}]"
    ys = len(fold.body.outputs) - fold.carries
    return "y" if ys == 1 else f"y{k - fold.carries}"


def _moments(length: Extent) -> list[str]:
    """The steps that are drawn, in order of time; an empty one stands for those between."""
    if isinstance(length, int) and length <= STEPS:
        return [str(t) for t in range(length)]
    return ["0", "1", "", _last(length)]
