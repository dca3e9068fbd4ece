"""What a legal graph is: one list of rules per node class, read between passes in tests.

A pass that breaks a rule is a bug in the pass; the message names the node, the rule and both sides.
What holds of one node is read once in its life: its fields never change, and most nodes that a pass
returns are those that it was given.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import sympy

from symgrad.graph.dims import Dim, Extent, Shape, same, show, size
from symgrad.graph.dtypes import ALL, BOOL, INT32, INT64, is_bool, is_int
from symgrad.graph.errors import SymgradError
from symgrad.graph.folds import NODES, Fold, Proj
from symgrad.graph.functions import AxisIndex, Placeholder, function_of
from symgrad.graph.graph import Graph, meetings
from symgrad.graph.nodes import (
    RUNNING,
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
from symgrad.graph.scalars import infer_dtype, operations

Broken = Iterator[str]


def check(graph: Graph) -> Graph:
    """The graph itself when it is legal.

    Raises: SymgradError naming the first node that is not, and the rule that it breaks.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (3,))
    >>> check(Graph.of([x * 2])).outputs[0].shape
    (3,)
    """
    names: set[str] = set()
    for leaf in graph.inputs:
        if leaf.name in names and not leaf.is_supplied:
            raise _broken(leaf, "two leaves have one name")
        if not leaf.is_supplied:
            names.add(leaf.name)
        if leaf.kind == "bound":
            raise _broken(leaf, "a binder of a recurrence, outside its body")
    return check_nodes(graph)


def check_nodes(graph: Graph) -> Graph:
    """The graph itself when its nodes are legal; it may be a body, whose leaves are binders.

    Raises: SymgradError as `check` does.
    """
    waiting: list[tuple[Graph, frozenset[Input]]] = [(graph, frozenset())]
    while waiting:
        current, around = waiting.pop()
        _check_nodes(current)
        around |= frozenset(current.inputs)
        for node in current.nodes:
            if isinstance(node, Fold):
                _check_binders(node, around)
                waiting.append((node.body, around))
    return graph


def _check_binders(fold: Fold, around: frozenset[Input]) -> None:
    for leaf in fold.body.inputs:
        if leaf.kind != "bound":
            raise _broken(leaf, "a body's input that is no binder")
        if leaf in around:
            raise _broken(leaf, "a binder of a body that also stands around it")


def _check_nodes(graph: Graph) -> None:
    known: set[int] = set()
    leaves = set(map(id, graph.inputs))
    for node in graph.nodes:
        if _LEGAL.get(id(node)) is not node:
            _check_node(node)
            _LEGAL[id(node)] = node
        for arg in node.args:
            if id(arg) not in known:
                raise _broken(node, f"its argument {arg!r} comes after it, or not at all")
        if isinstance(node, Input) and id(node) not in leaves:
            raise _broken(node, "a leaf that is not among the graph's inputs")
        known.add(id(node))
    for output in graph.outputs:
        if id(output) not in known:
            raise _broken(output, "an output that is not among the graph's nodes")
        if isinstance(output, Fold):
            raise _broken(output, "an output that is no tensor, but a recurrence")


_LEGAL: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()
"""The nodes that were found legal, by identity: what lives and what it reads never change."""


def _check_node(node: Node) -> None:
    if type(node) not in NODES:
        raise _broken(node, f"{type(node).__name__} is none of the node classes")
    for rule in (_common, _RULES[type(node)], _derived):
        for what in rule(node):
            raise _broken(node, what)


def _derived(node: Node) -> Broken:
    """Shape and dtype, derived anew, and the extents that the node matches with each other."""
    if isinstance(node, (Einsum, Reduce, Reindex, Gather, Scatter, Proj)):
        again = object.__new__(type(node))
        for name in ("args", *node.own_fields):
            object.__setattr__(again, name, getattr(node, name))
        again.derive()
        if (again.shape, again.dtype) != (node.shape, node.dtype):
            yield f"its fields make it {_typed(again)}"
    for left, right in meetings(node):
        if same(left, right) is False:
            yield f"extents {left} and {right} meet"


def _broken(node: Node, rule: str) -> SymgradError:
    return SymgradError(f"illegal graph: {rule}\n  {describe(node)}")


def _common(node: Node) -> Broken:
    """Shape, dtype and arguments of any node."""
    if not isinstance(node.shape, tuple) or not all(_is_extent(e) for e in node.shape):
        yield f"the shape {node.shape!r} is no tuple of extents"
    if node.dtype not in ALL:
        yield f"the dtype {node.dtype} is not supported"
    if not isinstance(node.args, tuple) or not all(isinstance(a, Node) for a in node.args):
        yield "its arguments are no tuple of nodes"
    elif not isinstance(node, Proj) and any(isinstance(a, Fold) for a in node.args):
        yield "it reads a recurrence itself, not one of its results"


def _is_extent(extent: object) -> bool:
    if type(extent) is int:
        return extent >= 0
    return (
        isinstance(extent, sympy.Expr)
        and bool(extent.free_symbols)
        and all(isinstance(s, Dim) for s in extent.free_symbols)
    )


def _input(node: Input) -> Broken:
    if node.args:
        yield "a leaf has no arguments"
    if not isinstance(node.label, str) or not node.label:
        yield f"its name {node.label!r} is no string"
    if node.kind not in ("input", "parameter", "step", "bound") and not node.is_supplied:
        yield f"its kind {node.kind!r} is unknown"


def _constant(node: Constant) -> Broken:
    value: Any = node.value
    if node.args:
        yield "a constant has no arguments"
    if not isinstance(value, np.ndarray) or value.shape != node.shape or value.dtype != node.dtype:
        yield "its shape or dtype is not its value's"
    elif value.flags.writeable:
        yield "its value can be written to"


def _map(node: Map) -> Broken:
    rank = node.ndim
    for symbol in node.body.free_symbols:
        if isinstance(symbol, Placeholder):
            if symbol.name == "y":
                yield "its body reads its own output"
            elif int(symbol.name[1:]) >= len(node.args):
                yield f"its body reads {symbol}, of {len(node.args)} arguments"
        elif isinstance(symbol, AxisIndex):
            if int(symbol.name[1:]) >= rank:
                yield f"its body reads the axis {symbol}, of {rank}"
        elif not isinstance(symbol, Dim):
            yield f"its body reads {symbol}, which is nothing of symgrad"
    operations(node.body)
    for arg in node.args:
        if arg.ndim > rank:
            yield f"an argument of shape {show(arg.shape)} has more axes than {show(node.shape)}"
        for a, b in zip(reversed(arg.shape), reversed(node.shape), strict=False):
            if same(a, b) is False and not (type(a) is int and a == 1):
                yield f"an argument {show(arg.shape)} does not broadcast to {show(node.shape)}"
    derived = infer_dtype(node.body, [a.dtype for a in node.args])
    weak = derived != BOOL and not any(isinstance(s, Placeholder) for s in _values(node.body))
    if derived != node.dtype and (not weak or is_bool(node.dtype)):
        yield f"its body has the dtype {derived}"


def _values(body: sympy.Expr) -> Iterator[sympy.Basic]:
    """The symbols whose dtype the body's depends on: not those inside casts and conditions."""
    stack: list[sympy.Basic] = [body]
    while stack:
        expr = stack.pop()
        function = function_of(expr)
        if function is not None and function.result in ("cast", "bool"):
            continue
        args = expr.args
        if function is not None and function.result == "select":
            args = args[1:]
        if isinstance(expr, sympy.Symbol):
            yield expr
        stack.extend(args)


