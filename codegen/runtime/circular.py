"""Circular functions of lanes: sin, cos, tan and arctan.

An argument is reduced by a multiple of pi / 2, which is subtracted in three parts with fused
multiplications (Cody and Waite 1980); that is exact enough up to `REDUCIBLE`. Larger arguments are
rare, and each is reduced by itself, with as many digits of 2 / pi as it needs (Payne and Hanek
1983). The coefficients are in `coefficients.py`.
"""

from __future__ import annotations

import math
from itertools import pairwise

from llvmlite import ir

from codegen.runtime.coefficients import ARCTAN, COSINE, PI, SINE, TANGENT, TWO_OVER_PI
from codegen.runtime.lanes import Lane, fused, muladd, polynomial
from codegen.runtime.rare import beyond

# |x| up to which three parts of pi do: the quotient is off by 2^-8 (float32), 2^-12 (float64).
REDUCIBLE = {32: 2.0**16, 64: 2.0**40}
_I64 = ir.IntType(64)


def sin_of(x: Lane) -> Lane:
    """sin(x) = sin(r), cos(r), -sin(r) or -cos(r) with x = n pi / 2 + r and n modulo 4."""
    n, quotient = _quarters(x)
    y = _wave(_minus(x.call("llvm.fabs"), quotient), n)
    y = (y.bits() ^ _sign_bit(x)).as_float(x)
    return beyond(x, REDUCIBLE[x.width], y, "sin", _huge_sin)


def cos_of(x: Lane) -> Lane:
    """cos(x) = sin(|x| + pi / 2)."""
    n, quotient = _quarters(x)
    y = _wave(_minus(x.call("llvm.fabs"), quotient), n + 1)
    return beyond(x, REDUCIBLE[x.width], y, "cos", _huge_cos)


def tan_of(x: Lane) -> Lane:
    """tan(x) = tan(r) or -1 / tan(r) with x = n pi / 2 + r."""
    n, quotient = _quarters(x)
    first, second, third = (part / 2 for part in PI[x.width])
    start = fused(quotient, -first, x.call("llvm.fabs"))
    step = quotient * second
    r = start - step
    lost = fused(quotient, third, fused(quotient, second, -step))
    y = _tangent(r, ((start - r) - step) - lost, n)
    y = (y.bits() ^ _sign_bit(x)).as_float(x)
    return beyond(x, REDUCIBLE[x.width], y, "tan", _huge_tan)


def arctan_of(x: Lane) -> Lane:
    """arctan(x) = c + arctan(t): t = x up to 1/2, (x - 1) / (x + 1) up to 2, then -1 / x."""
    size = x.call("llvm.fabs")
    middle, high = size > 0.5, size > 2
    over = high.where(-1.0, middle.where(size - 1, size))
    under = high.where(size, middle.where(size + 1, 1.0))
    first, second, _ = PI[x.width]
    centre = high.where(x.of(first / 2), middle.where(x.of(first / 4), 0.0))
    centre_rest = high.where(x.of(second / 2), middle.where(x.of(second / 4), 0.0))
    t = over / under
    z = t * t
    y = centre + (t + muladd(t * z, polynomial(z, ARCTAN[x.width]), centre_rest))
    return y.call("llvm.copysign", x)


def _quarters(x: Lane) -> tuple[Lane, Lane]:
    """The integer nearest to |x| / (pi / 2), in the low bits of an integer and as a float."""
    shifted = muladd(x.call("llvm.fabs"), 2 / math.pi, x.format.magic)
    return shifted.bits(), shifted - x.format.magic


def _minus(x: Lane, n: Lane) -> Lane:
    """The rest x - n pi / 2."""
    for part in PI[x.width]:
        x = fused(n, -part / 2, x)
    return x


def _wave(r: Lane, n: Lane) -> Lane:
    """sin(r + n pi / 2) for |r| <= pi / 4."""
    z = r * r
    sine = muladd(r * z, polynomial(z, SINE[r.width]), r)
    cosine = muladd(z * z, polynomial(z, COSINE[r.width]), muladd(z, -0.5, 1.0))
    y = (n & 1).compare("!=", 0).where(cosine, sine)
    return (y.bits() ^ ((n & 2) << (r.width - 2))).as_float(r)


