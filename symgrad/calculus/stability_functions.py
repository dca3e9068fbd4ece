"""Rules of scalar functions: exponentials, tests and choices; and the table of all rules.

A function that is rational in e^x gets its ratio, and `value_of` finds the rule of any step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import inf

from symgrad.calculus import stability_forms as fm, stability_ratios as rt
from symgrad.calculus.stability_forms import Form, Value
from symgrad.calculus.stability_logs import joined, logarithm, logarithm_of_one_more, softplus
from symgrad.calculus.stability_roots import cosine, less_one, square_root
from symgrad.calculus.stability_scalars import Step, add, is_zero, masked_form, multiply, negate
from symgrad.graph.dtypes import BOOL
from symgrad.graph.functions import FUNCTIONS

ONE = Fraction(1)


def exponential(step: Step) -> Value:
    """e^x."""
    (x,) = step.operands
    exponent = fm.linear(x)
    if x in exponent and x.form.number < 0:
        x.degree = (-ONE,) * len(x.degree)  # such as -x^2
    step.builder.name(exponent, x)
    form: Form | None = Form(exponent={v: c for v, c in exponent.items() if not _whole_log(v, c)})
    for v, c in exponent.items():
        # e^(-k log F) = 1 / F^k
        if form is not None and _whole_log(v, c):
            assert v.log_of is not None
            for _ in range(abs(int(c))):
                form = None if form is None else fm.product(form, fm.inverse(v.log_of))
    return step.as_form(form or Form(exponent=exponent))


def _whole_log(value: Value, c: Fraction) -> bool:
    return value.log_of is not None and c.denominator == 1 and -rt.DEGREE <= c < 0


_T = rt.T
# of t = e^x:  sinh(x) = (t^2 - 1)/(2t),  cosh(x) = (t^2 + 1)/(2t);  of t = e^(2x):  tanh(x)
_TANH = (_T - 1) / (_T + 1)
_OF_T = {
    "expm1": _T - 1, "sigmoid": _T / (1 + _T), "sinh": (_T**2 - 1) / (2 * _T),
    "cosh": (_T**2 + 1) / (2 * _T),
}


def ratio(step: Step) -> Value:
    """A function that is rational in e^x; tanh(x) = (t - 1)/(t + 1) with t = e^(2x)."""
    (x,) = step.operands
    exponent = fm.linear(x)
    step.builder.name(exponent, x)
    name = str(step.payload)
    if name == "tanh":
        form = Form(ratio=_TANH, base=fm.times(exponent, Fraction(2)))
    else:
        form = Form(ratio=_OF_T[name], base=exponent)
    value = step.as_form(form)
    value.gentle = name == "tanh"
    return value


def addition(step: Step) -> Value:
    """A sum or a difference."""
    return joined(step) or less_one(step) or add(step)


def maximum(step: Step) -> Value:
    """The larger of two grows as both do."""
    value = step.written()
    if value.inline is None:
        value.degree = _larger_degree(step.operands)
    return value


def _larger_degree(values: Sequence[Value]) -> fm.Degree:
    return fm.highest(
        fm.LEVEL if v.inline is not None else fm.height(fm.linear(v)) for v in values
    )


def absolute(step: Step) -> Value:
    """|x|, which is not negative."""
    value = step.written()
    value.bounds = (0.0, inf)
    return value


def conversion(step: Step) -> Value:
    """A cast to the dtype that x has keeps its form; one of a bool is 1 or 0."""
    (x,) = step.operands
    if x.dtype == BOOL:
        value = step.written()
        value.indicator = x
        return value
    same = x.dtype is not None and FUNCTIONS[str(step.payload)].dtype == x.dtype
    return step.as_form(x.form) if same else step.written()


def choice(step: Step) -> Value:
    """select(c, a, b) of equal a and b is a: two forms of one function, each where it is stable."""
    c, a, b = step.operands
    value = step.written()
    value.degree = _larger_degree(step.operands[1:])
    if value.inline is None and c.zero_of is not None and c.zero_of in (a.zero_of, b.zero_of):
        value.settled = True
        return value
    both = a.fired and b.fired
    if value.inline is None and (both or not a.form.plain) and fm.equal(a.form, b.form):
        value.form, value.settled, value.dirty = a.form, True, False
    elif value.inline is None and (masked := masked_form(step, c, a, b)) is not None:
        value.form = masked
    elif value.inline is None and c.below is a and fm.equal(fm.negated(a.form), b.form):
        value.bounds = (-inf, 0.0)
    return value


def comparison(step: Step) -> Value:
    """The tests x = 0 and 0 < x are remembered: a choice by them masks the zero of x."""
    a, b = step.operands
    value = step.written()
    if value.inline is None:
        value.zero_of = zero_test(str(step.payload), a, b)
        value.below = a if step.payload == "less_equal" and is_zero(b) else None
    return value


def zero_test(name: str, a: Value, b: Value) -> Value | None:
    """What is tested by `x = 0` and `0 < x`."""
    if is_zero(a):
        return root_of(b)
    return root_of(a) if name == "equal" and is_zero(b) else None


def root_of(value: Value) -> Value:
    """The x that vanishes where x^k does."""
    form = value.form
    if form.plain and len(form.factors) == 1:
        ((single, power),) = form.factors.items()
        inner = next(iter(single.roots)) if len(single.roots) == 1 else single
        return inner if power > 0 else value
    return value


Rule = Callable[[Step], Value]

ARITHMETIC: Mapping[str, Rule] = {
    "neg": negate, "add": addition, "sub": addition, "mul": multiply, "div": multiply,
}
CALLS: Mapping[str, Rule] = {
    "exp": exponential,
    "expm1": ratio,
    "sigmoid": ratio,
    "tanh": ratio,
    "sinh": ratio,
    "cosh": ratio,
    "log": logarithm,
    "log1p": logarithm_of_one_more,
    "softplus": softplus,
    "abs": absolute,
    "maximum": maximum,
    "cos": cosine,
    "sqrt": square_root,
    "rsqrt": square_root,
    "select": choice,
    "equal": comparison,
    "less": comparison,
    "less_equal": comparison,
    "cast_float32": conversion,
    "cast_float64": conversion,
}


def value_of(step: Step) -> Value:
    """What a step makes, by the rule of its operation."""
    operands = step.operands[1:] if step.payload == "select" else step.operands
    cast = str(step.payload).startswith("cast_")
    floats = cast or all(v.dtype is None or v.dtype == step.dtype for v in operands)
    if not floats or all(v.inline is not None for v in step.operands):
        return step.written()
    table = CALLS if step.kind == "call" else ARITHMETIC
    rule = table.get(str(step.payload) if step.kind == "call" else step.kind)
    return step.written() if rule is None else rule(step)


