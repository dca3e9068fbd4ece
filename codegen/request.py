"""What a caller of `compile` asks for, checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from codegen.targets import Target
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A program that is wanted.

    Fields:
        written:  all that it computes, over its leaves.
        outputs:  what calls return.
        updates:  leaves and what they become.
        target:   the name of `back`.
        threads:  the most threads of a call.
        training: whether dropout is active.
    """

    written: Graph
    outputs: tuple[Node, ...]
    updates: tuple[tuple[Input, Node], ...]
    target: str
    back: Target
    threads: int
    training: bool

    @property
    def wanted(self) -> list[Node]:
        """The outputs, then the right-hand sides of the updates."""
        return [*self.outputs, *(node for _, node in self.updates)]


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Do some work."""
        start = time.perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result
