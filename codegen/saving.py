"""A compiled program as one Python file that runs with NumPy, SciPy and Numba alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.memory import ALIGNMENT
from codegen.runtime.export import standalone
from symgrad.graph.dims import Dim, Extent, Shape
from symgrad.graph.errors import CompileError, SymgradError

if TYPE_CHECKING:
    from codegen.compiled import Compiled

IMPORT = "from numba import cfunc, njit\n"
#: As `loading` sets it: the file is to give the same bits, as fast.
SETTING = IMPORT + """
import numba

SLP_VECTORIZE = numba.config.SLP_VECTORIZE
numba.config.SLP_VECTORIZE = 1  # until the program is compiled
"""
HARNESS = '''
numba.config.SLP_VECTORIZE = SLP_VECTORIZE

import ctypes
import sys

NAMES = {names}
DTYPES = {dtypes}
UPDATED = {updated}
SUPPLIED = {supplied}


def shapes(n):
    """Shapes of the leaves, given the extents."""
    return [{leaf_shapes}]


def result_shapes(n):
    """Shapes of the results, given the extents."""
    return [{result_shapes}]


def slot_sizes(n):
    """Sizes of the workspace's slots in bytes, given the extents."""
    return [{slot_sizes}]


CONSTANTS = [{constants}]
RESULT_DTYPES = {result_dtypes}
EXTENTS = {extents}


def run(values, n):
    """Run the program once.

    values: {{name: array}} for all of NAMES; those in UPDATED are changed in place. An entry of
            NAMES that is None has its value in SUPPLIED.
    n:      the extents, in the order of EXTENTS.
    """
    leaves = []
    for place, (name, dtype, shape) in enumerate(zip(NAMES, DTYPES, shapes(n))):
        array = np.array(SUPPLIED[place], dtype) if name is None else values[name]
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"{{name!r}} must be a contiguous {{dtype}} array of shape {{shape}}")
        leaves.append(array)
    results = [np.empty(s, d) for s, d in zip(result_shapes(n), RESULT_DTYPES)]
    workspace = np.empty(sum(slot_sizes(n)) + {alignment}, np.uint8)
    place = -(-workspace.ctypes.data // {alignment}) * {alignment}
    report = np.zeros(4, np.int64)
    table = [a.ctypes.data for a in (report, *leaves, *CONSTANTS, *results)]
    for size in slot_sizes(n):
        table.append(place)
        place += size
    table = np.array(table, np.int64)
    dims = np.array([*n, 0], np.int64)
    if program.ctypes(table.ctypes.data, dims.ctypes.data):
        raise IndexError(f"index {{report[1]}} is out of range for extent {{report[2]}}")
    return results


if __name__ == "__main__":
    extents = [int(text) for text in sys.argv[1:]] or [8] * len(EXTENTS)
    rng = np.random.default_rng(0)
    values = {{
        name: np.asarray(0.1 * rng.standard_normal(shape), dtype)
        for name, dtype, shape in zip(NAMES, DTYPES, shapes(extents))
        if name is not None
    }}
    for name, dtype in zip(NAMES, DTYPES):
        if name is not None and not dtype.startswith("float"):
            values[name][...] = 0
    for result in run(values, extents):
        print(result)
'''


def save_program(compiled: Compiled, path: Path) -> None:
    """Write the program, its runtime and a small harness to `path`, atomically.

    Raises: SymgradError when the place cannot be written; CompileError for a program of a device.
    """
    if not compiled.loaded.address:
        raise CompileError("save: a program for the CPU is needed; compile with target='cpu'.")
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(program_text(compiled))
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise SymgradError(
            f"save: {str(path)!r} cannot be written ({error.strerror}). Choose another place."
        ) from error


def program_text(compiled: Compiled) -> str:
    """The text of the file. Names of the user's stand in it as ASCII string literals only."""
    plan = compiled.stages.plan
    names = {d: f"n[{k}]" for k, d in enumerate(compiled.dims)}
    source = standalone(compiled.stages.source).replace("cache=True, ", "")
    source = source.replace(IMPORT, SETTING, 1)
    harness = HARNESS.format(
        names=_listed("None" if x.is_supplied else ascii(x.name) for x in plan.leaves),
        dtypes=_listed(repr(leaf.dtype.name) for leaf in plan.leaves),
        updated=_listed(ascii(name) for name in compiled.state),
        supplied={
            k: compiled.initial(x).item() for k, x in enumerate(plan.leaves) if x.is_supplied
        },
        leaf_shapes=", ".join(_shape(leaf.shape, names) for leaf in plan.leaves),
        result_shapes=", ".join(_shape(n.shape, names) for n in plan.results),
        result_dtypes=_listed(repr(n.dtype.name) for n in plan.results),
        slot_sizes=", ".join(
            f"-(-max([{', '.join(_number(s, names) for s in slot.sizes)}]) // "
            f"{ALIGNMENT}) * {ALIGNMENT}"
            for slot in plan.slots
        ),
        constants=", ".join(
            f"np.array({c.value.ravel().tolist()!r}, {c.dtype.name!r}).reshape({c.shape!r})"
            for c in plan.constants
        )
        .replace("nan", "np.nan")
        .replace("inf", "np.inf"),
        extents=_listed(ascii(d.name) for d in compiled.dims),
        alignment=ALIGNMENT,
    )
    if "import numpy as np" not in source:
        harness = "\nimport numpy as np\n" + harness
    return source + "\n" + harness


def _listed(texts: Iterator[str]) -> str:
    return "[" + ", ".join(texts) + "]"


def _shape(shape: Shape, names: dict[Dim, str]) -> str:
    return "(" + "".join(f"{_number(e, names)}, " for e in shape).strip() + ")"


def _number(extent: Extent, names: dict[Dim, str]) -> str:
    if isinstance(extent, int):
        return str(extent)
    import sympy

    return str(extent.xreplace({d: sympy.Symbol(names[d]) for d in extent.free_symbols}))
