"""Square roots of squares, norms whose squares do not overflow, and differences from 1.

    sqrt(c x^2 e^s) = sqrt(c) |x| e^(s/2)
    sqrt(sum_k x_k^2) = m sqrt(sum_k (x_k / m)^2),   m = max_k |x_k|
    1 - cos x = 2 sin(x/2)^2,   sqrt(1 + v) - 1 = v / (sqrt(1 + v) + 1)

Blue, A portable Fortran program to find the Euclidean norm of a vector, 1978.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import sympy

from symgrad.calculus import stability_forms as fm, stability_ratios as rt
from symgrad.calculus.building import is_extent_one
from symgrad.calculus.stability_building import Builder, mapped, moved
from symgrad.calculus.stability_forms import Form, Summed, Value
from symgrad.calculus.stability_scalars import Step
from symgrad.graph import functions as fn
from symgrad.graph.dtypes import DType
from symgrad.graph.functions import P, placeholder
from symgrad.graph.nodes import Einsum, Map, Node, Reduce, einsum_node

# the divisor of a norm: 1 where all is 0 or something is infinite or NaN
_SCALE = fn.stop_gradient(
    fn.select(fn.logical_and(fn.isfinite(P[0]), fn.less(0, P[0])), P[0], 1)
)
_HALF = Fraction(1, 2)
SQUARES = 4  # of a hypotenuse at most


def square_root(step: Step) -> Value:
    """sqrt(x^2) = |x|, its reciprocal, and norms."""
    (x,) = step.operands
    if x.inline is not None:
        return step.written()
    found = fm.root(x.form) if x.form.factors or x.form.exponent else None
    if found is not None and not any(v.inline is not None for v in x.form.factors):
        number, factors, exponent = found
        form = Form(
            number, {step.builder.magnitude(v) if k % 2 else v: k for v, k in factors.items()},
            exponent,
        )
        rule = "absolute value" if factors else "exponentials"
        return step.fire(rule, form if step.payload == "sqrt" else fm.inverse(form))
    if x.form.exponent and x.form.ratio is None:
        # sqrt(a e^s) = sqrt(a) e^(s/2)
        rest = Form(x.form.number, x.form.factors)
        builder, dtype = step.builder, step.dtype
        inner = builder.over(fn.sqrt(P[0]), [builder.wrap(builder.product(rest, dtype))], dtype)
        form = Form(factors={builder.wrap(inner): 1}, exponent=fm.times(x.form.exponent, _HALF))
        return step.fire("exponentials", form if step.payload == "sqrt" else fm.inverse(form))
    norm = _norm(step, x)
    if norm is not None:
        return norm
    value = step.written()
    if step.payload == "sqrt":
        value.roots = frozenset(f for f, k in x.form.factors.items() if k > 0)
        value.less_one = _root_less_one(step, x, value)
    return value


# -- norms -----------------------------------------------------------------------------------------
def _norm(step: Step, x: Value) -> Value | None:
    if not step.own or step.derived:
        return None
    builder, dtype = step.builder, step.dtype
    whole = _sum_of_squares(step, x)
    if whole is not None:
        total, number, others = whole

        def make() -> Node:
            m, rest = _scaled_sum(builder, total, dtype)
            outer = fm.product(Form(number, others), Form(factors={builder.wrap(rest): 1}))
            assert outer is not None
            return _times_root(builder, step, m, builder.product(outer, dtype))
    else:
        squares = _squares(x)
        if len(squares) < 2:
            return None

        def make() -> Node:
            sides = [builder.over(fn.abs_(P[0]), [builder.wrap(builder.product(f, dtype))], dtype)
                     for f in squares]
            return _hypotenuse(builder, step, sides)

    return step.fire_node("norm", make)


def _sum_of_squares(step: Step, x: Value) -> tuple[Summed, Fraction, dict[Value, int]] | None:
    # c sum_k f_k^2, c of numbers and dims
    if not x.form.plain or x.form.number <= 0:
        return None
    sums = [v for v in x.form.factors if v in step.sums]
    others = {v: k for v, k in x.form.factors.items() if v not in sums}
    if len(sums) != 1 or x.form.factors[sums[0]] != 1 or any(v.inline is None for v in others):
        return None
    total = step.sums[sums[0]]
    if fm.root(total.form) is None or any(map(_is_small, total.form.factors)):
        return None
    if any(v.inline is not None for v in total.form.factors):
        return None
    return total, x.form.number * total.form.number, others


def _is_small(value: Value) -> bool:
    # a divisor of _SCALE; or x - E[x], which is small where a variance means something
    if value.inline is None and _is_scale(value.node):
        return True
    if value.addends is None or value.addends[2] > 0:
        return False
    x, mean, _ = value.addends
    node = None if x.inline is not None or mean.inline is not None else mean.node
    while node is not None and len(node.args) == 1:
        if isinstance(node, Einsum) and node.summed and node.args[0] is x.node:
            return True
        node = node.args[0]
    return False


def _is_scale(node: Node) -> bool:
    while isinstance(node, Einsum) and len(node.args) == 1:
        node = node.args[0]
    return isinstance(node, Map) and node.body == _SCALE


def _scaled_sum(builder: Builder, total: Summed, dtype: DType) -> tuple[Node, Node]:
    """The largest |f| over the axes of a sum, m, and the sum of (f / m)^2."""
    labels, out = total.node.labels[0], total.node.out
    x = builder.product(Form(factors={v: k // 2 for v, k in total.form.factors.items()}), dtype)
    x = moved(x, labels, labels)
    place = labels[len(labels) - x.ndim :]
    axes = tuple(
        a for a, k in enumerate(place) if k not in out and not is_extent_one(x.shape[a])
    )
    size: Node = mapped(fn.abs_(P[0]), [x], dtype)
    largest = mapped(_SCALE, [Reduce((size,), "max", axes) if axes else size], dtype)
    rest = [k for a, k in enumerate(place) if a not in axes]
    wide = moved(largest, rest, labels)
    square = mapped(P[0] ** 2, [mapped(P[0] / P[1], [x, wide], dtype)], dtype)
    extents = dict(enumerate(total.node.extents))
    inner = einsum_node((square,), (labels[len(labels) - square.ndim :],), out, extents)
    return moved(largest, rest, out), inner


def _squares(x: Value) -> list[Form]:
    # the roots of the terms of a sum of squares, none of them a number
    found: list[Form] = []
    stack = [x]
    while stack:
        here = stack.pop()
        if here.addends is not None and len(found) + len(stack) < SQUARES:
            a, b, sign = here.addends
            if sign < 0:
                return []
            stack += [b, a]
            continue
        side = fm.root(here.form) if here.form.factors and here.form.plain else None
        if side is None or any(v.inline is not None or _is_small(v) for v in side[1]):
            return []
        found.append(Form(side[0], side[1]))
    return found


def _hypotenuse(builder: Builder, step: Step, sides: Sequence[Node]) -> Node:
    body: sympy.Expr = P[0]
    for k in range(1, len(sides)):
        body = fn.maximum(body, P[k])
    m = mapped(_SCALE, [mapped(body, sides, step.dtype)], step.dtype)
    ratios = [mapped(P[0] / P[1], [side, m], step.dtype) for side in sides]
    inner = sympy.Add(*[placeholder(k) ** 2 for k in range(len(ratios))])
    return _times_root(builder, step, m, mapped(inner, ratios, step.dtype))


def _times_root(builder: Builder, step: Step, m: Node, inner: Node) -> Node:
    body = P[0] * fn.sqrt(P[1]) if step.payload == "sqrt" else fn.rsqrt(P[1]) / P[0]
    return mapped(body, [m, inner], step.dtype)


# -- differences from 1 ----------------------------------------------------------------------------
def cosine(step: Step) -> Value:
    """cos(x), which less 1 is -2 sin(x/2)^2."""
    (x,) = step.operands
    value = step.written()
    if value.inline is None:
        value.less_one = lambda: step.builder.over(-2 * fn.sin(P[0] / 2) ** 2, [x], step.dtype)
    return value


def _root_less_one(step: Step, x: Value, value: Value) -> Callable[[], Node] | None:
    if x.plus_one is None:
        return None
    sign, v = x.plus_one
    return lambda: step.builder.over(sign * P[0] / (P[1] + 1), [v, value], step.dtype)


def less_one(step: Step) -> Value | None:
    """Differences c v - c for a cosine or a root v that may be near 1."""
    a, b = step.operands
    for number, other, sign in ((a, b, 1 if step.kind == "add" else -1), (b, a, 1)):
        form = other.form
        if not number.form.is_number or len(form.factors) != 1 or not form.plain:
            continue
        ((single, power),) = form.factors.items()
        c = number.form.number if number is a or step.kind == "add" else -number.form.number
        if power != 1 or single.less_one is None or c != -sign * form.number:
            continue
        make = _times(sign * form.number, single.less_one, step.dtype)
        return step.fire_node("difference from 1", make)
    return None


def _times(factor: Fraction, build: Callable[[], Node], dtype: DType) -> Callable[[], Node]:
    return lambda: mapped(rt.number(factor) * P[0], [build()], dtype)
