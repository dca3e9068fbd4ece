"""The runtime of generated kernels: its mathematics, its memory access, BLAS and export."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import product as product_of
from pathlib import Path

import numpy as np
import pytest
from numba import njit, types
from numba.core.errors import TypingError

from codegen import loading
from codegen.runtime import linalg, memory, settings, vector_math
from codegen.runtime.draws import DRAWS
from codegen.runtime.export import runtime_source, standalone
from codegen.runtime.linking import linked
from codegen.runtime.names import RUNTIME
from codegen.runtime.object_files import optimized, program_code
from symgrad.graph.functions import FUNCTIONS
from tests.scalar_kernels import FLOATS, apply, has_wide_vectors, machine_code

UNARY = [
    *("exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "abs", "sign", "floor", "sin", "cos", "tan"),
    *("tanh", "sinh", "cosh", "arctan", "sigmoid", "softplus", "erf", "isnan", "isfinite"),
]
BINARY = ["maximum", "minimum", "pow", "floor_divide", "mod"]
CASTS = ["cast_float32", "cast_float64", "cast_int32", "cast_int64", "cast_bool"]
# what the printer writes as Python operators
OPERATORS = {
    *("less", "less_equal", "equal", "not_equal", "stop_gradient"),
    *("logical_and", "logical_or", "logical_xor", "logical_not"),
}


def bits_below(dtype: type) -> np.ndarray:
    """Special and ordinary numbers: zeros, infinities, NaN, large, small and halves."""
    usual = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 1e3, -1e3]
    return np.array([*usual, 1e-30, -1e-30, 3.0, -3.0, 7.25, -7.25, 1e30, -1e30], dtype)


def assert_same(got: np.ndarray, expected: np.ndarray, rtol: float = 0.0) -> None:
    """Equal values, NaN at the same places, and the same sign of zeros."""
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=0)
    zeros = (expected == 0) & (got == 0)
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


# -- mathematics ----------------------------------------------------------------------------------


def test_every_scalar_function_has_a_primitive_or_an_operator() -> None:
    merging = {"greatest", "least"}
    known = set(vector_math.PRIMITIVES) | set(DRAWS)
    assert set(FUNCTIONS) | merging == known | OPERATORS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_special_values_as_in_numpy(name: str, dtype: type) -> None:
    x = bits_below(dtype)
    with np.errstate(all="ignore"):
        expected = np.asarray(FUNCTIONS[name].numpy(x))
    assert_same(apply(name, x, dtype=expected.dtype), expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_special_pairs_as_in_numpy(name: str, dtype: type) -> None:
    x, y = (a.ravel() for a in np.meshgrid(bits_below(dtype), bits_below(dtype)))
    with np.errstate(all="ignore"):
        expected = FUNCTIONS[name].numpy(x, y)
    if name in ("maximum", "minimum"):  # on some machines NumPy returns the other of equal zeros
        expected = np.where(x == y, y, expected)
    assert_same(apply(name, x, y), expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", ["maximum", "minimum", "floor_divide", "mod"])
def test_integer_pairs_as_in_numpy(name: str, dtype: type) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = np.array([0, 1, -1, 2, -2, 3, -3, 7, -7, 100, low, low + 1, high], dtype)
    x, y = (a.ravel() for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = FUNCTIONS[name].numpy(x, y)
    np.testing.assert_array_equal(apply(name, x, y), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integer_powers(dtype: type) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    base = np.array([0, 1, -1, 2, -2, 3, -7, 100, low, low + 1, high], dtype)
    x, y = (a.ravel() for a in np.meshgrid(base, np.array([0, 1, 2, 3, 5, 31, 64, high], dtype)))
    np.testing.assert_array_equal(apply("pow", x, y), x**y)
    below = np.array([-1, -2, -3, low], dtype)
    x, y = (a.ravel() for a in np.meshgrid(base, below))
    expected = np.where(x == 1, 1, np.where(x == -1, 1 - 2 * (y & 1), 0))
    np.testing.assert_array_equal(apply("pow", x, y), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integer_functions_as_in_numpy(dtype: type) -> None:
    x = np.array([0, 1, -1, 5, -7], dtype)
    for name in ("abs", "sign", "floor"):
        np.testing.assert_array_equal(apply(name, x), FUNCTIONS[name].numpy(x))
    base, exponent = np.array([2, -3, 5, 7, 0], dtype), np.array([5, 3, 0, 1, 2], dtype)
    np.testing.assert_array_equal(apply("pow", base, exponent), base**exponent)


@pytest.mark.parametrize("dtype", FLOATS)
def test_saturation(dtype: type) -> None:
    ends = np.array([-1000, 1000], dtype)
    np.testing.assert_array_equal(apply("exp", ends), [0, np.inf])
    np.testing.assert_array_equal(apply("sigmoid", ends), [0, 1])
    np.testing.assert_array_equal(apply("tanh", ends), [-1, 1])
    np.testing.assert_array_equal(apply("softplus", ends), [0, 1000])
    np.testing.assert_array_equal(apply("expm1", ends), [-1, np.inf])
    tiny = np.finfo(dtype).smallest_subnormal
    np.testing.assert_allclose(apply("log", np.array([tiny])), np.log(np.array([tiny])), rtol=1e-6)


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.bool_])
def test_casts_as_in_numpy(name: str, dtype: type) -> None:
    x = np.array([0.0, -0.0, 0.25, 1.0, -1.0, 2.75, -2.75, 100.0]).astype(dtype)
    expected = FUNCTIONS[name].numpy(x)
    assert_same(apply(name, x, dtype=expected.dtype), expected)


def test_casts_to_integers_are_defined_for_every_float() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9], np.float32)
    info = np.iinfo(np.int32)
    expected = [0, info.max, info.min, info.max, info.min]
    np.testing.assert_array_equal(apply("cast_int32", x, dtype=np.int32), expected)


def test_select_takes_one_value() -> None:
    f = vector_math.select

    @njit
    def choose(c, a, b):
        return f(c, a, b)

    assert choose(True, np.float32(2), np.float32(np.nan)) == 2
    assert choose(False, 5, 7) == 7


def test_mixed_types_are_refused() -> None:
    f = vector_math.maximum

    @njit
    def mixed(a, b):
        return f(a, b)

    with pytest.raises(TypingError, match="maximum: arguments of one type are needed"):
        mixed(np.float32(1), np.float64(1))


@pytest.mark.skipif(not has_wide_vectors(), reason="the CPU has no AVX2")
@pytest.mark.parametrize("name", sorted(set(UNARY) - {"isnan", "isfinite"}))
def test_float32_code_holds_no_float64_arithmetic(name: str) -> None:
    # single huge arguments of circular functions go through float64
    code = re.sub(r"(?s)^symgrad_\w+_(slow|one):.*?\.size", "", machine_code(name), flags=re.M)
    assert not re.search(r"\bv?(add|sub|mul|div|sqrt|fmadd\w*|cvtss2)[ps]d\b", code)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("f32", "f4"), ("f64", "f8"), ("i32", "i4"), ("i64", "i8"), ("b1", "?")],
)
def test_pointers_load_and_store(suffix: str, dtype: str) -> None:
    entry = getattr(memory, f"pointer_{suffix}")
    at = getattr(memory, f"at_{suffix}")
    address, extent, ld, st, shift = (
        getattr(memory, name) for name in ("address", "extent", "ld", "st", "shift")
    )
    size = np.dtype(dtype).itemsize

    @njit
    def reverse(table, dims):
        n = extent(dims, 1)
        source, target = entry(table, 1), at(address(table, 0), 2 * size)
        for i in range(n):
            st(target, n - 1 - i, ld(shift(source, 1), i - 1, 0), 1)

    x = np.array([3, 0, 7, 0, 1]).astype(dtype)
    work = np.zeros(9, dtype)
    table, dims = np.array([work.ctypes.data, x.ctypes.data]), np.array([99, 5])
    reverse(table.ctypes.data, dims.ctypes.data)
    np.testing.assert_array_equal(work, [0, 0, *x[::-1], 0, 0])


def refuse(body: Callable[..., None], *arguments: types.Type) -> str:
    with pytest.raises(TypingError) as caught:
        njit(types.void(*arguments))(body)
    return str(caught.value)


def test_stores_of_another_precision_are_refused() -> None:
    st = memory.st
    single, double = types.CPointer(types.float32), types.CPointer(types.float64)

    def store(p, x):
        st(p, 0, x, 0)

    assert "st: a float64 value into float32 memory" in refuse(store, single, types.float64)
    assert "st: a float32 value into float64 memory" in refuse(store, double, types.float32)
    assert "st: a int64 value into float32 memory" in refuse(store, single, types.int64)


def test_alias_scopes_are_literals_in_range() -> None:
    ld = memory.ld
    pointer = types.CPointer(types.float32)

    def beyond(p):
        ld(p, 0, 32)

    def computed(p, k):
        ld(p, 0, k)

    assert "alias scope 32 is not in -1..31" in refuse(beyond, pointer)
    assert "must be an integer literal" in refuse(computed, pointer, types.int64)


SCOPED = """
from codegen.runtime.kernels import kernel
from codegen.runtime.memory import extent, ld, pointer_f32, st


