"""The network in JAX: one step of gradient descent as a pure function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.bench.workloads import Workload


def prepare(workload: Workload) -> tuple[Callable[..., Any], Any]:
    """Return `step(parameters, x, y, rows) -> (parameters, loss)` and the initial parameters."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    if folder := os.environ.get("BENCH_JAX_CACHE"):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

    def loss_of(parameters: Any, x: Any, y: Any) -> Any:
        *hidden, (w, b) = parameters
        for v, c in hidden:
            x = jnp.tanh(x @ v + c)
        log_p = jax.nn.log_softmax(x @ w + b)
        return -jnp.take_along_axis(log_p, y[:, None], axis=-1).mean()

    def step(parameters: Any, x: Any, y: Any, rows: Any) -> tuple[Any, Any]:
        loss, gradient = jax.value_and_grad(loss_of)(parameters, x[rows], y[rows])
        moved = jax.tree.map(lambda p, g: p - workload.rate * g, parameters, gradient)
        return moved, loss

    return step, jax.tree.map(jnp.asarray, workload.weights)
