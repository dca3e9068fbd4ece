"""Scalar functions: what a Map may apply to its elements besides `+ - * /` and integer powers.

Every function is a SymPy `Function` class of our own, so that SymPy never simplifies NaN, infinity
or -0.0 away, with its derivative written in the placeholders `p0, p1, ..` and in `y`, the
function's own output (`tanh' = 1 - y**2`). A new elementwise function is one entry in this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import sympy

from symgrad.graph.dtypes import ALL, DType


class Placeholder(sympy.Symbol):  # type: ignore[misc]  # SymPy ships no types
    """`p0, p1, ..`: the arguments of a scalar body; `y`: its own output."""

    __slots__ = ()


class AxisIndex(sympy.Symbol):  # type: ignore[misc]
    """`i0, i1, ..`: the position along an axis of the Map."""

    __slots__ = ()


@cache
def placeholder(k: int) -> Placeholder:
    """The symbol `p<k>`."""
    made: Placeholder = Placeholder(f"p{k}")
    return made


@cache
def axis_index(k: int) -> AxisIndex:
    """The symbol `i<k>`."""
    made: AxisIndex = AxisIndex(f"i{k}", integer=True)
    return made


P = tuple(placeholder(k) for k in range(16))
AXIS = tuple(axis_index(k) for k in range(16))
Y = Placeholder("y")

Result = Literal["float", "same", "bool", "select", "cast"]


@dataclass(frozen=True, slots=True)
class ScalarFunction:
    """One scalar function.

    name:        its name in text, generated source and the verb.
    cls:         the SymPy class; `cls(P[0], ..)` is an application.
    numpy:       its meaning on arrays.
    derivatives: by argument, in `P` and `Y`; None where it is zero everywhere.
    result:      "float" (floats in, the same float out), "same" (the promoted type),
                 "bool", "select" (the type of the branches) or "cast".
    latex:       a template with one `{}` per argument.
    kink:        what is declared where the derivative does not exist.
    """

    name: str
    cls: type[sympy.Function]
    arity: int
    numpy: Callable[..., Any]
    derivatives: tuple[sympy.Expr | None, ...]
    result: Result
    latex: str
    dtype: DType | None = None
    kink: str = ""


FUNCTIONS: dict[str, ScalarFunction] = {}


class Applied(sympy.Function):  # type: ignore[misc]
    """Base of our SymPy classes: never evaluates, differentiates by the table."""

    @classmethod
    def eval(cls, *args: sympy.Expr) -> None:
        """Leave every application as it is written."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The derivative by argument `argindex` (from 1)."""
        rule = FUNCTIONS[type(self).__name__].derivatives[argindex - 1]
        if rule is None:
            return sympy.S.Zero
        return rule.xreplace({Y: self, **dict(zip(P, self.args, strict=False))})

    def _eval_evalf(self, prec: int) -> None:
        return None


class Selected(Applied):
    """`select(c, a, b)`: its derivative selects too, so that the other branch never leaks a NaN."""

    def _eval_derivative(self, s: sympy.Symbol) -> sympy.Expr:
        c, a, b = self.args
        da, db = a.diff(s), b.diff(s)
        return da if da == db else self.func(c, da, db)


def _define(
    name: str,
    numpy: Callable[..., Any],
    arity: int = 1,
    result: Result = "float",
    latex: str = "",
    dtype: DType | None = None,
    kink: str = "",
    base: type[Applied] = Applied,
) -> Callable[..., sympy.Expr]:
    cls = type(name, (base,), {"nargs": arity, "__module__": __name__})
    template = latex or (
        rf"\operatorname{{{{{name.replace('_', ' ')}}}}}\left("
        + ", ".join(["{}"] * arity)
        + r"\right)"
    )
    FUNCTIONS[name] = ScalarFunction(
        name, cls, arity, numpy, (None,) * arity, result, template, dtype, kink
    )
    return cls


def _differentiate(name: str, *derivatives: sympy.Expr | int | None) -> None:
    f = FUNCTIONS[name]
    rules = tuple(None if d is None else sympy.sympify(d) for d in derivatives)
    FUNCTIONS[name] = ScalarFunction(
        f.name, f.cls, f.arity, f.numpy, rules, f.result, f.latex, f.dtype, f.kink
    )


def _sigmoid(x: Any) -> Any:
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, x.dtype.type(1), z) / (x.dtype.type(1) + z)


def _erf(x: Any) -> Any:
    from scipy.special import erf as scipy_erf

    return scipy_erf(x)


def _floor(x: Any) -> Any:
    return x if np.asarray(x).dtype.kind in "ib" else np.floor(x)


def _caster(dtype: DType) -> Callable[[Any], Any]:
    def cast(x: Any) -> Any:
        return np.asarray(x).astype(dtype)

    return cast


