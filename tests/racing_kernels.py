"""Kernels that are wrong, and how right ones look: what the strict simulator is tested on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from codegen.runtime.device import kernel

WIDTH = 4


@kernel("void(int64[::1])")
def own_places(x: Any) -> None:
    x[cuda.grid(1)] = 1


@kernel("void(int64[::1])")
def one_place_for_all(x: Any) -> None:
    x[0] = 1


@kernel("void(int64[::1])")
def a_neighbours_place(x: Any) -> None:
    i = cuda.grid(1)
    x[i] = x[(i + 1) % WIDTH]


@kernel("void(int64[::1])")
def atomic(x: Any) -> None:
    cuda.atomic.add(x, 0, 1)


@kernel("void(int64[::1])")
def no_barrier(x: Any) -> None:
    cells = cuda.shared.array(WIDTH, "int64")
    i = cuda.threadIdx.x
    cells[i] = i
    x[i] = cells[WIDTH - 1 - i]


@kernel("void(int64[::1])")
def with_a_barrier(x: Any) -> None:
    cells = cuda.shared.array(WIDTH, "int64")
    i = cuda.threadIdx.x
    cells[i] = i
    cuda.syncthreads()
    x[i] = cells[WIDTH - 1 - i]


@kernel("void(int64[::1])")
def not_all_at_the_barrier(x: Any) -> None:
    if cuda.threadIdx.x > 0:
        cuda.syncthreads()


@kernel("void(int64[::1])")
def barriers_of_their_own(x: Any) -> None:
    if cuda.threadIdx.x > 0:
        cuda.syncthreads()
    else:
        cuda.syncthreads()


@kernel("void(int64[::1])")
def before_the_first(x: Any) -> None:
    x[cuda.grid(1) - 1] = 1


@kernel("void(int64[::1])")
def behind_the_last(x: Any) -> None:
    x[cuda.grid(1) + 1] = 1


def judge(name: str) -> None:
    """Run a kernel with one block on an array that has a place for each thread."""
    function = globals()[name.replace("'", "").replace(" ", "_")]
    array = cuda.to_device(np.zeros(WIDTH, np.int64))
    function(1, WIDTH, (array,))
    if name == "with a barrier":
        np.testing.assert_array_equal(array.copy_to_host(), np.arange(WIDTH)[::-1])
