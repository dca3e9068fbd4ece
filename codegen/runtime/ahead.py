"""Copies of what is multiplied next, made while the units multiply what is near.

A panel of B lies apart in memory, and the third cache gives a line in about as long as a tile takes
for eight columns of A. So the largest tiles copy the next panel vector by vector, each fetched
some turns before it is read, and no time is spent on copies alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.runtime.assembler import Routine, Value
from codegen.runtime.instruction_sets import LINE_BYTES, Element, Lanes

# Columns of A that the largest tile multiplies in a turn, for which it copies one vector of the
# next panel; and by how many turns it is fetched before: so long takes a line of the third cache.
TURN, AHEAD = 4, 8
# Lines of what is needed after a product that a tile fetches in a turn.
LINES = 2


class Ahead:
    """A walk over vectors of memory that are copied to where they are read next.

    Its place lies in memory, as whole numbers: addresses of what is copied and of the copy; how
    many vectors are left of the row, and in all; and what stays: the distances in bytes of
    neighbours, from the last vector of a row to the first of the next, of neighbours in the copy,
    and from a vector to that which is fetched by the time that it is copied; the length of rows.
    Where nothing is left, nothing is read.
    """

    FIELDS, MOVING = 9, 4

    def __init__(self, lanes: Lanes, memory: Value) -> None:
        self.lanes = lanes
        self.f = lanes.routine
        self.fields = [self.f.step(memory, "i64", k) for k in range(self.FIELDS)]
        self.place: tuple[Value, ...] = ()

    def set(self, values: Sequence[Value]) -> None:
        """Begin a walk anew."""
        for value, field in zip(values, self.fields, strict=True):
            self.f.write(value, field, 8)

    def begin(self) -> None:
        """Read the place."""
        kinds = ["ptr"] * 2 + ["i64"] * (self.FIELDS - 2)
        found = [self.f.read(x, kind, 8) for x, kind in zip(self.fields, kinds, strict=True)]
        self.place, self.stays = tuple(found[: self.MOVING]), found[self.MOVING :]

    def turn(self, place: Sequence[Value], nowhere: Value) -> tuple[Value, ...]:
        """Copy a vector, and fetch one that comes later; the next place.

        nowhere: memory for a vector, which is copied to itself where nothing is left.
        """
        f, lanes = self.f, self.lanes
        source, target, left, rest = place
        inner, jump, step, far, length = self.stays
        later = self._moved(source, far)
        f.call("@llvm.prefetch.p0", later, *(Value(f, "i32", str(k)) for k in (0, 3, 1)))
        more = rest > 0
        from_, to = (more.where(x, nowhere) for x in (source, target))
        lanes.write(lanes.read(from_), to)
        less = left - 1
        last = less.equals(0)
        source = self._moved(source, last.where(jump, inner))
        return source, self._moved(target, step), last.where(length, less), rest - 1

    def _moved(self, place: Value, count: Value) -> Value:
        return self.f.emit("ptr", f"getelementptr i8, {place}, {count}")

    def end(self) -> None:
        """Keep the place."""
        for value, field in zip(self.place, self.fields, strict=False):
            self.f.write(value, field, 8)


class Fetches:
    """A walk over ranges of memory, whose lines are fetched one after the other.

    Its place lies in memory, as whole numbers: the next address, how many lines are left of the
    range, where the next range stands, and how many there are. A range is its address and how many
    lines it has. Where nothing is left, one address is fetched again and again.
    """

    FIELDS = 4

    def __init__(self, lanes: Lanes, memory: Value) -> None:
        self.f = lanes.routine
        self.fields = [self.f.step(memory, "i64", k) for k in range(self.FIELDS)]
        self.place: tuple[Value, ...] = ()

    def set(self, ranges: Value, count: Value) -> None:
        """Begin a walk over so many ranges."""
        nothing = self.f.number(0)
        for value, field in zip((ranges, nothing, ranges, count), self.fields, strict=True):
            self.f.write(value, field, 8)

    def begin(self) -> None:
        """Read the place, in the next range where this one is done."""
        f = self.f
        address, left, following, more = self.fields
        with f.when((f.read(left, "i64", 8) < 1) & (f.read(more, "i64", 8) > 0)):
            found = f.read(following, "ptr", 8)
            f.write(f.read(found, "ptr", 8), address, 8)
            f.write(f.read(f.step(found, "i64", 1), "i64", 8), left, 8)
            f.write(f.step(found, "i64", 2), following, 8)
            f.write(f.read(more, "i64", 8) - 1, more, 8)
        self.place = (f.read(address, "ptr", 8),)
        self.inner = (f.read(left, "i64", 8) > 0).where(LINE_BYTES, f.number(0))

    def turn(self, place: Sequence[Value]) -> tuple[Value, ...]:
        """Fetch some lines; the next place."""
        (at,) = place
        for _ in range(LINES):
            self.f.call("@llvm.prefetch.p0", at, *(Value(self.f, "i32", x) for x in "021"))
            at = self.f.emit("ptr", f"getelementptr i8, {at}, {self.inner}")
        return (at,)

    def end(self, turns: Value) -> None:
        """Keep the place after so many turns."""
        address, left, *_ = self.fields
        self.f.write(self.place[0], address, 8)
        self.f.write(self.f.read(left, "i64", 8) - turns * LINES, left, 8)


def finish_ahead(element: Element) -> str:
    """Copy what is left of a walk."""
    f = Routine("finish_ahead", [("memory", "ptr")], "internal")
    (memory,) = f.arguments()
    walk = Ahead(Lanes(f, element), memory)
    nowhere = f.room(element.vector, 1, element.isa.size)
    walk.begin()
    with f.when(walk.place[-1] > 0):
        before, name = f.block, f.fresh()
        olds = [Value(f, x.kind, f"%{f.fresh()}") for x in walk.place]
        f.jump(f"{name}.body")
        f.label(f"{name}.body")
        phis = len(f.lines)
        news = walk.turn(olds, nowhere)
        f.lines[phis:phis] = [
            f"  {old.text} = phi {old.kind} [ {start.text}, %{before} ], [ {new.text}, %{f.block} ]"
            for old, start, new in zip(olds, walk.place, news, strict=True)
        ]
        f.branch(news[-1] > 0, f"{name}.body", f"{name}.done")
        f.label(f"{name}.done")
    return str(f)
