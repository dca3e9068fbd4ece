"""Where NaN and infinity come from: the node that made the first one, and in which time step.

A value that is not finite is followed back: from a node to an argument that is not finite either,
from a recurrence to the step in which it emitted it, from a step's carry to the step before. Where
all arguments are finite, the node itself has made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from symgrad.graph import dims as dm
from symgrad.graph.binding import Array, Binding
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import is_float
from symgrad.graph.errors import LeafError
from symgrad.graph.evaluator import MEANING, named_values
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Map, Node, Reindex, describe, is_reshape
from symgrad.graph.structure import flatten

Values = dict[Node, Any]


@dataclass(frozen=True, slots=True)
class TimeStep:
    """A step of a recurrence.

    Fields:
        t:      the place of its elements in the sequences.
        length: how many there are.
        carry:  the carry that is not finite from this step on; "" where a step's y is concerned.
        where:  the user's line.
    """

    t: int
    length: int
    carry: str
    where: str

    def __str__(self) -> str:
        what = f"carry {dm.quoted(self.carry)} is not finite from" if self.carry else "in"
        return f"{what} step t = {self.t} of {self.length}  {self.where}".rstrip()


@dataclass(frozen=True, slots=True, eq=False)
class NotFinite:
    """What made the first value that is not finite.

    Fields:
        verdict: what was found, in one sentence.
        node:    the node that made it, or the leaf whose data have it; None where all is finite.
        steps:   the time steps in which it stands, outer recurrences first.
        place:   the first element concerned.
        value:   what it is there.
        count:   how many elements of the node are not finite.
        arguments: what the node read: its arguments with their least and largest values.
    """

    verdict: str
    node: Node | None = None
    steps: tuple[TimeStep, ...] = ()
    place: tuple[int, ...] = ()
    value: float = 0.0
    count: int = 0
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {step}" for step in self.steps), *self.arguments])


def explain_nan(
    expr: Any,
    values: Mapping[Any, Any] | None = None,
    seed: int = 0,
    step: int = 0,
    training: bool = False,
) -> NotFinite:
    """Find where NaN or infinity comes from, by computing the expression in plain NumPy.

    Args:
        expr: one expression, or tuples, lists and dicts of them: a loss and its gradient, say.
        values, seed, step, training: as for `evaluate`.
    Returns: the node, the time steps of the recurrences around it, its arguments; `print` shows it.
    Raises: as `evaluate`.

    >>> import symgrad as sg
    >>> x = sg.input("x", (5,))
    >>> c, _ = sg.scan(lambda c, x: ({"h": c["h"] / x},) * 2, {"h": sg.constant(1.0)}, x)
    >>> found = explain_nan(c["h"] + 1.0, {x: [1, 2, 0, 4, 5]})
    >>> found.steps[0].carry, found.steps[0].t, found.value
    ('h', 2, inf)
    """
    outputs, _ = flatten(expr, "explain_nan")
    graph = Graph.of(outputs)
    if values is not None and not isinstance(values, Mapping):
        raise LeafError(
            "explain_nan: values must be a dictionary such as {x: X} or {'x': X}, got "
            f"{type(values).__name__}."
        )
    named, dims = named_values(graph, values or {})
    arrays, dims = Binding(graph)(named, step=step, dims=dims, draws=seed, training=training)
    with np.errstate(all="ignore"):
        known = _computed(graph, dict(zip(graph.inputs, arrays, strict=True)), dims)
        for output in outputs:
            if not _is_finite(known[output]):
                node, local, steps = _followed(output, known, dims)
                return _finding(node, local, steps)
    return NotFinite("all values are finite")


def _computed(graph: Graph, leaves: Mapping[Input, Array], dims: Mapping[Dim, int]) -> Values:
    """The values of all nodes."""
    known: Values = {}
    for node in graph.nodes:
        if isinstance(node, Input):
            known[node] = leaves[node]
        else:
            known[node] = MEANING[type(node)](node, [known[a] for a in node.args], dims)
    return known


def _is_finite(value: Any) -> bool:
    """Whether a tensor has finite elements only; that of a recurrence is none."""
    return not isinstance(value, np.ndarray | np.generic) or bool(
        value.dtype.kind not in "f" or np.isfinite(value).all()
    )


def _followed(
    node: Node, known: Values, dims: Mapping[Dim, int]
) -> tuple[Node, Values, tuple[TimeStep, ...]]:
    """The node that made what is not finite, the values around it, and the steps it stands in."""
    while True:
        if isinstance(node, Proj):
            fold = node.args[0]
            assert isinstance(fold, Fold)
            inner, local, steps, leaf = _through_steps(fold, node.place, known, dims)
            if leaf is None:
                return inner, local, steps
            node = fold.args[leaf]
            continue
        bad = [a for a in node.args if not _is_finite(known[a])]
        if not bad:
            return node, known, ()
        node = bad[0]


def _through_steps(
    fold: Fold, place: int, known: Values, dims: Mapping[Dim, int]
) -> tuple[Node, Values, tuple[TimeStep, ...], int | None]:
    """Follow a result of a recurrence back through its steps.

    Returns: the node, the values around it and the steps; or, where it came from outside, which
        argument it came with.
    """
    args = [known[a] for a in fold.args]
    n, m = fold.carries, fold.carries + fold.sequences
    body, length = fold.body, dm.value(fold.structure.length, dims)
    order = list(range(length))[:: -1 if fold.structure.reverse else 1]

    def step_at(s: int) -> Values:
        given = [*carries[s], *(x[order[s], ...] for x in args[n:m]), *args[m:]]
        return _computed(body, dict(zip(body.inputs, given, strict=True)), dims)

    carries = [args[:n]]
    for s in range(length):
        local = step_at(s)
        carries.append([local[o] for o in body.outputs[:n]])
        if place >= n and not _is_finite(local[body.outputs[place]]):
            break
    s, name = len(carries) - 2, ""
    while s >= 0:
        local = step_at(s)
        if place < n:
            name = body.inputs[place].name
        node, inner, steps = _followed(body.outputs[place], local, dims)
        leaf = next((k for k, b in enumerate(body.inputs) if b is node), None)
        if leaf is None or steps:
            own = TimeStep(order[s], length, name, str(fold.where or ""))
            return node, inner, _of_the_whole(fold, (own, *steps), dims), None
        if leaf >= n:
            return node, inner, (), leaf
        place, s = leaf, s - 1
    return fold, known, (), place  # it started so


def _of_the_whole(
    fold: Fold, steps: tuple[TimeStep, ...], dims: Mapping[Dim, int]
) -> tuple[TimeStep, ...]:
    """Steps of a chunk, counted as those of all chunks; see `graph/checkpoints.py`."""
    first, length = steps[0].t, steps[0].length
    if fold.structure.checkpoint and len(steps) > 1:
        own, inner, *rest = steps
        first, length = own.t * inner.length + inner.t, own.length * inner.length
        steps = (TimeStep(first, length, inner.carry or own.carry, inner.where), *rest)
    for x in fold.xs:
        part = x.args[0] if is_reshape(x) else x
        if isinstance(part, Reindex) and part.origin == "scan":  # a slice for the sake of chunks
            first += dm.value(part.pieces[0].start[0], dims)
            length = dm.value(part.args[0].shape[0], dims)
            break
    return (replace(steps[0], t=first, length=length), *steps[1:])


def _finding(node: Node, known: Values, steps: tuple[TimeStep, ...]) -> NotFinite:
    value = known[node]
    bad = np.argwhere(~np.isfinite(value))
    place = tuple(int(k) for k in bad[0])
    first = float(value[place])
    at = f" at {place}" if place else ""
    if node.args:
        formula = f" = {str(node.body)[:60]}" if isinstance(node, Map) else ""
        verdict = f"{describe(node)}{dm.printable(formula)}: {first}{at}, of finite arguments"
    else:
        verdict = f"{describe(node)}: its data are {first}{at}"
    lines = []
    for arg in dict.fromkeys(node.args):
        array = known[arg]
        if not isinstance(array, np.ndarray | np.generic) or not array.size:
            continue
        text = f"from {array.min():.6g} to {array.max():.6g}" if is_float(arg.dtype) else ""
        lines.append(f"  reads {describe(arg)}  {text}".rstrip())
    return NotFinite(verdict, node, steps, place, first, len(bad), tuple(lines))


