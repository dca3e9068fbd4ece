"""What this machine can do at best, measured once and kept in the cache folder: its roofline.

A kernel that does `f` operations on `b` bytes takes at least max(f / peak, b / rate), where the
rate is that of the nearest level of the memory that holds the b bytes (Williams, Waterman and
Patterson 2009).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from codegen import cache as folders

# Seconds of each measurement; all together take less than half a second on a quiet machine.
SECONDS = 0.02
# Wall time over processor time above which others were on the core: such peaks are not kept.
BUSY = 1.1
# A last cache up to this size has the memory measured beyond it; a larger one stands for both.
MOST_CACHE = 64 << 20


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the memory: what it holds in bytes (0: everything), and bytes per second."""

    name: str
    size: int
    rate: float


@dataclass(frozen=True, slots=True)
class Machine:
    """Peaks of one core.

    Fields:
        name:   of the processor.
        flops:  operations per second on float32; a fused multiply-add counts two.
        lanes:  float32 numbers in a vector.
        levels: of the memory, the nearest first.
        busy:   wall time over processor time while it was measured.
    """

    name: str
    flops: float
    lanes: int
    levels: tuple[Level, ...]
    busy: float

    def level(self, size: float) -> Level:
        """The nearest level that holds so many bytes."""
        return next((x for x in self.levels if size <= x.size), self.levels[-1])

    def seconds(self, operations: float, moved: float, itemsize: int = 4) -> tuple[float, float]:
        """The least time of operations on numbers of this size, and of moving so many bytes."""
        return operations * itemsize / (4 * self.flops), moved / self.level(moved).rate

    def __str__(self) -> str:
        rates = ", ".join(
            f"{x.name}{f' {_size(x.size)}' if x.size else ''} {x.rate / 1e9:.0f}"
            for x in self.levels
        )
        return f"{self.name}, one core: {self.flops / 1e9:.0f} GFLOP/s float32, GB/s: {rates}"


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


@cache
def this_machine() -> Machine:
    """The peaks of this machine: from the cache folder, else measured and put there."""
    folder = folders.folder().path
    if folder is None:
        return measured()
    digest = hashlib.sha256(f"peaks {folders.fingerprint()}".encode()).hexdigest()
    path = folder / f"sg_{digest[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _read(path)
    found = measured()
    if found.busy < BUSY:
        with contextlib.suppress(OSError):
            folders.write(path, json.dumps(asdict(found)))
    return found


def _read(path: Path) -> Machine:
    """Raises: OSError, ValueError, KeyError or TypeError where the file holds no peaks."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    levels = tuple(
        Level(str(x["name"]), int(x["size"]), float(x["rate"])) for x in stored["levels"]
    )
    found = Machine(
        str(stored["name"]), float(stored["flops"]), int(stored["lanes"]), levels, 1.0
    )
    if not levels or not found.flops > 0 or not all(x.rate > 0 for x in levels):
        raise ValueError(f"no peaks: {path}")
    return found


def measured(seconds: float = SECONDS) -> Machine:
    """Measure the peaks of one core, for about so many seconds each."""
    from codegen.hardware import fma_peak
    from codegen.streams import Streams, caches, levels

    wall, busy = time.perf_counter(), time.process_time()
    flops, lanes = fma_peak(2 * seconds)
    streams, sets, sizes = Streams(seconds), levels(), caches()
    found = [
        Level(name, size, streams.rate(2, 1, sets[name]))
        for name, size in zip(("L1", "L2", "L3"), sizes, strict=True)
    ]
    if sizes[2] <= MOST_CACHE:
        found.append(Level("memory", 0, streams.rate(2, 1, sets["memory"])))
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    return Machine(_processor(), flops, lanes, tuple(found), wall / max(busy, 1e-9))


def _processor() -> str:
    """What the system calls the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
