"""Lowering: stages -> kernels in loop IR, over one buffer per stored node.

A loop stage becomes rows of passes. In each row, pass by pass: row values that are ready, then one
inner loop over everything that the pass must store, reduce or accumulate. Values are written on
demand, each under its own name; what an earlier pass computed is loaded if it was stored, and
recomputed if that is cheap. Memory (which buffers share a slot) is decided afterwards, on the loads
and stores that stand here.
"""

from __future__ import annotations

from codegen import loop_ir as ir
from codegen.access import ZERO, is_one, root_of
from codegen.loop_ir import Affine, Apply, Let, Load, Statement, Store, variable
from codegen.loops import Loops, merge_of, start_of
from codegen.schedule import (
    LoopStage,
    MoveStage,
    ProductStage,
    Schedule,
    Stage,
    axis_name,
    position_of,
)
from codegen.values import CopyOf, Lowered, RunningTotals, Values, Writer, nest, offset_of
from symgrad.graph.dims import Extent, same, size
from symgrad.graph.nodes import Node, Reduce, Reindex


def lower_stage(
    schedule: Schedule, stage: Stage, number: int, row_memory: bool = True
) -> Lowered:
    """The kernel of a stage that is no recurrence.

    Args:
        row_memory: what is dear in a row may wait in memory for the row's next pass. The rows share
            that memory, so where they run side by side such values are computed anew.
    """
    if isinstance(stage, LoopStage):
        return Loops(schedule, stage, number, row_memory).run()
    if isinstance(stage, ProductStage):
        return _lower_product(schedule, stage, number)
    assert isinstance(stage, MoveStage)
    if isinstance(stage.node, Reindex):
        return _Moves(schedule, stage, number).run()
    return (_RunningTotals if row_memory else _Running)(schedule, stage, number).run()


def lower_copy(copy: CopyOf, number: int) -> Lowered:
    """Memory takes a node's value."""
    writer = Writer(None, number)
    source, target = writer.buffer(root_of(copy.node)), writer.buffer(copy.target)
    n = size(copy.target.shape)
    i = variable("i0")
    body = (Let("v0", source.dtype, Load(source, i)), Store(target, i, "v0"))
    writer.statements = [ir.For("i0", n, body, ir.partition_of(copy.target.shape))]
    return writer.finish((), "copy", {copy.target})


def lower_zeros(target: Node, number: int) -> Lowered:
    """Memory of a node is filled with zeros."""
    writer = Writer(None, number)
    buffer = writer.buffer(target)
    places, store = size(target.shape), Store(buffer, variable("i0"), "v0")
    fill = ir.For("i0", places, (store,), ir.partition_of(target.shape))
    writer.statements = [Let("v0", target.dtype, ir.Literal(0)), fill]
    return writer.finish((target,), "zeros", {target})


class _Moves(Values):
    """A Reindex of several pieces, or with zeros around."""

    def __init__(self, schedule: Schedule, stage: MoveStage, number: int) -> None:
        super().__init__(schedule, number, frozenset())
        assert isinstance(stage.node, Reindex)
        self.node = stage.node

    def run(self) -> Lowered:
        node = self.node
        buffer = self.buffer(node)
        total = size(node.shape)
        covered: Extent = 0
        for piece in node.pieces:
            covered = covered + size(piece.count)
        loops: list[Statement] = []
        if same(covered, total) is not True:
            zero = self.literal(0, node.dtype)
            fill = (Store(buffer, variable("z"), zero),)
            loops.append(ir.For("z", total, fill, ir.partition_of(node.shape)))
        for arg, piece in zip(node.args, node.pieces, strict=True):
            self.blocks[1], self.known[1] = [], {}
            k = position_of(piece.count)
            source = tuple(i * t + s for i, s, t in zip(k, piece.start, piece.step, strict=True))
            place = tuple(i * t + s for i, s, t in zip(k, piece.offset, piece.stride, strict=True))
            if piece.view == arg.shape:
                name = self.value(arg, source)
            else:
                flat = offset_of(piece.view, source)
                memory = self.buffer(root_of(arg))
                name = self.place(arg.dtype, Load(memory, flat), 1)
            target = offset_of(node.shape, place)
            self.blocks[1].append(Store(buffer, target, name))
            loops.extend(nest(piece.count, 0, tuple(self.blocks[1])))
        self.statements = [*self.blocks[0], *loops]
        return self.finish((node,), "", {node})


