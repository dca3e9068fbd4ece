"""Targets: one module each, found by its name. A target prints kernels and loads the result."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from codegen.loading import Loaded
from codegen.memory import Plan
from symgrad.graph.dims import Dim
from symgrad.graph.errors import CompileError


class Target(Protocol):
    """What a back end must offer."""

    def print_program(self, plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
        """The source of a plan."""

    def load_program(self, source: str, key: str) -> Loaded:
        """Compile source, or fetch it from the cache."""


def find(name: str) -> Target:
    """The target of that name.

    Raises: CompileError naming the targets there are.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise CompileError(f"target {name!r} does not exist. Choose one of: {', '.join(names)}.")
    return importlib.import_module(f"{__name__}.{name}")
