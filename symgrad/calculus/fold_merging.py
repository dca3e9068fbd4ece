"""Recurrences that do the same work become one: the primal and its widened copies, equal carries.

Two carries are equal when they start equal and every step keeps them equal. The coarsest partition
of carries with that property is found by refinement: carries begin with the colour of their start,
and get new colours from the expression of their next value over coloured carries, until no class
splits (Hopcroft 1971). Carries of several Folds are coloured together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from symgrad.graph.folds import Fold, Proj, binder
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input, Node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.traversal import replace, toposort

Carry = tuple[int, int]  # which Fold, which of its carries


class _Numbers:
    """Equal keys have one number; nodes that are one object have one."""

    def __init__(self) -> None:
        self.table: dict[Hashable, int] = {}
        self.nodes: dict[Node, int] = {}
        self.bodies: dict[Graph, tuple[Hashable, ...]] = {}

    def of(self, *key: Hashable) -> int:
        """The number of a key."""
        return self.table.setdefault(key, len(self.table))

    def node(self, node: Node) -> int:
        """The number of a node that stands around the bodies."""
        return self.nodes.setdefault(node, len(self.nodes))

    def body(self, body: Graph) -> tuple[Hashable, ...]:
        """Equal for alpha-equal bodies over the same dims."""
        if body not in self.bodies:
            value: dict[Node, int] = {b: self.of("binder", k) for k, b in enumerate(body.inputs)}
            value_of(body, value, self)
            self.bodies[body] = (*((b.shape, b.dtype) for b in body.inputs),
                                 *(value[o] for o in body.outputs))
        return self.bodies[body]


def value_of(body: Graph, value: dict[Node, int], numbers: _Numbers) -> None:
    """Number the body's nodes, given its binders' numbers: equal expressions have one."""
    for node in body.nodes:
        if node in value:
            continue
        if isinstance(node, Constant):
            value[node] = numbers.of("constant", numbers.node(node))
            continue
        if isinstance(node, Fold):
            own: tuple[Hashable, ...] = (
                numbers.body(node.body), node.structure, node.carries, node.sequences
            )
        else:
            own = tuple(getattr(node, name) for name in node.own_fields)
        value[node] = numbers.of(
            type(node), node.dtype, node.shape, own, *(value[a] for a in node.args)
        )


def equal_carries(folds: Sequence[Fold], numbers: _Numbers | None = None) -> dict[Carry, int]:
    """The class of each carry; carries of one class have equal values at every step.

    requires: the Folds have one structure.
    """
    numbers = numbers or _Numbers()
    colour = {
        (f, k): numbers.of("start", numbers.node(arg))
        for f, fold in enumerate(folds) for k, arg in enumerate(fold.init)
    }
    while True:
        refined: dict[Carry, int] = {}
        for f, fold in enumerate(folds):
            value = _given(fold, [colour[f, k] for k in range(fold.carries)], numbers)
            value_of(fold.body, value, numbers)
            for k, after in enumerate(fold.body.outputs[: fold.carries]):
                refined[f, k] = numbers.of("carry", colour[f, k], value[after])
        if len(set(refined.values())) == len(set(colour.values())):
            return refined
        colour = refined


def _given(fold: Fold, colours: Sequence[int], numbers: _Numbers) -> dict[Node, int]:
    """Numbers of the binders: the carry's colours, and what the others stand for."""
    n, m = fold.carries, fold.carries + fold.sequences
    value: dict[Node, int] = {}
    for k, (leaf, arg) in enumerate(zip(fold.body.inputs, fold.args, strict=True)):
        kind = "element" if k < m else "const"
        value[leaf] = numbers.of("now", colours[k]) if k < n else numbers.of(
            kind, numbers.node(arg)
        )
    return value


