"""What is computed: data, initial weights and row orders, from which every contestant starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
ORDERS = 64  # distinct epochs


@dataclass(frozen=True, slots=True)
class Training:
    """A network trained on minibatches.

    Attributes:
        layers: widths from the input to the output.
        batch: rows per step.
        activation: between the layers, "tanh" or "relu".
        optimizer: "sgd" or "adam" (with the usual moments 0.9 and 0.999).
        rate: its learning rate.
        rows: rows of random data, labelled by a random linear map; without it, scikit-learn's
            digits.
        agree: epochs after which the losses are compared.
    """

    layers: tuple[int, ...]
    batch: int
    activation: str
    optimizer: str
    rate: float
    rows: int | None = None
    agree: int = 10
    kind: str = "training"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products in one step.

        Forward and weight gradient for every layer, input gradient for all but the first.
        """
        sizes = [a * b for a, b in pairwise(self.layers)]
        return 2 * self.batch * (3 * sum(sizes) - sizes[0])

    def steps(self, data: Arrays) -> int:
        """Steps in an epoch."""
        return len(data["X"]) // self.batch

    def __str__(self) -> str:
        return (
            f"{'-'.join(map(str, self.layers))} {self.activation}, batch {self.batch}, "
            f"{self.optimizer}"
        )

    def make(self) -> Arrays:
        """X (n, layers[0]) float32, y (n,) int32, W0.. and b0.. float32, orders (epochs, n)."""
        generator = np.random.default_rng(20)
        if self.rows is None:
            from sklearn.datasets import load_digits

            pixels, labels = load_digits(return_X_y=True)
            n = len(pixels) // self.batch * self.batch
            data = {"X": (pixels[:n] / 16).astype(np.float32), "y": labels[:n].astype(np.int32)}
        else:
            n = self.rows
            x = generator.normal(size=(n, self.layers[0])).astype(np.float32)
            scores = x @ generator.normal(size=(self.layers[0], self.layers[-1]))
            data = {"X": x, "y": scores.argmax(1).astype(np.int32)}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.layers)):
            bound = 1 / math.sqrt(fan_in)
            data[f"W{i}"] = generator.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32)
            data[f"b{i}"] = generator.uniform(-bound, bound, fan_out).astype(np.float32)
        data["orders"] = np.stack([row_order(epoch, n) for epoch in range(ORDERS)])
        return data


@dataclass(frozen=True, slots=True)
class Hessian:
    """The Hessian of logistic regression, mean(softplus(-y X w)), in w; an "epoch" is one of them.

    Attributes:
        rows: examples.
        width: features, so that the Hessian is (width, width).
        agree: evaluations after which its Frobenius norms are compared.
    """

    rows: int
    width: int
    agree: int = 1
    kind: str = "hessian"

    @property
    def flops(self) -> int:
        """Multiplications and additions of X w and X' diag(s) X."""
        return 2 * self.rows * self.width * (self.width + 1)

    def steps(self, data: Arrays) -> int:
        """Evaluations in an epoch: one."""
        return 1

    def __str__(self) -> str:
        return f"Hessian of logistic regression, X ({self.rows}, {self.width})"

    def make(self) -> Arrays:
        """X (rows, width), y (rows,) of -1 and 1, w (width,), all float32."""
        generator = np.random.default_rng(20)
        x = generator.normal(size=(self.rows, self.width))
        scores = x @ generator.normal(size=self.width) + generator.normal(size=self.rows)
        w = 0.1 * generator.normal(size=self.width)
        data = {"X": x, "y": np.sign(scores), "w": w}
        return {name: array.astype(np.float32) for name, array in data.items()}


