"""A compiled program as a picture: kernels, the memory that walks between them, and their times.

A box is a kernel, coloured by its share of the time; an edge is memory that one kernel writes and
another reads, with the bytes that are read. The body of a recurrence is a frame. In a large program
equal kernels are one box, and the leaves are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codegen.counting import traffic_of
from codegen.loop_ir import WORKER, WORKERS
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.reporting import (
    Entry,
    KernelReport,
    Report,
    duration,
    entries_of,
    grouped,
    plan_for,
    quantity,
)
from symgrad.diagram import palette
from symgrad.diagram.dot_text import shorten
from symgrad.diagram.records import Box, Cluster, ColorBar, Diagram, Edge, Legend, Swatch
from symgrad.graph.dims import Dim, printable, show, value

if TYPE_CHECKING:
    from codegen.compiled import Compiled

# Kernels above which equal ones are drawn once.
FOLDED = 40
# Leaves are drawn when they are few, or at most two for a kernel and not too many boxes in all.
FEW_LEAVES, WITH_LEAVES = 12, 60
# Characters of a formula that are shown in a box, and of a leaf's name.
LABEL, NAME = 44, 18
# Fields of the colour bar.
STEPS = 6


@dataclass(frozen=True, slots=True)
class _Flow:
    """Memory that walks from one box to another; `back` into the next step of a recurrence."""

    tail: str
    head: str
    back: bool


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where calls stand.

    Fields:
        place: the entry of the program's table that an entry of these calls' table means.
        frame: of the recurrence around them, "" outside all.
        times: how often they run.
    """

    place: Callable[[int], int]
    frame: str
    times: int


def kernel_diagram(f: Compiled, report: Report) -> Diagram:
    """The schedule of a program, with the figures of a report on it."""
    dims = {d: report.dims[d.name] for d in f.dims} if report.dims or not f.dims else None
    entries = entries_of(f, dims)
    return _Picture(plan_for(f, dims), entries, report, dims).diagram()


