"""Truncated backpropagation through time: carries that are cut at the borders of chunks.

    c <- c                   in value
    c <- stop_gradient(c)    in derivatives, before the steps k, 2k, 3k, .. of a row

The cut is chosen step by step, by a flag that is a sequence like any other, so that the recurrence
stays one Fold whatever k is: symbolic lengths and lengths that are no multiple of k need no care.
Williams and Peng 1990; Williams and Zipser 1995.
"""

from __future__ import annotations

from collections.abc import Sequence

from symgrad.graph import functions as fn
from symgrad.graph.dtypes import is_float
from symgrad.graph.errors import SymgradError
from symgrad.graph.functions import P
from symgrad.graph.nodes import Map, Node
from symgrad.graph.provenance import provenance

#: In value p1, whatever p0 is; no derivative where p0 holds.
CUT = fn.select(P[0], fn.stop_gradient(P[1]), P[1])


def check_truncate(value: object) -> int | None:
    """The number of steps in a chunk.

    Raises: SymgradError when it is no whole number >= 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value.__index__()) < 1:
        raise SymgradError(
            f"scan: truncate={value!r:.40}: needs a whole number of steps >= 1, in which gradients "
            "pass; None: through all steps."
        )
    return int(value.__index__())


def borders(step: Node, every: int) -> Node:
    """Whether a chunk other than the first begins, given the number of steps done."""
    return (step % every == 0) & (step > 0)


def cut(flag: Node, carry: Sequence[Node]) -> list[Node]:
    """The carry, without a derivative where the flag holds.

    Args:
        flag: (), or (B,) for carries (B, ..).
    """
    with provenance("truncate"):
        return [
            Map((_wide(flag, c), c), CUT, c.shape, c.dtype) if is_float(c.dtype) else c
            for c in carry
        ]


def _wide(flag: Node, like: Node) -> Node:
    """The flag with an axis for each axis of a carry."""
    return flag[(..., *[None] * (like.ndim - flag.ndim))] if flag.ndim else flag
