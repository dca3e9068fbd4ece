"""The wait before the first step, stage by stage: `python -m tests.bench compile`.

    cold   from the data to the end of the first epoch, in a process that has imported all that it
           will need, with empty caches, less the time of an epoch
    warm   a whole process that does the same with the caches of another, imports included

What a process will need is what an earlier one had imported in the end. Python's bytecode is kept
in a folder of this run, as it is in an installation. Of a process that is warm the time of an epoch
is told too, since that is work which no cache can spare.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bench import workloads

NAMES = ("mlp_small", "mlp_mid", "mlp_large", "attention", "lstm")


def compiling(repeats: int = 3) -> str:
    """Medians over processes, in seconds; the stages are those of the cold ones."""
    found = {name: _measured(name, repeats) for name in NAMES}
    stages = list(dict.fromkeys(stage for cold, *_ in found.values() for stage in cold["stages"]))
    lines = [f"{'':18} | " + " | ".join(f"{name:>9}" for name in found)]

    def line(title: str, seconds: list[float]) -> None:
        lines.append(f"{title:18} | " + " | ".join(f"{s:9.3f}" for s in seconds))

    line("cold first step", [cold["first"] for cold, *_ in found.values()])
    line("warm process", [warm for _, warm, _ in found.values()])
    line("  its epoch", [epoch for *_, epoch in found.values()])
    for stage in stages:
        line(f"  {stage}", [cold["stages"].get(stage, 0.0) for cold, *_ in found.values()])
    return "\n".join(lines)


def _measured(name: str, repeats: int) -> tuple[dict[str, Any], float, float]:
    """A cold process, the seconds of a warm one, and those of an epoch."""
    colds, warms = [], []
    with tempfile.TemporaryDirectory(prefix="symgrad-bench-") as folder:
        file = Path(folder) / "workload.npz"
        workloads.save(workloads.make(name), file)
        modules = Path(folder) / "modules.json"
        modules.write_text("[]")
        for repeat in range(repeats + 1):
            caches = Path(folder) / f"caches-{repeat}"
            caches.mkdir()
            cold = _child(name, file, modules, caches)
            modules.write_text(json.dumps(cold.pop("modules")))
            start = time.perf_counter()
            _child(name, file, None, caches)
            warms.append(time.perf_counter() - start)
            colds.append(cold)
    colds = sorted(colds[1:], key=lambda cold: float(cold["first"]))  # the first one imported
    epoch = statistics.median(cold["epoch"] for cold in colds)
    return colds[len(colds) // 2], statistics.median(warms[1:]), epoch


def _child(name: str, file: Path, modules: Path | None, caches: Path) -> dict[str, Any]:
    from tests.bench.race import environment  # a child needs none of it

    given = [name, str(file), *([] if modules is None else [str(modules)])]
    own = environment(caches) | {"PYTHONPYCACHEPREFIX": str(file.parent / "bytecode")}
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    child = subprocess.run(
        [sys.executable, "-m", "tests.bench.compiling", *given],
        env=own, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def main(name: str, file: str, modules: str = "") -> None:
    """One process: train an epoch and tell how long it took."""
    for module in json.loads(Path(modules).read_text()) if modules else ():
        with suppress(Exception):  # some can be imported by their parents only
            importlib.import_module(module)
    workload = workloads.load(name, Path(file))
    contestant = importlib.import_module("tests.bench.contestants.symgrad_fit")
    start = time.perf_counter()
    train = contestant.run(workload)
    train(1)
    first = time.perf_counter() - start
    if not modules:
        print("{}")
        return
    start = time.perf_counter()
    train(1)
    epoch = time.perf_counter() - start
    from codegen.compiled import Compiled

    (f,) = (x for x in gc.get_objects() if isinstance(x, Compiled))
    known = [name for name in sys.modules if not name.startswith("sg_") and name != "__main__"]
    told = {"first": first - epoch, "epoch": epoch, "stages": f.stages.seconds, "modules": known}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
