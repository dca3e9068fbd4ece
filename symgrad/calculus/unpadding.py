"""Recurrences over rows of different lengths, and what is around them, without padding.

`scan(.., lengths=n)` means masks: of (T, B, ..) the pairs t >= n[b] are padding, to which a step
does nothing, and whose results are zero, see `ragged`. With the rows sorted by length a step works
on the first live[t] rows alone, and around the recurrence one axis of the N live pairs stands for
(T, B), see `live_rows`:

    z = x W       (T, B, k) (k, m)      ->    z = x[t(p), b(p)] W          (N, k) (k, m)
    dW = sum_t,b x[t, b] dz[t, b]       ->    dW = sum_p x[p] dz[p]        where dz is 0 at padding

requires: a step treats all rows alike, leaves the carries of rows that have ended as they are, and
          what it emits is read at live pairs only, or is 0 at all others.
keeps:    values up to the order of sums over rows and steps.

What reads padding, or mixes rows, gets (T, B, ..) with zeros, as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
import sympy

from symgrad.calculus.live_rows import LiveRows
from symgrad.calculus.live_steps import LiveStep, vanishes
from symgrad.calculus.loop_parts import Moved, Notes
from symgrad.calculus.merged_axes import Merge, dead_value
from symgrad.calculus.row_axes import Axes, Axis
from symgrad.calculus.settling import FALSE, ZERO
from symgrad.graph import functions as fn
from symgrad.graph.dims import Counted, Extent, free_dims
from symgrad.graph.folds import Chain, Fold, Proj, counted_by, projections, with_outputs
from symgrad.graph.functions import AXIS, P
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Map,
    Node,
    Reindex,
    Scatter,
    einsum_node,
)
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.traversal import rebuild, reconnect, toposort

_LESS = fn.less(P[0], P[1])


@rewrites
def unpad(
    outputs: Sequence[Node], notes: Notes | None = None, numbers: Iterator[int] | None = None
) -> list[Node]:
    """rewrite: recurrences with lengths, and what is around them -> live rows alone.

    Args:
        notes:   told what was done.
        numbers: of the sets of rows, each other.

    >>> import symgrad as sg
    >>> x, n = sg.input("x", (7, 3, 5)), sg.input("n", (3,), "int32")
    >>> step = lambda h, x: (sg.tanh(h + x),) * 2
    >>> _, ys = sg.scan(step, sg.zeros((3, 5)), x, lengths=n)
    >>> notes = []
    >>> _ = unpad([sg.sum(ys)], notes)
    >>> [note.how for note in notes]
    ['without padding']
    """
    kept: Notes = [] if notes is None else notes
    order = count() if numbers is None else numbers
    outputs = _inside(outputs, kept, order)
    tried: dict[int, Graph] = {}  # bodies by their own numbers: a rewrite around them keeps them
    while groups := [g for g in _groups(toposort(outputs)) if not tried.keys() & g.bodies]:
        tried |= groups[0].bodies
        outputs = _without_padding(outputs, groups[0], kept, next(order))
    return _emitted_once(outputs) if tried else list(outputs)


def _emitted_once(outputs: Sequence[Node]) -> list[Node]:
    """rewrite: what a recurrence emits twice, once behind a mask -> one result, where none is left.

    Results that nothing reads any more are dropped.
    """
    read = {(n.args[0], n.place) for n in toposort(outputs) if isinstance(n, Proj)}
    places: dict[Node, dict[int, int]] = {}

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if isinstance(node, Proj):
            return Proj(args, places[node.args[0]].get(node.place, node.place))
        if not isinstance(node, Fold):
            return reconnect(node, args)
        n, emitted = node.carries, node.body.outputs
        ys = list(dict.fromkeys(emitted[k] for k in range(n, len(emitted)) if (node, k) in read))
        at = {y: n + k for k, y in enumerate(ys)}
        places[node] = {
            k: at[emitted[k]] for k in range(n, len(emitted)) if (node, k) in read
        }
        body = Graph(node.body.inputs, (*emitted[:n], *ys))
        body = node.body if len(body.outputs) == len(emitted) else body
        return Fold(args, body, node.structure, n, node.sequences)

    return rebuild(outputs, rule)


def _inside(outputs: Sequence[Node], notes: Notes, numbers: Iterator[int]) -> Sequence[Node]:
    """The same in the bodies of recurrences."""
    made: dict[Node, Node] = {}
    for node in toposort(outputs):
        new = reconnect(node, tuple(made[a] for a in node.args))
        if isinstance(new, Fold):
            with own_provenance():
                new = with_outputs(new, unpad(new.body.outputs, notes, numbers))
        made[node] = new
    return [made[n] for n in outputs]


# -- which recurrences -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Recurrences whose rows have the same lengths.

    Fields:
        lengths: which are known to lie between 0 and T.
        base:    of these, as they were given.
        masks:   of each recurrence, among its sequences.
    """

    lengths: Node
    base: Node
    steps: Extent
    masks: dict[Fold, int]

    @property
    def bodies(self) -> dict[int, Graph]:
        """Of the recurrences."""
        return {id(fold.body): fold.body for fold in self.masks}


