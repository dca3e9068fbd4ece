"""One thread for BLAS while a program runs.

A program of `threads=1` must keep to one core, and products of small matrices lose by being shared
among threads. SciPy's OpenBLAS has one setting for the process: it is lowered while programs run
and then put back. Where no program has asked for it, or SciPy's BLAS is another, nothing changes.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_lock = threading.Lock()
_running = 0
_before = 1


@cache
def _setters() -> tuple[Callable[[int], object], Callable[[], int]] | None:
    """OpenBLAS's functions that set and tell its number of threads; None without OpenBLAS."""
    import scipy

    folders = [Path(scipy.__file__).parent.parent / "scipy.libs", Path(scipy.__file__).parent]
    for folder in (*folders, folders[1] / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            for prefix in ("scipy_openblas", "openblas"):
                if hasattr(library, f"{prefix}_set_num_threads"):
                    get = getattr(library, f"{prefix}_get_num_threads")
                    return getattr(library, f"{prefix}_set_num_threads"), get
    return None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, BLAS uses one thread; the last program to leave puts the number back."""
    global _running, _before
    setters = _setters() if "scipy.linalg.cython_blas" in sys.modules else None
    if setters is None:
        yield
        return
    set_threads, get_threads = setters
    with _lock:
        if _running == 0:
            _before = get_threads()
            if _before != 1:
                set_threads(1)
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0 and _before != 1:
                set_threads(_before)
