"""Kernels that walk over the same rows take turns: each does one row, while all of it is near.

rewrite:  for i: h_i := x_i W;  for i: g_i := gelu(h_i);  for i: y_i := g_i V
          ->  for i: h := x_i W;  g := gelu(h);  y_i := g V
requires: the outermost loops have the same extent; what one kernel writes and another touches lies
          in the same box of memory for the same i, and in boxes apart for different i; what a
          kernel adds up over i no other one of them touches
keeps:    the order in which each kernel does its own work

A row is what belongs to one element of the batch: in a Transformer a sequence, of a hundred places
and more. From layer to layer, and all the way back, it stays in the caches, while arrays of the
whole batch would go to memory and back between any two kernels. What nothing else reads needs the
memory of a single row. Sums over the batch are begun in the first turn and go on in the others.

The workers of a team share the turns, with memory for a row and sums of their own
(`codegen/turn_sums.py`).

Weights are read in every turn, and products turn or copy them: a row must be long enough to be
worth that, and the weights must stay in the cache beside it. Where most of what kernels make is
kept for others, nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from codegen.access import root_of
from codegen.counted import tellers_of
from codegen.loop_ir import (
    FEW_ROWS,
    Buffer,
    For,
    Kernel,
    Let,
    Literal,
    Statement,
    Store,
)
from codegen.memory import InnerPlace, LoweredLoop, plan_memory
from codegen.schedule import Schedule
from codegen.tune import collapse
from codegen.turn_sums import begun, copies_of, ended, on_copies, operations_of
from codegen.turns import Sum, Turn, is_inside, turn_of
from codegen.values import Lowered, Operand, RunningTotals, Scratch, Temporary
from codegen.workspace import Block, Layout, Slot
from symgrad.graph.dims import Extent, same, size, typical
from symgrad.graph.nodes import Constant, Input, Node

#: Bytes that kernels touch in a turn: with less, a whole batch may as well stay in the cache.
#: And bytes of weights that may be read in each: half of a second cache of 2 MiB.
LEAST_BYTES, MOST_WEIGHTS = 256 << 10, 1 << 20

#: The part of what they write that must not be needed elsewhere: what is kept goes to memory anyway
#: (a way forward alone, all of it kept for the way back, is 1 to 4 % slower in turns).
LEAST_SHARE = 0.5
#: With so many products a group is begun at most, before none is looked for any more.
MOST_TRIES = 8

Finish: TypeAlias = Callable[[Sequence[Lowered]], list[Lowered]]


@dataclass(frozen=True, slots=True)
class Finishing:
    """How kernels are tuned and get their formulas: those that take turns, and the others.

    workers: of a team, which share the turns, and the other kernels each by itself.
    """

    inside: Finish
    others: Finish
    workers: int = 1


def take_turns(
    schedule: Schedule, kernels: Sequence[Lowered | LoweredLoop], finish: Finishing
) -> list[Lowered | LoweredLoop]:
    """Let kernels take turns where that gains; see the module.

    Kernels that stand among them come before all of them, or after, where they can.
    """
    workers = finish.workers
    if tellers_of(schedule.graph):  # what a kernel must come behind is not told by its operands
        return _finished(kernels, finish.others)
    turns = {id(low): _turn_for(low, workers) for low in kernels if isinstance(low, Lowered)}
    done: list[Lowered | LoweredLoop] = []
    rest = list(kernels)
    for extent in _promising(list(turns.values())):
        while (found := _group(rest, turns, extent)) is not None:
            ahead, group, left = found
            joined = _Joined(schedule, group, kernels, workers)
            if joined.share_kept_near < LEAST_SHARE:
                break
            done.extend(_finished(ahead, finish.others))
            done += joined.run(finish.inside)
            rest = left
    return [*done, *_finished(rest, finish.others)]


def _turn_for(low: Lowered, workers: int) -> Turn | None:
    """A kernel as turns; None where it has none, or none that so many workers may share."""
    turn = turn_of(low)
    if turn is None or workers == 1:
        return turn
    shared = typical(turn.extent) >= max(FEW_ROWS, workers)
    return turn if shared and operations_of(turn, workers) is not None else None


def _finished(
    kernels: Iterable[Lowered | LoweredLoop], finish: Finish
) -> list[Lowered | LoweredLoop]:
    return [low if isinstance(low, LoweredLoop) else finish([low])[0] for low in kernels]


def _promising(turns: Sequence[Turn | None]) -> list[Extent]:
    """Extents of loops that might be worth it."""
    alike: dict[Extent, list[Turn]] = {}
    for turn in turns:
        if turn is not None:
            alike.setdefault(turn.extent, []).append(turn)
    return [extent for extent, group in alike.items() if _is_worth(group)]


def _group(
    kernels: Sequence[Lowered | LoweredLoop], turns: Mapping[int, Turn | None], extent: Extent
) -> tuple[list[Lowered | LoweredLoop], list[Turn], list[Lowered | LoweredLoop]] | None:
    """The first kernels that may take turns: what comes before them, they, and what is left."""
    tries = 0
    for first, low in enumerate(kernels):
        turn = turns.get(id(low))
        if turn is None or turn.extent != extent or not turn.calls:
            continue
        if (tries := tries + 1) > MOST_TRIES:
            break
        start = first
        while start and (before := turns.get(id(kernels[start - 1]))) and before.extent == extent:
            start -= 1
        for place in dict.fromkeys((start, first)):
            begin = turns[id(kernels[place])]
            assert begin is not None
            group = _Group(begin)
            for other in kernels[place + 1 :]:
                turn = turns.get(id(other))
                group.take(other, turn if turn is not None and turn.extent == extent else None)
            if _is_worth(group.turns):
                return [*kernels[:place], *group.ahead], group.turns, group.behind
    return None


class _Group:
    """Kernels that may take turns, and those among them that come before or after all of them."""

    def __init__(self, first: Turn) -> None:
        self.turns: list[Turn] = []
        self.users: dict[Operand, list[Turn]] = {}
        self.ahead: list[Lowered | LoweredLoop] = []
        self.others: list[tuple[Lowered | LoweredLoop, bool]] = []  # and whether it may be ahead
        self.writes: set[Operand] = set()
        self.left: set[Operand] = set()
        self.left_writes: set[Operand] = set()
        self.weights: dict[Operand, int] = {}
        self.add(first)

    def add(self, turn: Turn) -> None:
        """Let a kernel join."""
        self.turns.append(turn)
        self.weights |= _weights(turn)
        self.writes |= turn.low.writes
        for operand in turn.low.operands:
            self.users.setdefault(operand, []).append(turn)
        self.ahead += [low for low, early in self.others if early]
        self.others = [(low, early) for low, early in self.others if not early]

    def take(self, low: Lowered | LoweredLoop, turn: Turn | None) -> None:
        """Put the next kernel into the group, before it, or behind it."""
        moves = self.left_writes.isdisjoint(low.operands) and self.left.isdisjoint(low.writes)
        if turn is not None and moves and self.fits(turn):
            self.add(turn)
            return
        early = (
            moves
            and self.writes.isdisjoint(low.operands)
            and self.users.keys().isdisjoint(low.writes)
        )
        if not early:
            self.left.update(low.operands)
            self.left_writes |= low.writes
        self.others.append((low, early))

    @property
    def behind(self) -> list[Lowered | LoweredLoop]:
        """What is left when all of the group is done."""
        return [low for low, _ in self.others]

    def fits(self, turn: Turn) -> bool:
        """Whether a kernel may join."""
        if sum((self.weights | _weights(turn)).values()) > MOST_WEIGHTS:
            return False
        return all(
            _apart(operand, [*self.users[operand], turn])
            for operand in turn.low.operands
            if operand in self.users
        )


def _apart(operand: Operand, using: Sequence[Turn]) -> bool:
    """Whether kernels that share an operand touch, in different turns, different parts of it."""
    room = using[0].steps.get(operand, 0)
    if any(same(turn.steps.get(operand, 0), room) is not True for turn in using):
        return False
    if not any(operand in turn.low.writes for turn in using):
        return True
    if any(operand is s.operand for turn in using for s in turn.sums):
        return False
    return all(is_inside(turn, operand, room) for turn in using)


def _weights(turn: Turn) -> dict[Operand, int]:
    """The bytes of what its products read in every turn."""
    whose = {b.name: o for o, b in turn.buffers.items()}
    found: dict[Operand, int] = {}
    for call in turn.calls:
        weight = whose[call.b.name]
        if turn.stays(weight) and not _is_own(weight):
            found[weight] = typical(size((call.k, call.n, call.b.dtype.itemsize)))
    return found


def _is_worth(turns: Sequence[Turn]) -> bool:
    """Whether taking turns gains: see the module."""
    rows: dict[Operand, int] = {}
    for turn in turns:
        for operand, step in turn.steps.items():
            if not isinstance(operand, (Temporary, RunningTotals, Scratch)):
                rows[operand] = typical(step) * operand.dtype.itemsize
    products = sum(len(turn.calls) for turn in turns)
    reads = any(_weights(turn) for turn in turns)
    return products > 1 and reads and sum(rows.values()) >= LEAST_BYTES


class _Joined:
    """Makes one loop of kernels that take turns."""

    def __init__(
        self,
        schedule: Schedule,
        turns: Sequence[Turn],
        kernels: Sequence[Lowered | LoweredLoop],
        workers: int,
    ) -> None:
        self.schedule, self.turns, self.workers = schedule, turns, workers
        self.copies: dict[Operand, Temporary] = {}
        if workers > 1:
            for turn in turns:
                self.copies |= copies_of(turn, workers)
        own = {id(turn.low) for turn in turns}
        self.kept: set[Operand] = {root_of(o) for o in schedule.graph.outputs}
        self.kept.update(o for low in kernels if id(low) not in own for o in low.operands)
        self.rows: dict[Operand, Operand] = dict(self._rows())

    def _rows(self) -> Iterator[tuple[Operand, Operand]]:
        """Arrays of which one row at a time is needed, and that row."""
        users: dict[Operand, list[Turn]] = {}
        for turn in self.turns:
            for operand in turn.low.operands:
                users.setdefault(operand, []).append(turn)
        for operand, using in users.items():
            if isinstance(operand, (Temporary, RunningTotals, Scratch, Input, Constant)):
                continue
            if operand in self.kept or operand not in using[0].low.writes:
                continue
            if not using[0].stays(operand) and _apart(operand, using):
                step = using[0].steps[operand]
                yield operand, Temporary(operand, (step,), operand.dtype)

    @property
    def share_kept_near(self) -> float:
        """The part of the rows that are written which nothing else reads."""
        written: dict[Operand, int] = {}
        for turn in self.turns:
            for operand in turn.low.writes:
                if not isinstance(operand, (Temporary, RunningTotals, Scratch)):
                    step = typical(turn.steps.get(operand, 0))
                    written[operand] = step * operand.dtype.itemsize
        near = sum(n for operand, n in written.items() if operand in self.rows)
        return near / max(sum(written.values()), 1)

    def run(self, finish: Finish) -> list[Lowered | LoweredLoop]:
        """What begins the sums, the loop, and in a team what makes the workers' sums one."""
        sums, like = [s for turn in self.turns for s in turn.sums], self.turns[0].low.kernel
        loop = self.loop(finish([self.lowered(turn) for turn in self.turns]))
        if not sums:
            return [loop]
        if self.workers == 1:
            return [_cleared(sums, like), loop]
        operations: dict[Node, str] = {}
        for turn in self.turns:
            operations |= operations_of(turn, self.workers) or {}
        end = ended(sums, operations, self.copies, like)
        return [begun(sums, self.copies, like), loop, end]

    def loop(self, lows: list[Lowered]) -> LoweredLoop:
        """The loop of these kernels."""
        steps: dict[Operand, Extent] = {}
        for turn in self.turns:
            for operand in turn.low.operands:
                if operand not in self.rows and not _is_own(operand):
                    own = self.copies.get(operand, operand)
                    steps[own] = turn.steps.get(operand, 0)
        given = [o for o in steps if not isinstance(o, Constant)]
        leaves = cast(list[Input], given)  # what it is given, as a program is given its leaves
        plan = plan_memory(self.schedule, lows, (), (), leaves, may_fail=False)
        operands: dict[Operand, int] = {}

        def place(operand: Operand, step: Extent, each: int = 0) -> InnerPlace:
            return InnerPlace(operands.setdefault(operand, len(operands)), step, each)

        places = [InnerPlace(-1, 0), *(place(o, steps[o]) for o in given)]
        places += [place(c, steps[c]) for c in plan.constants]
        n = len(plan.slots)
        layout = _for_each(plan.layout, self.workers)
        slots = [Scratch(layout, k) for k in range(self.workers * n)]
        places += [place(slot, 0, n if self.workers > 1 else 0) for slot in slots[:n]]
        for slot in slots[n:]:
            place(slot, 0)
        writes = frozenset(o for low in lows for o in low.writes if o in steps)
        extent, rows = self.turns[0].extent, self.touched_by_row if self.workers > 1 else None
        return LoweredLoop(
            *(tuple(operands), (), writes, extent, False, plan.calls, tuple(places)),
            turns=True,
            rows=rows,
        )

    @property
    def touched_by_row(self) -> frozenset[Operand]:
        """The operands of which each turn touches nothing but its own row."""
        return frozenset(
            operand
            for operand in {o for turn in self.turns for o in turn.low.operands}
            if not _is_own(operand)
            and all(
                is_inside(turn, operand, turn.steps.get(operand, 0))
                for turn in self.turns
                if operand in turn.buffers
            )
        )

    def lowered(self, turn: Turn) -> Lowered:
        """The kernel of a turn."""
        low = turn.low
        seen: dict[Operand, Operand] = {**self.rows, **self.copies}
        return replace(
            low,
            kernel=replace(low.kernel, body=on_copies(turn) if self.workers > 1 else turn.body),
            operands=tuple(seen.get(o, o) for o in low.operands),
            writes=frozenset(seen.get(o, o) for o in low.writes),
        )


