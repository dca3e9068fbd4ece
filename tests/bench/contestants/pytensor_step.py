"""PyTensor in its Numba mode: shared parameters with updates, one call per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.bench.contestants.pytensor_model import prepare
from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    pytensor = prepare()
    import pytensor.tensor as pt
    from pytensor.tensor.special import log_softmax

    spec = workload.training
    f32 = np.float32
    x, y = pytensor.shared(workload.data["X"]), pytensor.shared(workload.data["y"])
    pairs = [tuple(pytensor.shared(a.copy()) for a in pair) for pair in workload.weights]
    rows = pt.ivector()
    h = x[rows]
    for i, (w, b) in enumerate(pairs):
        h = h @ w + b
        if i < len(pairs) - 1:
            h = pt.tanh(h) if spec.activation == "tanh" else pt.maximum(h, f32(0))
    loss = -log_softmax(h, axis=-1)[pt.arange(h.shape[0]), y[rows]].mean()
    parameters = [p for pair in pairs for p in pair]
    gradients = pytensor.grad(loss, parameters)
    updates: dict[Any, Any] = {}
    if spec.optimizer == "sgd":
        updates = {p: p - f32(spec.rate) * g for p, g in zip(parameters, gradients, strict=True)}
    else:
        count = pytensor.shared(np.array(0, f32))
        updates[count] = t = count + f32(1)
        c, d = f32(1) / (f32(1) - f32(0.9) ** t), f32(1) / (f32(1) - f32(0.999) ** t)
        for p, g in zip(parameters, gradients, strict=True):
            m, v = (pytensor.shared(np.zeros_like(p.get_value())) for _ in range(2))
            updates[m] = f32(0.9) * m + f32(0.1) * g
            updates[v] = f32(0.999) * v + f32(0.001) * g * g
            step = (updates[m] * c) / (pt.sqrt(updates[v] * d) + f32(1e-8))
            updates[p] = p - f32(spec.rate) * step
    call = pytensor.function([rows], loss, updates=updates, mode="NUMBA")
    call.trust_input = True
    orders = workload.orders
    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal done
        means = []
        for _ in range(epochs):
            means.append(float(np.mean([call(batch) for batch in orders[done % len(orders)]])))
            done += 1
        return means

    return train
