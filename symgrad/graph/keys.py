"""What identifies a graph: a hash of its structure, the same in every process.

Two graphs have one key when they differ in the names of leaves and dims, and in the user's lines,
at most. `exact_key` tells those with other names apart too, and those whose nodes were made in
another way, which simplification looks at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy

from symgrad.graph.dims import Counted, DerivedDim, Dim, Extent, dims_in
from symgrad.graph.nodes import Constant, Input, Node

if TYPE_CHECKING:
    from symgrad.graph.graph import Graph


def key_of(graph: Graph, dims: Mapping[Dim, str]) -> str:
    """The key of a graph whose dims have these names: those of a body are those around it."""
    return _Writer(dims).key(graph)


def exact_key(graph: Graph) -> str:
    """A key that no other graph has: names of leaves and dims, and how nodes were made, count.

    The user's lines and initial values do not.
    """
    names = {d: _definition(d) for d in graph.dims_by_use()}
    digest = hashlib.sha256(key_of(graph, names).encode())
    for node in graph.every_node():
        named = node.name if isinstance(node, Input) else None
        primal = node.backward_of
        made = None if primal is None else (primal.origin or primal.name)
        digest.update(repr((named, node.origin, made)).encode())
    return digest.hexdigest()


def _definition(extent: Extent | None) -> str:
    """A dim by its name, or by what tells it; dims in other extents by theirs."""
    if isinstance(extent, DerivedDim):
        return f"{type(extent).__name__}({', '.join(map(_definition, extent.arguments))})"
    if isinstance(extent, Counted):
        return f"{extent.label!r} <= {_definition(extent.most)}"
    if isinstance(extent, Dim):
        return repr(extent.name)
    if isinstance(extent, sympy.Expr):
        own = {d: sympy.Symbol(_definition(d)) for d in dims_in(extent)}
        return f"({_expression(extent.xreplace(own))})"
    return repr(extent)


class _Writer:
    """Structures as text in which dims have the names of `dims`; every expression once."""

    def __init__(self, dims: Mapping[Dim, str]) -> None:
        self.symbols = {d: sympy.Symbol(name) for d, name in dims.items()}
        self.texts: dict[sympy.Basic, str] = {}

    def key(self, graph: Graph) -> str:
        digest = hashlib.sha256()
        place: dict[Node, int] = {leaf: k for k, leaf in enumerate(graph.inputs)}
        number = graph.number
        for node in graph.nodes:
            args = [number[a] for a in node.args]
            own = self.leaf(node, place) or [self.text(getattr(node, f)) for f in node.own_fields]
            digest.update(f"{type(node).__name__} {node.dtype.str} {args} {own};".encode())
        digest.update(repr([number[o] for o in graph.outputs]).encode())
        return digest.hexdigest()

    def leaf(self, node: Node, place: Mapping[Node, int]) -> list[str] | None:
        """The fields of a leaf; None for other nodes."""
        if isinstance(node, Input):
            return [str(place[node]), self.text(node.shape), node.kind]
        if isinstance(node, Constant):
            return [str(node.shape), hashlib.sha256(node.value.tobytes()).hexdigest()]
        return None

    def text(self, value: Any) -> str:
        """A field as text."""
        if type(value) in (int, str, bool):
            return repr(value)
        if isinstance(value, np.dtype):
            return value.str
        if isinstance(value, (tuple, list)):
            return "(" + ",".join(map(self.text, value)) + ")"
        if isinstance(value, sympy.Basic):
            if value not in self.texts:
                own = {d: self.symbols[d] for d in dims_in(value)}
                self.texts[value] = _expression(value.xreplace(own) if own else value)
            return self.texts[value]
        if hasattr(value, "every_node"):
            return self.key(value)
        if is_dataclass(value):
            inner = [self.text(getattr(value, f.name)) for f in fields(value)]
            return f"{type(value).__name__}{inner}"
        return repr(value)


def _expression(e: sympy.Basic) -> str:
    if not e.args:
        return str(sympy.srepr(e))
    return f"{type(e).__name__}({','.join(map(_expression, e.args))})"
