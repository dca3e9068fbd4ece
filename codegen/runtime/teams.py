"""Workers that run one program together: how they meet, wait and share iterations.

All workers of a team run the same program on the same memory. A team's record is an array of int64,
its parts on cache lines of their own:

    ARRIVED  how many workers have come to the present meeting
    ROUND    how many meetings there were
    SIZE     workers in this run            SPINS  how often a wait looks before it gives way
    SEEN_ON  where each worker was last seen       SETTLE  whether all keep to their places

`meet` is a barrier by a counter and a round (Mellor-Crummey and Scott 1991, the centralized one):
who comes last opens the next round, the others wait for it. A wait first spins, which takes a
fraction of a microsecond where all workers have a core; then it gives its core away at each look;
then it sleeps for an eighth of the time that it has slept, so that a machine that is busy with
something else is left alone, and a wait is at most an eighth longer than it had to be.

A system may put two workers on one core while another one idles, as where one has just woken the
other; they would then take turns, and the one that waits would hold up the one it waits for. So a
worker that waits for long, or sees another one on its core, makes all of them settle to the end of
the run: worker 0 stays on its core, the others leave the cores of those before them.

A helper finds its next job in a mailbox: GO counts jobs, then what to run.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from codegen.runtime.control import flush_to_zero
from codegen.runtime.kernels import kernel
from codegen.runtime.memory import address
from codegen.runtime.system import CORE, CORES, MOVE, SLEEP, TELLS_CORES, WINDOWS, YIELD
from codegen.runtime.team_words import (
    ALLOWED,
    ARRIVED,
    CHOSEN,
    DIMS,
    FLUSH,
    GO,
    KEPT,
    LINE,
    MAILBOX_WORDS,
    PROGRAM,
    ROUND,
    SEEN,
    SEEN_ON,
    SETTLE,
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
#: While a wait spins, every so many looks it looks where the others are; so many looks are a long
#: wait; and so often in one wait a worker goes to another core at most.
GLANCE, LONG, MOVES = 64, 2500, 3
#: Bytes of a set of cores, one bit each.
SET = 8 * LINE
#: Microseconds: what a wait has waited when it first sleeps, and the longest sleep.
FIRST_WAIT, LONGEST_SLEEP = 128, 1000
#: Rows are shared in groups of so many where there are enough: whole tiles, whole cache lines.
GROUP_OF_ROWS = 16

I32, I64 = ir.IntType(32), ir.IntType(64)


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
def rest(typing_context: Context, waited: types.Type) -> Typed:
    """Sleep for an eighth of these microseconds, or the longest sleep; returns how long."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        part = builder.sdiv(arguments[0], I64(8))
        long = builder.icmp_signed(">", part, I64(LONGEST_SLEEP))
        slept = builder.select(long, I64(LONGEST_SLEEP), part)
        unit = 1000 if WINDOWS else 1
        time = builder.sdiv(builder.add(slept, I64(unit - 1)), I64(unit))
        kind = ir.FunctionType(ir.VoidType() if WINDOWS else I32, [I32])
        function = cgutils.get_or_insert_function(builder.module, kind, SLEEP)
        builder.call(function, [builder.trunc(time, I32)])
        return slept

    return types.int64(types.int64), emit


@intrinsic
def arrived(typing_context: Context, record: types.Type) -> Typed:
    """Count one more arrival; how many there were before."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        word = _word(builder, arguments[0], I64(ARRIVED))
        return builder.atomic_rmw("add", word, I64(1), "acq_rel")

    return types.int64(types.int64), emit


# -- cores -----------------------------------------------------------------------------------------
@intrinsic
def core(typing_context: Context) -> Typed:
    """The core that this thread is on; -1 where the system does not tell."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        if not TELLS_CORES:
            return I64(-1)
        kind = ir.FunctionType(I32, [])
        found = builder.call(cgutils.get_or_insert_function(builder.module, kind, CORE), [])
        return builder.sext(found, I64)

    return types.int64(), emit


def _with_cores(builder: ir.IRBuilder, symbol: str, place: ir.Value) -> ir.Value:
    """Call a function of the system on this thread and a set of cores; 0 where that went well."""
    if not TELLS_CORES:
        return I64(-1)
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(I32, [I32, I64, pointer])
    function = cgutils.get_or_insert_function(builder.module, kind, symbol)
    status = builder.call(function, [I32(0), I64(SET), builder.inttoptr(place, pointer)])
    return builder.sext(status, I64)


