"""How long kernels take, roughly: a polynomial in the dims, to compare with what a meeting costs.

Measured on one core of a Sapphire Rapids processor, in picoseconds; a guess within a factor of
three is enough to tell what is worth sharing.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from codegen.loop_ir import (
    WORKERS,
    Apply,
    Call,
    CheckIndex,
    For,
    Let,
    Load,
    Only,
    Statement,
    Store,
)
from codegen.loops import CHEAP
from symgrad.graph.dims import Extent, size

#: Picoseconds of a read or write by bytes, of a simple operation, of a function such as exp, of an
#: index that is checked, of a multiplication and addition in a product, of an element of a B^T that
#: is turned.
BYTE, OPERATION, FUNCTION, CHECK, PRODUCT, TURN = 25, 40, 400, 1000, 14, 80
#: What a call costs at least, and a meeting of all workers: they wait for the last one, and what
#: others wrote is then fetched from their caches.
CALL, MEETING = 20_000, 3_000_000
#: What begins and ends a run of several workers.
START = 8_000_000
#: A kernel that takes less time than this may be left to one worker.
SMALL = 3_000_000
_SIMPLE = {
    *("add", "sub", "mul", "div", "neg", "sqrt"),
    *("index", "extent", "greatest", "least", *CHEAP),
}


def work_of(body: Sequence[Statement]) -> Extent:
    """Picoseconds that one worker needs for statements."""
    total: Extent = 0
    for s in body:
        if isinstance(s, For):
            total = total + size((_for_two(s.extent), work_of(s.body)))
        elif isinstance(s, Only):
            total = total + work_of(s.body)
        elif isinstance(s, Let) and isinstance(s.value, Load):
            total = total + BYTE * s.value.buffer.dtype.itemsize
        elif isinstance(s, Let) and isinstance(s.value, Apply):
            total = total + (OPERATION if s.value.operation in _SIMPLE else FUNCTION)
        elif isinstance(s, Store):
            total = total + BYTE * s.buffer.dtype.itemsize
        elif isinstance(s, CheckIndex):
            total = total + CHECK
        elif isinstance(s, Call):
            total = total + size((s.m, s.n, s.k, PRODUCT * (s.c.dtype.itemsize // 4)))
    return total


def _for_two(extent: Extent) -> Extent:
    """An extent in a team of two workers."""
    if isinstance(extent, int) or WORKERS not in extent.free_symbols:
        return extent
    return int(extent.xreplace({WORKERS: sympy.Integer(2)}))
