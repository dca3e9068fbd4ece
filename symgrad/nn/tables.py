"""What a model is made of and what it costs: a table of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

import sympy

from symgrad.calculus.costs import Cost, cost
from symgrad.diagram.layers import structure_of
from symgrad.graph.dims import Dim, Shape, printable, show, size
from symgrad.graph.errors import LeafError
from symgrad.graph.folds import Proj
from symgrad.graph.leaves import parameters
from symgrad.graph.nodes import Constant, Input, Node
from symgrad.graph.traversal import reconnect, toposort
from symgrad.nn.layers import Layer, Sequential

Count: TypeAlias = int | sympy.Expr


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Fields:
        name:       of the layer or the verb.
        shape:      of what it returns.
        parameters: numbers that are learned and that no row above has counted.
        flops:      scalar operations, as `sg.cost` counts them.
        bytes:      read and written, as `sg.cost` counts them.
    """

    name: str
    shape: Shape
    parameters: int
    flops: Count
    bytes: Count


@dataclass(frozen=True, slots=True)
class Summary:
    """A table of layers with its totals.

    Fields:
        rows:       from the inputs to the result.
        parameters: numbers that are learned, in all.
        size:       their bytes.
        cost:       of the whole expression.
    """

    rows: tuple[Row, ...]
    parameters: int
    size: int
    cost: Cost

    def _lines(self) -> list[tuple[str, ...]]:
        body = [
            (printable(r.name), show(r.shape), *map(_count_text, (r.parameters, r.flops, r.bytes)))
            for r in self.rows
        ]
        counts = map(_count_text, (self.parameters, self.cost.flops, self.cost.bytes))
        total = ("total", "", *counts)
        return [("layer", "output", "parameters", "flops", "bytes"), *body, total]

    def __str__(self) -> str:
        rows = self._lines()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [
            "  ".join(
                cell.ljust(w) if k < 2 else cell.rjust(w)
                for k, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in rows
        ]
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def _repr_html_(self) -> str:
        head, *body, total = self._lines()
        rows = "".join(_row("td", line) for line in body)
        return (
            f"<table><thead>{_row('th', head)}</thead><tbody>{rows}</tbody>"
            f"<tfoot>{_row('th', total)}</tfoot></table>"
        )


def summary(
    model: Layer | Node | Sequence[Node], dims: Mapping[Dim | str, int] | None = None
) -> Summary:
    """A table of the layers of a model or of an expression: shapes, parameters, flops, bytes.

    A model is shown as it was called last, one row per layer and verb. An expression is cut where
    it is contracted with parameters, as pictures cut it. The rows share no work: they add up to the
    totals, which are those of `sg.cost`.

    Args:
        model: a layer or a model that has been called, an expression, or several.
        dims:  values of dims, by dim or by name: `{B: 32}`; without, counts are formulas.
    Raises: LeafError for a model that has not been called.

    >>> from symgrad.nn.layers import Dense
    >>> x = sg.input("x", (sg.dim("B"), 3))
    >>> model = Sequential([Dense(5), Dense(2)])
    >>> y = model(x)
    >>> print(summary(model, dims={"B": 7}))
    layer    output  parameters  flops  bytes
    -----------------------------------------
    dense_1  (7, 5)          20    245    584
    dense_2  (7, 2)          12    154    356
    -----------------------------------------
    total                    32    399    940
    """
    known = dict(dims or {})
    if isinstance(model, Layer):
        if not model.calls:
            raise LeafError(
                f"summary: {printable(model.name)} has not been called yet. "
                "Call it on an expression: shapes follow from it."
            )
        x, y = model.calls[-1]
        outputs: tuple[Node, ...] = (y,)
        parts = list(_called(model, x, y))
    else:
        outputs = (model,) if isinstance(model, Node) else tuple(model)
        parts = _cut(outputs)
    rows: list[Row] = []
    done: set[Node] = set()
    for name, result, nodes in parts:
        fresh = [n for n in nodes if n not in done]
        done.update(fresh)
        own = [n for n in fresh if isinstance(n, Input) and n.kind == "parameter"]
        priced = _alone(fresh, known)
        rows.append(
            Row(name, _known(result.shape, known), _numbers(own), priced.flops, priced.bytes)
        )
    every = parameters(outputs)
    bytes_of = sum(_numbers([p]) * p.dtype.itemsize for p in every)
    return Summary(tuple(rows), _numbers(every), bytes_of, cost(outputs, known))


Section = tuple[str, Node, list[Node]]


# -- parts of a model ------------------------------------------------------------------------------
def _called(model: Layer, x: Node, y: Node) -> Iterator[Section]:
    """For each layer and verb inside: its name, its result, and the nodes from x to it."""
    if not isinstance(model, Sequential):
        yield model.name, y, _between(x, y)
        return
    for layer in model.layers:
        result = _result_of(layer, x)
        if isinstance(layer, Layer):
            yield from _called(layer, x, result)
        else:
            yield getattr(layer, "__name__", "function"), result, _between(x, result)
        x = result


def _result_of(layer: object, x: Node) -> Node:
    """What a layer returned for `x`; a verb is asked again, and gives the same node."""
    if isinstance(layer, Layer):
        for argument, result in layer.calls:
            if argument is x:
                return result
    assert callable(layer)
    made: Node = layer(x)
    return made


def _between(x: Node, y: Node) -> list[Node]:
    """The nodes that y needs besides those of x."""
    before = set(toposort([x]))
    return [n for n in toposort([y]) if n not in before]


# -- parts of an expression ------------------------------------------------------------------------
def _cut(outputs: Sequence[Node]) -> list[Section]:
    """An expression cut into its layers, each named by its parameters."""
    structure = structure_of(outputs)
    groups: dict[int, list[Node]] = {}
    for node in toposort(outputs):
        groups.setdefault(structure.layer.get(node, 0), []).append(node)
    parts: list[Section] = []
    for number in sorted(groups):
        nodes = groups[number]
        computed = [n for n in nodes if not isinstance(n, (Input, Constant))]
        if computed:
            title = structure.titles.get(number, "before the layers")
            parts.append((_layer_names(nodes) or title, computed[-1], nodes))
    return parts


def _layer_names(nodes: Sequence[Node]) -> str:
    """The layers that `layer/W` is a parameter of; empty when some parameter has no such name."""
    named = [n.name for n in nodes if isinstance(n, Input) and n.kind == "parameter"]
    found = dict.fromkeys(name.rpartition("/")[0] for name in named)
    return "" if "" in found else " + ".join(found)


# -- counts ----------------------------------------------------------------------------------------
def _alone(nodes: Sequence[Node], dims: Mapping[Dim | str, int]) -> Cost:
    """The cost of some nodes, arguments first, as if what they read came in from outside."""
    made: dict[Node, Node] = {}
    for node in nodes:
        if isinstance(node, Proj) and node.args[0] not in made:
            continue  # a result of a recurrence that another row counts
        for arg in node.args:
            if arg not in made:
                made[arg] = Input(arg.name, arg.shape, arg.dtype) if arg.args else arg
        made[node] = reconnect(node, tuple(made[a] for a in node.args))
    return cost([made[n] for n in nodes if n in made], dims)


def _numbers(leaves: Sequence[Input]) -> int:
    return sum(int(size(leaf.shape)) for leaf in leaves)


def _known(shape: Shape, dims: Mapping[Dim | str, int]) -> Shape:
    values = {d if isinstance(d, Dim) else Dim(d): sympy.Integer(int(n)) for d, n in dims.items()}
    known = [sympy.expand(sympy.sympify(e).xreplace(values)) for e in shape]
    return tuple(int(e) if e.is_Integer else e for e in known)


def _count_text(count: Count) -> str:
    return f"{count:,}" if isinstance(count, int) else printable(str(count))


def _row(tag: str, cells: Sequence[str]) -> str:
    shown = "".join(
        f"<{tag} style='text-align:{'left' if k < 2 else 'right'}'>{escape(cell)}</{tag}>"
        for k, cell in enumerate(cells)
    )
    return f"<tr>{shown}</tr>"
