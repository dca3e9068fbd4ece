"""Whether iterations of a loop touch different places: a mixed-radix argument on affine offsets.

    offset = sum of c[k] i[k],  0 <= i[k] < e[k],  sorted so that |c[0]| >= |c[1]| >= ...

Different index tuples have different offsets when every |c[k]| exceeds what the variables after it
can add up to, sum of |c[j]| (e[j] - 1) for j > k. Extents are polynomials in nonnegative dims; an
inequality counts as shown when all coefficients of the difference are nonnegative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy

from codegen.loop_ir import Affine
from symgrad.graph.dims import Extent, same, typical


@dataclass(frozen=True, slots=True)
class Access:
    """A place that is read or written; `ranges` has the extents of the variables around it."""

    buffer: str
    offset: Affine
    writes: bool
    ranges: Mapping[str, Extent]


def separate(accesses: Sequence[Access], parallel: Sequence[str]) -> bool:
    """Whether iterations that differ in the parallel variables never meet in a place one writes.

    Variables without a range are the same for all of them.
    """
    buffers: dict[str, list[Access]] = {}
    for access in accesses:
        buffers.setdefault(access.buffer, []).append(access)
    return all(
        _apart(group, parallel) for group in buffers.values() if any(a.writes for a in group)
    )


def _apart(group: Sequence[Access], parallel: Sequence[str]) -> bool:
    first = group[0]
    if any(not _injective(a, parallel) for a in group):
        return False
    if all(a.offset == first.offset for a in group):
        return True
    # offsets differ: then what remains of each must lie below the smallest parallel coefficient
    for a in group:
        mine = [same(a.offset.coefficient(v), first.offset.coefficient(v)) for v in parallel]
        if not all(mine) or same(a.offset.const, first.offset.const) is not True:
            return False
        if not _small_rest(a, parallel):
            return False
    return True


def _injective(access: Access, parallel: Sequence[str]) -> bool:
    moving = [(v, c) for v, c in access.offset.terms if v in access.ranges]
    if any(v not in {name for name, _ in moving} for v in parallel):
        return False
    below: Extent = 0
    for v, c in sorted(moving, key=lambda term: abs(typical(term[1]))):
        step = _absolute(c)
        if step is None:
            return False
        if not nonnegative(step - below - 1):
            return False
        below = below + step * (access.ranges[v] - 1)
    return True


def _small_rest(access: Access, parallel: Sequence[str]) -> bool:
    rest: Extent = 0
    for v, c in access.offset.terms:
        if v not in parallel and v in access.ranges:
            if not nonnegative(c):
                return False
            rest = rest + c * (access.ranges[v] - 1)
        elif v not in access.ranges:
            return False
    steps = [_absolute(access.offset.coefficient(v)) for v in parallel]
    return all(step is not None and nonnegative(step - rest - 1) for step in steps)


def _absolute(extent: Extent) -> Extent | None:
    if nonnegative(extent):
        return extent
    return -extent if nonnegative(-extent) else None


def nonnegative(extent: Extent) -> bool:
    """Whether an extent is shown to be at least zero, whatever its dims."""
    if type(extent) is int:
        return extent >= 0
    terms = sympy.expand(extent).as_coefficients_dict()
    return all(coefficient >= 0 for coefficient in terms.values())