@intrinsic
def get_cores(typing_context: Context, place: types.Type) -> Typed:
    """Write the set of cores that this thread may use."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return _with_cores(builder, CORES, arguments[0])

    return types.int64(types.int64), emit


@intrinsic
def set_cores(typing_context: Context, place: types.Type) -> Typed:
    """Let this thread use a set of cores alone; where it is on another one it leaves that."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return _with_cores(builder, MOVE, arguments[0])

    return types.int64(types.int64), emit


@intrinsic
def without(typing_context: Context, cores: types.Type, k: types.Type, one: types.Type) -> Typed:
    """Word k of a set of cores, without one core."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        cores, k, one = arguments
        word = builder.load(_word(builder, cores, k))
        here = builder.icmp_signed("==", builder.ashr(one, I64(6)), k)
        bit = builder.shl(I64(1), builder.and_(one, I64(63)))
        return builder.select(here, builder.and_(word, builder.not_(bit)), word)

    return types.int64(types.int64, types.int64, types.int64), emit


@kernel
def crowded(team, worker, size):
    """Tell where this worker is; whether another one was last seen there."""
    here = core()
    found = 0
    publish(team, SEEN_ON + LINE * worker, here)
    for k in range(size):
        if (k != worker) & (here >= 0) & (watch(team, SEEN_ON + LINE * k) == here):
            found = 1
    return found


@kernel
def settle(team, worker, size):
    """Keep to some cores until the end of the run.

    Worker 0 stays where it is; the others leave the cores of those before them, if they may.
    """
    kept = SEEN_ON + LINE * worker + KEPT
    allowed = team + 8 * (ALLOWED + 2 * LINE * worker)
    chosen = team + 8 * (CHOSEN + 2 * LINE * worker)
    status = 0
    if address(team, kept) == 0:
        status = get_cores(allowed)
    if status != 0:
        return 0
    left = 0
    for k in range(LINE):
        publish(chosen, k, address(allowed, k))
        for other in range(worker):
            publish(chosen, k, without(chosen, k, watch(team, SEEN_ON + LINE * other)))
        if worker == 0:
            publish(chosen, k, address(allowed, k) - without(allowed, k, core()))
        left = left | address(chosen, k)
    if left != 0:
        publish(team, kept, 1)
        set_cores(chosen)
        publish(team, SEEN_ON + LINE * worker, core())
    return 0


@kernel
def go_anywhere(team, worker):
    """Use all cores again that this thread may use."""
    kept = SEEN_ON + LINE * worker + KEPT
    if address(team, kept) != 0:
        publish(team, kept, 0)
        set_cores(team + 8 * (ALLOWED + 2 * LINE * worker))


# -- meetings --------------------------------------------------------------------------------------
@kernel
def wait_for(team, worker, size, turn):
    """Wait until a round is over: spin, then give way, then sleep."""
    spins = address(team, SPINS)
    looks = 0
    moves = 0
    glance = 0
    waited = FIRST_WAIT
    while watch(team, ROUND) == turn:
        looks += 1
        if looks > spins + YIELDS:
            waited += rest(waited)
            continue
        if looks > spins:
            give_way()
            continue
        pause()
        glance -= 1
        if glance >= 0:
            continue
        glance = GLANCE
        near = crowded(team, worker, size)
        if (near != 0) | (looks > LONG):
            publish(team, SETTLE, 1)
        if (near != 0) & (moves >= MOVES):
            give_way()
        elif (near != 0) | (watch(team, SETTLE) > address(team, SEEN_ON + LINE * worker + KEPT)):
            moves += 1
            settle(team, worker, size)


@kernel
def meet(team, worker):
    """Wait until all workers of the team are here; then all see what each wrote before."""
    size = address(team, SIZE)
    if size > 1:
        turn = watch(team, ROUND)
        if arrived(team) == size - 1:
            publish(team, ARRIVED, 0)
            publish(team, ROUND, turn + 1)
        else:
            wait_for(team, worker, size, turn)


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
    publish(team, SETTLE, 0)
    publish(team, SEEN_ON, core())
    for k in range(1, address(team, SIZE)):
        publish(team, SEEN_ON + LINE * k, -1)
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
    meet(team, 0)
    go_anywhere(team, 0)
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
        worker = address(box, WORKER)
        publish(team, SEEN_ON + LINE * worker, core())
        run_program(program, address(box, TABLE), address(box, DIMS), team, worker)
        go_anywhere(team, worker)
        meet(team, worker)
        looks = 0
    return 0
