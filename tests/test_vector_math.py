"""The largest errors of the vector mathematics, its special values, and its machine code.

`pytest -s tests/test_vector_math.py` prints the errors as a table. The judge of float32 is float64
of NumPy and SciPy, whose own errors are 2^-29 as large; of float64 it is mpmath.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import mpmath
import numpy as np
import pytest
import scipy.special

import symgrad as sg
from codegen.runtime import coefficients, minimax
from codegen.runtime.circular import REDUCIBLE
from codegen.runtime.export import runtime_source
from codegen.runtime.vector_math import PRIMITIVES
from tests.scalar_kernels import FLOATS, apply, compiled, has_wide_vectors, machine_code

Array = np.ndarray[Any, Any]
Judge = tuple[Callable[..., Any], Callable[..., Any], int]


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def _softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# name -> the function in float64, the function in mpmath, units in the last place that it may err
JUDGES: dict[str, Judge] = {
    "exp": (np.exp, mpmath.exp, 2),
    "log": (np.log, mpmath.log, 2),
    "log1p": (np.log1p, mpmath.log1p, 2),
    "expm1": (np.expm1, mpmath.expm1, 2),
    "tanh": (np.tanh, mpmath.tanh, 4),
    "sigmoid": (_sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), 2),
    "softplus": (_softplus, lambda x: mpmath.log1p(mpmath.exp(x)), 2),
    "erf": (scipy.special.erf, mpmath.erf, 4),
    "sin": (np.sin, mpmath.sin, 2),
    "cos": (np.cos, mpmath.cos, 2),
    "tan": (np.tan, mpmath.tan, 2),
    "arctan": (np.arctan, mpmath.atan, 2),
    "sinh": (np.sinh, mpmath.sinh, 2),
    "cosh": (np.cosh, mpmath.cosh, 2),
    "pow": (np.power, mpmath.power, 2),
}
UNARY = [name for name in JUDGES if name != "pow"]
WIDTH = {np.float32: 32, np.float64: 64}
SIZE = {np.float32: 60_000, np.float64: 350}
INF, NAN = np.inf, np.nan


# -- arguments ------------------------------------------------------------------------------------
def patterns(rng: np.random.Generator, dtype: type, size: int) -> Array:
    """Floats of random bits: every exponent is as likely, subnormal numbers, infinity, NaN."""
    kind = np.uint32 if dtype is np.float32 else np.uint64
    return rng.integers(0, np.iinfo(kind).max, size, kind, endpoint=True).view(dtype)


def landmarks(dtype: type) -> Array:
    """Where formulas change or arguments are hard, each with its neighbours."""
    width, info = WIDTH[dtype], np.finfo(dtype)
    places: list[float] = [0.25, 0.5, 0.5**0.5, 1, 2**0.5, 2, info.max, info.tiny]
    tables = ("EXP_LOW", "EXP_HIGH", "EXP_ZERO", "TANH_SETTLED", "ERF_SETTLED")
    places += [abs(getattr(coefficients, table)[width]) for table in tables]
    places += [places[-2] * 2, coefficients.EXP_HIGH[width] + np.log(2), REDUCIBLE[width]]
    places += [k * np.pi / 4 for k in (*range(1, 40), 41721 * 2, 10**6 + 1, 10**9 + 7)]
    places += [k * np.log(2) / 2 for k in range(1, 200, 2)]
    # the floats that come nearest to multiples of pi / 2 (Muller et al. 2010)
    places.append(16367173 * 2.0**72 if width == 32 else 6381956970095103 * 2.0**797)
    found = [np.array(places, np.float64).astype(dtype)]
    for end in (0, INF):
        x = found[0]
        for _ in range(3):
            with np.errstate(over="ignore"):
                x = np.nextafter(x, dtype(end))
            found.append(x)
    small = np.arange(1, 4).astype(dtype) * info.smallest_subnormal
    return np.concatenate([*found, small, [dtype(0)]])


def arguments(dtype: type, seed: int, size: int) -> Array:
    """Numbers of all sizes, of the usual sizes, near zero, and landmarks; both signs."""
    rng = np.random.default_rng(seed)
    spans = [(-2, 2), (-20, 20), (-110, 110), (-760, 760)]
    near = rng.choice([-1, 1], size) * 10.0 ** rng.uniform(-12, 8, size)
    parts = [rng.uniform(*span, size) for span in spans]
    marks = landmarks(dtype)
    return np.concatenate(
        [patterns(rng, dtype, 2 * size), *(p.astype(dtype) for p in (*parts, near)), marks, -marks]
    )


def powers(dtype: type, seed: int, size: int) -> tuple[Array, Array]:
    """Bases of all sizes with powers that lead to every exponent; some bases below 0."""
    rng = np.random.default_rng(seed)
    x = np.abs(patterns(rng, dtype, 4 * size))
    x = np.concatenate([x, rng.uniform(0.4, 2.5, 4 * size).astype(dtype)])
    x = x[(x > 0) & (x < np.inf) & (x != 1)]
    low, high = (-151, 129) if dtype is np.float32 else (-1077, 1025)
    with np.errstate(all="ignore"):
        y = (rng.uniform(low, high, x.size) / np.log2(x.astype(np.float64))).astype(dtype)
    whole = rng.random(x.size) < 0.1
    return np.where(whole, -x, x), np.where(whole, np.rint(y), y)


# -- errors ---------------------------------------------------------------------------------------
def truth(name: str, dtype: type, *arrays: Array) -> Array:
    """The exact values: float64 for float32; of float64, mpmath numbers as objects."""
    single, exact, _ = JUDGES[name]
    with np.errstate(all="ignore"):
        usual = np.asarray(single(*(a.astype(np.float64) for a in arrays)))
    if dtype is np.float32:
        return usual
    true = usual.astype(object)
    defined = np.logical_and.reduce([np.isfinite(a) for a in arrays]) & ~np.isnan(usual)
    with mpmath.workprec(120):
        for k in np.flatnonzero(defined):
            true[k] = exact(*(mpmath.mpf(float(a[k])) for a in arrays))
    return true


def errors(got: Array, true: Array, dtype: type) -> Array:
    """In units in the last place of the true value; infinite where a special value is wrong.

    Beyond the largest float the next power of two stands for infinity.
    """
    info = np.finfo(dtype)
    top = mpmath.mpf(2) ** info.maxexp
    found = []
    with mpmath.workprec(120), np.errstate(all="ignore"):
        for g, t in zip(got, true, strict=True):
            if t != t or g != g:
                found.append(0.0 if t != t and g != g else INF)
                continue
            exact, value = (min(max(mpmath.mpf(v), -top), top) for v in (t, float(g)))
            step = np.spacing(np.abs(dtype(float(exact))))
            step = step if np.isfinite(step) else np.spacing(info.max)
            found.append(float(abs(exact - value) / mpmath.mpf(float(step))))
    return np.array(found)


def fast_errors(got: Array, true: Array) -> Array:
    """The same for float32 and its float64 judge, on whole arrays."""
    info = np.finfo(np.float32)
    top = 2.0**info.maxexp
    with np.errstate(all="ignore"):
        bounded = np.clip(true, -top, top)
        step = np.spacing(np.abs(bounded.astype(np.float32)))
        step = np.where(np.isfinite(step), step, np.spacing(info.max)).astype(np.float64)
        apart = np.abs(np.clip(got.astype(np.float64), -top, top) - bounded) / step
    undefined = np.isnan(true)
    return np.where(undefined == np.isnan(got), np.where(undefined, 0, apart), INF)


def measured(name: str, dtype: type, seed: int = 0, size: int | None = None) -> tuple[float, str]:
    """The largest error of a function and where it is."""
    count = size or SIZE[dtype]
    if name == "pow":
        arrays: tuple[Array, ...] = powers(dtype, seed, count)
    else:
        arrays = (arguments(dtype, seed, count),)
    got, true = apply(name, *arrays), truth(name, dtype, *arrays)
    wrong = fast_errors(got, true) if dtype is np.float32 else errors(got, true, dtype)
    worst = int(np.argmax(wrong))
    place = ", ".join(repr(a[worst]) for a in arrays)
    return float(wrong[worst]), f"{name}({place}) = {got[worst]!r}"


@pytest.mark.parametrize("dtype", FLOATS)
def test_largest_errors(dtype: type) -> None:
    rows = {name: measured(name, dtype) for name in JUDGES}
    print(f"\n{'function':9} {dtype.__name__:8} {'largest error, ulp':>18}  where")
    for name, (worst, place) in rows.items():
        print(f"{name:9} {dtype.__name__:8} {worst:18.3f}  {place}")
    over = {name: row for name, row in rows.items() if row[0] > JUDGES[name][2]}
    assert not over


@pytest.mark.slow
@pytest.mark.parametrize("name", UNARY)
def test_every_float32(name: str) -> None:
    """All 2^32 of them."""
    worst = 0.0
    for start in range(0, 2**32, 2**22):
        x = np.arange(start, start + 2**22, dtype=np.uint32).view(np.float32)
        worst = max(worst, fast_errors(apply(name, x), truth(name, np.float32, x)).max())
    print(f"\n{name:9} float32 {worst:.3f} ulp over all numbers")
    assert worst <= JUDGES[name][2]


def test_the_judge_finds_errors() -> None:
    x = np.array([1.5, np.inf, np.nan, 3e38, 0.0], np.float32)
    assert not fast_errors(x, x.astype(np.float64)).any()
    above = np.nextafter(x[:1], np.float32(9))
    np.testing.assert_allclose(fast_errors(above, x[:1].astype(np.float64)), 1)
    assert np.isinf(fast_errors(x[2:3], np.array([1.0]))).all()
    np.testing.assert_allclose(errors(above, x[:1].astype(object), np.float32), 1)


# -- special values -------------------------------------------------------------------------------
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (1e30, INF), (-1e30, 0)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0), (INF, INF), (-INF, NAN), (-1.0, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (INF, INF), (-INF, NAN)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1), (1e30, INF), (-1e30, -1)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (50.0, 1), (-50.0, -1)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1), (-INF, 0), (1e30, 1), (-1e30, 0)],
    "softplus": [(INF, INF), (-INF, 0), (1e30, 1e30), (-1e30, 0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (9.0, 1), (-9.0, -1)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "arctan": [(0.0, 0.0), (-0.0, -0.0), (INF, np.pi / 2), (-INF, -np.pi / 2), (1.0, np.pi / 4)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (1e30, INF), (-1e30, -INF)],
    "cosh": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, INF), (1e30, INF), (-1e30, INF)],
}
# f(x) = x where x is so small that the rest of the series is below half a unit
IDENTITY_NEAR_ZERO = ("log1p", "expm1", "tanh", "sin", "tan", "arctan", "sinh")


def assert_identical(got: Array, expected: Array) -> None:
    """Equal, with equal signs of zeros and NaN at the same places."""
    np.testing.assert_array_equal(got, expected)
    defined = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[defined]), np.signbit(expected[defined]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values(dtype: type) -> None:
    assert set(SPECIAL) == set(UNARY)
    for name, values in SPECIAL.items():
        x, expected = np.array([*values, (NAN, NAN)]).T.astype(dtype)
        # in a vector, and each by itself
        assert_identical(apply(name, np.tile(x, 9)), np.tile(expected, 9))
        for k in range(x.size):
            assert_identical(apply(name, x[k : k + 1]), expected[k : k + 1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_small_numbers_are_not_flushed(dtype: type) -> None:
    info = np.finfo(dtype)
    x = np.array([1, 2, 3, 1000], dtype) * info.smallest_subnormal
    x = np.concatenate([x, [info.tiny, info.tiny * 7], -x])
    for name in IDENTITY_NEAR_ZERO:
        assert_identical(apply(name, x), x)
    log_tiny = np.log(np.float64(info.tiny))
    low = (log_tiny - np.array([1.0, 5.0, 9.0])).astype(dtype)
    for name in ("exp", "sigmoid", "softplus"):
        got = apply(name, low)
        assert (got > 0).all() and (got < info.tiny).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_overflow_begins_where_it_must(dtype: type) -> None:
    last = np.array([coefficients.EXP_HIGH[WIDTH[dtype]]], dtype)
    first = np.nextafter(last, dtype(INF))
    for name in ("exp", "expm1"):
        assert np.isfinite(apply(name, last)).all() and np.isinf(apply(name, first)).all()
    last = np.nextafter(last + dtype(np.log(2)), dtype(0))
    for name in ("sinh", "cosh"):
        assert np.isfinite(apply(name, last)).all()
        assert np.isinf(apply(name, last + dtype(0.01))).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_powers(dtype: type) -> None:
    info = np.finfo(dtype)
    whole = [2.0**22 + 1, 2.0**23 + 1, 2.0**24 - 1, 2.0**24 + 2, 2.0**52 + 1, 2.0**53 - 1, 2.0**53]
    v = np.array([0, 1, 2, 3, 0.5, 1.5, 2.5, 1e3, 1e30, 1 / 3, 7, INF, *whole], dtype)
    near = [1 + info.eps, 1 - info.eps, info.max, info.tiny, info.smallest_subnormal]
    v = np.concatenate([v, np.array([*near, NAN], dtype), -v, -np.array(near, dtype)])
    x, y = (a.ravel() for a in np.meshgrid(v, v))
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
        apart = np.abs(apply("pow", x, y) - expected) / np.spacing(np.abs(expected))
    got = apply("pow", x, y)
    exact = ~np.isfinite(expected) | (expected == 0) | (np.abs(x) == 1) | (y == 0)
    assert_identical(got[exact], expected[exact])
    assert (apart[~exact] <= 6).all()  # 2 of ours and 4 of NumPy's vector code
    np.testing.assert_array_equal(np.signbit(got[~exact]), np.signbit(expected[~exact]))


def test_rare_arguments_in_compiled_programs() -> None:
    """Huge arguments in every place of a vector, alone and all together."""
    n = sg.dim("n")
    leaves = {dtype: sg.input(dtype.__name__, (n,), dtype) for dtype in FLOATS}
    verbs = {"sin": sg.sin, "cos": sg.cos, "tan": sg.tan}
    f = sg.compile(
        {f"{name}-{d.__name__}": verb(x) for name, verb in verbs.items() for d, x in leaves.items()}
    )
    size = 67
    usual = np.linspace(-60, 70, size)
    huge = np.random.default_rng(4).permutation(10.0 ** np.linspace(14, 38, size))
    for places in ([], [0], [5], [33], [66], [*range(7, 31)], [*range(size)]):
        x = usual.copy()
        x[places] = huge[places]
        got = f(**{d.__name__: x.astype(d) for d in FLOATS})
        for key, values in got.items():
            name, dtype = key.split("-")
            given = x.astype(dtype)
            expected = [float(JUDGES[name][1](mpmath.mpf(float(v)))) for v in given]
            np.testing.assert_allclose(values, expected, rtol=3 * np.finfo(dtype).eps)


# -- coefficients ---------------------------------------------------------------------------------
def test_the_exchange_algorithm_finds_the_best_line() -> None:
    """On 0..1 the best line for x^2 is x - 1/8, with an error of 1/8."""
    grid = [(mpmath.mpf(k) / 64, (mpmath.mpf(k) / 64) ** 2, mpmath.mpf(1)) for k in range(65)]
    constant, slope = minimax.remez(grid, 2)
    assert float(constant) == pytest.approx(-1 / 8) and float(slope) == pytest.approx(1)


QUICK = [*((name, 32) for name in minimax.FITS), ("LOG", 64), ("COSINE", 64)]


@pytest.mark.parametrize(("name", "width"), QUICK)
def test_polynomials_are_derived(name: str, width: int) -> None:
    fit = minimax.fitted(name, width)
    assert minimax.coefficients(fit) == getattr(coefficients, name)[width]
    assert minimax.error(fit) < 0.5  # of 2^-24 or 2^-53: half a unit in the last place, at the most


def test_other_numbers_are_derived() -> None:
    with mpmath.workdps(minimax.DIGITS):
        for name, table in minimax.constants().items():
            assert table == getattr(coefficients, name), name
    assert tuple(minimax.two_over_pi()) == coefficients.TWO_OVER_PI


@pytest.mark.slow
def test_the_file_of_coefficients_is_derived() -> None:
    assert minimax.main(["--check"]) == 0


# -- machine code ---------------------------------------------------------------------------------
LIBRARY = "exp exp2 expm1 log log2 log1p pow sin cos sincos tan tanh sinh cosh atan erf erfc ldexp"


@pytest.mark.skipif(not has_wide_vectors(), reason="no x86 processor with AVX2 and FMA")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", JUDGES)
def test_loops_are_vectors_and_call_no_library(name: str, dtype: type) -> None:
    code = machine_code(name, dtype, 2 if name == "pow" else 1)
    suffix = "ps" if dtype is np.float32 else "pd"
    kernel = re.sub(r"(?s)^symgrad_\w+:.*?\.size", "", code, flags=re.M)
    assert len(re.findall(rf"vfn?m(?:add|sub)\w*{suffix}\s.*%[yz]mm", kernel)) >= 5
    called = set(re.findall(r"[$\s](\w+)(?=[,\s]|$)", code))
    library = {f"{stem}{end}" for stem in LIBRARY.split() for end in ("", "f", "l")}
    assert not called & library
    if name == "pow" and llvm.get_host_cpu_features().get("avx512f"):
        assert "%zmm" in kernel
    if name in ("sin", "cos", "tan"):
        assert re.search(rf"symgrad_{name}_f{WIDTH[dtype]}_x\d", kernel)


def test_a_program_holds_what_it_uses() -> None:
    text = runtime_source(["exp"])
    for name in ("TWO_OVER_PI", "ERF_FAR", "power_of", "sin_of", "linkonce_odr"):
        assert name not in text
    assert all(name in PRIMITIVES for name in JUDGES) and compiled("exp")
