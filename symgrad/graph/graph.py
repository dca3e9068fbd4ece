"""Graph: outputs closed over their leaves, with binders numbered, a key, and the guards on dims."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from symgrad.graph import nodes as nd
from symgrad.graph.dims import Dim, Extent, free_dims, same
from symgrad.graph.errors import LeafError
from symgrad.graph.folds import Chain, Fold
from symgrad.graph.nodes import Input, Node
from symgrad.graph.traversal import toposort


def check_names(nodes: Iterable[Node], asked: str = "") -> None:
    """Raises: LeafError when two leaves among the nodes have one name."""
    named: dict[str, Input] = {}
    for leaf in nodes:
        if isinstance(leaf, Input) and (other := named.setdefault(leaf.name, leaf)) is not leaf:
            raise LeafError(
                f"{asked}two leaves have one name\n"
                f"  {nd.describe(other)}\n  {nd.describe(leaf)}\n"
                "  Names are unique in a graph. Rename one, or use the same leaf twice."
            )


@dataclass(frozen=True, slots=True)
class Guard:
    """Two extents that must be equal when values arrive."""

    left: Extent
    right: Extent
    node: Node

    @property
    def where(self) -> str:
        """The user's line that needs it, or what the node does."""
        return str(self.node.where) if self.node.where is not None else self.node.name


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Graph:
    """A closed expression: `inputs` (binders, in order of first use) and `outputs`.

    nodes:  everything the outputs need, arguments first.
    number: the place of each node in `nodes`.
    key:    the same for graphs that differ in names and lines only, in every process.
    guards: extents that nothing but the data can prove equal.
    dims:   the symbolic extents, by name.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Node, ...]
    nodes: tuple[Node, ...] = field(init=False, repr=False)
    number: dict[Node, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nodes = tuple(toposort([*self.inputs, *self.outputs]))
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "number", {node: k for k, node in enumerate(nodes)})

    @classmethod
    def of(cls, outputs: Sequence[Node]) -> Graph:
        """Close the outputs over their leaves.

        Raises: LeafError when two leaves have one name.
        """
        leaves = tuple(n for n in toposort(outputs) if isinstance(n, Input))
        check_names(leaf for leaf in leaves if not leaf.is_supplied)
        return cls(leaves, tuple(outputs))

    def every_node(self) -> Iterator[Node]:
        """The nodes, and those of the bodies of recurrences, whose dims are the same."""
        waiting = [self]
        while waiting:
            for node in waiting.pop().nodes:
                yield node
                if isinstance(node, Fold):
                    waiting.append(node.body)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The symbolic extents that occur, by name."""
        found: set[Dim] = set()
        for node in self.every_node():
            found.update(free_dims(node.shape))
            if isinstance(node, nd.Map):
                found.update(s for s in node.body.free_symbols if isinstance(s, Dim))
            elif isinstance(node, nd.Einsum):
                found.update(free_dims(node.extents))
            elif isinstance(node, Fold):
                found.update(free_dims(node.structure.length))
        return tuple(sorted(found, key=lambda d: d.name))

    @property
    def guards(self) -> tuple[Guard, ...]:
        """Pairs of extents that must be equal, each pair once."""
        found: dict[frozenset[object], Guard] = {}
        for node in self.every_node():
            for left, right in _meetings(node):
                if same(left, right) is None:
                    found.setdefault(frozenset((left, right)), Guard(left, right, node))
        return tuple(found.values())

    @property
    def key(self) -> str:
        """SHA-256 of the structure: alpha-equal graphs have the same key."""
        return self.key_with({d: f"d{k}" for k, d in enumerate(self._dims_by_use())})

    def key_with(self, dims: Mapping[Dim, str]) -> str:
        """The key for given names of dims: the body of a recurrence shares those around it."""
        digest = hashlib.sha256()
        names = {leaf: k for k, leaf in enumerate(self.inputs)}
        for node in self.nodes:
            own = tuple(_canonical(getattr(node, f), dims) for f in node.own_fields)
            if isinstance(node, Input):
                own = (str(names[node]), _canonical(node.shape, dims), node.kind)
            elif isinstance(node, nd.Constant):
                own = (str(node.shape), node.value.tobytes().hex())
            args = tuple(self.number[a] for a in node.args)
            digest.update(repr((type(node).__name__, str(node.dtype), args, own)).encode())
        digest.update(repr(tuple(self.number[o] for o in self.outputs)).encode())
        return digest.hexdigest()

    def _dims_by_use(self) -> Iterator[Dim]:
        seen: dict[Dim, None] = {}
        for node in self.every_node():
            extents: list[Extent] = list(node.shape)
            if isinstance(node, nd.Map):
                extents.append(node.body)
            elif isinstance(node, nd.Einsum):
                extents.extend(node.extents)
            elif isinstance(node, Fold):
                extents.append(node.structure.length)
            for extent in extents:
                if not isinstance(extent, int):
                    dims = [s for s in extent.free_symbols if isinstance(s, Dim)]
                    for d in sorted(dims, key=lambda s: s.name):
                        seen.setdefault(d)
        yield from seen

    def __str__(self) -> str:
        from symgrad.graph.text import text_of

        return text_of(self)


def _meetings(node: Node) -> Iterator[tuple[Extent, Extent]]:
    """Pairs of extents that a node matches with each other."""
    if isinstance(node, nd.Map):
        for arg in node.args:
            for a, b in zip(reversed(arg.shape), reversed(node.shape), strict=False):
                if not (type(a) is int and a == 1):
                    yield b, a
    elif isinstance(node, nd.Einsum):
        for labels, arg in zip(node.labels, node.args, strict=True):
            for label, extent in zip(labels, arg.shape, strict=True):
                yield node.extents[label], extent
    elif isinstance(node, (nd.Gather, nd.Scatter)):
        axes = node.source_axes if isinstance(node, nd.Gather) else node.update_labels
        first: dict[int, Extent] = {}
        for labels, arg in zip((axes, *node.index_labels), node.args, strict=True):
            for label, extent in zip(labels, arg.shape, strict=True):
                if label >= 0:
                    yield first.setdefault(label, extent), extent
    elif isinstance(node, nd.Reindex):
        from symgrad.graph.dims import size

        for piece, arg in zip(node.pieces, node.args, strict=True):
            yield size(piece.view), size(arg.shape)
    elif isinstance(node, Fold):
        yield from node.meetings()


def _canonical(value: Any, dims: Mapping[Dim, str]) -> str:
    """A field as text in which dims have numbers for names."""
    if isinstance(value, (tuple, list)):
        return "(" + ",".join(_canonical(v, dims) for v in value) + ")"
    if isinstance(value, Graph):
        return value.key_with(dims)
    if isinstance(value, Chain):
        return _canonical((value.length, value.reverse, value.checkpoint), dims)
    if isinstance(value, nd.Piece):
        return _canonical(
            (value.view, value.start, value.step, value.count, value.offset, value.stride), dims
        )
    if isinstance(value, sympy.Basic):
        return str(sympy.srepr(value.xreplace({d: sympy.Symbol(n) for d, n in dims.items()})))
    return repr(value)
