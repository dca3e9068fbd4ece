"""Orders of rows: for each epoch a shuffle that is a pure function of a seed and the epoch.

Fisher and Yates's shuffle, whose draws are a counter hash, `splitmix64(key + i)` with a key made of
seed and epoch (Steele et al. 2014), taken into a range by multiplication (Lemire 2019, arXiv
1805.10941). Rows are drawn with 32 random bits.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from codegen.runtime.memory import address, at_i32, copy_block, ld, shift, st

U = np.uint64
GOLDEN = U(0x9E3779B97F4A7C15)


@register_jitable
def mix(z):
    """The finaliser of splitmix64."""
    z = (z ^ (z >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return z ^ (z >> U(31))


@register_jitable
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
    seed = mix(U(address(numbers, 6)) + GOLDEN)
    shuffled = address(numbers, 7) != 0
    held = address(numbers, 8)
    for e in range(address(numbers, 1)):
        if held < 0 or (shuffled and held != first + e):
            held = first + e
            key = mix(seed + U(held) * GOLDEN)
            for i in range(n):
                st(order, i, i, -1)
            if shuffled:
                for i in range(n - 1, 0, -1):
                    draw = mix(key + U(i) * GOLDEN) >> U(32)
                    j = np.int64((draw * U(i + 1)) >> U(32))
                    row = ld(order, i, -1)
                    st(order, i, ld(order, j, -1), -1)
                    st(order, j, row, -1)
        copy_block(shift(order, start), shift(wholes, e * whole), whole)
        copy_block(shift(order, start + whole), shift(rests, e * rest), rest)
    return held