def _sign_bit(x: Lane) -> Lane:
    return x.bits() & (1 << (x.width - 1))


def _tangent(r: Lane, rest: Lane, n: Lane) -> Lane:
    """tan(r + rest + n pi / 2) for |r| <= pi / 4 and a rest below its last place."""
    z = r * r
    # tan'(r) = 1 + tan(r)^2, which is about 1 + 1.5 r^2
    y = r + muladd(r * z, polynomial(z, TANGENT[r.width]), rest * muladd(z, 1.5, 1.0))
    odd = (n & 1).compare("!=", 0)
    return odd.where(-1.0, y) / odd.where(y, 1.0)


# -- huge arguments -------------------------------------------------------------------------------
def _huge_sin(x: Lane) -> Lane:
    """sin(x) for one float64."""
    n, r, _ = _fraction_of_turn(x)
    return (_wave(r, n).bits() ^ _sign_bit(x)).as_float(x)


def _huge_cos(x: Lane) -> Lane:
    """cos(x) for one float64."""
    n, r, _ = _fraction_of_turn(x)
    return _wave(r, n + 1)


def _huge_tan(x: Lane) -> Lane:
    """tan(x) for one float64."""
    n, r, rest = _fraction_of_turn(x)
    return (_tangent(r, rest, n).bits() ^ _sign_bit(x)).as_float(x)


def _fraction_of_turn(x: Lane) -> tuple[Lane, Lane, Lane]:
    """For |x| = n pi / 2 + r, a float64 of at least 2^-10: n modulo 4, r, and what r lacks.

    The fraction of |x| / (2 pi) is a fixed-point number of 128 bits, whose first two are n. With
    |x| = m 2^e it is the product of m and of digits of 2 / pi from position e - 1 on: what stands
    before them makes whole turns, what follows 192 of them does not matter. Infinities give NaN.
    """
    bits = x.bits() & ((1 << 63) - 1)
    m = (bits & ((1 << 52) - 1)) | (1 << 52)
    place = (bits >> 52) + (64 - 1075 - 2)
    word, skipped = place >> 6, place & 63
    digits = [_word(word + k) for k in range(4)]
    w2, w1, w0 = (a.call("llvm.fshl", b, skipped) for a, b in pairwise(digits))
    wide = m.resized(128)
    turn = ((wide * w0.resized(128)) >> 64) + wide * w1.resized(128)
    turn = turn + ((m * w2).resized(128) << 64)
    n = (turn + (1 << 125)) >> 126
    rest = turn - (n << 126)
    negative = rest < 0
    # |rest| = top 2^(64 - zeros), where 2^127 is pi
    size = negative.where(-rest, rest) | 1
    zeros = size.leading_zeros()
    top = ((size << zeros) >> 64).resized(64)
    high, low = (top & -2048).as_number(x), (top & 2047).as_number(x)
    first, second, _ = PI[64]
    product = high * first
    lost = fused(high, first, -product) + (low * first + high * second)
    r = product + lost
    scale = ((zeros.of(x.format.bias + 64 - 127) - zeros).resized(64) << 52).as_float(x)
    scale = negative.where(-scale, scale)
    return n.resized(64), r * scale + (x - x), (lost - (r - product)) * scale


def _word(place: Lane) -> Lane:
    """The word of the digits of 2 / pi at a place."""
    module = place.builder.module
    symbol = "symgrad_two_over_pi"
    if symbol not in module.globals:
        kind = ir.ArrayType(_I64, len(TWO_OVER_PI))
        table = ir.GlobalVariable(module, kind, symbol)
        table.linkage = "linkonce_odr"
        table.global_constant = True
        table.initializer = ir.Constant(kind, list(TWO_OVER_PI))
    entry = place.builder.gep(module.globals[symbol], [_I64(0), place.value])
    return Lane(place.builder, place.builder.load(entry))
