r"""The chain rule step by step, from the loss back to a parameter, in formulas for a person.

Each step is one application of one rule of `vjp.py`, to a node whose arguments are given names, so
that what is shown is what is computed. `\overline{v}` is the cotangent of a value v: the derivative
of the loss by v, of the shape of v.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from symgrad.calculus import bodies
from symgrad.calculus.activity import active_nodes
from symgrad.calculus.building import is_extent_one
from symgrad.calculus.derivation_page import page
from symgrad.calculus.formulas import plain
from symgrad.calculus.simplification import simplify
from symgrad.calculus.vjp import as_targets, grad, rule_of
from symgrad.graph import functions as fn
from symgrad.graph.dims import Shape, printable, show
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import placeholder
from symgrad.graph.graph import Graph
from symgrad.graph.latex import in_one_line, latex
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.provenance import SourceLine, provenance
from symgrad.graph.scalar_latex import extent_latex, latex_name
from symgrad.graph.text import axis_letters, spec
from symgrad.graph.traversal import replace, toposort

_STANDS_FOR = "Z9{:05d}"  # a leaf's name that no formula has; its LaTeX is replaced by the symbol


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the forward pass.

    symbol:  its name in LaTeX.
    formula: what it is, in LaTeX; empty for a leaf.
    origin:  a leaf's kind, or the line of the program.
    """

    node: Node
    symbol: str
    formula: str
    origin: str

    @property
    def shape(self) -> Shape:
        """The shape of the value and of its cotangent."""
        return self.node.shape


@dataclass(frozen=True, slots=True)
class Step:
    """One application of one rule.

    rule:      its name;  why: what it says, in a sentence.
    primal:    the forward operation;  target: the argument whose cotangent it gives.
    formula:   the cotangent in LaTeX;  forward: the operation in LaTeX.
    einsum:    the contractions in it, `bi,bj->ij`.
    residuals: values of the forward pass that the formula reads.
    share:     (which, of how many) contributions to the target's cotangent this is.
    """

    number: int
    rule: str
    why: str
    primal: Value
    target: Value
    formula: str
    forward: str
    einsum: tuple[str, ...]
    residuals: tuple[Value, ...]
    share: tuple[int, int]

    @property
    def where(self) -> SourceLine | None:
        """The user's line of the forward operation."""
        return self.primal.node.where


@dataclass(frozen=True, slots=True)
class Derivation:
    """The steps from a loss to the gradient by some nodes.

    values:   the forward pass, in order;  steps: the backward pass, in order.
    gradient: the simplified gradients, one for each of `wrt`.
    """

    loss: Value
    wrt: tuple[Value, ...]
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    gradient: tuple[Node, ...]

    def __str__(self) -> str:
        names = ", ".join(plain(w.symbol) for w in self.wrt)
        lines = [f"d {plain(self.loss.symbol)} / d {names}, step by step", "", "forward"]
        for v in self.values:
            formula = f" = {plain(v.formula)}" if v.formula else ""
            lines.append(f"  {plain(v.symbol)}{formula}   {_typed(v.node)}   {v.origin}".rstrip())
        lines += ["", "backward", f"   0. {plain(_bar(self.loss))} = 1"]
        for step in self.steps:
            lines.append(f"  {step.number:2d}. {step.rule}   ({step.why})")
            lines.append(f"      {plain(step.formula)}   {show(step.target.shape)}")
            lines += [f"      einsum {e}" for e in step.einsum]
            if step.residuals:
                read = ", ".join(plain(r.symbol) for r in step.residuals)
                lines.append(f"      reads {read}")
        lines += ["", "simplified", str(Graph.of(self.gradient))]
        return "\n".join(lines)

    def latex(self) -> str:
        """All formulas as one aligned block."""
        rows = [
            f"{v.symbol} &= {v.formula}" for v in self.values if v.formula
        ] + [rf"{_bar(self.loss)} &= 1"]
        rows += [s.formula.replace("=", "&=", 1) for s in self.steps]
        return r"\begin{aligned} " + r" \\ ".join(rows) + r" \end{aligned}"

    def _repr_html_(self) -> str:
        """A page that stands alone: formulas as MathML, no script, nothing fetched."""
        return page(self)


