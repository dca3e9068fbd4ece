"""Cotangents and tangents of a Fold: again Folds, over residuals of the primal one.

    forward    c[t+1], y[t] = f(c[t], x[t], k)
    reverse    c_ct[t], x_ct[t], k_ct += (df)' (c_ct[t+1], y_ct[t])      at c[t], x[t], k
    tangent    c_t[t+1], y_t[t] = (df) (c_t[t], x_t[t], k_t)             at c[t], x[t], k

The primal Fold is widened: it also emits c[t], the residual that both read. Simplification makes
one Fold of the primal as written and the widened ones. A reverse Fold runs against the direction of
its primal. Werbos, Backpropagation through time, 1990.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from symgrad.calculus.activity import active_nodes, moving_binders, reached_binders
from symgrad.calculus.building import total, zeros_node
from symgrad.graph.dims import Shape
from symgrad.graph.folds import Fold, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, einsum_node
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import replace

Pull = Callable[[Sequence[tuple[Node, Node]], Sequence[Node], int], tuple[Node, ...]]
Push = Callable[[Sequence[Node], Sequence[tuple[Node, Node]], Shape], tuple[Node, ...]]


def widened(fold: Fold) -> tuple[Fold, tuple[Node, ...]]:
    """The Fold that also emits its carry before each step, and these residuals, stacked."""
    before = fold.binders[0]
    body = Graph(fold.body.inputs, (*fold.body.outputs, *before))
    wide = Fold(fold.args, body, fold.structure, fold.carries, fold.sequences)
    return wide, projections(wide)[len(fold.body.outputs) :]


def time_first(node: Node, batch: int) -> Node:
    """(batch.., T, ...) -> (T, batch.., ...)."""
    labels = tuple(range(node.ndim))
    out = (labels[batch], *labels[:batch], *labels[batch + 1 :])
    return node if not batch else einsum_node([node], [labels], out)


def batch_first(node: Node, batch: int) -> Node:
    """(T, batch.., ...) -> (batch.., T, ...)."""
    labels = tuple(range(node.ndim))
    out = (*labels[1 : batch + 1], 0, *labels[batch + 1 :])
    return node if not batch else einsum_node([node], [labels], out)


def _renewed(fold: Fold) -> tuple[list[Input], list[Node]]:
    """The body over binders of its own: no two bodies share one. Binders, then outputs."""
    fresh: list[Input] = [binder(b.name, b.shape, b.dtype) for b in fold.body.inputs]
    with own_provenance():
        return fresh, replace(fold.body.outputs, dict(zip(fold.body.inputs, fresh, strict=True)))


def fold_vjp(
    fold: Fold, given: Mapping[int, Node], batch: int, needs: Sequence[bool], pull: Pull
) -> list[Node | None]:
    """Cotangents of a Fold's arguments from those of its results.

    Args:
        given: cotangents of results, by place.
        batch: how many leading axes the cotangents have more.
        needs: which arguments need one.
        pull:  reverse mode of the body.
    """
    active = reached_binders(fold, given, moving_binders(fold, needs))
    if not any(active):
        return [None] * len(fold.args)
    lead = next(iter(given.values())).shape[:batch]
    n, m = fold.carries, fold.carries + fold.sequences
    primal, outputs = _renewed(fold)
    on = active_nodes(
        Graph(tuple(primal), tuple(outputs)).nodes,
        [b for b, a in zip(primal, active, strict=True) if a],
    )

    def cotangent(name: str, node: Node) -> Input:
        return binder(f"{name}_ct", (*lead, *node.shape), node.dtype)

    after = {k: cotangent(primal[k].name, primal[k]) for k in range(n) if active[k]}
    sums = {k: cotangent(primal[k].name, primal[k]) for k in range(m, len(primal)) if active[k]}
    emitted = [k for k in given if k >= n and outputs[k] in on]
    arriving = {k: cotangent(f"y{k - n}", outputs[k]) for k in emitted}
    seeds = [(outputs[k], ct) for k, ct in (*after.items(), *arriving.items())]
    wanted = [k for k, a in enumerate(active) if a]
    cts = dict(zip(wanted, pull(seeds, [primal[k] for k in wanted], batch), strict=True))

    elements = [k for k in wanted if n <= k < m]
    body = Graph(
        (*after.values(), *sums.values(), *primal[:m], *arriving.values(), *primal[m:]),
        (*(cts[k] for k in after), *(total([ct, cts[k]]) for k, ct in sums.items()),
         *(cts[k] for k in elements)),
    )
    starts = [
        given[k] if k in given else zeros_node(ct.shape, ct.dtype) for k, ct in after.items()
    ]
    zeros = [zeros_node(ct.shape, ct.dtype) for ct in sums.values()]
    _, residuals = widened(fold)
    sequences = (*residuals, *fold.xs, *(time_first(given[k], batch) for k in emitted))
    back = Fold(
        (*starts, *zeros, *sequences, *fold.consts), body,
        dataclasses.replace(fold.structure, reverse=not fold.structure.reverse),
        len(starts) + len(zeros), len(sequences),
    )
    results = iter(projections(back))
    found: dict[int, Node] = {k: next(results) for k in (*after, *sums)}
    found |= {k: batch_first(next(results), batch) for k in elements}
    return [found.get(k) if need else None for k, need in enumerate(needs)]


def fold_jvp(
    fold: Fold, tangents: Sequence[Node | None], lead: Shape, push: Push
) -> dict[int, Node]:
    """Tangents of a Fold's results from those of its arguments, by place.

    Args:
        tangents: of the arguments; None is zero.
        lead:     the leading axes that tangents have more.
        push:     forward mode of the body.
    """
    batch, n, m = len(lead), fold.carries, fold.carries + fold.sequences
    active = moving_binders(fold, [t is not None for t in tangents])
    primal, outputs = _renewed(fold)
    own = {
        k: binder(f"{b.name}_t", (*lead, *b.shape), b.dtype)
        for k, b in enumerate(primal) if active[k]
    }
    on = active_nodes(Graph(tuple(primal), tuple(outputs)).nodes, [primal[k] for k in own])
    moving = [k for k in own if k < n]
    emitted = [k for k in range(n, len(outputs)) if outputs[k] in on]
    seeds: list[tuple[Node, Node]] = [(primal[k], b) for k, b in own.items()]
    made = push([outputs[k] for k in (*moving, *emitted)], seeds, lead)
    elements = [k for k in own if n <= k < m]
    consts = [k for k in own if k >= m]
    body = Graph(
        (*(own[k] for k in moving), *primal[:m], *(own[k] for k in elements),
         *primal[m:], *(own[k] for k in consts)),
        tuple(made),
    )

    def tangent(k: int) -> Node:
        known = tangents[k]
        return zeros_node(own[k].shape, own[k].dtype) if known is None else known

    _, residuals = widened(fold)
    sequences = [*residuals, *fold.xs, *(time_first(tangent(k), batch) for k in elements)]
    pushed = Fold(
        (*map(tangent, moving), *sequences, *fold.consts, *map(tangent, consts)),
        body, fold.structure, len(moving), len(sequences),
    )
    results = projections(pushed)
    found: dict[int, Node] = dict(zip(moving, results, strict=False))
    found |= {k: batch_first(results[len(moving) + j], batch) for j, k in enumerate(emitted)}
    return found
