"""Random numbers for CUDA kernels: Philox4x32-10, with the very bits of `symgrad/graph/philox.py`.

Words of 32 bits stand in int64 whose upper halves are zero. A product of two words may carry into
the sign: its halves are masked, so that the sign says nothing.
"""

from __future__ import annotations

import numpy as np

from codegen.runtime.device_math import device

_WORD = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_f32 = np.float32
_f64 = np.float64


@device
def philox(key, high, low):
    """The block of a key and a counter: four words of 32 bits."""
    k0 = key & _WORD
    k1 = (key >> 32) & _WORD
    c0 = low & _WORD
    c1 = (low >> 32) & _WORD
    c2 = high & _WORD
    c3 = (high >> 32) & _WORD
    for _ in range(10):
        a = c0 * _M0
        b = c2 * _M1
        c0 = ((b >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((a >> 32) & _WORD) ^ c3 ^ k1
        c1 = b & _WORD
        c3 = a & _WORD
        k0 = (k0 + _W0) & _WORD
        k1 = (k1 + _W1) & _WORD
    return c0, c1, c2, c3


@device
def _single(word):
    """24 bits as a float32 in [0, 1)."""
    return _f32(word >> 8) * _f32(2.0**-24)


@device
def _double(first, second):
    """27 bits and 26 bits as a float64 in [0, 1)."""
    return _f64(first >> 5) * 2.0**-27 + _f64(second >> 6) * 2.0**-53


@device
def uniform_float32(key, high, low):
    """A multiple of 2^-24 in [0, 1), from the first word."""
    words = philox(key, high, low)
    return _single(words[0])


@device
def uniform_float64(key, high, low):
    """A multiple of 2^-53 in [0, 1), from the first two words."""
    words = philox(key, high, low)
    return _double(words[0], words[1])


@device
def second_float32(key, high, low):
    """As `uniform_float32`, from the third word."""
    words = philox(key, high, low)
    return _single(words[2])


@device
def second_float64(key, high, low):
    """As `uniform_float64`, from the last two words."""
    words = philox(key, high, low)
    return _double(words[2], words[3])


DRAWS = frozenset({"uniform_float32", "uniform_float64", "second_float32", "second_float64"})
