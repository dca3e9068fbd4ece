"""What a recurrence does to its sequences alone leaves it at the beginning: one large operation.

    c[t+1] = f(c[t], x[t] W)         ->    Z = X W;   c[t+1] = f(c[t], Z[t])        X (T, b, k)
    y[t]   = g(x[t])                 ->    Y = g(X)   where g moves or reads by index

requires: what leaves depends on no carry, and holds no recurrence.
keeps:    values and their rounding: each element is computed as it was; random numbers, which are
          drawn from the counters of their step; NaN and infinity.

What depends on constants alone has left before, see `fold_rules.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from symgrad.calculus.loop_parts import (
    Moved,
    Notes,
    Parts,
    fits,
    only_moves,
    pays,
    rewrite_folds,
)
from symgrad.calculus.stacking import Stack, can_stack, stacked
from symgrad.graph.folds import Fold, binder
from symgrad.graph.nodes import Gather, Input, Node
from symgrad.graph.passes import rewrites
from symgrad.graph.traversal import replace, toposort


@rewrites
def hoist(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """rewrite: products of sequences with constants -> one product around the recurrence.

    Args:
        notes: told what moved.
    """
    kept: Notes = [] if notes is None else notes
    return rewrite_folds(
        outputs, lambda body: hoist(body, kept), lambda fold, read: _hoisted(fold, kept)
    )


def _hoisted(fold: Fold, notes: Notes) -> Mapping[int, Node] | None:
    parts = Parts(fold)
    order = toposort([*parts.after.values(), *parts.ys.values()])
    still = _still(parts, order)
    products = [node for node in order if node in still and _leaves(node, still, parts)]
    ys = {
        k: y for k, y in parts.ys.items()
        if y in still and not isinstance(y, Input) and _is_cheap(y, still)
    }
    if not products and not ys:
        return None
    given: dict[Node, Stack] = {leaf: (arg, True) for leaf, arg in parts.xs.items()}
    given |= {leaf: (arg, False) for leaf, arg in parts.consts.items()}
    around = stacked(toposort([*products, *ys.values()]), given, parts.length)
    mapping: dict[Node, Node] = {}
    for node in products:
        leaf = binder("hoisted", node.shape, node.dtype)
        parts.xs[leaf] = around[node][0]
        mapping[node] = leaf
        notes.append(Moved("hoisted", node, parts.length, "depends on no carry"))
    parts.ys = {k: y for k, y in parts.ys.items() if k not in ys}
    wanted = replace([*parts.after.values(), *parts.ys.values()], mapping)
    parts.after = dict(zip(parts.after, wanted, strict=False))
    parts.ys = dict(zip(parts.ys, wanted[len(parts.after) :], strict=True))
    final, emitted = parts.built()
    found = dict(enumerate(final.values())) | emitted
    return found | {k: around[y][0] for k, y in ys.items()}


def _still(parts: Parts, order: Sequence[Node]) -> set[Node]:
    """The nodes that depend on sequences, on no carry and on no recurrence in the body."""
    loops = [node for node in order if not can_stack(node)]
    moving = parts.depending(order, [*parts.init, *loops])
    return parts.depending(order, [*parts.xs]) - moving


def _leaves(node: Node, still: Collection[Node], parts: Parts) -> bool:
    return pays(node, still) and fits((parts.length, *node.shape), node.dtype.itemsize)


def _is_cheap(y: Node, still: Collection[Node]) -> bool:
    """Whether a result is read and moved, and at most multiplied with constants."""
    return all(
        isinstance(n, (Input, Gather)) or only_moves(n) or pays(n, still)
        for n in toposort([y]) if n in still
    )
