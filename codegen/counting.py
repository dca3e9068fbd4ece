"""What a kernel does, counted in its loops: operations, and the bytes that it must move.

Operations are additions, multiplications, comparisons and the like, one for each number; a function
such as exp counts what it is made of (`codegen/runtime`). Bytes are those of the elements that are
read or written, each element once, however often the loops come back to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from codegen.loop_ir import (
    Affine,
    Apply,
    Buffer,
    Call,
    CheckIndex,
    For,
    Kernel,
    Let,
    Load,
    Statement,
    Store,
    walk,
)
from symgrad.graph.dims import Dim, Extent, free_dims, value
from symgrad.graph.dtypes import DType, is_float

# Operations of values that cost nothing beside the others.
FREE = frozenset({"index", "extent", "stop_gradient"})
# Operations of a random number: ten rounds of Philox, two products of 32 bits in each.
DRAW = 60


@dataclass(frozen=True, slots=True)
class Counts:
    """What a kernel does in one call.

    operations: on numbers.
    products:   those of them that belong to matrix products.
    read, written: bytes, each element once.
    itemsize:   bytes of the largest float that is computed.
    """

    operations: int
    products: int
    read: int
    written: int
    itemsize: int

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written

    def part(self, workers: int) -> Counts:
        """Those of one of several workers."""
        return Counts(
            *(self.operations // workers, self.products // workers),
            *(self.read // workers, self.written // workers),
            self.itemsize,
        )


def counts_of(kernel: Kernel, dims: Mapping[Dim, int]) -> Counts:
    """Count a kernel for these extents."""
    counter = _Counter(dims)
    counter.block(kernel.body, 1, {})
    return Counts(
        counter.operations,
        counter.products,
        _bytes(counter.read),
        _bytes(counter.written),
        counter.itemsize or 4,
    )


def traffic_of(
    kernel: Kernel, dims: Mapping[Dim, int] | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a kernel reads and writes, by buffer; 0 each where dims are not known.

    What it writes before it reads it is not read from another kernel.
    """
    counter = _Counter(dict.fromkeys(_dims_of(kernel), 1) if dims is None else dims)
    counter.block(kernel.body, 1, {})
    read, written = (
        {name: 0 if dims is None else _bytes({name: t}) for name, t in touched.items()}
        for touched in (counter.read, counter.written)
    )
    return {name: n for name, n in read.items() if name not in counter.own}, written


def _dims_of(kernel: Kernel) -> set[Dim]:
    """The dims that occur in a kernel's loops and places."""
    found: set[Dim] = set()
    for s in walk(kernel.body):
        extents: list[Extent] = []
        if isinstance(s, (For, CheckIndex)):
            extents.append(s.extent)
        elif isinstance(s, Call):
            extents += [s.m, s.n, s.k]
        places = [getattr(s, "offset", None), getattr(getattr(s, "value", None), "offset", None)]
        for place in (*places, *getattr(s, "offsets", ())):
            if isinstance(place, Affine):
                extents += [place.const, *(c for _, c in place.terms)]
        found.update(free_dims(extents))
    return found


@dataclass(slots=True)
class _Touched:
    """Elements of a buffer: how many at each place that is written down, and the whole span."""

    dtype: DType
    at: dict[Affine, int] = field(default_factory=dict)
    low: int | None = None
    high: int = 0


def _bytes(touched: Mapping[str, _Touched]) -> int:
    total = 0
    for t in touched.values():
        span = t.high - (t.low or 0) + 1 if t.at else 0
        total += min(sum(t.at.values()), span) * t.dtype.itemsize
    return total


