"""The memory of a program on this machine's processor: a table of addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from codegen.loading import Loaded
from codegen.program import Table
from codegen.state import Array
from symgrad.graph.dims import Dim


class HostInvocation:
    """The memory of one thread's calls: the table of addresses, the extents, the workspace."""

    def __init__(self, plan: Table, dims: Sequence[Dim], loaded: Loaded) -> None:
        self.plan = plan
        self.order = tuple(dims)
        self.table: npt.NDArray[np.int64] = np.zeros(plan.length, np.int64)
        self.dims: npt.NDArray[np.int64] = np.zeros(max(len(self.order), 1), np.int64)
        self.report: npt.NDArray[np.int64] = np.zeros(4, np.int64)
        self.table[0] = self.report.ctypes.data
        self.constants = [np.ascontiguousarray(c.value) for c in plan.constants]
        first = 1 + len(plan.leaves)
        for k, constant in enumerate(self.constants):
            self.table[first + k] = constant.ctypes.data
        self.first_result = plan.first_result
        self.workspace = np.empty(0, np.uint8)
        self._program = loaded.function()
        self._addresses = (self.table.ctypes.data, self.dims.ctypes.data)
        sizing = plan.layout.dims
        self._sizing = [k for k, d in enumerate(self.order) if d in sizing]
        self._sized: list[int] | None = None
        self.current: tuple[int, ...] | None = None
        self.arrays: list[Array] = []
        self.outputs: tuple[Array, ...] = ()

    def set_dims(self, dims: Mapping[Dim, int]) -> None:
        """Run with these extents from now on; the workspace grows where it must."""
        numbers = tuple(int(dims[d]) for d in self.order)
        if numbers == self.current:
            return
        self.current = numbers
        self.dims[: len(numbers)] = numbers
        if self._sized == (sized := [numbers[k] for k in self._sizing]):
            return
        self._sized = sized
        offsets, total = self.plan.slot_offsets(dict(zip(self.order, numbers, strict=True)))
        if total + 64 > len(self.workspace):
            self.workspace = np.empty(total + 64, np.uint8)
        base = -(-self.workspace.ctypes.data // 64) * 64
        first = self.plan.first_slot
        self.table[first : first + len(offsets)] = [base + offset for offset in offsets]

    def set_leaves(self, arrays: Sequence[Array]) -> None:
        """Read the leaves from these arrays; they must be contiguous and stay alive."""
        self.arrays = list(arrays)
        self.table[1 : 1 + len(arrays)] = [a.__array_interface__["data"][0] for a in arrays]

    def set_leaf(self, k: int, array: Array) -> None:
        """Read one leaf from this array."""
        self.arrays[k] = array
        self.table[1 + k] = array.__array_interface__["data"][0]

    def set_outputs(self, outputs: Sequence[Array]) -> None:
        """Write results into these arrays."""
        self.outputs = tuple(outputs)
        for k, output in enumerate(outputs):
            self.table[self.first_result + k] = output.__array_interface__["data"][0]

    def forget(self) -> None:
        """Let go of leaves and results; the workspace stays for a later use."""
        self.arrays, self.outputs = [], ()

    def extend(self, addresses: Sequence[int]) -> None:
        """Give the program further entries of the table, behind all others."""
        self.table = np.concatenate([self.table, np.array(addresses, np.int64)])
        self._addresses = (self.table.ctypes.data, self.dims.ctypes.data)

    def run(self) -> int:
        """Run the program; what it returns is not zero when an index was out of range."""
        status: int = self._program(*self._addresses)
        return status
