"""Memory and time of a gradient through T steps, with checkpoints and without."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np

from tests.bench.growth import ROOT

STEPS = (1000, 10_000, 100_000)
ROWS, WIDE, UNITS = 4, 16, 64
ROUNDS = 3


def curve() -> str:
    """A table: an LSTM's gradient over ever more steps; each variant in a process of its own."""
    lines = [
        f"gradient of an LSTM, {ROWS} rows of {WIDE}, {UNITS} units, float32, one core",
        "  steps | data MB | every step: MB | ms      | sqrt(T) checkpoints: MB | ms      | time",
    ]
    columns = [_measured(variant) for variant in ("None", "sqrt")]
    for steps, (plain, seconds), (lean, more) in zip(STEPS, *columns, strict=True):
        data = 4 * steps * ROWS * (WIDE + 1) / 1e6
        lines.append(
            f"{steps:>7} | {data:7.1f} | {plain:14.1f} | {seconds * 1e3:7.1f} | {lean:23.1f} | "
            f"{more * 1e3:7.1f} | {more / seconds:.2f} x"
        )
    return "\n".join(lines)


def _measured(variant: str) -> list[tuple[float, float]]:
    """Megabytes that the process grew by beside its data, and the least seconds, by steps."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.checkpoints", variant],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )
    rows = [line.split() for line in run.stdout.splitlines()]
    return [(float(memory), float(seconds)) for memory, seconds in rows]


def _main(checkpoint: str | None) -> None:
    """Compile one program, run it on ever more steps, print what each took."""
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
    rng = np.random.default_rng(0)

    def data(steps):
        shapes = {"x": (steps, ROWS, WIDE), "y": (steps, ROWS)}
        return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    f(**data(10))
    base = _peak()
    for steps in STEPS:
        values, taken = data(steps), []
        given = sum(array.nbytes for array in values.values()) / 1e6
        for _ in range(ROUNDS):
            start = time.perf_counter()
            f(**values)
            taken.append(time.perf_counter() - start)
        print(_peak() - base - given, min(taken))


def _peak() -> float:
    """The most megabytes that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    _main(None if sys.argv[1] == "None" else sys.argv[1])