class _Running(Values):
    """A running reduction along an axis that is not the last."""

    def __init__(self, schedule: Schedule, stage: MoveStage, number: int) -> None:
        super().__init__(schedule, number, frozenset({"t"}))
        assert isinstance(stage.node, Reduce)
        self.node = stage.node

    def run(self) -> Lowered:
        node = self.node
        (axis,) = node.axes
        others = node.shape[:axis] + node.shape[axis + 1 :]
        rest = list(position_of(others))
        index = (*rest[:axis], variable("t"), *rest[axis:])
        index = tuple(ZERO if is_one(e) else i for i, e in zip(index, node.shape, strict=True))
        name = self.fresh()
        self.depth[name] = 1
        start = self.literal(start_of(node), node.dtype)
        self.blocks[1].append(Let(name, node.dtype, ir.Copy(start)))
        value = self.value(node.args[0], index)
        total = self.fresh()
        self.blocks[2].extend(
            (
                Let(total, node.dtype, Apply(merge_of(node), (name, value))),
                ir.Update(name, total),
                Store(self.buffer(node), offset_of(node.shape, index), total),
            )
        )
        self.blocks[1].append(ir.For("t", node.shape[axis], tuple(self.blocks[2])))
        self.statements = [*self.blocks[0], *nest(others, 0, tuple(self.blocks[1]))]
        return self.finish((node,), "", {node})


class _RunningTotals(Values):
    """The same with all totals in memory, so that the inner loop goes along the memory.

        for t: for rest: v := totals[rest] + x[t, rest]; totals[rest] := v; y[t, rest] := v
    """

    def __init__(self, schedule: Schedule, stage: MoveStage, number: int) -> None:
        super().__init__(schedule, number, frozenset())
        assert isinstance(stage.node, Reduce)
        self.node = stage.node

    def run(self) -> Lowered:
        node = self.node
        (axis,) = node.axes
        first, rest = node.shape[:axis], node.shape[axis + 1 :]
        index = position_of(node.shape)
        totals = RunningTotals(node, rest, node.dtype)
        place = offset_of(rest, index[axis + 1 :])
        start = self.literal(start_of(node), node.dtype)
        begin = (Store(self.buffer(totals), place, start),)
        before = self.place(node.dtype, Load(self.buffer(totals), place), 1)
        value = self.value(node.args[0], index)
        total = self.fresh()
        self.blocks[1].extend(
            (
                Let(total, node.dtype, Apply(merge_of(node), (before, value))),
                Store(self.buffer(totals), place, total),
                Store(self.buffer(node), offset_of(node.shape, index), total),
            )
        )
        loops = (
            *nest(rest, axis + 1, begin),
            *nest(node.shape[axis:], axis, tuple(self.blocks[1])),
        )
        self.statements = [*self.blocks[0], *nest(first, 0, loops)]
        return self.finish((node,), "", {node, totals})


def _lower_product(schedule: Schedule, stage: ProductStage, number: int) -> Lowered:
    product = stage.product
    writer = Writer(schedule, number)
    a, b, c = (writer.buffer(layout.root) for layout in product.operands)
    places = [Affine(const=layout.start) for layout in product.operands]
    for depth, loop in enumerate(product.loops):
        i = variable(axis_name(depth))
        places = [place + i * step for place, step in zip(places, loop.steps, strict=True)]
    offsets = (places[0], places[1], places[2])
    m, n, k = product.m, product.n, product.k
    consist = product.parts, product.terms
    call = ir.Call(a, b, c, offsets, product.transposed, m, n, k, product.rows, *consist)
    writer.statements = nest([loop.extent for loop in product.loops], 0, (call,))
    return writer.finish((stage.node,), "", {product.operands[2].root})