@kernel
def add(p, q, n):
    for i in range(n):
        st(q, i, ld(p, i, {scope}) + ld(q, i, {other}), {other})


@kernel
def program(table, dims):
    add(pointer_f32(table, 0), pointer_f32(table, 1), extent(dims, 0))
    add(pointer_f32(table, 1), pointer_f32(table, 0), extent(dims, 0))
    return 0
"""


def test_scopes_let_loops_vectorise_and_kernels_stay_apart() -> None:
    programs = [
        loading.run_module(name, SCOPED.format(scope=scope, other=other), f"<{name}>").program
        for name, scope, other in (("apart", 3, 4), ("free", -1, -1))
    ]
    apart, free = (str(optimized(program)) for program in programs)
    assert "symgrad slot" in apart and "vector.memcheck" not in apart
    assert "symgrad slot" not in free and "vector.memcheck" in free
    for program, text in zip(programs, (apart, free), strict=True):
        assert len(re.findall(r"call [^@\n]*@\S*add", text)) == 2, "a kernel was inlined"
        x, y = np.arange(7, dtype=np.float32), np.ones(7, np.float32)
        table, dims = np.array([x.ctypes.data, y.ctypes.data]), np.array([7])
        linked(program_code(program))(table.ctypes.data, dims.ctypes.data)
        np.testing.assert_array_equal(y, np.arange(7) + 1)
        np.testing.assert_array_equal(x, 2 * np.arange(7) + 1)


# -- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", settings.PRODUCTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gemm(dtype: type, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMGRAD_PRODUCTS", whose)
    gemm = linalg.gemm_f32 if dtype is np.float32 else linalg.gemm_f64
    pointer = memory.pointer_f32 if dtype is np.float32 else memory.pointer_f64

    @njit
    def product(table, ta, tb, m, n, k, alpha, lda, ldb, beta, ldc):
        a, b, c = pointer(table, 0), pointer(table, 1), pointer(table, 2)
        gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)

    rng = np.random.default_rng(3)
    shapes = [
        (3, 5, 7),
        (3, 1, 7),
        (1, 5, 7),
        (1, 1, 7),
        (3, 5, 0),
        (3, 1, 0),
        (0, 5, 7),
        (3, 0, 7),
    ]
    for (m, n, k), ta, tb, beta in product_of(shapes, (0, 1), (0, 1), (0.0, 0.5, 1.0)):
        a = rng.standard_normal((k, m) if ta else (m, k)).astype(dtype)
        b = rng.standard_normal((n, k) if tb else (k, n)).astype(dtype)
        c = rng.standard_normal((m, n + 2)).astype(dtype)  # rows further apart than they are long
        left, right = (a.T if ta else a), (b.T if tb else b)
        expected = c.copy()
        expected[:, :n] = dtype(2) * (left @ right) + dtype(beta) * c[:, :n]
        if not beta:
            c[:, :n] = np.nan  # must not be read
        table = np.array([a.ctypes.data, b.ctypes.data, c.ctypes.data])
        sizes = (ta, tb, m, n, k)
        product(
            table.ctypes.data, *sizes, dtype(2), a.shape[1], b.shape[1], dtype(beta), c.shape[1]
        )
        np.testing.assert_allclose(c, expected, rtol=50 * np.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_products_with_one_copy_of_b(dtype: type) -> None:
    short = "f32" if dtype is np.float32 else "f64"
    pack, gemm = getattr(linalg, f"pack_{short}"), getattr(linalg, f"gemm_packed_{short}")
    pointer = memory.pointer_f32 if dtype is np.float32 else memory.pointer_f64

    @njit
    def steps(table, ta, tb, m, n, k, lda, ldb, one, zero):
        a, b = pointer(table, 0), pointer(table, 1)
        c, panels = pointer(table, 2), pointer(table, 3)
        pack(tb, k, n, b, ldb, panels)
        gemm(ta, m, n, k, one, a, lda, panels, zero, c, n)
        gemm(ta, m, n, k, one, a, lda, panels, one, c, n)

    rng = np.random.default_rng(4)
    m, n, k = 5, 50, 7
    for ta, tb in product_of((0, 1), (0, 1)):
        a = rng.standard_normal((k, m) if ta else (m, k)).astype(dtype)
        b = rng.standard_normal((n, k) if tb else (k, n)).astype(dtype)
        c = np.full((m, n), np.nan, dtype)
        panels = np.empty(linalg.packed_length(short, k, n), dtype)
        table = np.array([x.ctypes.data for x in (a, b, c, panels)])
        extents = (ta, tb, m, n, k, a.shape[1], b.shape[1])
        steps(table.ctypes.data, *extents, dtype(1), dtype(0))
        expected = 2 * ((a.T if ta else a) @ (b.T if tb else b))
        np.testing.assert_allclose(c, expected, rtol=50 * np.finfo(dtype).eps, atol=1e-6)


FETCHING = """
from codegen.runtime.kernels import kernel
from codegen.runtime.linalg import gemm_fetching_f32
from codegen.runtime.memory import pointer_f32, pointer_f64, pointer_i64, extent, ld, ranges_of, st
import numpy as np