@dataclass(slots=True)
class _Counter:
    dims: Mapping[Dim, int]
    operations: int = 0
    products: int = 0
    itemsize: int = 0
    read: dict[str, _Touched] = field(default_factory=dict)
    written: dict[str, _Touched] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)  # written before they are read

    def block(self, body: Iterable[Statement], times: int, ranges: dict[str, int]) -> None:
        """Count statements that run `times` times, inside loops with these ranges."""
        for s in body:
            if isinstance(s, For):
                n = value(s.extent, self.dims)
                self.block(s.body, times * n, {**ranges, s.var: n})
            elif isinstance(s, Let):
                if isinstance(s.value, Load):
                    self.touch(self.read, s.value.buffer, s.value.offset, times, ranges)
                elif isinstance(s.value, Apply):
                    self.apply(s.value.operation, s.dtype, times)
            elif isinstance(s, Store):
                self.touch(self.written, s.buffer, s.offset, times, ranges)
            elif isinstance(s, CheckIndex):
                self.operations += 2 * times
                # as many rows as there are indices at most, and no more than the axis has
                ranges[s.name] = min(value(s.extent, self.dims), max(times, 1))
            elif isinstance(s, Call):
                self.product(s, times, ranges)
            else:
                self.block(getattr(s, "body", ()), times, ranges)

    def apply(self, operation: str, dtype: DType, times: int) -> None:
        if is_float(dtype):
            self.itemsize = max(self.itemsize, dtype.itemsize)
        self.operations += times * operations_of(operation, str(dtype))

    def product(self, call: Call, times: int, ranges: Mapping[str, int]) -> None:
        m, n, k = (value(e, self.dims) for e in (call.m, call.n, call.k))
        self.operations += 2 * m * n * k * times
        self.products += 2 * m * n * k * times
        self.itemsize = max(self.itemsize, call.c.dtype.itemsize)
        buffers = (call.a, m * k), (call.b, k * n), (call.c, m * n)
        for (buffer, count), offset in zip(buffers, call.offsets, strict=True):
            into = self.written if buffer is call.c else self.read
            self.touch(into, buffer, offset, times, ranges, count)

    def touch(
        self,
        into: dict[str, _Touched],
        buffer: Buffer,
        offset: Affine,
        times: int,
        ranges: Mapping[str, int],
        each: int = 1,
    ) -> None:
        """Enter the elements that an offset reaches, `each` of them at every place."""
        if not times:
            return
        if into is self.written and buffer.name not in self.read:
            self.own.add(buffer.name)
        touched = into.setdefault(buffer.name, _Touched(buffer.dtype))
        count = each
        low = high = value(offset.const, self.dims)
        for var, coefficient in offset.terms:
            n, step = ranges.get(var, 1), value(coefficient, self.dims)
            count *= n if step else 1
            low, high = low + min(step * (n - 1), 0), high + max(step * (n - 1), 0)
        touched.at[offset] = max(count, touched.at.get(offset, 0))
        touched.low = low if touched.low is None else min(low, touched.low)
        touched.high = max(high + each - 1, touched.high)


@cache
def operations_of(operation: str, dtype: str) -> int:
    """Operations on numbers in one value: of a function, those of the code that it becomes."""
    if operation in FREE:
        return 0
    from codegen.runtime.draws import DRAWS
    from codegen.runtime.vector_math import PRIMITIVES

    if operation in DRAWS:
        return DRAW
    if operation not in PRIMITIVES or operation.startswith("cast_") or np.dtype(dtype).kind != "f":
        return 1
    return max(_written(PRIMITIVES[operation], dtype), 1)


def _written(primitive: object, dtype: str) -> int:
    """Operations on floats that an intrinsic writes for arguments of one dtype."""
    from llvmlite import ir
    from numba import types
    from numba.core.errors import NumbaError

    kind, lane = getattr(types, dtype), ir.FloatType() if dtype == "float32" else ir.DoubleType()
    for arity in (1, 2):
        module = ir.Module()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [lane] * arity), "f")
        builder = ir.IRBuilder(function.append_basic_block())
        try:
            made = primitive._defn(None, *[kind] * arity)  # type: ignore[attr-defined]
            made[1](None, builder, made[0], list(function.args))
        except (TypeError, NumbaError, AttributeError):
            continue
        return sum(_weight(one) for block in function.blocks for one in block.instructions)
    return 1


def _weight(instruction: object) -> int:
    """A multiplication with an addition counts two; what only moves bits counts nothing."""
    name = getattr(instruction, "opname", "")
    if name == "call":
        return 2 if "fma" in str(getattr(instruction, "callee", "")) else 1
    return int(name in ("fadd", "fsub", "fmul", "fdiv", "frem", "fcmp", "fneg", "select"))
