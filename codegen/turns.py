"""One kernel as turns: what it does for one row, how its memory moves, and which sums it adds to.

A turn is an iteration of a kernel's outermost loop; of a product those rows of its result, or those
terms of its sums, that belong to one element of the loop's axis. Places in memory are counted from
the row on; the memory moves from turn to turn (`memory.InnerPlace`). Whatever else tells which row
it is, as the place of an index or of a random number does, is counted from the beginning, by TURN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.loop_ir import (
    TURN,
    Affine,
    Apply,
    Buffer,
    Call,
    CheckIndex,
    Copy,
    For,
    Let,
    Literal,
    Load,
    Partition,
    Statement,
    Store,
    Update,
    Value,
    walk,
)
from codegen.nests import boxes_of, clears
from codegen.values import Lowered, Operand, RunningTotals, Temporary
from symgrad.graph.dims import Extent, same, size
from symgrad.graph.nodes import Node

#: Rows of a product's result in a turn: with fewer, copies of the weights take too long.
FEWEST_ROWS = 96


@dataclass(frozen=True, slots=True)
class Sum:
    """What a kernel adds up over all turns: where it begins, and with which number."""

    operand: Node
    number: float | int | bool
    loops: tuple[tuple[str, Extent], ...]
    offset: Affine


@dataclass(frozen=True, slots=True)
class Turn:
    """A kernel, and what it does in one turn.

    body:  of a turn; the places of what moves are those within a row.
    steps: how far each of its operands moves from turn to turn.
    """

    low: Lowered
    extent: Extent
    body: tuple[Statement, ...]
    steps: Mapping[Operand, Extent]
    sums: tuple[Sum, ...]
    buffers: Mapping[Operand, Buffer]

    @property
    def calls(self) -> list[Call]:
        """Its products."""
        return [s for s in walk(self.body) if isinstance(s, Call)]

    def stays(self, operand: Operand) -> bool:
        """Whether it touches the same part of an operand in every turn."""
        return same(self.steps.get(operand, 0), 0) is True


def turn_of(low: Lowered) -> Turn | None:
    """A kernel as turns; None where it has none."""
    body = low.kernel.body
    at = [k for k, s in enumerate(body) if isinstance(s, (For, Call)) and not clears(s)]
    if len(at) != 1:
        return None
    found = body[at[0]]
    loop = (_rows_of(found) or _terms_of(found)) if isinstance(found, Call) else found
    if not isinstance(loop, For):
        return None
    before, after = body[: at[0]], body[at[0] + 1 :]
    steps = _steps(loop)
    outside = {name for name, _ in _places((*before, *after))}
    if steps is None or any(not same(steps.get(name, 0), 0) for name in outside):
        return None
    buffers = dict(zip(low.operands, low.kernel.buffers, strict=True))
    of = {b.name: o for o, b in buffers.items()}
    begun = _begun(before, after, loop, of)
    if begun is None:
        return None
    start, sums = begun
    moved = {of[name]: step for name, step in steps.items()}
    written = {of[s.buffer.name] for s in walk(loop.body) if isinstance(s, Store)}
    written |= {of[s.c.name] for s in walk(loop.body) if isinstance(s, Call)}
    own = {o for o in low.operands if isinstance(o, (Temporary, RunningTotals))}
    added = {s.operand for s in sums}
    still = {o for o in written if same(moved.get(o, 0), 0)}
    if not still <= own | added or any(not same(moved.get(o, 0), 0) for o in own | added):
        return None  # rows that write one place
    inner = (_within(s, loop.var) for s in loop.body)
    return Turn(low, loop.extent, (*start, *inner, *after), moved, tuple(sums), buffers)


def _rows_of(call: Call) -> For | None:
    """A product as a loop over the rows that its result consists of."""
    each = _each(call.parts, call.m)
    if not each or call.transposed[0]:
        return None
    a, b, c = call.offsets
    i = Affine((("i0", 1),))
    moved = (a + i * size((call.rows[0], each)), b, c + i * size((call.rows[2], each)))
    assert call.parts is not None
    return For("i0", call.parts[0], (replace(call, m=each, offsets=moved, parts=None),))


def _terms_of(call: Call) -> For | None:
    """A product as a loop over parts of its sums, which adds them up."""
    each = _each(call.terms, call.k)
    if not each or call.transposed != (True, False):
        return None
    assert call.terms is not None
    a, b, c = call.offsets
    i = Affine((("i0", 1),))
    moved = (a + i * size((call.rows[0], each)), b + i * size((call.rows[1], each)), c)
    part = replace(call, k=each, offsets=moved, parts=None, terms=None, adds=True)
    return For("i0", call.terms[0], (part,))


def _each(parts: Partition | None, extent: Extent) -> int:
    """How many rows of a product belong to one turn; 0 where they are too few."""
    if parts is None or same(extent, size(parts)) is not True:
        return 0
    return parts[1] if type(parts[1]) is int and parts[1] >= FEWEST_ROWS else 0


def _places(body: Iterable[Statement]) -> Iterator[tuple[str, Affine]]:
    """The buffers and places that statements touch."""
    for s in walk(tuple(body)):
        if isinstance(s, Store):
            yield s.buffer.name, s.offset
        elif isinstance(s, Let) and isinstance(s.value, Load):
            yield s.value.buffer.name, s.value.offset
        elif isinstance(s, Call):
            yield from zip((s.a.name, s.b.name, s.c.name), s.offsets, strict=True)


def _steps(loop: For) -> dict[str, Extent] | None:
    """How far each buffer moves from one iteration to the next; None where that is not one way."""
    steps: dict[str, Extent] = {}
    for name, place in _places(loop.body):
        step = place.coefficient(loop.var)
        if same(steps.setdefault(name, step), step) is not True or (
            isinstance(step, int) and step < 0
        ):
            return None
    return steps


def _begun(
    before: Sequence[Statement],
    after: Sequence[Statement],
    loop: For,
    of: Mapping[str, Operand],
) -> tuple[list[Statement], list[Sum]] | None:
    """The statements before a loop as they are in each turn, and its sums.

    A sum in a name is written out behind the loop: a turn begins with what the one before it has
    written.
    """
    target: dict[str, Store] = {}
    for s in after:
        if not isinstance(s, Store) or s.offset.terms or s.name in target:
            return None
        target[s.name] = s
    carried = {s.name for s in walk(loop.body) if isinstance(s, Update)}
    carried &= {s.name for s in before if isinstance(s, Let)}
    if carried != target.keys():
        return None
    made = {s.name: s.value for s in before if isinstance(s, Let)}
    start: list[Statement] = []
    sums: list[Sum] = []

    def begin(store: Store, loops: tuple[tuple[str, Extent], ...]) -> bool:
        value: Value | None = made.get(store.name)
        if isinstance(value, Copy):
            value = made.get(value.name)
        operand = of[store.buffer.name]
        if not isinstance(value, Literal) or not isinstance(operand, Node):
            return False
        sums.append(Sum(operand, value.number, loops, store.offset))
        return True

    for s in before:
        if isinstance(s, For):
            (fill,) = s.body
            if not isinstance(fill, Store) or not begin(fill, ((s.var, s.extent),)):
                return None
        elif isinstance(s, Let) and s.name in carried:
            store = target[s.name]
            if not begin(store, ()):
                return None
            start.append(replace(s, value=Load(store.buffer, store.offset)))
        elif isinstance(s, Let):
            start.append(s)
        else:
            return None
    for call in (s for s in loop.body if isinstance(s, Call) and s.adds):
        place = call.offsets[2] + Affine((("i0", call.rows[2]), ("z", 1)))
        loops = (("i0", call.m), ("z", call.n))
        total = of[call.c.name]
        assert isinstance(total, Node)
        sums.append(Sum(total, 0.0, loops, place))
    return start, sums


def _within(s: Statement, var: str) -> Statement:
    """A statement of a turn: memory is counted from the row, all else from the beginning."""

    def here(place: Affine) -> Affine:
        return Affine(tuple((v, c) for v, c in place.terms if v != var), place.const)

    def told(place: Affine) -> Affine:
        return here(place) + size((place.coefficient(var), TURN))

    if isinstance(s, For):
        return replace(s, body=tuple(_within(t, var) for t in s.body))
    if isinstance(s, Store):
        return replace(s, offset=here(s.offset))
    if isinstance(s, CheckIndex):
        return replace(s, position=told(s.position))
    if isinstance(s, Call):
        a, b, c = map(here, s.offsets)
        return replace(s, offsets=(a, b, c))
    if isinstance(s, Let) and isinstance(s.value, Load):
        return replace(s, value=replace(s.value, offset=here(s.value.offset)))
    if isinstance(s, Let) and isinstance(s.value, Apply) and isinstance(s.value.payload, Affine):
        return replace(s, value=replace(s.value, payload=told(s.value.payload)))
    return s


def is_inside(turn: Turn, operand: Operand, room: Extent) -> bool:
    """Whether a turn stays within so many elements of an operand."""
    ranges = {s.name: s.extent for s in walk(turn.body) if isinstance(s, CheckIndex)}
    boxes = boxes_of(turn.body, turn.buffers[operand], ranges)
    return all(last is not None and _below(last, room) for last in boxes)


def _below(a: Extent, b: Extent) -> bool:
    difference = size((b - a - 1,))
    if isinstance(difference, int):
        return difference >= 0
    return difference.is_nonnegative is True
