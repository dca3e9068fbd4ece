"""Workers that run one program together: how they meet, wait and share iterations.

All workers of a team run the same program on the same memory. A team's record is an array of int64,
its parts on cache lines of their own:

    ARRIVED  how many workers have come to the present meeting
    ROUND    how many meetings there were
    SIZE     workers in this run            SPINS  how often a wait looks before it gives way

`meet` is a barrier by a counter and a round (Mellor-Crummey and Scott 1991, the centralized one):
who comes last opens the next round, the others wait for it. A wait first spins, which takes a
fraction of a microsecond where all workers have a core; then it gives its core away at each look;
then it sleeps for an eighth of the time that it has slept, so that a machine that is busy with
something else is left alone, and a wait is at most an eighth longer than it had to be.

A helper finds its next job in a mailbox: GO counts jobs, then what to run.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import TYPE_CHECKING

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from codegen.runtime.control import flush_to_zero
from codegen.runtime.kernels import kernel
from codegen.runtime.memory import address
from codegen.runtime.team_words import (
    ARRIVED,
    DIMS,
    FLUSH,
    GO,
    MAILBOX_WORDS,
    PROGRAM,
    ROUND,
    SEEN,
    SIZE,
    SPINS,
    TABLE,
    TEAM,
    WORKER,
)

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    from codegen.runtime.memory import Typed, Values

#: Looks at which a wait gives its core away before it sleeps: about 100 us on an idle machine.
YIELDS = 200
#: Microseconds: what a wait has waited when it first sleeps, and the longest sleep.
FIRST_WAIT, LONGEST_SLEEP = 128, 1000
#: Rows are shared in groups of so many where there are enough: whole tiles, whole cache lines.
GROUP_OF_ROWS = 16

I32, I64 = ir.IntType(32), ir.IntType(64)
WINDOWS = os.name == "nt"


def _register(symbol: str, name: str) -> str:
    """Give a function of the system a name for LLVM: compiled code in a cache refers to that."""
    system = ctypes.windll.kernel32 if WINDOWS else ctypes.CDLL(None)
    llvm.add_symbol(symbol, ctypes.cast(getattr(system, name), ctypes.c_void_p).value)
    return symbol


YIELD = _register("symgrad_yield", "SwitchToThread" if WINDOWS else "sched_yield")
SLEEP = _register("symgrad_sleep", "Sleep" if WINDOWS else "usleep")


def _word(builder: ir.IRBuilder, record: ir.Value, k: ir.Value) -> ir.Value:
    return builder.gep(builder.inttoptr(record, I64.as_pointer()), [k])


@intrinsic
def watch(typing_context: Context, record: types.Type, k: types.Type) -> Typed:
    """Word k as another worker last wrote it; what that worker wrote before is seen too."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return builder.load_atomic(_word(builder, *arguments), "acquire", 8)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def publish(
    typing_context: Context, record: types.Type, k: types.Type, value: types.Type
) -> Typed:
    """Write word k, for others to see after all that was written before."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        record, k, value = arguments
        builder.store_atomic(value, _word(builder, record, k), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


def _hint() -> tuple[str, list[int]] | None:
    """LLVM's intrinsic by which a core is told that it spins, and its arguments."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i686"):
        return "llvm.x86.sse2.pause", []
    return ("llvm.aarch64.hint", [1]) if machine in ("aarch64", "arm64") else None


HINT = _hint()


def _pause(builder: ir.IRBuilder) -> None:
    """Tell the core that it spins."""
    if HINT is not None:
        name, given = HINT
        kind = ir.FunctionType(ir.VoidType(), [I32] * len(given))
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [I32(k) for k in given])


def _give_way(builder: ir.IRBuilder) -> None:
    """Let another thread have this core, if one waits for it."""
    kind = ir.FunctionType(I32, [])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, YIELD), [])


def _sleep(builder: ir.IRBuilder, microseconds: ir.Value) -> None:
    """Sleep for about so many microseconds."""
    unit = 1000 if WINDOWS else 1
    time = builder.sdiv(builder.add(microseconds, I64(unit - 1)), I64(unit))
    kind = ir.FunctionType(ir.VoidType() if WINDOWS else I32, [I32])
    function = cgutils.get_or_insert_function(builder.module, kind, SLEEP)
    builder.call(function, [builder.trunc(time, I32)])


@intrinsic
def pause(typing_context: Context) -> Typed:
    """Tell the core that it spins."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        _pause(builder)
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def run_program(
    typing_context: Context,
    program: types.Type,
    table: types.Type,
    dims: types.Type,
    team: types.Type,
    worker: types.Type,
) -> Typed:
    """Call the program at an address."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        kind = ir.FunctionType(I64, [I64] * 4)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 5), emit


def _quiet(function: ir.Function) -> ir.Function:
    """A function of this module only, which is called and not copied into its callers."""
    function.linkage = "internal"
    for attribute in ("noinline", "nounwind"):
        function.attributes.add(attribute)
    return function


