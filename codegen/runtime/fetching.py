"""Products that fetch what is needed after them, while their units multiply what is near.

A step of a recurrence multiplies small matrices that lie in the nearest caches; then it reads and
writes the places of this step in sequences that lie in the third cache or beyond, and waits for
them. Tiles of such a product fetch two lines in a turn into the second cache: no sum waits for
them, and the product takes as long as it does alone.
"""

from __future__ import annotations

from codegen.runtime.ahead import TURN, Fetches
from codegen.runtime.assembler import Routine, Value
from codegen.runtime.instruction_sets import Element, Lanes
from codegen.runtime.microkernels import (
    flush,
    plain_factors,
    product_arguments,
    sweep,
    table_entry,
    tile_arguments,
)
from codegen.runtime.packed import panel_depth, product_symbol

# Rows of C, and elements between rows of B, up to which such a product is made in place.
FETCHING_ROWS, FETCHING_APART = 95, 512


def fetching_text(element: Element) -> str:
    """The functions of this module."""
    tiles = (_fetching_tile(element, v) for v in element.copying)
    return "\n".join([*tiles, _product_that_fetches(element)])


def _tile_name(vectors: int) -> str:
    return f"fetching_tile_{vectors}"


def _fetching_tile(element: Element, vectors: int) -> str:
    """The function of the tallest tiles of a width below each other, B read in place."""
    rows = element.most_rows(vectors)
    f = Routine(_tile_name(vectors), [*tile_arguments(), ("fetches", "ptr")], "internal")
    lanes = Lanes(f, element)
    a, a_row, _, b, _, k, c, c_row, last, count, add, fetches = f.arguments()
    mask = lanes.first(last) if element.isa.masked else None
    masks = [None] * (vectors - 1) + [mask]
    whole = (k // TURN) * TURN
    with f.loop(count) as t:
        sums = [lanes.zero] * (rows * vectors)
        places = (lanes.at(a, t * rows * a_row), b)
        walk = Fetches(lanes, fetches)
        walk.begin()
        sums, places = sweep(lanes, rows, masks, sums, places, (whole, TURN), fetches=walk)
        walk.end(k // TURN)
        sums, _ = sweep(lanes, rows, masks, sums, places, (k - whole, 1))
        flush(lanes, rows, sums, masks, (lanes.at(c, t * rows * c_row), c_row, add))
    return str(f)


def _product_that_fetches(element: Element) -> str:
    """C := alpha * A @ B + beta * C, and lines of so many ranges meanwhile, where its form suits.

    That is a product with few rows that reads B in place; any other fetches nothing.
    """
    e = element
    takes = [*product_arguments(e.scalar), ("ranges", "ptr"), ("count", "i64")]
    f = Routine(product_symbol(e, "fetching"), takes)
    *given, ranges, number = f.arguments()
    m, n, k, a, a_row, a_column, b, b_row, b_column, c, c_row, c_column, alpha, beta = given
    lanes = Lanes(f, e)
    plain, more = plain_factors(f, alpha, beta)
    vectors = (n + (e.lanes - 1)) // e.lanes
    wide = (n if e.isa.masked else vectors * e.lanes).equals(n) & (vectors > 1) & (k > 0)
    few = (m >= e.most_rows(e.most_vectors)) & (m <= FETCHING_ROWS) & (b_row <= FETCHING_APART)
    suits = plain & b_column.equals(1) & c_column.equals(1) & wide & few
    with f.when(suits.equals("false")):
        f.call(f"@{product_symbol(e)}", *given)
        f.leave()
        f.label(f.fresh())
    memory = f.room("i64", Fetches.FIELDS)
    Fetches(lanes, memory).set(ranges, number)
    with f.parts(k, panel_depth(f, k)) as (p, deep):
        add = more | p.differs(0)
        with f.parts(vectors, e.most_vectors) as (start, v):
            j = start * e.lanes
            last = (n - j).least(v * e.lanes) - (v - 1) * e.lanes
            block, source = lanes.at(a, p * a_column), lanes.at(b, p * b_row + j)
            given = [block, a_row, a_column, source, b_row, deep, lanes.at(c, j), c_row, last]
            _tiles_that_fetch(lanes, (m, v), given, add, memory)
    return str(f)


def _tiles_that_fetch(
    lanes: Lanes, shape: tuple[Value, Value], given: list[Value], add: Value, memory: Value
) -> None:
    """All tiles of so many rows and vectors: those as tall as they can be fetch."""
    f, e = lanes.routine, lanes.element
    m, v = shape
    a, a_row, c_row = given[0], given[1], given[7]
    tallest = table_entry(f, "heights", "i64", v - 1)
    whole = m // tallest
    for width in e.copying:
        with f.when(v.equals(width)):
            f.call(f"@{_tile_name(width)}", *given, whole, add, memory)
    done = ((v >= e.copying[0]) & (v <= e.copying[-1])).where(whole * tallest, f.number(0))
    with f.parts(m - done, tallest) as (i, rows):
        code = table_entry(f, "tiles", "ptr", (v - 1) * e.most_rows(1) + (rows - 1))
        left, target = (lanes.at(x, (done + i) * row) for x, row in ((a, a_row), (given[6], c_row)))
        others = [left, *given[1:6], target, *given[7:]]
        f.call(code.text, *others, f.number(1), add)
