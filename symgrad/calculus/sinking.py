"""What a recurrence only adds up or gives away leaves it at the end: one large operation.

    W_ct <- W_ct + h[t]' z_ct[t]     ->    W_ct = W_ct + sum over t, b of H[t, b, :] Z_ct[t, b, :]
    y[t] = g(h[t] W)                 ->    Y = g(H W)                        H (T, b, k) stacked

The recurrence emits what those read, stacked over its steps (h[t], z_ct[t]), if it is no sequence
of its already.

requires: the carry is read by its own sum alone; what leaves holds no recurrence.
keeps:    values up to rounding, for the terms of a sum over steps are added in another order; NaN
          and infinity. A sum that a user wrote and that does not begin at zero stays inside: 0.0,
          the sum of no steps, is no neutral number to -0.0.

What a bounded recurrence emits is 0 in the steps that it leaves out, and so must be what is
computed of it: g(0) may be anything, even NaN, and is replaced by 0 there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from symgrad.calculus.building import aligned, equal_shapes, total
from symgrad.calculus.loop_parts import (
    ROWS,
    FoldParts,
    Moved,
    Notes,
    fits,
    only_moves,
    pays,
    rewrite_folds,
)
from symgrad.calculus.map_rules import derived
from symgrad.calculus.stacking import Stack, can_stack, has_counted, scattered, stacked, with_steps
from symgrad.graph import functions as fn
from symgrad.graph.dims import Extent, Shape, size, typical
from symgrad.graph.folds import Fold
from symgrad.graph.functions import P
from symgrad.graph.leaves import arange
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reindex,
    Scatter,
    einsum_node,
    map_node,
)
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import toposort

_ENDED = fn.select(P[0], P[1], 0)


@rewrites
def sink(outputs: Sequence[Node], notes: Notes | None = None) -> list[Node]:
    """rewrite: sums over steps, and products that no carry reads -> one operation after them all.

    Args:
        notes: told what moved.

    >>> import symgrad as sg
    >>> h, z = sg.input("h", (7, 3, 5)), sg.input("z", (7, 3, 2))
    >>> W, _ = sg.scan(lambda W, hz: (W + hz[0].T @ hz[1], ()), sg.zeros((5, 2)), (h, z))
    >>> type(W).__name__, type(sink([W])[0]).__name__
    ('Proj', 'Einsum')
    """
    kept: Notes = [] if notes is None else notes
    return rewrite_folds(
        outputs, lambda body: sink(body, kept), lambda fold, read: _sunk(fold, read, kept)
    )


def _sunk(fold: Fold, read: Collection[int], notes: Notes) -> Mapping[int, Node] | None:
    border = _Border(fold, read)
    border.choose()
    if not border.sums and not border.outside:
        return None
    for terms in border.sums.values():
        notes.extend(
            Moved("sunk", node, border.parts.length, "a carry that only adds up")
            for term in terms for node in term.factors
        )
    notes.extend(
        Moved("sunk", node, border.parts.length, "no carry reads it")
        for node in border.products
    )
    return border.results()


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A term of a sum: a number times factors, broadcast to the sum's shape."""

    weight: sympy.Expr
    factors: tuple[Node, ...]


def terms_of(leaf: Input, after: Node) -> tuple[Term, ...] | None:
    """What a step adds to a carry; None where it does anything else with it.

        after = leaf + w a + v b c + ..       ->    (w, a), (v, b c), ..
    """
    if not isinstance(after, Map) or after.shape != leaf.shape:
        return None
    own = [k for k, arg in enumerate(after.args) if arg is leaf]
    if len(own) != 1:
        return None
    rest = sympy.expand(after.body - P[own[0]]) if after.body.is_Add else after.body
    if P[own[0]] in rest.free_symbols:
        return None
    found = []
    for term in sympy.Add.make_args(rest):
        weight, factors = sympy.S.One, list[Node]()
        for factor in sympy.Mul.make_args(term):
            if factor in P:
                factors.append(after.args[P.index(factor)])
            elif factor.is_number:
                weight *= factor
            else:
                return None
        found.append(Term(weight, tuple(factors)))
    moves = all(term.factors and not any(map(has_counted, term.factors)) for term in found)
    return tuple(found) if moves else None


def opens(term: Term) -> bool:
    """Whether a term is a sum already, which then takes in the steps."""
    (node, *more) = term.factors
    if isinstance(node, Einsum):
        return bool(node.summed) and not more
    return isinstance(node, Scatter) and not more


