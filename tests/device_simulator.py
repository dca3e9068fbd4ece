"""Numba's CUDA simulator, made strict: one thread at a time, and every access of memory looked at.

`install()` puts parts of its own into the simulator of this process:

    turns       Numba starts all threads of a block and polls them. Here one runs at a time, in an
                order drawn by chance, up to a barrier; then the next.
    barriers    all threads of a block reach the same barriers.
    races       two accesses of one place, see `tests/races.py`, in global and in shared memory.
    bounds      a place below zero is no place from the end.
    first use   memory that nothing has written holds NaN, or the least integer.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.cudadrv import devicearray

from tests.races import Watch

_order = np.random.default_rng(0)
_watch = Watch()
_kind: list[str] = []


class Worker(threading.Thread):
    """Runs threads of the device one after the other until one waits at a barrier."""

    def __init__(self, manager: Turns, block: tuple[int, ...]) -> None:
        super().__init__(daemon=True)
        self.manager = manager
        self.blockIdx = kernelapi.Dim3(*block)
        self.threadIdx: Any = None
        self.thread_id = 0
        self.go = threading.Semaphore(0)
        self.barrier: tuple[tuple[str, int], ...] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while self.manager.pending and self.manager.fresh:
                self.thread_id = self.manager.pending.pop()
                self.threadIdx = kernelapi.Dim3(self.thread_id, 0, 0)
                _watch.thread = self.thread_id
                self.manager.call()
                self.manager.ended += 1
        except BaseException as error:
            self.error = error
        self.manager.turn.release()

    def syncthreads(self) -> None:
        frame, places = sys._getframe(2), []
        for _ in range(2):  # the barrier's own place, and that of a function that it stands in
            places.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        self.barrier = tuple(places)
        self.manager.turn.release()
        self.go.acquire()
        self.barrier = None
        _watch.thread = self.thread_id


class Turns:
    """The threads of one block, one at a time."""

    def __init__(self, f: Any, grid_dim: Any, block_dim: Any, debug: bool) -> None:
        self.function = f
        self.pending: list[int] = [int(k) for k in _order.permutation(block_dim[0])]
        self.fresh = True
        self.ended = 0
        self.turn = threading.Semaphore(0)

    def run(self, grid_point: Any, *args: Any) -> None:
        self.call: Callable[[], None] = lambda: self.function(*args)
        _watch.begin()
        for array in _shared.values():
            _poison(array.array)
        waiting: list[Worker] = []
        while self.pending:
            worker = Worker(self, grid_point)
            worker.start()
            self.wait(worker)
            if worker.barrier is not None:
                waiting.append(worker)
        self.fresh = False
        while waiting:
            assert not self.ended, "a thread ended while others wait at a barrier"
            assert len({w.barrier for w in waiting}) == 1, "threads wait at different barriers"
            _watch.barrier()
            for k in _order.permutation(len(waiting)):
                waiting[k].go.release()
                self.wait(waiting[k])
            still = [w for w in waiting if w.barrier is not None]
            assert len(still) in (0, len(waiting)), "a thread ended while others wait at a barrier"
            waiting = still

    def wait(self, worker: Worker) -> None:
        self.turn.acquire()
        if worker.error is not None:
            raise worker.error


class Memory(kernel.FakeWithinKernelCUDAArray):  # type: ignore[misc]
    """An array in a kernel whose accesses are remembered."""

    def __init__(self, item: Any, shared: bool = False) -> None:
        super().__init__(item)
        array = item._ary
        self.__dict__["array"] = array
        self.__dict__["address"] = array.__array_interface__["data"][0]
        self.__dict__["shared"] = shared

    def touch(self, place: Any, kind: str) -> None:
        indices = place if isinstance(place, tuple) else (place,)
        array = self.array
        assert len(indices) == array.ndim
        assert all(0 <= k < n for k, n in zip(indices, array.shape, strict=True)), (
            f"{place} lies outside of {array.shape}"
        )
        offset = sum(int(k) * s for k, s in zip(indices, array.strides, strict=True))
        unit = _watch.unit if self.shared else None
        _watch.touch((unit, self.address + offset), _kind[-1] if _kind else kind)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)

    def __getitem__(self, place: Any) -> Any:
        self.touch(place, "read")
        return self.array[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self.touch(place, "write")
        self.array[place] = value


_shared: dict[tuple[int, int], Memory] = {}


def _shared_array(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Memory:
    """Memory of a block: one array for each place in the source of a kernel."""
    frame = sys._getframe(1)
    place = (id(frame.f_code), frame.f_lineno)
    if place not in _shared:
        kind = getattr(dtype, "name", dtype)
        array = np.empty(shape, "bool" if kind in ("boolean", "bool_") else kind)
        _poison(array)
        _shared[place] = Memory(devicearray.FakeCUDAArray(array), shared=True)
    return _shared[place]


def _poison(array: np.ndarray[Any, Any]) -> None:
    array[...] = np.nan if array.dtype.kind == "f" else (array.dtype.kind == "b" or _least(array))


def _least(array: np.ndarray[Any, Any]) -> int:
    return int(np.iinfo(array.dtype).min)


@contextmanager
def _as_one(kind: str) -> Iterator[None]:
    _kind.append(kind)
    try:
        yield
    finally:
        _kind.pop()


class Atomic(kernelapi.FakeCUDAAtomic):  # type: ignore[misc]
    """What happens as one."""

    def add(self, array: Any, index: Any, value: Any) -> Any:
        with _as_one("atomic"):
            return super().add(array, index, value)

    def cas(self, array: Any, index: Any, old: Any, value: Any) -> Any:
        with _as_one("atomic"):
            return super().cas(array, index, old, value)


class Module(kernelapi.FakeCUDAModule):  # type: ignore[misc]
    """What a kernel sees as `cuda`, for one launch."""

    def __init__(self, *given: Any) -> None:
        global _watch
        super().__init__(*given)
        self._atomic = Atomic()
        _watch = Watch()
        _shared.clear()


def install() -> None:
    """Make the simulator of this process strict, before anything is compiled."""
    empty = devicearray.device_array

    def filled(*given: Any, **named: Any) -> Any:
        array = empty(*given, **named)
        array._ary.view(np.uint8).reshape(-1)[...] = 0xFF
        return array

    from numba import cuda

    kernel.BlockManager = Turns
    kernel.FakeCUDAModule = Module
    kernel.FakeWithinKernelCUDAArray = Memory
    kernelapi.FakeCUDAShared.array = _shared_array
    cuda.device_array = devicearray.device_array = filled


