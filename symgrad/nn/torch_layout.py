"""Weights of recurrent layers in the layout of PyTorch's nn.RNN, nn.GRU and nn.LSTM, and back.

Neither function needs PyTorch: both speak of arrays by the names of a `state_dict`.

    here                          PyTorch, per layer k = 0, 1, ..: add _reverse for backward
    W (n, gates * units)          weight_ih_lk (gates * units, n)        W^T
    U (units, gates * units)      weight_hh_lk (gates * units, units)    U^T
    b (gates * units,)            bias_ih_lk + bias_hh_lk, added up
    d (units,) of a GRU           the last third of bias_hh_lk; the rest of it belongs to b

The order of the gates is the same: r, z, m of a GRU (PyTorch calls m n); i, f, g, o of an LSTM.
Stacked layers are l0, l1, ..; both directions of a Bidirectional layer are l0 and l0_reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from symgrad.graph.dims import listed, quoted
from symgrad.graph.errors import LeafError, ShapeError, SymgradError
from symgrad.nn.combined import Bidirectional, Stacked
from symgrad.nn.recurrent import GRU, LSTM, Recurrent

Array = npt.NDArray[Any]
Layered = Recurrent | Bidirectional | Stacked


def from_torch(layer: Layered, weights: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
    """The values of a layer's parameters from PyTorch's weights.

    Args:
        layer:   a layer that has been called: it has names and shapes.
        weights: a `state_dict`, or arrays by its names; what no layer needs is ignored.
        prefix:  before PyTorch's names, such as "encoder.".
    Returns: arrays by parameter name, as `evaluate`, compiled functions and, joined to
        `trainer.state`, `trainer.restore` take them.
    Raises: LeafError for a name that is missing, ShapeError for another shape, SymgradError for a
        layer that PyTorch has not.

    >>> from symgrad.nn.recurrent import RNN
    >>> layer = RNN(2)
    >>> y = layer(sg.input("x", (5, 3)))
    >>> weights = {"weight_ih_l0": np.ones((2, 3)), "weight_hh_l0": np.zeros((2, 2)),
    ...            "bias_ih_l0": np.array([1.0, 2.0]), "bias_hh_l0": np.array([3.0, 4.0])}
    >>> from_torch(layer, weights)["rnn_1/b"].tolist()
    [4.0, 6.0]
    """
    found: dict[str, Array] = {}
    for part, suffix in _parts(layer):
        wih, whh, bih, bhh = (_weight(weights, f"{prefix}{n}_{suffix}") for n in _NAMES)
        values = {"W": wih.T, "U": whh.T, "b": bih + bhh}
        if isinstance(part, GRU):
            kept = 2 * part.units
            values["b"] = bih + np.concatenate([bhh[:kept], np.zeros_like(bhh[kept:])])
            values["d"] = bhh[kept:]
        for leaf in part.parameters:
            value = values[leaf.name.rpartition("/")[2]]
            if value.shape != leaf.shape:
                raise ShapeError(
                    f"from_torch: {quoted(leaf.name)} has the shape {leaf.shape}, PyTorch's "
                    f"weights of {suffix} give {value.shape}. Are units and features the same?"
                )
            found[leaf.name] = np.ascontiguousarray(value, leaf.dtype)
    return found


def to_torch(layer: Layered, values: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
    """PyTorch's weights from the values of a layer's parameters.

    Args:
        layer:  a layer that has been called.
        values: arrays by parameter name, such as `trainer.parameters`.
        prefix: before PyTorch's names.
    Returns: arrays by the names of a `state_dict`. b is all in bias_ih; bias_hh is 0 but for d.
    Raises: LeafError for a value that is missing, SymgradError for a layer that PyTorch has not.

    >>> from symgrad.nn.recurrent import LSTM
    >>> layer = LSTM(2)
    >>> y = layer(sg.input("x", (5, 3)))
    >>> values = {p.name: np.zeros(p.shape, "float32") for p in layer.parameters}
    >>> {name: w.shape for name, w in to_torch(layer, values).items()}
    {'weight_ih_l0': (8, 3), 'weight_hh_l0': (8, 2), 'bias_ih_l0': (8,), 'bias_hh_l0': (8,)}
    """
    found: dict[str, Array] = {}
    for part, suffix in _parts(layer):
        own = {leaf.name.rpartition("/")[2]: _weight(values, leaf.name) for leaf in part.parameters}
        rest = np.zeros_like(own["b"])
        if "d" in own:
            rest[2 * part.units :] = own["d"]
        for name, value in zip(_NAMES, (own["W"].T, own["U"].T, own["b"], rest), strict=True):
            found[f"{prefix}{name}_{suffix}"] = np.ascontiguousarray(value)
    return found


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _parts(layer: Layered) -> Iterator[tuple[Recurrent, str]]:
    """The layers inside with one step each, and where their weights stand."""
    layers = layer.layers if isinstance(layer, Stacked) else (layer,)
    for k, part in enumerate(layers):
        if isinstance(part, Bidirectional):
            yield _known(part.forward), f"l{k}"
            yield _known(part.backward), f"l{k}_reverse"
        else:
            yield _known(part), f"l{k}"


def _known(part: Recurrent) -> Recurrent:
    """Raises: SymgradError for what PyTorch's layers do not compute."""
    if (isinstance(part, LSTM) and part.peepholes) or (
        isinstance(part, GRU) and not part.reset_after
    ):
        what = "peepholes" if isinstance(part, LSTM) else "reset_after=False"
        raise SymgradError(
            f"{part.name}: PyTorch has no layer with {what}. Only layers without it have weights "
            "to exchange; those of others are in trainer.parameters."
        )
    return part


def _weight(weights: Mapping[str, Any], name: str) -> Array:
    if name not in weights:
        raise LeafError(
            f"no weight {quoted(name)}. Given are {listed(map(quoted, weights)) or 'none'}."
        )
    return np.asarray(weights[name])
