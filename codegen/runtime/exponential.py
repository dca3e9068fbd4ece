"""Exponentials and logarithms of lanes: exp, log, and what is made of them.

Both are read off the bits of a float, x = 2^n m; the rest is a polynomial from `coefficients.py`.
Arguments are reduced by a two-part ln 2 (Cody and Waite 1980); log is the odd series of
s = f / (2 + f), with f - s f in place of 2 s as in fdlibm (Sun Microsystems 1993). Subnormal
arguments and results are numbers like any others.
"""

from __future__ import annotations

import math

from codegen.runtime.coefficients import (
    ERF_FAR,
    ERF_NEAR,
    ERF_SETTLED,
    EXP,
    EXP_HIGH,
    EXP_LOW,
    EXP_ZERO,
    LN2,
    LOG,
    SINH,
    TANH_SETTLED,
)
from codegen.runtime.lanes import Lane, muladd, polynomial


def _reduced_exponent(x: Lane) -> tuple[Lane, Lane, Lane]:
    """For x = n ln 2 + r: n where a float's bits hold the exponent, r, and what r lacks."""
    high, low = LN2[x.width]
    shifted = muladd(x, 1 / math.log(2), x.format.magic)
    n = shifted - x.format.magic
    start = muladd(n, -high, x)
    r = muladd(n, -low, start)
    return shifted.bits() << x.format.mantissa, r, muladd(n, -low, start - r)


def _less_one(x: Lane) -> tuple[Lane, Lane]:
    """For x = n ln 2 + r: exp(r) - 1, and n where a float's bits hold the exponent."""
    exponent, r, _ = _reduced_exponent(x)
    return muladd(r * r, polynomial(r, EXP[x.width]), r), exponent


def _scaled(y: Lane, exponent: Lane, small: Lane) -> Lane:
    """2^n y for y near 1; where `small` says that it may be subnormal, 2^-w (2^(n + w) y)."""
    lift = small.where(exponent.of(y.width << y.format.mantissa), 0)
    y = (y.bits() + exponent + lift).as_float(y)
    return small.where(y * 2.0**-y.width, y)


def exp_of(x: Lane) -> Lane:
    """exp(x) = 2^n exp(r)."""
    width = x.width
    p, exponent = _less_one((x < EXP_ZERO[width]).where(EXP_ZERO[width], x))
    y = _scaled(1 + p, exponent, x < EXP_LOW[width])
    return (x <= EXP_HIGH[width]).where(y, x + math.inf)


def _falling(x: Lane) -> Lane:
    """exp(x) for x <= 0, to a quarter of a unit more than its rounding; NaN of NaN."""
    width = x.width
    exponent, r, rest = _reduced_exponent((x < EXP_ZERO[width]).where(EXP_ZERO[width], x))
    start = 1 + r
    tail = muladd(r * r, polynomial(r, EXP[width]), (r - (start - 1)) + rest)
    return (x <= 0).where(_scaled(start + tail, exponent, x < EXP_LOW[width]), x)


def expm1_of(x: Lane) -> Lane:
    """exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), with half the scale so that 2^n is finite."""
    exponent, r, rest = _reduced_exponent(x)
    p = r + muladd(r * r, polynomial(r, EXP[x.width]), rest)
    half = (x.of(0.5).bits() + exponent).as_float(x)
    y = muladd(p, half, half - 0.5) * 2
    y = (x < -2 * TANH_SETTLED[x.width]).where(-1.0, y)
    y = (x <= EXP_HIGH[x.width]).where(y, x + math.inf)
    # half of a subnormal number would lose its last bit, and -0.0 its sign
    return (x.call("llvm.fabs") < x.format.tiny).where(x, y)


def _halves(x: Lane) -> tuple[Lane, Lane]:
    """A quarter of exp(x), and a quarter of exp(-x), for x in 0..the end of exp + 1."""
    p, exponent = _less_one(x)
    quarter = (x.of(0.25).bits() + exponent).as_float(x)
    e = muladd(p, quarter, quarter)
    return e, 0.0625 / e


def sinh_of(x: Lane) -> Lane:
    """sinh(x) = x + x^3 P(x^2) up to 1, then (exp(|x|) - exp(-|x|)) / 2 with the sign of x."""
    size, end = x.call("llvm.fabs"), EXP_HIGH[x.width] + 1
    rising, falling = _halves((size > end).where(end, size))
    far = (size > end).where(math.inf, (rising - falling) * 2)
    z = x * x
    near = muladd(x * z, polynomial(z, SINH[x.width]), x)
    return (size <= 1).where(near, far.call("llvm.copysign", x))


