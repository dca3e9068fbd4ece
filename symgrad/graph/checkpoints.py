"""Checkpoints: a recurrence over T steps as one over chunks of k steps, and in it one over a chunk.

    c = chunk(c, x[j k : (j + 1) k]),   j = 0 .. T/k - 1;    then the T mod k steps that are left

Its derivatives keep the carry at the beginning of each chunk, and run a chunk once more before they
walk back through it: memory for T/k + k steps instead of T, one more forward pass of time. With
k = sqrt(T) that is 2 sqrt(T). Griewank 1992; Chen et al., arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Sequence

from symgrad.graph.dims import Extent, as_extent, ceil_sqrt, quotient_of, same
from symgrad.graph.errors import SymgradError
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, Piece, Reindex, reshape_node
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import replace

# Chunks of so many times the square root of the steps at most, for the sake of equal chunks.
NEAR = 2


def chunk_length(value: object, steps: Extent) -> Extent | None:
    """How many steps a chunk has.

    Raises: SymgradError when `value` is neither a whole number >= 1 nor "sqrt".
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "sqrt":
        return near_root(steps)
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value.__index__()) < 1:
        raise SymgradError(
            f"scan: checkpoint={value!r:.40}: needs a whole number of steps >= 1 between "
            'checkpoints, or "sqrt"; None: every step is one.'
        )
    return int(value.__index__())


def near_root(steps: Extent) -> Extent:
    """The square root, rounded up, or a near number that leaves no rest.

    >>> near_root(100_000), near_root(101), near_root(0)
    (400, 11, 1)
    """
    root = ceil_sqrt(steps)
    if not isinstance(steps, int) or not isinstance(root, int):
        return root
    near = (k for k in range(root, NEAR * root + 1) if steps and steps % k == 0)
    return next(near, root)


def in_chunks(fold: Fold, every: Extent) -> tuple[Node, ...]:
    """The results of a recurrence, computed in chunks.

    The last chunk in the order of the walk is the one that may be shorter.
    """
    steps, reverse = fold.structure.length, fold.structure.reverse
    if isinstance(steps, int) and isinstance(every, int) and steps <= every:
        return projections(fold)
    chunks = quotient_of(steps, every)
    whole = as_extent(chunks * every)
    rest = as_extent(steps - whole)
    first, second = (rest, 0) if reverse else (0, whole)
    carry, ys = list(fold.init), [list[Node]() for _ in fold.results[fold.carries :]]
    if same(whole, 0) is not True:
        xs = [
            reshape_node(_taken(x, first, whole), (chunks, every, *x.shape[1:])) for x in fold.xs
        ]
        found = _over_chunks(fold, xs, chunks, every)
        carry = list(found[: fold.carries])
        for k, y in enumerate(found[fold.carries :]):
            ys[k].append(reshape_node(y, (whole, *y.shape[2:])))
    if same(rest, 0) is not True:
        xs = [_taken(x, second, rest) for x in fold.xs]
        left = Fold(
            (*carry, *xs, *fold.consts), _renewed(fold.body), Chain(rest, reverse),
            fold.carries, fold.sequences,
        )
        found = projections(left)
        carry = list(found[: fold.carries])
        for k, y in enumerate(found[fold.carries :]):
            ys[k].append(y)
    joined = [_joined(parts[::-1] if reverse else parts, steps) for parts in ys]
    return (*carry, *joined)


def _over_chunks(
    fold: Fold, xs: Sequence[Node], chunks: Extent, every: Extent
) -> tuple[Node, ...]:
    """A recurrence over chunks, each of which is one of the fold's body."""
    carry, _, consts = (
        [binder(b.name, b.shape, b.dtype) for b in group] for group in fold.binders
    )
    elements = [
        binder(f"{b.name} of a chunk", (every, *b.shape), b.dtype) for b in fold.binders[1]
    ]
    inner = Fold(
        (*carry, *elements, *consts), fold.body, Chain(every, fold.structure.reverse),
        fold.carries, fold.sequences,
    )
    body = Graph((*carry, *elements, *consts), projections(inner))
    structure = Chain(chunks, fold.structure.reverse, checkpoint=True)
    outer = Fold(
        (*fold.init, *xs, *fold.consts), body, structure, fold.carries, fold.sequences
    )
    return projections(outer)


def _renewed(body: Graph) -> Graph:
    """The body over binders of its own: no two bodies share one."""
    fresh: dict[Node, Input] = {b: binder(b.name, b.shape, b.dtype) for b in body.inputs}
    with own_provenance():
        return Graph(tuple(fresh.values()), tuple(replace(body.outputs, dict(fresh))))


def _taken(x: Node, first: Extent, count: Extent) -> Node:
    """`x[first : first + count]`."""
    if same(count, x.shape[0]) is True:
        return x
    still = (0,) * (x.ndim - 1)
    ones = (1,) * x.ndim
    shape = (count, *x.shape[1:])
    piece = Piece(x.shape, (first, *still), ones, shape, (0, *still), ones)
    return Reindex((x,), (piece,), shape)


def _joined(parts: Sequence[Node], steps: Extent) -> Node:
    """Parts of a sequence, one after another."""
    if len(parts) == 1:
        return parts[0]
    shape = (steps, *parts[0].shape[1:])
    pieces, first = [], as_extent(0)
    for part in parts:
        still, ones = (0,) * (part.ndim - 1), (1,) * part.ndim
        pieces.append(
            Piece(part.shape, (0, *still), ones, part.shape, (first, *still), ones)
        )
        first = as_extent(first + part.shape[0])
    return Reindex(tuple(parts), tuple(pieces), shape)
