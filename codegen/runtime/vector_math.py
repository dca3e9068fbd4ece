"""Scalar functions for generated kernels, made so that loops over them vectorise.

Each function is a formula over `Lane`, without branches, for float32 and float64 alike; NaN goes
through, infinities and signed zeros come out as in NumPy. `PRIMITIVES` names them all. Results
below the smallest normal number may be flushed to zero; nothing else depends on the processor.

The exponential and the logarithm are read off the bits of a float: x = 2^n * m. Reduction by a
two-part ln 2 follows Cody and Waite 1980, with the constants of Moshier's Cephes (float32) and of
fdlibm (float64). The polynomials are our own minimax fits (Remez, 60 digits). In units in the last
place, measured in tests/test_runtime.py: exp and log below 2, the others below 4.

Functions without a formula here (sin, pow, ...) call Numba's scalar code.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

from numba import types

from codegen.runtime.lanes import (
    Lane,
    conversion,
    elementwise,
    library,
    muladd,
    polynomial,
    selection,
)


class Precision(NamedTuple):
    """What the formulas need to know of a float format.

    Fields:
        mantissa:    stored bits of the significand.
        bias:        of the exponent.
        tiny:        the smallest normal number.
        exp_low:     exp(x) is below `tiny` for x < exp_low.
        exp_high:    exp(x) overflows for x > exp_high.
        settled:     tanh(x) rounds to 1 for x > settled.
        ln2:         high and low part; n * high is exact for every exponent n.
        exp:         P with exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2.
        log:         Q with log(1 + f) = f - f^2 / 2 + f^3 Q(f) for sqrt(1/2) <= 1 + f <= sqrt(2).
        erf_settled: erf(x) rounds to 1 for x > erf_settled.
        erf_near:    S with erf(x) = x + x S(x^2) for |x| <= 1.
        erf_far:     R with erf(x) = 1 - exp(-R(x)) for 1 <= x <= erf_settled.
    """

    mantissa: int
    bias: int
    tiny: float
    exp_low: float
    exp_high: float
    settled: float
    ln2: tuple[float, float]
    exp: tuple[float, ...]
    log: tuple[float, ...]
    erf_settled: float
    erf_near: tuple[float, ...]
    erf_far: tuple[float, ...]

    @property
    def magic(self) -> float:
        """1.5 * 2^mantissa: adding it leaves round(x) in the low bits of the sum."""
        return 1.5 * 2.0**self.mantissa


PRECISIONS = {
    32: Precision(
        mantissa=23,
        bias=127,
        tiny=2.0**-126,
        exp_low=-87.33654,
        exp_high=88.72283,
        settled=9.02,
        ln2=(0.693359375, -2.12194440e-4),
        exp=(0.00019907579, 0.0013933652, 0.008333286, 0.041666467, 0.16666667, 0.5),
        log=(
            *(-0.0785963, 0.12881663, -0.13128753, 0.14181189),
            *(-0.16624554, 0.20002286, -0.2500081, 0.33333316),
        ),
        erf_settled=3.95,
        erf_near=(
            *(7.85386e-05, -0.0008010193, 0.0051883277, -0.026853813),
            *(0.112835854, -0.37612626, 0.1283791671),
        ),
        erf_far=(
            *(-0.00018637865, 0.0029476534, -0.021838047, 0.10310672),
            *(0.63814485, 1.1270891, 0.00034152734),
        ),
    ),
    64: Precision(
        mantissa=52,
        bias=1023,
        tiny=2.0**-1022,
        exp_low=-708.3964185322641,
        exp_high=709.782712893384,
        settled=19.07,
        ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
        exp=(
            *(2.5110050430987996e-08, 2.7620089656413307e-07, 2.755724233494017e-06),
            *(2.4801521293154875e-05, 0.00019841269886592953, 0.00138888889172157),
            *(0.008333333333322207, 0.04166666666662412, 0.16666666666666674, 0.5000000000000001),
        ),
        log=(
            *(0.02691864792536641, -0.0607347593035394, 0.06508234633312428),
            *(-0.05645625839360617, 0.0565973873511483, -0.06201174661317417),
            *(0.0668635994248192, -0.07149125856292743, 0.07691358238111319),
            *(-0.08332924321242247, 0.09090933215582753, -0.10000015085967327),
            *(0.11111110858987538, -0.12499999689022145, 0.1428571428500848),
            *(-0.16666666669894153, 0.2000000000002676, -0.24999999999987588),
            0.3333333333333325,
        ),
        erf_settled=5.95,
        erf_near=(
            *(-7.779466538474252e-10, 1.3710979372067498e-08, -1.620631352519064e-07),
            *(1.6447131541262487e-06, -1.4924712299609983e-05, 0.00012055293576777468),
            *(-0.0008548325929310457, 0.005223977606118393, -0.026866170643111458),
            *(0.11283791670944185, -0.3761263890318352, 0.1283791670955126),
        ),
        erf_far=(
            *(-1.0496138139181274e-12, 4.795995286175526e-11, -1.0256902055451348e-09),
            *(1.3626545439987291e-08, -1.2570340364345316e-07, 8.505637586782184e-07),
            *(-4.3269917195685696e-06, 1.6513764053458414e-05, -4.503692502667619e-05),
            *(7.036573789788314e-05, 4.482389121284428e-05, -0.0006411745229182816),
            *(0.0017690024550648838, -0.0002804899097225156, -0.01907815508619751),
            *(0.1027472522623852, 0.636628488849838, 1.1283773292821517),
            1.7961810812228653e-07,
        ),
    ),
}


def _reduced_exp(x: Lane) -> tuple[Lane, Lane]:
    """For x = n ln 2 + r: exp(r) - 1, and n where a float's bits hold the exponent."""
    real = PRECISIONS[x.width]
    high, low = real.ln2
    shifted = muladd(x, 1 / math.log(2), real.magic)
    n = shifted - real.magic
    r = muladd(n, -low, muladd(n, -high, x))
    return muladd(r * r, polynomial(r, real.exp), r), shifted.bits() << real.mantissa


