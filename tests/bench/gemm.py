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
from pathlib import Path
from typing import Any

import numba
import numpy as np

from codegen.runtime import linalg
from codegen.runtime.memory import at_f32, at_f64
from tests.bench.race import pin

Array = np.ndarray[Any, Any]

EXTENTS = (1, 2, 3, 7, 10, 16, 17, 32, 33, 64, 100, 128, 256, 1000, 1024)
# Constants of the products were set while looking at products of those. At products of these
# nobody looked then; a constant that is set by them makes them worthless: draw others.
HELD_OUT = (4, 5, 12, 20, 24, 41, 80, 96, 150, 200, 300, 500, 700, 900, 1100)
FORMS = ("nn", "tn", "nt")
BANDS = (
    ("m n k < 32^3", 0, 32**3),
    ("middle", 32**3, 512**3 + 1),
    ("m n k > 512^3", 512**3 + 1, math.inf),
)
# Of the lines that a vector load must not straddle, in bytes.
LINE = 64
# Rows of C that are compared with wider numbers, about; and elements, at least.
CHECKED, ELEMENTS = 16, 4096
# A turn repeats a product until it takes about so many seconds.
TURN = 200e-6
#: Triples of the whole sweep and of the quick one; and of those held out.
COUNTS = {"whole": (340, 90), "quick": (60, 15)}


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one product; times in seconds.

    Attributes:
        extents: m, n, k.
        form:    of A and B: "n" as it is, "t" stored transposed.
        ours:    time of symgrad's product.
        numpy:   time of `np.dot`.
        error:   of ours against float64, divided by NumPy's own: roots of mean squares.
        largest: the same of the largest errors.
    """

    extents: tuple[int, int, int]
    form: str
    ours: float
    numpy: float
    error: float
    largest: float

    @property
    def ratio(self) -> float:
        """How many times as fast as NumPy."""
        return self.numpy / self.ours

    @property
    def work(self) -> int:
        """m n k."""
        return math.prod(self.extents)


def triples(count: int, extents: Sequence[int] = EXTENTS) -> list[tuple[int, int, int]]:
    """About `count` triples of extents: from each band the same number, or all that there are."""
    every = list(product(extents, repeat=3))
    order = [every[k] for k in np.random.default_rng(0).permutation(len(every))]
    bands = [[t for t in order if low <= math.prod(t) < high] for _, low, high in BANDS]
    chosen: list[tuple[int, int, int]] = []
    for left, band in enumerate(sorted(bands, key=len)):
        chosen += band[: (count - len(chosen)) // (len(bands) - left)]
    return sorted(chosen, key=math.prod)


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
    import scipy.linalg.cython_blas  # noqa: F401  BLAS has threads to set when it is loaded

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
    return Row(
        extents, form, best[0], best[1], *_errors(extents, form, calls, (a, b, mine, theirs))
    )


def _errors(
    extents: tuple[int, int, int],
    form: str,
    calls: Sequence[Callable[[int], None]],
    matrices: Sequence[Array],
) -> tuple[float, float]:
    """Our error divided by NumPy's, in rows of C that stand for all: the usual and the largest.

    Operands are drawn anew until ELEMENTS are compared. Rounding errors are spread alike in both,
    so their mean squares over N elements lie within about 1/sqrt(N) of what is expected; the
    largest of a few is a matter of luck, in either.
    """
    a, b, *results = matrices
    rows = slice(None, None, max(1, extents[0] // CHECKED))
    wider = np.float64 if a.dtype == np.float32 else np.longdouble
    rng = np.random.default_rng(11)
    checked = results[0][rows].size
    squares, largest = np.zeros(2), np.zeros(2)
    for _ in range(-(-ELEMENTS // checked)):
        for x in (a, b):
            x[:] = rng.standard_normal(x.shape)
        left, right = (x.T if t == "t" else x for x, t in zip((a, b), form, strict=True))
        exact = left[rows].astype(wider) @ right.astype(wider)
        for call in calls:
            call(1)
        wrong = [np.abs(x[rows] - exact).astype(float) for x in results]
        squares += [np.square(x).sum() for x in wrong]
        largest = np.maximum(largest, [x.max() for x in wrong])
    return float(np.sqrt(squares[0] / squares[1])), float(largest[0] / largest[1])


def report(rows: Sequence[Row], held_out: Sequence[Row], dtype: Any) -> str:
    """The table: geometric means of the bands, the slowest products, the largest error."""
    lines = [f"ratio of speeds to np.dot inside Numba, {np.dtype(dtype).name}, one core"]
    for title, part in (
        ("extents of the sweep", rows),
        ("extents that no constant was set by", held_out),
    ):
        lines += ["", f"{title}, {len({row.extents for row in part})} triples"]
        lines.append(f"{'band':16}{'products':>9}{'mean':>8}" + "".join(f"{f:>8}" for f in FORMS))
        for name, low, high in BANDS:
            band = [row for row in part if low <= row.work < high]
            means = [_mean([r for r in band if r.form in wanted]) for wanted in (FORMS, *FORMS)]
            lines.append(f"{name:16}{len(band):9}" + "".join(f"{mean:8.2f}" for mean in means))
    rows = [*rows, *held_out]
    lines += ["", "slowest beside NumPy, of all   ratio   GFLOP/s"]
    for row in sorted(rows, key=lambda row: row.ratio)[:10]:
        m, n, k = row.extents
        speed = 2e-9 * row.work / row.ours
        lines.append(f"{row.form}  {m:5} x {n:4} x {k:4}        {row.ratio:8.2f} {speed:9.1f}")
    lines.append("")
    for name, title in (("error", "error, root of mean square"), ("largest", "error, largest")):
        worst = max(rows, key=lambda row: getattr(row, name))
        where = " x ".join(map(str, worst.extents))
        above = sum(getattr(row, name) > 2 for row in rows)
        found = f"{getattr(worst, name):.2f} of NumPy's own ({worst.form} {where})"
        lines.append(f"{title}: at most {found}; {above} above 2")
    return "\n".join(lines)


def _mean(rows: Sequence[Row]) -> float:
    """The geometric mean of the ratios."""
    return math.exp(sum(math.log(row.ratio) for row in rows) / len(rows)) if rows else math.nan


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw every product's ratio over its size, and the speeds of both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True)
    for form, marker in zip(FORMS, "o^s", strict=True):
        own = [row for row in rows if row.form == form]
        above.scatter([r.work for r in own], [r.ratio for r in own], 12, marker=marker, label=form)
    for name, times in (("symgrad", "ours"), ("np.dot in Numba", "numpy")):
        speeds = [2e-9 * row.work / getattr(row, times) for row in rows]
        below.scatter([row.work for row in rows], speeds, 8, label=name)
    above.axhline(1.0, color="black", linewidth=0.8)
    above.set(xscale="log", yscale="log", ylabel="speed, np.dot in Numba = 1")
    below.set(xscale="log", xlabel="m n k", ylabel="GFLOP/s")
    for axes in (above, below):
        axes.legend()
        for _, edge, _ in BANDS[1:]:
            axes.axvline(edge, color="grey", linewidth=0.8, linestyle=":")
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def table(dtype: str, file: str, *, quick: bool) -> str:
    """Sweep, draw, and return the table."""
    pin()
    kind = np.float32 if dtype == "float32" else np.float64
    count, others = COUNTS["quick" if quick else "whole"]
    rows = list(sweep(triples(count), dtype=kind))
    held_out = list(sweep(triples(others, HELD_OUT), dtype=kind))
    note = ""
    if file:
        plot(rows, Path(file))
        note = f"\nplot: {file}"
    return report(rows, held_out, kind) + note


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


def _aligned(values: Array) -> Array:
    """A copy that begins with a cache line, as the memory of programs does."""
    raw = np.empty(values.nbytes + LINE, np.uint8)
    first = -raw.ctypes.data % LINE
    copy = raw[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[:] = values
    return copy
