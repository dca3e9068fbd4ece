"""Data for training: checked against the leaves, converted once, never written.

Arrays of the leaf's own dtype are used where they lie, so a memory-mapped file is read row by row
as training goes; any other dtype is converted as a whole, in memory. A list of arrays whose extents
differ stays a list: see `ragged`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.graph.binding import converted
from symgrad.graph.dims import Dim, listed, printable, quoted, show, values
from symgrad.graph.errors import DataError, DataShapeError, LeafError
from symgrad.graph.nodes import Input, Node, describe
from symgrad.train.orders import Orders, RaggedOrders
from symgrad.train.ragged import Extents, Ragged, extents_of, ragged

Array = npt.NDArray[Any]
#: Rows that are computed at a time unless told otherwise, where nothing is trained.
EVALUATION_ROWS = 1024
#: The same where rows differ in extents: each stands for many elements.
EVALUATION_SEQUENCES = 64
#: Arrays by name or by leaf. A Mapping is invariant in its keys, so `str | Node` would refuse both.
Data = Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """Checked data.

    Fields:
        rows:    per row input its array, all of length n, or its rows where their extents differ.
        whole:   per other input its array.
        n:       number of rows.
        extents: of every row; None where all rows agree.
    """

    rows: dict[Input, Array | Ragged]
    whole: dict[Input, Array]
    n: int
    extents: Extents | None = None

    def batch(self, rows: Any) -> dict[str, Array]:
        """Some rows, numbered by an array or a slice, and what is whole, by name."""
        parts = {leaf.name: self._taken(leaf, rows) for leaf in self.rows}
        return parts | {leaf.name: array for leaf, array in self.whole.items()}

    def _taken(self, leaf: Input, rows: Any) -> Array:
        own = self.rows[leaf]
        if not isinstance(own, Ragged):
            part: Array = own[rows]
            return part
        assert self.extents is not None
        extents = values(leaf.shape[1:], self.extents.of(rows))
        return own.padded(np.arange(self.n)[rows], extents)

    def orders(
        self, batch_size: int, shuffle: bool = False, seed: int = 0, by_size: bool = False
    ) -> Orders:
        """The order of the rows in each epoch; `by_size`: rows of like extents share a batch."""
        if self.extents is None:
            return Orders(self.n, shuffle, seed)
        return RaggedOrders(self.extents.numbers, batch_size, shuffle, seed, by_size)


def bind(
    asked: str, data: Data, inputs: Sequence[Input], batch: Dim, known: Sequence[Input] = ()
) -> Bound:
    """Check data against inputs, up to the extents inside a row.

    Args:
        asked:  who asks, for messages.
        data:   arrays by leaf or by name.
        inputs: the leaves that need a value.
        batch:  the dim of the rows.
        known:  further inputs that data may also have; they are ignored.
    Raises: LeafError for names; DataError for wrong types and ranks, lengths that differ, and empty
        data.
    """
    given = _by_name(asked, data, inputs, known)
    arrays = {leaf: _array(asked, leaf, given[leaf.name], batch) for leaf in inputs}
    rows = {leaf: a for leaf, a in arrays.items() if leaf.shape and leaf.shape[0] == batch}
    whole = {x: a for x, a in arrays.items() if x not in rows and not isinstance(a, Ragged)}
    lengths = {leaf: len(array) for leaf, array in rows.items()}
    if len(set(lengths.values())) > 1:
        lines = "\n".join(f"  {printable(repr(x.name))}: {n} rows" for x, n in lengths.items())
        raise DataError(
            f"{asked}: arrays of different length\n{lines}\n"
            f"  Every input that leads with {printable(batch.name)} needs as many rows: "
            "one per example."
        )
    n = next(iter(lengths.values()), 0)
    if rows and n == 0:
        names = ", ".join(printable(repr(x.name)) for x in rows)
        raise DataError(f"{asked}: the data are empty: {names} with 0 rows. Give at least one row.")
    if not any(isinstance(array, Ragged) for array in rows.values()):
        return Bound(rows, whole, n)
    return Bound(rows, whole, n, extents_of(asked, rows, whole, batch))


def _array(asked: str, leaf: Input, given: Any, batch: Dim) -> Array | Ragged:
    """The value of a leaf, checked."""
    if leaf.shape and leaf.shape[0] == batch:
        rows = ragged(asked, leaf, given)
        if rows is not None:
            return rows
    array = converted(leaf, given)
    _check_shape(asked, leaf, array)
    return array


def _check_shape(asked: str, leaf: Input, array: Array) -> None:
    """Raises: DataShapeError when the data of a leaf have another number of axes or of columns."""
    wrong, advice = "", ""
    if array.ndim != leaf.ndim:
        wrong = f"has {leaf.ndim} axes, its data {array.ndim}"
        if array.ndim == leaf.ndim + 1 and array.shape[-1] == 1:
            advice = "\n  Drop the axis of one element: [..., 0]."
    else:
        for axis, (extent, n) in enumerate(zip(leaf.shape, array.shape, strict=True)):
            if type(extent) is int and extent != n and not wrong:
                wrong = f"has {extent} elements along axis {axis}, its data {n}"
    if wrong:
        raise DataShapeError(
            f"{asked}: {quoted(leaf.name)} {wrong}\n"
            f"  asked  {describe(leaf)}\n  got    {array.dtype} {show(array.shape)}{advice}"
        )


def check_batch_size(asked: str, batch_size: int, n: int) -> int:
    """`batch_size` as an int in 1..n.

    Raises: DataError when it is not.
    """
    if not is_count(batch_size) or not 1 <= batch_size <= n:
        raise DataError(
            f"{asked}: batch_size must be an integer from 1 to the number of rows, {n}; "
            f"got {batch_size!r}."
        )
    return int(batch_size)


def rows_at_a_time(asked: str, batch_size: int | None, bound: Bound) -> int:
    """Rows that are computed together where nothing is trained: at most all of them."""
    usual = EVALUATION_ROWS if bound.extents is None else EVALUATION_SEQUENCES
    size = usual if batch_size is None else batch_size
    return check_batch_size(asked, min(size, bound.n) if is_count(size) else size, bound.n)


def is_count(value: object) -> bool:
    """Whether it is an integer of at least 0."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return integer and int(value) >= 0  # type: ignore[call-overload]


