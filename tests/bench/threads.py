"""The same training on one core and on several, in one process and in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch

from codegen.workers import cores
from tests.bench import workloads
from tests.bench.contestants.symgrad_fit import loss_of, trainer_of

NAMES = ("mlp_small", "mlp_mid", "mlp_large", "attention", "gru", "lstm")
#: Seconds of a block of epochs.
BLOCK = 0.15
COLUMNS = (
    *("workload", "one us", "{} us", "one / {}", "least", "run by", "meetings"),
    "losses differ",
)


def scaling(pattern: str, threads: int, rounds: int) -> str:
    """A table: time of a step on one thread and on several, medians over blocks in turn.

    Args:
        pattern: of the workloads.
        threads: how many are compared with one.
        rounds:  blocks of each.
    """
    rows = [tuple(column.format(threads) for column in COLUMNS)]
    rows += [_row(name, threads, rounds) for name in NAMES if fnmatch(name, pattern)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join([f"steps of training; this process may use {cores()} cores", "", *lines])


def _row(name: str, threads: int, rounds: int) -> tuple[str, ...]:
    workload = workloads.make(name)
    spec = workload.specification
    assert not isinstance(spec, workloads.Hessian)
    data = {"x": workload.data["X"], "y": workload.data["y"]}
    losses: list[list[float]] = []
    blocks: list[Callable[[], float]] = []
    for count in (1, threads):
        trainer = trainer_of(replace(workload, threads=count), loss_of(workload))

        def train(epochs: int, trainer: object = trainer) -> float:
            start = time.perf_counter()
            trainer.fit(data, epochs=epochs, batch_size=spec.batch, progress=False)  # type: ignore[attr-defined]
            return (time.perf_counter() - start) / (epochs * workload.steps)

        train(1)
        history = trainer.fit(data, epochs=1, batch_size=spec.batch, progress=False)
        losses.append([float(loss) for loss in history.loss])
        step = min(train(1) for _ in range(2))
        epochs = max(1, round(BLOCK / (step * workload.steps)))
        blocks.append(lambda train=train, epochs=epochs: train(epochs))  # type: ignore[misc]
    times = [[block() for block in blocks] for _ in range(rounds)]
    one, several = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [a / b for a, b in times]
    team = trainer.program.stages.team
    used = team.used if team is not None else 1
    met = team.meetings_in_a_step if team is not None and used > 1 else 0
    apart = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    return (
        name, f"{one * 1e6:.2f}", f"{several * 1e6:.2f}", f"{statistics.median(ratios):.2f}",
        f"{min(c[0] for c in times) / min(c[1] for c in times):.2f}",
        f"{used}", f"{met}", f"{apart:.0e}",
    )  # fmt: skip
