"""The NumPy meaning of the nodes as they are written.

Nothing is simplified, stabilised or fused here: this is what every pass and every target is
measured against. Each node class has one function; a new node is one entry in `MEANING`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from symgrad.graph import dims as dm
from symgrad.graph.binding import Array, Binding
from symgrad.graph.dim_inference import infer_dims
from symgrad.graph.dims import Dim
from symgrad.graph.errors import DataError, LeafError
from symgrad.graph.folds import Fold, Proj, Rows, counted_by, in_rows
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    describe,
)
from symgrad.graph.positions import out_of_range
from symgrad.graph.scalars import evaluate_scalar
from symgrad.graph.streams import as_flag
from symgrad.graph.structure import Structure, flatten

Dims = Mapping[Dim, int]


@overload
def evaluate(
    expr: Node,
    values: Mapping[Any, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    training: bool = False,
) -> Array: ...
@overload
def evaluate(
    expr: dict[str, Node],
    values: Mapping[Any, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    training: bool = False,
) -> dict[str, Array]: ...
@overload
def evaluate(
    expr: Sequence[Node],
    values: Mapping[Any, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    training: bool = False,
) -> Sequence[Array]: ...
@overload
def evaluate(
    expr: Structure,
    values: Mapping[Any, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    training: bool = False,
) -> Any: ...
def evaluate(
    expr: Structure,
    values: Mapping[Any, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    training: bool = False,
) -> Any:
    """The value of an expression, or of several, in plain NumPy.

    Args:
        expr:     one expression, or tuples, lists and dicts of them, nested as you like.
        values:   arrays by leaf or by name. A parameter left out takes its initial value (of seed
                  0). Further entries are ignored, unless they tell a dim that nothing else tells:
                  a leaf of that dim, or the dim's name with its value.
        seed:     of random numbers.
        step:     how many steps came before: what `optim.step` stands for; each draws anew.
        training: whether dropout drops.
    Returns: fresh arrays, in the structure of `expr`.
    Raises: LeafError for a missing input; DataError for values that do not fit, and for positions
        out of range.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (3,))
    >>> evaluate(x * 2, {x: [1.0, 2.0, 3.0]})
    array([2., 4., 6.], dtype=float32)
    """
    outputs, rebuild = flatten(expr, "evaluate")
    as_flag("training", training)
    graph = Graph.of(outputs)
    if values is not None and not isinstance(values, Mapping):
        raise LeafError(
            "evaluate: values must be a dictionary such as {x: X} or {'x': X}, got "
            f"{type(values).__name__}."
        )
    named, dims = named_values(graph, values or {})
    arrays, dims = Binding(graph)(named, step=step, dims=dims, draws=seed, training=training)
    results = [
        np.array(v, order="C")
        for v in evaluate_many(outputs, dict(zip(graph.inputs, arrays, strict=True)), dims)
    ]
    return rebuild(results)


def named_values(graph: Graph, values: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[Dim, int]]:
    """Values by name, from values by leaf or by name, and the dims that leaves elsewhere tell.

    A derivative may have dims in its shape and none of the leaves that had them.

    Raises: LeafError for a key that is neither, and for a leaf that is given twice.
    """
    own = {leaf.name: leaf for leaf in graph.inputs if not leaf.is_supplied}
    found: dict[str, Any] = {}
    dims: dict[Dim, int] = {}
    for key, value in values.items():
        if isinstance(key, Input):
            if own.get(key.name) is not key:
                for extent, n in zip(key.shape, np.shape(value), strict=False):
                    if isinstance(extent, Dim):
                        dims.setdefault(extent, n)
                continue
            name = key.name
        elif isinstance(key, str):
            name = key
        else:
            what = describe(key) if isinstance(key, Node) else repr(key)
            raise LeafError(
                f"evaluate: only leaves have values\n  {what}\n  Use a leaf or its name."
            )
        if name in found:
            raise LeafError(
                f"evaluate: two values for the leaf {dm.quoted(name)}, by name and by node."
            )
        found[name] = value
    return found, infer_dims(graph, found) | dims


def evaluate_many(
    outputs: Sequence[Node], arrays: Mapping[Input, Array], dims: Dims
) -> list[Array]:
    """The values of nodes, given those of leaves and dims; intermediate ones are freed early."""
    return evaluate_graph(Graph.of(outputs), arrays, dims)


def evaluate_graph(graph: Graph, arrays: Mapping[Input, Array], dims: Dims) -> list[Array]:
    """The values of a graph's outputs."""
    nodes, outputs = graph.nodes, graph.outputs
    reads: dict[Node, int] = {}
    for node in nodes:
        for arg in node.args:
            reads[arg] = reads.get(arg, 0) + 1
    for node in outputs:
        reads[node] = reads.get(node, 0) + 1
    values: dict[Node, Any] = {}
    with np.errstate(all="ignore"):
        for node in nodes:
            args = [values[a] for a in node.args]
            if isinstance(node, Input):
                values[node] = arrays[node]
            else:
                if isinstance(node, Reindex) and (counted := counted_by(node)) is not None:
                    dims = {**dims, counted: int(args[0][-1])}
                values[node] = MEANING[type(node)](node, args, dims)
            del args
            for arg in node.args:
                reads[arg] -= 1
                if not reads[arg]:
                    values.pop(arg, None)
    return [values[node] for node in outputs]


