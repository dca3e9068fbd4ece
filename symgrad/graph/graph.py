"""Graph: outputs closed over their leaves, with binders numbered, a key, and the guards on dims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from symgrad.graph import nodes as nd
from symgrad.graph.dims import Dim, Extent, dims_in, is_counted, same
from symgrad.graph.errors import LeafError
from symgrad.graph.folds import Fold
from symgrad.graph.keys import key_of
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
        """The symbolic extents that occur, by name; not those that programs count."""
        found = {d for d in self.dims_by_use() if not is_counted(d)}
        return tuple(sorted(found, key=lambda d: d.name))

    @property
    def guards(self) -> tuple[Guard, ...]:
        """Pairs of extents that must be equal, each pair once."""
        found: dict[frozenset[object], Guard] = {}
        for node in self.every_node():
            for left, right in meetings(node):
                if same(left, right) is None and not is_counted(left, right):
                    found.setdefault(frozenset((left, right)), Guard(left, right, node))
        return tuple(found.values())

    @property
    def key(self) -> str:
        """SHA-256 of the structure: alpha-equal graphs have the same key."""
        return key_of(self, {d: f"d{k}" for k, d in enumerate(self.dims_by_use())})

    def dims_by_use(self) -> Iterator[Dim]:
        """All dims, those that programs count too."""
        seen: dict[Dim, None] = {}
        for node in self.every_node():
            for extent in _extents(node):
                if type(extent) is not int:
                    seen.update(dict.fromkeys(dims_in(extent)))
        yield from seen

    def __str__(self) -> str:
        from symgrad.graph.text import text_of

        return text_of(self)


def _extents(node: Node) -> Iterator[Extent]:
    """The expressions of a node in which dims stand."""
    yield from node.shape
    if isinstance(node, nd.Map):
        yield node.body
    elif isinstance(node, nd.Einsum):
        yield from node.extents
    elif isinstance(node, Fold):
        yield node.structure.length
        if node.structure.rows is not None:
            yield from (node.structure.rows.now, node.structure.rows.all)


def meetings(node: Node) -> Iterator[tuple[Extent, Extent]]:
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
        if isinstance(node, nd.Scatter):
            for label, extent in zip(node.target_axes, node.shape, strict=True):
                if label >= 0:
                    yield first[label], extent
    elif isinstance(node, nd.Reindex):
        from symgrad.graph.dims import size

        for piece, arg in zip(node.pieces, node.args, strict=True):
            yield size(piece.view), size(arg.shape)
    elif isinstance(node, Fold):
        yield from node.meetings()