def _einsum(node: Einsum) -> Broken:
    count = len(node.extents)
    if not node.args or len(node.labels) != len(node.args):
        yield f"{len(node.labels)} groups of labels for {len(node.args)} arguments"
    first: dict[int, int] = {}
    for own, arg in zip(node.labels, node.args, strict=False):
        if len(own) != arg.ndim:
            yield f"labels {own} for an argument of shape {show(arg.shape)}"
        if len(set(own)) != len(own):
            yield f"a label stands twice in {own}"
        if arg.dtype != node.dtype:
            yield f"an argument of dtype {arg.dtype} in an einsum of {node.dtype}"
        for label, extent in zip(own, arg.shape, strict=False):
            first.setdefault(label, len(first))
            if not 0 <= label < count or same(node.extents[label], extent) is False:
                yield f"label {label} has no extent, or another than {extent}"
    for label in node.out:
        first.setdefault(label, len(first))
    if len(set(node.out)) != len(node.out):
        yield f"a label stands twice in the output {node.out}"
    if list(first) != list(range(count)):
        yield "labels are not numbered by first appearance"
    if node.summed and is_bool(node.dtype) and not all(node.extents[k] == 1 for k in node.summed):
        yield "a sum of bools"


def _reduce(node: Reduce) -> Broken:
    if len(node.args) != 1:
        yield f"{len(node.args)} arguments"
        return
    known = ("max", "min", "prod", "argmax", "argmin", *RUNNING)
    if node.op not in known:
        yield f"the operation {node.op!r} is unknown"
    if not node.axes or list(node.axes) != sorted(set(node.axes)):
        yield f"axes {node.axes} are not ascending"
    if not all(0 <= a < node.args[0].ndim for a in node.axes):
        yield f"axes {node.axes} for an argument of shape {show(node.args[0].shape)}"
    if node.op in ("argmax", "argmin", *RUNNING) and len(node.axes) != 1:
        yield f"{node.op} over {len(node.axes)} axes"
    if node.op in ("argmax", "argmin") and node.dtype != INT32:
        yield f"positions of dtype {node.dtype}"


