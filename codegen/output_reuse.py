"""What goes back reads what the way forward leaves in memory anyway.

rewrite:  a comparison x <= 0, where relu(x) is there      ->  relu(x) <= 0, which x decides alike
          (a / s + r) e,  r = sum(-a d / s),  where d = e / s is there, e an exponential, s its sum
                                                           ->  (a - sum(a d)) d
requires: for the second, that s and the sums keep the axis; s is finite where d is
keeps:    values up to rounding; shapes; NaN

So a layer does not keep what comes before its relu, and a softmax keeps neither its exponentials
nor their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from symgrad.graph import functions as fn
from symgrad.graph.folds import Fold, with_outputs
from symgrad.graph.functions import P
from symgrad.graph.nodes import Einsum, Map, Node, einsum_node, map_node
from symgrad.graph.passes import rewrites
from symgrad.graph.traversal import rebuild, reconnect

RELU = fn.select(fn.less_equal(P[0], 0), 0, P[0])


@rewrites
def read_outputs(outputs: Sequence[Node]) -> list[Node]:
    """Rewrite what goes back through a relu or a softmax; see the module."""
    seen = _Seen()

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if isinstance(node, Fold):
            return with_outputs(node, read_outputs(node.body.outputs))
        if isinstance(node, Map):
            node = seen.masked(node)
            node = seen.softmaxed(node)
            seen.add(node)
        return node

    return rebuild(outputs, rule)


@dataclass(slots=True)
class _Seen:
    """What the way forward has made so far.

    Fields:
        relus:  relu(x) by x.
        shares: e / s by e, for exponentials and their sums.
    """

    relus: dict[Node, Node] = field(default_factory=dict)
    shares: dict[Node, Map] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """Remember a relu, or a share of a sum of exponentials."""
        if not isinstance(node, Map):
            return
        if node.body == RELU and node.shape == node.args[0].shape:
            self.relus[node.args[0]] = node
        elif node.body == P[0] / P[1] and _is_sum_of(node.args[1], node.args[0]):
            self.shares[node.args[0]] = node

    def masked(self, node: Map) -> Map:
        """A Map that reads an argument only to see whether it is above zero, reading its relu."""
        args = list(node.args)
        for k, arg in enumerate(args):
            if arg in self.relus and node.body != RELU:
                rest = node.body.xreplace({fn.less_equal(P[k], 0): sympy.S.true})
                if P[k] not in rest.free_symbols:
                    args[k] = self.relus[arg]
        return node if all(a is b for a, b in zip(args, node.args, strict=True)) else _over(
            node, node.body, args
        )

    def softmaxed(self, node: Map) -> Map:
        """A Map `c q e` of the pullback of a softmax, as `c (a - sum(a d)) d`."""
        factors = set(sympy.Mul.make_args(node.body))
        for k, e in enumerate(node.args):
            if e not in self.shares or not _only_factor(node.body, factors, k):
                continue
            for j, q in enumerate(node.args):
                if j == k or not _only_factor(node.body, factors, j):
                    continue
                inner = self.inner(q, self.shares[e])
                if inner is not None:
                    args = list(node.args)
                    args[j], args[k] = inner, self.shares[e]
                    return _over(node, node.body, args)
        return node

    def inner(self, q: Node, share: Map) -> Node | None:
        """`a - sum(a d)` for q = a / s + sum(-a d / s); None where q is something else."""
        if not isinstance(q, Map) or len(q.args) != 3 or q.shape != share.shape:
            return None
        total = share.args[1]
        for a, s, r in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
            if q.body != P[a] / P[s] + P[r] or q.args[s] is not total:
                continue
            summed = _summed(q.args[r], total)
            if summed is None or not isinstance(weighed := summed.args[0], Map):
                return None
            given = {arg: P[i] for i, arg in enumerate(weighed.args)}
            if any(x not in given for x in (q.args[a], share, total)) or len(given) != 3:
                return None
            if weighed.body != -given[q.args[a]] * given[share] / given[total]:
                return None
            minus = map_node(-P[0] * P[1], [q.args[a], share], q.dtype)
            kept = einsum_node([minus], summed.labels, summed.out, dict(enumerate(summed.extents)))
            spread = q.args[r]
            assert isinstance(spread, Einsum)
            wide = einsum_node(
                [kept], spread.labels, spread.out, dict(enumerate(spread.extents))
            )
            return map_node(P[0] + P[1], [q.args[a], wide], q.dtype)
        return None


def _over(node: Map, body: sympy.Expr, args: Sequence[Node]) -> Map:
    made = map_node(body, args, node.dtype)
    assert isinstance(made, Map)
    return made


def _only_factor(body: sympy.Expr, factors: set[sympy.Expr], k: int) -> bool:
    """Whether an argument is a factor of a product and occurs nowhere else in it."""
    return P[k] in factors and not any(P[k] in f.free_symbols for f in factors - {P[k]})


def _is_sum_of(total: Node, e: Node) -> bool:
    """Whether a node is the sum of an exponential over some axes, which it keeps."""
    if not isinstance(e, Map) or e.body.func is not fn.exp:
        return False
    if not isinstance(total, Einsum) or len(total.args) != 1 or total.summed:
        return False
    (summed,) = total.args
    return (
        isinstance(summed, Einsum)
        and summed.args[0] is e
        and len(summed.args) == 1
        and _spreads(total, summed)
    )


def _summed(spread: Node, like: Node) -> Einsum | None:
    """What is summed over the same axes as `like`, and spread as it is."""
    if not isinstance(spread, Einsum) or not isinstance(like, Einsum) or len(spread.args) != 1:
        return None
    summed, pattern = spread.args[0], like.args[0]
    if not isinstance(summed, Einsum) or not isinstance(pattern, Einsum):
        return None
    same = (
        (spread.labels, spread.out, spread.extents) == (like.labels, like.out, like.extents)
        and (summed.labels, summed.out, summed.extents)
        == (pattern.labels, pattern.out, pattern.extents)
        and len(summed.args) == 1
    )
    return summed if same else None


def _spreads(total: Einsum, summed: Einsum) -> bool:
    """Whether a sum gets its axes back, with one element each, where they were."""
    labels = summed.labels[0]
    back = iter(total.labels[0])
    wanted = [next(back) if k in summed.out else None for k in labels]
    return len(total.out) == len(labels) and all(
        (w is None and total.extents[o] == 1) or w == o
        for w, o in zip(wanted, total.out, strict=True)
    )
