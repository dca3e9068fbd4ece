"""Equal recurrences with less in them: what nothing reads, what repeats, what does not change.

Simplification calls `tidy_folds` before each sweep; bodies are simplified as whole expressions are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from symgrad.calculus.building import is_extent_one
from symgrad.calculus.fold_merging import equal_carries
from symgrad.graph.folds import Chain, Fold, Proj, binder, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Input, Map, Node, Reindex, einsum_node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.traversal import reconnect, replace, toposort

Simplify = Callable[[Graph], Graph]
Bound = dict[Input, Node]  # binders in order, with what they stand for


@rewrites
def tidy_folds(outputs: Sequence[Node], simplified: Simplify) -> tuple[list[Node], bool]:
    """Every Fold by the rules below, from the leaves to the end; and whether one changed."""
    order = toposort(outputs)
    read: dict[Node, set[int]] = {}
    for node in order:
        if isinstance(node, Proj):
            read.setdefault(node.args[0], set()).add(node.place)
    if not read:
        return list(outputs), False
    made: dict[Node, Node] = {}
    results: dict[Node, dict[int, Node]] = {}
    changed = False
    for node in order:
        with provenance(node.origin, node.backward_of, node.where):
            if isinstance(node, Fold):
                fold = reconnect(node, tuple(made[a] for a in node.args))
                assert isinstance(fold, Fold)
                results[node] = tidied(fold, read.get(node, ()), simplified)
                changed = changed or any(
                    new is not Proj((fold,), k) for k, new in results[node].items()
                )
            elif isinstance(node, Proj):
                made[node] = results[node.args[0]][node.place]
            else:
                made[node] = reconnect(node, tuple(made[a] for a in node.args))
    return [made[output] for output in outputs], changed


def tidied(fold: Fold, read: Collection[int], simplified: Simplify) -> dict[int, Node]:
    """The results of a Fold that are read, of a Fold with as little in it as possible."""
    with own_provenance():
        work = _Work(fold, simplified(fold.body))
        some = fold.structure.rows is not None  # what it reads and emits has other rows outside
        for rule in () if some else (
            _literals, _moved_consts, _equal_arguments, _still_sequences, _still_carries,
            _equal_carries,
        ):
            rule(work)
        work.keep(read)
        if not some:
            _hoist(work)
    return work.results(fold, read)


class _Work:
    """A Fold taken apart: binders with their arguments, next carries and ys."""

    def __init__(self, fold: Fold, body: Graph) -> None:
        n = fold.carries
        groups = zip(fold.binders, (fold.init, fold.xs, fold.consts), strict=True)
        self.body = body
        self.structure: Chain = fold.structure
        self.init, self.xs, self.consts = (
            dict(zip(leaves, args, strict=True)) for leaves, args in groups
        )
        self.after: dict[Input, Node] = dict(zip(self.init, body.outputs[:n], strict=True))
        self.bound = next(iter(self.consts)) if fold.structure.bounded else None
        self.ys: dict[int, Node] = dict(enumerate(body.outputs[n:], n))
        self.carry: dict[int, Input] = dict(enumerate(self.init))  # which carry a result is

    def put(self, mapping: dict[Node, Node]) -> None:
        """Replace nodes of the body."""
        if mapping:
            outputs = replace([*self.after.values(), *self.ys.values()], mapping)
            self.after = dict(zip(self.after, outputs, strict=False))
            self.ys = dict(zip(self.ys, outputs[len(self.after) :], strict=True))

    def order(self) -> list[Node]:
        """The nodes of the body."""
        return toposort([*self.after.values(), *self.ys.values()])

    def keep(self, read: Collection[int]) -> None:
        """Drop ys that nothing reads, and carries that reach nothing that is read."""
        self.ys = {k: y for k, y in self.ys.items() if k in read}
        live = {b for k, b in self.carry.items() if k in read and b in self.after}
        while True:
            kept = [node for b, node in self.after.items() if b in live]
            used = set(toposort([*kept, *self.ys.values()]))
            grown = live | {b for b in self.after if b in used}
            if grown == live:
                break
            live = grown
        self.after = {b: node for b, node in self.after.items() if b in live}

    def moving(self) -> set[Node]:
        """Nodes of the body that depend on a carry or on a sequence."""
        found: set[Node] = {*self.after, *self.xs}
        for node in self.order():
            if any(a in found for a in node.args):
                found.add(node)
        return found

    def results(self, fold: Fold, read: Collection[int]) -> dict[int, Node]:
        """What stands for the results that are read."""
        found: dict[int, Node] = {}
        moving = self.moving()
        some = self.structure.rows is not None
        for k, y in () if some else self.ys.items():
            if isinstance(y, Input) and y in self.xs:
                found[k] = self.xs[y]  # y[t] = x[t]
            elif y not in moving:
                found[k] = self.repeated(y)
        for k in read:
            if k in self.carry and (leaf := self.carry[k]) not in self.after:
                found[k] = self.consts[leaf]
        stacked = list(dict.fromkeys(y for k, y in self.ys.items() if k not in found))
        used = set(toposort([*self.after.values(), *stacked]))
        if some:
            used.update(list(self.xs)[:2])  # they tell the rows
        groups = (
            {b: self.init[b] for b in self.after},
            {b: a for b, a in self.xs.items() if b in used},
            {b: a for b, a in self.consts.items() if b in used or b is self.bound},
        )
        leaves = tuple(b for group in groups for b in group)
        outputs = (*self.after.values(), *stacked)
        body = self.body
        if not (_same(leaves, body.inputs) and _same(outputs, body.outputs)):
            body = Graph(leaves, outputs)
        args = tuple(a for group in groups for a in group.values())
        tidy = Fold(args, body, self.structure, len(self.after), len(groups[1]))
        parts = projections(tidy)
        places = {b: k for k, b in enumerate(self.after)}
        stack = {y: len(places) + k for k, y in enumerate(stacked)}
        for k in read:
            if k not in found:
                found[k] = parts[stack[self.ys[k]] if k in self.ys else places[self.carry[k]]]
        return found

    def outside(self, node: Node) -> Node:
        """A node of the body that depends on constants alone, as it stands around the Fold."""
        given: dict[Node, Node] = {leaf: arg for leaf, arg in self.consts.items()}
        return replace([node], given)[0]

    def repeated(self, node: Node) -> Node:
        """Every step's value of a node that is the same in all."""
        x = self.outside(node)
        axes = tuple(range(1, x.ndim + 1))
        return einsum_node((x,), (axes,), (0, *axes), {0: self.structure.length})