def cosh_of(x: Lane) -> Lane:
    """cosh(x) = (exp(|x|) + exp(-|x|)) / 2."""
    size, end = x.call("llvm.fabs"), EXP_HIGH[x.width] + 1
    rising, falling = _halves((size > end).where(end, size))
    return (size > end).where(math.inf, (rising + falling) * 2)


def tanh_of(x: Lane) -> Lane:
    """tanh(x) = e / (e + 2) with e = exp(2 |x|) - 1, and the sign of x."""
    settled = TANH_SETTLED[x.width]
    size = x.call("llvm.fabs")
    size = (size > settled).where(settled, size)
    p, exponent = _less_one(size + size)
    scale = (x.of(1.0).bits() + exponent).as_float(x)
    e = muladd(p, scale, scale - 1)
    return (e / (e + 2)).call("llvm.copysign", x)


def sigmoid_of(x: Lane) -> Lane:
    """1 / (1 + exp(-x)) as e / (1 + e) with e = exp(-|x|) where x < 0: it underflows gradually."""
    e = _falling(-x.call("llvm.fabs"))
    under = 1 + e
    y = (x < 0).where(e, 1.0) / under
    # a part of `under` that its rounding lost takes as large a part of the quotient
    return muladd(y, (under - 1) - e, y)


def _log_normal(x: Lane, lift: Lane | float = 0.0, rest: Lane | None = None) -> Lane:
    """log(x + rest) - lift ln 2 for positive normal x, and a rest below its last place.

    log(x) = e ln 2 + log(1 + f),  x = 2^e (1 + f),  sqrt(1/2) <= 1 + f < sqrt(2).
    """
    high, low = LN2[x.width]
    mantissa, bias, _, magic = x.format
    root, one = x.of(math.sqrt(0.5)).bits(), x.of(1.0).bits()
    bits = x.bits() + (one - root)
    m = ((bits & ((1 << mantissa) - 1)) + root).as_float(x)
    exponent = bits >> mantissa
    f = m - 1
    if rest is not None:  # 2^-e of it; 2^(1 - e) has no exponent below that of zero
        scale = ((exponent.of(2 * bias + 1) - exponent) << mantissa).as_float(x)
        f = muladd(rest, scale * 0.5, f)
    # the biased exponent becomes a float by standing in the low bits of the magic number
    e = (exponent + x.of(magic).bits()).as_float(x) - (x.of(magic + bias) + lift)
    s = f / (f + 2)
    z = s * s
    half = f * f * 0.5
    y = muladd(s, muladd(z, polynomial(z, LOG[x.width]), half), e * low)
    return muladd(e, high, f - (half - y))


def _log_limits(x: Lane, y: Lane) -> Lane:
    """The value y where 0 < x < inf; log's limits at 0 and inf; NaN below 0 and of NaN."""
    y = (x < math.inf).where(y, x)
    return (x > 0).where(y, x.compare("==", 0).where(x.of(-math.inf), math.nan))


def log_of(x: Lane) -> Lane:
    """log(x); a subnormal x is lifted to a normal one first."""
    lift = x.format.mantissa + 2
    small = x < x.format.tiny
    y = _log_normal(small.where(x * 2.0**lift, x), small.where(x.of(lift), 0.0))
    return _log_limits(x, y)


def _log1p_normal(x: Lane) -> tuple[Lane, Lane]:
    """Both w = 1 + x rounded, and log(1 + x), which is log(w) with what the rounding lost."""
    w = 1 + x
    return w, _log_normal(w, rest=x - (w - 1))


def log1p_of(x: Lane) -> Lane:
    """log(1 + x), precise in relative terms for small x."""
    return _log_limits(*_log1p_normal(x)).call("llvm.copysign", x)


def softplus_of(x: Lane) -> Lane:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); the last argument lies in 0..1."""
    _, rest = _log1p_normal(exp_of(-x.call("llvm.fabs")))
    return (x < 0).where(rest, x + rest)


def erf_of(x: Lane) -> Lane:
    """The error function: odd; x + x S(x^2) up to 1, then 1 - exp(-R(|x|))."""
    settled = ERF_SETTLED[x.width]
    size = x.call("llvm.fabs")
    near = muladd(x, polynomial(x * x, ERF_NEAR[x.width]), x)
    p, exponent = _less_one(-polynomial((size > settled).where(settled, size), ERF_FAR[x.width]))
    scale = (x.of(1.0).bits() + exponent).as_float(x)
    far = (1 - scale) - p * scale
    return (size <= 1).where(near, far.call("llvm.copysign", x))
