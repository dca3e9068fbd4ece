"""Lines that hold more than one operation: recurrences, derivatives, draws, naive forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import symgrad as sg
from symgrad.fuzz import elements, moves, sums
from symgrad.fuzz.generation import Generator, Unfit, Variable, equal_shapes, numbers, term_of
from symgrad.fuzz.programs import Line, Name, Step, Term
from symgrad.graph.dims import Shape

Production = Callable[[Generator], None]
DEEPEST = 3  # scopes: the program, a step, and a step in it
MOST_STEPS = 6

INNER: tuple[Production, ...] = (
    elements.function, elements.function, elements.arithmetic, elements.arithmetic,
    elements.negative, elements.elementwise, elements.choice, elements.integers, sums.summed,
    sums.product, sums.product, sums.einsum, sums.normalised, sums.loss, sums.running,
    moves.permuted, moves.sliced, moves.joined, moves.taken, moves.padded, moves.turned,
    moves.accumulated,
)  # fmt: skip


# -- recurrences ----------------------------------------------------------------------------------
def scanned(g: Generator) -> None:
    """`scan` with one or several carries and sequences, over a step of random lines.

    Some are ragged, checkpointed or truncated. Where gradients are cut, differences say nothing.
    """
    g.require(len(g.scopes) < DEEPEST)
    ragged = g.chance(0.3)
    xs = _sequences(g, ragged)
    rows = xs[0].shape[1:2] if ragged else ()
    init = _carries(g, xs[0], rows)
    options = _options(g, xs[0], rows)
    as_dict = len(init) > 1 and g.chance(0.4)
    start: Any = dict(zip("hkl", init, strict=False)) if as_dict else tuple(init)
    several = len(xs) > 1 or g.chance(0.2)
    sequences: Any = tuple(xs) if several else xs[0]
    if len(init) == 1 and g.chance(0.7):
        start = init[0]
    made: list[Step] = []

    def step(c: Any, x: Any) -> Any:
        number = g.fresh()[1:]
        carry, element = f"carry{number}", f"element{number}"
        g.built.env[carry], g.built.env[element] = c, x
        with g.inner() as scope:
            carries = _parts(g, carry, start, c)
            elements_ = _parts(g, element, sequences, x)
            _body(g, carries, elements_)
            after = [_next(g, v) for v in carries]
            ys = _ys(g, rows)
            result = (term_of(_shaped(start, after)), term_of(ys))
            made.append(Step(f"step{number}", carry, element, tuple(scope.lines), result))
            return g.built.term(result, g.built.env)

    given = g.built.term(tuple(options.items()), g.built.env)
    found = sg.scan(step, g.built.term(term_of(start), g.built.env),
                    g.built.term(term_of(sequences), g.built.env), **dict(given))  # fmt: skip
    target = g.fresh()
    line = Line(target, "sg.scan", (made[0], term_of(start), term_of(sequences)),
                tuple(options.items()))  # fmt: skip
    g.smooth = g.smooth and options.get("truncate", MOST_STEPS) >= MOST_STEPS
    g.built.env[target] = found
    g.scope.lines.append(line)
    g.smooth = g.smooth and not any("Piecewise" in str(term) for term in made[0].lines)
    for place in (0, 1):
        name, part = g.write("[]", Name(target), place)
        _taken_apart(g, name, part)


def _sequences(g: Generator, ragged: bool) -> list[Variable]:
    first = g.some(lambda v: v.ndim > ragged and v.kind in "fi")
    g.require(g.size(g.terms(first.shape[:1])) <= MOST_STEPS)
    found = [first]
    if g.chance(0.4):
        lead = g.terms(first.shape[: 1 + ragged])
        found.append(g.leaf((*lead, *g.shape_terms(1)), g.pick([g.floats, g.floats, g.ints])))
    return found


def _carries(g: Generator, x: Variable, rows: Shape) -> list[Variable]:
    shape = x.shape[1:] if g.chance(0.6) else g.pick([rows, rows + x.shape])
    found = [g.like(shape, g.floats)]
    if g.chance(0.35):
        found.append(g.like(g.pick([rows, x.shape[1:]]), g.floats))
    if g.chance(0.15):
        found.append(g.like(rows, g.ints))
    return found


def _options(g: Generator, x: Variable, rows: Shape) -> dict[str, Any]:
    """How the recurrence runs; `lengths` where it has rows."""
    found: dict[str, Any] = {}
    (steps,) = numbers(g, x.shape[:1])
    if g.chance(0.3):
        found["reverse"] = True
    if g.chance(0.15):
        found["truncate"] = g.pick([1, 2, 3, MOST_STEPS])
    if rows:
        found["lengths"] = term_of(g.leaf(g.terms(rows), g.ints, 0, steps))
    if g.chance(0.15):
        found["checkpoint"] = g.pick([1, 2, 4, "sqrt"])
    return found


def _parts(g: Generator, name: str, structure: Any, value: Any) -> list[Variable]:
    """The variables of a step's argument, a line each where it has a structure."""
    if isinstance(structure, dict):
        return [g.item(name, key) for key in structure]
    if isinstance(structure, tuple):
        return [g.item(name, k) for k in range(len(structure))]
    return [g.keep(name, value)]


