"""From generated source to a callable address: write, import, compile or fetch from the cache.

A generated module defines `program`, a Numba C callback of the type int64(int64, int64) made with
`cache=True`. It is imported from a file in the cache folder, because Numba caches only functions
that live in a file, and is registered in `sys.modules` before it runs, because Numba finds a
cached function's module by name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import linecache
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numba

from codegen import cache
from codegen.runtime import library

library.fetch = cache.kept

_lock = threading.RLock()
_loaded: dict[str, Loaded] = {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A compiled program.

    Fields:
        address:    of the C function int64 program(int64 table, int64 dims).
        module:     the imported module; it keeps the machine code alive.
        path:       its file, or None when it was compiled in memory.
        from_cache: whether the machine code came from the cache folder.
        seconds:    wall time of writing, importing and compiling.
    """

    address: int
    module: ModuleType
    path: Path | None
    from_cache: bool
    seconds: float


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
        if name not in _loaded:
            start = time.perf_counter()
            with _numba_settings(slp):
                module, path = _import(name, source)
            _loaded[name] = Loaded(
                address=module.program.address,
                module=module,
                path=path,
                from_cache=module.program.cache_hits > 0,
                seconds=time.perf_counter() - start,
            )
        return _loaded[name]


def module_name(source: str, key: str, *, slp: bool = True) -> str:
    """`sg_` and a hash of the source, its key, the runtime, the versions and the CPU."""
    text = "\0".join((source, key, f"slp={slp}", cache.fingerprint()))
    return f"sg_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@contextlib.contextmanager
def _numba_settings(slp: bool) -> Iterator[None]:
    """Numba's settings for our compilations: `slp`, and cache files beside the source."""
    wanted = {"SLP_VECTORIZE": int(slp), "CACHE_DIR": "", "CACHE_LOCATOR_CLASSES": ""}
    before = {name: getattr(numba.config, name) for name in wanted if hasattr(numba.config, name)}
    try:
        for name in before:
            setattr(numba.config, name, wanted[name])
        yield
    finally:
        for name, value in before.items():
            setattr(numba.config, name, value)


@functools.cache
def _notice(reason: str) -> None:
    """Say once why the next process will compile everything again."""
    warnings.warn(
        f"symgrad: compiled programs are not kept: {reason}. Each process compiles them anew. "
        "Set SYMGRAD_CACHE_DIR to a folder of your own.",
        stacklevel=2,
    )


def _import(name: str, source: str) -> tuple[ModuleType, Path | None]:
    """The module `name`, from a file where a folder can be had."""
    kept = cache.folder()
    if kept.reason:
        _notice(kept.reason)
    place = kept.path
    if place is not None:
        path = place / f"{name}.py"
        try:
            _write_if_changed(path, source)
        except OSError:  # the disk is full, or the folder went away
            place = None
    if place is None:
        source = source.replace("cache=True", "cache=False")
        return run_module(name, source, f"<{name}>"), None
    if not _intact(path):
        _forget(path)
    try:
        module = run_module(name, source, str(path))
    except Exception:
        if not _forget(path):
            raise
        # the cache files were at fault, or it fails again
        module = run_module(name, source, str(path))
    if not module.program.cache_hits:
        with contextlib.suppress(OSError):
            cache.write(_checksum_file(path), _checksum(path))
    return module, path


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


def recompiled(source: str) -> ModuleType:
    """The module `source`, compiled anew and kept nowhere: for looking at LLVM's code."""
    with _lock, _numba_settings(True):
        name = f"sg_seen_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
        return run_module(name, source.replace("cache=True", "cache=False"), f"<{name}>")


def _write_if_changed(path: Path, source: str) -> None:
    """Put `source` into the file unless it is there: another process may be reading it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_bytes().decode() == source:
            return
    cache.write(path, source)


def _numba_files(path: Path) -> list[Path]:
    """Numba's index and machine code of the program at `path`."""
    return sorted((path.parent / "__pycache__").glob(f"{path.stem}.*.nb[ic]"))


def _checksum_file(path: Path) -> Path:
    return path.parent / "__pycache__" / f"{path.stem}.sha256"


def _checksum(path: Path) -> str:
    """A hash of Numba's files: it unpickles them and runs the machine code unchecked."""
    digest = hashlib.sha256()
    for file in _numba_files(path):
        digest.update(file.name.encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _intact(path: Path) -> bool:
    """Whether Numba's files are those that were written."""
    try:
        return _checksum_file(path).read_text(encoding="ascii") == _checksum(path)
    except (OSError, UnicodeDecodeError):
        return False


def _forget(path: Path) -> bool:
    """Delete Numba's files of the program at `path`; return whether there were any."""
    files = _numba_files(path)
    for file in [*files, _checksum_file(path)]:
        with contextlib.suppress(OSError):
            file.unlink()
    return bool(files)
