"""The tagger in symgrad: one step's equations, and `scan` with lengths in both directions."""

from __future__ import annotations

from typing import Any

from tests.bench.workloads import Workload


def tagger_loss(workload: Workload) -> Any:
    """The mean loss of the words of a batch."""
    import symgrad as sg

    spec = workload.tagger
    p = {name: sg.parameter(name, w.shape, init=w) for name, w in workload.parameters.items()}
    batch, n = sg.dim("B"), spec.hidden
    x = sg.input("x", (batch, spec.length), dtype="int32")
    y = sg.input("y", (batch, spec.length), dtype="int32")
    lengths = sg.input("lengths", (batch,), dtype="int32")

    def states(way: str) -> Any:
        def lstm(state: Any, word: Any) -> tuple[Any, Any]:
            h, c = state
            z = p["E"][word] @ p[f"Wx_{way}"] + p[f"b_{way}"] + h @ p[f"Wh_{way}"]
            i, f, g, o = (z[:, k * n : (k + 1) * n] for k in range(4))
            c = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
            h = sg.sigmoid(o) * sg.tanh(c)
            return (h, c), h

        zero = sg.zeros((batch, n))
        sequences = sg.swapaxes(x, 0, 1)
        return sg.scan(lstm, (zero, zero), sequences, reverse=way == "b", lengths=lengths)[1]

    logits = sg.concatenate([states("f"), states("b")], axis=-1) @ p["Wo"] + p["bo"]
    losses = sg.nn.sequence_cross_entropy(sg.swapaxes(logits, 0, 1), y, lengths)
    return losses.sum() / lengths.sum()
