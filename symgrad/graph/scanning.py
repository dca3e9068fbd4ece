"""`scan`: a step, written on expressions, run along the leading axis of sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from symgrad.graph.checkpoints import chunk_length, in_chunks
from symgrad.graph.dims import Extent, same, show
from symgrad.graph.errors import DTypeError, ShapeError, SymgradError
from symgrad.graph.folds import Chain, Fold, binder, close, projections
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.provenance import provenance
from symgrad.graph.ragged import (
    check_rows,
    checked_lengths,
    kept,
    living,
    step_numbers,
    steps_alive,
    within,
)
from symgrad.graph.streams import as_flag, births, stepped
from symgrad.graph.structure import flatten, outline
from symgrad.graph.traversal import replace, toposort
from symgrad.graph.truncation import borders, check_truncate, cut


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    reverse: bool = False,
    truncate: int | None = None,
    lengths: Any = None,
    checkpoint: int | str | None = None,
) -> tuple[Any, Any]:
    """Run `step` along the leading axis of `xs`, carrying state.

        c[0] = init;   c[t+1], y[t] = step(c[t], x[t]),   t = 0 .. T-1

    Args:
        step:    (c, x) -> (next c, y); traced once. Outer nodes that it uses become constants of
            the body, computed once.
        init:    the carry: an expression, or tuples, lists and dicts of them. It keeps structure,
            shapes and dtypes across a step.
        xs:      sequences with one leading extent T, in any structure.
        reverse: start at x[T-1]; y[t] still belongs to x[t].
        truncate: gradients pass through at most this many steps: they are those of the graph that
            is cut before the steps k, 2k, 3k, .. of a row, in the order in which it is walked:
            stop_gradient stands around all float carries that enter these steps. The init is never
            cut off, nor is the final carry; with k >= T nothing is. Values do not change.
        lengths: integers (B,), in 0..T: how long each row is of xs (T, B, ...), with a carry
            (B, ...) and ys (T, B, ...). Behind the end of a row its carry stays, its ys are zero
            and its xs are not read; reversed, a row starts at its own end. See `ragged`. Programs
            for the CPU compute nothing for padding, in whichever order lengths come.
        checkpoint: derivatives keep the carry at every so many steps only, and compute the steps
            between once more: memory for T/k + k steps instead of T, for one more forward pass.
            "sqrt" chooses k = sqrt(T), rounded up. A size, "64 MB" or "1.5 GiB", is a budget: so
            many bytes of the steps derivatives may keep at once. A compiled program then chooses k
            when values arrive: nothing is computed again where everything fits, else chunks are
            about as long as the budget allows. Recurrences of one length with the same budget
            share it. Sequences, ys and their gradients are not counted. See `checkpoints`.
    Returns: the final carry, and y stacked along a new leading axis (T, ...), in the structures
        that `step` returns.
    Raises: ShapeError, DTypeError when a step changes the carry, or sequences differ in length.
        Lengths that are out of range are a DataError, and a budget that cannot be met is a
        DataShapeError with the least that can: when called, where only data tell.
    Cotangent: a Fold in reverse time; residual c[t]. Werbos 1990.

    >>> import symgrad as sg
    >>> c, ys = sg.scan(lambda c, x: (0.5 * c + x,) * 2, sg.constant(0.0), sg.constant([1.0, 1.0]))
    >>> c.shape, ys.shape
    ((), (2,))
    """
    every = check_truncate(truncate)
    as_flag("scan: reverse", reverse)
    if not callable(step):
        raise SymgradError(
            "scan: the step must be a function (carry, x) -> (carry, y), "
            f"got {type(step).__name__}."
        )
    start, carry_of = flatten(init, "scan: init")
    sequences, element_of = flatten(xs, "scan: xs")
    length = _length(sequences)
    chunk = chunk_length(checkpoint, length)
    carry = [binder(name, n.shape, n.dtype) for name, n in _named(init, start, "carry")]
    elements = [binder(name, n.shape[1:], n.dtype) for name, n in _named(xs, sequences, "x")]
    rows = None if lengths is None else checked_lengths(lengths, sequences, start)
    marks = _Marks(length, reverse, every, rows)
    sequences = [*(marks.within(x) for x in sequences), *marks.sequences]
    first = births()
    result = step(carry_of(marks.entering(carry)), element_of(elements))
    if not isinstance(result, tuple) or len(result) != 2 or result[1] is None:
        got = outline(result)
        raise SymgradError(
            f"scan: the step must return (carry, y), got {got}. Return () as y where there is none."
        )
    _check_structure(init, result[0])
    after, rebuild_after = flatten(_in_order(init, result[0]), "scan: the step's carry")
    outputs, rebuild_ys = flatten(result[1], "scan: the step's y")
    _check_carry(init, start, after)
    with provenance("scan"):
        leaving = marks.leaving(after, carry), marks.emitted(outputs)
        inner, drawn = _per_step([*leaving[0], *leaving[1]], first, length)
    elements += [*marks.flags, *(leaf for leaf, _ in drawn)]
    sequences += [values for _, values in drawn]
    body, outer = close(carry, elements, inner)
    with provenance("scan"):
        bounded = rows is not None and chunk is None
        if rows is not None and bounded:
            body, outer = _bounded(body, outer, steps_alive(rows), len(carry) + len(elements))
        structure = Chain(length, reverse, bounded=bounded)
        fold = Fold(
            (*start, *sequences, *outer), body, structure, len(carry), len(elements)
        )
        found = projections(fold) if chunk is None else in_chunks(fold, chunk)
    return rebuild_after(found[: len(carry)]), rebuild_ys(found[len(carry) :])


def _bounded(
    body: Graph, outer: tuple[Node, ...], bound: Node, place: int
) -> tuple[Graph, tuple[Node, ...]]:
    """A body whose first constant tells how many steps do anything."""
    leaf = binder("steps", (), bound.dtype)
    inputs = (*body.inputs[:place], leaf, *body.inputs[place:])
    return Graph(inputs, body.outputs), (bound, *outer)


def _per_step(
    outputs: Sequence[Node], first: int, length: Extent
) -> tuple[list[Node], list[tuple[Input, Node]]]:
    """Outputs of a step that draws anew in every step: streams born in it become sequences.

    What is drawn outside and used in the step stays the same in all steps.
    """
    streams = [n for n in toposort(outputs) if isinstance(n, Input) and n.kind == "random"]
    own = [s for s in streams if s.init >= first]
    leaves = [binder(s.name, (), s.dtype) for s in own]
    drawn: dict[Node, Node] = dict(zip(own, leaves, strict=True))
    found = replace(outputs, drawn) if drawn else list(outputs)
    return found, [(leaf, stepped(s, length)) for s, leaf in zip(own, leaves, strict=True)]


class _Marks:
    """Flags that tell each step of a recurrence which rows live, and which carries are cut.

    Fields:
        sequences: the flags of all steps.
        flags:     those of one step, binders.
    """

    def __init__(self, steps: Extent, reverse: bool, every: int | None, rows: Node | None) -> None:
        found: dict[str, Node] = {}
        with provenance("scan"):
            if rows is not None:
                found["live"] = living(rows, steps)
            if every is not None:
                found["cut"] = borders(step_numbers(steps, reverse, rows), every)
        self.rows = rows
        self.sequences = list(found.values())
        self.known = dict(zip(found, self.sequences, strict=True))
        self.now = {name: binder(name, x.shape[1:], x.dtype) for name, x in found.items()}
        self.flags = list(self.now.values())

    def within(self, x: Node) -> Node:
        """A sequence, without what stands behind the ends of its rows."""
        with provenance("scan"):
            return within(self.known["live"], x) if self.rows is not None else x

    def entering(self, carry: Sequence[Node]) -> list[Node]:
        """The carry that a step gets."""
        return cut(self.now["cut"], carry) if "cut" in self.now else list(carry)

    def leaving(self, after: Sequence[Node], before: Sequence[Node]) -> list[Node]:
        """The next carry."""
        if self.rows is None:
            return list(after)
        return [kept(self.now["live"], a, b) for a, b in zip(after, before, strict=True)]

    def emitted(self, ys: Sequence[Node]) -> list[Node]:
        """What a step emits."""
        if self.rows is None:
            return list(ys)
        for y in ys:
            check_rows("what a step emits", 0, y, self.rows)
        return [within(self.now["live"], y) for y in ys]


def _named(structure: Any, nodes: Sequence[Node], alone: str) -> Iterator[tuple[str, Node]]:
    """Names of the binders: the keys and positions of the nodes, `carry0` without a key."""
    for path, node in zip(_paths(structure), nodes, strict=True):
        key = path.replace("[", "").replace("]", "")
        yield alone + key if not key or key[0].isdigit() else key, node


def _length(sequences: Sequence[Node]) -> Extent:
    """The common leading extent."""
    if not sequences:
        raise ShapeError("scan: xs holds no sequence, so nothing tells how many steps there are.")
    for node in sequences:
        if node.ndim == 0:
            raise ShapeError(
                f"scan: a sequence needs a leading axis\n  {describe(node)}\n"
                "  Give xs of shape (T, ...)."
            )
    first = sequences[0]
    for node in sequences[1:]:
        if same(first.shape[0], node.shape[0]) is False:
            raise ShapeError(
                f"scan: sequences differ in length: {first.shape[0]} and {node.shape[0]}\n"
                f"  {describe(first)}\n  {describe(node)}\n  All xs have one leading extent T."
            )
    return first.shape[0]


def _check_structure(before: Any, after: Any) -> None:
    if outline(before) != outline(after):
        raise SymgradError(
            f"scan: the carry changes its structure in one step\n  carry in   {outline(before)}\n"
            f"  carry out  {outline(after)}\n  The step must return the carry as it got it."
        )


def _in_order(before: Any, after: Any) -> Any:
    """The same structure, the keys of its dicts in the order that they had before."""
    if isinstance(before, Mapping):
        return {key: _in_order(before[key], after[key]) for key in before}
    if isinstance(before, (tuple, list)):
        inner = [_in_order(a, b) for a, b in zip(before, after, strict=True)]
        return type(after)(*inner) if hasattr(after, "_fields") else type(after)(inner)
    return after


def _check_carry(init: Any, before: Sequence[Node], after: Sequence[Node]) -> None:
    for path, a, b in zip(_paths(init), before, after, strict=True):
        name = f"carry {path!r}" if path else "the carry"
        fits = a.ndim == b.ndim and all(
            same(x, y) is not False for x, y in zip(a.shape, b.shape, strict=True)
        )
        if fits and a.dtype == b.dtype:
            continue
        kind, what = (ShapeError, "shape") if not fits else (DTypeError, "dtype")
        got = [f"{n.dtype} {show(n.shape)}" for n in (a, b)]
        wide = max(map(len, got))
        raise kind(
            f"scan: {name} changes {what} in one step\n"
            f"  carry in   {got[0]:<{wide}}   init         {a.where or ''}\n"
            f"  carry out  {got[1]:<{wide}}   step result  {b.where or ''}\n"
            f"  The carry must keep shape and dtype. {_hint(a, b, fits)}"
        )


def _hint(before: Node, after: Node, fits: bool) -> str:
    if fits:
        return f"Cast in the step: astype(c, '{before.dtype}'), or start from {after.dtype}."
    if after.ndim > before.ndim:
        for axis in range(after.ndim):
            rest = (*after.shape[:axis], *after.shape[axis + 1 :])
            if len(rest) == before.ndim and all(map(same, rest, before.shape)):
                return f"Sum or slice away axis {axis} in the step."
    return "Start from an init of the step's shape, or reshape in the step."


def _paths(structure: Any, path: str = "") -> Iterator[str]:
    """A name for each expression of a structure: keys and positions."""
    if isinstance(structure, Mapping):
        for key, value in structure.items():
            yield from _paths(value, f"{path}.{key}" if path else str(key))
    elif isinstance(structure, (tuple, list)):
        for k, value in enumerate(structure):
            yield from _paths(value, f"{path}[{k}]")
    else:
        yield path
