"""Compiled epochs, bound to data and to the arrays that they keep."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codegen.blas import one_blas_thread
from codegen.compiled import Compiled
from codegen.subnormals import subnormals_flushed
from symgrad.graph.dims import Dim
from symgrad.graph.errors import DataShapeError
from symgrad.graph.nodes import Gather, Input, Node
from symgrad.train.data import Bound
from symgrad.train.driver import Stop
from symgrad.train.epochs import ROWS, Epochs

if TYPE_CHECKING:
    from codegen.reporting import Report

Array = npt.NDArray[Any]
# Whole batches that a report times at most.
REPORTED = 50


class BoundEpochs:
    """A compiled program of epochs over data; see `driver.Program`.

    Args:
        f:          compiled from `epochs`.
        bound:      the data.
        batch_size: rows of a whole batch.
        values:     arrays of the leaves that are kept. A run that succeeds puts other ones, with
                    the state that it reached, into their places.
        finite:     whether the first and the last output must be finite.
        first:      what leaves of the state hold at the start of an epoch.
    Raises: DataError and its kinds where the extents of a batch do not fit.
    """

    def __init__(
        self,
        f: Compiled,
        epochs: Epochs,
        bound: Bound,
        batch_size: int,
        values: MutableMapping[Input, Array],
        finite: bool = False,
        first: Mapping[Input, Array] | None = None,
    ) -> None:
        self._first = {epochs.first[leaf]: array for leaf, array in (first or {}).items()}
        self.f, self.epochs, self.bound, self.values, self.finite = f, epochs, bound, values, finite
        self.outputs = len(epochs.sums)
        self._spare = [np.empty_like(values[leaf]) for leaf in epochs.state]
        self.state_bytes = sum(array.nbytes for array in self._spare)
        kept = {leaf.name: array for leaf, array in values.items()}
        rest = bound.n % batch_size or batch_size
        data = bound.batch(slice(batch_size))
        _, dims = epochs.step({**data, **kept})
        try:
            epochs.step({**bound.batch(slice(bound.n - rest, bound.n)), **kept})
        except DataShapeError as error:
            if not first or rest == batch_size:
                raise
            raise DataShapeError(
                f"{error}\n  The last batch has {rest} rows, of {bound.n} in batches of "
                f"{batch_size}: what is carried must fit all.\n"
                "  Give whole batches only, in the order of the stream (shuffle=False)."
            ) from None
        if bound.extents is None:
            data = bound.batch(slice(None))
        self._dims = {**dims, epochs.rows: batch_size if bound.extents is not None else bound.n}
        order, last = np.zeros((1, 1, batch_size), np.int32), np.zeros((1, 1, rest), np.int32)
        self._shapes = order.shape, last.shape
        given = self._given(order, last, np.zeros((self.outputs, 1)), True)
        names = {leaf.name: array for leaf, array in given.items()}
        self._call = f.prepared({**kept, **data, **names}, self._extents(order, last))
        self._leaves = {leaf.name: leaf for leaf in f.leaves}
        weakref.finalize(self, f.release, self._call).atexit = False

    def run(self, order: Array, rest: Array, begun: Array, fresh: bool) -> tuple[int, Array]:
        """Do steps over rows; when they fail, nothing has changed."""
        f, call = self.f, self._call
        self._rebind(order, rest, begun, fresh)
        with one_blas_thread(), subnormals_flushed():
            status = call.run()
        n = len(self._spare)
        sums = np.array([f.output(call, n + k) for k in range(self.outputs)])
        if status == Stop.DONE and self.finite and not np.isfinite(sums[[0, -1]]).all():
            status = Stop.NOT_FINITE
        if status == Stop.DONE:
            for k, leaf in enumerate(self.epochs.state):
                reached = f.output(call, k)
                if reached is not self._spare[k]:  # what is no result of the program's own
                    self._spare[k][...] = reached
                self._spare[k], self.values[leaf] = self.values[leaf], self._spare[k]
        return status, sums

    def _rebind(self, order: Array, rest: Array, begun: Array, fresh: bool) -> None:
        """Prepare a run over these rows."""
        data: dict[Input, Array] = {}
        if self.bound.extents is not None:
            data, order, rest = self._padded(order, rest)
        given = {**data, **self._given(order, rest, begun, fresh)}
        self.f.rebind(self._call, given, self._extents(order, rest), self._spare)

    def _padded(self, order: Array, rest: Array) -> tuple[dict[Input, Array], Array, Array]:
        """Rows of like extents as data of their own, and where they stand in them."""
        rows = np.append(order, rest)
        parts = self.bound.batch(rows)
        places = np.arange(len(rows), dtype=np.int32)
        size = order.shape[-1] if order.size else rest.shape[-1]
        kept = {leaf.name: array for leaf, array in self.values.items()}
        own = {leaf.name for leaf in self.bound.rows}
        one = {name: part[:size] if name in own else part for name, part in parts.items()}
        _, dims = self.epochs.step({**one, **kept})
        self._dims = {**dims, self.epochs.rows: len(rows)}
        data = {self._leaves[name]: parts[name] for name in own if name in self._leaves}
        whole, last = places[: order.size].reshape(order.shape), places[order.size :]
        return data, whole, last.reshape(rest.shape)

    def report(self) -> Report:
        """What the kernels of some steps do, and how fast; changes nothing."""
        from codegen.reporting import make_report

        n, (_, _, size), (_, _, rest) = self.bound.n, *self._shapes
        whole, rows = n // size, np.arange(n, dtype=np.int32)
        alike = self.bound.extents is None  # else one batch, with extents of its own
        steps = min(whole, REPORTED if alike else 1)
        order = rows[: steps * size].reshape(1, steps, size)
        last = rows[n - rest :].reshape(1, 1, rest)[:, : int(alike and whole * size < n)]
        self._rebind(order, last, np.zeros((self.outputs, 1)), True)
        dims = dict(zip(self.f.dims, map(int, self._call.dims), strict=False))
        return make_report(self.f, self._call.arrays, dims, "", subnormals_flushed)

    def _given(
        self, order: Array, rest: Array, begun: Array, fresh: bool
    ) -> dict[Input, Array]:
        own = (self.epochs.order, self.epochs.rest, *self.epochs.begun)
        given = {**self.values, **dict(zip(own, (order, rest, *begun), strict=True))}
        if self.epochs.fresh is not None:
            given |= {self.epochs.fresh: np.full(len(order), fresh), **self._first}
        return given

    def _extents(self, order: Array, rest: Array) -> dict[Dim, int]:
        shapes = [*self.epochs.order.shape, *self.epochs.rest.shape]
        numbers = [*order.shape, *rest.shape]
        return {**self._dims, **dict(zip(shapes, numbers, strict=True))}  # type: ignore[arg-type]

    def explain(self, rows: Sequence[int]) -> str:
        """Which index was out of range in the batch of these rows."""
        leaves = {leaf.name: leaf for leaf in self.bound.rows}
        taken = np.arange(len(rows)) if self.bound.extents is not None else np.asarray(rows)

        def row_of(node: Node, place: tuple[int, ...]) -> tuple[int, Node] | None:
            if isinstance(node, Gather) and node.args[0].name in leaves:
                return rows[place[0]], leaves[node.args[0].name]
            if isinstance(node, Input) and node.name in leaves and place:
                return rows[list(taken).index(place[0])], leaves[node.name]
            return None

        return str(self.f.index_error(self._call, row_of, {ROWS: taken}))
