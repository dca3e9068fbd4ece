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
from numba.extending import intrinsic, register_jitable

from codegen.runtime.control import flush_to_zero
from codegen.runtime.memory import address

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    from codegen.runtime.memory import Typed, Values

#: Words on one cache line; two lines, since processors fetch them in pairs.
LINE = 16
ARRIVED, ROUND, SIZE, SPINS = 0, LINE, 2 * LINE, 2 * LINE + 1
RECORD_WORDS = 3 * LINE
#: A mailbox: jobs so far, then the job; jobs done by the helper lie on a line of their own.
GO, PROGRAM, TABLE, DIMS, TEAM, WORKER, FLUSH = range(7)
SEEN = LINE
MAILBOX_WORDS = 2 * LINE
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


@intrinsic
def count_one(typing_context: Context, record: types.Type, k: types.Type) -> Typed:
    """Add one to word k, at once for all workers; returns what it was."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return builder.atomic_rmw("add", _word(builder, *arguments), I64(1), "acq_rel")

    return types.int64(types.int64, types.int64), emit


def _hint() -> tuple[str, list[int]] | None:
    """LLVM's intrinsic by which a core is told that it spins, and its arguments."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i686"):
        return "llvm.x86.sse2.pause", []
    return ("llvm.aarch64.hint", [1]) if machine in ("aarch64", "arm64") else None


HINT = _hint()


@intrinsic
def pause(typing_context: Context) -> Typed:
    """Tell the core that it spins."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        if HINT is not None:
            name, given = HINT
            kind = ir.FunctionType(ir.VoidType(), [I32] * len(given))
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(function, [I32(k) for k in given])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def give_way(typing_context: Context) -> Typed:
    """Let another thread have this core, if one waits for it."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        kind = ir.FunctionType(I32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, YIELD), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def sleep(typing_context: Context, microseconds: types.Type) -> Typed:
    """Sleep for about so many microseconds."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        unit = 1000 if WINDOWS else 1
        time = builder.sdiv(builder.add(arguments[0], I64(unit - 1)), I64(unit))
        kind = ir.FunctionType(ir.VoidType() if WINDOWS else I32, [I32])
        function = cgutils.get_or_insert_function(builder.module, kind, SLEEP)
        builder.call(function, [builder.trunc(time, I32)])
        return context.get_dummy_value()

    return types.void(types.int64), emit


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


@register_jitable
def wait_for_change(record, k, value, spins):
    """Wait while word k has a value."""
    looks = 0
    waited = FIRST_WAIT
    while watch(record, k) == value:
        looks += 1
        if looks <= spins:
            pause()
        elif looks <= spins + YIELDS:
            give_way()
        else:
            rest = min(waited // 8, LONGEST_SLEEP)
            sleep(rest)
            waited += rest


@register_jitable
def meet(team):
    """Wait until all workers of the team are here; then all see what each wrote before."""
    size = address(team, SIZE)
    if size > 1:
        turn = watch(team, ROUND)
        if count_one(team, ARRIVED) == size - 1:
            publish(team, ARRIVED, 0)
            publish(team, ROUND, turn + 1)
        else:
            wait_for_change(team, ROUND, turn, address(team, SPINS))


@register_jitable
def first_of(rows, worker, workers):
    """The first of the rows that a worker has; the next worker's first ends them.

    first(0) = 0,  first(workers) = rows; in between whole groups, as equal as can be.
    """
    group = GROUP_OF_ROWS if rows >= 2 * GROUP_OF_ROWS * workers else 1
    return rows if worker == workers else rows // group * worker // workers * group


@register_jitable
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


@register_jitable
def lead(program, table, dims, team):
    """Worker 0's part of a run, to the end of all parts; returns what the program returned."""
    status = run_program(program, table, dims, team, 0)
    meet(team)
    return status


@register_jitable
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
