"""Naive forms made stable: equal expressions that neither overflow nor cancel on the way.

One walk from the leaves to the end gives each value its form in an algebra of exponentials
(`stability_forms.py`), and asks of every step whether it overflows, cancels or is undefined though
its value is not. The rules stand with their equations in `stability_scalars.py`,
`stability_functions.py`, `stability_logs.py` and `stability_roots.py` (steps of scalar bodies, also
of `elementwise`), in `stability_moves.py` (sums over axes, broadcasts, slices, reads at indices and
their cotangents) and in `stability_variance.py`. Rational functions of e^x, hence all derivatives
of hand-written sigmoids and hyperbolic tangents, are built by `stability_ratios.py`.

Whatever no rule asks for stays as it is written: `0.0 * x`, `x - x`, `x / x`. Derivatives made by
`grad` before are known by their origin: there `x (1/x)` is 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import sympy

from symgrad.calculus.map_rules import derived
from symgrad.calculus.stability_building import SHIFT, Builder, fitted
from symgrad.calculus.stability_forms import Form, Summed, Value, height, linear, product
from symgrad.calculus.stability_functions import value_of, zero_test
from symgrad.calculus.stability_logs import NEAR
from symgrad.calculus.stability_moves import Moves, Outcome
from symgrad.calculus.stability_record import EQUATIONS, Rewrite
from symgrad.calculus.stability_scalars import Step, body_of
from symgrad.calculus.stability_variance import covariance
from symgrad.graph.dtypes import BOOL, is_float
from symgrad.graph.folds import Fold
from symgrad.graph.functions import P, axis_index, function_of, placeholder
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Gather, Map, Node, Reduce, Reindex, Scatter
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import provenance
from symgrad.graph.scalars import Operation, operations
from symgrad.graph.traversal import outputs_of, reconnect, replace, toposort

if TYPE_CHECKING:
    from symgrad.calculus.stability_certificate import Certificate

PASSES = 4  # until nothing is rewritten; the second finds little, and the third nothing as a rule
STEPS = 400  # operations of a body at most: beyond, it is taken as it is


@overload
def stabilize(e: Node, certificate: Literal[False] = False) -> Node: ...
@overload
def stabilize(e: Sequence[Node], certificate: Literal[False] = False) -> tuple[Node, ...]: ...
@overload
def stabilize(e: Node, certificate: Literal[True]) -> tuple[Node, Certificate]: ...
@overload
def stabilize(
    e: Sequence[Node], certificate: Literal[True]
) -> tuple[tuple[Node, ...], Certificate]: ...
@rewrites
def stabilize(
    e: Node | Sequence[Node], certificate: bool = False
) -> (
    Node | tuple[Node, ...] | tuple[Node, Certificate] | tuple[tuple[Node, ...], Certificate]
):
    """An equal expression, or several, whose values are right wherever their naive forms are not.

    rewrite: log sum e^x, e^x / sum e^x, log(1 + e^x), 1/(1 + e^-x), 1 - sigmoid(x), log(1 + x),
             e^x - 1, E[x^2] - E[x]^2, x log x, sqrt(x^2), sqrt(sum x^2), 1 - cos(x), in any
             equivalent form, with any x, axes, masks and factors, and derivatives of these; see
             `EQUATIONS` in `stability_record.py`.
    keeps:   shapes, dtypes, values where the naive form is accurate, and what no rule asks for:
             also `1 - y^2` and `y (1 - y)` in derivatives of tanh and sigmoid, whose loss is small
             beside the 1.

    Args:
        certificate: also return what was rewritten, on which line, and for which x the naive form
                     loses more than half of its digits (needs mpmath).
    Returns: the expression, or a pair of it and the certificate.
    Raises: SymgradError when a certificate is asked for and mpmath is missing.

    Differentiating before or after gives the same values; before, the joint graph shares more when
    loss and gradients are stabilised together.  Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, chapter 1; Blanchard et al. 2021.

    >>> from symgrad.graph.elementwise import exp, log
    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (3,))
    >>> stabilize(log(1.0 + exp(x))).body
    softplus(p0)
    """
    outputs = outputs_of("stabilize", e)
    done, made = at_rest(outputs, certificate)
    result = done[0] if isinstance(e, Node) else tuple(done)
    if not certificate:
        return result
    from symgrad.calculus.stability_certificate import certify

    return result, certify(made)  # type: ignore[return-value]


def at_rest(outputs: Sequence[Node], certified: bool) -> tuple[list[Node], list[Rewrite]]:
    """Outputs in which nothing is left to rewrite, and what was rewritten."""
    done, rewrites = list(outputs), list[Rewrite]()
    for _ in range(PASSES):
        walk = Walk(certified)
        done = walk.run(done)
        rewrites += walk.rewrites
        if not walk.rewrites:
            break
    return done, rewrites


def stabilize_graph(graph: Graph) -> Graph:
    """A closed graph, such as the body of a recurrence, with stable outputs and the same inputs."""
    return _inside(graph, False)[0]


def _inside(graph: Graph, certified: bool) -> tuple[Graph, list[Rewrite]]:
    outputs, rewrites = at_rest(graph.outputs, certified)
    same = all(a is b for a, b in zip(outputs, graph.outputs, strict=True))
    return graph if same else Graph(graph.inputs, tuple(outputs)), rewrites


class Walk:
    """One stabilisation: values by node, and what was rewritten."""

    def __init__(self, certified: bool = False) -> None:
        self.certified = certified
        self.builder = Builder()
        self.moves = Moves(self.builder)
        self.values: dict[Node, Value] = {}
        self.rewrites: list[Rewrite] = []
        self.inner: list[Rewrite] = []  # of the steps of recurrences

    def run(self, outputs: Sequence[Node]) -> list[Node]:
        """The outputs, stable."""
        for node in toposort(outputs):
            args = [self.values[a] for a in node.args]
            with provenance(node.origin, node.backward_of, node.where):
                self.values[node] = self.visit(node, args)
        done = [self.values[output].node for output in outputs]
        if self.rewrites:
            used = set(toposort(done))
            self.rewrites = [r for r in self.rewrites if r.after in used]
        self.rewrites += self.inner
        return done

    def visit(self, node: Node, args: Sequence[Value]) -> Value:
        """The value of a node, from those of its arguments."""
        if isinstance(node, Map) and is_float(node.dtype):
            return self.map(node, args)
        if not is_float(node.dtype) or not args:
            return self.plain(node, args)
        if isinstance(node, Einsum):
            return self.moved(node, args, self.moves.einsum(node, args))
        if args[0].form.plain:
            return self.plain(node, args)
        if isinstance(node, (Gather, Reindex)):
            made = [a.node for a in args]
            outcome = self.moves.read(node, args, made)
            if outcome.form is None and isinstance(node, Reindex):
                outcome = self.moves.write(node, args, made)
            return self.moved(node, args, outcome)
        if isinstance(node, Scatter):
            return self.moved(node, args, self.moves.write(node, args, [a.node for a in args]))
        return self.plain(node, args)

    def plain(self, node: Node, args: Sequence[Value]) -> Value:
        """The node over its new arguments."""
        value = self.builder.wrap(self.inside(reconnect(node, tuple([a.node for a in args]))))
        value.dirty = value.dirty or any(a.dirty for a in args)
        if isinstance(node, (Reduce, Einsum)) and len(args) == 1 and is_float(node.dtype):
            value.degree = height(linear(args[0]))  # of a maximum, and of one that is moved
        if isinstance(node, Map) and node.dtype == BOOL and len(args) == 2:
            function = function_of(node.body)
            if function is not None and function.name in ("equal", "less"):
                value.zero_of = zero_test(function.name, *args)
        return value

    def inside(self, node: Node) -> Node:
        """A node with the graph inside it, if it has one, made stable."""
        if not isinstance(node, Fold):
            return node
        known = with_literals(node)
        stable, rewrites = _inside(known.body, self.certified)
        self.inner += rewrites
        return node if stable is known.body else dataclasses.replace(known, body=stable)

    def kept(self, node: Node, args: Sequence[Value], value: Value) -> Value:
        """The node over its new arguments, known by the form of `value`."""
        new = reconnect(node, tuple([a.node for a in args]))
        value.made, value.make = new, None
        known = self.builder.wrapped.setdefault(new, value)
        if known is not value and known in known.form.factors and value not in value.form.factors:
            # taken as it is before; now more is known of it
            known.form, known.terms, known.gentle = value.form, value.terms, value.gentle
        if len(value.form.factors) == 1 and value.form.plain and value.form.number == 1:
            ((single, power),) = value.form.factors.items()
            if power == 1 and single.made is not None and single.made.shape == new.shape:
                single.made = new  # equal nodes, of which one is there already
        return known

    def moved(self, node: Node, args: Sequence[Value], outcome: Outcome) -> Value:
        """A node that moves or sums, by what its rule found."""
        if outcome.form is None:
            value = self.plain(node, args)
            if isinstance(node, Einsum) and node.summed and value not in self.moves.sums:
                self._note_sum(node, args, value)
            return value
        form, dirty = outcome.form, any(a.dirty for a in args)
        value = Value(node.dtype, form, dirty=dirty or outcome.rule is not None)
        if outcome.rule is None:
            return self.kept(node, args, value)
        value.fired = True
        value.make = self.builder_of(node, outcome.rule, form)
        return value

    def _note_sum(self, node: Einsum, args: Sequence[Value], value: Value) -> None:
        # sum x, and sum x y of equal labels
        form: Form | None = Form()
        if any(labels != node.labels[0] for labels in node.labels):
            return
        for arg in args:
            form = None if form is None else product(form, arg.form)
        if form is not None and form.plain:
            new = value.node
            assert isinstance(new, Einsum)
            self.moves.sums[value] = Summed(form, args[0], new)

    # -- Map: every operation of its body is a step ----------------------------------------------
    def map(self, node: Map, args: Sequence[Value]) -> Value:
        """The value of a Map, operation by operation."""
        if node.body in (NEAR, SHIFT):
            value = self.plain(node, args)
            value.degree = args[0].degree
            value.bounds = (-1.0, 1.0) if node.body == NEAR else value.bounds
            return value
        steps = operations(node.body)
        if len(steps) > STEPS or not steps:
            return self.plain(node, args)
        if steps[-1].kind == "argument" and not args[0].form.plain:
            return self.moved(node, args, Outcome(args[0].form))  # stretched
        values: list[Value] = []
        rules: dict[Value, str] = {}
        for step in steps:
            if step.kind == "argument":
                values.append(args[step.payload])
            elif step.kind in ("number", "dim", "axis"):
                values.append(self.builder.inline(inline(step.kind, step.payload), node.shape))
            else:
                operands = [values[k] for k in step.operands]
                values.append(value_of(Step(
                    step.kind, step.payload, operands, node.dtype, derived(node),
                    node.origin is None, self.builder, self.moves.sums,
                    lambda rule, value: rules.__setitem__(value, rule),
                    lambda a, b: covariance(self.builder, self.moves.sums, a, b, node.dtype),
                )))
        result = values[-1]
        needed = needed_steps(steps, values) if rules else []
        if not any(values[k] in rules for k in needed):
            return self._as_written(node, args, result, len(steps) == len(args))
        value = dataclasses.replace(
            result, dtype=node.dtype, dirty=True, fired=True, settled=False, made=None, make=None
        )
        if result in result.form.factors and len(result.form.factors) == 1:
            value.form = Form(factors={value: 1})
        for k in needed:
            if values[k].settled:
                self._keep_whole(node, args, steps, k, values[k])
        value.make = self._maker(node, [values[k] for k in needed], rules)
        return value

    def _as_written(
        self, node: Map, args: Sequence[Value], result: Value, bare: bool
    ) -> Value:
        if result.inline is not None:
            value = self.plain(node, args)
            value.form = result.form if result.form.is_number else value.form
            return value
        if bare or result.made is not None or result in args:
            value = self.plain(node, args)
            value.form = result.form if bare and result.form.is_number else value.form
            return value
        return self.kept(node, args, result)

    def _keep_whole(
        self, node: Map, args: Sequence[Value], steps: Sequence[Operation], k: int, value: Value
    ) -> None:
        body = expression(steps, k)
        value.make = lambda: self.builder.over(body, args, node.dtype, node.shape)

    def _maker(
        self, node: Map, values: Sequence[Value], rules: dict[Value, str]
    ) -> Callable[[], Node]:
        def make() -> Node:
            with provenance(node.origin, node.backward_of, node.where):
                for value in values:
                    if value.inline is None:
                        value.node  # noqa: B018  # in order, so that no chain is built by recursion
                result = values[-1]
                new = fitted(
                    result.node if result.inline is None
                    else self.builder.over(result.inline, (), node.dtype, node.shape), node.shape
                )
            for value in values:
                if value in rules:
                    self.record(rules[value], node, value.node)
            return new

        return make

    def builder_of(self, node: Node, rule: str, form: Form) -> Callable[[], Node]:
        """Builds a node from its form, and remembers the rule."""

        def make() -> Node:
            with provenance(node.origin, node.backward_of, node.where):
                new = fitted(self.builder.product(form, node.dtype), node.shape)
            self.record(rule, node, new)
            return new

        return make

    def record(self, rule: str, before: Node, after: Node) -> None:
        """Remember a rewrite."""
        over: tuple[tuple[Node, Node], ...] = ()
        if self.certified:
            from symgrad.calculus.stability_certificate import cut

            over = tuple((n, self.values[n].node) for n in cut(before, self.opaque))
        self.rewrites.append(
            Rewrite(rule, EQUATIONS[rule], before.where, before.shape, before, after, over)
        )

    def opaque(self, node: Node) -> bool:
        """Whether nothing is known of a node that a rule could use."""
        value = self.values[node]
        if value.fired or not value.form.plain or value in self.moves.sums or value.logs:
            return False
        if value.less_one is not None or value.log_of is not None:
            return False
        if value.plus_one is not None or value.terms or not is_float(node.dtype):
            return False
        return not node.args or (value.form.factors.get(value) == 1 and value.form.number == 1)


def inline(kind: str, payload: Any) -> sympy.Expr:
    """A number, dim or axis of a body as an expression."""
    if kind == "axis":
        return axis_index(payload)
    return payload if kind == "dim" else sympy.sympify(payload)


def with_literals(fold: Fold) -> Fold:
    """A recurrence with the numbers among its constants inside its step, where rules see them."""
    first = fold.carries + fold.sequences
    leaves = fold.body.inputs
    numbers: dict[Node, Node] = {
        leaf: arg for leaf, arg in zip(leaves[first:], fold.args[first:], strict=True)
        if isinstance(arg, Constant) and not arg.shape
    }
    if not numbers:
        return fold
    kept = [k for k, leaf in enumerate(leaves) if leaf not in numbers]
    body = Graph(tuple([leaves[k] for k in kept]), tuple(replace(fold.body.outputs, numbers)))
    return dataclasses.replace(fold, args=tuple([fold.args[k] for k in kept]), body=body)


def needed_steps(steps: Sequence[Operation], values: Sequence[Value]) -> list[int]:
    """The steps that must be built, in order: those that the result reads as it is written."""
    needed = {len(steps) - 1}
    for k in range(len(steps) - 1, -1, -1):
        if k in needed and not values[k].fired and not values[k].settled:
            needed.update(steps[k].operands)
    return sorted(needed)


def expression(steps: Sequence[Operation], last: int) -> sympy.Expr:
    """The body of a step, from straight-line code."""
    made: list[sympy.Expr] = []
    for step in steps[: last + 1]:
        if step.kind == "argument":
            made.append(placeholder(step.payload))
        elif step.kind in ("number", "dim", "axis"):
            made.append(inline(step.kind, step.payload))
        else:
            names = {P[k]: made[n] for k, n in enumerate(step.operands)}
            made.append(body_of(step.kind, step.payload, len(step.operands)).xreplace(names))
    return made[-1]
