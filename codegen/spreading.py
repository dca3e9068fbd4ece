"""How the loops of a kernel are spread over threads: Kernel -> launches (`codegen/launches.py`).

Nothing but the loop IR is read. Loops run side by side where no two of their iterations touch one
place that either writes: offsets are affine, and a mixed-radix argument (`codegen/injectivity.py`)
shows them different. What crosses iterations is

    an accumulator in a name       merged by a tree where its operation is associative, else serial
    an accumulation into memory    a launch of its own, one thread for each index that is kept and
                                   a serial loop over the others, in the kernel's order; where
                                   nothing is kept or the value hangs on a reduction, atomic
    anything else                  serial

so that no promise is made that the IR does not keep, and only atomic additions round in an order
that changes from run to run. A kernel is cut where one loop must end before the next begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from codegen import loop_ir as ir
from codegen.injectivity import Access, separate
from codegen.launches import (
    ASSOCIATIVE,
    Accumulate,
    Cooperate,
    Launch,
    Loop,
    Product,
    Spread,
    Total,
    accumulations,
    atomic,
    carried_by,
    chain,
    needed_of,
    product_of,
    rebuilt,
    sliced,
    uses,
    walk,
    with_body,
    with_definition,
)
from codegen.loop_ir import Apply, CheckIndex, For, Kernel, Let, Load, Store, Update
from codegen.loops import highest, lowest
from symgrad.graph.dims import Extent
from symgrad.graph.errors import CompileError


def spread(kernel: Kernel) -> list[Launch | Product]:
    """The launches of a kernel, in order."""
    return Spreader(kernel).run()


class Spreader:
    """A kernel, and what is known of its names."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.body = accumulations(kernel.body)
        self.defined = {s.name: s for s in walk(self.body) if isinstance(s, Let)}
        self.updated = {s.name for s in walk(self.body) if isinstance(s, Update)}
        self.checked = {s.name: s.extent for s in walk(self.body) if isinstance(s, CheckIndex)}

    def run(self) -> list[Launch | Product]:
        """The launches, in order."""
        launches: list[Launch | Product] = []
        rest: list[Spread] = []
        before: list[Spread] = []
        for k, s in enumerate(self.body):
            product = product_of(s)
            if product is not None:
                launches.append(product)
            elif isinstance(s, For) and not carried_by(s):
                launches.extend(self.nest(before, s))
            elif isinstance(s, (Let, CheckIndex)):
                before.append(s)
            else:  # from here on names tie the statements together: one block runs them all
                rest = list(self.body[k:])
                break
        if rest:
            launches.extend(self.one_block(before, rest))
        return launches

    # -- one nest of loops, side by side ----------------------------------------------------------
    def nest(self, before: Sequence[Spread], loop: For) -> list[Launch]:
        """The launches of a loop outside all others."""
        first, main, last = self.split(before, loop)
        middle = [self.spread_nest(before, s) for s in main if isinstance(s, For)]
        return [*first, *middle, *last]

    def spread_nest(self, before: Sequence[Spread], loop: For) -> Launch:
        """A launch for a loop, with the names before it that it needs."""
        loops, inner = chain(loop)
        parallel = self.parallel(loops, (loop,))
        row = [s for s in inner if isinstance(s, For)]
        together: list[Spread] | None = None
        if row:
            shared = [self.cooperate(s) for s in inner]
            if not any(isinstance(s, For) for s in shared):
                together = shared
        body = rebuilt(loops, loop, {v for v, _ in parallel}, together or inner)
        return Launch(parallel, needed_of([*before, *body]), together is not None)

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
                raise CompileError(
                    f"{self.kernel.name}: a product among loops (codegen/spreading.py)"
                )

    # -- rows: the threads of a block share what stands inside ------------------------------------
    def cooperate(self, s: Spread) -> Spread:
        """A loop for all threads of a block, or the statement as it is where that cannot be."""
        if not isinstance(s, For):
            return s
        carried = carried_by(s)
        totals = [self.total(name, s) for name in sorted(carried)]
        if any(t is None for t in totals):
            return s
        loops, inner = chain(s, carried)
        parallel = self.parallel(loops, (s,))
        if not parallel:
            return s
        body = rebuilt(loops, s, {v for v, _ in parallel}, inner)
        return Cooperate(parallel, tuple(body), tuple(t for t in totals if t is not None))

    def total(self, name: str, loop: For) -> Total | None:
        """An accumulator of a loop, if every thread may keep its own and merge it afterwards."""
        start = self.defined[name]
        merges = [
            s
            for s in walk(loop.body)
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
            elif not isinstance(s, For) and (uses(s) & ({name} | made)) and s not in merges:
                return None
        if any(isinstance(s.value, Apply) and s.value.operands.count(name) != 1 for s in merges):
            return None
        return Total(name, start.dtype, operation)

    def neutral(self, start: Let, operation: str) -> bool:
        """Whether an accumulator starts at what changes nothing."""
        value = start.value
        while isinstance(value, ir.Copy):
            value = self.defined[value.name].value
        if not isinstance(value, ir.Literal):
            return False
        dtype = start.dtype
        neutral = {
            "add": 0,
            "mul": 1,
            "logical_or": False,
            "greatest": lowest(dtype),
            "least": highest(dtype),
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
                    main, early, late = [atomic(s)], [], []
                first += early
                last += late
                kept += [self.shared(m) for m in main]
            else:
                kept.append(s)
        blocks = any(isinstance(s, Cooperate) for s in walk(kept))
        return [*first, Launch((), needed_of([*before, *kept]), blocks), *last]

    def untouched(self, rest: Sequence[Spread], k: int) -> bool:
        """Whether nothing after statement k writes what it touches."""
        touched = {a.buffer for a in self.accesses([rest[k]], {})}
        later = self.accesses([s for s in rest[k + 1 :] if not isinstance(s, Update)], {})
        return not any(a.writes and a.buffer in touched for a in later)

    def shared(self, s: Spread) -> Spread:
        """A loop shared by a block, else a serial loop around loops that are shared."""
        done = self.cooperate(s)
        if isinstance(done, For):
            return with_body(done, [self.shared(t) for t in done.body])
        return done

    # -- accumulations into memory ----------------------------------------------------------------
    def split(
        self, before: Sequence[Spread], loop: For
    ) -> tuple[list[Launch], list[Spread], list[Launch]]:
        """Take accumulations out of a loop: launches before it, what stays, launches after it."""
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
            return first, [atomic(loop)], last
        checks = {
            s.name
            for launch in (*first, *last)
            for s in walk(launch.body)
            if isinstance(s, CheckIndex)
        }
        carried = carried_by(loop)

        def stays(s: Spread) -> bool:
            if isinstance(s, Accumulate):
                return s in staying
            if isinstance(s, Update):
                return s.name in carried
            return isinstance(s, Store) or (isinstance(s, CheckIndex) and s.name not in checks)

        return first, [atomic(s) for s in sliced([loop], stays)], last

    def launch_before(self, before: Sequence[Spread], loop: For, sink: Accumulate) -> Launch | None:
        """The accumulation computed anew, before the loop writes anything."""
        body = sliced([*before, loop], lambda s: s is sink)
        own = [s for s in body if isinstance(s, For)]
        if any(isinstance(s, Update) for s in walk(body)) or len(own) != 1:
            return None
        written: set[str] = set()
        wanted = {s.name for s in walk(body) if isinstance(s, Let)}
        for s in walk((loop,)):
            if isinstance(s, (Store, Accumulate)):
                written.add(s.buffer.name)
            elif (
                isinstance(s, Let)
                and isinstance(s.value, Load)
                and s.value.buffer.name in written
                and s.name in wanted
            ):
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
        body = sliced([*before, with_definition(loop, read)], lambda s: s is sink)
        own = [s for s in body if isinstance(s, For)]
        if any(isinstance(s, Update) for s in walk(body)) or len(own) != 1:
            return None
        written = {s.buffer.name for s in stores} | {
            s.buffer.name for s in walk((loop,)) if isinstance(s, Accumulate)
        }
        loads = [s for s in walk(body) if isinstance(s, Let) and s is not read]
        if any(isinstance(s.value, Load) and s.value.buffer.name in written for s in loads):
            return None
        return self.kept_axes([s for s in body if s is not own[0]], own[0])

    def kept_axes(self, before: Sequence[Spread], loop: For) -> Launch | None:
        """One thread for each kept index; None where nothing is kept."""
        loops, inner = chain(loop)
        if any(isinstance(s, For) for s in inner):
            return None
        parallel = self.parallel(loops, (loop,))
        if not parallel:
            return None
        body = rebuilt(loops, loop, {v for v, _ in parallel}, inner)
        return Launch(parallel, needed_of([*before, *body]), False)
