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
    FoldParts,
    Moved,
    Notes,
    fits,
    only_moves,
    pays,
    rewrite_folds,
)
from symgrad.calculus.stacking import Stack, can_stack, stacked
from symgrad.graph.folds import Fold, binder
from symgrad.graph.nodes import Gather, Input, Node, einsum_node
from symgrad.graph.passes import rewrites
from symgrad.graph.traversal import toposort, users


@rewrites
def hoist(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """rewrite: products of sequences with constants -> one product around the recurrence.

    Args:
        notes: told what moved.

    >>> import symgrad as sg
    >>> x, W = sg.input("x", (7, 3, 5)), sg.input("W", (5, 2))
    >>> c, _ = sg.scan(lambda c, x: (sg.tanh(c + x @ W), ()), sg.zeros((3, 2)), x)
    >>> notes = []
    >>> _ = hoist([c], notes)
    >>> [(n.how, n.node.shape) for n in notes]
    [('hoisted', (3, 2))]
    """
    kept: Notes = [] if notes is None else notes
    return rewrite_folds(
        outputs, lambda body: hoist(body, kept), lambda fold, read: _hoisted(fold, kept)
    )


def _hoisted(fold: Fold, notes: Notes) -> Mapping[int, Node] | None:
    parts = FoldParts(fold)
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
    parts.put(mapping)
    final, emitted = parts.built()
    found = dict(enumerate(final.values())) | emitted
    return found | {k: around[y][0] for k, y in ys.items()}


def _still(parts: FoldParts, order: Sequence[Node]) -> set[Node]:
    """The nodes that depend on sequences, on no carry and on no recurrence in the body."""
    loops = [node for node in order if not can_stack(node)]
    moving = parts.depending(order, [*parts.init, *loops])
    return parts.depending(order, [*parts.xs]) - moving


def _leaves(node: Node, still: Collection[Node], parts: FoldParts) -> bool:
    return pays(node, still) and fits((parts.length, *node.shape), node.dtype.itemsize)


def _is_cheap(y: Node, still: Collection[Node]) -> bool:
    """Whether a result is read and moved, and at most multiplied with constants."""
    return all(
        isinstance(n, (Input, Gather)) or only_moves(n) or pays(n, still)
        for n in toposort([y]) if n in still
    )


@rewrites
def read_inside(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """rewrite: a sequence that is read from a table by index -> its step reads the table.

        c[t+1] = f(c[t], (E[i])[t])    ->    c[t+1] = f(c[t], E[i[t]])

    requires: nothing but recurrences reads the sequence.
    keeps:    values.

    The step's loops read the table where it lies, and no copy of its rows is written.

    Args:
        notes: told what moved.
    """
    kept: Notes = [] if notes is None else notes
    alone = {
        node for node, readers in users(outputs).items()
        if all(isinstance(r, Fold) and any(x is node for x in r.xs) for r in readers)
    } - set(outputs)

    def rule(fold: Fold, read: Collection[int]) -> Mapping[int, Node] | None:
        parts = FoldParts(fold)
        mapping: dict[Node, Node] = {}
        for leaf, arg in list(parts.xs.items()):
            if isinstance(arg, Gather) and _by_steps(arg) and arg in alone:
                mapping[leaf] = _in_step(parts, leaf, arg)
                kept.append(Moved("read inside", arg, parts.length, "only steps read these rows"))
        if not mapping:
            return None
        parts.put(mapping)
        final, emitted = parts.built()
        return dict(enumerate(final.values())) | emitted

    return rewrite_folds(outputs, lambda body: read_inside(body, kept), rule)


def _by_steps(node: Gather) -> bool:
    """Whether the first axis is one of indices."""
    return node.out[0] not in node.source_axes


def _in_step(parts: FoldParts, leaf: Input, node: Gather) -> Node:
    """The rows that a step reads; the table and the indices become arguments of the Fold."""
    t = node.out[0]
    source = binder("table", node.args[0].shape, node.args[0].dtype)
    parts.consts[source] = node.args[0]
    indices, labels = [], []
    for own, index in zip(node.index_labels, node.args[1:], strict=True):
        rest = tuple(k for k in own if k != t)
        if (moves := t in own) and own[0] != t:
            index = einsum_node([index], [own], (t, *rest))
        inner = binder("index", index.shape[moves:], index.dtype)
        (parts.xs if moves else parts.consts)[inner] = index
        indices.append(inner)
        labels.append(rest)
    del parts.xs[leaf]
    return Gather((source, *indices), node.source_axes, tuple(labels), node.out[1:], node.wrap)
