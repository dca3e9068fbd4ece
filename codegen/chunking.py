"""How long the chunks of a recurrence with a budget of memory are: `sg.scan(checkpoint="64 MB")`.

A recurrence of T steps is cut into n equal pieces (`symgrad/graph/checkpoints.py`). Derivatives
keep the carries before n - 1 of them, and what a step saves of one piece at a time. How much that
is stands in the program's own memory plan: every block of the workspace is an extent, so with

    k = floor(T / n) + 1 steps in a chunk,   q = floor(T / k) chunks,   r = T - k q steps left

it is a number times k, q or r, and the kept bytes are the most of them that live at once. Blocks
of k q or T elements are sequences, results, and their gradients: data, which no chunk makes less.
The least n whose bytes stay within the budget is taken; n = 1 is no checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy

from codegen.runtime.packing import NEAR
from codegen.workspace import ALIGNMENT, REMEMBERED, Layout
from symgrad.graph.checkpoints import BudgetedChunk, exact_size, size_text
from symgrad.graph.dims import (
    DerivedDim,
    Dim,
    Extent,
    derived_values,
    free_dims,
    listed,
    printable,
    quotient_of,
    value,
)
from symgrad.graph.errors import DataShapeError
from symgrad.graph.folds import Fold

if TYPE_CHECKING:
    from symgrad.graph.graph import Graph

#: Numbers of pieces that are tried grow by this factor; between the last two, so many are tried.
GROWTH, BETWEEN = 1.1, 256

Counts: TypeAlias = npt.NDArray[np.int64]
#: Powers of k and q, and what they are multiplied with.
Terms: TypeAlias = tuple[tuple[int, int, Extent], ...]


@dataclass(frozen=True, slots=True)
class Chunking:
    """What was chosen for one recurrence.

    steps:  of the recurrence, T.
    length: of a chunk, k; above T where everything fits.
    chunks: whose steps are computed once more, q.
    kept:   bytes that derivatives keep of its steps at most.
    whole:  bytes without checkpoints.
    budget: bytes that were allowed.
    """

    steps: int
    length: int
    chunks: int
    kept: int
    whole: int
    budget: int

    def __str__(self) -> str:
        allowed = f"{size_text(self.kept)} of {exact_size(self.budget)} kept"
        if not self.chunks:
            return f"{self.steps} steps in one piece, nothing computed again: {allowed}"
        again = self.chunks * self.length
        return (
            f"{self.steps} steps in chunks of {self.length}, {again} of them computed again: "
            f"{allowed}; all at once {size_text(self.whole)}"
        )


class Chunks:
    """The lengths of chunks of a program, chosen from what its workspace keeps.

    Args:
        graph:   as written, whose dims these are.
        layouts: of the workspaces that a call may use; each must stay within the budget.
    """

    def __init__(self, graph: Graph, layouts: Iterable[Layout]) -> None:
        self.dims = graph.dims
        # the name of a dim holds the names of those that it depends on
        budgeted = (d for d in graph.dims if isinstance(d, BudgetedChunk))
        self.lengths = sorted(budgeted, key=lambda d: (len(d.name), d.name))
        self._graph = graph
        self._layouts = tuple(layouts)
        self._terms: dict[BudgetedChunk, tuple[dict[Extent, Terms], ...]] = {}
        self._known: dict[tuple[int, ...], dict[Dim, Chunking]] = {}
        self.last: dict[Dim, Chunking] = {}

    def __bool__(self) -> bool:
        return bool(self.lengths)

    def settled(self, dims: Mapping[Dim, int]) -> dict[Dim, int]:
        """All dims, given those that values tell.

        Raises: DataShapeError when a budget cannot be met.
        """
        own = {d: n for d, n in dims.items() if not isinstance(d, DerivedDim)}
        key = tuple(own.values())
        found = self._known.get(key)
        if found is None:
            found = {}
            for d in self.lengths:
                known = {**own, **{e: chosen.length for e, chosen in found.items()}}
                found[d] = self._choose(d, known)
            while len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = found
        self.last = found
        known = {**own, **{d: chosen.length for d, chosen in found.items()}}
        return {**known, **derived_values((d for d in self.dims if d not in known), known)}

    def _choose(self, length: BudgetedChunk, known: Mapping[Dim, int]) -> Chunking:
        steps = value(length.of, known)
        if length not in self._terms:
            self._terms[length] = tuple(kept_terms(layout, length) for layout in self._layouts)

        def needed(pieces: Counts) -> Counts:
            """Bytes for so many pieces, gaps between blocks included."""
            each = steps // pieces + 1
            live = np.zeros_like(pieces)
            for layout, terms in zip(self._layouts, self._terms[length], strict=True):
                sizes = {e: _size(own, known, each, steps // each) for e, own in terms.items()}
                live = np.maximum(live, _live(layout, sizes, len(pieces)))
            bytes_of: Counts = np.ceil(live * NEAR).astype(np.int64)
            return bytes_of

        tried = _growing(max(steps, 1))
        costs = needed(tried)
        fits = np.flatnonzero(costs <= length.budget)
        if not len(fits):
            self._refuse(length, steps, known, int(tried[costs.argmin()]), int(costs.min()))
        first = int(fits[0])
        pieces, taken = int(tried[first]), int(costs[first])
        if first and pieces - tried[first - 1] > 1:
            low = int(tried[first - 1]) + 1
            between = np.unique(np.linspace(low, pieces, BETWEEN).astype(np.int64))
            more = needed(between)
            at = int(np.flatnonzero(more <= length.budget)[0])
            pieces, taken = int(between[at]), int(more[at])
        each = steps // pieces + 1
        return Chunking(steps, each, steps // each, taken, int(costs[0]), length.budget)

    def _refuse(
        self, length: BudgetedChunk, steps: int, known: Mapping[Dim, int], pieces: int, least: int
    ) -> None:
        """Raise the error."""
        each = steps // pieces + 1
        told = [f"{printable(d.name)} = {n}" for d, n in known.items()]
        where = dict.fromkeys(str(fold.where) for fold in folds_of(self._graph, length))
        raise DataShapeError(
            f'scan: checkpoint="{exact_size(length.budget)}" is less than the derivatives of '
            f"{steps} steps need\n  scan  {listed([*where, *sorted(told)])}\n"
            f"  The least is {size_text(least)}: chunks of {each} steps, one of which is kept, and "
            f"the carries before {steps // each} of them.\n"
            f'  Allow more, checkpoint="{exact_size(-(-least // 1000) * 1000)}", or give fewer '
            "steps or rows at once."
        )


def folds_of(graph: Graph, length: Dim) -> Iterator[Fold]:
    """The recurrences over chunks of that length, those that go back left out."""
    for node in graph.every_node():
        if isinstance(node, Fold) and node.backward_of is None:
            count = node.structure.length
            if isinstance(count, DerivedDim) and count.every == length:
                yield node


def kept_terms(layout: Layout, length: BudgetedChunk) -> dict[Extent, Terms]:
    """The sizes of a workspace's blocks that depend on a chunk's length."""
    chunks = quotient_of(length.of, length)
    assert isinstance(chunks, Dim)
    found: dict[Extent, Terms] = {}
    for extent in layout.extents():
        if not isinstance(extent, int) and {length, chunks} & set(free_dims(extent)):
            powers = sympy.Poly(extent, length, chunks).terms()
            found[extent] = tuple((a, b, factor) for (a, b), factor in powers)
    return found


def _size(terms: Terms, dims: Mapping[Dim, int], length: Counts, chunks: Counts) -> Counts:
    """Bytes of a block that are no data: where k q is taken off, it holds the steps left."""
    known = [(a, b, value(factor, dims)) for a, b, factor in terms]
    left = any(a and b and factor < 0 for a, b, factor in known)
    own = [(a, b, f) for a, b, f in known if left or (bool(a) != bool(b))]
    size = sum((f * length**a * chunks**b for a, b, f in own), np.zeros_like(length))
    return np.where(size > 0, -(-size // ALIGNMENT) * ALIGNMENT, 0)


def _live(layout: Layout, sizes: Mapping[Extent, Counts], many: int) -> Counts:
    """The most bytes that live at once of these blocks, for each of so many choices."""
    end = max((last for block in layout.blocks for _, last in block.spans), default=-1) + 2
    change = np.zeros((end, many), np.int64)
    for block in layout.blocks:
        own = block.content
        size = _live(own, sizes, many) if isinstance(own, Layout) else sizes.get(own)
        for first, last in block.spans if size is not None else ():
            change[first] += size
            change[last + 1] -= size
    found: Counts = change.cumsum(axis=0).max(axis=0)
    return found


def _growing(most: int) -> Counts:
    """1, 2, 3, .. up to `most`, each at least `GROWTH` times the one before.

    >>> _growing(17).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17]
    """
    found = [1]
    while found[-1] < most:
        found.append(min(max(found[-1] + 1, int(np.ceil(found[-1] * GROWTH))), most))
    return np.array(found, np.int64)
