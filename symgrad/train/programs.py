"""Compiled epochs, bound to data and to the arrays that they keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.blas import one_blas_thread
from codegen.compiled import Compiled
from symgrad.graph.binding import Binding
from symgrad.graph.dims import Dim
from symgrad.graph.nodes import Gather, Input, Node
from symgrad.train.data import Bound
from symgrad.train.driver import Stop
from symgrad.train.epochs import Epochs

Array = npt.NDArray[Any]


class BoundEpochs:
    """A compiled program of epochs over data.

    Args:
        f:          compiled from `epochs`.
        bound:      the data.
        batch_size: rows of a whole batch.
        values:     arrays of the leaves that are kept, used in place.
    Raises: DataError and its kinds where the extents of a batch do not fit.
    """

    def __init__(
        self,
        f: Compiled,
        epochs: Epochs,
        bound: Bound,
        batch_size: int,
        values: Mapping[Input, Array],
    ) -> None:
        self.f, self.epochs, self.bound = f, epochs, bound
        self.outputs = len(epochs.sums)
        kept = {leaf.name: array for leaf, array in values.items()}
        rest = bound.n % batch_size or batch_size
        binding = Binding(epochs.step)
        _, self._dims = binding({**bound.batch(0, batch_size), **kept})
        binding({**bound.batch(bound.n - rest, bound.n), **kept})
        data = {leaf.name: array for leaf, array in (*bound.rows.items(), *bound.whole.items())}
        self._dims[epochs.rows] = bound.n
        order, last = np.zeros((1, 1, batch_size), np.int32), np.zeros((1, 1, rest), np.int32)
        given = self._given(order, last, np.zeros((self.outputs, 1)))
        names = {leaf.name: array for leaf, array in given.items()}
        self._call = f.bind_buffers({**kept, **data, **names}, self._extents(given))

    def run(self, order: Array, rest: Array, begun: Array) -> tuple[int, Array]:
        """Do steps over rows; see `driver.Program`."""
        call, f = self._call, self.f
        given = self._given(order, rest, begun)
        f.rebind(call, given, self._extents(given))
        with one_blas_thread():
            status = call.run()
        if status == Stop.DONE and self.epochs.finite is not None:
            status = Stop.DONE if f.output(call, self.outputs) else Stop.NOT_FINITE
        return status, np.array([f.output(call, k) for k in range(self.outputs)])

    def _given(self, order: Array, rest: Array, begun: Array) -> dict[Input, Array]:
        own = (self.epochs.order, self.epochs.rest, *self.epochs.begun)
        return dict(zip(own, (order, rest, *begun), strict=True))

    def _extents(self, given: Mapping[Input, Array]) -> dict[Dim, int]:
        dims = dict(self._dims)
        for leaf, array in given.items():
            pairs = zip(leaf.shape, array.shape, strict=True)
            dims |= {extent: n for extent, n in pairs if isinstance(extent, Dim)}
        return dims

    def explain(self, rows: Sequence[int]) -> str:
        """Which index was out of range in the batch of these rows."""
        leaves = {leaf.name: leaf for leaf in self.bound.rows}

        def row_of(node: Node, place: tuple[int, ...]) -> tuple[int, Node] | None:
            taken = isinstance(node, Gather) and node.args[0].name in leaves
            return (rows[place[0]], leaves[node.args[0].name]) if taken else None

        return str(self.f.index_error(self._call, row_of))