# -- one meaning per node -------------------------------------------------------------------------
def _constant(node: Constant, args: list[Array], dims: Dims) -> Array:
    return node.value


def _map(node: Map, args: list[Array], dims: Dims) -> Array:
    shape = dm.values(node.shape, dims)
    try:
        value: Array = evaluate_scalar(node.body, args, shape, dims, node.dtype)
    except ValueError as error:  # integers to negative powers
        raise DataError(f"{error}\n  {describe(node)}") from None
    return value


def _einsum(node: Einsum, args: list[Array], dims: Dims) -> Array:
    extents = dm.values(node.extents, dims)
    labels = [list(own) for own in node.labels]
    for k, own in enumerate(labels):  # an axis that is always one is dropped, whatever its -0.0
        ones = [
            a
            for a, label in enumerate(own)
            if isinstance(node.extents[label], int) and extents[label] == 1
            if label not in node.out
        ]
        if ones:
            args[k] = args[k].reshape([n for a, n in enumerate(args[k].shape) if a not in ones])
            labels[k] = [label for a, label in enumerate(own) if a not in ones]
    while len(args) > 1:
        later = {label for own in labels[2:] for label in own} | set(node.out)
        product, own = _pair(args[0], labels[0], args[1], labels[1], later)
        args[:2], labels[:2] = [product], [own]
    value, own = args[0], labels[0]
    summed = tuple(a for a, label in enumerate(own) if label not in node.out)
    if summed:
        value = value.sum(axis=summed, dtype=node.dtype)
        own = [label for label in own if label in node.out]
    value = np.transpose(value, [own.index(label) for label in node.out if label in own])
    for place, label in enumerate(node.out):
        if label not in own:
            value = np.expand_dims(value, place)
    return np.broadcast_to(value, tuple(extents[label] for label in node.out))


def _pair(
    a: Array, left: list[int], b: Array, right: list[int], later: set[int]
) -> tuple[Array, list[int]]:
    """The product of two, summed over the labels that nothing later reads: one batched matmul."""
    a, left = _presummed(a, left, right, later)
    b, right = _presummed(b, right, left, later)
    batch = [k for k in left if k in right and k in later]
    inner = [k for k in left if k in right and k not in later]
    rows = [k for k in left if k not in right]
    columns = [k for k in right if k not in left]
    extent = dict(zip(left, a.shape, strict=True)) | dict(zip(right, b.shape, strict=True))

    def arranged(x: Array, own: list[int], *groups: list[int]) -> Array:
        order = [own.index(k) for group in groups for k in group]
        shape = [math.prod(extent[k] for k in group) for group in groups]
        return x.transpose(order).reshape(shape)

    out = [*batch, *rows, *columns]
    first = arranged(a, left, batch, rows, inner)
    second = arranged(b, right, batch, inner, columns)
    value = first * second if not inner else np.matmul(first, second)
    return value.reshape([extent[k] for k in out]), out


