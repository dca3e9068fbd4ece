"""Expressions as SymPy formulas: what a small expression says, element by element.

Every element of every node becomes a SymPy expression of the elements of the leaves. That is exact
mathematics over the reals: no rounding, no NaN, and a cast between floats is nothing. A recurrence
is written out, step by step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy

from symgrad.graph import functions as fn
from symgrad.graph.dims import printable, show
from symgrad.graph.dtypes import is_bool, is_float, is_int
from symgrad.graph.errors import ShapeError, SymgradError
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import AXIS, P, function_of
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
from symgrad.graph.traversal import outputs_of

#: Elements of one value, and terms of one contraction, beyond which a formula helps nobody.
MOST_ELEMENTS = 4096
Elements = npt.NDArray[np.object_]


def to_sympy(e: Node) -> sympy.Expr | sympy.Array:
    """An expression as SymPy: a scalar as an expression, an array as a `sympy.Array` of them.

    Leaves become real symbols (integers: integer symbols) of their names; the elements of an array
    are `x[i, j]`, of `sympy.IndexedBase("x")`. Extents must be numbers, and small.

    Raises: ShapeError for symbolic or large extents; SymgradError for what has no formula: reading
        at a position that depends on data, and nodes that SymPy has no word for.

    >>> x, w = sg.input("x"), sg.parameter("w", (2,))
    >>> to_sympy(sg.tanh(x * w + 1))
    [tanh(x*w[0] + 1), tanh(x*w[1] + 1)]
    >>> s = sympy.Symbol("x", real=True)
    >>> sympy.simplify(to_sympy(sg.grad(sg.sigmoid(x), x)) - to_sympy(sg.sigmoid(x)).diff(s))
    0
    """
    outputs_of("to_sympy", [e])
    result = _evaluated(Graph.of([e]), {})[e]
    return result[()] if not e.shape else sympy.ImmutableDenseNDimArray(result.ravel(), e.shape)


def _evaluated(graph: Graph, known: Mapping[Node, Elements]) -> dict[Node, Any]:
    """The elements of every node; of a recurrence, those of each of its results."""
    values: dict[Node, Any] = dict(known)
    for node in graph.nodes:
        if node in values:
            continue
        rule = _RULES.get(type(node))
        if rule is None:
            raise SymgradError(
                f"to_sympy: {type(node).__name__} has no formula in SymPy\n  {describe(node)}\n"
                "  Leave it out, or evaluate with sg.evaluate."
            )
        _sizes(node)
        values[node] = rule(node, [values[a] for a in node.args])
    return values


def _sizes(node: Node) -> tuple[int, ...]:
    shape = node.shape
    if not all(type(extent) is int for extent in shape):
        raise ShapeError(
            f"to_sympy: the extents of {show(shape)} must be numbers\n  {describe(node)}\n"
            "  Declare the leaves with small numbers in place of dims."
        )
    sizes = tuple(int(extent) for extent in shape)
    _refuse_large(node, int(np.prod(sizes, dtype=object)))
    return sizes


def _refuse_large(node: Node, count: int) -> None:
    if count > MOST_ELEMENTS:
        raise ShapeError(
            f"to_sympy: {count} elements are too many for formulas, the most is {MOST_ELEMENTS}\n"
            f"  {describe(node)}\n  Take smaller extents: the formula is the same."
        )


def _array(items: Sequence[Any], shape: tuple[int, ...]) -> Elements:
    """An object array; NumPy must not look inside its elements."""
    made = np.empty(len(items), dtype=object)
    for k, item in enumerate(items):
        made[k] = item
    return made.reshape(shape)


def _positions(shape: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, shape)))


# -- nodes -----------------------------------------------------------------------------------------
def _input(node: Input, args: list[Elements]) -> Elements:
    kind = {"real": True} if is_float(node.dtype) else {"integer": True}
    name = printable(node.name)
    if not node.shape:
        symbols = [sympy.Symbol(name, **kind)]
    else:
        base = sympy.IndexedBase(name, shape=node.shape, **kind)
        symbols = [base[k] for k in _positions(_sizes(node))]
    if is_bool(node.dtype):
        symbols = [sympy.Eq(s, 1) for s in symbols]
    return _array(symbols, _sizes(node))


def _constant(node: Constant, args: list[Elements]) -> Elements:
    return _array([_number(v) for v in node.value.ravel()], node.value.shape)


def _number(value: Any) -> Any:
    """A literal; whole floats are integers, others have the digits that their type prints."""
    if isinstance(value, np.bool_):
        return sympy.true if value else sympy.false
    if not np.isfinite(value):
        return sympy.nan if np.isnan(value) else sympy.oo if value > 0 else -sympy.oo
    if value == int(value):
        return sympy.Integer(int(value))
    return sympy.Float(float(str(value)))


def _map(node: Map, args: list[Elements]) -> Elements:
    shape = _sizes(node)
    wide = [np.broadcast_to(a, shape) for a in args]
    made = []
    for place in _positions(shape):
        known: dict[sympy.Basic, Any] = {P[k]: a[place] for k, a in enumerate(wide[: len(P)])}
        known |= {fn.placeholder(k): a[place] for k, a in enumerate(wide)}
        known |= {AXIS[k]: sympy.Integer(i) for k, i in enumerate(place)}
        made.append(_spoken(node, node.body, known))
    return _array(made, shape)


def _spoken(node: Map, body: sympy.Expr, known: dict[sympy.Basic, Any]) -> Any:
    """A scalar body with SymPy's functions in place of ours; equal parts are made once."""
    for part in sympy.postorder_traversal(body):
        if part in known:
            continue
        args = [known[a] for a in part.args]
        function = function_of(part)
        if function is None:
            known[part] = part.func(*args) if args else part
        elif function.name.startswith("cast_"):
            known[part] = _cast(args[0], function.dtype)
        elif function.name in _FUNCTIONS:
            known[part] = _FUNCTIONS[function.name](*args)
        else:
            raise SymgradError(
                f"to_sympy: the function {function.name} has no formula in SymPy\n"
                f"  {describe(node)}\n  Leave it out, or evaluate with sg.evaluate."
            )
    return known[body]


