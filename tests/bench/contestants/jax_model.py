"""The network in JAX: one training step as a pure function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.bench.contestants import jax_attention, jax_recurrent, jax_tagger
from tests.bench.workloads import Attention, Recurrent, Tagger, Workload


def configure() -> None:
    """Run on the CPU, and keep compiled programs where the bench says."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if folder := os.environ.get("BENCH_JAX_CACHE"):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def inputs_of(workload: Workload) -> Any:
    """x on the device, with the lengths of its rows where there are any."""
    import jax

    data = workload.data
    both = (data["X"], data["lengths"]) if "lengths" in data else data["X"]
    return jax.device_put(both)


def prepare(workload: Workload) -> tuple[Callable[..., Any], Any]:
    """Return `step(state, x, y, rows) -> (state, loss)` and the initial state; see `inputs_of`."""
    configure()
    import jax
    import jax.numpy as jnp

    spec = workload.specification
    is_named = isinstance(spec, Attention | Recurrent | Tagger)

    def loss_of(parameters: Any, x: Any, y: Any) -> Any:
        if isinstance(spec, Attention):
            return jax_attention.loss_of(spec, parameters, x, y)
        if isinstance(spec, Recurrent):
            return jax_recurrent.loss_of(spec, parameters, x, y)
        if isinstance(spec, Tagger):
            return jax_tagger.loss_of(spec, parameters, x, y)
        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[spec.activation]
        *hidden, (w, b) = parameters
        for v, c in hidden:
            x = activation(x @ v + c)
        log_p = jax.nn.log_softmax(x @ w + b)
        return -jnp.take_along_axis(log_p, y[:, None], axis=-1).mean()

    def sgd(state: Any, gradient: Any) -> Any:
        return (jax.tree.map(lambda p, g: p - spec.rate * g, state[0], gradient),)

    def adam(state: Any, gradient: Any) -> Any:
        parameters, m, v, t = state
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradient)
        c, d = 1 / (1 - 0.9**t), 1 / (1 - 0.999**t)
        parameters = jax.tree.map(
            lambda p, m, v: p - spec.rate * (m * c) / (jnp.sqrt(v * d) + 1e-8), parameters, m, v
        )
        return parameters, m, v, t

    update = {"sgd": sgd, "adam": adam}[spec.optimizer]

    def step(state: Any, x: Any, y: Any, rows: Any) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda array: array[rows], x)
        loss, gradient = jax.value_and_grad(loss_of)(state[0], batch, y[rows])
        if isinstance(spec, Recurrent):
            norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
            scale = spec.clip / jnp.maximum(norm, spec.clip)
            gradient = jax.tree.map(lambda g: g * scale, gradient)
        return update(state, gradient), loss

    initial = workload.parameters if is_named else workload.weights
    parameters = jax.tree.map(jnp.asarray, initial)
    if spec.optimizer == "sgd":
        return step, (parameters,)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return step, (parameters, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0))
