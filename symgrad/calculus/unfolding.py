"""A Map with a long body as Maps of one operation each, so that its derivative does not explode.

The derivative of a nested product, written as one formula, grows exponentially; with a name for
each intermediate value it grows linearly. Reverse and forward mode unfold a body of more than
`HEAVY` operations before they differentiate it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import sympy

from symgrad.calculus import bodies
from symgrad.graph import functions as fn
from symgrad.graph.functions import axis_index, placeholder
from symgrad.graph.nodes import Input, Map, Node, broadcast
from symgrad.graph.scalars import infer_dtype, operations

HEAVY = 16  # operations of a body that is differentiated as one formula, at most

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
}


def is_heavy(node: Map) -> bool:
    """Whether a Map is to be unfolded before it is differentiated."""
    return bodies.weight(node.body) > HEAVY


def unfolded(node: Map) -> tuple[Node, tuple[Input, ...]]:
    """The Map, one operation at a time, over leaves that stand for its arguments; and those."""
    leaves = tuple(Input(f"p{k}", a.shape, a.dtype) for k, a in enumerate(node.args))
    values: list[Node | sympy.Expr] = []
    for step in operations(node.body):
        if step.kind == "argument":
            values.append(leaves[step.payload])
        elif step.kind == "axis":
            values.append(axis_index(step.payload))
        elif step.kind in ("dim", "number"):
            values.append(sympy.sympify(step.payload))
        else:
            values.append(_one(node, step.kind, step.payload, [values[k] for k in step.operands]))
    last = values[-1]
    assert isinstance(last, Node)
    return last, leaves


def _one(node: Map, kind: str, name: Any, operands: list[Node | sympy.Expr]) -> Node | sympy.Expr:
    """One operation; numbers, dims and positions among its operands stay in its body."""
    args: list[Node] = []
    inner: list[sympy.Expr] = []
    for value in operands:
        if isinstance(value, Node):
            inner.append(placeholder(len(args)))
            args.append(value)
        else:
            inner.append(value)
    body = fn.FUNCTIONS[name].cls(*inner) if kind == "call" else _ARITHMETIC[kind](*inner)
    if not args:
        return body
    shape = node.shape if bodies.uses_axes(body) else broadcast(args, "map")
    return Map(tuple(args), body, shape, infer_dtype(body, [a.dtype for a in args]))
