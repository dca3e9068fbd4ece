"""The encoder block in symgrad: attention is written as in the paper (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from typing import Any

from tests.bench.workloads import Workload


def attention_loss(workload: Workload, by_einsum: bool = False) -> Any:
    """The mean loss of a batch; `by_einsum` writes the products of attention by labels."""
    import symgrad as sg

    spec = workload.attention
    p = {name: sg.parameter(name, w.shape, init=w) for name, w in workload.parameters.items()}
    batch, length, heads = sg.dim("B"), spec.length, spec.heads
    own = spec.width // heads
    x = sg.input("x", (batch, length), dtype="int32")
    y = sg.input("y", (batch, length), dtype="int32")

    def norm(h: Any, k: str) -> Any:
        away = h - h.mean(-1, keepdims=True)
        variance = (away * away).mean(-1, keepdims=True)
        return away / sg.sqrt(variance + 1e-5) * p["g" + k] + p["c" + k]

    def attend(a: Any) -> Any:
        qkv = (a @ p["Wqkv"] + p["bqkv"]).reshape((batch, length, 3, heads, own))
        q, k, v = (qkv[:, :, i] for i in range(3))
        if by_einsum:
            weights = sg.softmax(sg.einsum("bthd,bshd->bhts", q, k) / math.sqrt(own))
            o = sg.einsum("bhts,bshd->bthd", weights, v)
        else:
            q, k, v = (sg.swapaxes(z, 1, 2) for z in (q, k, v))
            o = sg.softmax(q @ sg.swapaxes(k, -1, -2) / math.sqrt(own)) @ v
            o = sg.swapaxes(o, 1, 2)
        return o.reshape((batch, length, spec.width)) @ p["Wo"] + p["bo"]

    h = p["E"][x] + p["P"]
    h = h + attend(norm(h, "1"))
    h = h + sg.gelu(norm(h, "2") @ p["W1"] + p["b1"], approximate=True) @ p["W2"] + p["b2"]
    return sg.cross_entropy(h @ p["Wc"] + p["bc"], y).mean()
