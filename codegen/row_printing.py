"""Inner loops over short rows, printed as straight-line code for whole rows.

    for i1 in range(10):                          v3 = ld_row(x0, i0 * 10, 10, 0)
        v3 = ld(x0, i0 * 10 + i1, 0)        ->    v4 = v3 * v2
        v4 = v3 * v2                              v0 = plus(v0, row_sum(v4, 10))
        v0 = plus(v0, v4)

A row is one vector; see `codegen/runtime/rows.py`. What does not depend on the place in the row is
one number, as before.

A running sum along a longer row goes in pieces, whose own totals wait for no other piece:

    for i1 in range(1000):                        for i1 in range(0, 985, 16):
        v1 = ld(x0, i1, 0)                            v1r = ld_row(x0, i1, 16, 0)
        v2 = v0 + v1                      ->          v2s = running_sum(v1r, 16)
        v0 = v2                                       v2r = v0 + v2s
        st(x1, i1, v2, 1)                             v0 = v0 + row_last(v2s, 16)
                                                      st_row(x1, i1, v2r, 16, 1)
                                                  for i1 in range(992, 1000): ..
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from codegen.loop_ir import (
    Affine,
    Apply,
    Buffer,
    CheckIndex,
    Copy,
    For,
    Let,
    Literal,
    Load,
    Statement,
    Store,
    Update,
    walk,
)
from codegen.loops import NO_VECTOR, SHORT_ROW
from codegen.printing import BodyPrinter
from codegen.runtime.names import RUNTIME, SCOPES
from symgrad.graph.dtypes import BOOL, INT64, is_float

# Functions without a form for whole vectors: they branch, or call a library.
SCALAR_ONLY = NO_VECTOR | RUNTIME["draws"]
SCALAR_INTEGERS = frozenset({"pow", "floor_divide", "mod"})
# How a step of a reduction merges a row into one value.
ACROSS = {
    "add": "row_sum",
    "mul": "row_product",
    "greatest": "row_max",
    "least": "row_min",
    "logical_or": "row_sum",
}


# How the steps of a running sum merge with those before them, in a piece of so many elements.
RUNNING = {"add": "running_sum", "mul": "running_product"}
PIECE = 16
# Shorter rows than this are as fast one by one.
SHORTEST_RUN = 4


@dataclass(frozen=True, slots=True)
class RowLoop:
    """A loop that is printed as rows, with `running` sums along them, or as `pieces` of rows."""

    var: str
    width: int
    accumulators: frozenset[str]
    running: bool = False
    pieces: bool = False


def scope_of(buffer: Buffer) -> int:
    """The alias scope of a buffer, -1 for one too many."""
    return buffer.scope if buffer.scope < SCOPES else -1


def is_row(loop: For, totals: Collection[str], shortest: int) -> bool:
    """Whether each statement of a loop has a form for whole rows.

    Args:
        loop:     an inner loop.
        totals:   the names of steps of reductions, see `tune.totals`.
        shortest: the least width of a row.
    """
    if type(loop.extent) is not int or loop.extent < shortest or loop.shared:
        return False
    made = {s.name: s for s in loop.body if isinstance(s, Let)}
    accumulators = changing(loop.body)
    widest = max((let.dtype.itemsize for let in made.values()), default=8)
    if loop.extent * (min(widest, 4) if _places_only(loop) else widest) > SHORT_ROW:
        return False

    def fits(s: Statement) -> bool:
        if isinstance(s, Store):
            return s.offset.coefficient(loop.var) == 1
        if isinstance(s, Update):
            return s.value in totals and s.value in made
        return isinstance(s, Let) and _fits(s, loop.var, totals, accumulators)

    return all(map(fits, loop.body))


def takes_running_sums(loop: For, totals: Collection[str]) -> bool:
    """Whether a loop takes running sums or products, and each statement has a form for rows.

    Args:
        totals: the names of steps of other reductions, see `tune.totals`.
    """
    if loop.shared or (type(loop.extent) is int and loop.extent < SHORTEST_RUN):
        return False
    made = {s.name: s for s in loop.body if isinstance(s, Let)}
    steps = {s.value: s.name for s in loop.body if isinstance(s, Update)}
    if not steps.keys().isdisjoint(totals):
        return False
    plain = replace(loop, body=tuple(s for s in loop.body if not isinstance(s, Update)))

    def fits(s: Statement) -> bool:
        if isinstance(s, Store):
            return s.offset.coefficient(loop.var) == 1
        if not isinstance(s, Let) or _reads_place(s, loop.var):
            return False
        if s.name not in steps:
            return _fits(s, loop.var, (), frozenset(steps.values()))
        value, total = s.value, steps[s.name]
        return (
            isinstance(value, Apply)
            and value.operation in RUNNING
            and value.operands[0] == total != value.operands[1]
            and value.operands[1] in made
            and s.dtype != BOOL
        )

    return bool(steps) and all(map(fits, plain.body))


def across_rows(body: tuple[Statement, ...]) -> bool:
    """Whether LLVM is to work on several short rows at a time, one in each lane.

    It can where no index says what a row reads. Merging a row that fills a vector by half takes
    longer than that; where rows merge nothing each is as well a vector.
    """
    lines = list(walk(body))
    rows = [s for s in lines if isinstance(s, For) and any(isinstance(t, For) for t in s.body)]
    merges = any(isinstance(s, Update) for row in rows for s in walk(row.body))
    return merges and not any(isinstance(s, CheckIndex) for s in lines)


def changing(body: tuple[Statement, ...]) -> frozenset[str]:
    """The accumulators of a loop."""
    return frozenset(s.name for s in body if isinstance(s, Update))


def _places_only(loop: For) -> bool:
    """Whether the only values of 64 bits are places, which soon have fewer."""
    return all(
        let.dtype.itemsize <= 4 or (let.dtype == INT64 and _is_place(let))
        for let in loop.body
        if isinstance(let, Let)
    )


def _is_place(let: Let) -> bool:
    return isinstance(let.value, Apply) and let.value.operation == "index"


def _fits(let: Let, var: str, totals: Collection[str], accumulators: frozenset[str]) -> bool:
    value = let.value
    if isinstance(value, (Copy, Literal)):
        return True
    if isinstance(value, Load):
        step = value.offset.coefficient(var)
        return type(step) is int and step in (0, 1)
    if value.operation in SCALAR_ONLY:
        return False
    if value.operation in SCALAR_INTEGERS and not is_float(let.dtype):
        return False
    if not accumulators.isdisjoint(value.operands):  # a running total is read at each place
        return let.name in totals and value.operation in ACROSS
    return True


class RowPrinter(BodyPrinter):
    """Prints rows; `row` is the loop that is being printed as such, None in ordinary ones."""

    room: ClassVar[str] = "codegen/runtime/rows.py"

    def __init__(self) -> None:
        super().__init__()
        self.row: RowLoop | None = None

    def block(self, body: tuple[Statement, ...], depth: int) -> None:
        """Print statements."""
        raise NotImplementedError

    def side_by_side(self, loop: For, depth: int) -> None:
        """Print a loop as rows."""
        assert type(loop.extent) is int
        self.row = RowLoop(loop.var, loop.extent, changing(loop.body))
        if any(_reads_place(s, loop.var) for s in loop.body):
            self.function.uses.add("places")
            self.loop_names[loop.var] = f"k{loop.extent}"
            self.put(f"k{loop.extent} = places({loop.extent})", depth)
        self.block(loop.body, depth)
        self.row = None

    def with_running_sums(self, loop: For, depth: int) -> None:
        """Print a loop that takes running sums as pieces, and its last elements one by one."""
        body = tuple(map(_renamed(loop.body), loop.body))
        if type(loop.extent) is int and loop.extent < 2 * PIECE:
            self.row = RowLoop(loop.var, loop.extent, changing(loop.body), running=True)
            self.block(body, depth)
            self.row = None
            return
        extent = self.extent(loop.extent, self.shares_extent(loop))
        var = self.loop_names[loop.var] = f"i{depth - 1}"
        whole = f"{extent} - {PIECE - 1}"
        self.row = RowLoop(loop.var, PIECE, changing(loop.body), running=True, pieces=True)
        self.put(f"for {var} in range(0, {whole}, {PIECE}):", depth)
        self.block(body, depth + 1)
        self.row = None
        if type(loop.extent) is not int or loop.extent % PIECE:
            self.put(f"for {var} in range({extent} & -{PIECE}, {extent}):", depth)
            self.block(loop.body, depth + 1)

    def shares_extent(self, loop: For) -> bool:
        """Whether a loop's extent is an argument."""
        raise NotImplementedError

    def running(self, row: RowLoop, let: Let, depth: int) -> Let:
        """A step of a running sum in a piece: its own totals, then those with what was before."""
        value = let.value
        if not row.running or not isinstance(value, Apply) or not value.operands:
            return let
        if value.operands[0] not in row.accumulators:
            return let
        before, one = value.operands
        merge = RUNNING[value.operation]
        self.function.uses |= {merge, "row_last"}
        own = f"{let.name}s"
        self.put(f"{own} = {merge}({one}, {row.width})", depth)
        return replace(let, value=replace(value, operands=(before, own)))

    def load_row(self, row: RowLoop, load: Load) -> str:
        """A row read from memory."""
        self.function.uses.add("ld_row")
        place = self.affine(load.offset if row.pieces else without(load.offset, row.var))
        return f"ld_row({load.buffer.name}, {place}, {row.width}, {scope_of(load.buffer)})"

    def store_row(self, row: RowLoop, s: Store) -> str:
        """A row written to memory."""
        self.function.uses.add("st_row")
        place = self.affine(s.offset if row.pieces else without(s.offset, row.var))
        return f"st_row({s.buffer.name}, {place}, {s.name}, {row.width}, {scope_of(s.buffer)})"

    def across(self, row: RowLoop, let: Let) -> Let:
        """A step of a reduction takes in a whole row; one in memory is a step for each place."""
        value = let.value
        assert isinstance(value, Apply)
        if value.operands[0] not in row.accumulators:
            return let
        merge = ACROSS[value.operation]
        self.function.uses.add(merge)
        before, one = value.operands
        merged = f"{merge}({one}, {row.width})"
        return replace(let, value=replace(value, operands=(before, merged)))


def _renamed(body: tuple[Statement, ...]) -> Callable[[Statement], Statement]:
    """Statements with names of their own for what a piece defines, since those are rows."""
    names = {s.name: f"{s.name}r" for s in body if isinstance(s, Let)}

    def moved(s: Statement) -> Statement:
        if isinstance(s, Store):
            return replace(s, name=names.get(s.name, s.name))
        if isinstance(s, Update):
            return replace(s, value=names.get(s.value, s.value))
        assert isinstance(s, Let)
        value = s.value
        if isinstance(value, Apply):
            value = replace(value, operands=tuple(names.get(o, o) for o in value.operands))
        elif isinstance(value, Copy):
            value = Copy(names.get(value.name, value.name))
        return replace(s, name=names[s.name], value=value)

    return moved


def without(offset: Affine, var: str) -> Affine:
    """The offset of a row's first element."""
    return Affine(tuple((v, c) for v, c in offset.terms if v != var), offset.const)


def _reads_place(s: Statement, var: str) -> bool:
    if not isinstance(s, Let) or not isinstance(s.value, Apply):
        return False
    payload = s.value.payload
    return isinstance(payload, Affine) and var in payload.variables
