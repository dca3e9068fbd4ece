"""A node of a recurrence's body, over all steps at once: a leading axis of steps.

    out[t, ..] = node(args[t, ..])                   where an argument has the axis
    out[t, ..] = node(args[..])                      where it is the same in all steps

Every class of nodes but a recurrence takes one more axis: a Map has it in front of its own, an
Einsum as a label, and so on. Each element is computed as it was in its step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from symgrad.calculus.building import spread, with_batch
from symgrad.graph.dims import Extent, is_counted
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import AxisIndex, axis_index
from symgrad.graph.nodes import (
    Einsum,
    Gather,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
    einsum_node,
)
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import reconnect

Stack = tuple[Node, bool]  # a node around the body, and whether it has the axis of steps


def can_stack(node: Node) -> bool:
    """Whether a node takes an axis of steps: a recurrence does not."""
    return not isinstance(node, (Fold, Proj)) and not has_counted(node)


def has_counted(node: Node) -> bool:
    """Whether a node has extents that differ from step to step, since programs count them."""
    extents = [*node.shape, *(e for arg in node.args for e in arg.shape)]
    if isinstance(node, (Map, Einsum)):
        extents += [node.body] if isinstance(node, Map) else node.extents
    return is_counted(*extents)


def stacked(
    nodes: Sequence[Node], given: Mapping[Node, Stack], length: Extent
) -> dict[Node, Stack]:
    """Nodes of a body around it, over all steps.

    Args:
        nodes:  in topological order; what depends on nothing given stays as it is.
        given:  what stands for nodes of the body.
        length: how many steps there are.
    """
    made = dict(given)
    for node in nodes:
        if node in made:
            continue
        args = [made[a] for a in node.args]
        with provenance(node.origin, node.backward_of, node.where):
            if any(lifted for _, lifted in args):
                made[node] = _RULES[type(node)](node, args, length), True
            else:
                made[node] = reconnect(node, tuple(a for a, _ in args)), False
    return made


def repeated(node: Node, length: Extent) -> Node:
    """`out[t, ..] = node[..]`."""
    axes = tuple(range(1, node.ndim + 1))
    return einsum_node((node,), (axes,), (0, *axes), {0: length})


def _all(args: Sequence[Stack], length: Extent) -> tuple[Node, ...]:
    return tuple(a if lifted else repeated(a, length) for a, lifted in args)


def _map(node: Node, args: Sequence[Stack], length: Extent) -> Node:
    # out[t, i..] = f(a[t, i..], b[i..], i..)
    assert isinstance(node, Map)
    own = []
    for arg, lifted in args:
        missing = node.ndim + 1 - arg.ndim
        if lifted and missing:
            arg = spread(arg, (arg.shape[0], *(1,) * missing, *arg.shape[1:]))
        own.append(arg)
    axes = [s for s in node.body.free_symbols if isinstance(s, AxisIndex)]
    moved = {s: axis_index(int(s.name[1:]) + 1) for s in axes}
    return Map(tuple(own), node.body.xreplace(moved), (length, *node.shape), node.dtype)


def _einsum(node: Node, args: Sequence[Stack], length: Extent) -> Node:
    # out[t, out] = sum a[t, ..] b[..]
    return with_steps(node, args, length, kept=True)


def with_steps(node: Node, args: Sequence[Stack], length: Extent, kept: bool) -> Node:
    """An Einsum over stacked arguments, which keeps the axis of steps or sums over it."""
    assert isinstance(node, Einsum)
    t = len(node.extents)
    labels = [
        (t, *own) if lifted else own for own, (_, lifted) in zip(node.labels, args, strict=True)
    ]
    out = (t, *node.out) if kept else node.out
    extents = {**dict(enumerate(node.extents)), t: length}
    return einsum_node([a for a, _ in args], labels, out, extents)


def _reduce(node: Node, args: Sequence[Stack], length: Extent) -> Node:
    assert isinstance(node, Reduce)
    return Reduce((args[0][0],), node.op, tuple(k + 1 for k in node.axes))


def _reindex(node: Node, args: Sequence[Stack], length: Extent) -> Node:
    assert isinstance(node, Reindex)
    pieces = tuple(with_batch(piece, (length,)) for piece in node.pieces)
    return Reindex(_all(args, length), pieces, (length, *node.shape))


def _gather(node: Node, args: Sequence[Stack], length: Extent) -> Node:
    # out[t, out] = source[t, index[t, ..]]
    assert isinstance(node, Gather)
    t = 1 + max([-1, *node.out, *node.source_axes, *(k for g in node.index_labels for k in g)])
    source, *indices = args
    return Gather(
        tuple(a for a, _ in args),
        (t, *node.source_axes) if source[1] else node.source_axes,
        tuple(
            (t, *own) if lifted else own
            for own, (_, lifted) in zip(node.index_labels, indices, strict=True)
        ),
        (t, *node.out), node.wrap,
    )


def _scatter(node: Node, args: Sequence[Stack], length: Extent) -> Node:
    # out[t, index[t, i..]] += updates[t, i..]
    return scattered(node, args, length, kept=True)


def scattered(node: Node, args: Sequence[Stack], length: Extent, kept: bool) -> Node:
    """A Scatter of stacked updates: one for each step, or one to which all steps add."""
    assert isinstance(node, Scatter)
    used = (*node.update_labels, *node.target_axes, *(k for g in node.index_labels for k in g))
    t = 1 + max([-1, *used])
    (updates, *_), (_, *indices) = _all(args[:1], length), args
    return Scatter(
        (updates, *(a for a, _ in indices)),
        (t, *node.update_labels),
        tuple(
            (t, *own) if lifted else own
            for own, (_, lifted) in zip(node.index_labels, indices, strict=True)
        ),
        (t, *node.target_axes) if kept else node.target_axes,
        (length, *node.shape) if kept else node.shape,
        node.wrap,
    )


_RULES: Mapping[type[Node], Callable[[Node, Sequence[Stack], Extent], Node]] = {
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Reindex: _reindex,
    Gather: _gather,
    Scatter: _scatter,
}
