"""Checkpoints: a recurrence over T steps as one over chunks of k steps, and in it one over a chunk.

    c = chunk(c, x[j k : (j + 1) k]),   j = 0 .. T/k - 1;    then the T mod k steps that are left

Its derivatives keep the carry at the beginning of each chunk, and run a chunk once more before they
walk back through it: memory for T/k + k steps instead of T, one more forward pass of time. With
k = sqrt(T) that is 2 sqrt(T). Griewank 1992; Chen et al., arXiv 1604.06174.

The steps that are left are one piece like any other, but what their derivatives read is kept: they
are walked back first. So k = T + 1 is no checkpoint at all, and with a budget of bytes the steps
are n equal pieces, the last of which is what is left,

    k = floor(T / n) + 1,   n the least for which a piece and n - 1 carries stay within the budget

`codegen/chunking.py` finds n: only a compiled program knows what a step of it keeps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from symgrad.graph.dims import (
    DerivedDim,
    Dim,
    Extent,
    as_extent,
    ceil_sqrt,
    quotient_of,
    same,
    value,
)
from symgrad.graph.errors import SymgradError
from symgrad.graph.folds import Chain, Fold, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, Piece, Reindex, reshape_node
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import replace

# Chunks of so many times the square root of the steps at most, for the sake of equal chunks.
NEAR = 2
#: Bytes by the unit that a size is written in.
UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
SHOWN = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


class BudgetedChunk(DerivedDim):
    """The length of a chunk that is as long as a budget of bytes allows.

    A program that was compiled tells it, when values arrive. Where nothing is kept, as in the plain
    evaluator, it is `of + 1`: all steps are one piece.

    Fields:
        budget: bytes that derivatives of the recurrence may keep of its steps at once.
    """

    __slots__ = ("budget",)

    budget: int

    def __new__(cls, of: Extent, budget: int) -> BudgetedChunk:
        """Return the dim of that extent and budget; recurrences that share both share it."""
        made = Dim.__new__(cls, f"chunk({of}, {exact_size(budget)})")
        assert isinstance(made, BudgetedChunk)
        made.of, made.every, made.budget = of, None, budget
        return made

    @property
    def arguments(self) -> tuple[Extent | None, ...]:
        """What it is made of: equal ones make the same dim."""
        return self.of, self.budget

    def number(self, dims: Mapping[Dim, int]) -> int:
        """Its value where nothing is kept."""
        return value(self.of, dims) + 1


def as_bytes(text: str) -> int | None:
    """A size that is written with its unit, in bytes; None where the text is none.

    >>> as_bytes("64 MB"), as_bytes("1.5GiB"), as_bytes("512 kB"), as_bytes("64")
    (64000000, 1610612736, 512000, None)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?b)\s*", text, re.IGNORECASE)
    unit = UNITS.get(found[2].lower()) if found else None
    return int(Fraction(found[1]) * unit) if found and unit else None


def size_text(count: int) -> str:
    """Bytes with a unit, up to three digits.

    >>> size_text(64_000_000), size_text(1_234_567), size_text(2**20), size_text(17)
    ('64 MB', '1.23 MB', '1.05 MB', '17 B')
    """
    each, unit = next(((e, u) for u, e in SHOWN if count >= e), (1, "B"))
    return f"{count / each:.0f} {unit}" if count >= 100 * each else f"{count / each:.3g} {unit}"


def exact_size(count: int) -> str:
    """Bytes with the largest unit that leaves a whole number.

    >>> exact_size(64_000_000), exact_size(2**20)
    ('64 MB', '1048576 B')
    """
    each, unit = next(((e, u) for u, e in SHOWN if count % e == 0), (1, "B"))
    return f"{count // each} {unit}"


def chunk_length(value: object, steps: Extent) -> Extent | None:
    """How many steps a chunk has.

    Raises: SymgradError when `value` is no whole number >= 1, no size, and not "sqrt".
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value == "sqrt":
            return near_root(steps)
        if budget := as_bytes(value):
            return BudgetedChunk(steps, budget)
    if isinstance(value, (str, bool)) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise SymgradError(
            f"scan: checkpoint={value!r:.40}: needs a whole number of steps >= 1 between "
            'checkpoints, "sqrt", or a budget of memory as text, "64 MB" or "1.5 GiB"; '
            "None: every step is one."
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
