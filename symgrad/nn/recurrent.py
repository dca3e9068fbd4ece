"""Recurrent layers: RNN, GRU, LSTM. Each is one step, `(carry, x) -> (carry, y)`, for `sg.scan`.

    ys = nn.LSTM(128)(x)                                # x (B, T, n): rows, time, features
    ys, (h, c) = nn.LSTM(128).run(x, lengths=lengths)   # and the carry after the last step
    carry, y = layer.step(carry, x_t)                   # one step, to be scanned by hand

Rows come first, time last but one, in arguments and results; without rows a layer takes one
sequence (T, n). All gates of a step are columns of one matrix, in the order in which a docstring
names them, so that a step multiplies twice, and the compiler takes `x W` of all steps out of the
loop as one product.

`lengths` (B,) says how many steps each row has: its carry stays what it was after its own last
step, and ys are 0 from there on, whatever the padding holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from symgrad.graph.contractions import matmul
from symgrad.graph.dims import Shape, same, show
from symgrad.graph.dtypes import DEFAULT, DTypeLike, is_float
from symgrad.graph.elementwise import sigmoid, tanh
from symgrad.graph.errors import ShapeError, SymgradError
from symgrad.graph.leaves import ArrayLike, Init, as_node, cast, zeros
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.scanning import scan
from symgrad.graph.shapes import moveaxis, split
from symgrad.graph.streams import as_number
from symgrad.graph.structure import flatten, outline
from symgrad.init import Sizes, glorot_uniform, orthogonal
from symgrad.nn.layers import Function, Layer, as_floats, checked_count, checked_function

#: What a layer carries from step to step: h (*rows, units), or (h, c) of an LSTM; of layers that
#: hold others, a tuple of theirs.
Carry: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Blocks:
    """An initialiser for matrices side by side: each of `count` blocks of columns on its own."""

    init: Callable[..., npt.NDArray[Any]]
    count: int

    def __call__(
        self, shape: Sizes, rng: np.random.Generator, dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Fill an array of `shape`."""
        part = (*shape[:-1], shape[-1] // self.count)
        return np.concatenate([self.init(part, rng, dtype) for _ in range(self.count)], axis=-1)


def _for_each(gates: int, init: Init) -> Init:
    """An initialiser fills the matrix of each gate; arrays and scalars are of all gates."""
    return Blocks(init, gates) if callable(init) and gates > 1 else init


class Recurrent(Layer):
    """What recurrent layers share. A subclass gives `gates` and `step`.

    Args:
        units:          the extent of the result's last axis.
        init:           of W (n, gates * units); default: uniform, Glorot and Bengio 2010. An
                        initialiser fills the columns of each gate on its own.
        recurrent_init: of U (units, gates * units), likewise; default: orthogonal, Saxe et al.
                        2014.
        name:           see `Layer`.
    """

    gates = 1

    def __init__(
        self, units: int, init: Init = None, recurrent_init: Init = None, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.units = checked_count(type(self).__name__, "units", units)
        self.init = _for_each(self.gates, glorot_uniform() if init is None else init)
        self.recurrent_init = _for_each(
            self.gates, orthogonal() if recurrent_init is None else recurrent_init
        )

    def start(self, rows: Shape = (), dtype: DTypeLike = DEFAULT) -> Carry:
        """The carry before the first step where none is given: zeros.

        Args:
            rows:  extents of the axes before the features: `(B,)`.
            dtype: that of the sequences.
        """
        return zeros((*rows, self.units), dtype)

    def step(self, carry: Carry, x: ArrayLike) -> tuple[Carry, Node]:
        """One step: from the carry and x[t] (*rows, n) to the next carry and y[t]."""
        features = as_floats(self, as_node(x), axes=1)
        _check_carry(self, "carry", carry, self.start())
        with self._building(features):
            return self._step(carry, features)

    def _step(self, carry: Carry, x: Node) -> tuple[Carry, Node]:
        raise TypeError(f"{type(self).__name__} has no step: write its method _step(carry, x).")

    def run(
        self,
        x: ArrayLike,
        initial: Carry = None,
        lengths: ArrayLike | None = None,
        reverse: bool = False,
        truncate: int | None = None,
        checkpoint: int | str | None = None,
    ) -> tuple[Node, Carry]:
        """All steps of `x`: ys of every step, and the carry after the last one.

        Args:
            x:       (*rows, T, n).
            initial: the carry before the first step, in the structure of `start`; default zeros.
            lengths: integers (B,), see the module.
            truncate, checkpoint: see `sg.scan`. checkpoint="64 MB" bounds what derivatives keep.
            reverse: begin at x[T-1]; y[t] still belongs to x[t].
        Returns: ys (*rows, T, units), carry.
        Raises: ShapeError when `x` has no axis of time, or the carry has another shape.
        """
        node = as_sequences(self, x)
        with self._building(node, *carried(initial)):
            carry = self.start(node.shape[:-2], node.dtype)
            if initial is not None:
                _check_carry(self, "initial", initial, carry, shapes=True)
                carry = initial
            if lengths is not None:
                lengths = _per_row(self, node, lengths)
            last, ys = scan(
                self.step, carry, moveaxis(node, -2, 0), reverse, truncate, lengths, checkpoint
            )
            result = moveaxis(ys, 0, -2)
        return self._returned(node, result), last

    def apply(self, x: Node) -> Node:
        """`ys` of `run`."""
        return self.run(x)[0]

    # -- parameters --------------------------------------------------------------------------------
    def _weights(self, x: Node) -> tuple[Input, Input]:
        """W and U."""
        width = self.gates * self.units
        return (
            self.parameter("W", (x.shape[-1], width), self.init, x.dtype),
            self.parameter("U", (self.units, width), self.recurrent_init, x.dtype),
        )

    def _bias(self, x: Node, init: Init = 0.0) -> Input:
        return self.parameter("b", (self.gates * self.units,), init, x.dtype)


class RNN(Recurrent):
    """The simple recurrent network.

        h[t+1] = activation(x[t] W + h[t] U + b),        y[t] = h[t+1]

        x (*rows, T, n)   h (*rows, units)   W (n, units)   U (units, units)   b (units,)

    Args:
        units:          see `Recurrent`, as for init, recurrent_init and name.
        activation:     a function from an expression to one of its shape.
    The carry is h.
    Source: Elman 1990.

    >>> x = sg.input("x", (sg.dim("B"), sg.dim("T"), 3))
    >>> ys, h = RNN(5).run(x)
    >>> ys.shape, h.shape, [(p.name, p.shape) for p in sg.parameters(ys)]
    ((B, T, 5), (B, 5), [('rnn_1/W', (3, 5)), ('rnn_1/U', (5, 5)), ('rnn_1/b', (5,))])
    """

    def __init__(
        self,
        units: int,
        activation: Function = tanh,
        init: Init = None,
        recurrent_init: Init = None,
        name: str | None = None,
    ) -> None:
        super().__init__(units, init, recurrent_init, name)
        self.activation = checked_function("RNN", activation)

    def _step(self, carry: Carry, x: Node) -> tuple[Carry, Node]:
        W, U = self._weights(x)
        h = self.activation(matmul(x, W) + matmul(carry, U) + self._bias(x))
        return h, h


class GRU(Recurrent):
    """The gated recurrent unit: a gate r that forgets, a gate z that keeps.

        r = sigmoid(x W_r + h U_r + b_r)            h' = (1 - z) m + z h,        y = h'
        z = sigmoid(x W_z + h U_z + b_z)
        m = tanh(x W_m + b_m + r (h U_m + d))       or, without reset_after,
        m = tanh(x W_m + b_m + (r h) U_m)

        x (*rows, T, n)   h (*rows, units)   d (units,)
        W = [W_r W_z W_m] (n, 3 units)   U = [U_r U_z U_m] (units, 3 units)   b (3 units,)

    Where z is 1 the state passes unchanged, and so does its cotangent.

    Args:
        units:       see `Recurrent`, as for init, recurrent_init and name.
        reset_after: apply r to the product h U_m instead of to h: one product with U in a step
                     instead of two, and the form that most libraries compute.
    The carry is h.
    Sources: Cho et al. 2014 (arXiv 1406.1078); reset after the product: Appleyard et al. 2016
    (arXiv 1604.01946).

    >>> x = sg.input("x", (sg.dim("B"), sg.dim("T"), 3))
    >>> ys = GRU(5)(x)
    >>> ys.shape, [(p.name, p.shape) for p in sg.parameters(ys)][1:]
    ((B, T, 5), [('gru_1/b', (15,)), ('gru_1/U', (5, 15)), ('gru_1/d', (5,))])
    """

    gates = 3

    def __init__(
        self,
        units: int,
        reset_after: bool = True,
        init: Init = None,
        recurrent_init: Init = None,
        name: str | None = None,
    ) -> None:
        super().__init__(units, init, recurrent_init, name)
        self.reset_after = reset_after

    def _step(self, carry: Carry, x: Node) -> tuple[Carry, Node]:
        h, n = carry, self.units
        W, U = self._weights(x)
        u, v, w = split(matmul(x, W) + self._bias(x), 3, axis=-1)
        if self.reset_after:
            s, t, q = split(matmul(h, U), 3, axis=-1)
            r, z = sigmoid(u + s), sigmoid(v + t)
            m = tanh(w + r * (q + self.parameter("d", (n,), 0.0, x.dtype)))
        else:
            s, t = split(matmul(h, U[:, : 2 * n]), 2, axis=-1)
            r, z = sigmoid(u + s), sigmoid(v + t)
            m = tanh(w + matmul(r * h, U[:, 2 * n :]))
        after = (1.0 - z) * m + z * h
        return after, after


class LSTM(Recurrent):
    """Long short-term memory: a cell c that adds up, behind gates that write, forget and read.

        i = sigmoid(x W_i + h U_i + b_i)        c' = f c + i g
        f = sigmoid(x W_f + h U_f + b_f)        h' = o tanh(c'),        y = h'
        g = tanh(x W_g + h U_g + b_g)
        o = sigmoid(x W_o + h U_o + b_o)

        x (*rows, T, n)   h, c (*rows, units)   W = [W_i W_f W_g W_o] (n, 4 units)
        U = [U_i U_f U_g U_o] (units, 4 units)   b (4 units,)

    Along the cell, dc[T]/dc[0] is the product of the forget gates f (and what goes around through
    h): as long as they are 1, gradients neither vanish nor explode. So b_f starts at 1: f = 0.73.

    With peepholes the gates see the cell: p_i c is added inside i, p_f c inside f, and p_o c' in o,
    with p = (p_i, p_f, p_o), (3, units).

    Args:
        units:       see `Recurrent`, as for init, recurrent_init and name.
        forget_bias: what b_f starts from; the rest of b starts from 0.
        peepholes:   whether gates see the cell; p starts from 0.
    The carry is (h, c).
    Sources: Hochreiter and Schmidhuber 1997; the forget gate: Gers, Schmidhuber and Cummins 2000;
    peepholes: Gers, Schraudolph and Schmidhuber 2002; the bias of 1: Jozefowicz et al. 2015.

    >>> x = sg.input("x", (sg.dim("B"), sg.dim("T"), 3))
    >>> ys, (h, c) = LSTM(5).run(x)
    >>> ys.shape, c.shape, [(p.name, p.shape) for p in sg.parameters(ys)]
    ((B, T, 5), (B, 5), [('lstm_1/W', (3, 20)), ('lstm_1/U', (5, 20)), ('lstm_1/b', (20,))])
    """

    gates = 4

    def __init__(
        self,
        units: int,
        forget_bias: float = 1.0,
        peepholes: bool = False,
        init: Init = None,
        recurrent_init: Init = None,
        name: str | None = None,
    ) -> None:
        super().__init__(units, init, recurrent_init, name)
        self.forget_bias = as_number("LSTM: forget_bias", forget_bias)
        self.peepholes = peepholes

    def start(self, rows: Shape = (), dtype: DTypeLike = DEFAULT) -> Carry:
        """Zeros for h and for c."""
        return super().start(rows, dtype), super().start(rows, dtype)

    def _step(self, carry: Carry, x: Node) -> tuple[Carry, Node]:
        h, c = carry
        W, U = self._weights(x)
        b = self._bias(x, np.repeat([0.0, self.forget_bias, 0.0, 0.0], self.units))
        i, f, g, o = split(matmul(x, W) + matmul(h, U) + b, 4, axis=-1)
        p = self.parameter("p", (3, self.units), 0.0, x.dtype) if self.peepholes else None
        if p is not None:
            i, f = i + p[0] * c, f + p[1] * c
        after = sigmoid(f) * c + sigmoid(i) * tanh(g)
        if p is not None:
            o = o + p[2] * after
        y = sigmoid(o) * tanh(after)
        return (y, after), y


def carried(initial: Carry) -> list[Node]:
    """The expressions of a carry that is given."""
    return [] if initial is None else flatten(initial, "initial")[0]


def as_sequences(layer: Layer, x: ArrayLike) -> Node:
    """The argument as float sequences (*rows, T, n)."""
    node = as_node(x)
    if node.ndim < 2:
        raise ShapeError(
            f"{layer.name}: needs sequences (rows, time, features), or one (time, features)\n"
            f"  {describe(node)}\n  Features of one number: x[..., None]."
        )
    return node if is_float(node.dtype) else cast(node, DEFAULT)


def _check_carry(
    layer: Layer, asked: str, given: Carry, start: Carry, shapes: bool = False
) -> None:
    """Raises: SymgradError when a carry has another structure than `start`, ShapeError likewise."""
    if outline(given) != outline(start):
        raise SymgradError(
            f"{layer.name}: {asked}: a carry of another structure\n  asked  {outline(start)}\n"
            f"  got    {outline(given)}\n  Give what `start` returns, or what `run` and `step` do."
        )
    if not shapes:
        return
    for own, node in zip(flatten(start)[0], flatten(given, asked)[0], strict=True):
        if own.ndim != node.ndim or any(
            same(a, b) is False for a, b in zip(own.shape, node.shape, strict=True)
        ):
            raise ShapeError(
                f"{layer.name}: {asked}: a carry of another shape\n  asked  {show(own.shape)}\n"
                f"  got    {describe(node)}\n  Its rows are those of x, its features the units."
            )


def _per_row(layer: Layer, x: Node, lengths: ArrayLike) -> Node:
    """Raises: ShapeError unless there is a length for each row of x."""
    n = as_node(lengths)
    if x.ndim < 3 or n.ndim != 1 or same(x.shape[0], n.shape[0]) is False:
        raise ShapeError(
            f"{layer.name}: lengths: needs x (B, T, n) and one length a row, (B,)\n"
            f"  {describe(x)}\n  {describe(n)}\n"
            "  One sequence (T, n) has no lengths: slice it, x[:n], or make it a row, x[None]."
        )
    return n


def one_each(layer: Layer, asked: str, given: Carry, parts: int) -> tuple[Carry, ...]:
    """The carries of the layers inside another one.

    Raises: SymgradError unless there is one for each.
    """
    if not isinstance(given, (tuple, list)) or len(given) != parts:
        raise SymgradError(
            f"{layer.name}: {asked}: needs a tuple of {parts} carries, one for each layer inside, "
            f"got {outline(given)}\n  Give what `run` returned, or what `start` of each returns."
        )
    return tuple(given)
