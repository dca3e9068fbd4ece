"""Lines of one element: functions, operators, comparisons, choices, types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from symgrad.fuzz.generation import MARGIN, Generator, Unfit, Variable
from symgrad.fuzz.programs import SCALARS
from symgrad.graph.dims import same

Domain = Callable[[np.ndarray[Any, Any]], Any]

ANYWHERE = (
    "sin", "cos", "tanh", "arctan", "sigmoid", "softplus", "gelu", "silu", "erf", "square",
    "isnan", "isfinite", "stop_gradient",
)  # fmt: skip
DOMAINS: dict[str, Domain] = {
    "exp": lambda x: x < 3.5,
    "expm1": lambda x: x < 3.5,
    "log": lambda x: x > 0.1,
    "log1p": lambda x: x > -0.8,
    "sqrt": lambda x: x > 0.1,
    "rsqrt": lambda x: x > 0.1,
    "tan": lambda x: np.abs(x) < 1.2,
    "sinh": lambda x: np.abs(x) < 4,
    "cosh": lambda x: np.abs(x) < 4,
    "reciprocal": lambda x: np.abs(x) > 0.2,
    "abs": lambda x: np.abs(x) > MARGIN,
    "sign": lambda x: np.abs(x) > MARGIN,
    "relu": lambda x: np.abs(x) > MARGIN,
    "leaky_relu": lambda x: np.abs(x) > MARGIN,
    "elu": lambda x: np.abs(x) > MARGIN,
    "floor": lambda x: np.abs(x - np.round(x)) > MARGIN,
}
"""Where a function is taken: inside its domain, far from its kinks, where it is not huge."""
UFUNCS = (
    "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tan", "tanh", "sinh", "cosh", "arctan",
    "square", "reciprocal", "abs", "floor",
)  # fmt: skip
POSITIVE = ("log", "sqrt", "rsqrt", "reciprocal")


def function(g: Generator) -> None:
    """A function of one float; `numpy.f(x)` means the same."""
    name = g.pick([*ANYWHERE, *DOMAINS])
    x = g.some_float()
    if name in DOMAINS and (x.value is None or not np.all(DOMAINS[name](g.value(x)))):
        x = within(g, name, x)
    if name == "stop_gradient":
        g.require(not g.random)
        g.smooth = g.smooth and g.scope.known
    options: dict[str, Any] = {}
    if name == "gelu" and g.chance(0.5):
        options["approximate"] = True
    elif name in ("leaky_relu", "elu") and g.chance(0.5):
        options["negative_slope" if name == "leaky_relu" else "alpha"] = 0.3
    if name in UFUNCS and g.chance(0.2):
        g.emit(f"np.{name}", x)
    else:
        g.emit(f"sg.{name}", x, **options)


def within(g: Generator, name: str, x: Variable) -> Variable:
    """The variable moved into the domain of a function, by a smooth function of it."""
    if name in POSITIVE:
        return g.emit("+", g.emit("sg.square", x), 0.5)
    if name in ("exp", "expm1", "log1p", "tan", "sinh", "cosh"):
        return g.emit("*", g.emit("sg.tanh", x), 0.7)
    raise Unfit


def arithmetic(g: Generator) -> None:
    """`a + b`, with another variable or a number."""
    a = g.some(lambda v: v.kind in "fi")
    operator = g.pick(["+", "-", "*", "*", "/", "maximum", "minimum", "**", "//", "%"])
    if g.chance(0.25):
        _with_number(g, operator, a)
        return
    b = g.partner(a)
    if g.chance(0.5):
        a, b = b, a
    if operator in ("/", "//", "%"):
        _divided(g, operator, a, b)
    elif operator == "**":
        g.require(a.kind == "f")
        g.require((g.value(a) > 0.3) & (g.value(a) < 5))
        g.require(np.abs(g.value(b)) < 4)
        g.emit(g.pick(["**", "sg.power"]), a, b)
    elif operator in ("maximum", "minimum"):
        if a.kind == "f":
            g.apart(g.value(a) - g.value(b))
        g.emit(f"{g.pick(['sg', 'np'])}.{operator}", a, b)
    elif g.chance(0.1):
        g.emit({"+": "np.add", "-": "np.subtract", "*": "np.multiply"}[operator], a, b)
    else:
        g.emit(operator, a, b)


def _divided(g: Generator, operator: str, a: Variable, b: Variable) -> None:
    """A quotient, with a divisor far from 0; floored far from whole numbers."""
    if a.value is None or b.value is None:
        g.require(operator == "/" and a.kind == "f")
        g.emit("/", a, g.emit("+", g.emit("sg.square", b), 0.7))
        return
    g.require(np.abs(g.value(b)) > 0.25)
    if a.kind == "f" and operator != "/":
        quotient = g.value(a) / g.value(b)
        g.apart(quotient - np.round(quotient))
    g.emit(operator, a, b)


def _with_number(g: Generator, operator: str, a: Variable) -> None:
    """A weak number on either side."""
    number: float = g.number() if a.kind == "f" else g.whole(1, 3)
    if operator in ("+", "-", "*"):
        pair = (a, number) if g.chance(0.6) else (number, a)
        g.emit(operator, *pair)
    elif operator == "/":
        g.emit("/", a, number)
    elif operator == "**":
        power = g.pick([0, 1, 2, 3] if a.kind == "i" else [0, 1, 2, 3, -1, -2, 0.5, -0.5, 1.5])
        if power < 0 or power != int(power):
            g.require(g.value(a) > 0.3)
        g.emit("**", a, power)
    elif operator in ("maximum", "minimum"):
        if a.kind == "f":
            g.apart(g.value(a) - number)
        g.emit(f"sg.{operator}", a, number)
    else:
        if a.kind == "f":
            quotient = g.value(a) / number
            g.apart(quotient - np.round(quotient))
        g.emit(operator, a, number)


def negative(g: Generator) -> None:
    """`-x`."""
    g.emit("neg", g.some(lambda v: v.kind in "fi"))


def comparison(g: Generator) -> None:
    """A comparison, of floats that differ."""
    a = g.some(lambda v: v.kind in "fi")
    operator = g.pick(["==", "!=", "<", "<=", ">", ">="])
    if g.chance(0.4):
        number: float = g.number() if a.kind == "f" else g.whole(-2, 2)
        if a.kind == "f":
            g.apart(g.value(a) - number)
        g.emit(operator, a, number)
        return
    b = g.partner(a)
    if a.kind == "f":
        g.apart(g.value(a) - g.value(b))
    g.emit(operator, a, b)


def logic(g: Generator) -> None:
    """`a & b`, `~a`, `any`, `all`."""
    a = g.some_bool()
    turn = g.rng.random()
    if turn < 0.2:
        g.emit("~", a)
    elif turn < 0.7:
        g.emit(g.pick(["&", "|", "^"]), a, g.partner(a))
    else:
        g.emit(f"sg.{g.pick(['any', 'all'])}", a, axis=g.axes(a), keepdims=g.chance(0.4))


def choice(g: Generator) -> None:
    """`where(c, a, b)`."""
    a = g.some(lambda v: v.kind in "fi")
    b: Any = g.partner(a) if g.chance(0.7) else 0
    condition = condition_for(g, a)
    g.emit("sg.where", condition, *((a, b) if g.chance(0.6) else (b, a)))


def clipped(g: Generator) -> None:
    """`clip`, its bounds away from every element."""
    x = g.some_float()
    low, high = sorted((g.number(), g.number()))
    g.require(low < high)
    g.apart(g.value(x) - low)
    g.apart(g.value(x) - high)
    bounds = g.pick([(low, high), (low, None), (None, high)])
    g.emit("sg.clip", x, *bounds)


def typed(g: Generator) -> None:
    """`astype`, to integers where no float is near a whole number."""
    x = g.some(lambda v: True)
    to = g.pick([g.floats, g.floats, g.other, g.ints, "bool"])
    if x.kind == "f" and to == g.ints:
        g.apart(g.value(x) - np.round(g.value(x)))
    elif x.kind == "f" and to == "bool":
        g.apart(g.value(x))
    elif x.kind == "b" and to == g.other:
        to = g.floats
    g.emit(g.pick(["sg.astype", ".astype"]), x, to)


def elementwise(g: Generator) -> None:
    """A function of one's own."""
    scalar = g.pick(SCALARS)
    x = g.some_float()
    if "Piecewise" in scalar.text:
        g.apart(g.value(x))
    if "exp(a)" in scalar.text and x.value is not None:
        g.require(g.value(x) < 20)
    args = [x, g.partner(x)] if "a, b" in scalar.text else [x]
    g.emit("sg.elementwise", scalar, *args)


def integers(g: Generator) -> None:
    """An integer from integers, so that there are some to index with."""
    a = g.some_int()
    g.emit(g.pick(["%", "//"]), a, g.whole(2, 4))


def truth(g: Generator) -> None:
    """A truth value in arithmetic."""
    a = g.some_float()
    b = condition_for(g, a)
    if g.chance(0.5):
        b = g.emit(".astype", b, g.floats)
    g.emit("*", *((a, b) if g.chance(0.5) else (b, a)))


def condition_for(g: Generator, x: Variable) -> Variable:
    """Truth values that broadcast to the shape of `x`."""

    def goes(v: Variable) -> bool:
        return v.kind == "b" and v.ndim <= x.ndim and all(
            same(a, b) is True or same(a, 1) is True
            for a, b in zip(reversed(v.shape), reversed(x.shape), strict=False)
        )  # fmt: skip

    try:
        return g.some(goes)
    except Unfit:
        return g.leaf(g.terms(x.shape), "bool")
