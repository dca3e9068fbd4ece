"""What a reverse recurrence reads of its primal: values saved on the way forward, or computed anew.

    forward    c[t+1], y[t] = f(c[t], x[t])              emits also s[t], the residuals
    reverse    c_ct[t], .. = g(c_ct[t+1], .., s[t])      recomputes from them what else it needs

Differentiation saves the carry alone, and the reverse step computes all of the step once more. This
pass looks at a step's values that do not depend on cotangents, and chooses for each whether it is
saved, recomputed, or not needed, so that the time of both is least: bytes written and read again
against operations. That is a minimum cut. Each value v has two places, v (it is there on the way
back) and v' (it is recomputed there); on the sink's side of the cut they hold.

    v' -> v             bytes(v)         there, but not recomputed: saved
    source -> v'        operations(v)    recomputed
    arg -> v', v -> v'  infinite         what is recomputed is there, and so are its arguments
    v -> sink           infinite         the cotangents read it

The same holds for a tangent recurrence, which walks in its primal's direction. What a recurrence
inside the step stacks is never saved: that is how checkpoints work, see `checkpoints.py`.

A choice in which some parts need others, as a cut: Picard, Maximal closure of a graph, 1976.
Values computed again to save memory: Chen et al., arXiv 1604.06174.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import sympy

from symgrad.calculus.costs import operations_of
from symgrad.calculus.fold_rules import tidy_folds
from symgrad.graph.dims import Extent, first_lines, printable, same, show, size, typical
from symgrad.graph.folds import Fold, Proj, binder, with_outputs
from symgrad.graph.functions import FUNCTIONS
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Input, Map, Node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.scalars import operations
from symgrad.graph.traversal import rebuild, reconnect, replace, toposort

# Seconds on one core of a Xeon with AVX-512: of a byte written and read again through the caches,
# of an operation of a contraction, of a simple operation and of a function such as exp, by element.
PER_BYTE = 1 / 8e9
PER_TERM, PER_OPERATION, PER_FUNCTION = 1 / 1e11, 1 / 2e10, 1 / 1e9
# Costs in the network are whole numbers of this many seconds.
UNIT = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """A value of a step that the way back reads.

    how:    saved on the way forward, or recomputed from what is.
    node:   as it stands in the body of the recurrence that goes back.
    length: steps of the recurrence.
    saving, recomputing: seconds of a step that either would take, as estimated.
    """

    how: Literal["saved", "recomputed"]
    node: Node
    length: Extent
    saving: float
    recomputing: float

    @property
    def what(self) -> str:
        """What computes it."""
        if isinstance(self.node, Proj):
            return "result of a recurrence"
        return str(self.node.body) if isinstance(self.node, Map) else type(self.node).__name__

    @property
    def why(self) -> str:
        """The two costs, or what else decided."""
        if self.how == "saved":
            return f"saving {_time(self.saving)}, computing {_time(self.recomputing)} a step"
        if self.saving == INFINITE:
            if _draws(self.node):
                return "drawn again, from the same counters"
            if isinstance(self.node, (Fold, Proj)):
                return "a recurrence inside the step stacks it"
            return "the way forward does not compute it"
        return f"computing {_time(self.recomputing)}, saving {_time(self.saving)} a step"


INFINITE = float("inf")
Notes = list[Residual]
# Lines of a table of residuals at most, and characters of a formula.
MOST_LINES, WIDE = 24, 44


def residual_table(residuals: Sequence[Residual]) -> str:
    """Residuals as a table, equal lines as one."""
    rows: dict[tuple[str, ...], int] = {}
    for r in residuals:
        where = f"{printable(r.what)[:WIDE]}  {r.node.where or ''}".rstrip()
        row = (r.how, f"{r.node.dtype} {show(r.node.shape)}", where, r.why)
        rows[row] = rows.get(row, 0) + 1
    lines: list[tuple[str, ...]] = [("residuals", "shape", "value", "why (estimated)")]
    lines += [(*row[:2], f"{n} x {row[2]}" if n > 1 else row[2], row[3]) for row, n in rows.items()]
    wide = [max(len(line[k]) for line in lines[:MOST_LINES]) for k in range(3)]
    text = ["  ".join([*(c.ljust(w) for c, w in zip(line[:3], wide, strict=True)), line[3]])
            for line in lines]
    return first_lines(text, MOST_LINES)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < INFINITE else "impossible"


@rewrites
def save_residuals(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """rewrite: what a recurrence recomputes of another -> saved by that one, where it is cheaper.

    requires: both take the same number of steps, and the one that recomputes reads the other.
    keeps:    values, bit for bit.

    Args:
        notes: told what was saved and what is recomputed.

    >>> import symgrad as sg
    >>> x, w = sg.input("x", (5, 3, 3)), sg.input("w", (3, 3))
    >>> c, _ = sg.scan(lambda c, x: (sg.tanh(c @ w + x), ()), sg.zeros((3, 3)), x)
    >>> found = []
    >>> _ = save_residuals([sg.simplify(sg.grad(c.sum(), w))], found)
    >>> [(r.how, r.what) for r in found]
    [('saved', 'tanh(p0)')]
    """
    kept: Notes = [] if notes is None else notes
    inside: dict[Graph, Graph] = {}

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if not isinstance(node, Fold):
            return node
        if node.body not in inside:
            with own_provenance():
                inside[node.body] = with_outputs(
                    node, save_residuals(node.body.outputs, kept)
                ).body
        return Fold(args, inside[node.body], node.structure, node.carries, node.sequences)

    found = rebuild(outputs, rule)
    pairs = list(_pairs(found))
    if not pairs:
        return found
    moves: dict[Fold, _Changes] = {}
    for back, primal in pairs:
        _choose(back, primal, moves, kept)
    return _rebuilt(found, moves)


def _pairs(outputs: Sequence[Node]) -> Iterator[tuple[Fold, Fold]]:
    """Recurrences, and the recurrences of as many steps that they read."""
    for back in toposort(outputs):
        if isinstance(back, Fold):
            folds = dict.fromkeys(x.args[0] for x in back.xs if _is_stacked(x))
            for primal in folds:
                assert isinstance(primal, Fold)
                equal = same(primal.structure.length, back.structure.length)
                alike = primal.bound is back.bound and not primal.structure.checkpoint
                if back.structure.rows is not None or primal.structure.rows is not None:
                    continue
                if equal is True and alike:
                    yield back, primal


def _is_stacked(x: Node) -> bool:
    return isinstance(x, Proj) and isinstance(x.args[0], Fold) and x.place >= x.args[0].carries


@dataclass(slots=True)
class _Changes:
    """What becomes of a recurrence.

    emitted: nodes of its body that it emits as well, in order.
    read:    nodes of its body -> the primal whose node it reads instead, and that node.
    """

    emitted: dict[Node, None] = field(default_factory=dict)
    read: dict[Node, tuple[Fold, Node]] = field(default_factory=dict)


# -- choice ----------------------------------------------------------------------------------------
def _choose(back: Fold, primal: Fold, moves: dict[Fold, _Changes], notes: Notes) -> None:
    """Decide what the primal saves for `back`."""
    images = _images(back, primal)
    taken = moves[back].read if back in moves else {}
    nodes = [n for n in back.body.nodes if n in images and n not in taken]
    ends = _read_by_others(back, images)
    if not any(n.args for n in nodes if n in ends):
        return
    there = set(primal.body.nodes)
    costs = {n: _costs(n, images[n], there, back) for n in nodes}
    wanted = [n for n in nodes if n in ends]
    saved, recomputed = minimum_cut(nodes, costs, wanted)
    length = back.structure.length
    for n in nodes:
        if n in saved and n.args:
            moves.setdefault(primal, _Changes()).emitted[images[n]] = None
            moves.setdefault(back, _Changes()).read[n] = (primal, images[n])
        if n.args and n in (saved | recomputed) and not isinstance(n, (Fold, Constant)):
            how: Literal["saved", "recomputed"] = "saved" if n in saved else "recomputed"
            notes.append(Residual(how, n, length, *costs[n]))


def _images(back: Fold, primal: Fold) -> dict[Node, Node]:
    """What those nodes of a body that depend on no cotangent are in the primal's body.

    Equal expressions over the same binders are one node, so that nothing is compared.
    """
    own: dict[Node, Input] = {}
    for leaves, args in zip(primal.binders[1:], (primal.xs, primal.consts), strict=True):
        for leaf, arg in zip(leaves, args, strict=True):
            own.setdefault(arg, leaf)
    images: dict[Node, Node] = {}
    _, elements, consts = back.binders
    for leaf, arg in zip((*elements, *consts), (*back.xs, *back.consts), strict=True):
        if isinstance(arg, Proj) and arg.args[0] is primal and arg.place >= primal.carries:
            images[leaf] = primal.body.outputs[arg.place]
        elif arg in own:
            images[leaf] = own[arg]
    with own_provenance():
        for node in back.body.nodes:
            if not isinstance(node, Input) and all(a in images for a in node.args):
                with provenance(node.origin, node.backward_of, node.where):
                    images[node] = reconnect(node, tuple(images[a] for a in node.args))
    return images


def _read_by_others(back: Fold, known: Collection[Node]) -> set[Node]:
    """Of the known nodes those that the rest of a body reads."""
    found = {a for n in back.body.nodes if n not in known for a in n.args if a in known}
    return found | {n for n in back.body.outputs if n in known}


def _costs(
    node: Node, image: Node, there: set[Node], back: Fold
) -> tuple[float, float]:
    """Seconds of saving a value and of recomputing it, once a step."""
    if isinstance(node, Input):
        sequences = zip(back.binders[1], back.xs, strict=True)
        saved = any(leaf is node and _is_stacked(x) for leaf, x in sequences)
        return (_bytes(node) * PER_BYTE if saved else 0.0), INFINITE
    if not node.args:  # numbers
        return 0.0, 0.0
    if _draws(node):  # masks are drawn again, from the same counters
        return INFINITE, 0.0
    stacks = isinstance(node, (Fold, Proj))
    saving = INFINITE if stacks or image not in there else _bytes(node) * PER_BYTE
    return saving, _seconds(node)


def _draws(node: Node) -> bool:
    """Whether a node's elements are random numbers."""
    return isinstance(node, Map) and any(
        s.kind == "call" and FUNCTIONS[s.payload].result == "draw" for s in operations(node.body)
    )


