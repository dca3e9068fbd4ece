"""What each stage computes, and why those nodes stand together and apart from others.

A table for people, one row a stage. Reasons are the scheduler's own: what kept a stage's nodes out
of an earlier one is written down when it happens (`schedule.Apart`). A long program is folded:
stages that repeat are shown once, and of a program that does not repeat the middle is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from codegen.formulas import formula
from codegen.memory import Invoked, InvokedLoop, LoweredLoop, kernels_of
from codegen.schedule import (
    FoldStage,
    LoopStage,
    MoveStage,
    ProductStage,
    Schedule,
    Stage,
    domain_of,
    runs_along_rows,
)
from symgrad.calculus.loop_parts import Moved
from symgrad.graph.checkpoints import BudgetedChunk, exact_size
from symgrad.graph.dims import Extent, first_lines, printable, show
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, Reduce
from symgrad.graph.text import references

if TYPE_CHECKING:
    from codegen.chunking import Chunks

# Screens are about this many lines long; a longer table is folded.
SCREEN = 48
# Characters of a column at most.
WIDE = {"formula": 44, "why": 60}
# Lines about what moved at most.
MOST_MOVES = 24
# Formulas of one stage at most.
MOST_LETS = 4
# A program of more stages is folded where a run of at most so many repeats at least so often.
FEW, LONGEST_PERIOD, LEAST_REPEATS = 12, 24, 3


@dataclass(frozen=True, slots=True)
class Row:
    """A stage in words: what it loops over, the formulas it computes, the reasons."""

    number: str
    over: str
    formulas: tuple[str, ...]
    why: tuple[str, ...]


def stage_table(schedule: Schedule) -> str:
    """The stages as a table with aligned columns, at most about a screen long.

    >>> import symgrad as sg
    >>> x, W = sg.input("x", (sg.dim("B"), 5)), sg.parameter("W", (5, 3))
    >>> print(stage_table(sg.compile(sg.tanh((x @ W).sum(axis=1))).stages.schedule))
    stage  over               computes                      why
        1  (B, 5) x (5, 3)    %1 = einsum ab,bc->ac (x, W)  a matrix product: one call
        2  (B,) rows of (3,)  %2 = einsum ab->a (%1)        one pass over rows, each reduced to %2
                              %3 = tanh(%2)                 apart: stage 1 is a product
    """
    names = references(schedule.graph)
    rows = list(_rows(schedule, names, brief=False))
    if sum(map(_height, rows)) > SCREEN:
        rows = list(_rows(schedule, names, brief=True))
    if len(rows) > SCREEN:
        half = SCREEN // 2
        hidden = len(rows) - 2 * half
        rows = [*rows[:half], Row("..", f"{hidden} more stages", (), ()), *rows[-half:]]
    return _table(rows)


def move_table(moved: Sequence[Moved]) -> str:
    """What left recurrences or was moved to where it costs less, and why, equal lines as one.

    >>> import symgrad as sg
    >>> x, W = sg.input("x", (7, 3, 5)), sg.parameter("W", (5, 2))
    >>> c, _ = sg.scan(lambda c, x: (sg.tanh(c + x @ W), ()), sg.zeros((3, 2)), x)
    >>> print(move_table(sg.compile(c).stages.moved))
    hoisted out of 7 steps    einsum ab,bc->ac (x, W)    (3, 2): depends on no carry
    """
    rows = Counter(
        (
            move.heading,
            _moved(move.node),
            f"{show(move.node.shape)}: {move.why}" if move.node.ndim else move.why,
        )
        for move in moved
    )
    lines = [
        (how, f"{n} x {what}" if n > 1 else what, why) for (how, what, why), n in rows.items()
    ]
    wide = [max((len(line[k]) for line in lines[:MOST_MOVES]), default=0) for k in (0, 1)]
    return first_lines(
        (f"{how:<{wide[0]}}    {what:<{wide[1]}}    {why}" for how, what, why in lines), MOST_MOVES
    )


def _moved(node: Node) -> str:
    """What moved: its formula, or where a recurrence was written, and whether it goes back."""
    if not isinstance(node, Fold):
        return cut(formula(node, _plain_name), WIDE["formula"])
    back = "" if node.backward_of is None else ", on its way back"
    return cut(printable(f"{node.where or 'a recurrence'}{back}"), WIDE["formula"])


def checkpoint_lines(graph: Graph, chunks: Chunks | None) -> Iterator[str]:
    """Which recurrences of a graph as written are cut into chunks, and why.

    >>> import symgrad as sg
    >>> x = sg.input("x", (sg.dim("T"),))
    >>> c, _ = sg.scan(lambda c, x: (sg.sin(c) + x, ()), sg.constant(0.0), x, checkpoint=9)
    >>> (line,) = checkpoint_lines(Graph.of([c]), None)
    >>> line.split(",")[0]
    'checkpoints  T//9 chunks of 9: their derivatives keep the carry before each'
    """
    seen: set[tuple[Extent, str]] = set()
    for fold in graph.every_node():
        primal = isinstance(fold, Fold) and fold.backward_of is None
        if not isinstance(fold, Fold) or not (primal and fold.structure.checkpoint):
            continue
        count, where = fold.structure.length, str(fold.where or "")
        if (count, where) in seen:
            continue
        seen.add((count, where))
        each = fold.xs[0].shape[1]
        if isinstance(each, BudgetedChunk):
            why = f"as long as {exact_size(each.budget)} allow"
            last = chunks.last.get(each) if chunks is not None else None
            why += f"; last call: {last}" if last is not None else ", chosen when values arrive"
        else:
            why = "their derivatives keep the carry before each, and compute its steps again"
        told = f"{printable(str(count))} chunks of {printable(str(each))}"
        yield f"checkpoints  {told}: {why}  {where}".rstrip()


def _plain_name(node: Node) -> str:
    return printable(node.name if isinstance(node, Input) else node.origin or node.name)


def turn_lines(
    calls: Sequence[Invoked | InvokedLoop], schedule: Schedule, prefix: str = ""
) -> Iterator[str]:
    """Which stages take turns (`codegen/batch_fusion.py`), those of recurrences too."""
    bodies: dict[Node, tuple[Schedule, str]] = {
        s.node: (s.inner, f"{prefix}{k}.")
        for k, s in enumerate(schedule.stages, 1) if isinstance(s, FoldStage)
    }
    for call in calls:
        if not isinstance(call, InvokedLoop):
            continue
        if not call.loop.turns:
            yield from turn_lines(call.loop.calls, *bodies[_recurrence(call.loop)])
            continue
        stages = sorted({kernel.stage + 1 for kernel in kernels_of(call.loop.calls)})
        yield (
            f"{len(stages)} stages from {prefix}{stages[0]} to {prefix}{stages[-1]} take turns: "
            f"each does one of {call.loop.length} rows while it is in the cache"
        )


def _recurrence(loop: LoweredLoop) -> Node:
    """The Fold that a loop runs: the one whose results it writes."""
    return next(result.args[0] for result in loop.writes if isinstance(result, Proj))


# -- rows ------------------------------------------------------------------------------------------
def _rows(
    schedule: Schedule, names: Mapping[Node, str], brief: bool, prefix: str = ""
) -> Iterator[Row]:
    """The stages of a schedule; those of a recurrence's body follow it as 2.1, 2.2, .."""
    reasons = _Reasons(schedule, names, prefix)
    for first, period, times in _runs(schedule.stages):
        for k in range(first, first + period):
            stage = schedule.stages[k]
            yield _row(f"{prefix}{k + 1}", stage, names, list(reasons.of(k)), brief)
            if isinstance(stage, FoldStage):
                own = references(stage.inner.graph, f"{names[stage.node]}.", names)
                yield from _rows(stage.inner, own, brief, f"{prefix}{k + 1}.")
        if times > 1:
            spread = f"stages {prefix}{first + period + 1} to {prefix}{first + period * times}"
            yield Row("..", f"the like {times - 1} more times, {spread}", (), ())


