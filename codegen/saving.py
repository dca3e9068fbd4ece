"""A compiled program as one Python file that runs without symgrad.

A program for the CPU needs NumPy, SciPy and Numba; one for a device NumPy and numba-cuda.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.runtime.export import runtime_source
from codegen.workspace import ALIGNMENT, Layout
from symgrad.graph.dims import Dim, Extent, Shape
from symgrad.graph.errors import SymgradError

if TYPE_CHECKING:
    from codegen.compiled import Compiled

HARNESS = '''
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


def workspace(n):
    """Blocks and slots of the workspace, given the extents; see `place`."""
    return {workspace}


{packing}

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
    report = execute(leaves, results, n)
    if report[0]:
        raise IndexError(f"index {{report[1]}} is out of range for extent {{report[2]}}")
    return results


{execute}

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

    Raises: SymgradError when the place cannot be written.
    """
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
    source = compiled.target.stand_alone(compiled.stages.source)
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
        workspace=_workspace(plan.layout, names),
        packing=runtime_source(["place"], ("packing",)).split("annotations", 1)[1].strip(),
        constants=", ".join(
            f"np.array({c.value.ravel().tolist()!r}, {c.dtype.name!r}).reshape({c.shape!r})"
            for c in plan.constants
        )
        .replace("nan", "np.nan")
        .replace("inf", "np.inf"),
        extents=_listed(ascii(d.name) for d in compiled.dims),
        execute=compiled.target.EXECUTE,
    )
    if "import numpy as np" not in source:
        harness = "\nimport numpy as np\n" + harness
    return source + "\n" + harness


def _workspace(layout: Layout, names: dict[Dim, str]) -> str:
    """A layout in numbers, as text; see `codegen/runtime/packing.py`."""
    blocks = [
        f"({_workspace(block.content, names)}, {block.spans})"
        if isinstance(block.content, Layout)
        else f"(max(-(-({_number(block.content, names)}) // {ALIGNMENT}), 1) * {ALIGNMENT}, "
        f"{block.spans})"
        for block in layout.blocks
    ]
    return f"([{', '.join(blocks)}], {[(s.block, s.inside) for s in layout.slots]})"


def _listed(texts: Iterator[str]) -> str:
    return "[" + ", ".join(texts) + "]"


def _shape(shape: Shape, names: dict[Dim, str]) -> str:
    return "(" + "".join(f"{_number(e, names)}, " for e in shape).strip() + ")"


def _number(extent: Extent, names: dict[Dim, str]) -> str:
    if isinstance(extent, int):
        return str(extent)
    import sympy

    return str(extent.xreplace({d: sympy.Symbol(names[d]) for d in extent.free_symbols}))