def _shaped(structure: Any, parts: list[Variable]) -> Any:
    if isinstance(structure, dict):
        return dict(zip(structure, parts, strict=True))
    return tuple(parts) if isinstance(structure, tuple) else parts[0]


def _body(g: Generator, carries: list[Variable], xs: list[Variable]) -> None:
    """A few lines; most steps mix carry and sequence."""
    for c in carries:
        for x in xs:
            if c.node.dtype == x.node.dtype and g.chance(0.8) and _stretches(c, x):
                g.emit(g.pick("+*"), c, x)
    for _ in range(g.whole(1, 4)):
        if g.chance(0.12):
            g.attempt(scanned)
        elif g.random and g.chance(0.2):
            g.attempt(drawn)
        else:
            g.attempt(g.pick(INNER))


def _stretches(a: Variable, b: Variable) -> bool:
    return equal_shapes(a.shape, b.shape) or not a.ndim or not b.ndim


def _next(g: Generator, carry: Variable) -> Variable:
    """The next carry: a variable of its shape, bounded, or what a number does to it."""
    own = [v for v in g.scope.variables if v.node.dtype == carry.node.dtype]
    fits = [v for v in own if equal_shapes(v.shape, carry.shape)]
    if carry.kind == "i":
        return g.emit("%", g.emit("+", carry, 1), 7)
    if g.chance(0.1):
        return g.pick(fits)  # type: ignore[no-any-return]
    new = fits[-1]
    if new is carry and own:
        new = g.emit("+", carry, g.emit("sg.sum", own[-1]))
    return g.emit("sg.tanh", new) if g.chance(0.7) else g.emit("*", new, 0.5)


def _ys(g: Generator, rows: Shape) -> Any:
    own = [v for v in g.scope.variables if equal_shapes(v.shape[: len(rows)], rows)]
    turn = g.rng.random()
    if turn < 0.1 or not own:
        return ()
    if turn < 0.75:
        return own[-1]
    return {"y": own[-1], "z": g.pick(own)}


def _taken_apart(g: Generator, name: str, part: Any) -> None:
    if isinstance(part, (tuple, dict)):
        for key in part if isinstance(part, dict) else range(len(part)):
            g.item(name, key)
    else:
        g.keep(name, part)


# -- draws ----------------------------------------------------------------------------------------
def drawn(g: Generator) -> None:
    """`random.uniform`, `random.normal`, `random.bernoulli`, `dropout`."""
    g.require(g.random)
    name = g.pick(["uniform", "normal", "bernoulli", "dropout", "dropout"])
    shape = tuple(Name(e) if isinstance(e, str) else e for e in g.shape_terms(2))
    if name == "dropout":
        g.emit("sg.dropout", g.some_float(), g.pick([0.25, 0.5]))
    elif name == "bernoulli":
        g.emit("sg.random.bernoulli", 0.4, shape)
    else:
        g.emit(f"sg.random.{name}", shape, g.floats)


# -- expressions from expressions -----------------------------------------------------------------
def derived(g: Generator) -> None:
    """`grad`, `value_and_grad`, `vjp`, `jvp`, `hvp`, `jacobian`, `hessian` inside a program."""
    y = g.some_float()
    leaves = [v for v in g.scopes[0].variables if v.node in set(g.built.leaves.values())]
    w = g.pick([v for v in leaves if v.kind == "f"] + [v for v in g.every() if v.kind == "f"][-3:])
    size = g.size(g.terms(w.shape))
    g.require(size * max(g.size(g.terms(y.shape)), 1) < 200)
    name = g.pick(["grad", "value_and_grad", "vjp", "jvp", "hvp", "jacobian", "hessian"])
    if name == "vjp":
        target, _ = g.write("sg.vjp", y, [w], [g.like(y.shape, str(y.node.dtype))])
        g.item(target, 0)
    elif name == "jvp":
        target, _ = g.write("sg.jvp", y, w, g.like(w.shape, str(w.node.dtype)))
        g.item(target, 1)
    elif name == "jacobian":
        g.emit("sg.jacobian", y, w)
    else:
        _of_loss(g, name, g.emit("sg.sum", y), w, size)


def _of_loss(g: Generator, name: str, loss: Variable, w: Variable, size: int) -> None:
    if name == "hvp":
        g.emit("sg.hvp", loss, w, g.like(w.shape, str(w.node.dtype)))
    elif name == "hessian":
        g.require(size <= 12)
        g.emit("sg.hessian", loss, w)
    elif name == "value_and_grad":
        target, _ = g.write("sg.value_and_grad", loss, w)
        g.item(target, 1)
    else:
        g.emit("sg.grad", loss, w)


