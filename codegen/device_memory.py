"""The memory of a program on a CUDA device: arrays that go there, stay there and come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from codegen.program import Table
from codegen.state import Array, State
from codegen.workspace import ALIGNMENT
from symgrad.graph.dims import Dim
from symgrad.graph.nodes import Input


def upload(array: Array) -> Any:
    """A flat copy on the device, of one element at least."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return cuda.to_device(flat if flat.size else np.zeros(1, array.dtype))


def download(device: Any, array: Array) -> None:
    """Fill a contiguous array from the device."""
    if array.size:
        array.reshape(-1)[...] = device.copy_to_host()


class DeviceState(State):
    """State that lives on the device between calls and comes back when it is read.

    An array that was read is written to the device again before the next call, since its holder may
    have changed it; it shows later values only when it is read again.
    """

    def __init__(self, leaves: Sequence[Input], values: Sequence[Array]) -> None:
        super().__init__(leaves, values)
        self._device: dict[str, Any] = {}
        self._names = {id(array): name for name, array in self._arrays.items()}

    def __getitem__(self, name: str) -> Array:
        array = super().__getitem__(name)
        if name in self._device:
            download(self._device.pop(name), array)
        return array

    def put(self, name: str, value: Array) -> None:
        """Give a leaf a value that fits."""
        super().put(name, value)
        self._device.pop(name, None)

    def name_of(self, array: Array) -> str | None:
        """Which leaf's array this is, None for all other arrays."""
        return self._names.get(id(array))

    def on_device(self, name: str) -> Any:
        """The leaf's memory on the device, which holds its value from now on."""
        if name not in self._device:
            self._device[name] = upload(self._arrays[name])
        return self._device[name]


class DeviceInvocation:
    """The memory of one thread's calls: the table as arrays on the device."""

    def __init__(self, plan: Table, dims: Sequence[Dim], module: ModuleType, state: State) -> None:
        assert isinstance(state, DeviceState)
        self.plan = plan
        self.module = module
        self.state = state
        self.order = tuple(dims)
        self.dims: npt.NDArray[np.int64] = np.zeros(max(len(self.order), 1), np.int64)
        self.table: dict[int, Any] = {}
        first = 1 + len(plan.leaves)
        for k, constant in enumerate(plan.constants):
            self.table[first + k] = upload(constant.value)
        self.first_result = first + len(plan.constants)
        self.bad = upload(np.zeros(4, np.int64))
        self.capacity = 0
        self.workspace: Any = None
        self.current: tuple[int, ...] | None = None
        self.arrays: list[Array] = []
        self.outputs: tuple[Array, ...] = ()

    @property
    def report(self) -> npt.NDArray[np.int64]:
        """The first bad index: the number of its node from 1, the index, the extent."""
        found: npt.NDArray[np.int64] = self.bad.copy_to_host()
        return found

    def set_dims(self, dims: Mapping[Dim, int]) -> None:
        """Run with these extents from now on; the workspace grows where it must."""
        numbers = tuple(int(dims[d]) for d in self.order)
        if numbers == self.current:
            return
        self.current = numbers
        self.dims[: len(numbers)] = numbers
        placed = self.plan.layout.place(dict(zip(self.order, numbers, strict=True)))
        total = placed.total
        if total + ALIGNMENT > self.capacity:
            self.capacity = total + ALIGNMENT
            self.workspace = cuda.device_array(self.capacity, np.uint8)
        for k, (start, size) in enumerate(zip(placed.offsets, placed.sizes, strict=True)):
            self.table[self.plan.first_slot + k] = self.workspace[start : start + size]

    def set_leaves(self, arrays: Sequence[Array]) -> None:
        """Copy the leaves to the device, but for the state, which is there."""
        self.arrays = list(arrays)
        for k, array in enumerate(arrays, 1):
            name = self.state.name_of(array)
            self.table[k] = upload(array) if name is None else self.state.on_device(name)

    def set_leaf(self, k: int, array: Array) -> None:
        """Copy one leaf to the device."""
        self.arrays[k] = array
        self.table[1 + k] = upload(array)

    def set_outputs(self, outputs: Sequence[Array]) -> None:
        """Bring results into these arrays."""
        self.outputs = tuple(outputs)
        for k, output in enumerate(outputs, self.first_result):
            self.table[k] = cuda.device_array(max(output.size, 1), output.dtype)

    def forget(self) -> None:
        """Let go of leaves and results; the workspace stays for a later use."""
        for k in (
            *range(1, 1 + len(self.arrays)),
            *range(self.first_result, self.first_result + len(self.outputs)),
        ):
            self.table.pop(k, None)
        self.arrays, self.outputs = [], ()

    def run(self) -> int:
        """Run the program; what it returns is not zero when an index was out of range."""
        memory = []
        for entry, name in self.module.MEMORY:
            array = self.table[entry]
            memory.append(array if array.dtype == name else array.view(name))
        self.bad = upload(np.zeros(4, np.int64))
        self.module.program(memory, [int(n) for n in self.dims], self.bad)
        for k, output in enumerate(self.outputs, self.first_result):
            download(self.table[k], output)
        return int(self.bad.copy_to_host()[0])
