"""Orders of rows: for each epoch a shuffle that is a pure function of a seed and the epoch.

Fisher and Yates's shuffle, whose draws are a counter hash, `splitmix64(key + i)` with a key made of
seed and epoch (Steele et al. 2014), taken into a range by multiplication (Lemire 2019, arXiv
1805.10941). Rows are drawn with 32 random bits.
"""

from __future__ import annotations

from codegen.runtime.kernels import kernel
from codegen.runtime.lanes import Lane, elementwise
from codegen.runtime.memory import address, at_i32, copy_block, ld, shift, st

GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: Lane) -> Lane:
    """The finaliser of splitmix64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


def _draw(key: Lane, i: Lane) -> Lane:
    """The draw of number i, a row of 0..i."""
    return ((_mix(key + i * GOLDEN) >> 32) * (i + 1)) >> 32


shuffle_key = elementwise(
    "shuffle_key", lambda seed, epoch: _mix(_mix(seed + GOLDEN) + epoch * GOLDEN), 2
)
drawn_row = elementwise("drawn_row", _draw, 2)


@kernel
def fill_orders(table, numbers):
    """Write the rows of epochs, or of a part of one.

    Args:
        table:   addresses of int32 arrays: one order (n,), and where the rows of whole batches and
                 of partial ones go, (epochs, whole) and (epochs, rest).
        numbers: address of n, epochs, whole, rest; the place `start` in the first epoch's order;
                 the first epoch, the seed, whether orders are shuffled, and the epoch whose order
                 stands in the first array, or -1.
    Returns: the epoch whose order stands there now.
    """
    order = at_i32(address(table, 0), 0)
    wholes = at_i32(address(table, 1), 0)
    rests = at_i32(address(table, 2), 0)
    n = address(numbers, 0)
    whole = address(numbers, 2)
    rest = address(numbers, 3)
    start = address(numbers, 4)
    first = address(numbers, 5)
    seed = address(numbers, 6)
    shuffled = address(numbers, 7) != 0
    held = address(numbers, 8)
    for e in range(address(numbers, 1)):
        if held < 0 or (shuffled and held != first + e):
            held = first + e
            key = shuffle_key(seed, held)
            for i in range(n):
                st(order, i, i, -1)
            if shuffled:
                for i in range(n - 1, 0, -1):
                    j = drawn_row(key, i)
                    row = ld(order, i, -1)
                    st(order, i, ld(order, j, -1), -1)
                    st(order, j, row, -1)
        copy_block(shift(order, start), shift(wholes, e * whole), whole)
        copy_block(shift(order, start + whole), shift(rests, e * rest), rest)
    return held