def _presummed(
    x: Array, own: list[int], other: list[int], later: set[int]
) -> tuple[Array, list[int]]:
    axes = tuple(a for a, k in enumerate(own) if k not in other and k not in later)
    if not axes:
        return x, own
    return x.sum(axis=axes, dtype=x.dtype), [k for a, k in enumerate(own) if a not in axes]


def _reduce(node: Reduce, args: list[Array], dims: Dims) -> Array:
    (x,) = args
    if node.op in ("max", "min", "argmax", "argmin") and any(x.shape[a] == 0 for a in node.axes):
        raise DataError(
            f"{node.op}: axis {node.axes[0]} is empty\n  {describe(node)}\n  got {dm.show(x.shape)}"
        )
    if node.op in ("argmax", "argmin"):
        place = np.argmax(x, node.axes[0]) if node.op == "argmax" else np.argmin(x, node.axes[0])
        return np.asarray(place).astype(node.dtype)
    if node.op == "max":
        return np.asarray(np.max(x, node.axes))
    if node.op == "min":
        return np.asarray(np.min(x, node.axes))
    if node.op == "prod":
        return np.asarray(np.prod(x, node.axes, dtype=node.dtype))
    running: dict[str, np.ufunc] = {
        "cumsum": np.add,
        "cumprod": np.multiply,
        "cummax": np.maximum,
    }
    return np.asarray(running[node.op].accumulate(x, node.axes[0], dtype=node.dtype))


def _reindex(node: Reindex, args: list[Array], dims: Dims) -> Array:
    shape = dm.values(node.shape, dims)
    if len(args) == 1 and node.pieces[0].view == node.shape and _moves_nothing(node.pieces[0]):
        return args[0].reshape(shape)
    out = np.zeros(shape, node.dtype)
    for piece, arg in zip(node.pieces, args, strict=True):
        count = dm.values(piece.count, dims)
        read = zip(dm.values(piece.start, dims), piece.step, count, strict=True)
        write = zip(dm.values(piece.offset, dims), piece.stride, count, strict=True)
        source = arg.reshape(dm.values(piece.view, dims))
        out[tuple(_slice(*k) for k in write)] = source[tuple(_slice(*k) for k in read)]
    return out


def _moves_nothing(piece: Piece) -> bool:
    return (
        piece.count == piece.view
        and all(s == 1 for s in (*piece.step, *piece.stride))
        and all(type(s) is int and s == 0 for s in (*piece.start, *piece.offset))
    )


def _slice(start: int, step: int, count: int) -> slice:
    """The slice that has the positions `start + step k`, k below `count`."""
    if count == 0:
        return slice(0, 0)
    stop = start + step * count
    return slice(start, stop if stop >= 0 else None, step)


def _gather(node: Gather, args: list[Array], dims: Dims) -> Array:
    source, *indices = args
    place = _positions(node, node.source_axes, node.out, source.shape, indices, dims)
    return np.asarray(source[place])


def _scatter(node: Scatter, args: list[Array], dims: Dims) -> Array:
    updates, *indices = args
    out = np.zeros(dm.values(node.shape, dims), node.dtype)
    place = _positions(
        node, node.target_axes, node.update_labels, out.shape, indices, dims, updates.shape
    )
    np.add.at(out, place, updates)
    return out


def _positions(
    node: Gather | Scatter,
    axes: tuple[int, ...],
    order: tuple[int, ...],
    shape: tuple[int, ...],
    indices: list[Array],
    dims: Dims,
    box: tuple[int, ...] | None = None,
) -> tuple[Array, ...]:
    """Integer arrays that broadcast over the labels `order`, one per axis; negative ones wrap.

    Raises: DataError naming the first position that is out of range.
    """
    rank = len(order)
    found: list[Array] = []
    for axis, label in enumerate(axes):
        extent = shape[axis]
        if label >= 0:
            place = order.index(label)
            n = extent if box is None else box[place]
            found.append(np.arange(n).reshape((1,) * place + (-1,) + (1,) * (rank - place - 1)))
            continue
        index, own = indices[~label], node.index_labels[~label]
        wrong = (index < (-extent if node.wrap else 0)) | (index >= extent)
        if wrong.any():
            at = tuple(int(k[0]) for k in np.nonzero(wrong)) if index.ndim else ()
            source = node.args[1 + ~label]
            raise DataError(out_of_range(node, int(index[at]), extent, source, at, dims))
        kept = sorted(range(len(own)), key=lambda a: order.index(own[a]))
        wide = np.ones(rank, int)
        for a in kept:
            wide[order.index(own[a])] = index.shape[a]
        found.append(np.transpose(index, kept).reshape(wide))
    return tuple(found)