def not_finite(rows: Sequence[int], arrays: Mapping[Input, Array | Ragged]) -> list[str]:
    """For each float input that has NaN or infinities in these rows, a line saying where."""
    lines = []
    for leaf, array in arrays.items():
        if array.dtype.kind == "f":
            bad = [row for row in rows if not np.isfinite(array[row]).all()]
            if bad:
                lines.append(
                    f"  {printable(repr(leaf.name))} is not finite in {len(bad)} of this "
                    f"batch's rows: {', '.join(map(str, bad[:5]))}{', ..' if len(bad) > 5 else ''}"
                )
    return lines


def _by_name(
    asked: str, data: Data, inputs: Sequence[Input], known: Sequence[Input]
) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise DataError(
            f'{asked}: data must be a dictionary such as {{"x": X, "y": Y}}, '
            f"got {type(data).__name__}."
        )
    needed = {x.name: x for x in inputs}
    allowed = {x.name: x for x in known} | needed
    result: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in data.items():
        if isinstance(key, Node):
            if any(key is x for x in allowed.values()):
                result[key.name] = value
            else:
                unknown.append(describe(key))
        elif key in allowed:
            result[key] = value
        else:
            unknown.append(printable(repr(key)))
    missing = [describe(x) for x in needed.values() if x.name not in result]
    if unknown or missing:
        lines = [f"  unknown  {text}" for text in unknown[:9]]
        lines += [f"  missing  {text}" for text in missing[:9]]
        names = listed(map(quoted, needed)) or "none"
        raise LeafError(
            f"{asked}: the data do not match the inputs\n"
            + "\n".join(lines)
            + f"\n  The inputs are {names}."
        )
    return result
