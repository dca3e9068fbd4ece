"""The order in which a schedule takes the nodes of a graph: arguments first, and beyond that, two.

    numbers made of numbers alone   before all others, so that a factor like Adam's 1 - beta**t is
                                    there before the loop that needs it begins
    products after a recurrence     before the next recurrence, so that what they read, values of
                                    all steps, takes no memory any more while that one runs
"""

from __future__ import annotations

from codegen.products import is_product
from symgrad.graph.dims import size, typical
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Einsum, Input, Map, Node


def in_order(graph: Graph) -> list[Node]:
    """The nodes in that order, else as they stand in the graph.

    >>> import symgrad as sg
    >>> x, v = sg.input("x", (7, 3)), sg.parameter("v", (7,))
    >>> first, ys = sg.scan(lambda c, x: (c + x,) * 2, sg.zeros((3,)), x)
    >>> second, _ = sg.scan(lambda c, x: (c * x, ()), first, x)
    >>> nodes = in_order(Graph.of([second, v @ ys]))
    >>> [type(n).__name__ for n in nodes if n.args][1:]
    ['Fold', 'Proj', 'Proj', 'Einsum', 'Fold', 'Proj']
    """
    made: dict[Node, None] = {}

    def put(node: Node) -> None:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [a for a in top.args if a not in made]
            if missing:
                stack.extend(reversed(missing))
            else:
                made[stack.pop()] = None

    waiting = _sums_over_steps(graph)
    done = 0  # recurrences
    for node in graph.nodes:
        if node not in made and _is_number(node, made):
            put(node)
    for node in graph.nodes:
        if isinstance(node, Fold):
            for product in waiting.pop(done, ()):
                put(product)
            done += 1
        put(node)
    return list(made)


def _is_number(node: Node, numbers: dict[Node, None]) -> bool:
    """Whether a node is a number that is made of numbers alone."""
    plain = isinstance(node, (Input, Constant, Map)) and not node.shape
    return plain and all(a in numbers for a in node.args)


def _sums_over_steps(graph: Graph) -> dict[int, list[Node]]:
    """Products whose result is smaller than what they read, by how many recurrences precede it."""
    behind: dict[Node, int] = {}
    done = 0
    found: dict[int, list[Node]] = {}
    for node in graph.nodes:
        behind[node] = max((behind[a] for a in node.args), default=0)
        if isinstance(node, Fold):
            done += 1
            behind[node] = done
        elif isinstance(node, Einsum) and behind[node] and is_product(node):
            read = max(typical(size(a.shape)) for a in node.args)
            if typical(size(node.shape)) < read:
                found.setdefault(behind[node], []).append(node)
    return found
