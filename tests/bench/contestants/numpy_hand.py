"""NumPy by hand: gradients worked out on paper, every result written into a buffer made once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.workloads import Workload

f32 = np.float32


class Flat:
    """All parameters as views of one vector, their gradients likewise, and the optimiser."""

    def __init__(self, weights: list[tuple[np.ndarray, np.ndarray]], optimizer: str, rate: float):
        arrays = [array for pair in weights for array in pair]
        self.parameters = np.concatenate([array.ravel() for array in arrays])
        self.gradients = np.zeros_like(self.parameters)
        self.views, self.slopes = self._split(arrays)
        self.m, self.v = np.zeros_like(self.parameters), np.zeros_like(self.parameters)
        self.a, self.b = np.empty_like(self.parameters), np.empty_like(self.parameters)
        self.rate, self.t = rate, 0
        self.update = {"sgd": self._sgd, "adam": self._adam}[optimizer]

    def _split(self, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        ends = np.cumsum([array.size for array in arrays])
        places = [slice(end - array.size, end) for end, array in zip(ends, arrays, strict=True)]
        return (
            [self.parameters[p].reshape(a.shape) for p, a in zip(places, arrays, strict=True)],
            [self.gradients[p].reshape(a.shape) for p, a in zip(places, arrays, strict=True)],
        )

    def _sgd(self) -> None:
        np.multiply(self.gradients, f32(self.rate), out=self.a)
        self.parameters -= self.a

    def _adam(self) -> None:
        self.t += 1
        g, a, b = self.gradients, self.a, self.b
        self.m *= f32(0.9)
        self.m += np.multiply(g, f32(0.1), out=a)
        self.v *= f32(0.999)
        np.multiply(g, g, out=a)
        self.v += np.multiply(a, f32(0.001), out=a)
        np.sqrt(self.v, out=b)
        b *= f32(1 / np.sqrt(1 - 0.999**self.t))
        b += f32(1e-8)
        np.divide(self.m, b, out=b)
        b *= f32(self.rate / (1 - 0.9**self.t))
        self.parameters -= b


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    spec = workload.training
    x, y, orders = workload.data["X"], workload.data["y"], workload.orders
    flat = Flat(workload.weights, spec.optimizer, spec.rate)
    w, b = flat.views[::2], flat.views[1::2]
    dw, db = flat.slopes[::2], flat.slopes[1::2]
    depth = len(w)
    act = [np.empty((spec.batch, width), f32) for width in spec.layers]
    back = [np.empty_like(a) for a in act]
    slope = [np.empty_like(a) for a in act]
    row = np.arange(spec.batch)

    def forward(rows: np.ndarray) -> float:
        """Activations; the last becomes the gradient of the mean loss in the logits."""
        np.take(x, rows, 0, out=act[0])
        labels = y[rows]
        for i in range(depth):
            z = np.matmul(act[i], w[i], out=act[i + 1])
            z += b[i]
            if i < depth - 1:
                np.tanh(z, out=z) if spec.activation == "tanh" else np.maximum(z, 0, out=z)
        z = act[-1]
        z -= z.max(1, keepdims=True)
        chosen = z[row, labels]
        np.exp(z, out=z)
        total = z.sum(1)
        z *= (f32(1 / spec.batch) / total)[:, None]
        z[row, labels] -= f32(1 / spec.batch)
        return float((np.log(total) - chosen).mean())

    def backward() -> None:
        d = act[-1]
        for i in range(depth - 1, -1, -1):
            np.matmul(act[i].T, d, out=dw[i])
            np.sum(d, 0, out=db[i])
            if i:
                d = np.matmul(d, w[i].T, out=back[i])
                if spec.activation == "tanh":
                    np.multiply(act[i], act[i], out=slope[i])
                    d *= np.subtract(1, slope[i], out=slope[i])
                else:
                    d *= act[i] > 0

    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal done
        means = []
        for _ in range(epochs):
            losses = []
            for rows in orders[done % len(orders)]:
                losses.append(forward(rows))
                backward()
                flat.update()
            means.append(float(np.mean(losses)))
            done += 1
        return means

    return train
