"""LLVM as text: functions of whole numbers, addresses and vectors, written line by line.

The matrix products are compiled once for a processor and linked by name, beside Numba. Their text
is written directly: objects for every instruction, as `llvmlite.ir` makes them, cost three times
what LLVM takes to compile it.

A `Value` is a name and a type; arithmetic on values writes an instruction and gives its result.
`Routine` is a function under construction, with loops and branches as `with` blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Value:
    """A value of LLVM: `text` as an operand, `kind` its type."""

    __slots__ = ("kind", "routine", "text")

    def __init__(self, routine: Routine, kind: str, text: str) -> None:
        self.routine = routine
        self.kind = kind
        self.text = text

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"

    def _with(self, operation: str, other: Value | float) -> Value:
        right = other.text if isinstance(other, Value) else str(other)
        return self.routine.emit(self.kind, f"{operation} {self}, {right}")

    def __add__(self, other: Value | int) -> Value:
        return self if other == 0 else self._with("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._with("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._with("mul", other)

    def __floordiv__(self, other: Value | int) -> Value:
        """The quotient of numbers that are not negative."""
        return self._with("udiv", other)

    def __and__(self, other: Value) -> Value:
        return self._with("and", other)

    def __or__(self, other: Value) -> Value:
        return self._with("or", other)

    def _compare(self, relation: str, other: Value | int) -> Value:
        right = other.text if isinstance(other, Value) else str(other)
        return self.routine.emit("i1", f"icmp {relation} {self}, {right}")

    def __lt__(self, other: Value | int) -> Value:
        return self._compare("slt", other)

    def __le__(self, other: Value | int) -> Value:
        return self._compare("sle", other)

    def __gt__(self, other: Value | int) -> Value:
        return self._compare("sgt", other)

    def __ge__(self, other: Value | int) -> Value:
        return self._compare("sge", other)

    def equals(self, other: Value | int) -> Value:
        """Whether two whole numbers are the same."""
        return self._compare("eq", other)

    def differs(self, other: Value | int) -> Value:
        """Whether two whole numbers are not the same."""
        return self._compare("ne", other)

    def where(self, yes: Value | int, no: Value | int) -> Value:
        """`yes` where this truth holds, else `no`; at least one of them is a value."""
        like = yes if isinstance(yes, Value) else no
        assert isinstance(like, Value)
        first, second = (
            v if isinstance(v, Value) else Value(self.routine, like.kind, str(v)) for v in (yes, no)
        )
        return self.routine.emit(like.kind, f"select {self}, {first}, {second}")

    def least(self, other: Value | int) -> Value:
        """The smaller of two whole numbers."""
        return (self < other).where(self, other)


class Routine:
    """A function under construction.

    Args:
        name:     of the function.
        takes:    names and types of its arguments.
        linkage:  "internal" for one that only this module calls.
    """

    def __init__(self, name: str, takes: Sequence[tuple[str, str]], linkage: str = "") -> None:
        self.name = name
        self.takes = takes
        self.linkage = linkage
        self.lines: list[str] = []
        self.count = 0
        self.block = "entry"
        self.closed = False

    def arguments(self) -> list[Value]:
        """The values that it is called with."""
        return [Value(self, kind, f"%{name}") for name, kind in self.takes]

    def __str__(self) -> str:
        takes = ", ".join(f"{kind} %{name}" for name, kind in self.takes)
        head = f"define {self.linkage} void @{self.name}({takes}) nounwind {{"
        last = [] if self.closed else ["  ret void"]
        return "\n".join([head, "entry:", *self.lines, *last, "}", ""])

    def fresh(self) -> str:
        """A new name."""
        self.count += 1
        return f"v{self.count}"

    def put(self, text: str) -> None:
        """Write an instruction without a result."""
        self.lines.append("  " + text)

    def emit(self, kind: str, text: str) -> Value:
        """Write an instruction; its result."""
        name = f"%{self.fresh()}"
        self.lines.append(f"  {name} = {text}")
        return Value(self, kind, name)

    def number(self, value: int) -> Value:
        """A whole number."""
        return Value(self, "i64", str(value))

    def real(self, kind: str, value: float) -> Value:
        """A float that is exact in both precisions."""
        return Value(self, kind, repr(float(value)))

    def room(self, kind: str, count: int = 1, align: int = 8) -> Value:
        """Memory on the stack for `count` values."""
        place = Value(self, "ptr", f"%{self.fresh()}")
        self.lines.insert(0, f"  {place.text} = alloca [{count} x {kind}], align {align}")
        return place

    def label(self, name: str) -> None:
        """Begin a block, which whatever comes before runs into."""
        self.block = name
        self.lines.append(f"{name}:")
        self.closed = False

    def jump(self, name: str) -> None:
        """Go on at a block."""
        if not self.closed:
            self.put(f"br label %{name}")
        self.closed = True

    def leave(self) -> None:
        """Return."""
        self.put("ret void")
        self.closed = True

    def branch(self, condition: Value, yes: str, no: str) -> None:
        """Go on at one of two blocks."""
        self.put(f"br {condition}, label %{yes}, label %{no}")
        self.closed = True

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """What is written inside runs where the condition holds."""
        name = self.fresh()
        self.branch(condition, f"{name}.then", f"{name}.done")
        self.label(f"{name}.then")
        yield
        self.jump(f"{name}.done")
        self.label(f"{name}.done")

    @contextmanager
    def loop(
        self, stop: Value | int, step: Value | int = 1, start: Value | int = 0
    ) -> Iterator[Value]:
        """Run what is written inside for start, start + step, .. below stop."""
        first, last = (v if isinstance(v, Value) else self.number(v) for v in (start, stop))
        with self._turns(first, last) as (name, index):
            yield index
            self._turn(name, index, step)

    @contextmanager
    def parts(self, stop: Value, most: Value | int) -> Iterator[tuple[Value, Value]]:
        """Run what is written inside for parts of 0 .. stop - 1: where one begins, and its size.

        No part is larger than `most`, and all are, but for the last two, which are nearly equal.
        """
        with self._turns(self.number(0), stop) as (name, index):
            size = self.part(stop - index, most)
            yield index, size
            self._turn(name, index, size)

    def part(self, rest: Value, most: Value | int) -> Value:
        """The size of the next part, as `parts` cuts them, where so much is left."""
        half = (rest + 1) // 2
        bound = most if isinstance(most, Value) else self.number(most)
        return (rest <= bound).where(rest, (rest < bound + bound).where(half, bound))

    @contextmanager
    def _turns(self, first: Value, last: Value) -> Iterator[tuple[str, Value]]:
        name, before = self.fresh(), self.block
        self.branch(first < last, f"{name}.body", f"{name}.done")
        self.label(f"{name}.body")
        index = Value(self, "i64", f"%{name}")
        self.put(f"{index.text} = phi i64 [ {first.text}, %{before} ], [ %{name}.n, %{name}.next ]")
        yield name, index
        self.branch(Value(self, "i64", f"%{name}.n") < last, f"{name}.body", f"{name}.done")
        self.label(f"{name}.done")

    def _turn(self, name: str, index: Value, step: Value | int) -> None:
        self.jump(f"{name}.next")
        self.label(f"{name}.next")
        count = step.text if isinstance(step, Value) else step
        self.put(f"%{name}.n = add i64 {index.text}, {count}")

    def call(self, name: str, *arguments: Value) -> None:
        """Call a function that gives nothing."""
        self.put(f"call void {name}({', '.join(map(str, arguments))})")

    def step(self, pointer: Value, element: str, count: Value | int) -> Value:
        """A pointer moved by `count` elements."""
        moved = count if isinstance(count, Value) else self.number(count)
        return self.emit("ptr", f"getelementptr {element}, {pointer}, {moved}")

    def read(self, pointer: Value, kind: str, align: int) -> Value:
        """What lies at an address."""
        return self.emit(kind, f"load {kind}, {pointer}, align {align}")

    def write(self, value: Value, pointer: Value, align: int) -> None:
        """Put a value to an address."""
        self.put(f"store {value}, {pointer}, align {align}")
