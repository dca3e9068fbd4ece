"""symgrad: `hessian` of the loss, simplified by the compiler to X' diag(s) X."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that evaluates the Hessian that many times and gives its norms."""
    import symgrad as sg

    data = workload.data
    x = sg.input("X", data["X"].shape)
    y = sg.input("y", data["y"].shape)
    w = sg.input("w", data["w"].shape)
    loss = sg.softplus(-y * (x @ w)).mean()
    hessian = sg.compile(sg.hessian(loss, w), threads=workload.threads)

    def train(times: int) -> list[float]:
        for _ in range(times):
            value = hessian(X=data["X"], y=data["y"], w=data["w"])
        return [float(np.linalg.norm(value))] * times

    return train
