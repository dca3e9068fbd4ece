"""Nanoseconds per element of the vector mathematics, beside NumPy's or SciPy's loops.

Every contestant runs a loop over the same 4096 elements, which fit the nearest caches; they take
turns, and what is quoted is the minimum over many turns. A third contestant may come from a file
with scalar functions for Numba, `vexp`, `vlog` and so on, of float32.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import scipy.special

from codegen.runtime.memory import FAST
from tests.bench.race import pin
from tests.scalar_kernels import compiled

SIZE = 4096
# Of the lines that a vector load must not straddle, in bytes.
LINE = 64
POSITIVE = (0.05, 8.0)
PEERS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "erf": scipy.special.erf,
    "sin": np.sin,
    "cos": np.cos,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "pow": np.power,
    "tan": np.tan,
    "arctan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
}


def speeds(prototype: str | None, rounds: int) -> str:
    """The table of all functions and both precisions.

    Args:
        prototype: a Python file with functions of a float32 to compare with, or None.
        rounds:    turns of each contestant, in hundreds.
    """
    core = pin()
    module = _loaded(Path(prototype)) if prototype else None
    head = "function  dtype    symgrad  prototype  NumPy/SciPy  to prototype  to NumPy/SciPy"
    lines = [f"ns per element, {SIZE} elements, core {core}", "", head]
    for name in PEERS:
        lines += [_row(name, dtype, module, 100 * rounds) for dtype in (np.float32, np.float64)]
    return "\n".join(lines)


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"bench: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(name: str, dtype: Any, module: ModuleType | None, turns: int) -> str:
    rng = np.random.default_rng(0)
    spans = [POSITIVE, (-5.0, 5.0)] if name == "pow" else [(-8.0, 8.0)]
    if name in ("log", "log1p"):
        spans = [POSITIVE]
    arrays = [_aligned(rng.uniform(*span, SIZE).astype(dtype)) for span in spans]
    out, kernel, peer = _aligned(arrays[0]), compiled(name, len(arrays)), PEERS[name]
    contestants = [lambda: kernel(*arrays, out), lambda: peer(*arrays, out=out)]
    theirs = getattr(module, f"v{name}", None) if dtype is np.float32 else None
    if theirs is not None:
        loop = _loop(theirs)
        contestants.append(lambda: loop(*arrays, out))
    ours, numpy, *rest = _minima(contestants, turns)
    beside = f"{rest[0]:9.3f}" if rest else f"{'-':>9}"
    ratio = f"{ours / rest[0]:12.2f}" if rest else f"{'-':>12}"
    return (
        f"{name:9} {np.dtype(dtype).name:8} {ours:7.3f}  {beside}  {numpy:11.3f}  {ratio}"
        f"  {ours / numpy:14.2f}"
    )


def _loop(function: Callable[..., Any]) -> Callable[..., None]:
    @numba.njit(fastmath=FAST, error_model="numpy")
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return loop


def _aligned(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that begins with a cache line."""
    raw = np.empty(values.nbytes + LINE, np.uint8)
    first = -raw.ctypes.data % LINE
    copy = raw[first : first + values.nbytes].view(values.dtype)
    copy[:] = values
    return copy


def _minima(contestants: list[Callable[[], object]], turns: int) -> list[float]:
    """The least nanoseconds per element of each, in turns of four calls."""
    for contestant in contestants:
        contestant()
    best = [np.inf] * len(contestants)
    for _ in range(turns):
        for k, contestant in enumerate(contestants):
            start = time.perf_counter()
            for _ in range(4):
                contestant()
            best[k] = min(best[k], time.perf_counter() - start)
    return [seconds / 4 / SIZE * 1e9 for seconds in best]
