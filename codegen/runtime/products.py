"""Matrix products of our own: which form they take, and how tiles are laid over C.

    C = alpha * A @ B + beta * C,      A: (m, k),  B: (k, n),  C: (m, n)

Every matrix is given by an address and the distances between its rows and between its columns, so
a transpose is an exchange of two numbers, and C^T = B^T @ A^T an exchange of operands. The form is
chosen by a count of the work: tiles with vectors along the rows of C, or along its columns, or
inner products.

The rows of C are cut into tiles of nearly equal height and its columns into panels of nearly equal
width, k into blocks of at most DEPTH, so that a panel of B stays in the nearest caches while the
rows of A pass by (Goto and van de Geijn 2008). While a panel is multiplied, the next is copied.
"""

from __future__ import annotations

from codegen.runtime.ahead import AHEAD, Ahead
from codegen.runtime.assembler import Routine, Value
from codegen.runtime.inner_products import DOT_COPIED, DOT_FEW, SHORT
from codegen.runtime.instruction_sets import (
    FLAT_ROWS,
    FLAT_VECTORS,
    LINE_BYTES,
    Element,
    Lanes,
)
from codegen.runtime.microkernels import (
    copying_name,
    plain_factors,
    product_arguments,
    table_entry,
)
from codegen.runtime.packed import DEPTH, panel_depth, product_symbol

# Rows of A that pass by a panel of B: together with two panels and the places of C that are
# written, whose lines often compete for the same places of a cache, they fit a second cache of
# 1 MiB or more (on Sapphire Rapids, 2 MiB, twice as many are 3 % slower).
BLOCK = 256
# Rows that make a copy of a panel of B worthwhile where it could be read in place.
PACK_ROWS = 96
# Rows of C below which a panel is never copied where B can be read in place. And elements between
# rows of B up to which it is not: unless B is longer than a panel; or for fewer rows of C than
# PACK_ROWS.
FEW_ROWS, NARROW, WIDE = 32, 64, 512
# How many rows or columns of C are few; how long their sums may be for their simple forms, of a
# single one and of more.
THIN, THIN_DEPTH, FEW_DEPTH = 3, 8, 8
# Inner products with a single column are taken up to this length: copies cost more.
SHORT_DEPTH = 64
# Rows that are multiplied by columns whose elements lie beside each other, at most.
DENSE_ROWS = 6
# Sums of a small product with a transposed operand are halved up to this length, so that they round
# no more than NumPy's, which are of vectors along k; and elements of C that it has at most.
HALVED, SMALL = 64, 2048
# Columns of A that lie further apart, in elements, and are read in place compete for places of the
# nearest caches: panels then have half as many rows.
APART = 256
# Panels that make a copy of the rows of A worthwhile where their elements lie apart: so far where
# those of a column lie together, or all.
PACK_PANELS, FAR = 6, 896

# Costs in eighths of a cycle, by which a form is chosen (measured on Sapphire Rapids): of a vector
# multiply-add; of an element of B that is transposed in registers, that is copied alone; of an
# element of C that is written alone; of one that is the total of a vector; of a row of four
# such; of a product more.
SUM, TRANSPOSE, GATHER, SCATTER, TOTAL, ROW, CALL = 4, 2, 12, 8, 12, 32, 600


def products_text(element: Element) -> str:
    """The functions of whole products."""
    return _outer(element) + _product(element)