def _same(a: Sequence[Node], b: Sequence[Node]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


# -- rules ----------------------------------------------------------------------------------------
def _literals(work: _Work) -> None:
    """rewrite: a const that is a number -> the number, inside."""
    found: dict[Node, Node] = {
        b: arg for b, arg in work.consts.items() if _is_literal(arg) and b is not work.bound
    }
    work.put(found)
    work.consts = {leaf: arg for leaf, arg in work.consts.items() if leaf not in found}


def _is_literal(node: Node) -> bool:
    if isinstance(node, Constant):
        return not node.shape
    if isinstance(node, Map):
        return not node.args
    return isinstance(node, Einsum) and len(node.args) == 1 and _is_literal(node.args[0])


def _moved_consts(work: _Work) -> None:
    """rewrite: a const that is transposed or repeated outside -> transposed or repeated inside."""
    mapping: dict[Node, Node] = {}
    for leaf, arg in list(work.consts.items()):
        if isinstance(arg, Einsum) and _only_moves(arg) and leaf is not work.bound:
            (source,) = arg.args
            name = source.name if isinstance(source, Input) else leaf.name
            inner = binder(name, source.shape, source.dtype)
            mapping[leaf] = einsum_node(
                (inner,), arg.labels, arg.out, dict(enumerate(arg.extents))
            )
            del work.consts[leaf]
            work.consts[inner] = source
    work.put(mapping)


def _equal_arguments(work: _Work) -> None:
    """rewrite: two consts, or two sequences, that are one node -> one."""
    mapping: dict[Node, Node] = {}
    for group in (work.xs, work.consts):
        first: dict[Node, Input] = {}
        for leaf, arg in list(group.items()):
            if first.setdefault(arg, leaf) is not leaf:
                mapping[leaf] = first[arg]
                del group[leaf]
    work.put(mapping)


def _still_sequences(work: _Work) -> None:
    """rewrite: a sequence that repeats one element -> a const."""
    for leaf, arg in list(work.xs.items()):
        if isinstance(arg, Einsum) and arg.out[0] not in {k for own in arg.labels for k in own}:
            del work.xs[leaf]
            work.consts[leaf] = einsum_node(
                arg.args, arg.labels, arg.out[1:], dict(enumerate(arg.extents))
            )


def _still_carries(work: _Work) -> None:
    """rewrite: a carry that every step returns as it got it, or sets to its start -> a const."""
    for leaf, after in list(work.after.items()):
        same = isinstance(after, Input) and work.consts.get(after) is work.init[leaf]
        if after is leaf or same:
            work.consts[leaf] = work.init[leaf]
            del work.after[leaf]


def _equal_carries(work: _Work) -> None:
    """rewrite: two carries that start equal and stay equal -> one."""
    if len({id(work.init[leaf]) for leaf in work.after}) == len(work.after):
        return
    leaves = (*work.after, *work.xs, *work.consts)
    args = (*(work.init[b] for b in work.after), *work.xs.values(), *work.consts.values())
    fold = Fold(
        args, Graph(leaves, tuple(work.after.values())), work.structure, len(work.after),
        len(work.xs),
    )
    first: dict[int, Input] = {}
    mapping: dict[Node, Input] = {}
    for (_, k), colour in equal_carries([fold]).items():
        leaf = leaves[k]
        if first.setdefault(colour, leaf) is not leaf:
            mapping[leaf] = first[colour]
    for k, leaf in work.carry.items():
        work.carry[k] = mapping.get(leaf, leaf)
    work.after = {leaf: node for leaf, node in work.after.items() if leaf not in mapping}
    work.put(dict[Node, Node](mapping))


def _hoist(work: _Work) -> None:
    """rewrite: what depends on consts alone, beside moves and repetitions -> a const."""
    moving = work.moving()
    order = work.order()
    fixed: set[Node] = {*work.consts}
    for node in order:
        if node not in moving and any(a in fixed for a in node.args):
            fixed.add(node)
    edge = [a for node in order if node not in fixed for a in node.args if a in fixed]
    edge += [node for node in work.after.values() if node in fixed]
    mapping: dict[Node, Node] = {}
    for node in edge:
        while _only_moves(node) and node.args[0] in fixed:
            node = node.args[0]
        if node.args and node not in mapping and not isinstance(node, Fold):
            leaf = binder("const", node.shape, node.dtype)
            work.consts[leaf] = work.outside(node)
            mapping[node] = leaf
    work.put(mapping)


def _only_moves(node: Node) -> bool:
    if isinstance(node, Reindex):
        return len(node.args) == 1
    return isinstance(node, Einsum) and len(node.args) == 1 and all(
        is_extent_one(node.extents[k]) for k in node.summed
    )
