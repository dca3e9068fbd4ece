"""Loops in tiles: what walks across an array, against `evaluate`."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from codegen.teamwork import TeamInvocation
from symgrad.graph.evaluator import evaluate
from tests.team_interpreter import everything_shared


@pytest.mark.parametrize("threads", [1, 2])
def test_reads_across_arrays(threads: int) -> None:
    rng = np.random.default_rng(0)
    shapes = ((37, 64), (64, 48), (3, 32, 48), (5, 7), (17, 16), (2, 3, 5, 64), (48, 48))
    arrays = {f"x{k}": rng.normal(size=s).astype(np.float32) for k, s in enumerate(shapes)}
    x = [
        sg.input("x0", (sg.dim("n"), 64)),
        *(sg.input(f"x{k}", s) for k, s in enumerate(shapes[1:], 1)),
    ]
    nodes = [sg.swapaxes(a, -1, -2) * 2 + 1 for a in x]
    nodes += [
        sg.transpose(x[0]) + sg.arange(64)[:, None], sg.transpose(x[1]) * sg.abs(x[1].sum()),
        sg.transpose(x[2]) - 1, sg.transpose(x[5]) * 3, x[6] + sg.transpose(x[6]),
        sg.flip(sg.transpose(x[1]), 0) * 2, sg.transpose(x[6])[:, ::-1] + x[6],
        sg.swapaxes(x[2], 0, 1) * 0.5,
    ]  # fmt: skip
    with everything_shared():
        f = sg.compile(nodes, threads=threads)
        found = f(**arrays)
    if threads > 1:
        assert isinstance(call := f.last_call(), TeamInvocation) and call.current.workers == threads
    tiled = [k for k in f.stages.kernels if "i0b" in str(k) or "i1b" in str(k) or "i2b" in str(k)]
    assert len(tiled) >= 3
    for got, wanted in zip(found, evaluate(nodes, arrays), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-6)
