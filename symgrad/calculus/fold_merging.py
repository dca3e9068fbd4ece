"""Recurrences that do the same work become one: the primal and its widened copies, equal carries.

Two carries are equal when they start equal and every step keeps them equal. The coarsest partition of
carries with that property is found by refinement: carries begin with the colour of their start, and
get new colours from the expression of their next value over coloured carries, until no class splits
(Hopcroft 1971). Carries of several Folds are coloured together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from symgrad.graph.folds import Fold, Proj, binder
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input, Node
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import replace, toposort

Carry = tuple[int, int]  # which Fold, which of its carries


class _Numbers:
    """Equal keys have one number."""

    def __init__(self) -> None:
        self.table: dict[Hashable, int] = {}

    def of(self, *key: Hashable) -> int:
        return self.table.setdefault(key, len(self.table))


def equal_carries(folds: Sequence[Fold]) -> dict[Carry, int]:
    """The class of each carry; carries of one class have equal values at every step.

    requires: the Folds have one structure.
    """
    numbers = _Numbers()
    colour = {
        (f, k): numbers.of("start", id(arg))
        for f, fold in enumerate(folds) for k, arg in enumerate(fold.init)
    }
    bodies = [_body_numbers(fold) for fold in folds]
    while True:
        refined: dict[Carry, int] = {}
        for f, fold in enumerate(folds):
            value = _values(fold, [colour[f, k] for k in range(fold.carries)], bodies[f], numbers)
            for k, after in enumerate(fold.body.outputs[: fold.carries]):
                refined[f, k] = numbers.of("carry", colour[f, k], value[after])
        if len(set(refined.values())) == len(set(colour.values())):
            return refined
        colour = refined


def _body_numbers(fold: Fold) -> dict[Node, tuple[Hashable, ...]]:
    """What a node of the body is, beside its arguments."""
    own: dict[Node, tuple[Hashable, ...]] = {}
    for node in fold.body.nodes:
        if isinstance(node, Constant):
            own[node] = ("constant", id(node))
        elif isinstance(node, Fold):
            inner = node.body.key_with({d: d.name for d in node.body.dims})
            own[node] = (Fold, inner, node.structure, node.carries, node.sequences)
        else:
            fields = tuple(getattr(node, name) for name in node.own_fields)
            own[node] = (type(node), node.dtype, *fields)
    return own


def _values(
    fold: Fold, colours: Sequence[int], own: dict[Node, tuple[Hashable, ...]], numbers: _Numbers
) -> dict[Node, int]:
    """Numbers of the body's nodes; equal ones have equal values when carries of a colour have."""
    n, m = fold.carries, fold.carries + fold.sequences
    value: dict[Node, int] = {}
    for k, leaf in enumerate(fold.body.inputs):
        if k < n:
            value[leaf] = numbers.of("now", colours[k])
        else:
            value[leaf] = numbers.of("element" if k < m else "const", id(fold.args[k]))
    for node in fold.body.nodes:
        if node not in value:
            value[node] = numbers.of(own[node], *(value[a] for a in node.args))
    return value


def merge_folds(outputs: Sequence[Node]) -> list[Node]:
    """rewrite: two Folds with a carry that is equal at every step -> one Fold with all results.

    requires: one structure, and neither reads the other.
    keeps:    every result; what nothing reads is dropped by `tidy_folds`.
    """
    merged = list(outputs)
    while (found := _pair(merged)) is not None:
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


def _pair(outputs: Sequence[Node]) -> tuple[Fold, Fold, dict[int, int]] | None:
    """Two Folds to merge, and which carry of the first each equal carry of the second is."""
    groups: dict[object, list[Fold]] = {}
    for node in toposort(outputs):
        if isinstance(node, Fold):
            groups.setdefault(node.structure, []).append(node)
    for folds in groups.values():
        starts = [{id(arg) for arg in fold.init} for fold in folds]
        for b, second in enumerate(folds):
            near = [a for a in range(b) if starts[a] & starts[b]]
            if not near:
                continue
            below = set(toposort(second.args))
            for a in near:
                if folds[a] in below:
                    continue
                found = _classes(folds[a], second)
                if found:
                    return folds[a], second, found
    return None


def _classes(first: Fold, second: Fold) -> dict[int, int]:
    colour = equal_carries([first, second])
    mine = {colour[0, k]: k for k in reversed(range(first.carries))}
    return {
        k: mine[colour[1, k]] for k in range(second.carries) if colour[1, k] in mine
    }


def _joined(
    first: Fold, second: Fold, equal: dict[int, int]
) -> tuple[Fold, list[int], list[int]]:
    """One Fold with the results of both, and the places of the results of each."""
    c = first.carries
    renamed: dict[Input, Input] = {}
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
