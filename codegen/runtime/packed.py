"""A matrix B that is multiplied several times: copied once into panels, in the order of reading.

The rows of B are cut into blocks, and each block into panels of as many columns as the largest tile
has. Panels lie side by side; those of a block before those of the next.
"""

from __future__ import annotations

from codegen.runtime.assembler import Routine, Value
from codegen.runtime.copying import PIECE
from codegen.runtime.instruction_sets import Element, Lanes
from codegen.runtime.microkernels import product_arguments

# Rows of B that a panel holds, at most.
DEPTH = 512
# Sums that are longer are of two parts at least, as NumPy's are: they round less.
UNHALVED = 384


def packed_text(element: Element) -> str:
    """The functions of this module."""
    return _panels(element) + _product_with_panels(element)


# What programs call: the product; the copy of B into panels; the product with such a copy; the
# product that fetches what is needed after it.
ROUTINES = ("product", "pack", "packed", "fetching")


def product_symbol(element: Element, routine: str = ROUTINES[0]) -> str:
    """The name under which programs call one of ROUTINES."""
    return f"symgrad_{routine}_{element.short}_{element.isa.name}"


def packed_size(element: Element, k: int, n: int) -> int:
    """How many elements the panels of B: (k, n) take.

    Rows are filled up to whole vectors, and behind the last there is room for the rows that a
    transposed piece of 16 bytes may have too many.
    """
    spare = (PIECE // element.size - 1) * element.most_vectors
    return (k * -(-n // element.lanes) + spare) * element.lanes


def panel_depth(f: Routine, k: Value) -> Value:
    """How many rows of B a panel has at most."""
    return ((k > UNHALVED) & (k <= DEPTH)).where((k + 1) // 2, f.number(DEPTH))


def _panels(element: Element) -> str:
    """Copy B: (k, n) into panels."""
    takes = [("n", "i64"), ("k", "i64"), ("b", "ptr"), ("b_row", "i64"), ("b_column", "i64")]
    f = Routine(product_symbol(element, "pack"), [*takes, ("target", "ptr")])
    n, k, b, b_row, b_column, target = f.arguments()
    lanes = Lanes(f, element)
    vectors = (n + (element.lanes - 1)) // element.lanes
    columns = (vectors, element.most_vectors)
    with f.parts(k, panel_depth(f, k)) as (p, deep), f.parts(*columns) as (start, v):
        j, width = start * element.lanes, v * element.lanes
        source = lanes.at(b, p * b_row + j * b_column)
        panel = lanes.at(target, p * vectors * element.lanes + j * deep)
        f.call("@pack", source, b_row, b_column, deep, (n - j).least(width), panel, width)
    return str(f)


def _product_with_panels(element: Element) -> str:
    """C := alpha * A @ B + beta * C, where B is given by its panels."""
    e = element
    takes = [t for t in product_arguments(e.scalar) if t[0] not in ("b_row", "b_column")]
    f = Routine(product_symbol(e, "packed"), takes)
    m, n, k, a, a_row, a_column, b, c, c_row, c_column, alpha, beta = f.arguments()
    with f.when((m < 1) | (n < 1)):
        f.leave()
    zero, one, yes = f.number(0), f.number(1), Value(f, "i1", "true")
    with f.when(k < 1):
        others = (a, a_row, a_column, b, one, one, c, c_row, c_column, alpha, beta)
        f.call(f"@{product_symbol(e)}", m, n, zero, *others)
        f.leave()
    others = (a, a_row, a_column, b, one, one, c, c_row, c_column, alpha, beta)
    f.call("@outer", m, n, k, *others, yes)
    return str(f)
