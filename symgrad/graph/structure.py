"""Structures of expressions: one, a sequence, or a dict, nested as a user likes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from symgrad.graph.errors import LeafError
from symgrad.graph.leaves import as_node
from symgrad.graph.nodes import Node

Structure: TypeAlias = "Node | Sequence[Structure] | Mapping[Any, Structure]"
Rebuild = Callable[[Sequence[Any]], Any]


def flatten(structure: Any, asked: str = "outputs") -> tuple[list[Node], Rebuild]:
    """The expressions of a structure in order, and how to put values in their places.

    Tuples, lists and dicts keep their kind; a dict keeps its keys and their order.
    Raises: LeafError, beginning with what was `asked`, for anything that is no expression.

    >>> from symgrad.graph.leaves import input
    >>> x, y = input("x"), input("y")
    >>> nodes, rebuild = flatten({"a": x, "b": [x, y]})
    >>> len(nodes), rebuild([1, 2, 3])
    (3, {'a': 1, 'b': [2, 3]})
    """
    nodes: list[Node] = []
    template = _template(structure, nodes, asked)

    def rebuild(values: Sequence[Any]) -> Any:
        return _fill(template, values)

    return nodes, rebuild


def _template(structure: Any, nodes: list[Node], asked: str) -> Any:
    if isinstance(structure, Node):
        nodes.append(structure)
        return len(nodes) - 1
    if isinstance(structure, Mapping):
        return {key: _template(value, nodes, asked) for key, value in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(_template(v, nodes, asked) for v in structure))
    if isinstance(structure, (tuple, list)):
        return type(structure)(_template(v, nodes, asked) for v in structure)
    if isinstance(structure, (bool, int, float)) or hasattr(structure, "__array__"):
        nodes.append(as_node(structure))
        return len(nodes) - 1
    raise LeafError(
        f"{asked}: expected expressions, got {type(structure).__name__}. "
        "Give an expression, or a tuple, list or dict of them."
    )


def _fill(template: Any, values: Sequence[Any]) -> Any:
    if isinstance(template, int):
        return values[template]
    if isinstance(template, dict):
        return {key: _fill(value, values) for key, value in template.items()}
    if hasattr(template, "_fields"):
        return type(template)(*(_fill(v, values) for v in template))
    return type(template)(_fill(v, values) for v in template)


def outline(structure: Any) -> str:
    """A structure without its values.

    >>> outline({"h": (1, 2), "c": None})
    "{'c': None, 'h': (array, array)}"
    """
    if isinstance(structure, Mapping):
        keys = sorted(structure, key=str)
        return "{" + ", ".join(f"{k!r}: {outline(structure[k])}" for k in keys) + "}"
    if isinstance(structure, (tuple, list)):
        inner = ", ".join(map(outline, structure))
        return f"({inner})" if isinstance(structure, tuple) else f"[{inner}]"
    return "None" if structure is None else "array"
