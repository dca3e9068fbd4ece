"""JAX with the whole epoch in one jitted `lax.scan`, the state donated."""

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
    orders = [jax.device_put(order) for order in workload.orders]

    def epoch(state: object, order: jax.Array) -> tuple[object, jax.Array]:
        state, losses = jax.lax.scan(lambda s, rows: step(s, x, y, rows), state, order)
        return state, losses.mean()

    compiled = jax.jit(epoch, donate_argnums=0)
    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal state, done
        losses = []
        for _ in range(epochs):
            state, loss = compiled(state, orders[done % len(orders)])
            losses.append(loss)
            done += 1
        return [float(loss) for loss in np.asarray(jax.device_get(losses))]

    return train
