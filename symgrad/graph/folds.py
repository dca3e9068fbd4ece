"""Fold: a recurrence as a node, and Proj, one of its results.

    c[0] = init;   c[t+1], y[t] = body(c[t], x[t], consts),   t = 0 .. T-1

The body is a closed `Graph` over binders: first the carry, then one element of each sequence, then the
constants. A Fold knows nothing of buffers, taps or tapes; those belong to the memory plan.

The node is no tensor itself. `Proj(fold, k)` is: first the final carry, then the stacked y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from symgrad.graph.dims import Extent, Shape
from symgrad.graph.dtypes import BOOL, DType
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node

_set = object.__setattr__


@dataclass(frozen=True, slots=True)
class Chain:
    """The structure of a recurrence over a line of `length` steps; `reverse` starts at its end.

    Reversed, the step that reads x[T-1] comes first, and y[t] still belongs to x[t].
    """

    length: Extent
    reverse: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Fold(Node):
    """A recurrence of `body` over `structure`.

    Args:
        args:      the initial carry, then sequences (T, ...), then constants.
        body:      its inputs are binders for the carry, elements of the sequences, and constants; its
            outputs the next carry, then y.
        structure: how far, and in which direction.
        carries, sequences: how many of the arguments are carry and sequences.
    """

    args: tuple[Node, ...]
    body: Graph
    structure: Chain
    carries: int
    sequences: int
    own_fields: ClassVar[tuple[str, ...]] = ("body", "structure", "carries", "sequences")

    def derive(self) -> None:
        """A Fold is no tensor: its shape and dtype say nothing."""
        _set(self, "shape", ())
        _set(self, "dtype", BOOL)

    def intern_key(self) -> tuple[Any, ...]:
        """Folds are equal when they share one body: binders have identity."""
        ids = tuple(map(id, self.args))
        return (Fold, ids, id(self.body), self.structure, self.carries, self.sequences)

    @property
    def results(self) -> tuple[tuple[Shape, DType], ...]:
        """Shape and dtype of each result."""
        found = [(n.shape, n.dtype) for n in self.body.outputs[: self.carries]]
        length = self.structure.length
        stacked = [((length, *n.shape), n.dtype) for n in self.body.outputs[self.carries :]]
        return (*found, *stacked)

    @property
    def init(self) -> tuple[Node, ...]:
        """The initial carry."""
        return self.args[: self.carries]

    @property
    def xs(self) -> tuple[Node, ...]:
        """The sequences."""
        return self.args[self.carries : self.carries + self.sequences]

    @property
    def consts(self) -> tuple[Node, ...]:
        """What every step reads whole."""
        return self.args[self.carries + self.sequences :]

    @property
    def binders(self) -> tuple[tuple[Input, ...], tuple[Input, ...], tuple[Input, ...]]:
        """The body's inputs: carry, elements, constants."""
        a, b = self.carries, self.carries + self.sequences
        inputs = self.body.inputs
        return inputs[:a], inputs[a:b], inputs[b:]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Proj(Node):
    """Result `place` of a Fold."""

    args: tuple[Node, ...]
    place: int
    own_fields: ClassVar[tuple[str, ...]] = ("place",)

    def derive(self) -> None:
        """Shape and dtype of that result."""
        (fold,) = self.args
        assert isinstance(fold, Fold)
        shape, dtype = fold.results[self.place]
        _set(self, "shape", shape)
        _set(self, "dtype", dtype)


def projections(fold: Fold) -> tuple[Proj, ...]:
    """All results of a Fold."""
    return tuple(Proj((fold,), k) for k in range(len(fold.results)))


def binder(name: str, shape: Shape, dtype: DType) -> Input:
    """A binder of a body."""
    return Input(name, shape, dtype, "bound")


def with_outputs(fold: Fold, outputs: Sequence[Node]) -> Fold:
    """The Fold with other outputs of its body, which are equal to the ones it has."""
    if all(a is b for a, b in zip(outputs, fold.body.outputs, strict=True)):
        return fold
    body = Graph(fold.body.inputs, tuple(outputs))
    return Fold(fold.args, body, fold.structure, fold.carries, fold.sequences)


def close(
    carry: Sequence[Input],
    elements: Sequence[Input],
    outputs: Sequence[Node],
) -> tuple[Graph, tuple[Node, ...]]:
    """A body over its binders, and the outer nodes that it reads, which become its constants.

    What depends on no binder of the body and on some leaf is outer: it is computed once, outside.
    """
    from symgrad.graph.traversal import replace, toposort

    own = {*carry, *elements}
    inside: set[Node] = set()
    leafless: set[Node] = set()
    outer: dict[Node, Input] = {}
    order = toposort(outputs)
    for node in order:
        if node in own or any(a in inside for a in node.args):
            inside.add(node)
        elif not isinstance(node, Input) and all(a in leafless for a in node.args):
            leafless.add(node)
    read = [a for n in order if n in inside for a in n.args] + list(outputs)
    for node in read:
        if node not in inside and node not in leafless and node not in outer:
            outer[node] = binder(f"const{len(outer)}", node.shape, node.dtype)
    closed = replace(outputs, outer)
    return Graph((*carry, *elements, *outer.values()), tuple(closed)), tuple(outer)
