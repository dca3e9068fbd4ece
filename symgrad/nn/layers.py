"""Layers as functions on expressions.

A layer makes its parameters at its first call, when it sees the last extent of its argument; every
further call uses the same ones, so calling a layer twice shares its weights.

Names. The parameters of a layer are called `layer/W`. The layer's name is the user's, or follows
from the place where it is first called: the first Dense on the way from the inputs is `dense_1`,
the next `dense_2`. So the same program gives the same names, in every process, and a saved model
finds its values again. `Sequential(.., name="encoder")` puts `encoder/` before the names of its
layers: that is how several models live in one graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

from symgrad.graph.arithmetic import multiply, square, subtract
from symgrad.graph.contractions import matmul
from symgrad.graph.dims import printable, show
from symgrad.graph.dtypes import DEFAULT, DType, DTypeLike, as_dtype, is_float, is_int
from symgrad.graph.elementwise import rsqrt
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.indexing import take
from symgrad.graph.leaves import ArrayLike, Init, as_node, cast, parameter, parameters
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.reductions import mean
from symgrad.graph.streams import as_number, dropout
from symgrad.init import normal

#: A function from one expression to another: a layer, or a verb such as `sg.tanh`.
Function = Callable[[Node], Node]


class Layer:
    """A function on expressions with parameters of its own.

    A subclass says what it computes in `apply`, and asks for its parameters there by
    `self.parameter("W", shape)`: they are made once.

    Args:
        name: put before the names of the parameters; default: from the place of the first call.

    >>> class Scale(Layer):
    ...     def apply(self, x):
    ...         return x * self.parameter("factor", (x.shape[-1],), init=1.0)
    >>> layer = Scale()
    >>> y = layer(sg.input("x", (3, 5)))
    >>> [p.name for p in layer.parameters]
    ['scale_1/factor']
    """

    def __init__(self, name: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise LeafError(f"{self.kind}: the name must be a non-empty string, got {name!r}.")
        self.given = name
        self.prefix = ""
        self._begin()

    def _begin(self) -> None:
        self._name: str | None = None
        self._own: dict[str, Input] = {}
        self._calls: dict[Node, Node] = {}

    @property
    def kind(self) -> str:
        """What it is, as names say it: `layer_norm` for LayerNorm."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def name(self) -> str:
        """The name; before the first call, of a layer that was given none, its kind."""
        return self._name or self.prefix + (self.given or self.kind)

    @property
    def parameters(self) -> tuple[Input, ...]:
        """The parameters in the order in which they were made.

        Raises: LeafError before the first call: shapes follow from the argument.
        """
        if self._name is None:
            raise LeafError(
                f"{self.name}: a layer has no parameters before its first call. "
                "Call it on an expression: their shapes follow from it."
            )
        return tuple(self._own.values())

    @property
    def calls(self) -> tuple[tuple[Node, Node], ...]:
        """What the layer was called on and what it returned, call by call."""
        return tuple((x, y) for y, x in self._calls.items())

    def place(self, prefix: str) -> None:
        """Put a prefix before the name of a layer that has not been called yet."""
        if self._name is None:
            self.prefix = prefix + self.prefix

    def fresh(self) -> Self:
        """A layer of the same settings that has not been called: it makes parameters of its own.

        >>> first = Dense(5)
        >>> y = first.fresh()(first(sg.input("x", (3, 5))))
        >>> [p.name for p in sg.parameters(y)]
        ['dense_1/W', 'dense_1/b', 'dense_2/W', 'dense_2/b']
        """
        return self._fresh({})

    def _fresh(self, made: dict[Layer, Layer]) -> Self:
        """Layers inside are made anew too; one that stands twice does so again."""

        def again(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(again, value))
            if not isinstance(value, Layer):
                return value
            return made[value] if value in made else value._fresh(made)

        other = made[self] = copy(self)
        other._begin()
        for name, value in vars(self).items():
            if isinstance(value, (Layer, tuple)):
                setattr(other, name, again(value))
        return other

    def apply(self, x: Node) -> Node:
        """The formula of the layer."""
        raise TypeError(f"{type(self).__name__} has no formula: write its method apply(self, x).")

    def __call__(self, x: ArrayLike) -> Node:
        """The layer's formula on `x`.

        Raises: LeafError when a leaf of `x` has the name of a parameter that is made here.
        """
        node = as_node(x)
        with self._building(node):
            result = self.apply(node)
        return self._returned(node, result)

    def _returned(self, x: Node, y: Node) -> Node:
        """Remember a call."""
        self._calls[y] = x
        return y

    @contextmanager
    def _building(self, *read: Node) -> Iterator[None]:
        """Within it parameters can be made: at the first call the layer gets its name.

        Args:
            read: the arguments of the call.
        """
        first = self._name is None
        if first:
            self._name = self._free_name(read)
        try:
            yield
        except BaseException:
            if first:  # a call that failed makes no parameters
                self._name = None
                self._own.clear()
            raise

    def parameter(
        self, label: str, shape: tuple[Any, ...], init: Init = None, dtype: DType = DEFAULT
    ) -> Input:
        """The parameter `name/label`, made when it is first asked for.

        Raises: ShapeError when it is asked for in another shape than before.
        """
        if label not in self._own:
            for extent in shape:
                if type(extent) is not int:
                    raise ShapeError(
                        f"{self.name}: {label!r} has the shape {show(shape)}, but a parameter "
                        "needs numbers. Give that axis of the argument an extent in numbers."
                    )
            self._own[label] = parameter(f"{self.name}/{label}", shape, init, dtype)
        own = self._own[label]
        if own.shape != tuple(shape):
            raise ShapeError(
                f"{self.name}: was made for another shape\n  has    {describe(own)}\n"
                f"  asked  {show(shape)}\n  Make another layer, or reshape the argument."
            )
        return own

    def _free_name(self, read: Sequence[Node]) -> str:
        """The user's name, or the first number that no leaf of the arguments has."""
        taken = {leaf.name: leaf for leaf in parameters(read)}
        if self.given is not None:
            name = self.prefix + self.given
            for leaf in taken.values():
                if leaf.name.startswith(f"{name}/"):
                    raise LeafError(
                        f"{printable(name)}: the argument has a layer of this name already\n"
                        f"  {describe(leaf)}\n"
                        "  Names are unique in a graph. Give one of the two another name, or call "
                        "one layer twice to share its weights."
                    )
            return name
        layers = {name[:k] for name in taken for k, sign in enumerate(name) if sign == "/"}
        number = 1
        while f"{self.prefix}{self.kind}_{number}" in layers:
            number += 1
        return f"{self.prefix}{self.kind}_{number}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {printable(self.name)}>"


