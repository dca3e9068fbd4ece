"""How near compiled loops come to what the machine allows.

Each case (`loop_cases`) is timed in working sets that fit a level of the memory, by a loop in
compiled code that calls the program, so that no Python is in the time. What it is measured by, its
floor, is the greater of two times:

    memory      (bytes of its leaves + bytes of its results) / rate of the level
    arithmetic  flops / FMA peak + sum over functions of calls * their own time

The rate is that of a hand-made stream of the same size with as many arrays read and written
(`streams`), the FMA peak that of `hardware`. A function's own time is that of a loop of nothing but
calls of this function on arrays in the nearest cache, an element at a time as far as LLVM's
vectoriser is left to it: it is our function's, so a chain cannot be called fast because its
functions are slow elsewhere, and how good the functions are is for `vector_math` to say. Division
and square root count as functions, since no processor does them as fast as products.

A share below one half must have its reason in `loop_reasons`; without one the bench fails. So it
does when a program's results are not those of `evaluate`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np

import symgrad as sg
from codegen.compiled import Compiled
from codegen.hardware import fma_peak
from codegen.runtime.draws import DRAWS
from codegen.runtime.memory import FAST
from codegen.streams import Streams, aligned, least_time, levels
from symgrad.graph.dims import Dim, values as shape_of
from symgrad.graph.evaluator import evaluate
from tests.bench.loop_cases import Case, Leaves, cases
from tests.bench.loop_reasons import reason_for
from tests.bench.race import pin
from tests.bench.streams import Repeated
from tests.scalar_kernels import compiled as function_kernel

# What needs a reason.
ENOUGH = 0.5
# Distinct numbers of a leaf; longer ones repeat them.
POOL = 1 << 20
# Elements of the arrays on which a function's own time is measured.
ELEMENTS = 2048


@dataclass(frozen=True)
class Row:
    """A timed case: seconds of a call, and of what it is measured by."""

    name: str
    level: str
    size: int
    flops: float
    seconds: float
    memory: float
    arithmetic: float

    @property
    def share(self) -> float:
        """How much of the limit is reached."""
        return max(self.memory, self.arithmetic) / self.seconds

    def line(self) -> str:
        """The row as text."""
        bound = "memory" if self.memory >= self.arithmetic else "arithmetic"
        if bound == "memory":
            rate = self.size * 1e-9
            done = f"{rate / self.seconds:7.1f} of {rate / self.memory:6.1f} GB/s"
        else:
            done = f"{self.seconds * 1e6:7.2f} for {self.arithmetic * 1e6:6.2f} us  "
        reason = reason_for(self.name, self.level) if self.share < ENOUGH else ""
        return (
            f"{self.name:<36} {self.level:<6} {self.size / 1024:9.0f} {self.seconds * 1e6:10.3f}"
            f"  {bound:<10} {done}  {self.share:5.0%}  {reason or ''}"
        ).rstrip()


@dataclass
class Program:
    """A compiled case."""

    case: Case
    leaves: Leaves
    outputs: list[Any]
    function: Compiled

    def rows(self, size: int) -> int:
        """The n with which leaves and results have about `size` bytes."""
        one, two = (self.bytes(n) for n in (1, 2))
        return max((size - (2 * one - two)) // (two - one), 1)

    def shapes(self, n: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Of the leaves, and of the results."""
        dims: dict[Dim, int] = {self.leaves.n: n}
        return (
            [shape_of(leaf.shape, dims) for leaf in self.function.leaves],
            [shape_of(node.shape, dims) for node in self.outputs],
        )

    def parts(self, n: int) -> tuple[list[int], list[int]]:
        """The bytes of each leaf, and of each result."""
        leaves, outputs = self.shapes(n)
        return (
            [_bytes(s, leaf.dtype) for s, leaf in zip(leaves, self.function.leaves, strict=True)],
            [_bytes(s, node.dtype) for s, node in zip(outputs, self.outputs, strict=True)],
        )

    def bytes(self, n: int) -> int:
        """Of leaves and results together."""
        return sum(map(sum, self.parts(n)))

    def values(self, n: int) -> dict[str, np.ndarray[Any, Any]]:
        """Values of the leaves."""
        done = {}
        for k, (leaf, shape) in enumerate(
            zip(self.function.leaves, self.shapes(n)[0], strict=True)
        ):
            if leaf.name not in self.leaves.draws:  # supplied, as a seed is
                continue
            array = aligned(shape, leaf.dtype)
            rng = np.random.default_rng(k)
            pool = self.leaves.draws[leaf.name](rng, (min(array.size, POOL),))
            array[...] = np.resize(pool, shape)
            done[leaf.name] = array
        return done


