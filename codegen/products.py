"""Contractions as matrix products on memory as it lies.

An operand of a contraction is read where its elements lie: transposes, slices, axes of extent one
and reshapes below them are looked through, and each label gets a stride. A contraction is then

    C[i, j] := sum over l of A[i, l] B[l, j]        one for each index of the loops around it

where each of i, j, l stands for the labels that run through memory as one axis. Of the two strides
of a matrix one must be 1 (the other is the length of its rows in memory); what fits no such picture
is copied into one that does. So splitting a state into heads and joining them again moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, permutations
from typing import TypeAlias

from codegen.access import can_inline, is_one, is_view, reads, root_of, slices
from codegen.loop_ir import Affine, Partition, partition_of, variable
from symgrad.graph.dims import Extent, Shape, same, show, size
from symgrad.graph.dtypes import is_float
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Map, Node, Reindex

# A target runs at most so many loops around a product.
MOST_LOOPS = 2
# Products with fewer rows or columns than this are not worth a loop around them: a copy is.
FEWEST_IN_LOOP = 8
# Labels of one axis of a matrix whose orders are all tried.
MOST_ORDERED = 4

Strides: TypeAlias = Mapping[int, Extent]


@dataclass(frozen=True, slots=True)
class Layout:
    """The elements of an operand: `root[start + sum of stride * label]`, in elements."""

    root: Node
    start: Extent
    strides: Strides


@dataclass(frozen=True, slots=True)
class Around:
    """A loop around a product: its extent, and how far A, B and C move in a step."""

    extent: Extent
    steps: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Matrix products, one for each index of `loops`, outermost first: see `loop_ir.Call`.

    Fields:
        operands:   A, B and C.
        m, n, k:    extents.
        rows:       lengths of the rows of A, B and C in memory.
        transposed: whether A and B lie transposed.
        parts:      what the rows of C consist of.
        terms:      what the terms of a sum consist of.
    """

    operands: tuple[Layout, Layout, Layout]
    loops: tuple[Around, ...]
    m: Extent
    n: Extent
    k: Extent
    rows: tuple[Extent, Extent, Extent]
    transposed: tuple[bool, bool]
    parts: Partition | None = None
    terms: Partition | None = None

    def __str__(self) -> str:
        count = size(loop.extent for loop in self.loops)
        several = "" if is_one(count) else f"{count} of "
        sides = zip(((self.m, self.k), (self.k, self.n)), self.transposed, strict=True)
        left, right = (f"{show(s[::-1])}^T" if t else show(s) for s, t in sides)
        return f"{several}{left} x {right}"


def layout_of(node: Node, labels: Sequence[int], inline: Callable[[Node], bool]) -> Layout | None:
    """Where a node lies, indexed by these labels; None for what has no memory.

    Args:
        inline: whether readers look through a node.
    """
    index: tuple[Affine, ...] = tuple(variable(str(k)) for k in labels)
    while inline(node):
        if not node.args or isinstance(node, (Map, Constant)):
            return None
        index, node = reads(node, index)[0], node.args[0]
    place = Affine()
    for i, stride, extent in zip(index, _row_major(node.shape), node.shape, strict=True):
        place = place + (Affine() if is_one(extent) else i * stride)
    return Layout(root_of(node), place.const, {k: place.coefficient(str(k)) for k in labels})


def compact(node: Node, labels: Sequence[int]) -> Layout:
    """A node in memory of its own, row-major."""
    strides = {
        k: 0 if is_one(e) else s
        for k, e, s in zip(labels, node.shape, _row_major(node.shape), strict=True)
    }
    return Layout(root_of(node), 0, strides)


def _row_major(shape: Shape) -> list[Extent]:
    strides: list[Extent] = []
    step: Extent = 1
    for extent in reversed(shape):
        strides.append(step)
        step = size((step, extent))
    return strides[::-1]


