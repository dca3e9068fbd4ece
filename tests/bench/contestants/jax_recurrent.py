"""Recurrent cells in JAX: `lax.scan` over inputs that are projected before it."""

from __future__ import annotations

from typing import Any

from tests.bench.workloads import Recurrent


def loss_of(spec: Recurrent, p: Any, x: Any, y: Any) -> Any:
    """The mean loss of a batch with parameters `p`."""
    import jax
    import jax.numpy as jnp

    def rnn(h: Any, a: Any) -> tuple[Any, Any]:
        h = jnp.tanh(a + h @ p["Wh"])
        return h, h

    def gru(h: Any, a: Any) -> tuple[Any, Any]:
        (xr, xu, xn), (hr, hu, hn) = jnp.split(a, 3, -1), jnp.split(h @ p["Wh"], 3, -1)
        new = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
        h = new + jax.nn.sigmoid(xu + hu) * (h - new)
        return h, h

    def lstm(state: Any, a: Any) -> tuple[Any, Any]:
        h, c = state
        i, f, g, o = jnp.split(a + h @ p["Wh"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[0], spec.hidden), jnp.float32)
    step, start = {"rnn": (rnn, zero), "gru": (gru, zero), "lstm": (lstm, (zero, zero))}[spec.cell]
    _, states = jax.lax.scan(step, start, p["E"][x.T] @ p["Wx"] + p["b"])
    log_p = jax.nn.log_softmax(states @ p["Wo"] + p["bo"])
    return -jnp.take_along_axis(log_p, y.T[..., None], axis=-1).mean()
