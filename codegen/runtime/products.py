"""Matrix products of our own: how the tiles of `microkernels` are laid over C.

    C = alpha * A @ B + beta * C,      A: (m, k),  B: (k, n),  C: (m, n)

Every matrix is given by an address and the distances between its rows and between its columns, so
a transpose is an exchange of two numbers. The rows of C are cut into tiles of nearly equal height
and its columns into panels of nearly equal width, k into blocks of at most DEPTH, so that a panel
of B stays in the nearest caches while the rows of A pass by. B is read in place where its rows are
contiguous; else the panel is copied to the stack, transposed in registers.

The functions are LLVM text, compiled once for a processor and kept as machine code beside the
programs; programs call them by name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm

from codegen.runtime.assembler import Routine, Value
from codegen.runtime.microkernels import (
    DOT_ROWS,
    Element,
    InstructionSet,
    Lanes,
    available,
    dot,
    dot_name,
    shuffled,
    tile,
    tile_name,
)

# Rows of B that a panel holds: 256 rows of four vectors are 64 KiB, which the second cache holds
# beside the rows of A.
DEPTH = 256
# Rows of A that pass by one panel: 1024 rows of 256 float32 are half of a second cache of 2 MiB.
HEIGHT = 1024

# Elements of k whose inner products are summed before the next are looked at.
DOT_DEPTH = 1024
# Columns of B that are copied for inner products, at most.
DOT_PACKED = 8

# Costs in eighths of a cycle, by which a form is chosen (measured on Sapphire Rapids): of a vector
# multiply-add; of an element of B that is transposed in registers, that is copied alone; of an
# element of C that is written alone; of one that is the total of a vector.
SUM, TRANSPOSE, GATHER, SCATTER, TOTAL = 4, 3, 12, 8, 16

# Elements that one turn of a loop over elements writes.
AT_ONCE = 4

MATRICES = [
    *(("a", "ptr"), ("a_row", "i64"), ("a_column", "i64")),
    *(("b", "ptr"), ("b_row", "i64"), ("b_column", "i64")),
    *(("c", "ptr"), ("c_row", "i64"), ("c_column", "i64")),
]


def product_arguments(scalar: str) -> list[tuple[str, str]]:
    """What the function of a product takes: extents, matrices with their distances, factors."""
    factors = [("alpha", scalar), ("beta", scalar)]
    return [("m", "i64"), ("n", "i64"), ("k", "i64"), *MATRICES, *factors]


def library_text(element: Element) -> str:
    """The module of all functions of one element type."""
    most = element.most_vectors
    tallest = element.most_rows(1)
    known = set(element.shapes())
    table = [
        f"ptr @{tile_name(r, v)}" if (r, v) in known else "ptr null"
        for v in range(1, most + 1)
        for r in range(1, tallest + 1)
    ]
    heights = [f"i64 {element.most_rows(v)}" for v in range(1, most + 1)]
    blocks = [
        f"ptr @{dot_name(r, c)}" for r in (1, DOT_ROWS) for c in range(1, element.dot_columns + 1)
    ]
    return "\n".join(
        [
            element.declarations(),
            f"@tiles = internal constant [{len(table)} x ptr] [{', '.join(table)}]",
            f"@heights = internal constant [{most} x i64] [{', '.join(heights)}]",
            f"@dot_blocks = internal constant [{len(blocks)} x ptr] [{', '.join(blocks)}]",
            *(tile(element, r, v) for r, v in element.shapes()),
            _transpose_block(element),
            _pack(element),
            _merge(element),
            *(dot(element, r, c) for r in (1, DOT_ROWS) for c in range(1, element.dot_columns + 1)),
            _dots(element),
            _product(element),
        ]
    )


def _transpose_block(element: Element) -> str:
    """target[p, j] = source[j, p] for a square of vectors; of the rows only `rows` are read.

    The lanes of pairs of rows are exchanged, first neighbours, then pairs, and so on.
    """
    takes = [("source", "ptr"), ("source_row", "i64"), ("rows", "i64"), ("columns", "i64")]
    f = Routine("transpose_block", [*takes, ("target", "ptr"), ("target_row", "i64")], "internal")
    source, source_row, rows, columns, target, target_row = f.arguments()
    lanes = Lanes(f, element)
    mask = lanes.first(columns) if element.isa.masked else None
    n = element.lanes
    found = []
    for r in range(n):
        # a row that is not there is read as the last one: its lanes are never used
        row = (rows - 1).least(r) if r else f.number(0)
        found.append(lanes.read(lanes.at(source, row * source_row), mask))
    bit = 1
    while bit < n:
        for r in range(n):
            if r & bit:
                continue
            low = [k if not k & bit else n + (k ^ bit) for k in range(n)]
            high = [k | bit if not k & bit else n + k for k in range(n)]
            first, second = found[r], found[r | bit]
            found[r] = shuffled(f, first, second, low)
            found[r | bit] = shuffled(f, first, second, high)
        bit *= 2
    for r in range(n):
        lanes.write(found[r], target)
        target = lanes.at(target, target_row)
    return str(f)


def _pack(element: Element) -> str:
    """panel[p, j] = b[p, j] for j < columns, rows of the panel `width` apart; b strided."""
    takes = [("b", "ptr"), ("b_row", "i64"), ("b_column", "i64"), ("k", "i64"), ("columns", "i64")]
    f = Routine("pack", [*takes, ("panel", "ptr"), ("width", "i64")], "internal")
    b, b_row, b_column, k, columns, panel, width = f.arguments()
    lanes = Lanes(f, element)
    n = element.lanes
    with f.when(b_row.equals(1)):
        # whole squares by registers, what is left of k one by one unless loads can be masked
        whole = k if element.isa.masked else (k // n) * n
        with f.loop(columns, n) as j, f.loop(whole, n) as p:
            from_ = lanes.at(lanes.at(b, j * b_column), p)
            to = lanes.at(lanes.at(panel, p * width), j)
            f.call("@transpose_block", from_, b_column, columns - j, k - p, to, width)
        if not element.isa.masked:
            with f.loop(columns) as j, f.loop(k, 1, whole) as p:
                _move(lanes, lanes.at(b, j * b_column + p), lanes.at(panel, p * width + j))
        f.leave()
        f.label(f.fresh())
    return _packed_otherwise(f, lanes)


def _packed_otherwise(f: Routine, lanes: Lanes) -> str:
    """The rest of `pack`: contiguous rows by vectors, anything else element by element."""
    b, b_row, b_column, k, columns, panel, width = f.arguments()
    n = lanes.element.lanes
    whole = (columns // n) * n
    with f.when(b_column.equals(1)):
        with f.loop(k) as p:
            row, to = lanes.at(b, p * b_row), lanes.at(panel, p * width)
            with f.loop(whole, n) as j:
                lanes.write(lanes.read(lanes.at(row, j)), lanes.at(to, j))
            with f.loop(columns, 1, whole) as j:
                _move(lanes, lanes.at(row, j), lanes.at(to, j))
        f.leave()
        f.label(f.fresh())
    with f.loop(k) as p, f.loop(columns) as j:
        place = lanes.at(b, p * b_row + j * b_column)
        _move(lanes, place, lanes.at(panel, p * width + j))
    return str(f)


def _move(lanes: Lanes, source: Value, target: Value) -> None:
    e, f = lanes.element, lanes.routine
    f.write(f.read(source, e.scalar, e.size), target, e.size)


def _merge(element: Element) -> str:
    """c[i, j] := alpha * t[i, j] + beta * c[i, j], rows of t `width` apart; c strided."""
    e = element
    takes = [("t", "ptr"), ("width", "i64"), ("rows", "i64"), ("columns", "i64"), ("c", "ptr")]
    takes += [("c_row", "i64"), ("c_column", "i64"), ("alpha", e.scalar), ("beta", e.scalar)]
    f = Routine("merge", takes, "internal")
    t, width, rows, columns, c, c_row, c_column, alpha, beta = f.arguments()
    lanes = Lanes(f, e)

    def element_of(source: Value, place: Value, add: bool) -> None:
        x = f.emit(e.scalar, f"fmul {f.read(source, e.scalar, e.size)}, {alpha.text}")
        if add:
            old = f.emit(e.scalar, f"fmul {f.read(place, e.scalar, e.size)}, {beta.text}")
            x = f.emit(e.scalar, f"fadd {x}, {old.text}")
        f.write(x, place, e.size)

    whole = (columns // AT_ONCE) * AT_ONCE
    for add, relation in ((False, "oeq"), (True, "une")):
        with f.when(f.emit("i1", f"fcmp {relation} {beta}, 0.0")), f.loop(rows) as i:
            source, target = lanes.at(t, i * width), lanes.at(c, i * c_row)
            with f.loop(whole, AT_ONCE) as j:
                place = lanes.at(target, j * c_column)
                for step in range(AT_ONCE):
                    element_of(lanes.at(source, j + step), place, add)
                    place = lanes.at(place, c_column)
            with f.loop(columns, 1, whole) as j:
                element_of(lanes.at(source, j), lanes.at(target, j * c_column), add)
    return str(f)


def product_symbol(element: Element) -> str:
    """The name under which programs call the product."""
    return f"symgrad_product_{element.short}_{element.isa.name}"


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
        zero = f.emit("ptr", f"alloca {e.scalar}, align {e.size}")
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
    along = _cost(e, (m, n, k), (b_row, b_column), c_column)
    across = _cost(e, (n, m, k), (a_column, a_row), c_row)
    left = (m, a, a_row, a_column)
    right = (n, b, b_column, b_row)
    swap = across < along
    found = along.least(across)
    inner = m * n * ((k + (e.lanes - 1)) // e.lanes * SUM + TOTAL)
    inner = inner + b_row.equals(1).where(f.number(0), n * k * GATHER)
    fits = (b_row.equals(1) | (n <= DOT_PACKED)) & a_column.equals(1)
    with f.when(fits & (inner < found)):
        f.call("@dots", m, n, k, a, a_row, b, b_row, b_column, c, c_row, c_column, alpha, beta)
        f.leave()
    tall, *rows = (swap.where(y, x) for x, y in zip(left, right, strict=True))
    wide, *columns = (swap.where(x, y) for x, y in zip(left, right, strict=True))
    columns[1], columns[2] = columns[2], columns[1]
    target = (c, swap.where(c_column, c_row), swap.where(c_row, c_column))
    _outer(lanes, (tall, wide, k), rows, columns, target, (alpha, beta))
    return str(f)


def _cost(
    element: Element, extents: tuple[Value, Value, Value], b: tuple[Value, Value], c_column: Value
) -> Value:
    """About eighths of cycles of a product by tiles whose vectors lie along the columns of C."""
    m, n, k = extents
    b_row, b_column = b
    zero = m.routine.number(0)
    lanes = element.lanes
    sums = m * ((n + (lanes - 1)) // lanes) * k * SUM
    copied = b_row.equals(1).where(n * k * TRANSPOSE, n * k * GATHER)
    scattered = m * n * SCATTER
    return sums + b_column.equals(1).where(zero, copied) + c_column.equals(1).where(zero, scattered)


def _dots(element: Element) -> str:
    """The product by inner products: A by rows; B by columns, or copied so.

    The rows of A that are at work stay in the nearest cache while the columns of B pass.
    """
    e = element
    takes = [*product_arguments(e.scalar)]
    takes.pop(5)  # the columns of A lie side by side
    f = Routine("dots", takes, "internal")
    m, n, k, a, a_row, b, b_row, b_column, c, c_row, c_column, alpha, beta = f.arguments()
    lanes = Lanes(f, e)
    room = DOT_DEPTH * max(DOT_PACKED, e.lanes)  # a square of vectors is written as a whole
    panel = f.emit("ptr", f"alloca [{room} x {e.scalar}], align {e.isa.size}")
    in_place = b_row.equals(1)
    most = f.number(e.dot_columns)
    with f.loop(k, DOT_DEPTH) as p:
        deep = (k - p).least(DOT_DEPTH)
        kept = f.emit(e.scalar, f"select {p.equals(0)}, {beta}, {e.scalar} 1.0")
        width = (deep + (e.lanes - 1)) // e.lanes * e.lanes
        from_ = lanes.at(b, p * b_row)
        with f.when(in_place.equals("false")):
            f.call("@pack", from_, b_column, b_row, n, deep, panel, width)
        source, distance = in_place.where(from_, panel), in_place.where(b_column, width)
        tall = (m // DOT_ROWS) * DOT_ROWS
        for high, start, stop in ((DOT_ROWS, f.number(0), tall), (1, tall, m)):
            with f.loop(stop, high, start) as i:
                left = lanes.at(a, i * a_row + p)
                with f.loop(n, most) as j:
                    across = (n - j).least(most)
                    place = across + (0 if high == 1 else e.dot_columns) - 1
                    code = _entry(f, "dot_blocks", "ptr", place)
                    target = lanes.at(c, i * c_row + j * c_column)
                    right = lanes.at(source, j * distance)
                    given = (left, a_row, right, distance, deep, target, c_row, c_column)
                    f.call(code.text, *given, alpha, kept)
    return str(f)


def _outer(
    lanes: Lanes,
    extents: tuple[Value, Value, Value],
    left: Sequence[Value],
    right: Sequence[Value],
    target: tuple[Value, Value, Value],
    factors: tuple[Value, Value],
) -> None:
    """The product by tiles: blocks of k, blocks of rows, panels of columns, tiles of rows."""
    f, e = lanes.routine, lanes.element
    m, n, k = extents
    a, a_row, a_column = left
    b, b_row, b_column = right
    c, c_row, c_column = target
    alpha, beta = factors
    wide = e.most_vectors * e.lanes
    panel = f.emit("ptr", f"alloca [{DEPTH * wide} x {e.scalar}], align {e.isa.size}")
    spare = f.emit("ptr", f"alloca [{e.most_rows(1) * wide * 2} x {e.scalar}], align {e.isa.size}")
    vectors = (n + (e.lanes - 1)) // e.lanes
    panels, columns = _parts(vectors, f.number(e.most_vectors))
    blocks = (k + (DEPTH - 1)) // DEPTH
    depth = (k + (blocks - 1)) // blocks
    with f.loop(k, depth) as p:
        deep = (k - p).least(depth)
        kept = f.emit(e.scalar, f"select {p.equals(0)}, {beta}, {e.scalar} 1.0")
        with f.loop(m, HEIGHT) as top:
            height = (m - top).least(HEIGHT)
            with f.loop(panels) as g:
                v, start = _part(columns, g)
                j = start * e.lanes
                across = (n - j).least(v * e.lanes)
                last = across - (v - 1) * e.lanes
                width = v * e.lanes
                in_place = b_column.equals(1)
                if not e.isa.masked:
                    in_place = in_place & last.equals(e.lanes)
                from_ = lanes.at(b, p * b_row + j * b_column)
                with f.when(in_place.equals("false")):
                    f.call("@pack", from_, b_row, b_column, deep, across, panel, width)
                source = in_place.where(from_, panel)
                source_row = in_place.where(b_row, width)
                direct = c_column.equals(1)
                if not e.isa.masked:
                    direct = direct & last.equals(e.lanes)
                above = _entry(f, "heights", "i64", v - 1)
                tiles, heights = _parts(height, above)
                with f.loop(tiles) as t:
                    rows, i = _part(heights, t)
                    i = i + top
                    code = _entry(f, "tiles", "ptr", (v - 1) * e.most_rows(1) + (rows - 1))
                    first = lanes.at(a, i * a_row + p * a_column)
                    place = lanes.at(c, i * c_row + j * c_column)
                    given = (first, a_row, a_column, source, source_row, deep)
                    with f.when(direct):
                        f.call(code.text, *given, place, c_row, last, alpha, kept)
                    with f.when(direct.equals("false")):
                        one, zero = f.real(e.scalar, 1.0), f.real(e.scalar, 0.0)
                        f.call(code.text, *given, spare, width, f.number(e.lanes), one, zero)
                        shape = (rows, across, place, c_row, c_column, alpha, kept)
                        f.call("@merge", spare, width, *shape)


def _parts(count: Value, most: Value) -> tuple[Value, tuple[Value, Value]]:
    """`count` in the fewest parts of at most `most`, nearly equal: how many; size and excess."""
    parts = (count + (most - 1)) // most
    size = count // parts
    return parts, (size, count - size * parts)


def _part(sizes: tuple[Value, Value], k: Value) -> tuple[Value, Value]:
    """The size of part k, and where it begins: the first parts have one more."""
    size, excess = sizes
    return size + (k < excess).where(1, size.routine.number(0)), size * k + k.least(excess)


def _entry(f: Routine, table: str, kind: str, place: Value) -> Value:
    return f.read(f.step(Value(f, "ptr", f"@{table}"), kind, place), kind, 8)


# -- compiling and linking ------------------------------------------------------------------------


def _nowhere(name: str, make: Callable[[], bytes]) -> bytes:
    return make()


# How machine code is fetched by name, or made and kept.
fetch: Callable[[str, Callable[[], bytes]], bytes] = _nowhere


def machine(isa: InstructionSet) -> llvm.TargetMachine:
    """This processor, or the least one with a set that is narrower than its own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    own = isa.name == available()[0]
    cpu = llvm.get_host_cpu_name() if own else isa.processor
    features = llvm.get_host_cpu_features().flatten() if own else ""
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=features, opt=2, jit=True)


def object_code(element: Element) -> bytes:
    """The machine code of one element type."""
    module = llvm.parse_assembly(library_text(element))
    return machine(element.isa).emit_object(module)


_engines: dict[str, llvm.ExecutionEngine] = {}


@functools.cache
def link(short: str, isa: InstructionSet) -> int:
    """Make the products of one element type known to LLVM in this process; the address.

    short: "f32" or "f64".
    """
    element = Element(short, isa)
    name = product_symbol(element)
    code = fetch(name, lambda: object_code(element))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine(isa))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(name)
    llvm.add_symbol(name, address)
    _engines[name] = engine
    return int(address)
