"""Scalar functions for CUDA kernels, in the precision of their arguments.

Numba takes `math.exp` of a float32 as CUDA's own float32 function (libdevice), and so on; what CUDA
lacks is a formula over those. NaN goes through, infinities and signed zeros come out as in NumPy.
Numba's simulator runs Python instead, where `math` knows float64 only and raises on overflow; there
the base functions are NumPy's, and the formulas are the same.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import cuda

SIMULATED = bool(numba.config.ENABLE_CUDASIM)


def device(function: Any) -> Any:
    """A function that is written into each kernel; the simulator calls it as it is."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def _base(real: Any, simulated: Any) -> Any:
    return simulated if SIMULATED else real


def _scipy_erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(x)


def _numpy_power(x: Any, y: Any) -> Any:
    """As for arrays: of a single exponent 0.5 NumPy makes a square root, wrong at -inf."""
    return np.power(x, np.full(1, y))[0]


def _converter(dtype: Any) -> Any:
    """A cast that, like C's, takes NaN to some number."""
    return _base(dtype, lambda x: np.asarray(x).astype(dtype)[()])


exp = _base(math.exp, np.exp)
log = _base(math.log, np.log)
log1p = _base(math.log1p, np.log1p)
expm1 = _base(math.expm1, np.expm1)
sqrt = _base(math.sqrt, np.sqrt)
sin = _base(math.sin, np.sin)
cos = _base(math.cos, np.cos)
tan = _base(math.tan, np.tan)
tanh = _base(math.tanh, np.tanh)
sinh = _base(math.sinh, np.sinh)
cosh = _base(math.cosh, np.cosh)
arctan = _base(math.atan, np.arctan)
erf = _base(math.erf, _scipy_erf)
floor = _base(math.floor, np.floor)
pow = _base(math.pow, _numpy_power)
abs = _base(abs, np.abs)
cast_float32 = _converter(np.float32)
cast_float64 = _converter(np.float64)
cast_int32 = _converter(np.int32)
cast_int64 = _converter(np.int64)
_copysign = _base(math.copysign, np.copysign)
_fmod = _base(math.fmod, np.fmod)


@device
def rsqrt(x):
    """1 / sqrt(x)."""
    return type(x)(1) / sqrt(x)


@device
def sigmoid(x):
    """1 / (1 + exp(-x)); exp overflows to infinity where the result is zero."""
    one = type(x)(1)
    return one / (one + exp(-x))


@device
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    rest = log1p(exp(-abs(x)))
    return rest if x < 0 else x + rest


@device
def sign(x):
    """-1, 0 or 1; NaN of NaN; +0 of either zero."""
    one = type(x)(1)
    zero = type(x)(0)
    return one if x > 0 else (-one if x < 0 else (zero if x == x else x))


@device
def isnan(x):
    """Whether x is no number."""
    return x != x


@device
def isfinite(x):
    """Whether x is neither NaN nor infinite."""
    return x - x == 0


@device
def maximum(x, y):
    """The greater of x and y; NaN if either is."""
    return x if x > y or x != x else y


@device
def minimum(x, y):
    """The lesser of x and y; NaN if either is."""
    return x if x < y or x != x else y


@device
def floor_divide(x, y):
    """floor(x / y): the quotient without its remainder, rounded down."""
    rest = _fmod(x, y)
    quotient = (x - rest) / y
    if rest != 0 and (rest < 0) != (y < 0):
        quotient -= type(x)(1)
    down = floor(quotient)
    if quotient - down > type(x)(0.5):
        down += type(x)(1)
    if quotient == 0:
        down = _copysign(type(x)(0), x / y)
    return x / y if y == 0 else down


@device
def mod(x, y):
    """The remainder x - y floor(x / y), with the sign of y."""
    rest = _fmod(x, y)
    if rest == 0:
        return _copysign(type(x)(0), y)
    return rest + y if (rest < 0) != (y < 0) else rest


@device
def floor_int(x):
    """An integer is its own floor."""
    return x


@device
def isfinite_int(x):
    """Integers are finite."""
    return x == x


@device
def floor_divide_int(x, y):
    """floor(x / y) of integers; 0 where y is 0. Dividing by -1 is negation, which cannot trap."""
    return 0 * x if y == 0 else (-x if y == -1 else x // y)


@device
def mod_int(x, y):
    """The remainder x - y floor(x / y) of integers; 0 where y is 0."""
    return 0 * x if y == 0 or y == -1 else x % y


@device
def pow_int(x, y):
    """The power x^y by squaring; a negative power is the whole part of its inverse."""
    power = x * 0 + 1
    factor = x
    left = y if y > 0 else -y
    while left > 0:
        if left & 1:
            power *= factor
        factor *= factor
        left >>= 1
    if y < 0 and power != 1 and power != -1:
        power *= 0
    return power


@device
def cast_bool(x):
    """Whether x is not zero; NaN is not."""
    return x != 0


# What reductions merge with.
greatest, least = maximum, minimum
