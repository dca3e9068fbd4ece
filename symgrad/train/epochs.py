"""Epochs of training as one expression: a recurrence over epochs, and in it one over batches.

    state, sums[e] = epoch(state, order[e]),        e = 0 .. E-1
    epoch:  state, sum = step(state, sum, rows),    rows = order[e, s, :],  s = 0 .. S-1
            state, sum = step(state, sum, rows),    rows = rest[e, p, :],   p = 0 .. P-1
    step:   x = X[rows];  state' = updates(state, x);  sum' = sum + |rows| output(state, x)

The state is what the updates change: parameters, the optimiser's state, the step count. The last,
partial batch of an epoch is a recurrence over P = 0 or 1 batches with a number of rows of its own.
The order of the rows is an input, so that one program trains any part of a run: k whole epochs, or
some batches of one. Nothing here knows how a recurrence is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

from symgrad.graph import functions as fn
from symgrad.graph.arithmetic import where
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import FLOAT64, INT32
from symgrad.graph.elementwise import isfinite
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.functions import P
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Gather, Input, Node, map_node
from symgrad.graph.provenance import provenance
from symgrad.graph.reductions import all as all_true
from symgrad.graph.renaming import with_dims


@dataclass(frozen=True, slots=True)
class Epochs:
    """Epochs as expressions.

    Fields:
        sums:    per output, (E,): each value times the rows of its batch, summed over the epoch.
        finite:  whether all guarded values were finite; None where none is guarded.
        updates: leaf -> what it becomes; as it was, where a guarded value was not finite.
        order:   leaf (E, S, B): the rows of the whole batches.
        rest:    leaf (E, P, R): the rows of the last, partial batches.
        begun:   leaves (E,): where the sums begin.
        data:    per row input the leaf (N, ..) of all its rows.
        rows:    the dim N.
        step:    what one step computes, of a batch.
    """

    sums: tuple[Node, ...]
    finite: Node | None
    updates: dict[Input, Node]
    order: Input
    rest: Input
    begun: tuple[Input, ...]
    data: dict[Input, Input]
    rows: Dim
    step: Graph

    @property
    def outputs(self) -> list[Node]:
        """What the program returns: the sums, then whether all was finite."""
        return [*self.sums, *([] if self.finite is None else [self.finite])]


def make_epochs(
    outputs: Sequence[tuple[str, Node]],
    batch: Dim,
    updates: Mapping[Input, Node] | None = None,
    guarded: Sequence[int] = (),
) -> Epochs:
    """Write down epochs of a step.

    Args:
        outputs: float scalars of a batch, each with a name.
        batch:   the dim of the rows: the inputs that lead with it are data.
        updates: leaf -> what it becomes in a step.
        guarded: which outputs must be finite.
    """
    with provenance("epoch"):
        return _Writer(outputs, batch, dict(updates or {}), guarded).run()


class _Writer:
    def __init__(
        self,
        outputs: Sequence[tuple[str, Node]],
        batch: Dim,
        updates: dict[Input, Node],
        guarded: Sequence[int],
    ) -> None:
        self.names = [f"sum of {name}" for name, _ in outputs]
        self.outputs = [node for _, node in outputs]
        self.updates, self.batch, self.guarded = updates, batch, guarded
        self.step = graph = Graph.of([*self.outputs, *updates, *updates.values()])
        taken = {d.name for d in graph.dims}
        self.epochs, self.batches, self.rests, self.rest_rows, self.rows = (
            Dim(_free(name, taken))
            for name in ("epochs", "batches", "rests", f"{batch.name}_rest", "rows")
        )
        self.data = {
            leaf: Input(leaf.name, (self.rows, *leaf.shape[1:]), leaf.dtype)
            for leaf in graph.inputs
            if leaf.kind == "input" and leaf.shape and leaf.shape[0] == batch
        }
        self.consts: dict[Input, Input] = {
            leaf: self.data.get(leaf, leaf) for leaf in graph.inputs if leaf not in updates
        }

    def run(self) -> Epochs:
        taken = {leaf.name for leaf in self.step.inputs}
        order, rest = (
            Input(_free(name, taken), (self.epochs, batches, rows), INT32)
            for name, batches, rows in (
                ("order", self.batches, self.batch), ("rest", self.rests, self.rest_rows)
            )
        )
        begun = tuple(
            Input(_free(name, taken), (self.epochs,), FLOAT64) for name in self.names
        )
        xs = (order, rest, *begun)
        carry = [_binder(leaf) for leaf in self.updates]
        elements = [binder(x.name, x.shape[1:], x.dtype) for x in xs]
        consts = {leaf: _binder(arg) for leaf, arg in self.consts.items()}
        rows, rows_of_rest, *sums = elements
        state, totals = self.steps(carry, sums, rows, consts)
        state, totals = self.steps(state, totals, rows_of_rest, consts)
        body = Graph((*carry, *elements, *consts.values()), (*state, *totals))
        args = (*self.updates, *xs, *self.consts.values())
        n = len(carry)
        results: tuple[Node, ...] = projections(Fold(args, body, Chain(self.epochs), n, len(xs)))
        end, totals = results[:n], results[n:]
        updates = dict(zip(self.updates, end, strict=True))
        finite: Node | None = None
        if self.guarded:  # a sum is finite where all its terms are
            finite = all_true(reduce(and_, [isfinite(totals[k]) for k in self.guarded]))
            updates = {leaf: where(finite, node, leaf) for leaf, node in updates.items()}
        return Epochs(
            totals, finite, updates, order, rest, begun, self.data, self.rows, self.step
        )

    def steps(
        self,
        state: Sequence[Node],
        sums: Sequence[Node],
        order: Input,
        consts: Mapping[Input, Input],
    ) -> tuple[Sequence[Node], Sequence[Node]]:
        """State and sums after a step for each batch of `order`, (batches, rows)."""
        batches, rows = order.shape
        assert isinstance(rows, Dim)
        carry = [*map(_binder, self.updates), *(binder(k, (), FLOAT64) for k in self.names)]
        element = binder("rows", (rows,), order.dtype)
        inner = {leaf: _binder(const) for leaf, const in consts.items()}
        given: dict[Input, Node] = dict(zip(self.updates, carry, strict=False))
        given |= {
            leaf: _taken(own, element) if leaf in self.data else own for leaf, own in inner.items()
        }
        n = len(self.updates)
        wanted = [*self.updates.values(), *self.outputs]
        made = with_dims(wanted, {self.batch: rows}, given)
        weighed = P[0] + fn.CAST[FLOAT64](P[1]) * rows
        totals = [
            map_node(weighed, pair, FLOAT64) for pair in zip(carry[n:], made[n:], strict=True)
        ]
        body = Graph((*carry, element, *inner.values()), (*made[:n], *totals))
        args = (*state, *sums, order, *consts.values())
        results = projections(Fold(args, body, Chain(batches), len(carry), 1))
        return results[:n], results[n:]


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken, from now on taken."""
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def _binder(node: Node) -> Input:
    return binder(node.name, node.shape, node.dtype)


def _taken(source: Input, rows: Node) -> Node:
    """`source[rows]`."""
    labels = tuple(range(source.ndim))
    return Gather((source, rows), (~0, *labels[1:]), ((0,),), labels, wrap=False)
