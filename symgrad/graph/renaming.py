"""Expressions over other dims: the same formula for arrays of another symbolic extent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy

from symgrad.graph.dims import DerivedDim, Dim
from symgrad.graph.folds import Chain, binder
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input, Node, Piece
from symgrad.graph.traversal import rebuild


def with_dims(
    outputs: Sequence[Node], dims: Mapping[Dim, Dim], leaves: Mapping[Input, Node]
) -> list[Node]:
    """The outputs with other dims, wherever they stand: shapes, bodies, lengths of recurrences.

    Args:
        dims:   what stands for a dim.
        leaves: what stands for a leaf; every leaf whose shape has one of the dims is among them.

    >>> from symgrad.graph.leaves import input
    >>> B, R = Dim("B"), Dim("R")
    >>> x, y = input("x", (B, 3)), input("y", (R, 3))
    >>> (z,) = with_dims([(x * 2).reshape((B * 3,))], {B: R}, {x: y})
    >>> z.shape
    (3*R,)
    """

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if isinstance(node, Input):
            return leaves.get(node, node)
        if isinstance(node, Constant):
            return node
        fields = {name: _renamed(getattr(node, name), dims) for name in node.own_fields}
        cls: Any = type(node)
        made: Node = cls(args, **fields)
        return made

    return rebuild(outputs, rule)


def _renamed(value: Any, dims: Mapping[Dim, Dim]) -> Any:
    """A field of a node over the other dims."""
    if isinstance(value, tuple):
        return tuple(_renamed(v, dims) for v in value)
    if isinstance(value, sympy.Basic):
        parts = {
            d: type(d)(*(_renamed(a, dims) for a in d.arguments))
            for d in value.free_symbols if isinstance(d, DerivedDim)
        }
        return value.xreplace({**dims, **parts})
    if isinstance(value, Piece):
        return Piece(*(_renamed(getattr(value, name), dims) for name in Piece.__slots__))
    if isinstance(value, Chain):
        return replace(value, length=_renamed(value.length, dims))
    if isinstance(value, Graph):
        inner: dict[Input, Node] = {}
        binders = []
        for leaf in value.inputs:
            binders.append(binder(leaf.name, _renamed(leaf.shape, dims), leaf.dtype))
            inner[leaf] = binders[-1]
        return Graph(tuple(binders), tuple(with_dims(value.outputs, dims, inner)))
    return value