def _fold(node: Fold, args: list[Array], dims: Dims) -> list[Array]:
    return run_fold(node, args, dims, evaluate_graph)


def run_fold(
    node: Fold, args: list[Array], dims: Dims,
    evaluated: Callable[[Graph, Mapping[Input, Array], Dims], list[Array]],
) -> list[Array]:
    """The results of a recurrence, its body evaluated by `evaluated` in every step."""
    a, b = node.carries, node.carries + node.sequences
    carry, xs, consts = args[:a], args[a:b], args[b:]
    length = dm.value(node.structure.length, dims)
    if node.structure.rows is not None:
        return _run_rows(node, node.structure.rows, args, dims, evaluated)
    shapes = [dm.values(n.shape, dims) for n in node.body.outputs[a:]]
    ys = [
        np.empty((length, *s), n.dtype) for s, n in zip(shapes, node.body.outputs[a:], strict=True)
    ]
    for t in reversed(range(length)) if node.structure.reverse else range(length):
        given = [*carry, *(x[t, ...] for x in xs), *consts]
        found = evaluated(node.body, dict(zip(node.body.inputs, given, strict=True)), dims)
        carry = found[:a]
        for y, value in zip(ys, found[a:], strict=True):
            y[t] = value
    return [*carry, *ys]


def _run_rows(
    node: Fold, rows: Rows, args: list[Array], dims: Dims,
    evaluated: Callable[[Graph, Mapping[Input, Array], Dims], list[Array]],
) -> list[Array]:
    """The results of a recurrence whose steps work on rows of their own."""
    a, b = node.carries, node.carries + node.sequences
    xs, inputs, outputs = args[a:b], node.body.inputs, node.body.outputs
    carry = [np.array(c) for c in args[:a]]
    ys = [np.zeros(dm.values(node.stacked(n), dims), n.dtype) for n in outputs[a:]]
    steps = range(int(args[b]) if node.structure.bounded else len(xs[0]))
    for t in reversed(steps) if node.structure.reverse else steps:
        first, now = int(xs[0][t]), int(xs[1][t])
        some, own = slice(0, now), slice(first, first + now)
        given = [  # copies: a step reads the carry as it was
            np.array(c[some if in_rows(rows, n) else ...])
            for c, n in zip(carry, inputs, strict=False)
        ]
        given += [
            x[own] if in_rows(rows, n) else x[t, ...] for x, n in zip(xs, inputs[a:b], strict=True)
        ]
        given += [
            c[some] if in_rows(rows, n) else c for c, n in zip(args[b:], inputs[b:], strict=True)
        ]
        here = {**dims, rows.now: now}
        # copies, since what is emitted may be the carry that is written over
        made = evaluated(node.body, dict(zip(inputs, given, strict=True)), here)
        found = [np.array(value) for value in made]
        for c, value, n in zip(carry, found, outputs, strict=False):
            c[some if in_rows(rows, n) else ...] = value
        for y, value, n in zip(ys, found[a:], outputs[a:], strict=True):
            y[own if in_rows(rows, n) else t] = value
    return [*carry, *ys]


def _proj(node: Proj, args: list[Any], dims: Dims) -> Array:
    value: Array = args[0][node.place]
    return value


MEANING: dict[type[Node], Callable[[Any, list[Any], Dims], Any]] = {
    Constant: _constant,
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Reindex: _reindex,
    Gather: _gather,
    Scatter: _scatter,
    Fold: _fold,
    Proj: _proj,
}
"""What each class of node means; Input is given."""
