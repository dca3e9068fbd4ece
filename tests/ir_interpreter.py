"""Loop IR run by Python: a second target for tests, slow, in which every access is checked.

It has the meaning of the IR and nothing of Numba's: loads and stores are checked against the bounds
of their buffers, loads against memory that nothing has written, operands against the dtype of their
result, and the alias scopes of one kernel against overlapping memory.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from codegen import loop_ir as ir, targets
from codegen.loading import Loaded
from codegen.memory import Invoked, InvokedLoop, Plan, kernels_of
from codegen.targets import cpu
from symgrad.graph.dims import Dim, value
from symgrad.graph.dtypes import BOOL, INT64
from symgrad.graph.functions import FUNCTIONS

Translate: TypeAlias = Callable[[ir.Kernel, Mapping[Dim, int]], Any]
ARITHMETIC = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "less": "{} < {}",
    "less_equal": "{} <= {}",
    "equal": "{} == {}",
    "not_equal": "{} != {}",
    "logical_and": "{} & {}",
    "logical_or": "{} | {}",
    "logical_xor": "{} ^ {}",
    "logical_not": "not {}",
}


class Block:
    """The memory behind one entry of the table, and which of its bytes were written."""

    def __init__(self, address: int, size: int, written: bool) -> None:
        self.address, self.size = address, size
        raw = (ctypes.c_uint8 * max(size, 1)).from_address(address)
        self.bytes = np.frombuffer(raw, np.uint8)[:size]
        self.written = np.full(size, written)

    def typed(self, dtype: np.dtype[Any]) -> Typed:
        return Typed(self, dtype)

    def moved(self, count: int) -> Block:
        """The same memory from `count` bytes on."""
        window = object.__new__(Block)
        window.address, window.size = self.address + count, self.size - count
        window.bytes, window.written = self.bytes[count:], self.written[count:]
        return window


class Typed:
    """A block as elements of one dtype."""

    def __init__(self, block: Block, dtype: np.dtype[Any]) -> None:
        self.block, self.dtype = block, dtype
        whole = block.size - block.size % dtype.itemsize
        self.items = block.bytes[:whole].view(dtype)

    def load(self, place: int) -> Any:
        self.inside(place, place + 1)
        width = self.dtype.itemsize
        assert self.block.written[place * width : (place + 1) * width].all(), "nothing was written"
        return self.items[place]

    def store(self, place: int, item: Any) -> None:
        self.inside(place, place + 1)
        assert item.dtype == self.dtype, (item.dtype, self.dtype)
        self.items[place] = item
        width = self.dtype.itemsize
        self.block.written[place * width : (place + 1) * width] = True

    def inside(self, first: int, end: int) -> None:
        assert 0 <= first <= end <= len(self.items), (first, end, len(self.items))

    def matrix(
        self, place: int, rows: int, columns: int, step: int, read: bool
    ) -> np.ndarray[Any, Any]:
        if not rows or not columns:
            return np.empty((rows, columns), self.dtype)
        assert step >= columns or rows == 1, "rows overlap"
        end = place + (rows - 1) * step + columns
        self.inside(place, end)

        def seen(items: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
            part = items[place * width : end * width]
            strides = (step * width * part.itemsize, part.itemsize)
            return np.lib.stride_tricks.as_strided(part, (rows, columns * width), strides)

        written = seen(self.block.written, self.dtype.itemsize)
        if read:
            assert written.all(), "nothing was written"
        else:
            written[...] = True
        return seen(self.items, 1)


class Target:
    """Stands for a module of `codegen/targets`."""

    prepare = staticmethod(cpu.prepare)
    hold = staticmethod(cpu.hold)
    TIMED = False
    KEEPS = False
    UNPADS = False

    def __init__(self, translate: Translate, row_memory: bool) -> None:
        self.plans: dict[str, tuple[Plan, tuple[Dim, ...]]] = {}
        self.translate = translate
        self.ROW_MEMORY = row_memory

    def print_program(self, plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
        source = f"# {len(self.plans)} {key}\n" + "\n".join(map(str, kernels_of(plan.calls)))
        self.plans[source] = plan, dims
        return source

    def load_program(self, source: str, key: str) -> Loaded:
        plan, dims = self.plans[source]
        failures: list[BaseException] = []

        def program(table: int, numbers: int) -> int:
            try:
                extents = np.frombuffer((ctypes.c_int64 * len(dims)).from_address(numbers), "i8")
                told = dict(zip(dims, map(int, extents), strict=True))
                return run(plan, table, told, self.translate)
            except BaseException as error:
                failures.append(error)
                return 0

        callback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(program)
        module = ModuleType("interpreted")
        module.__dict__.update(callback=callback, failures=failures)
        address = ctypes.cast(callback, ctypes.c_void_p).value
        assert address is not None
        return Loaded(address, module, None, False, 0.0)


@contextlib.contextmanager
def interpreted(translate: Translate | None = None, row_memory: bool = True) -> Iterator[None]:
    """Inside, `compile` makes programs that the interpreter runs.

    Args:
        translate:  makes a function of buffers and a report from a kernel and dims; by default the
            loops run in order.
        row_memory: as of a target.
    """
    find = targets.find
    made = Target(translate or translated, row_memory)
    targets.find = lambda name: made  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        targets.find = find


def failures(f: Any) -> list[BaseException]:
    """What went wrong inside the runs of a program: a callback cannot raise."""
    found: list[BaseException] = f.loaded.module.failures
    return found


def run(plan: Plan, table: int, dims: Mapping[Dim, int], translate: Translate) -> int:
    """The program of a plan on a table of addresses."""
    entries = len(plan.leaves) + len(plan.constants) + len(plan.results) + len(plan.slots) + 1
    addresses = np.frombuffer((ctypes.c_int64 * entries).from_address(table), np.int64)
    report = np.frombuffer((ctypes.c_int64 * 4).from_address(int(addresses[0])), np.int64)
    report[0] = 0
    sizes = [32]
    sizes += [
        int(np.prod([value(e, dims) for e in n.shape], initial=n.dtype.itemsize))
        for n in (*plan.leaves, *plan.constants, *plan.results)
    ]
    sizes += plan.layout.place(dims).sizes
    given = 1 + len(plan.leaves) + len(plan.constants)
    blocks = [
        Block(int(a), n, k < given) for k, (a, n) in enumerate(zip(addresses, sizes, strict=True))
    ]
    last = max((k for k, call in enumerate(plan.calls) if may_report(call)), default=-1)
    with np.errstate(all="ignore"):
        for k, call in enumerate(plan.calls):
            place = whole(blocks)
            dims = counted(call, number_in(place), dims)
            run_call(call, place, dims, report, translate)
            if report[0] and k == last:
                return int(report[0])
    return 0


def may_report(call: Invoked | InvokedLoop) -> bool:
    return call.loop.checks if isinstance(call, InvokedLoop) else call.kernel.checks


Place = Callable[[int, np.dtype[Any]], Block]
#: The number at a place of an entry's memory.
Number = Callable[[int, int], int]


def whole(blocks: Sequence[Block]) -> Place:
    """The blocks themselves."""
    return lambda entry, dtype: blocks[entry]


def counted(
    call: Invoked | InvokedLoop, number: Number, dims: Mapping[Dim, int]
) -> Mapping[Dim, int]:
    """The dims with those that are read before a call."""
    told = {d: int(number(entry, value(d.most, dims))) for d, entry in call.tells}
    return {**dims, **told} if told else dims


def steps_of(
    call: InvokedLoop,
    place: Place,
    dims: Mapping[Dim, int],
    number: Number,
    own: range | None = None,
) -> Iterator[tuple[int, Place, Mapping[Dim, int]]]:
    """The steps of a recurrence in their order, where the memory of its body lies, and the dims.

    Args:
        own: those that the worker does; all of them without it.
    """
    loop = call.loop
    steps = range(value(loop.length, dims)) if own is None else own
    if loop.live is not None and loop.bound is not None:
        steps = range(int(number(call.entries[loop.bound], 0)))
    for t in reversed(steps) if loop.reverse else steps:
        rows, told = 0, dims
        if loop.live is not None:
            rows = int(number(call.entries[loop.live.start], t))
            told = {**dims, loop.live.dim: int(number(call.entries[loop.live.count], t))}

        def inner(entry: int, dtype: np.dtype[Any], t: int = t, rows: int = rows) -> Block:
            where = loop.places[entry]
            mine = where.operand + dims.get(ir.WORKER, 0) * where.each
            base = place(call.entries[mine], dtype)
            count = rows if where.rows else t
            return base.moved(count * value(where.step, dims) * dtype.itemsize)

        yield t, inner, told


def number_in(place: Place) -> Number:
    """Numbers where memory lies."""
    return lambda entry, k: place(entry, INT64).typed(INT64).load(k)


def run_call(
    call: Invoked | InvokedLoop,
    place: Place,
    dims: Mapping[Dim, int],
    report: np.ndarray[Any, Any],
    translate: Translate,
) -> None:
    """A kernel, or a recurrence: its body's entries are windows that move along outer blocks."""
    if isinstance(call, InvokedLoop):
        for turn, inner, told in steps_of(call, place, dims, number_in(place)):
            told = {**told, ir.TURN: turn} if call.loop.turns else told
            for one in call.loop.calls:
                told = counted(one, number_in(inner), told)
                run_call(one, inner, told, report, translate)
        return
    buffers = call.kernel.buffers
    seen = [place(e, b.dtype) for e, b in zip(call.entries, buffers, strict=True)]
    writes = {
        s.c.name if isinstance(s, ir.Call) else s.buffer.name
        for s in ir.walk(call.kernel.body)
        if isinstance(s, (ir.Store, ir.Call))
    }
    for a, own in zip(buffers, seen, strict=True):
        for b, other in zip(buffers, seen, strict=True):
            if a.scope != b.scope and {a.name, b.name} & writes:
                apart = own.address + own.size <= other.address
                assert apart or other.address + other.size <= own.address, "scopes overlap"
    typed = {b.name: block.typed(b.dtype) for b, block in zip(buffers, seen, strict=True)}
    translate(call.kernel, dims)(typed, report)


