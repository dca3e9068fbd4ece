"""Contestants in turn on one core or on several: the blocks of all of them, interleaved."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from codegen.hardware import fma_peak
from tests.bench import workloads

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("numpy", "jax", "torch", "pytensor")
#: The modules of `tests.bench.contestants` by kind of workload and library; ours first.
CONTESTANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "training": {
        "symgrad": ("symgrad_fit",),
        "numpy": ("numpy_hand",),
        "jax": ("jax_scan", "jax_step"),
        "torch": ("torch_eager",),
        "pytensor": ("pytensor_step",),
    },
    "attention": {
        "symgrad": ("symgrad_fit", "symgrad_einsum"),
        "numpy": (),
        "jax": ("jax_scan", "jax_step"),
        "torch": ("torch_eager",),
        "pytensor": (),
    },
    "recurrent": {
        "symgrad": ("symgrad_fit",),
        "numpy": ("numpy_recurrent",),
        "jax": ("jax_scan", "jax_step"),
        "torch": ("torch_eager",),
        "pytensor": (),
    },
    "tagger": {
        "symgrad": ("symgrad_fit",),
        "numpy": (),
        "jax": ("jax_scan", "jax_step"),
        "torch": ("torch_eager", "torch_packed"),
        "pytensor": (),
    },
    "hessian": {
        "symgrad": ("symgrad_hessian",),
        "numpy": ("numpy_hessian",),
        "jax": ("jax_hessian",),
        "torch": ("torch_hessian",),
        "pytensor": ("pytensor_hessian",),
    },
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of one contestant; times in seconds, memory in MB.

    Attributes:
        step: median over blocks of the wall time of a step.
        ratio: median over rounds of our step time to this contestant's, in the same round.
        busy: wall time over CPU time: on one thread how contended the core was; of n threads that
            work all the time 1/n.
        compile: from the data to the end of the first epoch, less the time of an epoch.
        cold: from the start of the process to the end of the first epoch, caches empty.
        warm: the same in a second process, with the caches that the first one left.
        memory: peak resident size.
        growth: of the resident size, from the end of the first epoch to the end of the race.
        loss: mean loss of the epoch at which the contestants are compared.
    """

    name: str
    step: float
    ratio: float
    busy: float
    compile: float
    cold: float
    warm: float
    memory: float
    growth: float
    loss: float


def race(name: str, peers: Sequence[str], rounds: int = 15, threads: int = 1) -> str:
    """Run a workload against the peers that are installed and return the table.

    Args:
        name: a workload of `workloads.SPECIFICATIONS`.
        peers: of `PEERS`; one that is not installed is left out and named below the table.
        rounds: blocks of each contestant.
        threads: of every contestant, on as many cores.
    """
    entries = measure(name, peers, rounds, threads)
    workload = workloads.make(name)
    spec = workload.specification
    peak, width = fma_peak()
    peak *= threads
    each = "one thread" if threads == 1 else f"{threads} threads of each contestant"
    lines = [
        f"{name}: {spec}, {spec.flops / 1e6:.2f} MFLOP in products per step; "
        f"{'core' if threads == 1 else 'cores'} {pin(threads)}, "
        f"{each}, FMA peak {peak / 1e9:.0f} GFLOP/s ({width} lanes)",
        "",
        *_table(entries, spec.flops, peak),
        "",
        best_peer(entries),
        _agreement(entries, spec.agree),
    ]
    lines += [f"{peer}: not installed, left out" for peer in peers if not find_spec(peer)]
    return "\n".join(lines)


def best_peer(entries: Sequence[Entry]) -> str:
    """Our step and growth beside the best of the others', in words."""
    own, others = entries[0], [e for e in entries if not e.name.startswith("symgrad")]
    if not others:
        return "no peer ran"
    fast = max(others, key=lambda e: e.ratio)
    lean = min(others, key=lambda e: e.growth)
    return (
        f"best peer {fast.name.replace('_', ' ')}: symgrad takes {fast.ratio:.2f} x its step\n"
        f"growth of memory after the first epoch: symgrad {own.growth:.1f} MB, "
        f"the least of the others {lean.growth:.1f} MB ({lean.name.replace('_', ' ')})"
    )