def starts_at_zero(node: Node) -> bool:
    """Whether a node is 0.0, or 0.0 repeated; -0.0 is not."""
    if isinstance(node, Einsum) and len(node.args) == 1:
        (node,) = node.args
    return isinstance(node, Constant) and not node.shape and not any(node.value.tobytes())


class _Border:
    """Which nodes of a body go outside, and what the recurrence emits for them."""

    def __init__(self, fold: Fold, read: Collection[int]) -> None:
        self.fold = fold
        self.parts = parts = FoldParts(fold)
        parts.ys = {k: y for k, y in parts.ys.items() if k in read}
        self.order = toposort([*parts.after.values(), *parts.ys.values()])
        self.steps = parts.depending(self.order, [*parts.init, *parts.xs])
        self.sums: dict[Input, tuple[Term, ...]] = {}
        self.products: list[Node] = []
        self.outside: set[Node] = set()  # nodes computed around the recurrence
        self.emitted: dict[Node, None] = {}  # what they read of it

    # -- choice ------------------------------------------------------------------------------------
    def choose(self) -> None:
        """Decide what leaves."""
        found = dict(self._sums())
        for leaf, terms in found.items():
            if all(self._contracts(term, leaf) for term in terms):
                self.sums[leaf] = terms
        self._spread()
        for leaf, terms in found.items():
            if leaf not in self.sums and all(self._is_there(term) for term in terms):
                self.sums[leaf] = terms
        self._spread()

    def _sums(self) -> Iterable[tuple[Input, tuple[Term, ...]]]:
        """Carries that nothing reads but their own sum, and what is added to them."""
        parts = self.parts
        reads: dict[Node, int] = {}
        for node in (*(a for n in self.order for a in n.args), *parts.ys.values(),
                     *parts.after.values()):
            reads[node] = reads.get(node, 0) + 1
        for leaf, after in parts.after.items():
            terms = terms_of(leaf, after)
            alone = reads.get(leaf) == 1 and reads[after] == 1
            if terms is None or not alone:
                continue
            safe = starts_at_zero(parts.init[leaf]) or derived(self.fold)
            if safe and all(any(f in self.steps for f in term.factors) for term in terms):
                yield leaf, terms

    def _contracts(self, term: Term, leaf: Input) -> bool:
        """Whether a term is worth a sum of its own: it contracts, scatters, or stretches."""
        if len(term.factors) > 1:  # an outer product
            whole = typical(size(leaf.shape))
            return all(
                typical(size(f.shape)) < whole and self._may_leave(f) for f in term.factors
            )
        (node,) = term.factors
        if isinstance(node, Einsum):
            summed = typical(size(node.extents[k] for k in node.summed))
            return len(node.args) > 1 and summed < ROWS and all(map(self._may_leave, node.args))
        if isinstance(node, Scatter):
            updates = typical(size(node.args[0].shape))
            return updates < ROWS * ROWS and all(map(self._may_leave, node.args))
        return False

    def _may_leave(self, node: Node) -> bool:
        return node not in self.steps or fits(
            (self.parts.length, *node.shape), node.dtype.itemsize
        )

    def _is_there(self, term: Term) -> bool:
        """Whether what a term adds up is stacked anyway."""
        (node, *more) = term.factors
        if isinstance(node, Einsum) and len(node.args) == 1:
            (node,) = node.args
        known = {*self.parts.xs, *self.emitted, *self.parts.ys.values(), *self.outside}
        return not more and node in known

    # -- border ------------------------------------------------------------------------------------
    def _spread(self) -> None:
        """What is outside, and what the recurrence emits, for the sums chosen so far."""
        kept = [node for leaf, node in self.parts.after.items() if leaf not in self.sums]
        needed = set(toposort(kept))
        terms = [term for terms in self.sums.values() for term in terms]
        added = [f for term in terms for f in term.factors]
        free = [n for n in toposort([*self.parts.ys.values(), *added]) if n not in needed]
        heavy = {n for n in free if pays(n, self.steps) and self._may_leave(n)}
        outside = self.parts.depending(free, heavy)
        if stuck := [n for n in outside if not can_stack(n) or not self._may_leave(n)]:
            heavy -= set(toposort(stuck))
            outside = self.parts.depending(free, heavy)
        self.products = [n for n in free if n in heavy]
        self.outside = outside
        self.emitted = {}
        ends = [a for n in self.order if n in outside for a in n.args]
        for term in terms:
            ends.extend(term.factors[0].args if opens(term) else term.factors)
        for node in ends:
            while node in self.steps and node not in self.outside:
                if isinstance(node, Input) and node in self.parts.xs:
                    break
                if node in needed or not only_moves(node):
                    self.emitted[node] = None
                    break
                self.outside.add(node)
                (node,) = node.args

    # -- what stands around ------------------------------------------------------------------------
    def results(self) -> dict[int, Node]:
        """What stands for the Fold's results."""
        parts, length = self.parts, self.parts.length
        places = {b: k for k, b in enumerate(parts.after)}
        inits = dict(parts.init)
        for leaf in self.sums:
            del parts.init[leaf], parts.after[leaf]
        ys = dict(parts.ys)
        parts.ys = {k: y for k, y in ys.items() if y not in self.outside}
        there = {y: k for k, y in parts.ys.items()}
        top = len(self.fold.results)
        for node in self.emitted:
            if node not in there:
                there[node] = top + len(there)
                parts.ys[there[node]] = node
        final, stack = parts.built()
        given: dict[Node, Stack] = {leaf: (arg, True) for leaf, arg in parts.xs.items()}
        given |= {leaf: (arg, False) for leaf, arg in parts.consts.items()}
        given |= {node: (stack[there[node]], True) for node in self.emitted}
        around = stacked(
            [n for n in self.order if n in self.outside or n not in self.steps], given, length
        )
        found = {places[b]: node for b, node in final.items()}
        if parts.structure.bounded:
            around |= self._ended(around)
        found |= {k: stack[k] if k in stack else around[y][0] for k, y in ys.items()}
        for leaf, terms in self.sums.items():
            addends = []
            for term in terms:
                node = term.factors[0]
                with provenance(node.origin, node.backward_of, node.where):
                    addends.append(self._summed(term, leaf, around))
            if not starts_at_zero(inits[leaf]):
                addends.insert(0, inits[leaf])
            found[places[leaf]] = total(addends)
        return found

    def _ended(self, around: Mapping[Node, Stack]) -> dict[Node, Stack]:
        """What stands outside of a bounded recurrence, and is not 0 by itself in steps left out."""
        bound = self.fold.bound
        assert bound is not None
        steps = arange(self.parts.length) < bound
        none = {*self.emitted}
        found: dict[Node, Stack] = {}
        for node in self.order:
            if node not in self.outside or not around[node][1]:
                continue
            if all(a in none or a not in self.steps for a in node.args) and _keeps_zero(node, none):
                none.add(node)
            else:
                x = around[node][0]
                flags = steps[(..., *[None] * (x.ndim - 1))]
                found[node] = Map((flags, x), _ENDED, x.shape, x.dtype), True
        return found

    def _summed(self, term: Term, leaf: Input, around: Mapping[Node, Stack]) -> Node:
        """A term, summed over all steps, in the carry's shape."""
        length = self.parts.length
        node = term.factors[0]
        if opens(term):
            args = [around[a] for a in node.args]
            made = (
                scattered(node, args, length, kept=False) if isinstance(node, Scatter)
                else with_steps(node, args, length, kept=False)
            )
            made = _stretched(made, leaf.shape)
        else:
            made = _over_steps([around[f] for f in term.factors], leaf.shape, length)
        return made if term.weight == 1 else map_node(term.weight * P[0], [made], leaf.dtype)


