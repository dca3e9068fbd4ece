"""How long a call takes: `f.bench()`. Compilation, the first calls and the steady state apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from codegen.blas import one_blas_thread

if TYPE_CHECKING:
    from codegen.compiled import Compiled

# Blocks of calls, and about how long each takes in seconds: long beside the clock's resolution,
# short beside what else happens on a machine.
BLOCKS, BLOCK_SECONDS = 21, 0.02
# The program is warm when a block is no more than this slower than the best one so far, or after so
# many seconds.
WARM, MOST_WARM_SECONDS = 1.1, 0.5
# Above this ratio of wall to processor time, or this spread between quartiles, others were at work.
BUSY, SPREAD = 1.1, 0.1


class Bench(dict[str, float]):
    """Seconds of a call, by name; printed, a few lines.

    Keys: `compile`: of all passes, `first`: the first call here, `warm_up`: all calls before the
    steady state, `median`, `lower`, `upper` (quartiles) and `least` of the steady state, `program`:
    the median without what Python does around the program; `calls`: in the steady state, `spread`:
    (upper - lower) / median, `busy`: wall over processor time.
    """

    @property
    def warning(self) -> str:
        """Why these figures should not be trusted; empty where nothing speaks against them."""
        found = []
        if self.get("busy", 1.0) > BUSY:
            found.append(f"others were on the processor (wall / CPU time {self['busy']:.2f})")
        if self["spread"] > SPREAD:
            found.append(f"blocks differ by {self['spread']:.0%} between quartiles")
        return f"noisy machine: {'; '.join(found)}. Repeat on a quiet one." if found else ""

    def __str__(self) -> str:
        from codegen.reporting import duration

        shown = {name: duration(self[name]) for name in self if name not in ("calls", "spread")}
        lines = [
            f"compile  {shown['compile']}",
            f"warm-up  {shown['warm_up']}, of which the first call {shown['first']}",
            f"call     {shown['median']} median, {shown['lower']} to {shown['upper']} between "
            f"quartiles ({self['spread']:.1%}), least {shown['least']}, "
            f"of {self['calls']:.0f} calls",
            f"program  {shown['program']} median, without Python around it",
        ]
        return "\n".join([*lines, *([self.warning] if self.warning else [])])

    def __repr__(self) -> str:
        return str(self)


def bench(f: Compiled, values: Mapping[str, Any]) -> Bench:
    """Time calls of a program; what it updates is afterwards what it was before."""
    first = _seconds(lambda: f(**values), 1)[0]
    once = min(_seconds(lambda: f(**values), 1)[0] for _ in range(2))
    repeat = max(1, int(BLOCK_SECONDS / max(once, 1e-7)))
    warm, best = first, float("inf")
    while warm < MOST_WARM_SECONDS:
        block, _ = _seconds(lambda: f(**values), repeat)
        warm += block * repeat
        if block < best * WARM and best < float("inf"):
            break
        best = min(best, block)
    blocks = [_seconds(lambda: f(**values), repeat) for _ in range(BLOCKS)]
    walls = sorted(wall for wall, _ in blocks)
    lower, middle, upper = statistics.quantiles(walls, n=4)
    cpu = sum(spent for _, spent in blocks)
    found = Bench(
        compile=sum(f.stages.seconds.values()),
        first=first,
        warm_up=warm,
        median=middle,
        lower=lower,
        upper=upper,
        least=walls[0],
        program=_program(f, repeat),
        calls=float(repeat * BLOCKS),
        spread=(upper - lower) / middle,
    )
    if f.target.TIMED:  # several threads have more processor time than wall time, a device less
        found["busy"] = max(sum(walls) / max(cpu, 1e-9), 1.0)
    return found


def _seconds(work: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Wall and processor time of one of several calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat


def _program(f: Compiled, repeat: int) -> float:
    """The median time of the program on the last call's memory."""
    run = f.last_call().run
    with one_blas_thread():
        return statistics.median(_seconds(run, repeat)[0] for _ in range(BLOCKS // 2))
