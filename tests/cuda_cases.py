"""Judges run in Numba's CUDA simulator: one process for many programs.

A judge is a function of one name that raises where the CUDA target is wrong:

    verdicts("tests.test_x:judge", names)      {name: None, or what went wrong}

The simulator is chosen when Numba is imported, so it needs a process of its own:

    NUMBA_ENABLE_CUDASIM=1 python -m tests.cuda_cases tests.test_x:judge NAME...
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import cache

import pytest

from tests.conftest import ROOT

INSTALL = 'pip install "symgrad[cuda]"'
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

simulator = pytest.mark.skipif(
    importlib.util.find_spec("numba.cuda") is None,
    reason=f"Numba has no CUDA simulator here: {INSTALL}",
)
compiler = pytest.mark.skipif(
    SIMULATED
    or importlib.util.find_spec("numba_cuda") is None
    or importlib.util.find_spec("nvidia") is None,
    reason=f"numba-cuda and NVVM, which make PTX, are not installed: {INSTALL}",
)


@cache
def verdicts(judge: str, names: Sequence[str]) -> dict[str, str | None]:
    """What the simulator says of each name; `names` is a tuple. One process for all of them."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.cuda_cases", judge, *names],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def judged(judge: str, names: Iterable[str], name: str) -> None:
    """Fail with what the simulator says of one name among those that are judged with it."""
    verdict = verdicts(judge, tuple(names))[name]
    assert verdict is None, verdict


def main(judge: str, names: Sequence[str]) -> None:
    """Print the verdicts as one JSON object."""
    from tests import device_simulator

    device_simulator.install()
    module, _, function = judge.partition(":")
    call = getattr(importlib.import_module(module), function)
    found: dict[str, str | None] = {}
    for name in names:
        try:
            call(name)
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
