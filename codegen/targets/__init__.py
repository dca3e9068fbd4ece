"""Targets: one module each, found by its name. A target prints kernels and loads the result."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from codegen.loading import Loaded
from codegen.program import Table
from codegen.state import Array, Invocation, State
from symgrad.graph.dims import Dim
from symgrad.graph.errors import CompileError
from symgrad.graph.nodes import Input

if TYPE_CHECKING:
    from codegen.memory import Plan


class Target(Protocol):
    """What a back end must offer.

    ROW_MEMORY: whether rows run one after the other, so that they may share a row of memory.
    TIMED: whether `codegen.timing` can time its kernels.
    KEEPS: whether `codegen.loading` finds the machine code of its programs by name.
    UNPADS: whether its programs may count extents while they run (`codegen.counted`).
    """

    ROW_MEMORY: bool
    TIMED: bool
    KEEPS: bool
    UNPADS: bool
    EXECUTE: str

    def print_program(self, plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
        """The source of a plan."""

    def stand_alone(self, source: str) -> str:
        """Source that holds the runtime too, for a saved file."""

    def load_program(self, source: str, key: str) -> Loaded:
        """Compile source, or fetch it from the cache."""

    def prepare(
        self, plan: Table, dims: Sequence[Dim], loaded: Loaded, state: State
    ) -> Invocation:
        """The memory of one thread's calls."""

    def hold(self, leaves: Sequence[Input], values: Sequence[Array]) -> State:
        """The state of a program, from its first values."""


def check(name: str, asked: str = "compile") -> None:
    """Raises: CompileError when there is no target of that name; it names those there are."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise CompileError(
            f"{asked}: target {name!r:.40} does not exist. Choose one of: {', '.join(names)}."
        )


def find(name: str) -> Target:
    """The target of that name.

    Raises: CompileError naming the targets there are.
    """
    check(name)
    return importlib.import_module(f"{__name__}.{name}")
