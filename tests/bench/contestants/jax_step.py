"""JAX with one jitted call per step, the state donated and the rows gathered on the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.contestants.jax_model import inputs_of, prepare
from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    import jax

    step, state = prepare(workload)
    x, y = inputs_of(workload), jax.device_put(workload.data["y"])
    batches = [[jax.device_put(rows) for rows in order] for order in workload.orders]
    compiled = jax.jit(step, donate_argnums=0)
    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal state, done
        means = []
        for _ in range(epochs):
            losses = []
            for rows in batches[done % len(batches)]:
                state, loss = compiled(state, x, y, rows)
                losses.append(loss)
            means.append(float(np.mean(jax.device_get(losses))))
            done += 1
        return means

    return train