def speed(peers: Sequence[str], rounds: int = 15, threads: int = 1) -> str:
    """Run every workload and return one Markdown table: our step and the peers' over ours."""
    present = [peer for peer in peers if find_spec(peer)]
    lines = [
        f"| workload | a step of symgrad | {' | '.join(present)} |",
        f"|---|---:|{'---:|' * len(present)}",
    ]
    for name, spec in workloads.SPECIFICATIONS.items():
        entries = measure(name, present, rounds, threads)
        _agreement(entries, spec.agree)
        ratios = {e.name: 1 / e.ratio for e in entries}
        own = [CONTESTANTS[spec.kind][peer] for peer in present]
        best = [f"{min(ratios[c] for c in names):.2f} x" if names else "" for names in own]
        lines.append(
            f"| `{name}`: {spec} | {entries[0].step * 1e6:.4g} us | {' | '.join(best)} |"
        )
    return "\n".join(lines)


def measure(name: str, peers: Sequence[str], rounds: int, threads: int = 1) -> list[Entry]:
    """Measure symgrad, and the peers that are installed, on a workload."""
    workload = workloads.make(name, threads)
    modules = CONTESTANTS[workload.specification.kind]
    present = ["symgrad", *(peer for peer in peers if find_spec(peer))]
    contestants = [module for library in present for module in modules[library]]
    pin(threads)
    for package in ("symgrad", "codegen", "tests/bench"):  # bytecode, as an installation has it
        compileall.compile_dir(ROOT / package, quiet=2)
    with tempfile.TemporaryDirectory(prefix="symgrad-bench-") as folder:
        file = Path(folder) / "workload.npz"
        workloads.save(workload, file)
        starts = {c: _starts(c, workload, file) for c in contestants}
        return _interleave(contestants, workload, file, rounds, starts)


def pin(threads: int = 1) -> str:
    """Bind this process, and so its children, to so many cores where the system lets us.

    Raises: SystemExit when there are fewer cores: contestants would wait for each other.
    """
    if not hasattr(os, "sched_setaffinity"):
        return "not pinned"
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    if len(cores) < threads:
        raise SystemExit(
            f"bench: --threads {threads} needs as many cores; this process may use {len(cores)}."
        )
    os.sched_setaffinity(0, cores)
    return ", ".join(map(str, cores))


def environment(caches: Path, threads: int = 1) -> dict[str, str]:
    """So many threads for every library, and caches in this folder."""
    counts = {
        f"{library}_NUM_THREADS": str(threads)
        for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
    }
    several = "true" if threads > 1 else "false"
    return {
        **os.environ,
        **counts,
        "PYTHONPATH": str(ROOT),
        "SYMGRAD_CACHE_DIR": str(caches / "symgrad"),
        "BENCH_JAX_CACHE": str(caches / "jax"),
        "BENCH_PYTENSOR_CACHE": str(caches / "pytensor"),
        # XLA's pool has as many threads as this process may use cores, see `pin`.
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={several} "
        f"intra_op_parallelism_threads={threads}",
    }


def _spawn(
    contestant: str, workload: workloads.Workload, file: Path, *flags: str
) -> subprocess.Popen[str]:
    told = [contestant, workload.name, str(file), str(workload.threads), *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.contestant", *told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(file.parent, workload.threads),
        cwd=file.parent,
    )


