"""Dims that no leaf of a graph tells: by their names, or by the leaves of what was differentiated.

The gradient of `x.sum()` is ones in the shape of `x`, and `x` is not in it. Its caller still knows
the extent, as that of the data for `x` or as a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from symgrad.graph.binding import Binding
from symgrad.graph.dims import Dim, free_dims, listed, quoted
from symgrad.graph.errors import DataError, DataShapeError, LeafError
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, describe
from symgrad.graph.traversal import toposort


def dims_by_name(graph: Graph, values: Mapping[str, Any]) -> dict[Dim, int]:
    """As `infer_dims`, and every name must mean something.

    Raises: LeafError for a name that is neither a leaf, nor a dim, nor a leaf of what was
        differentiated; DataError for a dim that is no extent.

    >>> from symgrad.graph.dims import dim
    >>> from symgrad.graph.leaves import ones
    >>> dims_by_name(Graph.of([ones((dim("B"), 3))]), {"B": 5})
    {B: 5}
    """
    own = {leaf.name: leaf for leaf in graph.inputs if not leaf.is_supplied}
    dims = {d.name: d for d in graph.dims}
    unknown = [name for name in values if name not in own and name not in dims]
    if unknown:
        behind = {leaf.name for leaf in leaves_behind(graph)}
        unknown = [name for name in unknown if name not in behind]
    if unknown:
        leaves = sorted(name for name, x in own.items() if x.kind in ("input", "parameter"))
        known = listed(map(quoted, leaves)) or "none"
        other = [quoted(name) for name in dims if name not in own]
        raise LeafError(
            f"no leaf is named {listed(map(quoted, unknown))}. Leaves: {known}."
            + (f" Dims: {listed(other)}." if other else "")
        )
    for name in dims:
        if name in values and name not in own and not is_extent(values[name]):
            raise DataError(
                f"dim {quoted(name)}: a value is an integer of at least 0, "
                f"got {values[name]!r:.40}."
            )
    return infer_dims(graph, values)


def infer_dims(graph: Graph, values: Mapping[Any, Any]) -> dict[Dim, int]:
    """Dims that values tell which are none of the graph's leaves: of a dim, or of a leaf behind it.

    A derivative may have a dim in its shape and none of the leaves that had it. What
    differentiation made knows which node it is the backward of, and so the leaves of that.

    Args:
        graph:  what is computed.
        values: by name; those of the graph's own leaves are ignored.
    """
    own = {leaf.name for leaf in graph.inputs}
    dims: dict[Dim, int] = {}
    for d in graph.dims:
        value = values.get(d.name)
        if d.name not in own and is_extent(value):
            dims[d] = int(value)
    known = set(free_dims(e for leaf in graph.inputs for e in leaf.shape)) | set(dims)
    if known.issuperset(graph.dims):
        return dims
    for leaf in leaves_behind(graph):
        needed = not known.issuperset(free_dims(leaf.shape))
        if needed and leaf.name in values and leaf.name not in own:
            _, found = Binding(Graph.of([leaf]))({leaf.name: values[leaf.name]})
            for d, n in found.items():
                if d not in known and dims.setdefault(d, n) != n:
                    raise DataShapeError(
                        f"the dim {quoted(d.name)} is {dims[d]} and {n}\n  {describe(leaf)}"
                    )
    return dims


def is_extent(value: object) -> TypeGuard[int | np.integer[Any]]:
    """Whether a value is an integer of at least 0."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 0


def leaves_behind(graph: Graph) -> tuple[Input, ...]:
    """The leaves of what the graph's nodes are the backward of, where names are unique."""
    forward = [n.backward_of for n in graph.nodes if n.backward_of is not None]
    found: dict[str, Input | None] = {}
    for node in toposort(forward):
        if isinstance(node, Input) and found.setdefault(node.name, node) is not node:
            found[node.name] = None
    return tuple(leaf for leaf in found.values() if leaf is not None)
