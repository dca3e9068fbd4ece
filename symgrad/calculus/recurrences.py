"""Cotangents and tangents of a Fold: again Folds, over residuals of the primal one.

    forward    c[t+1], y[t] = f(c[t], x[t], k)
    reverse    c_ct[t], x_ct[t], k_ct += (df)' (c_ct[t+1], y_ct[t])      at c[t], x[t], k
    tangent    c_t[t+1], y_t[t] = (df) (c_t[t], x_t[t], k_t)             at c[t], x[t], k

The primal Fold is widened: it also emits c[t], the residual that both read. `merge_folds` makes one of
the Fold as written and the widened ones. A reverse Fold runs against the direction of its primal.
Werbos, Backpropagation through time, 1990.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from symgrad.calculus.building import zeros_node
from symgrad.graph.dims import Shape
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Chain, Fold, Proj, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, einsum_node
from symgrad.graph.traversal import reconnect, rebuild, replace, toposort

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


def _renewed(inputs: Sequence[Input]) -> dict[Input, Input]:
    """Fresh binders in the place of these: no two bodies share one."""
    return {b: binder(b.name, b.shape, b.dtype) for b in inputs}


def _varying(fold: Fold, moving: Sequence[bool]) -> list[bool]:
    """Which binders of the body depend on moving arguments, once carries have gone round."""
    active = [m and is_float(b.dtype) for m, b in zip(moving, fold.body.inputs, strict=True)]
    while True:
        on = {b for b, a in zip(fold.body.inputs, active, strict=True) if a}
        for node in fold.body.nodes:
            if _carries_change(node) and any(a in on for a in node.args):
                on.add(node)
        grown = list(active)
        for k in range(fold.carries):
            grown[k] = active[k] or fold.body.outputs[k] in on
        if grown == active:
            return active
        active = grown


def _carries_change(node: Node) -> bool:
    return is_float(node.dtype) or isinstance(node, Fold)


def fold_vjp(
    fold: Fold, parts: Sequence[tuple[int, Node]], batch: int, needs: Sequence[bool], pull: Pull
) -> list[Node | None]:
    """Cotangents of a Fold's arguments from those of its results.

    Args:
        parts: (result, cotangent) pairs; several for one result are summed.
        batch: how many leading axes the cotangents have more.
        needs: which arguments need one.
        pull:  reverse mode of the body.
    """
    from symgrad.calculus.building import total

    gathered: dict[int, list[Node]] = {}
    for place, ct in parts:
        gathered.setdefault(place, []).append(ct)
    given = {place: total(cts) for place, cts in gathered.items()}
    lead = next(iter(given.values())).shape[:batch]
    active = _varying(fold, needs)
    n, m = fold.carries, fold.carries + fold.sequences
    wide, residuals = widened(fold)

    fresh = _renewed(fold.body.inputs)
    outputs = replace(fold.body.outputs, fresh)
    primal = [fresh[b] for b in fold.body.inputs]
    moving = [k for k in range(n) if active[k]]
    summed = [k for k in range(m, len(primal)) if active[k]]
    after = {k: binder(f"carry{k}_ct", (*lead, *primal[k].shape), primal[k].dtype) for k in moving}
    sums = {k: binder(f"const{k - m}_ct", (*lead, *primal[k].shape), primal[k].dtype)
            for k in summed}
    emitted = [k for k in range(n, len(outputs)) if k in given and is_float(outputs[k].dtype)]
    arriving = {k: binder(f"y{k - n}_ct", (*lead, *outputs[k].shape), outputs[k].dtype)
                for k in emitted}
    seeds = [(outputs[k], after[k]) for k in moving] + [(outputs[k], arriving[k]) for k in emitted]
    wanted = [primal[k] for k in range(len(primal)) if active[k]]
    cts = dict(zip([k for k in range(len(primal)) if active[k]], pull(seeds, wanted, batch),
                   strict=True))

    sequence_cts = [k for k in range(n, m) if active[k]]
    body = Graph(
        (*after.values(), *sums.values(), *primal[:n], *primal[n:m], *arriving.values(),
         *primal[m:]),
        (*(cts[k] for k in moving), *(_sum(sums[k], cts[k]) for k in summed),
         *(cts[k] for k in sequence_cts)),
    )
    starts = [
        given.get(k, zeros_node((*lead, *primal[k].shape), primal[k].dtype)) for k in moving
    ]
    zeros = [zeros_node(sums[k].shape, sums[k].dtype) for k in summed]
    sequences = (*residuals, *fold.xs, *(time_first(given[k], batch) for k in emitted))
    back = Fold(
        (*starts, *zeros, *sequences, *fold.consts), body,
        Chain(fold.structure.length, not fold.structure.reverse),
        len(starts) + len(zeros), len(sequences),
    )
    results = iter(projections(back))
    found: dict[int, Node] = {k: next(results) for k in (*moving, *summed)}
    found |= {k: batch_first(next(results), batch) for k in sequence_cts}
    return [found.get(k) if needs[k] else None for k in range(len(fold.args))]


def _sum(a: Node, b: Node) -> Node:
    from symgrad.calculus.building import total

    return total([a, b])


def fold_jvp(
    fold: Fold, tangents: Sequence[Node | None], lead: Shape, push: Push
) -> dict[int, Node]:
    """Tangents of a Fold's results from those of its arguments, by result.

    Args:
        tangents: of the arguments; None is zero.
        lead:     the leading axes that tangents have more.
        push:     forward mode of the body.
    """
    batch = len(lead)
    active = _varying(fold, [t is not None for t in tangents])
    n, m = fold.carries, fold.carries + fold.sequences
    _, residuals = widened(fold)
    fresh = _renewed(fold.body.inputs)
    outputs = replace(fold.body.outputs, fresh)
    primal = [fresh[b] for b in fold.body.inputs]
    moving = [k for k in range(n) if active[k]]
    others = [k for k in range(n, len(primal)) if active[k]]
    own = {k: binder(f"{primal[k].name}_t", (*lead, *primal[k].shape), primal[k].dtype)
           for k in (*moving, *others)}
    on = {primal[k] for k in own}
    for node in toposort(outputs):
        if _carries_change(node) and any(a in on for a in node.args):
            on.add(node)
    emitted = [k for k in range(n, len(outputs)) if outputs[k] in on]
    made = dict(zip(
        [*moving, *emitted],
        push([outputs[k] for k in (*moving, *emitted)], [(primal[k], b) for k, b in own.items()],
             lead),
        strict=True,
    ))
    sequences = [k for k in others if k < m]
    consts = [k for k in others if k >= m]
    body = Graph(
        (*(own[k] for k in moving), *primal[:n], *primal[n:m], *(own[k] for k in sequences),
         *primal[m:], *(own[k] for k in consts)),
        (*(made[k] for k in moving), *(made[k] for k in emitted)),
    )

    def start(k: int) -> Node:
        tangent = tangents[k]
        return zeros_node((*lead, *primal[k].shape), primal[k].dtype) if tangent is None else tangent

    stacked = [*residuals, *fold.xs, *(time_first(_given(tangents, k), batch) for k in sequences)]
    tangent = Fold(
        (*(start(k) for k in moving), *stacked, *fold.consts,
         *(_given(tangents, k) for k in consts)),
        body, fold.structure, len(moving), len(stacked),
    )
    results = projections(tangent)
    found = dict(zip(moving, results, strict=False))
    found |= {k: batch_first(results[len(moving) + j], batch) for j, k in enumerate(emitted)}
    return found


def _given(tangents: Sequence[Node | None], k: int) -> Node:
    tangent = tangents[k]
    assert tangent is not None
    return tangent


# -- simplification --------------------------------------------------------------------------------
def merge_folds(outputs: Sequence[Node]) -> list[Node]:
    """rewrite: Folds over the same arguments whose bodies continue each other -> one Fold
    requires: the same binders, and the same next carry
    keeps:    every result; what nothing reads is dropped by `drop_results`
    """
    groups: dict[object, list[Fold]] = {}
    for node in toposort(outputs):
        if isinstance(node, Fold):
            next_carry = tuple(map(id, node.body.outputs[: node.carries]))
            binders = tuple(map(id, node.body.inputs))
            args = tuple(map(id, node.args))
            groups.setdefault((args, binders, next_carry, node.structure), []).append(node)
    merged: dict[Fold, tuple[Fold, dict[int, int]]] = {}
    for folds in groups.values():
        if len(folds) < 2:
            continue
        first = folds[0]
        n = first.carries
        ys: dict[Node, int] = {}
        for fold in folds:
            for y in fold.body.outputs[n:]:
                ys.setdefault(y, n + len(ys))
        body = Graph(first.body.inputs, (*first.body.outputs[:n], *ys))
        wide = Fold(first.args, body, first.structure, n, first.sequences)
        for fold in folds:
            places = {k: k for k in range(n)}
            places |= {n + k: ys[y] for k, y in enumerate(fold.body.outputs[n:])}
            merged[fold] = (wide, places)
    if not merged:
        return list(outputs)

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if isinstance(node, Proj) and node.args[0] in merged:
            wide, places = merged[node.args[0]]
            return Proj((wide.with_args(args[0].args),), places[node.place])
        return reconnect(node, args)

    return rebuild(outputs, rule)
