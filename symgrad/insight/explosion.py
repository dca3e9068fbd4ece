"""Vanishing, critical, exploding: one deep tanh network at three initialisations, and the theory.

    h_l = tanh(h_{l-1} W_l + b_l),  l = 1..depth,    L = <c, h_depth>,  c random

The squared norm of dL/dh_l, walked back through a layer, grows by chi_1 (`mean_field.py`). Inputs
start at the fixed point, h_0 = tanh(sqrt(q*) u), so that the growth is the same in every layer.
Growth is measured through symgrad's own gradients and averaged geometrically over layers and seeds.
Follows Poole et al. 2016 (arXiv 1606.05340) and Schoenholz et al. 2017 (arXiv 1611.01232).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from symgrad.calculus.vjp import grad
from symgrad.graph.elementwise import tanh
from symgrad.graph.evaluator import evaluate
from symgrad.graph.leaves import input as input_leaf, parameter
from symgrad.graph.nodes import Node
from symgrad.insight.mean_field import chi_1, fixed_point

WEIGHT_VARIANCES = (1.3, 1.76, 2.5)
BIAS_VARIANCE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """Measured growth of the gradient at one initialisation.

    Fields:
        sigma_w2, sigma_b2: variance of a weight times the fan-in, and of a bias.
        squared_norms: (seeds, depth + 1), ||dL/dh_l||^2 for l = 0..depth.
        measured: growth per layer, geometric mean over layers and seeds.
        theory: chi_1.
    """

    sigma_w2: float
    sigma_b2: float
    squared_norms: np.ndarray
    measured: float
    theory: float

    @property
    def state(self) -> str:
        """What theory calls it: chi_1 within 1 % of one counts as critical."""
        if abs(self.theory - 1.0) < 0.01:
            return "critical"
        return "vanishing" if self.theory < 1.0 else "exploding"


def measure_growth(
    sigma_w2: float,
    sigma_b2: float = BIAS_VARIANCE,
    depth: int = 30,
    width: int = 200,
    seeds: int = 10,
) -> Growth:
    """Growth of the squared gradient norm per layer of a random tanh network.

        measured = exp(mean over seeds of ln(||dL/dh_0||^2 / ||dL/dh_depth||^2) / depth)

    Args:
        sigma_w2: variance of a weight times the fan-in.
        sigma_b2: variance of a bias.
        depth: layers.
        width: units per layer; the theory holds for wide layers.
        seeds: networks to average over; seed k draws from `default_rng(k)`.
    """
    hidden, gradients = _network(depth, width)
    squared = np.empty((seeds, depth + 1))
    for seed in range(seeds):
        values = _draw(np.random.default_rng(seed), sigma_w2, sigma_b2, depth, width)
        arrays = evaluate(list(gradients), values)
        squared[seed] = [float(np.sum(np.square(np.asarray(a, np.float64)))) for a in arrays]
    assert len(hidden) == depth + 1
    rates = np.log(squared[:, 0] / squared[:, -1]) / depth
    return Growth(
        sigma_w2, sigma_b2, squared, float(np.exp(rates.mean())), chi_1(sigma_w2, sigma_b2)
    )


def _network(depth: int, width: int) -> tuple[list[Node], tuple[Node, ...]]:
    """The layers h_0..h_depth and the gradient with respect to each."""
    hidden: list[Node] = [input_leaf("h0", (1, width), dtype="float64")]
    for k in range(1, depth + 1):
        weight = parameter(f"W{k}", (width, width), dtype="float64")
        bias = parameter(f"b{k}", (width,), dtype="float64")
        hidden.append(tanh(hidden[-1] @ weight + bias))
    cotangent = input_leaf("c", (1, width), dtype="float64")
    loss = (hidden[-1] * cotangent).sum()
    return hidden, tuple(grad(loss, hidden))


def _draw(
    random: np.random.Generator, sigma_w2: float, sigma_b2: float, depth: int, width: int
) -> dict[str, np.ndarray]:
    q = fixed_point(sigma_w2, sigma_b2)
    values = {
        "h0": np.tanh(np.sqrt(q) * random.standard_normal((1, width))),
        "c": random.standard_normal((1, width)),
    }
    for k in range(1, depth + 1):
        values[f"W{k}"] = np.sqrt(sigma_w2 / width) * random.standard_normal((width, width))
        values[f"b{k}"] = np.sqrt(sigma_b2) * random.standard_normal(width)
    return values


def explosion_figure(path: str | os.PathLike[str], quick: bool = False) -> tuple[Growth, ...]:
    """Measure three initialisations and draw them beside the theory.

    Args:
        path: where to; the ending (svg, png, pdf) says which form.
        quick: three networks of width 100 instead of ten of width 200.
    Returns: the measurements, one per initialisation.
    Raises: SymgradError when Matplotlib is missing, DataError when the file cannot be written.
    """
    from symgrad.insight.plots import plot_growth, save_figure

    width, seeds = (100, 3) if quick else (200, 10)
    measured = tuple(measure_growth(w, width=width, seeds=seeds) for w in WEIGHT_VARIANCES)
    save_figure(plot_growth(measured), path)
    return measured
