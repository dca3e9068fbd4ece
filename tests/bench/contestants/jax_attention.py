"""The encoder block in JAX, with `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import Any

from tests.bench.workloads import Attention


def loss_of(spec: Attention, p: Any, x: Any, y: Any) -> Any:
    """The mean loss of a batch with parameters `p`."""
    import jax
    import jax.numpy as jnp

    def norm(h: Any, k: str) -> Any:
        away = h - h.mean(-1, keepdims=True)
        variance = (away * away).mean(-1, keepdims=True)
        return away * jax.lax.rsqrt(variance + 1e-5) * p["g" + k] + p["c" + k]

    h = p["E"][x] + p["P"]
    qkv = (norm(h, "1") @ p["Wqkv"] + p["bqkv"]).reshape(*x.shape, 3, spec.heads, -1)
    o = jax.nn.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
    h = h + o.reshape(h.shape) @ p["Wo"] + p["bo"]
    h = h + jax.nn.gelu(norm(h, "2") @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]
    log_p = jax.nn.log_softmax(h @ p["Wc"] + p["bc"])
    return -jnp.take_along_axis(log_p, y[..., None], axis=-1).mean()
