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

from symgrad.graph.dims import Counted, Extent, Shape, same
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
class Rows:
    """How many rows a recurrence has in a step, and how many in all its steps.

    The first two sequences are int64 scalars: where a step's rows begin among those of all steps,
    and how many they are. What has `now` as its leading extent in the body is

        of a sequence, or emitted   x[start : start + now]   of (all, ...)
        of a carry, or a constant   c[0 : now]               of (now.most, ...)

    and the carry's other rows stay as they are.
    """

    now: Counted
    all: Counted


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
    rows:       a step works on some of the rows only.
    """

    length: Extent
    reverse: bool = False
    checkpoint: bool = False
    bounded: bool = False
    rows: Rows | None = None


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
        n, outputs = self.carries, self.body.outputs
        found = [(self.whole(after), after.dtype) for after in outputs[:n]]
        return (*found, *((self.stacked(y), y.dtype) for y in outputs[n:]))

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

    def stacked(self, node: Node) -> Shape:
        """The shape of the sequence that a value of the body is an element of."""
        rows = self.structure.rows
        if rows is not None and in_rows(rows, node):
            return (rows.all, *node.shape[1:])
        return (self.structure.length, *node.shape)

    def whole(self, node: Node) -> Shape:
        """The shape of the carry or constant that a step sees as a value of the body."""
        rows = self.structure.rows
        if rows is not None and in_rows(rows, node):
            return (rows.now.most, *node.shape[1:])
        return node.shape

    def meetings(self) -> Iterator[tuple[Extent, Extent]]:
        """Pairs of extents that must be equal: arguments and binders, carry in and out, lengths."""
        carry, elements, consts = self.binders
        for x, binder in zip(self.xs, elements, strict=True):
            yield from zip(self.stacked(binder), x.shape, strict=True)
        for group, binders in ((self.init, carry), (self.consts, consts)):
            for arg, binder in zip(group, binders, strict=True):
                yield from zip(self.whole(binder), arg.shape, strict=True)
        for binder, after in zip(carry, self.body.outputs, strict=False):
            yield from zip(binder.shape, after.shape, strict=True)


def in_rows(rows: Rows, node: Node) -> bool:
    """Whether a value of a body has the rows of its step."""
    return node.ndim > 0 and node.shape[0] == rows.now


def counted_by(node: Reindex) -> Counted | None:
    """The dim that a node tells: the last element of its argument, of which it is the rest."""
    if len(node.args) != 1 or node.ndim != 1 or not isinstance(node.shape[0], Counted):
        return None
    (arg,), (piece,) = node.args, node.pieces
    told = node.shape[0]
    whole = arg.ndim == 1 and same(arg.shape[0], told.most + 1) is True
    moves = piece.count == node.shape and piece.start == piece.offset == (0,)
    return told if whole and moves and piece.step == piece.stride == (1,) else None


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