@dataclass(frozen=True, slots=True)
class Attention:
    """A Transformer's encoder block that reads a sequence and names the next symbol at each place.

        h = E[x] + P;   h = h + attention(norm(h)) Wo + bo;   h = h + gelu(norm(h) W1 + b1) W2 + b2

    and mean(cross_entropy(h Wc + bc, y)), trained by Adam. Queries, keys and values of all heads
    are one product, norm(h) Wqkv + bqkv; no mask, gelu by tanh.

    Attributes:
        symbols: in the alphabet.
        width: of a state; `heads` of `width / heads` each.
        hidden: width between W1 and W2.
        length: of a sequence.
        batch: sequences per step.
        rows: sequences, drawn from a sparse random Markov chain.
        rate: Adam's learning rate.
        agree: epochs after which the losses are compared.
    """

    symbols: int
    width: int
    heads: int
    hidden: int
    length: int
    batch: int
    rows: int
    rate: float = 1e-3
    agree: int = 1
    kind: str = "attention"
    optimizer: str = "adam"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products in one step.

        Three of each dense layer's; scores and mixtures of values, and two products back of each.
        """
        dense = self.width * (4 * self.width + 2 * self.hidden + self.symbols)
        attention = 2 * self.length * self.width
        return 2 * self.batch * self.length * 3 * (dense + attention)

    def steps(self, data: Arrays) -> int:
        """Steps in an epoch."""
        return len(data["X"]) // self.batch

    def __str__(self) -> str:
        return (
            f"an encoder block, width {self.width}, {self.heads} heads, hidden {self.hidden}, "
            f"{self.batch} sequences of {self.length}, {self.optimizer}"
        )

    def make(self) -> Arrays:
        """X, y (rows, length) int32, the parameters in float32, orders (epochs, rows)."""
        generator = np.random.default_rng(20)
        text = markov_text(generator, self.symbols, self.rows, self.length + 1)
        data = {"X": text[:, :-1].copy(), "y": text[:, 1:].copy()}
        n = self.width
        data["E"] = generator.normal(size=(self.symbols, n)).astype(np.float32)
        data["P"] = (0.1 * generator.normal(size=(self.length, n))).astype(np.float32)
        for k in "12":
            data[f"g{k}"], data[f"c{k}"] = np.ones(n, np.float32), np.zeros(n, np.float32)
        layers = {"qkv": (n, 3 * n), "o": (n, n), "1": (n, self.hidden), "2": (self.hidden, n)}
        for name, (fan_in, fan_out) in (layers | {"c": (n, self.symbols)}).items():
            bound = 1 / math.sqrt(fan_in)
            data[f"W{name}"] = generator.uniform(-bound, bound, (fan_in, fan_out)).astype("f4")
            data[f"b{name}"] = generator.uniform(-bound, bound, fan_out).astype(np.float32)
        data["orders"] = np.stack([row_order(epoch, self.rows) for epoch in range(ORDERS)])
        return data


GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A network that reads a sequence and names the next symbol at each place.

        h[t+1] = cell(h[t], E[x[t]] Wx + b, Wh),   mean(cross_entropy(h[t+1] Wo + bo, y[t]))

    with gates z = E[x] Wx + b + h Wh side by side:

        rnn     h' = tanh(z)
        gru     r, u = sigmoid(z_r), sigmoid(z_u);  n = tanh(x_n + r (h Wh)_n);  h' = n + u (h - n)
        lstm    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
                c' = f c + i g;  h' = o tanh(c')        in the order i, f, g, o

    It starts at zero and is trained by plain gradient descent; the whole gradient is scaled down to
    norm 1 where it is larger.

    Attributes:
        cell: "rnn", "gru" or "lstm".
        symbols: in the alphabet.
        width: of an embedded symbol.
        hidden: width of the state.
        length: of a sequence.
        batch: sequences per step.
        rows: sequences, drawn from a sparse random Markov chain.
        rate: the learning rate.
        clip: the norm of the largest gradient.
        agree: epochs after which the losses are compared.
    """

    cell: str
    symbols: int = 64
    width: int = 32
    hidden: int = 128
    length: int = 100
    batch: int = 32
    rows: int = 256
    rate: float = 0.5
    clip: float = 1.0
    agree: int = 2
    kind: str = "recurrent"
    optimizer: str = "sgd"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products in one step as it is written.

        Three of each product: forward, and by both factors.
        """
        gates = GATES[self.cell] * self.hidden
        products = (self.width + self.hidden) * gates + self.hidden * self.symbols
        return 2 * self.batch * self.length * 3 * products

    def steps(self, data: Arrays) -> int:
        """Steps in an epoch."""
        return len(data["X"]) // self.batch

    def __str__(self) -> str:
        return (
            f"{self.cell} of width {self.hidden} over embedded symbols, {self.batch} sequences of "
            f"{self.length}, {self.optimizer}, clipped"
        )

    def make(self) -> Arrays:
        """X, y (rows, length) int32, the parameters in float32, orders (epochs, rows)."""
        generator = np.random.default_rng(20)
        text = markov_text(generator, self.symbols, self.rows, self.length + 1)
        data = {"X": text[:, :-1].copy(), "y": text[:, 1:].copy()}
        n, gates = self.hidden, GATES[self.cell] * self.hidden
        bound = 1 / math.sqrt(n)
        data["E"] = generator.normal(size=(self.symbols, self.width)).astype(np.float32)
        for name, shape in {
            "Wx": (self.width, gates), "Wh": (n, gates), "b": (gates,),
            "Wo": (n, self.symbols), "bo": (self.symbols,),
        }.items():
            data[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
        data["orders"] = np.stack([row_order(epoch, self.rows) for epoch in range(ORDERS)])
        return data


@dataclass(frozen=True, slots=True)
class Tagger:
    """A network that tags the words of sentences of different lengths, padded to the longest.

        f[t] = LSTM over E[x[0 .. t]];   b[t] = LSTM over E[x[n - 1 .. t]];   t < n, a row's length

    and cross_entropy([f, b] Wo + bo, y), the mean over the words of a batch, trained by Adam. The
    two LSTMs are those of `Recurrent`. A tag depends on a word and the one before it.

    Attributes:
        words: in the vocabulary; number 0 fills the padding.
        width: of an embedded word.
        hidden: width of the state in each direction.
        length: of the longest sentence; lengths are drawn evenly from `shortest` to it.
        tags: that a word may have.
        batch: sentences per step.
        rows: sentences, of random words.
        rate: Adam's learning rate.
        agree: epochs after which the losses are compared.
    """

    words: int = 5000
    width: int = 64
    hidden: int = 64
    length: int = 30
    shortest: int = 5
    tags: int = 17
    batch: int = 32
    rows: int = 1024
    rate: float = 1e-3
    agree: int = 2
    kind: str = "tagger"
    optimizer: str = "adam"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products in one step, padding left out.

        Three of each product, for as many words as a batch has in the mean.
        """
        lstm = (self.width + self.hidden) * GATES["lstm"] * self.hidden
        words = self.batch * (self.shortest + self.length)
        return words * 3 * (2 * lstm + 2 * self.hidden * self.tags)

    def steps(self, data: Arrays) -> int:
        """Steps in an epoch."""
        return len(data["X"]) // self.batch

    def __str__(self) -> str:
        return (
            f"a bidirectional LSTM of width 2 x {self.hidden} over {self.words} embedded words, "
            f"{self.batch} sentences of {self.shortest} to {self.length}, {self.optimizer}"
        )

    def make(self) -> Arrays:
        """X, y (rows, length), lengths (rows,) int32, float32 parameters, orders (epochs, rows)."""
        generator = np.random.default_rng(20)
        lengths = generator.integers(self.shortest, self.length + 1, self.rows)
        is_word = np.arange(self.length) < lengths[:, None]
        x = generator.integers(1, self.words, (self.rows, self.length)) * is_word
        before = np.pad(x, ((0, 0), (1, 0)))[:, :-1]
        data = {"X": x, "y": (x + before) % self.tags * is_word, "lengths": lengths}
        data = {name: array.astype(np.int32) for name, array in data.items()}
        n, gates = self.hidden, GATES["lstm"] * self.hidden
        data["E"] = generator.normal(size=(self.words, self.width)).astype(np.float32)
        cell = {"Wx": (self.width, gates), "Wh": (n, gates), "b": (gates,)}
        shapes = {f"{name}_{way}": shape for way in "fb" for name, shape in cell.items()}
        for name, shape in (shapes | {"Wo": (2 * n, self.tags), "bo": (self.tags,)}).items():
            bound = 1 / math.sqrt(n)
            data[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
        data["orders"] = np.stack([row_order(epoch, self.rows) for epoch in range(ORDERS)])
        return data


def markov_text(generator: np.random.Generator, symbols: int, rows: int, length: int) -> np.ndarray:
    """Sequences (rows, length) int32 from a random Markov chain with four followers of a symbol."""
    follows = generator.integers(0, symbols, (symbols, 4))
    text = np.empty((rows, length), np.int32)
    text[:, 0] = generator.integers(0, symbols, rows)
    for t in range(length - 1):
        text[:, t + 1] = follows[text[:, t], generator.integers(0, 4, rows)]
    return text


Specification = Training | Hessian | Attention | Recurrent | Tagger
SPECIFICATIONS: dict[str, Specification] = {
    "mlp_small": Training((64, 32, 10), 32, "tanh", "sgd", 0.1),
    "mlp_mid": Training((64, 256, 256, 10), 128, "relu", "adam", 1e-3, agree=3),
    "mlp_large": Training((784, 1024, 1024, 10), 256, "relu", "adam", 1e-3, rows=4096, agree=1),
    "attention": Attention(64, 128, 4, 512, 128, batch=16, rows=256),
    "rnn": Recurrent("rnn"),
    "gru": Recurrent("gru"),
    "lstm": Recurrent("lstm"),
    "tagger": Tagger(),
    "logreg_hessian": Hessian(1000, 100),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """A specification by its name on the command line, with its arrays.

    threads: that a contestant may use.
    """

    name: str
    data: Arrays
    threads: int = 1

    @property
    def specification(self) -> Specification:
        return SPECIFICATIONS[self.name]

    @property
    def training(self) -> Training:
        """The specification of a network."""
        specification = self.specification
        assert isinstance(specification, Training)
        return specification

    @property
    def attention(self) -> Attention:
        """The specification of an encoder block."""
        specification = self.specification
        assert isinstance(specification, Attention)
        return specification

    @property
    def recurrent(self) -> Recurrent:
        """The specification of a recurrent network."""
        specification = self.specification
        assert isinstance(specification, Recurrent)
        return specification

    @property
    def tagger(self) -> Tagger:
        """The specification of a tagger."""
        specification = self.specification
        assert isinstance(specification, Tagger)
        return specification

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.specification.steps(self.data)

    @property
    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The initial (W, b) of each layer; W has the shape (in, out)."""
        return [
            (self.data[f"W{i}"], self.data[f"b{i}"]) for i in range(len(self.training.layers) - 1)
        ]

    @property
    def parameters(self) -> Arrays:
        """The initial parameters that have names; weights have the shape (in, out)."""
        return {k: v for k, v in self.data.items() if k not in ("X", "y", "lengths", "orders")}

    @property
    def orders(self) -> list[np.ndarray]:
        """The rows of each epoch as (steps, batch), for epochs 0, 1, ...; used in a circle."""
        return [rows.reshape(self.steps, -1) for rows in self.data["orders"]]


def make(name: str, threads: int = 1) -> Workload:
    """Make a workload from its fixed seed, for so many threads.

    Raises: KeyError when there is none of that name.
    """
    return Workload(name, SPECIFICATIONS[name].make(), threads)


def save(workload: Workload, path: Path) -> None:
    """Write the arrays of a workload for the contestants."""
    np.savez(path, **workload.data)


def load(name: str, path: Path, threads: int = 1) -> Workload:
    """Read a workload that `save` wrote."""
    with np.load(path) as arrays:
        return Workload(name, dict(arrays), threads)


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
