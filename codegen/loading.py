"""From generated source to a callable address: write, compile or fetch from the cache, link.

A generated module defines `program`, a kernel of two addresses: see `codegen.runtime.kernels`. Its
machine code is kept beside its source in the cache folder, in one file with its checksum. A process
that finds it there neither runs the source nor loads Numba.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import linecache
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from weakref import WeakValueDictionary

from codegen import cache
from codegen.runtime import library
from codegen.runtime.instruction_sets import INSTRUCTION_SETS
from codegen.runtime.linking import BLAS_PREFIX, Linked, blas_symbol, linked

library.fetch = cache.kept

_lock = threading.RLock()
_loaded: MutableMapping[str, Loaded] = WeakValueDictionary()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Loaded:
    """A compiled program; its machine code goes when nothing holds this record.

    Fields:
        address:    of the C function int64 program(int64 table, int64 dims).
        module:     what keeps the machine code alive; of other targets, the imported module.
        path:       the file of its source, or None when it was compiled in memory.
        from_cache: whether the machine code came from the cache folder.
        seconds:    wall time of writing, compiling and linking.
    """

    address: int
    module: ModuleType | Linked
    path: Path | None
    from_cache: bool
    seconds: float

    def function(self, arguments: int = 2) -> Callable[..., int]:
        """The program as a function of whole numbers, which holds the code."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)
        made = kind(self.address)
        made.program = self  # type: ignore[attr-defined]
        return made


def load(source: str, key: str, *, slp: bool = True) -> Loaded:
    """Compile the module `source`, or fetch it from the cache.

    Args:
        source: text of a module that defines `program`.
        key:    of the graph that it computes; alpha-equal graphs share one program.
        slp:    let LLVM also vectorise straight-line code, such as short unrolled rows.

    Loading the same text twice in a process gives the same record. Raises whatever Numba raises
    where the source does not compile.
    """
    name = module_name(source, key, slp=slp)
    with _lock:
        loaded = _loaded.get(name)
        if loaded is None:
            start = time.perf_counter()
            path = _written(name, source)
            kept = None if path is None else cache.read_sealed(_code_file(path))
            if kept is not None:
                _tell_symbols(kept)
            code = _compiled(name, source, path, slp) if kept is None else kept
            if path is not None and kept is None:
                with contextlib.suppress(OSError):
                    cache.write_sealed(_code_file(path), code)
            made = linked(code)
            seconds = time.perf_counter() - start
            loaded = Loaded(made.address, made, path, kept is not None, seconds)
            _loaded[name] = loaded
        return loaded


def find(name: str) -> Loaded | None:
    """The program whose module had this name, from this process or the cache, or None."""
    with _lock:
        loaded = _loaded.get(name)
        place = None if loaded is not None else cache.folder().path
        if place is not None:
            start = time.perf_counter()
            path = place / f"{name}.py"
            kept = cache.read_sealed(_code_file(path))
            if kept is not None:
                _tell_symbols(kept)
                made = linked(kept)
                seconds = time.perf_counter() - start
                loaded = _loaded[name] = Loaded(made.address, made, path, True, seconds)
        return loaded


def _tell_symbols(code: bytes) -> None:
    """Make known to LLVM what machine code from another process calls by name."""
    own = rb"symgrad_(?:product|pack|packed)_(\w+?)_(\w+)"
    for short, isa in sorted(set(re.findall(own, code))):
        library.link(short.decode(), INSTRUCTION_SETS[isa.decode()])
    for routine in sorted(set(re.findall(BLAS_PREFIX.encode() + rb"(\w+)", code))):
        blas_symbol(routine.decode())
    for symbol, module in ((b"symgrad_clock", "clock"), (b"symgrad_yield", "system")):
        if symbol in code:  # the module tells what it calls when it is loaded
            importlib.import_module(f"codegen.runtime.{module}")


def module_name(source: str, key: str, *, slp: bool = True) -> str:
    """`sg_` and a hash of the source, its key, the runtime, the versions and the CPU."""
    text = "\0".join((source, key, f"slp={slp}", cache.fingerprint()))
    return f"sg_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@functools.cache
def _notice(reason: str) -> None:
    """Say once why the next process will compile everything again."""
    warnings.warn(
        f"symgrad: compiled programs are not kept: {reason}. Each process compiles them anew. "
        "Set SYMGRAD_CACHE_DIR to a folder of your own.",
        stacklevel=2,
    )


def _written(name: str, source: str) -> Path | None:
    """The file of the source in the cache folder; None where there is no folder to be had."""
    kept = cache.folder()
    if kept.reason:
        _notice(kept.reason)
    if kept.path is None:
        return None
    path = kept.path / f"{name}.py"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_bytes().decode() == source:  # another process may be reading it
            return path
    try:
        cache.write(path, source)
    except OSError:  # the disk is full, or the folder went away
        return None
    return path


def _compiled(name: str, source: str, path: Path | None, slp: bool) -> bytes:
    """The machine code of the program that the module `name` defines."""
    from codegen.runtime.object_files import program_code  # loads Numba

    file = f"<{name}>" if path is None else str(path)
    module = run_module(name, source, file)
    try:
        return program_code(module.program, slp)
    finally:
        del sys.modules[name], linecache.cache[file]


def run_module(name: str, source: str, filename: str) -> ModuleType:
    """Execute `source` as the module `name`; `filename` is what tracebacks show."""
    module = ModuleType(name)
    module.__file__ = filename
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    sys.modules[name] = module
    try:
        exec(compile(source, filename, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def seen(source: str) -> str:
    """LLVM's code of the program `source`, compiled anew and kept nowhere."""
    from codegen.runtime.object_files import optimized

    with _lock:
        name = f"sg_seen_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
        module = run_module(name, source, f"<{name}>")
        try:
            return str(optimized(module.program))
        finally:
            del sys.modules[name]


def _code_file(path: Path) -> Path:
    return path.with_suffix(".o")
