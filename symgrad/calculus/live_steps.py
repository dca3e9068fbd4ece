"""A recurrence whose step works on the live rows alone: whether it may, and what it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import sympy

from symgrad.calculus.live_rows import LiveRows
from symgrad.calculus.merged_axes import Merge, dead_value
from symgrad.calculus.row_axes import Axes
from symgrad.calculus.settling import FALSE, ZERO
from symgrad.graph.dims import Shape
from symgrad.graph.dtypes import INT64
from symgrad.graph.folds import Fold, binder
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Input, Node, einsum_node
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import reconnect, toposort


class LiveStep:
    """The body of a recurrence, of which rows are one index.

    Args:
        mask: the place among the sequences of the flags that tell which rows live.
        axes: of the graph that the recurrence stands in, joined with those of its body.

    Fields:
        why:     what keeps it from working on some rows only; empty where nothing does.
        inputs:  which arguments have rows.
        outputs: which results have rows.
        dead:    what these are for rows that have ended, where that is known, see `judge`.
    """

    def __init__(self, fold: Fold, mask: int, live: LiveRows, axes: Axes) -> None:
        self.fold, self.live, self.why = fold, live, ""
        body = fold.body
        self.carry, elements, _ = fold.binders
        self.mask = elements[mask]
        self.merge = Merge(axes, [(self.mask, 0)], live.rows.now, body.nodes, [self.mask])
        consts = fold.carries + fold.sequences
        self.inputs = [self._has_rows(x, k >= consts) for k, x in enumerate(body.inputs)]
        self.outputs = [self._has_rows(node) for node in body.outputs]
        self.dead: dict[int, sympy.Expr | None] = {}

    def judge(self, dead: Sequence[sympy.Expr | None]) -> None:
        """Find out what the results are for rows that have ended, and whether it may be done.

        Args:
            dead: what the arguments are for these rows, where that is known.
        """
        body = self.fold.body
        told = zip(body.inputs, dead, strict=True)
        known: dict[Node, sympy.Expr] = {leaf: value for leaf, value in told if value is not None}
        before = {leaf: sympy.Symbol(f"carry{k}") for k, leaf in enumerate(self.carry)}
        known.update(before.items())
        for node in body.nodes:
            value = dead_value(node, self.merge, known)
            if value is not None:
                known[node] = value
        self.dead = {k: known.get(y) for k, y in enumerate(body.outputs) if self.outputs[k]}
        for k, leaf in enumerate(self.carry):
            if self.outputs[k] and self.dead[k] != before[leaf]:
                self._refuse("the carry of a row that has ended changes")
        for node in body.nodes:
            self._check(node, known)

    def _refuse(self, why: str) -> None:
        self.why = self.why or why

    def _has_rows(self, node: Node, is_const: bool = False) -> bool:
        """Whether a node that goes in or out has rows; they must stand first, or can be moved."""
        group = self.merge.group(node)
        if group not in ((), (0,)) and not (is_const and len(group) == 1):
            self._refuse("rows do not stand first in what goes in or out of a step")
        return bool(group)

    def rows_first(self, leaf: Input, arg: Node) -> Node:
        """The argument for a leaf that has rows, with these first."""
        (axis,) = self.merge.group(leaf)
        return moved_axis(arg, axis, 0)

    def _check(self, node: Node, dead: Mapping[Node, sympy.Expr]) -> None:
        own, kinds = self.merge.kind(node), {self.merge.kind(a) for a in node.args}
        if isinstance(node, Input) or not {"all", "odd"} & {own, *kinds}:
            return
        if own != "none":
            if node not in self.merge.masks and not self.merge.keeps(node):
                self._refuse(f"a step does not treat all rows alike: {node.name}")
        elif not (self.merge.sums(node) and vanishes(node, dead)):
            self._refuse(f"a step mixes its rows: {node.name}")

    def built(self) -> tuple[Graph, list[int]]:
        """The body over the live rows, and the places of the arguments that it still has."""
        now, merge, inputs = self.live.rows.now, self.merge, self.fold.body.inputs
        made: dict[Node, Node] = {m: Constant(np.asarray(True)) for m in merge.masks}
        leaves: dict[Node, Input] = {}
        for leaf, has in zip(inputs, self.inputs, strict=True):
            axis = merge.group(leaf)[0] if has else 0
            rest = tuple(e for k, e in enumerate(leaf.shape) if k != axis)
            shape: Shape = (now, *rest) if has else leaf.shape
            leaves[leaf] = binder(leaf.name, shape, leaf.dtype)
            made.setdefault(leaf, moved_axis(leaves[leaf], 0, axis) if has else leaves[leaf])
        for node in self.fold.body.nodes:
            if node in made:
                continue
            args = [made[a] for a in node.args]
            rows = "all" in {merge.kind(node), *map(merge.kind, node.args)}
            with provenance(node.origin, node.backward_of, node.where):
                made[node] = merge.rebuilt(node, args) if rows else reconnect(node, tuple(args))
        outputs = [made[n] for n in self.fold.body.outputs]
        used = {n for n in toposort(outputs) if isinstance(n, Input)}
        n, bound = self.fold.carries, self.fold.carries + self.fold.sequences
        kept = [k for k, x in enumerate(inputs) if k < n or k == bound or leaves[x] in used]
        own = [leaves[inputs[k]] for k in kept]
        told = [binder(name, (), INT64) for name in ("first", "count")]
        return Graph((*own[:n], *told, *own[n:]), tuple(outputs)), kept


def moved_axis(x: Node, source: int, target: int) -> Node:
    """A node with one of its axes elsewhere; itself where it stays."""
    if source == target:
        return x
    order = [k for k in range(x.ndim) if k != source]
    order.insert(target, source)
    return einsum_node((x,), (tuple(range(x.ndim)),), order)


def vanishes(node: Node, dead: Mapping[Node, sympy.Expr]) -> bool:
    """Whether padding adds nothing to a sum: a factor is zero there."""
    factors = node.args if isinstance(node, Einsum) else node.args[:1]
    return any(dead.get(a) in (ZERO, FALSE) for a in factors)
