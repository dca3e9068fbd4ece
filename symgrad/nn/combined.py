"""Recurrent layers made of others: in both directions, and one above the other."""

from __future__ import annotations

from collections.abc import Sequence

from symgrad.graph.dims import Shape
from symgrad.graph.dtypes import DEFAULT, DTypeLike
from symgrad.graph.errors import SymgradError
from symgrad.graph.leaves import ArrayLike, as_node
from symgrad.graph.nodes import Input, Node
from symgrad.graph.shapes import concatenate
from symgrad.graph.streams import as_number, dropout
from symgrad.nn.layers import Layer, Sequential
from symgrad.nn.recurrent import Carry, Recurrent, as_sequences, carried, one_each


class Bidirectional(Layer):
    """A recurrent layer that walks through time, and another that walks back.

        y[t] = [forward(x)[t], backward(x)[t]]        x (*rows, T, n)   y (*rows, T, 2 units)

    So y[t] has seen all of x: forward what lies before t, backward what comes after. It can tag a
    sequence, but not predict the next element.

    Args:
        forward:  a layer that has not been called yet, such as `LSTM(128)`.
        backward: the layer of the other direction; default: one like `forward`.
        name:     see `Layer`. The two are named `name/forward` and `name/backward`.
    The carry is a pair: that of forward after x[T-1], that of backward after x[0].
    Source: Schuster and Paliwal 1997.

    >>> from symgrad.nn.recurrent import LSTM
    >>> x = sg.input("x", (sg.dim("B"), sg.dim("T"), 3))
    >>> ys = Bidirectional(LSTM(5))(x)
    >>> ys.shape, [p.name for p in sg.parameters(ys)][::3]
    ((B, T, 10), ['bidirectional_1/forward/W', 'bidirectional_1/backward/W'])
    """

    def __init__(
        self, forward: Recurrent, backward: Recurrent | None = None, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.forward = _recurrent("Bidirectional: forward", forward)
        other = self.forward.fresh() if backward is None else backward
        self.backward = _recurrent("Bidirectional: backward", other)
        self.forward.given, self.backward.given = "forward", "backward"

    @property
    def parameters(self) -> tuple[Input, ...]:
        """The parameters of both directions."""
        return self.forward.parameters + self.backward.parameters

    def run(
        self,
        x: ArrayLike,
        initial: Carry = None,
        lengths: ArrayLike | None = None,
        reverse: bool = False,
        truncate: int | None = None,
        checkpoint: int | str | None = None,
    ) -> tuple[Node, Carry]:
        """All steps of both: ys (*rows, T, 2 units), and both carries; see `Recurrent.run`.

        Args:
            x, lengths, truncate, checkpoint: as there; both share a budget. With lengths, backward
                begins at each row's last step.
            initial: two carries.
            reverse: let the two change their directions.
        """
        node = as_sequences(self, x)
        with self._building(node, *carried(initial)):
            first, second = (
                (None, None) if initial is None else one_each(self, "initial", initial, 2)
            )
            for layer in (self.forward, self.backward):
                layer.prefix = f"{self.name}/"
            how = truncate, checkpoint
            there, after = self.forward.run(node, first, lengths, reverse, *how)
            back, before = self.backward.run(node, second, lengths, not reverse, *how)
            result = concatenate([there, back], axis=-1)
        return self._returned(node, result), (after, before)

    def apply(self, x: Node) -> Node:
        """`ys` of `run`."""
        return self.run(x)[0]


class Stacked(Sequential):
    """Recurrent layers one above the other: each reads what the one below returns.

        y = f_n(.. drop(f_2(drop(f_1(x)))))

    Args:
        layers: recurrent layers; Bidirectional ones too, where no single steps are needed.
        rate:   of dropout between the layers, see `sg.dropout`.
        name:   see `Sequential`.
    The carry is a tuple of theirs.
    Source of dropout between layers only, not from step to step: Zaremba et al. 2014
    (arXiv 1409.2329).

    >>> from symgrad.nn.recurrent import GRU
    >>> x = sg.input("x", (sg.dim("B"), 7, 3))
    >>> ys, (first, second) = Stacked([GRU(5), GRU(4)], rate=0.2, name="deep").run(x)
    >>> ys.shape, first.shape, sg.parameters(ys)[0].name
    ((B, 7, 4), (B, 5), 'deep/gru_1/W')
    """

    def __init__(
        self,
        layers: Sequence[Recurrent | Bidirectional],
        rate: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(layers, name)
        self.layers: tuple[Recurrent | Bidirectional, ...]
        for layer in self.layers:
            if not isinstance(layer, (Recurrent, Bidirectional)):
                raise SymgradError(
                    f"Stacked: needs recurrent layers, such as LSTM(128), got {layer!r:.60}. "
                    "Others go into a Sequential around it."
                )
        if not self.layers:
            raise SymgradError("Stacked: needs at least one layer, such as LSTM(128).")
        if not 0.0 <= as_number("Stacked: rate", rate) < 1.0:
            raise SymgradError(f"Stacked: rate must be in [0, 1), got {rate!r}.")
        self.rate = float(rate)

    def start(self, rows: Shape = (), dtype: DTypeLike = DEFAULT) -> Carry:
        """The carries of all layers before the first step."""
        return tuple(layer.start(rows, dtype) for layer in self._steppers())

    def step(self, carry: Carry, x: ArrayLike) -> tuple[Carry, Node]:
        """One step of all layers."""
        node = as_node(x)
        with self._building(node):
            after = []
            carries = one_each(self, "carry", carry, len(self.layers))
            for k, (layer, own) in enumerate(zip(self._steppers(), carries, strict=True)):
                own, node = layer.step(own, self._dropped(node) if k else node)
                after.append(own)
        return tuple(after), node

    def run(
        self,
        x: ArrayLike,
        initial: Carry = None,
        lengths: ArrayLike | None = None,
        truncate: int | None = None,
        checkpoint: int | str | None = None,
    ) -> tuple[Node, Carry]:
        """All steps of all layers, one layer after the other; see `Recurrent.run`.

        All layers share a budget of memory, `checkpoint="64 MB"`.
        """
        node = result = as_sequences(self, x)
        with self._building(node, *carried(initial)):
            count = len(self.layers)
            starts = (
                (None,) * count if initial is None else one_each(self, "initial", initial, count)
            )
            after = []
            for k, (layer, own) in enumerate(zip(self.layers, starts, strict=True)):
                below = self._dropped(result) if k else result
                result, last = layer.run(
                    below, own, lengths, truncate=truncate, checkpoint=checkpoint
                )
                after.append(last)
        return self._returned(node, result), tuple(after)

    def apply(self, x: Node) -> Node:
        """`ys` of `run`."""
        return self.run(x)[0]

    def _dropped(self, x: Node) -> Node:
        return dropout(x, self.rate) if self.rate else x

    def _steppers(self) -> list[Recurrent]:
        found = [layer for layer in self.layers if isinstance(layer, Recurrent)]
        if len(found) < len(self.layers):
            raise SymgradError(
                f"{self.name}: a Bidirectional layer needs the whole sequence: it has no single "
                "step. Use run(x)."
            )
        return found


def _recurrent(asked: str, layer: object) -> Recurrent:
    if not isinstance(layer, Recurrent) or layer._name is not None:
        raise SymgradError(
            f"{asked} must be a recurrent layer that has not been called yet, such as LSTM(128), "
            f"got {layer!r:.60}."
        )
    return layer
