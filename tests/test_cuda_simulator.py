"""CUDA programs in Numba's simulator, in a process of its own."""

from __future__ import annotations

import pytest

from tests import cuda_programs
from tests.cuda_cases import judged, simulator, verdicts

pytestmark = simulator
JUDGE = "tests.cuda_programs:judge"
NAMES = tuple(cuda_programs.names())


@pytest.mark.parametrize("name", NAMES)
def test_program(name: str) -> None:
    judged(JUDGE, NAMES, name)


RACES = "tests.racing_kernels:judge"
WRONG = {
    "one place for all": "meets",
    "a neighbour's place": "meets",
    "no barrier": "meets",
    "not all at the barrier": "a thread ended",
    "barriers of their own": "different barriers",
    "before the first": "lies outside",
    "behind the last": "lies outside",
}
RIGHT = ("own places", "atomic", "with a barrier")


@pytest.mark.parametrize("name", RIGHT)
def test_the_simulator_accepts(name: str) -> None:
    judged(RACES, (*WRONG, *RIGHT), name)


@pytest.mark.parametrize("name", WRONG)
def test_the_simulator_finds(name: str) -> None:
    said = verdicts(RACES, (*WRONG, *RIGHT))[name]
    assert said is not None and WRONG[name] in said
