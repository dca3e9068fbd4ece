"""What goes back reads what the way forward has computed: saved values, or computed once more.

    forward   c[t+1] = f(c[t], x[t])                  emits c[t]
    reverse   c_ct = (df)'(c[t], x[t]) c_ct           computes parts of f once more, such as gates
    ->        emits c[t] and gates;  reverse reads both

A node of the reverse body that the primal's step has too may be saved (written by the one, read by
the other, once a step) or recomputed from what lies before it. The cheapest choice is a minimum
cut: every node n is an edge n -> n' that costs what saving it costs, and an edge from the source
that costs what computing it does; a node is saved where the cut separates n from n', and recomputed
where it separates n from the source. Values that only the derivative needs stand behind the cut.
Derivatives in terms of a function's own value (tanh' = 1 - y^2) thereby keep gates, and not what
was before them.

Griewank and Walther, Evaluating Derivatives, 2008, chapter 12; the cut as in Zheng, Vanholder and
Chen's recomputation of memory-bound programs, 2023.

requires: the reverse Fold reads the primal's results step by step.
keeps:    values: what is read is what would have been computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from symgrad.calculus import bodies
from symgrad.calculus.costs import operations_of
from symgrad.calculus.loop_parts import Moved, Notes, fits, typical
from symgrad.graph.dims import same, size
from symgrad.graph.folds import Fold, Proj, binder, projections, with_outputs
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Einsum, Input, Map, Node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.traversal import rebuild, reconnect, replace, toposort

# What a step costs, in nanoseconds, on a Xeon with AVX-512: a byte that is moved to or from the
# outer cache, an operation of an elementwise loop in float32, one of a product; and how many
# operations a function such as tanh takes.
BYTE, OPERATION, PRODUCT, FUNCTION = 0.036, 0.016, 0.006, 20
SINGLE = 4  # bytes of a float32
NEVER = 1e15


@rewrites
def save(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """rewrite: a reverse step that computes what the primal step did -> one that reads it.

    Args:
        notes: told what is saved.
    """
    kept: Notes = [] if notes is None else notes

    def inside(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if isinstance(node, Fold):
            with own_provenance():
                return with_outputs(node, save(node.body.outputs, kept))
        return node

    made = rebuild(outputs, inside)
    folds = [node for node in toposort(made) if isinstance(node, Fold)]
    for k in range(len(folds)):
        for primal in _primals(folds[k]):
            choice = _choice(primal, folds[k], toposort(made))
            if choice is not None and choice.saved:
                kept.extend(
                    Moved("saved", node, primal.structure.length, "the way back reads it")
                    for node in choice.saved.values()
                )
                made, renewed = _apply(made, primal, folds[k], choice)
                folds = [new for fold in folds if isinstance(new := renewed[fold], Fold)]
                break
    return made


def _primals(fold: Fold) -> list[Fold]:
    """The Folds whose results a Fold reads step by step, the most read first."""
    count: dict[Fold, int] = {}
    for x in fold.xs:
        if isinstance(x, Proj):
            primal = x.args[0]
            assert isinstance(primal, Fold)
            if x.place >= primal.carries:
                count[primal] = count.get(primal, 0) + 1
    return sorted(
        (p for p in count if same(p.structure.length, fold.structure.length) is True),
        key=lambda p: -count[p],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """Nodes of the reverse body to read, each with its node of the primal body."""

    saved: dict[Node, Node]


def _images(primal: Fold, fold: Fold) -> dict[Node, Node]:
    """Nodes of the reverse body that the primal body can compute, as nodes over its binders."""
    given: dict[Node, Node] = {}
    own = zip(primal.binders[1:], (primal.xs, primal.consts), strict=True)
    (elements, consts) = (dict(zip(args, leaves, strict=True)) for leaves, args in own)
    for leaf, arg in zip(fold.binders[1], fold.xs, strict=True):
        if isinstance(arg, Proj) and arg.args[0] is primal and arg.place >= primal.carries:
            given[leaf] = primal.body.outputs[arg.place]
        elif arg in elements:
            given[leaf] = elements[arg]
    for leaf, arg in zip(fold.binders[2], fold.consts, strict=True):
        if arg in consts:
            given[leaf] = consts[arg]
    with own_provenance():
        for node in fold.body.nodes:
            if node not in given and (node.args or isinstance(node, Map)):
                if all(a in given for a in node.args):
                    with provenance(node.origin, node.backward_of, node.where):
                        given[node] = reconnect(node, tuple(given[a] for a in node.args))
            elif node not in given and not isinstance(node, Input):
                given[node] = node  # a constant
    return given


def _choice(primal: Fold, fold: Fold, around: Sequence[Node]) -> _Choice | None:
    """What the reverse Fold had best read: a minimum cut."""
    images = _images(primal, fold)
    there = set(primal.body.nodes)
    moving: set[Node] = {*fold.binders[0]}
    varied: set[Node] = {*fold.binders[1]}
    for node in fold.body.nodes:
        if any(a in moving for a in node.args):
            moving.add(node)
        elif any(a in varied for a in node.args):
            varied.add(node)
    known = [n for n in fold.body.nodes if n in varied and n not in moving]
    wanted = {a for n in fold.body.nodes if n in moving for a in n.args}
    wanted.update(o for o in fold.body.outputs if o not in moving)
    shared = [n for n in known if images.get(n) in there and not isinstance(n, Input)]
    if not shared or not wanted:
        return None
    kept = _kept(primal, fold, around)
    length, emitted = primal.structure.length, {*primal.body.outputs[primal.carries :]}

    def saving(node: Node) -> float:
        image = images.get(node)
        is_given = image in kept or (isinstance(node, Input) and image not in emitted)
        is_known = isinstance(node, Input) or image in there
        if isinstance(node, Fold) or not is_known:
            return NEVER
        if not isinstance(node, Input) and not fits((length, *node.shape), node.dtype.itemsize):
            return NEVER
        return _bytes(node) * BYTE * (1 if is_given else 2)

    cut = _cut(known, wanted, saving)
    return _Choice({n: images[n] for n in cut if not isinstance(n, Input)})


def _kept(primal: Fold, fold: Fold, around: Sequence[Node]) -> set[Node]:
    """Nodes of the primal body that it emits for others than the reverse Fold."""
    return {
        primal.body.outputs[a.place]
        for node in around if node is not fold
        for a in node.args
        if isinstance(a, Proj) and a.args[0] is primal and a.place >= primal.carries
    }


def _cut(
    known: Sequence[Node], wanted: Set[Node], saving: Callable[[Node], float]
) -> list[Node]:
    """The nodes to read, so that reading them and computing the wanted ones costs least."""
    import networkx

    number = {node: k for k, node in enumerate(known)}
    net = networkx.DiGraph()  # 2 k and 2 k + 1 are the two sides of node k
    for k, node in enumerate(known):
        net.add_edge(2 * k, 2 * k + 1, capacity=saving(node))
        if isinstance(node, Input):
            net.add_edge("source", 2 * k)  # without a capacity: infinite
        else:
            net.add_edge("source", 2 * k, capacity=_recomputing(node))
        for arg in dict.fromkeys(node.args):
            if arg in number:
                net.add_edge(2 * number[arg] + 1, 2 * k)
        if node in wanted:
            net.add_edge(2 * k + 1, "sink")
    _, (before, _) = networkx.minimum_cut(net, "source", "sink")
    return [n for n, k in number.items() if 2 * k in before and 2 * k + 1 not in before]


def _bytes(node: Node) -> int:
    return typical(size(node.shape)) * node.dtype.itemsize


def _recomputing(node: Node) -> float:
    """Nanoseconds that computing a node takes."""
    if isinstance(node, Fold):
        return typical(node.structure.length) * sum(map(_recomputing, node.body.nodes))
    if isinstance(node, Proj):
        return 0.0
    count = typical(operations_of(node)) * node.dtype.itemsize / SINGLE
    if isinstance(node, Einsum) and len(node.args) > 1:
        return count * PRODUCT
    if isinstance(node, Map) and bodies.calls(node.body):
        count += _bytes(node) / SINGLE * FUNCTION
    return count * OPERATION


def _apply(
    outputs: Sequence[Node], primal: Fold, fold: Fold, choice: _Choice
) -> tuple[list[Node], dict[Node, Node]]:
    """The outputs with a primal that emits the saved values and a reverse that reads them."""
    ys = list(dict.fromkeys(choice.saved.values()))
    made: dict[Node, Node] = {}
    wide: Fold | None = None
    for node in toposort(outputs):
        args = tuple(made[a] for a in node.args)
        with provenance(node.origin, node.backward_of, node.where):
            if node is primal:
                body = Graph(primal.body.inputs, (*primal.body.outputs, *ys))
                wide = Fold(args, body, primal.structure, primal.carries, primal.sequences)
                made[node] = wide
            elif node is fold:
                assert wide is not None
                made[node] = _reading(fold, args, wide, choice, ys)
            else:
                made[node] = reconnect(node, args)
    return [made[output] for output in outputs], made


def _reading(
    fold: Fold, args: tuple[Node, ...], wide: Fold, choice: _Choice, ys: Sequence[Node]
) -> Fold:
    """The reverse Fold with the saved values among its sequences."""
    first = len(wide.body.outputs) - len(ys)
    place = {y: first + k for k, y in enumerate(ys)}
    results = projections(wide)
    leaves: dict[Node, Node] = {
        n: binder("saved", n.shape, n.dtype) for n in choice.saved
    }
    with own_provenance():
        outputs = replace(fold.body.outputs, leaves)
    m = fold.carries + fold.sequences
    inputs = fold.body.inputs
    body = Graph(
        (*inputs[:m], *(b for b in leaves.values() if isinstance(b, Input)), *inputs[m:]),
        tuple(outputs),
    )
    added = tuple(results[place[image]] for image in choice.saved.values())
    return Fold(
        (*args[:m], *added, *args[m:]), body, fold.structure, fold.carries,
        fold.sequences + len(added),
    )
