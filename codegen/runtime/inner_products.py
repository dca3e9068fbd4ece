"""Products by inner products, for few columns: vectors run along k.

    C[i, j] := alpha * sum_p A[i, p] * B[p, j] + beta * C[i, j]

Where C has few columns, vectors along its rows would be nearly empty, and where B lies transposed
and C has few rows, it is not worth its copy. The rows of A and the columns of B, whose elements lie
side by side, are multiplied vector by vector; the lanes of several sums are then added together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from codegen.runtime.assembler import Routine, Value
from codegen.runtime.instruction_sets import UNDER_WAY, Element, Lanes, added, chosen, shuffled
from codegen.runtime.microkernels import product_arguments, table_entry

# Rows of A whose inner products with columns of B are summed together; more with one column.
DOT_ROWS, DOT_ROWS_ALONE = 4, 8
# Elements of k whose inner products are summed before the next are looked at.
DOT_DEPTH = 1024
# Columns of B, at most: they stay in the nearest caches. Fewer where they are copied for it.
DOT_FEW, DOT_COPIED = 32, 8
# Lengths of inner products that are written out, by scalars; and numbers of columns whose elements
# are read as they lie beside each other.
SHORT = (2, 3)


def inner_products_text(element: Element) -> str:
    """The functions of blocks of inner products, a table of them, and the product by them."""
    shapes = [(DOT_ROWS, c) for c in range(1, element.dot_columns + 1)]
    shapes += [(DOT_ROWS_ALONE, 1), (1, 1)]
    blocks = ", ".join(f"ptr @{dot_name(r, c)}" for r, c in shapes)
    table = f"@dot_blocks = internal constant [{len(shapes)} x ptr] [{blocks}]"
    dots = [dot(element, r, c) for r, c in shapes]
    few = [one(element, n) for one in (short, dense_columns) for n in SHORT]
    return "\n".join([table, *dots, _dots(element), *few, exact(element)])


def short(element: Element, k: int) -> str:
    """C[i] := alpha * sum_p a[i, p] * x[p] + beta * C[i] for this one k."""
    e = element
    takes = [("m", "i64"), ("a", "ptr"), ("a_row", "i64"), ("a_column", "i64"), ("x", "ptr")]
    takes += [("x_row", "i64"), ("c", "ptr"), ("c_row", "i64")]
    f = Routine(f"short_{k}", [*takes, ("alpha", e.scalar), ("beta", e.scalar)], "internal")
    m, a, a_row, a_column, x, x_row, c, c_row, alpha, beta = f.arguments()
    lanes = Lanes(f, e)
    factors = [f.read(lanes.at(x, x_row * p), e.scalar, e.size) for p in range(k)]
    fresh = [f.emit("i1", f"fcmp oeq {x}, {y}") for x, y in ((alpha, 1.0), (beta, 0.0))]
    dense = a_row.equals(k) & a_column.equals(1) & c_row.equals(1) & fresh[0] & fresh[1]
    vectors = dense.where(m // e.lanes * e.lanes, f.number(0))
    _short_vectors(lanes, vectors, a, factors, c)
    with f.loop(m, 1, vectors) as i:
        row = lanes.at(a, a_row * i)
        terms = [f.read(lanes.at(row, a_column * p), e.scalar, e.size) for p in range(k)]
        total = _scalar_sum(lanes, terms, factors)
        scaled = f.emit(e.scalar, f"fmul {total}, {alpha.text}")
        _flush_scalars(lanes, [scaled], [lanes.at(c, c_row * i)], beta)
    return str(f)


def dense_columns(element: Element, n: int) -> str:
    """C[i, j] := alpha * sum_p a[i, p] * b[p, j] + beta * C[i, j], j < n, rows of b dense.

    b is read as one long vector, b[0, 0], b[0, 1], .., which is multiplied by elements of a each of
    which is repeated n times.
    """
    e = element
    takes = [("m", "i64"), ("k", "i64"), ("a", "ptr"), ("a_row", "i64"), ("b", "ptr")]
    takes += [("c", "ptr"), ("c_row", "i64"), ("c_column", "i64")]
    f = Routine(f"dense_columns_{n}", [*takes, ("alpha", e.scalar), ("beta", e.scalar)], "internal")
    m, k, a, a_row, b, c, c_row, c_column, alpha, beta = f.arguments()
    lanes = Lanes(f, e)
    with f.loop(m) as i:
        row = lanes.at(a, i * a_row)

        def step(at: Value, more: int, sums: list[Value], rest: Value | None) -> list[Value]:
            x = lanes.read(lanes.at(lanes.at(row, at), more), rest and lanes.first(rest))
            done = []
            for v, total in enumerate(sums):
                place = lanes.at(lanes.at(b, at * n), more * n + v * e.lanes)
                y = lanes.read(place, rest and lanes.first(rest * n - v * e.lanes))
                repeated = [(v * e.lanes + lane) // n for lane in range(e.lanes)]
                done.append(lanes.fused(shuffled(f, x, x, repeated), y, total))
            return done

        sums = _inner_sums(lanes, step, n, k)
        columns = []
        for j in range(n):
            wanted = [[x for x in range(e.lanes) if (v * e.lanes + x) % n == j] for v in range(n)]
            column, *parts = (chosen(f, x, s) for x, s in zip(wanted, sums, strict=True))
            for part in parts:
                column = f.emit(e.vector, f"fadd {column}, {part.text}")
            columns.append(column)
        target = lanes.at(c, i * c_row)
        places = [lanes.at(target, c_column * j) for j in range(n)]
        _flush_scalars(lanes, _totals(lanes, columns, alpha), places, beta)
    return str(f)


def _short_vectors(lanes: Lanes, stop: Value, a: Value, x: list[Value], c: Value) -> None:
    """The rows up to `stop`, a multiple of the lanes, where they lie side by side: by shuffles."""
    f, e, k = lanes.routine, lanes.element, len(x)
    spread = [lanes.spread(y) for y in x]
    with f.loop(stop, e.lanes) as i:
        total = None
        for column, y in zip(_columns(lanes, lanes.at(a, i * k), k), spread, strict=True):
            start = f"fmul {column}, {y.text}"
            total = f.emit(y.kind, start) if total is None else lanes.fused(column, y, total)
        assert total is not None
        lanes.write(total, lanes.at(c, i))


def _columns(lanes: Lanes, a: Value, k: int) -> list[Value]:
    """The k columns of a matrix of as many rows as lanes, whose rows lie side by side."""
    e = lanes.element
    found = [lanes.read(lanes.at(a, e.lanes * v)) for v in range(k)]
    columns = []
    for p in range(k):
        column = found[0]
        places = [k * lane + p for lane in range(e.lanes)]
        for v, more in enumerate(found[1:], 1):
            # lanes from this vector; what the ones before gave stays, in its final place
            first = places if v == 1 else list(range(e.lanes))
            now = [
                e.lanes + at % e.lanes if at // e.lanes == v else old % e.lanes
                for at, old in zip(places, first, strict=True)
            ]
            column = shuffled(lanes.routine, column, more, now)
        columns.append(column)
    return columns


def _scalar_sum(lanes: Lanes, left: list[Value], right: list[Value]) -> Value:
    f, e = lanes.routine, lanes.element
    total = f.emit(e.scalar, f"fmul {left[0]}, {right[0].text}")
    for x, y in zip(left[1:], right[1:], strict=True):
        if e.isa.fused:
            given = f"{x}, {y}, {total}"
            total = f.emit(e.scalar, f"call {e.scalar} @llvm.fma.{e.short}({given})")
        else:
            product = f.emit(e.scalar, f"fmul {x}, {y.text}")
            total = f.emit(e.scalar, f"fadd {total}, {product.text}")
    return total


def dot_name(rows: int, columns: int) -> str:
    """The function of a block of inner products."""
    return f"dot_{rows}_{columns}"


def dot_arguments(scalar: str) -> list[tuple[str, str]]:
    """What it takes: a and b with k side by side, C, how many blocks there are, the factors."""
    return [
        *(("a", "ptr"), ("a_row", "i64"), ("b", "ptr"), ("b_column", "i64"), ("k", "i64")),
        *(("c", "ptr"), ("c_row", "i64"), ("c_column", "i64")),
        ("count", "i64"),
        *(("alpha", scalar), ("beta", scalar)),
    ]


def dot(element: Element, rows: int, columns: int) -> str:
    """C[r, j] := alpha * sum_p a[r, p] * b[p, j] + beta * C[r, j], vectors running along p."""
    f = Routine(dot_name(rows, columns), dot_arguments(element.scalar), "internal")
    lanes = Lanes(f, element)
    a, a_row, b, b_column, k, c, c_row, c_column, count, alpha, beta = f.arguments()
    with f.loop(count) as t:
        first = lanes.at(a, t * rows * a_row)
        lines = [lanes.at(first, a_row * r) if r else first for r in range(rows)]
        lines += [lanes.at(b, b_column * j) if j else b for j in range(columns)]

        def step(at: Value, more: int, sums: list[Value], rest: Value | None) -> list[Value]:
            mask = rest and lanes.first(rest)
            found = [lanes.read(lanes.at(lanes.at(x, at), more), mask) for x in lines]
            pairs = itertools.product(found[:rows], found[rows:])
            return [lanes.fused(x, y, s) for (x, y), s in zip(pairs, sums, strict=True)]

        at_once = max(1, UNDER_WAY // (rows * columns))
        totals = _totals(lanes, _inner_sums(lanes, step, rows * columns, k, at_once), alpha)
        corner = lanes.at(c, t * rows * c_row)
        shape = [(r, j) for r in range(rows) for j in range(columns)]
        places = [lanes.at(corner, c_row * r + c_column * j) for r, j in shape]
        _flush_scalars(lanes, totals, places, beta)
    return str(f)


# Adds the products of a vector of places of k: from a place on, by a number of elements further;
# to sums; of so many places where they are fewer than a vector has.
Step = Callable[[Value, int, list[Value], "Value | None"], list[Value]]


def _inner_sums(lanes: Lanes, step: Step, count: int, k: Value, at_once: int = 1) -> list[Value]:
    """`count` vectors to which the products of all places of k have been added.

    at_once: how many vectors of places are looked at together.
    """
    f, n = lanes.routine, lanes.element.lanes
    sums = [lanes.zero] * (at_once * count)
    place = f.number(0)
    for turn in sorted({1, at_once}, reverse=True):
        end = place + ((k - place) // (n * turn)) * (n * turn)
        sums = added(f, _inner(lanes, step, sums, place, end, turn), count)
        place = end
    before, name = f.block, f.fresh()
    f.branch(place < k, f"{name}.rest", f"{name}.sum")
    f.label(f"{name}.rest")
    rest = step(place, 0, sums, k - place)
    after = f.block
    f.jump(f"{name}.sum")
    f.label(f"{name}.sum")
    return [
        f.emit(x.kind, f"phi {x.kind} [ {x.text}, %{before} ], [ {y.text}, %{after} ]")
        for x, y in zip(sums, rest, strict=True)
    ]


def _inner(
    lanes: Lanes, step: Step, sums: list[Value], start: Value, end: Value, turn: int
) -> list[Value]:
    """Add the products of whole vectors from `start` to `end`, `turn` in each round."""
    f, e = lanes.routine, lanes.element
    name, before = f.fresh(), f.block
    head, done = f"{name}.body", f"{name}.done"
    p = Value(f, "i64", f"%{f.fresh()}")
    olds = [Value(f, e.vector, f"%{f.fresh()}") for _ in sums]
    f.branch(start < end, head, done)
    f.label(head)
    phis = len(f.lines)
    each = len(sums) // turn
    news: list[Value] = []
    at = f.emit("i64", f"freeze {p}")  # as in the tiles
    for now in range(turn):
        news += step(at, now * e.lanes, olds[now * each : (now + 1) * each], None)
    following = p + turn * e.lanes
    f.branch(following < end, head, done)
    f.lines[phis:phis] = [
        f"  {old.text} = phi {old.kind} [ {first.text}, %{before} ], [ {new.text}, %{head} ]"
        for old, first, new in zip([p, *olds], [start, *sums], [following, *news], strict=True)
    ]
    f.label(done)
    return [
        f.emit(x.kind, f"phi {x.kind} [ {x.text}, %{before} ], [ {y.text}, %{head} ]")
        for x, y in zip(sums, news, strict=True)
    ]


def exact(element: Element) -> str:
    """C[0] := alpha * sum_p a[p] * b[p] + beta * C[0], k at most two vectors: in float64.

    A sum of few products is as exact as one rounding of it, which is what NumPy's are.
    """
    e = element
    takes = [("k", "i64"), ("a", "ptr"), ("b", "ptr"), ("c", "ptr")]
    f = Routine("exact", [*takes, ("alpha", e.scalar), ("beta", e.scalar)], "internal")
    k, a, b, c, alpha, beta = f.arguments()
    lanes = Lanes(f, e)
    kind = f"<{e.lanes} x double>"
    total = Value(f, kind, "zeroinitializer")
    for place in (0, e.lanes):
        mask = lanes.first(k - place)
        x, y = (lanes.read(lanes.at(z, place), mask) for z in (a, b))
        if e.short == "f32":
            x, y = (f.emit(kind, f"fpext {z} to {kind}") for z in (x, y))
        product = f.emit(kind, f"fmul {x}, {y.text}")
        total = f.emit(kind, f"fadd {total}, {product.text}")
    start = Value(f, "double", "-0.0")
    name = f"@llvm.vector.reduce.fadd.v{e.lanes}f64"
    result = f.emit("double", f"call reassoc double {name}({start}, {total})")
    if e.short == "f32":
        result = f.emit("float", f"fptrunc {result} to float")
    scaled = f.emit(e.scalar, f"fmul {result}, {alpha.text}")
    _flush_scalars(lanes, [scaled], [c], beta)
    return str(f)


def _totals(lanes: Lanes, sums: list[Value], alpha: Value) -> list[Value]:
    """The sum of the lanes of every vector, times alpha, as scalars.

    Two vectors make one: lanes whose number has a bit set hold sums of the second. After as many
    steps as a vector has halves, each lane is the total of another vector.
    """
    f, e = lanes.routine, lanes.element
    totals: list[Value] = []
    factor = lanes.spread(alpha)
    for first in range(0, len(sums), e.lanes):
        group = sums[first : first + e.lanes]
        count, bit = len(group), 1
        while bit < e.lanes:
            if len(group) % 2 and len(group) > 1:
                group.append(group[-1])
            low = [k if not k & bit else e.lanes + k for k in range(e.lanes)]
            high = [k ^ bit if not k & bit else e.lanes + (k ^ bit) for k in range(e.lanes)]
            pairs = list(zip(group[::2], group[1::2] or group, strict=True))
            group = []
            for x, y in pairs:
                kept, moved = shuffled(f, x, y, low), shuffled(f, x, y, high)
                group.append(f.emit(x.kind, f"fadd {kept}, {moved.text}"))
            bit *= 2
        scaled = f.emit(e.vector, f"fmul {group[0]}, {factor.text}")
        totals += [
            f.emit(e.scalar, f"extractelement {scaled}, i32 {lane}") for lane in range(count)
        ]
    return totals


def _flush_scalars(lanes: Lanes, scaled: list[Value], places: list[Value], beta: Value) -> None:
    """Write x + beta * place to each place, which is not read when beta is 0."""
    f, e = lanes.routine, lanes.element
    name = f.fresh()
    nothing = f.emit("i1", f"fcmp oeq {beta}, 0.0")
    f.branch(nothing, f"{name}.write", f"{name}.add")
    f.label(f"{name}.add")
    for place, x in zip(places, scaled, strict=True):
        old = f.emit(e.scalar, f"fmul {f.read(place, e.scalar, e.size)}, {beta.text}")
        f.write(f.emit(e.scalar, f"fadd {x}, {old.text}"), place, e.size)
    f.jump(f"{name}.done")
    f.label(f"{name}.write")
    for place, x in zip(places, scaled, strict=True):
        f.write(x, place, e.size)
    f.jump(f"{name}.done")
    f.label(f"{name}.done")


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
    # squares of vectors are written as a whole
    panel = f.room(e.scalar, DOT_DEPTH * max(e.lanes, DOT_COPIED), e.isa.size)
    in_place = b_row.equals(1)
    most = f.number(e.dot_columns)
    with f.loop(k, DOT_DEPTH) as p:
        deep = (k - p).least(DOT_DEPTH)
        kept = f.emit(e.scalar, f"select {p.equals(0)}, {beta}, {e.scalar} 1.0")
        room = (deep + (e.lanes - 1)) // e.lanes * e.lanes
        from_ = lanes.at(b, p * b_row)
        with f.when(in_place.equals("false")):
            f.call("@pack", from_, b_column, b_row, n, deep, panel, room)
        source, distance = in_place.where(from_, panel), in_place.where(b_column, room)
        alone = n.equals(1)
        high = alone.where(DOT_ROWS_ALONE, f.number(DOT_ROWS))
        tall = alone.where(m // DOT_ROWS_ALONE, m // DOT_ROWS) * high
        together = (n <= most).where(tall, high)  # else A passes by once
        first = alone.where(e.dot_columns, f.number(0))
        # blocks, then single elements: height, first and last row, rows in a call, columns in a
        # call, place in the table of the block of one column
        runs = [
            (high, f.number(0), tall, together, most, first),
            (f.number(1), tall, m, m - tall, f.number(1), f.number(e.dot_columns + 1)),
        ]
        for height, start, stop, step, width, table in runs:
            with f.loop(stop, step, start) as i, f.loop(n, width) as j:
                code = table_entry(f, "dot_blocks", "ptr", table + (n - j).least(width) - 1)
                left, right = lanes.at(a, i * a_row + p), lanes.at(source, j * distance)
                target = lanes.at(c, i * c_row + j * c_column)
                given = (left, a_row, right, distance, deep, target, c_row, c_column)
                f.call(code.text, *given, step // height, alpha, kept)
    return str(f)
