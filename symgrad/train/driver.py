"""The compiled epoch: row order, gathering of batches, steps and sums without Python per step.

A compiled step is a C function `int64 program(int64 table, int64 dims)` over raw addresses. The
loop in `SOURCE` is one more such function; it runs any number of steps of any program:

    for each step:  rows = order[start : start + batch]      a new order in every epoch
                    buffer = data[rows]                      raw copies, of any dtype
                    program(table, dims)                     forward, backward, update
                    sums[epoch] += rows * outputs            loss, metrics, gradient norm

It works in chunks of about 0.1 s that may span several epochs, so that small models run at full
speed while progress, Ctrl-C and callbacks stay responsive. How a run is cut into chunks changes no
bit of its result. The last, partial batch of an epoch runs with its own dims.

The order of rows is a pure function of (seed, epoch): a Fisher-Yates shuffle whose draws are a
counter hash, `splitmix64(key + i)` with a key made of seed and epoch (Steele et al. 2014), taken
into a range by multiplication (Lemire 2019, arXiv 1805.10941).

When recurrences can be compiled, the epoch becomes one of them and this file goes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.graph.errors import DataError

Array = npt.NDArray[Any]

#: Wall time of one chunk in seconds: short for a person, long beside Python's overhead.
CHUNK_SECONDS = 0.1
#: Rows are drawn with 32 random bits.
MOST_ROWS = 2**32 - 1

SOURCE = '''\
"""Run steps of a compiled program over batches of rows; see symgrad/train/driver.py."""

import numpy as np
from numba import cfunc, njit

from codegen.runtime.calls import call_program, copy_bytes
from codegen.runtime.memory import address, at_f32, at_f64, at_i64, ld, st

U = np.uint64
GOLDEN = U(0x9E3779B97F4A7C15)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def mix(z):
    z = (z ^ (z >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return z ^ (z >> U(31))


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def shuffle(order, n, seed, epoch):
    key = mix(mix(U(seed) + GOLDEN) + U(epoch) * GOLDEN)
    for i in range(n):
        st(order, i, i, -1)
    for i in range(n - 1, 0, -1):
        draw = mix(key + U(i) * GOLDEN) >> U(32)
        j = np.int64((draw * U(i + 1)) >> U(32))
        row = ld(order, i, -1)
        st(order, i, ld(order, j, -1), -1)
        st(order, j, row, -1)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def gather(columns, count, order, shuffled, start, rows):
    for k in range(count):
        source = ld(columns, 4 * k, -1)
        stride = ld(columns, 4 * k + 1, -1)
        size = ld(columns, 4 * k + 2, -1)
        target = ld(columns, 4 * k + 3, -1)
        if not shuffled and stride == size:
            copy_bytes(target, source + start * stride, rows * size)
        else:
            for i in range(rows):
                row = ld(order, start + i, -1) if shuffled else start + i
                copy_bytes(target + i * size, source + row * stride, size)


@cfunc("int64(int64, int64)", cache=True, error_model="numpy")
def program(job, cursor_address):
    step_program = address(job, 0)
    n = address(job, 1)
    batch = address(job, 2)
    shuffled = address(job, 3) != 0
    seed = address(job, 4)
    first_epoch = address(job, 5)
    order = at_i64(address(job, 6), 0)
    columns = at_i64(address(job, 7), 0)
    column_count = address(job, 8)
    outputs = at_i64(address(job, 9), 0)
    output_count = address(job, 10)
    sums = at_f64(address(job, 11), 0)
    stop_at_nan = address(job, 12) != 0
    table_full = address(job, 13)
    dims_full = address(job, 14)
    table_rest = address(job, 15)
    dims_rest = address(job, 16)

    cursor = at_i64(cursor_address, 0)
    epoch = ld(cursor, 0, -1)
    start = ld(cursor, 1, -1)
    steps = ld(cursor, 2, -1)
    order_of = ld(cursor, 3, -1)
    status = 0
    done = 0
    while done < steps:
        if shuffled and order_of != epoch:
            shuffle(order, n, seed, first_epoch + epoch)
            order_of = epoch
        rows = min(batch, n - start)
        gather(columns, column_count, order, shuffled, start, rows)
        if rows == batch:
            status = call_program(step_program, table_full, dims_full)
        else:
            status = call_program(step_program, table_rest, dims_rest)
        if status != 0:
            break
        value = 0.0
        for k in range(output_count):
            place = ld(outputs, 2 * k, -1)
            if ld(outputs, 2 * k + 1, -1) == 4:
                value = np.float64(ld(at_f32(place, 0), 0, -1))
            else:
                value = ld(at_f64(place, 0), 0, -1)
            guarded = stop_at_nan and (k == 0 or k == output_count - 1)
            if guarded and not np.isfinite(value):
                status = -1
                break
            cell = epoch * output_count + k
            st(sums, cell, ld(sums, cell, -1) + rows * value, -1)
        if status != 0:
            break
        done += 1
        start += rows
        if start >= n:
            start = 0
            epoch += 1
    st(cursor, 0, epoch, -1)
    st(cursor, 1, start, -1)
    st(cursor, 2, done, -1)
    st(cursor, 3, order_of, -1)
    return status
'''


class Stop(IntEnum):
    """Why a chunk ended; any other status is the step program's own."""

    DONE = 0
    NOT_FINITE = -1


