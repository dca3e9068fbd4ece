"""Rules of moves and sums: how forms pass through Einsum, Reindex, Gather and Scatter.

A move of a product is the product of the moved factors. A sum over exponentials is shifted by the
largest exponent, and what does not vary along the sum is taken out of it:

    sum_k c w_k e^(x_k + s) = c A e^(s + m),   A = sum_k w_k e^(x_k - m),   m = max_k x_k
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from symgrad.calculus import stability_forms as fm
from symgrad.calculus.building import is_extent_one
from symgrad.calculus.stability_building import Builder, fitted, moved
from symgrad.calculus.stability_forms import Form, Summed, Value
from symgrad.calculus.stability_scalars import buildable
from symgrad.graph.nodes import (
    Einsum,
    Gather,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
    einsum_node,
    is_reshape,
)

ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Read:
    """A value that was read by a Gather or a slice: by which, and from what."""

    node: Gather | Reindex
    source: Value


@dataclass(slots=True)
class Outcome:
    """A form for a node; `rule` where the node must be built from it."""

    form: Form | None
    rule: str | None = None


class Moves:
    """What is known of sums and reads."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.sums: dict[Value, Summed] = {}
        self.reads: dict[Value, Read] = {}

    def each(self, form: Form, move: Callable[[Value], Value]) -> Form | None:
        """A form with every value in it moved; None where its ratio is beyond this algebra then.

        Two values may be one when they are moved, as x and max x are over an axis of one.
        """

        def all_of(parts: Mapping[Value, Fraction]) -> dict[Value, Fraction]:
            found: dict[Value, Fraction] = {}
            for v, c in parts.items():
                found = fm.combined(found, {v if v.inline is not None else move(v): ONE}, c)
            return found

        powers = all_of({v: Fraction(k) for v, k in form.factors.items()})
        base = all_of(form.base)
        if form.ratio is not None and not base:
            return None
        return fm.settled(Form(
            form.number, {v: int(k) for v, k in powers.items()}, all_of(form.exponent),
            form.ratio, base,
        ))  # fmt: skip

    # -- Einsum ----------------------------------------------------------------------------------
    def einsum(self, node: Einsum, args: Sequence[Value]) -> Outcome:
        """Broadcasts and transposes move forms; sums shift exponentials."""
        if len(args) == 1 and not node.summed:
            # forms are aligned to the right: axes of one in front say nothing
            lead = node.ndim - args[0].node.ndim if args[0].made is not None else 0
            grown = lead > 0 and node.shape[lead:] == args[0].node.shape
            if args[0].form.is_number or (
                grown and node.out[lead:] == node.labels[0] and all(
                    is_extent_one(e) for e in node.shape[:lead]
                )
            ):
                return Outcome(args[0].form)
        if all(a.form.plain for a in args):
            return Outcome(None)
        summed = [k for k in node.summed if not is_extent_one(node.extents[k])]
        if any(type(e) is int and e == 0 for e in node.extents):
            return Outcome(None)  # nothing is summed, and nothing is the largest
        return self._sum(node, args, summed) if summed else self._spread(node, args)

    def _spread(self, node: Einsum, args: Sequence[Value]) -> Outcome:
        # a product that sums nothing: each operand is moved to the labels of the result
        total, rule = Form(), None
        for arg, labels in zip(args, node.labels, strict=True):
            form = self.each(arg.form, lambda v, own=labels: self._moved(v, own, node.out))  # type: ignore[misc]
            made = None if form is None else fm.product(total, form)
            if form is None or made is None:
                return Outcome(None)
            if fm.fights(total, form) and buildable(made):
                rule = "exponentials"
            total = made
        return Outcome(total, rule)

    def _moved(self, value: Value, labels: Sequence[int], out: Sequence[int]) -> Value:
        found = self.builder.wrap(moved(value.node, labels, out))
        found.degree = value.degree
        return found

    def _sum(self, node: Einsum, args: Sequence[Value], summed: Sequence[int]) -> Outcome:
        dtype = node.dtype
        outside, rule = Form(), None
        inside: list[Node] = []
        alone = len(args) == 1
        for arg, labels in zip(args, node.labels, strict=True):
            form = arg.form
            if form.plain or form.ratio is not None:
                inside.append(arg.node)
                continue

            def varies(value: Value, own: Sequence[int] = labels) -> bool:
                if value.inline is not None:
                    return False
                place = own[len(own) - value.node.ndim :]
                return any(
                    k in summed and not is_extent_one(e)
                    for k, e in zip(place, value.node.shape, strict=True)
                )

            along = {v: c for v, c in form.exponent.items() if varies(v)}
            apart = {v: c for v, c in form.exponent.items() if v not in along}
            if along and _is_shifted(self.builder, along, apart):
                known = self._narrow_sum(node, [a.node for a in args])
                return Outcome(Form(factors={known: 1}))
            kept = {v: k for v, k in form.factors.items() if varies(v) or not alone}
            taken = Form(
                form.number if alone else ONE,
                {v: k for v, k in form.factors.items() if v not in kept},
                apart,
            )
            moved_out = self.each(taken, lambda v, own=labels: self._moved(v, own, node.out))  # type: ignore[misc]
            assert moved_out is not None  # there is no ratio in it
            taken = moved_out
            left = Form(ONE if alone else form.number, kept)
            if along:
                x = self.builder.combination(along, dtype)
                place = labels[len(labels) - x.ndim :]
                axes = tuple(
                    a for a, k in enumerate(place) if k in summed and not is_extent_one(x.shape[a])
                )
                e, narrow = self.builder.shift(x, axes)
                rest = [k for a, k in enumerate(place) if a not in axes]
                m = self.builder.wrap(moved(narrow, rest, node.out))
                m.degree = fm.height(along)
                taken = Form(
                    taken.number, taken.factors, fm.combined(taken.exponent, {m: ONE}, ONE)
                )
                if left.factors or left.number != 1:
                    scaled = fm.product(left, Form(factors={self.builder.wrap(e): 1}))
                    assert scaled is not None
                    e = self.builder.product(scaled, dtype)
            else:
                e = self.builder.product(left, dtype)
            if fm.fights(outside, taken):
                rule = "exponentials"
            whole = fm.product(outside, taken)
            if whole is None:
                return Outcome(None)
            outside = whole
            inside.append(fitted(e, arg.node.shape) if e.shape != arg.node.shape else e)
        if not outside.exponent:
            return Outcome(None)
        core = self._narrow_sum(node, inside)
        result = fm.product(outside, Form(factors={core: 1}))
        return Outcome(result, rule if result is not None else None)

    def _narrow_sum(self, node: Einsum, inside: Sequence[Node]) -> Value:
        """The sum without the axes of one of `keepdims`, then with them: known by one name."""
        present = {k for group in node.labels for k in group}
        out = [k for k in node.out if k in present]
        core = einsum_node(inside, node.labels, out, dict(enumerate(node.extents)))
        wide = [k for k in node.out if k not in present and not is_extent_one(node.extents[k])]
        if wide:
            return self.builder.wrap(core if tuple(out) == node.out else einsum_node(
                inside, node.labels, node.out, dict(enumerate(node.extents))
            ))
        return self.builder.wrap(moved(core, out, node.out))

    # -- reads and their adjoints ----------------------------------------------------------------
    def read(self, node: Gather | Reindex, args: Sequence[Value], made: Sequence[Node]) -> Outcome:
        """A slice, a reshape or a Gather of a product is the product of those of its factors."""
        source = args[0]
        if source.form.plain or (isinstance(node, Reindex) and not _covers(node)):
            return Outcome(None)
        shape = node.args[0].shape

        def move(value: Value) -> Value:
            whole = fitted(value.node, shape)
            found = self.builder.wrap(node.with_args((whole, *made[1:])))
            found.degree = value.degree
            self.reads.setdefault(found, Read(node, value))
            return found

        return Outcome(self.each(source.form, move))

    def write(
        self, node: Scatter | Reindex, args: Sequence[Value], made: Sequence[Node]
    ) -> Outcome:
        """What the updates have from reading at the same places is taken out of a Scatter or a pad.

        scatter(u * gather(a)) = scatter(u) * a
        """
        form = args[0].form
        if form.plain or (len(args) > 1 and isinstance(node, Reindex)):
            return Outcome(None)
        back = {v: r.source for v in (*form.factors, *form.exponent, *form.base)
                if (r := self.reads.get(v)) is not None and _undoes(node, r.node)}
        if not form.exponent or any(v not in back for v in (*form.exponent, *form.base)):
            return Outcome(None)
        inner = Form(form.number, {v: k for v, k in form.factors.items() if v not in back})
        outer = Form(
            ONE, {back[v]: k for v, k in form.factors.items() if v in back},
            {back[v]: c for v, c in form.exponent.items()}, form.ratio,
            {back[v]: c for v, c in form.base.items()},
        )
        updates = fitted(self.builder.product(inner, node.dtype), node.args[0].shape)
        core = node.with_args((updates, *made[1:]))
        return Outcome(fm.product(outer, Form(factors={self.builder.wrap(core): 1})))


