"""Simplification rules of Einsum. Each takes an Einsum and a test whether a node is read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sympy

from symgrad.calculus import bodies
from symgrad.calculus.building import aligned, is_extent_one, literal, total, zeros_node
from symgrad.calculus.map_rules import build, derived, is_delta, is_zero
from symgrad.graph.dims import Extent
from symgrad.graph.dtypes import DType, is_bool
from symgrad.graph.functions import P, placeholder
from symgrad.graph.nodes import Constant, Einsum, Map, Node, einsum_node

OPERANDS = 6  # of one contraction at most: the search for its order grows fast with them

Once = Callable[[Node], bool]
Labels = Sequence[Sequence[int]]


def scalar(body: sympy.Expr, dtype: DType) -> Node:
    """A number or a polynomial in dims as a scalar node."""
    return literal(float(body), dtype) if body.is_number else Map((), body, (), dtype)


def rebuilt(
    node: Einsum,
    args: Sequence[Node],
    labels: Labels,
    extents: Mapping[int, Extent],
) -> Node:
    """The contraction over other operands; a summed label that none has becomes its extent."""
    args, labels = list(args), list(labels)
    present = {k for group in labels for k in group} | set(node.out)
    for k, extent in extents.items():
        if k not in present and not is_extent_one(extent):
            args.append(scalar(sympy.sympify(extent), node.dtype))
            labels.append(())
    if not args:
        args, labels = [literal(1.0, node.dtype)], [()]
    return einsum_node(args, labels, node.out, extents)


def spliced(
    node: Einsum, n: int, args: Sequence[Node], labels: Labels, extents: Mapping[int, Extent]
) -> Node:
    """The contraction with operand n replaced by several."""
    return rebuilt(
        node,
        (*node.args[:n], *args, *node.args[n + 1 :]),
        (*node.labels[:n], *labels, *node.labels[n + 1 :]),
        {**extents, **dict(enumerate(node.extents))},
    )


def really_summed(node: Einsum) -> tuple[int, ...]:
    """The labels that are summed over, without axes of one."""
    return tuple(k for k in node.summed if not is_extent_one(node.extents[k]))


def carries_delta(node: Node) -> bool:
    """Whether a unit matrix is an operand."""
    return is_delta(node) or (isinstance(node, Einsum) and any(map(is_delta, node.args)))


def _private(node: Einsum, n: int) -> list[int]:
    """Labels that operand n alone has and that are summed."""
    others = {k for m, group in enumerate(node.labels) if m != n for k in group}
    return [
        k for k in node.labels[n]
        if k not in others and k not in node.out and not is_extent_one(node.extents[k])
    ]


# -- operands that are contractions, products, sums ------------------------------------------------
def inner_einsum(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum (sum a b) c -> sum a b c.

    requires: the inner one sums nothing or is read here alone; the order of matrix products may
              then be chosen anew, but none is computed twice. Unit matrices are let in always.
    """
    for n, arg in enumerate(node.args):
        if isinstance(arg, Einsum) and _opens(node, n, arg, once):
            base = len(node.extents)
            names = {k: base + k for k in range(len(arg.extents))}
            names.update(zip(arg.out, node.labels[n], strict=True))
            labels = [tuple(names[k] for k in group) for group in arg.labels]
            extents = {names[k]: e for k, e in enumerate(arg.extents)}
            return spliced(node, n, arg.args, labels, extents)
    return None


def _opens(node: Einsum, n: int, arg: Einsum, once: Once) -> bool:
    summed = really_summed(arg)
    if len(arg.args) == 1 and not summed:
        return True
    if len(node.args) + len(arg.args) - 1 > OPERANDS:
        return False
    if any(map(is_delta, arg.args)):
        return True
    if not once(arg):
        return False
    if not summed:
        return True
    if len(node.args) == 1:
        # a transposed or a further sum of one operand; a broadcast stays outside
        own = node.labels[0]
        return all(k in own or is_extent_one(node.extents[k]) for k in node.out) and (
            len(arg.args) == 1 or not really_summed(node)
        )
    chained = any(k in node.labels[n] for k in really_summed(node))
    return chained and not any(_private(arg, m) for m in range(len(arg.args)))


