"""The vector units of processors: what they offer, and their instructions as LLVM's text.

Which instruction set is used, the vectors of an element type in it, and reads, writes and sums of
vectors that are written into a routine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from codegen.runtime.assembler import Routine, Value

# At most so many rows in a tile: more help nothing and cost compile time.
MOST_ROWS = 8
# At most so many vectors of columns (8 x 3 reads less of B for its sums than 6 x 4: where B comes
# from the second cache, 3 % faster on Sapphire Rapids).
MOST_VECTORS = 3
# Bytes of a line of memory.
LINE_BYTES = 64
# Vectors of columns of tiles of so few rows: they need no copy of B, and have sums to spare.
FLAT_VECTORS, FLAT_ROWS = 4, 2
# Multiply-adds that must be under way to keep two units with a latency of four cycles busy.
UNDER_WAY = 8


class InstructionSet(NamedTuple):
    """What the vector unit of a processor offers.

    Fields:
        name:      as in SYMGRAD_VECTORS.
        size:      bytes of a vector.
        registers: of that size.
        fused:     whether a multiply-add is one instruction.
        masked:    whether loads and stores of a part of a vector cost as much as whole ones.
        processor: the least processor that LLVM is told of where the set is forced; "" for this.
    """

    name: str
    size: int
    registers: int
    fused: bool
    masked: bool
    processor: str = ""


AVX512 = InstructionSet("avx512", 64, 32, fused=True, masked=True, processor="x86-64-v4")
AVX2 = InstructionSet("avx2", 32, 16, fused=True, masked=False, processor="x86-64-v3")
NEON = InstructionSet("neon", 16, 32, fused=True, masked=False)
# SSE2, or whatever LLVM makes of vectors of 16 bytes
PLAIN = InstructionSet("plain", 16, 16, fused=False, masked=False, processor="x86-64")
INSTRUCTION_SETS = {s.name: s for s in (AVX512, AVX2, NEON, PLAIN)}


def available() -> list[str]:
    """The instruction sets that this processor can run, the widest first."""
    import llvmlite.binding as llvm

    has = llvm.get_host_cpu_features()
    x86 = "sse2" in has
    found = [
        (AVX512, all(has.get(f) for f in ("avx512f", "avx512vl", "avx512bw", "avx512dq"))),
        (AVX2, has.get("avx2") and has.get("fma")),
        (NEON, not x86 and has.get("neon")),
        (PLAIN, True),
    ]
    return [s.name for s, present in found if present]


def instruction_set() -> InstructionSet:
    """The widest of this processor, or what SYMGRAD_VECTORS names.

    Raises: ValueError for a name that is unknown or that this processor can't run.
    """
    known = available()
    name = os.environ.get("SYMGRAD_VECTORS") or known[0]
    if name not in known:
        raise ValueError(
            f"SYMGRAD_VECTORS={name!r}: this processor runs {', '.join(known)}; set one of these."
        )
    return INSTRUCTION_SETS[name]


class Element(NamedTuple):
    """A float type in the vectors of an instruction set.

    Fields:
        short: "f32" or "f64".
        isa:   the instruction set.
    """

    short: str
    isa: InstructionSet

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.short[1:]) // 8

    @property
    def scalar(self) -> str:
        """LLVM's name of one."""
        return "float" if self.short == "f32" else "double"

    @property
    def lanes(self) -> int:
        """How many a vector holds."""
        return self.isa.size // self.size

    @property
    def vector(self) -> str:
        """LLVM's name of a vector of them."""
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def mask(self) -> str:
        """LLVM's name of a truth value for each lane."""
        return f"<{self.lanes} x i1>"

    def most_rows(self, vectors: int) -> int:
        """How many rows a tile of so many vectors of columns may have, by the registers."""
        free = self.isa.registers - vectors - (1 if self.isa.fused else 2)
        return min(MOST_ROWS if vectors <= MOST_VECTORS else FLAT_ROWS, free // vectors)

    @property
    def most_vectors(self) -> int:
        """How wide a tile may be: no wider than tall, so that loads do not outnumber sums."""
        return max(v for v in range(1, MOST_VECTORS + 1) if self.most_rows(v) >= min(v, 3))

    def shapes(self) -> Iterator[tuple[int, int]]:
        """Rows and vectors of all tiles."""
        for vectors in range(1, FLAT_VECTORS + 1):
            for rows in range(1, self.most_rows(vectors) + 1):
                yield rows, vectors

    def chains(self, rows: int, vectors: int) -> int:
        """How many sums of its own each place of a tile has, for p of different remainders.

        Enough to keep the units busy; and of one vector more where registers are free, since the
        parts of a long sum round less than the whole.
        """
        least = UNDER_WAY // min(rows, 2)
        if vectors == 1:
            least = min(20, self.isa.registers - 2)
            return next(c for c in (8, 4, 2, 1) if c * rows <= least)
        count = 1
        while count < 4 and count * rows * vectors < least:
            count *= 2
        return count

    @property
    def copying(self) -> range:
        """Vectors of the tiles that copy what comes next: enough sums for that to cost nothing."""
        return range(min(2, self.most_vectors), self.most_vectors + 1)

    @property
    def dot_columns(self) -> int:
        """How many columns a block of inner products may have, by the registers."""
        return 4 if self.isa.registers >= 32 else 2

    def declarations(self) -> str:
        """The intrinsics of LLVM that are called, of vectors and of pieces of 16 bytes."""
        vector, suffix = self.vector, f"v{self.lanes}{self.short}"
        piece = self._replace(isa=self.isa._replace(size=16))
        lines = [f"declare {vector} @llvm.fma.{suffix}({vector}, {vector}, {vector})"]
        lines.append(
            f"declare {self.scalar} @llvm.fma.{self.short}({', '.join([self.scalar] * 3)})"
        )
        lines += ["declare ptr @malloc(i64)", "declare void @free(ptr)"]
        lines.append("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f64"
        lines.append(f"declare double @{name}(double, <{self.lanes} x double>)")
        for e in dict.fromkeys([self, piece]):
            name, kind = f"v{e.lanes}{e.short}", e.vector
            lines.append(
                f"declare {kind} @llvm.masked.load.{name}.p0(ptr, i32, {e.mask}, {kind})\n"
                f"declare void @llvm.masked.store.{name}.p0({kind}, ptr, i32, {e.mask})"
            )
        if piece != self:
            name = f"llvm.vector.insert.{suffix}.v{piece.lanes}{self.short}"
            lines.append(f"declare {vector} @{name}({vector}, {piece.vector}, i64)")
        return "\n".join([*lines, ""])


class Lanes:
    """Vector instructions of one element type, written into a routine."""

    def __init__(self, routine: Routine, element: Element) -> None:
        self.routine = routine
        self.element = element
        self.suffix = f"v{element.lanes}{element.short}"

    @property
    def zero(self) -> Value:
        """A vector of zeros."""
        return Value(self.routine, self.element.vector, "zeroinitializer")

    def spread(self, value: Value) -> Value:
        """A number in all lanes."""
        lanes = self.element.lanes
        kind = f"<{lanes} x {value.kind}>"
        one = self.routine.emit(kind, f"insertelement {kind} poison, {value}, i32 0")
        shuffle = f"shufflevector {one}, {kind} poison, <{lanes} x i32> zeroinitializer"
        return self.routine.emit(kind, shuffle)

    def fused(self, a: Value, b: Value, c: Value) -> Value:
        """The vector a * b + c, rounded once where the processor can."""
        put = self.routine.emit
        if self.element.isa.fused:
            return put(a.kind, f"call {a.kind} @llvm.fma.{self.suffix}({a}, {b}, {c})")
        product = put(a.kind, f"fmul {a}, {b.text}")
        return put(a.kind, f"fadd {c}, {product.text}")

    def after(self, place: Value, vectors: Sequence[Value]) -> tuple[Value, list[Value]]:
        """An address that is known only when these vectors are, and they; no instruction.

        LLVM 22 reads what later rows of a tile need before it multiplies the first, finds no
        registers for it and stores it on the stack: a third of the speed of large products.
        """
        if self.element.isa.name != AVX512.name:  # elsewhere the order is kept
            return place, list(vectors)
        f, every = self.routine, [place, *vectors]
        kinds = "{ " + ", ".join(x.kind for x in every) + " }"
        letters = ["=r", *["=v"] * len(vectors), *map(str, range(len(every)))]
        given = ", ".join(map(str, every))
        both = f.emit(kinds, f'call {kinds} asm "", "{",".join(letters)}"({given})')
        first, *others = (f.emit(x.kind, f"extractvalue {both}, {k}") for k, x in enumerate(every))
        return first, others

    def first(self, count: Value) -> Value:
        """True in the first `count` lanes."""
        lanes = self.element.lanes
        short = self.routine.emit("i32", f"trunc {count} to i32")
        places = ", ".join(f"i32 {k}" for k in range(lanes))
        limit = self.spread(short)
        test = f"icmp slt <{lanes} x i32> <{places}>, {limit.text}"
        return self.routine.emit(self.element.mask, test)

    def read(self, pointer: Value, mask: Value | None = None) -> Value:
        """The vector at an address; zeros where a mask is false, of which no memory is read."""
        e = self.element
        if mask is None:
            return self.routine.read(pointer, e.vector, e.size)
        call = f"call {e.vector} @llvm.masked.load.{self.suffix}.p0"
        return self.routine.emit(e.vector, f"{call}({pointer}, i32 {e.size}, {mask}, {self.zero})")

    def write(self, value: Value, pointer: Value, mask: Value | None = None) -> None:
        """Put a vector to an address, but nothing where a mask is false."""
        e = self.element
        if mask is None:
            self.routine.write(value, pointer, e.size)
        else:
            call = f"@llvm.masked.store.{self.suffix}.p0"
            self.routine.call(call, value, pointer, Value(self.routine, "i32", str(e.size)), mask)

    def at(self, pointer: Value, count: Value | int) -> Value:
        """The address `count` elements further."""
        return self.routine.step(pointer, self.element.scalar, count)


def shuffled(f: Routine, first: Value, second: Value, lanes: list[int]) -> Value:
    """Lanes of two vectors, those of the second numbered after those of the first."""
    places = ", ".join(f"i32 {k}" for k in lanes)
    return f.emit(first.kind, f"shufflevector {first}, {second}, <{len(lanes)} x i32> <{places}>")


def chosen(f: Routine, lanes: Sequence[int], x: Value) -> Value:
    """These lanes of a vector, zeros elsewhere."""
    count = int(x.kind.split()[0][1:])
    zero = Value(f, x.kind, "zeroinitializer")
    return shuffled(f, x, zero, [k if k in lanes else count + k for k in range(count)])


def added(f: Routine, sums: list[Value], count: int) -> list[Value]:
    """`count` vectors, each the sum of those whose numbers differ by multiples of `count`."""
    while len(sums) > count:
        half = len(sums) // 2
        pairs = zip(sums[:half], sums[half:], strict=True)
        sums = [f.emit(x.kind, f"fadd {x}, {y.text}") for x, y in pairs]
    return sums
