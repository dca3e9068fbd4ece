"""Passes: functions from expressions to expressions, and a switch that checks what they return.

A pass is marked where it is defined, and stands in `PASSES`:

    @rewrites                   an equal expression: as many outputs, of the same shapes and dtypes,
                                that asks for no equal extents which the one before did not
    @makes                      other expressions, such as derivatives

While `checking()` is on, as it is in the tests, every call's result must be a legal graph
(`checker.py`), also of a pass inside a pass. Otherwise the marks cost one test of a boolean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import sympy

from symgrad.graph.checker import check_nodes
from symgrad.graph.dims import Dim, Extent, same
from symgrad.graph.errors import SymgradError
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.traversal import toposort

F = TypeVar("F", bound=Callable[..., Any])

PASSES: dict[str, Callable[..., Any]] = {}
_ON = False


@contextmanager
def checking(on: bool = True) -> Iterator[None]:
    """Check, or do not check, what passes return."""
    global _ON
    before, _ON = _ON, on
    try:
        yield
    finally:
        _ON = before


def rewrites(function: F) -> F:
    """Mark a pass whose outputs equal its first argument, an expression or a sequence of them."""

    def compare(given: Any, made: Sequence[Node]) -> None:
        before = [given] if isinstance(given, Node) else list(given)
        if len(made) != len(before):
            raise SymgradError(f"{function.__name__}: {len(before)} outputs became {len(made)}")
        for old, new in zip(before, made, strict=True):
            fits = old.ndim == new.ndim and old.dtype == new.dtype
            if not fits or any(
                same(a, b) is False for a, b in zip(old.shape, new.shape, strict=True)
            ):
                raise SymgradError(
                    f"{function.__name__}: an output changed\n  {describe(old)}\n  {describe(new)}"
                )
        _compare_guards(function.__name__, before, made)

    return _marked(function, compare)


def _compare_guards(asked: str, before: Sequence[Node], made: Sequence[Node]) -> None:
    """Raises: SymgradError where extents meet of which nothing before says that they are equal."""
    pairs = [(g.left, g.right, g.node) for g in _graph_of(made).guards]
    for old, new in zip(before, made, strict=True):
        pairs += [(a, b, new) for a, b in zip(old.shape, new.shape, strict=True)]
    pairs = [pair for pair in pairs if same(pair[0], pair[1]) is not True]
    if not pairs:
        return
    known = [(g.left, g.right) for g in _graph_of(before).guards]
    given = set(map(frozenset, known))
    for left, right, node in pairs:
        if frozenset((left, right)) not in given and not _follows(left, right, known):
            raise SymgradError(
                f"{asked}: extents {left} and {right} meet, which nothing says to be equal\n"
                f"  {describe(node)}"
            )


def _follows(left: Extent, right: Extent, equal: Sequence[tuple[Extent, Extent]]) -> bool:
    """Whether extents are equal once each dim that must equal another extent is put as that."""
    difference, rest = sympy.sympify(left - right), list(equal)
    while rest:
        one, other = map(sympy.sympify, rest.pop())
        if not isinstance(one, Dim):
            one, other = other, one
        if isinstance(one, Dim) and not other.has(one):
            difference = difference.xreplace({one: other})
            rest = [
                (sympy.sympify(a).xreplace({one: other}), sympy.sympify(b).xreplace({one: other}))
                for a, b in rest
            ]
    return same(difference, 0) is True


def _graph_of(nodes: Sequence[Node]) -> Graph:
    return Graph(tuple(n for n in toposort(nodes) if isinstance(n, Input)), tuple(nodes))


def makes(function: F) -> F:
    """Mark a pass that makes other expressions."""
    return _marked(function, lambda given, made: None)


def _marked(function: F, compare: Callable[[Any, Sequence[Node]], None]) -> F:
    @functools.wraps(function)
    def run(given: Any, *args: Any, **options: Any) -> Any:
        if not _ON:
            return function(given, *args, **options)
        if isinstance(given, Iterator):
            given = list(given)
        result = function(given, *args, **options)
        made = _nodes(result)
        try:
            check_nodes(_graph_of(made))
        except SymgradError as error:
            raise SymgradError(f"{function.__name__}: {error}") from error
        compare(given, made)
        return result

    PASSES[function.__name__] = run
    return cast(F, run)


def _nodes(result: Any) -> list[Node]:
    """The expressions of a result: one, several, or the first part of a pair."""
    if isinstance(result, Node):
        return [result]
    if isinstance(result, tuple) and len(result) == 2 and not isinstance(result[1], Node):
        return _nodes(result[0])
    return list(result)


__all__ = ["PASSES", "checking", "makes", "rewrites"]
