"""CUDA programs on a device: the same programs as in the simulator, and larger ones.

pytest -m gpu
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

import symgrad as sg
from tests import cuda_programs


def _missing() -> str:
    if importlib.util.find_spec("numba_cuda") is None:
        return "the extra symgrad[cuda] is not installed"
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return "the simulator is no device"
    from numba import cuda

    return "" if cuda.is_available() else "there is no CUDA device"


@pytest.fixture(autouse=True)
def device() -> None:
    reason = _missing()
    if reason:
        pytest.skip(reason)


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", cuda_programs.names())
def test_program(name: str) -> None:
    cuda_programs.judge(name, "cuda")


def test_a_large_product() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((517, 389), (389, 263)))
    f = sg.compile(sg.input("a", a.shape) @ sg.input("b", b.shape), target="cuda")
    np.testing.assert_allclose(f(a=a, b=b), a @ b, rtol=1e-3, atol=1e-3)


def test_rows_longer_than_a_block() -> None:
    rows = sg.dim("rows")
    x = sg.input("x", (rows, 3001))
    data = np.random.default_rng(1).standard_normal((517, 3001)).astype(np.float32)
    outputs = [sg.softmax(x, axis=1), sg.sum(x, axis=0), sg.sum(x * x), sg.argmax(x, axis=1)]
    got = sg.compile(outputs, target="cuda")(x=data)
    for g, e in zip(got, sg.evaluate(outputs, {x: data}), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)


def test_runs_are_equal_to_the_last_bit() -> None:
    """No rounding depends on the order in which threads run, where nothing is added atomically."""
    f, values = cuda_programs.perceptron("cuda")
    g, _ = cuda_programs.perceptron("cuda")
    for _ in range(20):
        assert f(**values)["loss"] == g(**values)["loss"]
    for name in f.state:
        np.testing.assert_array_equal(f.state[name], g.state[name])
