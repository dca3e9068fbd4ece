"""Matrix products: symgrad's against `np.dot` inside Numba, over many extents.

Both multiply the same matrices inside compiled loops of the same number of turns, one after the
other, and the least time of each counts. Every product is also compared with float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numba
import numpy as np

from codegen.runtime import linalg
from codegen.runtime.memory import at_f32, at_f64

EXTENTS = (1, 2, 3, 7, 10, 16, 17, 32, 33, 64, 100, 128, 256, 1000, 1024)
FORMS = ("nn", "tn", "nt")
BANDS = (
    ("m n k < 32^3", 0, 32**3),
    ("middle", 32**3, 512**3 + 1),
    ("m n k > 512^3", 512**3 + 1, math.inf),
)
# Of the lines that a vector load must not straddle, in bytes.
LINE = 64
# A turn repeats a product until it takes about so many seconds.
TURN = 200e-6
#: Triples of the whole sweep and of the quick one.
COUNTS = {"whole": 340, "quick": 60}


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one product; times in seconds.

    Attributes:
        extents: m, n, k.
        form:    of A and B: "n" as it is, "t" stored transposed.
        ours:    time of symgrad's product.
        numpy:   time of `np.dot`.
        error:   of ours against float64, divided by NumPy's own, or 0 where both are exact.
    """

    extents: tuple[int, int, int]
    form: str
    ours: float
    numpy: float
    error: float

    @property
    def ratio(self) -> float:
        """How many times as fast as NumPy."""
        return self.numpy / self.ours

    @property
    def work(self) -> int:
        """m n k."""
        return math.prod(self.extents)


def triples(count: int) -> list[tuple[int, int, int]]:
    """`count` triples of EXTENTS, spread over all of them by a fixed shuffle."""
    every = list(product(EXTENTS, repeat=3))
    order = np.random.default_rng(0).permutation(len(every))
    return sorted((every[k] for k in order[:count]), key=math.prod)


def contestants(form: str, dtype: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """Compiled loops of a product `turns` times: ours by addresses, NumPy's by arrays."""
    ta, tb = (int(letter == "t") for letter in form)
    short = "f32" if dtype is np.float32 else "f64"
    gemm, at = getattr(linalg, f"gemm_{short}"), at_f32 if short == "f32" else at_f64
    one, zero = dtype(1), dtype(0)

    @numba.njit(error_model="numpy")
    def ours(a, b, c, m, n, k, turns):
        lda, ldb = (m if ta else k), (k if tb else n)
        left, right, result = at(a, 0), at(b, 0), at(c, 0)
        for _ in range(turns):
            gemm(ta, tb, m, n, k, one, left, lda, right, ldb, zero, result, n)

    @numba.njit(error_model="numpy")
    def numpys(a, b, c, turns):
        for _ in range(turns):
            np.dot(a.T if ta else a, b.T if tb else b, c)

    return ours, numpys


def sweep(
    chosen: Sequence[tuple[int, int, int]],
    forms: Sequence[str] = FORMS,
    dtype: Any = np.float32,
    rounds: int = 15,
) -> Iterator[Row]:
    """Measure every triple in every form."""
    from codegen.blas import one_blas_thread

    with one_blas_thread():
        loops = {form: contestants(form, dtype) for form in forms}
        for extents, form in product(chosen, forms):
            yield _measured(extents, form, loops[form], dtype, rounds)


def _measured(
    extents: tuple[int, int, int],
    form: str,
    loops: tuple[Callable[..., None], Callable[..., None]],
    dtype: Any,
    rounds: int,
) -> Row:
    m, n, k = extents
    rng = np.random.default_rng(7)
    a = _aligned(rng.standard_normal((k, m) if form[0] == "t" else (m, k)).astype(dtype))
    b = _aligned(rng.standard_normal((n, k) if form[1] == "t" else (k, n)).astype(dtype))
    mine, theirs = (_aligned(np.full((m, n), np.nan, dtype)) for _ in range(2))
    ours, numpys = loops
    places = [x.ctypes.data for x in (a, b, mine)]

    def call_ours(turns: int) -> None:
        ours(*places, m, n, k, turns)

    def call_numpys(turns: int) -> None:
        numpys(a, b, theirs, turns)

    calls = (call_ours, call_numpys)
    turns = [_turns(call) for call in calls]
    best = [math.inf, math.inf]
    for _ in range(rounds):
        for which, call in enumerate(calls):
            start = time.perf_counter()
            call(turns[which])
            best[which] = min(best[which], (time.perf_counter() - start) / turns[which])
    left, right = (x.T if t == "t" else x for x, t in zip((a, b), form, strict=True))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    norm = float(np.abs(exact).max()) * float(np.finfo(dtype).eps)
    wrong, usual = (float(np.abs(x - exact).max()) for x in (mine, theirs))
    error = wrong / max(usual, norm) if norm else wrong
    return Row(extents, form, best[0], best[1], error)


def _turns(call: Callable[[int], None]) -> int:
    """How often to repeat a call so that it takes about TURN."""
    turns = 1
    while True:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call(turns)
            times.append(time.perf_counter() - start)
        if min(times) >= TURN / 2:
            return turns
        turns *= 2


def _aligned(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that begins with a cache line, as the memory of programs does."""
    raw = np.empty(values.nbytes + LINE, np.uint8)
    first = -raw.ctypes.data % LINE
    copy = raw[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[:] = values
    return copy
