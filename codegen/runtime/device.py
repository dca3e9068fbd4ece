"""What generated CUDA programs stand on: kernels, launches, merging, products, index checks.

A generated program calls

    threads(kernel, count, ...)          `count` threads
    blocks(kernel, count, span, ...)     `count` blocks, each with up to `span` things to share out
    product(kernel, ...)                 C := op(A) op(B)

Numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs the same source with fewer threads to a block.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from codegen.runtime.device_math import SIMULATED, device, maximum, minimum

# Threads of a block, and the side of a product's tile. Powers of two; the simulator has a Python
# thread for each, at about 1 ms.
WIDTH = 8 if SIMULATED else 256
TILE = 2 if SIMULATED else 16
# The least number of threads to a block: a warp.
WARP = 2 if SIMULATED else 32


class DeviceKernel:
    """A kernel: its Python function and its signature, compiled when it is loaded.

    Fields:
        function:  the Python function.
        signature: of Numba, as text.
    """

    def __init__(self, function: Callable[..., None], signature: str) -> None:
        self.function = function
        self.signature = signature
        self._ready: Any = None

    def load(self) -> Any:
        """The kernel, compiled for the device of this machine."""
        if self._ready is None:
            with quiet():
                self._ready = cuda.jit(self.function if SIMULATED else self.signature)
                if not SIMULATED:
                    self._ready = self._ready(self.function)
        return self._ready

    def __call__(self, blocks: int, width: int, arguments: tuple[Any, ...]) -> None:
        """Launch the kernel."""
        ready = self.load()
        with quiet():
            if isinstance(gpu, _Running):
                gpu.names = self.function.__globals__
            ready[blocks, width](*arguments)

    def ptx(self, capability: tuple[int, int]) -> str:
        """PTX text for a compute capability; needs no device."""
        text, _ = cuda.compile(
            self.function, self.signature, cc=capability, output="ptx", device=False, abi="numba"
        )
        return str(text)


def kernel(signature: str) -> Callable[[Callable[..., None]], DeviceKernel]:
    """A decorator that makes a `DeviceKernel`."""
    return lambda function: DeviceKernel(function, signature)


class _Running:
    """The simulator's `cuda`: it takes that name's place in the module of the kernel that runs."""

    names: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.names["cuda"], name)


gpu = _Running() if SIMULATED else cuda


_ONE = threading.RLock()


class quiet:
    """Without Numba's advice on small grids and, in the simulator, without NumPy's on overflow.

    One thread at a time: Python's warnings and the simulator know one only.
    """

    def __enter__(self) -> None:
        _ONE.acquire()
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: Any) -> None:
        self.caught.__exit__(*error)
        _ONE.release()


def threads(kernel: DeviceKernel, count: int, *arguments: Any) -> None:
    """Run a kernel with one thread for each of `count` places."""
    if count > 0:
        width = _width(count)
        kernel(-(-count // width), width, arguments)


def blocks(kernel: DeviceKernel, count: int, span: int, *arguments: Any) -> None:
    """Run a kernel with one block for each of `count` places; a block shares out `span` things."""
    if count > 0:
        kernel(count, _width(span), arguments)


def _width(wanted: int) -> int:
    width = WARP
    while width < min(wanted, WIDTH):
        width *= 2
    return width


def product(
    kernel: DeviceKernel,
    operands: tuple[Any, Any, Any],
    extents: tuple[int, int, int],
    transposed: tuple[int, int],
    rows: tuple[int, int, int],
    starts: tuple[int, int, int] = (0, 0, 0),
    count: int = 1,
    steps: tuple[int, int, int] = (0, 0, 0),
    inner_count: int = 1,
    inner_steps: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """C := op(A) op(B), with `rows` elements from row to row, `count * inner_count` times.

    From `starts` on the operands move by `steps`, and within that by `inner_steps`.
    """
    m, n, k = extents
    left = (1, rows[0]) if transposed[0] else (rows[0], 1)
    right = (1, rows[1]) if transposed[1] else (rows[1], 1)
    tiles = count * inner_count * -(-m // TILE) * -(-n // TILE)
    if tiles > 0:
        numbers = (m, n, k, *left, *right, rows[2], *starts, *steps, inner_count, *inner_steps)
        kernel(tiles, TILE * TILE, (*operands, *numbers))


def shift(array: Any, count: int) -> Any:
    """An array from its element `count` on; an empty one has no address, so it stays as it is."""
    return array[count:] if count < array.size else array


def reported(report: Any) -> bool:
    """Whether an index was out of range so far."""
    return bool(report.copy_to_host()[0])


def _gemm(element: Any, name: str) -> DeviceKernel:
    zero = np.dtype(name).type(0)

    # fmt: off
    def gemm(
        a, b, c, m, n, k, a_row, a_column, b_row, b_column, c_row,
        a0, b0, c0, a1, b1, c1, inner, a2, b2, c2,
    ):
        # fmt: on
        left = cuda.shared.array((TILE, TILE), element)
        right = cuda.shared.array((TILE, TILE), element)
        i = cuda.threadIdx.x // TILE
        j = cuda.threadIdx.x % TILE
        across = (n + TILE - 1) // TILE
        down = (m + TILE - 1) // TILE
        step = cuda.blockIdx.x // (across * down)
        at_a = a0 + step // inner * a1 + step % inner * a2
        at_b = b0 + step // inner * b1 + step % inner * b2
        at_c = c0 + step // inner * c1 + step % inner * c2
        row = cuda.blockIdx.x % (across * down) // across * TILE + i
        column = cuda.blockIdx.x % across * TILE + j
        total = zero
        for start in range(0, k, TILE):
            left[i, j] = zero
            if row < m and start + j < k:
                left[i, j] = a[at_a + row * a_row + (start + j) * a_column]
            right[i, j] = zero
            if column < n and start + i < k:
                right[i, j] = b[at_b + (start + i) * b_row + column * b_column]
            cuda.syncthreads()
            for t in range(TILE):
                total += left[i, t] * right[t, j]
            cuda.syncthreads()
        if row < m and column < n:
            c[at_c + row * c_row + column] = total

    array = f"{name}[::1]"
    return DeviceKernel(gemm, f"void({', '.join([array] * 3 + ['int64'] * 18)})")


gemm_f32 = _gemm(types.float32, "float32")
gemm_f64 = _gemm(types.float64, "float64")


@device
def _add(x, y):
    return x + y


@device
def _mul(x, y):
    return x * y


@device
def _or(x, y):
    return x | y


def _merge(combine: Any) -> Any:
    """Every thread of a block gives a value and gets all of them combined, by a tree in `cells`."""

    @device
    def merge(value, cells):
        place = gpu.threadIdx.x
        cells[place] = value
        gpu.syncthreads()
        half = gpu.blockDim.x // 2
        while half > 0:
            if place < half:
                cells[place] = combine(cells[place], cells[place + half])
            gpu.syncthreads()
            half //= 2
        total = cells[0]
        gpu.syncthreads()
        return total

    return merge


merge_add = _merge(_add)
merge_mul = _merge(_mul)

merge_greatest = _merge(maximum)
merge_least = _merge(minimum)
merge_logical_or = _merge(_or)


@device
def checked_index(index, extent, report, node, position):
    """`index`, or `index + extent` where it is negative.

    Out of range, the place 0 is returned and the report (four int64) is filled by the first thread
    that finds one: node + 1, the index, the extent, the position of the index in its own array.
    """
    place = index + extent if index < 0 else index
    if place < 0 or place >= extent:
        if gpu.atomic.cas(report, 0, 0, node + 1) == 0:
            report[1] = index
            report[2] = extent
            report[3] = position
        place = 0 * extent
    return place


@device
def checked_label(index, extent, report, node, position):
    """`index`, as `checked_index` but never wrapped: a negative one is out of range."""
    place = index
    if place < 0 or place >= extent:
        if gpu.atomic.cas(report, 0, 0, node + 1) == 0:
            report[1] = index
            report[2] = extent
            report[3] = position
        place = 0 * extent
    return place
