"""Values in loop IR: names for what nodes are at an index, written where the loops allow.

A writer collects the buffers and statements of one kernel. Each value gets a name once, in the
outermost block that knows everything it needs; a second request returns the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from codegen import loop_ir as ir
from codegen.access import ZERO, Index, is_one, is_view, reads, root_of
from codegen.bodies import BodyWriter
from codegen.loop_ir import Affine, Apply, Buffer, Kernel, Let, Load, Statement, Store, variable
from codegen.schedule import Schedule, axis_name, member_reads
from codegen.workspace import Layout
from symgrad.graph.dims import Extent, Shape, size
from symgrad.graph.dtypes import DType, is_bool
from symgrad.graph.nodes import Constant, Einsum, Gather, Input, Map, Node, Scatter


@dataclass(frozen=True, slots=True, eq=False)
class Temporary:
    """A row of values that a later pass over the same row reads again.

    Where workers share the rows, each has one of its own; so do sums that they add up apart.
    """

    node: Node
    shape: Shape
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class RunningTotals:
    """The totals so far of a running reduction, one for each element of a row."""

    node: Node
    shape: Shape
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """A slot of the memory that a recurrence needs while it runs."""

    layout: Layout
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class CopyOf:
    """A leaf or a result that takes the value of a node."""

    target: Node
    node: Node


Operand: TypeAlias = Node | Temporary | RunningTotals | Scratch


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """A kernel and what its buffers are, in order; `nodes` are those that it computes."""

    kernel: Kernel
    operands: tuple[Operand, ...]
    nodes: tuple[Node, ...]
    writes: frozenset[Operand]

    @property
    def checks(self) -> bool:
        """Whether the kernel checks indices."""
        return self.kernel.checks

    @property
    def copies(self) -> bool:
        """Whether it computes nothing, but copies its first operand to its second."""
        return not self.nodes and self.kernel.copied is not None


def strides_of(shape: Shape) -> tuple[Extent, ...]:
    """Row-major strides in elements."""
    strides: list[Extent] = []
    step: Extent = 1
    for extent in reversed(shape):
        strides.append(step)
        step = size((step, extent))
    return tuple(reversed(strides))


def offset_of(shape: Shape, index: Index) -> Affine:
    """The row-major place of an index."""
    total = ZERO
    for i, stride, extent in zip(index, strides_of(shape), shape, strict=True):
        total = total + (ZERO if is_one(extent) else i * stride)
    return total


class Writer:
    """Collects buffers and statements of one kernel."""

    def __init__(self, schedule: Schedule | None, number: int) -> None:
        self.schedule = schedule
        self.number = number
        self.buffers: dict[Operand, Buffer] = {}
        self.statements: list[Statement] = []
        self.names = 0
        self.checks = False

    def buffer(self, operand: Node | Temporary | RunningTotals) -> Buffer:
        """The buffer of an operand."""
        if operand not in self.buffers:
            k = len(self.buffers)
            self.buffers[operand] = Buffer(f"x{k}", operand.dtype, k)
        return self.buffers[operand]

    def fresh(self) -> str:
        """A name that nothing has."""
        self.names += 1
        return f"v{self.names - 1}"

    def finish(self, nodes: Sequence[Node], formula: str, writes: set[Operand]) -> Lowered:
        """The kernel of what was written."""
        kernel = Kernel(
            f"stage_{self.number + 1}",
            tuple(self.buffers.values()),
            tuple(self.statements),
            formula,
            self.number,
            self.checks,
        )
        return Lowered(kernel, tuple(self.buffers), tuple(nodes), frozenset(writes))


class Values(Writer):
    """Writes the value of a node at an index, in the outermost loop that knows what it needs.

    depth 0: before all loops; 1: in the row; 2: in the inner loop of the current pass.
    """

    def __init__(self, schedule: Schedule, number: int, inner: frozenset[str]) -> None:
        super().__init__(schedule, number)
        self.plan = schedule
        self.inner = inner
        self.blocks: list[list[Statement]] = [[], [], []]
        self.known: list[dict[object, str]] = [{}, {}, {}]
        self.depth: dict[str, int] = {}
        self.bodies = BodyWriter(self)

    # -- placing -----------------------------------------------------------------------------------
    def place(self, dtype: DType, value: ir.Value, depth: int) -> str:
        """The name of a value, written at this depth unless it is known further out."""
        key = (str(dtype), value)
        for d in range(depth, -1, -1):
            if key in self.known[d]:
                return self.known[d][key]
        name = self.fresh()
        self.depth[name] = depth
        self.blocks[depth].append(Let(name, dtype, value))
        self.known[depth][key] = name
        return name

    def literal(self, number: float | int | bool, dtype: DType) -> str:
        """A number, before all loops."""
        key = ("literal", str(dtype), type(number).__name__, repr(number))
        if key not in self.known[0]:
            name = self.fresh()
            self.depth[name] = 0
            self.blocks[0].append(Let(name, dtype, ir.Literal(number)))
            self.known[0][key] = name
        return self.known[0][key]

    def apply(
        self,
        operation: str,
        operands: tuple[str, ...],
        dtype: DType,
        payload: Affine | Extent | None = None,
    ) -> str:
        """One operation, as far out as its operands allow."""
        depth = max((self.depth[o] for o in operands), default=0)
        if isinstance(payload, Affine):
            depth = max(depth, self.depth_of(payload))
        return self.place(dtype, Apply(operation, operands, payload), depth)

    def depth_of(self, offset: Affine) -> int:
        """The depth at which an offset is known."""
        deepest = 1
        for var in offset.variables:
            deepest = max(deepest, 2 if var in self.inner else self.depth.get(var, 1))
        return deepest

    # -- values ------------------------------------------------------------------------------------
    def value(self, node: Node, index: Index) -> str:
        """The name of `node[index]`."""
        while node.args and not isinstance(node, Map) and self.plan.inline(node):
            node, index = node.args[0], reads(node, index)[0]
        if isinstance(node, Constant) and node.ndim == 0:
            return self.literal(node.value.item(), node.dtype)
        if isinstance(node, Map) and self.plan.inline(node):
            names = [self.value(a, p) for a, p in zip(node.args, reads(node, index), strict=True)]
            return self.bodies.write(node, names, index)
        if is_view(node) or isinstance(node, (Input, Constant)):
            return self.load(node, index)
        return self.member(node, index)

    def load(self, node: Node, index: Index) -> str:
        """The name of an element read from memory."""
        offset = offset_of(node.shape, index)
        return self.place(
            node.dtype, Load(self.buffer(root_of(node)), offset), self.depth_of(offset)
        )

    def member(self, node: Node, index: Index) -> str:
        """The value of a node that another stage computed."""
        return self.load(node, index)

    def compute(self, node: Node, index: Index) -> str:
        """The value of a pointwise node from its arguments."""
        key = ("node", node, index)
        for known in self.known:
            if key in known:
                return known[key]
        if isinstance(node, Gather):
            name = self.gather(node, index)
        else:
            name = self.combine(node, member_reads(node, index), index)
        self.known[self.depth[name]][key] = name
        return name

    def combine(self, node: Node, places: Sequence[Index], index: Index) -> str:
        """The value of a node whose arguments are read at these places."""
        names = [self.value(a, p) for a, p in zip(node.args, places, strict=True)]
        if isinstance(node, Map):
            return self.bodies.write(node, names, index)
        if isinstance(node, Einsum):
            product = names[0]
            times = "logical_and" if is_bool(node.dtype) else "mul"
            for name in names[1:]:
                product = self.apply(times, (product, name), node.dtype)
            return product
        return names[0]

    def check_number(self, node: Gather | Scatter, indices: Node) -> int:
        """The number under which a report names a node and one of its index expressions."""
        self.plan.checked.append((node, indices))
        return len(self.plan.checked) - 1

    def gather(self, node: Gather, index: Index) -> str:
        """The value of a Gather: its source read at checked indices."""
        places = reads(node, index)
        source = list(places[0])
        for axis, label in enumerate(node.source_axes):
            if label < 0:
                k = ~label
                source[axis] = self.checked(
                    node, node.args[1 + k], places[1 + k], node.args[0].shape[axis]
                )
        return self.value(node.args[0], tuple(source))

    def checked(
        self, node: Gather | Scatter, indices: Node, place: Index, extent: Extent
    ) -> Affine:
        """An index read from memory, proven to lie in its axis."""
        while indices.args and self.plan.inline(indices):
            indices, place = indices.args[0], reads(indices, place)[0]
        raw = self.value(indices, place)
        key = ("checked", raw, extent, node.wrap)
        depth = self.depth[raw]
        for d in range(depth, -1, -1):
            if key in self.known[d]:
                return variable(self.known[d][key])
        name = self.fresh()
        self.checks = True
        self.depth[name] = depth
        self.known[depth][key] = name
        position = offset_of(indices.shape, place)
        if position.terms and self.depth_of(position) > depth:
            position = Affine(const=-1)  # the same at several places
        number = self.check_number(node, indices)
        self.blocks[depth].append(
            ir.CheckIndex(name, raw, extent, number, position, node.wrap)
        )
        return variable(name)


def nest(extents: Sequence[Extent], first: int, body: tuple[Statement, ...]) -> list[Statement]:
    """Loops around a body; an axis of extent one needs none."""
    for k in range(len(extents) - 1, -1, -1):
        if not is_one(extents[k]):
            body = (ir.For(axis_name(first + k), extents[k], body),)
    return list(body)


def merge_buffers(kernel: Kernel, slots: Sequence[object]) -> tuple[Kernel, list[int]]:
    """Give buffers that are one slot one name; returns the kernel and which operands it keeps."""
    first: dict[object, int] = {}
    kept: list[int] = []
    chosen: dict[str, Buffer] = {}
    for k, (buffer, slot) in enumerate(zip(kernel.buffers, slots, strict=True)):
        if slot not in first:
            first[slot] = len(kept)
            kept.append(k)
        scope = first[slot]
        chosen[buffer.name] = Buffer(f"x{scope}", buffer.dtype, scope)
    buffers = tuple(chosen[kernel.buffers[k].name] for k in kept)
    return replace(kernel, buffers=buffers, body=_rename(kernel.body, chosen)), kept


def _rename(body: tuple[Statement, ...], chosen: dict[str, Buffer]) -> tuple[Statement, ...]:
    done: list[Statement] = []
    for s in body:
        if isinstance(s, (ir.For, ir.Only)):
            done.append(replace(s, body=_rename(s.body, chosen)))
        elif isinstance(s, Let) and isinstance(s.value, Load):
            done.append(replace(s, value=replace(s.value, buffer=chosen[s.value.buffer.name])))
        elif isinstance(s, Store):
            done.append(replace(s, buffer=chosen[s.buffer.name]))
        elif isinstance(s, ir.Call):
            done.append(replace(s, a=chosen[s.a.name], b=chosen[s.b.name], c=chosen[s.c.name]))
        else:
            done.append(s)
    return tuple(done)
