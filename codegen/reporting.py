"""What a program's kernels do and how fast: `f.report()`.

Every kernel is listed with its formula, the space it walks over, its operations and bytes, its
measured time, what bounds it, and which fraction of the roofline it reaches:

    compute   operations / peak rate of the processor
    memory    bytes / rate of the nearest level of the memory that holds them
    launch    what the smallest kernel takes

The largest of the three is the bound; over the measured time it is the fraction. Equal kernels are
one row, with the number of their calls.

Where a call of these dims is run by a team of workers, its program is what is listed and timed: a
kernel's time is that of the worker that needs the longest, its bound that of one worker's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from codegen.counting import Counts, counts_of
from codegen.formulas import formula
from codegen.loop_ir import WORKER, WORKERS, Kernel, lines
from codegen.machine import Machine, this_machine
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.reasons import cut, over
from codegen.schedule import FoldStage, Schedule
from symgrad.graph.dims import Dim, printable, show, typical_values, value
from symgrad.graph.nodes import Node
from symgrad.graph.text import references

if TYPE_CHECKING:
    from codegen.compiled import Compiled
    from codegen.state import Array
    from codegen.timing import Timing

# Rows of the table at most: it fits a screen.
SCREEN = 32
# Seconds below which the clock cannot tell, and which a call takes at least.
LAUNCH = 5e-9
# The column of workers.
BY = 8
# Characters of a column at most.
WIDE = {"kernel": 46, "over": 24}


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel call of a plan, in words.

    Fields:
        call:  the kernel and what it is called with.
        stage: the number that `f.stages` gives to what it computes.
        lets:  the formulas that it computes.
        over:  the space that it walks over.
        times: how often a call of the program calls it; None where dims are not known.
        workers: how many share it.
        apart:   whether each of them does some of the calls, and not a part of every call.
    """

    call: Invoked
    stage: str
    lets: tuple[str, ...]
    over: str
    times: int | None
    workers: int = 1
    apart: bool = False

    @property
    def formula(self) -> str:
        """Its formulas on one line."""
        if not self.lets:
            return self.call.kernel.formula or "copy"
        more = f" and {len(self.lets) - 1} more" if len(self.lets) > 1 else ""
        return cut(self.lets[0], WIDE["kernel"] - len(more)) + more


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Equal kernels of a program: figures of one call of the program, all their calls together.

    Fields:
        formula:    of the first.
        over:       the space that each walks over.
        stages:     numbers as in `f.stages`.
        calls:      of all of them.
        operations: on numbers; a product of (m, k) and (k, n) does 2 m k n.
        bytes:      read and written, each element once.
        seconds:    measured, or None.
        bound:      "compute", "memory" or "launch"; "" where it is not known.
        roofline:   the least time that the bound allows over the time that was measured.
        workers:    how many share each of them.
        balance:    the mean time of those over the longest; None where it is not known.
    """

    formula: str
    over: str
    stages: tuple[str, ...]
    calls: int
    operations: int
    bytes: int
    seconds: float | None
    bound: str
    roofline: float | None
    workers: int = 1
    balance: float | None = None


class Report(str):
    """A report as text, and its figures.

    Attributes:
        kernels:   in order of their first call.
        machine:   its peaks, None where nothing was counted.
        dims:      by name.
        seconds:   of one call of the program, or None.
        times:     measured, of each kernel call of the plan in order; empty where not measured.
        least:     the same as the roofline allows them; empty where dims are not known.
        workspace: bytes that the plan takes.
        live:      bytes that live at once at most: no plan can take less.
        workers:   how many run a call.
        waiting:   seconds that each of them waits for the others; empty where not measured.
    """

    kernels: tuple[KernelReport, ...]
    machine: Machine | None
    dims: dict[str, int]
    seconds: float | None
    times: tuple[float, ...]
    least: tuple[float, ...]
    workspace: int
    live: int
    workers: int
    waiting: tuple[float, ...]

    def __repr__(self) -> str:
        return str(self)


# -- kernels in words ------------------------------------------------------------------------------
def plan_for(f: Compiled, dims: Mapping[Dim, int] | None) -> Plan:
    """The plan of the program that runs with these dims: for a team or for one worker."""
    team = f.team_for(dims)
    return f.stages.plan if team is None else team.plan


def entries_of(f: Compiled, dims: Mapping[Dim, int] | None) -> list[Entry]:
    """The kernel calls of a program, recurrences included, in order."""
    schedule, plan = f.stages.schedule, plan_for(f, dims)
    found = _entries(plan.calls, schedule, references(schedule.graph), "", 1, dims)
    return [e if e.call.kernel.alone else replace(e, workers=plan.workers) for e in found]


def _entries(
    calls: Sequence[Invoked | InvokedLoop],
    schedule: Schedule,
    names: Mapping[Node, str],
    prefix: str,
    times: int,
    dims: Mapping[Dim, int] | None,
) -> Iterator[Entry]:
    folds = iter([k for k, s in enumerate(schedule.stages) if isinstance(s, FoldStage)])
    for call in calls:
        if isinstance(call, InvokedLoop):
            steps = 0 if dims is None else value(call.loop.length, dims)
            if call.loop.turns:
                inside = call.loop.calls
                for entry in _entries(inside, schedule, names, prefix, times * steps, dims):
                    part = f"1/{show((call.loop.length,))[1:-2]} of {entry.over}"
                    shared = call.loop.rows is not None
                    yield replace(entry, over=part if entry.over else "", apart=shared)
                continue
            k = next(folds)
            stage = schedule.stages[k]
            assert isinstance(stage, FoldStage)
            own = references(stage.inner.graph, f"{names[stage.node]}.", names)
            inside = call.loop.calls
            yield from _entries(inside, stage.inner, own, f"{prefix}{k + 1}.", times * steps, dims)
            continue
        number = call.kernel.stage
        known = number < len(schedule.stages) and bool(call.nodes)
        lets = [f"{names[n]} = {formula(n, names.__getitem__)}" for n in call.nodes if n in names]
        yield Entry(
            call,
            f"{prefix}{number + 1}" if known else "",
            tuple(lets),
            over(schedule.stages[number]) if known else "",
            None if dims is None else times,
        )


def _alike(entry: Entry) -> object:
    """What equal kernels share."""
    kernel: Kernel = entry.call.kernel
    dtypes = tuple(str(b.dtype) for b in kernel.buffers)
    return dtypes, tuple(lines(kernel.body, 0)), entry.over, entry.workers


def grouped(entries: Sequence[Entry]) -> tuple[list[list[int]], list[int]]:
    """Equal kernels together, in order of the first, and for each entry its group."""
    groups: dict[object, list[int]] = {}
    for k, entry in enumerate(entries):
        groups.setdefault(_alike(entry), []).append(k)
    place = {k: n for n, members in enumerate(groups.values()) for k in members}
    return list(groups.values()), [place[k] for k in range(len(entries))]


# -- figures ---------------------------------------------------------------------------------------
def kernels_of(
    entries: Sequence[Entry],
    dims: Mapping[Dim, int],
    machine: Machine | None,
    timing: Timing | None,
) -> tuple[tuple[KernelReport, ...], tuple[float, ...]]:
    """The rows of a report, and for each entry the least time that its bound allows."""
    rows: list[KernelReport] = []
    floor = [0.0] * len(entries)
    team = max((entry.workers for entry in entries), default=1)
    dims = {**dims, WORKER: 0, WORKERS: team}
    for members in grouped(entries)[0]:
        first = entries[members[0]]
        own = {} if timing is None else timing.extents[members[0]]
        counts = counts_of(first.call.kernel, {**dims, **own})
        done = {k: _calls(entries[k], timing, k) for k in members}
        calls = sum(done.values())
        seconds = None
        if timing is not None:
            seconds = sum(timing.kernels[k] for k in members)
        bound, least = "", 0.0
        if machine is not None:
            part, launch = counts.part(first.workers), timing.launch if timing else 0
            bound, least = bound_of(part, machine, max(launch, LAUNCH))
        for k in members:
            floor[k] = done[k] * least
        rows.append(
            KernelReport(
                first.formula,
                first.over,
                tuple(dict.fromkeys(entries[k].stage for k in members if entries[k].stage)),
                calls,
                counts.operations * calls,
                counts.bytes * calls,
                seconds,
                bound,
                _share(calls * least, seconds, calls) if machine is not None else None,
                first.workers,
                _balance(timing, members, first.workers),
            )
        )
    return tuple(rows), tuple(floor)


def _calls(entry: Entry, timing: Timing | None, k: int) -> int:
    """How often a kernel is called, by all workers where each does some of the calls."""
    return (entry.times or 0) if timing is None or entry.apart else timing.calls[k]


def _share(least: float, seconds: float | None, calls: int) -> float | None:
    """The least time over the measured one, where the clock can tell."""
    told = seconds is not None and calls > 0 and seconds >= calls * LAUNCH
    return least / seconds if told and seconds else None


def _balance(timing: Timing | None, members: Sequence[int], workers: int) -> float | None:
    """The mean time of the workers over the longest."""
    if timing is None or workers == 1 or not (longest := sum(timing.kernels[k] for k in members)):
        return None
    return sum(sum(timing.workers[k]) for k in members) / workers / longest


def bound_of(counts: Counts, machine: Machine, launch: float) -> tuple[str, float]:
    """What bounds a kernel, and the least time of a call.

    >>> from codegen.machine import Level
    >>> slow = Machine("", 1e9, 8, (Level("L1", 1000, 4e9), Level("memory", 0, 1e9)), 1.0)
    >>> bound_of(Counts(900, 900, 500, 400, 4), slow, 1e-8)
    ('compute', 9e-07)
    >>> bound_of(Counts(900, 0, 800, 400, 4), slow, 1e-8)
    ('memory', 1.2e-06)
    >>> bound_of(Counts(1, 0, 8, 4, 4), slow, 1e-8)
    ('launch', 1e-08)
    """
    compute, memory = machine.seconds(counts.operations, counts.bytes, counts.itemsize)
    return max((("compute", compute), ("memory", memory), ("launch", launch)), key=lambda b: b[1])


# -- text ------------------------------------------------------------------------------------------
def make_report(
    f: Compiled,
    arrays: Sequence[Array] | None,
    dims: Mapping[Dim, int] | None,
    why: str = "",
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Report:
    """Count, and where there are values measure, what the kernels of a program do.

    Args:
        arrays: of the leaves; without them nothing is measured.
        dims:   None where they are not known.
        why:    what to say where nothing is measured.
        around: what the program runs in.
    """
    entries = entries_of(f, dims)
    machine: Machine | None = None
    timing: Timing | None = None
    rows: tuple[KernelReport, ...] = ()
    least: tuple[float, ...] = ()
    if not f.target.TIMED:
        why = "Not measured: kernels are timed on the target 'cpu' only."
    elif dims is not None:
        machine = this_machine()
        timing = None
        if arrays is not None:
            timing = f.timed(f.team_for(dims)).measure(arrays, dims, around)
    if dims is not None:
        rows, least = kernels_of(entries, dims, machine, timing)
    plan = plan_for(f, dims)
    sizes = typical_values(f.dims) if dims is None else dims
    workspace, live = plan.slot_offsets(sizes)[1], plan.live_bound(sizes)
    text = _head(f, plan, entries, sizes, (workspace, live))
    if machine is not None:
        text.append(f"machine    {machine}")
    if rows:
        text += [*_totals(rows, timing), "", *_table(rows)]
    report = Report("\n".join([*text, *(["", why] if why else [])]))
    report.kernels, report.machine = rows, machine
    report.times = timing.kernels if timing is not None else ()
    report.least = least if machine is not None else ()
    report.dims = {} if dims is None else {d.name: n for d, n in dims.items()}
    report.seconds = None if timing is None else timing.whole
    report.workspace, report.live = workspace, live
    report.workers, report.waiting = plan.workers, timing.waiting if timing is not None else ()
    if timing is not None:
        f.measured = report
    return report


def _head(
    f: Compiled,
    plan: Plan,
    entries: Sequence[Entry],
    sizes: Mapping[Dim, int],
    memory: tuple[int, int],
) -> list[str]:
    """Compilation, program and memory."""
    seconds = f.stages.seconds
    passes = ", ".join(f"{name} {spent:.3f}" for name, spent in seconds.items())
    team = f.stages.team if plan.workers > 1 else None
    loaded = f.loaded if team is None else team.loaded
    origin = "machine code from the cache" if loaded and loaded.from_cache else "compiled now"
    given = ", ".join(f"{printable(d.name)}={n}" for d, n in sizes.items())
    at = f" at {given}" if given else ""
    different = len({_alike(entry) for entry in entries})
    workspace, live = memory
    by = f", run by {plan.workers} workers" if plan.workers > 1 else ""
    return [
        f"compiled   in {sum(seconds.values()):.3f} s ({origin}): {passes}",
        f"program    kernel calls {len(entries)}, different kernels {different}{by}",
        f"memory     workspace {workspace} bytes{at}, live-set bound {live} bytes"
        f" ({workspace / max(live, 1):.2f} x)",
    ]


def _totals(rows: Sequence[KernelReport], timing: Timing | None) -> list[str]:
    operations, moved = sum(r.operations for r in rows), sum(r.bytes for r in rows)
    work = f"work       {quantity(operations)}FLOP, {quantity(moved)}B read and written"
    if timing is None:
        return [work]
    together, whole = sum(timing.kernels), max(timing.whole, 1e-12)
    told = [
        f"{work}; {quantity(operations / whole)}FLOP/s",
        f"time       {duration(timing.whole)} a call; its kernels together {duration(together)} "
        f"({together / whole:.0%}), medians of {timing.runs} runs",
    ]
    if len(timing.waiting) > 1:
        waits = " and ".join(f"{s / whole:.0%}" for s in timing.waiting)
        told.append(f"workers    wait for each other {waits} of the time")
    return told


def _table(rows: Sequence[KernelReport]) -> list[str]:
    total = sum(r.seconds or 0.0 for r in rows)
    shown, hidden = list(rows), []
    if len(rows) > SCREEN:
        weight = {k: (r.seconds or 0.0, r.operations + r.bytes) for k, r in enumerate(rows)}
        kept = set(sorted(weight, key=lambda k: weight[k], reverse=True)[: SCREEN - 1])
        shown = [r for k, r in enumerate(rows) if k in kept]
        hidden = [r for k, r in enumerate(rows) if k not in kept]
    titles = ["stage", "calls", "flops", "bytes", "time", "share", "bound", "roof"]
    titles += ["by", "over", "kernel"]
    cells = [titles, *(_cells(r, total) for r in shown)]
    if hidden:
        spent = sum(r.seconds or 0.0 for r in hidden)
        rest = ["..", str(sum(r.calls for r in hidden))]
        rest.append(quantity(sum(r.operations for r in hidden)))
        rest.append(quantity(sum(r.bytes for r in hidden)))
        rest += [duration(spent), f"{spent / total:.0%}"] if total else ["", ""]
        cells.append([*rest, "", "", "", "", f"{len(hidden)} more kernels"])
    if all(r.workers == 1 for r in rows):
        cells = [row[:BY] + row[BY + 1 :] for row in cells]
        titles = cells[0]
    wide = [max(len(row[k]) for row in cells) for k in range(len(titles))]
    left = [k for k, title in enumerate(titles) if title in ("bound", "over", "kernel")]
    table = [
        "  ".join(
            text.ljust(w) if k in left else text.rjust(w)
            for k, (text, w) in enumerate(zip(row, wide, strict=True))
        ).rstrip()
        for row in cells
    ]
    notes = [
        "",
        "bound: the largest of flops / peak, bytes / rate of the nearest memory that holds them, "
        "and one launch;",
        "roof: that time over the measured one, above 100% where a part of the memory lay nearer. "
        "A function",
        "such as exp counts the operations of its polynomial.",
    ]
    if "by" in titles:
        notes += ["by: workers, and the mean of their times over the longest, which is the time."]
    return [*table, *notes]


def _cells(row: KernelReport, total: float) -> list[str]:
    stages = row.stages[0] if row.stages else ""
    more = f" x{len(row.stages)}" if len(row.stages) > 1 else ""
    return [
        f"{stages}{more}",
        str(row.calls),
        quantity(row.operations),
        quantity(row.bytes),
        "" if row.seconds is None else duration(row.seconds),
        "" if row.seconds is None or not total else f"{row.seconds / total:.0%}",
        row.bound,
        "" if row.roofline is None else f"{row.roofline:.0%}",
        f"{row.workers}" + ("" if row.balance is None else f" {row.balance:.0%}"),
        cut(row.over, WIDE["over"]),
        row.formula,
    ]


def quantity(count: float) -> str:
    """A number with a letter for thousands.

    >>> [quantity(n) for n in (0, 999, 12345, 2.5e9)]
    ['0 ', '999 ', '12.3 k', '2.5 G']
    """
    for letter in ("", "k", "M", "G", "T"):
        if abs(count) < 999.5 or letter == "T":
            return f"{count:.3g} {letter}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """A time with its unit; what the clock cannot tell from nothing has none.

    >>> [duration(s) for s in (1e-9, 3.21e-8, 4.5e-6, 0.0123, 2.0)]
    ['below the clock', '32.1 ns', '4.5 us', '12.3 ms', '2 s']
    """
    if seconds < LAUNCH:
        return "below the clock"
    for unit, size in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