def _cast(x: Any, dtype: Any) -> Any:
    test = isinstance(x, sympy.logic.boolalg.Boolean) and not isinstance(x, sympy.Symbol)
    if is_bool(dtype):
        return x if test else sympy.Ne(x, 0)
    if test:
        return sympy.Piecewise((1, x), (0, True))
    if is_int(dtype) and x.is_integer is not True:
        return sympy.sign(x) * sympy.floor(sympy.Abs(x))  # towards 0
    return x


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + sympy.exp(-x))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": sympy.exp,
    "log": sympy.log,
    "log1p": lambda x: sympy.log(1 + x),
    "expm1": lambda x: sympy.exp(x) - 1,
    "sqrt": sympy.sqrt,
    "rsqrt": lambda x: 1 / sympy.sqrt(x),
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "tanh": sympy.tanh,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "arctan": sympy.atan,
    "sigmoid": _sigmoid,
    "softplus": lambda x: sympy.log(1 + sympy.exp(x)),
    "erf": sympy.erf,
    "pow": sympy.Pow,
    "abs": sympy.Abs,
    "sign": sympy.sign,
    "floor": sympy.floor,
    "maximum": sympy.Max,
    "minimum": sympy.Min,
    "floor_divide": lambda a, b: sympy.floor(a / b),
    "mod": sympy.Mod,
    "less": sympy.Lt,
    "less_equal": sympy.Le,
    "equal": sympy.Eq,
    "not_equal": sympy.Ne,
    "logical_and": sympy.And,
    "logical_or": sympy.Or,
    "logical_xor": sympy.Xor,
    "logical_not": sympy.Not,
    "isnan": lambda x: sympy.true if x is sympy.nan else sympy.false,
    "isfinite": lambda x: sympy.false if x in (sympy.nan, sympy.oo, -sympy.oo) else sympy.true,
    "select": lambda c, a, b: sympy.Piecewise((a, c), (b, True)),
    "stop_gradient": lambda x: x,
}


def _einsum(node: Einsum, args: list[Elements]) -> Elements:
    sizes = [int(extent) for extent in node.extents]
    summed = node.summed
    _refuse_large(node, int(np.prod(sizes, dtype=object)))
    made = []
    for outer in _positions([sizes[k] for k in node.out]):
        terms = []
        for inner in _positions([sizes[k] for k in summed]):
            at = dict(zip((*node.out, *summed), (*outer, *inner), strict=True))
            read = [
                a[tuple(at[k] for k in labels)]
                for a, labels in zip(args, node.labels, strict=True)
            ]
            terms.append(sympy.Mul(*read))
        made.append(sympy.Add(*terms))
    return _array(made, _sizes(node))


def _first_of(pick: Callable[..., Any]) -> Callable[..., Any]:
    """The first position of the element that `pick` picks."""

    def position(*items: Any) -> Any:
        best = pick(*items)
        cases = [(k, sympy.Eq(x, best)) for k, x in enumerate(items[:-1])]
        return sympy.Piecewise(*cases, (len(items) - 1, True))

    return position


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "max": sympy.Max, "min": sympy.Min, "prod": sympy.Mul, "argmax": _first_of(sympy.Max),
    "argmin": _first_of(sympy.Min), "cumsum": sympy.Add, "cumprod": sympy.Mul, "cummax": sympy.Max,
}


