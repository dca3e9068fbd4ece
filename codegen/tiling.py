"""Loops that walk along one array and across another, in tiles.

    for i in 0..64: for j in 0..n: y[i n + j] := f(x[64 j + i])
    ->  for b in 0..4: for j in 0..n: for i in 0..16: y[(16 b + i) n + j] := f(x[64 j + 16 b + i])

Across an array each element is in another cache line, and where there are more lines than the
nearest cache holds, each is fetched as often as it has elements. A tile uses sixteen of them at
once.

requires: the iterations touch different places, and the extent of i is a number
keeps:    what every iteration does
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from codegen.loop_ir import Affine, Apply, For, Kernel, Let, Load, Statement, Store

# Rows of a tile: the float32 of a cache line, so that each line is fetched once. Half as many are
# half as fast from the third cache (Intel Sapphire Rapids).
TILE = 16


def tile(kernel: Kernel) -> Kernel:
    """Tile all loops of a kernel that gain by it."""
    return replace(kernel, body=_tiled(kernel.body))


def _tiled(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    done: list[Statement] = []
    for s in body:
        if isinstance(s, For):
            s = _in_tiles(s) if _gains(s) else replace(s, body=_tiled(s.body))
        done.append(s)
    return tuple(done)


def _gains(outer: For) -> bool:
    """Whether two loops, one in the other, read across an array and may change places."""
    if len(outer.body) != 1 or not isinstance(inner := outer.body[0], For):
        return False
    if type(outer.extent) is not int or outer.extent % TILE or outer.extent == TILE:
        return False
    if type(inner.extent) is int and inner.extent < TILE:
        return False
    loads, stores = [], []
    for s in inner.body:
        if isinstance(s, Store):
            stores.append(s)
        elif isinstance(s, Let) and isinstance(s.value, Load):
            loads.append(s.value)
        elif not isinstance(s, Let):
            return False
    written = [s.buffer.name for s in stores]
    if len(set(written)) < len(written) or any(x.buffer.name in written for x in loads):
        return False
    along = all(s.offset.coefficient(inner.var) == 1 for s in stores)
    apart = all(s.offset.coefficient(outer.var) != 0 for s in stores)
    across = any(
        x.offset.coefficient(outer.var) == 1 and x.offset.coefficient(inner.var) not in (0, 1)
        for x in loads
    )
    return bool(stores) and along and apart and across


def _in_tiles(outer: For) -> For:
    inner = outer.body[0]
    assert isinstance(inner, For) and type(outer.extent) is int
    block = f"{outer.var}b"

    def moved(place: Affine) -> Affine:
        step = place.coefficient(outer.var)
        return place + Affine(((block, 1),)) * (step * TILE)

    within = tuple(_moved(s, moved) for s in inner.body)
    rows = For(outer.var, TILE, within)
    return For(block, outer.extent // TILE, (replace(inner, body=(rows,)),))


def _moved(s: Statement, moved: Callable[[Affine], Affine]) -> Statement:
    if isinstance(s, Store):
        return replace(s, offset=moved(s.offset))
    assert isinstance(s, Let)
    if isinstance(s.value, Load):
        return replace(s, value=replace(s.value, offset=moved(s.value.offset)))
    if isinstance(s.value, Apply) and isinstance(s.value.payload, Affine):
        return replace(s, value=replace(s.value, payload=moved(s.value.payload)))
    return s