def _keeps_zero(node: Node, none: Collection[Node]) -> bool:
    """Whether a node is 0 where its arguments are that differ from step to step."""
    if isinstance(node, (Gather, Scatter)):
        return node.args[0] in none
    return isinstance(node, (Einsum, Reindex)) and (
        any(a in none for a in node.args) if isinstance(node, Einsum)
        else all(a in none for a in node.args)
    )


def _stretched(node: Node, shape: Shape) -> Node:
    """A node, repeated along axes that it lacks and along those of which it has one element."""
    if equal_shapes(node.shape, shape):
        return node
    labels = aligned(node.shape, shape, 1)
    return einsum_node((node,), (labels,), range(len(shape)), dict(enumerate(shape)))


def _over_steps(factors: Sequence[Stack], shape: Shape, length: Extent) -> Node:
    # out[i..] = sum_t a[t, i..] b[t, i..] ..      extents of one are stretched
    rank = len(shape)
    t = rank * (len(factors) + 2)
    args, labels = [], []
    for k, (arg, lifted) in enumerate(factors):
        own = aligned(arg.shape[1:] if lifted else arg.shape, shape, k + 1)
        args.append(arg)
        labels.append((t, *own) if lifted else own)
    return einsum_node(args, labels, range(rank), {**dict(enumerate(shape)), t: length})
