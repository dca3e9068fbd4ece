"""Initialisers: what a parameter holds before it is trained.

An initialiser is a frozen record, called as `init(shape, rng, dtype)`. It draws in float64 from the
NumPy generator that it is given and rounds once, so that one seed gives the same network in every
dtype. Its text is the call that makes it, and `to_json` / `from_json` carry it through a file.

Fans of a shape (.., in, out): fan_in = in * r and fan_out = out * r, where r is the product of the
axes before. A vector of n has both fans n; a scalar has both fans 1.

Sources: Glorot and Bengio 2010; He et al. 2015 (arXiv 1502.01852); Saxe et al. 2014
(arXiv 1312.6120); the critical line of tanh: Poole et al. 2016 (arXiv 1606.05340).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from symgrad.graph.errors import ShapeError, SymgradError
from symgrad.graph.streams import as_number

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Initializer:
    """A way to fill a parameter: `init(shape, rng, dtype)` is an array.

    >>> init = normal(std=0.5)
    >>> init
    normal(mean=0.0, std=0.5)
    >>> init((2, 3), np.random.default_rng(0), "float32").shape
    (2, 3)
    """

    name: str
    options: tuple[tuple[str, float], ...] = ()

    def __call__(self, shape: Sizes, rng: np.random.Generator, dtype: npt.DTypeLike) -> Array:
        """Fill a fresh array of `shape`.

        Raises: ShapeError when the initialiser is not defined for the shape.
        """
        filled = _FILL[self.name](tuple(shape), rng, **dict(self.options))
        return np.array(filled, dtype=dtype, order="C")

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.options)})"

    def to_json(self) -> dict[str, str | float]:
        """Name and options as a flat dictionary.

        >>> constant(2.0).to_json()
        {'name': 'constant', 'value': 2.0}
        """
        return {"name": self.name, **dict(self.options)}

    @classmethod
    def from_json(cls, record: Mapping[str, str | float]) -> Initializer:
        """The initialiser that `to_json` described.

        Raises: SymgradError when there is none of that name and those options.

        >>> Initializer.from_json({"name": "constant", "value": 2.0})
        constant(value=2.0)
        """
        options = {k: v for k, v in record.items() if k != "name"}
        try:
            made: Initializer = MAKERS[str(record["name"])](**options)
        except (KeyError, TypeError):
            raise SymgradError(
                f"init: {record!r} describes no initialiser. Known: {', '.join(MAKERS)}."
            ) from None
        return made


def fans(shape: Sizes) -> tuple[int, int]:
    """`(fan_in, fan_out)` of a shape, see the module.

    >>> fans((64, 32)), fans((3, 3, 8, 16)), fans((5,)), fans(())
    ((64, 32), (72, 144), (5, 5), (1, 1))
    """
    if len(shape) < 2:
        n = shape[0] if shape else 1
        return n, n
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


# -- what the user writes --------------------------------------------------------------------------
def zeros() -> Initializer:
    """All zero."""
    return Initializer("zeros")


def ones() -> Initializer:
    """All one."""
    return Initializer("ones")


def constant(value: float) -> Initializer:
    """All `value`."""
    return _make("constant", value=value)


def normal(mean: float = 0.0, std: float = 0.05) -> Initializer:
    """Gaussian: `x ~ N(mean, std^2)`."""
    return _make("normal", mean=mean, std=_positive("normal", "std", std))


def uniform(low: float = -0.05, high: float = 0.05) -> Initializer:
    """Uniform: `x ~ U[low, high)`.

    Raises: SymgradError when low is above high.
    """
    if not as_number("uniform: low", low) <= as_number("uniform: high", high):
        raise SymgradError(f"uniform: low must not exceed high, got low={low!r}, high={high!r}.")
    return _make("uniform", low=low, high=high)


def glorot_uniform(gain: float = 1.0) -> Initializer:
    """`x ~ U[-a, a)` with `a = gain sqrt(6 / (fan_in + fan_out))`.  Glorot and Bengio 2010."""
    return _make("glorot_uniform", gain=_positive("glorot_uniform", "gain", gain))


def glorot_normal(gain: float = 1.0) -> Initializer:
    """`x ~ N(0, gain^2 2 / (fan_in + fan_out))`.  Glorot and Bengio 2010."""
    return _make("glorot_normal", gain=_positive("glorot_normal", "gain", gain))


def he_uniform(gain: float = 1.0) -> Initializer:
    """`x ~ U[-a, a)` with `a = gain sqrt(6 / fan_in)`.  He et al. 2015."""
    return _make("he_uniform", gain=_positive("he_uniform", "gain", gain))


def he_normal(gain: float = 1.0) -> Initializer:
    """`x ~ N(0, gain^2 2 / fan_in)`.  He et al. 2015."""
    return _make("he_normal", gain=_positive("he_normal", "gain", gain))


def orthogonal(gain: float = 1.0) -> Initializer:
    """A uniformly random matrix with `x' x = gain^2 1`, or `x x' = gain^2 1` where it is wide.

    Leading axes are rows. Raises: ShapeError for fewer than two axes.  Saxe et al. 2014.
    """
    return _make("orthogonal", gain=_positive("orthogonal", "gain", gain))


def identity(gain: float = 1.0) -> Initializer:
    """`x[.., i, j] = gain (i == j)`. Raises: ShapeError for fewer than two axes."""
    return _make("identity", gain=gain)


def critical(sigma_w2: float | None = None, sigma_b2: float = 0.05) -> Initializer:
    """Wide tanh layers in which gradients neither vanish nor explode: `chi_1 = 1`.

        weights  x ~ N(0, sigma_w2 / fan_in)        biases (one axis)  x ~ N(0, sigma_b2)

    Args:
        sigma_w2: left out, it is the value on the critical line for sigma_b2 (1.760955 for 0.05).
        sigma_b2: variance of a bias, at least 0.

    Source: Poole et al. 2016.

    >>> critical()
    critical(sigma_w2=1.760955, sigma_b2=0.05)
    """
    _positive("critical", "sigma_b2", sigma_b2)
    if sigma_w2 is None:
        sigma_w2 = round(_critical_variance(float(sigma_b2)), 6)
    return _make(
        "critical", sigma_w2=_positive("critical", "sigma_w2", sigma_w2), sigma_b2=sigma_b2
    )


MAKERS: MappingProxyType[str, Callable[..., Initializer]] = MappingProxyType({
    make.__name__: make
    for make in (
        zeros, ones, constant, normal, uniform, glorot_uniform, glorot_normal,
        he_uniform, he_normal, orthogonal, identity, critical,
    )
})


def _make(name: str, **options: float) -> Initializer:
    return Initializer(name, tuple((k, as_number(f"{name}: {k}", v)) for k, v in options.items()))


def _positive(asked: str, name: str, value: float) -> float:
    if not (math.isfinite(as_number(f"{asked}: {name}", value)) and value >= 0):
        raise SymgradError(f"{asked}: {name} must be finite and at least 0, got {value!r}.")
    return value


# -- how each fills --------------------------------------------------------------------------------
def _constant(shape: Sizes, rng: np.random.Generator, value: float) -> Floats:
    return np.full(shape, value)


def _normal(shape: Sizes, rng: np.random.Generator, mean: float, std: float) -> Floats:
    return mean + std * rng.standard_normal(shape)


def _uniform(shape: Sizes, rng: np.random.Generator, low: float, high: float) -> Floats:
    return low + (high - low) * rng.random(shape)


def _symmetric(shape: Sizes, rng: np.random.Generator, variance: float) -> Floats:
    # U[-a, a) has the variance a^2 / 3
    half = math.sqrt(3.0 * variance)
    return half * (2.0 * rng.random(shape) - 1.0)


def _glorot(shape: Sizes, gain: float) -> float:
    return gain * gain * 2.0 / max(sum(fans(shape)), 1)


def _he(shape: Sizes, gain: float) -> float:
    return gain * gain * 2.0 / max(fans(shape)[0], 1)


def _orthogonal(shape: Sizes, rng: np.random.Generator, gain: float) -> Floats:
    rows, columns = _matrix("orthogonal", shape)
    drawn = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # Q of a positive R is uniform
    return gain * (q if rows >= columns else q.T).reshape(shape)


def _identity(shape: Sizes, rng: np.random.Generator, gain: float) -> Floats:
    _matrix("identity", shape)
    return np.broadcast_to(gain * np.eye(shape[-2], shape[-1]), shape)


def _critical(
    shape: Sizes, rng: np.random.Generator, sigma_w2: float, sigma_b2: float
) -> Floats:
    variance = sigma_b2 if len(shape) < 2 else sigma_w2 / max(fans(shape)[0], 1)
    return math.sqrt(variance) * rng.standard_normal(shape)


def _matrix(asked: str, shape: Sizes) -> tuple[int, int]:
    if len(shape) < 2:
        raise ShapeError(
            f"{asked}: needs a shape of at least two axes, got {shape}. Use zeros() for a vector."
        )
    return math.prod(shape[:-1]), shape[-1]


_FILL: dict[str, Callable[..., Floats]] = {
    "zeros": lambda shape, rng: np.zeros(shape),
    "ones": lambda shape, rng: np.ones(shape),
    "constant": _constant,
    "normal": _normal,
    "uniform": _uniform,
    "glorot_uniform": lambda shape, rng, gain: _symmetric(shape, rng, _glorot(shape, gain)),
    "glorot_normal": lambda shape, rng, gain: _normal(
        shape, rng, 0.0, math.sqrt(_glorot(shape, gain))
    ),
    "he_uniform": lambda shape, rng, gain: _symmetric(shape, rng, _he(shape, gain)),
    "he_normal": lambda shape, rng, gain: _normal(shape, rng, 0.0, math.sqrt(_he(shape, gain))),
    "orthogonal": _orthogonal,
    "identity": _identity,
    "critical": _critical,
}


@lru_cache(maxsize=64)
def _critical_variance(sigma_b2: float) -> float:
    """sigma_w^2 on the critical line of tanh, by bisection on the variance q of a pre-activation.

        sigma_w^2 = 1 / E[tanh'(sqrt(q) u)^2]        sigma_b^2 = q - sigma_w^2 E[tanh(sqrt(q) u)^2]

    The right side of the second equation grows with q from 0.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()

    def on_the_line(q: float) -> tuple[float, float]:
        squared = np.tanh(math.sqrt(q) * points) ** 2
        weight = float(1.0 / (weights @ (1.0 - squared) ** 2))
        return weight, q - weight * float(weights @ squared)

    low, high = 0.0, 1.0
    while on_the_line(high)[1] < sigma_b2 and high < 64.0:
        high *= 2.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if on_the_line(middle)[1] < sigma_b2 else (low, middle)
    return on_the_line(0.5 * (low + high))[0]
