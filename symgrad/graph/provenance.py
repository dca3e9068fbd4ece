"""Where a node comes from: the user's line, the verb, and the primal that it is the backward of.

Provenance explains; it never takes part in equality.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from symgrad.graph.nodes import Node

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PACKAGES = tuple(os.path.join(_ROOT, package) + os.sep for package in ("symgrad", "codegen"))
_DEMO = os.path.join(_ROOT, "symgrad", "demo.py")  # uses symgrad as a person would


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of the user's program."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


class _Context(threading.local):
    origin: str | None = None
    backward_of: Node | None = None
    where: SourceLine | None = None


CONTEXT = _Context()


def caller() -> SourceLine | None:
    """The innermost frame outside symgrad: the user's line."""
    if CONTEXT.where is not None:
        return CONTEXT.where
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if (not file.startswith(_PACKAGES) or file == _DEMO) and not file.startswith("<string"):
            return SourceLine(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def provenance(
    origin: str | None = None,
    backward_of: Node | None = None,
    where: SourceLine | None = None,
) -> Iterator[None]:
    """Give the nodes born inside this origin, primal and line; what is None stays as it was."""
    before = (CONTEXT.origin, CONTEXT.backward_of, CONTEXT.where)
    CONTEXT.origin = origin if origin is not None else before[0]
    CONTEXT.backward_of = backward_of if backward_of is not None else before[1]
    CONTEXT.where = where if where is not None else before[2]
    try:
        yield
    finally:
        CONTEXT.origin, CONTEXT.backward_of, CONTEXT.where = before


def named(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Give the nodes that a verb makes its name as their origin; an outer verb's name wins."""
    name = function.__name__.rstrip("_")

    @wraps(function)
    def inner(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if CONTEXT.origin is not None:
            return function(*args, **kwargs)
        CONTEXT.origin = name
        try:
            return function(*args, **kwargs)
        finally:
            CONTEXT.origin = None

    return inner
