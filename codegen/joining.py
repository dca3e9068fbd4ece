"""Arrays of pieces that one loop stage makes: each piece is written where it belongs.

rewrite:  for i: a[i] := ..; b[i] := ..;   for i: c[i, 0:n] := a[i];  for i: c[i, n:] := b[i]
          ->  for i: c[i, 0:n] := ..; c[i, n:] := ..
requires: the pieces cover the array; each is the whole of a pointwise node; the innermost loop goes
          along the memory of the array, with rows that are whole vectors
keeps:    values and shapes

So the cotangents of a cell's gates, which are one array for the products that read them, are not
written twice.
"""

from __future__ import annotations

from codegen.access import is_one
from codegen.loop_ir import Affine
from codegen.schedule import axis_name, equal_shapes, position_of
from codegen.values import offset_of
from symgrad.graph.dims import same, size
from symgrad.graph.nodes import Node, Piece, Reindex

# Loops over shorter rows, in elements, are better one loop over all the memory of a piece: an LSTM
# and its gradient took 1.04 x the time with rows of 8, 1.01 x with 24, 0.95 x with 32 and 48, on a
# Sapphire Rapids core with AVX-512 in float32.
SHORTEST_ROW = 32


def may_join(node: Reindex) -> bool:
    """Whether loops that make all pieces of an array may write straight into it."""
    first = node.args[0]
    covered = sum((size(piece.count) for piece in node.pieces), start=0)
    return (
        same(covered, size(node.shape)) is True
        and all(equal_shapes(arg.shape, first.shape) for arg in node.args)
        and all(map(_is_whole, node.args, node.pieces))
        and all(_along(node, piece) for piece in node.pieces)
    )


def part_offset(target: Reindex, piece: Piece) -> Affine:
    """Where loops over a piece write each of its elements."""
    here = position_of(piece.count)
    place = tuple(i * t + s for i, s, t in zip(here, piece.offset, piece.stride, strict=True))
    return offset_of(target.shape, place)


def _is_whole(arg: Node, piece: Piece) -> bool:
    """Whether a piece is all of a node, in its order."""
    return (
        piece.view == arg.shape
        and all(type(s) is int and s == 0 for s in piece.start)
        and all(type(s) is int and s == 1 for s in piece.step)
        and equal_shapes(piece.count, arg.shape)
    )


def _along(target: Reindex, piece: Piece) -> bool:
    """Whether the innermost loop over a piece goes along the target in rows that are long."""
    wide = [k for k, extent in enumerate(piece.count) if not is_one(extent)]
    if not wide:
        return False
    row = piece.count[wide[-1]]
    step = part_offset(target, piece).coefficient(axis_name(wide[-1]))
    return type(row) is int and row >= SHORTEST_ROW and same(step, 1) is True