def _groups(order: Sequence[Node]) -> list[_Group]:
    found: dict[tuple[int, Extent], _Group] = {}
    for node in order:
        if not isinstance(node, Fold) or not node.structure.bounded or node.structure.rows:
            continue
        for k, x in enumerate(node.xs):
            lengths = mask_lengths(x)
            if lengths is None or x.ndim != 2:
                continue
            checked, base = lengths
            steps = node.structure.length
            group = found.setdefault((id(base), steps), _Group(checked, base, steps, {}))
            group.masks.setdefault(node, k)
            break
    return list(found.values())


def mask_lengths(node: Node) -> tuple[Node, Node] | None:
    """Of `t < n[b]` the lengths n, as they are read and as they were given; None of other nodes."""
    if not isinstance(node, Map) or node.body != _LESS or node.ndim != 2:
        return None
    steps, lengths = (_root(a) for a in node.args)
    if lengths.ndim != 1 or not _counts(steps):
        return None
    return lengths, _given(lengths)


def _root(node: Node) -> Node:
    """What is spread and transposed, or whose dtype changes."""
    while (isinstance(node, Einsum) and len(node.args) == 1 and _spreads(node)) or (
        isinstance(node, Map) and len(node.args) == 1 and node.body.func.__name__[:5] == "cast_"
        and node.body.args == (P[0],)
    ):
        node = node.args[0]
    return node


def _spreads(node: Einsum) -> bool:
    return all(type(node.extents[k]) is int and node.extents[k] == 1 for k in node.summed)


def _counts(node: Node) -> bool:
    body = node.body if isinstance(node, Map) and not node.args and node.ndim == 1 else None
    if body is not None and body.func.__name__.startswith("cast_"):
        (body,) = body.args
    return body is not None and body == AXIS[0]


def _given(lengths: Node) -> Node:
    """Lengths, without the check that they are in range."""
    while True:
        inner = _root(lengths)
        if isinstance(inner, Gather) and _counts(inner.args[0]) and len(inner.args) == 2:
            inner = inner.args[1]
        if inner is lengths:
            return lengths
        lengths = inner


# -- a graph ---------------------------------------------------------------------------------------
def _without_padding(
    outputs: Sequence[Node], group: _Group, notes: Notes, number: int
) -> Sequence[Node]:
    plan = _Plan(outputs, group, number)
    made = plan.built() if plan.steps else outputs
    if not _all_told(made):
        unread = "nothing beside recurrences reads live pairs, so that none need be counted"
        plan.refused |= dict.fromkeys(group.masks, unread)
        made = outputs
    for fold in group.masks:
        done = "its rows are sorted by length, and a step works on those that live"
        steps, why = fold.structure.length, plan.refused.get(fold, done)
        how: Literal["with padding", "without padding"] = (
            "with padding" if fold in plan.refused else "without padding"
        )
        notes.append(Moved(how, fold, steps, why))
    return made


