"""What is computed: data, initial weights and row orders, from which every contestant starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Workload:
    """A network, its data and how it is trained.

    Attributes:
        name: as given on the command line.
        layers: widths from the input to the output; tanh between them.
        batch: rows per step.
        rate: learning rate of plain gradient descent.
        agree: epochs after which the losses are compared.
        data: X (n, layers[0]) float32, y (n,) int32, W0.. and b0.. float32, and `orders`
            (epochs, n) int32, the order of the rows in each epoch.
    """

    name: str
    layers: tuple[int, ...]
    batch: int
    rate: float
    agree: int
    data: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        return len(self.data["X"])

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.rows // self.batch

    @property
    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The initial (W, b) of each layer; W has the shape (in, out)."""
        return [(self.data[f"W{i}"], self.data[f"b{i}"]) for i in range(len(self.layers) - 1)]

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch as (steps, batch); the stored orders are used in a circle."""
        orders = self.data["orders"]
        return orders[epoch % len(orders)].reshape(self.steps, self.batch)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products in one step.

        Forward and weight gradient for every layer, input gradient for all but the first.
        """
        sizes = [a * b for a, b in pairwise(self.layers)]
        return 2 * self.batch * (3 * sum(sizes) - sizes[0])


def make(name: str) -> Workload:
    """Make a workload from its fixed seed.

    Raises: KeyError when there is none of that name.
    """
    layers, batch, rate, agree = SPECIFICATIONS[name]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    n = len(pixels) // batch * batch
    generator = np.random.default_rng(20)
    data = {"X": (pixels[:n] / 16).astype(np.float32), "y": labels[:n].astype(np.int32)}
    for i, (fan_in, fan_out) in enumerate(pairwise(layers)):
        bound = 1 / math.sqrt(fan_in)
        data[f"W{i}"] = generator.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32)
        data[f"b{i}"] = generator.uniform(-bound, bound, fan_out).astype(np.float32)
    data["orders"] = np.stack([row_order(epoch, n) for epoch in range(ORDERS)])
    return Workload(name, layers, batch, rate, agree, data)


def row_order(epoch: int, n: int, seed: int = 0) -> np.ndarray:
    """The order in which a `Trainer` takes the rows in an epoch, so that its peers do the same.

    A Fisher-Yates shuffle whose i-th draw is `mix(key + i)`, the key a hash of seed and epoch; see
    codegen/runtime/orders.py. Should the two ever differ, the losses do not agree, and the bench
    says so.
    """
    key = _mix(_mix(seed + _GOLDEN) + epoch * _GOLDEN)
    order = np.arange(n, dtype=np.int32)
    for i in range(n - 1, 0, -1):
        j = (_mix(key + i * _GOLDEN) >> 32) * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    return order


_GOLDEN, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1


def _mix(z: int) -> int:
    """The finaliser of splitmix64."""
    z &= _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    return z ^ z >> 31


def save(workload: Workload, path: Path) -> None:
    """Write the arrays of a workload for the contestants."""
    np.savez(path, **workload.data)


def load(name: str, path: Path) -> Workload:
    """Read a workload that `save` wrote."""
    layers, batch, rate, agree = SPECIFICATIONS[name]
    with np.load(path) as arrays:
        return Workload(name, layers, batch, rate, agree, dict(arrays))


ORDERS = 64  # distinct epochs
SPECIFICATIONS: dict[str, tuple[tuple[int, ...], int, float, int]] = {
    "mlp_small": ((64, 32, 10), 32, 0.1, 10),
    "mlp_mid": ((64, 256, 256, 10), 128, 0.05, 10),
}
