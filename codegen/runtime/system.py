"""Functions of the operating system that compiled programs of several workers call by name.

Their addresses differ in every process, so machine code holds a name that is told to LLVM here.
Nothing here loads Numba.
"""

from __future__ import annotations

import ctypes
import os

import llvmlite.binding as llvm

WINDOWS = os.name == "nt"
_system = ctypes.windll.kernel32 if WINDOWS else ctypes.CDLL(None)
#: Whether a thread can tell on which core it runs, and choose where it may.
TELLS_CORES = all(
    hasattr(_system, name) for name in ("sched_getcpu", "sched_getaffinity", "sched_setaffinity")
)


def _register(symbol: str, name: str) -> str:
    """Give a function of the system a name for LLVM."""
    llvm.add_symbol(symbol, ctypes.cast(getattr(_system, name), ctypes.c_void_p).value)
    return symbol


YIELD = _register("symgrad_yield", "SwitchToThread" if WINDOWS else "sched_yield")
SLEEP = _register("symgrad_sleep", "Sleep" if WINDOWS else "usleep")
CORE = CORES = MOVE = ""
if TELLS_CORES:
    CORE = _register("symgrad_core", "sched_getcpu")
    CORES = _register("symgrad_cores", "sched_getaffinity")
    MOVE = _register("symgrad_move", "sched_setaffinity")
