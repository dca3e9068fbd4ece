"""Loop optimisations: Kernel -> Kernel, independent of the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from codegen.loop_ir import (
    Affine,
    Apply,
    Call,
    CheckIndex,
    Copy,
    For,
    Kernel,
    Let,
    Load,
    Only,
    Statement,
    Store,
    Update,
    partition_of,
    walk,
)
from codegen.runtime.names import RUNTIME
from symgrad.graph.dims import Extent, same, size

# Functions of some thirty instructions, most of which wait for the one before; 2 are twice as long.
LATENCY = {
    **dict.fromkeys(("arctan", "cos", "cosh", "exp", "expm1", "log", "log1p"), 1),
    **dict.fromkeys(("sigmoid", "sin", "sinh", "tan", "tanh"), 1),
    **dict.fromkeys(("erf", "pow", "softplus", *RUNTIME["draws"]), 2),
}
# So many of them in a row are a long chain, in which so many vectors of elements go side by side.
# Loops over arrays in the nearest cache take 0.66 times as long with a chain of 3, 0.42 with 10 and
# 0.35 with 30 (Intel Sapphire Rapids, 512 bits); a single function gains nothing.
LONG_CHAIN, SIDE_BY_SIDE = 2, 4
# Elements of a vector; where vectors are shorter, this errs towards loops as they are.
VECTOR = 16
# Turns times functions in a row of a loop that gains more in its turns than it loses at its end,
# where single elements are left over.
WORTH = 16


def tune(kernel: Kernel) -> Kernel:
    """All optimisations, in order."""
    return replace(kernel, body=collapse(kernel.body))


def collapse(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """One loop in the place of two.

    rewrite:  for i in 0..m: for j in 0..n: s[i n + j]  ->  for j in 0..m n: s[j]

    requires: i and j occur as i n + j only, everywhere. One long loop vectorises better than short
    ones.
    """
    done: list[Statement] = []
    for s in body:
        if isinstance(s, For):
            s = replace(s, body=collapse(s.body))
            if len(s.body) == 1 and isinstance(s.body[0], For):
                inner = s.body[0]
                if _joint(inner.body, s.var, inner.var, inner.extent):
                    dropped = _drop(inner.body, s.var)
                    joined = size((s.extent, inner.extent))
                    parts = partition_of((s.extent, *(inner.parts or (inner.extent,))))
                    s = For(inner.var, joined, dropped, parts)
        done.append(s)
    return tuple(done)


def totals(body: tuple[Statement, ...]) -> Iterator[str]:
    """The names of steps of reductions: an accumulator's next value, which nothing else reads.

    What memory holds is an accumulator too: `v1 := x[k]; v2 := v1 + v0; x[k] := v2`. The order of
    such steps is free. That of a running sum is not: each of its totals is written out.
    """
    lines = list(walk(body))
    count: dict[str, int] = {}
    for s in lines:
        for name in names_read(s):
            count[name] = count.get(name, 0) + 1
    made = {s.name: s.value for s in lines if isinstance(s, Let)}
    for s in lines:
        if not isinstance(s, (Store, Update)):
            continue
        name = s.name if isinstance(s, Store) else s.value
        step = made.get(name)
        if count.get(name) != 1 or not isinstance(step, Apply) or not step.operands:
            continue
        before = step.operands[0]
        if isinstance(s, Update):
            free = before == s.name
        else:
            free = made.get(before) == Load(s.buffer, s.offset)
        if free:
            yield name


def interleaving(loop: For) -> int:
    """How many vectors of elements a loop is to work on at a time; 1 leaves that to the compiler.

    In a chain of functions each waits for the one before, and a processor looks ahead a few hundred
    instructions: with one vector, too few of them are ready to fill its units. What is left over at
    the end of a loop goes in narrower vectors, so short loops stay as they are.
    """
    chain, turn = longest_chain(loop.body), VECTOR * SIDE_BY_SIDE
    if chain < LONG_CHAIN:
        return 1
    if type(loop.extent) is int and loop.extent % turn and chain * loop.extent < WORTH * turn:
        return 1
    return SIDE_BY_SIDE


def longest_chain(body: tuple[Statement, ...]) -> int:
    """How many functions a value of an innermost loop is at most a function of; 0 in others."""
    length: dict[str, int] = {}
    for s in body:
        if isinstance(s, (For, Only, Call)):
            return 0
        if isinstance(s, Let):
            own = LATENCY.get(s.value.operation, 0) if isinstance(s.value, Apply) else 0
            length[s.name] = own + max((length.get(name, 0) for name in names_read(s)), default=0)
    return max(length.values(), default=0)


def names_read(statement: Statement) -> tuple[str, ...]:
    """The names that a statement reads, loop variables left out."""
    if isinstance(statement, Store):
        return (statement.name,)
    if isinstance(statement, Update):
        return (statement.value,)
    if isinstance(statement, CheckIndex):
        return (statement.index,)
    if isinstance(statement, Let) and isinstance(statement.value, Apply):
        return statement.value.operands
    if isinstance(statement, Let) and isinstance(statement.value, Copy):
        return (statement.value.name,)
    return ()


def _affine(statement: Statement) -> tuple[Affine, ...]:
    if isinstance(statement, Store):
        return (statement.offset,)
    if isinstance(statement, Let) and isinstance(statement.value, Load):
        return (statement.value.offset,)
    if isinstance(statement, Let) and isinstance(statement.value, Apply):
        payload = statement.value.payload
        return (payload,) if isinstance(payload, Affine) else ()
    if isinstance(statement, CheckIndex):
        return (statement.position,)
    offsets = getattr(statement, "offsets", ())
    return tuple(offsets)


def _joint(body: tuple[Statement, ...], outer: str, inner: str, extent: Extent) -> bool:
    for statement in walk(body):
        if isinstance(statement, For):
            return False
        for affine in _affine(statement):
            a, b = affine.coefficient(outer), affine.coefficient(inner)
            if same(a, b * extent) is not True:
                return False
    return True


def _drop(body: tuple[Statement, ...], outer: str) -> tuple[Statement, ...]:
    """The body without the outer variable, whose part the inner one now holds."""

    def without(affine: Affine) -> Affine:
        return Affine(tuple((v, c) for v, c in affine.terms if v != outer), affine.const)

    done: list[Statement] = []
    for s in body:
        if isinstance(s, Store):
            s = replace(s, offset=without(s.offset))
        elif isinstance(s, CheckIndex):
            s = replace(s, position=without(s.position))
        elif isinstance(s, Let) and isinstance(s.value, Load):
            s = replace(s, value=replace(s.value, offset=without(s.value.offset)))
        elif isinstance(s, Let) and isinstance(s.value, Apply):
            payload = s.value.payload
            if isinstance(payload, Affine):
                s = replace(s, value=replace(s.value, payload=without(payload)))
        elif isinstance(s, Call):
            a, b, c = map(without, s.offsets)
            s = replace(s, offsets=(a, b, c))
        done.append(s)
    return tuple(done)
