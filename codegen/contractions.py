"""Contractions in the form that matrix products take: pairwise, each axis of a matrix together.

rewrite:  a sum over an axis that always has one element -> no sum: what is one value stays itself,
          so that dropping the axis of x[0] keeps -0.0, which 0.0 + -0.0 would lose
          a sum with axes that no argument has (keepdims) -> the sum, then those axes, which are
          inline: so readers find the sum in their own row
          an Einsum of several arguments -> Einsums of two, in the order that opt_einsum finds
          a summed label of one argument only -> summed before the product
          a product with rows or columns that `products.matched` finds none in
          -> (batch, m, n) = (batch, m, k) x (batch, k, n), where an argument may also lie
          transposed; other layouts are permuted by an Einsum of one argument
keeps:    values up to rounding; shapes; products that sum nothing
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.access import is_one
from codegen.products import compact, matched
from symgrad.graph.dims import Extent, typical
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Fold, with_outputs
from symgrad.graph.nodes import Einsum, Node, einsum_node, reshape_node
from symgrad.graph.passes import rewrites
from symgrad.graph.traversal import rebuild, reconnect


@rewrites
def order_contractions(outputs: Sequence[Node]) -> list[Node]:
    """Rewrite all contractions of the outputs; see the module."""

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if isinstance(node, Fold):
            return with_outputs(node, order_contractions(node.body.outputs))
        if isinstance(node, Einsum) and any(is_one(node.extents[k]) for k in node.summed):
            node = _without_ones(node)
        return _spread(node) if isinstance(node, Einsum) and node.summed else node

    return rebuild(outputs, rule)


def _without_ones(node: Einsum) -> Einsum:
    """The same without summed labels of extent one: the arguments lose those axes."""
    ones = {k for k in node.summed if is_one(node.extents[k])}
    kept = [tuple(k for k in labels if k not in ones) for labels in node.labels]
    args = [
        arg if own == labels else reshape_node(arg, tuple(node.extents[k] for k in own))
        for arg, labels, own in zip(node.args, node.labels, kept, strict=True)
    ]
    return einsum_node(args, kept, node.out, dict(enumerate(node.extents)))


def _spread(node: Einsum) -> Node:
    """A sum first, then the axes that only the result has."""
    given = {k for labels in node.labels for k in labels}
    kept = tuple(k for k in node.out if k in given)
    if kept == node.out:
        return _ordered(node)
    extents = dict(enumerate(node.extents))
    summed = einsum_node(node.args, node.labels, kept, extents)
    assert isinstance(summed, Einsum)
    return einsum_node([_ordered(summed)], [kept], node.out, extents)


def _ordered(node: Einsum) -> Node:
    extents = dict(enumerate(node.extents))
    terms = list(zip(node.args, node.labels, strict=True))
    for a, b in _path(node):
        right, left = terms.pop(max(a, b)), terms.pop(min(a, b))
        rest = {label for _, labels in terms for label in labels} | set(node.out)
        if terms:
            kept = tuple(k for k in dict.fromkeys(left[1] + right[1]) if k in rest)
        else:
            kept = node.out
        terms.append((_pair(left, right, kept, extents), kept))
    if len(terms) == 1 and len(node.args) > 1:
        return terms[0][0]
    return node


def _path(node: Einsum) -> list[tuple[int, int]]:
    if len(node.args) < 2:
        return []
    if len(node.args) == 2:
        return [(0, 1)]
    import opt_einsum

    sizes = {k: typical(e) for k, e in enumerate(node.extents)}
    symbols = [opt_einsum.get_symbol(k) for k in sizes]
    spec = ",".join("".join(symbols[k] for k in labels) for labels in node.labels)
    given = {k for labels in node.labels for k in labels}
    out = "".join(symbols[k] for k in node.out if k in given)
    shapes = [tuple(max(sizes[k], 1) for k in labels) for labels in node.labels]
    path, _ = opt_einsum.contract_path(f"{spec}->{out}", *shapes, shapes=True)
    if any(len(step) != 2 for step in path):
        return [(0, 1)] * (len(node.args) - 1)
    return [(min(step), max(step)) for step in path]


_Term = tuple[Node, tuple[int, ...]]


def _pair(left: _Term, right: _Term, out: tuple[int, ...], extents: dict[int, Extent]) -> Node:
    left, right = (
        _presum(term, set(other[1]) | set(out)) for term, other in ((left, right), (right, left))
    )
    a, b = set(left[1]), set(right[1])
    k = [x for x in left[1] if x in b and x not in out]
    batch = [x for x in out if x in a and x in b]
    m = [x for x in out if x in a and x not in b]
    n = [x for x in out if x in b and x not in a]
    plain = not k or not (m or n) or (batch and not (m and n))
    if plain or not is_float(left[0].dtype) or len({*a, *b}) != len(batch + m + n + k):
        return einsum_node([left[0], right[0]], [left[1], right[1]], out, extents)
    straight = einsum_node([left[0], right[0]], [left[1], right[1]], out, extents)
    if _fits(straight):
        return straight
    if _before(n, m, out):  # the result lies transposed: exchange the factors
        left, right, m, n = right, left, n, m
    if not _laid(left[1], batch, m, k):
        k = [x for x in right[1] if x in k] if _laid(right[1], batch, k, n, any_k=True) else k
    left = _permuted(left, batch, m, k)
    right = _permuted(right, batch, k, n)
    product = einsum_node([left[0], right[0]], [left[1], right[1]], batch + m + n, extents)
    if tuple(batch + m + n) == out:
        return product
    return einsum_node([product], [batch + m + n], out, extents)


def _fits(node: Einsum) -> bool:
    """Whether a contraction of operands in memory of their own is matrix products as it stands."""
    a, b = (compact(arg, labels) for arg, labels in zip(node.args, node.labels, strict=True))
    return matched(node, a, b, compact(node, node.out)) is not None


def _before(n: list[int], m: list[int], out: tuple[int, ...]) -> bool:
    return bool(m and n) and out.index(n[0]) < out.index(m[0])


def _laid(
    labels: Sequence[int],
    batch: list[int],
    first: list[int],
    second: list[int],
    any_k: bool = False,
) -> bool:
    labels = list(labels)
    if any_k:
        return sorted(labels) == sorted(batch + first + second)
    return labels in (batch + first + second, batch + second + first)


def _permuted(term: _Term, batch: list[int], first: list[int], second: list[int]) -> _Term:
    if _laid(term[1], batch, first, second):
        return term
    wanted = tuple(batch + first + second)
    return einsum_node([term[0]], [term[1]], wanted), wanted


def _presum(term: _Term, needed: set[int]) -> _Term:
    kept = tuple(x for x in term[1] if x in needed)
    return term if kept == term[1] else (einsum_node([term[0]], [term[1]], kept), kept)
