"""Kernels one after the other as one: what each makes for a head is used while it is in the cache.

rewrite:  for i: C_i := A_i B_i;  for i: rows of C_i -> P_i;  for i: O_i := P_i V_i
          ->  for i: C := A_i B_i;  rows of C -> P_i;  O_i := P_i V_i
requires: the loops have the same extents; what one kernel writes and another reads lies in the same
          box of memory for the same i, and in boxes apart for different i; a group has one kernel
          of loops, the others are products
keeps:    the order in which each kernel does its own work, so every bit

An array that nothing else reads is then needed for one i at a time: it gets the memory of one box.
So the scores of attention and their cotangents stay in the cache however many heads there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.access import root_of
from codegen.counted import tellers_of
from codegen.loop_ir import Affine, Buffer, Call, For, Kernel, Let, Load, Statement, Store, walk
from codegen.memory import LoweredLoop
from codegen.schedule import Schedule
from codegen.values import Lowered, Operand, Temporary
from symgrad.graph.dims import Extent, same, size
from symgrad.graph.nodes import Node


def merge_nests(
    schedule: Schedule, kernels: Sequence[Lowered | LoweredLoop]
) -> list[Lowered | LoweredLoop]:
    """Merge neighbours where that is possible; see the module."""
    done: list[Lowered | LoweredLoop] = []
    group: list[_Nest] = []

    def close() -> None:
        if len(group) > 1 and any(nest.is_product for nest in group):
            done.append(_Merger(schedule, group, kernels).run())
        else:
            done.extend(nest.low for nest in group)
        group.clear()

    alone = set(tellers_of(schedule.graph).values())  # dims are read behind what writes them

    def nest_of(low: Lowered | LoweredLoop) -> _Nest | None:
        if isinstance(low, LoweredLoop) or not alone.isdisjoint(low.writes):
            return None
        return _nest(low, group)

    for low in kernels:
        nest = nest_of(low)
        if nest is None or not _fits(group, nest):
            close()
            nest = nest_of(low)
        if nest is None:
            done.append(low)
        else:
            group.append(nest)
    close()
    return done


@dataclass(frozen=True, slots=True)
class _Access:
    """A box of memory that a statement touches in one step of the shared loops.

    It lies between `steps * loops` and `steps * loops + last`, inclusive. Nothing lies before:
    the places of the first step are in the array, and all steps inside it are forward.
    """

    steps: tuple[Extent, ...]
    last: Extent


@dataclass(frozen=True, slots=True)
class _Nest:
    """A kernel as statements before, loops that it may share, their body, and statements after."""

    low: Lowered
    buffers: Mapping[Operand, Buffer]
    before: tuple[Statement, ...]
    loops: tuple[tuple[str, Extent], ...]
    body: tuple[Statement, ...]
    after: tuple[Statement, ...]

    @property
    def is_product(self) -> bool:
        """Whether it is nothing but products."""
        return isinstance(self.body[0], Call)


def _nest(low: Lowered, group: Sequence[_Nest]) -> _Nest | None:
    """A kernel as a nest with as many loops as those of a group, or as those around its product."""
    body = low.kernel.body
    places = [k for k, s in enumerate(body) if isinstance(s, For) and not clears(s)]
    if len(places) != 1 or low.kernel.checks:
        return None
    at = places[0]
    loops: list[tuple[str, Extent]] = []
    inner: Sequence[Statement] = body[at : at + 1]
    depth = len(group[0].loops) if group else None
    while len(inner) == 1 and isinstance(loop := inner[0], For) and len(loops) != depth:
        loops.append((loop.var, loop.extent))
        inner = loop.body
    if depth is None and not isinstance(inner[0], Call):
        return None
    if not loops or (depth is not None and len(loops) != depth):
        return None
    buffers = dict(zip(low.operands, low.kernel.buffers, strict=True))
    return _Nest(low, buffers, body[:at], tuple(loops), tuple(inner), body[at + 1 :])


def clears(s: Statement) -> bool:
    """Whether a loop fills memory in which a later one adds up."""
    return isinstance(s, For) and s.var == "z"


def boxes_of(
    body: Iterable[Statement], buffer: Buffer, ranges: dict[str, Extent]
) -> Iterator[Extent | None]:
    """The last place of each box that statements touch; None where it is not known.

    Args:
        ranges: extents of checked indices.
    """
    for box in _boxes(body, buffer, (), ranges):
        yield None if box is None else box.last


def _fits(group: Sequence[_Nest], nest: _Nest) -> bool:
    """Whether a nest may run in the loops of a group."""
    if not group:
        return True
    if not nest.is_product and not all(other.is_product for other in group):
        return False
    extents = zip(group[0].loops, nest.loops, strict=True)
    if any(same(a, b) is not True for (_, a), (_, b) in extents):
        return False
    return all(
        _apart(operand, [*group, nest])
        for operand in nest.low.operands
        if any(operand in other.buffers for other in group)
    )


def _apart(operand: Operand, nests: Sequence[_Nest]) -> bool:
    """Whether nests that share an operand touch, in different steps, different parts of it."""
    using = [nest for nest in nests if operand in nest.buffers]
    if not any(operand in nest.low.writes for nest in using):
        return True
    if all(
        nest.is_product and operand in nest.low.writes and operand not in set(nest.low.nodes)
        for nest in using
    ):
        return True  # pieces of one array, which are disjoint
    found: list[_Access] = []
    for nest in using:
        buffer = nest.buffers[operand]
        if any(_touches(s, buffer) for s in walk((*nest.before, *nest.after))):
            return False
        boxes = list(_boxes(nest.body, buffer, nest.loops, {}))
        if any(box is None for box in boxes):
            return False
        found += [box for box in boxes if box is not None]
    steps = found[0].steps
    room = steps[-1]
    for slow, fast, (_, extent) in zip(steps, steps[1:], nests[0].loops[1:], strict=False):
        if same(slow, size((fast, extent))) is not True:
            return False
    return all(
        all(same(a, b) is True for a, b in zip(box.steps, steps, strict=True))
        and _at_least(room, box.last + 1)
        for box in found
    )


def _touches(statement: Statement, buffer: Buffer) -> bool:
    if isinstance(statement, Let) and isinstance(statement.value, Load):
        return statement.value.buffer.name == buffer.name
    if isinstance(statement, Store):
        return statement.buffer.name == buffer.name
    if isinstance(statement, Call):
        return buffer.name in (statement.a.name, statement.b.name, statement.c.name)
    return False


def _at_least(a: Extent, b: Extent) -> bool:
    difference = size((a - b,))
    if isinstance(difference, int):
        return difference >= 0
    return difference.is_nonnegative is True


def _boxes(
    body: Iterable[Statement],
    buffer: Buffer,
    loops: Sequence[tuple[str, Extent]],
    inner: dict[str, Extent],
) -> Iterator[_Access | None]:
    """The boxes that statements touch; None where a place is not known."""
    for s in body:
        if isinstance(s, For):
            yield from _boxes(s.body, buffer, loops, {**inner, s.var: s.extent})
        elif isinstance(s, Call):
            m, n, k = s.m, s.n, s.k
            sides = ((k, m) if s.transposed[0] else (m, k), (n, k) if s.transposed[1] else (k, n))
            for one, offset, (high, wide), row in zip(
                (s.a, s.b, s.c), s.offsets, (*sides, (m, n)), s.rows, strict=True
            ):
                if one.name == buffer.name:
                    place = offset + Affine((("row", row), ("column", 1)))
                    yield _box(place, loops, {**inner, "row": high, "column": wide})
        elif _touches(s, buffer):
            offset = s.offset if isinstance(s, Store) else s.value.offset  # type: ignore[union-attr]
            yield _box(offset, loops, inner)


def _box(
    place: Affine, loops: Sequence[tuple[str, Extent]], inner: dict[str, Extent]
) -> _Access | None:
    shared = {var for var, _ in loops}
    last = place.const
    for var, step in place.terms:
        if var in shared:
            continue
        if var not in inner or not _at_least(step, 0):
            return None
        last = last + step * (inner[var] - 1)
    steps = tuple(place.coefficient(var) for var, _ in loops)
    return _Access(steps, size((last,)))


class _Merger:
    """Makes one kernel of a group."""

    def __init__(
        self,
        schedule: Schedule,
        group: Sequence[_Nest],
        kernels: Sequence[Lowered | LoweredLoop],
    ) -> None:
        self.group = group
        own = {id(nest.low) for nest in group}
        kept: set[Operand] = {root_of(o) for o in schedule.graph.outputs}
        kept.update(o for low in kernels if id(low) not in own for o in low.operands)
        self.kept = kept
        self.extents = group[0].loops
        self.names = next((n.loops for n in group if not n.is_product), group[0].loops)
        self.buffers: dict[Operand, Buffer] = {}
        self.boxes = {o: t for o, t in self._boxed()}

    def _boxed(self) -> Iterator[tuple[Operand, Temporary]]:
        """Arrays of which one box at a time is needed."""
        for nest in self.group:
            for node in nest.low.nodes:
                users = sum(node in other.buffers for other in self.group)
                if node in self.kept or users < 2 or node not in nest.buffers:
                    continue
                box = next(_boxes(nest.body, nest.buffers[node], nest.loops, {}))
                assert box is not None  # see _apart
                yield node, Temporary(node, box.steps[-1:], node.dtype)

    def run(self) -> Lowered:
        """The kernel of the group."""
        before: list[Statement] = []
        body: list[Statement] = []
        after: list[Statement] = []
        operands: dict[Operand, None] = {}
        writes: set[Operand] = set()
        nodes: list[Node] = []
        for nest in self.group:
            low = nest.low
            for operand, buffer in nest.buffers.items():
                held = self.boxes.get(operand, operand)
                if held not in operands:
                    operands[held] = None
                    k = len(self.buffers)
                    self.buffers[held] = Buffer(f"x{k}", buffer.dtype, k)
            writes.update(self.boxes.get(o, o) for o in low.writes)
            nodes += low.nodes
            before += self.renamed(nest, nest.before)
            body += self.renamed(nest, nest.body)
            after += self.renamed(nest, nest.after)
        merged = tuple(body)
        for (var, _), (_, extent) in zip(
            reversed(self.names), reversed(self.extents), strict=True
        ):
            merged = (For(var, extent, merged),)
        first = self.group[0].low.kernel
        kernel = Kernel(
            first.name, tuple(self.buffers.values()), (*before, *merged, *after), "", first.stage
        )
        return Lowered(kernel, tuple(operands), tuple(nodes), frozenset(writes))

    def renamed(self, nest: _Nest, body: Iterable[Statement]) -> list[Statement]:
        """Statements of a nest on the buffers and in the loops of the group."""
        whose = {b.name: o for o, b in nest.buffers.items()}
        names = {a: b for (a, _), (b, _) in zip(nest.loops, self.names, strict=True)}
        shared = set(names.values())

        def place(buffer: Buffer, offset: Affine) -> tuple[Buffer, Affine]:
            operand = whose[buffer.name]
            offset = offset.rename(names)
            if operand in self.boxes:
                terms = tuple((v, c) for v, c in offset.terms if v not in shared)
                offset, operand = Affine(terms, offset.const), self.boxes[operand]
            return self.buffers[operand], offset

        def moved(s: Statement) -> Statement:
            if isinstance(s, For):
                return replace(s, body=tuple(map(moved, s.body)))
            if isinstance(s, Store):
                buffer, offset = place(s.buffer, s.offset)
                return replace(s, buffer=buffer, offset=offset)
            if isinstance(s, Let) and isinstance(s.value, Load):
                return replace(s, value=Load(*place(s.value.buffer, s.value.offset)))
            if isinstance(s, Call):
                (a, p), (b, q), (c, r) = map(place, (s.a, s.b, s.c), s.offsets)
                return replace(s, a=a, b=b, c=c, offsets=(p, q, r))
            return s

        return list(map(moved, body))

