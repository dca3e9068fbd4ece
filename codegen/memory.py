"""The memory plan: where every buffer of every kernel lies.

Leaves, constants and results have memory of their own. Everything else lies in one workspace, in
blocks that overlap only where their lifetimes do not meet (`codegen/workspace.py`), so the buffers
of one kernel never do. A kernel may write into the block that it reads when each element is read
for the last time before it is written, at the same place; this is read off the loops themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from codegen.access import root_of
from codegen.counted import counted, counted_in, counted_in_calls, tellers_of
from codegen.loop_ir import Affine, Buffer, For, Kernel, Let, Load, Only, Statement, Store
from codegen.lowering import lower_copy
from codegen.program import Table
from codegen.schedule import MOST_LINES, Schedule
from codegen.sharing import share
from codegen.values import CopyOf, Lowered, Operand, Scratch, Temporary, merge_buffers
from codegen.workspace import Block, Layout, laid_out
from symgrad.graph.dims import Counted, Dim, Extent, at_most, first_lines, same, size
from symgrad.graph.nodes import Constant, Input, Node


@dataclass(frozen=True, slots=True, eq=False)
class Invoked:
    """One call of a kernel: `entries` are places in the table of addresses, one for each buffer.

    meet:  in a team, whether all workers meet before it.
    tells: dims whose values the program reads before it, as the last elements of these entries.
    """

    kernel: Kernel
    entries: tuple[int, ...]
    nodes: tuple[Node, ...]
    meet: bool = False
    tells: tuple[tuple[Counted, int], ...] = ()


@dataclass(frozen=True, slots=True)
class InnerPlace:
    """Where an entry of a body's table lies: an operand of the loop, moved by `step` a step.

    rows: moved by `step` for each row of the steps before, where steps have rows of their own.
    each: in a team where every worker has its own: so many operands behind that of the one before.
    """

    operand: int
    step: Extent
    each: int = 0
    rows: bool = False


@dataclass(frozen=True, slots=True)
class Live:
    """The rows of a recurrence's steps: how many is a dim in its body.

    start, count: the operands that tell, for each step, where its rows begin and how many they are.
    """

    dim: Counted
    start: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class LoweredLoop:
    """The calls of a recurrence's body; `places` tells where each entry of its table lies.

    bound: the operand that tells how many steps do anything; None: all of them.
    turns: it is no recurrence, but kernels that take turns over rows (`codegen/batch_fusion.py`).
    rows:  in a team whose workers share the turns: the operands of which a turn touches nothing but
           its own row; None where every worker runs all steps.
    live:  the rows that a step works on, where that is some of them.
    """

    operands: tuple[Operand, ...]
    nodes: tuple[Node, ...]
    writes: frozenset[Operand]
    length: Extent
    reverse: bool
    calls: tuple[Invoked | InvokedLoop, ...]
    places: tuple[InnerPlace, ...]
    bound: int | None = None
    turns: bool = False
    rows: frozenset[Operand] | None = None
    live: Live | None = None

    #: It is no copy.
    copies: ClassVar[bool] = False

    @property
    def checks(self) -> bool:
        """Whether a kernel of the body checks indices."""
        return any(kernel.checks for kernel in kernels_of(self.calls))

    @property
    def counted(self) -> frozenset[Counted]:
        """The dims that the program must have counted before it."""
        found = counted_in_calls(self.calls) | counted(p.step for p in self.places)
        return found - {self.live.dim} if self.live else found


@dataclass(frozen=True, slots=True, eq=False)
class InvokedLoop:
    """A recurrence in the plan: `entries` are places in the table, one for each operand.

    meet, tells: as of a kernel's call.
    """

    loop: LoweredLoop
    entries: tuple[int, ...]
    meet: bool = False
    tells: tuple[tuple[Counted, int], ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it computes."""
        return self.loop.nodes


@dataclass(frozen=True, slots=True, eq=False)
class Plan(Table):
    """Calls in order, and the table of addresses that a program is given.

    results: nodes whose values the caller gets.
    workers: for a team of so many at most.
    """

    results: tuple[Node, ...]
    calls: tuple[Invoked | InvokedLoop, ...]
    lifetimes: tuple[tuple[Operand, int, int, int], ...]
    workers: int = 1

    def live_bound(self, dims: Mapping[Dim, int]) -> int:
        """The most bytes that live at once, what is written over another value counted once."""
        return self.layout.bound(dims)

    def __str__(self) -> str:
        lines = []
        for slot in self.slots:
            block = self.layout.blocks[slot.block]
            calls = ", ".join(f"{a + 1}-{b + 1}" for a, b in sorted(block.spans)[:8])
            more = ", .." if len(block.spans) > 8 else ""
            held = f"{block.content} bytes"
            if isinstance(block.content, Layout):
                held = f"part {slot.inside} of a recurrence's memory"
            lines.append(f"slot {slot.number:<3} {held}, calls {calls}{more}")
        return first_lines(lines, MOST_LINES) or "no workspace"


