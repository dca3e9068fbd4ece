"""Graphs as text: one let-line per node, with the formula, what it reads, and the user's line.

    graph (x: f32[B,3], W: f32[3,5]) -> %2
      %1 = einsum 'bi,ij->bj' x W      # model.py:3
      %2 = map tanh(p0)  %1[b,j]       # model.py:3

Axes have letters that travel along the graph: an axis keeps its letter from the node that made it
to all that read it, as far as no two axes of one node would share one.

A recurrence is followed by its step, indented; what the step reads whole keeps its outer name:

      %1 = fold over T  c = h0; x = xs[t]
        %1.1 = einsum 'bi,ij->bj'  c W
        %1.2 = map tanh(p0 + p1)  %1.1[b,j] x[b,j]
        next c = %1.2; y0 = %1.2
      %2 = last c of %1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from symgrad.graph import dims as dm
from symgrad.graph.dims import Dim, Extent, printable
from symgrad.graph.dtypes import SHORT
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import (
    RUNNING,
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    is_reshape,
)
from symgrad.graph.operators import verb

LINES = 200
"""`str(expr)` shows this many lines and says how many more there are."""
_POOL = "ijklmnopqrstuvwxyzabcdefgh"


def text_of(graph: Graph, lines: int | None = None) -> str:
    """A graph as text.

    Args:
        graph: any graph.
        lines: how many let-lines at most.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (dm.dim("B"), 3))
    >>> print(text_of(Graph.of([x.T + 1.0])))
    graph (x: f32[B,3]) -> %2
      %1 = einsum 'bi->ib'  x       # ...
      %2 = map p0 + p1  %1[i,b] 1.0 # ...
    """
    names = references(graph)
    leaves = ", ".join(f"{names[leaf]}: {typed(leaf)}" for leaf in graph.inputs)
    results = ", ".join(names[o] for o in graph.outputs)
    rows = list(_rows(graph, names, "  "))
    hidden = 0 if lines is None else max(0, len(rows) - lines)
    rows = rows[: len(rows) - hidden]
    head = f"graph ({leaves}) -> {results}"
    if not rows:
        return head
    column = min(max(len(line) for line, _ in rows), 72)
    shown = [f"{line:<{column}}  # {comment}" if comment else line for line, comment in rows]
    return "\n".join([head, *shown, *([f"  .. {hidden} more"] if hidden else [])])


def _rows(graph: Graph, names: dict[Node, str], margin: str) -> Iterator[tuple[str, str]]:
    """Let-lines with their comments; the step of a recurrence follows it, indented."""
    letters = axis_letters(graph)
    lets = [n for n in graph.nodes if not isinstance(n, (Input, Constant))]
    wide = max((len(names[n]) for n in lets), default=0)
    for node in lets:
        yield f"{margin}{names[node]:<{wide}} = {formula(node, names, letters)}", _comment(node)
        if isinstance(node, Fold):
            inner = step_names(node, names)
            yield from _rows(node.body, inner, margin + "  ")
            after = [f"next {inner[b]} = {inner[n]}" for b, n in _carried(node)]
            ys = node.body.outputs[node.carries :]
            after += [f"y{k} = {inner[y]}" for k, y in enumerate(ys)]
            yield f"{margin}  {'; '.join(after)}", ""


@verb
def text(e: Node | Sequence[Node]) -> str:
    """An expression, or several, as let-lines; what `str` and `print` show."""
    outputs = [e] if isinstance(e, Node) else list(e)
    graph = Graph(_leaves(outputs), tuple(outputs))
    return text_of(graph, LINES)


def _leaves(outputs: Sequence[Node]) -> tuple[Input, ...]:
    from symgrad.graph.traversal import toposort

    return tuple(n for n in toposort(outputs) if isinstance(n, Input))


def typed(node: Node) -> str:
    """Dtype and shape: `f32[B,64]`."""
    extents = ",".join(printable(str(e)) for e in node.shape)
    return SHORT[node.dtype] + (f"[{extents}]" if node.shape else "")


def step_names(fold: Fold, names: dict[Node, str]) -> dict[Node, str]:
    """What the nodes of a step are called: constants as around the recurrence, others by number."""
    carry, elements, consts = fold.binders
    given: dict[Node, str] = {b: names[a] for b, a in zip(consts, fold.consts, strict=True)}
    taken = set(names.values())
    for leaf in (*carry, *elements):
        name = quoted(leaf.name)
        while name in taken:
            name += "'"
        taken.add(name)
        given[leaf] = name
    return references(fold.body, f"{names[fold]}.", given)


def _carried(fold: Fold) -> Iterator[tuple[Input, Node]]:
    return zip(fold.binders[0], fold.body.outputs, strict=False)


def references(
    graph: Graph, prefix: str = "%", given: Mapping[Node, str] | None = None
) -> dict[Node, str]:
    """What a node is called: a leaf by its name, a literal by its value, others by number."""
    names: dict[Node, str] = dict(given or {})
    number = 0
    for node in graph.nodes:
        if isinstance(node, Input):
            name = quoted(node.name)
            while node.is_supplied and name in names.values():
                name += "'"
            names.setdefault(node, name)
        elif isinstance(node, Constant):
            names[node] = literal(node)
        else:
            number += 1
            names[node] = f"{prefix}{number}"
    return names


def quoted(name: str) -> str:
    """A name as it is when it is an identifier, else quoted on one line."""
    if name.isidentifier() and name.isprintable():
        return name
    inner = name.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + printable(inner) + '"'


def literal(node: Constant) -> str:
    """The value of a scalar; of an array its type and first elements."""
    if not node.shape:
        return str(node.value[()])
    flat = node.value.ravel()
    shown = ", ".join(str(v) for v in flat[:4])
    return f"{typed(node)}{{{shown}{', ..' if flat.size > 4 else ''}}}"


# -- letters --------------------------------------------------------------------------------------
class _Letters:
    """Fresh letters, in turn, so that axes made near each other differ."""

    def __init__(self) -> None:
        self.turn = 0

    def fresh(self, extent: Extent, taken: set[str]) -> str:
        """The letter of a dim's name when it is free, else the next of the pool."""
        if isinstance(extent, Dim) and extent.name[:1].isascii() and extent.name[:1].isalpha():
            wish: str = extent.name[0].lower()
            if wish not in taken:
                return wish
        for k in range(len(_POOL)):
            letter = _POOL[(self.turn + k) % len(_POOL)]
            if letter not in taken:
                self.turn = (self.turn + k + 1) % 12
                return letter
        return f"a{len(taken)}"


