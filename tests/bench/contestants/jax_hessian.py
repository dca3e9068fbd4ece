"""JAX: the Hessian as the reverse-mode Jacobian of the gradient, its fastest form here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.contestants.jax_model import configure
from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that evaluates the Hessian that many times and gives its norms."""
    configure()
    import jax
    import jax.numpy as jnp

    x, y, w = (jax.device_put(workload.data[name]) for name in "Xyw")

    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.logaddexp(0.0, -y * (x @ w)).mean()

    hessian = jax.jit(jax.jacrev(jax.grad(loss)))

    def train(times: int) -> list[float]:
        for _ in range(times):
            value = hessian(w, x, y)
            value.block_until_ready()
        return [float(np.linalg.norm(value))] * times

    return train