# -- the table: name, meaning, arity, result, LaTeX -----------------------------------------------
exp = _define("exp", np.exp, latex=r"e^{{{}}}")
log = _define("log", np.log, latex=r"\log\left({}\right)")
log1p = _define("log1p", np.log1p, latex=r"\log\left(1 + {}\right)")
expm1 = _define("expm1", np.expm1, latex=r"\left(e^{{{}}} - 1\right)")
sqrt = _define("sqrt", np.sqrt, latex=r"\sqrt{{{}}}")
rsqrt = _define("rsqrt", lambda x: 1 / np.sqrt(x), latex=r"\frac{{1}}{{\sqrt{{{}}}}}")
sin = _define("sin", np.sin, latex=r"\sin\left({}\right)")
cos = _define("cos", np.cos, latex=r"\cos\left({}\right)")
tan = _define("tan", np.tan, latex=r"\tan\left({}\right)")
tanh = _define("tanh", np.tanh, latex=r"\tanh\left({}\right)")
sinh = _define("sinh", np.sinh, latex=r"\sinh\left({}\right)")
cosh = _define("cosh", np.cosh, latex=r"\cosh\left({}\right)")
arctan = _define("arctan", np.arctan, latex=r"\arctan\left({}\right)")
sigmoid = _define("sigmoid", _sigmoid, latex=r"\sigma\left({}\right)")
softplus = _define("softplus", lambda x: np.logaddexp(x.dtype.type(0), x))
erf = _define("erf", _erf)
pow_ = _define("pow", np.power, 2, "same", r"{{{}}}^{{{}}}")
abs_ = _define("abs", np.abs, 1, "same", r"\left|{}\right|", kink="abs'(0) = 0")
sign = _define("sign", np.sign, 1, "same", kink="sign' = 0 everywhere")
floor = _define("floor", _floor, 1, "same", r"\left\lfloor {} \right\rfloor", kink="floor' = 0")
maximum = _define("maximum", np.maximum, 2, "same", r"\max\left({}, {}\right)", kink="ties share")
minimum = _define("minimum", np.minimum, 2, "same", r"\min\left({}, {}\right)", kink="ties share")
floor_divide = _define(
    "floor_divide", np.floor_divide, 2, "same", r"\left\lfloor \frac{{{}}}{{{}}} \right\rfloor"
)
mod = _define("mod", np.mod, 2, "same", r"\left({} \bmod {}\right)")
less = _define("less", np.less, 2, "bool", r"\left({} < {}\right)")
less_equal = _define("less_equal", np.less_equal, 2, "bool", r"\left({} \le {}\right)")
equal = _define("equal", np.equal, 2, "bool", r"\left[{} = {}\right]")
not_equal = _define("not_equal", np.not_equal, 2, "bool", r"\left[{} \ne {}\right]")
logical_and = _define("logical_and", np.logical_and, 2, "bool", r"\left({} \wedge {}\right)")
logical_or = _define("logical_or", np.logical_or, 2, "bool", r"\left({} \vee {}\right)")
logical_xor = _define("logical_xor", np.logical_xor, 2, "bool", r"\left({} \oplus {}\right)")
logical_not = _define("logical_not", np.logical_not, 1, "bool", r"\neg {}")
isnan = _define("isnan", np.isnan, 1, "bool")
isfinite = _define("isfinite", np.isfinite, 1, "bool")
select = _define(
    "select",
    np.where,
    3,
    "select",
    r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
    kink="only the chosen branch is differentiated",
    base=Selected,
)
stop_gradient = _define("stop_gradient", np.asarray, 1, "same", "{}", kink="its derivative is 0")
CAST = {
    dtype: _define(
        f"cast_{dtype.name}",
        _caster(dtype),
        1,
        "cast",
        rf"\mathrm{{{{{dtype.name}}}}}\left({{}}\right)",
        dtype,
    )
    for dtype in ALL
}

# -- derivatives, in p0, p1 and the output y ------------------------------------------------------
_half = sympy.Rational(1, 2)
_differentiate("exp", Y)
_differentiate("log", 1 / P[0])
_differentiate("log1p", 1 / (1 + P[0]))
_differentiate("expm1", Y + 1)
_differentiate("sqrt", 1 / (2 * Y))
_differentiate("rsqrt", -_half * Y**3)
_differentiate("sin", cos(P[0]))
_differentiate("cos", -sin(P[0]))
_differentiate("tan", 1 + Y**2)
_differentiate("tanh", 1 - Y**2)
_differentiate("sinh", cosh(P[0]))
_differentiate("cosh", sinh(P[0]))
_differentiate("arctan", 1 / (1 + P[0] ** 2))
_differentiate("sigmoid", Y * (1 - Y))
_differentiate("softplus", sigmoid(P[0]))
_differentiate("erf", 2 / sympy.sqrt(sympy.pi) * exp(-(P[0] ** 2)))
_differentiate("abs", sign(P[0]))
# d(a^b): a_ct = b a^(b-1), zero where b = 0;  b_ct = a^b log a, zero where a = 0
_differentiate(
    "pow",
    select(equal(P[1], 0), 0, P[1] * pow_(P[0], P[1] - 1)),
    select(equal(P[0], 0), 0, Y * log(P[0])),
)
# ties share equally
_differentiate(
    "maximum",
    select(less(P[1], P[0]), 1, select(equal(P[0], P[1]), _half, 0)),
    select(less(P[0], P[1]), 1, select(equal(P[0], P[1]), _half, 0)),
)
_differentiate(
    "minimum",
    select(less(P[0], P[1]), 1, select(equal(P[0], P[1]), _half, 0)),
    select(less(P[1], P[0]), 1, select(equal(P[0], P[1]), _half, 0)),
)
_differentiate("mod", 1, -floor_divide(P[0], P[1]))
_differentiate("select", None, select(P[0], 1, 0), select(P[0], 0, 1))
for _dtype in ALL:
    if _dtype.kind == "f":
        _differentiate(f"cast_{_dtype.name}", 1)


def function_of(expr: sympy.Basic) -> ScalarFunction | None:
    """The table's entry of an application, None for anything else."""
    return FUNCTIONS[type(expr).__name__] if isinstance(expr, Applied) else None
