"""Rules of scalar functions: exponentials, logarithms, roots, tests and choices; and the table.

A function that is rational in e^x gets its ratio, a logarithm of exponentials is taken apart, and
`value_of` finds the rule of any step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from symgrad.calculus import stability_forms as fm, stability_ratios as rt
from symgrad.calculus.stability_forms import Form, Value
from symgrad.calculus.stability_scalars import Step, add, multiply, negate
from symgrad.graph import functions as fn
from symgrad.graph.functions import FUNCTIONS, P
from symgrad.graph.nodes import Constant, Node

ONE = Fraction(1)


def exponential(step: Step) -> Value:
    """e^x."""
    (x,) = step.operands
    exponent = fm.linear(x)
    if x in exponent and x.form.number < 0:
        x.degree = -ONE  # such as -x^2
    step.builder.name(exponent, x)
    return step.as_form(Form(exponent=exponent))


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


def logarithm(step: Step) -> Value:
    """log(x)."""
    (x,) = step.operands
    if not x.form.plain:
        # log(w e^s) = log(w) + s
        return _log_of(step, x.form) or step.written()
    if x.plus_one is not None:
        # log(1 + v) = log1p(v)
        sign, v = x.plus_one

        def make() -> Node:
            return step.builder.over(fn.log1p(sign * P[0]), [v], step.dtype)

        return step.fire_node("log1p", make)
    value = step.written()
    value.logs = frozenset(f for f in x.form.factors if f.inline is None)
    return value


def logarithm_of_one_more(step: Step) -> Value:
    """log1p(x): log(1 + e^s) = softplus(s)."""
    (x,) = step.operands
    found = None if x.form.plain else fm.total(Form(), x.form)
    if found is None or found.form.plain:
        return step.written()
    return _log_of(step, found.form) or step.written()


def _log_of(step: Step, form: Form) -> Value | None:
    probe = step.builder.logarithm(form, step.dtype)
    if probe is None:
        return None
    rule, node = probe
    value = step.fire_node(rule, lambda: node)
    value.form = step.builder.wrap(node).form
    return value


def square_root(step: Step) -> Value:
    """sqrt(x^2) = |x|, and its reciprocal."""
    (x,) = step.operands
    found = fm.root(x.form) if x.form.factors else None
    if found is None:
        return step.written()
    number, factors, exponent = found
    if any(v.inline is not None for v in factors):
        return step.written()
    form = Form(
        number, {step.builder.magnitude(v) if k % 2 else v: k for v, k in factors.items()}, exponent
    )
    return step.fire("absolute value", form if step.payload == "sqrt" else fm.inverse(form))


def conversion(step: Step) -> Value:
    """A cast to the dtype that x has keeps its form."""
    (x,) = step.operands
    same = x.dtype is not None and FUNCTIONS[str(step.payload)].dtype == x.dtype
    return step.as_form(x.form) if same else step.written()


def choice(step: Step) -> Value:
    """select(c, a, b) of equal a and b is a: two forms of one function, each where it is stable."""
    c, a, b = step.operands
    value = step.written()
    if value.inline is None and c.zero_of is not None and c.zero_of in (a.zero_of, b.zero_of):
        value.settled = True
        return value
    both = a.fired and b.fired
    if value.inline is None and (both or not a.form.plain) and fm.equal(a.form, b.form):
        value.form, value.settled, value.dirty = a.form, True, False
    return value


def test(step: Step) -> Value:
    """The tests x = 0 and 0 < x are remembered: a choice by them masks the zero of x."""
    a, b = step.operands
    value = step.written()
    if value.inline is None:
        value.zero_of = zero_test(str(step.payload), a, b)
    return value


def zero_test(name: str, a: Value, b: Value) -> Value | None:
    """What is tested by `x = 0` and `0 < x`."""
    if _is_zero(a):
        return b
    return a if name == "equal" and _is_zero(b) else None


def _is_zero(value: Value) -> bool:
    if value.inline is not None:
        return bool(value.inline == 0)
    node = value.made
    return isinstance(node, Constant) and not node.shape and bool(node.value == 0)


Rule = Callable[[Step], Value]

ARITHMETIC: Mapping[str, Rule] = {
    "neg": negate, "add": add, "sub": add, "mul": multiply, "div": multiply,
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
    "sqrt": square_root,
    "rsqrt": square_root,
    "select": choice,
    "equal": test,
    "less": test,
    "cast_float32": conversion,
    "cast_float64": conversion,
}


def value_of(step: Step) -> Value:
    """What a step makes, by the rule of its operation."""
    operands = step.operands[1:] if step.payload == "select" else step.operands
    floats = all(v.dtype is None or v.dtype == step.dtype for v in operands)
    if not floats or all(v.inline is not None for v in step.operands):
        return step.written()
    table = CALLS if step.kind == "call" else ARITHMETIC
    rule = table.get(str(step.payload) if step.kind == "call" else step.kind)
    return step.written() if rule is None else rule(step)


