"""What loops become when they are spread over threads: records, and how their bodies are cut.

Launch     = loops, body, blocks    body for every index of `loops`, by a thread or block each
Product    = call, loops            a matrix product, or one for each index of two loops at most
Statement += Cooperate(loops, body, totals)    the threads of a block share the loops, and
                                               merge the totals
           | Accumulate(buffer, offset, operation, value, atomic)    buffer[offset] op= value
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from codegen import loop_ir as ir
from codegen.loop_ir import (
    Affine,
    Apply,
    Buffer,
    CheckIndex,
    For,
    Let,
    Load,
    Statement,
    Store,
    Update,
)
from symgrad.graph.dims import Extent
from symgrad.graph.dtypes import BOOL, DType

Loop: TypeAlias = tuple[str, Extent]
# Operations whose order may be changed up to rounding.
ASSOCIATIVE = ("add", "mul", "greatest", "least", "logical_or")


@dataclass(frozen=True, slots=True)
class Total:
    """An accumulator that every thread has, and how two of them become one."""

    name: str
    dtype: DType
    operation: str


@dataclass(frozen=True, slots=True)
class Cooperate:
    """`body` for every index of `loops`, shared by a block's threads; then totals are merged."""

    loops: tuple[Loop, ...]
    body: tuple[Spread, ...]
    totals: tuple[Total, ...]


@dataclass(frozen=True, slots=True)
class Accumulate:
    """`buffer[offset] := operation(buffer[offset], value)`."""

    buffer: Buffer
    offset: Affine
    operation: str
    value: str
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """`body` for every index of `loops`: by one thread each, or by one block each."""

    loops: tuple[Loop, ...]
    body: tuple[Spread, ...]
    blocks: bool

    def __str__(self) -> str:
        who = "block" if self.blocks else "thread"
        spread = ", ".join(f"{var} in 0..{extent}" for var, extent in self.loops) or "once"
        return "\n".join([f"a {who} for {spread}:", *_lines(self.body, 1)])


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product, or one for each index of some loops, outermost first."""

    call: ir.Call
    loops: tuple[Loop, ...]


Spread: TypeAlias = Statement | Cooperate | Accumulate


def walk(body: Sequence[Spread]) -> Iterator[Spread]:
    """All statements, outer before inner."""
    for s in body:
        yield s
        if isinstance(s, (For, Cooperate)):
            yield from walk(s.body)


def with_body(loop: For, body: Sequence[Spread]) -> For:
    """A loop around another body."""
    return replace(loop, body=cast("tuple[Statement, ...]", tuple(body)))


def product_of(s: Spread) -> Product | None:
    """A statement as a matrix product, None for all others."""
    loops: list[Loop] = []
    while isinstance(s, For) and len(s.body) == 1:
        loops.append((s.var, s.extent))
        s = s.body[0]
    return Product(s, tuple(loops)) if isinstance(s, ir.Call) else None


def accumulations(body: Sequence[Statement]) -> tuple[Spread, ...]:
    """Sums and products into memory.

    rewrite:  a := x[i]; b := op(a, v); x[i] := b  ->  Accumulate(x, i, op, v)
    requires: nothing afterwards reads a or b.
    """
    done: list[Spread] = []
    for place, s in enumerate(body):
        if isinstance(s, For):
            done.append(with_body(s, accumulations(s.body)))
            continue
        done.append(s)
        if len(done) < 3 or not isinstance(s, Store):
            continue
        old, new = done[-3], done[-2]
        if (
            isinstance(old, Let)
            and old.value == Load(s.buffer, s.offset)
            and isinstance(new, Let)
            and new.name == s.name
            and isinstance(new.value, Apply)
            and new.value.operation in ASSOCIATIVE
            and new.value.operands[0] == old.name != new.value.operands[1]
            and not _read_in(body[place + 1 :], {old.name, new.name})
        ):
            value = Accumulate(s.buffer, s.offset, new.value.operation, new.value.operands[1])
            done[-3:] = [value]
    return tuple(done)


def _read_in(body: Sequence[Statement], names: set[str]) -> bool:
    """Whether statements, or the loops in them, read one of the names."""
    return any(
        uses(s) & names or (isinstance(s, For) and _read_in(s.body, names)) for s in body
    )


def atomic(s: Spread) -> Spread:
    """A statement whose additions into memory are atomic; other operations have no such form."""
    if isinstance(s, For):
        return with_body(s, [atomic(t) for t in s.body])
    if isinstance(s, Accumulate) and s.operation == "add" and s.buffer.dtype != BOOL:
        return replace(s, atomic=True)
    return s


def uses(s: Spread) -> set[str]:
    """The names that a statement reads, its loops' bodies aside."""
    if isinstance(s, Let):
        v = s.value
        if isinstance(v, Load):
            return set(v.offset.variables)
        if isinstance(v, Apply):
            extra = v.payload.variables if isinstance(v.payload, Affine) else frozenset()
            return {*v.operands, *extra}
        return {v.name} if isinstance(v, ir.Copy) else set()
    if isinstance(s, Update):
        return {s.value}
    if isinstance(s, Store):
        return {s.name, *s.offset.variables}
    if isinstance(s, Accumulate):
        return {s.value, *s.offset.variables}
    return {s.index} if isinstance(s, CheckIndex) else set()


