"""Mean-field values against a table computed independently with 200 Gauss-Hermite nodes."""

from __future__ import annotations

import numpy as np
import pytest

from symgrad.graph.errors import DataError
from symgrad.insight.mean_field import (
    chi_1,
    correlation_fixed_point,
    critical_sigma_w2,
    depth_scale,
    fixed_point,
    growth,
    next_variance,
)

# sigma_w^2, q*, chi_1, c*, depth scale xi = |1 / ln chi_1| signed; sigma_b^2 = 0.05
TABLE = [
    (1.0, 0.193593, 0.759032, 1.0),
    (1.3, 0.315316, 0.880164, 1.0),
    (1.5, 0.418037, 0.938636, 1.0),
    (1.7, 0.533076, 0.986741, 1.0),
    (2.0, 0.721762, 1.047666, 0.744082),
    (2.5, 1.063958, 1.133516, 0.446804),
    (4.0, 2.195494, 1.342402, 0.165065),
]
CRITICAL = [
    (0.0001, 1.086026),
    (0.01, 1.424205),
    (0.05, 1.760955),
    (0.1, 1.986073),
    (0.2, 2.285152),
    (0.3, 2.505127),
]


@pytest.mark.parametrize(("sigma_w2", "q", "chi", "c"), TABLE)
def test_fixed_points(sigma_w2: float, q: float, chi: float, c: float) -> None:
    assert fixed_point(sigma_w2, 0.05) == pytest.approx(q, abs=2e-6)
    assert chi_1(sigma_w2, 0.05) == pytest.approx(chi, abs=2e-6)
    assert correlation_fixed_point(sigma_w2, 0.05) == pytest.approx(c, abs=2e-6)


@pytest.mark.parametrize(("sigma_b2", "sigma_w2"), CRITICAL)
def test_critical_line(sigma_b2: float, sigma_w2: float) -> None:
    assert critical_sigma_w2(sigma_b2) == pytest.approx(sigma_w2, abs=2e-6)
    assert chi_1(critical_sigma_w2(sigma_b2), sigma_b2) == pytest.approx(1.0, abs=1e-9)


def test_fixed_point_is_fixed_and_reached_by_iteration() -> None:
    q = 3.0
    for _ in range(200):
        q = next_variance(q, 2.5, 0.05)
    assert q == pytest.approx(fixed_point(2.5, 0.05), abs=1e-10)


def test_without_bias_an_ordered_network_dies_out() -> None:
    assert fixed_point(0.9, 0.0) == 0.0
    assert chi_1(0.9, 0.0) == pytest.approx(0.9)
    assert fixed_point(1.5, 0.0) > 0.1


def test_growth_agrees_with_sampling() -> None:
    u = np.random.default_rng(0).standard_normal(2_000_000)
    sampled = 1.7 * np.mean((1 - np.tanh(np.sqrt(0.6) * u) ** 2) ** 2)
    assert growth(0.6, 1.7) == pytest.approx(sampled, rel=2e-3)


def test_depth_scale() -> None:
    assert depth_scale(0.880164) == pytest.approx(7.8341, abs=1e-3)
    assert depth_scale(1.133516) < 0
    assert depth_scale(1.0) == float("inf")


def test_negative_variances_are_refused() -> None:
    with pytest.raises(DataError, match="negative"):
        fixed_point(-1.0, 0.05)
