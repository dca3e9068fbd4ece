"""Recurrent cells in symgrad: one step's equations, and `scan`."""

from __future__ import annotations

from typing import Any

from tests.bench.workloads import Workload


def recurrent_loss(workload: Workload) -> Any:
    """The mean loss of a batch."""
    import symgrad as sg

    spec = workload.recurrent
    p = {name: sg.parameter(name, w.shape, init=w) for name, w in workload.parameters.items()}
    batch, n = sg.dim("B"), spec.hidden
    x = sg.input("x", (batch, spec.length), dtype="int32")
    y = sg.input("y", (batch, spec.length), dtype="int32")

    def parts(z: Any, count: int) -> list[Any]:
        return [z[:, k * n : (k + 1) * n] for k in range(count)]

    def rnn(h: Any, symbol: Any) -> tuple[Any, Any]:
        h = sg.tanh(p["E"][symbol] @ p["Wx"] + p["b"] + h @ p["Wh"])
        return h, h

    def gru(h: Any, symbol: Any) -> tuple[Any, Any]:
        xr, xu, xn = parts(p["E"][symbol] @ p["Wx"] + p["b"], 3)
        hr, hu, hn = parts(h @ p["Wh"], 3)
        new = sg.tanh(xn + sg.sigmoid(xr + hr) * hn)
        h = new + sg.sigmoid(xu + hu) * (h - new)
        return h, h

    def lstm(state: Any, symbol: Any) -> tuple[Any, Any]:
        h, c = state
        i, f, g, o = parts(p["E"][symbol] @ p["Wx"] + p["b"] + h @ p["Wh"], 4)
        c = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
        h = sg.sigmoid(o) * sg.tanh(c)
        return (h, c), h

    zero = sg.zeros((batch, n))
    step, start = {"rnn": (rnn, zero), "gru": (gru, zero), "lstm": (lstm, (zero, zero))}[spec.cell]
    _, states = sg.scan(step, start, sg.swapaxes(x, 0, 1))
    return sg.cross_entropy(states @ p["Wo"] + p["bo"], sg.swapaxes(y, 0, 1)).mean()
