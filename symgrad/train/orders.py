"""The order in which a run takes the rows of its data.

Rows of different extents are padded to the greatest of their batch, so those of like size should
share one. Sorting alone would put the same rows together in every epoch; here sizes are stretched a
little, by chance, before they are sorted, and the batches are shuffled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.graph.errors import DataError

Array = npt.NDArray[Any]

#: Rows are numbered in int32.
MOST_ROWS = 2**31 - 1
#: By which part a row's size is stretched at most: more mixes more rows, and pads more.
STRETCH = 1 / 8
SOURCE = '''\
"""Orders of rows."""

from codegen.runtime.orders import fill_orders as program
'''


class Orders:
    """The order of `n` rows in each epoch: as they stand, or shuffled, by seed and epoch alone.

    >>> order, rest = Orders(7, True, 3).rows(2, 1, 0, 3, 2, 1)
    >>> order.shape, rest.shape, sorted(int(row) for row in [*order.flat, *rest.flat])
    ((1, 3, 2), (1, 1, 1), [0, 1, 2, 3, 4, 5, 6])
    """

    def __init__(self, n: int, shuffle: bool = False, seed: int = 0) -> None:
        if n > MOST_ROWS:
            raise DataError(f"fit: at most {MOST_ROWS} rows are supported, got {n}.")
        from codegen.loading import load  # loads Numba, which a trainer needs only when it trains

        self._fill = load(SOURCE, "orders").function()
        self.n, self.shuffle = n, shuffle
        self._seed = np.uint64(seed % 2**64).astype(np.int64)
        self._order = np.empty(n, np.int32)
        self._held = -1
        self._memory = np.empty(0, np.int32)

    def order(self, epoch: int) -> Array:
        """All rows in the order of an epoch; overwritten by the next call."""
        return Orders.rows(self, epoch, 1, 0, 1, self.n, 0)[0].reshape(-1)

    def alike(self, epoch: int, done: int) -> int | None:
        """How many batches from batch `done` on a program takes in one call; None: any number."""
        return None

    def rows(
        self, epoch: int, epochs: int, start: int, batches: int, batch: int, rests: int
    ) -> tuple[Array, Array]:
        """Rows of whole batches (epochs, batches, batch) and of last ones (epochs, rests, rest).

        Args:
            epoch:   the first one.
            start:   at which place of the first epoch to begin.
            batches: whole ones in each epoch, of `batch` rows.
            rests:   partial ones in each epoch, 0 or 1.
        The arrays are overwritten by the next call.
        """
        rest = self.n % batch or batch
        shapes = (epochs, batches, batch), (epochs, rests, rest)
        sizes = [epochs * batches * batch, epochs * rests * rest]
        if sum(sizes) > len(self._memory):
            self._memory = np.empty(sum(sizes), np.int32)
        whole = self._memory[: sizes[0]].reshape(shapes[0])
        last = self._memory[sizes[0] : sum(sizes)].reshape(shapes[1])
        table = np.array([a.ctypes.data for a in (self._order, whole, last)], np.int64)
        given = (
            self.n, epochs, batches * batch, rests * rest, start, epoch, self._seed, self.shuffle,
            self._held,
        )
        numbers = np.array(given, np.int64)
        self._held = self._fill(table.ctypes.data, numbers.ctypes.data)
        return whole, last


class RaggedOrders(Orders):
    """The order of rows of different extents, in each epoch.

    Args:
        extents: of the rows, (n, dims); their sum is a row's size.
        batch:   rows of a whole batch.
        shuffle: by_size too: a new order in every epoch, made of seed and epoch.
        seed:    see `Orders`.
        by_size: rows of like size share a batch; otherwise all stand as they are.

    >>> sizes = np.array([[9], [1], [5], [1], [9], [5]])
    >>> whole, _ = RaggedOrders(sizes, 2, shuffle=True, by_size=True).rows(0, 1, 0, 3, 2, 0)
    >>> sorted(sizes[whole[0], 0].tolist())
    [[1, 1], [5, 5], [9, 9]]
    """

    def __init__(
        self,
        extents: npt.NDArray[np.int64],
        batch: int,
        shuffle: bool = False,
        seed: int = 0,
        by_size: bool = False,
    ) -> None:
        super().__init__(len(extents), shuffle, seed)
        self.extents, self.batch, self.by_size = extents, batch, by_size
        self._of_batches = Orders(self.n // batch + 1, shuffle, ~seed)
        self._epoch = -1
        self._taken = np.arange(self.n, dtype=np.int32)
        self._alike = np.empty(0, np.int64)

    def order(self, epoch: int) -> Array:
        """All rows in the order of an epoch."""
        self._make(epoch)
        return self._taken

    def alike(self, epoch: int, done: int) -> int:
        """How many batches from `done` on have the same extents: one call takes them all."""
        self._make(epoch)
        return int(self._alike[done]) if done < len(self._alike) else 1

    def rows(
        self, epoch: int, epochs: int, start: int, batches: int, batch: int, rests: int
    ) -> tuple[Array, Array]:
        """Rows of whole batches and of a last one, of one epoch; see `Orders.rows`."""
        self._make(epoch)
        part = self._taken[start : start + batches * batch + rests * (self.n % batch)]
        whole, rest = part[: batches * batch], part[batches * batch :]
        return whole.reshape(1, batches, batch), rest.reshape(1, rests, self.n % batch or batch)

    def _make(self, epoch: int) -> None:
        """Take the order of an epoch."""
        if self._epoch == epoch or (self._epoch >= 0 and not self.shuffle):
            return
        self._epoch = epoch
        if self.by_size:
            self._taken = self._by_size(epoch)
        whole = self.n // self.batch
        dims = self.extents[self._taken[: whole * self.batch]].reshape(whole, self.batch, -1)
        greatest = dims.max(axis=1)
        changes = np.flatnonzero((greatest[1:] != greatest[:-1]).any(axis=1)) + 1
        ends = np.append(changes, whole)
        places = np.arange(whole)
        self._alike = ends[np.searchsorted(ends, places, side="right")] - places

    def _by_size(self, epoch: int) -> npt.NDArray[np.int32]:
        """Rows batch by batch; a partial batch stands last, whatever the size of its rows."""
        place = np.empty(self.n)
        place[super().order(epoch)] = np.arange(self.n) / self.n
        sizes = (self.extents.sum(axis=1) + 1) * (1 + STRETCH * self.shuffle * place)
        order = np.argsort(sizes, kind="stable").astype(np.int32)
        if not self.shuffle:
            return order
        whole, rest = divmod(self.n, self.batch)
        batches = self._of_batches.order(epoch)  # of them `whole` is the partial one
        first = int(np.flatnonzero(batches == whole)[0]) * self.batch
        others = np.delete(order, slice(first, first + rest)).reshape(whole, self.batch)
        return np.append(others[batches[batches < whole]], order[first : first + rest])