def _bytes(operand: Operand) -> Extent:
    """The size in bytes of an operand that is no scratch, at most."""
    assert not isinstance(operand, Scratch)
    return at_most(size((*operand.shape, operand.dtype.itemsize)))


def kernels_of(calls: Iterable[Invoked | InvokedLoop]) -> Iterator[Kernel]:
    """All kernels that are called, those of recurrences too."""
    for call in calls:
        if isinstance(call, InvokedLoop):
            yield from kernels_of(call.loop.calls)
        else:
            yield call.kernel


def plan_memory(
    schedule: Schedule,
    kernels: Sequence[Lowered | LoweredLoop],
    results: Sequence[Node],
    updates: Sequence[tuple[Input, Node]],
    leaves: Sequence[Input],
    may_fail: bool = True,
    workers: int = 1,
) -> Plan:
    """Give every operand a place.

    Args:
        results: nodes whose values the caller gets, each in an array of its own.
        updates: leaves and the nodes whose values they take at the end.
        leaves:  all leaves that the program may be given, in the order of the table.
        may_fail: whether a bad index must leave all leaves as they were.
        workers: for a team of so many at most.
    """
    planner = _Planner(schedule, list(kernels), results, updates, leaves, may_fail, workers)
    return planner.run()


class _Planner:
    def __init__(
        self,
        schedule: Schedule,
        kernels: list[Lowered | LoweredLoop],
        results: Sequence[Node],
        updates: Sequence[tuple[Input, Node]],
        leaves: Sequence[Input],
        may_fail: bool,
        workers: int,
    ) -> None:
        self.schedule = schedule
        self.kernels = kernels
        self.may_fail, self.workers = may_fail, workers
        self.leaves = tuple(leaves)
        self.results = tuple(dict.fromkeys(root_of(n) for n in results))
        self.constants = tuple(
            dict.fromkeys(o for k in kernels for o in k.operands if isinstance(o, Constant))
        )
        self.entry: dict[Operand, int] = {}
        for k, own in enumerate((*self.leaves, *self.constants, *self.results), 1):
            self.entry.setdefault(own, k)
        self.blocks: list[Block] = []
        self.of_size: dict[Extent, list[int]] = {}  # blocks that take turns, in a team
        self.place: dict[Operand, tuple[int, int]] = {}  # a block, and a slot inside it
        self.tells = dict(self._tells())
        self._updates(updates)

    def _tells(self) -> Iterator[tuple[int, list[tuple[Counted, Node]]]]:
        """The dims that are read before a call, which is the first that needs them."""
        left = tellers_of(self.schedule.graph)
        for k, low in enumerate(self.kernels if left else ()):
            needed = low.counted if isinstance(low, LoweredLoop) else counted_in(low.kernel)
            if found := [(d, left.pop(d)) for d in list(left) if d in needed]:
                yield k, found

    def _updates(self, updates: Sequence[tuple[Input, Node]]) -> None:
        """A right-hand side is written over its leaf where that is safe, else copied at the end.

        Safe is what nothing reads from its first write on, and what stands behind every check of an
        index: a call that fails changes no leaf.
        """
        last, first = self._last_uses(), self._first_writes()
        checked = max((k for k, low in enumerate(self.kernels) if low.checks), default=-1)

        def may_lie(root: Operand, leaf: Input) -> bool:
            k = first.get(root, -1)
            return (
                k > (checked if self.may_fail else -1)
                and root not in self.entry
                and not isinstance(root, Scratch)
                and root.dtype == leaf.dtype
                and (
                    last.get(leaf, -1) < k
                    or (last[leaf] == k and self._in_place(self.kernels[k], leaf, root))
                )
            )

        copies: list[CopyOf] = []
        for leaf, node in updates:
            root: Operand = root_of(node)
            if not may_lie(root, leaf):
                copies.append(CopyOf(leaf, node))
                continue
            self.entry[root] = self.entry[leaf]
            # where it starts as a copy, as a carry does, what is copied may lie there before it
            while (low := self.kernels[first[root]]).copies:
                source = low.operands[0]
                if last[source] != first[root] or not may_lie(source, leaf):
                    break
                self.entry[source] = self.entry[leaf]
                root = source
        number = len(self.schedule.stages)
        made = [lower_copy(copy, number + k) for k, copy in enumerate(copies)]
        self.kernels.extend(made if self.workers == 1 else [share(c, self.workers) for c in made])

    def _first_writes(self) -> dict[Operand, int]:
        first: dict[Operand, int] = {}
        for k, low in enumerate(self.kernels):
            for operand in low.writes:
                first.setdefault(operand, k)
        return first

    def _last_uses(self) -> dict[Operand, int]:
        last: dict[Operand, int] = {}
        for k, low in enumerate(self.kernels):
            for operand in low.operands:
                last[operand] = k
        for k, told in self.tells.items():
            for _, node in told:
                last[node] = max(last.get(node, k), k)
        return last

    def _in_place(self, low: Lowered | LoweredLoop, old: Operand, new: Operand) -> bool:
        if isinstance(low, LoweredLoop):
            return False
        place = {o: b for o, b in zip(low.operands, low.kernel.buffers, strict=True)}
        return (
            old in place and new in place and reads_before_write(low.kernel, place[old], place[new])
        )

    def run(self) -> Plan:
        last = self._last_uses()
        for k, low in enumerate(self.kernels):
            for operand in low.operands:
                if operand not in self.entry and operand not in self.place:
                    self.place[operand] = self._take(low, operand, k, last)
        if self.workers > 1:  # workers are at different calls: what overlaps would need meetings
            for block in self.blocks:
                block.spans[:] = [(0, len(self.kernels))]
        layout, slot = laid_out(self.blocks, list(self.place.values()))
        first = 1 + len(self.leaves) + len(self.constants) + len(self.results)
        self.entry |= {o: first + k for o, k in zip(self.place, slot, strict=True)}
        begin: dict[Operand, int] = {}
        for k, low in enumerate(self.kernels):
            for operand in low.operands:
                begin.setdefault(operand, k)
        lifetimes = [
            (o, k, begin[o], last[o]) for o, k in zip(self.place, slot, strict=True)
        ]
        return Plan(
            *(self.leaves, self.constants, self.results, layout),
            *(self._calls(), tuple(lifetimes), self.workers),
        )

    def _calls(self) -> tuple[Invoked | InvokedLoop, ...]:
        calls: list[Invoked | InvokedLoop] = []
        told: list[tuple[Counted, int]] = []
        for k, low in enumerate(self.kernels):
            entries = [self.entry[o] for o in low.operands]
            told += [(d, self.entry[node]) for d, node in self.tells.get(k, ())]
            if isinstance(low, LoweredLoop):
                calls.append(InvokedLoop(low, tuple(entries), tells=tuple(told)))
            elif low.copies and len(set(entries)) == 1:
                continue
            else:
                kernel, kept = merge_buffers(low.kernel, entries)
                own = tuple(entries[j] for j in kept)
                calls.append(Invoked(kernel, own, low.nodes, tells=tuple(told)))
            told = []
        return tuple(calls)

    def _take(
        self, low: Lowered | LoweredLoop, operand: Operand, k: int, last: dict[Operand, int]
    ) -> tuple[int, int]:
        """A new block, or the one of an operand that is read here for the last time."""
        if isinstance(operand, Scratch):
            for other, place in self.place.items():
                if isinstance(other, Scratch) and other.layout is operand.layout:
                    return place[0], operand.slot
            self.blocks.append(Block(operand.layout, [(k, k)]))
            return len(self.blocks) - 1, operand.slot
        for old in low.operands:
            block = self.place.get(old, (-1, 0))[0]
            if (
                block >= 0
                and not isinstance(old, Scratch)
                and last[old] == k == self.blocks[block].spans[-1][1]
                and old.dtype == operand.dtype
                and same(_bytes(old), _bytes(operand)) is True
                and not any(self.place.get(o) == (block, 0) and o is not old for o in low.operands)
                and self._in_place(low, old, operand)
            ):
                spans = self.blocks[block].spans
                spans[-1] = (spans[-1][0], last[operand])
                return block, 0
        alike: list[int] = []
        if self.workers > 1 and not isinstance(operand, Temporary):
            alike = self.of_size.setdefault(_bytes(operand), [])
            for n in alike:
                if (spans := self.blocks[n].spans)[-1][1] < k:
                    spans.append((k, last[operand]))
                    return n, 0
        alike.append(len(self.blocks))
        self.blocks.append(Block(_bytes(operand), [(k, last[operand])]))
        return len(self.blocks) - 1, 0