def _reindex(node: Reindex) -> Broken:
    if not node.args or len(node.args) != len(node.pieces):
        yield f"{len(node.pieces)} pieces for {len(node.args)} arguments"
    for piece, arg in zip(node.pieces, node.args, strict=False):
        yield from _piece(piece, arg, node)
    regions = [r for p in node.pieces if (r := _region(p)) is not None]
    if len(regions) <= 64:
        for k, one in enumerate(regions):
            if any(_overlap(one, other) for other in regions[:k]):
                yield "two pieces write one place"


def _piece(piece: Piece, arg: Node, node: Reindex) -> Broken:
    fields: Sequence[Sequence[Extent]] = (
        piece.view,
        piece.start,
        piece.step,
        piece.count,
        piece.offset,
        piece.stride,
    )
    if any(len(f) != node.ndim for f in fields):
        yield "a piece of another rank than the output"
        return
    if arg.dtype != node.dtype:
        yield f"an argument of dtype {arg.dtype} in a reindex of {node.dtype}"
    if same(size(piece.view), size(arg.shape)) is False:
        yield f"the view {show(piece.view)} of an argument of shape {show(arg.shape)}"
    if any(type(s) is not int or s == 0 for s in (*piece.step, *piece.stride)):
        yield "a step or stride that is 0 or no integer"
        return
    for extents, starts, steps in (
        (piece.view, piece.start, piece.step),
        (node.shape, piece.offset, piece.stride),
    ):
        for extent, start, step, count in zip(extents, starts, steps, piece.count, strict=True):
            if not _inside(extent, start, step, count):
                yield f"positions {start} + {step} k, k < {count}, leave an axis of extent {extent}"


def _inside(extent: Extent, start: Extent, step: int, count: Extent) -> bool:
    """Whether positions lie on an axis, as far as that is known before values arrive."""
    if type(count) is int and count == 0:
        return True
    ends = (start, start + step * (count - 1))
    return all(not _negative(end) and not _negative(extent - 1 - end) for end in ends)


def _negative(extent: Extent) -> bool:
    """Whether an extent is below zero, whatever the dims."""
    if type(extent) is int:
        return extent < 0
    difference = sympy.expand(extent)
    return bool(difference.is_number and difference < 0)


def _region(piece: Piece) -> list[range] | None:
    """The box of positions that a piece writes, where it is known."""
    known = zip(piece.offset, piece.stride, piece.count, strict=True)
    box: list[range] = []
    for offset, stride, count in known:
        if type(offset) is not int or type(count) is not int:
            return None
        own = range(offset, offset + stride * count, stride)
        box.append(own if stride > 0 else own[::-1])
    return box


def _overlap(one: list[range], other: list[range]) -> bool:
    return all(_meet(a, b) for a, b in zip(one, other, strict=True))


def _meet(a: range, b: range) -> bool:
    if not a or not b or a[-1] < b[0] or b[-1] < a[0]:
        return False
    if a.step == 1 or b.step == 1:
        few, many = (a, b) if len(a) < len(b) else (b, a)
        return any(k in many for k in few)
    return any(k in b for k in a)