def sweep(only: str = "*", seconds: float = 0.02) -> tuple[str, bool]:
    """The table of the cases whose names match, and whether each is fast or has its reason.

    Args:
        only:    a pattern of names, as of files.
        seconds: of each measurement.
    """
    core = pin()
    peak, width = fma_peak()
    chosen = [case for case in cases() if fnmatch.fnmatch(case.name, only)]
    programs = [_compiled(case) for case in chosen]
    meter = _Meter(Streams(seconds), Repeated(), peak, seconds)
    sizes = levels()
    rows = [meter.row(p, level, sizes[level]) for p in programs for level in p.case.levels]
    sets = ", ".join(f"{level} {size >> 10} KiB" for level, size in sizes.items())
    head = (
        f"core {core}, FMA peak {peak / 1e9:.0f} GFLOP/s ({width} lanes); working sets: {sets}\n\n"
        f"{'case':<36} {'level':<6} {'KiB':>9} {'us':>10}  {'bound':<10} {'reached':<25}  share"
    )
    slow = [row for row in rows if row.share < ENOUGH]
    bare = [row for row in slow if not reason_for(row.name, row.level)]
    tail = [
        f"{len(rows)} kernels, {len(slow)} below {ENOUGH:.0%}, {len(bare)} without a reason",
        *(f"  without a reason: {row.name} {row.level} {row.share:.0%}" for row in bare),
    ]
    return "\n".join([head, *(row.line() for row in rows), "", *tail]), not bare


def _compiled(case: Case) -> Program:
    leaves = Leaves(case.dtype)
    made = case.make(leaves)
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    return Program(case, leaves, outputs, sg.compile(outputs))


@dataclass
class _Meter:
    streams: Streams
    repeated: Repeated
    peak: float
    seconds: float

    def row(self, program: Program, level: str, size: int) -> Row:
        """Time a program in a working set of about `size` bytes, and compare its results."""
        case, n = program.case, program.rows(size)
        dims = {program.leaves.n: n}
        values = program.values(n)
        call = program.function.prepared(values, dims)
        own = [aligned(o.shape, o.dtype) for o in call.outputs]
        call.set_outputs(own)
        program.function.run(call)
        _compare(program, values, [program.function.output(call, k) for k in range(len(own))], n)
        taken = self.repeated.seconds(
            program.function.loaded.address,
            call.table.ctypes.data,
            call.dims.ctypes.data,
            self.seconds,
        )
        read, written = program.parts(n)
        total = sum(read) + sum(written)
        rate = self.streams.rate(_arrays(read), _arrays(written, max(read)), size)
        elements = max(int(np.prod(shape)) for shapes in program.shapes(n) for shape in shapes)
        flops = case.flops * elements
        arithmetic = flops / self.peak
        arithmetic += elements * sum(
            count * own_time(name, self.seconds) for name, count in case.calls.items()
        )
        return Row(case.name, level, total, flops, taken, total / rate, arithmetic)


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return int(np.prod(shape, dtype=np.int64)) * int(np.dtype(dtype).itemsize)


def _arrays(sizes: Sequence[int], largest: int = 0) -> int:
    """How many arrays count as streams: those of at least a quarter of the largest."""
    largest = max(largest, *sizes)
    return sum(4 * size >= largest for size in sizes)


@cache
def own_time(name: str, seconds: float) -> float:
    """Seconds of one element of a function: a loop over arrays in the nearest cache."""
    dtype, name = (np.float64, name[4:]) if name.startswith("f64 ") else (np.float32, name)
    out = aligned((ELEMENTS,), dtype)
    rng = np.random.default_rng(0)
    if name in DRAWS:
        number = np.zeros(1, np.int64)
        return least_time(_loop(_drawing(name), (number, out)), seconds) / ELEMENTS
    arity = 2 if name in ("pow", "div") else 1
    given = []
    for _ in range(arity):
        array = aligned((ELEMENTS,), dtype)
        array[:] = rng.uniform(0.5, 2, ELEMENTS)
        given.append(array)
    kernel = _division() if name == "div" else function_kernel(name, arity)
    return least_time(_loop(kernel, (*given, out)), seconds) / ELEMENTS


def _loop(kernel: Any, arguments: tuple[Any, ...]) -> Any:
    """`run(count)`: so many calls of a kernel in compiled code."""

    @numba.njit
    def run(count, *given):
        for _ in range(count):
            kernel(*given)

    return lambda count: run(count, *arguments)


@cache
def _division() -> Any:
    @numba.njit(fastmath=FAST, error_model="numpy")
    def divide(x, y, out):
        for i in range(x.size):
            out[i] = x[i] / y[i]

    return divide


@cache
def _drawing(name: str) -> Any:
    draw = DRAWS[name]

    @numba.njit(fastmath=FAST, error_model="numpy")
    def fill(number, out):
        number[0] += 1  # other numbers in each call: LLVM leaves out what writes the same again
        step = number[0]
        for i in range(out.size):
            out[i] = draw(numba.int64(7), step, numba.int64(i))

    return fill


def _compare(
    program: Program,
    values: Mapping[str, np.ndarray[Any, Any]],
    got: Sequence[np.ndarray[Any, Any]],
    n: int,
) -> None:
    """Raise where results differ from those of `evaluate` by more than rounding."""
    terms = program.case.terms or n
    for node, ours, theirs in zip(
        program.outputs, got, evaluate(program.outputs, values), strict=True
    ):
        if ours.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs, err_msg=program.case.name)
            continue
        epsilon = float(np.finfo(ours.dtype).eps)
        near = 64 * epsilon * max(1.0, np.sqrt(terms))
        scale = float(np.abs(theirs).max(initial=0.0))
        np.testing.assert_allclose(
            ours, theirs, near, near * scale, err_msg=f"{program.case.name}: {node!r}"
        )