def _answer(process: subprocess.Popen[str], contestant: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"bench: {contestant} ended with status {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _starts(contestant: str, workload: workloads.Workload, file: Path) -> tuple[float, float]:
    """Seconds from starting a process to the end of its first epoch: cold, then warm."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        process = _spawn(contestant, workload, file, "--first")
        _answer(process, contestant)
        taken.append(time.perf_counter() - start)
        process.communicate()
    return taken[0], min(taken[1:])


def _interleave(
    contestants: Sequence[str],
    workload: workloads.Workload,
    file: Path,
    rounds: int,
    starts: dict[str, tuple[float, float]],
) -> list[Entry]:
    with contextlib.ExitStack() as stack:
        processes = {}
        begun = {}
        for contestant in contestants:
            # A cache of its own, empty: this process is the one whose compile time is quoted.
            own = file.parent / f"caches-{contestant}"
            own.mkdir()
            copy = own / file.name
            copy.hardlink_to(file)
            process = stack.enter_context(_spawn(contestant, workload, copy))
            stack.callback(process.kill)
            begun[contestant] = _answer(process, contestant) | _answer(process, contestant)
            processes[contestant] = process
        walls: dict[str, list[float]] = {c: [] for c in contestants}
        cpus: dict[str, list[float]] = {c: [] for c in contestants}
        for _ in range(rounds):
            for contestant, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("block\n")
                process.stdin.flush()
                answer = _answer(process, contestant)
                walls[contestant].append(answer["wall"])
                cpus[contestant].append(answer["cpu"])
        entries = []
        for contestant, process in processes.items():
            assert process.stdin is not None
            process.stdin.close()
            sizes = _answer(process, contestant)
            ours = walls[contestants[0]]
            ratios = [a / b for a, b in zip(ours, walls[contestant], strict=True)]
            busy = [w / c for w, c in zip(walls[contestant], cpus[contestant], strict=True)]
            cold, warm = starts[contestant]
            entries.append(
                Entry(
                    contestant,
                    statistics.median(walls[contestant]),
                    statistics.median(ratios),
                    statistics.median(busy),
                    begun[contestant]["compile"],
                    cold,
                    warm,
                    sizes["memory"],
                    sizes["growth"],
                    begun[contestant]["losses"][-1],
                )
            )
        return entries


_COLUMNS: tuple[tuple[str, Callable[[Entry, int, float], str]], ...] = (
    ("contestant", lambda e, flops, peak: e.name.replace("_", " ")),
    ("step us", lambda e, flops, peak: f"{e.step * 1e6:.2f}"),
    ("symgrad / it", lambda e, flops, peak: f"{e.ratio:.2f}"),
    ("of FMA peak", lambda e, flops, peak: f"{flops / e.step / peak:.1%}"),
    ("/ flop floor", lambda e, flops, peak: f"{e.step * peak / flops:.2f}"),
    ("compile s", lambda e, flops, peak: f"{e.compile:.2f}"),
    ("first step cold s", lambda e, flops, peak: f"{e.cold:.2f}"),
    ("warm s", lambda e, flops, peak: f"{e.warm:.2f}"),
    ("peak MB", lambda e, flops, peak: f"{e.memory:.0f}"),
    ("grows MB", lambda e, flops, peak: f"{e.growth:.1f}"),
    ("loss", lambda e, flops, peak: f"{e.loss:.6f}"),
    ("wall / CPU", lambda e, flops, peak: f"{e.busy:.2f}"),
)


def _table(entries: Sequence[Entry], flops: int, peak: float) -> list[str]:
    rows = [[title for title, _ in _COLUMNS]]
    rows += [[show(entry, flops, peak) for _, show in _COLUMNS] for entry in entries]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(t.rjust(w) for t, w in zip(r, widths, strict=True)) + " |" for r in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _agreement(entries: Sequence[Entry], epoch: int) -> str:
    """Say how far the losses differ; beyond 1e-3 the times compare nothing."""
    losses = [entry.loss for entry in entries]
    spread = (max(losses) - min(losses)) / abs(losses[0])
    if not spread <= 1e-3:
        raise SystemExit(
            f"bench: the losses of epoch {epoch} differ by {spread:.1e} relative (limit 1e-3): "
            + ", ".join(f"{e.name} {e.loss:.6f}" for e in entries)
        )
    return f"losses of epoch {epoch} agree to {spread:.1e} relative"
