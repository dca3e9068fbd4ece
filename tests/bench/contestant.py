"""The process of one contestant: `python -m tests.bench.contestant MODULE WORKLOAD FILE THREADS`.

It answers on standard output, one JSON object per line. First it trains one epoch and says so; then
it trains on to the epoch at which losses are compared; then it times one block of epochs for each
line that it reads, so that its parent can have several contestants take turns.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path


def main(module: str, workload_name: str, file: str, threads: str, only_first: bool) -> None:
    """Serve blocks until standard input ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not mix with the answers

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=out, flush=True)

    from tests.bench import workloads

    workload = workloads.load(workload_name, Path(file), int(threads))
    contestant = importlib.import_module(f"tests.bench.contestants.{module}")
    start = time.perf_counter()
    train = contestant.run(workload)
    losses = train(1)
    first = time.perf_counter() - start
    answer(first=first)
    if only_first:
        return
    resident = resident_memory()
    if (more := workload.specification.agree - 1) > 0:
        losses += train(more)

    epochs = 1
    while True:  # how many epochs make a block of about 0.2 s
        start = time.perf_counter()
        train(epochs)
        seconds = time.perf_counter() - start
        if seconds > 0.1:
            break
        epochs *= 2
    epochs = max(1, round(epochs * 0.2 / seconds))
    answer(losses=losses, compile=max(0.0, first - seconds / epochs))
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        train(epochs)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        steps = epochs * workload.steps
        answer(wall=wall / steps, cpu=cpu / steps)
    answer(memory=peak_memory(), growth=resident_memory() - resident)


def peak_memory() -> float:
    """The largest resident size of this process in MB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resident_memory() -> float:
    """The resident size of this process in MB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:5], only_first="--first" in sys.argv)
