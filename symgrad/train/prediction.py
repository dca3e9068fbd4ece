"""Predictions: an expression over all rows of data, some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from codegen.compiled import Compiled
from symgrad.graph.dims import free_dims, value
from symgrad.graph.nodes import Node
from symgrad.train.data import Array, Bound
from symgrad.train.ragged import Extents


def predicted(
    f: Compiled, outputs: Sequence[Node], bound: Bound, fixed: Mapping[str, Array], size: int
) -> list[Any]:
    """What `f` makes of the outputs, each with a row for every row of the data, in their order.

    Args:
        f:       compiled from the outputs, which lead with the batch dim.
        outputs: what is asked for.
        bound:   the data.
        fixed:   values of the other leaves, by name.
        size:    rows that are computed at a time.
    Returns: per output an array, or a list of the rows where their extents differ.
    """
    starts = range(0, bound.n, size)
    if bound.extents is None:
        found = [f(**{**bound.batch(slice(k, k + size)), **fixed}) for k in starts]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]
    order = bound.orders(size, by_size=True).order(0)
    found = [f(**{**bound.batch(order[k : k + size]), **fixed}) for k in starts]
    return [
        _in_order(node, parts, order, bound.extents)
        for node, parts in zip(outputs, zip(*found, strict=True), strict=True)
    ]


def _in_order(node: Node, parts: Sequence[Array], order: Array, extents: Extents) -> Any:
    """The rows of one output, put back into the order of the data, without what was padded."""
    if {d for e in node.shape for d in free_dims(e)}.isdisjoint(extents.dims):
        joined = np.concatenate(parts)
        result = np.empty_like(joined)
        result[order] = joined
        return result
    rows: list[Any] = [None] * len(order)
    for place, row in zip(chain(*parts), order.tolist(), strict=True):
        dims = extents.of([row])
        rows[row] = place[tuple(slice(value(e, dims)) for e in node.shape[1:])].copy()
    return rows
