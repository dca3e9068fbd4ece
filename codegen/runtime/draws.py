"""Random numbers for generated kernels: Philox4x32-10 on the lanes of a vector loop.

The formulas of `symgrad/graph/philox.py` on 64-bit lanes whose upper halves are zero, so that a
product of two 32-bit words is one multiplication. No branch and no table: loops over them
vectorise. About 1.8 ns per float32 on one core of an Intel Xeon with AVX-512.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from codegen.runtime.lanes import Lane

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]

WORD = 0xFFFFFFFF
PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(key: Lane, high: Lane, low: Lane) -> tuple[Lane, Lane, Lane, Lane]:
    """The block of a key and a counter: four words of 32 bits in 64-bit lanes."""
    first, second = PHILOX_MULTIPLIERS
    k0, k1 = key & WORD, key >> 32
    c0, c1, c2, c3 = low & WORD, low >> 32, high & WORD, high >> 32
    for _ in range(PHILOX_ROUNDS):
        a, b = c0 * first, c2 * second
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & WORD, (a >> 32) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + PHILOX_WEYL[0]) & WORD, (k1 + PHILOX_WEYL[1]) & WORD
    return c0, c1, c2, c3


def _float(word: Lane, kind: ir.Type) -> Lane:
    """A word below 2^31 as a float; 32-bit integers convert in every vector set."""
    build = word.builder
    return Lane(build, build.sitofp(build.trunc(word.value, ir.IntType(32)), kind))


def _single(words: Sequence[Lane]) -> Lane:
    """24 bits of the first word as a float32 in [0, 1)."""
    return _float(words[0] >> 8, ir.FloatType()) * 2.0**-24


def _double(words: Sequence[Lane]) -> Lane:
    """27 bits of the first word and 26 of the second as a float64 in [0, 1)."""
    upper, lower = _float(words[0] >> 5, ir.DoubleType()), _float(words[1] >> 6, ir.DoubleType())
    return upper * 2.0**-27 + lower * 2.0**-53


def drawing(
    name: str, number: Callable[[Sequence[Lane]], Lane], kind: types.Type, first: int
) -> Callable[..., object]:
    """The intrinsic `name(key, high, low)`: a number made of a block's words from `first` on."""

    def typer(
        typing_context: Context, key: types.Type, high: types.Type, low: types.Type
    ) -> Typed:
        given = [types.unliteral(k) for k in (key, high, low)]
        if any(k != types.int64 for k in given):
            raise TypingError(f"{name}: three int64 are needed, got {', '.join(map(str, given))}")

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            words = philox(*(Lane(builder, argument) for argument in arguments))
            return number(words[first:]).value

        return kind(types.int64, types.int64, types.int64), emit

    typer.__name__ = name
    return intrinsic(typer)


uniform_float32 = drawing("uniform_float32", _single, types.float32, 0)
uniform_float64 = drawing("uniform_float64", _double, types.float64, 0)
second_float32 = drawing("second_float32", _single, types.float32, 2)
second_float64 = drawing("second_float64", _double, types.float64, 2)

# By symgrad's names of the functions.
DRAWS: dict[str, Callable[..., object]] = {
    "uniform_float32": uniform_float32,
    "uniform_float64": uniform_float64,
    "second_float32": second_float32,
    "second_float64": second_float64,
}