def _product(element: Element) -> str:
    """The whole product: which form it takes."""
    e = element
    f = Routine(product_symbol(e), product_arguments(e.scalar))
    m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, alpha, beta = f.arguments()
    lanes = Lanes(f, e)
    with f.when((m < 1) | (n < 1)):
        f.leave()
    with f.when(k < 1):
        # nothing is added: t is one zero
        zero = f.room(e.scalar)
        f.write(f.real(e.scalar, 0.0), zero, e.size)
        with f.loop(m) as i, f.loop(n) as j:
            one, place = f.number(1), lanes.at(c, i * c_row + j * c_column)
            f.call("@merge", zero, one, one, one, place, one, one, alpha, beta)
        f.leave()
    # a distance that is never walked is as good as 1
    one_row, one_column, one_deep = (extent.equals(1) for extent in (m, n, k))
    a_row, c_row = (one_row.where(1, distance) for distance in (a_row, c_row))
    b_column, c_column = (one_column.where(1, distance) for distance in (b_column, c_column))
    a_column, b_row = (one_deep.where(1, distance) for distance in (a_column, b_row))
    given = [m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, alpha, beta]
    few = m.least(n)
    with f.when((few <= THIN) & (k <= (few < 2).where(THIN_DEPTH, f.number(FEW_DEPTH)))):
        _thin(lanes, given)
    with f.when((few <= THIN) & (k > THIN_DEPTH)):
        _few(lanes, given)
    along, whole = _cost(e, (m, n, k), (a_row, a_column), (b_row, b_column), c_column)
    across, turned = _cost(e, (n, m, k), (b_column, b_row), (a_column, a_row), c_row)
    sides = ((m, n), (a, b), (a_row, b_column), (a_column, b_row))
    swap = across < along
    _by_inner_products(lanes, along.least(across), given)
    tall, *rows = (swap.where(y, x) for x, y in sides)
    wide, *columns = (swap.where(x, y) for x, y in sides)
    columns[1], columns[2] = columns[2], columns[1]
    target = (c, swap.where(c_column, c_row), swap.where(c_row, c_column))
    whole = swap.where(turned, whole)
    no = Value(f, "i1", "false")
    f.call("@outer", tall, whole, k, *rows, *columns, *target, alpha, beta, no)
    with f.when(whole < wide):
        b_tail = lanes.at(columns[0], whole * columns[2])
        c_tail = lanes.at(target[0], whole * target[2])
        others = (*rows, b_tail, *columns[1:], c_tail, *target[1:])
        f.call(f"@{f.name}", tall, wide - whole, k, *others, alpha, beta)
    return str(f)


def _thin(lanes: Lanes, given: list[Value]) -> None:
    """Return after a simple form of few rows or columns of C, where there is one for it.

    One after the other: vectors along what is contiguous in C and in the matrix; or scalars.
    """
    f, e = lanes.routine, lanes.element
    m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, alpha, beta = given
    row = m <= n
    pairs = [(n, m), (a, b), (a_column, b_row), (b, a), (b_row, a_column), (b_column, a_row)]
    length, x, x_step, matrix, down, along = (row.where(y, z) for y, z in pairs)
    pairs = [(m, n), (a_row, b_column), (c_row, c_column), (c_column, c_row)]
    few, x_next, to_next, to = (row.where(y, z) for y, z in pairs)
    plain, add = plain_factors(f, alpha, beta)
    enough = length >= (1 if e.isa.masked else e.lanes)
    with f.when(along.equals(1) & to.equals(1) & plain & enough):
        whole = length if e.isa.masked else length // e.lanes * e.lanes
        with f.loop(few) as i:
            left, target = lanes.at(x, i * x_next), lanes.at(c, i * to_next)
            f.call("@line", whole, k, left, x_step, matrix, down, target, add)
        if not e.isa.masked:
            rest, zero = length - whole, f.number(0)
            extents = (row.where(m, rest), row.where(rest, n), k)
            skipped = (row.where(zero, whole * a_row), row.where(whole * b_column, zero))
            first, second = (lanes.at(y, z) for y, z in zip((a, b), skipped, strict=True))
            operands = (first, a_row, a_column, second, b_row, b_column)
            with f.when(rest > 0):
                corner = lanes.at(c, whole * to)
                f.call(f"@{f.name}", *extents, *operands, corner, c_row, c_column, alpha, beta)
        f.leave()
        f.label(f.fresh())
    for deep in SHORT:
        with f.when(k.equals(deep) & along.differs(1) & (to.equals(1) | few.equals(1))):
            with f.loop(few) as i:
                left, target = lanes.at(x, i * x_next), lanes.at(c, i * to_next)
                others = (matrix, along, down, left, x_step, target, to)
                f.call(f"@short_{deep}", length, *others, alpha, beta)
            f.leave()


def _few(lanes: Lanes, given: list[Value]) -> None:
    """Return after inner products of few rows and few columns, where there are such for them."""
    f, e = lanes.routine, lanes.element
    m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, alpha, beta = given
    alone = m.equals(1) & n.equals(1) & a_column.equals(1) & b_row.equals(1)
    with f.when(alone & (k <= 2 * e.lanes)):
        f.call("@exact", k, a, b, c, alpha, beta)
        f.leave()
    sides = [
        (m, n, a, a_row, a_column, b, b_row, b_column, c_row, c_column),
        (n, m, b, b_column, b_row, a, a_column, a_row, c_column, c_row),
    ]
    for rows, columns, x, x_row, x_column, y, y_row, y_column, to_row, to_column in sides:
        dense = x_column.equals(1) & y_column.equals(1) & (rows <= DENSE_ROWS)
        for number in SHORT:
            with f.when(dense & columns.equals(number) & y_row.equals(number)):
                target = (c, to_row, to_column)
                f.call(f"@dense_columns_{number}", rows, k, x, x_row, y, *target, alpha, beta)
                f.leave()