def homes_of(graph: Graph) -> dict[Node, Layout]:
    """Products that may write straight into their part of an array of pieces, and where that lies.

    Every piece of such an array is the whole result of a product that nothing else reads, perhaps
    transposed, and together they cover the array.
    """
    readers: dict[Node, int] = {}
    for node in (*graph.outputs, *(arg for n in graph.nodes for arg in n.args)):
        readers[node] = readers.get(node, 0) + 1
    found: dict[Node, Layout] = {}
    for node in graph.nodes:
        if isinstance(node, Reindex) and not can_inline(node) and not is_view(node):
            parts = [_home(node, k, readers) for k in range(len(node.args))]
            covered = sum((size(p.count) for p in node.pieces), start=0)
            if same(covered, size(node.shape)) is True:
                known = dict(part for part in parts if part is not None)
                found |= known if len(known) == len(node.args) else {}
    return found


def _home(target: Reindex, k: int, readers: Mapping[Node, int]) -> tuple[Node, Layout] | None:
    """The product behind the k-th piece of an array, and the place of its result there."""
    node, piece = target.args[k], target.pieces[k]
    whole = all(
        start == 0 and step == 1 and same(count, extent) is True
        for start, step, count, extent in zip(
            piece.start, piece.step, piece.count, piece.view, strict=True
        )
    )
    wide = [axis for axis, e in enumerate(piece.view) if not is_one(e)]
    if not whole or [piece.view[x] for x in wide] != [e for e in node.shape if not is_one(e)]:
        return None
    axes = iter(wide)
    index = tuple(Affine() if is_one(e) else variable(str(next(axes))) for e in node.shape)
    while not is_product(node):
        if readers[node] != 1 or not can_inline(node) or len(node.args) != 1 or slices(node):
            return None
        index, node = reads(node, index)[0], node.args[0]
    if readers[node] != 1 or {v for i in index for v in i.variables} != {str(x) for x in wide}:
        return None
    assert isinstance(node, Einsum)
    lengths = _row_major(target.shape)
    start = size((0,))
    for offset, length in zip(piece.offset, lengths, strict=True):
        start = start + size((offset, length))
    strides = {
        label: sum(
            (size((lengths[int(v)], piece.stride[int(v)])) for v in place.variables), start=0
        )
        for label, place in zip(node.out, index, strict=True)
    }
    return node, Layout(target, start, strides)


def is_product(node: Node) -> bool:
    """Whether a node is a contraction that could be matrix products: it has rows or columns."""
    if not isinstance(node, Einsum) or len(node.args) != 2 or not node.summed:
        return False
    batch, m, n, k = kinds(node)
    return bool(is_float(node.dtype) and k and (m or n) and not (batch and not (m and n)))


def kinds(node: Einsum) -> tuple[list[int], list[int], list[int], list[int]]:
    """The labels of both arguments and the result, of the rows, of the columns, and summed."""
    a, b = (set(labels) for labels in node.labels)
    return (
        [x for x in node.out if x in a and x in b],
        [x for x in node.out if x in a and x not in b],
        [x for x in node.out if x in b and x not in a],
        [x for x in node.labels[0] if x in b and x not in node.out],
    )


def matched(node: Node, a: Layout, b: Layout, c: Layout) -> Product | None:
    """A contraction of these operands as products with the fewest loops; None where it is none."""
    if not isinstance(node, Einsum) or not is_product(node):
        return None
    extents = {x: e for x, e in enumerate(node.extents) if not is_one(e)}
    batch, m, n, k = ([x for x in group if x in extents] for group in kinds(node))
    if {*batch, *m, *n, *k} != set(extents):
        return None
    if not (_moves(a, batch + m + k) and _moves(b, batch + k + n) and _moves(c, batch + m + n)):
        return None
    inner = _one_axis(k, a.strides, b.strides, extents)
    if inner is None:
        return None
    best: Product | None = None
    for rows, peeled in _axes(m, a.strides, c.strides, extents):
        for columns, also in _axes(n, b.strides, c.strides, extents):
            loops = tuple(
                Around(extents[x], tuple(z.strides.get(x, 0) for z in (a, b, c)))
                for x in sorted([*batch, *peeled, *also], key=node.out.index)
            )
            if _many(loops) or (best is not None and len(loops) >= len(best.loops)):
                continue
            best = _fitted((a, b, c), loops, rows, columns, inner) or best
    return best


