"""What a program works on: the state it keeps between calls, and the memory of one call.

Each target has its own form of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from symgrad.graph.binding import converted
from symgrad.graph.dims import Dim, listed, quoted, show
from symgrad.graph.errors import DataShapeError, LeafError
from symgrad.graph.nodes import Input

Array = npt.NDArray[Any]


class State(MutableMapping[str, Array]):
    """The leaves that a program updates: name -> array. Assigning copies into its memory."""

    def __init__(self, leaves: Sequence[Input], values: Sequence[Array]) -> None:
        self._leaves = {leaf.name: leaf for leaf in leaves}
        self._arrays = {leaf.name: value for leaf, value in zip(leaves, values, strict=True)}
        spans = [_span(value) for value in values] or [(0, 0)]
        self._first, self._end = min(a for a, _ in spans), max(b for _, b in spans)

    def __getitem__(self, name: str) -> Array:
        if name not in self._arrays:
            known = listed(map(quoted, self)) or "none, since nothing is updated"
            raise LeafError(f"state: no leaf is named {quoted(name)}. There are: {known}.")
        return self._arrays[name]

    def __setitem__(self, name: str, value: npt.ArrayLike) -> None:
        target = self[name]
        given = converted(self._leaves[name], value)
        if given.shape != target.shape:
            raise DataShapeError(
                f"state {quoted(name)}: shape {show(target.shape)} is needed, "
                f"got {show(given.shape)}."
            )
        self.put(name, given)

    def put(self, name: str, value: Array) -> None:
        """Give a leaf a value that fits."""
        self._arrays[name][...] = value

    def may_hold(self, array: Array) -> bool:
        """Whether an array may lie in the memory of the state; False is certain."""
        first, end = _span(array)
        if end <= self._first or self._end <= first:
            return False
        return any(np.may_share_memory(array, own) for own in self._arrays.values())

    def __delitem__(self, name: str) -> None:
        raise LeafError(f"state: {quoted(name)} cannot be deleted; assign a new value instead.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        inner = ", ".join(f"{n!r}: {a.dtype}{a.shape}" for n, a in self._arrays.items())
        return f"State({{{inner}}})"


def _span(array: Array) -> tuple[int, int]:
    """The addresses of a contiguous array: its first byte, and the first behind it."""
    first: int = array.__array_interface__["data"][0]
    return first, first + array.nbytes


class Invocation(Protocol):
    """The memory of one thread's calls."""

    @property
    def arrays(self) -> list[Array]:
        """The leaves' values."""

    @property
    def outputs(self) -> tuple[Array, ...]:
        """The results."""

    @property
    def dims(self) -> npt.NDArray[np.int64]:
        """The extents."""

    @property
    def report(self) -> npt.NDArray[np.int64]:
        """The first bad index: the number of its node from 1, the index, the extent."""

    def set_dims(self, dims: Mapping[Dim, int]) -> None:
        """Run with these extents from now on; the workspace grows where it must."""

    def set_leaves(self, arrays: Sequence[Array]) -> None:
        """Read the leaves from these arrays; they must be contiguous and stay alive."""

    def set_leaf(self, k: int, array: Array) -> None:
        """Read one leaf from this array."""

    def set_outputs(self, outputs: Sequence[Array]) -> None:
        """Write results into these arrays."""

    def forget(self) -> None:
        """Let go of leaves and results; the workspace stays for a later use."""

    def run(self) -> int:
        """Run the program; what it returns is not zero when an index was out of range."""
