"""A program that times its own kernels: the same calls, and after each one a lap of a clock.

    lap:  t = now();  cell.time += t - clock;  cell.laps += 1;  clock = t

So every kernel is timed where it stands, with the caches as the kernels before it left them. A lap
is a kernel like any other, so that targets print it as they print everything. The program begins
with laps that calibrate: one that starts the clock, one with nothing before it, which tells what a
lap costs itself, and one behind a kernel of a single element, which tells what a call costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from codegen.blas import one_blas_thread
from codegen.loop_ir import Affine, Apply, Buffer, Kernel, Let, Literal, Load, Store
from codegen.memory import InnerPlace, Invoked, InvokedLoop, Plan
from symgrad.graph.dtypes import INT64

if TYPE_CHECKING:
    from codegen.compiled import Compiled
    from codegen.loading import Loaded
    from codegen.state import Array
    from symgrad.graph.dims import Dim

# The operation that reads the clock.
CLOCK = "now"
# Runs of a program that is timed, and about how long they take together in seconds.
LEAST_RUNS, MOST_RUNS, SECONDS = 5, 3000, 0.4
# Cells that calibrate: the start, a lap alone, a call of a kernel of one element.
START, ALONE, SMALLEST = range(3)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call of a program.

    Fields:
        kernels: in each kernel call of the plan, recurrences included, in order: all its steps.
        calls:   how often each of them was called.
        launch:  the least time of a call of a kernel of one element.
        whole:   of the program as it is, without a clock.
        runs:    of which these are the medians.
    """

    kernels: tuple[float, ...]
    calls: tuple[int, ...]
    launch: float
    whole: float
    runs: int


def _kernel(formula: str, buffers: int, *body: Let | Store) -> Kernel:
    return Kernel("clock", tuple(Buffer(f"x{k}", INT64, k) for k in range(buffers)), body, formula)


def _lap() -> Kernel:
    clock, cell = (Buffer(f"x{k}", INT64, k) for k in range(2))
    first, second = Affine(), Affine((), 1)
    return _kernel(
        "lap",
        2,
        Let("v0", INT64, Apply(CLOCK)),
        Let("v1", INT64, Load(clock, first)),
        Let("v2", INT64, Apply("sub", ("v0", "v1"))),
        Let("v3", INT64, Load(cell, first)),
        Let("v4", INT64, Apply("add", ("v3", "v2"))),
        Store(cell, first, "v4"),
        Let("v5", INT64, Load(cell, second)),
        Let("v6", INT64, Literal(1)),
        Let("v7", INT64, Apply("add", ("v5", "v6"))),
        Store(cell, second, "v7"),
        Store(clock, first, "v0"),
    )


def _smallest() -> Kernel:
    cell = Buffer("x0", INT64, 0)
    one = Let("v0", INT64, Load(cell, Affine((), 2)))
    return _kernel(
        "one element", 1, one, Let("v1", INT64, Apply("add", ("v0", "v0"))),
        Store(cell, Affine((), 2), "v1"),
    )  # fmt: skip


# The entry of the clock (0) or of cell k (1 + k), in the program's table or in that of a loop.
_Entries: TypeAlias = Callable[[int], int]


def timed(plan: Plan) -> tuple[Plan, int]:
    """A plan with laps, and how many cells it has; their entries follow the plan's own."""
    lap, count = _lap(), SMALLEST + 1

    def ended(entry: _Entries, cell: int) -> Invoked:
        return Invoked(lap, (entry(0), entry(1 + cell)), ())

    def block(
        calls: Sequence[Invoked | InvokedLoop], scope: _Entries
    ) -> tuple[Invoked | InvokedLoop, ...]:
        nonlocal count
        done: list[Invoked | InvokedLoop] = []
        for call in calls:
            if isinstance(call, InvokedLoop):
                done.append(loop(call, scope))
                continue
            done += [call, ended(scope, count)]
            count += 1
        return tuple(done)

    def loop(call: InvokedLoop, scope: _Entries) -> InvokedLoop:
        places, entries = list(call.loop.places), list(call.entries)
        known: dict[int, int] = {}

        def entry(k: int) -> int:
            if k not in known:
                known[k] = len(places)
                places.append(InnerPlace(len(entries), 0))
                entries.append(scope(k))
            return known[k]

        inner = block(call.loop.calls, entry)
        new = replace(call.loop, calls=inner, places=tuple(places))
        return replace(call, loop=new, entries=tuple(entries))

    first = plan.first_slot + len(plan.slots)

    def here(k: int) -> int:
        return first + k

    smallest = Invoked(_smallest(), (here(1 + SMALLEST),), ())
    head = [ended(here, START), ended(here, ALONE), smallest, ended(here, SMALLEST)]
    body = block(plan.calls, here)
    return replace(plan, calls=(*head, *body)), count


class Timed:
    """The timed form of a program; made once, kept in the cache folder as programs are."""

    def __init__(self, f: Compiled) -> None:
        self.f = f
        self.plan, self.cells = timed(f.stages.plan)
        source = f.target.print_program(self.plan, f.dims, f.stages.schedule.graph.key)
        self.loaded: Loaded = f.target.load_program(source, f"timed {f.stages.schedule.graph.key}")

    def measure(
        self,
        arrays: Sequence[Array],
        dims: Mapping[Dim, int],
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> Timing:
        """Run both programs in turn on these leaves; what they update is a copy."""
        from codegen.runtime.clock import TICK

        cells: npt.NDArray[np.int64] = np.zeros((1 + self.cells, 8), np.int64)
        plain = self.f.on_copies(arrays, dims)
        laps = self.f.on_copies(arrays, dims, self.plan, self.loaded)
        laps.extend([row.ctypes.data for row in cells])  # type: ignore[attr-defined]
        wholes: list[float] = []
        rows: list[npt.NDArray[np.int64]] = []
        end = perf_counter() + SECONDS
        with around(), one_blas_thread():
            plain.run(), laps.run()
            while len(rows) < LEAST_RUNS or (perf_counter() < end and len(rows) < MOST_RUNS):
                start = perf_counter()
                plain.run()
                wholes.append(perf_counter() - start)
                cells[:] = 0
                laps.run()
                rows.append(cells[1:, :2].copy())
        times, counts = np.median([r[:, 0] for r in rows], axis=0), rows[-1][:, 1]
        smallest = min(int(r[SMALLEST, 0] - r[ALONE, 0]) for r in rows)
        seconds = np.maximum(times - counts * times[ALONE], 0.0) * TICK
        own = slice(SMALLEST + 1, None)
        return Timing(
            tuple(seconds[own].tolist()),
            tuple(counts[own].tolist()),
            max(smallest, 0) * TICK,
            float(np.median(wholes)),
            len(rows),
        )