def _indices(node: Gather | Scatter, axes: Sequence[int], target: Shape, asked: str) -> Broken:
    indices = node.args[1:]
    if len(node.index_labels) != len(indices):
        yield f"{len(node.index_labels)} groups of labels for {len(indices)} indices"
    if sorted(~k for k in axes if k < 0) != list(range(len(indices))):
        yield f"the {asked} axes {tuple(axes)} do not use each index once"
    if len(axes) != len(target):
        yield f"the {asked} axes {tuple(axes)} for the shape {show(target)}"
    for own, index in zip(node.index_labels, indices, strict=False):
        if len(own) != index.ndim:
            yield f"labels {own} for an index of shape {show(index.shape)}"
        if not is_int(index.dtype):
            yield f"an index of dtype {index.dtype}"


def _gather(node: Gather) -> Broken:
    yield from _indices(node, node.source_axes, node.args[0].shape, "source")
    used = {k for k in node.source_axes if k >= 0} | {k for own in node.index_labels for k in own}
    if len(set(node.out)) != len(node.out) or set(node.out) != used:
        yield f"the output's labels {node.out} are not those that occur, each once"


def _scatter(node: Scatter) -> Broken:
    yield from _indices(node, node.target_axes, node.shape, "target")
    if len(node.update_labels) != node.args[0].ndim:
        yield f"labels {node.update_labels} for updates of shape {show(node.args[0].shape)}"
    if len(set(node.update_labels)) != len(node.update_labels):
        yield f"a label stands twice in the updates' {node.update_labels}"
    used = {k for k in node.target_axes if k >= 0} | {k for own in node.index_labels for k in own}
    if not used <= set(node.update_labels):
        yield "a label of the target or of an index that the updates do not have"


def _fold(node: Fold) -> Broken:
    n, m = node.carries, node.sequences
    binders, outputs = node.body.inputs, node.body.outputs
    if len(binders) != len(node.args):
        yield f"a body of {len(binders)} binders for {len(node.args)} arguments"
        return
    if n < 0 or m < 0 or n + m > len(binders) or n > len(outputs):
        yield f"{n} carries and {m} sequences of {len(binders)} arguments"
        return
    if not _is_extent(node.structure.length):
        yield f"its length {node.structure.length!r} is no extent"
    bound = node.args[n + m] if node.structure.bounded and len(node.args) > n + m else None
    if node.structure.bounded and (bound is None or bound.shape or bound.dtype != INT64):
        yield "a bound that is no int64 scalar"
    if node.structure.rows is not None and [
        (x.ndim, x.dtype) for x in node.xs[:2]
    ] != [(1, INT64)] * 2:
        yield "rows without the int64 sequences that tell where they begin and how many they are"
    for k, (arg, leaf) in enumerate(zip(node.args, binders, strict=True)):
        sequence = n <= k < n + m
        wanted = node.stacked(leaf) if sequence else node.whole(leaf)
        if sequence and (not arg.shape or same(arg.shape[0], wanted[0]) is False):
            yield f"a sequence {show(arg.shape)} for {wanted[0]} steps"
        elif not _fits(arg.shape, wanted) or arg.dtype != leaf.dtype:
            shape = arg.shape[1:] if sequence else arg.shape
            yield f"the binder {_typed(leaf)} for an argument {arg.dtype} {show(shape)}"
    for leaf, after in zip(binders, outputs[:n], strict=False):
        if not _fits(leaf.shape, after.shape) or leaf.dtype != after.dtype:
            yield f"a carry goes in as {_typed(leaf)} and comes out as {_typed(after)}"


def _typed(node: Node) -> str:
    return f"{node.dtype} {show(node.shape)}"


def _fits(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(same(x, y) is not False for x, y in zip(a, b, strict=True))


def _proj(node: Proj) -> Broken:
    if len(node.args) != 1 or not isinstance(node.args[0], Fold):
        yield "a result of something that is no recurrence"
        return
    results = node.args[0].results
    if not 0 <= node.place < len(results):
        yield f"result {node.place} of {len(results)}"
    elif results[node.place] != (node.shape, node.dtype):
        yield "its shape or dtype is not its result's"


_RULES: dict[type[Node], Callable[[Any], Broken]] = {
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
"""The rules of each class of node: a new node is one entry."""
