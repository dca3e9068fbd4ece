"""Reverse mode: the cotangents of all that an expression depends on, in one walk from its end.

    vjp:  x_ct = J' y_ct        grad:  the cotangents of a scalar loss, y_ct = 1

Each node class has one rule in `RULES`: from the node's cotangent to those of its arguments, as
expressions made of the same nodes. A cotangent may carry `batch` leading axes
(shape `batch + node.shape`): a Jacobian is a vjp whose cotangent is a unit tensor. What is zero is
None and is never built; nodes that do not lie on a path to `wrt` are not visited.

Linnainmaa 1976; Griewank and Walther, Evaluating Derivatives, 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import overload

from symgrad.calculus import bodies
from symgrad.calculus.activity import active_nodes
from symgrad.calculus.building import (
    aligned,
    contract,
    converted,
    equal_shapes,
    flip_node,
    is_unit,
    literal,
    map_factor,
    mask_of,
    masked_map,
    reduce_factor,
    reduce_to,
    total,
    with_batch,
    zeros_node,
)
from symgrad.calculus.recurrences import fold_vjp
from symgrad.calculus.unfolding import is_heavy, unfolded
from symgrad.graph.dims import Shape, show
from symgrad.graph.dtypes import is_float
from symgrad.graph.errors import GradError, ShapeError
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import P
from symgrad.graph.graph import check_names
from symgrad.graph.leaves import ArrayLike, as_node, cast
from symgrad.graph.nodes import (
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    adjoint_of,
    describe,
    einsum_node,
    reshape_node,
    whole,
)
from symgrad.graph.passes import makes
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import replace, toposort

Cotangents = Sequence[Node | None]
Rule = Callable[[Node, Node, int, Sequence[bool]], Cotangents]


# -- public ----------------------------------------------------------------------------------------
@overload
def grad(loss: Node, wrt: Node) -> Node: ...
@overload
def grad(loss: Node, wrt: Sequence[Node]) -> tuple[Node, ...]: ...
def grad(loss: Node, wrt: Node | Sequence[Node]) -> Node | tuple[Node, ...]:
    """The gradient of a scalar, as expressions.

        grad[k] = d loss / d wrt[k]

    Args:
        loss: a float scalar.
        wrt:  a float node, or several; any node may stand here: it gets its total cotangent, zeros
              where the loss does not depend on it.
    Returns: one expression in the shape of `wrt`, or a tuple of them.
    Raises: ShapeError when the loss is no scalar, GradError when something is no float.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", ())
    >>> grad(x * x, x).body
    2*p0
    """
    return value_and_grad(loss, wrt)[1]


@overload
def value_and_grad(loss: Node, wrt: Node) -> tuple[Node, Node]: ...
@overload
def value_and_grad(loss: Node, wrt: Sequence[Node]) -> tuple[Node, tuple[Node, ...]]: ...
def value_and_grad(
    loss: Node, wrt: Node | Sequence[Node]
) -> tuple[Node, Node | tuple[Node, ...]]:
    """The loss and its gradient, `(loss, grad(loss, wrt))`; see `grad`, also for what it raises.

    >>> import symgrad as sg
    >>> x = sg.input("x", (2,))
    >>> loss, slope = sg.value_and_grad(sg.sum(x * x), x)
    >>> sg.evaluate([loss, slope], {x: [1.0, 2.0]})
    [array(5., dtype=float32), array([2., 4.], dtype=float32)]
    """
    loss, found = gradients("grad", loss, wrt)
    return loss, found[0] if isinstance(wrt, Node) else found


def gradients(
    asked: str, loss: Node, wrt: Node | Sequence[Node]
) -> tuple[Node, tuple[Node, ...]]:
    """The loss and its gradient by each node of `wrt`; `asked` begins the messages."""
    loss = as_node(loss)
    if loss.shape:
        raise ShapeError(
            f"{asked}: the loss must be a scalar, got shape {show(loss.shape)}\n"
            f"  {describe(loss)}\n  Reduce it first with sum() or mean(), or use jacobian."
        )
    check_float(asked, "the loss", loss)
    targets = as_targets(asked, wrt)
    check_leaves(asked, [loss, *targets])
    return loss, pull_back([(loss, literal(1.0, loss.dtype))], targets, 0)


def vjp(
    outputs: Node | Sequence[Node],
    wrt: Node | Sequence[Node],
    cotangents: ArrayLike | Sequence[ArrayLike],
) -> tuple[Node, ...]:
    """Cotangents of `wrt` from cotangents of the outputs.

        wrt_ct[k] = sum over outputs of (d output / d wrt[k])' output_ct

    Args:
        outputs:    float nodes.
        wrt:        float nodes, anywhere in the graph.
        cotangents: one per output, of its shape; all may have the same leading axes more.
    Returns: one expression per node of `wrt`, with the same leading axes.
    Raises: ShapeError, GradError.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (3,))
    >>> vjp(2.0 * x, x, input("c", (5, 3)))[0].shape
    (5, 3)
    """
    outs = (outputs,) if isinstance(outputs, Node) else tuple(outputs)
    single = isinstance(outputs, Node) and not isinstance(cotangents, (tuple, list))
    given = (cotangents,) if single else tuple(cotangents)  # type: ignore[arg-type]
    if len(given) != len(outs):
        raise GradError(
            f"vjp: {len(outs)} outputs, but {len(given)} cotangents. Give one for each."
        )
    for out in outs:
        check_float("vjp", "an output", out)
    seeds = as_vectors(given, outs)
    batch = check_vectors("vjp", "cotangent", outs, seeds)
    targets = as_targets("vjp", wrt)
    check_leaves("vjp", [*outs, *targets])
    pairs = [(o, converted(ct, o.dtype)) for o, ct in zip(outs, seeds, strict=True)]
    return pull_back(pairs, targets, batch)


# -- checks that reverse and forward mode share ----------------------------------------------------
def as_targets(asked: str, wrt: Node | Sequence[Node]) -> tuple[Node, ...]:
    """The nodes to differentiate by.

    Raises: GradError when one is no expression or no float, and for what has no order or no length.
    """
    if isinstance(wrt, (Set, Mapping, str)) or not isinstance(wrt, (Node, Iterable)):
        order = " A set has no order." if isinstance(wrt, Set) else ""
        raise GradError(
            f"{asked}: wrt must be an expression, or a list or tuple of them, "
            f"got {type(wrt).__name__}.{order} Pass the leaves, not their names or values."
        )
    targets = (wrt,) if isinstance(wrt, Node) else tuple(wrt)
    for target in targets:
        if not isinstance(target, Node):
            raise GradError(
                f"{asked}: wrt must be an expression, or a list or tuple of them, got "
                f"{type(target).__name__} among them. Pass the leaves, not their names or values."
            )
        check_float(asked, "wrt", target)
    return targets


def check_leaves(asked: str, nodes: Sequence[Node]) -> None:
    """Raises: LeafError when two leaves that nodes depend on have one name."""
    own = (n for n in toposort(nodes) if isinstance(n, Input) and n.kind in ("input", "parameter"))
    check_names(own, f"{asked}: ")


def as_vectors(values: Sequence[ArrayLike], nodes: Sequence[Node]) -> list[Node]:
    """Values as (co)tangents of nodes; literals take the dtypes of the nodes."""
    made = [as_node(v, n.dtype) for v, n in zip(values, nodes, strict=True)]
    return [
        new if new is given else cast(new, node.dtype)
        for new, given, node in zip(made, values, nodes, strict=True)
    ]


def check_float(asked: str, role: str, node: Node) -> None:
    """Raise GradError when a node is no float."""
    if not is_float(node.dtype):
        raise GradError(
            f"{asked}: {role} must be float, got {node.dtype}\n  {describe(node)}\n"
            "  Integers and bools have no derivative. Convert with astype(x, 'float32') first."
        )


def check_vectors(asked: str, role: str, nodes: Sequence[Node], vectors: Sequence[Node]) -> int:
    """The number of leading axes that all (co)tangents have more than their nodes.

    Raises: ShapeError when shapes do not fit, GradError when one is no float.
    """
    batches: set[int] = set()
    lead: Shape = ()
    for node, vector in zip(nodes, vectors, strict=True):
        check_float(asked, f"a {role}", vector)
        batch = vector.ndim - node.ndim
        if batch < 0 or not equal_shapes(vector.shape[batch:], node.shape):
            raise ShapeError(
                f"{asked}: a {role} does not fit\n  {role:<10} {show(vector.shape)}\n"
                f"  of         {describe(node)}\n"
                "  It must have the node's shape, after leading axes common to all."
            )
        lead = vector.shape[:batch] if not batches else lead
        batches.add(batch)
        if not equal_shapes(lead, vector.shape[:batch]):
            batches.add(-1)
    if len(batches) > 1:
        shapes = ", ".join(show(v.shape) for v in vectors)
        raise ShapeError(f"{asked}: the leading axes of the {role}s differ: {shapes}.")
    return batches.pop() if batches else 0


# -- the walk --------------------------------------------------------------------------------------
@makes
def pull_back(
    seeds: Sequence[tuple[Node, Node]], targets: Sequence[Node], batch: int
) -> tuple[Node, ...]:
    """Cotangents of the targets from (output, cotangent) pairs; see `vjp`."""
    found = walk_back(seeds, targets, batch)
    lead = seeds[0][1].shape[:batch] if seeds else ()
    for target in targets:
        if target not in found:
            with provenance("vjp", target):
                found[target] = zeros_node((*lead, *target.shape), target.dtype)
    return tuple(found[target] for target in targets)


def walk_back(
    seeds: Sequence[tuple[Node, Node]], targets: Sequence[Node], batch: int,
    primal: Node | None = None,
) -> dict[Node, Node]:
    """Cotangents of the targets that are reached; `primal` is what new nodes are backward of."""
    order = toposort([output for output, _ in seeds])
    active = active_nodes(order, targets)
    wanted = set(targets)
    pending: dict[Node, list[Node]] = {}
    for output, ct in seeds:
        if output in active:
            pending.setdefault(output, []).append(ct)
    found: dict[Node, Node] = {}
    folded: dict[Node, dict[int, Node]] = {}
    for node in reversed(order):
        parts = pending.pop(node, None)
        if parts is None:
            continue
        with provenance("vjp", node if primal is None else primal, node.where):
            apart = len(parts) == 1 or isinstance(node, Fold)
            ct = parts[0] if apart else total(parts)
            if node in wanted:
                found[node] = ct
            needs = [arg in active for arg in node.args]
            if not any(needs):
                continue
            made: Cotangents
            if isinstance(node, Proj):  # a Fold has one cotangent for each of its results
                folded.setdefault(node.args[0], {})[node.place] = ct
                made = [ct]
            elif isinstance(node, Fold):
                made = fold_vjp(node, folded.pop(node), batch, needs, pull_back)
            else:
                made = rule_of(node)(node, ct, batch, needs)
            for arg, part in zip(node.args, made, strict=True):
                if part is not None and arg in active:
                    pending.setdefault(arg, []).append(part)
    return found


def rule_of(node: Node) -> Rule:
    """The rule of a node's class."""
    rule = RULES.get(type(node))
    if rule is None:
        raise GradError(
            f"no cotangent rule for {type(node).__name__}: add one in symgrad/calculus/vjp.py"
        )
    return rule