@dataclass(slots=True)
class _Picture:
    """A picture under construction."""

    plan: Plan
    entries: Sequence[Entry]
    report: Report
    dims: Mapping[Dim, int] | None
    flows: dict[_Flow, int] = field(default_factory=dict)
    box_of: list[str] = field(default_factory=list)
    frames: dict[str, Cluster] = field(default_factory=dict)
    frame_of: list[str] = field(default_factory=list)

    def diagram(self) -> Diagram:
        """Boxes, edges between them, frames of recurrences."""
        groups, row_of = grouped(self.entries)
        self.box_of = [""] * len(self.entries)
        if len(self.entries) <= FOLDED:
            groups = [[k] for k in range(len(self.entries))]
        else:
            self._walk()  # for the frames: a box stands in one of them
            groups = list(self._by_frame(groups))
            self.flows = {}
        for k, members in enumerate(groups):
            for member in members:
                self.box_of[member] = f"k{k}"
        self._walk()
        shares = self._shares(groups)
        boxes = [
            self._box(f"k{k}", members, row_of, share)
            for k, (members, share) in enumerate(zip(groups, shares, strict=True))
        ]
        leaves = self._leaves()
        most = min(max(FEW_LEAVES, 2 * len(boxes)), WITH_LEAVES - len(boxes))
        with_leaves = len(leaves) <= most
        leaves = leaves if with_leaves else []
        drawn = {box.id for box in (*leaves, *boxes)}
        return Diagram(
            title="kernels",
            caption=self._caption(len(boxes), with_leaves),
            boxes=(*leaves, *boxes),
            edges=tuple(self._edges(drawn)),
            clusters=tuple(self._clusters(groups)),
            legend=self._legend(shares),
            direction="TB",
        )

    # -- memory -----------------------------------------------------------------------------------
    @property
    def _known(self) -> dict[Dim, int] | None:
        """The dims, and what a worker knows of its team."""
        if self.dims is None:
            return None
        return {**self.dims, WORKER: 0, WORKERS: self.plan.workers}

    def _walk(self) -> None:
        """Which kernel reads what another one wrote, kernel by kernel, each loop twice."""
        wrote: dict[int, str] = {k: f"leaf{k}" for k in range(1, 1 + len(self.plan.leaves))}
        self.frame_of = [""] * len(self.entries)
        self._block(self.plan.calls, _Scope(lambda entry: entry, "", 1), wrote, 0)

    def _block(
        self,
        calls: Sequence[Invoked | InvokedLoop],
        scope: _Scope,
        wrote: dict[int, str],
        k: int,
    ) -> int:
        """Calls from entry k on, with the places of their memory; the next entry."""
        for call in calls:
            if isinstance(call, InvokedLoop):
                k = self._loop(call, scope, wrote, k)
                continue
            self.frame_of[k] = scope.frame
            read, written = traffic_of(call.kernel, self._known)
            names = [b.name for b in call.kernel.buffers]
            for name, entry in zip(names, call.entries, strict=True):
                where = scope.place(entry)
                if name in read and where in wrote:
                    flow = _Flow(wrote[where], self.box_of[k], False)
                    if flow.tail != flow.head:
                        self.flows[flow] = self.flows.get(flow, 0) + scope.times * read[name]
            for name, entry in zip(names, call.entries, strict=True):
                if name in written:
                    wrote[scope.place(entry)] = self.box_of[k]
            k += 1
        return k

    def _loop(self, call: InvokedLoop, scope: _Scope, wrote: dict[int, str], k: int) -> int:
        loop = call.loop

        def inner(entry: int) -> int:
            return scope.place(call.entries[loop.places[entry].operand])

        number = f"{scope.frame}_{k}"
        steps = 0 if self.dims is None else value(loop.length, self.dims)
        many = loop.length if self.dims is None else steps
        label = f"{many} turns" if loop.turns else f"{many} steps"
        self.frames[number] = Cluster(number, label, (), 1, scope.frame)
        step = _Scope(inner, number, scope.times * max(steps, 1))
        end = self._block(loop.calls, step, wrote, k)
        known = dict(self.flows)
        self._block(loop.calls, step, dict(wrote), k)
        again = {flow: n for flow, n in self.flows.items() if flow not in known}
        self.flows = known  # what the second step reads elsewhere, the first step left for it
        self.flows |= {_Flow(f.tail, f.head, True): n for f, n in again.items()}
        return end

    def _by_frame(self, groups: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Groups of kernels, those of different recurrences apart."""
        for members in groups:
            frames: dict[str, list[int]] = {}
            for k in members:
                frames.setdefault(self.frame_of[k], []).append(k)
            yield from frames.values()

    # -- boxes ------------------------------------------------------------------------------------
    def _shares(self, groups: Sequence[Sequence[int]]) -> list[float | None]:
        """The share of each box in the time: measured, else the least there can be, else None."""
        spent = [sum(self._seconds(k) for k in members) for members in groups]
        total = sum(spent)
        return [s / total if total else None for s in spent]

    def _seconds(self, k: int) -> float:
        """The time of one kernel call of the plan."""
        if self.report.times:
            return self.report.times[k]
        return self.report.least[k] if self.report.least else 0.0

    def _box(
        self, name: str, members: Sequence[int], row_of: Sequence[int], share: float | None
    ) -> Box:
        first = self.entries[members[0]]
        row = self.report.kernels[row_of[members[0]]] if self.report.kernels else None
        spent = sum(self._seconds(k) for k in members)
        calls = sum(self.entries[k].times or 0 for k in members)
        parts = [first.over] if first.over else []
        if share is not None:
            least = "" if self.report.times else "at least "
            parts.append(f"{least}{duration(spent)}")
            parts.append(f"{share:.0%}")
        if row is not None and row.bound:
            parts.append(row.bound + (f" {row.roofline:.0%} of roof" if row.roofline else ""))
        if first.workers > 1:
            parts.append(f"{first.workers} workers")
        times = f"  ×{calls}" if calls > 1 else ""
        nodes = [n for k in members for n in self.entries[k].call.nodes]
        backward = bool(nodes) and all(n.backward_of is not None for n in nodes)
        return Box(
            name,
            shorten(first.formula, LABEL) + times,
            " · ".join(parts),
            "operation",
            "backward" if backward else "forward",
            "\n".join([*first.lets, *_figures(row, len(members))]),
            palette.NEUTRAL_FILL if share is None else palette.scale(share / self._most()),
            max(len(nodes), 1),
        )

    def _most(self) -> float:
        """The share at the dark end of the scale."""
        groups = self._by_box()
        total = sum(groups.values())
        return max(max(groups.values()) / total, 1e-9) if total else 1.0

    def _by_box(self) -> dict[str, float]:
        spent: dict[str, float] = {}
        for k, box in enumerate(self.box_of):
            spent[box] = spent.get(box, 0.0) + self._seconds(k)
        return spent

    def _leaves(self) -> list[Box]:
        read = {flow.tail for flow in self.flows}
        return [
            Box(
                f"leaf{k}",
                shorten(printable(leaf.name), NAME),
                f"{leaf.dtype} {show(leaf.shape)}",
                "parameter" if leaf.kind == "parameter" else "input",
                tooltip=f"{printable(leaf.name)}: {leaf.dtype} {show(leaf.shape)}",
            )
            for k, leaf in enumerate(self.plan.leaves, 1)
            if f"leaf{k}" in read
        ]

    # -- edges and frames -------------------------------------------------------------------------
    def _edges(self, drawn: set[str]) -> Iterator[Edge]:
        most = max(self.flows.values(), default=1) or 1
        for flow, count in self.flows.items():
            if flow.tail not in drawn or flow.tail == flow.head:
                continue
            size = f"{quantity(count)}B" if self.dims is not None else ""
            yield Edge(
                flow.tail,
                flow.head,
                size,
                tooltip=f"{size} read" if size else "memory",
                color=palette.MUTED,
                width=1.0 + 3.0 * max(0.0, 1.0 + math.log10(max(count, 1) / most) / 3),
                loop=flow.back,
            )

    def _clusters(self, groups: Sequence[Sequence[int]]) -> Iterator[Cluster]:
        inside: dict[str, list[str]] = {name: [] for name in self.frames}
        for k, members in enumerate(groups):
            homes = {self.frame_of[m] for m in members}
            if len(homes) == 1 and (home := homes.pop()):
                inside[home].append(f"k{k}")
        for name, frame in self.frames.items():
            yield Cluster(name, frame.label, tuple(inside[name]), 1, frame.parent)

    # -- words ------------------------------------------------------------------------------------
    def _caption(self, boxes: int, with_leaves: bool) -> str:
        report = self.report
        if report.seconds is not None:
            first = f"{duration(report.seconds)} a call, measured"
        elif report.least:
            first = "not measured: times are the least that this machine allows"
        else:
            first = "not measured: draw a compiled function after a call of it"
        if report.dims:
            first += " at " + ", ".join(f"{printable(d)}={n}" for d, n in report.dims.items())
        second = [f"workspace {quantity(report.workspace)}B"]
        if boxes < len(self.entries):
            second.append(f"{len(self.entries)} kernel calls drawn as {boxes} boxes")
        if not with_leaves:
            second.append("inputs and parameters are left out")
        return first + "\n" + ", ".join(second)

    def _legend(self, shares: Sequence[float | None]) -> Legend:
        swatches = [Swatch("box", palette.FORWARD, "forward kernel")]
        if any(n.backward_of is not None for e in self.entries for n in e.call.nodes):
            swatches.append(Swatch("box", palette.BACKWARD, "backward kernel"))
        if all(share is None for share in shares):
            return Legend(tuple(swatches))
        most = self._most()
        places = [k / (STEPS - 1) for k in range(STEPS)]
        steps = tuple((palette.scale(p), f"{p * most:.0%}") for p in places)
        title = "share of the time" if self.report.times else "share of the least time"
        return Legend(tuple(swatches), ColorBar(title, steps))


def _figures(row: KernelReport | None, count: int) -> list[str]:
    """What the tooltip of a kernel says besides its formulas."""
    if row is None:
        return []
    work = f"{quantity(row.operations)}FLOP, {quantity(row.bytes)}B in {row.calls} calls"
    return [row.over, work] if row.over else [work]
