"""The runtime as text, for a saved program that runs without symgrad."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MODULES = (
    *("names", "linking", "memory", "checks", "assembler", "instruction_sets", "ahead"),
    *("microkernels", "copying"),
    *("inner_products", "packed", "fetching", "products", "library", "settings", "linalg"),
    *("lanes", "coefficients", "rare"),
    *("exponential", "power", "circular", "vector_math", "rows", "draws", "loops", "kernels"),
    "object_files",
)
DEVICE_MODULES = ("device_math", "device_draws", "device")


class Definition(NamedTuple):
    """One top-level statement of a runtime module.

    Fields:
        position: of the module among those that are read and of its line, which order the output.
        text:     source of the statement, with the comment lines directly above it.
        needs:    names that occur in it, other than its own.
    """

    position: tuple[int, int]
    text: str
    needs: frozenset[str]


def runtime_source(names: Iterable[str], modules: tuple[str, ...] = MODULES) -> str:
    """Python source that defines `names` and all that they need, without importing symgrad.

    Args:
        names:   what a generated module imports from `codegen.runtime`, such as "ld" or "exp".
        modules: where they are defined, in the order of the text.

    Raises KeyError for a name that the runtime does not define.

    >>> text = runtime_source(["ld", "exp"])
    >>> "def ld(" in text, "exp = elementwise(" in text, "gemm" in text, "codegen" in text
    (True, True, False, False)
    """
    definitions, imports = _read(modules)
    chosen: dict[str, Definition] = {}
    waiting = sorted(set(names))
    while waiting:
        name = waiting.pop()
        if name in chosen or (name in imports and name not in definitions):
            continue
        if name not in definitions:
            raise KeyError(f"codegen.runtime defines no {name!r}")
        chosen[name] = definitions[name]
        known = definitions.keys() | imports.keys()
        waiting += sorted((definitions[name].needs & known) - chosen.keys())
    statements = sorted(set(chosen.values()))
    used = frozenset[str]().union(*(statement.needs for statement in statements))
    needed = sorted({text for name, text in imports.items() if name in used})
    header = "\n".join(["from __future__ import annotations", "", *needed])
    return "\n\n\n".join([header, *(statement.text for statement in statements)]) + "\n"


def standalone(
    source: str, modules: tuple[str, ...] = MODULES, besides: Iterable[str] = ()
) -> str:
    """The generated module `source` with its imports from `codegen.runtime` written out.

    The docstring stays at the top, then come the runtime's definitions, those of `besides` among
    them, then the program.
    """
    lines = source.splitlines()
    body = ast.parse(source).body
    names = list(besides)
    dropped: set[int] = set()
    docstring = ""
    for statement in body:
        span = range(statement.lineno - 1, statement.end_lineno or statement.lineno)
        if isinstance(statement, ast.ImportFrom):
            origin = statement.module or ""
            if origin.startswith("codegen.runtime"):
                names += [alias.name for alias in statement.names]
            if origin.startswith("codegen.runtime") or origin == "__future__":
                dropped |= {*span}
        elif statement is body[0] and isinstance(statement, ast.Expr):
            docstring = "\n".join(lines[k] for k in span) + "\n\n"
            dropped |= {*span}
    program = "\n".join(line for k, line in enumerate(lines) if k not in dropped)
    return f"{docstring}{runtime_source(names, modules)}\n\n{program.strip()}\n"


@functools.cache
def _read(modules: tuple[str, ...]) -> tuple[dict[str, Definition], dict[str, str]]:
    """The definitions of runtime modules by name, and the outside imports by bound name."""
    definitions: dict[str, Definition] = {}
    imports: dict[str, str] = {}
    for number, module in enumerate(modules):
        source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        lines = source.splitlines()
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.ImportFrom | ast.Import):
                imports |= _imported(statement)
                continue
            bound = _bound(statement)
            text = _text(statement, lines)
            mentioned = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            entry = Definition((number, statement.lineno), text, frozenset(mentioned - bound))
            if twice := bound & definitions.keys():  # a saved program has them all in one module
                raise ValueError(f"codegen.runtime defines {', '.join(sorted(twice))} twice")
            definitions |= dict.fromkeys(sorted(bound), entry)
    return definitions, imports


def _imported(statement: ast.ImportFrom | ast.Import) -> dict[str, str]:
    """One import line for each name that an import of an outside module binds."""
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name: f"import {alias.name}"
            + (f" as {alias.asname}" if alias.asname else "")
            for alias in statement.names
        }
    origin = statement.module or ""
    if origin == "__future__" or origin.split(".")[0] == "codegen":
        return {}
    return {alias.name: f"from {origin} import {alias.name}" for alias in statement.names}


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return {
        name.id
        for target in targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }


def _text(statement: ast.stmt, lines: list[str]) -> str:
    """The source of a statement with its decorators and the comment above it."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    return "\n".join(lines[first - 1 : statement.end_lineno])
