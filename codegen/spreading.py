"""How the loops of a kernel are spread over threads: Kernel -> launches, for targets with many threads.

    Launch     = loops, body, blocks      body for every index of `loops`, by a thread or by a block each
    Statement += Cooperate(loops, body, totals)   the threads of a block share the loops, then merge totals
               | Accumulate(buffer, offset, operation, value, atomic)    buffer[offset] op= value

Nothing but the loop IR is read. Loops run side by side where no two of their iterations touch one place
that either writes: offsets are affine, and a mixed-radix argument shows them different. What crosses
iterations is

    an accumulator in a name       merged by a tree, where its operation is associative; else serial
    an accumulation into memory    a launch of its own, one thread for each index that is kept and a
                                   serial loop over the others, in the kernel's order; where nothing is
                                   kept or the value hangs on a reduction, atomic additions
    anything else                  serial

so that no promise is made that the IR does not keep, and only atomic additions round in an order that
changes from run to run. A kernel is cut where one loop must end before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

from codegen import loop_ir as ir
from codegen.injectivity import Access, separate
from codegen.loop_ir import (
    Affine,
    Apply,
    Buffer,
    CheckIndex,
    For,
    Kernel,
    Let,
    Load,
    Statement,
    Store,
    Update,
)
from codegen.loops import highest, lowest
from symgrad.graph.dims import Extent
from symgrad.graph.dtypes import BOOL, DType
from symgrad.graph.errors import CompileError

Loop: TypeAlias = tuple[str, Extent]
# Operations whose order may be changed up to rounding.
ASSOCIATIVE = ("add", "mul", "maximum", "minimum", "logical_or")


@dataclass(frozen=True, slots=True)
class Total:
    """An accumulator that every thread has, and how two of them become one."""

    name: str
    dtype: DType
    operation: str


@dataclass(frozen=True, slots=True)
class Cooperate:
    """`body` for every index of `loops`, shared by the threads of a block; then totals are merged."""

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
    """A matrix product, or one for each step of a loop."""

    call: ir.Call
    loop: Loop | None


Spread: TypeAlias = Statement | Cooperate | Accumulate


def spread(kernel: Kernel) -> list[Launch | Product]:
    """The launches of a kernel, in order."""
    return _Spreader(kernel).run()


def walk(body: Sequence[Spread]) -> Iterator[Spread]:
    """All statements, outer before inner."""
    for s in body:
        yield s
        if isinstance(s, (For, Cooperate)):
            yield from walk(s.body)


class _Spreader:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.body = _accumulations(kernel.body)
        self.defined = {s.name: s for s in walk(self.body) if isinstance(s, Let)}
        self.updated = {s.name for s in walk(self.body) if isinstance(s, Update)}
        self.checked = {s.name: s.extent for s in walk(self.body) if isinstance(s, CheckIndex)}

    def run(self) -> list[Launch | Product]:
        launches: list[Launch | Product] = []
        rest: list[Spread] = []
        before: list[Spread] = []
        for k, s in enumerate(self.body):
            product = _product(s)
            if product is not None:
                launches.append(product)
            elif isinstance(s, For) and not _carried(s):
                launches.extend(self.nest(before, s))
            elif isinstance(s, (Let, CheckIndex)):
                before.append(s)
            else:  # from here on names tie the statements together: one block runs them all
                rest = list(self.body[k:])
                break
        if rest:
            launches.extend(self.one_block(before, rest))
        return launches

    # -- one nest of loops, side by side -------------------------------------------------------------
    def nest(self, before: Sequence[Spread], loop: For) -> list[Launch]:
        first, main, last = self.split(before, loop)
        middle = [self.spread_nest(before, s) for s in main if isinstance(s, For)]
        return [*first, *middle, *last]

    def spread_nest(self, before: Sequence[Spread], loop: For) -> Launch:
        """A launch for a loop, with the names before it that it needs."""
        loops, inner = _chain(loop)
        parallel = self.parallel(loops, (loop,))
        row = [s for s in inner if isinstance(s, For)]
        together: list[Spread] | None = None
        if row:
            shared = [self.cooperate(s) for s in inner]
            if not any(isinstance(s, For) for s in shared):
                together = shared
        body = _rebuilt(loops, loop, {v for v, _ in parallel}, together or inner)
        return Launch(parallel, _needed([*before, *body]), together is not None)

    def parallel(self, loops: Sequence[Loop], body: Sequence[Spread]) -> tuple[Loop, ...]:
        """As many of the loops as can be shown to touch different places, outer ones first."""
        accesses = list(self.accesses(body, {}))
        for count in range(len(loops), 0, -1):
            for chosen in combinations(loops, count):
                if separate(accesses, [v for v, _ in chosen]):
                    return chosen
        return ()

    def accesses(self, body: Sequence[Spread], around: dict[str, Extent]) -> Iterator[Access]:
        """All places that are read or written, with the ranges of the variables in them."""
        ranges = {**self.checked, **around}
        for s in body:
            if isinstance(s, For):
                yield from self.accesses(s.body, {**around, s.var: s.extent})
            elif isinstance(s, Cooperate):
                yield from self.accesses(s.body, {**around, **dict(s.loops)})
            elif isinstance(s, Let) and isinstance(s.value, Load):
                yield Access(s.value.buffer.name, s.value.offset, False, ranges)
            elif isinstance(s, Store) or (isinstance(s, Accumulate) and not s.atomic):
                yield Access(s.buffer.name, s.offset, True, ranges)
            elif isinstance(s, ir.Call):
                raise CompileError(f"{self.kernel.name}: a product among loops (codegen/spreading.py)")

    # -- rows: the threads of a block share what stands inside ---------------------------------------
    def cooperate(self, s: Spread) -> Spread:
        """A loop for all threads of a block, or the statement as it is where that cannot be."""
        if not isinstance(s, For):
            return s
        carried = _carried(s)
        totals = [self.total(name, s) for name in sorted(carried)]
        if any(t is None for t in totals):
            return s
        loops, inner = _chain(s, carried)
        parallel = self.parallel(loops, (s,))
        if not parallel:
            return s
        body = _rebuilt(loops, s, {v for v, _ in parallel}, inner)
        return Cooperate(parallel, tuple(body), tuple(t for t in totals if t is not None))

    def total(self, name: str, loop: For) -> Total | None:
        """An accumulator of a loop, if every thread may keep its own and merge it afterwards."""
        start = self.defined[name]
        merges = [
            s for s in walk(loop.body)
            if isinstance(s, Let) and isinstance(s.value, Apply) and name in s.value.operands
        ]
        operations = {s.value.operation for s in merges if isinstance(s.value, Apply)}
        if len(operations) != 1:
            return None
        (operation,) = operations
        if operation not in ASSOCIATIVE or not self.neutral(start, operation):
            return None
        inside = [s for s in walk(loop.body) if isinstance(s, Update) and s.name == name]
        everywhere = [s for s in walk(self.body) if isinstance(s, Update) and s.name == name]
        if len(inside) != len(everywhere):
            return None
        made = {s.name for s in merges}
        for s in walk(loop.body):
            if isinstance(s, Update) and s.name == name:
                if s.value not in made:
                    return None
            elif not isinstance(s, For) and (_uses(s) & ({name} | made)) and s not in merges:
                return None
        if any(isinstance(s.value, Apply) and s.value.operands.count(name) != 1 for s in merges):
            return None
        return Total(name, start.dtype, operation)

    def neutral(self, start: Let, operation: str) -> bool:
        value = start.value
        while isinstance(value, ir.Copy):
            value = self.defined[value.name].value
        if not isinstance(value, ir.Literal):
            return False
        dtype = start.dtype
        neutral = {
            "add": 0, "mul": 1, "logical_or": False,
            "maximum": lowest(dtype), "minimum": highest(dtype),
        }
        return value.number == neutral[operation]

    def one_block(self, before: Sequence[Spread], rest: Sequence[Spread]) -> list[Launch]:
        """Statements tied together by names: one block runs them, or one thread."""
        first: list[Launch] = []
        last: list[Launch] = []
        kept: list[Spread] = []
        for k, s in enumerate(rest):
            if isinstance(s, For):
                early, main, late = self.split([*before, *rest[:k]], s)
                if (early and k) or (late and k < len(rest) - 1 and not self.untouched(rest, k)):
                    main, early, late = [_atomic(s)], [], []
                first += early
                last += late
                kept += [self.shared(m) for m in main]
            else:
                kept.append(s)
        blocks = any(isinstance(s, Cooperate) for s in walk(kept))
        return [*first, Launch((), _needed([*before, *kept]), blocks), *last]

    def untouched(self, rest: Sequence[Spread], k: int) -> bool:
        """Whether nothing after statement k writes what it touches."""
        touched = {a.buffer for a in self.accesses([rest[k]], {})}
        later = self.accesses([s for s in rest[k + 1 :] if not isinstance(s, Update)], {})
        return not any(a.writes and a.buffer in touched for a in later)

    def shared(self, s: Spread) -> Spread:
        """A loop shared by a block, else a serial loop around loops that are shared."""
        done = self.cooperate(s)
        if isinstance(done, For):
            return replace(done, body=tuple(self.shared(t) for t in done.body))  # type: ignore[arg-type]
        return done

    # -- accumulations into memory -------------------------------------------------------------------
    def split(
        self, before: Sequence[Spread], loop: For
    ) -> tuple[list[Launch], list[Spread], list[Launch]]:
        """Take accumulations out of a loop: launches before it, what stays, and launches after it."""
        first: list[Launch] = []
        last: list[Launch] = []
        staying: list[Accumulate] = []
        sinks = [s for s in walk((loop,)) if isinstance(s, Accumulate)]
        for sink in sinks:
            after = self.launch_after(before, loop, sink)
            early = self.launch_before(before, loop, sink) if after is None else None
            if after is not None:
                last.append(after)
            elif early is not None:
                first.append(early)
            else:
                staying.append(sink)
        if len(staying) == len(sinks):
            return first, [_atomic(loop)], last
        checks = {s.name for launch in (*first, *last) for s in walk(launch.body)
                  if isinstance(s, CheckIndex)}
        carried = _carried(loop)

        def stays(s: Spread) -> bool:
            if isinstance(s, Accumulate):
                return s in staying
            if isinstance(s, Update):
                return s.name in carried
            return isinstance(s, Store) or (isinstance(s, CheckIndex) and s.name not in checks)

        return first, [_atomic(s) for s in _slice([loop], stays)], last

    def launch_before(self, before: Sequence[Spread], loop: For, sink: Accumulate) -> Launch | None:
        """The accumulation computed anew, before the loop writes anything."""
        body = _slice([*before, loop], lambda s: s is sink)
        own = [s for s in body if isinstance(s, For)]
        if any(isinstance(s, Update) for s in walk(body)) or len(own) != 1:
            return None
        written: set[str] = set()
        wanted = {s.name for s in walk(body) if isinstance(s, Let)}
        for s in walk((loop,)):
            if isinstance(s, (Store, Accumulate)):
                written.add(s.buffer.name)
            elif isinstance(s, Let) and isinstance(s.value, Load):
                if s.value.buffer.name in written and s.name in wanted:
                    return None
        return self.kept_axes([s for s in body if s is not own[0]], own[0])

    def launch_after(self, before: Sequence[Spread], loop: For, sink: Accumulate) -> Launch | None:
        """The accumulation from values that the loop has stored, after it."""
        stores = [s for s in walk((loop,)) if isinstance(s, Store)]
        stored = next((s for s in stores if s.name == sink.value), None)
        if stored is None or any(
            s.buffer.name == stored.buffer.name and s.offset != stored.offset for s in stores
        ):
            return None
        read = Let(sink.value, stored.buffer.dtype, Load(stored.buffer, stored.offset))
        body = _slice([*before, _replaced(loop, read)], lambda s: s is sink)
        own = [s for s in body if isinstance(s, For)]
        if any(isinstance(s, Update) for s in walk(body)) or len(own) != 1:
            return None
        written = {s.buffer.name for s in stores} | {
            s.buffer.name for s in walk((loop,)) if isinstance(s, Accumulate)
        }
        for s in walk(body):
            if isinstance(s, Let) and isinstance(s.value, Load) and s is not read:
                if s.value.buffer.name in written:
                    return None
        return self.kept_axes([s for s in body if s is not own[0]], own[0])

    def kept_axes(self, before: Sequence[Spread], loop: For) -> Launch | None:
        """One thread for each kept index; None where nothing is kept."""
        loops, inner = _chain(loop)
        if any(isinstance(s, For) for s in inner):
            return None
        parallel = self.parallel(loops, (loop,))
        if not parallel:
            return None
        body = _rebuilt(loops, loop, {v for v, _ in parallel}, inner)
        return Launch(parallel, _needed([*before, *body]), False)


# -- reading and rebuilding bodies -------------------------------------------------------------------
def _product(s: Spread) -> Product | None:
    if isinstance(s, ir.Call):
        return Product(s, None)
    if isinstance(s, For) and len(s.body) == 1 and isinstance(s.body[0], ir.Call):
        return Product(s.body[0], (s.var, s.extent))
    return None


def _accumulations(body: Sequence[Statement]) -> tuple[Spread, ...]:
    """rewrite: a := x[i]; b := op(a, v); x[i] := b  ->  Accumulate(x, i, op, v)."""
    done: list[Spread] = []
    for s in body:
        if isinstance(s, For):
            done.append(replace(s, body=_accumulations(s.body)))  # type: ignore[arg-type]
            continue
        done.append(s)
        if len(done) < 3 or not isinstance(s, Store):
            continue
        old, new = done[-3], done[-2]
        if (
            isinstance(old, Let) and old.value == Load(s.buffer, s.offset)
            and isinstance(new, Let) and new.name == s.name
            and isinstance(new.value, Apply) and new.value.operation in ASSOCIATIVE
            and new.value.operands[0] == old.name != new.value.operands[1]
        ):
            value = Accumulate(s.buffer, s.offset, new.value.operation, new.value.operands[1])
            done[-3:] = [value]
    return tuple(done)


def _atomic(s: Spread) -> Spread:
    """A statement whose additions into memory are atomic; other operations have no such form."""
    if isinstance(s, For):
        return replace(s, body=tuple(_atomic(t) for t in s.body))  # type: ignore[arg-type,misc]
    if isinstance(s, Accumulate) and s.operation == "add" and s.buffer.dtype != BOOL:
        return replace(s, atomic=True)
    return s


def _uses(s: Spread) -> set[str]:
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


def _carried(loop: For) -> set[str]:
    """Accumulators that outlive an iteration of a loop."""
    own = {s.name for s in walk(loop.body) if isinstance(s, Let)}
    return {s.name for s in walk(loop.body) if isinstance(s, Update)} - own


def _chain(loop: For, allowed: set[str] | None = None) -> tuple[list[Loop], Sequence[Spread]]:
    """Loops that hold nothing but names and the next loop, and the body of the innermost."""
    loops = [(loop.var, loop.extent)]
    body: Sequence[Spread] = loop.body
    while body and isinstance(body[-1], For) and all(
        isinstance(s, (Let, CheckIndex)) for s in body[:-1]
    ):
        if _carried(body[-1]) - (allowed or set()):
            break
        loops.append((body[-1].var, body[-1].extent))
        body = body[-1].body
    return loops, body


def _rebuilt(
    loops: Sequence[Loop], loop: For, without: set[str], inner: Sequence[Spread]
) -> list[Spread]:
    """A chain of loops without some of them, around another innermost body."""

    def build(s: For, depth: int) -> list[Spread]:
        body = list(inner)
        if depth + 1 < len(loops):
            body = [*s.body[:-1], *build(s.body[-1], depth + 1)]  # type: ignore[arg-type]
        return body if s.var in without else [replace(s, body=tuple(body))]  # type: ignore[arg-type]

    return build(loop, 0)


def _slice(body: Sequence[Spread], wanted: Callable[[Spread], bool]) -> list[Spread]:
    """The wanted statements, and what they need."""
    everything = list(walk(body))
    needed: set[str] = set()
    for s in everything:
        if wanted(s):
            needed |= _uses(s)
    while True:
        size = len(needed)
        for s in everything:
            if isinstance(s, (Let, Update, CheckIndex)) and s.name in needed:
                needed |= _uses(s)
        if len(needed) == size:
            break

    def kept(body: Sequence[Spread]) -> list[Spread]:
        done: list[Spread] = []
        for s in body:
            if isinstance(s, (For, Cooperate)):
                inside = kept(s.body)
                if inside:
                    done.append(replace(s, body=tuple(inside)))  # type: ignore[arg-type,type-var]
            elif wanted(s) or (isinstance(s, (Let, Update, CheckIndex)) and s.name in needed):
                done.append(s)
        return done

    return kept(body)


def _needed(body: Sequence[Spread]) -> tuple[Spread, ...]:
    """A body without names that nothing uses."""
    return tuple(_slice(body, lambda s: isinstance(s, (Store, Accumulate, CheckIndex))))


def _replaced(s: For, read: Let) -> For:
    """A loop in which a name is defined otherwise."""
    body: list[Statement] = []
    for t in s.body:
        if isinstance(t, For):
            t = _replaced(t, read)
        body.append(read if isinstance(t, Let) and t.name == read.name else t)
    return replace(s, body=tuple(body))


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
