"""Forward mode: tangents of all that depends on some nodes, in one walk from the leaves to the end.

    jvp:  y_t = J x_t

Each node class has one rule in `RULES`: from the tangents of its arguments to its own. Tangents may
carry `batch` leading axes, as cotangents do in `vjp.py`. What is zero is None and is never built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import overload

import sympy

from symgrad.calculus import bodies
from symgrad.calculus.activity import active_nodes
from symgrad.calculus.building import (
    aligned,
    contract,
    converted,
    map_factor,
    reduce_factor,
    total,
    with_batch,
    zeros_node,
)
from symgrad.calculus.recurrences import fold_jvp
from symgrad.calculus.unfolding import is_heavy, unfolded
from symgrad.calculus.vjp import (
    as_targets,
    as_vectors,
    check_float,
    check_leaves,
    check_vectors,
    fresh_labels,
    merge_mask,
)
from symgrad.graph.dims import Shape
from symgrad.graph.errors import GradError
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import P, Y, placeholder
from symgrad.graph.leaves import ArrayLike
from symgrad.graph.nodes import (
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.passes import makes
from symgrad.graph.provenance import provenance
from symgrad.graph.scalars import placeholders_in
from symgrad.graph.traversal import replace, toposort

Tangents = Sequence[Node | None]
Rule = Callable[[Node, Tangents, Shape], Node | None]


@overload
def jvp(
    outputs: Node, wrt: Node | Sequence[Node], tangents: ArrayLike | Sequence[ArrayLike]
) -> tuple[Node, Node]: ...
@overload
def jvp(
    outputs: Sequence[Node],
    wrt: Node | Sequence[Node],
    tangents: ArrayLike | Sequence[ArrayLike],
) -> tuple[tuple[Node, ...], tuple[Node, ...]]: ...
def jvp(
    outputs: Node | Sequence[Node],
    wrt: Node | Sequence[Node],
    tangents: ArrayLike | Sequence[ArrayLike],
) -> tuple[Node | tuple[Node, ...], Node | tuple[Node, ...]]:
    """Outputs and their tangents, from tangents of `wrt`.

        output_t = sum over k of (d output / d wrt[k]) wrt_t[k]

    Args:
        outputs:  float nodes.
        wrt:      float nodes, anywhere in the graph.
        tangents: one per node of `wrt`, of its shape; all may have the same leading axes more.
    Returns: the outputs and their tangents in the structure of `outputs`.
    Raises: ShapeError, GradError.

    >>> from symgrad.graph.leaves import input
    >>> x, v = input("x", (3,)), input("v", (3,))
    >>> jvp(x * x, x, v)[1].shape
    (3,)
    """
    outs = (outputs,) if isinstance(outputs, Node) else tuple(outputs)
    targets = as_targets("jvp", wrt)
    check_leaves("jvp", [*((outputs,) if isinstance(outputs, Node) else outputs), *targets])
    single = isinstance(wrt, Node) and not isinstance(tangents, (tuple, list))
    given = (tangents,) if single else tuple(tangents)  # type: ignore[arg-type]
    if len(given) != len(targets):
        raise GradError(
            f"jvp: {len(targets)} nodes in wrt, but {len(given)} tangents. Give one for each."
        )
    for out in outs:
        check_float("jvp", "an output", out)
    vectors = as_vectors(given, targets)
    batch = check_vectors("jvp", "tangent", targets, vectors)
    lead = vectors[0].shape[:batch] if vectors else ()
    pairs = [(t, converted(v, t.dtype)) for t, v in zip(targets, vectors, strict=True)]
    made = push_forward(outs, pairs, lead)
    return (outs[0], made[0]) if isinstance(outputs, Node) else (outs, made)


@makes
def push_forward(
    outputs: Sequence[Node], seeds: Sequence[tuple[Node, Node]], lead: Shape
) -> tuple[Node, ...]:
    """Tangents of the outputs from (node, tangent) pairs with the leading axes `lead`."""
    made = walk_forward(outputs, seeds, lead)
    with provenance("jvp"):
        return tuple(
            made[o] if o in made else zeros_node((*lead, *o.shape), o.dtype) for o in outputs
        )


def walk_forward(
    outputs: Sequence[Node], seeds: Sequence[tuple[Node, Node]], lead: Shape
) -> dict[Node, Node]:
    """Tangents of all nodes that have one."""
    order = toposort(outputs)
    active = active_nodes(order, [node for node, _ in seeds])
    given: dict[Node, list[Node]] = {}
    for node, tangent in seeds:
        given.setdefault(node, []).append(tangent)
    made: dict[Node, Node] = {}
    folded: dict[Node, dict[int, Node]] = {}
    for node in order:
        if node not in active:
            continue
        with provenance("jvp", where=node.where):
            parts = list(given.get(node, ()))
            if isinstance(node, Fold):
                incoming = [made.get(arg) for arg in node.args]
                folded[node] = fold_jvp(node, incoming, lead, push_forward)
                continue
            if isinstance(node, Proj):
                own = folded.get(node.args[0], {}).get(node.place)
                if parts or own is not None:
                    made[node] = total([*parts, *([] if own is None else [own])])
                continue
            incoming = [made.get(arg) for arg in node.args]
            if any(t is not None for t in incoming):
                own = rule_of(node)(node, incoming, lead)
                parts += [] if own is None else [own]
            if parts:
                made[node] = total(parts)
    return made


def rule_of(node: Node) -> Rule:
    """The rule of a node's class."""
    rule = RULES.get(type(node))
    if rule is None:
        raise GradError(
            f"no tangent rule for {type(node).__name__}: add one in symgrad/calculus/jvp.py"
        )
    return rule


