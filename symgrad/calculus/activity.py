"""Which nodes move when others do: differentiation visits these, all else has no derivative."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from symgrad.calculus import bodies
from symgrad.calculus.unfolding import is_heavy
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.nodes import Map, Node


def active_nodes(order: Sequence[Node], targets: Sequence[Node]) -> set[Node]:
    """The float nodes of a topological order that depend on a target, with a derivative.

    A Fold, which is no tensor, counts when one of its results does.
    """
    active = set(targets)
    moving: dict[Node, list[bool]] = {}
    for node in order:
        if isinstance(node, Fold):
            given = [arg in active for arg in node.args]
            if any(given):
                moving[node] = moving_results(node, given)
                if any(moving[node]):
                    active.add(node)
        elif isinstance(node, Proj):
            if node.args[0] in active and moving[node.args[0]][node.place]:
                active.add(node)
        elif is_float(node.dtype) and _moves(node, active):
            active.add(node)
    return active


def _moves(node: Node, active: Collection[Node]) -> bool:
    if isinstance(node, Map):
        return any(
            arg in active and (is_heavy(node) or bodies.slope(node.body, k) is not None)
            for k, arg in enumerate(node.args)
        )
    return any(arg in active for arg in node.args)


def moving_binders(fold: Fold, given: Sequence[bool]) -> list[bool]:
    """Which binders of the body move with the given arguments, once carries have gone round."""
    inputs, after = fold.body.inputs, fold.body.outputs[: fold.carries]
    moving = [g and is_float(b.dtype) for g, b in zip(given, inputs, strict=True)]
    while True:
        active = active_nodes(fold.body.nodes, _chosen(inputs, moving))
        grown = list(moving)
        for k, node in enumerate(after):
            grown[k] = moving[k] or node in active
        if grown == moving:
            return moving
        moving = grown


def moving_results(fold: Fold, given: Sequence[bool]) -> list[bool]:
    """Which results of a Fold move with the given arguments."""
    moving = moving_binders(fold, given)
    active = active_nodes(fold.body.nodes, _chosen(fold.body.inputs, moving))
    return [*moving[: fold.carries], *(y in active for y in fold.body.outputs[fold.carries :])]


def reached_binders(fold: Fold, places: Collection[int], moving: Sequence[bool]) -> list[bool]:
    """Which of the moving binders have an influence on the results at these places."""
    inputs, outputs = fold.body.inputs, fold.body.outputs
    active = active_nodes(fold.body.nodes, _chosen(inputs, moving))
    asked = set(places)
    while True:
        reached = {outputs[k] for k in asked if outputs[k] in active}
        for node in reversed(fold.body.nodes):
            if node in reached:
                reached.update(a for a in node.args if a in active)
        grown = asked | {k for k in range(fold.carries) if inputs[k] in reached}
        if grown == asked:
            return [b in reached or (m and k in asked and k < fold.carries)
                    for k, (b, m) in enumerate(zip(inputs, moving, strict=True))]
        asked = grown


def _chosen(nodes: Sequence[Node], flags: Sequence[bool]) -> list[Node]:
    return [node for node, flag in zip(nodes, flags, strict=True) if flag]