def rewritten(g: Generator) -> None:
    """`simplify`, `stabilize`, `substitute`: they change no value."""
    x = g.some(lambda v: v.node not in set(g.built.leaves.values()))
    name = g.pick(["simplify", "stabilize", "substitute"])
    if name == "substitute":
        leaf = g.pick([v for v in g.scopes[0].variables if v.name[0] in "xw" and v.kind == "f"])
        other = g.like(leaf.shape, str(leaf.node.dtype))
        g.emit("sg.substitute", x, {leaf: other})
    else:
        g.emit(f"sg.{name}", x)


# -- naive forms ----------------------------------------------------------------------------------
def naive(g: Generator) -> None:
    """A formula as a textbook has it, whose exponentials overflow, and the verb that means it."""
    g.require(g.scope.known)
    x = g.some_float(1)
    scale = g.pick([1, 1, 20, -40, 150])
    g.require(np.size(g.value(x)) > 0)
    scaled = x if scale == 1 else g.emit("*", x, float(scale), hidden=True)
    form = g.pick(FORMS)
    made, twin = form(g, scaled)
    g.keep(made.name, made.node, hidden=True, stable=True)
    g.stable = g.stable and scale == 1
    g.equal.append((made.name, twin.name))
    g.emit("*", made, 1.0 / scale) if scale != 1 else g.keep(made.name, made.node)


def _log_sum_exp(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    axes, keepdims = g.axes(x), g.chance(0.5)
    options = {"axis": axes, "keepdims": keepdims}
    total = g.emit("sg.sum", g.emit("sg.exp", x, hidden=True), hidden=True, **options)
    return (g.emit("sg.log", total, hidden=True),
            g.emit("sg.logsumexp", x, hidden=True, **options))  # fmt: skip


def _softmax(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    axis = g.axis(x)
    e = g.emit("sg.exp", x, hidden=True)
    total = g.emit("sg.sum", e, hidden=True, axis=axis, keepdims=True)
    if g.chance(0.3):
        made = g.emit("*", e, g.emit("/", 1.0, total, hidden=True), hidden=True)
    else:
        made = g.emit("/", e, total, hidden=True)
    return made, g.emit("sg.softmax", x, hidden=True, axis=axis)


def _log_softmax(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    axis = g.axis(x)
    soft = g.emit("sg.softmax", x, hidden=True, axis=axis)
    return g.emit("sg.log", soft, hidden=True), g.emit("sg.log_softmax", x, hidden=True, axis=axis)


def _softplus(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    one_more = g.emit("+", 1.0, g.emit("sg.exp", x, hidden=True), hidden=True)
    name = "sg.log" if g.chance(0.7) else "np.log"
    return g.emit(name, one_more, hidden=True), g.emit("sg.softplus", x, hidden=True)


def _log_sigmoid(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    if g.chance(0.5):
        inner = g.emit("sg.sigmoid", x, hidden=True)
    else:
        e = g.emit("sg.exp", g.emit("neg", x, hidden=True), hidden=True)
        inner = g.emit("/", 1.0, g.emit("+", e, 1.0, hidden=True), hidden=True)
    stable = g.emit("sg.softplus", g.emit("neg", x, hidden=True), hidden=True)
    return g.emit("sg.log", inner, hidden=True), g.emit("neg", stable, hidden=True)


def _complement(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    made = g.emit("-", 1.0, g.emit("sg.sigmoid", x, hidden=True), hidden=True)
    return made, g.emit("sg.sigmoid", g.emit("neg", x, hidden=True), hidden=True)


def _variance(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    axis = g.axis(x)
    g.require(np.all(np.var(g.value(x), axis=axis) > 0.01))
    squares = g.emit("sg.mean", g.emit("*", x, x, hidden=True), hidden=True, axis=axis)
    mean = g.emit("sg.mean", x, hidden=True, axis=axis)
    made = g.emit("-", squares, g.emit("**", mean, 2, hidden=True), hidden=True)
    return made, g.emit("sg.var", x, hidden=True, axis=axis)


def _root(g: Generator, x: Variable) -> tuple[Variable, Variable]:
    g.apart(g.value(x))
    made = g.emit("sg.sqrt", g.emit("*", x, x, hidden=True), hidden=True)
    return made, g.emit("sg.abs", x, hidden=True)


FORMS: tuple[Callable[[Generator, Variable], tuple[Variable, Variable]], ...] = (
    _log_sum_exp, _log_sum_exp, _softmax, _log_softmax, _softplus, _log_sigmoid, _complement,
    _variance, _root,
)  # fmt: skip

__all__ = ["Term", "Unfit", "derived", "drawn", "naive", "rewritten", "scanned"]