# -- rules: (node, tangents of its arguments, leading axes) -> tangent -----------------------------
def _map(node: Node, tangents: Tangents, lead: Shape) -> Node | None:
    # y = f(a, b):  y_t = df/da a_t + df/db b_t
    assert isinstance(node, Map)
    known = [
        (k, converted(t, node.dtype))
        for k, t in enumerate(tangents)
        if t is not None and (is_heavy(node) or bodies.slope(node.body, k) is not None)
    ]
    if not known:
        return None
    if is_heavy(node):
        return _map_unfolded(node, dict(known), lead)
    if lead:
        return total([t for k, v in known if (t := _map_batched(node, k, v, lead)) is not None])
    body, args = node.body, [*node.args, node, *(t for _, t in known)]
    sum_body = pushforward(body, tuple(k for k, _ in known), len(node.args))
    used = placeholders_in(sum_body)
    if sum_body == placeholder(len(node.args) + 1) and known[0][1].shape == node.shape:
        return known[0][1]
    places = [0] * len(args)
    for n, k in enumerate(used):
        places[k] = n
    return Map(
        tuple(args[k] for k in used), bodies.shift(sum_body, tuple(places), ()),
        node.shape, node.dtype,
    )


def _map_unfolded(node: Map, tangents: dict[int, Node], lead: Shape) -> Node | None:
    # y = f(g(a)) with a name for g(a):  the same walk, inside the body
    inner, leaves = unfolded(node)
    if inner.shape != node.shape or inner.dtype != node.dtype:
        inner = Map((inner,), P[0], node.shape, node.dtype)
    own = {k: Input(f"t{k}", t.shape, t.dtype) for k, t in tangents.items()}
    made = walk_forward([inner], [(leaves[k], own[k]) for k in tangents], lead)
    if inner not in made:
        return None
    outside: dict[Node, Node] = {own[k]: t for k, t in tangents.items()}
    outside.update(zip(leaves, node.args, strict=True))
    return replace([made[inner]], outside)[0]


@cache
def pushforward(body: sympy.Expr, known: tuple[int, ...], arity: int) -> sympy.Expr:
    """`sum of df/dp_k * tangent_k`: p_arity is the output, the tangents follow."""
    terms = []
    for n, k in enumerate(known):
        d = bodies.slope(body, k)
        assert d is not None
        d = d.xreplace({Y: placeholder(arity)})
        terms.append(bodies.product(placeholder(arity + 1 + n), d))
    return sympy.Add(*terms)


def _map_batched(node: Map, k: int, tangent: Node, lead: Shape) -> Node | None:
    found = map_factor(node, k)
    if found is None:
        return None
    d, batch, shape = found[0], len(lead), node.args[k].shape
    if d is not None and shape == node.shape:
        tangent, d = merge_mask(tangent, batch, d, node.shape)
    factors = [] if d is None else [(d, aligned(d.shape, node.shape, 2))]
    labels = aligned(shape, node.shape, 1)
    return contract(tangent, batch, labels, factors, range(node.ndim), node.shape)


def _einsum(node: Node, tangents: Tangents, lead: Shape) -> Node | None:
    # out = sum a b:  out_t = sum a_t b + sum a b_t
    assert isinstance(node, Einsum)
    parts = []
    for k, tangent in enumerate(tangents):
        if tangent is None:
            continue
        others = [
            (arg, labels)
            for j, (arg, labels) in enumerate(zip(node.args, node.labels, strict=True))
            if j != k
        ]
        parts.append(
            contract(tangent, len(lead), node.labels[k], others, node.out, node.shape, k)
        )
    return total(parts)


def _reduce(node: Node, tangents: Tangents, lead: Shape) -> Node | None:
    assert isinstance(node, Reduce)
    (x,), tangent = node.args, tangents[0]
    assert tangent is not None
    if node.op == "cumsum":
        return Reduce((tangent,), "cumsum", (node.axes[0] + len(lead),))
    factor, labels, out = reduce_factor(node)
    return contract(tangent, len(lead), range(x.ndim), [(factor, labels)], out, node.shape)


def _reindex(node: Node, tangents: Tangents, lead: Shape) -> Node | None:
    assert isinstance(node, Reindex)
    pairs = [
        (t, with_batch(piece, lead))
        for t, piece in zip(tangents, node.pieces, strict=True)
        if t is not None
    ]
    return Reindex(
        tuple(t for t, _ in pairs), tuple(p for _, p in pairs), (*lead, *node.shape)
    )


def _gather(node: Node, tangents: Tangents, lead: Shape) -> Node | None:
    assert isinstance(node, Gather)
    labels = fresh_labels(node.out, node.index_labels, node.source_axes, len(lead))
    source = tangents[0]
    assert source is not None
    return Gather(
        (source, *node.args[1:]), (*labels, *node.source_axes), node.index_labels,
        (*labels, *node.out), node.wrap,
    )


def _scatter(node: Node, tangents: Tangents, lead: Shape) -> Node | None:
    assert isinstance(node, Scatter)
    labels = fresh_labels(node.update_labels, node.index_labels, node.target_axes, len(lead))
    updates = tangents[0]
    assert updates is not None
    return Scatter(
        (updates, *node.args[1:]), (*labels, *node.update_labels), node.index_labels,
        (*labels, *node.target_axes), (*lead, *node.shape), node.wrap,
    )


RULES: dict[type[Node], Rule] = {
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Reindex: _reindex,
    Gather: _gather,
    Scatter: _scatter,
}
