"""Machine code in the process: an object file becomes a function that can be called.

Only LLVM is needed for it: a process whose programs all come from the cache loads no Numba.

The address of a BLAS routine differs in every process. Machine code holds a name instead, which
`blas_symbol` tells LLVM.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import llvmlite.binding as llvm

PROGRAM = "program"
BLAS_PREFIX = "symgrad_blas_"


class Linked(NamedTuple):
    """Machine code in memory.

    Fields:
        address: of the C function int64 program(int64, ..).
        engine:  what keeps it alive.
    """

    address: int
    engine: llvm.ExecutionEngine

    def __call__(self, *numbers: int) -> int:
        """Call it without Python's lock."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(numbers))
        return int(kind(self.address)(*numbers))


def linked(code: bytes) -> Linked:
    """An object file that defines `program`, in memory; LLVM knows the symbols that it asks for."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Linked(engine.get_function_address(PROGRAM), engine)


def target_machine() -> llvm.TargetMachine:
    """This processor, or the one that Numba's settings name, for code that is run here."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    named = os.environ.get("NUMBA_CPU_NAME")
    features = "" if named else llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=named or llvm.get_host_cpu_name(),
        features=os.environ.get("NUMBA_CPU_FEATURES", features),
        opt=3,
        # what LLVM's loader of object files can relocate
        reloc="static" if triple.startswith(("x86", "i386", "i686")) else "default",
        codemodel="jitdefault",
        jit=True,
    )


@cache
def blas_symbol(routine: str) -> str:
    """The name under which SciPy's BLAS `routine` is known to LLVM from now on."""
    capsule = _cython_blas().__pyx_capi__[routine]
    name_of = _capsule_function("PyCapsule_GetName", ctypes.c_char_p)
    address_of = _capsule_function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_char_p)
    name = f"{BLAS_PREFIX}{routine}"
    llvm.add_symbol(name, address_of(capsule, name_of(capsule)))
    return name


def _capsule_function(name: str, result: type, *others: type) -> Callable[..., Any]:
    return ctypes.PYFUNCTYPE(result, ctypes.py_object, *others)((name, ctypes.pythonapi))


def _cython_blas() -> ModuleType:
    """The module scipy.linalg.cython_blas, without the rest of scipy.linalg where it can be."""
    import scipy

    name = "scipy.linalg.cython_blas"
    folder = Path(scipy.__file__).parent / "linalg"
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"cython_blas{suffix}"
        if name not in sys.modules and path.is_file():
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # SciPy's own import finds it: it must not load twice
            spec.loader.exec_module(module)
    return importlib.import_module(name) if name not in sys.modules else sys.modules[name]