def derive(loss: Node, wrt: Node | Sequence[Node]) -> Derivation:
    """The chain rule from a scalar loss back to `wrt`, step by step.

    Args:
        loss: a float scalar.
        wrt:  a float node, or several.
    Returns: a record with `.steps`, `str()`, `.latex()` and a page for notebooks.
    Raises: ShapeError, GradError, as `grad`.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", ())
    >>> [step.rule for step in derive(x * x + x, x).steps]
    ['sum rule', 'sum rule', 'product rule', 'product rule']
    """
    targets = as_targets("derive", wrt)
    gradient = simplify(grad(loss, targets))
    order = toposort([loss, *targets])
    values = _named(order, loss)
    steps = _steps(loss, targets, values)
    shown = tuple(sorted((values[n] for n in order if n in values), key=lambda v: bool(v.formula)))
    return Derivation(
        values[loss], tuple(values[t] for t in targets), shown, steps, gradient
    )


# -- names ----------------------------------------------------------------------------------------
def _named(order: Sequence[Node], loss: Node) -> dict[Node, Value]:
    """Leaves keep their names; what is computed is `v_1, v_2, ..`, and the loss."""
    symbols: dict[Node, str] = {}
    count = 0
    for node in order:
        if isinstance(node, Input):
            symbols[node] = latex_name(node.name)
        elif not isinstance(node, (Constant, Fold)):  # a recurrence is told by its results
            count += 1
            symbols[node] = r"\mathcal{L}" if node is loss else f"v_{{{count}}}"
    made: dict[Node, Value] = {}
    for node, symbol in symbols.items():
        if isinstance(node, Input):
            made[node] = Value(node, symbol, "", node.kind)
        else:
            formula = _formula(_apart(node, symbols)[0], symbols)
            if isinstance(node, Map) and node.body.has(fn.stop_gradient):
                formula += r"\quad \text{(held constant)}"
            line = str(node.where) if node.where is not None else ""
            made[node] = Value(node, symbol, formula, printable(line))
    return made


def _stands_for(node: Node, number: int) -> Input:
    return Input(_STANDS_FOR.format(number), node.shape, node.dtype)


def _apart(node: Node, symbols: dict[Node, str]) -> tuple[Node, dict[Node, Input]]:
    """The node over leaves that stand for its arguments; and which leaf stands for what."""
    numbers = {n: k for k, n in enumerate(symbols)}
    leaves = {a: _stands_for(a, numbers[a]) for a in node.args if a in symbols}
    if isinstance(node, Proj):
        return node.with_args([_apart(node.args[0], symbols)[0]]), leaves
    return node.with_args([leaves.get(a, a) for a in node.args]), leaves


def _formula(node: Node, symbols: dict[Node, str], extra: str = "") -> str:
    """LaTeX with the stand-ins replaced by their symbols; `extra` is that of number 99999."""
    names = list(symbols.values())

    def symbol(match: re.Match[str]) -> str:
        number = int(match[1])
        return extra if number == 99999 else names[number]

    formula = in_one_line(node) if isinstance(node, Proj) else latex(node)
    return re.sub(r"Z_\{9(\d{5})\}", symbol, formula)


def _bar(value: Value) -> str:
    return rf"\overline{{{value.symbol}}}"


def _typed(node: Node) -> str:
    return f"{node.dtype} {show(node.shape)}"


