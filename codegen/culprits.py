"""Where a bad index stands in what a user gave, told from where a program met it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from symgrad.graph import dims as dm
from symgrad.graph.binding import Array
from symgrad.graph.dims import Dim, is_counted
from symgrad.graph.errors import DataError
from symgrad.graph.evaluator import evaluate_graph
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Gather, Node
from symgrad.graph.positions import Place, traced


def culprit_at(
    source: Node, position: int, dims: Mapping[Dim, int], known: Mapping[str, Array]
) -> tuple[Node, Place | None]:
    """An index expression and a place in it; of live pairs, the whole that they were read from.

    Args:
        source:   what a program read its index from.
        position: in its memory; negative where that is not known.
        dims:     the extents.
        known:    values by name of what stands around, as far as they are at hand.
    """
    if position < 0:
        return source, None
    if not is_counted(*source.shape):
        return source, tuple(map(int, np.unravel_index(position, dm.values(source.shape, dims))))
    read, at = traced(source, (position,), dims) if source.ndim == 1 else (source, ())
    if not isinstance(read, Gather) or read.ndim != 1:
        return source, None
    whole = read.args[0]
    members = _evaluated(read, dims, known) if all(a < 0 for a in read.source_axes) else None
    if members is None:
        return whole, None
    return whole, tuple(int(members[~axis][at[0]]) for axis in read.source_axes)


def _evaluated(
    read: Gather, dims: Mapping[Dim, int], known: Mapping[str, Array]
) -> list[Array] | None:
    """The indices of a read; None where what they depend on is not known."""
    graph = Graph.of(read.args[1:])
    if any(leaf.name not in known for leaf in graph.inputs):
        return None
    arrays = {leaf: np.asarray(known[leaf.name]) for leaf in graph.inputs}
    own = dict(dims)
    for leaf, array in arrays.items():
        own |= {e: n for e, n in zip(leaf.shape, array.shape, strict=True) if isinstance(e, Dim)}
    try:
        return evaluate_graph(graph, arrays, own)
    except DataError:
        return None
