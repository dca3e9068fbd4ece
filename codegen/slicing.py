"""Slices of a value that is made to be sliced: each is computed by itself, with what reads it.

rewrite:  slice(f(a, b))  ->  f(slice(a), slice(b))
          slice(E[i])     ->  slice(E)[i]      along axes of the table that are not indexed
requires: that disjoint slices are all that reads f(a, b) or E[i], and elementwise nodes all that
          read the slices
keeps:    values

The gates of a cell are slices of one sum, z = x W + h U + b. Cut into gates first, the sum is
computed in the loop that reads the gates, and is never written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from codegen.access import is_one, slices
from symgrad.calculus.loop_parts import Moved, Notes, only_moves
from symgrad.graph.dims import Extent, same
from symgrad.graph.folds import Fold, counted_by, with_outputs
from symgrad.graph.functions import AxisIndex
from symgrad.graph.nodes import Gather, Map, Node, Piece, Reindex
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import rebuild, reconnect, toposort, users

# Sums of sums are cut from the last one back, one in a sweep.
SWEEPS = 8


@rewrites
def slice_first(
    outputs: Sequence[Node], notes: Notes | None = None, steps: Extent | None = None
) -> list[Node]:
    """Rewrite all such slices; see the module.

    Args:
        notes: told what is sliced.
        steps: of the recurrence whose body the outputs are.

    >>> import symgrad as sg
    >>> x, y = sg.input("x", (3, 4)), sg.input("y", (3, 4))
    >>> z = x + y
    >>> gated = sg.sigmoid(z[:, :2]) * sg.tanh(z[:, 2:])
    >>> [graph.count("move") for graph in map(str, (gated, *slice_first([gated])))]
    [2, 4]
    """
    kept: Notes = [] if notes is None else notes

    def inside(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if not isinstance(node, Fold):
            return node
        with own_provenance():
            return with_outputs(
                node, slice_first(node.body.outputs, kept, node.structure.length)
            )

    made = rebuild(outputs, inside)
    for _ in range(SWEEPS):
        cut = _to_cut(made)
        if not cut:
            break
        for source, pieces in Counter(cut.values()).items():
            kept.append(Moved("sliced", source, steps, f"nothing but {pieces} slices reads it"))

        def rule(node: Node, args: tuple[Node, ...], cut: Mapping[Node, Node] = cut) -> Node:
            if node in cut:
                assert isinstance(node, Reindex)
                return _cut(args[0], node)
            return reconnect(node, args)

        made = rebuild(made, rule)
    return made


def sliced_before(outputs: Sequence[Node]) -> list[Moved]:
    """The slices that recurrences read as constants, so that they are made once, before the steps.

    >>> import symgrad as sg
    >>> x, W = sg.input("x", (7, 3)), sg.input("W", (2, 3))
    >>> c, _ = sg.scan(lambda c, x: (sg.tanh(c + W[1] * x), ()), sg.zeros((3,)), x)
    >>> [moved.heading for moved in sliced_before([c])]
    ['sliced before 7 steps']
    """
    found: dict[tuple[Node, Extent], Moved] = {}
    for fold in toposort(outputs):
        if isinstance(fold, Fold):
            steps = fold.structure.length
            for node in fold.consts:
                if slices(source := _before_moves(node)):
                    found.setdefault(
                        (source, steps), Moved("sliced before", source, steps, "no step changes it")
                    )
            found |= {(m.node, m.length or 0): m for m in sliced_before(fold.body.outputs)}
    return list(found.values())


def _before_moves(node: Node) -> Node:
    """What a reshaped, transposed or repeated node is made from."""
    while not slices(node) and only_moves(node):
        (node,) = node.args
    return node


def _to_cut(outputs: Sequence[Node]) -> dict[Node, Node]:
    """The slices to be computed by themselves, each with its source."""
    readers = users(outputs)
    wanted = set(outputs)
    found: dict[Node, Node] = {}
    for node, own in readers.items():
        if node in wanted or not own or not isinstance(node, (Map, Gather)) or not node.args:
            continue
        if isinstance(node, Map) and any(isinstance(s, AxisIndex) for s in node.body.free_symbols):
            continue
        if all(
            isinstance(r, Reindex) and slices(r) and r not in wanted and counted_by(r) is None
            and (isinstance(node, Map) or _spares_indices(node, r))
            and all(isinstance(reader, Map) for reader in readers[r])
            for r in own
        ) and _disjoint(own):
            found.update((r, node) for r in own)
    return found


def _disjoint(cut: Sequence[Node]) -> bool:
    """Whether slices read no element twice, as far as their sizes tell."""
    pieces = [r.pieces[0] for r in cut if isinstance(r, Reindex)]
    for k, a in enumerate(pieces):
        for b in pieces[:k]:
            apart = False
            for (s, c, x), (t, d, y) in zip(
                zip(a.start, a.count, a.step, strict=True),
                zip(b.start, b.count, b.step, strict=True), strict=True,
            ):
                numbers = (s, c, t, d)
                if x == y == 1 and all(type(n) is int for n in numbers):
                    apart = apart or s + c <= t or t + d <= s
            if not apart:
                return False
    return True


def _spares_indices(node: Gather, cut: Reindex) -> bool:
    """Whether a slice takes all of the axes that indices run along."""
    (piece,) = cut.pieces
    places = {k for own in node.index_labels for k in own}
    if not any(k >= 0 for k in node.source_axes):
        return False
    return all(
        _is_all(start, step, count, extent) or label not in places
        for label, start, step, count, extent in zip(
            node.out, piece.start, piece.step, piece.count, node.shape, strict=True
        )
    )


def _is_all(start: object, step: object, count: object, extent: object) -> bool:
    return start == 0 and step == 1 and same(count, extent) is True


def _cut(node: Node, cut: Reindex) -> Node:
    """The slice of a Map or a Gather, as one of slices."""
    (piece,) = cut.pieces
    if isinstance(node, Gather):
        chosen = {label: k for k, label in enumerate(node.out)}
        axes = [chosen.get(label, -1) for label in node.source_axes]
        source = _sliced(node.args[0], axes, piece)
        return Gather(
            (source, *node.args[1:]), node.source_axes, node.index_labels, node.out, node.wrap
        )
    assert isinstance(node, Map)
    args = []
    for arg in node.args:
        lead = node.ndim - arg.ndim
        axes = [-1 if is_one(e) else lead + k for k, e in enumerate(arg.shape)]
        args.append(_sliced(arg, axes, piece))
    return Map(tuple(args), node.body, cut.shape, node.dtype)


def _sliced(arg: Node, axes: Sequence[int], piece: Piece) -> Node:
    """An argument, sliced where its axes are axes of the result; -1 stands for none of them."""
    start = tuple(0 if k < 0 else piece.start[k] for k in axes)
    step = tuple(1 if k < 0 else piece.step[k] for k in axes)
    count = tuple(e if k < 0 else piece.count[k] for k, e in zip(axes, arg.shape, strict=True))
    if all(map(_is_all, start, step, count, arg.shape)):
        return arg
    rank = len(axes)
    made = Piece(arg.shape, start, step, count, (0,) * rank, (1,) * rank)
    return Reindex((arg,), (made,), count)
