"""How the workers of a team share a kernel: Kernel -> Kernel, from loop IR alone.

All workers run the same kernels in the same order. A loop is shared where no two of its iterations
touch one place that either writes (`codegen/injectivity.py`): each worker does the iterations of
its own rows. A product is shared by the rows or the columns of its result, or by the terms of its
sums where they are long. What crosses rows is

    a row of memory that waits for the next pass   every worker has a row of its own
    an accumulator in a name                       every worker has its own; they are merged in the
                                                   order of the workers
    an accumulation into memory                    the same, in a copy of that memory, where that is
                                                   small beside the loop; else an inner loop is
                                                   shared whose iterations touch different places
    anything else                                  worker 0 does the kernel alone

So the batch is shared where its label reaches results through sums only, and where a mean over it
stands in the middle, the workers meet there: nothing is assumed of a label beyond what the loops
show. Sums are merged in a fixed order: the same number of workers gives the same bits. Where the
workers must meet is decided afterwards (`codegen/meetings.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from codegen import loop_ir as ir
from codegen.injectivity import Access, nonnegative, separate
from codegen.launches import (
    ASSOCIATIVE,
    Accumulate,
    Spread,
    Total,
    carried_by,
    chain,
    product_of,
    walk,
)
from codegen.loop_ir import (
    FEW_ROWS,
    WORKER,
    WORKERS,
    Apply,
    Buffer,
    For,
    Let,
    Load,
    Only,
    Statement,
    Store,
    Update,
    partition_of,
    variable,
)
from codegen.spreading import Spreader
from codegen.values import Lowered, Operand, RunningTotals, Scratch, Temporary
from codegen.work import SMALL, work_of
from symgrad.graph.dims import TYPICAL_EXTENT, Extent, Shape, same, size, typical
from symgrad.graph.nodes import Node

#: Elements between what two workers write, so that they share no cache line.
APART = 64
#: A product with a transposed B turns all of B for its rows: few rows are not shared, columns are,
#: so that each worker turns its own part (256 x 1024 x 1024: 1.7 times as fast on two cores, by
#: rows 1.0 times; Sapphire Rapids).
FEW_FOR_TURNING = 256
#: Sums of so many terms, and of so many more than the result has rows or columns, are shared by
#: their terms: by columns each worker copies all of A^T (1.4 to 1.8 x on two cores; by terms 1.95).
LONG, LONGER = 1024, 4
#: A private copy of what a loop accumulates may have one element for so many iterations.
ITERATIONS_PER_ELEMENT = 8


def share(low: Lowered, workers: int) -> Lowered:
    """The kernel for a team of up to `workers`; `kernel.alone` says why worker 0 does it alone."""
    try:
        return _Sharer(low, workers).run()
    except _Alone as reason:
        return replace(low, kernel=replace(low.kernel, alone=str(reason)))


class _Alone(Exception):
    """Why a kernel is not shared."""


@dataclass(slots=True)
class _Split:
    """How one loop is shared: its variable, and what every worker has of its own."""

    var: str
    totals: list[Total] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)


class _Sharer:
    def __init__(self, low: Lowered, workers: int) -> None:
        self.low, self.workers = low, workers
        self.buffers = list(low.kernel.buffers)
        self.operands: list[Operand] = list(low.operands)
        self.of = dict(zip((b.name for b in self.buffers), self.operands, strict=True))
        self.writes = set(low.writes)
        self.spread = Spreader(low.kernel)
        self.rows = {b.name for b in self.buffers if isinstance(self.of[b.name], Temporary)}
        self.own: dict[str, tuple[Buffer, Extent]] = {}
        self.names = 0

    def run(self) -> Lowered:
        kernel = self.low.kernel
        if any(isinstance(operand, RunningTotals) for operand in self.operands):
            raise _Alone("a row needs the totals of the rows before")
        loops = [s for s in self.spread.body if isinstance(s, For)]
        splits = iter([None if product_of(s) else self.split(s) for s in loops])
        chosen = [next(splits) if isinstance(s, For) else None for s in kernel.body]
        merged = any(s.totals or s.copies for s in chosen if s)
        if merged and typical(work_of(kernel.body)) < SMALL:
            raise _Alone("small, and its sums would have to be merged")
        for split in chosen:
            self.privatise(split)
        body: list[Statement] = []
        places = [k for k, s in enumerate(kernel.body) if isinstance(s, (For, ir.Call))]
        last = max(places, default=-1)
        if last < 0:
            raise _Alone("no loop")
        for k, (s, split) in enumerate(zip(kernel.body[: last + 1], chosen, strict=False)):
            if isinstance(s, For) and split is not None:
                body += self.shared_loop(s, split, ends=k == last)
            elif isinstance(s, ir.Call) and self.is_by_terms(s):
                body += self.by_terms(s)
            elif isinstance(s, (For, ir.Call)):
                body.append(_shared_product(s))
            else:
                body.append(Only((s,)) if isinstance(s, Store) else s)
        rest = list(kernel.body[last + 1 :])
        if (final := chosen[last]) is not None:
            rest = [*self.merged_totals(final), *rest]
        if rest:
            body.append(Only(tuple(rest)))
        kernel = replace(kernel, buffers=tuple(self.buffers), body=tuple(body))
        return replace(
            self.low, kernel=kernel, operands=tuple(self.operands), writes=frozenset(self.writes)
        )

    # -- what can be shared ------------------------------------------------------------------------
    def split(self, loop: For) -> _Split:
        """How a loop outside all others is shared; its accumulations are records here."""
        carried = carried_by(loop)
        loops, _ = chain(loop)
        ways = [self.outer(loop, carried)]
        if not carried and not self.touched(loop) & self.rows:
            accesses = self.accesses(loop)
            ways += [_Split(v) for v, _ in loops[1:] if _separate(accesses, v)]
        inside = [s for s in walk((loop,)) if isinstance(s, For)]
        extents = {s.var: (s.parts or (s.extent, 1))[0] for s in inside}
        possible = [w for w in ways if isinstance(w, _Split)]
        for way in possible:
            if typical(extents[way.var]) >= FEW_ROWS:
                return way
        if possible:
            return max(possible, key=lambda w: typical(extents[w.var]))
        raise _Alone(str(ways[0]))

    def outer(self, loop: For, carried: set[str]) -> _Split | str:
        """The outermost loop, whose iterations may add up; or why it cannot be shared."""
        split = _Split(loop.var)
        for name in sorted(carried):
            total = self.spread.total(name, loop)
            if total is None:
                return "an iteration needs the one before"
            split.totals.append(total)
        sinks = {s.buffer.name: s for s in walk(loop.body) if isinstance(s, Accumulate)}
        kept = [n for n in sinks if not _separate(self.accesses(loop, {n}), loop.var)]
        for name in kept:
            operation = self.only_operation(loop, name)
            if operation not in ASSOCIATIVE:
                return "its iterations write the same places"
            elements = typical(self.size_of(name)) * self.workers * ITERATIONS_PER_ELEMENT
            if elements > _iterations((loop,)):
                return "its sums are as large as what they add up"
            split.copies[name] = operation
        rest = self.touched(loop) - self.rows - set(kept)
        if not _separate(self.accesses(loop, rest), loop.var):
            return "its iterations write places that others touch"
        return split

    def only_operation(self, loop: For, name: str) -> str:
        """The operation by which all of a loop's accesses to a buffer add up there; or none."""
        found: set[str] = set()
        for s in walk(loop.body):
            if isinstance(s, Accumulate) and s.buffer.name == name:
                found.add(s.operation)
            elif name in _plainly_touched(s):
                found.add("")
        return found.pop() if len(found) == 1 else ""

    def accesses(self, loop: For, names: set[str] | None = None) -> list[Access]:
        """What a loop does, in all buffers or in some."""
        found = _accesses((loop,), dict(self.spread.checked))
        return [a for a in found if names is None or a.buffer in names]

    def touched(self, loop: For) -> set[str]:
        """The buffers that a loop reads or writes."""
        return {a.buffer for a in self.accesses(loop)}

    def size_of(self, name: str) -> Extent:
        """Elements of a buffer."""
        operand = self.of[name]
        assert not isinstance(operand, Scratch)
        return size(operand.shape)

    # -- what every worker has of its own ----------------------------------------------------------
    def privatise(self, split: _Split | None) -> None:
        """Give every worker rows of memory, and copies of what a loop accumulates."""
        for name in sorted(self.rows - self.own.keys()):
            self.own[name] = self.enlarged(name)
        for name in split.copies if split else ():
            if name in self.own:
                raise _Alone("two loops add up in one place")
            n = self.size_of(name)
            buffer = next(b for b in self.buffers if b.name == name)
            self.own[name] = (self.added(buffer, n), size((n + APART,)))

    def enlarged(self, name: str) -> tuple[Buffer, Extent]:
        """A row of memory for each worker in the place of one."""
        k = next(k for k, b in enumerate(self.buffers) if b.name == name)
        old = self.operands[k]
        assert isinstance(old, Temporary)
        stride = size(old.shape) + APART
        new = Temporary(old.node, (self.workers, stride), old.dtype)
        self.operands[k] = self.of[name] = new
        self.writes.discard(old)
        self.writes.add(new)
        return self.buffers[k], stride

    def added(self, like: Buffer, n: Extent) -> Buffer:
        """Further memory of n elements for each worker."""
        k = len(self.buffers)
        buffer = Buffer(f"x{k}", like.dtype, k)
        operand = self.of[like.name]
        assert not isinstance(operand, Scratch | RunningTotals)
        node = operand.node if isinstance(operand, Temporary) else operand
        own = Temporary(node, (self.workers, n + APART), like.dtype)
        self.buffers.append(buffer)
        self.operands.append(own)
        self.of[buffer.name] = own
        self.writes.add(own)
        return buffer

    # -- products with long sums -------------------------------------------------------------------
    def is_by_terms(self, call: ir.Call) -> bool:
        """Whether workers share the terms of a product's sums, and not its rows or columns."""
        if call.transposed != (True, False) or call.adds or call.offsets[2] != ir.Affine():
            return False
        places = size(self.operand_of(call.c).shape)
        whole = same(size((call.m, call.n)), places) is True and same(call.rows[2], call.n) is True
        long = typical(call.k) >= max(LONG, LONGER * max(typical(call.m), typical(call.n)))
        return whole and long

    def by_terms(self, call: ir.Call) -> list[Statement]:
        """Each worker adds up its own terms; then what they have becomes one."""
        shape = self.operand_of(call.c).shape
        own, stride = self.added(call.c, size(shape)), size(shape) + APART
        a, b, _ = call.offsets
        part = replace(call, c=own, offsets=(a, b, ir.Affine() + WORKER * stride), shared="k")
        names = [self.fresh() for _ in range(4)]
        return [part, *merged(call.c, (own, stride), shape, "add", names)]

    def operand_of(self, buffer: Buffer) -> Node | Temporary | RunningTotals:
        """What a buffer is."""
        operand = self.of[buffer.name]
        assert not isinstance(operand, Scratch)
        return operand

    # -- writing -----------------------------------------------------------------------------------
    def shared_loop(self, loop: For, split: _Split, ends: bool) -> list[Statement]:
        """A loop of which each worker does its part, and how the parts become one."""
        fills = len(loop.body) == 1 and isinstance(loop.body[0], Store)
        if fills and self._accumulated(loop.body[0]):
            return [replace(loop, body=moved(loop.body, self.own))]
        (done,) = self.marked((loop,), split.var)
        after: list[Statement] = []
        for name, operation in split.copies.items():
            after += self.merged_copy(name, operation)
        for j, total in enumerate(split.totals):
            own, stride = self.totals_memory(total)
            after.append(Store(own, ir.Affine(const=WORKER * stride + j), total.name))
        if not ends:
            after += self.merged_totals(split)
        return [done, *after]

    def _accumulated(self, s: Statement) -> bool:
        """Whether a Store fills what every worker has a copy of."""
        return isinstance(s, Store) and s.buffer.name in self.own and s.buffer.name not in self.rows

    def marked(self, body: Sequence[Statement], var: str) -> tuple[Statement, ...]:
        """Statements whose loop over `var` is shared."""
        done = [
            replace(s, body=self.marked(s.body, var), shared=s.var == var)
            if isinstance(s, For)
            else s
            for s in body
        ]
        return moved(done, self.own)

    def merged_copy(self, name: str, operation: str) -> list[Statement]:
        """b[z] := copy 0 [z];  b[z] := op(b[z], copy w [z]) for w = 1, 2, .."""
        buffer = next(b for b in self.buffers if b.name == name)
        operand = self.of[name]
        assert not isinstance(operand, Scratch)
        names = [self.fresh() for _ in range(4)]
        return merged(buffer, self.own[name], operand.shape, operation, names)

    def totals_memory(self, total: Total) -> tuple[Buffer, Extent]:
        """Where the workers leave their accumulators of a dtype."""
        key = f"totals {total.dtype}"
        if key not in self.own:
            k = len(self.buffers)
            buffer = Buffer(f"x{k}", total.dtype, k)
            stride = APART * (1 + len(self.spread.updated) // APART)
            own = Temporary(self.low.nodes[0], (self.workers, stride), total.dtype)
            self.buffers.append(buffer)
            self.operands.append(own)
            self.of[buffer.name] = own
            self.writes.add(own)
            self.own[key] = (buffer, stride)
        return self.own[key]

    def merged_totals(self, split: _Split) -> list[Statement]:
        """Merge accumulators: a := op(.. op(op(start, a of worker 0), a of worker 1) ..)."""
        done: list[Statement] = []
        for j, total in enumerate(split.totals):
            own, stride = self.totals_memory(total)
            start = self.spread.defined[total.name].value
            assert isinstance(start, ir.Copy)
            one, merged = self.fresh(), self.fresh()
            step = (
                Let(one, total.dtype, Load(own, variable("w") * stride + j)),
                Let(merged, total.dtype, Apply(total.operation, (total.name, one))),
                Update(total.name, merged),
            )
            done += [Update(total.name, start.name), For("w", WORKERS, step)]
        return done

    def fresh(self) -> str:
        """A name that nothing has."""
        self.names += 1
        return f"w{self.names - 1}"


def moved(
    body: Iterable[Statement], own: Mapping[str, tuple[Buffer, Extent]]
) -> tuple[Statement, ...]:
    """Statements that work on what the worker has of its own.

    Args:
        own: by the names of buffers, the one that holds what all workers have, and how far that of
             one lies behind that of the one before.
    """
    done: list[Statement] = []
    for s in body:
        if isinstance(s, Store) and (place := own.get(s.buffer.name)):
            s = replace(s, buffer=place[0], offset=s.offset + WORKER * place[1])
        elif (
            isinstance(s, Let)
            and isinstance(v := s.value, Load)
            and (place := own.get(v.buffer.name))
        ):
            s = replace(s, value=Load(place[0], v.offset + WORKER * place[1]))
        elif isinstance(s, ir.Call):
            s = _moved_call(s, own)
        done.append(s)
    return tuple(done)


def _moved_call(call: ir.Call, own: Mapping[str, tuple[Buffer, Extent]]) -> ir.Call:
    """A product on what the worker has of its own."""
    places = [
        (b, o) if b.name not in own else (place[0], o + WORKER * place[1])
        for b, o in zip((call.a, call.b, call.c), call.offsets, strict=True)
        for place in [own.get(b.name, (b, 0))]
    ]
    (a, p), (b, q), (c, r) = places
    return replace(call, a=a, b=b, c=c, offsets=(p, q, r))


def merged(
    buffer: Buffer,
    copies: tuple[Buffer, Extent],
    shape: Shape,
    operation: str,
    names: Sequence[str],
) -> list[Statement]:
    """b[z] := copy 0 [z];  b[z] := op(b[z], copy w [z]) for w = 1, 2, ..

    Args:
        copies: the buffer that holds those of all workers, and how far they are apart.
        names:  four that nothing has.
    """
    own, stride = copies
    n, parts = size(shape), partition_of(shape)
    z, (first, old, new, total) = variable("z"), names
    start = (Let(first, buffer.dtype, Load(own, z)), Store(buffer, z, first))
    step = (
        Let(old, buffer.dtype, Load(buffer, z)),
        Let(new, buffer.dtype, Load(own, z + variable("w") * stride + stride)),
        Let(total, buffer.dtype, Apply(operation, (old, new))),
        Store(buffer, z, total),
    )
    inner = For("z", n, step, parts, shared=True)
    return [For("z", n, start, parts, shared=True), For("w", WORKERS - 1, (inner,))]


def _separate(accesses: Sequence[Access], var: str) -> bool:
    """Whether iterations of a loop never meet in a place that one of them writes."""
    buffers: dict[str, list[Access]] = {}
    for access in accesses:
        buffers.setdefault(access.buffer, []).append(access)
    return all(
        _in_rows(group, var) or separate(group, [var])
        for group in buffers.values()
        if any(a.writes for a in group)
    )


def _in_rows(accesses: Sequence[Access], var: str) -> bool:
    """Whether each iteration stays within a row: step var <= offset < step (var + 1)."""
    step = accesses[0].offset.coefficient(var)
    for a in accesses:
        if same(a.offset.coefficient(var), step) is not True or not nonnegative(a.offset.const):
            return False
        last = a.offset.const
        for v, c in a.offset.terms:
            if v != var:
                if v not in a.ranges or not nonnegative(c):
                    return False
                last = last + c * (a.ranges[v] - 1)
        if not nonnegative(step - last - 1):
            return False
    return True


def _accesses(body: Sequence[Spread], ranges: dict[str, Extent]) -> Iterator[Access]:
    """All places that are read or written, with the ranges of the variables in them."""
    for s in body:
        if isinstance(s, For):
            yield from _accesses(s.body, {**ranges, s.var: s.extent})
        elif isinstance(s, Let) and isinstance(s.value, Load):
            yield Access(s.value.buffer.name, s.value.offset, False, ranges)
        elif isinstance(s, (Store, Accumulate)):
            yield Access(s.buffer.name, s.offset, True, ranges)
        elif isinstance(s, ir.Call):
            left, right = s.transposed
            sides = ((s.k, s.m) if left else (s.m, s.k), (s.n, s.k) if right else (s.k, s.n))
            matrices = zip((s.a, s.b, s.c), s.offsets, s.rows, (*sides, (s.m, s.n)), strict=True)
            for buffer, offset, length, (rows, columns) in matrices:
                place = offset + variable("row") * length + variable("column")
                inside = {**ranges, "row": rows, "column": columns}
                yield Access(buffer.name, place, buffer is s.c, inside)


def _plainly_touched(s: object) -> set[str]:
    """The buffer that a statement loads from or stores to."""
    if isinstance(s, Store):
        return {s.buffer.name}
    if isinstance(s, Let) and isinstance(s.value, Load):
        return {s.value.buffer.name}
    return set()


def _shared_product(s: Statement) -> Statement:
    """A product, or products in a loop, of which each worker does its part."""
    if isinstance(s, For):
        rows = (s.parts or (s.extent, 1))[0]
        if typical(rows) >= FEW_ROWS:
            return replace(s, shared=True)
        return replace(s, body=tuple(_shared_product(t) for t in s.body))
    assert isinstance(s, ir.Call)
    rows = (s.parts or (s.m, 1))[0]
    by_rows = typical(rows) >= min(TYPICAL_EXTENT, typical(s.n))
    turned = s.transposed[1] and min(typical(s.n), typical(s.k)) >= TYPICAL_EXTENT
    if turned and typical(s.m) <= FEW_FOR_TURNING:
        by_rows = False
    if s.transposed[0] and typical(s.n) > typical(s.m):
        by_rows = False  # each worker copies all of one operand: the smaller one (1.25 -> 1.75 x)
    return replace(s, shared="m" if by_rows else "n")


def _iterations(body: Sequence[Statement]) -> int:
    """How often the innermost statements run."""
    inner = [typical(s.extent) * _iterations(s.body) for s in body if isinstance(s, For)]
    return max(inner, default=1)
