"""Sequences of different lengths, side by side: row b of (T, B, ..) is n[b] long.

    c[t+1], y[t] = step(c[t], x[t])    where t <  n[b]
    c[t+1], y[t] = c[t], 0             where t >= n[b]

What stands behind the end of a row is never read: whatever it is, it is 0 to the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from symgrad.graph import functions as fn
from symgrad.graph.dims import Extent, same, show
from symgrad.graph.dtypes import is_int
from symgrad.graph.errors import DataError, DTypeError, ShapeError
from symgrad.graph.functions import P
from symgrad.graph.leaves import arange, as_node, cast
from symgrad.graph.nodes import Constant, Gather, Map, Node, describe
from symgrad.graph.positions import LENGTHS
from symgrad.graph.provenance import provenance

_KEPT, _ZERO = fn.select(P[0], P[1], P[2]), fn.select(P[0], P[1], 0)


def checked_lengths(lengths: object, sequences: Sequence[Node], carry: Sequence[Node]) -> Node:
    """The lengths, (B,), which are between 0 and T wherever they are read.

    They are checked now where they are numbers, else whenever they are used.

    Raises: ShapeError, DTypeError, DataError.
    """
    n = as_node(lengths)
    if not is_int(n.dtype) or n.ndim != 1:
        kind = DTypeError if n.ndim == 1 else ShapeError
        raise kind(
            f"scan: lengths must be integers, one per row: shape (B,)\n  {describe(n)}\n"
            "  Give xs of shape (T, B, ...), and a carry of shape (B, ...)."
        )
    for what, axis, nodes in (("a sequence", 1, sequences), ("a carry", 0, carry)):
        for node in nodes:
            check_rows(what, axis, node, n)
    extent = sequences[0].shape[0]
    if isinstance(n, Constant) and isinstance(extent, int):
        wrong = np.flatnonzero((n.value < 0) | (n.value > extent))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"scan: lengths: row {row} is {n.value[row]} long, of {extent} steps\n"
                f"  {describe(sequences[0])}\n  Lengths must lie in 0..{extent}."
            )
    with provenance(LENGTHS):
        known = Gather((arange(0, extent + 1), n), (~0,), ((0,),), (0,), wrap=False)
    return known


def check_rows(what: str, axis: int, node: Node, lengths: Node) -> None:
    """Raises: ShapeError when an axis of a node is not the one of the rows."""
    rows = lengths.shape[0]
    if node.ndim <= axis or same(node.shape[axis], rows) is False:
        wanted = "(T, B, ...)" if axis else "(B, ...)"
        raise ShapeError(
            f"scan: with lengths, {what} has rows: shape {wanted} with B = {rows}\n"
            f"  {describe(node)}\n  lengths {show(lengths.shape)}\n"
            f"  Put the rows at axis {axis}, as many as there are lengths."
        )


def living(lengths: Node, steps: Extent) -> Node:
    """Whether row b has a step t, (T, B)."""
    return arange(steps)[:, None] < lengths


def within(live: Node, x: Node) -> Node:
    """`x`, and 0 where a row has ended."""
    return Map((_wide(live, x), x), _ZERO, x.shape, x.dtype)


def kept(live: Node, after: Node, before: Node) -> Node:
    """The carry after a step: what it was where a row has ended."""
    return Map((_wide(live, after), after, before), _KEPT, after.shape, after.dtype)


def _wide(live: Node, like: Node) -> Node:
    """The flag with an axis for each axis of a value."""
    return live[(..., *[None] * (like.ndim - live.ndim))]


def step_numbers(steps: Extent, reverse: bool, lengths: Node | None) -> Node:
    """How many steps come before step t: (T,), or (T, B) where rows begin at ends of their own."""
    t = arange(steps)
    if not reverse:
        return t
    if lengths is None:
        return cast(arange(1 - steps, 1), t.dtype) * -1
    return lengths - 1 - t[:, None]
