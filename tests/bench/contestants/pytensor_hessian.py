"""PyTensor in its Numba mode: its `hessian`, which scans over the gradient's entries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.contestants.pytensor_model import prepare
from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that evaluates the Hessian that many times and gives its norms."""
    pytensor = prepare()
    import pytensor.tensor as pt

    x, y, w = pt.fmatrix(), pt.fvector(), pt.fvector()
    loss = pt.softplus(-y * (x @ w)).mean()
    hessian = pytensor.function([x, y, w], pytensor.gradient.hessian(loss, w), mode="NUMBA")
    hessian.trust_input = True
    values = [workload.data[name] for name in "Xyw"]

    def train(times: int) -> list[float]:
        for _ in range(times):
            value = hessian(*values)
        return [float(np.linalg.norm(value))] * times

    return train
