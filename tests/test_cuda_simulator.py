"""CUDA programs in Numba's simulator, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import cuda_programs
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba.cuda") is None,
    reason="this Numba has no CUDA simulator and symgrad[cuda] is not installed",
)
QUICK = cuda_programs.names(every=False)
REST = [name for name in cuda_programs.names(every=True) if name not in QUICK]


def simulated(names: list[str]) -> dict[str, str | None]:
    """What the simulator says to each program: None, or what went wrong."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.cuda_programs", *names],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdicts: dict[str, str | None] = json.loads(done.stdout)
    return verdicts


@pytest.fixture(scope="module")
def quick() -> dict[str, str | None]:
    return simulated(QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_program(name: str, quick: dict[str, str | None]) -> None:
    assert quick[name] is None, quick[name]


@pytest.mark.slow
def test_all_node_cases() -> None:
    wrong = {name: text for name, text in simulated(REST).items() if text is not None}
    assert not wrong, "\n".join(wrong.values())


def test_the_few_cases_exist() -> None:
    assert set(cuda_programs.nodes.cases.makers) >= cuda_programs.FEW
