"""Expressions as NetworkX graphs, for its algorithms and for any tool that reads them."""

from __future__ import annotations

from collections.abc import Sequence

import networkx

from symgrad.graph.dims import printable
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Input, Node
from symgrad.graph.structure import flatten
from symgrad.graph.text import axis_letters, formula, references

Attribute = str | int | None | list[int | str]


def to_networkx(e: Node | Sequence[Node]) -> networkx.MultiDiGraph:
    """An expression, or several, as a NetworkX graph: an edge leads from an argument to its user.

    It has no cycles. It is a multigraph because an argument may be read twice, as in `x * x`; the
    key of an edge, and its attribute `position`, is the place among the user's arguments. Nodes are
    numbered with arguments first. All attributes can be written as JSON.

        node attributes
            kind      "input", "parameter", "step", "constant", or the class: "map", "einsum", ..
            label     the name of a leaf, the value of a literal, else the formula
            shape     a list: integers, and text for symbolic extents
            dtype     "float32", ..
            line      the user's line, "model.py:17", or None
            origin    the verb that made it, or None
            primal    for a node made by differentiation the number of its primal, or None
        graph attribute
            outputs   the numbers of the outputs, in order

    >>> x = sg.input("x", (sg.dim("B"), 3))
    >>> g = to_networkx(sg.tanh(x * x))
    >>> [g.nodes[n]["label"] for n in g]
    ['x', 'map p0*p1  x[b,i] x[b,i]', 'map tanh(p0)  %1[b,i]']
    >>> list(g.edges(keys=True))
    [(0, 1, 0), (0, 1, 1), (1, 2, 0)]
    >>> g.nodes[2]["shape"], g.graph["outputs"], networkx.is_directed_acyclic_graph(g)
    (['B', 3], [2], True)
    """
    outputs, _ = flatten(e, "to_networkx")
    graph = Graph.of(outputs)
    names, letters = references(graph), axis_letters(graph)
    made = networkx.MultiDiGraph(outputs=[graph.number[o] for o in graph.outputs])
    for node in graph.nodes:
        label = names[node] if not node.args else formula(node, names, letters)
        made.add_node(graph.number[node], **_attributes(node, label, graph))
        for position, arg in enumerate(node.args):
            made.add_edge(
                graph.number[arg], graph.number[node], key=position, position=position
            )
    return made


def _attributes(node: Node, label: str, graph: Graph) -> dict[str, Attribute]:
    kind = node.kind if isinstance(node, Input) else type(node).__name__.lower()
    leaf = isinstance(node, (Input, Constant))
    primal = None if leaf or node.backward_of is None else graph.number.get(node.backward_of)
    return {
        "kind": kind,
        "label": label,
        "shape": [e if type(e) is int else printable(str(e)) for e in node.shape],
        "dtype": str(node.dtype),
        "line": str(node.where) if node.where is not None else None,
        "origin": node.origin,
        "primal": primal,
    }
