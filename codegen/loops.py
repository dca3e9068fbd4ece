"""Lowering of loop stages: rows of passes; see `lowering`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from codegen import loop_ir as ir
from codegen.access import Index, is_one, reads
from codegen.joining import part_offset
from codegen.loop_ir import Affine, Apply, Let, Load, Statement, Store, variable
from codegen.schedule import (
    LoopStage,
    Schedule,
    axis_name,
    domain_of,
    levels_of,
    member_reads,
    member_roots,
    place_in,
    position_of,
    result_index,
    runs_along_rows,
)
from codegen.values import Lowered, Operand, Temporary, Values, nest, offset_of
from symgrad.graph.dims import size
from symgrad.graph.dtypes import INT32, DType, is_bool, is_float
from symgrad.graph.nodes import Gather, Map, Node, Piece, Reduce, Reindex, Scatter
from symgrad.graph.scalars import operations

# Scalar functions so cheap that a second evaluation costs less than a round trip through memory.
CHEAP = frozenset(
    {
        "select",
        "less",
        "less_equal",
        "equal",
        "not_equal",
        "maximum",
        "minimum",
        "abs",
        "sign",
        "logical_and",
        "logical_or",
        "logical_xor",
        "logical_not",
        "floor",
        "isnan",
        "isfinite",
        "stop_gradient",
        "cast_float32",
        "cast_float64",
        "cast_int32",
        "cast_int64",
        "cast_bool",
    }
)

# A row of at most so many bytes is one vector: four registers of 512 bits; see `row_printing`.
SHORT_ROW = 256
# A row of fewer elements leaves much of a vector empty.
FULL_VECTOR = 16
# Functions that have no form for whole vectors.
NO_VECTOR = frozenset({"sin", "cos", "tan"})


class Loops(Values):
    """One loop stage."""

    def __init__(
        self, schedule: Schedule, stage: LoopStage, number: int, row_memory: bool = True
    ) -> None:
        if row_memory and not stage.is_split:
            stage = _rows_of_indices(stage)
        self.stage = stage
        self.position = position_of(stage.domain)
        inner = frozenset(axis_name(k) for k in range(stage.split, len(stage.domain)))
        super().__init__(schedule, number, inner)
        self.level = levels_of(schedule, stage)
        self.parts: dict[Node, list[tuple[Reindex, Piece]]] = {}
        for joined in stage.joined:
            for arg, piece in zip(joined.args, joined.pieces, strict=True):
                self.parts.setdefault(arg, []).append((joined, piece))
        self.reduced: dict[Node, str] = {}
        self.pass_number = 0
        self.after: list[Statement] = []
        self.writing_inner = False
        self.temporaries = self._temporaries() if row_memory and not _in_registers(stage) else {}
        self.writes: set[Operand] = set()

    # -- which members are sinks -------------------------------------------------------------------
    def is_row(self, node: Node) -> bool:
        """Whether a member has one value a row."""
        if node in self.stage.trailing:
            return True
        return not self.stage.is_full(domain_of(node))

    def sink_level(self, node: Node) -> int | None:
        """The pass in which a member must be written out, None when nothing asks for it."""
        if node in self.stage.trailing:
            return self.level[node] - 1
        wanted = self.is_written(node) or node in self.temporaries
        return self.level[node] if wanted or node in self.stage.accumulated else None

    def _temporaries(self) -> dict[Node, Temporary]:
        """Dear inner values that a later pass reads again; writing one may need others."""
        found: dict[Node, Temporary] = {}
        shape = self.stage.domain[self.stage.split :]
        sinks = [m for m in self.stage.members if self._is_sink(m)]
        while sinks:
            sink = sinks.pop(0)
            level = self.level[sink] - (1 if sink in self.stage.trailing else 0)
            stack, seen = [sink], {sink}
            while stack:
                node = stack.pop()
                for root, _ in member_roots(self.plan, node, self.where(node)):
                    if root in seen or root not in self.level or self.is_row(root):
                        continue
                    seen.add(root)
                    if self.level[root] < level:
                        if root in self.plan.stored or root in found:
                            continue
                        if _dear(root):
                            found[root] = Temporary(root, shape, root.dtype)
                            sinks.append(root)
                            continue
                    stack.append(root)
        return found

    def _is_sink(self, node: Node) -> bool:
        """Whether a member is written or reduced in an inner loop."""
        if node in self.stage.trailing:
            return True
        wanted = self.is_written(node) or node in self.stage.accumulated
        return wanted and not self.is_row(node)

    def is_written(self, node: Node) -> bool:
        """Whether a member goes to memory of its own or to its part of an array."""
        return node in self.plan.stored or node in self.parts

    # -- reading members ---------------------------------------------------------------------------
    def member(self, node: Node, index: Index) -> str:
        """The name of a member's value: an accumulator, what lies in memory, or computed now."""
        if node in self.reduced:
            return self.reduced[node]
        if node not in self.level:
            return self.load(node, index)
        if self.is_loaded(node):
            if node in self.plan.stored:
                return self.load(node, index)
            offset = self.row_offset(index)
            buffer = self.buffer(self.temporaries[node])
            return self.place(node.dtype, Load(buffer, offset), self.depth_of(offset))
        return self.compute(node, self.where(node))

    def where(self, node: Node) -> Index:
        """The position at which a member stands in these loops."""
        return place_in(self.stage, node)

    def row_offset(self, index: Index) -> Affine:
        """The place of an index within a row."""
        return offset_of(self.stage.domain[self.stage.split :], index[self.stage.split :])

    # -- writing -----------------------------------------------------------------------------------
    def run(self) -> Lowered:
        """The kernel of the stage."""
        passes = max(self.level.values(), default=0)
        for number in range(passes + 1):
            self.pass_number = number
            due = [m for m in self.stage.members if self.sink_level(m) == number]
            rows = [n for n in due if self.is_row(n) and n not in self.stage.trailing]
            self.prepare(rows)
            for node in rows:
                self.write_sink(node)
            inner = [n for n in due if not self.is_row(n) or n in self.stage.trailing]
            serial = [n for n in inner if runs_along_rows(n)]
            for sinks in ([n for n in inner if not runs_along_rows(n)], serial):
                if sinks:
                    self.write_pass(sinks)
        self.statements = [
            *self.blocks[0],
            *nest(self.stage.domain[: self.stage.split], 0, tuple(self.blocks[1])),
            *self.after,
        ]
        return self.finish(self.stage.nodes, "", self.writes)

    def write_pass(self, sinks: Sequence[Node]) -> None:
        """One inner loop that writes out all of these."""
        self.blocks[2], self.known[2] = [], {}
        self.writing_inner = True
        self.prepare(sinks)
        accumulators: list[tuple[Node, str]] = []
        for node in sinks:
            if node in self.stage.trailing:
                accumulators.append((node, self.reduce(node)))
            else:
                self.write_sink(node)
        block = tuple(self.blocks[2])
        self.blocks[1].extend(nest(self.stage.domain[self.stage.split :], self.stage.split, block))
        self.blocks[2], self.known[2] = [], {}
        self.writing_inner = False
        for node, name in accumulators:
            self.reduced[node] = name
            if node in self.plan.stored:
                self.store(node, name, result_index(node, self.where(node)))

    def prepare(self, sinks: Sequence[Node]) -> None:
        """Write what the sinks need in the order of the members, so that no walk is deep."""
        due = set(sinks)
        needed = set(sinks)
        for node in reversed(self.stage.members):
            if node in needed and (node in due or not self.is_loaded(node)):
                for root, _ in member_roots(self.plan, node, self.where(node)):
                    if root in self.level and root not in self.reduced:
                        needed.add(root)
        for node in self.stage.members:
            if node in needed and node not in due and not self.is_loaded(node):
                self.compute(node, self.where(node))

    def is_loaded(self, node: Node) -> bool:
        """Whether a member's value lies in memory since an earlier pass."""
        if node in self.reduced or node in self.stage.accumulated:
            return True
        if self.is_row(node) or self.level[node] >= self.pass_number:
            return False
        return node in self.temporaries or node in self.plan.stored

    def write_sink(self, node: Node) -> None:
        """Write a member out: into memory, a row's temporary, or an accumulation."""
        if node in self.stage.accumulated:
            self.accumulate(node)
            return
        name = self.compute(node, self.where(node))
        if node in self.temporaries:
            temporary = self.temporaries[node]
            offset = self.row_offset(self.where(node))
            self.emit_store(temporary, offset, name)
        if node in self.plan.stored:
            self.store(node, name, self.where(node))
        for target, piece in self.parts.get(node, ()):
            self.emit_store(target, part_offset(target, piece), name)

    def store(self, node: Node, name: str, index: Index) -> None:
        """Write a value to a node's memory."""
        self.emit_store(node, offset_of(node.shape, index), name)

    def emit_store(self, operand: Node | Temporary, offset: Affine, name: str) -> None:
        """Write a value, in the innermost loop that it needs."""
        depth = max(self.depth_of(offset), self.depth.get(name, 1))
        self.writes.add(operand)
        self.blocks[depth].append(Store(self.buffer(operand), offset, name))

    def reduce(self, node: Node) -> str:
        """A reduction over the row: an accumulator, updated in the inner loop."""
        operation = merge_of(node)
        name = self.start(node, 1)
        value = self.combine(node, member_reads(node, self.where(node)), ())
        self.update(name, operation, value, node.dtype)
        return name

    def compute(self, node: Node, index: Index) -> str:
        """The value of a full member: of one that runs along its row, the total so far."""
        if not runs_along_rows(node):
            return super().compute(node, index)
        if node not in self.known[2]:
            name = self.start(node, 1)
            value = self.combine(node, member_reads(node, self.where(node)), ())
            self.known[2][node] = self.update(name, merge_of(node), value, node.dtype)
        return self.known[2][node]

    def start(self, node: Node, depth: int, dtype: DType | None = None) -> str:
        """A new accumulator of the node's dtype, or of `dtype`, at its neutral element."""
        number = start_of(node)
        dtype = dtype or node.dtype
        name = self.fresh()
        self.depth[name] = depth
        initial = self.literal(number, dtype)
        self.blocks[depth].append(Let(name, dtype, ir.Copy(initial)))
        return name

    def update(self, name: str, operation: str, value: str, dtype: DType) -> str:
        """Give an accumulator its next value, and return that."""
        deep = 2 if self.writing_inner else 1
        total = self.fresh()
        self.depth[total] = deep
        self.blocks[deep].append(Let(total, dtype, Apply(operation, (name, value))))
        self.blocks[deep].append(ir.Update(name, total))
        return total

    # -- accumulating into memory ------------------------------------------------------------------
    def accumulate(self, node: Node) -> None:
        """Add a value to memory, or to a register where the result is a scalar."""
        here = self.where(node)
        if isinstance(node, Scatter):
            index = self.target(node, here)
            value = self.value(node.args[0], here)
        else:
            index = result_index(node, here)
            value = self.combine(node, member_reads(node, here), ())
        operation = merge_of(node)
        offset = offset_of(node.shape, index)
        self.writes.add(node)
        if not offset.terms:  # a scalar: keep it in a register and store it once
            name = self.start(node, 0)
            self.update(name, operation, value, node.dtype)
            self.after.append(Store(self.buffer(node), offset, name))
            return
        buffer = self.buffer(node)
        number = start_of(node)
        initial = self.literal(number, node.dtype)
        fill = (Store(buffer, variable("z"), initial),)
        self.blocks[0].append(ir.For("z", size(node.shape), fill, ir.partition_of(node.shape)))
        depth = 2 if self.writing_inner else 1
        old, new = self.fresh(), self.fresh()
        self.depth[old] = self.depth[new] = depth
        self.blocks[depth].extend(
            (
                Let(old, node.dtype, Load(buffer, offset)),
                Let(new, node.dtype, Apply(operation, (old, value))),
                Store(buffer, offset, new),
            )
        )

    def target(self, node: Scatter, here: Index) -> Index:
        """Where a Scatter writes, with its indices checked."""
        places = reads(node, here)
        label_place = dict(zip(node.update_labels, here, strict=True))
        return tuple(
            label_place[a] if a >= 0 else self.checked(node, node.args[1 + ~a], places[1 + ~a], e)
            for a, e in zip(node.target_axes, node.shape, strict=True)
        )


