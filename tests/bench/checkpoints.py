"""Memory and time of a gradient through T steps, with checkpoints and without.

    python -m tests.bench checkpoints [--plot curve.png]

Each variant has a process of its own for each T, whose resident size is read; they take turns.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.bench.contestant import resident_memory
from tests.bench.growth import ROOT

STEPS = (1000, 3000, 10_000, 30_000, 100_000)
ROWS, WIDE, UNITS = 4, 16, 64
ROUNDS = 5
#: What `sg.scan(checkpoint=...)` is given, and what it is called.
VARIANTS: dict[str | None, str] = {
    None: "no checkpoints", "sqrt": 'checkpoint="sqrt"', "32 MB": 'checkpoint="32 MB"',
}  # fmt: skip
TITLE = f"gradient of an LSTM, {ROWS} rows of {WIDE}, {UNITS} units, float32, one core"


class Point(NamedTuple):
    """What one T took.

    memory:  megabytes that the process grew by in its first call: the workspace, and results.
    seconds: the least of the rounds.
    loss:    the value, for comparison.
    chosen:  what a budget came to.
    """

    memory: float
    seconds: float
    loss: float
    chosen: str


def curve(plot: str = "") -> str:
    """A table of an LSTM's gradient over ever more steps, and a picture where a file is named."""
    points = _measured()
    lines = [
        TITLE,
        "  steps | data MB | "
        + " | ".join(f"{name + ': MB':>22} | {'ms':>7}{' | time' if k else ''}"
                     for k, name in enumerate(VARIANTS.values())),
    ]  # fmt: skip
    for at, steps in enumerate(STEPS):
        plain = points[None][at]
        cells = [f"{steps:>7} | {_data_size(steps):7.1f}"]
        for variant, own in points.items():
            cells.append(f"{own[at].memory:22.1f} | {own[at].seconds * 1e3:7.1f}")
            if variant is not None:
                cells.append(f"{own[at].seconds / plain.seconds:4.2f}")
        lines.append(" | ".join(cells))
    for variant, own in points.items():
        apart = max(abs(a.loss / b.loss - 1) for a, b in zip(own, points[None], strict=True))
        if variant is not None:
            lines.append(f"{VARIANTS[variant]}: losses differ by {apart:.0e} at most")
    lines += [f"  {point.chosen}" for own in points.values() for point in own if point.chosen]
    if plot:
        draw(points, Path(plot))
        lines.append(f"plot: {plot}")
    return "\n".join(lines)


def _data_size(steps: int) -> float:
    """Megabytes of what a program is given."""
    return 4 * steps * ROWS * (WIDE + 1) / 1e6


def _measured() -> dict[str | None, list[Point]]:
    """Every variant at every T."""
    points: dict[str | None, list[Point]] = {variant: [] for variant in VARIANTS}
    for steps in STEPS:
        with ExitStack() as stack:
            processes = {v: stack.enter_context(_begun(v, steps)) for v in VARIANTS}
            found: dict[str | None, list[Point]] = {variant: [] for variant in VARIANTS}
            for _ in range(ROUNDS):
                for variant, process in processes.items():
                    found[variant].append(_asked(process))
        for variant, own in found.items():
            least = min(p.seconds for p in own)
            points[variant].append(own[0]._replace(seconds=least))
    return points


def _begun(variant: str | None, steps: int) -> subprocess.Popen[str]:
    """A process that has compiled the program and made its data."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.checkpoints", str(variant), str(steps)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    if not process.stdout.readline():
        raise SystemExit(f"bench: {VARIANTS[variant]} ended with status {process.wait()}")
    return process


def _asked(process: subprocess.Popen[str]) -> Point:
    """One more gradient."""
    assert process.stdin is not None and process.stdout is not None
    print("again", file=process.stdin, flush=True)
    memory, seconds, loss, chosen = process.stdout.readline().split(" ", 3)
    return Point(float(memory), float(seconds), float(loss), chosen.strip())


def draw(points: Mapping[str | None, Sequence[Point]], file: Path) -> None:
    """Memory and time against T, in colours that the colour-blind tell apart and marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = (("#000000", "o", "-"), ("#0072B2", "s", "--"), ("#D55E00", "^", "-."))
    for (variant, own), (colour, mark, line) in zip(points.items(), looks, strict=True):
        how = {"color": colour, "marker": mark, "linestyle": line, "label": VARIANTS[variant]}
        left.plot(STEPS, [p.memory for p in own], **how)
        times = [p.seconds * 1e6 / t for p, t in zip(own, STEPS, strict=True)]
        right.plot(STEPS, times, **how)
    left.plot(STEPS, [_data_size(t) for t in STEPS], color="#777777", linestyle=":", label="data")
    left.set(yscale="log", ylabel="memory, MB", title="what the process grows by, beside its data")
    right.set(ylabel="time of a step, us", title="time of a gradient, divided by T")
    right.set_ylim(bottom=0.0)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="steps T")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(TITLE, fontsize="medium")
    figure.savefig(file, dpi=150)


def _main(checkpoint: str | None, steps: int) -> None:
    """Compile one program; for each line that is read, run it and tell what it took."""
    import symgrad as sg

    T = sg.dim("T")
    x, y = sg.input("x", (T, ROWS, WIDE)), sg.input("y", (T, ROWS))
    W, U = sg.parameter("W", (WIDE, 4 * UNITS)), sg.parameter("U", (UNITS, 4 * UNITS))
    v = sg.parameter("v", (UNITS,))

    def step(carry, now):
        c, h, loss = carry
        i, f, g, o = sg.split(now[0] @ W + h @ U, 4, axis=1)
        c = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
        h = sg.sigmoid(o) * sg.tanh(c)
        return (c, h, loss + sg.square(h @ v - now[1]).mean()), ()

    state = sg.zeros((ROWS, UNITS))
    (_, _, loss), _ = sg.scan(step, (state, state, 0.0), (x, y), checkpoint=checkpoint)
    f = sg.compile([loss, *sg.grad(loss, [W, U, v])])

    def drawn(steps: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        shapes = {"W": W.shape, "U": U.shape, "v": v.shape}
        values = {k: 0.1 * rng.standard_normal(s, np.float32) for k, s in shapes.items()}
        values["x"] = rng.standard_normal((steps, ROWS, WIDE), np.float32)
        return values | {"y": rng.standard_normal((steps, ROWS), np.float32)}

    f(**drawn(10))
    values = drawn(steps)
    before, memory = resident_memory(), 0.0
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        results = f(**values)
        seconds = time.perf_counter() - begun
        memory = memory or resident_memory() - before
        chunks = f.stages.chunks
        chosen = "" if chunks is None else "; ".join(map(str, chunks.last.values()))
        print(memory, seconds, float(results[0]), chosen, flush=True)


if __name__ == "__main__":
    _main(None if sys.argv[1] == "None" else sys.argv[1], int(sys.argv[2]))