# -- rules: (node, ct, batch, needs) -> cotangents of the arguments --------------------------------
def _map(node: Node, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    # y = f(a, b):  a_ct = sum over stretched axes of y_ct * df/da
    assert isinstance(node, Map)
    if is_heavy(node):
        return _map_unfolded(node, ct, batch, needs)
    if batch:
        return [
            _map_batched(node, k, ct, batch) if need else None for k, need in enumerate(needs)
        ]
    return [_map_plain(node, k, ct) if need else None for k, need in enumerate(needs)]


def _map_unfolded(node: Map, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    # y = f(g(a)) with a name for g(a):  the same walk, inside the body
    inner, leaves = unfolded(node)
    if inner.shape != node.shape or inner.dtype != node.dtype:
        inner = Map((inner,), P[0], node.shape, node.dtype)
    own = Input("ct", ct.shape, ct.dtype)
    targets = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
    found = walk_back([(inner, own)], targets, batch, node)
    known = [leaf for leaf in targets if leaf in found]
    outside: dict[Node, Node] = {own: ct, **dict(zip(leaves, node.args, strict=True))}
    parts = dict(zip(known, replace([found[leaf] for leaf in known], outside), strict=True))
    mask = None if batch else mask_of(ct)
    return [
        masked_map(P[0], (part,), mask, part.shape, part.dtype)
        if (part := parts.get(leaf)) is not None and mask and part.shape == node.shape
        else part
        for leaf in leaves
    ]


def _map_plain(node: Map, k: int, ct: Node) -> Node | None:
    arg = node.args[k]
    unit = is_unit(ct)
    d = bodies.factor(node.body, k) if unit else bodies.pullback(node.body, k)
    if d is None:
        return None
    if d.body == (1 if unit else P[0]):
        made = ct
    else:
        args = (*(node.args[j] for j in d.needs), *((node,) if d.output else ()))
        args = args if unit else (ct, *args)
        if d.body == P[0] and (args[0].shape, args[0].dtype) == (node.shape, node.dtype):
            made = args[0]
        else:
            made = masked_map(d.body, args, mask_of(ct), node.shape, node.dtype)
    return converted(reduce_to(made, 0, node.shape, arg.shape), arg.dtype)


def _map_batched(node: Map, k: int, ct: Node, batch: int) -> Node | None:
    # the same as a contraction with the tensor df/da, so that unit tensors can be eliminated
    found = map_factor(node, k)
    if found is None:
        return None
    d, arg = found[0], node.args[k]
    if d is None:
        return converted(reduce_to(ct, batch, node.shape, arg.shape), arg.dtype)
    labels = tuple(range(node.ndim))
    ct, d = merge_mask(ct, batch, d, node.shape)
    factors = [] if d is None else [(d, aligned(d.shape, node.shape, 2))]
    made = contract(ct, batch, labels, factors, aligned(arg.shape, node.shape, 1), arg.shape)
    return converted(made, arg.dtype)


def merge_mask(ct: Node, batch: int, d: Node, shape: Shape) -> tuple[Node, Node | None]:
    """Keep masks in a product of a contraction with an elementwise factor.

        Einsum(.., select(c, g, 0)) * d = Einsum(.., select(c, g * d, 0))

    and the same with g and d exchanged.

    Returns: the contraction, and what is still to be multiplied with it.
    """
    if not isinstance(ct, Einsum) or len(ct.args) < 2:
        return ct, d
    axes = ct.out[batch:]
    for n, (arg, labels) in enumerate(zip(ct.args, ct.labels, strict=True)):
        if labels != axes or not isinstance(arg, Map) or arg.shape != shape:
            continue
        mask_g, mask_d = mask_of(arg), mask_of(d)
        if mask_g is None and mask_d is None:
            continue
        inner, outer = (arg, d) if mask_g is not None else (d, arg)
        made = masked_map(
            P[0] * P[1], (inner, outer), mask_g or mask_d, shape, arg.dtype
        )
        args = (*ct.args[:n], made, *ct.args[n + 1 :])
        return einsum_node(args, ct.labels, ct.out, dict(enumerate(ct.extents))), None
    return ct, d


def _einsum(node: Node, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    # out = sum a b c:  a_ct = sum out_ct b c;  labels that only a has are broadcast
    assert isinstance(node, Einsum)
    parts: list[Node | None] = []
    for k, need in enumerate(needs):
        others = [
            (arg, labels)
            for j, (arg, labels) in enumerate(zip(node.args, node.labels, strict=True))
            if j != k
        ]
        parts.append(
            contract(ct, batch, node.out, others, node.labels[k], node.args[k].shape, k)
            if need else None
        )
    return parts


def _reduce(node: Node, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    assert isinstance(node, Reduce)
    (x,) = node.args
    if node.op == "cumsum":
        # y_k = sum_{j <= k} x_j:  x_ct_j = sum_{k >= j} y_ct_k
        axis = node.axes[0] + batch
        return [flip_node(Reduce((flip_node(ct, axis),), "cumsum", (axis,)), axis)]
    if node.op in ("argmax", "argmin"):
        return [None]
    factor, labels, out = reduce_factor(node)
    return [contract(ct, batch, out, [(factor, labels)], range(x.ndim), x.shape)]


def _reindex(node: Node, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    # out[offset + stride k] = a[start + step k]:  a_ct[start + step k] = out_ct[offset + stride k]
    assert isinstance(node, Reindex)
    lead = ct.shape[:batch]
    parts: list[Node | None] = []
    for arg, piece, need in zip(node.args, node.pieces, needs, strict=True):
        if not need:
            parts.append(None)
            continue
        back = with_batch(adjoint_of(piece, node.shape), lead)
        moved = move_node(ct, back, (*lead, *piece.view))
        parts.append(reshape_node(moved, (*lead, *arg.shape)))
    return parts


def move_node(x: Node, piece: Piece, shape: Shape) -> Node:
    """One affine move; `x` itself where it moves everything to where it is."""
    if piece == whole(shape) and x.shape == shape:
        return x
    return Reindex((x,), (piece,), shape)


def _gather(node: Node, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    # out[i..] = a[index[i..]]:  a_ct[index[i..]] += out_ct[i..]
    assert isinstance(node, Gather)
    lead = fresh_labels(node.out, node.index_labels, node.source_axes, batch)
    source, *indices = node.args
    made = Scatter(
        (ct, *indices), (*lead, *node.out), node.index_labels, (*lead, *node.source_axes),
        (*ct.shape[:batch], *source.shape), node.wrap,
    )
    return [made, *(None for _ in indices)]


def _scatter(node: Node, ct: Node, batch: int, needs: Sequence[bool]) -> Cotangents:
    # out[index[i..]] += a[i..]:  a_ct[i..] = out_ct[index[i..]]
    assert isinstance(node, Scatter)
    lead = fresh_labels(node.update_labels, node.index_labels, node.target_axes, batch)
    _updates, *indices = node.args
    made: Node = Gather(
        (ct, *indices), (*lead, *node.target_axes), node.index_labels,
        (*lead, *node.update_labels), node.wrap,
    )
    return [made, *(None for _ in indices)]


def fresh_labels(
    out: Sequence[int], index_labels: Sequence[Sequence[int]], axes: Sequence[int], batch: int
) -> tuple[int, ...]:
    """Labels for leading axes that a Gather or Scatter does not use yet."""
    top = 1 + max([-1, *out, *axes, *(k for group in index_labels for k in group)])
    return tuple(range(top, top + batch))


RULES: dict[type[Node], Rule] = {
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Reindex: _reindex,
    Gather: _gather,
    Scatter: _scatter,
}