def _bytes(node: Node) -> float:
    return float(typical(size(node.shape)) * node.dtype.itemsize)


def _seconds(node: Node) -> float:
    """What a node takes to compute."""
    if isinstance(node, Fold):
        inner = [n for n in node.body.nodes if not isinstance(n, Input)]
        return typical(node.structure.length) * sum(map(_seconds, inner))
    if isinstance(node, Map):
        steps = [s for s in operations(node.body) if s.kind not in ("argument", "number", "dim")]
        heavy = sum(s.kind == "call" and s.payload in HEAVY for s in steps)
        each = heavy * PER_FUNCTION + (len(steps) - heavy) * PER_OPERATION
        return float(typical(size(node.shape))) * each
    if isinstance(node, Einsum):
        return typical(sympy.sympify(operations_of(node))) * PER_TERM
    read = sum(typical(size(a.shape)) for a in node.args) if node.args else 0
    return max(read, typical(size(node.shape))) * PER_OPERATION


#: Functions that take many operations.
HEAVY = frozenset((
    "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "tanh", "sinh", "cosh", "arctan", "erf",
    "sigmoid", "softplus", "pow",
))


# -- the cut ---------------------------------------------------------------------------------------
def minimum_cut(
    nodes: Sequence[Node], costs: Mapping[Node, tuple[float, float]], wanted: Sequence[Node]
) -> tuple[set[Node], set[Node]]:
    """The values that are saved, and those that are recomputed, in the least time.

    Args:
        nodes:  in topological order.
        costs:  of saving and of recomputing each, in seconds.
        wanted: what must be there.
    """
    import networkx  # only programs with derivatives of recurrences need it

    network = networkx.DiGraph()
    inside = set(nodes)
    network.add_nodes_from(("source", "sink"))
    for k, node in enumerate(nodes):
        saving, computing = costs[node]
        _edge(network, ("again", k), ("there", k), saving)
        _edge(network, "source", ("again", k), computing)
        network.add_edge(("there", k), ("again", k))
    place = {node: k for k, node in enumerate(nodes)}
    for node in nodes:
        for arg in node.args:
            if arg in inside:
                network.add_edge(("there", place[arg]), ("again", place[node]))
    for node in wanted:
        network.add_edge(("there", place[node]), "sink")
    _, (_, behind) = networkx.minimum_cut(network, "source", "sink")
    again = {n for n in nodes if ("again", place[n]) in behind}
    return {n for n in nodes if ("there", place[n]) in behind} - again, again


