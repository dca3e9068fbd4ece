"""Rows of different extents: sentences, recordings, the last piece of a stream.

    dims of a batch  =  the greatest of its rows', dim by dim
    padding          =  zeros, behind the end of every axis

Nothing is padded before a batch is put together, so that each batch has extents of its own. A
program takes its extents when it is called: it does not recompile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.graph.binding import Binding, converted
from symgrad.graph.dims import Dim, free_dims, quoted, show
from symgrad.graph.errors import DataError, DataShapeError
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, describe

Array = npt.NDArray[Any]


class Ragged:
    """The rows of a leaf, each an array of the leaf's dtype and its number of axes but one.

    >>> x = Input("x", (Dim("B"), Dim("T")), "int32")
    >>> data = Ragged(x, [np.array(row, np.int32) for row in ([3, 1, 4], [], [5])])
    >>> data.padded([2, 0], (3,)).tolist()
    [[5, 0, 0], [3, 1, 4]]
    """

    def __init__(self, leaf: Input, rows: Sequence[Array]) -> None:
        self.leaf, self.rows, self.dtype = leaf, tuple(rows), leaf.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Array:
        return self.rows[row]

    def padded(self, rows: Sequence[int] | Array, extents: tuple[int, ...]) -> Array:
        """Some rows as one array (len(rows), *extents), zeros behind their ends."""
        result = np.zeros((len(rows), *extents), self.dtype)
        for place, row in zip(result, rows, strict=True):
            own = self.rows[row]
            place[tuple(map(slice, own.shape))] = own
        return result


@dataclass(frozen=True, slots=True)
class Extents:
    """The dims of every row.

    Fields:
        dims:    those of the leaves' shapes, without that of the rows.
        numbers: (rows, dims).
    """

    dims: tuple[Dim, ...]
    numbers: npt.NDArray[np.int64]

    def of(self, rows: Any) -> dict[Dim, int]:
        """The dims of a batch of these rows."""
        greatest = self.numbers[rows].max(axis=0, initial=0)
        return dict(zip(self.dims, greatest.tolist(), strict=True))


def ragged(asked: str, leaf: Input, given: Any) -> Ragged | None:
    """A sequence of rows whose extents differ; None where they agree, or the leaf fixes them.

    Raises: DataError and its kinds for rows that are no arrays of the leaf's dtype and axes.
    """
    sequence = isinstance(given, (list, tuple)) or (
        isinstance(given, np.ndarray) and given.dtype == object and given.ndim == 1
    )
    if not sequence or leaf.ndim < 2:
        return None
    rows = [_row(asked, leaf, k, row) for k, row in enumerate(given)]
    if len({row.shape for row in rows}) < 2:
        return None
    for k, row in enumerate(rows):
        _check_row(asked, leaf, k, row)
    return Ragged(leaf, [_converted(asked, leaf, k, row) for k, row in enumerate(rows)])


def _row(asked: str, leaf: Input, k: int, row: Any) -> Array:
    try:
        return np.asarray(row)
    except ValueError as error:
        raise DataError(
            f"{asked}: row {k} of {quoted(leaf.name)} is no array: {error}\n  {describe(leaf)}"
        ) from None


def _check_row(asked: str, leaf: Input, k: int, row: Array) -> None:
    wrong = ""
    if row.ndim != leaf.ndim - 1:
        wrong = f"has {leaf.ndim - 1} axes in each row, row {k} has {row.ndim}"
    else:
        for axis, (extent, n) in enumerate(zip(leaf.shape[1:], row.shape, strict=True), start=1):
            if type(extent) is int and extent != n and not wrong:
                wrong = f"has {extent} elements along axis {axis}, row {k} has {n}"
    if wrong:
        advice = ""
        if any(type(extent) is not int for extent in leaf.shape[1:]) and not row.size:
            extents = ", ".join("0" if type(e) is not int else str(e) for e in leaf.shape[1:])
            advice = f"\n  An empty row is np.zeros(({extents}))."
        elif all(type(extent) is int for extent in leaf.shape[1:]):
            advice = '\n  Rows may differ along an axis whose extent is a dim, such as dim("T").'
        raise DataShapeError(
            f"{asked}: {quoted(leaf.name)} {wrong}\n"
            f"  asked  {describe(leaf)}\n  got    {row.dtype} {show(row.shape)}{advice}"
        )


def _converted(asked: str, leaf: Input, k: int, row: Array) -> Array:
    try:
        return converted(leaf, row)
    except DataError as error:
        raise type(error)(f"{asked}: row {k}: {error}") from None


def extents_of(
    asked: str, rows: Mapping[Input, Array | Ragged], whole: Mapping[Input, Array], batch: Dim
) -> Extents:
    """The dims of every row, checked: the leaves of a row agree on them.

    Raises: DataShapeError naming a row whose leaves do not.
    """
    leaves = [*rows, *whole]
    names = {d: None for leaf in leaves for e in leaf.shape for d in free_dims(e) if d != batch}
    dims, shapes = tuple(names), _shapes(rows)
    binding = Binding(Graph.of(leaves))
    kinds, first, kind_of_row = np.unique(
        shapes, axis=0, return_index=True, return_inverse=True
    )
    numbers = np.zeros((len(kinds), len(dims)), np.int64)
    for number, kind, row in zip(numbers, kinds.tolist(), first.tolist(), strict=True):
        given = {leaf.name: array for leaf, array in whole.items()}
        places = iter(kind)
        for leaf in rows:
            extents = [next(places) for _ in leaf.shape[1:]]
            given[leaf.name] = np.empty((1, *extents), leaf.dtype)
        try:
            _, found = binding(given)
        except DataError as error:
            raise type(error)(f"{asked}: row {row}: {error}") from None
        number[:] = [found[d] for d in dims]
    return Extents(dims, numbers[kind_of_row.reshape(-1)])


def _shapes(rows: Mapping[Input, Array | Ragged]) -> npt.NDArray[np.int64]:
    """The extents of every row, of all leaves side by side."""
    columns = []
    for own in rows.values():
        if isinstance(own, Ragged):
            columns.append(np.array([row.shape for row in own.rows], np.int64))
        else:
            columns.append(np.tile(np.array(own.shape[1:], np.int64), (len(own), 1)))
    return np.concatenate(columns, axis=1)
