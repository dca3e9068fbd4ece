"""The CPU target: loop IR -> kernels in Python, which `codegen.runtime.kernels` translates to LLVM.

What prints is loaded when something is printed: a process that finds its programs in the cache
needs `prepare` and `hold` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from codegen.host_memory import HostInvocation
from codegen.loading import Loaded, load
from codegen.program import Table
from codegen.state import Array, State
from codegen.workspace import ALIGNMENT
from symgrad.graph.dims import Dim
from symgrad.graph.nodes import Input

if TYPE_CHECKING:
    from codegen.memory import Plan

# One row follows the other, so what one pass computes may wait for the next in a row of memory.
ROW_MEMORY = True
# Kernels can be timed one by one.
TIMED = True
# Machine code is kept by name.
KEEPS = True
# Programs may count extents while they run, and have steps that work on some of the rows.
UNPADS = True


def print_program(plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
    """The source of a plan: constants, kernels, and `program(table, dims)`.

    For a team it is `program(table, dims, team, worker)`, which all of its workers run.
    """
    from codegen.program_printing import program_text

    return program_text(plan, dims, key)


# What a saved file ends with: how `program` is called.
EXECUTE = f'''
machine_code = linked(program_code(program))


def execute(leaves, results, n):
    """Run the program on this machine's processor; its report of a bad index."""
    offsets, _, total = place(workspace(n))
    memory = np.empty(total + {ALIGNMENT}, np.uint8)
    first = -(-memory.ctypes.data // {ALIGNMENT}) * {ALIGNMENT}
    report = np.zeros(4, np.int64)
    table = [a.ctypes.data for a in (report, *leaves, *CONSTANTS, *results)]
    table = np.array([*table, *(first + offset for offset in offsets)], np.int64)
    dims = np.array([*n, 0], np.int64)
    machine_code(table.ctypes.data, dims.ctypes.data)
    return report
'''


def stand_alone(source: str) -> str:
    """Source that holds the runtime too, for a saved file."""
    from codegen.runtime.export import standalone

    return standalone(source, besides=("linked", "program_code"))


def load_program(source: str, key: str) -> Loaded:
    """Compile source, or fetch it from the cache."""
    return load(source, key)


def prepare(plan: Table, dims: Sequence[Dim], loaded: Loaded, state: State) -> HostInvocation:
    """The memory of one thread's calls."""
    return HostInvocation(plan, dims, loaded)


def hold(leaves: Sequence[Input], values: Sequence[Array]) -> State:
    """The state of a program: the very arrays that it works on."""
    return State(leaves, values)