@rewrites
def merge_folds(outputs: Sequence[Node]) -> list[Node]:
    """rewrite: two Folds with a carry that is equal at every step -> one Fold with all results.

    requires: one structure and one bound, and neither reads the other; all rows in each step.
    keeps:    every result; what nothing reads is dropped by `tidy_folds`.
    """
    merged, numbers = list(outputs), _Numbers()
    while (found := _pair(merged, numbers)) is not None:
        first, second, classes = found
        with provenance(first.origin, first.backward_of, first.where):
            wide, *places = _joined(first, second, classes)
            mapping: dict[Node, Node] = {
                Proj((fold,), place): Proj((wide,), new)
                for fold, own in zip((first, second), places, strict=True)
                for place, new in enumerate(own)
            }
        merged = replace(merged, mapping)
    return merged


def _pair(
    outputs: Sequence[Node], numbers: _Numbers
) -> tuple[Fold, Fold, dict[int, int]] | None:
    """Two Folds to merge, and which carry of the first each equal carry of the second is."""
    groups: dict[object, list[Fold]] = {}
    for node in toposort(outputs):
        if isinstance(node, Fold) and node.structure.rows is None:
            groups.setdefault((node.structure, node.bound), []).append(node)
    for folds in groups.values():
        starts = [{id(arg) for arg in fold.init} for fold in folds]
        if len(folds) < 2 or len(set().union(*starts)) == sum(map(len, starts)):
            continue
        colour = equal_carries(folds, numbers)
        own = [{colour[f, k]: k for k in reversed(range(fold.carries))}
               for f, fold in enumerate(folds)]
        for b, second in enumerate(folds):
            near = [a for a in range(b) if not own[a].keys().isdisjoint(own[b])]
            below = set(toposort(second.args)) if near else set()
            for a in near:
                if folds[a] not in below:
                    return folds[a], second, {
                        k: own[a][colour[b, k]]
                        for k in range(second.carries) if colour[b, k] in own[a]
                    }
    return None


def _joined(
    first: Fold, second: Fold, equal: dict[int, int]
) -> tuple[Fold, list[int], list[int]]:
    """One Fold with the results of both, and the places of the results of each."""
    c = first.carries
    renamed: dict[Node, Input] = {}
    groups: list[list[tuple[Input, Node]]] = []
    for g, (mine, leaves) in enumerate(zip(first.binders, second.binders, strict=True)):
        held = list(zip(mine, (first.init, first.xs, first.consts)[g], strict=True))
        known = {arg: leaf for leaf, arg in reversed(held)}
        for k, leaf in enumerate(leaves):
            arg = (second.init, second.xs, second.consts)[g][k]
            if g == 0 and k in equal:
                renamed[leaf] = first.body.inputs[equal[k]]
            elif g > 0 and arg in known:
                renamed[leaf] = known[arg]
            else:
                renamed[leaf] = known[arg] = binder(leaf.name, leaf.shape, leaf.dtype)
                held.append((renamed[leaf], arg))
        groups.append(held)
    with own_provenance():
        outputs = replace(second.body.outputs, renamed)
    added = [k for k in range(second.carries) if k not in equal]
    n = c + len(added)
    ys = list(first.body.outputs[c:])
    place_of: dict[Node, int] = {y: n + k for k, y in reversed(list(enumerate(ys)))}
    for y in outputs[second.carries :]:
        if y not in place_of:
            place_of[y] = n + len(ys)
            ys.append(y)
    pairs = [pair for group in groups for pair in group]
    body = Graph(
        tuple(leaf for leaf, _ in pairs),
        (*first.body.outputs[:c], *(outputs[k] for k in added), *ys),
    )
    wide = Fold(tuple(arg for _, arg in pairs), body, first.structure, n, len(groups[1]))
    carried = [equal[k] if k in equal else c + added.index(k) for k in range(second.carries)]
    return (
        wide,
        [*range(c), *range(n, n + len(first.body.outputs) - c)],
        [*carried, *(place_of[y] for y in outputs[second.carries :])],
    )
