"""Mean-field theory of wide random tanh networks: what growth of the gradient to expect.

A layer is  z = h W + b,  h = tanh(z),  with  W_ij ~ N(0, sigma_w^2 / fan_in)  and
b_j ~ N(0, sigma_b^2). When the layer is wide, the entries of z are Gaussian with a variance q that
obeys a recursion from layer to layer, and the squared norm of a gradient that walks back through
a layer is multiplied by chi_1:

    q'    = sigma_w^2 E[tanh(sqrt(q) u)^2] + sigma_b^2            u ~ N(0, 1)
    chi_1 = sigma_w^2 E[tanh'(sqrt(q*) u)^2]                      q* the fixed point of q

chi_1 < 1: gradients vanish (the ordered phase); chi_1 > 1: they explode (the chaotic phase).
Expectations are Gauss-Hermite sums. Sources: Poole et al. 2016 (arXiv 1606.05340), Schoenholz et
al. 2017 (arXiv 1611.01232).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from symgrad.graph.errors import DataError

_NODES = 200  # points of the Gauss-Hermite sum: tanh needs no more for q below about 10


@lru_cache(maxsize=1)
def _gauss_hermite() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return points, weights / np.sqrt(2.0 * np.pi)


def next_variance(q: float, sigma_w2: float, sigma_b2: float) -> float:
    """Variance of the pre-activations of the next layer.

        q' = sigma_w^2 E[tanh(sqrt(q) u)^2] + sigma_b^2

    Args:
        q: variance of this layer's pre-activations.
        sigma_w2: variance of a weight times the fan-in.
        sigma_b2: variance of a bias.

    >>> round(next_variance(0.315316, 1.3, 0.05), 5)
    0.31532
    """
    u, weight = _gauss_hermite()
    return float(sigma_w2 * (weight @ np.tanh(np.sqrt(q) * u) ** 2) + sigma_b2)


def growth(q: float, sigma_w2: float) -> float:
    """Factor by which one layer multiplies the squared norm of a gradient.

        chi(q) = sigma_w^2 E[(1 - tanh(sqrt(q) u)^2)^2]

    Args:
        q: variance of the layer's pre-activations.
        sigma_w2: variance of a weight times the fan-in.

    >>> round(growth(0.0, 1.7), 6)
    1.7
    """
    u, weight = _gauss_hermite()
    slope = 1.0 - np.tanh(np.sqrt(q) * u) ** 2
    return float(sigma_w2 * (weight @ slope**2))


def fixed_point(sigma_w2: float, sigma_b2: float) -> float:
    """The variance q* that a deep network settles at: q* = q'(q*).

    Args:
        sigma_w2: variance of a weight times the fan-in, at least 0.
        sigma_b2: variance of a bias, at least 0.
    Raises: DataError for negative variances.

    >>> round(fixed_point(2.5, 0.05), 5)
    1.06396
    """
    if sigma_w2 < 0 or sigma_b2 < 0:
        raise DataError(
            f"fixed_point: variances cannot be negative, got sigma_w2={sigma_w2}, "
            f"sigma_b2={sigma_b2}."
        )
    # q' - q is concave in q: positive at 0 (or q = 0 is the only root when sigma_b2 = 0 and
    # sigma_w2 <= 1), negative at sigma_w2 + sigma_b2. Bisection cannot miss the positive root.
    if sigma_b2 == 0 and sigma_w2 <= 1:
        return 0.0
    low, high = (sigma_b2 or 1e-12), sigma_w2 + sigma_b2 + 1e-9
    return _bisect(lambda q: next_variance(q, sigma_w2, sigma_b2) - q, low, high)


def chi_1(sigma_w2: float, sigma_b2: float) -> float:
    """Growth of the squared gradient norm per layer, deep inside the network.

        chi_1 = sigma_w^2 E[tanh'(sqrt(q*) u)^2]

    Args:
        sigma_w2: variance of a weight times the fan-in.
        sigma_b2: variance of a bias.

    >>> round(chi_1(1.3, 0.05), 5)
    0.88016
    """
    return growth(fixed_point(sigma_w2, sigma_b2), sigma_w2)


def correlation_fixed_point(sigma_w2: float, sigma_b2: float) -> float:
    """The correlation c* that two different inputs settle at.

        c' = (sigma_w^2 E[tanh(z_1) tanh(z_2)] + sigma_b^2) / q*,
        z_1, z_2 Gaussian with variance q* and correlation c

    It is 1 in the ordered phase (all inputs look alike in the end) and below 1 in the chaotic one.

    Args:
        sigma_w2: variance of a weight times the fan-in.
        sigma_b2: variance of a bias.

    >>> round(correlation_fixed_point(2.5, 0.05), 4)
    0.4468
    """
    q = fixed_point(sigma_w2, sigma_b2)
    if q == 0.0 or growth(q, sigma_w2) <= 1.0:
        return 1.0
    u, weight = _gauss_hermite()
    first = np.tanh(np.sqrt(q) * u)

    def residual(c: float) -> float:
        second = np.tanh(np.sqrt(q) * (c * u[:, None] + np.sqrt(1.0 - c * c) * u[None, :]))
        product = (weight * first) @ (second @ weight)
        return float(sigma_w2 * product + sigma_b2) / q - c

    # c = 1 is always a root; in the chaotic phase it repels and the other one lies below it.
    return _bisect(residual, 0.0, 1.0 - 1e-6)


def critical_sigma_w2(sigma_b2: float) -> float:
    """The weight variance at which chi_1 is 1: neither vanishing nor exploding.

    Args:
        sigma_b2: variance of a bias, at least 0.

    >>> round(critical_sigma_w2(0.05), 6)
    1.760955
    """
    return _bisect(lambda w: 1.0 - chi_1(w, sigma_b2), 1.0, 16.0)


def depth_scale(chi: float) -> float:
    """Layers over which a squared gradient norm changes by the factor e: xi = -1 / ln(chi).

    Positive when gradients vanish, negative when they explode, infinite at chi = 1.

    >>> round(depth_scale(0.938636), 2)
    15.79
    """
    return float("inf") if chi == 1.0 else float(-1.0 / np.log(chi))


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """The root between `low`, where `f` is positive, and `high`, where it is negative."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if f(middle) > 0.0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
