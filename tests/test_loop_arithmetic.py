"""Arithmetic of compiled loops at extreme values: nothing is computed in another order."""

from __future__ import annotations

import numpy as np

import symgrad as sg

LEVELS = (1.0, 1e30, 1e-30, 1e20, 3e38, 1e-38, 2e-45, -1e30, 0.0)


def test_products_and_quotients_keep_their_order() -> None:
    """(a / b) / c is not a / (b c), (a b) c not a (b c): one of them may overflow or underflow."""
    a, b, c = (
        x.ravel().astype(np.float32) for x in np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij")
    )
    x, y, z = (sg.input(name, a.shape) for name in "xyz")
    f = sg.compile([x / y / z, x * y * z, x + y + z, x - y - z, x * y / z, x / y * z])
    with np.errstate(all="ignore"):
        wanted = [a / b / c, a * b * c, a + b + c, a - b - c, a * b / c, a / b * c]
    for got, numbers in zip(f(x=a, y=b, z=c), wanted, strict=True):
        np.testing.assert_array_equal(got, numbers)


def test_what_divides_a_row() -> None:
    """One number divides many, at every scale of both; it may have no reciprocal of its format."""
    rng = np.random.default_rng(1)
    for dtype, most in ((np.float32, 126), (np.float64, 1022)):
        info = np.finfo(dtype)
        divisors = np.ldexp(rng.uniform(1, 2, 301), rng.integers(-most, most, 301)).astype(dtype)
        special = (0.0, -0.0, np.inf, -np.inf, np.nan, info.max, info.smallest_subnormal)
        divisors[:9] = (*special, info.smallest_normal / 8, 1.0)
        numbers = np.ldexp(rng.uniform(-2, 2, 203), rng.integers(-most, most, 203)).astype(dtype)
        numbers[:7] = special
        x, s = sg.input("x", (203,), dtype=dtype), sg.input("s", (301,), dtype=dtype)
        got = sg.compile(x / sg.expand_dims(s, 1))(x=numbers, s=divisors)
        with np.errstate(all="ignore"):
            wanted = numbers / divisors[:, None]
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(got[~finite], wanted[~finite])
        np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(wanted[finite]))
        # a unit in the last place, and hardly ever that: a quotient near the middle of two floats
        near = np.abs(np.spacing(np.clip(wanted[finite], -info.max / 2, info.max / 2)))
        apart = np.abs(got[finite].astype(np.longdouble) - wanted[finite])
        assert (apart <= near).all()
        assert (apart > 0).mean() < 1e-3


def test_bounds_and_nan() -> None:
    """The greater and the lesser of a number and a constant, NaN wherever one is NaN."""
    values = np.array([np.nan, -np.inf, -1.0, -0.0, 0.0, 0.5, 2.0, np.inf] * 5, np.float32)
    x = sg.input("x", values.shape)
    bounds = (0.5, 0.0, -0.0, np.inf, -np.inf, np.nan)
    nodes = [verb(*pair) for verb in (sg.maximum, sg.minimum) for b in bounds
             for pair in ((x, b), (b, x))]  # fmt: skip
    rows = sg.maximum(sg.expand_dims(x, 1) * np.ones(17, np.float32), 0.25)
    f = sg.compile([*nodes, sg.clip(x, -1.0, 0.5), rows])
    for got, wanted in zip(
        f(x=values), sg.evaluate([*nodes, sg.clip(x, -1.0, 0.5), rows], {"x": values}), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))