def translated(kernel: ir.Kernel, dims: Mapping[Dim, int]) -> Any:
    """A kernel as a Python function of its buffers and the report of bad indices."""
    lines = ["def run(buffers, report):"]
    lines += [f"    {b.name} = buffers[{b.name!r}]" for b in kernel.buffers]
    writer = Translator(dims)
    writer.block(kernel.body, 1)
    return made([*lines, *writer.lines], writer)


def made(lines: list[str], writer: Translator, **further: Any) -> Any:
    """The function `run` that lines define, in a space with what they call."""
    space: dict[str, Any] = {**_SPACE, **further, "T": writer.types, "F": writer.functions}
    exec("\n".join([*lines, "    return None"]), space)
    return space["run"]


class Translator:
    def __init__(self, dims: Mapping[Dim, int]) -> None:
        self.dims = dims
        self.lines: list[str] = []
        self.types = SimpleNamespace(
            **{t.__name__: t for t in (np.float32, np.float64, np.int32, np.int64)}, bool=np.bool_
        )
        self.functions = {name: f.numpy for name, f in FUNCTIONS.items()}
        self.functions |= {"greatest": np.maximum, "least": np.minimum}
        self.dtype_of: dict[str, np.dtype[Any]] = {}

    def affine(self, affine: ir.Affine) -> str:
        parts = [f"{value(c, self.dims)}*int({v})" for v, c in affine.terms]
        return " + ".join([*parts, str(value(affine.const, self.dims))])

    def block(self, body: tuple[ir.Statement, ...], depth: int) -> None:
        pad = "    " * depth
        for s in body:
            if isinstance(s, ir.For):
                self.lines.append(f"{pad}for {s.var} in range({value(s.extent, self.dims)}):")
                self.block((*s.body,), depth + 1)
                if not s.body:
                    self.lines.append(f"{pad}    pass")
            elif isinstance(s, ir.Let):
                self.dtype_of[s.name] = s.dtype
                self.lines.append(f"{pad}{s.name} = {self.value(s)}")
            elif isinstance(s, ir.Update):
                assert self.dtype_of[s.name] == self.dtype_of[s.value]
                self.lines.append(f"{pad}{s.name} = {s.value}")
            elif isinstance(s, ir.Store):
                self.lines.append(f"{pad}{s.buffer.name}.store({self.affine(s.offset)}, {s.name})")
            elif isinstance(s, ir.CheckIndex):
                self.dtype_of[s.name] = INT64
                given = f"{s.index}, {value(s.extent, self.dims)}, report, {s.node}"
                given += f", {self.affine(s.position)}, {s.wrap}"
                self.lines.append(f"{pad}{s.name} = checked({given})")
            else:
                assert isinstance(s, ir.Call), s
                m, n, k = (value(e, self.dims) for e in (s.m, s.n, s.k))
                a, b, c = (self.affine(o) for o in s.offsets)
                rows = tuple(value(e, self.dims) for e in s.rows)
                self.lines.append(
                    f"{pad}product({s.a.name}, {a}, {s.b.name}, {b}, {s.c.name}, {c}, "
                    f"{s.transposed}, {m}, {n}, {k}, {rows}, {s.adds})"
                )

    def value(self, let: ir.Let) -> str:
        v, short = let.value, f"T.{let.dtype.name}"
        if isinstance(v, ir.Load):
            assert v.buffer.dtype == let.dtype
            return f"{v.buffer.name}.load({self.affine(v.offset)})"
        if isinstance(v, ir.Copy):
            assert self.dtype_of[v.name] == let.dtype
            return v.name
        if isinstance(v, ir.Literal):
            number = repr(v.number).replace("inf", "INF").replace("nan", "NAN")
            return f"{short}({number})"
        if v.operation == "index":
            assert isinstance(v.payload, ir.Affine)
            return f"{short}({self.affine(v.payload)})"
        if v.operation == "extent":
            return f"{short}({value(v.payload, self.dims)})"  # type: ignore[arg-type]
        own = [self.dtype_of[o] for o in v.operands]
        if not v.operation.startswith("cast_"):
            wanted = own[1:] if v.operation == "select" else own
            assert len(set(wanted)) == 1, (let, own)
            function = FUNCTIONS.get(v.operation)
            result = function.result if function is not None else "same"
            if function is not None and result == "draw":
                assert (wanted[0], let.dtype) == (INT64, function.dtype), (let, own)
            else:
                assert let.dtype == (BOOL if result == "bool" else wanted[0]), (let, own)
            assert let.dtype != BOOL or v.operation not in ("add", "sub", "mul", "div", "neg"), let
        if v.operation in ARITHMETIC:
            return f"{short}({ARITHMETIC[v.operation].format(*v.operands)})"
        return f"{short}(F[{v.operation!r}]({', '.join(v.operands)}))"


def _checked(
    index: Any,
    extent: int,
    report: np.ndarray[Any, Any],
    node: int,
    position: int,
    wrap: bool,
) -> np.int64:
    wrapped = int(index) + (extent if wrap and index < 0 else 0)
    if 0 <= wrapped < extent:
        return np.int64(wrapped)
    if not report[0]:
        report[:] = node + 1, int(index), extent, position
    return np.int64(0)


def _product(
    a: Typed,
    at: int,
    b: Typed,
    bt: int,
    c: Typed,
    ct: int,
    transposed: tuple[bool, bool],
    m: int,
    n: int,
    k: int,
    rows: tuple[int, int, int],
    adds: bool,
) -> None:
    lda, ldb, ldc = rows
    left = a.matrix(at, k, m, lda, True).T if transposed[0] else a.matrix(at, m, k, lda, True)
    right = b.matrix(bt, n, k, ldb, True).T if transposed[1] else b.matrix(bt, k, n, ldb, True)
    target = c.matrix(ct, m, n, ldc, adds)
    target[...] = target + left @ right if adds else left @ right


_SPACE = {"checked": _checked, "product": _product, "INF": np.inf, "NAN": np.nan}