def inner_product(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum (a * b) c -> sum a b c.

    requires: something is summed; the product is read here alone, or carries a unit matrix;
              a number among the factors of a user's product stays where it is written.
    """
    for n, arg in enumerate(node.args):
        if not isinstance(arg, Map) or not arg.args:
            continue
        found = bodies.monomial(arg.body)
        if found is None or any(a.dtype != arg.dtype for a in arg.args):
            continue
        coefficient, factors = found
        delta = any(carries_delta(a) for a in arg.args)
        if not delta:
            if not once(arg) or not any(k in node.labels[n] for k in really_summed(node)):
                continue
            if len(factors) == 1 and coefficient == 1:
                continue
        if not derived(arg) and (coefficient != 1 or not all(arg.args[k].shape for k in factors)):
            continue
        if len(node.args) + len(factors) - 1 > OPERANDS:
            continue
        return _opened(node, n, arg, coefficient, factors)
    return None


def _opened(
    node: Einsum, n: int, arg: Map, coefficient: sympy.Expr, factors: Sequence[int]
) -> Node:
    base, rank = len(node.extents), arg.ndim
    args = [arg.args[k] for k in factors]
    labels: list[tuple[int, ...]] = []
    extents: dict[int, Extent] = {}
    for place, factor in enumerate(args):
        own = aligned(factor.shape, arg.shape, place + 1)
        names = tuple(node.labels[n][k] if k < rank else base + k for k in own)
        extents.update(zip(names, factor.shape, strict=True))
        labels.append(names)
    if coefficient != 1:
        args.append(scalar(coefficient, node.dtype))
        labels.append(())
    return spliced(node, n, args, labels, extents)


def inner_sum_of_deltas(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum (d + b) c -> sum d c + sum b c  where d carries a unit matrix."""
    for n, arg in enumerate(node.args):
        if not isinstance(arg, Map) or not any(carries_delta(a) for a in arg.args):
            continue
        terms = bodies.linear(arg.body)
        if terms is None or any(
            a.shape != arg.shape or a.dtype != arg.dtype for a in arg.args
        ):
            continue
        summed = really_summed(node)
        if not any(k in node.labels[n] for k in summed):
            continue
        parts = [
            einsum_node(
                (*node.args[:n], arg.args[k], *node.args[n + 1 :]), node.labels, node.out,
                dict(enumerate(node.extents)),
            )
            for k, _ in terms
        ]
        body = sympy.Add(*[c * placeholder(k) for k, (_, c) in enumerate(terms)])
        if all(c == 1 for _, c in terms):
            return total(parts)
        return build(body, parts, node.shape, node.dtype)
    return None


# -- single operands -------------------------------------------------------------------------------
def delta(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum_a [a = b] x_a -> x_b.

    requires: a is summed, and no operand would have b twice.
    """
    for n, arg in enumerate(node.args):
        if not is_delta(arg):
            continue
        for gone, stays in (node.labels[n], node.labels[n][::-1]):
            if gone in node.out:
                continue
            rest = [group for m, group in enumerate(node.labels) if m != n]
            if any(gone in group and stays in group for group in rest):
                continue
            labels = [tuple(stays if k == gone else k for k in group) for group in rest]
            args = (*node.args[:n], *node.args[n + 1 :])
            extents = {k: e for k, e in enumerate(node.extents) if k != gone}
            return rebuilt(node, args, labels, extents)
    return None


def zero_operand(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum 0 a -> 0, of zeros and sums that differentiation made."""
    if derived(node) and any(map(is_zero, node.args)) and not is_zero(node):
        return zeros_node(node.shape, node.dtype)
    return None


def scalar_operands(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum s a -> s * sum a  for a scalar s;  sum 1 a -> sum a."""
    plain = [n for n, group in enumerate(node.labels) if group]
    if len(plain) == len(node.args) or not plain:
        return None
    scalars = [node.args[n] for n, group in enumerate(node.labels) if not group]
    rest = einsum_node(
        [node.args[n] for n in plain], [node.labels[n] for n in plain], node.out,
        dict(enumerate(node.extents)),
    )
    kept = [s for s in scalars if not (isinstance(s, Constant) and s.value == 1)]
    if not kept:
        return rest
    body = sympy.Mul(*[placeholder(k) for k in range(len(kept) + 1)])
    return build(body, (*kept, rest), node.shape, node.dtype)


def identity(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum x -> x  where nothing is summed, moved or repeated."""
    if len(node.args) > 1 or node.args[0].shape != node.shape:
        return None
    own = node.labels[0]
    for k, j in zip(own, node.out, strict=True):
        # an axis of one may be summed away and put back
        if k != j and (k in node.out or j in own or not is_extent_one(node.extents[k])):
            return None
    return node.args[0]


def private_sum(node: Einsum, once: Once) -> Node | None:
    """rewrite: sum_bk a_bk c_b -> sum_b (sum_k a_bk) c_b."""
    if len(node.args) < 2:
        return None
    for n, arg in enumerate(node.args):
        private = _private(node, n)
        if private:
            kept = tuple(k for k in node.labels[n] if k not in private)
            inner = einsum_node((arg,), (node.labels[n],), kept)
            rest = {k: e for k, e in enumerate(node.extents) if k not in private}
            args = (*node.args[:n], inner, *node.args[n + 1 :])
            return rebuilt(node, args, (*node.labels[:n], kept, *node.labels[n + 1 :]), rest)
    return None


def broadcast_last(node: Einsum, once: Once) -> Node | None:
    """rewrite: a contraction that is also repeated along new axes -> contract, then repeat."""
    present = {k for group in node.labels for k in group}
    free = [k for k in node.out if k not in present and not is_extent_one(node.extents[k])]
    if not free or (len(node.args) == 1 and not really_summed(node)):
        return None
    kept = tuple(k for k in node.out if k in present)
    inner = einsum_node(node.args, node.labels, kept)
    return einsum_node((inner,), (kept,), node.out, dict(enumerate(node.extents)))


def elementwise(node: Einsum, once: Once) -> Node | None:
    """rewrite: a product that sums nothing and transposes nothing -> map p0 * p1."""
    if len(node.args) < 2 or node.summed or is_bool(node.dtype) or any(map(is_delta, node.args)):
        return None
    place = {k: n for n, k in enumerate(node.out)}
    args: list[Node] = []
    for arg, group in zip(node.args, node.labels, strict=True):
        at = [place[k] for k in group]
        if at != sorted(at):
            return None
        out = node.out[at[0] :] if at else ()
        extents = {k: 1 for k in out if k not in group}
        args.append(arg if out == group else einsum_node((arg,), (group,), out, extents))
    body = sympy.Mul(*[placeholder(k) for k in range(len(args))])
    return build(body if len(args) > 1 else P[0], args, node.shape, node.dtype)
