"""The loop IR: what every kernel is before a target prints it.

    Kernel    = name, buffers, extents, body                a function over buffers and extents
    Buffer    = name, dtype, scope                          a block of memory; scopes never overlap
    Statement = For(var, extent, body)                      for var in 0 .. extent-1
              | Let(name, dtype, value)                     a new name, written once
              | Update(name, value)                         a new value for an accumulator
              | Store(buffer, offset, name)                 buffer[offset] := name
              | CheckIndex(name, index, extent, node, ..)   name := index, wrapped, proven in range
              | Call(routine, arguments)                    a library routine (a matrix product)
              | Only(body)                                  what worker 0 of a team does alone
              | Wait()                                      all workers of a team meet
    Value     = Load(buffer, offset) | Apply(operation, operands) | Literal(number) | Copy(name)

Offsets are affine in loop variables and checked indices, in elements. Values are single operations
on names, so a body is straight-line code and dependence is a set test. The IR knows no vector
width, no intrinsic and no address: those belong to a target.

A kernel may be run by all workers of a team at once (`codegen/sharing.py`). Then each does its own
part of the loops and products that are shared, and all of everything else; WORKER is the number of
the one that runs, from 0, and WORKERS how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import sympy

from symgrad.graph.dims import Dim, Extent, size
from symgrad.graph.dtypes import SHORT, DType


class _OfTeam(Dim):
    """A number that who runs a kernel knows; it equals no dim of a user, whatever its name."""

    __slots__ = ()


WORKER, WORKERS = _OfTeam("worker"), _OfTeam("workers")
#: The number of a turn, from 0, where kernels take turns over rows (`codegen/batch_fusion.py`).
TURN = _OfTeam("turn")
#: Rows that are shared between workers, and how many iterations each of them is.
Partition: TypeAlias = tuple[Extent, Extent]
#: Fewer rows are too few to be shared: they are shared along their next axis too.
FEW_ROWS = 8


def partition_of(extents: Sequence[Extent]) -> Partition:
    """The rows of a shape: the first axis, and further ones where it is short.

    >>> partition_of((2, 3, 5, 7)), partition_of((100, 2))
    ((30, 7), (100, 2))
    """
    rows: Extent = 1
    for k, extent in enumerate(extents):
        if type(rows) is not int or rows >= FEW_ROWS:
            return rows, size(extents[k:])
        rows = size((rows, extent))
    return rows, 1


@dataclass(frozen=True, slots=True)
class Affine:
    """`const + sum of coefficient * variable`, an integer."""

    terms: tuple[tuple[str, Extent], ...] = ()
    const: Extent = 0

    def __add__(self, other: Affine | Extent) -> Affine:
        if not isinstance(other, Affine):
            return Affine(self.terms, _number(self.const + other))
        merged = dict(self.terms)
        for var, coefficient in other.terms:
            merged[var] = _number(merged.get(var, 0) + coefficient)
        terms = tuple((v, c) for v, c in merged.items() if not _is(c, 0))
        return Affine(terms, _number(self.const + other.const))

    def __mul__(self, factor: Extent) -> Affine:
        if _is(factor, 1):
            return self
        if _is(factor, 0):
            return Affine()
        terms = tuple((v, _number(c * factor)) for v, c in self.terms)
        return Affine(terms, _number(self.const * factor))

    def coefficient(self, var: str) -> Extent:
        """What `var` is multiplied by."""
        return dict(self.terms).get(var, 0)

    @property
    def variables(self) -> frozenset[str]:
        """The variables that occur."""
        return frozenset(v for v, _ in self.terms)

    def rename(self, names: dict[str, str]) -> Affine:
        """The same with other variable names."""
        return Affine(tuple((names.get(v, v), c) for v, c in self.terms), self.const)

    def __str__(self) -> str:
        parts = [v if _is(c, 1) else f"{_factor(c)}*{v}" for v, c in self.terms]
        if not parts or not _is(self.const, 0):
            parts.append(str(self.const))
        return " + ".join(parts)


def _is(extent: Extent, value: int) -> bool:
    return type(extent) is int and extent == value


def _number(extent: Extent) -> Extent:
    """The extent with its products written out; an `int` where it is one."""
    if type(extent) is int:
        return extent
    extent = sympy.expand(extent)
    return int(extent) if extent.is_Integer else extent


def _factor(extent: Extent) -> str:
    text = str(extent)
    return f"({text})" if any(c in text for c in "+- ") else text


def variable(name: str) -> Affine:
    """A variable as an affine expression."""
    return Affine(((name, 1),))


@dataclass(frozen=True, slots=True)
class Buffer:
    """A block of memory as one kernel sees it: equal scopes are the same block."""

    name: str
    dtype: DType
    scope: int


@dataclass(frozen=True, slots=True)
class Load:
    """`buffer[offset]`."""

    buffer: Buffer
    offset: Affine

    def __str__(self) -> str:
        return f"{self.buffer.name}[{self.offset}]"


@dataclass(frozen=True, slots=True)
class Apply:
    """One operation on names.

    operation: add sub mul div neg, a scalar function, `index` (a variable's value) or `extent`
        (an extent as a number); the last two have a payload.
    """

    operation: str
    operands: tuple[str, ...] = ()
    payload: Affine | Extent | None = None

    def __str__(self) -> str:
        given = [*self.operands, *([str(self.payload)] if self.payload is not None else [])]
        return f"{self.operation}({', '.join(given)})"


@dataclass(frozen=True, slots=True)
class Literal:
    """A number in the dtype of the name that it defines."""

    number: float | int | bool

    def __str__(self) -> str:
        return repr(self.number)


@dataclass(frozen=True, slots=True)
class Copy:
    """The value of another name."""

    name: str

    def __str__(self) -> str:
        return self.name


Value: TypeAlias = Load | Apply | Literal | Copy


@dataclass(frozen=True, slots=True)
class Let:
    """Define `name`, once."""

    name: str
    dtype: DType
    value: Value


@dataclass(frozen=True, slots=True)
class Update:
    """Give the accumulator `name` a new value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Store:
    """`buffer[offset] := name`."""

    buffer: Buffer
    offset: Affine
    name: str


@dataclass(frozen=True, slots=True)
class CheckIndex:
    """`name := index`, proven in range; where it is not, that is reported for `node`.

    position: of the index in its own array, for the report; -1 where that is not known.
    wrap:     negative ones count from the end.
    """

    name: str
    index: str
    extent: Extent
    node: int
    position: Affine
    wrap: bool


@dataclass(frozen=True, slots=True)
class For:
    """`for var in 0 .. extent-1`.

    parts:  the rows that it consists of, where one loop took the place of several.
    shared: each worker does the iterations of its own rows.
    """

    var: str
    extent: Extent
    body: tuple[Statement, ...]
    parts: Partition | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """`C[c] := op(A[a]) @ op(B[b])`, row-major: (m, k) x (k, n) once the flags have transposed.

    rows:   how far apart the rows of A, B and C lie, as they are stored.
    parts:  what the rows of C consist of.
    terms:  what the terms of its sums consist of.
    shared: "m" or "n" where each worker computes its own rows or columns of C; "k" where it adds up
            its own terms, in a C of its own.
    adds:   C[c] := C[c] + op(A[a]) @ op(B[b])
    """

    a: Buffer
    b: Buffer
    c: Buffer
    offsets: tuple[Affine, Affine, Affine]
    transposed: tuple[bool, bool]
    m: Extent
    n: Extent
    k: Extent
    rows: tuple[Extent, Extent, Extent]
    parts: Partition | None = None
    terms: Partition | None = None
    shared: str = ""
    adds: bool = False


@dataclass(frozen=True, slots=True)
class Only:
    """What worker 0 does alone."""

    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """All workers meet: each sees what the others wrote before."""


Statement: TypeAlias = For | Let | Update | Store | CheckIndex | Call | Only | Wait


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function over buffers. `formula` says in mathematics what it computes.

    alone: in a team, why worker 0 does it alone; empty where all do their parts.
    """

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Statement, ...]
    formula: str = ""
    stage: int = 0
    checks: bool = field(default=False)
    alone: str = ""

    @property
    def copied(self) -> Extent | None:
        """How many elements it copies from its first buffer to its second, if it does no more."""
        body, n, place = self.body, 1, Affine()
        if len(body) == 1 and isinstance(loop := body[0], For):
            body, n, place = loop.body, loop.extent, variable(loop.var)
        if len(body) != 2 or len(self.buffers) != 2:
            return None
        source, target = self.buffers
        name = getattr(body[0], "name", "")
        read, written = Let(name, source.dtype, Load(source, place)), Store(target, place, name)
        return n if body == (read, written) and source.dtype == target.dtype else None

    def __str__(self) -> str:
        args = ", ".join(f"{b.name}: {SHORT[b.dtype]}" for b in self.buffers)
        head = f"kernel {self.name}({args})" + (f"  # {self.formula}" if self.formula else "")
        return "\n".join([head, *lines(self.body, 1)])


def lines(body: tuple[Statement, ...], depth: int) -> Iterator[str]:
    """Statements as text, indented by depth."""
    pad = "  " * depth
    for s in body:
        if isinstance(s, For):
            shared = " (shared)" if s.shared else ""
            yield f"{pad}for {s.var} in 0..{s.extent}{shared}:"
            yield from lines(s.body, depth + 1)
        elif isinstance(s, Only):
            yield f"{pad}worker 0:"
            yield from lines(s.body, depth + 1)
        elif isinstance(s, Wait):
            yield f"{pad}all meet"
        elif isinstance(s, Let):
            yield f"{pad}{s.name} := {s.value}"
        elif isinstance(s, Update):
            yield f"{pad}{s.name} <- {s.value}"
        elif isinstance(s, Store):
            yield f"{pad}{s.buffer.name}[{s.offset}] := {s.name}"
        elif isinstance(s, CheckIndex):
            yield f"{pad}{s.name} := checked {s.index} in 0..{s.extent}"
        else:
            a, b = (
                f"{x.name}[{o}]" + ("^T" if t else "")
                for x, o, t in zip((s.a, s.b), s.offsets, s.transposed, strict=False)
            )
            sign = "+=" if s.adds else ":="
            yield f"{pad}{s.c.name}[{s.offsets[2]}] {sign} {a} @ {b}   # {s.m} x {s.k} x {s.n}"


def walk(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """All statements, outer before inner."""
    for s in body:
        yield s
        if isinstance(s, (For, Only)):
            yield from walk(s.body)


def follows_turns(kernel: Kernel) -> bool:
    """Whether a kernel reads the number of its turn."""
    for s in walk(kernel.body):
        value = s.value if isinstance(s, Let) else None
        place = s.position if isinstance(s, CheckIndex) else getattr(value, "payload", None)
        const = place.const if isinstance(place, Affine) else 0
        if not isinstance(const, int) and TURN in const.free_symbols:
            return True
    return False
