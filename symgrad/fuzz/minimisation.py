"""The smallest program that still fails: delta debugging over its lines (Zeller 2002).

A smaller program has fewer outputs, a leaf with the computed value in place of a line, a line's
argument in place of the line, smaller extents, or fewer symbolic ones. What still fails alike is
made smaller again, until nothing does or the time is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from symgrad.calculus.stabilization import stabilize
from symgrad.fuzz.judges import JUDGES, Failure, Judge, judged
from symgrad.fuzz.programs import (
    Array,
    Built,
    Leaf,
    Line,
    Name,
    Program,
    Step,
    Term,
    mapped,
    names_in,
)
from symgrad.fuzz.rounding import Shaken
from symgrad.graph.errors import SymgradError
from symgrad.graph.nodes import Node

HUGE = 1e3  # of outputs of a smaller program; drawn ones are below generation.LARGEST


def minimised(program: Program, failure: Failure, seconds: float = 60.0) -> tuple[Program, Failure]:
    """The smallest program found in this time that fails with the same kind, and its failure."""
    judge = JUDGES[failure.judge]
    end = time.monotonic() + seconds
    best, known = program.tidy(), failure
    found = judged(judge, best)
    if found is None or found.kind != failure.kind:
        return program, failure
    for smaller, again in _descent(judge, best, known, end):
        best, known = smaller, again
    return best, known


def _descent(
    judge: Judge, best: Program, known: Failure, end: float
) -> Iterator[tuple[Program, Failure]]:
    """Ever smaller programs that fail alike, while there is time and one can be made."""
    shrinking = True
    while shrinking:
        shrinking = False
        candidates = reductions(best)
        while time.monotonic() < end:
            try:
                smaller = next(candidates)
            except (StopIteration, SymgradError):  # what fails may keep others from being made
                break
            found = judged(judge, smaller) if is_moderate(smaller) else None
            if found is not None and found.kind == known.kind:
                best, known, shrinking = smaller, found, True
                yield best, known
                break


def is_moderate(program: Program) -> bool:
    """Whether the outputs are finite and not huge: or a smaller program fails for that alone.

    One that cannot be built or evaluated may be the failure itself.
    """
    try:
        built = Built(program)
        nodes = [*stabilize(built.outputs), *built.tellers]
        values = Shaken(nodes, program.values, program.seed, program.training)()
    except Exception:
        return True
    return all(np.abs(v).max(initial=0) <= HUGE for v in values if v.dtype.kind == "f")


def reductions(program: Program) -> Iterator[Program]:
    """Programs that are smaller by one thing, the largest steps first."""
    for smaller in _reductions(program):
        tidied = smaller.tidy()
        if tidied.outputs and size_of(tidied) < size_of(program):
            yield tidied


def size_of(program: Program) -> tuple[int, ...]:
    """What is to become small, in order of importance: every reduction lowers it."""
    inner = sum(_inner_lines(line) for line in program.lines)
    elements = sum(leaf.data.size for leaf in program.leaves)
    flags = len(program.updates) + len(program.equal) + program.training + len(program.dims)
    return (len(program.lines) + inner, len(program.outputs), len(program.leaves), flags, elements)


def _inner_lines(line: Line) -> int:
    steps = [a for a in line.args if isinstance(a, Step)]
    return sum(1 + _inner_lines(inner) for step in steps for inner in step.lines)


def _reductions(program: Program) -> Iterator[Program]:
    outputs = program.outputs
    if len(outputs) > 1:
        for name in outputs:
            yield replace(program, outputs=(name,))
        for name in outputs:
            yield replace(program, outputs=tuple(n for n in outputs if n != name))
    if program.updates:
        yield replace(program, updates=())
        yield replace(program, updates=program.updates[:1])
    if program.equal:
        yield replace(program, equal=())
        for pair in program.equal:
            yield replace(program, equal=(pair,))
    yield from _leaf_for_line(program)
    yield from _argument_for_line(program)
    yield from _simpler_steps(program)
    if program.training:
        yield replace(program, training=False)
    yield from _smaller_extents(program)


# -- lines ----------------------------------------------------------------------------------------
def _leaf_for_line(program: Program) -> Iterator[Program]:
    """A leaf with the computed value, the lines before it gone."""
    try:
        built = Built(program)
    except SymgradError:  # the failure itself: then only lines can be dropped
        return
    symbols = {built.env[name]: name for name, _ in program.dims}
    for k, line in enumerate(program.lines):
        node = built.env[line.target]
        if line.target in program.outputs and len(program.outputs) == 1:
            continue
        if not isinstance(node, Node) or not any(True for _ in names_in(line)):
            continue
        value = _value(program, built, node)
        if value is None:
            continue
        if all(type(e) is int or e in symbols for e in node.shape):
            shape = tuple(e if type(e) is int else symbols[e] for e in node.shape)
        else:
            shape = value.shape
        leaf = Leaf(line.target, shape, value)
        lines = program.lines[:k] + program.lines[k + 1 :]
        yield replace(program, leaves=(*program.leaves, leaf), lines=lines)


def _value(program: Program, built: Built, node: Node) -> Array | None:
    """The value of a node, None where it has none."""
    try:
        nodes = [stabilize(node), *built.tellers]
        value = Shaken(nodes, program.values, program.seed, program.training)()[0]
    except SymgradError:
        return None
    return value if value.dtype.kind != "f" or np.isfinite(value).all() else None


def _argument_for_line(program: Program) -> Iterator[Program]:
    """An argument in place of a line."""
    for k, line in enumerate(program.lines):
        for name in dict.fromkeys(names_in(line.args)):
            rest = tuple(_renamed(line.target, name, x) for x in program.lines[k + 1 :])
            outputs = tuple(dict.fromkeys(name if n == line.target else n for n in program.outputs))
            yield replace(program, lines=(*program.lines[:k], *rest), outputs=outputs)


def _renamed(old: str, new: str, term: Term) -> Term:
    return mapped(lambda t: Name(new) if isinstance(t, Name) and t.text == old else t, term)


def _simpler_steps(program: Program) -> Iterator[Program]:
    """Steps with one line less."""
    for k, line in enumerate(program.lines):
        for a, arg in enumerate(line.args):
            if not isinstance(arg, Step):
                continue
            for step in _simpler(arg):
                args = (*line.args[:a], step, *line.args[a + 1 :])
                changed = replace(line, args=args)
                yield replace(program, lines=(*program.lines[:k], changed, *program.lines[k + 1 :]))


def _simpler(step: Step) -> Iterator[Step]:
    needed = {*names_in((step.lines, step.result))}
    for k, line in enumerate(step.lines):
        if line.target not in needed:
            yield replace(step, lines=step.lines[:k] + step.lines[k + 1 :])
    for k, line in enumerate(step.lines):
        for name in dict.fromkeys(names_in(line.args)):
            after = tuple(_renamed(line.target, name, x) for x in step.lines[k + 1 :])
            result = _renamed(line.target, name, step.result)
            yield replace(step, lines=(*step.lines[:k], *after), result=result)
        for a, arg in enumerate(line.args):
            if isinstance(arg, Step):
                for inner in _simpler(arg):
                    changed = replace(line, args=(*line.args[:a], inner, *line.args[a + 1 :]))
                    yield replace(step, lines=(*step.lines[:k], changed, *step.lines[k + 1 :]))


# -- extents --------------------------------------------------------------------------------------
def _smaller_extents(program: Program) -> Iterator[Program]:
    """A dim with a smaller value, a number in its place, and smaller numbers."""
    for name, n in program.dims:
        for less in {1, 2, n - 1} - {0}:
            if less < n:
                yield _resized(program, name, less)
        yield _resized(program, name, n, drop=True)
    numbers = {e for leaf in program.leaves for e in leaf.shape if isinstance(e, int)}
    for n in sorted(numbers, reverse=True):
        for less in (1, 2, n - 1):
            if 0 < less < n:
                yield _resized(program, n, less)


def _resized(program: Program, old: int | str, new: int, drop: bool = False) -> Program:
    """Every extent `old` becomes `new`; a dim becomes a number when it is dropped."""

    def changed(leaf: Leaf) -> Leaf:
        cut = tuple(slice(new) if e == old else slice(None) for e in leaf.shape)
        shape = tuple(new if e == old and (drop or isinstance(e, int)) else e for e in leaf.shape)
        data = leaf.data[cut]
        if data.dtype.kind == "i":
            data = np.clip(data, -new, new - 1) if isinstance(old, int) or not drop else data
        return replace(leaf, shape=shape, data=np.asarray(data))

    def number(term: Term) -> Term:
        return new if isinstance(term, Name) and term.text == old else term

    dims = tuple((d, new if d == old else n) for d, n in program.dims if not (drop and d == old))
    lines = program.lines
    if drop:
        lines = tuple(mapped(number, line) for line in lines)
    return replace(program, dims=dims, leaves=tuple(map(changed, program.leaves)), lines=lines)
