"""Scalar functions for generated kernels, made so that loops over them vectorise.

Each function is a formula over `Lane`, without branches, for float32 and float64 alike; NaN goes
through, infinities, signed zeros and subnormal numbers come out as in NumPy. `PRIMITIVES` names
them all. The transcendental ones are in `exponential`, `power` and `circular`; their largest errors
are printed by `tests/test_vector_math.py`: at most 2 units in the last place, of tanh and erf 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llvmlite import ir
from numba import types

from codegen.runtime.circular import arctan_of, cos_of, sin_of, tan_of
from codegen.runtime.exponential import (
    cosh_of,
    erf_of,
    exp_of,
    expm1_of,
    log1p_of,
    log_of,
    sigmoid_of,
    sinh_of,
    softplus_of,
    tanh_of,
)
from codegen.runtime.lanes import Lane, conversion, elementwise, fused, fuses, selection
from codegen.runtime.power import integer_power_of, power_of

# Flags of the sums and products of many numbers: their order is free.
ANY_ORDER = ("reassoc", "contract")


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


def _is_number(value: ir.Value) -> bool:
    """Whether a value is a constant and not NaN."""
    if not isinstance(value, ir.Constant):
        return False
    first = value.constant
    while isinstance(first, tuple | list | ir.Constant):  # of a vector all are the same
        first = first.constant if isinstance(first, ir.Constant) else first[0]
    return isinstance(first, float) and not math.isnan(first)


def _beats(x: Lane, relation: str, y: Lane) -> Lane:
    """Whether `x relation y` holds or x is NaN."""
    if x.is_float and _is_number(y.value):  # one instruction asks for both
        return Lane(x.builder, x.builder.fcmp_unordered(relation, x.value, y.value))
    holds = x.compare(relation, y)
    return holds | _isnan(x) if x.is_float else holds


def _maximum(x: Lane, y: Lane) -> Lane:
    """The greater of x and y; NaN if either is; y where they are equal, as 0.0 and -0.0 are."""
    return _beats(x, ">", y).where(x, y)


def _minimum(x: Lane, y: Lane) -> Lane:
    """The lesser of x and y; NaN if either is; y where they are equal, as 0.0 and -0.0 are."""
    return _beats(x, "<", y).where(x, y)


def _greatest(x: Lane, y: Lane) -> Lane:
    """The maximum as part of one of many; which of 0.0 and -0.0 that is, is open."""
    return x.call("llvm.maximum", y, flags=("nsz",)) if x.is_float else _maximum(x, y)


def _least(x: Lane, y: Lane) -> Lane:
    """The minimum as part of one of many; which of 0.0 and -0.0 that is, is open."""
    return x.call("llvm.minimum", y, flags=("nsz",)) if x.is_float else _minimum(x, y)


def _plus(x: Lane, y: Lane) -> Lane:
    """The sum x + y as part of one of many, in any order."""
    return Lane(x.builder, x.builder.fadd(x.value, y.value, flags=ANY_ORDER))


def _times(x: Lane, y: Lane) -> Lane:
    """The product x y as part of one of many, in any order."""
    return Lane(x.builder, x.builder.fmul(x.value, y.value, flags=ANY_ORDER))


# For a divisor below the first or beyond the second, both sides are scaled by the third or by its
# inverse.
_SCALES = {32: (2.0**-64, 2.0**90, 2.0**64), 64: (2.0**-512, 2.0**600, 2.0**512)}


def _ratio(x: Lane, s: Lane) -> Lane:
    """The quotient x / s to 0.5001 units in the last place, quickly where one s divides many x.

    x / s = x r + x d with 1 / s = r + d: r is the number below the rounded inverse, so that d has
    its sign and is never 0, for which an infinite x would give NaN. Where s or its inverse is too
    small, x and s are scaled: that changes x / s only where it overflows or is 0 anyway. What
    depends on s alone leaves the loop.
    """
    if not fuses():
        return x / s
    small, large, scale = _SCALES[s.width]
    size = s.call("llvm.fabs")
    c = (size < small).where(s.of(scale), (size > large).where(s.of(1 / scale), 1.0))
    divisor = s * c
    inverse = 1.0 / divisor
    none = inverse.compare("==", 0)  # s is infinite
    r = none.where(inverse, (inverse.bits() - 1).as_float(s))
    d = none.where(inverse, fused(-r, divisor, s.of(1.0)) * inverse)
    y = x * c
    return fused(y, r, y * d)


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


def _pow(x: Lane, y: Lane) -> Lane:
    """x^y."""
    return power_of(x, y) if x.is_float else integer_power_of(x, y)


exp = elementwise("exp", exp_of)
log = elementwise("log", log_of)
log1p = elementwise("log1p", log1p_of)
expm1 = elementwise("expm1", expm1_of)
sqrt = elementwise("sqrt", lambda x: x.call("llvm.sqrt"))
rsqrt = elementwise("rsqrt", _rsqrt)
abs = elementwise("abs", _abs)
sign = elementwise("sign", _sign)
floor = elementwise("floor", _floor)
sin = elementwise("sin", sin_of)
cos = elementwise("cos", cos_of)
tan = elementwise("tan", tan_of)
tanh = elementwise("tanh", tanh_of)
sinh = elementwise("sinh", sinh_of)
cosh = elementwise("cosh", cosh_of)
arctan = elementwise("arctan", arctan_of)
sigmoid = elementwise("sigmoid", sigmoid_of)
softplus = elementwise("softplus", softplus_of)
erf = elementwise("erf", erf_of)
maximum = elementwise("maximum", _maximum, 2)
minimum = elementwise("minimum", _minimum, 2)
# int64 arithmetic that wraps around, as NumPy's; Numba's own promises LLVM that it does not.
whole_add = elementwise("whole_add", lambda x, y: x + y, 2)
whole_sub = elementwise("whole_sub", lambda x, y: x - y, 2)
whole_mul = elementwise("whole_mul", lambda x, y: x * y, 2)
plus = elementwise("plus", _plus, 2)
times = elementwise("times", _times, 2)
ratio = elementwise("ratio", _ratio, 2)
greatest = elementwise("greatest", _greatest, 2)
least = elementwise("least", _least, 2)
pow = elementwise("pow", _pow, 2)
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
