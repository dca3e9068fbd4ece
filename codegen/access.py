"""Which element of its arguments a node reads, as affine functions of its own position.

Nodes that only rename positions (transposes, broadcasts, slices, axes of extent one), literals and
uniform random numbers are *inline*: they never get memory, and readers look through them. So a mask
is drawn again by each pass that reads it, backpropagation too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from codegen.loop_ir import Affine
from symgrad.graph.dims import Counted, Extent, Shape, free_dims, same
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
    is_reshape,
)
from symgrad.graph.streams import is_draw

Index: TypeAlias = tuple[Affine, ...]
ZERO = Affine()
# Stands for an index that is read from memory; it equals no loop variable.
DYNAMIC = "?"


def is_one(extent: Extent) -> bool:
    """Whether an extent is the number one."""
    return type(extent) is int and extent == 1


def squeezes(node: Node) -> bool:
    """Whether a node is a reshape that only adds or drops axes of extent one."""
    if not is_reshape(node):
        return False
    (arg,) = node.args
    return _wide(arg.shape) == _wide(node.shape)


def _wide(shape: Shape) -> list[Extent]:
    return [e for e in shape if not is_one(e)]


def slices(node: Node) -> bool:
    """Whether a node reads one box of one source and leaves no zeros."""
    if not isinstance(node, Reindex) or len(node.pieces) != 1:
        return False
    (piece,) = node.pieces
    return (
        piece.view == node.args[0].shape
        and all(type(o) is int and o == 0 for o in piece.offset)
        and all(s == 1 for s in piece.stride)
        and all(same(a, b) is True for a, b in zip(piece.count, node.shape, strict=True))
    )


def can_inline(node: Node) -> bool:
    """Whether a node needs no memory of its own."""
    if isinstance(node, Constant):
        return node.ndim == 0
    if isinstance(node, Map):
        return not node.args or is_draw(node)
    if isinstance(node, Einsum):
        return len(node.args) == 1 and not node.summed
    return squeezes(node) or slices(node)


def is_view(node: Node) -> bool:
    """Whether a node is its argument's memory under another shape, which no affine index tells."""
    return is_reshape(node) and not squeezes(node)


def root_of(node: Node) -> Node:
    """The node whose memory a reshape shows."""
    while is_reshape(node):
        node = node.args[0]
    return node


def steps_of(x: Node) -> Node:
    """The node in whose memory the steps of a sequence lie one after another, from its beginning.

    Where a sequence is the front of another one, `y[:n]`, a recurrence reads the other one itself.
    """
    root = root_of(x)
    if not slices(root):
        return root
    (piece,), whole = root.pieces, root_of(root.args[0])  # type: ignore[attr-defined]
    front = all(type(s) is int and s == 0 for s in piece.start)
    front = front and not any(isinstance(d, Counted) for d in free_dims(piece.count))
    dense = all(s == 1 for s in piece.step)
    rows = zip(piece.count[1:], piece.view[1:], strict=True)
    is_front = front and dense and all(same(a, b) is True for a, b in rows)
    return whole if is_front and not can_inline(whole) else root


def read_by(node: Node) -> tuple[Node, ...]:
    """What a stage of one node reads."""
    if not isinstance(node, Fold):
        return node.args
    return (*node.init, *map(steps_of, node.xs), *node.consts)


def views_of_steps(graph: Graph) -> set[Node]:
    """Views that only recurrences read, which read the memory behind them."""
    others = {a for n in graph.nodes if not isinstance(n, Fold) for a in n.args}
    others.update(a for n in graph.nodes if isinstance(n, Fold) for a in (*n.init, *n.consts))
    others.update(graph.outputs)
    read = {x for n in graph.nodes if isinstance(n, Fold) for x in n.xs if is_view(x)}
    return {x for x in read if x not in others and steps_of(x) is not root_of(x)}


def reads(node: Node, index: Index, summed: Sequence[Affine] = ()) -> list[Index]:
    """Where each argument is read for the element `index` of the node.

    Args:
        index:  position in the node's domain; for Scatter the position in the updates.
        summed: positions along what an Einsum sums or a Reduce reduces, in the node's own order.
    """
    if not node.args:
        return []
    if isinstance(node, Map):
        return [_aligned(arg.shape, index) for arg in node.args]
    if isinstance(node, Einsum):
        place = dict(zip(node.out, index, strict=True)) | dict(
            zip(node.summed, summed, strict=True)
        )
        return [tuple(place[k] for k in labels) for labels in node.labels]
    if isinstance(node, Reduce):
        rest, inner = iter(index), dict(zip(node.axes, summed, strict=True))
        return [tuple(inner[a] if a in inner else next(rest) for a in range(node.args[0].ndim))]
    if isinstance(node, Gather):
        place = dict(zip(node.out, index, strict=True))
        source = tuple(place[a] if a >= 0 else Affine(((DYNAMIC, 1),)) for a in node.source_axes)
        return [source, *(tuple(place[k] for k in labels) for labels in node.index_labels)]
    if isinstance(node, Scatter):
        place = dict(zip(node.update_labels, index, strict=True))
        return [index, *(tuple(place[k] for k in labels) for labels in node.index_labels)]
    if squeezes(node):
        wide = iter([i for i, e in zip(index, node.shape, strict=True) if not is_one(e)])
        return [tuple(ZERO if is_one(e) else next(wide) for e in node.args[0].shape)]
    assert isinstance(node, Reindex), type(node)
    (piece,) = node.pieces
    return [tuple(i * st + s for i, s, st in zip(index, piece.start, piece.step, strict=True))]


def _aligned(shape: Shape, index: Index) -> Index:
    tail = index[len(index) - len(shape) :]
    return tuple(ZERO if is_one(e) else i for e, i in zip(shape, tail, strict=True))
