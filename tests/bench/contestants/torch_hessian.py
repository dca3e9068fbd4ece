"""PyTorch: `torch.func`, the Hessian as the reverse-mode Jacobian of the gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that evaluates the Hessian that many times and gives its norms."""
    import torch

    torch.set_num_threads(workload.threads)
    x, y, w = (torch.from_numpy(workload.data[name]) for name in "Xyw")

    def loss(w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-y * (x @ w)).mean()

    hessian = torch.func.jacrev(torch.func.grad(loss))

    def train(times: int) -> list[float]:
        for _ in range(times):
            value = hessian(w)
        return [float(np.linalg.norm(value.detach().numpy()))] * times

    return train
