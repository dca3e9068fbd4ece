"""The inner loops of matrix products: tiles of C that stay in registers.

    T[r, j] = sum_p a[r, p] * b[p, j],      C[r, j] := T[r, j]  or  C[r, j] := C[r, j] + T[r, j]

A tile has `rows` rows and `vectors` vectors of columns. For each p it loads the vectors of b once,
and every element of a once for all lanes, so that `rows * vectors` multiply-adds need only
`rows + vectors` loads. a is read through two strides, which makes its transpose free; the rows of
b are contiguous. The form is that of Goto and van de Geijn, Anatomy of high-performance matrix
multiplication (2008), with the tile sizes of each instruction set computed from its registers.
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
# Vectors that one turn of a product of one row and a matrix writes.
LINE_VECTORS = 4
# Columns of a that the largest tile multiplies in a turn, for which it copies one vector of the
# next panel; and by how many turns it is fetched before: so long takes a line of the third cache.
TURN, AHEAD = 4, 8
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
        return min(MOST_ROWS, free // vectors)

    @property
    def most_vectors(self) -> int:
        """How wide a tile may be: no wider than tall, so that loads do not outnumber sums."""
        return max(v for v in range(1, MOST_VECTORS + 1) if self.most_rows(v) >= min(v, 3))

    def shapes(self) -> Iterator[tuple[int, int]]:
        """Rows and vectors of all tiles."""
        for vectors in range(1, self.most_vectors + 1):
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
    def largest(self) -> tuple[int, int]:
        """Rows and vectors of the largest tile."""
        return self.most_rows(self.most_vectors), self.most_vectors

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


def product_arguments(scalar: str) -> list[tuple[str, str]]:
    """What a product takes: extents, matrices with the distances of rows and columns, factors."""
    extents = [("m", "i64"), ("n", "i64"), ("k", "i64")]
    matrices = [
        (f"{name}{part}", "i64" if part else "ptr")
        for name in "abc"
        for part in ("", "_row", "_column")
    ]
    return [*extents, *matrices, ("alpha", scalar), ("beta", scalar)]


def chosen(f: Routine, lanes: Sequence[int], x: Value) -> Value:
    """These lanes of a vector, zeros elsewhere."""
    count = int(x.kind.split()[0][1:])
    zero = Value(f, x.kind, "zeroinitializer")
    return shuffled(f, x, zero, [k if k in lanes else count + k for k in range(count)])


def table_entry(f: Routine, table: str, kind: str, place: Value) -> Value:
    """An entry of a constant table."""
    return f.read(f.step(Value(f, "ptr", f"@{table}"), kind, place), kind, 8)


def tiles_text(element: Element) -> str:
    """The functions of all tiles; and tables.

    Of the functions; of the rows that each width of a tile allows; of 2^32 over those, rounded up.
    """
    most, tallest = element.most_vectors, element.most_rows(1)
    known = set(element.shapes())
    table = [
        f"ptr @{tile_name(r, v)}" if (r, v) in known else "ptr null"
        for v in range(1, most + 1)
        for r in range(1, tallest + 1)
    ]
    tall = [element.most_rows(v) for v in range(1, most + 1)]
    heights = [f"i64 {rows}" for rows in tall]
    inverses = [f"i64 {-(-(1 << 32) // rows)}" for rows in tall]
    return "\n".join(
        [
            f"@tiles = internal constant [{len(table)} x ptr] [{', '.join(table)}]",
            f"@heights = internal constant [{most} x i64] [{', '.join(heights)}]",
            f"@inverses = internal constant [{most} x i64] [{', '.join(inverses)}]",
            *(tile(element, r, v) for r, v in element.shapes()),
            largest_tile(element),
            _finish_ahead(element),
            line(element),
        ]
    )


# The function of the largest tiles.
LARGEST = "largest_tile"


def tile_name(rows: int, vectors: int) -> str:
    """The function of a tile."""
    return f"tile_{rows}_{vectors}"


def tile_arguments() -> list[tuple[str, str]]:
    """What the function of a tile takes.

    a and the distances between its rows and columns, b and the distance between its rows, how many
    p, C and the distance between its rows, how many columns of the last vector count, how many
    tiles lie below each other, whether the sums are added to C.
    """
    return [
        *(("a", "ptr"), ("a_row", "i64"), ("a_column", "i64"), ("b", "ptr"), ("b_row", "i64")),
        *(("k", "i64"), ("c", "ptr"), ("c_row", "i64"), ("last", "i64"), ("count", "i64")),
        ("add", "i1"),
    ]


def tile(element: Element, rows: int, vectors: int) -> str:
    """The function of tiles below each other, k > 0."""
    f = Routine(tile_name(rows, vectors), tile_arguments(), "internal")
    lanes = Lanes(f, element)
    a, a_row, _, b, _, k, c, c_row, last, count, add = f.arguments()
    mask = lanes.first(last) if element.isa.masked else None
    masks = [None] * (vectors - 1) + [mask]
    at_once = element.chains(rows, vectors)
    with f.loop(count) as t:
        sums = [lanes.zero] * (at_once * rows * vectors)
        places, rest = (lanes.at(a, t * rows * a_row), b), k
        if at_once > 1:
            whole = (k // at_once) * at_once
            sums, places = _sweep(lanes, rows, masks, sums, places, (whole, at_once))
            sums = added(f, sums, rows * vectors)
            rest = k - whole
        sums, _ = _sweep(lanes, rows, masks, sums, places, (rest, 1), some=at_once == 1)
        _flush(lanes, rows, sums, masks, (lanes.at(c, t * rows * c_row), c_row, add))
    return str(f)


class Ahead:
    """A walk over vectors of memory that are copied to where they are read next.

    Its place lies in memory, as whole numbers: addresses of what is copied and of the copy; how
    many vectors are left of the row, and in all; and what stays: the distances in bytes of
    neighbours, from the last vector of a row to the first of the next, of neighbours in the copy,
    and from a vector to that which is fetched by the time that it is copied; the length of rows.
    Where nothing is left, nothing is read.
    """

    FIELDS, MOVING = 9, 4

    def __init__(self, lanes: Lanes, memory: Value) -> None:
        self.lanes = lanes
        self.f = lanes.routine
        self.fields = [self.f.step(memory, "i64", k) for k in range(self.FIELDS)]
        self.place: tuple[Value, ...] = ()

    def set(self, values: Sequence[Value]) -> None:
        """Begin a walk anew."""
        for value, field in zip(values, self.fields, strict=True):
            self.f.write(value, field, 8)

    def begin(self) -> None:
        """Read the place."""
        kinds = ["ptr"] * 2 + ["i64"] * (self.FIELDS - 2)
        found = [self.f.read(x, kind, 8) for x, kind in zip(self.fields, kinds, strict=True)]
        self.place, self.stays = tuple(found[: self.MOVING]), found[self.MOVING :]

    def turn(self, place: Sequence[Value], nowhere: Value) -> tuple[Value, ...]:
        """Copy a vector, and fetch one that comes later; the next place.

        nowhere: memory for a vector, which is copied to itself where nothing is left.
        """
        f, lanes = self.f, self.lanes
        source, target, left, rest = place
        inner, jump, step, far, length = self.stays
        later = self._moved(source, far)
        f.call("@llvm.prefetch.p0", later, *(Value(f, "i32", str(k)) for k in (0, 3, 1)))
        more = rest > 0
        from_, to = (more.where(x, nowhere) for x in (source, target))
        lanes.write(lanes.read(from_), to)
        less = left - 1
        last = less.equals(0)
        source = self._moved(source, last.where(jump, inner))
        return source, self._moved(target, step), last.where(length, less), rest - 1

    def _moved(self, place: Value, count: Value) -> Value:
        return self.f.emit("ptr", f"getelementptr i8, {place}, {count}")

    def end(self) -> None:
        """Keep the place."""
        for value, field in zip(self.place, self.fields, strict=False):
            self.f.write(value, field, 8)


def _finish_ahead(element: Element) -> str:
    """Copy what is left of a walk."""
    f = Routine("finish_ahead", [("memory", "ptr")], "internal")
    (memory,) = f.arguments()
    walk = Ahead(Lanes(f, element), memory)
    nowhere = f.room(element.vector, 1, element.isa.size)
    walk.begin()
    with f.when(walk.place[-1] > 0):
        before, name = f.block, f.fresh()
        olds = [Value(f, x.kind, f"%{f.fresh()}") for x in walk.place]
        f.jump(f"{name}.body")
        f.label(f"{name}.body")
        phis = len(f.lines)
        news = walk.turn(olds, nowhere)
        f.lines[phis:phis] = [
            f"  {old.text} = phi {old.kind} [ {start.text}, %{before} ], [ {new.text}, %{f.block} ]"
            for old, start, new in zip(olds, walk.place, news, strict=True)
        ]
        f.branch(news[-1] > 0, f"{name}.body", f"{name}.done")
        f.label(f"{name}.done")
    return str(f)


def largest_tile(element: Element) -> str:
    """The function of the largest tiles below each other, where B is read from a panel.

    In every turn a vector is copied of what comes next, the next panel: see `Ahead`.
    """
    rows, vectors = element.largest
    f = Routine(LARGEST, [*tile_arguments(), ("ahead", "ptr")], "internal")
    lanes = Lanes(f, element)
    a, a_row, _, b, _, k, c, c_row, last, count, add, ahead = f.arguments()
    mask = lanes.first(last) if element.isa.masked else None
    masks = [None] * (vectors - 1) + [mask]
    whole = (k // TURN) * TURN
    nowhere = f.room(element.vector, 1, element.isa.size)
    with f.loop(count) as t:
        sums = [lanes.zero] * (rows * vectors)
        places = (lanes.at(a, t * rows * a_row), b)
        walk = Ahead(lanes, ahead)
        walk.begin()
        copies = (walk, nowhere)
        sums, places = _sweep(lanes, rows, masks, sums, places, (whole, TURN), copies=copies)
        walk.end()
        sums, _ = _sweep(lanes, rows, masks, sums, places, (k - whole, 1))
        _flush(lanes, rows, sums, masks, (lanes.at(c, t * rows * c_row), c_row, add))
    return str(f)


def line_arguments() -> list[tuple[str, str]]:
    """What `line` takes: as a tile, but for how many columns there are."""
    return [
        *(("n", "i64"), ("k", "i64"), ("a", "ptr"), ("a_column", "i64")),
        *(("b", "ptr"), ("b_row", "i64"), ("c", "ptr"), ("add", "i1")),
    ]


def line(element: Element) -> str:
    """C[j] := (C[j] +) sum_p a[p] * b[p, j], k > 0: one row of tiles beside each other.

    Unless loads and stores can be masked, n is a multiple of the lanes.
    """
    f = Routine("line", line_arguments(), "internal")
    lanes = Lanes(f, element)
    n, k, a, _, b, _, c, add = f.arguments()
    wide = LINE_VECTORS * element.lanes
    whole = n // wide * wide
    for vectors, start, stop in ((LINE_VECTORS, f.number(0), whole), (1, whole, n)):
        with f.loop(stop, vectors * element.lanes, start) as j:
            mask = lanes.first(n - j) if element.isa.masked and vectors == 1 else None
            masks, sums = [mask] * vectors, [lanes.zero] * vectors
            places = (a, lanes.at(b, j))
            sums, _ = _sweep(lanes, 1, masks, sums, places, (k, 1), some=True)
            _flush(lanes, 1, sums, masks, (lanes.at(c, j), n, add))
    return str(f)


def added(f: Routine, sums: list[Value], count: int) -> list[Value]:
    """`count` vectors, each the sum of those whose numbers differ by multiples of `count`."""
    while len(sums) > count:
        half = len(sums) // 2
        pairs = zip(sums[:half], sums[half:], strict=True)
        sums = [f.emit(x.kind, f"fadd {x}, {y.text}") for x, y in pairs]
    return sums


def _sweep(
    lanes: Lanes,
    rows: int,
    masks: Sequence[Value | None],
    sums: list[Value],
    places: tuple[Value, Value],
    turns: tuple[Value, int],
    *,
    some: bool = False,
    copies: tuple[Ahead, Value] | None = None,
) -> tuple[list[Value], tuple[Value, Value]]:
    """Add the products of columns of a and rows of b, from the given places on.

    turns: how many, and how many in each turn. As many sums of the same place in C are kept apart
        as there are.
    some:  there is at least one.
    copies: what is copied meanwhile, where b is a panel whose rows are as long as the tile is wide.

    The addresses of a turn are hidden from the analysis of induction variables, which takes a third
    of the time of compiling and finds nothing better.
    """
    f, e = lanes.routine, lanes.element
    count, at_once = turns
    name, before = f.fresh(), f.block
    head, done = f"{name}.body", f"{name}.done"
    walk = copies[0] if copies else None
    firsts = [f.number(0), *places, *sums, *(walk.place if walk else ())]
    olds = [Value(f, x.kind, f"%{f.fresh()}") for x in firsts]
    if some:
        f.jump(head)
    else:
        f.branch(count > 0, head, done)
    f.label(head)
    phis = len(f.lines)
    turn, *ends = olds[:3]
    news, others = olds[3 : 3 + len(sums)], olds[3 + len(sums) :]
    copied = copies[0].turn(others, copies[1]) if copies else ()
    row_length = f.number(len(masks) * e.lanes) if walk else Value(f, "i64", "%b_row")
    for step in range(at_once):
        at, at_row = (f.emit("ptr", f"freeze {x}") for x in ends)
        ends = [lanes.at(at, Value(f, "i64", "%a_column")), lanes.at(at_row, row_length)]
        b = [lanes.read(lanes.at(at_row, v * e.lanes), mask) for v, mask in enumerate(masks)]
        for r in range(rows):
            at = lanes.at(at, Value(f, "i64", "%a_row")) if r else at
            x = lanes.spread(f.read(at, e.scalar, e.size))
            for v, y in enumerate(b):
                where = ((step * rows + r) * len(b) + v) % len(sums)
                news[where] = lanes.fused(x, y, news[where])
    following = turn + at_once
    f.branch(following < count, head, done)
    lasts = [following, *ends, *news, *copied]
    f.lines[phis:phis] = [
        f"  {old.text} = phi {old.kind} [ {start.text}, %{before} ], [ {new.text}, %{head} ]"
        for old, start, new in zip(olds, firsts, lasts, strict=True)
    ]
    f.label(done)
    if not some:
        lasts = [
            f.emit(x.kind, f"phi {x.kind} [ {x.text}, %{before} ], [ {y.text}, %{head} ]")
            for x, y in zip(firsts, lasts, strict=True)
        ]
    if walk:
        walk.place = tuple(lasts[3 + len(sums) :])
    return lasts[3 : 3 + len(sums)], (lasts[1], lasts[2])


def _flush(
    lanes: Lanes,
    rows: int,
    sums: list[Value],
    masks: Sequence[Value | None],
    target: tuple[Value, Value, Value],
) -> None:
    """Put the sums to C, or add them to it."""
    f, e = lanes.routine, lanes.element
    c, c_row, add = target
    places: list[tuple[Value, Value | None]] = []
    row = c
    for r in range(rows):
        row = lanes.at(row, c_row) if r else c
        places += [(lanes.at(row, v * e.lanes), mask) for v, mask in enumerate(masks)]
    before, name = f.block, f.fresh()
    f.branch(add, f"{name}.add", f"{name}.write")
    f.label(f"{name}.add")
    both = [
        f.emit(s.kind, f"fadd {s}, {lanes.read(place, mask).text}")
        for (place, mask), s in zip(places, sums, strict=True)
    ]
    f.jump(f"{name}.write")
    f.label(f"{name}.write")
    done = [
        f.emit(s.kind, f"phi {s.kind} [ {s.text}, %{before} ], [ {x.text}, %{name}.add ]")
        for s, x in zip(sums, both, strict=True)
    ]
    for (place, mask), s in zip(places, done, strict=True):
        lanes.write(s, place, mask)