def _covers(node: Reindex) -> bool:
    """Whether one piece fills the result, so that no zeros stand beside it."""
    return len(node.pieces) == 1 and (is_reshape(node) or node.pieces[0].count == node.shape)


def _undoes(node: Scatter | Reindex, read: Gather | Reindex) -> bool:
    """Whether a Scatter or a pad writes to where a read has read from."""
    if isinstance(node, Scatter) and isinstance(read, Gather):
        return (
            node.shape == read.args[0].shape
            and node.update_labels == read.out
            and node.target_axes == read.source_axes
            and node.index_labels == read.index_labels
            and node.wrap == read.wrap
            and all(a is b for a, b in zip(node.args[1:], read.args[1:], strict=True))
        )
    if isinstance(node, Reindex) and isinstance(read, Reindex):
        if len(node.pieces) != 1 or node.shape != read.args[0].shape:
            return False
        a, b = node.pieces[0], read.pieces[0]
        return _places(a.offset, a.stride, a.count) == _places(b.start, b.step, b.count) and (
            _places(a.start, a.step, a.view) == _places(b.offset, b.stride, read.shape)
        )
    return False


def _places(*parts: Sequence[object]) -> tuple[tuple[object, ...], ...]:
    return tuple(tuple(p) for p in parts)


def _is_shifted(
    builder: Builder, along: Mapping[Value, Fraction], apart: Mapping[Value, Fraction]
) -> bool:
    """Whether the largest of an exponent has been subtracted from it already."""
    for value, c in apart.items():
        source = None if value.inline is not None else _largest_of(value.node)
        known = None if source is None else builder.wrapped.get(source)
        if known is not None and fm.times(fm.linear(known), -c) == dict(along):
            return True
    return False


def _largest_of(node: Node) -> Node | None:
    """The x where a node is max x, moved, or under `stop_gradient`."""
    for _ in range(8):
        if isinstance(node, Reduce):
            return node.args[0] if node.op == "max" else None
        single = len(node.args) == 1
        moving = isinstance(node, Reindex) or (isinstance(node, Einsum) and single)
        named = isinstance(node, Map) and "stop_gradient" in str(node.body)
        if not (single and (moving or named)):
            return None
        node = node.args[0]
    return None


