"""The CUDA target in Numba's simulator, which needs a process of its own.

Run as a module it judges the programs of seeds, and prints one JSON object, by seed null or what
did not hold:

    python -m symgrad.fuzz.simulation SECONDS SEED...
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symgrad.fuzz.drawing import random_program
from symgrad.fuzz.judges import judged, simulated
from symgrad.fuzz.minimisation import minimised
from symgrad.fuzz.scripts import runnable

ROOT = Path(__file__).resolve().parents[2]


def is_available() -> bool:
    """Whether this Numba, or numba-cuda, has a simulator."""
    return importlib.util.find_spec("numba.cuda") is not None


def verdicts(seeds: Sequence[int], seconds: float) -> dict[int, dict[str, Any] | None]:
    """What the simulator says to the programs of these seeds: None, or a failure and its script.

    seconds: how long a failing program may be made smaller.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "symgrad.fuzz.simulation", str(seconds), *map(str, seeds)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        what = {"kind": "simulated: the process ended", "message": done.stderr[-2000:],
                "script": ""}  # fmt: skip
        return {seed: what for seed in seeds[:1]}
    found: dict[str, dict[str, Any] | None] = json.loads(done.stdout)
    return {int(seed): what for seed, what in found.items()}


def main(arguments: Sequence[str]) -> None:
    """Judge the programs of the seeds in this process."""
    seconds = float(arguments[0])
    found: dict[str, dict[str, Any] | None] = {}
    for seed in map(int, arguments[1:]):
        program = random_program(seed)
        failure = judged(simulated, program)
        found[str(seed)] = None
        if failure is not None:
            program, failure = minimised(program, failure, seconds)
            found[str(seed)] = {**asdict(failure), "script": runnable(program, failure)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
