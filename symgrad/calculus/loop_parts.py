"""What moves across the border of a recurrence: its parts, what pays, and the record of it.

A product of a step that reads a constant of the loop,

    z[t] = x[t] W,   t = 0 .. T-1          x[t] (b, k),  W (k, n)

is T products of b rows. Around the loop it is one of T b rows, which fills the processor's register
tiles and packs W once. That pays where b is small; where a step's product is large by itself, or
the stacked values would not fit, it stays inside.

Around a bounded recurrence the steps that it leaves out are computed too: a sequence is whole, and
what it emits is zero there. On a Xeon with AVX-512 the gradient of a tagger of 32 sentences of 5 to
30 words takes 4.0 ms so, and 23 ms with all products inside, where every step adds to the gradient
of the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from symgrad.calculus.building import is_extent_one
from symgrad.graph.dims import Extent, Shape, printable, size, typical
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Chain, Fold, Proj, projections, with_outputs
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Einsum, Input, Node, Reindex
from symgrad.graph.provenance import own_provenance, provenance
from symgrad.graph.traversal import reconnect, replace, toposort

# Rows of a step's product from which on it is left in the loop: on a Xeon with AVX-512 products of
# more rows gain less than 3 % from being one.
ROWS = 512
# Bytes of one stacked value at most, where its size is known.
LARGEST = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What a pass moved: out of a recurrence, into it, or before what reads it.

    hoisted, sunk   out of the beginning or the end of a recurrence
    read inside     rows of a table: in the step instead of before all steps
    looked up       rows of a table: of its product, instead of a product of rows
    added by rows   rows of a table: before a product, instead of the product's
    sliced          into pieces that are computed by themselves, where they are read
    sliced before, transposed before    the steps that read it: once
    without padding, with padding       a recurrence with lengths: whether it works on live rows

    node:   as it stood before.
    length: steps of the recurrence; None where the node stood in none.
    why:    a sentence.
    """

    how: Literal[
        "hoisted", "sunk", "read inside", "looked up", "added by rows", "sliced", "sliced before",
        "transposed before", "without padding", "with padding",
    ]
    node: Node
    length: Extent | None
    why: str

    @property
    def heading(self) -> str:
        """How, and of how many steps.

        >>> from symgrad.graph.leaves import input
        >>> x = input("x", (3,))
        >>> Moved("hoisted", x, 7, "").heading, Moved("looked up", x, None, "").heading
        ('hoisted out of 7 steps', 'looked up')
        """
        if self.length is None:
            return self.how
        place = {"hoisted": "out of ", "sunk": "out of "}.get(self.how, "in ")
        if self.how.endswith(("inside", "before")):
            place = ""
        return f"{self.how} {place}{printable(str(self.length))} steps"


Notes = list[Moved]
Rule = Callable[[Fold, Collection[int]], Mapping[int, Node] | None]


class FoldParts:
    """A Fold taken apart: binders with their arguments, next carries, ys by place."""

    def __init__(self, fold: Fold) -> None:
        n = fold.carries
        outputs = fold.body.outputs
        groups = zip(fold.binders, (fold.init, fold.xs, fold.consts), strict=True)
        self.structure: Chain = fold.structure
        self.init, self.xs, self.consts = (
            dict(zip(leaves, args, strict=True)) for leaves, args in groups
        )
        self.after: dict[Input, Node] = dict(zip(self.init, outputs[:n], strict=True))
        self.ys: dict[int, Node] = dict(enumerate(outputs[n:], n))

    @property
    def length(self) -> Extent:
        """How many steps there are."""
        return self.structure.length

    def put(self, mapping: Mapping[Node, Node]) -> None:
        """Replace nodes of the body."""
        outputs = replace([*self.after.values(), *self.ys.values()], mapping)
        self.after = dict(zip(self.after, outputs, strict=False))
        self.ys = dict(zip(self.ys, outputs[len(self.after) :], strict=True))

    def depending(self, order: Iterable[Node], leaves: Collection[Node]) -> set[Node]:
        """The nodes that depend on some of the leaves, and these."""
        found: set[Node] = set(leaves)
        found.update(n for n in order if n in found or any(a in found for a in n.args))
        return found

    def built(self) -> tuple[dict[Input, Node], dict[int, Node]]:
        """The Fold of these parts: its final carries by binder, and its ys by place."""
        leaves = (*self.init, *self.xs, *self.consts)
        args = (*self.init.values(), *self.xs.values(), *self.consts.values())
        body = Graph(leaves, (*self.after.values(), *self.ys.values()))
        results = projections(Fold(args, body, self.structure, len(self.init), len(self.xs)))
        final: dict[Input, Node] = dict(zip(self.init, results, strict=False))
        return final, dict(zip(self.ys, results[len(final) :], strict=True))


def rewrite_folds(outputs: Sequence[Node], inside: Callable[[Sequence[Node]], Sequence[Node]],
                  rule: Rule) -> list[Node]:
    """Every Fold by a rule, the ones in its body first.

    Args:
        inside: the pass itself, for bodies.
        rule:   a Fold and which of its results are read -> what stands for these; None: itself.
    """
    order = toposort(outputs)
    read: dict[Node, set[int]] = {}
    for node in order:
        if isinstance(node, Proj):
            read.setdefault(node.args[0], set()).add(node.place)
    made: dict[Node, Node] = {}
    results: dict[Node, Mapping[int, Node]] = {}
    for node in order:
        args = tuple(made.get(a, a) for a in node.args)
        with provenance(node.origin, node.backward_of, node.where):
            if isinstance(node, Fold):
                fold = reconnect(node, args)
                assert isinstance(fold, Fold)
                with own_provenance():
                    fold = with_outputs(fold, inside(fold.body.outputs))
                    # around a loop all steps would be kept, and all rows be worked on
                    stays = fold.structure.checkpoint or fold.structure.rows is not None
                    found = None if stays else rule(fold, read.get(node, ()))
                results[node] = found or dict(enumerate(projections(fold)))
            elif isinstance(node, Proj):
                made[node] = results[node.args[0]][node.place]
            else:
                made[node] = reconnect(node, args)
    return [made[output] for output in outputs]


# -- costs -----------------------------------------------------------------------------------------
def fits(shape: Shape, itemsize: int) -> bool:
    """Whether a stacked value is not known to be too large."""
    count = size(shape)
    return not isinstance(count, int) or count * itemsize <= LARGEST


def pays(node: Node, steps: Collection[Node]) -> bool:
    """Whether a node is a product of few rows with a constant, which is worth one large product.

    Args:
        steps: the nodes of the body that differ from step to step.
    """
    if not isinstance(node, Einsum) or not is_float(node.dtype):
        return False
    own, fixed = set[int](), set[int]()
    for arg, labels in zip(node.args, node.labels, strict=True):
        (own if arg in steps else fixed).update(
            k for k in labels if not is_extent_one(node.extents[k])
        )
    summed, out = set(node.summed), set(node.out)
    rows = typical(size(node.extents[k] for k in sorted((own & out) - fixed)))
    return bool(own & fixed & summed) and bool((fixed & out) - own) and rows < ROWS


def only_moves(node: Node) -> bool:
    """Whether a node moves one source about, without making it smaller."""
    if isinstance(node, Reindex):
        return len(node.args) == 1 and typical(size(node.args[0].shape)) <= typical(
            size(node.shape)
        )
    return isinstance(node, Einsum) and len(node.args) == 1 and all(
        is_extent_one(node.extents[k]) for k in node.summed
    )