def axis_letters(graph: Graph) -> dict[Node, tuple[str, ...]]:
    """A letter for each axis of each node."""
    known: dict[Node, tuple[str, ...]] = {}
    source = _Letters()
    for node in graph.nodes:
        if not isinstance(node, (Input, Constant)):
            known[node] = _named_axes(node, known, source)
    for leaf in graph.nodes:
        if leaf not in known:
            known[leaf] = _all_fresh(leaf.shape, source)
    return known


def _all_fresh(shape: dm.Shape, source: _Letters) -> tuple[str, ...]:
    taken: list[str] = []
    for extent in shape:
        taken.append(source.fresh(extent, set(taken)))
    return tuple(taken)


def _named_axes(
    node: Node, known: dict[Node, tuple[str, ...]], source: _Letters
) -> tuple[str, ...]:
    """The letters of a node's axes; those of its leaves are settled on the way."""
    by_label: dict[int, str] = {}
    extents: dict[int, Extent] = {}
    for labels, arg in labelled(node):
        for axis, label in enumerate(labels):
            if label < 0:
                continue
            extents.setdefault(label, arg.shape[axis])
            if arg in known and label not in by_label:
                letter = known[arg][axis]
                if letter not in by_label.values():
                    by_label[label] = letter
    out = out_labels(node)
    for axis, label in enumerate(out):
        extents.setdefault(label, node.shape[axis])
    for label, extent in extents.items():
        if label not in by_label:
            by_label[label] = source.fresh(extent, set(by_label.values()))
    for labels, arg in labelled(node):
        if arg not in known and isinstance(arg, (Input, Constant)) and all(k >= 0 for k in labels):
            known[arg] = tuple(by_label[k] for k in labels)
    return tuple(by_label[k] for k in out)