def _edge(network: object, start: object, end: object, seconds: float) -> None:
    if seconds == INFINITE:
        network.add_edge(start, end)  # type: ignore[attr-defined]
    else:
        network.add_edge(start, end, capacity=round(seconds / UNIT))  # type: ignore[attr-defined]


# -- writing it down -------------------------------------------------------------------------------
def _rebuilt(outputs: Sequence[Node], moves: Mapping[Fold, _Changes]) -> list[Node]:
    """The outputs with what was decided; what nothing reads any more is gone."""
    made: dict[Node, Node] = {}
    place: dict[tuple[Fold, Node], int] = {}
    for node in toposort(outputs):
        args = tuple(made[a] for a in node.args)
        with provenance(node.origin, node.backward_of, node.where):
            if isinstance(node, Fold) and node in moves:
                made[node] = _changed(node, args, moves[node], made, place)
            else:
                made[node] = reconnect(node, args)
    return tidy_folds([made[o] for o in outputs], lambda body: body)[0]


def _changed(
    fold: Fold, args: tuple[Node, ...], changes: _Changes, made: Mapping[Node, Node],
    place: dict[tuple[Fold, Node], int],
) -> Fold:
    """A recurrence that emits and reads more."""
    mapping: dict[Node, Node] = {}
    added: dict[Input, Node] = {}
    for node, (primal, image) in changes.read.items():
        leaf = binder("saved", node.shape, node.dtype)
        mapping[node] = leaf
        added[leaf] = Proj((made[primal],), place[primal, image])
    with own_provenance():
        outputs = replace([*fold.body.outputs, *changes.emitted], mapping)
    for k, image in enumerate(changes.emitted):
        place[fold, image] = len(fold.body.outputs) + k
    n = fold.carries + fold.sequences
    leaves = (*fold.body.inputs[:n], *added, *fold.body.inputs[n:])
    return Fold(
        (*args[:n], *added.values(), *args[n:]), Graph(leaves, tuple(outputs)),
        fold.structure, fold.carries, fold.sequences + len(added),
    )
