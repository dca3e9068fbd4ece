"""Drawing a large graph small: repeated layers once with a counter, whole layers as one box.

Every drawn node belongs to a group, and a group is one box. Alone, a node is its own group. Folding
merges groups; edges between groups are what the edges between their nodes become.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from symgrad.diagram.formulas import is_literal
from symgrad.diagram.layers import Structure
from symgrad.graph.nodes import Constant, Input, Node

CAP = 250  # boxes above which level="auto" folds
COLUMNS = 20  # layers drawn as boxes in a row before neighbours share one


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive layers `first`..`last` that are drawn as one, `alike` in structure or not."""

    first: int
    last: int
    alike: bool

    @property
    def times(self) -> int:
        """How many layers it holds."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """How a picture groups nodes.

    group: the group of each drawn node; a group is named by a node or by (run, half).
    run:   the run that each layer is drawn in.
    summary: whether groups are whole layers.
    """

    group: Mapping[Node, Hashable]
    run: Mapping[int, Run]
    summary: bool


def unfolded(structure: Structure) -> Folding:
    """Every node is a box."""
    runs = {k: Run(k, k, True) for k in set(structure.layer.values())}
    return Folding({n: n for n in structure.nodes}, runs, False)


def repeats_folded(structure: Structure) -> Folding:
    """Consecutive layers of one structure are drawn once: the first stands for all."""
    members = _members(structure)
    runs = _runs_alike(structure, members)
    group: dict[Node, Hashable] = {
        node: drawn
        for number, nodes in members.items()
        for node, drawn in zip(nodes, members[runs[number].first], strict=True)
    }
    return Folding(group, runs, False)


def layers_folded(structure: Structure, repeats: bool = True, columns: int = COLUMNS) -> Folding:
    """Each half of a layer is one box; where there are too many layers, neighbours share one.

    Args:
        structure: the picture's nodes.
        repeats: whether layers alike are drawn as one with a counter; magnitudes forbid it.
        columns: how many boxes stand in a row at most.
    """
    numbers = sorted(set(structure.layer[n] for n in structure.nodes))
    runs = {k: Run(k, k, True) for k in numbers}
    if len(numbers) > columns and repeats:
        runs = _runs_alike(structure, _members(structure))
    distinct = [runs[k] for k in numbers if runs[k].first == k]
    if len(distinct) > columns:
        inner = [k for k in numbers if k not in (structure.loss, 0)]
        step = -(-len(inner) // (columns - 2))
        for start in range(0, len(inner), step):
            part = inner[start : start + step]
            for k in part:
                runs[k] = Run(part[0], part[-1], len(part) == 1)
    group: dict[Node, Hashable] = {}
    for node in structure.nodes:
        own = structure.layer[node]
        # The data stays visible beside the layers.
        leaf = isinstance(node, Input) and node.kind == "input" and own == 0
        group[node] = node if leaf else (runs[own], structure.half[node])
    return Folding(group, runs, True)


def _members(structure: Structure) -> dict[int, list[Node]]:
    members: dict[int, list[Node]] = {}
    for node in structure.nodes:
        members.setdefault(structure.layer[node], []).append(node)
    return dict(sorted(members.items()))


def _runs_alike(structure: Structure, members: Mapping[int, Sequence[Node]]) -> dict[int, Run]:
    runs: dict[int, Run] = {}
    start, before = None, None
    numbers = list(members)
    for number in numbers:
        signature = _signature(structure, number, members[number])
        consecutive = start is not None and number - 1 in runs
        if not consecutive or signature != before or number in (0, structure.loss):
            start = number
        assert start is not None
        run = Run(start, number, True)
        for k in range(start, number + 1):
            runs[k] = run
        before = signature
    return runs


def _signature(structure: Structure, number: int, nodes: Sequence[Node]) -> tuple[Hashable, ...]:
    """Equal for layers that differ in names, values and what lies outside only."""
    place = {node: k for k, node in enumerate(nodes)}
    rows: list[Hashable] = []
    for node in nodes:
        args: list[Hashable] = []
        for arg in node.args:
            if arg in place:
                args.append(place[arg])
            elif is_literal(arg):
                args.append(("literal", id(arg)))
            else:
                args.append(("outside", structure.layer[arg] - number, structure.half[arg]))
        if isinstance(node, Input):
            own: tuple[Hashable, ...] = (node.kind, node.shape)
        elif isinstance(node, Constant):
            own = (node.shape,)
        else:
            own = tuple(getattr(node, name) for name in node.own_fields)
        rows.append((structure.half[node], type(node), str(node.dtype), own, tuple(args)))
    return tuple(rows)