# -- steps ----------------------------------------------------------------------------------------
def _steps(
    loss: Node, targets: Sequence[Node], values: dict[Node, Value]
) -> tuple[Step, ...]:
    order = toposort([loss])
    active = active_nodes(order, targets)
    reached = {loss}
    found: list[tuple[Node, Node, int, Node, dict[Node, Node]]] = []
    result_of: dict[Node, Node] = {}  # the result that stands for a recurrence
    symbols = {n: v.symbol for n, v in values.items()}
    numbers = {n: k for k, n in enumerate(symbols)}
    for node in reversed(order):
        if node not in reached or node not in active or isinstance(node, (Input, Constant)):
            continue
        if isinstance(node, Proj):
            result_of[node.args[0]] = node
            reached.add(node.args[0])
            continue
        if isinstance(node, Fold):
            for k, arg in enumerate(node.args):
                if arg in active:
                    found.append((result_of[node], arg, k, node, {}))
                    reached.add(arg)
            continue
        apart, leaves = _apart(node, symbols)
        own = _stands_for(node, numbers[node])
        ct = Input(_STANDS_FOR.format(99999), node.shape, node.dtype)
        needs = [a in active for a in node.args]
        if not any(needs):
            continue
        with provenance("vjp", node, node.where):
            parts = rule_of(apart)(apart, ct, 0, needs)
        for k, part in enumerate(parts):
            if part is None:
                continue
            (cotangent,) = replace([part], {apart: own})
            if not isinstance(node, Gather):  # a Scatter says it best
                cotangent = simplify(cotangent)
            back: dict[Node, Node] = {leaf: n for n, leaf in leaves.items()}
            back[own] = node
            found.append((node, node.args[k], k, cotangent, back))
            reached.add(node.args[k])
    total: dict[Node, int] = {}
    for _, target, *_ in found:
        total[target] = total.get(target, 0) + 1
    seen: dict[Node, int] = {}
    steps: list[Step] = []
    for node, target, k, cotangent, back in found:
        seen[target] = seen.get(target, 0) + 1
        share = (seen[target], total[target])
        steps.append(_step(len(steps) + 1, node, k, cotangent, back, share, values, symbols))
    return tuple(steps)


def _step(
    number: int, node: Node, k: int, cotangent: Node, back: dict[Node, Node],
    share: tuple[int, int], values: dict[Node, Value], symbols: dict[Node, str],
) -> Step:
    if isinstance(cotangent, Fold):
        return _step_back(number, cotangent, k, share, values[node], values)
    primal, target = values[node], values[node.args[k]]
    rule, why = name_of_rule(node, k)
    leaves = [n for n in toposort([cotangent]) if isinstance(n, Input)]
    residuals = tuple(values[back[n]] for n in leaves if n in back)
    shown = _known_formula(node, primal, target) or _formula(cotangent, symbols, _bar(primal))
    sign = "=" if share[1] == 1 else r"\mathrel{{+}{=}}"
    return Step(
        number, rule, why, primal, target, f"{_bar(target)} {sign} {shown}",
        f"{primal.symbol} = {primal.formula}", _contractions(cotangent), residuals, share,
    )


def _step_back(
    number: int, fold: Fold, k: int, share: tuple[int, int], primal: Value,
    values: dict[Node, Value],
) -> Step:
    """Backpropagation through time: f is the step; its pullback runs from the last step back."""
    target = values[fold.args[k]]
    after, before = ("t+1", "t") if not fold.structure.reverse else ("t", "t+1")
    cts = rf"\left(\overline{{c}}_{{{after}}}, \overline{{y}}_{{t}}\right)"
    length = extent_latex(fold.structure.length)
    if k < fold.carries:
        slope = rf"{{\frac{{\partial f}}{{\partial c_{{{before}}}}}}}^{{\top}} {cts}"
        start = length if fold.structure.reverse else "0"
        shown = rf"\overline{{c}}_{{{start}}},\quad \overline{{c}}_{{{before}}} = {slope}"
        why = "the carry's cotangent walks back from step to step"
    elif k < fold.carries + fold.sequences:
        shown = rf"{{\frac{{\partial f}}{{\partial {{{target.symbol}}}_{{t}}}}}}^{{\top}} {cts}"
        why = "each element gets the cotangent of its step"
    else:
        slope = rf"{{\frac{{\partial f}}{{\partial {target.symbol}}}}}^{{\top}}"
        shown = rf"\sum_{{t}} {slope} {cts}"
        why = "what every step reads collects the cotangents of all steps"
    sign = "=" if share[1] == 1 else r"\mathrel{{+}{=}}"
    left = _bar(target)
    if fold.carries <= k < fold.carries + fold.sequences:
        left = rf"{{{left}}}_{{t}}"
    residuals = tuple(dict.fromkeys(values[a] for a in fold.args if a in values))
    return Step(
        number, "backpropagation through time", why, primal, target, f"{left} {sign} {shown}",
        f"{primal.symbol} = {primal.formula}", (), residuals, share,
    )


