"""What must hold for every program.

    evaluated       it builds and checks; rewrites keep its values; a naive form equals the verb
    differentiated  first and second derivatives against central differences, jvp against vjp
    compiled        compiled, it computes what `evaluate` of its stabilised form says, updates too
    simulated       the same of the CUDA target, in Numba's simulator

The loss that is differentiated is the sum of the sines of all float outputs: it depends on every
element differently, and bends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import symgrad as sg
from symgrad.fuzz.programs import Array, Built, Program, widened
from symgrad.fuzz.rounding import Shaken, allowed, wide
from symgrad.graph.checker import check
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node
from symgrad.graph.traversal import toposort

STEPS = (1e-4, 3e-6)  # of central differences, over leaves of size 0.15 to 2
SHARP = 1e-3  # a difference that is not known this well says nothing, and is not counted


@dataclass(frozen=True, slots=True)
class Failure:
    """What did not hold.

    kind:    which judge found it, and how: a smaller program fails alike when its kind is equal.
    message: what was got and what was expected.
    atol:    how much was allowed, where numbers differ.
    judge:   its name.
    """

    kind: str
    message: str
    atol: float = 0.0
    judge: str = ""


@dataclass(slots=True)
class Seen:
    """What was judged: nodes by kind, and programs by judge."""

    nodes: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)

    def graph(self, nodes: Sequence[Node]) -> None:
        """Count the nodes of a graph, and of the bodies of its recurrences."""
        self.nodes.update(type(node).__name__ for node in Graph.of(nodes).every_node())


Judge = Callable[[Program, Seen], Failure | None]


def judged(judge: Judge, program: Program, seen: Seen | None = None) -> Failure | None:
    """What a judge says; an error is a failure too."""
    name = judge.__name__
    try:
        failure = judge(program, Seen() if seen is None else seen)
    except Exception as error:
        failure = Failure(f"{name}: {type(error).__name__}", str(error) or repr(error))
    return failure and replace(failure, judge=name)


def compared(
    kind: str, got: Sequence[Array], expected: Sequence[Array], noise: Sequence[Array]
) -> Failure | None:
    """Whether results agree, in type, shape and numbers."""
    for k, (g, e, n) in enumerate(zip(got, expected, noise, strict=True)):
        if g.dtype != e.dtype or g.shape != e.shape:
            return Failure(
                f"{kind}: type", f"result {k}: {g.dtype} {g.shape}, not {e.dtype} {e.shape}"
            )
        most = allowed(e, n)
        with np.errstate(invalid="ignore"):
            off = np.abs(wide(g) - wide(e))
        wrong = ~((off <= most) | (wide(g) == wide(e)) | (np.isnan(wide(g)) & np.isnan(wide(e))))
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            return Failure(
                kind if np.isfinite(e[at]) else f"{kind}: not finite",
                f"result {k} at {at}: {g[at]!r}, not {e[at]!r}; allowed {most[at]:.3g}",
                float(most.max()),
            )
    return None


def streams_in(nodes: Sequence[Node]) -> list[Node]:
    """The random streams that nodes read."""
    return [n for n in toposort(nodes) if isinstance(n, Input) and n.kind == "random"]


# -- values ---------------------------------------------------------------------------------------
def evaluated(program: Program, seen: Seen) -> Failure | None:
    """Values of the program as written, stabilised, and simplified after that."""
    built = Built(program)
    nodes = [*built.outputs, *built.tellers]
    check(Graph.of(nodes))
    seen.graph(nodes)
    streams = streams_in(nodes)  # a rewrite may drop one, and then the others' numbers change
    options: dict[str, Any] = {"seed": program.seed, "training": program.training}
    pairs = [built.node(name) for pair in program.equal for name in pair]
    stable = list(sg.stabilize([*nodes, *pairs]))
    check(Graph.of(stable))
    shaken = Shaken([*stable, *streams], program.values, **options)
    expected, noise = shaken()[: len(stable)], shaken.noise()[: len(stable)]
    for node, value in zip(nodes, expected, strict=False):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return Failure("evaluated: not finite", f"{node!r} has no finite value")
    simple = list(sg.simplify(stable))
    check(Graph.of(simple))
    simplified = sg.evaluate([*simple, *streams], program.values, **options)[: len(simple)]
    failure = compared("simplified", list(map(np.asarray, simplified)), expected, noise)
    count = len(nodes)
    if failure is None and program.stable:
        raw = Shaken(nodes, program.values, **options)
        both = [a + b for a, b in zip(raw.noise(), noise, strict=False)]
        failure = compared("stabilised", raw(), expected[:count], both)
    if failure is None:
        twins = [noise[k] + noise[k + 1] for k in range(count, len(expected), 2)]
        failure = compared(
            "naive", expected[count::2], expected[count + 1 :: 2], twins
        )
    seen.judged["evaluated"] += 1
    return failure


def dot(a: Sequence[Array], b: Sequence[Array]) -> float:
    """The inner product of lists of arrays."""
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


# -- derivatives ----------------------------------------------------------------------------------
def loss_of(outputs: Sequence[Node]) -> Node | None:
    """The sum of the sines of the float outputs, None where there is none."""
    sines = [sg.sum(sg.sin(node)) for node in outputs if node.dtype.kind == "f"]
    if not sines:
        return None
    loss = sines[0]
    for term in sines[1:]:
        loss = loss + term
    return loss


def frozen_values(program: Program) -> dict[str, Array]:
    """Values, in float64, of what differentiation takes for constant."""
    names = [line.target for line in program.lines if line.function == "sg.stop_gradient"]
    if not names:
        return {}
    built = Built(widened(program))
    nodes = [*sg.stabilize([built.node(n) for n in names]), *built.tellers]
    values = sg.evaluate(nodes, built.program.values, seed=program.seed, training=program.training)
    return {n: np.asarray(v) for n, v in zip(names, values, strict=False)}


def second_of(
    loss: Node, slopes: Sequence[Node], leaves: Sequence[Input], along: Sequence[Node], mode: int
) -> list[Node]:
    """The Hessian times a vector: forward over reverse, or reverse over reverse."""
    if mode:
        return list(sg.hvp(loss, leaves, list(along)))
    scalars = [sg.sum(g * t) for g, t in zip(slopes, along, strict=True)]
    total = scalars[0]
    for term in scalars[1:]:
        total = total + term
    return list(sg.grad(total, leaves))


def differentiated(program: Program, seen: Seen) -> Failure | None:
    """Derivatives in float64, of first and second order."""
    built = Built(widened(program, frozen_values(program)))
    leaves = [x for x in built.float_leaves if x.dtype == np.float64]
    loss = loss_of(built.outputs)
    if loss is None or not leaves:
        return None
    slopes = list(sg.grad(loss, leaves))
    along = [sg.input(f"along_{x.name}", x.shape, x.dtype) for x in leaves]
    second = second_of(loss, slopes, leaves, along, program.seed % 2)
    _, pushed = sg.jvp(loss, leaves, along)
    nodes = [*sg.stabilize([loss, pushed, *slopes, *second]), *built.tellers]
    nodes += streams_in([loss])
    check(Graph.of([loss, pushed, *slopes, *second]))
    check(Graph.of(nodes))
    seen.graph(nodes)
    return _judged_slopes(built, leaves, along, nodes, seen)


def _judged_slopes(
    built: Built, leaves: Sequence[Input], along: Sequence[Input], nodes: list[Node], seen: Seen
) -> Failure | None:
    program, values_at = built.program, built.program.every_value
    rng = np.random.default_rng(program.seed)
    shapes = [values_at[x.name].shape for x in leaves]
    v = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    w = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    count = len(leaves)

    given = {**values_at, **{t.name: a for t, a in zip(along, v, strict=True)}}
    shaken = Shaken(nodes, given, program.seed, program.training)
    values, noise = shaken(), shaken.noise(2)
    slopes, second = values[2 : 2 + count], values[2 + count : 2 + 2 * count]
    for x, g, h in zip(leaves, slopes, second, strict=True):
        if g.shape != values_at[x.name].shape or h.shape != g.shape:
            return Failure("gradient: shape", f"{x.name}: {g.shape} and {h.shape}")
    for name, part in (("gradient", slopes), ("second order", second), ("loss", values[:2])):
        if not all(np.isfinite(a).all() for a in part):
            return Failure(f"{name}: not finite", f"{[a.tolist() for a in part]}"[:400])
    blur = [float(noise[0]), dot(noise[2 : 2 + count], [np.abs(a) for a in w])]
    first = dot(slopes, v)
    scale = 1 + sum(float(np.abs(g * a).sum()) for g, a in zip(slopes, v, strict=True))
    soft = 8 * (dot(noise[2 : 2 + count], [np.abs(a) for a in v]) + float(noise[1]))
    if not abs(first - float(values[1])) <= soft + 1e-13 * scale:
        return Failure("adjoint", f"<J'1, v> = {first!r}, J v = {float(values[1])!r}",
                       soft + 1e-13 * scale)  # fmt: skip
    seen.judged["adjoint"] += 1
    if not program.smooth:
        return None
    loss_and_slopes = [nodes[0], *nodes[2 : 2 + count], *nodes[2 + 2 * count :]]
    reached = Shaken(loss_and_slopes, values_at, program.seed, program.training)

    def at(t: float) -> tuple[float, float]:
        """The loss, and the slope along w, at x + t v."""
        for x, a in zip(leaves, v, strict=True):
            if x in reached.arrays:
                reached.arrays[x] = values_at[x.name] + t * a
        loss, *found = reached()
        return float(loss), dot(found[:count], w)

    return _differences(at, (first, dot(second, w)), blur, seen)


def _differences(
    at: Callable[[float], tuple[float, float]], claimed: tuple[float, float],
    blur: Sequence[float], seen: Seen,
) -> Failure | None:
    """Claims against central differences.

        D(h) = (f(h) - f(-h)) / 2h = f' + c h^2 + O(h^4),     (4 D(h) - D(2h)) / 3 = f' + O(h^4)

    What the extrapolation leaves is below half of what it took away, `|D(2h) - D(h)| / 2`; to this
    comes the rounding of f, 8 times its noise over h.
    """
    found: dict[str, tuple[float, float]] = {}
    for h in STEPS:
        if found and all(most <= SHARP * SHARP for _, most in found.values()):
            break
        above, below, far, farther = at(h), at(-h), at(2 * h), at(-2 * h)
        for k, name in enumerate(("gradient", "second order")):
            near = (above[k] - below[k]) / (2 * h)
            wide_ = (far[k] - farther[k]) / (4 * h)
            most = abs(wide_ - near) / 2 + 8 * blur[k] / h + 1e-9 * (1 + abs(near))
            if name not in found or most < found[name][1]:
                found[name] = ((4 * near - wide_) / 3, most)
    for k, name in enumerate(("gradient", "second order")):
        measured, most = found[name]
        if not most <= SHARP * (1 + abs(claimed[k])):
            continue
        if not abs(measured - claimed[k]) <= most:
            return Failure(name, f"claimed {claimed[k]!r}, differences {measured!r}", most)
        seen.judged[name] += 1
    return None


# -- programs -------------------------------------------------------------------------------------
def is_compiled_twice(program: Program) -> bool:
    """Whether second derivatives are compiled too."""
    return program.seed // 10 % 8 == 1


def nodes_of(program: Program, built: Built) -> list[Node]:
    """What is compiled: outputs, their derivatives, and the leaves that tell the dims.

    Some programs are differentiated twice: second derivatives take long to compile.
    """
    nodes = [*built.outputs, *built.tellers]
    loss, leaves = loss_of(built.outputs), built.float_leaves
    if loss is None or not leaves:
        return nodes
    slopes = list(sg.grad(loss, leaves))
    nodes += slopes
    if is_compiled_twice(program):
        nodes += list(sg.hvp(loss, leaves, [sg.ones_like(x) * 0.5 for x in leaves]))
    return nodes


def judged_on(target: str, program: Program, seen: Seen) -> Failure | None:
    """A compiled program against `evaluate` of its stabilised form; twice where it keeps leaves."""
    built = Built(program)
    nodes = nodes_of(program, built)
    pairs = {built.leaves[a]: built.node(b) for a, b in program.updates}
    stable = list(sg.stabilize([*nodes, *pairs.values()]))
    options: dict[str, Any] = {"seed": program.seed, "training": program.training}
    f = sg.compile(nodes, updates=pairs, target=target, **options)
    values = program.every_value
    for leaf in pairs:
        f.state[leaf.name] = values[leaf.name]
    inputs = [x for x in sg.inputs([*nodes, *pairs.values()]) if x not in pairs]
    name = "compiled" if target == "cpu" else "simulated"
    count = len(stable)
    stable += streams_in([*nodes, *pairs.values()])
    for step in range(2 if pairs else 1):
        shaken = Shaken(stable, values, **options, step=step)
        expected, noise = shaken()[:count], shaken.noise()[:count]
        got = [*f(**{x.name: values[x.name] for x in inputs}), *(f.state[x.name] for x in pairs)]
        failure = compared(name, [np.asarray(a) for a in got], expected, noise)
        if failure is not None:
            return failure
        values |= {leaf.name: np.array(f.state[leaf.name]) for leaf in pairs}
    seen.judged[name] += 1
    return None


def compiled(program: Program, seen: Seen) -> Failure | None:
    """The CPU target."""
    return judged_on("cpu", program, seen)


def simulated(program: Program, seen: Seen) -> Failure | None:
    """The CUDA target, in this process."""
    return judged_on("cuda", program, seen)


JUDGES: dict[str, Judge] = {
    judge.__name__: judge for judge in (evaluated, differentiated, compiled, simulated)
}
