"""Sums over the turns of a team: each worker has its own, and they become one in a fixed order.

    before the turns   every worker fills its own copies
    in a turn          a worker adds to its own copies
    after them all     s := copy 0;  s := op(s, copy w)  for w = 1, 2, ..; shared by the places of s

The same number of workers gives the same bits. A kernel whose sums are as large as what is added up
takes no turns in a team, nor one whose operation must keep its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from codegen.launches import ASSOCIATIVE, Accumulate, walk
from codegen.loop_ir import (
    WORKER,
    Buffer,
    Call,
    For,
    Kernel,
    Let,
    Literal,
    Statement,
    Store,
    Update,
    variable,
)
from codegen.sharing import APART, merged, moved
from codegen.spreading import Spreader
from codegen.turns import Sum, Turn
from codegen.values import Lowered, Operand, Temporary
from codegen.work import BYTE, work_of
from symgrad.graph.dims import Extent, same, size, typical
from symgrad.graph.nodes import Node

#: A turn's work, over all turns, is so many times that of merging its sums.
WORK_OVER_MERGING = 8


def operations_of(turn: Turn, workers: int) -> dict[Node, str] | None:
    """By which operation the copies of each of its sums become one; None where they must not."""
    if not turn.sums:
        return {}
    if len({s.operand for s in turn.sums}) < len(turn.sums):
        return None
    merging = 0
    for s in turn.sums:
        places = size(s.operand.shape)
        if same(size([extent for _, extent in s.loops]), places) is not True:
            return None
        merging += typical(places) * s.operand.dtype.itemsize * BYTE * (workers + 1)
    if typical(size((turn.extent, work_of(turn.body)))) < WORK_OVER_MERGING * merging:
        return None
    spread = Spreader(turn.low.kernel)
    found = {s.operand: _operation(s, turn, spread) for s in turn.sums}
    return found if all(found.values()) else None


def _operation(s: Sum, turn: Turn, spread: Spreader) -> str:
    """The operation by which a kernel adds up a sum; none where it is not known to be neutral."""
    buffer = turn.buffers[s.operand]
    found: set[str] = set()
    for statement in walk(spread.body):
        if isinstance(statement, Accumulate) and statement.buffer.name == buffer.name:
            found.add(statement.operation)
        elif isinstance(statement, Call) and statement.c.name == buffer.name:
            found.add("add")
    outside = {t.name for t in spread.body if isinstance(t, Store) and t.buffer.name == buffer.name}
    for loop in (t for t in spread.body if isinstance(t, For)):
        for name in outside & {t.name for t in walk(loop.body) if isinstance(t, Update)}:
            total = spread.total(name, loop)
            found.add(total.operation if total is not None else "")
    operation = found.pop() if len(found) == 1 else ""
    start = Let("", buffer.dtype, Literal(s.number))
    known = operation in ASSOCIATIVE and spread.neutral(start, operation)
    return operation if known else ""


def copies_of(turn: Turn, workers: int) -> dict[Operand, Temporary]:
    """Memory for the sums of a turn of which every worker has its own."""
    return {
        s.operand: Temporary(s.operand, (workers, _stride(s.operand)), s.operand.dtype)
        for s in turn.sums
    }


def _stride(operand: Node) -> Extent:
    return size(operand.shape) + APART


def on_copies(turn: Turn) -> tuple[Statement, ...]:
    """The body of a turn that adds to what the worker has of its own."""
    own = {
        turn.buffers[s.operand].name: (turn.buffers[s.operand], _stride(s.operand))
        for s in turn.sums
    }
    return _on_copies(turn.body, own)


def _on_copies(
    body: Sequence[Statement], own: Mapping[str, tuple[Buffer, Extent]]
) -> tuple[Statement, ...]:
    inner = [replace(s, body=_on_copies(s.body, own)) if isinstance(s, For) else s for s in body]
    return moved(inner, own)


def begun(sums: Sequence[Sum], copies: Mapping[Operand, Temporary], like: Kernel) -> Lowered:
    """The kernel in which each worker begins its sums."""
    buffers: list[Buffer] = []
    body: list[Statement] = []
    for k, s in enumerate(sums):
        buffer = Buffer(f"x{k}", s.operand.dtype, k)
        place = variable("z") + size((WORKER, _stride(s.operand)))
        fill = For("z", size(s.operand.shape), (Store(buffer, place, f"v{k}"),))
        body += [Let(f"v{k}", buffer.dtype, Literal(s.number)), fill]
        buffers.append(buffer)
    kernel = Kernel(like.name, tuple(buffers), tuple(body), "sums begin", like.stage)
    own = tuple(copies[s.operand] for s in sums)
    return Lowered(kernel, own, (), frozenset(own))


def ended(
    sums: Sequence[Sum],
    operations: Mapping[Node, str],
    copies: Mapping[Operand, Temporary],
    like: Kernel,
) -> Lowered:
    """The kernel in which the workers' sums become one, shared by places."""
    buffers: list[Buffer] = []
    operands: list[Operand] = []
    body: list[Statement] = []
    for k, s in enumerate(sums):
        whole, own = (Buffer(f"x{j}", s.operand.dtype, j) for j in (2 * k, 2 * k + 1))
        names = [f"v{k}_{j}" for j in range(4)]
        operation = operations[s.operand]
        body += merged(whole, (own, _stride(s.operand)), s.operand.shape, operation, names)
        buffers += [whole, own]
        operands += [s.operand, copies[s.operand]]
    kernel = Kernel(like.name, tuple(buffers), tuple(body), "sums end", like.stage)
    return Lowered(kernel, tuple(operands), (), frozenset(s.operand for s in sums))