f32 = np.float32


@kernel
def product(a, b, c, ranges, count, told):
    gemm_fetching_f32(0, 0, 9, 50, 7, f32(1), a, 7, b, 50, f32(1), c, 50, ranges, count)
    for k in range(4):
        st(told, k, extent(ranges, k), -1)


@kernel
def program(table, dims):
    a = pointer_f32(table, 0)
    b = pointer_f32(table, 1)
    c = pointer_f32(table, 2)
    ranges = ranges_of(a, 17, pointer_f64(table, 2), extent(dims, 0))
    product(a, b, c, ranges, 2, pointer_i64(table, 3))
    return 0
"""


@pytest.mark.parametrize("whose", settings.PRODUCTS)
def test_products_that_fetch(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of ranges, and the product that is given it."""
    monkeypatch.setenv("SYMGRAD_PRODUCTS", whose)
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 7), (7, 50)))
    c, told = np.ones((9, 50), np.float32), np.zeros(4, np.int64)
    program = loading.run_module("fetching", FETCHING, "<fetching>").program
    table, dims = np.array([x.ctypes.data for x in (a, b, c, told)]), np.array([225])
    linked(program_code(program))(table.ctypes.data, dims.ctypes.data)
    np.testing.assert_allclose(c, a @ b + 1, rtol=1e-5, atol=1e-5)
    assert told.tolist() == [a.ctypes.data, 2, c.ctypes.data, 29]  # lines of 64 bytes