def _row(number: str, stage: Stage, names: Mapping[Node, str], why: list[str], brief: bool) -> Row:
    lets = [f"{names[n]} = {formula(n, names.__getitem__)}" for n in stage.nodes if n in names]
    if brief and len(lets) > 1:
        more = f" and {len(lets) - 1} more"
        lets = [cut(lets[0], WIDE["formula"] - len(more)) + more]
    elif len(lets) > MOST_LETS + 1:
        lets = [*lets[:MOST_LETS], f"and {len(lets) - MOST_LETS} more"]
    lines = why[:1] if brief else [line for reason in why for line in _wrapped(reason)]
    return Row(
        number,
        over(stage),
        tuple(cut(line, WIDE["formula"]) for line in lets),
        tuple(cut(line, WIDE["why"]) for line in lines),
    )


def over(stage: Stage) -> str:
    """What a stage walks over."""
    if isinstance(stage, ProductStage):
        return str(stage.product)
    if isinstance(stage, FoldStage):
        return f"{stage.node.structure.length} steps of {len(stage.inner.stages)} stages"
    if isinstance(stage, MoveStage):
        return show(stage.node.shape)
    rows, inner = stage.domain[: stage.split], stage.domain[stage.split :]
    if not stage.domain:
        return "one value"
    return f"{show(rows)} rows of {show(inner)}" if inner and rows else show(stage.domain)