def _exp(x: Lane) -> Lane:
    """exp(x) = 2^n exp(r)."""
    real = PRECISIONS[x.width]
    p, exponent = _reduced_exp(x)
    y = ((1 + p).bits() + exponent).as_float(x)
    y = (x < real.exp_low).where(0.0, y)
    return (x <= real.exp_high).where(y, x + math.inf)


def _expm1(x: Lane) -> Lane:
    """exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), with half the scale so that 2^n is finite."""
    real = PRECISIONS[x.width]
    p, exponent = _reduced_exp(x)
    half = (x.of(0.5).bits() + exponent).as_float(x)
    y = muladd(p, half, half - 0.5) * 2
    y = (x < -2 * real.settled).where(-1.0, y)
    y = (x <= real.exp_high).where(y, x + math.inf)
    return y.call("llvm.copysign", x)


def _tanh(x: Lane) -> Lane:
    """tanh(x) = e / (e + 2) with e = exp(2 |x|) - 1, and the sign of x."""
    settled = PRECISIONS[x.width].settled
    size = x.call("llvm.fabs")
    size = (size > settled).where(settled, size)
    p, exponent = _reduced_exp(size + size)
    scale = (x.of(1.0).bits() + exponent).as_float(x)
    e = muladd(p, scale, scale - 1)
    return (e / (e + 2)).call("llvm.copysign", x)


def _sigmoid(x: Lane) -> Lane:
    """1 / (1 + exp(-x)); exp overflows to infinity where the result is zero."""
    return 1 / (1 + _exp(-x))


def _log_normal(x: Lane, lift: Lane | float = 0.0) -> Lane:
    """log(x) - lift ln 2 for positive normal x.

    log(x) = e ln 2 + log(1 + f),  x = 2^e (1 + f),  sqrt(1/2) <= 1 + f < sqrt(2).
    """
    real = PRECISIONS[x.width]
    high, low = real.ln2
    root, one = x.of(math.sqrt(0.5)).bits(), x.of(1.0).bits()
    bits = x.bits() + (one - root)
    m = ((bits & ((1 << real.mantissa) - 1)) + root).as_float(x)
    # the biased exponent becomes a float by standing in the low bits of the magic number
    e = ((bits >> real.mantissa) + x.of(real.magic).bits()).as_float(x)
    e = e - (x.of(real.magic + real.bias) + lift)
    f = m - 1
    square = f * f
    y = f * square * polynomial(f, real.log)
    y = muladd(e, low, y)
    y = muladd(square, -0.5, y) + f
    return muladd(e, high, y)


