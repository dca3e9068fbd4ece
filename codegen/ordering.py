"""The order in which a schedule takes the nodes of a graph: arguments first, and besides.

    numbers made of numbers alone   before all others, so that a factor like Adam's 1 - beta**t is
                                    there before the loop that needs it begins
    what tells a counted dim        next, so that all else may have it
    products after a recurrence     before the next recurrence, so that what they read, values of
                                    all steps, takes no memory any more while that one runs
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.counted import Tellers, counted_in_node
from codegen.products import is_product
from symgrad.graph.dims import size, typical
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Input, Map, Node
from symgrad.graph.traversal import toposort


def in_order(graph: Graph, tellers: Tellers) -> list[Node]:
    """The nodes in that order, else as they stand in the graph.

    >>> import symgrad as sg
    >>> x, v = sg.input("x", (7, 3)), sg.parameter("v", (7,))
    >>> first, ys = sg.scan(lambda c, x: (c + x,) * 2, sg.zeros((3,)), x)
    >>> second, _ = sg.scan(lambda c, x: (c * x, ()), first, x)
    >>> nodes = in_order(Graph.of([second, v @ ys]), {})
    >>> [type(n).__name__ for n in nodes if n.args][1:]
    ['Fold', 'Proj', 'Proj', 'Einsum', 'Fold', 'Proj']
    """
    order = _early_first(graph, tellers)
    waiting = _sums_over_steps(order)
    made: dict[Node, None] = {}
    done = 0  # recurrences
    for node in order:
        if isinstance(node, Fold):
            for product in waiting.get(done, ()):
                _put(product, made)
            done += 1
        _put(node, made)
    return list(made)


def _put(node: Node, made: dict[Node, None]) -> None:
    """A node behind what it needs, unless it is there."""
    stack = [] if node in made else [node]
    while stack:
        missing = [a for a in stack[-1].args if a not in made]
        stack.extend(reversed(missing))
        if not missing:
            made[stack.pop()] = None


def _early_first(graph: Graph, tellers: Tellers) -> list[Node]:
    """The nodes of a graph, numbers that are made of numbers and what tells dims before others."""
    early: dict[Node, int] = dict.fromkeys(toposort(list(tellers.values())), 1)
    for node in graph.nodes:
        number = isinstance(node, (Input, Constant, Map)) and not (
            node.shape or (tellers and counted_in_node(node))
        )
        if number and all(early.get(a) == 0 for a in node.args):
            early[node] = 0
    return sorted(graph.nodes, key=lambda node: early.get(node, 2))


def _sums_over_steps(order: Sequence[Node]) -> dict[int, list[Node]]:
    """Products whose result is smaller than what they read, by how many recurrences precede them.

    Only as many recurrences are counted as a product depends on, in this order.
    """
    behind: dict[Node, int] = {}
    found: dict[int, list[Node]] = {}
    done = 0
    for node in order:
        behind[node] = max((behind[a] for a in node.args), default=0)
        if isinstance(node, Fold):
            done += 1
            behind[node] = done
        elif isinstance(node, Einsum) and behind[node] and is_product(node):
            read = max(typical(size(a.shape)) for a in node.args)
            if typical(size(node.shape)) < read:
                found.setdefault(behind[node], []).append(node)
    return found
