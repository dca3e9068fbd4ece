"""What an expression costs: operations, bytes, depth, and its size when written out as a tree.

Counts are of the graph as it is given, one node at a time, before any fusion: simplify first to
count what a compiler starts from. A recurrence counts its step as often as it takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sympy

from symgrad.calculus import bodies
from symgrad.graph.dims import DerivedDim, Dim, Extent, derived_values, size
from symgrad.graph.errors import ShapeError
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.nodes import (
    RUNNING,
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
from symgrad.graph.traversal import outputs_of, toposort

Count: TypeAlias = int | sympy.Expr


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an expression: numbers once all dims are given, else polynomials in them.

    flops:     scalar operations; a contraction of n factors takes n for each term of its sum
               (for a matrix product m k n: 2 m k n), pairs of factors being contracted in the order
               in which they stand.
    bytes:     read and written, if every node reads its arguments and writes its value once.
    largest:   bytes of the largest value that is computed.
    depth:     nodes on the longest path from a leaf.
    tree_size: nodes of the same formula written out as a tree, in which nothing is shared; steps of
               a recurrence stand side by side in it.
    nodes:     nodes that compute something.
    """

    flops: Count
    bytes: Count
    largest: Count
    depth: Count
    tree_size: Count
    nodes: int

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<10} {getattr(self, name)}"
            for name in ("flops", "bytes", "largest", "depth", "tree_size", "nodes")
        )


def cost(e: Node | Sequence[Node], dims: Mapping[Dim | str, int] | None = None) -> Cost:
    """Count what an expression, or several together, cost.

    Args:
        dims: values of dims, by dim or by name: `{B: 32}`.
    Returns: a record with `.flops .bytes .largest .depth .tree_size .nodes`.
    Raises: ShapeError when a value of a dim is no integer >= 0.

    >>> from symgrad.graph.leaves import input
    >>> a, b = input("a", (2, 3)), input("b", (3, 5))
    >>> cost(a @ b).flops
    60
    """
    outputs = outputs_of("cost", e)
    known = _known(dims or {})
    return _count(outputs, known)


def _count(outputs: Sequence[Node], known: Mapping[sympy.Symbol, sympy.Integer]) -> Cost:
    flops: Count = 0
    moved: Count = 0
    sizes: dict[Count, None] = {}
    depth: dict[Node, Count] = {}
    tree: dict[Node, Count] = {}
    computed = 0
    for node in toposort(outputs):
        before = _largest([depth[a] for a in node.args])
        depth[node] = before + 1 if node.args else 0
        tree[node] = 1 + sum(tree[a] for a in node.args)
        if isinstance(node, (Input, Constant)):
            continue
        if isinstance(node, Proj):
            depth[node], tree[node] = depth[node.args[0]], tree[node.args[0]]
            sizes.setdefault(_number(_bytes(node), known))
            continue
        if isinstance(node, Fold):
            step, times = _count(node.body.outputs, known), node.structure.length
            flops += times * step.flops
            moved += times * step.bytes
            sizes.setdefault(step.largest)
            depth[node] = _number(before + times * step.depth, known)
            tree[node] = _number(tree[node] - 1 + times * step.tree_size, known)
            computed += step.nodes
            continue
        computed += 1
        own = _bytes(node)
        flops += operations_of(node)
        moved += own + sum((_bytes(a) for a in dict.fromkeys(node.args)), 0)
        sizes.setdefault(_number(own, known))
    return Cost(
        _number(flops, known),
        _number(moved, known),
        _largest(list(sizes)),
        _largest([depth[o] for o in outputs]),
        _number(sum((tree[o] for o in outputs), 0), known),
        computed,
    )


def _known(dims: Mapping[Dim | str, int]) -> dict[sympy.Symbol, sympy.Integer]:
    if not isinstance(dims, Mapping):
        raise ShapeError(f"cost: dims must be a dictionary such as {{B: 32}}, got {dims!r:.40}.")
    known: dict[sympy.Symbol, sympy.Integer] = {}
    for name, value in dims.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 0:
            raise ShapeError(f"cost: the dim {name} must be an integer >= 0, got {value!r}.")
        known[name if isinstance(name, Dim) else Dim(name)] = sympy.Integer(int(value))
    return known


def _number(count: Count, known: Mapping[sympy.Symbol, sympy.Integer]) -> Count:
    if isinstance(count, int):
        return count
    values = {d: int(n) for d, n in known.items()}
    parts = derived_values((s for s in count.free_symbols if isinstance(s, DerivedDim)), values)
    count = sympy.expand(count.xreplace({**known, **parts}))
    return int(count) if count.is_Integer else count


def _largest(sizes: Sequence[Count]) -> Count:
    numbers = [s for s in sizes if isinstance(s, int)]
    symbolic = list(dict.fromkeys(s for s in sizes if not isinstance(s, int)))
    top = max(numbers, default=0)
    if not symbolic:
        return top
    return sympy.Max(*symbolic, top)


def _bytes(node: Node) -> Count:
    return size(node.shape) * node.dtype.itemsize


def operations_of(node: Node) -> Count:
    """Scalar operations of one node."""
    elements: Extent = size(node.shape)
    if isinstance(node, Map):
        return elements * bodies.weight(node.body)
    if isinstance(node, Einsum):
        return _contraction(node)
    if isinstance(node, Reduce):
        read = size(node.args[0].shape)
        return read if node.op in RUNNING else read - elements
    if isinstance(node, Scatter):
        return size(node.args[0].shape)
    if isinstance(node, (Reindex, Gather)):
        return 0
    return 0


def _contraction(node: Einsum) -> Count:
    """Factors are met in order; a label is summed as soon as no later factor has it."""
    total: Count = 0
    held: set[int] = set(node.labels[0])
    for k in range(len(node.args)):
        later = {*node.out, *(j for group in node.labels[k + 1 :] for j in group)}
        reach = held | set(node.labels[k])
        terms = size(node.extents[j] for j in sorted(reach))
        total += terms if k else 0
        summed = [j for j in sorted(reach - later) if node.extents[j] != 1]
        total += terms if summed else 0
        held = reach & later
    return total
