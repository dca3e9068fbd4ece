"""Arithmetic without subnormal results while a long program runs.

A float below 1.2e-38 costs a hundred times as much as others on many processors. Training makes
them by itself: the moments of a weight whose gradient is 0 shrink in every step until they are
subnormal, and stay so. As on GPUs and in XLA, such results are 0 instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

SOURCE = '''\
"""Switch subnormal results off or on."""

from codegen.runtime.control import flush_to_zero
from codegen.runtime.kernels import kernel


@kernel
def program(on, unused):
    return flush_to_zero(on)
'''


@cache
def _switch() -> Callable[[int, int], int]:
    from codegen.loading import load

    return load(SOURCE, "subnormals").function()


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Inside, a result of this thread that would be subnormal is 0; on x86, else as it was.

    >>> import numpy as np
    >>> tiny = np.full(1, 1e-38, np.float32)
    >>> with subnormals_flushed():
    ...     inside = tiny * np.float32(0.5)
    >>> float(inside[0]) in (0.0, float(tiny[0]) / 2), float((tiny * np.float32(0.5))[0]) > 0
    (True, True)
    """
    switch = _switch()
    before = switch(1, 0)
    try:
        yield
    finally:
        switch(before, 0)