@dataclass(frozen=True, slots=True)
class _Axis:
    """Labels that are one axis of two matrices: its extent, its stride in each, its rows."""

    extent: Extent
    first: Extent
    second: Extent
    parts: Partition | None = None


def _moves(layout: Layout, labels: Sequence[int]) -> bool:
    """Whether every label moves forward through memory."""
    strides = [layout.strides[x] for x in labels]
    return all(s > 0 if isinstance(s, int) else s.is_nonnegative is True for s in strides)


def _one_axis(
    labels: Sequence[int], x: Strides, y: Strides, extents: Mapping[int, Extent]
) -> _Axis | None:
    """Labels as one axis of both matrices; None where they are several."""
    if not labels:
        return _Axis(1, 1, 1)
    for order in permutations(labels) if len(labels) <= MOST_ORDERED else [tuple(labels)]:
        if all(
            same(z[slow], size((z[fast], extents[fast]))) is True
            for slow, fast in pairwise(order)
            for z in (x, y)
        ):
            parts = partition_of([extents[z] for z in order])
            return _Axis(size(extents[z] for z in labels), x[order[-1]], y[order[-1]], parts)
    return None


def _axes(
    labels: Sequence[int], x: Strides, y: Strides, extents: Mapping[int, Extent]
) -> Iterator[tuple[_Axis, tuple[int, ...]]]:
    """Labels as one axis, the fewest of them as loops around it; the longest axes first."""
    for count in range(max(1, min(len(labels), MOST_LOOPS + 1))):
        for peeled in combinations(labels, count):
            axis = _one_axis([z for z in labels if z not in peeled], x, y, extents)
            short = axis is not None and type(axis.extent) is int and axis.extent < FEWEST_IN_LOOP
            if axis is not None and not (peeled and short):
                yield axis, peeled


def _many(loops: Sequence[Around]) -> bool:
    """Whether these are more loops than a target runs, once `tune` has joined neighbours."""
    count = 0
    for slow, fast in pairwise([*loops[:1], *loops]):
        joint = all(
            same(far, size((fast.extent, near))) is True
            for far, near in zip(slow.steps, fast.steps, strict=True)
        )
        count += 0 if joint and count else 1
    return count > MOST_LOOPS


def _fitted(
    operands: tuple[Layout, Layout, Layout],
    loops: tuple[Around, ...],
    m: _Axis,
    n: _Axis,
    k: _Axis,
) -> Product | None:
    """The product, where the strides of its axes allow one."""
    a, b, c = operands
    has_m, has_n = not is_one(m.extent), not is_one(n.extent)
    if has_n and not is_one(n.second) and (is_one(m.second) or not has_m):
        # C lies transposed: exchange the factors
        a, b, m, n, has_m, has_n = b, a, n, m, has_n, has_m
        k = _Axis(k.extent, k.second, k.first, k.parts)
        loops = tuple(replace(z, steps=(z.steps[1], z.steps[0], z.steps[2])) for z in loops)
    if has_n and not is_one(n.second):
        return None
    if is_one(k.first):
        left, lda = False, m.first if has_m else k.extent
    elif not has_m or is_one(m.first):
        left, lda = True, k.first
    else:
        return None
    if not has_n or is_one(n.first):
        right, ldb = False, k.second
    elif is_one(k.second):
        right, ldb = True, n.first
    else:
        return None
    rows = (lda, ldb, m.second if has_m else n.extent)
    sizes = (m.extent, n.extent, k.extent)
    return Product((a, b, c), loops, *sizes, rows, (left, right), m.parts, k.parts)