def carried_by(loop: For) -> set[str]:
    """Accumulators that outlive an iteration of a loop."""
    own = {s.name for s in walk(loop.body) if isinstance(s, Let)}
    return {s.name for s in walk(loop.body) if isinstance(s, Update)} - own


def chain(loop: For, allowed: set[str] | None = None) -> tuple[list[Loop], Sequence[Spread]]:
    """Loops that hold nothing but names and the next loop, and the body of the innermost."""
    loops = [(loop.var, loop.extent)]
    body: Sequence[Spread] = loop.body
    while (
        body
        and isinstance(body[-1], For)
        and all(isinstance(s, (Let, CheckIndex)) for s in body[:-1])
    ):
        if carried_by(body[-1]) - (allowed or set()):
            break
        loops.append((body[-1].var, body[-1].extent))
        body = body[-1].body
    return loops, body


def rebuilt(
    loops: Sequence[Loop], loop: For, without: set[str], inner: Sequence[Spread]
) -> list[Spread]:
    """A chain of loops without some of them, around another innermost body."""

    def build(s: For, depth: int) -> list[Spread]:
        body = list(inner)
        if depth + 1 < len(loops):
            body = [*s.body[:-1], *build(cast("For", s.body[-1]), depth + 1)]
        return body if s.var in without else [with_body(s, body)]

    return build(loop, 0)


def sliced(body: Sequence[Spread], wanted: Callable[[Spread], bool]) -> list[Spread]:
    """The wanted statements, and what they need."""
    everything = list(walk(body))
    needed: set[str] = set()
    for s in everything:
        if wanted(s):
            needed |= uses(s)
    while True:
        size = len(needed)
        for s in everything:
            if isinstance(s, (Let, Update, CheckIndex)) and s.name in needed:
                needed |= uses(s)
        if len(needed) == size:
            break

    def kept(body: Sequence[Spread]) -> list[Spread]:
        done: list[Spread] = []
        for s in body:
            if isinstance(s, (For, Cooperate)):
                inside = kept(s.body)
                if inside and isinstance(s, For):
                    done.append(with_body(s, inside))
                elif inside:
                    done.append(replace(s, body=tuple(inside)))  # type: ignore[arg-type]
            elif wanted(s) or (isinstance(s, (Let, Update, CheckIndex)) and s.name in needed):
                done.append(s)
        return done

    return kept(body)


def needed_of(body: Sequence[Spread]) -> tuple[Spread, ...]:
    """A body without names that nothing uses."""
    return tuple(sliced(body, lambda s: isinstance(s, (Store, Accumulate, CheckIndex))))


def with_definition(s: For, read: Let) -> For:
    """A loop in which a name is defined otherwise."""
    body: list[Statement] = []
    for t in s.body:
        if isinstance(t, For):
            body.append(with_definition(t, read))
        else:
            body.append(read if isinstance(t, Let) and t.name == read.name else t)
    return with_body(s, body)


def _lines(body: Sequence[Spread], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for s in body:
        if isinstance(s, Cooperate):
            spread = ", ".join(f"{var} in 0..{extent}" for var, extent in s.loops)
            totals = "".join(f"; {t.operation} {t.name}" for t in s.totals)
            yield f"{pad}together for {spread}{totals}:"
            yield from _lines(s.body, depth + 1)
        elif isinstance(s, For):
            yield f"{pad}for {s.var} in 0..{s.extent}:"
            yield from _lines(s.body, depth + 1)
        elif isinstance(s, Accumulate):
            how = "atomic " if s.atomic else ""
            yield f"{pad}{how}{s.buffer.name}[{s.offset}] {s.operation}= {s.value}"
        else:
            yield from (pad + line for line in ir.lines((s,), 0))