class Dense(Layer):
    """An affine map of the last axis, then an activation.

        y = activation(x W + b)        x (*rows, n)   W (n, units)   b (units,)   y (*rows, units)

    Args:
        units:      the extent of the result's last axis.
        activation: a function from an expression to one of its shape, such as `sg.tanh`.
        bias:       whether there is a `b`.
        init:       of W; default: uniform, Glorot and Bengio 2010.
        bias_init:  of b.
        name:       see `Layer`.
    Raises: ShapeError when the last extent of `x` is no number.

    >>> x = sg.input("x", (sg.dim("B"), 64))
    >>> y = Dense(32, sg.tanh)(x)
    >>> y.shape, [(p.name, p.shape) for p in sg.parameters(y)]
    ((B, 32), [('dense_1/W', (64, 32)), ('dense_1/b', (32,))])
    """

    def __init__(
        self,
        units: int,
        activation: Function | None = None,
        bias: bool = True,
        init: Init = None,
        bias_init: Init = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.units = checked_count("Dense", "units", units)
        self.activation = checked_function("Dense", activation) if activation is not None else None
        self.bias, self.init, self.bias_init = bias, init, bias_init

    def apply(self, x: Node) -> Node:
        """`activation(x W + b)`."""
        x = as_floats(self, x, axes=1)
        y = matmul(x, self.parameter("W", (x.shape[-1], self.units), self.init, x.dtype))
        if self.bias:
            y = y + self.parameter("b", (self.units,), self.bias_init, x.dtype)
        return self.activation(y) if self.activation is not None else y


class Embedding(Layer):
    """A table with one row per integer.

        y[.., k] = W[x[..], k]        x (*rows) of integers   W (count, units)   y (*rows, units)

    Its derivative adds the cotangents of equal integers: a row that was not read gets 0.

    Args:
        count: rows of the table; integers are below it.
        units: the extent of the result's last axis.
        init:  of W; default: normal with a standard deviation of 0.05.
        dtype: of W.
        name:  see `Layer`.
    Raises: DTypeError for an argument that is no integer; DataError when a value is out of range.

    >>> words = sg.input("words", (sg.dim("B"), 7), dtype="int32")
    >>> Embedding(1000, 16)(words).shape
    (B, 7, 16)
    """

    def __init__(
        self,
        count: int,
        units: int,
        init: Init = None,
        dtype: DTypeLike = DEFAULT,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.count = checked_count("Embedding", "count", count)
        self.units = checked_count("Embedding", "units", units)
        self.init = normal() if init is None else init
        self.dtype = as_dtype(dtype)

    def apply(self, x: Node) -> Node:
        """`W[x]`."""
        if not is_int(x.dtype):
            raise DTypeError(
                f"{self.name}: an embedding reads at integers\n  {describe(x)}\n"
                "  Declare the input with dtype='int32'."
            )
        return take(self.parameter("W", (self.count, self.units), self.init, self.dtype), x, axis=0)


class LayerNorm(Layer):
    """Mean 0 and variance 1 along the last axis, then a scale and a shift that are learned.

        y = scale (x - m) / sqrt(v + epsilon) + shift

        m = mean(x),  v = mean((x - m)^2)  along the last axis        x, y (*rows, n)
        scale, shift (n,), at first 1 and 0

    Args:
        epsilon:      added to the variance.
        scale, shift: whether there is one.
        name:         see `Layer`.
    Source: Ba, Kiros and Hinton 2016 (arXiv 1607.06450).

    >>> x = sg.input("x", (3, 5))
    >>> y = LayerNorm()(x)
    >>> sg.evaluate(y, {x: [[0, 1, 2, 3, 4]] * 3})[0].astype(float).round(3).tolist()
    [-1.414, -0.707, 0.0, 0.707, 1.414]
    """

    def __init__(
        self, epsilon: float = 1e-5, scale: bool = True, shift: bool = True, name: str | None = None
    ) -> None:
        super().__init__(name)
        if not as_number("LayerNorm: epsilon", epsilon) >= 0.0:
            raise SymgradError(f"LayerNorm: epsilon must be at least 0, got {epsilon!r}.")
        self.epsilon, self.scale, self.shift = float(epsilon), scale, shift

    def apply(self, x: Node) -> Node:
        """`scale (x - m) / sqrt(v + epsilon) + shift`."""
        x = as_floats(self, x, axes=1)
        distance = subtract(x, mean(x, axis=-1, keepdims=True))
        variance = mean(square(distance), axis=-1, keepdims=True)
        y = multiply(distance, rsqrt(variance + self.epsilon))
        if self.scale:
            y = y * self.parameter("scale", (x.shape[-1],), 1.0, x.dtype)
        if self.shift:
            y = y + self.parameter("shift", (x.shape[-1],), 0.0, x.dtype)
        return y


class Dropout(Layer):
    """Zeros at random while training, the rest scaled up so that the mean stays.

        y = x mask / (1 - rate) while training, with mask ~ Bernoulli(1 - rate);   else y = x

    Each call draws a mask of its own.

    Args:
        rate: the probability of a zero, in [0, 1).
        name: see `Layer`.
    Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float, name: str | None = None) -> None:
        super().__init__(name)
        if not 0.0 <= as_number("Dropout: rate", rate) < 1.0:
            raise SymgradError(f"Dropout: rate must be in [0, 1), got {rate!r}.")
        self.rate = float(rate)

    def apply(self, x: Node) -> Node:
        """`dropout(x, rate)`."""
        return dropout(x, self.rate)


class Sequential(Layer):
    """Functions one after the other: `y = f_n(.. f_2(f_1(x)))`.

    Args:
        layers: layers, models, or verbs such as `sg.tanh`.
        name:   put before the names of the layers inside, `name/`; without one they are named as
                if they stood alone.

    >>> x = sg.input("x", (sg.dim("B"), 64))
    >>> model = Sequential([Dense(32), sg.tanh, Dense(10)], name="tagger")
    >>> model(x).shape, [p.name for p in model.parameters][::2]
    ((B, 10), ['tagger/dense_1/W', 'tagger/dense_2/W'])
    """

    def __init__(self, layers: Sequence[Function], name: str | None = None) -> None:
        super().__init__(name)
        if not isinstance(layers, Iterable):
            raise SymgradError(f"Sequential: give a list of layers, got {layers!r:.60}.")
        self.layers = tuple(checked_function("Sequential", layer) for layer in layers)
        if name is not None:
            self._place_layers(f"{name}/")

    def place(self, prefix: str) -> None:
        """Put a prefix before the names of all layers inside."""
        super().place(prefix)
        self._place_layers(prefix)

    def _place_layers(self, prefix: str) -> None:
        for layer in dict.fromkeys(self.layers):
            if isinstance(layer, Layer):
                layer.place(prefix)

    @property
    def parameters(self) -> tuple[Input, ...]:
        """The parameters of all layers inside, each once, in order."""
        inside = [layer for layer in self.layers if isinstance(layer, Layer)]
        return tuple(dict.fromkeys(p for layer in inside for p in layer.parameters))

    def apply(self, x: Node) -> Node:
        """All layers in order."""
        for layer in self.layers:
            x = layer(x)
        return x

    def _free_name(self, read: Sequence[Node]) -> str:
        return self.prefix + (self.given or self.kind)

    def __repr__(self) -> str:
        return f"<Sequential {printable(self.name)} of {len(self.layers)}>"


# -- checks ----------------------------------------------------------------------------------------
def checked_count(asked: str, label: str, value: int) -> int:
    """Raises: ShapeError for what is no integer of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ShapeError(f"{asked}: {label} must be an integer of at least 1, got {value!r}.")
    return int(value)


def checked_function(asked: str, value: Function) -> Function:
    """Raises: SymgradError for what cannot be called."""
    if not callable(value):
        raise SymgradError(
            f"{asked}: expected a layer or a function of one expression, such as sg.tanh, "
            f"got {value!r:.60}."
        )
    return value


def as_floats(layer: Layer, x: Node, axes: int) -> Node:
    """The argument as floats, with at least so many axes."""
    if x.ndim < axes:
        raise ShapeError(f"{layer.name}: needs at least {axes} axis\n  {describe(x)}")
    return x if is_float(x.dtype) else cast(x, DEFAULT)
