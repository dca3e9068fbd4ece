"""The inner loops of matrix products: tiles of C that stay in registers.

    T[r, j] = sum_p a[r, p] * b[p, j],      C[r, j] := T[r, j]  or  C[r, j] := C[r, j] + T[r, j]

A tile has `rows` rows and `vectors` vectors of columns. For each p it loads the vectors of b once,
and every element of a once for all lanes, so that `rows * vectors` multiply-adds need only
`rows + vectors` loads. a is read through two strides, which makes its transpose free; the rows of
b are contiguous. The form is that of Goto and van de Geijn, Anatomy of high-performance matrix
multiplication (2008), with the tile sizes of each instruction set computed from its registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.runtime.ahead import TURN, Ahead, Fetches, finish_ahead
from codegen.runtime.assembler import Routine, Value
from codegen.runtime.instruction_sets import FLAT_VECTORS, LINE_BYTES, Element, Lanes, added

# Turns of a tile that copies after which lines of the next row of C are fetched.
FETCHED = 8
# Columns of A by which such a tile fetches one before it is read, so that A may come from the third
# cache: where columns lie apart, no unit of the processor's foresees their lines.
FORESEEN = 16
# Vectors that one turn of a product of one row and a matrix writes.
LINE_VECTORS = 4


def product_arguments(scalar: str) -> list[tuple[str, str]]:
    """What a product takes: extents, matrices with the distances of rows and columns, factors."""
    extents = [("m", "i64"), ("n", "i64"), ("k", "i64")]
    matrices = [
        (f"{name}{part}", "i64" if part else "ptr")
        for name in "abc"
        for part in ("", "_row", "_column")
    ]
    return [*extents, *matrices, ("alpha", scalar), ("beta", scalar)]


def table_entry(f: Routine, table: str, kind: str, place: Value) -> Value:
    """An entry of a constant table."""
    return f.read(f.step(Value(f, "ptr", f"@{table}"), kind, place), kind, 8)


def plain_factors(f: Routine, alpha: Value, beta: Value) -> tuple[Value, Value]:
    """Whether alpha is 1 and beta 0 or 1, as tiles can do by themselves; whether beta is 1."""
    factors = ((alpha, 1.0), (beta, 0.0), (beta, 1.0))
    unscaled, fresh, more = (f.emit("i1", f"fcmp oeq {x}, {y}") for x, y in factors)
    return unscaled & (fresh | more), more


def tiles_text(element: Element) -> str:
    """The functions of all tiles; and tables.

    Of the functions; of the rows that each width of a tile allows; of 2^32 over those, rounded up.
    """
    most, tallest = FLAT_VECTORS, element.most_rows(1)
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
            *(copying_tile(element, v) for v in element.copying),
            finish_ahead(element),
            line(element),
        ]
    )


def tile_name(rows: int, vectors: int) -> str:
    """The function of a tile."""
    return f"tile_{rows}_{vectors}"


def copying_name(vectors: int) -> str:
    """The function of a tile that copies what comes next."""
    return f"copying_tile_{vectors}"


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
    tallest = vectors in element.copying and rows == element.most_rows(vectors)
    turn = max(at_once, TURN) if tallest else at_once  # of one column only, 6 % slower
    with f.loop(count) as t:
        sums = [lanes.zero] * (at_once * rows * vectors)
        places, rest = (lanes.at(a, t * rows * a_row), b), k
        if turn > 1:
            whole = (k // turn) * turn
            sums, places = sweep(lanes, rows, masks, sums, places, (whole, turn))
            sums = added(f, sums, rows * vectors)
            rest = k - whole
        sums, _ = sweep(lanes, rows, masks, sums, places, (rest, 1), some=turn == 1)
        flush(lanes, rows, sums, masks, (lanes.at(c, t * rows * c_row), c_row, add))
    return str(f)


def copying_tile(element: Element, vectors: int) -> str:
    """The function of the tallest tiles of a width below each other, where B is read from a panel.

    In every turn a vector is copied of what comes next, the next panel: see `Ahead`.
    """
    rows = element.most_rows(vectors)
    f = Routine(copying_name(vectors), [*tile_arguments(), ("ahead", "ptr")], "internal")
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
        copies = (walk, nowhere, lanes.at(c, t * rows * c_row))
        sums, places = sweep(lanes, rows, masks, sums, places, (whole, TURN), copies=copies)
        walk.end()
        sums, _ = sweep(lanes, rows, masks, sums, places, (k - whole, 1))
        flush(lanes, rows, sums, masks, (lanes.at(c, t * rows * c_row), c_row, add))
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
            sums, _ = sweep(lanes, 1, masks, sums, places, (k, 1), some=True)
            flush(lanes, 1, sums, masks, (lanes.at(c, j), n, add))
    return str(f)


def sweep(
    lanes: Lanes,
    rows: int,
    masks: Sequence[Value | None],
    sums: list[Value],
    places: tuple[Value, Value],
    turns: tuple[Value, int],
    *,
    some: bool = False,
    copies: tuple[Ahead, Value, Value] | None = None,
    fetches: Fetches | None = None,
) -> tuple[list[Value], tuple[Value, Value]]:
    """Add the products of columns of a and rows of b, from the given places on.

    turns: how many, and how many in each turn. As many sums of the same place in C are kept apart
        as there are.
    some:  there is at least one.
    copies: what is copied meanwhile, a vector of memory for nothing, and the tile's place in C;
        given where b is a panel whose rows are as long as the tile is wide.
    fetches: what is fetched meanwhile.

    The addresses of a turn are hidden from the analysis of induction variables, which takes a third
    of the time of compiling and finds nothing better.
    """
    f, e = lanes.routine, lanes.element
    count, at_once = turns
    name, before = f.fresh(), f.block
    head, done = f"{name}.body", f"{name}.done"
    walk = copies[0] if copies else fetches
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
    copied: tuple[Value, ...] = ()
    if copies:
        copied = copies[0].turn(others, copies[1])
        _fetch_of_c(lanes, copies[2], turn)
    elif fetches:
        copied = fetches.turn(others)
    row_length = f.number(len(masks) * e.lanes) if copies else Value(f, "i64", "%b_row")
    for step in range(at_once):
        at, at_row = (f.emit("ptr", f"freeze {x}") for x in ends)
        ends = [lanes.at(at, Value(f, "i64", "%a_column")), lanes.at(at_row, row_length)]
        if copies:
            far = f.step(at, e.scalar, Value(f, "i64", "%a_column") * FORESEEN)
            f.call("@llvm.prefetch.p0", far, *(Value(f, "i32", str(x)) for x in (0, 3, 1)))
        b = [lanes.read(lanes.at(at_row, v * e.lanes), mask) for v, mask in enumerate(masks)]
        for r in range(rows):
            at = lanes.at(at, Value(f, "i64", "%a_row")) if r else at
            x = lanes.spread(f.read(at, e.scalar, e.size))
            own = [((step * rows + r) * len(b) + v) % len(sums) for v in range(len(b))]
            for where, y in zip(own, b, strict=True):
                news[where] = lanes.fused(x, y, news[where])
            if copies:
                at, row = lanes.after(at, [news[where] for where in own])
                for where, value in zip(own, row, strict=True):
                    news[where] = value
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


def _fetch_of_c(lanes: Lanes, c: Value, turn: Value) -> None:
    """Fetch a line of C for writing: one in a turn, so that sums do not wait for all at the end.

    A row is as long as four lines; so many turns later comes the next.
    """
    f = lanes.routine
    lines = 4
    row = lanes.at(c, turn // (TURN * FETCHED) * Value(f, "i64", "%c_row"))
    place = (turn // TURN & f.number(lines - 1)) * LINE_BYTES
    line = f.step(row, "i8", place)
    f.call("@llvm.prefetch.p0", line, *(Value(f, "i32", str(x)) for x in (1, 3, 1)))


def flush(
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