def test_gemm_refuses_mixed_precision() -> None:
    gemm = linalg.gemm_f32

    def mixed(p, q):
        gemm(0, 0, 1, 1, 1, np.float32(1), p, 1, q, 1, np.float32(0), p, 1)

    single, double = types.CPointer(types.float32), types.CPointer(types.float64)
    assert "gemm_f32: operands must be float32*" in refuse(mixed, single, double)

    def mixed_pack(p, q):
        linalg.pack_f32(0, 1, 1, p, 1, q)

    assert "pack_f32: matrices must be float32*" in refuse(mixed_pack, single, double)

    def mixed_fetching(p, q):
        one = np.float32(1)
        linalg.gemm_fetching_f32(0, 0, 1, 1, 1, one, p, 1, q, 1, one, p, 1, 0, 0)

    assert "gemm_fetching_f32: " in refuse(mixed_fetching, single, double)


# -- export ---------------------------------------------------------------------------------------

GENERATED = '''"""A program in one kernel."""
from __future__ import annotations

import numpy as np

from codegen.runtime.kernels import kernel
from codegen.runtime.memory import extent, ld, pointer_f32, st
from codegen.runtime.vector_math import exp, maximum

f32 = np.float32


@kernel
def k0(p0, p1, n):
    for i in range(n):
        st(p1, i, maximum(exp(ld(p0, i, 0)), f32(1.0)), 1)


@kernel
def program(table, dims):
    k0(pointer_f32(table, 0), pointer_f32(table, 1), extent(dims, 0))
    return 0
'''

USE = """
import sys
if __name__ == "__main__":
    x, y = np.array([-1.0, 0.0, 1.0], np.float32), np.zeros(3, np.float32)
    table, dims = np.array([x.ctypes.data, y.ctypes.data]), np.array([3])
    linked(program_code(program))(table.ctypes.data, dims.ctypes.data)
    print(np.allclose(y, np.maximum(np.exp(x), 1)), "codegen" in sys.modules)
"""


def test_a_saved_program_runs_without_symgrad(tmp_path: Path) -> None:
    text = standalone(GENERATED, besides=("linked", "program_code"))
    assert text.startswith('"""A program in one kernel."""\n\nfrom __future__')
    assert "codegen.runtime" not in text and "import symgrad" not in text
    file = tmp_path / "kernels.py"
    file.write_text(text + USE)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-I", str(file)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["True", "False"], result.stderr


def test_every_name_can_be_exported() -> None:
    names = [*vector_math.PRIMITIVES, "ld", "st", "gemm_f32", "gemm_f64", "at_b1", "shift", "fma"]
    namespace: dict[str, object] = {}
    exec(compile(runtime_source(names), "<runtime>", "exec"), namespace)
    assert set(names) <= set(namespace)
    assert "gemm" not in runtime_source(["ld"])
    with pytest.raises(KeyError, match="no 'unheard'"):
        runtime_source(["unheard"])


def test_the_names_for_programs_are_those_that_the_runtime_defines() -> None:
    for module, names in RUNTIME.items():
        found = vars(importlib.import_module(f"codegen.runtime.{module}"))
        assert all(hasattr(found[name], "_defn") for name in names - {"interleaved", "kernel"})
    assert RUNTIME["vector_math"] >= vector_math.PRIMITIVES.keys()
    assert RUNTIME["draws"] == DRAWS.keys()
