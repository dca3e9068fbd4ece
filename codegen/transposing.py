"""Constants of a recurrence as its products read them fastest: rows of the right factor in a row.

rewrite:  a step's product with a constant that lies transposed, out[m, n] = a[m, k] W[n, k]
          -> V = W transposed, once around the recurrence, and out[m, n] = a[m, k] V[k, n] in it
requires: as many steps as make up for it
keeps:    values up to rounding: a product may add its terms in another order

A product that reads its right factor by columns transposes it each time; the way back through a
cell, h_ct = z_ct W', does so in every step. The same weight, read as it lies by another product of
the step, stays as it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from codegen.access import is_one
from symgrad.calculus.loop_parts import Moved, Notes
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Fold, binder
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Einsum, Input, Node, einsum_node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import rebuild, reconnect

# Steps from which on a constant is transposed before them: that takes as long as it does inside a
# product, and goes through memory besides.
STEPS = 4


@rewrites
def transpose_constants(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """Transpose such constants of all recurrences; see the module.

    Args:
        notes: told which.

    >>> import symgrad as sg
    >>> x, h, U = sg.input("x", (7, 2, 3)), sg.input("h", (2, 3)), sg.input("U", (3, 3))
    >>> last, _ = sg.scan(lambda h, x: (sg.tanh(h @ U.T + x), ()), h, x)
    >>> (made,) = transpose_constants([sg.simplify(last)])
    >>> [type(c).__name__ for c in made.args[0].consts]
    ['Input', 'Einsum']
    """
    kept: Notes = [] if notes is None else notes

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        return _transposed(node, kept) if isinstance(node, Fold) else node

    return rebuild(outputs, rule)


def _transposed(fold: Fold, notes: Notes) -> Fold:
    with own_provenance():
        outputs = transpose_constants(fold.body.outputs, notes)
    length = fold.structure.length
    consts = dict(zip(fold.binders[2], fold.consts, strict=True))
    found: dict[Node, Input] = {}  # a product -> its constant's binder
    added: dict[Input, Input] = {}  # a constant's binder -> that of the transposed one
    if type(length) is not int or length >= STEPS:
        whole = {c for c in consts if fold.whole(c) == c.shape}
        found = dict(_products(Graph(fold.body.inputs, tuple(outputs)), whole))
        added = {c: binder(c.name, c.shape[::-1], c.dtype) for c in dict.fromkeys(found.values())}

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if node not in found:
            return reconnect(node, args)
        assert isinstance(node, Einsum)
        labels = [node.labels[0], node.labels[1][::-1]]
        return einsum_node([args[0], added[found[node]]], labels, node.out)

    with own_provenance():
        outputs = rebuild(outputs, rule) if found else outputs
        turned = tuple(einsum_node([consts[leaf]], [(0, 1)], (1, 0)) for leaf in added)
    why = "a product of the step reads its rows"
    notes.extend(Moved("transposed before", node, length, why) for node in turned)
    if not found and all(a is b for a, b in zip(outputs, fold.body.outputs, strict=True)):
        return fold
    body = Graph((*fold.body.inputs, *added.values()), tuple(outputs))
    args = (*fold.args, *turned)
    return Fold(args, body, fold.structure, fold.carries, fold.sequences)


def _products(body: Graph, consts: set[Input]) -> Iterator[tuple[Einsum, Input]]:
    """Products of the form a[m.., k] W[n, k], where W is a constant, and W."""
    for node in body.nodes:
        if not isinstance(node, Einsum) or len(node.args) != 2 or not is_float(node.dtype):
            continue
        leaf = node.args[1]
        if not isinstance(leaf, Input) or leaf not in consts or leaf.ndim != 2:
            continue
        n, k = node.labels[1]
        rows = node.labels[0][:-1]
        if node.labels[0][-1:] == (k,) and node.out == (*rows, n) and not any(
            is_one(e) for e in leaf.shape
        ):
            yield node, leaf
