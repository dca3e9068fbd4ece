"""Recurrent cells in NumPy by hand: paper gradients, products of inputs and weights outside loops.

Gates lie side by side as (T, B, gates n). A cell's `forward` turns what it gets from its input,
z[t], into its gates, in place, and gives the next state; `backward` turns the gates into the
cotangents of z[t] + h[t] Wh, in place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.bench.workloads import GATES, Recurrent, Workload

f32 = np.float32
Array = np.ndarray


def _sigmoid(z: Array) -> None:
    np.multiply(z, f32(0.5), out=z)
    np.tanh(z, out=z)
    z += f32(1)
    z *= f32(0.5)


class Rnn:
    """h' = tanh(z)."""

    def __init__(self, spec: Recurrent, steps: int) -> None:
        self.n = spec.hidden

    def forward(self, t: int, z: Array, product: Array, h: Array, after: Array) -> None:
        """Gates in z, the next state in `after`; `product` is h Wh."""
        np.tanh(np.add(z, product, out=z), out=z)
        after[...] = z

    def start(self) -> None:
        """Nothing is carried back but h_ct."""

    def backward(self, t: int, z: Array, h: Array, h_ct: Array, product: Array) -> Array:
        """Cotangents of z in z, of h Wh in the result; what reaches h directly in h_ct."""
        np.multiply(z, z, out=product)
        np.subtract(f32(1), product, out=product)
        np.multiply(h_ct, product, out=z)
        h_ct[...] = 0
        return z


class Gru:
    """r, u = sigmoid; n = tanh(x_n + r p_n); h' = n + u (h - n), p = h Wh."""

    def __init__(self, spec: Recurrent, steps: int) -> None:
        self.n = spec.hidden
        self.products = np.empty((steps, spec.batch, spec.hidden), f32)

    def forward(self, t: int, z: Array, product: Array, h: Array, after: Array) -> None:
        n = self.n
        z[:, : 2 * n] += product[:, : 2 * n]
        _sigmoid(z[:, : 2 * n])
        self.products[t] = product[:, 2 * n :]
        new = z[:, 2 * n :]
        new += z[:, :n] * self.products[t]
        np.tanh(new, out=new)
        np.subtract(h, new, out=after)
        after *= z[:, n : 2 * n]
        after += new

    def start(self) -> None:
        pass

    def backward(self, t: int, z: Array, h: Array, h_ct: Array, product: Array) -> Array:
        n = self.n
        r, u, new = (z[:, k * n : (k + 1) * n] for k in range(3))
        to_n = h_ct * (1 - u) * (1 - new * new)
        to_u = h_ct * (h - new) * u * (1 - u)
        h_ct *= u
        product[:, 2 * n :] = to_n * r
        r *= to_n * self.products[t] * (1 - r)
        u[...], new[...] = to_u, to_n
        product[:, : 2 * n] = z[:, : 2 * n]
        return product


class Lstm:
    """i, f, o = sigmoid, g = tanh; c' = f c + i g; h' = o tanh(c')."""

    def __init__(self, spec: Recurrent, steps: int) -> None:
        self.n = spec.hidden
        self.cells = np.zeros((steps + 1, spec.batch, spec.hidden), f32)
        self.tanhs = np.empty((steps, spec.batch, spec.hidden), f32)
        self.c_ct = np.empty((spec.batch, spec.hidden), f32)

    def forward(self, t: int, z: Array, product: Array, h: Array, after: Array) -> None:
        n = self.n
        z += product
        _sigmoid(z[:, : 2 * n])
        np.tanh(z[:, 2 * n : 3 * n], out=z[:, 2 * n : 3 * n])
        _sigmoid(z[:, 3 * n :])
        cell = np.multiply(z[:, n : 2 * n], self.cells[t], out=self.cells[t + 1])
        cell += z[:, :n] * z[:, 2 * n : 3 * n]
        np.tanh(cell, out=self.tanhs[t])
        np.multiply(z[:, 3 * n :], self.tanhs[t], out=after)

    def start(self) -> None:
        self.c_ct[...] = 0

    def backward(self, t: int, z: Array, h: Array, h_ct: Array, product: Array) -> Array:
        n = self.n
        i, f, g, o = (z[:, k * n : (k + 1) * n] for k in range(4))
        tanh = self.tanhs[t]
        self.c_ct += h_ct * o * (1 - tanh * tanh)
        to_i, to_g = self.c_ct * g, self.c_ct * i
        to_i *= i * (1 - i)
        to_g *= 1 - g * g
        o *= h_ct * tanh * (1 - o)
        to_f = self.c_ct * self.cells[t]
        to_f *= f * (1 - f)
        self.c_ct *= f
        i[...], f[...], g[...] = to_i, to_f, to_g
        h_ct[...] = 0
        return z


