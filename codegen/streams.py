"""What each level of the memory gives at best to loops that only read and write, measured.

A stream reads r arrays and writes w arrays of float32, several vectors of an array per turn, of 512
or 256 bits, whichever is faster: as a person would write it who knows the processor. What is
written is the sum of what was read; where nothing is written, the sum is kept. Written as LLVM,
which no optimiser sees. Stores are ordinary ones: they fetch the line that they write, so that
writing to memory moves every byte twice, here and in what is compared with this.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

# Vectors of an array in one turn of the loop: where all are summed, more sums hide their latency.
UNROLLED = 4
UNROLLED_SUMS = 12
# Bytes of a cache line.
LINE = 64
# The caches of a processor that does not tell: 32 KiB, 1 MiB, 32 MiB.
UNKNOWN_CACHES = (32 << 10, 1 << 20, 32 << 20)
# The largest working set, in bytes.
MOST = 384 << 20


def caches() -> tuple[int, int, int]:
    """Bytes of the caches for data, of all levels; assumed where the system does not tell."""
    sizes = list(UNKNOWN_CACHES)
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    for entry in folder.glob("index*"):
        level = int((entry / "level").read_text())
        if (entry / "type").read_text().strip() != "Instruction" and 1 <= level <= 3:
            sizes[level - 1] = int((entry / "size").read_text().strip().rstrip("K")) << 10
    return sizes[0], sizes[1], sizes[2]


def levels() -> dict[str, int]:
    """Working sets in bytes: half of each cache (at most 24 MiB of a shared one), and memory."""
    first, second, third = caches()
    return {
        "L1": first // 2,
        "L2": second // 2,
        "L3": min(third // 2, 24 << 20),
        "memory": min(3 * third // 2, MOST),
    }


def aligned(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """An array that begins with a cache line."""
    count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(count + LINE, np.uint8)
    raw.fill(0)  # untouched pages would all be one page of zeros
    first = -raw.ctypes.data % LINE
    array: npt.NDArray[Any] = raw[first : first + count].view(dtype).reshape(shape)
    return array


def machine() -> llvm.TargetMachine:
    """LLVM's view of this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


@dataclass
class Streams:
    """Measured rates by number of arrays read and written and by working set.

    seconds: of each measurement.
    """

    seconds: float = 0.05
    known: dict[tuple[int, int, int], float] = field(default_factory=dict)
    engines: list[Any] = field(default_factory=list)

    def rate(self, reads: int, writes: int, size: int) -> float:
        """Bytes per second of the stream whose arrays together have `size` bytes."""
        key = (reads, writes, size)
        if key not in self.known:
            self.known[key] = self._measure(*key)
        return self.known[key]

    def _measure(self, reads: int, writes: int, size: int) -> float:
        features = llvm.get_host_cpu_features()
        widths = [16] if features.get("avx512f") else []
        widths += [8] if features.get("avx") else [4]
        turn = widths[0] * _unrolled(writes)
        count = max(size // (4 * (reads + writes) * turn), 1) * turn
        arrays = [aligned((count,), np.float32) for _ in range(reads + writes)]
        places = np.array([a.ctypes.data for a in arrays], np.int64)
        return max(self._best(places, reads, count, width) for width in widths)

    def _best(self, places: np.ndarray[Any, Any], reads: int, count: int, width: int) -> float:
        module = llvm.parse_assembly(_stream(reads, len(places) - reads, width))
        module.verify()
        engine = llvm.create_mcjit_compiler(module, machine())
        engine.finalize_object()
        self.engines.append(engine)
        kind = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        stream = kind(engine.get_function_address("stream"))
        turns = count // (width * _unrolled(len(places) - reads))
        total = 4 * count * len(places)
        return total / least_time(
            lambda repeats: stream(places.ctypes.data, turns, repeats), self.seconds
        )


def least_time(run: Any, seconds: float, at_least: int = 4) -> float:
    """The least time of one repetition of `run(repetitions)`, in blocks of about a millisecond."""
    run(1)
    start = time.perf_counter()
    run(1)
    once = max(time.perf_counter() - start, 1e-8)
    repeats = max(1, int(1e-3 / once))
    best, end, done = np.inf, time.perf_counter() + seconds, 0
    while time.perf_counter() < end or done < at_least:
        start = time.perf_counter()
        run(repeats)
        best = min(best, (time.perf_counter() - start) / repeats)
        done += 1
        repeats = max(1, min(repeats * 2, int(1e-3 / best)))
    return float(best)


def _unrolled(writes: int) -> int:
    return UNROLLED if writes else UNROLLED_SUMS


def _stream(reads: int, writes: int, width: int) -> str:
    """Float stream(address of addresses, turns, repetitions), as LLVM text."""
    vector = f"<{width} x float>"
    lines = ["define float @stream(i64 %table, i64 %turns, i64 %repeats) {", "entry:"]
    lines.append("  %entries = inttoptr i64 %table to ptr")
    for a in range(reads + writes):
        lines += [
            f"  %e{a} = getelementptr i64, ptr %entries, i64 {a}",
            f"  %n{a} = load i64, ptr %e{a}",
            f"  %p{a} = inttoptr i64 %n{a} to ptr",
        ]
    unrolled = _unrolled(writes)
    sums = range(unrolled if not writes else 0)
    lines += ["  br label %outer", "outer:"]
    lines.append("  %r = phi i64 [ 0, %entry ], [ %r1, %after ]")
    lines += [
        f"  %o{k} = phi {vector} [ zeroinitializer, %entry ], [ %s{k}, %after ]" for k in sums
    ]
    lines += ["  br label %loop", "loop:", "  %t = phi i64 [ 0, %outer ], [ %t1, %loop ]"]
    lines += [f"  %a{k} = phi {vector} [ %o{k}, %outer ], [ %s{k}, %loop ]" for k in sums]
    lines.append(f"  %base = mul i64 %t, {unrolled}")
    for k in range(unrolled):
        lines.append(f"  %i{k} = add i64 %base, {k}")
        total = f"%a{k}" if not writes else ""
        for a in range(reads):
            lines += [
                f"  %g{k}_{a} = getelementptr {vector}, ptr %p{a}, i64 %i{k}",
                f"  %v{k}_{a} = load {vector}, ptr %g{k}_{a}, align 64",
            ]
            if not total:
                total = f"%v{k}_{a}"
                continue
            name = f"%s{k}" if not writes and a == reads - 1 else f"%w{k}_{a}"
            lines.append(f"  {name} = fadd {vector} {total}, %v{k}_{a}")
            total = name
        for a in range(reads, reads + writes):
            lines += [
                f"  %g{k}_{a} = getelementptr {vector}, ptr %p{a}, i64 %i{k}",
                f"  store {vector} {total or 'zeroinitializer'}, ptr %g{k}_{a}, align 64",
            ]
    lines += [
        "  %t1 = add i64 %t, 1",
        "  %more = icmp slt i64 %t1, %turns",
        "  br i1 %more, label %loop, label %after",
        "after:",
        "  %r1 = add i64 %r, 1",
        "  %again = icmp slt i64 %r1, %repeats",
        "  br i1 %again, label %outer, label %done",
        "done:",
    ]
    total = "zeroinitializer"
    for k in sums:
        lines.append(f"  %z{k} = fadd {vector} {total}, %s{k}")
        total = f"%z{k}"
    lines += [
        f"  %f = extractelement {vector} {total}, i32 0",
        "  ret float %f",
        "}",
    ]
    return "\n".join(lines)
