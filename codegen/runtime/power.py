"""The power of lanes: x^y = 2^(y log2 x), with a logarithm of more bits than a float has.

An error of y log2 x is an error of the result up to 700 times as large in units of the last place,
so the logarithm is an unevaluated sum of two floats (Dekker 1971). Special values are those of C99
and of NumPy.
"""

from __future__ import annotations

import math

from codegen.runtime.coefficients import EXP2, LOG2_LEAD, LOG2_TAIL
from codegen.runtime.lanes import Lane, fused, muladd, part_of, polynomial, wide_vectors


def power_of(x: Lane, y: Lane) -> Lane:
    """x^y; 1 where y = 0 or x = 1; NaN for finite x < 0 unless y is an integer."""
    wide_vectors(x)
    size = x.call("llvm.fabs")
    bounded = size < math.inf
    high, low = _log2(size)
    # the logarithm of 0, of infinity and of NaN; its lower part no longer counts
    high = size.compare("==", 0).where(-math.inf, bounded.where(high, size))
    power = (size.compare("==", 1) | y.compare("==", 0)).where(1.0, _exp2_of_product(y, high, low))
    # |y| modulo 2, which is exact: whole numbers have 0 or 1, and infinity NaN
    far = y.call("llvm.fabs")
    parity = muladd((far * 0.5).call("llvm.floor"), -2.0, far)
    odd = parity.compare("==", 1)
    sign = odd.where(x.bits(), 0) & (1 << (x.width - 1))
    endless = far.compare("==", math.inf)
    undefined = (x < 0) & bounded & parity.compare("!=", 0) & ((odd | endless) ^ 1)
    return undefined.where(math.nan, (power.bits() | sign).as_float(x))


def _log2(size: Lane) -> tuple[Lane, Lane]:
    """log2 of a positive number in two parts: e + s (a + z (b + z P(z))), s = f / (2 + f)."""
    mantissa, bias, tiny, magic = size.format
    small = size < tiny
    lift = mantissa + 2
    root, one = size.of(math.sqrt(0.5)).bits(), size.of(1.0).bits()
    bits = small.where(size * 2.0**lift, size).bits() + (one - root)
    m = ((bits & ((1 << mantissa) - 1)) + root).as_float(size)
    e = ((bits >> mantissa) + size.of(magic).bits()).as_float(size)
    e = e - small.where(size.of(magic + bias + lift), magic + bias)
    f, g = m - 1, m + 1
    inverse = 1.0 / g
    s = f * inverse
    # the rest of the quotient; g is 2 + f rounded
    s_rest = fused(-s, f - (g - 2), fused(-s, g, f)) * inverse
    z = s * s
    z_rest = muladd(s + s, s_rest, fused(s, s, -z))
    a, a_rest, b = LOG2_LEAD[size.width]
    tail = polynomial(z, LOG2_TAIL[size.width])
    u = fused(z, tail, b)
    v = z * u
    v_rest = muladd(z_rest, u, fused(z, u, -v))
    if size.width == 64:  # of float32 the products have fewer bits, and this adds half a unit
        v_rest = muladd(z, fused(z, tail, b - u), v_rest)
    w = fused(z, u, a)
    w_rest = ((a - w) + v) + (v_rest + a_rest)
    y = s * w
    y_rest = muladd(s_rest, w, muladd(s, w_rest, fused(s, w, -y)))
    high = fused(s, w, e)
    return high, ((e - high) + y) + y_rest


# Powers of two from here down may be subnormal; products beyond lead to 0 and to infinity.
_BELOW = {32: -120.0, 64: -1000.0}
_LEAST = {32: -152.0, 64: -1080.0}
_MOST = {32: 128.4, 64: 1024.4}


def _exp2_of_product(y: Lane, high: Lane, low: Lane) -> Lane:
    """2^(y (high + low)) = 2^n 2^r; NaN of NaN."""
    mantissa, _, _, magic = y.format
    width = y.width
    t = y * high
    whole = fused(y, high, magic)
    r = fused(y, low, fused(y, high, -(whole - magic)))
    # half the power of two, so that it is finite, or 2^width times it where it may be subnormal
    small = t < _BELOW[width]
    n = whole.bits() << mantissa
    shift = small.where(n.of(width << mantissa), n.of(-1 << mantissa))
    power = (polynomial(r, (*EXP2[width], 1.0)).bits() + n + shift).as_float(y)
    power = power * small.where(y.of(2.0**-width), 2.0)
    power = (t < _LEAST[width]).where(0.0, power)
    return (t <= _MOST[width]).where(power, t + math.inf)


def integer_power_of(x: Lane, y: Lane) -> Lane:
    """x^y of whole numbers by squaring; a negative power is the whole part of it, 0 for x = 0."""
    count = (y < 0).where(-y, y)
    power, factor = x.of(1), x
    for k in range(part_of(x.value.type).width):  # where y is a number, LLVM leaves what it needs
        odd = ((count >> k) & 1).compare("!=", 0)
        power = odd.where(power * factor, power)
        factor = factor * factor
    unit = x.compare("==", 1) | x.compare("==", -1)
    return (y < 0).where(unit.where(power, 0), power)
