"""Which kernels may share their loops, judged on loop IR written by hand."""

from __future__ import annotations

import pytest

import symgrad as sg
from codegen import loop_ir as ir
from codegen.nests import merge_nests
from codegen.pipeline import compile
from codegen.values import Lowered
from symgrad.graph.dims import Extent

B = sg.dim("B")
Steps = tuple[Extent, Extent]
X, C, D = (sg.input(name, (500,)) for name in "xcd")
SCHEDULE = compile(X + C + D).stages.schedule


def around(*body: ir.Statement) -> tuple[ir.Statement, ...]:
    """The loops that all kernels here have."""
    return (ir.For("i", 3, (ir.For("j", 2, body),)),)


def place(steps: Steps, first: Extent = 0) -> ir.Affine:
    return ir.Affine((("i", steps[0]), ("j", steps[1])), first)


def product(steps: Steps, width: Extent) -> Lowered:
    """c[steps + 0 .. width-1] := a product of 1 x 5 and 5 x width."""
    x, c = ir.Buffer("b0", X.dtype, 0), ir.Buffer("b1", C.dtype, 1)
    offsets = (ir.Affine(), ir.Affine(), place(steps))
    call = ir.Call(x, x, c, offsets, (False, False), 1, width, 5, (5, width, width))
    return Lowered(ir.Kernel("p", (x, c), around(call)), (X, C), (C,), frozenset([C]))


def reader(steps: Steps, width: Extent, first: Extent) -> Lowered:
    """d[100 i + 50 j + e] := c[steps + first + e], e = 0 .. width-1."""
    c, d = ir.Buffer("b0", C.dtype, 0), ir.Buffer("b1", D.dtype, 1)
    e = ir.variable("e")
    read = ir.Let("v", C.dtype, ir.Load(c, place(steps, first) + e))
    row = ir.For("e", width, (read, ir.Store(d, place((100, 50)) + e, "v")))
    return Lowered(ir.Kernel("r", (c, d), around(row)), (C, D), (D,), frozenset([D]))


@pytest.mark.parametrize(
    "written, read, width, first, kernels",
    [
        ((14, 7), (14, 7), 7, 0, 1),  # what the same step wrote
        ((14, 7), (14, 7), 5, 2, 1),  # a part of it
        ((14, 7), (14, 7), 8, 0, 2),  # also what the next step writes
        ((14, 7), (14, 7), 7, 1, 2),  # the same, from the second element on
        ((14, 7), (7, 14), 7, 0, 2),  # what another step wrote
        ((7, 21), (7, 21), 20, 0, 2),  # j is the outer axis of the memory: two further rows of i
        ((0, 7), (0, 7), 7, 0, 2),  # every i writes the same
        ((14 * B, 7 * B), (14 * B, 7 * B), 7, 7 * B - 7, 1),  # the end of it: never negative
    ],
)
def test_neighbours_read_what_their_own_step_wrote(
    written: Steps, read: Steps, width: int, first: Extent, kernels: int
) -> None:
    wide = 7 if isinstance(first, int) else 7 * B
    pair = [product(written, wide), reader(read, width, first)]
    assert len(merge_nests(SCHEDULE, pair)) == kernels