def _for_each(layout: Layout, workers: int) -> Layout:
    """The same memory for each worker; the slots of one follow those of the one before."""
    if workers == 1:
        return layout
    blocks = tuple(Block(layout, [(0, 0)]) for _ in range(workers))
    slots = [(w, slot.number) for w in range(workers) for slot in layout.slots]
    return Layout(blocks, tuple(Slot(k, *slot) for k, slot in enumerate(slots)))


def _is_own(operand: Operand) -> bool:
    """Whether it is memory of one kernel."""
    return isinstance(operand, (Temporary, RunningTotals, Scratch))


def _cleared(sums: Sequence[Sum], like: Kernel) -> Lowered:
    """The kernel that begins sums."""
    buffers: dict[Operand, Buffer] = {}
    body: list[Statement] = []
    for k, s in enumerate(sums):
        buffer = buffers.setdefault(s.operand, Buffer(f"x{k}", s.operand.dtype, k))
        body.append(Let(f"v{k}", buffer.dtype, Literal(s.number)))
        fill: Statement = Store(buffer, s.offset, f"v{k}")
        for var, extent in reversed(s.loops):
            fill = For(var, extent, (fill,))
        body.append(fill)
    kernel = Kernel(like.name, tuple(buffers.values()), tuple(body), "sums begin", like.stage)
    return Lowered(
        replace(kernel, body=collapse(kernel.body)), tuple(buffers), (), frozenset(buffers)
    )
