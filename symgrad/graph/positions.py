"""Positions that come from data: the words for one that is out of range.

The evaluator and every compiled program report through here, so that they name the same culprit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from symgrad.graph import dims as dm, functions as fn
from symgrad.graph.dims import Dim
from symgrad.graph.functions import P
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Map,
    Node,
    Reindex,
    Scatter,
    describe,
    is_reshape,
)

LENGTHS = "scan: lengths"  # the origin of what reads the lengths of rows
_MASKED, _CHOSEN = fn.select(P[0], P[1], 0), fn.select(P[0], P[1], P[2])
Place = tuple[int, ...]
#: Which row of a user's data stands at a place of a node, and the leaf that the data are for.
RowOf = Callable[[Node, Place], tuple[int, Node] | None]


def no_row(node: Node, place: Place) -> None:
    """None: no node is rows of data."""


def traced(node: Node, place: Place, dims: Mapping[Dim, int]) -> tuple[Node, Place]:
    """What a view shows at a place, and where in it; the node itself where it is no view.

    Casts, reshapes, slices, transposes and masks that leave zeros are views here, of leaves and of
    rows that are taken.
    """
    here, at = node, list(place)
    while here.args:
        (arg, *more) = here.args
        if isinstance(here, Gather):
            break
        if _masks(here) and more[0].shape == here.shape:
            arg, more = more[0], []
        if more or (isinstance(here, Map) and arg.shape != here.shape):
            return node, place
        if is_reshape(here):
            flat = 0
            for i, n in zip(at, dm.values(here.shape, dims), strict=True):
                flat = flat * n + i
            at = []
            for n in reversed(dm.values(arg.shape, dims)):
                flat, i = divmod(flat, n)
                at.insert(0, i)
        elif isinstance(here, Reindex):
            (piece,) = here.pieces
            if piece.view != arg.shape or any(s != 1 for s in piece.stride):
                return node, place
            first = dm.values(piece.start, dims)
            before = dm.values(piece.offset, dims)
            at = [
                a + s * (i - b) for a, s, i, b in zip(first, piece.step, at, before, strict=True)
            ]
            if not all(0 <= i < n for i, n in zip(at, dm.values(arg.shape, dims), strict=True)):
                return node, place
        elif isinstance(here, Einsum):
            known = dict(zip(here.out, at, strict=True))
            at = [known.get(label, 0) for label in here.labels[0]]
            if any(here.extents[label] != 1 for label in here.summed):
                return node, place
        elif not isinstance(here, Map):
            return node, place
        here = arg
    return here, tuple(at)


def _masks(node: Node) -> bool:
    """Whether a node is its second argument, or 0 where the first is false."""
    if not isinstance(node, Map) or node.body not in (_MASKED, _CHOSEN):
        return False
    other = node.args[2] if len(node.args) == 3 else None
    return other is None or (isinstance(other, Constant) and not other.value.any())


def out_of_range(
    node: Gather | Scatter,
    index: int,
    extent: int,
    source: Node,
    place: Place | None,
    dims: Mapping[Dim, int],
    row_of: RowOf = no_row,
) -> str:
    """The message for an index that lies outside of its axis.

    Args:
        node:   what reads or writes there.
        index:  what was found.
        extent: of the axis.
        source: the index expression.
        place:  where in it; None where that is not known.
        dims:   values of the dims.
        row_of: the row of a user's data that a place in a node is, if it is one.
    """
    primal = node if node.backward_of is None else node.backward_of
    what, plural = ("index", "Indices") if node.wrap else ("label", "Labels")
    within = f"extent {extent}"
    if primal.origin == LENGTHS:
        what, plural, within = "length", "Lengths", f"{extent - 1} steps"
    least = -extent if node.wrap else 0
    culprit, at = traced(source, place or (), dims) if place is not None else (source, ())
    found = row_of(culprit, at)
    if found is not None:
        row, culprit = found
        where = f"  at row {row} of  " if len(at) == 1 else f"  at row {row}, {at[1:]}, of  "
    else:
        where = f"  at {at} of  " if at else "  in  "
    limit = f"{plural} must lie in {least}..{extent - 1}." if extent else "The axis is empty."
    return (
        f"{primal.origin or primal.name}: {what} {index} is out of range for {within}\n"
        f"  {describe(node)}\n{where}{describe(culprit)}\n  {limit}"
    )