class _Reasons:
    """The reasons of the stages of one schedule: why together, then why apart from others."""

    def __init__(self, schedule: Schedule, names: Mapping[Node, str], prefix: str) -> None:
        self.schedule = schedule
        self.names = names
        self.prefix = prefix
        self.products: dict[int, dict[int, None]] = {}  # stage -> the products that read it
        for k, stage in enumerate(schedule.stages):
            for read in stage.product.operands[:2] if isinstance(stage, ProductStage) else ():
                made = schedule.stage_of.get(read.root)
                if made is not None:
                    self.products.setdefault(made, {})[k] = None

    def of(self, k: int) -> Iterator[str]:
        """The reasons of stage k."""
        stage = self.schedule.stages[k]
        if isinstance(stage, ProductStage):
            several = bool(stage.product.loops)
            yield "matrix products: one call for each" if several else "a matrix product: one call"
            home = stage.product.operands[2].root
            if home is not stage.node:
                yield f"writes its part of {self.names.get(home, '')}"
        elif isinstance(stage, FoldStage):
            yield "a recurrence: the stages of its body, once a step"
        elif isinstance(stage, MoveStage) and isinstance(stage.node, Reduce):
            yield "runs along its axis, each element from the one before"
        elif isinstance(stage, MoveStage):
            yield "moves pieces to their places, zeros between them"
        else:
            yield from self.together(stage)
            yield from self.apart(k, stage)

    def together(self, stage: LoopStage) -> Iterator[str]:
        """Why the members of a stage stand in one loop."""
        reduced = self.list([m for m in stage.members if m in stage.trailing])
        if reduced and stage.split:
            yield f"one pass over rows, each reduced to {reduced}"
        elif reduced:
            yield f"one loop, reduced to {reduced} as a whole"
        elif len(stage.members) > 1:
            yield "one loop: its nodes share what they make and read"
        runs = [m for m in stage.members if runs_along_rows(m)]
        if runs:
            yield f"{self.list(runs)} run{'s' * (len(runs) == 1)} along the row"
        sums = [m for m in stage.members if m in stage.accumulated]
        if sums:
            yield f"{self.list(sums)} add{'s' * (len(sums) == 1)} up in memory as the loop goes"
        if stage.joined:
            yield f"writes {self.list(stage.joined)} piece by piece, each where it belongs"

    def apart(self, k: int, stage: LoopStage) -> Iterator[str]:
        """Why a stage does not hold its neighbours."""
        for apart in stage.apart:
            other = f"stage {self.prefix}{apart.stage + 1}"
            yield f"apart: {apart.why.format(stage=other, node=self.names.get(apart.node, ''))}"
        if not stage.apart and k:
            yield "apart: no stage before makes or reads what it reads"
        if k in self.products:
            readers = ", ".join(f"{self.prefix}{j + 1}" for j in self.products[k])
            yield f"ends here: read by product{'s' * (len(self.products[k]) > 1)} {readers}"

    def list(self, nodes: Sequence[Node]) -> str:
        """The names of a few nodes."""
        shown = " ".join(self.names[n] for n in nodes[:4])
        return shown + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")


# -- folding ---------------------------------------------------------------------------------------
def _runs(stages: Sequence[Stage]) -> Iterator[tuple[int, int, int]]:
    """Runs of stages: where one begins, its period, and how often the period repeats."""
    signs = [_sign(stage) for stage in stages]
    k = 0
    while k < len(stages):
        period, times = _repeat(signs, k) if len(stages) > FEW else (1, 1)
        yield k, period, times
        k += period * times


def _repeat(signs: Sequence[object], start: int) -> tuple[int, int]:
    """The period and the number of repeats that cover most stages from `start` on."""
    best = (1, 1)
    for period in range(1, LONGEST_PERIOD + 1):
        times = 1
        first = signs[start : start + period]
        while signs[start + times * period : start + (times + 1) * period] == first:
            times += 1
        if len(first) == period and times >= LEAST_REPEATS and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _sign(stage: Stage) -> object:
    """What stages that do the like share."""
    kinds = tuple((type(n), getattr(n, "body", None), domain_of(n)) for n in stage.nodes)
    return type(stage), over(stage), kinds


# -- layout ----------------------------------------------------------------------------------------
def cut(text: str, wide: int) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= wide else text[: wide - 3] + "..."


def _wrapped(text: str) -> Iterator[str]:
    """A reason in lines that fit its column, the further ones indented."""
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDE["why"]:
            yield line
            line = "  " + word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _height(row: Row) -> int:
    return max(1, len(row.formulas), len(row.why))


def _table(rows: Sequence[Row]) -> str:
    first = max((len(r.number) for r in rows), default=0)
    first = max(first, len("stage"))
    space = max((len(r.over) for r in rows if r.formulas), default=4)
    wide = max((len(f) for r in rows for f in r.formulas), default=8)
    lines = [f"{'stage':>{first}}  {'over':<{space}}  {'computes':<{wide}}  why"]
    for row in rows:
        cells = zip_longest((row.number,), (row.over,), row.formulas, row.why, fillvalue="")
        for number, place, let, reason in cells:
            lines.append(f"{number:>{first}}  {place:<{space}}  {let:<{wide}}  {reason}".rstrip())
    return "\n".join(lines)