@dataclass(frozen=True, slots=True)
class Step:
    """A compiled step, bound to its buffers.

    Fields:
        program: address of the C function.
        full:    its table of addresses and its extents for a whole batch.
        rest:    likewise for the last, partial batch.
        buffers: per row input the buffer of one batch, in the order of the data.
        outputs: the float scalars that it writes: the loss first, the gradient norm last.
        state:   arrays that it updates in place.
        explain: what the program's last status other than 0 meant, given the rows of its batch.
        alive:   whatever else owns memory behind the tables.
    """

    program: int
    full: tuple[Array, Array]
    rest: tuple[Array, Array]
    buffers: tuple[Array, ...]
    outputs: tuple[Array, ...]
    state: tuple[Array, ...] = ()
    explain: Callable[[Sequence[int]], str] = repr
    alive: object = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that stopped a run: the rows of its batch, its outputs, and the program's reason."""

    rows: tuple[int, ...] = ()
    outputs: tuple[float, ...] = ()
    reason: str = ""


class Run:
    """Epochs of a step over data: call `advance` until `epoch` reaches the number wanted.

    Fields:
        epoch: whole epochs done in this run.
        start: row at which the next batch begins; 0 between epochs.
        steps: steps done.
        sums:  (epochs, outputs): each output times the rows of its batch, summed over the epoch.
        failure: of the step that stopped it, if one did.

    With `stop_at_nan` a loss or a gradient norm that is not finite stops it.
    """

    def __init__(
        self,
        step: Step,
        data: Sequence[Array],
        *,
        epochs: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        first_epoch: int = 0,
        stop_at_nan: bool = False,
    ) -> None:
        n = len(data[0])
        if n > MOST_ROWS:
            raise DataError(f"fit: at most {MOST_ROWS} rows are supported, got {n}.")
        self.step, self.rows, self.batch_size = step, n, batch_size
        self.steps_per_epoch = -(-n // batch_size)
        self.data = tuple(_with_whole_rows(array) for array in data)
        self.sums = np.zeros((epochs, len(step.outputs)))
        self.steps = 0
        self.failure = Failure()
        self._order = np.empty(n if shuffle else 0, np.int64)
        self._columns = np.array(
            [
                (a.ctypes.data, a.strides[0], a[:1].nbytes, b.ctypes.data)
                for a, b in zip(self.data, step.buffers, strict=True)
            ],
            np.int64,
        )
        self._outputs = np.array([(o.ctypes.data, o.itemsize) for o in step.outputs], np.int64)
        self._cursor = np.array([0, 0, 0, -1], np.int64)
        self._job = np.array(
            [
                step.program,
                n,
                batch_size,
                shuffle,
                np.uint64(seed % 2**64).astype(np.int64),
                first_epoch,
                self._order.ctypes.data,
                self._columns.ctypes.data,
                len(self.data),
                self._outputs.ctypes.data,
                len(step.outputs),
                self.sums.ctypes.data,
                stop_at_nan,
                *(a.ctypes.data for a in (*step.full, *step.rest)),
            ],
            np.int64,
        )
        self._loop = _loop()
        self._seconds_per_step = 0.0
        self._chunk = 0

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return int(self._cursor[0])

    @property
    def start(self) -> int:
        """The row of the epoch at which the next batch begins."""
        return int(self._cursor[1])

    def restart(self) -> None:
        """Forget what was done, to run once more."""
        self._cursor[:] = (0, 0, 0, -1)
        self.sums[...] = 0.0
        self.steps = 0

    def advance(self, until: int) -> int:
        """Run for about `CHUNK_SECONDS`, at least one step, and not past epoch `until`.

        Returns: 0, or a `Stop`, or the status of the step program. When it is not 0, the step that
        failed has had no effect: state, sums and cursor are as they were before it.
        """
        left = (until - self.epoch) * self.steps_per_epoch - -(-self.start // self.batch_size)
        steps = min(left, self._affordable())
        reached = slice(self.epoch, self.epoch + steps // self.steps_per_epoch + 2)
        kept = (self._cursor, self.sums[reached], *self.step.state)
        before = [array.copy() for array in kept]
        began = time.perf_counter()
        status = self._run(steps)
        self._seconds_per_step = (time.perf_counter() - began) / max(int(self._cursor[2]), 1)
        if status != Stop.DONE:
            self.failure = self._describe(status)
            # Steps are deterministic: go back to the start of the chunk and stop one step earlier.
            done = int(self._cursor[2])
            for array, old in zip(kept, before, strict=True):
                array[...] = old
            self._cursor[3] = -1
            self._run(done)
        self.steps += int(self._cursor[2])
        return status

    def _describe(self, status: int) -> Failure:
        """The batch at the cursor, as it failed."""
        rows = slice(self.start, min(self.start + self.batch_size, self.rows))
        indices = self._order[rows] if len(self._order) else np.arange(rows.start, rows.stop)
        reason = "" if status == Stop.NOT_FINITE else self.step.explain(indices.tolist())
        return Failure(tuple(indices.tolist()), tuple(map(float, self.step.outputs)), reason)

    def _run(self, steps: int) -> int:
        self._cursor[2] = steps
        return int(self._loop(self._job.ctypes.data, self._cursor.ctypes.data))

    def _affordable(self) -> int:
        """Steps in one chunk: one at first, then as many as fit, growing at most eightfold."""
        fitting = CHUNK_SECONDS / max(self._seconds_per_step, 1e-9)
        self._chunk = max(1, int(min(fitting, 8.0 * self._chunk)))
        return self._chunk


def _with_whole_rows(array: Array) -> Array:
    """The array itself where each row is one block of memory, else a contiguous copy."""
    if array.ndim == 0 or (len(array) and array[0].flags.c_contiguous and array.strides[0] >= 0):
        return array
    return np.ascontiguousarray(array)


def _loop() -> Callable[[int, int], int]:
    """The compiled loop, from the cache folder or compiled now."""
    from codegen.loading import load  # loads Numba, which a trainer needs only when it trains

    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    return kind(load(SOURCE, "epoch").address)