CELLS = {"rnn": Rnn, "gru": Gru, "lstm": Lstm}


class Network:
    """The network with its buffers: one step of training."""

    def __init__(self, workload: Workload) -> None:
        self.spec = spec = workload.recurrent
        self.p = {k: v.copy() for k, v in workload.parameters.items()}
        self.g = {k: np.zeros_like(v) for k, v in self.p.items()}
        t, b, n = spec.length, spec.batch, spec.hidden
        self.cell = CELLS[spec.cell](spec, t)
        wide = GATES[spec.cell] * n
        self.z = np.empty((t, b, wide), f32)
        self.h = np.zeros((t + 1, b, n), f32)
        self.out = np.empty((t * b, spec.symbols), f32)
        self.h_ct = np.empty((t, b, n), f32)
        self.product = np.empty((b, wide), f32)
        # what reaches h Wh, where it is not what reaches z
        self.through = np.empty((t, b, wide), f32) if spec.cell == "gru" else self.z

    def forward(self, x: Array, y: Array) -> float:
        """The mean loss; its cotangents by the logits are left in `out`."""
        p, spec = self.p, self.spec
        self.x = x.T.ravel()
        np.matmul(p["E"][self.x], p["Wx"], out=self.z.reshape(len(self.x), -1))
        self.z += p["b"]
        for t in range(spec.length):
            np.matmul(self.h[t], p["Wh"], out=self.product)
            self.cell.forward(t, self.z[t], self.product, self.h[t], self.h[t + 1])
        out, row = self.out, np.arange(len(self.x))
        np.matmul(self.h[1:].reshape(len(row), -1), p["Wo"], out=out)
        out += p["bo"]
        out -= out.max(1, keepdims=True)
        y = y.T.ravel()
        chosen = out[row, y]
        np.exp(out, out=out)
        total = out.sum(1)
        out *= (f32(1 / len(row)) / total)[:, None]
        out[row, y] -= f32(1 / len(row))
        return float((np.log(total) - chosen).mean())

    def backward(self) -> None:
        """Gradients of all parameters."""
        p, g, spec = self.p, self.g, self.spec
        rows = len(self.x)
        np.matmul(self.h[1:].reshape(rows, -1).T, self.out, out=g["Wo"])
        np.sum(self.out, 0, out=g["bo"])
        np.matmul(self.out, p["Wo"].T, out=self.h_ct.reshape(rows, -1))
        carried = np.zeros_like(self.h[0])
        turned = np.ascontiguousarray(p["Wh"].T)
        self.cell.start()
        for t in reversed(range(spec.length)):
            carried += self.h_ct[t]
            through = self.cell.backward(t, self.z[t], self.h[t], carried, self.product)
            if self.through is not self.z:
                self.through[t] = through
            carried += through @ turned
        z_ct = self.z.reshape(rows, -1)
        np.matmul(self.h[:-1].reshape(rows, -1).T, self.through.reshape(rows, -1), out=g["Wh"])
        np.matmul(p["E"][self.x].T, z_ct, out=g["Wx"])
        np.sum(z_ct, 0, out=g["b"])
        g["E"][...] = 0
        np.add.at(g["E"], self.x, z_ct @ p["Wx"].T)

    def update(self) -> None:
        """A step against the gradient, clipped."""
        norm = np.sqrt(sum(np.vdot(g, g) for g in self.g.values()))
        rate = f32(self.spec.rate * self.spec.clip / max(norm, self.spec.clip))
        for name, g in self.g.items():
            g *= rate
            self.p[name] -= g


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    x, y, orders = workload.data["X"], workload.data["y"], workload.orders
    network = Network(workload)
    done = 0

    def train(epochs: int) -> list[float]:
        nonlocal done
        means = []
        for _ in range(epochs):
            losses = []
            for rows in orders[done % len(orders)]:
                losses.append(network.forward(x[rows], y[rows]))
                network.backward()
                network.update()
            means.append(float(np.mean(losses)))
            done += 1
        return means

    return train
