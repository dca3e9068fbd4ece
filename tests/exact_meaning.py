"""The meaning of a graph in mpmath: what a formula is worth in as many digits as one wants.

Every node class has its own few lines here, so that `stabilize` is judged by arithmetic in which
nothing overflows and hardly anything cancels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath as mp
import numpy as np

from symgrad.graph import dims as dm
from symgrad.graph.binding import Binding
from symgrad.graph.dtypes import is_float
from symgrad.graph.evaluator import MEANING, _positions, _slice, named_values
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.scalars import operations

Array = np.ndarray


def exact(
    outputs: Sequence[Node], values: Mapping, digits: int, shaken: float = 0.0, seed: int = 0,
    zeros: float = 0.0,
) -> list[Array]:
    """The values of outputs, as object arrays.

    shaken: by which share every number of every leaf is moved, up or down: what the last digit of
            the data is worth in the result.
    zeros:  what stands for 0 in the data, so that 0 log 0 is its limit.
    """
    graph = Graph.of(outputs)
    named, dims = named_values(graph, values)
    arrays, dims = Binding(graph)(named, dims=dims)
    rng = np.random.default_rng(seed)
    given = {}
    with mp.workdps(digits):
        for leaf, a in zip(graph.inputs, arrays, strict=True):
            v = wide(a)
            if a.dtype.kind == "f":
                signs = rng.choice([-1, 1], size=a.shape)
                moved = np.asarray(v * (1 + wide(signs * 1.0) * mp.mpf(shaken)), object)
                v = np.asarray(np.frompyfunc(lambda x: x or mp.mpf(zeros), 1, 1)(moved), object)
            given[leaf] = v
        return run(graph, given, dims)


def wide(a: Any) -> Array:
    """Floats as numbers of mpmath; integers and bools stay."""
    a = np.asarray(a)
    if a.dtype.kind != "f":
        return a
    return np.asarray(np.frompyfunc(lambda v: mp.mpf(float(v)), 1, 1)(a), object)


def run(graph: Graph, arrays: Mapping[Input, Array], dims: Mapping) -> list[Array]:
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        args = [values[a] for a in node.args]
        if isinstance(node, Input):
            values[node] = arrays[node]
        elif isinstance(node, Constant):
            values[node] = wide(node.value)
        else:
            exactly = is_float(node.dtype) or isinstance(node, (Map, Fold, Proj, Reduce))
            values[node] = (_EXACT if exactly else MEANING)[type(node)](node, args, dims)
    return [values[n] for n in graph.outputs]


def _map(node: Map, args: list[Array], dims: Mapping) -> Array:
    shape = dm.values(node.shape, dims)
    values: list[Any] = []
    for step in operations(node.body):
        operands = [values[k] for k in step.operands]
        if step.kind == "argument":
            value = args[step.payload]
        elif step.kind == "axis":
            k = step.payload
            value = wide(np.arange(float(shape[k])).reshape((-1,) + (1,) * (len(shape) - 1 - k)))
        elif step.kind == "dim":
            value = wide(float(dims[step.payload]))
        elif step.kind == "number":
            number = float(step.payload)
            value = wide(float(np.asarray(number, node.dtype)) if is_float(node.dtype) else number)
        else:
            value = _applied(step.payload if step.kind == "call" else step.kind, operands)
        values.append(value)
    result = np.asarray(values[-1])
    if not is_float(node.dtype):
        result = result.astype(node.dtype)
    return np.broadcast_to(result, shape)


def _applied(name: str, operands: list[Any]) -> Array:
    if name.startswith("cast_"):
        (x,) = operands
        return wide(np.asarray(x, float)) if x.dtype != object and "float" in name else x
    found = np.asarray(np.frompyfunc(SCALARS[name], len(operands), 1)(*operands))
    if found.dtype == object and found.size and isinstance(found.flat[0], (bool, np.bool_)):
        return found.astype(bool)
    return found


def _divide(a: Any, b: Any) -> Any:
    if b != 0 or mp.isnan(a):
        return a / b
    return mp.nan if a == 0 else mp.inf * mp.sign(a)


def _exp(a: Any) -> Any:
    return mp.exp(a) if mp.isfinite(a) or mp.isnan(a) else mp.mpf(0) if a < 0 else mp.inf


def _softplus(a: Any) -> Any:
    return mp.log1p(_exp(a)) if a < 0 else a + mp.log1p(_exp(-a))


def _either(f: Callable) -> Callable:
    return lambda a, b: mp.nan if mp.isnan(a) or mp.isnan(b) else f(a, b)


SCALARS: dict[str, Callable] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide,
    "neg": operator.neg, "exp": _exp, "expm1": mp.expm1, "abs": abs, "sign": mp.sign,
    "log": lambda a: mp.log(a) if a > 0 else -mp.inf if a == 0 else mp.nan,
    "log1p": lambda a: mp.log1p(a) if a > -1 else -mp.inf if a == -1 else mp.nan,
    "sqrt": lambda a: mp.sqrt(a) if a >= 0 else mp.nan,
    "rsqrt": lambda a: _divide(mp.mpf(1), mp.sqrt(a)) if a >= 0 else mp.nan,
    "sin": mp.sin, "cos": mp.cos, "tanh": mp.tanh, "sinh": mp.sinh, "cosh": mp.cosh,
    "erf": mp.erf, "sigmoid": lambda a: 1 / (1 + _exp(-a)), "softplus": _softplus,
    "pow": lambda a, b: mp.mpf(1) if b == 0 else a**b if a > 0 or b > 0 else mp.nan,
    "maximum": _either(max), "minimum": _either(min), "less": operator.lt,
    "less_equal": operator.le, "equal": operator.eq, "not_equal": operator.ne,
    "logical_and": lambda a, b: bool(a) and bool(b), "logical_not": lambda a: not a,
    "logical_or": lambda a, b: bool(a) or bool(b), "isfinite": lambda a: bool(mp.isfinite(a)),
    "select": lambda c, a, b: a if c else b, "stop_gradient": lambda a: a,
}


def _einsum(node: Einsum, args: list[Array], dims: Mapping) -> Array:
    extents = dm.values(node.extents, dims)
    present = [k for k in range(len(extents)) if any(k in own for own in node.labels)]
    product: Any = None
    for a, own in zip(args, node.labels, strict=True):
        assert len(set(own)) == len(own)
        order = sorted(range(len(own)), key=lambda k: own[k])
        sizes = [extents[k] if k in own else 1 for k in present]
        a = np.transpose(a, order).reshape(sizes)
        product = a if product is None else product * a
    product = np.broadcast_to(product, [extents[k] for k in present])
    summed = tuple(n for n, k in enumerate(present) if k not in node.out)
    product = np.asarray(np.sum(product, axis=summed), object) if summed else product
    left = [k for k in present if k in node.out]
    product = np.transpose(product, [left.index(k) for k in node.out if k in left])
    for place, k in enumerate(node.out):
        product = product if k in left else np.expand_dims(product, place)
    return np.broadcast_to(product, [extents[k] for k in node.out])


def _zeros(shape: tuple[int, ...]) -> Array:
    out = np.empty(shape, object)
    out[...] = mp.mpf(0)
    return out


def _reindex(node: Reindex, args: list[Array], dims: Mapping) -> Array:
    out = _zeros(dm.values(node.shape, dims))
    for piece, a in zip(node.pieces, args, strict=True):
        count = dm.values(piece.count, dims)
        read = zip(dm.values(piece.start, dims), piece.step, count, strict=True)
        write = zip(dm.values(piece.offset, dims), piece.stride, count, strict=True)
        source = a.reshape(dm.values(piece.view, dims))
        out[tuple(_slice(*k) for k in write)] = source[tuple(_slice(*k) for k in read)]
    return out


def _scatter(node: Scatter, args: list[Array], dims: Mapping) -> Array:
    updates, *indices = args
    out = _zeros(dm.values(node.shape, dims))
    place = _positions(
        node, node.target_axes, node.update_labels, out.shape, indices, dims, updates.shape
    )
    np.add.at(out, place, updates)
    return out


def _reduce(node: Reduce, args: list[Array], dims: Mapping) -> Array:
    (x,) = args
    for axis in sorted(node.axes, reverse=True):
        x = np.asarray({"max": np.maximum, "min": np.minimum}[node.op].reduce(x, axis), object)
    return x


def _fold(node: Fold, args: list[Array], dims: Mapping) -> list[Array]:
    a, b = node.carries, node.carries + node.sequences
    carry, sequences, consts = args[:a], args[a:b], args[b:]
    length = dm.value(node.structure.length, dims)
    ys = [_zeros((length, *dm.values(n.shape, dims))) for n in node.body.outputs[a:]]
    for t in reversed(range(length)) if node.structure.reverse else range(length):
        given = [*carry, *(np.asarray(x[t, ...], object) for x in sequences), *consts]
        found = run(node.body, dict(zip(node.body.inputs, given, strict=True)), dims)
        carry = found[:a]
        for y, value in zip(ys, found[a:], strict=True):
            y[t] = value if np.ndim(value) else np.asarray(value, object).item()
    return [*carry, *ys]


_EXACT: dict[type, Callable] = {
    Map: _map, Einsum: _einsum, Reindex: _reindex, Scatter: _scatter, Reduce: _reduce,
    Gather: MEANING[Gather], Fold: _fold, Proj: lambda node, args, dims: args[0][node.place],
}


def errors(
    node: Node, results: Sequence[Array], values: Mapping, digits: int
) -> tuple[list[Array], Array]:
    """|result - truth| in units of what may be asked for, and the truth as floats.

    A unit is one place of the truth, or what one place of the data moves it by. Where the truth is
    undefined or infinite, there is no error to speak of: 0.
    """
    limits = np.finfo(node.dtype)
    truth = exact([node], values, digits)[0].ravel()
    if any(mp.isnan(v) for v in truth):
        near, nearer = (
            exact([node], values, digits, zeros=10.0**-k)[0].ravel() for k in (150, 300)
        )
        limit = [a if abs(a - b) < 1e-9 * (1 + abs(a)) else mp.nan
                 for a, b in zip(near, nearer, strict=True)]
        truth = np.array([b if mp.isnan(a) else a for a, b in zip(truth, limit, strict=True)])
    moved = [
        exact([node], values, digits, float(limits.eps), seed)[0].ravel() for seed in range(2)
    ]
    found = [np.zeros(truth.shape) for _ in results]
    for k, true in enumerate(truth):
        if not mp.isfinite(true) or abs(true) > float(limits.max):
            continue
        with mp.workdps(40):
            shift = max((abs(m[k] - true) for m in moved if mp.isfinite(m[k])), default=0)
            unit = float(limits.eps) * abs(true) + 4 * shift + float(limits.tiny)
            for error, result in zip(found, results, strict=True):
                value = float(result.flat[k])
                error[k] = abs(mp.mpf(value) - true) / unit if np.isfinite(value) else np.inf
    return found, np.array([float(v) for v in truth])
