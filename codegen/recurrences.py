"""Lowering of recurrences: the body of a Fold is planned like a program of its own.

In the body, binders are leaves. A constant's memory is the outer one's; an element's is a window
that moves along its sequence; the carry has memory that lives through all steps, and the next carry
is an update of it: written in place where that is safe, else copied when the step is done. What is
emitted goes straight to its place in the stacked result. The slots of the body are scratch of the
outer plan.

Where a step works on some of the rows only, the kernels of the body run over so many rows at the
beginning of the carry's memory, and what is emitted has a place for each row of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from codegen.access import root_of, steps_of
from codegen.batch_fusion import Finishing, take_turns
from codegen.formulas import with_formulas
from codegen.lowering import lower_copy, lower_stage, lower_zeros
from codegen.memory import InnerPlace, Live, LoweredLoop, plan_memory
from codegen.nests import merge_nests
from codegen.schedule import FoldStage, Schedule
from codegen.sharing import share
from codegen.tiling import tile
from codegen.tune import tune
from codegen.values import CopyOf, Lowered, Operand, Scratch
from symgrad.graph.dims import Extent, size
from symgrad.graph.folds import Fold, Proj, Rows, in_rows, projections
from symgrad.graph.nodes import Node


def lower(
    schedule: Schedule, row_memory: bool = True, workers: int = 1
) -> list[Lowered | LoweredLoop]:
    """The kernels of a schedule, tuned, in order; recurrences hold those of their bodies.

    Args:
        row_memory: see `lower_stage`; also neighbours become one kernel or take turns, see `nests`
                    and `batch_fusion`.
        workers:    for a team of so many at most.
    """
    done: list[Lowered | LoweredLoop] = []
    for number, stage in enumerate(schedule.stages):
        if isinstance(stage, FoldStage):
            done.extend(_lower_fold(schedule, stage, number, row_memory, workers))
        else:
            done.append(lower_stage(schedule, stage, number, row_memory))

    def tuned(lows: Sequence[Lowered]) -> list[Lowered]:
        """Kernels tuned, and with their formulas."""
        lows = [replace(low, kernel=tune(low.kernel)) for low in lows]
        if row_memory:
            lows = [replace(low, kernel=tile(low.kernel)) for low in lows]
        return with_formulas(schedule, lows)

    def finish(lows: Sequence[Lowered]) -> list[Lowered]:
        """The same, and shared."""
        return [share(low, workers) if workers > 1 else low for low in tuned(lows)]

    if row_memory:
        return take_turns(schedule, merge_nests(schedule, done), Finishing(tuned, finish, workers))
    return [low if isinstance(low, LoweredLoop) else finish([low])[0] for low in done]


@dataclass(slots=True)
class _Operands:
    """The operands of a loop, each once."""

    found: dict[Operand, int]

    rows: Rows | None

    def place(self, operand: Operand, step: Extent = 0) -> InnerPlace:
        return InnerPlace(self.found.setdefault(operand, len(self.found)), step)

    def moving(self, operand: Operand, element: Node) -> InnerPlace:
        """The place of a sequence, or of what is emitted, of which a step sees an element."""
        if self.rows is None or not in_rows(self.rows, element):
            return self.place(operand, size(element.shape))
        return replace(self.place(operand, size(element.shape[1:])), rows=True)


def _lower_fold(
    schedule: Schedule, stage: FoldStage, number: int, row_memory: bool, workers: int
) -> list[Lowered | LoweredLoop]:
    fold = stage.node
    carry, elements, _ = fold.binders
    results = projections(fold)
    n = fold.carries
    kernels = lower(stage.inner, row_memory, workers)
    emitted = stage.outputs[n:]
    plan = plan_memory(
        stage.inner,
        kernels,
        emitted,
        list(zip(carry, stage.outputs, strict=False)),
        fold.body.inputs,
        may_fail=False,
        workers=workers,
    )
    rows = fold.structure.rows
    operands = _Operands({}, rows)
    places = [InnerPlace(-1, 0)]  # the report of bad indices is the outer one
    places += [operands.place(results[k]) for k in range(n)]
    places += [operands.moving(steps_of(x), e) for x, e in zip(fold.xs, elements, strict=True)]
    places += [operands.place(root_of(c)) for c in fold.consts]
    places += [operands.place(c) for c in plan.constants]
    target: dict[Node, Proj] = {}
    for node, result in zip(emitted, results[n:], strict=True):
        target.setdefault(root_of(node), result)
    places += [operands.moving(target[node], node) for node in plan.results]
    places += [operands.place(Scratch(plan.layout, slot.number)) for slot in plan.slots]
    writes: set[Operand] = {*results[:n], *target.values()}
    loop = LoweredLoop(
        tuple(operands.found),
        (),
        frozenset(writes),
        fold.structure.length,
        fold.structure.reverse,
        plan.calls,
        tuple(places),
        None if fold.bound is None else operands.found[root_of(fold.bound)],
        live=None
        if rows is None
        else Live(rows.now, *(operands.found[steps_of(x)] for x in fold.xs[:2])),
    )
    starts = [CopyOf(result, init) for result, init in zip(results, fold.init, strict=False)]
    again = [
        CopyOf(result, target[root_of(node)])
        for node, result in zip(emitted, results[n:], strict=True)
        if target[root_of(node)] is not result
    ]
    first = [lower_copy(c, number) for c in starts]
    if fold.bound is not None:
        read = _read_elsewhere(schedule, fold)
        pairs = zip(emitted, results[n:], strict=True)
        filled = {
            target[root_of(y)]
            for y, result in pairs
            if result in read and not (rows is not None and in_rows(rows, y))
        }
        first += [lower_zeros(result, number) for result in target.values() if result in filled]
    return [*first, loop, *(lower_copy(c, number) for c in again)]


def _read_elsewhere(schedule: Schedule, fold: Fold) -> set[Node]:
    """What a bounded recurrence emits that others read than those with the same bound."""
    found = {root_of(node) for node in schedule.graph.outputs}
    for node in schedule.graph.nodes:
        alike = isinstance(node, Fold) and node.bound is fold.bound
        steps = set(node.xs) if alike and isinstance(node, Fold) else set[Node]()
        found.update(root_of(a) for a in node.args if a not in steps)
    return found
