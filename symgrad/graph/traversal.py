"""Walks over graphs, all on explicit stacks and in an order that depends on the graph alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from symgrad.graph.errors import LeafError
from symgrad.graph.nodes import Node
from symgrad.graph.provenance import provenance


def outputs_of(asked: str, e: object) -> list[Node]:
    """The expressions that a verb is given: one, or a sequence of them.

    Raises: LeafError, beginning with what was `asked`, for anything else.
    """
    several = isinstance(e, Iterable) and not isinstance(e, (Node, str, Mapping))
    found: list[Node] = []
    for node in e if several else [e]:  # type: ignore[attr-defined]
        if not isinstance(node, Node):
            raise LeafError(
                f"{asked}: expected an expression, or a list or tuple of them, "
                f"got {type(node).__name__}{' among them' if several else ''}."
            )
        found.append(node)
    return found


def toposort(outputs: Sequence[Node]) -> list[Node]:
    """All nodes that the outputs need, arguments before users, in order of first visit."""
    order: list[Node] = []
    seen: set[int] = set()
    for output in outputs:
        if id(output) in seen:
            continue
        stack: list[tuple[Node, int]] = [(output, 0)]
        seen.add(id(output))
        while stack:
            node, k = stack.pop()
            args = node.args
            while k < len(args) and id(args[k]) in seen:
                k += 1
            if k == len(args):
                order.append(node)
            else:
                stack.append((node, k + 1))
                seen.add(id(args[k]))
                stack.append((args[k], 0))
    return order


def users(outputs: Sequence[Node]) -> dict[Node, list[Node]]:
    """For each node the nodes that read it, once per reading argument, in topological order."""
    found: dict[Node, list[Node]] = {}
    for node in toposort(outputs):
        found.setdefault(node, [])
        for arg in node.args:
            found[arg].append(node)
    return found


Rule = Callable[[Node, tuple[Node, ...]], Node]


def rebuild(outputs: Sequence[Node], rule: Rule) -> list[Node]:
    """Rebuild bottom-up: each node becomes `rule(node, new_args)`, once.

    Nodes that the rule makes inherit line, origin and primal of the node they replace.
    """
    made: dict[Node, Node] = {}
    for node in toposort(outputs):
        args = tuple(made[a] for a in node.args)
        with provenance(node.origin, node.backward_of, node.where):
            made[node] = rule(node, args)
    return [made[output] for output in outputs]


def reconnect(node: Node, args: tuple[Node, ...]) -> Node:
    """The node over new arguments; itself when none changed. The rule that changes nothing."""
    if all(a is b for a, b in zip(args, node.args, strict=True)):
        return node
    return node.with_args(args)


def replace(outputs: Sequence[Node], mapping: Mapping[Node, Node]) -> list[Node]:
    """The outputs with each key of `mapping` replaced by its value, wherever it occurs."""

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        return mapping[node] if node in mapping else reconnect(node, args)

    return rebuild(outputs, rule)
