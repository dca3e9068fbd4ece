"""Philox4x32-10: random words as a pure function of a counter and a key.

    block(counter, key) = 10 rounds of  (c0, c1) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2))
                                        (c2, c3) <- (hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))
                                        (k0, k1) <- (k0 + W0, k1 + W1)   between rounds

All at once, in words of 32 bits. The same counter and key give the same four words on every
machine, so random arrays need no state: an element draws its own block. Here is the meaning in
NumPy; compiled programs have `codegen/runtime/draws.py`.

Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Words: TypeAlias = "np.ndarray[Any, Any]"
Block: TypeAlias = tuple[Words, Words, Words, Words]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: Block, key: tuple[Words, Words]) -> Block:
    """The block of a counter and a key: words of 32 bits in uint64 arrays that broadcast.

    >>> zero = np.zeros((), np.uint64)
    >>> [f"{int(word):08x}" for word in philox4x32((zero,) * 4, (zero,) * 2)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    first, second = (np.uint64(m) for m in MULTIPLIERS)
    step0, step1 = (np.uint64(w) for w in WEYL)
    for _ in range(ROUNDS):
        a, b = c0 * first, c2 * second
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _MASK, (a >> _HALF) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + step0) & _MASK, (k1 + step1) & _MASK
    return c0, c1, c2, c3


def block(key: Any, high: Any, low: Any) -> Block:
    """The block of a key and a counter given as 64-bit integers: `high` has the words c2 and c3."""
    k0, k1, c2, c3, c0, c1 = (half for x in (key, high, low) for half in _halves(x))
    return philox4x32((c0, c1, c2, c3), (k0, k1))


def _halves(x: Any) -> tuple[Words, Words]:
    words = np.asarray(x, np.int64).view(np.uint64)
    return words & _MASK, words >> _HALF


def uniform_float32(key: Any, high: Any, low: Any) -> Any:
    """A multiple of 2^-24 in [0, 1), from the first word."""
    return _float32(block(key, high, low)[0])


def uniform_float64(key: Any, high: Any, low: Any) -> Any:
    """A multiple of 2^-53 in [0, 1), from the first two words."""
    return _float64(*block(key, high, low)[:2])


def second_float32(key: Any, high: Any, low: Any) -> Any:
    """As `uniform_float32`, from the third word: independent of it."""
    return _float32(block(key, high, low)[2])


def second_float64(key: Any, high: Any, low: Any) -> Any:
    """As `uniform_float64`, from the last two words: independent of it."""
    return _float64(*block(key, high, low)[2:])


def _float32(word: Words) -> Any:
    return (word >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def _float64(upper: Words, lower: Words) -> Any:
    bits = ((upper >> np.uint64(5)) << np.uint64(26)) | (lower >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53