def _contractions(cotangent: Node) -> tuple[str, ...]:
    letters = axis_letters(Graph.of([cotangent]))
    return tuple(
        spec(n, letters)
        for n in toposort([cotangent])
        if isinstance(n, Einsum) and (len(n.args) > 1 or any(
            not is_extent_one(n.extents[label]) for label in n.summed
        ))
    )


def _known_formula(node: Node, primal: Value, target: Value) -> str | None:
    """Formulas that are read more easily than the expression of the rule."""
    if not isinstance(node, Reduce):
        return None
    y, x, ct = primal.symbol, target.symbol, _bar(primal)
    if node.op in ("max", "min"):
        return rf"{ct} \cdot \frac{{\left[{x} = {y}\right]}}{{\sum \left[{x} = {y}\right]}}"
    if node.op == "prod":
        return rf"{ct} \cdot \prod_{{j \ne i}} {{{x}}}_{{j}}"
    if node.op == "cumsum":
        return rf"\sum_{{k \ge i}} {{{ct}}}_{{k}}"
    if node.op == "cumprod":
        return rf"\sum_{{k \ge i}} {{{ct}}}_{{k}} \prod_{{j \le k,\, j \ne i}} {{{x}}}_{{j}}"
    return None


def name_of_rule(node: Node, k: int) -> tuple[str, str]:
    """The rule that gives the cotangent of argument k, and what it says."""
    if isinstance(node, Map):
        name, why = _name_of_map(node, k)
        if node.args[k].shape != node.shape:
            why += "; an argument that was repeated along an axis collects the sum over it"
        return name, why
    if isinstance(node, Einsum):
        if len(node.args) > 1:
            return "contraction", "the cotangent is contracted with the other factors"
        if any(not is_extent_one(node.extents[label]) for label in node.summed):
            return "sum", "every term of a sum gets the cotangent of the sum"
        return "axes", "axes move back; what was repeated collects the sum"
    if isinstance(node, Reduce):
        if node.op in ("max", "min"):
            return node.op, "the cotangent goes to the extreme element; equal ones share it"
        if node.op == "cumsum":
            return "running sum", "an element is in every later sum and collects from all of them"
        return "product rule", "each factor gets the product of the others"
    if isinstance(node, Reindex):
        return "move", "each element goes back to where it came from; what was not read gets zero"
    if isinstance(node, Gather):
        return "read at positions", "what was read several times collects the sum"
    if isinstance(node, Scatter):
        return "sum at positions", "each summand gets the cotangent of the place it was added to"
    return type(node).__name__, ""


def _name_of_map(node: Map, k: int) -> tuple[str, str]:
    own = placeholder(k)
    slope = bodies.slope(node.body, k)
    if slope == 1:
        return "sum rule", "a summand gets the cotangent unchanged"
    if slope == -1:
        return "sum rule", "what is subtracted gets the cotangent with its sign turned"
    function = fn.function_of(node.body)
    if function is not None and function.result == "select":
        return "choice", "the chosen branch gets the cotangent, the other one zero"
    names = sorted({f.func.__name__ for f in node.body.atoms(fn.Applied) if f.has(own)})
    if names:
        return f"chain rule, {' and '.join(names)}", "times the derivative of the function"
    one = bodies.monomial(node.body)
    if one is not None and len(one[1]) == 1:
        return "scaling", "a constant factor stays"
    if one is not None:
        return "product rule", "each factor gets the cotangent times the others"
    if isinstance(node.body, sympy.Pow):
        return "power rule", "the exponent comes down"
    if isinstance(node.body, sympy.Mul):
        if node.body.has(1 / own):
            return "quotient rule", "the denominator gets minus the quotient over itself"
        return "quotient rule", "the numerator gets the cotangent over the denominator"
    return "chain rule", "times the derivative of the formula by this argument"