def reads_before_write(kernel: Kernel, old: Buffer, new: Buffer) -> bool:
    """Whether `new` may lie where `old` lies: each element is read before it is written.

    Holds when all loads of `old` and all stores of `new` have one offset, and no load stands after
    a store: offsets are row-major in the loop variables, so two iterations touch different
    elements.
    """
    loads: list[tuple[int, Affine]] = []
    stores: list[tuple[int, Affine]] = []
    time = 0

    def visit(body: tuple[Statement, ...]) -> None:
        nonlocal time
        for s in body:
            time += 1
            if isinstance(s, (For, Only)):
                visit(s.body)
            elif isinstance(s, Let) and isinstance(s.value, Load):
                if s.value.buffer.name == old.name:
                    loads.append((time, s.value.offset))
                if s.value.buffer.name == new.name:
                    stores.append((-1, s.value.offset))
            elif isinstance(s, Store) and s.buffer.name == new.name:
                stores.append((time, s.offset))
            elif isinstance(s, Store) and s.buffer.name == old.name:
                loads.append((10**9, s.offset))
            elif not isinstance(s, (Let, Store)) and hasattr(s, "offsets"):
                loads.append((10**9, Affine()))

    visit(kernel.body)
    if not stores or not loads:
        return bool(stores)
    place = stores[0][1]
    if any(offset != place for _, offset in loads + stores):
        return False
    return max(t for t, _ in loads) < min(t for t, _ in stores)
