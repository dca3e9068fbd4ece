"""Initialisers: variance, fans, seeds, text and JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from symgrad import init
from symgrad.graph.errors import ShapeError, SymgradError

CASES = {
    "constant": {"value": 1.5},
    "normal": {"mean": 0.25, "std": 0.5},
    "uniform": {"low": -0.5, "high": 0.25},
}


def make(name: str) -> init.Initializer:
    return init.MAKERS[name](**CASES.get(name, {}))


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize("name", init.MAKERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shape_dtype_and_seed(name: str, dtype: str) -> None:
    value = make(name)((5, 7), rng(), dtype)
    assert value.shape == (5, 7) and value.dtype == dtype and value.flags.c_contiguous
    assert value.flags.writeable
    np.testing.assert_array_equal(value, make(name)((5, 7), rng(), dtype))
    if dtype == "float32":
        np.testing.assert_array_equal(value, make(name)((5, 7), rng(), "float64").astype(dtype))


@pytest.mark.parametrize("name", init.MAKERS)
def test_text_and_json_make_it_again(name: str) -> None:
    one = make(name)
    call, _, options = repr(one).partition("(")
    assert call == name and options.endswith(")")
    assert init.Initializer.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert hash(one) == hash(make(name))


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("normal", 0.25),
        ("uniform", 0.75**2 / 12),
        ("glorot_uniform", 2 / 500),
        ("glorot_normal", 2 / 500),
        ("he_uniform", 2 / 300),
        ("he_normal", 2 / 300),
        ("critical", 1.760955 / 300),
    ],
)
def test_variance(name: str, variance: float) -> None:
    value = make(name)((300, 200), rng(), "float64")
    assert np.var(value) == pytest.approx(variance, rel=0.03)
    mean = {"normal": 0.25, "uniform": -0.125}.get(name, 0.0)
    assert np.mean(value) == pytest.approx(mean, abs=5 * math.sqrt(variance / value.size))


@pytest.mark.parametrize(("name", "fan"), [("glorot_uniform", 500), ("he_uniform", 300)])
def test_uniform_bound(name: str, fan: int) -> None:
    value = make(name)((300, 200), rng(), "float64")
    bound = math.sqrt(6 / fan)
    assert 0.99 * bound < np.abs(value).max() <= bound


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (2, 3, 5)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    value = init.orthogonal(2.0)(shape, rng(), "float64").reshape(-1, shape[-1])
    small = value.T @ value if value.shape[0] >= value.shape[1] else value @ value.T
    np.testing.assert_allclose(small, 4.0 * np.eye(len(small)), atol=1e-12)


def test_identity_and_scalars() -> None:
    np.testing.assert_array_equal(init.identity(3.0)((3, 5), rng(), "float32"), 3 * np.eye(3, 5))
    assert init.constant(2)((), rng(), "float32") == np.float32(2)
    assert init.glorot_uniform()((), rng(), "float32").shape == ()
    assert init.he_normal()((0, 4), rng(), "float32").shape == (0, 4)


def test_critical_line() -> None:
    assert dict(init.critical().options)["sigma_w2"] == pytest.approx(1.760955, abs=1e-6)
    assert dict(init.critical(sigma_b2=0.0).options)["sigma_w2"] == pytest.approx(1.0, abs=1e-3)
    assert dict(init.critical(2.5, 0.1).options) == {"sigma_w2": 2.5, "sigma_b2": 0.1}
    bias = init.critical()((4000,), rng(), "float64")
    assert np.var(bias) == pytest.approx(0.05, rel=0.1)


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"orthogonal: needs a shape of at least two axes.*\(5,\)"):
        init.orthogonal()((5,), rng(), "float32")
    with pytest.raises(SymgradError, match="std must be finite and at least 0, got -1"):
        init.normal(std=-1)
    with pytest.raises(SymgradError, match="low must not exceed high"):
        init.uniform(1.0, 0.0)
    with pytest.raises(SymgradError, match="describes no initialiser"):
        init.Initializer.from_json({"name": "os.system"})
