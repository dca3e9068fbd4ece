"""The order in which a run takes the rows of its data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.graph.errors import DataError

Array = npt.NDArray[Any]

#: Rows are numbered in int32.
MOST_ROWS = 2**31 - 1
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