def _in_registers(stage: LoopStage) -> bool:
    """Whether a whole row fits a few registers, so that no pass computes again what another did."""
    wide = [e for e in stage.domain[stage.split :] if not is_one(e)]
    if len(wide) != 1 or type(wide[0]) is not int:
        return False
    size = max((m.dtype.itemsize for m in stage.members), default=8) * wide[0]
    fits = wide[0] >= FULL_VECTOR and size <= SHORT_ROW
    return fits and not any(_goes_alone(m) for m in stage.members)


def _goes_alone(node: Node) -> bool:
    """Whether a member keeps a loop over a row from becoming one vector."""
    if isinstance(node, (Gather, Scatter)) or runs_along_rows(node):
        return True
    return isinstance(node, Map) and any(
        step.kind == "call" and step.payload in NO_VECTOR for step in operations(node.body)
    )


def _rows_of_indices(stage: LoopStage) -> LoopStage:
    """The stage with rows that its indices tell apart: an index is read and checked once a row."""
    split: int | None = None
    for node in stage.members:
        if isinstance(node, (Gather, Scatter)):
            axes = node.out if isinstance(node, Gather) else node.update_labels
            used = [axes.index(label) + 1 for own in node.index_labels for label in own]
            split = max([split or 0, *used])
    return stage if split is None else replace(stage, split=split)


