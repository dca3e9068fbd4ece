"""What a kernel computes, as one line over node numbers: the comment above its call."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import sympy

from codegen.schedule import Schedule
from codegen.values import Lowered
from symgrad.graph.dims import Dim
from symgrad.graph.nodes import Constant, Einsum, Map, Node, Reduce

_PLACEHOLDER = re.compile(r"\bp(\d+)\b")

# A line longer than this says how many more nodes there are.
MOST_FORMULAS = 4


def with_formulas(schedule: Schedule, kernels: Sequence[Lowered]) -> list[Lowered]:
    """The kernels with their formulas written into them."""
    return [replace(k, kernel=replace(k.kernel, formula=_line(schedule, k))) for k in kernels]


def _line(schedule: Schedule, low: Lowered) -> str:
    number = schedule.graph.number

    def name(node: Node) -> str:
        return f"%{number[node]}"

    parts = [f"{name(n)} = {formula(n, name)}" for n in low.nodes[:MOST_FORMULAS]]
    rest = len(low.nodes) - MOST_FORMULAS
    return "; ".join(parts) + (f"; and {rest} more" if rest > 0 else "") or low.kernel.formula


def formula(node: Node, name: Callable[[Node], str]) -> str:
    """A node in terms of its arguments' names; but for those it holds no text of the user's."""
    names = [_literal(a) or name(a) for a in node.args]
    if isinstance(node, Map):
        return _PLACEHOLDER.sub(lambda found: names[int(found[1])], _body(node.body))
    if isinstance(node, Einsum):
        letters = [chr(ord("a") + k % 26) for k in range(len(node.extents))]
        if not any(node.labels) and len(node.out) == len(node.extents) > 0:
            return f"{' * '.join(names)} at each place"
        spec = ",".join("".join(letters[k] for k in labels) for labels in node.labels)
        return f"einsum {spec}->{''.join(letters[k] for k in node.out)} ({', '.join(names)})"
    what = node.op if isinstance(node, Reduce) else type(node).__name__.lower()
    return f"{what}({', '.join(names)})"


@lru_cache(maxsize=4096)
def _body(body: sympy.Expr) -> str:
    """A body with `n` for every dim."""
    dims = {s: sympy.Symbol("n") for s in body.free_symbols if isinstance(s, Dim)}
    return str(body.xreplace(dims))


def _literal(node: Node) -> str:
    """The value of a constant scalar."""
    if isinstance(node, Constant) and node.ndim == 0:
        text = str(node.value[()])  # the shortest that tells the number from others of its dtype
        return f"({text})" if text.startswith("-") else text
    return ""