def _meeting(module: ir.Module) -> ir.Function:
    """The function of a module in which a worker waits for all others."""
    name = "symgrad_meet"
    if name in module.globals:
        return module.globals[name]
    function = _quiet(ir.Function(module, ir.FunctionType(ir.VoidType(), [I64]), name))
    (team,) = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    blocks = ("arrive", "last", "wait", "look", "busy", "polite", "rest", "again", "end")
    arrive, last, wait, look, busy, polite, rest, again, end = (
        function.append_basic_block(block) for block in blocks
    )

    def word(k: int) -> ir.Value:
        return _word(builder, team, I64(k))

    size = builder.load(word(SIZE))
    builder.cbranch(builder.icmp_signed(">", size, I64(1)), arrive, end)
    builder.position_at_end(arrive)
    turn = builder.load_atomic(word(ROUND), "acquire", 8)
    before = builder.atomic_rmw("add", word(ARRIVED), I64(1), "acq_rel")
    builder.cbranch(builder.icmp_signed("==", before, builder.sub(size, I64(1))), last, wait)
    builder.position_at_end(last)
    builder.store_atomic(I64(0), word(ARRIVED), "release", 8)
    builder.store_atomic(builder.add(turn, I64(1)), word(ROUND), "release", 8)
    builder.branch(end)

    builder.position_at_end(wait)
    spins = builder.load(word(SPINS))
    builder.branch(look)
    builder.position_at_end(look)
    looks, waited = builder.phi(I64), builder.phi(I64)
    looks.add_incoming(I64(0), wait)
    waited.add_incoming(I64(FIRST_WAIT), wait)
    changed = builder.icmp_signed("!=", builder.load_atomic(word(ROUND), "acquire", 8), turn)
    builder.cbranch(changed, end, busy)
    builder.position_at_end(busy)
    more = builder.add(looks, I64(1))
    _pause(builder)
    builder.cbranch(builder.icmp_signed("<=", more, spins), again, polite)
    builder.position_at_end(polite)
    _give_way(builder)
    many = builder.add(spins, I64(YIELDS))
    builder.cbranch(builder.icmp_signed("<=", more, many), again, rest)
    builder.position_at_end(rest)
    part = builder.sdiv(waited, I64(8))
    long = builder.icmp_signed(">", part, I64(LONGEST_SLEEP))
    time = builder.select(long, I64(LONGEST_SLEEP), part)
    _sleep(builder, time)
    longer = builder.add(waited, time)
    builder.branch(again)
    builder.position_at_end(again)
    after = builder.phi(I64)
    for block, value in ((busy, waited), (polite, waited), (rest, longer)):
        after.add_incoming(value, block)
    looks.add_incoming(more, again)
    waited.add_incoming(after, again)
    builder.branch(look)
    builder.position_at_end(end)
    builder.ret_void()
    return function


@intrinsic
def meet(typing_context: Context, team: types.Type) -> Typed:
    """Wait until all workers of the team are here; then all see what each wrote before."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        builder.call(_meeting(builder.module), arguments)
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def first_of(
    typing_context: Context, rows: types.Type, worker: types.Type, workers: types.Type
) -> Typed:
    """The first of the rows that a worker has; the next worker's first ends them.

    first(0) = 0,  first(workers) = rows; in between whole groups, as equal as can be:
    first(w) = (rows // group) w // workers * group.
    """

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        rows, worker, workers = arguments
        least = builder.mul(workers, I64(2 * GROUP_OF_ROWS))
        many = builder.icmp_signed(">=", rows, least)
        group = builder.select(many, I64(GROUP_OF_ROWS), I64(1))
        groups = builder.mul(builder.sdiv(rows, group), worker)
        first = builder.mul(builder.sdiv(groups, workers), group)
        return builder.select(builder.icmp_signed("==", worker, workers), rows, first)

    return types.int64(types.int64, types.int64, types.int64), emit


@kernel
def post(mailboxes, program, table, dims, team):
    """Give a job to the helpers of a team; their arithmetic is then set as this thread's is."""
    flush = flush_to_zero(1)
    flush_to_zero(flush)
    for k in range(1, address(team, SIZE)):
        box = mailboxes + 8 * MAILBOX_WORDS * (k - 1)
        publish(box, PROGRAM, program)
        publish(box, TABLE, table)
        publish(box, DIMS, dims)
        publish(box, TEAM, team)
        publish(box, WORKER, k)
        publish(box, FLUSH, flush)
        publish(box, GO, address(box, GO) + 1)
    return 0


@kernel
def lead(program, table, dims, team):
    """Worker 0's part of a run, to the end of all parts; returns what the program returned."""
    status = run_program(program, table, dims, team, 0)
    meet(team)
    return status


@kernel
def serve(box, patience):
    """Do the jobs in a mailbox, until none comes for `patience` looks; 1 when told to end."""
    looks = 0
    while looks <= patience:
        if watch(box, GO) == address(box, SEEN):
            looks += 1
            pause()
            continue
        publish(box, SEEN, address(box, SEEN) + 1)
        program = address(box, PROGRAM)
        if program == 0:
            return 1
        flush_to_zero(address(box, FLUSH))
        team = address(box, TEAM)
        run_program(program, address(box, TABLE), address(box, DIMS), team, address(box, WORKER))
        meet(team)
        looks = 0
    return 0