def labelled(node: Node) -> Iterator[tuple[tuple[int, ...], Node]]:
    """For each argument the labels of its axes, negative where an axis has none."""
    if isinstance(node, Map):
        rank = node.ndim
        for arg in node.args:
            first = rank - arg.ndim
            yield (
                tuple(
                    first + k if dm.same(e, node.shape[first + k]) is not False else -1
                    for k, e in enumerate(arg.shape)
                ),
                arg,
            )
    elif isinstance(node, Einsum):
        yield from zip(node.labels, node.args, strict=True)
    elif isinstance(node, Reduce):
        yield tuple(range(node.args[0].ndim)), node.args[0]
    elif isinstance(node, Gather):
        yield node.source_axes, node.args[0]
        yield from zip(node.index_labels, node.args[1:], strict=True)
    elif isinstance(node, Scatter):
        yield node.update_labels, node.args[0]
        yield from zip(node.index_labels, node.args[1:], strict=True)
    elif isinstance(node, Reindex):
        for piece, arg in zip(node.pieces, node.args, strict=True):
            same_rank = len(piece.view) == arg.ndim
            yield (
                tuple(
                    k if same_rank and dm.same(e, node.shape[k]) is True else -1
                    for k, e in enumerate(arg.shape)
                ),
                arg,
            )


def out_labels(node: Node) -> tuple[int, ...]:
    """The labels of a node's own axes, as `labelled` numbers them."""
    if isinstance(node, (Einsum, Gather)):
        return node.out
    if isinstance(node, Reduce) and node.op not in RUNNING:
        return tuple(k for k in range(node.args[0].ndim) if k not in node.axes)
    if isinstance(node, Scatter):
        top = 1 + max(
            (k for own in (node.update_labels, *node.index_labels) for k in own), default=0
        )
        return tuple(k if k >= 0 else top + axis for axis, k in enumerate(node.target_axes))
    return tuple(range(node.ndim))


