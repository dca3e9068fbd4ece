"""Places of extremes without a serial search.

rewrite:  argmax(x) -> the least place i where x[i] == max(x), or where x[i] is NaN; argmin likewise
requires: nothing. If some x[i] is NaN, so is max(x), and nothing equals it.
keeps:    values: the first of equal elements, the first NaN.

A search that carries the best value and its place from element to element does not vectorise. Two
reductions do, each by columns too, and the first may be wanted anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from symgrad.graph.dtypes import INT32, is_bool, is_float
from symgrad.graph.folds import Fold, with_outputs
from symgrad.graph.functions import AXIS, CAST, P, equal, isnan, logical_or, select
from symgrad.graph.nodes import Map, Node, Reduce, einsum_node, map_node
from symgrad.graph.passes import rewrites
from symgrad.graph.traversal import rebuild, reconnect

# Beyond every place.
NOWHERE = 2**31 - 1


@rewrites
def places_by_value(outputs: Sequence[Node]) -> list[Node]:
    """Rewrite all places of extremes; see the module."""

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if isinstance(node, Fold):
            return with_outputs(node, places_by_value(node.body.outputs))
        if isinstance(node, Reduce) and node.op in ("argmax", "argmin"):
            return _first_place(node)
        return node

    return rebuild(outputs, rule)


def _first_place(node: Reduce) -> Node:
    """The least place of the best value, in the row-major order of the reduced axes."""
    (x,) = node.args
    if is_bool(x.dtype):
        x = map_node(CAST[INT32](P[0]), [x], INT32)
    best = Reduce((x,), "max" if node.op == "argmax" else "min", node.axes)
    labels = tuple(range(x.ndim))
    kept = tuple(k for k in labels if k not in node.axes)
    every = einsum_node([best], [kept], labels, dict(enumerate(x.shape)))
    here = equal(P[0], P[1])
    if is_float(x.dtype):
        here = logical_or(here, isnan(P[0]))
    place: sympy.Expr = sympy.Integer(0)
    for axis in node.axes:
        place = place * x.shape[axis] + AXIS[axis]
    body = select(here, place, sympy.Integer(NOWHERE))
    return Reduce((Map((x, every), body, x.shape, INT32),), "min", node.axes)