def _by_inner_products(lanes: Lanes, best: Value, given: list[Value]) -> None:
    """Return after inner products, where they cost less than the best of the other forms.

    The rows of the taller operand pass by the few of the other, which may be copied. Sums of many
    lanes round less than one sum, which is worth a third of the time.
    """
    f, e = lanes.routine, lanes.element
    m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, alpha, beta = given
    turned = m < n
    pairs = [(m, n), (a, b), (a_row, b_column), (a_column, b_row), (c_row, c_column)]
    tall, long, long_row, long_step, to_row = (turned.where(y, x) for x, y in pairs)
    few, short, short_row, short_step, to_column = (turned.where(x, y) for x, y in pairs)
    copied = short_step.differs(1)
    work = _inner_cost(e, (tall, few, k), copied)
    most = copied.where(DOT_COPIED, f.number(DOT_FEW))
    cheap = (work * 3 < best * 4) | ((few < 2) & (k <= SHORT_DEPTH))
    with f.when(long_step.equals(1) & (few <= most) & cheap):
        left, right = (long, long_row), (short, short_step, short_row)
        f.call("@dots", tall, few, k, *left, *right, c, to_row, to_column, alpha, beta)
        f.leave()


def _inner_cost(element: Element, extents: tuple[Value, Value, Value], copied: Value) -> Value:
    """About eighths of cycles of a product by inner products, and of a copy of its columns."""
    m, n, k = extents
    lanes = element.lanes
    sums = m * n * ((k + (lanes - 1)) // lanes * SUM + TOTAL)
    groups = (n + 3) // 4
    return sums + copied.where(k * groups * lanes, m.routine.number(0)) + m * groups * ROW


def _cost(
    element: Element,
    extents: tuple[Value, Value, Value],
    a: tuple[Value, Value],
    b: tuple[Value, Value],
    c_column: Value,
) -> tuple[Value, Value]:
    """A product by tiles whose vectors lie along the rows of C.

    Returns: about eighths of cycles; and how many columns are multiplied together: all, or whole
    vectors, where what is left costs less as a product of its own than as one more vector of which
    a few lanes count.
    """
    m, n, k = extents
    (a_row, a_column), (b_row, b_column) = a, b
    zero, lanes = m.routine.number(0), element.lanes
    direct = c_column.equals(1)
    vectors = n // lanes
    tail = n - vectors * lanes
    one = m * k * SUM
    turned = tail * ((m + (lanes - 1)) // lanes) * k * SUM + m * tail * SCATTER
    inner = _inner_cost(element, (m, tail, k), b_row.differs(1))
    alone = a_column.equals(1).where(inner, a_row.equals(1).where(turned, one)) + CALL
    apart = (vectors > 0) & direct & (alone < one)
    last = (tail > 0).where(apart.where(alone, one), zero)
    copied = b_row.equals(1).where(n * k * TRANSPOSE, n * k * GATHER)
    copied = b_column.equals(1).where(zero, copied)
    cost = vectors * one + last + copied + direct.where(zero, m * n * SCATTER)
    return cost, apart.where(n - tail, n)


def _outer(element: Element) -> str:
    """The product by tiles: blocks of k, blocks of rows, panels of columns, tiles of rows.

    packed: b is the copy that `pack` makes.
    """
    e = element
    f = Routine("outer", [*product_arguments(e.scalar), ("packed", "i1")], "internal")
    m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, *rest = f.arguments()
    alpha, beta, packed = rest
    lanes = Lanes(f, e)
    most_vectors = e.most_vectors
    wide = most_vectors * e.lanes
    panels = f.room(e.scalar, 2 * DEPTH * wide, e.isa.size)
    spare = f.room(e.scalar, e.most_rows(1) * wide, e.isa.size)
    slot, ahead, ready = f.room("ptr"), f.room("i64", Ahead.FIELDS), f.room("i64")
    vectors = (n + (e.lanes - 1)) // e.lanes
    flat = (m <= FLAT_ROWS) & packed.equals("false")
    widest = flat.where(FLAT_VECTORS, f.number(most_vectors))
    # twice as many where that is no more of A, and B is transposed for each of them
    twice = b_column.differs(1) & (k <= DEPTH // 2)
    most = twice.where(2 * BLOCK, f.number(BLOCK))
    room = most + e.lanes  # columns of the copy of A do not all begin at the same place
    many = vectors > (PACK_PANELS - 1) * most_vectors
    strided = a_column.differs(1) & (a_row.differs(1) | (a_column > FAR))
    packs = strided & many & (m >= PACK_ROWS)
    with f.when(packs):
        f.call("@take_buffer", slot, f.number(DEPTH * (BLOCK + e.lanes) * e.size))
    buffer = f.read(slot, "ptr", 8)
    plain, _ = plain_factors(f, alpha, beta)
    direct = c_column.equals(1) & plain
    f.write(f.number(0), ready, 8)
    with f.when(packed):  # nothing is copied
        Ahead(lanes, ahead).set([spare, spare, *[f.number(0)] * (Ahead.FIELDS - 2)])
    halved = b_row.equals(1) & b_column.differs(1) & (k >= e.lanes) & (k <= HALVED)
    depth = (vectors > 1).where(panel_depth(f, k), f.number(DEPTH // 2))
    depth = (halved & (m * n <= SMALL)).where((k + 1) // 2, depth)
    apart = a_row.equals(1) & (a_column > APART) & packs.equals("false")
    depth = apart.where(depth.least(DEPTH // 2), depth)
    depth = packed.where(panel_depth(f, k), depth)
    with f.parts(k, depth) as (p, deep):
        kept = f.emit(e.scalar, f"select {p.equals(0)}, {beta}, {e.scalar} 1.0")
        add = f.emit("i1", f"fcmp oeq {kept}, 1.0")
        with f.parts(m, most) as (top, height):
            block = lanes.at(a, top * a_row + p * a_column)
            with f.when(packs):
                f.call("@pack", block, a_column, a_row, deep, height, buffer, room)
            block = packs.where(buffer, block)
            block_row, block_column = packs.where(1, a_row), packs.where(room, a_column)
            with f.parts(vectors, widest) as (start, v):
                j = start * e.lanes
                across = (n - j).least(v * e.lanes)
                last = across - (v - 1) * e.lanes
                width = v * e.lanes
                near = (b_row <= NARROW) & ((height < PACK_ROWS) | (k <= DEPTH))
                in_place = near | (height < FEW_ROWS)
                in_place = in_place | ((height < PACK_ROWS) & (b_row <= WIDE))
                in_place = in_place & b_column.equals(1)
                straight = direct
                if not e.isa.masked:
                    in_place, straight = (x & last.equals(e.lanes) for x in (in_place, direct))
                in_place = in_place | packed
                place = packed.where(p * vectors * e.lanes + j * deep, p * b_row + j * b_column)
                source = lanes.at(b, place)
                # the panel that is copied meanwhile lies beside this one
                state = f.read(ready, "i64", 8)
                which = (state > 0).where(state - 1, f.number(0))
                room_of_one = f.number(DEPTH * wide)
                panel, other = lanes.at(panels, which), lanes.at(panels, room_of_one - which)
                with f.when(in_place.equals("false") & state.equals(0)):
                    f.call("@pack", source, b_row, b_column, deep, across, panel, width)
                f.write(f.number(0), ready, 8)
                goes_on = in_place.equals("false") & straight & (height >= FEW_ROWS)
                with f.when(goes_on):
                    now = (p, deep, top + height, start + v)
                    memory, matrix = (ahead, other, spare), (b, b_row, b_column)
                    found = _next_panel(lanes, memory, (m, vectors, k, n), matrix, now, depth)
                    f.write(found.where(room_of_one - which + 1, f.number(0)), ready, 8)
                corner = lanes.at(c, top * c_row + j * c_column)
                b_now = in_place.where(source, panel)
                distance = (in_place & packed.equals("false")).where(b_row, width)
                given = (block, block_row, block_column, b_now, distance, deep)
                with f.when(straight):
                    copies = (goes_on | packed, ahead)
                    _tiles(lanes, v, height, given, (corner, c_row, last, add), copies)
                with f.when(straight.equals("false")):
                    results = (corner, c_row, c_column, alpha, kept)
                    _spare_tiles(lanes, v, (height, across), given, spare, results)
                with f.when(f.read(ready, "i64", 8) > 0):
                    f.call("@finish_ahead", ahead)
    with f.when(packs):
        f.call("@give_buffer", buffer)
    return str(f)


def _next_panel(
    lanes: Lanes,
    memory: tuple[Value, Value, Value],
    extents: tuple[Value, ...],
    matrix: tuple[Value, ...],
    now: tuple[Value, ...],
    depth: Value,
) -> Value:
    """Begin a walk over the panel of B that comes after this one; whether it is copied.

    Of one that lies transposed lines are fetched, and nothing is copied.

    memory:  of the walk, of the panel, of a vector.
    extents: m, vectors, k, n.
    now:     the first row of B in this panel and how many there are, the first row of C and the
        first vector of columns after it.
    depth:   rows of B that panels have, at most.
    """
    f, e = lanes.routine, lanes.element
    ahead, target, nowhere = memory
    m, vectors, k, n = extents
    b, b_row, b_column = matrix
    p, deep, below, after = now
    beside = after < vectors
    p = (beside | (below < m)).where(p, p + deep)
    start = beside.where(after, f.number(0))
    v = f.part(vectors - start, e.most_vectors)
    deep = (beside | (below < m)).where(deep, f.part(k - p, depth))
    j = start * e.lanes
    across = (n - j).least(v * e.lanes)
    more = p < k
    copied = more & b_column.equals(1) & across.equals(v * e.lanes)
    lines = deep // (LINE_BYTES // e.size)
    fetched = more & b_column.differs(1) & b_row.equals(1) & (lines > 0)
    inner = copied.where(e.isa.size, f.number(LINE_BYTES))
    length = copied.where(v, lines)
    rows = copied.where(deep, fetched.where(across, f.number(0)))
    row = copied.where(b_row, b_column) * e.size
    Ahead(lanes, ahead).set(
        [
            *(lanes.at(b, p * b_row + j * b_column), copied.where(target, nowhere)),
            *(length, length * rows, inner, row - inner * (length - 1)),
            copied.where(e.isa.size, f.number(0)),
            copied.where(row * (AHEAD // e.most_vectors), inner * AHEAD),
            length,
        ]
    )
    return copied


def _tiles(
    lanes: Lanes,
    v: Value,
    height: Value,
    given: tuple[Value, ...],
    results: tuple[Value, ...],
    copies: tuple[Value, Value],
) -> None:
    """All tiles of a panel: as many whole ones as leave two nearly equal ones.

    copies: whether whole ones, if they can, copy what comes next; and what that is.
    """
    f, e = lanes.routine, lanes.element
    block, block_row, *others = given
    corner, c_row, last, add = results
    tallest = table_entry(f, "heights", "i64", v - 1)
    more = height - tallest - 1
    more = (more > 0).where(more, f.number(0))
    whole = more * table_entry(f, "inverses", "i64", v - 1) // (1 << 32)
    rest = height - whole * tallest
    first = (rest <= tallest).where(rest, (rest + 1) // 2)
    second = rest - first
    same = first.equals(second)
    able, ahead = copies
    copying = able & (v >= e.copying[0]) & (v <= e.copying[-1])
    with f.when(copying & (whole > 0)):
        for width in e.copying:
            with f.when(v.equals(width)):
                f.call(f"@{copying_name(width)}", *given, corner, c_row, last, whole, add, ahead)
    runs = [
        (copying.where(0, whole), tallest, f.number(0)),
        (same.where(2, f.number(1)), first, whole * tallest),
        (((second > 0) & first.differs(second)).where(1, f.number(0)), second, height - second),
    ]
    for count, high, i in runs:
        with f.when(count > 0):
            code = table_entry(f, "tiles", "ptr", (v - 1) * e.most_rows(1) + (high - 1))
            left, target = lanes.at(block, i * block_row), lanes.at(corner, i * c_row)
            f.call(code.text, left, block_row, *others, target, c_row, last, count, add)


def _spare_tiles(
    lanes: Lanes,
    v: Value,
    shape: tuple[Value, Value],
    given: tuple[Value, ...],
    spare: Value,
    results: tuple[Value, ...],
) -> None:
    """All tiles of a panel, where they can't be written to C by whole vectors."""
    f, e = lanes.routine, lanes.element
    block, block_row, *others = given
    corner, c_row, c_column, alpha, kept = results
    height, across = shape
    width = v * e.lanes
    last = across - (width - e.lanes)
    with f.parts(height, table_entry(f, "heights", "i64", v - 1)) as (i, rows):
        code = table_entry(f, "tiles", "ptr", (v - 1) * e.most_rows(1) + (rows - 1))
        left, target = lanes.at(block, i * block_row), lanes.at(corner, i * c_row)
        given_spare = (spare, width, last, f.number(1), Value(f, "i1", "false"))
        f.call(code.text, left, block_row, *others, *given_spare)
        f.call("@merge", spare, width, rows, across, target, c_row, c_column, alpha, kept)