def _reduce(node: Reduce, args: list[Elements]) -> Elements:
    (x,) = args
    reduced = _REDUCTIONS[node.op]
    if node.op.startswith("cum"):
        (axis,) = node.axes
        rows = np.moveaxis(x, axis, -1)
        running = [reduced(*rows[(*at[:-1],)][: at[-1] + 1]) for at in _positions(rows.shape)]
        return np.moveaxis(_array(running, rows.shape), -1, axis)
    kept = [k for k in range(x.ndim) if k not in node.axes]
    rows = x.transpose(*kept, *node.axes).reshape(*_sizes(node), -1)
    return _array([reduced(*rows[at]) for at in _positions(rows.shape[:-1])], _sizes(node))


def _reindex(node: Reindex, args: list[Elements]) -> Elements:
    out = np.full(_sizes(node), sympy.Integer(0), dtype=object)
    for piece, arg in zip(node.pieces, args, strict=True):
        source = arg.reshape([int(extent) for extent in piece.view])
        for k in _positions([int(extent) for extent in piece.count]):
            out[_moved(piece, k, write=True)] = source[_moved(piece, k, write=False)]
    return out


def _moved(piece: Piece, k: tuple[int, ...], write: bool) -> tuple[int, ...]:
    first, step = (piece.offset, piece.stride) if write else (piece.start, piece.step)
    return tuple(int(a) + s * i for a, s, i in zip(first, step, k, strict=True))


def _fold(node: Fold, args: list[Elements]) -> list[Elements]:
    """All results of a recurrence, its steps written out."""
    if type(node.structure.length) is not int:
        raise ShapeError(
            f"to_sympy: a recurrence over {node.structure.length} steps\n  {describe(node)}\n"
            "  Give the sequences a length in numbers."
        )
    steps = range(node.structure.length)
    carry = args[: node.carries]
    sequences = args[node.carries : node.carries + node.sequences]
    outer = args[node.carries + node.sequences :]
    ys: dict[int, list[Elements]] = {}
    for t in reversed(steps) if node.structure.reverse else steps:
        read = [*carry, *(np.asarray(x[t, ...]) for x in sequences), *outer]
        values = _evaluated(node.body, dict(zip(node.body.inputs, read, strict=True)))
        results = [values[o] for o in node.body.outputs]
        carry, ys[t] = results[: node.carries], results[node.carries :]
    stacked = []
    for k, (shape, _) in enumerate(node.results[node.carries :]):
        items = [item for t in steps for item in ys[t][k].ravel()]
        stacked.append(_array(items, tuple(int(extent) for extent in shape)))
    return [*carry, *stacked]


def _proj(node: Proj, args: list[Any]) -> Elements:
    result: Elements = args[0][node.place]
    return result


def _gather(node: Gather, args: list[Elements]) -> Elements:
    source, *indices = args
    made = []
    for place in _positions(_sizes(node)):
        at = dict(zip(node.out, place, strict=True))
        made.append(source[_place(node, node.source_axes, source.shape, at, indices)])
    return _array(made, _sizes(node))


def _scatter(node: Scatter, args: list[Elements]) -> Elements:
    updates, *indices = args
    out = np.full(_sizes(node), sympy.Integer(0), dtype=object)
    for place in _positions(updates.shape):
        at = dict(zip(node.update_labels, place, strict=True))
        out[_place(node, node.target_axes, out.shape, at, indices)] += updates[place]
    return out


def _place(
    node: Gather | Scatter,
    axes: Sequence[int],
    shape: Sequence[int],
    at: dict[int, int],
    indices: Sequence[Elements],
) -> tuple[int, ...]:
    """Where a position of labels leads, for indices that are known numbers."""
    place = []
    for axis, extent in zip(axes, shape, strict=True):
        if axis >= 0:
            place.append(at[axis])
            continue
        index = indices[~axis][tuple(at[k] for k in node.index_labels[~axis])]
        if not index.is_Integer:
            raise SymgradError(
                f"to_sympy: reads or writes at the position {index}, which depends on data\n"
                f"  {describe(node)}\n  Give the positions as a constant."
            )
        if not -extent <= int(index) < extent:
            raise ShapeError(
                f"to_sympy: position {index} is out of range for an extent of {extent}\n"
                f"  {describe(node)}"
            )
        place.append(int(index))
    return tuple(place)


_RULES: dict[type[Node], Callable[[Any, list[Any]], Any]] = {
    Input: _input,
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
