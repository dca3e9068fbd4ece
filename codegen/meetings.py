"""Where the workers of a team must meet: Plan -> Plan.

Between two meetings the workers run at their own pace. So a meeting stands before an access to
memory where another worker may have touched that memory since the last meeting, and one of the two
writes. What a worker touches is told by who owns each element:

    Owned(rows, bytes, period)   element at byte p is the worker's whose rows contain
                                 (p mod period) // bytes
    Own(bytes)                   a place in memory of which every worker has so many bytes
    "first"                      worker 0 alone
    "all"                        anyone

Two accesses with equal owners never conflict: each element stays with its worker. So rows of a
batch go through layer after layer, and through the steps of a recurrence, without a meeting.

A small kernel that would have to be met for is left to worker 0 where that avoids it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from codegen import loop_ir as ir
from codegen.injectivity import nonnegative
from codegen.loop_ir import WORKER, Affine, For, Kernel, Let, Load, Only, Statement, Store, Wait
from codegen.memory import Invoked, InvokedLoop, Live, Plan
from codegen.values import Scratch, Temporary
from codegen.work import MEETING, SMALL, TURN, work_of
from symgrad.graph.dims import Extent, size, typical


@dataclass(frozen=True, slots=True)
class Owned:
    """Elements by their worker; no period where one row follows the other to the end."""

    rows: Extent
    bytes: Extent
    period: Extent | None = None


@dataclass(frozen=True, slots=True)
class Own:
    """Memory of each worker, one behind the other."""

    bytes: Extent


Owner: TypeAlias = Owned | Own | str
#: A block of memory: an entry of the program's table, and how loops move the window that is seen.
Block: TypeAlias = tuple[int, tuple[tuple[int, Extent], ...]]


@dataclass(frozen=True, slots=True)
class Touch:
    """An access: where, who, and whether it writes."""

    block: Block
    owner: Owner
    writes: bool


def conflicting(a: Touch, b: Touch) -> bool:
    """Whether two accesses of different workers may need an order."""
    if a.block[0] != b.block[0] or not (a.writes or b.writes):
        return False
    if a.owner == b.owner == "first":
        return False
    return a.owner != b.owner or a.owner == "all" or a.block != b.block


def with_meetings(plan: Plan) -> Plan:
    """The plan for a team: meetings before calls and in kernels, small kernels for worker 0."""
    checking = max((k for k, c in enumerate(plan.calls) if _checks(c)), default=-1)
    planner = _Planner()
    first = planner.calls(plan.calls[: checking + 1], _outermost, _State())
    if checking >= 0:  # all meet to hear of bad indices
        planner.state = _State()
    rest = planner.calls(plan.calls[checking + 1 :], _outermost, planner.state)
    return replace(plan, calls=(*first, *rest))


def _checks(call: Invoked | InvokedLoop) -> bool:
    return call.loop.checks if isinstance(call, InvokedLoop) else call.kernel.checks


class _State:
    """What was touched since the last meeting, by entries of the table."""

    def __init__(self) -> None:
        self.touches: dict[int, set[Touch]] = {}

    def add(self, touches: Iterable[Touch]) -> None:
        """Enter accesses."""
        for touch in touches:
            self.touches.setdefault(touch.block[0], set()).add(touch)

    def conflicts(self, touches: Iterable[Touch]) -> bool:
        """Whether any of these needs a meeting first."""
        return any(
            conflicting(old, new) for new in touches for old in self.touches.get(new.block[0], ())
        )

    def joined(self, other: _State) -> _State:
        """What either has."""
        made = _State()
        for touches in (*self.touches.values(), *other.touches.values()):
            made.add(touches)
        return made

    def __le__(self, other: _State) -> bool:
        return all(own <= other.touches.get(k, set()) for k, own in self.touches.items())


class _Where:
    """Blocks of memory by the entries of a table."""

    def __init__(self, blocks: Mapping[int, Block] | None = None) -> None:
        self.blocks = blocks

    def __call__(self, entry: int) -> Block:
        return (entry, ()) if self.blocks is None else self.blocks[entry]


_outermost = _Where()


class _Planner:
    """Goes through calls in order; `state` is what was touched since the last meeting."""

    def __init__(self) -> None:
        self.state = _State()
        self.alone: dict[int, bool] = {}
        self.tried: list[InvokedLoop] = []  # kept, since calls are known by their identity
        self.segmented: dict[int, tuple[Kernel, Kernel, list[list[Touch]]]] = {}

    def calls(
        self, calls: Sequence[Invoked | InvokedLoop], where: _Where, state: _State
    ) -> list[Invoked | InvokedLoop]:
        """The calls with their meetings; afterwards `self.state` is what is touched since."""
        self.state = state.joined(_State())
        done: list[Invoked | InvokedLoop] = []
        for c in calls:
            if c.tells:  # all meet, since rows of such dims belong to other workers than before
                self.state = _State()
                self.reads(where, (entry for _, entry in c.tells))
            done.append(self.loop(c, where) if isinstance(c, InvokedLoop) else self.call(c, where))
        return done

    def reads(self, where: _Where, entries: Iterable[int]) -> None:
        """Enter what every worker reads beside its kernels."""
        self.state.add(Touch(where(entry), "all", False) for entry in entries)

    def call(self, call: Invoked, where: _Where) -> Invoked:
        """One kernel."""
        shared, segments = self.placed(call.kernel, call, where)
        meet = self.state.conflicts(segments[0])
        if not shared.alone:
            if id(call) not in self.alone:
                self.alone[id(call)] = meet and len(segments) == 1 and self.left(call, where)
            if self.alone[id(call)]:
                kernel = replace(shared, body=_unshared(shared.body), alone="small")
                shared, segments = self.placed(kernel, call, where)
                meet = self.state.conflicts(segments[0])
        if meet or len(segments) > 1:
            self.state = _State()
        self.state.add(segments[-1])
        return replace(call, kernel=shared, meet=meet)

    def left(self, call: Invoked, where: _Where) -> bool:
        """Whether a small kernel needs no meeting where worker 0 does it."""
        if typical(work_of(call.kernel.body)) >= SMALL or not _is_shared(call.kernel):
            return False
        kernel = replace(call.kernel, alone="small")
        return not self.state.conflicts(self.placed(kernel, call, where)[1][0])

    def placed(
        self, kernel: Kernel, call: Invoked, where: _Where
    ) -> tuple[Kernel, list[list[Touch]]]:
        """A kernel with the meetings inside it, and what it touches between them."""
        if id(kernel) not in self.segmented:
            self.segmented[id(kernel)] = (kernel, *_segments(kernel))
        _, done, segments = self.segmented[id(kernel)]
        return done, [
            [replace(t, block=where(call.entries[t.block[0]])) for t in part] for part in segments
        ]

    def turns(self, call: InvokedLoop, where: _Where) -> InvokedLoop:
        """Kernels that take turns, of which each worker does its own."""
        loop, touches = call.loop, dict[Touch, None]()
        assert loop.rows is not None
        for place in loop.places:
            if place.operand < 0 or place.each:
                continue
            operand = loop.operands[place.operand]
            assert not isinstance(operand, Scratch)
            owner: Owner = "all"
            if isinstance(operand, Temporary):
                owner = Own(size((*operand.shape[1:], operand.dtype.itemsize)))
            elif operand in loop.rows:
                owner = Owned(loop.length, size((place.step, operand.dtype.itemsize)))
            block = where(call.entries[place.operand])
            touches[Touch(block, owner, operand in loop.writes)] = None
        meet = self.state.conflicts(touches)
        if meet:
            self.state = _State()
        self.state.add(touches)
        return replace(call, meet=meet)

    def loop(self, call: InvokedLoop, where: _Where) -> InvokedLoop:
        """A recurrence: what one step touched may meet what the next one touches."""
        if call.loop.rows is not None:
            return self.turns(call, where)
        blocks: dict[int, Block] = {}
        for k, place in enumerate(call.loop.places):
            if place.operand >= 0:
                entry, moves = where(call.entries[place.operand])
                still = type(place.step) is int and place.step == 0
                blocks[k] = (entry, moves if still else (*moves, (id(call.loop), place.step)))
        inner = _Where(blocks)
        if call.loop.live is not None:
            return self.live(call, call.loop.live, where, inner)
        before = self.state
        calls = self.steps(call, inner, before)
        after, meet = self.state, call.loop.bound is not None  # every worker reads the bound
        if _meetings(calls):  # products by columns read what all have written
            rows = replace(call, loop=replace(call.loop, calls=_by_rows(call.loop.calls)))
            self.tried.append(rows)
            others = self.steps(rows, inner, before)
            if _meetings(others) < _meetings(calls):
                call, calls, after = rows, others, self.state
        if _meetings(calls) and before.touches:
            others = self.steps(call, inner, _State())
            if _meetings(others) < _meetings(calls):  # once before the loop, not in every step
                calls, after, meet = others, self.state, True
        self.state = after
        return replace(call, loop=replace(call.loop, calls=tuple(calls)), meet=meet)

    def live(
        self, call: InvokedLoop, live: Live, where: _Where, inner: _Where
    ) -> InvokedLoop:
        """A recurrence of steps with rows of their own, before which all meet.

        They also meet where a step has not as many rows as the one before: then those that belong
        to a worker are others.
        """
        calls = self.steps(call, inner, _State())
        bound = () if call.loop.bound is None else (call.loop.bound,)
        self.reads(where, (call.entries[k] for k in (*bound, live.start, live.count)))
        return replace(call, loop=replace(call.loop, calls=tuple(calls)), meet=True)

    def steps(
        self, call: InvokedLoop, inner: _Where, entering: _State
    ) -> list[Invoked | InvokedLoop]:
        """The calls of a loop, each step of which begins where the one before ended."""
        while True:
            calls = self.calls(call.loop.calls, inner, entering)
            if self.state <= entering:
                self.state = entering
                return calls
            entering = entering.joined(self.state)


def _is_shared(kernel: Kernel) -> bool:
    """Whether workers share its loops; else each does all of them, for itself."""
    return any(s.shared for s in ir.walk(kernel.body) if isinstance(s, (For, ir.Call)))


def _meetings(calls: Sequence[Invoked | InvokedLoop]) -> int:
    """How often calls meet, loops counted once."""
    return sum(
        c.meet + (_meetings(c.loop.calls) if isinstance(c, InvokedLoop) else _inside(c.kernel))
        for c in calls
    )


def _by_rows(calls: Sequence[Invoked | InvokedLoop]) -> tuple[Invoked | InvokedLoop, ...]:
    """The calls of a step with products by rows where each worker may as well turn all of B^T."""
    done: list[Invoked | InvokedLoop] = []
    for call in calls:
        if isinstance(call, Invoked):
            body = call.kernel.body
            turned = tuple(
                replace(s, shared="m") if isinstance(s, ir.Call) and _may_turn(s) else s
                for s in body
            )
            if turned != body:
                call = replace(call, kernel=replace(call.kernel, body=turned))
        done.append(call)
    return tuple(done)


def _may_turn(call: ir.Call) -> bool:
    """Whether a worker turns B^T in less time than two meetings take."""
    turned = call.shared == "n" and call.transposed[1]
    return turned and typical(size((call.n, call.k))) * TURN < 2 * MEETING


def _inside(kernel: Kernel) -> int:
    return sum(isinstance(s, Wait) for s in kernel.body)


def _unshared(body: Sequence[Statement]) -> tuple[Statement, ...]:
    """Statements for worker 0 alone."""
    done: list[Statement] = []
    for s in body:
        if isinstance(s, Only):
            done.extend(s.body)
        elif isinstance(s, For):
            done.append(replace(s, body=_unshared(s.body), shared=False))
        elif isinstance(s, ir.Call):
            done.append(replace(s, shared=""))
        elif not isinstance(s, Wait):
            done.append(s)
    return tuple(done)


# -- what a kernel touches -----------------------------------------------------------------------


def _segments(kernel: Kernel) -> tuple[Kernel, list[list[Touch]]]:
    """The kernel with meetings where its own statements need them, and what lies between them.

    Blocks are numbers of the kernel's buffers here.
    """
    number = {b.name: k for k, b in enumerate(kernel.buffers)}
    ranges: dict[str, Extent] = {
        s.name: s.extent for s in ir.walk(kernel.body) if isinstance(s, ir.CheckIndex)
    }
    body: list[Statement] = []
    segments: list[list[Touch]] = [[]]
    for s in kernel.body:
        found = dict.fromkeys(
            Touch((number[name], ()), "first" if kernel.alone else owner, writes)
            for name, owner, writes in _touches((s,), None, {}, ranges)
        )
        if any(conflicting(old, new) for new in found for old in segments[-1]):
            body.append(Wait())
            segments.append([])
        body.append(s)
        segments[-1].extend(t for t in found if t not in segments[-1])
    return replace(kernel, body=tuple(body)), segments


_Found: TypeAlias = tuple[str, Owner, bool]


def _touches(
    body: Sequence[Statement],
    shared: For | None,
    around: dict[str, Extent],
    ranges: dict[str, Extent],
) -> Iterator[_Found]:
    """The accesses of statements; `shared` is the shared loop around them."""
    for s in body:
        if isinstance(s, For):
            inside = {**around, s.var: s.extent}
            yield from _touches(s.body, s if s.shared else shared, inside, ranges)
        elif isinstance(s, Only):
            for name, _, writes in _touches(s.body, None, around, ranges):
                yield name, "first", writes
        elif isinstance(s, Let) and isinstance(s.value, Load):
            buffer, offset = s.value.buffer, s.value.offset
            width = buffer.dtype.itemsize
            yield buffer.name, _owner(offset, width, shared, {**ranges, **around}), False
        elif isinstance(s, Store):
            width = s.buffer.dtype.itemsize
            yield s.buffer.name, _owner(s.offset, width, shared, {**ranges, **around}), True
        elif isinstance(s, ir.Call):
            owners = _product_owners(s, shared, around)
            for buffer, owner in zip((s.a, s.b, s.c), owners, strict=True):
                yield buffer.name, owner, buffer is s.c


def _owner(offset: Affine, width: int, loop: For | None, ranges: Mapping[str, Extent]) -> Owner:
    """Who owns an element that is read or written at an offset, in a shared loop."""
    if not isinstance(offset.const, int) and WORKER in offset.const.free_symbols:
        return Own(size((offset.const.coeff(WORKER), width)))
    if loop is None or not nonnegative(offset.const):
        return "all"
    step = offset.coefficient(loop.var)
    if not nonnegative(step) or step == 0:
        return "all"
    rows, each = loop.parts or (loop.extent, 1)
    below: Extent = offset.const
    above: list[Extent] = []
    for var, c in offset.terms:
        if var == loop.var:
            continue
        if var not in ranges or not nonnegative(c):
            return "all"
        reach = c * (ranges[var] - 1)
        if nonnegative(c - step * loop.extent):
            above.append(c)
        else:
            below = below + reach
    if not nonnegative(step - below - 1) or len(above) > 1 or (above and offset.const != 0):
        return "all"
    period = size((above[0], width)) if above else None
    return Owned(rows, size((each, step, width)), period)


def _product_owners(
    call: ir.Call, loop: For | None, around: Mapping[str, Extent]
) -> tuple[Owner, Owner, Owner]:
    """Who owns the elements of A, B and C in a product, in a shared loop or shared itself."""
    left, right = call.transposed
    m, n, k = call.m, call.n, call.k
    stored = ((k, m) if left else (m, k), (n, k) if right else (k, n), (m, n))
    owners: list[Owner] = []
    for which, (offset, length, shape) in enumerate(
        zip(call.offsets, call.rows, stored, strict=True)
    ):
        width = (call.a, call.b, call.c)[which].dtype.itemsize
        if not call.shared:
            last = offset + (size((length, shape[0] - 1)) + shape[1] - 1)
            owners.append(_owner(last, width, loop, around) if loop else "all")
        elif around:
            owners.append("all")
        elif call.shared == "k" and which == 2:
            owners.append(_owner(offset, width, None, {}))
        elif call.shared == "k":
            terms = call.terms or (k, 1)
            owners.append(_matrix_owner(terms, offset, length, shape[1], width, False))
        elif call.shared == "m":
            parts = call.parts or (m, 1)
            by_columns = (left, None, False)[which]
            owners.append(_matrix_owner(parts, offset, length, shape[1], width, by_columns))
        else:
            by_columns = (None, not right, True)[which]
            owners.append(_matrix_owner((n, 1), offset, length, shape[1], width, by_columns))
    a, b, c = owners
    return a, b, c


def _matrix_owner(
    parts: ir.Partition,
    offset: Affine,
    length: Extent,
    columns: Extent,
    width: int,
    by_columns: bool | None,
) -> Owner:
    """Who owns a matrix that is shared by its stored rows or columns, or not at all (None).

    length: how far apart its rows lie.
    """
    inside = not offset.terms and nonnegative(length - columns - offset.const)
    if by_columns is None or not inside:
        return "all"
    rows, each = parts
    if not by_columns:
        return Owned(rows, size((each, length, width)))
    same_place = isinstance(offset.const, int) and offset.const == 0
    return Owned(rows, size((each, width)), size((length, width))) if same_place else "all"
