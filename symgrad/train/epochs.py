"""Epochs of training as one expression: a recurrence over epochs, and in it one over batches.

    state, sums[e] = epoch(state, order[e]),        e = 0 .. E-1
    epoch:  state, sum = step(state, sum, rows),    rows = order[e, s, :],  s = 0 .. S-1
            state, sum = step(state, sum, rows),    rows = rest[e, p, :],   p = 0 .. P-1
    step:   x = X[rows];  state' = updates(state, x);  sum' = sum + |rows| output(state, x)
            or, with weights of the rows,              sum' = sum + sum(weight(x)) output(state, x)

The state is what the updates change: parameters, the optimiser's state, the step count, and what a
user carries from batch to batch, which begins anew where an epoch is `fresh`. The last,
partial batch of an epoch is a recurrence over P = 0 or 1 batches with a number of rows of its own.
The order of the rows is an input, so that one program trains any part of a run: k whole epochs, or
some batches of one. Nothing here knows how a recurrence is compiled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from symgrad.graph import functions as fn
from symgrad.graph.binding import Binding
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import BOOL, FLOAT64, INT32
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.functions import P
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Gather, Input, Node, map_node
from symgrad.graph.provenance import provenance
from symgrad.graph.renaming import with_dims

#: The rows of a batch, in the body of the recurrence over batches.
ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Epochs:
    """Epochs as expressions.

    Fields:
        sums:  per output, (E,): each value times the rows of its batch, summed over the epoch.
        state: leaf -> what it is after the last step.
        order: leaf (E, S, B): the rows of the whole batches.
        rest:  leaf (E, P, R): the rows of the last, partial batches.
        begun: leaves (E,): where the sums begin.
        fresh: leaf (E,): whether an epoch begins with its first batch; None where nothing is reset.
        first: leaf of the state -> leaf: what it is where an epoch is fresh.
        rows:  the dim N of the row inputs, which are (N, ..) here: all rows of the data.
        step:  what one step asks of the values of a batch.
    """

    sums: tuple[Node, ...]
    state: dict[Input, Node]
    order: Input
    rest: Input
    begun: tuple[Input, ...]
    fresh: Input | None
    first: dict[Input, Input]
    rows: Dim
    step: Binding

    @property
    def outputs(self) -> list[Node]:
        """What the program returns: the state, then the sums."""
        return [*self.state.values(), *self.sums]


def make_epochs(
    outputs: Mapping[str, Node], batch: Dim, updates: Mapping[Input, Node],
    reset: Collection[Input] = (), weight: Node | None = None,
) -> Epochs:
    """Write down epochs of a step.

    Args:
        outputs: float scalars of a batch, by name.
        batch:   the dim of the rows: the inputs that lead with it are data.
        updates: leaf -> what it becomes in a step.
        reset:   those of the leaves that have their first values at the start of an epoch.
        weight:  what a batch counts in the sums, a float64 scalar; default: its rows.
    """
    with provenance("epoch"):
        return _Writer(outputs, batch, updates, reset, weight).run()


class _Writer:
    def __init__(
        self, outputs: Mapping[str, Node], batch: Dim, updates: Mapping[Input, Node],
        reset: Collection[Input], weight: Node | None,
    ) -> None:
        self.weights = () if weight is None else (weight,)
        self.reset = [leaf for leaf in updates if leaf in set(reset)]
        self.outputs, self.updates, self.batch = outputs, updates, batch
        every = [*outputs.values(), *updates, *updates.values(), *self.weights]
        self.graph = graph = Graph.of(every)
        taken = {d.name for d in graph.dims}
        self.epochs, self.batches, self.rests, self.rest_rows, self.rows = (
            Dim(_free(name, taken))
            for name in ("epochs", "batches", "rests", f"{batch.name}_rest", "rows")
        )
        self.data = {
            leaf: Input(leaf.name, (self.rows, *leaf.shape[1:]), leaf.dtype)
            for leaf in graph.inputs
            if leaf.kind == "input" and leaf.shape and leaf.shape[0] == batch
            if leaf not in updates
        }
        self.consts: dict[Input, Input] = {
            leaf: self.data.get(leaf, leaf) for leaf in graph.inputs if leaf not in updates
        }

    def run(self) -> Epochs:
        taken = {leaf.name for leaf in self.graph.inputs}
        order, rest = (
            Input(_free(name, taken), (self.epochs, batches, rows), INT32)
            for name, batches, rows in (
                ("order", self.batches, self.batch), ("rest", self.rests, self.rest_rows)
            )
        )
        begun = tuple(
            Input(_free(f"sum of {name}", taken), (self.epochs,), FLOAT64)
            for name in self.outputs
        )
        fresh = Input(_free("fresh", taken), (self.epochs,), BOOL) if self.reset else None
        first = {
            leaf: Input(_free(f"first {leaf.name}", taken), leaf.shape, leaf.dtype)
            for leaf in self.reset
        }
        xs = (order, rest, *begun, *([fresh] if fresh is not None else ()))
        carry = [_binder(leaf) for leaf in self.updates]
        elements = [binder(x.name, x.shape[1:], x.dtype) for x in xs]
        consts = {leaf: _binder(arg) for leaf, arg in self.consts.items()}
        firsts = {leaf: _binder(arg) for leaf, arg in first.items()}
        rows, rows_of_rest, *sums = elements[: 2 + len(begun)]
        begin = [
            _chosen(elements[-1], firsts[leaf], own) if leaf in firsts else own
            for leaf, own in zip(self.updates, carry, strict=True)
        ]
        state, totals = self.steps(begin, sums, rows, consts)
        state, totals = self.steps(state, totals, rows_of_rest, consts)
        leaves = (*carry, *elements, *consts.values(), *firsts.values())
        body = Graph(leaves, (*state, *totals))
        args = (*self.updates, *xs, *self.consts.values(), *first.values())
        n = len(carry)
        results: tuple[Node, ...] = projections(Fold(args, body, Chain(self.epochs), n, len(xs)))
        after = dict(zip(self.updates, results, strict=False))
        binding = Binding(self.graph)
        return Epochs(results[n:], after, order, rest, begun, fresh, first, self.rows, binding)

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
        carry = [_binder(leaf) for leaf in self.updates]
        carry += [binder(f"sum of {name}", (), FLOAT64) for name in self.outputs]
        element = binder(ROWS, (rows,), order.dtype)
        inner = {leaf: _binder(const) for leaf, const in consts.items()}
        given: dict[Input, Node] = dict(zip(self.updates, carry, strict=False))
        given |= {
            leaf: _taken(own, element) if leaf in self.data else own for leaf, own in inner.items()
        }
        n = len(self.updates)
        wanted = [*self.updates.values(), *self.outputs.values(), *self.weights]
        made = with_dims(wanted, {self.batch: rows}, given)
        weighs = made[len(carry) :]
        weighed = P[0] + fn.CAST[FLOAT64](P[1]) * (P[2] if weighs else rows)
        totals = [
            map_node(weighed, (total, value, *weighs), FLOAT64)
            for total, value in zip(carry[n:], made[n : len(carry)], strict=True)
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


def _chosen(flag: Input, a: Input, b: Input) -> Node:
    """`a` where the flag holds, else `b`."""
    return map_node(fn.select(P[0], P[1], P[2]), (flag, a, b), a.dtype)


def _taken(source: Input, rows: Node) -> Node:
    """`source[rows]`."""
    labels = tuple(range(source.ndim))
    return Gather((source, rows), (~0, *labels[1:]), ((0,),), labels, wrap=False)
