"""Copies of parts of matrices: transposed in registers, packed side by side, scattered.

Packed parts lie on the stack or in memory that is taken once and kept for the next product.
"""

from __future__ import annotations

from codegen.runtime.assembler import Routine, Value
from codegen.runtime.instruction_sets import Element, Lanes, shuffled

# Elements that one turn of a loop over elements writes.
AT_ONCE = 4


# Bytes within which shuffles cost least.
PIECE = 16
# Buffers that wait for the next product, at most.
BUFFERS = 16


def copying_text(element: Element) -> str:
    """The functions of this module."""
    copies = (_transpose_block(element), _pack(element), _merge(element))
    buffers = f"@buffers = internal global [{BUFFERS} x i64] zeroinitializer"
    return "\n".join([buffers, *copies, _take_buffer(), _give_buffer()])


def _take_buffer() -> str:
    """Put the address of a buffer to `slot`: one that waits, else a new one of `size` bytes.

    Whoever exchanges an address for 0 owns the buffer, so several threads may ask at once.
    """
    f = Routine("take_buffer", [("slot", "ptr"), ("size", "i64")], "internal")
    slot, size = f.arguments()
    with f.loop(BUFFERS) as k:
        place = f.step(Value(f, "ptr", "@buffers"), "i64", k)
        found = f.emit("i64", f"atomicrmw xchg {place}, i64 0 acquire")
        with f.when(found.differs(0)):
            f.write(found, slot, 8)
            f.leave()
    f.write(f.emit("ptr", f"call ptr @malloc({size})"), slot, 8)
    return str(f)


def _give_buffer() -> str:
    """Let a buffer wait for the next product; free it where enough do."""
    f = Routine("give_buffer", [("buffer", "ptr")], "internal")
    (buffer,) = f.arguments()
    number = f.emit("i64", f"ptrtoint {buffer} to i64")
    with f.loop(BUFFERS) as k:
        place = f.step(Value(f, "ptr", "@buffers"), "i64", k)
        pair = f"cmpxchg {place}, i64 0, {number} release monotonic"
        done = f.emit("i1", f"extractvalue {f.emit('{ i64, i1 }', pair)}, 1")
        with f.when(done):
            f.leave()
    f.call("@free", buffer)
    return str(f)


def _transpose_block(element: Element) -> str:
    """target[p, j] = source[j, p] for a square of vectors; of the rows only `rows` are read.

    A piece is 16 bytes, q elements. Vectors of pieces at the same place of rows q apart need only
    be transposed within pieces, which takes a third of the shuffles of a whole transpose.
    """
    takes = [("source", "ptr"), ("source_row", "i64"), ("rows", "i64"), ("columns", "i64")]
    f = Routine("transpose_block", [*takes, ("target", "ptr"), ("target_row", "i64")], "internal")
    source, source_row, rows, columns, target, target_row = f.arguments()
    lanes = Lanes(f, element)
    q = PIECE // element.size
    pieces = Lanes(f, element._replace(isa=element.isa._replace(size=PIECE)))
    above = [source]
    for r in range(1, element.lanes):
        # a row that is not there is read as the one before: its lanes are never used
        above.append(lanes.at(above[-1], (rows > r).where(source_row, f.number(0))))
    for place in range(0, element.lanes, q):
        with f.when(columns > place):
            mask = pieces.first(columns - place) if element.isa.masked else None
            found = []
            for r in range(q):
                parts = [pieces.read(lanes.at(row, place), mask) for row in above[r::q]]
                found.append(_joined(lanes, parts))
            row = lanes.at(target, target_row * place)
            for x in _transposed_pieces(f, found):
                lanes.write(x, row)
                row = lanes.at(row, target_row)
    return str(f)


def _joined(lanes: Lanes, parts: list[Value]) -> Value:
    """Pieces side by side in one vector."""
    if len(parts) == 1:
        return parts[0]
    f, kind = lanes.routine, lanes.element.vector
    whole = Value(f, kind, "poison")
    insert = f"@llvm.vector.insert.{lanes.suffix}.v{lanes.element.lanes // len(parts)}"
    for k, part in enumerate(parts):
        place = Value(f, "i64", str(k * lanes.element.lanes // len(parts)))
        call = f"call {kind} {insert}{lanes.element.short}({whole}, {part}, {place})"
        whole = f.emit(kind, call)
    return whole


def _transposed_pieces(f: Routine, rows: list[Value]) -> list[Value]:
    """The transpose of the squares that q vectors of pieces of q elements hold."""
    count = int(rows[0].kind.split()[0][1:])
    width, q = 1, len(rows)
    while width < q:
        # pairs of elements, then pairs of pairs, first of the lower halves of pieces, then upper
        low = [
            start + half + k
            for start in range(0, count, q)
            for half in range(0, q // 2, width)
            for side in (0, count)
            for k in range(side, side + width)
        ]
        high = [k + q // 2 for k in low]
        done: list[Value] = []
        for first in range(0, q, 2 * width):
            for k in range(first, first + width):
                done += [shuffled(f, rows[k], rows[k + width], x) for x in (low, high)]
        rows, width = done, 2 * width
    return rows


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
    mask = lanes.first(columns - whole) if lanes.element.isa.masked else None
    with f.when(b_column.equals(1)):
        with f.loop(k) as p:
            row, to = lanes.at(b, p * b_row), lanes.at(panel, p * width)
            with f.loop(whole, n) as j:
                lanes.write(lanes.read(lanes.at(row, j)), lanes.at(to, j))
            if mask is not None:
                lanes.write(lanes.read(lanes.at(row, whole), mask), lanes.at(to, whole), mask)
            else:
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
