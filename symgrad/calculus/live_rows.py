"""Where the live steps of rows of different lengths stand when the rows are sorted by length.

Of rows of lengths n[b], b = 0 .. B-1, sorted from the longest to the shortest, those that live at a
step t are the first ones:

    live[t]  = #{b: n[b] > t}                                     rows at step t
    start[t] = live[0] + .. + live[t-1]                           rows before step t
    rank[b]  = #{a: n[a] > n[b]} + #{a < b: n[a] = n[b]}          where row b stands
    place    = start[t] + rank[b]                                 of (t, b), t < n[b]

so that all live (t, b) have the places 0 .. N-1 of one axis, N = n[0] + .. + n[B-1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from symgrad.graph.arithmetic import equal, greater, where
from symgrad.graph.dims import Counted, Extent, size
from symgrad.graph.dtypes import INT64
from symgrad.graph.folds import Rows
from symgrad.graph.leaves import arange, cast
from symgrad.graph.nodes import Gather, Node, Scatter
from symgrad.graph.ragged import living
from symgrad.graph.reductions import cumsum, sum as total
from symgrad.graph.shapes import sliced


@dataclass(frozen=True)
class LiveRows:
    """The live steps of rows; every number is an int64.

    Fields:
        lengths: of the rows, (B,), between 0 and `steps`.
        steps:   T.
        number:  tells it from others in the same program.
    """

    lengths: Node
    steps: Extent
    number: int

    def made(self) -> LiveRows:
        """Itself, with all expressions written."""
        _ = self.step_of, self.row_of, self.order
        return self

    @property
    def batch(self) -> Extent:
        """How many rows there are."""
        return self.lengths.shape[0]

    @property
    def cells(self) -> Extent:
        """How many steps all rows have, live or not."""
        return size((self.steps, self.batch))

    @cached_property
    def rows(self) -> Rows:
        """How many rows live in a step, and in all."""
        now = Counted(f"live{self.number}", self.batch)
        return Rows(now, Counted(f"words{self.number}", self.cells))

    @cached_property
    def _n(self) -> Node:
        return cast(self.lengths, INT64)

    @cached_property
    def _longer(self) -> Node:
        """How many rows are longer than l, (T + 1,)."""
        is_longer = greater(self._n[:, None], arange(0, self.steps + 1, dtype=INT64))
        return total(cast(is_longer, INT64), 0)

    @cached_property
    def live(self) -> Node:
        """How many rows live at a step, (T,)."""
        return sliced(self._longer, (0,), (1,), (self.steps,))

    @cached_property
    def start(self) -> Node:
        """How many live before a step, (T,)."""
        return cumsum(self.live) - self.live

    @cached_property
    def rank(self) -> Node:
        """Where a row stands among the sorted ones, (B,)."""
        is_long = equal(self._n[:, None], arange(0, self.steps + 1, dtype=INT64))
        alike = cumsum(cast(is_long, INT64), 0)  # rows up to this one that are l long
        return _at(self._longer, self._n) + _at(alike, arange(self.batch), self._n) - 1

    @cached_property
    def order(self) -> Node:
        """Which row stands at a place among the sorted ones, (B,)."""
        own = arange(self.batch, dtype=INT64)
        return Scatter((own, self.rank), (0,), ((0,),), (~0,), (self.batch,), wrap=False)

    @cached_property
    def is_live(self) -> Node:
        """Whether row b has a step t, (T, B)."""
        return living(self._n, self.steps)

    @cached_property
    def place(self) -> Node:
        """Where the live (t, b) stand, (T, B); 0 for those that do not live."""
        return where(self.is_live, self.start[:, None] + self.rank, 0)

    @cached_property
    def _cell(self) -> Node:
        """The cell t B + b of the live steps, in their places: (N,)."""
        number = arange(self.cells, dtype=INT64).reshape((self.steps, self.batch))
        known = Scatter(
            (where(self.is_live, number, 0), self.place),
            (0, 1), ((0, 1),), (~0,), (size((self.cells,)) + 1,), wrap=False,
        )
        last = equal(arange(0, self.cells + 1), self.cells)
        told = where(last, total(self.live), known)  # the last element tells N, see `Counted`
        return sliced(told, (0,), (1,), (self.rows.all,))

    @cached_property
    def step_of(self) -> Node:
        """The t of a place, (N,)."""
        return self._cell // self.batch

    @cached_property
    def row_of(self) -> Node:
        """The b of a place, (N,)."""
        return self._cell % self.batch


def _at(table: Node, *indices: Node) -> Node:
    """`table[i[k], j[k], ..]`, with indices that are known to lie in it."""
    axes = tuple(~k for k in range(len(indices)))
    return Gather((table, *indices), axes, ((0,),) * len(indices), (0,), wrap=False)
