"""How cost grows with the size of a program: long chains, deep networks, and plain importing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def chain(sizes: tuple[int, ...] = (10_000, 30_000, 100_000)) -> str:
    """Seconds to build, differentiate and evaluate a chain of that many elementwise nodes."""
    import symgrad as sg

    lines = ["elementwise nodes | build s | differentiate s | evaluate s | all s | us per node"]
    for size in sizes:
        start = time.perf_counter()
        x = sg.input("x", (7,))
        h = x
        for i in range(size // 4):  # four nodes a turn, all distinct
            h = sg.tanh(sg.sin(h) * (0.9 + 1e-6 * i) + x)
        loss = h.sum()
        built = time.perf_counter()
        gradient = sg.grad(loss, x)
        differentiated = time.perf_counter()
        value = sg.evaluate(gradient, {x: np.linspace(-1, 1, 7, dtype=np.float32)})
        evaluated = time.perf_counter()
        if not np.all(np.isfinite(value)):
            raise SystemExit(f"bench: the gradient of the chain of {size} is not finite")
        lines.append(
            f"{size:>17,} | {built - start:7.2f} | {differentiated - built:15.2f} | "
            f"{evaluated - differentiated:10.2f} | {evaluated - start:5.2f} | "
            f"{(evaluated - start) / size * 1e6:11.1f}"
        )
    return "\n".join(lines)


def layers(depths: tuple[int, ...] = (10, 100, 1000)) -> str:
    """Seconds to differentiate and to compile the training step of a deep tanh network."""
    import symgrad as sg

    lines = ["layers | write and differentiate s | compile s | call us"]
    for depth in depths:
        start = time.perf_counter()
        x, y = sg.input("x", (sg.dim("B"), 64)), sg.input("y", (sg.dim("B"),), dtype="int32")
        h = x
        for i in range(depth):
            h = sg.tanh(h @ sg.parameter(f"W{i}", (64, 64), init=sg.init.orthogonal()))
        head = sg.parameter("head", (64, 10), init=sg.init.glorot_uniform())
        loss = sg.cross_entropy(h @ head, y).mean()
        parameters = sg.parameters(loss)
        gradients = sg.grad(loss, parameters)
        written = time.perf_counter()
        updates = {p: p - 0.01 * g for p, g in zip(parameters, gradients, strict=True)}
        step = sg.compile(loss, updates=updates)
        data = {"x": np.ones((32, 64), np.float32), "y": np.zeros(32, np.int32)}
        step(**data)
        compiled = time.perf_counter()
        calls = []
        for _ in range(20):
            begin = time.perf_counter()
            step(**data)
            calls.append(time.perf_counter() - begin)
        lines.append(
            f"{depth:>6} | {written - start:25.2f} | {compiled - written:9.2f} | "
            f"{statistics.median(calls) * 1e6:7.0f}"
        )
    return "\n".join(lines)


def kernels(counts: tuple[int, ...] = (10, 50, 100, 200)) -> str:
    """Seconds to compile programs of so many kernels, no two of which are alike."""
    import symgrad as sg

    lines = ["kernels | passes s | machine code s | all s | ms per kernel"]
    for count in counts:
        sums = []
        for k in range(count):  # over rows of another width each, so that none are fused
            x = sg.input(f"x{k}", (sg.dim("B"), 7 + k))
            sums.append((sg.tanh(x * (1.0 + k / 7)) * x).sum(axis=1))
        start = time.perf_counter()
        f = sg.compile(sums)
        seconds = time.perf_counter() - start
        code = f.stages.seconds.get("load", 0.0)
        different = f.stages.source.count("@kernel") - 1
        lines.append(
            f"{different:>7} | {seconds - code:8.2f} | {code:14.2f} | {seconds:5.2f} | "
            f"{seconds / different * 1e3:13.1f}"
        )
    return "\n".join(lines)


def importing(repeats: int = 7) -> str:
    """Seconds of wall time of a process that imports symgrad, and of one that imports SymPy."""
    programs = {
        "nothing": "pass",
        "sympy": "import sympy",
        "symgrad": "import symgrad",
        "symgrad, first expression": "import symgrad as sg; sg.input('x', (3,)) + 1.0",
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", program],
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            taken[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    lines = ["process that imports       | s     | above sympy s"]
    for name, seconds in medians.items():
        lines.append(f"{name:<26} | {seconds:.3f} | {seconds - medians['sympy']:+.3f}")
    return "\n".join(lines)


def steps(lengths: tuple[int, ...] = (10, 100, 1000, 10_000, 100_000)) -> str:
    """Seconds to differentiate and compile an LSTM's training step by the number of time steps."""
    with tempfile.TemporaryDirectory(prefix="symgrad-bench-") as folder:
        os.environ["SYMGRAD_CACHE_DIR"] = folder  # empty, so that all of them are compiled
        _lstm_compiled(7)  # what is imported and compiled once
        lines = ["time steps | write and differentiate s | compile s | lines of source"]
        for length in (*lengths, None):
            written, compiled, source = _lstm_compiled(length)
            title = "symbolic" if length is None else f"{length:,}"
            lines.append(
                f"{title:>10} | {written:25.2f} | {compiled:9.2f} | {source.count(chr(10)):15}"
            )
    return "\n".join(lines)


def _lstm_compiled(length: int | None) -> tuple[float, float, str]:
    """Seconds to write and differentiate, seconds to compile, and the program."""
    import symgrad as sg
    from symgrad import nn

    start = time.perf_counter()
    time_steps = sg.dim("T") if length is None else length
    x, y = sg.input("x", (32, time_steps, 16)), sg.input("y", (32,), dtype="int32")
    ys, _ = nn.LSTM(64, name="cell").run(x)
    loss = sg.cross_entropy(nn.Dense(10, name="out")(ys[:, -1]), y).mean()
    parameters = sg.parameters(loss)
    gradients = sg.grad(loss, parameters)
    written = time.perf_counter()
    updates = {p: p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)}
    f = sg.compile(loss, updates=updates)
    return written - start, time.perf_counter() - written, f.source