_MERGE = {
    **{"max": "greatest", "min": "least", "prod": "mul"},
    **{"cumsum": "add", "cumprod": "mul", "cummax": "maximum"},
}


def merge_of(node: Node) -> str:
    """The operation by which a reduction takes in a further value."""
    if isinstance(node, Reduce):
        return _MERGE[node.op]
    return "logical_or" if is_bool(node.dtype) else "add"


def start_of(node: Node) -> float | int | bool:
    """Where a reduction starts: the neutral element of its operation."""
    if not isinstance(node, Reduce):
        return 0
    dtype = node.args[0].dtype
    bottom = lowest(dtype)
    if node.op == "cumsum":  # -0.0 + x is x for every x, as 0.0 + -0.0 is not
        return -0.0 if is_float(dtype) else 0
    if node.op in ("prod", "cumprod"):
        return 1
    if node.op in ("max", "cummax"):
        return bottom
    return highest(dtype)


def highest(dtype: DType) -> float | int | bool:
    """Where a minimum starts."""
    if dtype.kind == "b":
        return True
    return float("inf") if is_float(dtype) else (2**31 - 1 if dtype == INT32 else 2**63 - 1)


def lowest(dtype: DType) -> float | int | bool:
    """What is below every number of a dtype."""
    if dtype.kind == "b":
        return False
    return float("-inf") if is_float(dtype) else (-(2**31) if dtype == INT32 else -(2**63))


def _dear(node: Node) -> bool:
    if isinstance(node, Gather) or runs_along_rows(node):
        return True
    return isinstance(node, Map) and any(
        step.kind == "call" and step.payload not in CHEAP for step in operations(node.body)
    )