def _log_limits(x: Lane, y: Lane) -> Lane:
    """The value y where 0 < x < inf; log's limits at 0 and inf; NaN below 0 and of NaN."""
    y = (x < math.inf).where(y, x)
    return (x > 0).where(y, x.compare("==", 0).where(x.of(-math.inf), math.nan))


def _log(x: Lane) -> Lane:
    """log(x); a subnormal x is lifted to a normal one first."""
    real = PRECISIONS[x.width]
    lift = real.mantissa + 2
    small = x < real.tiny
    y = _log_normal(small.where(x * 2.0**lift, x), small.where(x.of(lift), 0.0))
    return _log_limits(x, y)


def _log1p_parts(x: Lane) -> tuple[Lane, Lane]:
    """Both w = 1 + x rounded, and log(1 + x) = log(w) + (x - (w - 1)) / w  (Higham 2002)."""
    w = 1 + x
    y = _log_normal(w) + (x - (w - 1)) / w
    return w, w.compare("==", 1).where(x, y)


def _log1p(x: Lane) -> Lane:
    """log(1 + x), precise in relative terms for small x."""
    return _log_limits(*_log1p_parts(x))


def _softplus(x: Lane) -> Lane:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); the last argument lies in 0..1."""
    _, rest = _log1p_parts(_exp(-x.call("llvm.fabs")))
    return (x < 0).where(rest, x + rest)


def _erf(x: Lane) -> Lane:
    """The error function: odd; x + x S(x^2) up to 1, then 1 - exp(-R(|x|))."""
    real = PRECISIONS[x.width]
    size = x.call("llvm.fabs")
    near = muladd(x, polynomial(x * x, real.erf_near), x)
    bounded = (size > real.erf_settled).where(real.erf_settled, size)
    far = 1 - _exp(-polynomial(bounded, real.erf_far))
    return (size <= 1).where(near, far.call("llvm.copysign", x))


def _rsqrt(x: Lane) -> Lane:
    """1 / sqrt(x)."""
    return 1 / x.call("llvm.sqrt")


def _abs(x: Lane) -> Lane:
    """|x|."""
    return x.call("llvm.fabs") if x.is_float else (x < 0).where(-x, x)


def _sign(x: Lane) -> Lane:
    """-1, 0 or 1; NaN of NaN; +0 of either zero."""
    zero = x.compare("==", 0).where(x.of(0), x)
    return (x > 0).where(1, (x < 0).where(-1, zero)) if x.is_float else _integer_sign(x)


def _integer_sign(x: Lane) -> Lane:
    return (x > 0).where(x.of(1), (x < 0).where(x.of(-1), 0))


def _floor(x: Lane) -> Lane:
    """The greatest integer not above x."""
    return x.call("llvm.floor") if x.is_float else x


def _isnan(x: Lane) -> Lane:
    """Whether x is no number."""
    return x.compare("!=", x)


def _isfinite(x: Lane) -> Lane:
    """Whether x is neither NaN nor infinite."""
    return x.call("llvm.fabs") < math.inf if x.is_float else x.compare("==", x)


def _maximum(x: Lane, y: Lane) -> Lane:
    """The greater of x and y; NaN if either is; y where they are equal, as 0.0 and -0.0 are."""
    return ((x > y) | _isnan(x)).where(x, y) if x.is_float else (x > y).where(x, y)


def _minimum(x: Lane, y: Lane) -> Lane:
    """The lesser of x and y; NaN if either is; y where they are equal, as 0.0 and -0.0 are."""
    return ((x < y) | _isnan(x)).where(x, y) if x.is_float else (x < y).where(x, y)


def _greatest(x: Lane, y: Lane) -> Lane:
    """The maximum that takes -0.0 for less than 0.0: the order of many does not matter."""
    return x.call("llvm.maximum", y) if x.is_float else _maximum(x, y)


def _least(x: Lane, y: Lane) -> Lane:
    """The minimum that takes -0.0 for less than 0.0: the order of many does not matter."""
    return x.call("llvm.minimum", y) if x.is_float else _minimum(x, y)


def _floor_mod(x: Lane, y: Lane) -> tuple[Lane, Lane]:
    """Quotient rounded down and remainder with the sign of y, as Python and NumPy define them."""
    if x.is_float:
        rest = x % y
        quotient = (x - rest) / y
        uneven = rest.compare("!=", 0)
        wrong = uneven & ((rest < 0) ^ (y < 0))
        rest = uneven.where(wrong.where(rest + y, rest), x.of(0.0).call("llvm.copysign", y))
        quotient = wrong.where(quotient - 1, quotient)
        down = quotient.call("llvm.floor")
        down = (quotient - down > 0.5).where(down + 1, down)
        signed_zero = x.of(0.0).call("llvm.copysign", x / y)
        down = quotient.compare("==", 0).where(signed_zero, down)
        return y.compare("==", 0).where(x / y, down), rest
    # dividing by 0 gives 0; dividing by -1 is negation, which cannot trap at the smallest integer
    zero, minus = y.compare("==", 0), y.compare("==", -1)
    divisor = (zero | minus).where(y.of(1), y)
    quotient, rest = x / divisor, x % divisor
    wrong = rest.compare("!=", 0) & ((rest < 0) ^ (divisor < 0))
    quotient = wrong.where(quotient - 1, quotient)
    rest = wrong.where(rest + divisor, rest)
    quotient = zero.where(x.of(0), minus.where(-x, quotient))
    return quotient, rest


def _floor_divide(x: Lane, y: Lane) -> Lane:
    """floor(x / y); 0 for integers where y is 0."""
    return _floor_mod(x, y)[0]


def _mod(x: Lane, y: Lane) -> Lane:
    """The remainder x - y floor(x / y); 0 for integers where y is 0."""
    return _floor_mod(x, y)[1]


exp = elementwise("exp", _exp)
log = elementwise("log", _log)
log1p = elementwise("log1p", _log1p)
expm1 = elementwise("expm1", _expm1)
sqrt = elementwise("sqrt", lambda x: x.call("llvm.sqrt"))
rsqrt = elementwise("rsqrt", _rsqrt)
abs = elementwise("abs", _abs)
sign = elementwise("sign", _sign)
floor = elementwise("floor", _floor)
sin = library("sin", math.sin)
cos = library("cos", math.cos)
tan = library("tan", math.tan)
tanh = elementwise("tanh", _tanh)
sinh = library("sinh", math.sinh)
cosh = library("cosh", math.cosh)
arctan = library("arctan", math.atan)
sigmoid = elementwise("sigmoid", _sigmoid)
softplus = elementwise("softplus", _softplus)
erf = elementwise("erf", _erf)
maximum = elementwise("maximum", _maximum, 2)
minimum = elementwise("minimum", _minimum, 2)
greatest = elementwise("greatest", _greatest, 2)
least = elementwise("least", _least, 2)
pow = library("pow", operator.pow, 2)
floor_divide = elementwise("floor_divide", _floor_divide, 2)
mod = elementwise("mod", _mod, 2)
isnan = elementwise("isnan", _isnan, truth=True)
isfinite = elementwise("isfinite", _isfinite, truth=True)
select = selection("select")
cast_float32 = conversion("cast_float32", types.float32)
cast_float64 = conversion("cast_float64", types.float64)
cast_int32 = conversion("cast_int32", types.int32)
cast_int64 = conversion("cast_int64", types.int64)
cast_bool = conversion("cast_bool", types.boolean)
fma = elementwise("fma", lambda x, y, z: x.call("llvm.fma", y, z), 3)
copysign = elementwise("copysign", lambda x, y: x.call("llvm.copysign", y), 2)

# By symgrad's names of the functions; `greatest` and `least` are what reductions merge with.
PRIMITIVES: dict[str, Callable[..., object]] = {
    "exp": exp,
    "log": log,
    "log1p": log1p,
    "expm1": expm1,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "abs": abs,
    "sign": sign,
    "floor": floor,
    "sin": sin,
    "cos": cos,
    "tan": tan,
    "tanh": tanh,
    "sinh": sinh,
    "cosh": cosh,
    "arctan": arctan,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "erf": erf,
    "maximum": maximum,
    "minimum": minimum,
    "greatest": greatest,
    "least": least,
    "pow": pow,
    "floor_divide": floor_divide,
    "mod": mod,
    "isnan": isnan,
    "isfinite": isfinite,
    "select": select,
    "cast_float32": cast_float32,
    "cast_float64": cast_float64,
    "cast_int32": cast_int32,
    "cast_int64": cast_int64,
    "cast_bool": cast_bool,
}