def _all_told(outputs: Sequence[Node]) -> bool:
    """Whether every extent that the program counts is told by a node, see `Counted`."""
    order = toposort(outputs)
    told = {counted_by(node) for node in order if isinstance(node, Reindex)}
    extents = [e for node in order for e in node.shape if not isinstance(e, int)]
    return all(d in told for d in free_dims(extents) if isinstance(d, Counted))


class _Plan:
    """Which nodes of a graph stand for live pairs alone.

    Fields:
        steps:   of the recurrences that work on live rows.
        refused: the others, and why.
    """

    def __init__(self, outputs: Sequence[Node], group: _Group, number: int) -> None:
        self.outputs, self.order = outputs, toposort(outputs)
        with provenance("rows by length", where=group.lengths.where):
            self.live = LiveRows(group.lengths, group.steps, number).made()
        axes = Axes(self.order)
        t, b = self._join(axes, group)
        every = {f: LiveStep(f, mask, self.live, axes) for f, mask in group.masks.items()}
        self.steps: dict[Node, LiveStep] = {}
        self.refused: dict[Fold, str] = {}
        if axes.find(t) == axes.find(b):
            self.refused = dict.fromkeys(every, "steps and rows are matched with each other")
            return
        masks = {n for n in self.order if (n_ := mask_lengths(n)) and n_[1] is group.base}
        members = self.live.step_of, self.live.row_of
        self.merge = Merge(axes, (t, b), self.live.rows.all, self.order, masks, members)
        self.dead = self._judged(every)
        self.refused = {f: step.why for f, step in every.items() if step.why}
        before = -1
        while before < len(self.refused) < len(every):
            before = len(self.refused)
            self.steps = {f: step for f, step in every.items() if f not in self.refused}
            self.after = self._after()
            self.wants = self._wanted()
        if before < len(self.refused):
            self.steps = {}

    @staticmethod
    def _join(axes: Axes, group: _Group) -> tuple[Axis, Axis]:
        """The steps and the rows, as indices of the graph."""
        first, place = next(iter(group.masks.items()))
        t, b = ((first.xs[place], k) for k in (0, 1))
        for fold, mask in group.masks.items():
            axes.join_body(fold)
            axes.join((fold.xs[mask], 1), b)
            emitted = projections(fold)[fold.carries :]
            for sequence in (*fold.xs, *emitted):
                axes.join((sequence, 0), t)
        return t, b

    def _after(self) -> set[Node]:
        """What depends on the recurrences."""
        found: set[Node] = set(self.steps)
        for node in self.order:
            if any(a in found for a in node.args):
                found.add(node)
        return found

    def _judged(self, steps: Mapping[Fold, LiveStep]) -> dict[Node, sympy.Expr]:
        """What nodes are at padding, where that is known; it tells which recurrences may change."""
        known: dict[Node, sympy.Expr] = {}
        for node in self.order:
            if isinstance(node, Fold) and node in steps:
                steps[node].judge([known.get(a) for a in node.args])
                continue
            value = dead_value(node, self.merge, known)
            if isinstance(node, Proj) and (step := steps.get(node.args[0])) is not None:  # type: ignore[call-overload]
                emitted = node.place >= step.fold.carries
                zero = emitted and step.dead.get(node.place) in (ZERO, FALSE)
                value = ZERO if zero else None
            if value is not None:
                known[node] = value
        return known

    # -- what is wanted ----------------------------------------------------------------------------
    def _wanted(self) -> dict[Node, set[str]]:
        """Of each node whether it is wanted whole, (T, B, ..), or for live pairs."""
        wants: dict[Node, set[str]] = {n: set() for n in self.order}
        for node in self.outputs:
            wants[node].add("whole")
        for node in reversed(self.order):
            own = wants[node]
            if "whole" in own and self.restores(node):
                own.add("live")
            elif "live" in own and not self.keeps(node):
                own.add("whole")
            if isinstance(node, Fold):
                for arg, live in zip(node.args, self._moving(node), strict=True):
                    if own and not (live and arg in self.merge.masks):
                        wants[arg].add("live" if live else "whole")
                continue
            if "whole" in own and not self.restores(node):
                self._check_result(node)
                self._want_args(node, wants, self.sums(node) or self.collects(node))
            if "live" in own and self.keeps(node):
                self._want_args(node, wants, True)
        return wants

    def _want_args(self, node: Node, wants: dict[Node, set[str]], live: bool) -> None:
        for arg in node.args:
            if not (live and arg in self.merge.masks):
                wants[arg].add("live" if live and self.merge.kind(arg) == "all" else "whole")

    def _moving(self, fold: Fold) -> list[bool]:
        """Which arguments of a recurrence are sequences with rows."""
        step, n, m = self.steps.get(fold), fold.carries, fold.carries + fold.sequences
        return [
            step is not None and n <= k < m and step.inputs[k] for k in range(len(fold.args))
        ]

    def _check_result(self, node: Node) -> None:
        if not isinstance(node, Proj) or (step := self.steps.get(node.args[0])) is None:
            return
        if node.place >= step.fold.carries and step.outputs[node.place]:
            self.refused[step.fold] = "what it emits is read at padding, where it is not zero"

    def keeps(self, node: Node) -> bool:
        """Whether a node for live pairs is made of its arguments for live pairs."""
        if isinstance(node, Proj):
            return node.args[0] in self.steps and self.merge.kind(node) == "all"
        return node not in self.merge.masks and self.merge.keeps(node)

    def restores(self, node: Node) -> bool:
        """Whether a whole node is made of its live pairs: it depends on the recurrences."""
        return node in self.after and self.dead.get(node) in (ZERO, FALSE) and self.keeps(node)

    def sums(self, node: Node) -> bool:
        """Whether a node sums over pairs, to which padding adds nothing."""
        return node in self.after and self.merge.sums(node) and vanishes(node, self.dead)

    def collects(self, node: Node) -> bool:
        """Whether a node sums over the steps of each row, or the rows of each step, and no more."""
        alone = isinstance(node, Einsum) and len(node.args) == 1 and self.merge.kind(node) == "some"
        return alone and node in self.after and vanishes(node, self.dead)

    # -- building ----------------------------------------------------------------------------------
    def built(self) -> list[Node]:
        """The outputs."""
        self.whole: dict[Node, Node] = {}
        self.pairs: dict[Node, Node] = {}
        for node in self.order:
            own = self.wants[node]
            with provenance(node.origin, node.backward_of, node.where):
                if "whole" in own and not self.restores(node):
                    self.whole[node] = self._whole(node)
                if "live" in own:
                    self.pairs[node] = self._live(node)
                if "whole" in own and self.restores(node):
                    self.whole[node] = self._restored(node)
        return [self.whole[n] for n in self.outputs]

    def _whole(self, node: Node) -> Node:
        if isinstance(node, Fold) and node in self.steps:
            return self._fold(self.steps[node])
        if isinstance(node, Proj) and (step := self.steps.get(node.args[0])) is not None:
            result = self._result(node)
            return _rows_of(result, self.live.rank) if step.outputs[node.place] else result
        if self.sums(node):
            return self.merge.rebuilt(node, self._args(node))
        if self.collects(node):
            return self._collected(node)
        return reconnect(node, tuple(self.whole[a] for a in node.args)) if node.args else node

    def _live(self, node: Node) -> Node:
        if isinstance(node, Proj) and node.args[0] in self.steps:
            return self._result(node)
        return self.merge.rebuilt(node, self._args(node)) if self.keeps(node) else self._at(node)

    def _result(self, node: Proj) -> Node:
        fold = self.whole[node.args[0]]
        assert isinstance(fold, Fold)
        return projections(fold)[node.place]

    def _args(self, node: Node) -> list[Node]:
        """The arguments for live pairs."""
        found: list[Node] = []
        for k, arg in enumerate(node.args):
            if arg in self.merge.masks:
                found.append(Constant(np.asarray(True)))
            elif arg in self.pairs:
                found.append(self.pairs[arg])
            else:
                read = isinstance(node, Gather) and k == 0
                found.append(self.whole[arg] if read else self._at(arg))
        return found

    def _at(self, node: Node) -> Node:
        """A whole node at the live pairs, or at the step or the row of each."""
        (t, b), whole = self.merge.places(node), self.whole[node]
        places = (*t, *b)
        if not places:
            return whole
        indices = [i for own, i in zip((t, b), self.merge.members, strict=True) if own]
        axes = tuple(~places.index(k) if k in places else k for k in range(node.ndim))
        out = tuple(dict.fromkeys(node.ndim + 1 if k in places else k for k in range(node.ndim)))
        return Gather((whole, *indices), axes, ((node.ndim + 1,),) * len(indices), out, wrap=False)

    def _restored(self, node: Node) -> Node:
        """A node from its live pairs, with zeros at padding."""
        (t,), (b,) = self.merge.places(node)
        own = node.ndim + 1
        axes = tuple({t: ~0, b: ~1}.get(k, k) for k in range(node.ndim))
        labels = tuple(dict.fromkeys(own if k in (t, b) else k for k in range(node.ndim)))
        args = (self.pairs[node], *self.merge.members)
        return Scatter(args, labels, ((own,), (own,)), axes, node.shape, wrap=False)

    def _collected(self, node: Node) -> Node:
        """The sums of a node, each from the live pairs of its row or its step."""
        assert isinstance(node, Einsum)
        (arg,), (labels,) = node.args, node.labels
        index = next(k for k, own in enumerate(self.merge.places(node)) if own)
        (place,), group = self.merge.places(node)[index], self.merge.group(arg)
        pair = labels[min(group)]
        own = [label for k, label in enumerate(labels) if k not in group[1:]]
        rest = [label for k, label in enumerate(node.out) if k != place]
        known = {**dict(enumerate(node.extents)), pair: self.merge.extent}
        added = einsum_node((self.pairs[arg],), (own,), (pair, *rest), known)
        axes = tuple(~0 if k == place else 1 + k - (k > place) for k in range(node.ndim))
        labels = tuple(range(added.ndim))
        return Scatter(
            (added, self.merge.members[index]), labels, ((0,),), axes, node.shape, wrap=False
        )

    def _fold(self, step: LiveStep) -> Fold:
        fold, (body, kept) = step.fold, step.built()
        n, m = fold.carries, fold.carries + fold.sequences
        args = [self._argument(step, k, n <= k < m) for k in kept]
        count = sum(n <= k < m for k in kept)
        before = fold.structure
        structure = Chain(before.length, before.reverse, before.checkpoint, True, self.live.rows)
        told = (self.live.start, self.live.live)
        return Fold((*args[:n], *told, *args[n:]), body, structure, n, count + 2)

    def _argument(self, step: LiveStep, k: int, moves: bool) -> Node:
        arg = step.fold.args[k]
        if moves and step.inputs[k]:
            return self.pairs[arg]
        own = self.whole[arg]
        if step.inputs[k]:
            own = step.rows_first(step.fold.body.inputs[k], own)
        alike = isinstance(own, Einsum) and own.out[0:1] and all(
            own.out[0] not in labels for labels in own.labels
        )
        return own if not step.inputs[k] or alike else _rows_of(own, self.live.order)


def _rows_of(node: Node, rows: Node) -> Node:
    """Rows of a node, by number."""
    rest = tuple(range(1, node.ndim))
    return Gather((node, rows), (~0, *rest), ((0,),), (0, *rest), wrap=False)
