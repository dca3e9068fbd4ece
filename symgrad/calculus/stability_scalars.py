"""Rules of scalar steps: sums, products and quotients of values.

Each rule takes the step's operands and gives the value that it makes. A rule *fires* where the step
as written overflows, cancels or is undefined though its value is not: then the value's node is
built from its form, and the naive one is not built at all. All other steps are kept as they are
written; their forms are only read by the steps after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import sympy

from symgrad.calculus import stability_forms as fm, stability_ratios as rt
from symgrad.calculus.stability_building import POWER_LOG_X, SHIFT, X_LOG_X, Builder, mapped
from symgrad.calculus.stability_forms import WIDTH, Form, Summed, Value
from symgrad.graph import functions as fn
from symgrad.graph.dtypes import BOOL, DType, promote
from symgrad.graph.functions import FUNCTIONS, P
from symgrad.graph.nodes import Constant, Node

ONE = Fraction(1)
Fired = Callable[[str, Value], None]  # remembers which rule gave a value its form


@dataclass(slots=True)
class Step:
    """One step of a body: what is applied to which values, in a node of which dtype.

    derived: whether differentiation made the node; then terms may cancel that a user's own may not.
    own:     whether a user wrote it; the steps of a named verb are stable as they are.
    sums:    what is known of values that are sums over axes.
    """

    kind: str
    payload: object
    operands: Sequence[Value]
    dtype: DType
    derived: bool
    own: bool
    builder: Builder
    sums: Mapping[Value, Summed]
    fired: Fired
    variance: Callable[[Form, Form], Callable[[], Node] | None]

    @property
    def dirty(self) -> bool:
        """Whether a naive form lies below."""
        return any(v.dirty for v in self.operands)

    def body(self) -> sympy.Expr:
        """The step as a scalar body over its operands."""
        return body_of(self.kind, self.payload, len(self.operands))

    def written(self) -> Value:
        """The step as it is written: opaque, or inline where all its operands are."""
        known = [v.dtype for v in self.operands if v.dtype is not None]
        if not known:
            names = {P[k]: v.inline for k, v in enumerate(self.operands)}
            shapes = [v.shape for v in self.operands if v.shape is not None]
            return self.builder.inline(self.body().xreplace(names), next(iter(shapes), None))
        dtype = promote(*known)
        if self.kind == "call":
            function = FUNCTIONS[str(self.payload)]
            if function.result == "bool":
                dtype = BOOL
            elif function.result == "cast":
                dtype = function.dtype or dtype
            elif function.result == "select":
                branches = [v.dtype for v in self.operands[1:] if v.dtype is not None]
                dtype = promote(*branches) if branches else self.dtype
        operands, body = list(self.operands), self.body()
        value = Value(dtype, dirty=self.dirty, degree=self.builder.direction())
        value.make = lambda: self.builder.over(body, operands, dtype)
        return value

    def as_form(self, form: Form | None) -> Value:
        """The step as it is written, with its form."""
        value = self.written()
        if form is not None and value.inline is None:
            value.form = form
        return value

    def fire(self, rule: str, form: Form) -> Value:
        """The value built from its form, by a rule; as written where no closed form is known."""
        if not self.builder.can_build(form):
            return self.as_form(form)
        value = Value(self.dtype, form, dirty=True, fired=True)
        value.make = lambda: self.builder.product(form, self.dtype)
        self.builder.fired.add(self.builder.key(form))
        self.fired(rule, value)
        return value

    def fire_node(self, rule: str, make: Callable[[], Node]) -> Value:
        """An opaque value that a rule builds."""
        value = Value(self.dtype, dirty=True, fired=True, make=make)
        self.fired(rule, value)
        return value


_PLAIN = {
    "add": P[0] + P[1], "sub": P[0] - P[1], "mul": P[0] * P[1], "div": P[0] / P[1], "neg": -P[0],
}


def body_of(kind: str, payload: object, arity: int) -> sympy.Expr:
    """One operation as a scalar body."""
    return FUNCTIONS[str(payload)].cls(*P[:arity]) if kind == "call" else _PLAIN[kind]


def buildable(form: Form) -> bool:
    """Whether a form can be built with all its digits."""
    return form.ratio is None or rt.closed_form(form.ratio) is not None


def rule_of_form(form: Form) -> str:
    """The name of the rule that builds a form."""
    if not form.number:
        return "cancellation"
    if form.ratio is None:
        return "exponentials"
    closed = rt.closed_form(form.ratio)
    return closed.rule if closed is not None else "exponentials"


# -- sums ------------------------------------------------------------------------------------------
def negate(step: Step) -> Value:
    """-a keeps the form of a."""
    (a,) = step.operands
    value = step.as_form(fm.negated(a.form))
    value.terms, value.gentle = tuple(map(fm.negated, a.terms)), a.gentle
    return value


def add(step: Step) -> Value:
    """The sum of two, and the difference."""
    a, b = step.operands
    sign = 1 if step.kind == "add" else -1
    right = b.form if sign > 0 else fm.negated(b.form)
    found = fm.total(a.form, right)
    terms = _terms(step, a, b, sign)
    explicit = terms and all(t.ratio is None for t in terms)
    gentle = found is not None and found.form.ratio is not None and _gentle(a, b)
    known = found is not None and step.builder.key(found.form) in step.builder.fired
    harmless = step.derived and not known and (gentle or not (step.dirty or explicit))
    if found is not None and not found.form.number and (harmless or not step.derived):
        found = None  # a user's own x - x is NaN where x is
    if found is not None and found.cancels and not harmless and buildable(found.form):
        # e^x - 1 = expm1(x);  1 - sigmoid(x) = sigmoid(-x)
        value = step.fire(rule_of_form(found.form), found.form)
        value.terms = terms
        return value
    made = _variance(step, a.form, right) if found is None else None
    if made is not None:
        return step.fire_node("variance", made)
    value = step.as_form(None if found is None else found.form)
    if value.inline is not None:
        return value
    value.terms, value.gentle = terms, gentle
    if found is None:
        value.addends = (a, b, sign)
        value.logs = (a.logs | b.logs) if len(a.logs) + len(b.logs) <= WIDTH else frozenset()
        value.plus_one = _plus_one(a, b, sign)
        value.form = _scaled_sum(step, value) or value.form
    return value


def _variance(step: Step, a: Form, b: Form) -> Callable[[], Node] | None:
    # E[x^2] - E[x]^2, in either order, and less than 0 where it is negated
    if a.number < 0:
        a, b = b, a
    if a.number < 0 or b.number > 0 or a.is_number or b.is_number:
        return None
    b = fm.negated(b)
    made = step.variance(a, b)
    turned = None if made is not None else step.variance(b, a)
    if turned is None:
        return made
    return lambda: mapped(-P[0], [turned()], step.dtype)


def _terms(step: Step, a: Value, b: Value, sign: int) -> tuple[Form, ...]:
    # the exponentials that a sum is made of; in a derivative also ratios of them
    left, right = _exponentials(a), _exponentials(b)
    if not left or not right:
        if not step.derived:
            return ()
        left, right = (
            v.spread or ((v.form,) if v.form.ratio is not None else v.terms or (v.form,))
            for v in (a, b)
        )
    terms = [*left, *(right if sign > 0 else map(fm.negated, right))]
    if len(terms) > WIDTH and step.derived:
        terms = _collected(terms)
    return () if len(terms) > WIDTH or all(t.plain for t in terms) else tuple(terms)


def _exponentials(value: Value) -> tuple[Form, ...]:
    if value.terms:
        return value.terms if all(t.ratio is None for t in value.terms) else ()
    return (value.form,) if value.form.ratio is None else ()


def _plus_one(a: Value, b: Value, sign: int) -> tuple[int, Value] | None:
    # 1 + v,  v + 1,  1 - v
    if a.form.is_number and a.form.number == 1 and not b.form.is_number:
        return sign, b
    if sign > 0 and b.form.is_number and b.form.number == 1 and not a.form.is_number:
        return 1, a
    return None


def _scaled_sum(step: Step, value: Value) -> Form | None:
    # sum_i w_i e^(s_i) = (sum_i w_i e^(s_i - m)) e^m,  m = max_i s_i
    terms = value.terms
    if len(terms) < 2 or any(t.ratio is not None for t in terms):
        return None
    builder, dtype = step.builder, step.dtype
    grows = any(max(fm.height(t.exponent)) > 0 for t in terms) and not all(map(fm.tame, terms))
    common = all(dict(t.exponent) == dict(terms[0].exponent) for t in terms)
    if not grows and not (common and step.derived):
        return None
    if common:
        # w_1 e^s + w_2 e^s = (w_1 + w_2) e^s
        plain = [Form(t.number, t.factors) for t in terms]
        core = Value(dtype, dirty=True, make=lambda: _sum_of(builder, plain, dtype))
        return Form(factors={core: 1}, exponent=terms[0].exponent)
    degree = fm.highest(fm.height(t.exponent) for t in terms)
    largest = Value(dtype, dirty=True, degree=degree)
    rest = Value(dtype, dirty=True)

    def shift() -> Node:
        # several exponents may be equal
        different = {frozenset(t.exponent.items()): t.exponent for t in terms}
        exponents = [
            builder.wrap(builder.combination(e, dtype)) if e else builder.inline(sympy.S.Zero)
            for e in different.values()
        ]
        exponents.sort(key=lambda e: e.inline is not None)
        body: sympy.Expr = P[0]
        for k in range(1, len(exponents)):
            body = fn.maximum(body, P[k])
        top = builder.over(body, exponents, dtype)
        return mapped(SHIFT, [top], dtype)

    def scaled() -> Node:
        m = largest.node
        args: list[Value] = []
        for t in terms:
            plain = builder.product(Form(t.number, t.factors), dtype) if t.factors else None
            low = (
                mapped(fn.exp(P[0] - P[1]), [builder.combination(t.exponent, dtype), m], dtype)
                if t.exponent else mapped(fn.exp(-P[0]), [m], dtype)
            )
            c = rt.number(t.number)
            made = (
                mapped(c * P[0], [low], dtype) if plain is None
                else mapped(P[0] * P[1], [plain, low], dtype)
            )
            args.append(builder.wrap(made))
        return builder.over(sympy.Add(*P[: len(args)]), args, dtype)

    largest.make, rest.make = shift, scaled
    return Form(factors={rest: 1}, exponent={largest: ONE})


def _sum_of(builder: Builder, terms: Sequence[Form], dtype: DType) -> Node:
    args = [builder.wrap(builder.product(t, dtype)) for t in terms]
    return builder.over(sympy.Add(*P[: len(args)]), args, dtype)


# -- masks -----------------------------------------------------------------------------------------
def is_zero(value: Value) -> bool:
    """Whether it is the number 0."""
    if value.inline is not None:
        return bool(value.inline == 0)
    node = value.made
    return isinstance(node, Constant) and not node.shape and bool(node.value == 0)


def masked_form(step: Step, c: Value, a: Value, b: Value) -> Form | None:
    """select(c, e^s, 0) = e^(select(c, s, -inf)), and with its branches exchanged.

    A derivative stays masked where it is read: there it is the product with 1 and 0.
    """
    kept = a if is_zero(b) else b if is_zero(a) else None
    if kept is None or kept.inline is not None or (kept.form.plain and kept.form.number):
        return None
    builder, dtype = step.builder, step.dtype
    if step.derived:
        one = fn.select(P[0], 1, 0) if kept is a else fn.select(P[0], 0, 1)
        indicator = builder.wrap(builder.over(one, [c], dtype))
        return fm.product(kept.form, Form(factors={indicator: 1}))
    if kept.form.factors or kept.form.ratio is not None:
        return None
    s = builder.wrap(builder.combination(kept.form.exponent, dtype))
    body = fn.select(P[0], P[1], -sympy.oo) if kept is a else fn.select(P[0], -sympy.oo, P[1])
    masked = builder.wrap(builder.over(body, [c, s], dtype))
    masked.degree = fm.height(kept.form.exponent)
    return Form(kept.form.number, exponent={masked: ONE})


# -- products --------------------------------------------------------------------------------------
def multiply(step: Step) -> Value:
    """The product of two, and the quotient."""
    a, b = step.operands
    quotient = step.kind == "div"
    if quotient and not b.form.number:
        return step.written()
    right = fm.inverse(b.form) if quotient else b.form
    for mask, rest in ((a, b), (b, a)):
        # [c] e^s = e^(select(c, s, -inf))
        if mask.indicator is not None and not quotient:
            zero = step.builder.inline(sympy.S.Zero)
            chosen = masked_form(step, mask.indicator, rest, zero)
            if chosen is not None:
                return step.as_form(chosen)
    form = fm.product(a.form, right)
    if form is None and a.form.ratio is not None and b.form.ratio is not None:
        form = _apart(step, a.form, right)
    if form is None:
        return step.written()
    if not form.number:
        return step.fire("cancellation", form)
    if step.derived:
        # |x|^-1 x = sign(x);  x (1/x) = 1
        signed = _signed(step, form)
        if signed is not None:
            return step.fire("sign", signed)
    shared = any(
        power * a.form.factors.get(key, 0) < 0 and key.inline is None
        for key, power in right.factors.items()
    )
    fights = fm.fights(a.form, right) and not (fm.tame(a.form) and fm.tame(right))
    for sum_, other in ((a, right), (b, a.form)):
        # (e^a + e^b) e^-c = e^(a - c) + e^(b - c)
        terms = _addends(sum_)
        if not terms or (quotient and sum_ is b):
            continue
        if fights or any(fm.fights(t, other) for t in terms):
            value = _distributed(step, terms, other)
            if value is not None:
                return value
    hidden = quotient and b.terms and not b.fired and fm.hides(b.form, form)
    hidden = hidden and not fm.tame(b.form)
    possible = buildable(form) and (step.derived or not form.is_number)
    if possible and (hidden or fights):
        # e^a e^-b = e^(a - b);  1/(1 + e^-x) = sigmoid(x)
        return step.fire(rule_of_form(form), form)
    vanished = form.is_number and not (a.form.is_number and b.form.is_number)
    if shared or vanished:
        if step.derived and buildable(form):
            return step.fire("cancellation", form)
        return step.written()
    masked = _masked(step, form, a, b)
    if masked is not None:
        return masked
    value = step.as_form(form)
    value.gentle = form.ratio is not None and _gentle(a, b)
    for sum_, other in ((a, right), (b, a.form)):
        if not (quotient and sum_ is b) and other.number:
            spread = [fm.product(t, other) for t in _addends(sum_)]
            value.spread = value.spread or tuple([t for t in spread if t is not None])
            value.spread = value.spread if len(value.spread) == len(spread) else ()
    return value


def _addends(value: Value) -> tuple[Form, ...]:
    # of a sum that has no form of its own
    return value.spread or (value.terms if value.form.ratio is None else ())


def _gentle(*values: Value) -> bool:
    # made of tanh: what 1 - tanh(x)^2 loses is small beside the 1
    return all(v.gentle or v.form.plain for v in values)


def _apart(step: Step, a: Form, b: Form) -> Form | None:
    # one of two unrelated ratios becomes a factor; the other meets the exponentials
    first, second = (b, a) if b.exponent and fm.parallel(b.exponent, a.base) else (a, b)
    alone = Form(ratio=first.ratio, base=first.base)
    if not buildable(alone):
        return None
    builder, dtype = step.builder, step.dtype
    atom = Value(dtype, dirty=step.dirty, make=lambda: builder.product(alone, dtype))
    rest = fm.product(Form(first.number, first.factors, first.exponent), Form(factors={atom: 1}))
    return None if rest is None else fm.product(rest, second)


def _distributed(step: Step, terms: Sequence[Form], other: Form) -> Value | None:
    made = [fm.product(t, other) for t in terms]
    whole = [t for t in made if t is not None and buildable(t)]
    if len(whole) < len(made):
        return None
    whole = _collected(whole)
    if len(whole) < 2:
        return step.fire(rule_of_form(whole[0]), whole[0]) if whole else step.fire(
            "cancellation", fm.ZERO
        )
    value = step.fire_node("exponentials", lambda: _sum_of(step.builder, whole, step.dtype))
    value.terms = tuple(whole) if step.derived or all(t.ratio is None for t in whole) else ()
    value.form = _scaled_sum(step, value) or value.form
    return value


def _collected(terms: Sequence[Form]) -> list[Form]:
    # like terms of a sum, where they are ratios or equal exponentials
    found: list[Form] = []
    for term in terms:
        for k, other in enumerate(found):
            like = term.ratio is not None or other.ratio is not None
            if not like and dict(term.exponent) != dict(other.exponent):
                continue
            both = fm.total(other, term)
            if both is not None and (not both.form.number or buildable(both.form)):
                found[k : k + 1] = [both.form] if both.form.number else []
                break
        else:
            found.append(term)
    return found


def _signed(step: Step, form: Form) -> Form | None:
    # x^k |x|^p s^q, s = sign(x):  x^(k+p) or |x|^(k+p), with s where the parity asks for it
    for key, power in form.factors.items():
        x = step.builder.magnitudes.get(key) or step.builder.signs.get(key)
        k = form.factors.get(x, 0) if x is not None else 0
        if x is None or not k or (key in step.builder.magnitudes and power * k > 0):
            continue
        assert x.dtype is not None
        size = step.builder.magnitude(x)
        sign = step.builder.sign(x)
        n = k + form.factors.get(size, 0)
        odd = (k + form.factors.get(sign, 0)) % 2
        factors = {f: m for f, m in form.factors.items() if f not in (x, size, sign)}
        left = {x: n} if odd == n % 2 else {sign: odd, size: n}
        factors.update({f: m for f, m in left.items() if m})
        return Form(form.number, factors, form.exponent, form.ratio, form.base)
    return None


def _masked(step: Step, form: Form, a: Value, b: Value) -> Value | None:
    # x log x = 0 at x = 0
    if step.kind != "mul" or step.dtype is None:
        return None
    for log, other in ((a, b), (b, a)):
        found = _vanishing(other.form, _logs(log))
        if found is None:
            continue
        base, x = found
        rest = dict(other.form.factors)
        power = rest.pop(base)
        number = other.form.number
        if len(log.form.factors) == 1 and log.form.plain:
            ((single, count),) = log.form.factors.items()
            if count == 1 and single.logs:
                log, number = single, number * log.form.number
        left = Form(number, rest, other.form.exponent, other.form.ratio, other.form.base)
        if not buildable(left):
            return None
        value = step.fire_node("x log x", _x_log_x(step, base, power, log, left))
        value.zero_of = x
        return value
    return None


def _logs(value: Value) -> frozenset[Value]:
    # of a sum, and of a product
    return value.logs.union(*(f.logs for f, k in value.form.factors.items() if k > 0))


def _vanishing(form: Form, logs: frozenset[Value]) -> tuple[Value, Value] | None:
    # the factor that vanishes where one of the logarithms diverges, and what that is the log of
    for factor, power in form.factors.items():
        if power > 0 and factor.inline is None:
            if factor in logs:
                return factor, factor
            if meet := factor.roots & logs:
                return factor, next(iter(meet))
    return None


def _x_log_x(
    step: Step, x: Value, power: int, log: Value, left: Form
) -> Callable[[], Node]:
    def make() -> Node:
        dtype = step.dtype
        base = step.builder.product(Form(factors={x: power}), dtype)
        first = power == 1 and bool(log.logs) and not x.roots
        core = mapped(X_LOG_X if first else POWER_LOG_X, [base, log.node], dtype)
        if left.is_number and left.number == 1:
            return core
        whole = fm.product(left, step.builder.wrap(core).form)
        assert whole is not None
        return step.builder.product(whole, dtype)

    return make
