"""Fold: a recurrence as a node, and Proj, one of its results.

    c[0] = init;   c[t+1], y[t] = body(c[t], x[t], consts),   t = 0 .. T-1

The body is a closed `Graph` over binders: first the carry, then one element of each sequence, then
the constants. A Fold knows nothing of buffers, taps or tapes; those belong to the memory plan.

The node is no tensor itself. `Proj(fold, k)` is: first the final carry, then the stacked y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from symgrad.graph.dims import Extent, Shape
from symgrad.graph.dtypes import BOOL, DType
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.traversal import replace, toposort

if TYPE_CHECKING:
    from symgrad.graph.graph import Graph

_set = object.__setattr__


@dataclass(frozen=True, slots=True)
class Chain:
    """The structure of a recurrence over a line of `length` steps; `reverse` starts at its end.

    Reversed, the step that reads x[T-1] comes first, and y[t] still belongs to x[t].

    checkpoint: its derivatives keep the carry of each step, and nothing else of it: that is
                computed again. No values are stacked for the sake of speed.
    bounded:    the first constant, an int64 scalar, is a number m <= T: steps t >= m leave every
                carry as it is, and what they emit is zero, or read in such steps only, or read by
                sums to which such steps give nothing. That is so by what the body computes; a
                target may leave these steps out, and has zeros where others read of them.
    """

    length: Extent
    reverse: bool = False
    checkpoint: bool = False
    bounded: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Fold(Node):
    """A recurrence of `body` over `structure`.

    Args:
        args:      the initial carry, then sequences (T, ...), then constants.
        body:      its inputs are binders for the carry, elements of the sequences, and constants;
            its outputs the next carry, then y.
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
    def bound(self) -> Node | None:
        """How many steps do anything, where something tells."""
        return self.consts[0] if self.structure.bounded else None

    @property
    def binders(self) -> tuple[tuple[Input, ...], tuple[Input, ...], tuple[Input, ...]]:
        """The body's inputs: carry, elements, constants."""
        a, b = self.carries, self.carries + self.sequences
        inputs = self.body.inputs
        return inputs[:a], inputs[a:b], inputs[b:]

    def meetings(self) -> Iterator[tuple[Extent, Extent]]:
        """Pairs of extents that must be equal: arguments and binders, carry in and out, lengths."""
        carry, elements, consts = self.binders
        for x, binder in zip(self.xs, elements, strict=True):
            yield self.structure.length, x.shape[0]
            yield from zip(binder.shape, x.shape[1:], strict=True)
        for group, binders in ((self.init, carry), (self.consts, consts)):
            for arg, binder in zip(group, binders, strict=True):
                yield from zip(binder.shape, arg.shape, strict=True)
        for binder, after in zip(carry, self.body.outputs, strict=False):
            yield from zip(binder.shape, after.shape, strict=True)


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

    @property
    def name(self) -> str:
        """Which result it is."""
        fold = self.args[0]
        assert isinstance(fold, Fold)
        last = self.place < fold.carries
        return f"carry {self.place}" if last else f"y {self.place - fold.carries}"


NODES: tuple[type[Node], ...] = (
    Input, Constant, Map, Einsum, Reduce, Reindex, Gather, Scatter, Fold, Proj,
)
"""All classes of nodes; each has an entry in every table of rules."""


def projections(fold: Fold) -> tuple[Proj, ...]:
    """All results of a Fold."""
    return tuple(Proj((fold,), k) for k in range(len(fold.results)))


def binder(name: str, shape: Shape, dtype: DType) -> Input:
    """A binder of a body."""
    return Input(name, shape, dtype, "bound")


def with_outputs(fold: Fold, outputs: Sequence[Node]) -> Fold:
    """The Fold with other outputs of its body, which are equal to the ones it has."""
    from symgrad.graph.graph import Graph

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

    What depends on no binder of the body is outer, literals too: it is computed once, outside, and
    has a cotangent.
    """
    from symgrad.graph.graph import Graph

    inside: set[Node] = {*carry, *elements}
    order = toposort(outputs)
    for node in order:
        if any(a in inside for a in node.args):
            inside.add(node)
    outer: dict[Node, Node] = {}
    names: list[Input] = []
    for node in (*(a for n in order if n in inside for a in n.args), *outputs):
        if node not in inside and node not in outer:
            name = node.name if isinstance(node, Input) else f"const{len(names)}"
            names.append(binder(name, node.shape, node.dtype))
            outer[node] = names[-1]
    return Graph((*carry, *elements, *names), tuple(replace(outputs, outer))), tuple(outer)