# -- formulas -------------------------------------------------------------------------------------
def formula(node: Node, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    """What a node computes, from its arguments' names."""
    return _FORMULAS[type(node)](node, names, letters)


def spec(node: Einsum, letters: dict[Node, tuple[str, ...]]) -> str:
    """An Einsum's labels in letters: `bi,ij->bj`."""
    by_label = dict(zip(node.out, letters[node], strict=True))
    for own, arg in zip(node.labels, node.args, strict=True):
        for label, letter in zip(own, letters.get(arg, ()), strict=False):
            if label not in by_label and letter not in by_label.values():
                by_label[label] = letter
    source = _Letters()
    for label, extent in enumerate(node.extents):
        if label not in by_label:
            by_label[label] = source.fresh(extent, set(by_label.values()))
    groups = ",".join("".join(by_label[k] for k in own) for own in node.labels)
    return f"{groups}->{''.join(by_label[k] for k in node.out)}"


def _einsum(node: Einsum, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    new = [k for k in node.out if not any(k in own for own in node.labels)]
    wide = f"  to {typed(node)}" if new else ""
    return f"einsum {spec(node, letters)!r}  {' '.join(names[a] for a in node.args)}{wide}"


def _map(node: Map, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    own = letters[node]
    reads: list[str] = []
    for labels, arg in labelled(node):
        axes = ",".join(own[k] if k >= 0 else "0" for k in labels)
        reads.append(names[arg] + (f"[{axes}]" if axes else ""))
    letter_of = {f"i{k}": letter for k, letter in enumerate(own)}
    body = printable(str(node.body))
    used = [k for k in letter_of if k in {s.name for s in node.body.free_symbols}]
    suffix = f"  with {', '.join(f'{k}={letter_of[k]}' for k in used)}" if used else ""
    wide = f"  to {typed(node)}" if not node.args else ""
    return f"map {body}  {' '.join(reads)}".rstrip() + suffix + wide


def _reduce(node: Reduce, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    (arg,) = node.args
    own = dict(zip(out_labels(node), letters[node], strict=True))
    source = _Letters()
    for k, letter in enumerate(letters.get(arg, ())):
        if k not in own and letter not in own.values():
            own[k] = letter
    for k, extent in enumerate(arg.shape):
        if k not in own:
            own[k] = source.fresh(extent, set(own.values()))
    over = ",".join(own[a] for a in node.axes)
    return f"{node.op} over {over}  {names[arg]}[{','.join(own[k] for k in range(arg.ndim))}]"


def _indexed(
    axes: Sequence[int],
    index_labels: Sequence[Sequence[int]],
    indices: Sequence[Node],
    letter: Callable[[int], str],
    names: dict[Node, str],
) -> str:
    pieces: list[str] = []
    for k in axes:
        if k >= 0:
            pieces.append(letter(k))
        else:
            inner = ",".join(letter(label) for label in index_labels[~k])
            pieces.append(names[indices[~k]] + (f"[{inner}]" if inner else ""))
    return ",".join(pieces)


def _gather(node: Gather, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    own = dict(zip(node.out, letters[node], strict=True))
    source, *indices = node.args
    inner = _indexed(node.source_axes, node.index_labels, indices, own.__getitem__, names)
    return f"gather '{''.join(letters[node])}'  {names[source]}[{inner}]"


def _scatter(node: Scatter, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    own = dict(zip(out_labels(node), letters[node], strict=True))
    fresh = _Letters()
    groups = (
        (node.update_labels, node.args[0]),
        *zip(node.index_labels, node.args[1:], strict=True),
    )
    for labels, arg in groups:
        for k, extent in zip(labels, arg.shape, strict=True):
            if k not in own:
                own[k] = fresh.fresh(extent, set(own.values()))
    updates, *indices = node.args
    target = _indexed(node.target_axes, node.index_labels, indices, own.__getitem__, names)
    read = ",".join(own[k] for k in node.update_labels)
    return f"scatter [{target}] += {names[updates]}[{read}]  to {typed(node)}"


def _reindex(node: Reindex, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    if is_reshape(node):
        return f"reshape  {names[node.args[0]]}  to {typed(node)}"
    moves = [
        f"[{_range(p.offset, p.stride, p.count)}] = {names[a]}{_read(p, a)}"
        for p, a in zip(node.pieces[:8], node.args, strict=False)
    ]
    more = f"; .. {len(node.pieces) - 8} more" if len(node.pieces) > 8 else ""
    return f"move {'; '.join(moves)}{more}  to {typed(node)}"


def _read(piece: Piece, arg: Node) -> str:
    view = "" if piece.view == arg.shape else f".reshape{dm.show(piece.view)}"
    return f"{view}[{_range(piece.start, piece.step, piece.count)}]"


def _range(start: dm.Shape, step: tuple[int, ...], count: dm.Shape) -> str:
    return ", ".join(
        f"{printable(str(a))}:{printable(str(a + s * n))}" + (f":{s}" if s != 1 else "")
        for a, s, n in zip(start, step, count, strict=True)
    )


def _fold(node: Fold, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    inner = step_names(node, names)
    carry, elements, _ = node.binders
    given = [f"{inner[b]} = {names[a]}" for b, a in zip(carry, node.init, strict=True)]
    given += [f"{inner[b]} = {names[a]}[t]" for b, a in zip(elements, node.xs, strict=True)]
    back = ", last first" if node.structure.reverse else ""
    back += ", checkpoints" if node.structure.checkpoint else ""
    back += ", bounded" if node.structure.bounded else ""
    back += ", its own rows" if node.structure.rows is not None else ""
    return f"fold over {printable(str(node.structure.length))}{back}  {'; '.join(given)}"


def _proj(node: Proj, names: dict[Node, str], letters: dict[Node, tuple[str, ...]]) -> str:
    (fold,) = node.args
    assert isinstance(fold, Fold)
    if node.place >= fold.carries:
        return f"all y{node.place - fold.carries} of {names[fold]}"
    return f"last {step_names(fold, names)[fold.binders[0][node.place]]} of {names[fold]}"


def _comment(node: Node) -> str:
    primal = "" if node.backward_of is None else "backward"
    parts = [str(node.where) if node.where is not None else "", node.origin or "", primal]
    return printable("  ".join(p for p in parts if p))


_FORMULAS: dict[type[Node], Callable[[Any, dict[Node, str], dict[Node, tuple[str, ...]]], str]] = {
    Einsum: _einsum,
    Map: _map,
    Reduce: _reduce,
    Gather: _gather,
    Scatter: _scatter,
    Reindex: _reindex,
    Fold: _fold,
    Proj: _proj,
}
