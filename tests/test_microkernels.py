"""Our matrix products: every instruction set of this processor, strides, tails, special values."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

import symgrad as sg
from codegen.runtime import library, settings
from codegen.runtime.instruction_sets import (
    INSTRUCTION_SETS,
    Element,
    available,
    instruction_set,
)
from codegen.runtime.microkernels import copying_name
from codegen.runtime.packed import packed_size, product_symbol
from tests.scalar_kernels import FLOATS

SETS = [
    pytest.param(
        name,
        marks=() if name in available() else pytest.mark.skip(f"this processor has no {name}"),
    )
    for name in INSTRUCTION_SETS
]
# below, at and above the widths of vectors, of tiles, of panels and of blocks
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 12, 13, 16, 17, 31, 33, 64, 65, 100)
LONG = [
    *((3, 5, 700), (70, 66, 513), (7, 130, 300), (1100, 18, 20), (2, 3, 2500), (5, 9, 1100)),
    *((1, 400, 300), (400, 1, 300), (300, 40, 1), (1, 1, 3000)),
    *((1, 257, 3), (257, 1, 3), (1, 130, 2), (130, 1, 2), (1, 200, 7), (200, 1, 1), (1, 90, 1)),
    *((2, 201, 3), (3, 77, 2), (130, 3, 2), (2, 101, 1), (5, 2, 333), (1, 3, 1000), (2, 6, 97)),
    *((16, 33, 32), (7, 12, 45)),
    # several blocks of rows and of k; panels, whole or not, that are copied while others are read
    *((270, 66, 520), (100, 97, 130), (530, 50, 41), (97, 160, 129), (120, 49, 1030)),
    # rows of B near each other, several blocks of them; columns of A far apart, many panels
    *((98, 61, 1030), (901, 250, 9)),
]


def short(dtype: type) -> str:
    return "f32" if dtype is np.float32 else "f64"


def multiply(
    isa: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, alpha: float = 1, beta: float = 0
) -> None:
    """c := alpha * a @ b + beta * c by the compiled function, whatever the strides."""
    real = ctypes.c_float if a.dtype == np.float32 else ctypes.c_double
    whole, place = ctypes.c_int64, ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(None, *[whole] * 3, *[place, whole, whole] * 3, real, real)
    matrices: list[Any] = []
    for x in (a, b, c):
        matrices += [x.ctypes.data, *(step // x.itemsize for step in x.strides)]
    call = kind(library.link(short(a.dtype.type), INSTRUCTION_SETS[isa]))
    call(a.shape[0], b.shape[1], a.shape[1], *matrices, alpha, beta)


def laid(rng: np.random.Generator, shape: tuple[int, int], how: int, dtype: type) -> np.ndarray:
    """Random values: rows side by side, transposed, apart in longer rows, or apart both ways."""
    rows, columns = shape
    if how == 0:
        return rng.standard_normal(shape).astype(dtype)
    if how == 1:
        return rng.standard_normal((columns, rows)).astype(dtype).T
    if how == 2:
        wide = np.full((rows + 1, columns + 3), np.nan, dtype)
        wide[:rows, :columns] = rng.standard_normal(shape)
        return wide[:rows, :columns]
    apart = np.full((2 * rows, 3 * columns), np.nan, dtype)
    apart[::2, ::3] = rng.standard_normal(shape)
    return apart[::2, ::3]


def cases() -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Extents and layouts: every layout of the three matrices with many different extents."""
    rng = np.random.default_rng(11)
    found = []
    for layouts in itertools.product(range(4), repeat=3):
        for _ in range(8):
            m, n, k = (int(e) for e in rng.choice(EXTENTS, 3))
            found.append(((m, n, k), layouts))
    return found + [(e, s) for e in LONG for s in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1))]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_agrees_with_numpy(isa: str, dtype: type) -> None:
    rng = np.random.default_rng(5)
    eps, wide = np.finfo(dtype).eps, np.float64 if dtype is np.float32 else np.longdouble
    for number, ((m, n, k), layouts) in enumerate(cases()):
        a, b, c = (
            laid(rng, shape, how, dtype)
            for shape, how in zip(((m, k), (k, n), (m, n)), layouts, strict=True)
        )
        alpha, beta = dtype((1, 2)[number % 2]), dtype((0, 1, 0.5)[number % 3])
        before = c.copy()
        if not beta:
            c[:] = np.nan  # must not be read
        around = c.base.copy() if c.base is not None else None
        multiply(isa, a, b, c, alpha, beta)
        exact = alpha * (a.astype(wide) @ b.astype(wide)) + beta * before.astype(wide)
        usual = np.abs(alpha * (a @ b) + beta * before - exact).max()
        # one rounding more than NumPy for each of the products, the factor and the sum
        room = 2 * usual + 4 * eps * np.abs(exact).max()
        assert np.abs(c - exact).max() <= room, (m, n, k, layouts)
        if around is not None:  # what lies between the elements of c is as it was
            now = c.base.copy()
            c[:] = 0
            left, right = (np.isnan(x) for x in (around, now))
            inside = c.base == 0
            np.testing.assert_array_equal(left | inside, right | inside)


def pack(isa: str, b: np.ndarray) -> np.ndarray:
    """The panels of b, whatever its strides."""
    element = Element(short(b.dtype.type), INSTRUCTION_SETS[isa])
    library.link(*element)
    engine = library._engines[product_symbol(element)]
    address = engine.get_function_address(product_symbol(element, "pack"))
    whole, place = ctypes.c_int64, ctypes.c_void_p
    panels = np.full(packed_size(element, *b.shape) + 1, np.nan, b.dtype)
    kind = ctypes.CFUNCTYPE(None, whole, whole, place, whole, whole, place)
    steps = [step // b.itemsize for step in b.strides]
    kind(address)(b.shape[1], b.shape[0], b.ctypes.data, *steps, panels.ctypes.data)
    assert np.isnan(panels[-1])  # as long as is said
    return panels


def multiply_packed(
    isa: str, a: np.ndarray, panels: np.ndarray, c: np.ndarray, alpha: float, beta: float
) -> None:
    """c := alpha * a @ b + beta * c, of b the panels."""
    element = Element(short(a.dtype.type), INSTRUCTION_SETS[isa])
    engine = library._engines[product_symbol(element)]
    address = engine.get_function_address(product_symbol(element, "packed"))
    real = ctypes.c_float if a.dtype == np.float32 else ctypes.c_double
    whole, place = ctypes.c_int64, ctypes.c_void_p
    takes = [*[whole] * 3, place, whole, whole, place, place, whole, whole, real, real]
    left, target = ([x.ctypes.data, *(s // x.itemsize for s in x.strides)] for x in (a, c))
    extents = (*c.shape, a.shape[1])
    kind = ctypes.CFUNCTYPE(None, *takes)
    kind(address)(*extents, *left, panels.ctypes.data, *target, alpha, beta)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_products_with_panels(isa: str, dtype: type) -> None:
    """One copy of B, several products with it, of whole matrices and of rows."""
    rng = np.random.default_rng(8)
    wide = np.float64 if dtype is np.float32 else np.longdouble
    eps = np.finfo(dtype).eps
    extents = [(32, 128, 65), (7, 50, 530), (9, 33, 430), (130, 97, 40), (270, 49, 520)]
    extents += [(1, 3, 5), (5, 16, 3)]
    for (m, n, k), layout in itertools.product(extents, (0, 1, 3)):
        b = laid(rng, (k, n), layout, dtype)
        panels = pack(isa, b)
        for number, rows in enumerate((m, m // 2, 1)):
            a = laid(rng, (rows, k), (0, 1, 3)[number], dtype)
            c = laid(rng, (rows, n), (0, 3, 1)[number], dtype)
            alpha, beta = dtype((1, 1, 2)[number]), dtype((0, 1, 0.5)[number])
            if not rows:
                continue
            exact = alpha * (a.astype(wide) @ b.astype(wide)) + beta * c.astype(wide)
            sizes = np.abs(a).astype(wide) @ np.abs(b).astype(wide) + np.abs(c)
            if not beta:
                c[:] = np.nan
            multiply_packed(isa, a, panels, c, alpha, beta)
            # errors of sums of k terms stay far below k roundings of the sum of sizes
            assert (np.abs(c - exact) <= 2 * np.sqrt(k + 3) * eps * sizes).all(), (m, n, k, layout)
    nothing = np.full((3, 5), 7.0, dtype)
    multiply_packed(isa, np.empty((3, 0), dtype), pack(isa, np.empty((0, 5), dtype)), nothing, 1, 1)
    assert (nothing == 7).all()


def multiply_fetching(
    isa: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, beta: float, ranges: np.ndarray
) -> None:
    """c := a @ b + beta * c; meanwhile lines are fetched: rows of `ranges` are addresses, lines."""
    element = Element(short(a.dtype.type), INSTRUCTION_SETS[isa])
    library.link(*element)
    engine = library._engines[product_symbol(element)]
    address = engine.get_function_address(product_symbol(element, "fetching"))
    real = ctypes.c_float if a.dtype == np.float32 else ctypes.c_double
    whole, place = ctypes.c_int64, ctypes.c_void_p
    matrices: list[Any] = []
    for x in (a, b, c):
        matrices += [x.ctypes.data, *(step // x.itemsize for step in x.strides)]
    takes = [*[whole] * 3, *[place, whole, whole] * 3, real, real, place, whole]
    call = ctypes.CFUNCTYPE(None, *takes)(address)
    call(*c.shape, a.shape[1], *matrices, 1, beta, ranges.ctypes.data, len(ranges))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_products_that_fetch(isa: str, dtype: type) -> None:
    """Of forms that suit, several blocks of k among them, and of others, which fetch nothing.

    Ranges lie anywhere, where no memory is, too: fetching fails nowhere and changes nothing.
    """
    rng = np.random.default_rng(8)
    wide = np.float64 if dtype is np.float32 else np.longdouble
    memory = rng.standard_normal(3000)
    before = memory.copy()
    data = memory.ctypes.data
    ranges = np.array([[data, 100], [8, 3], [data + 80, 0], [data + 8000, 250]], np.int64)
    extents = [(32, 96, 64), (33, 112, 130), (9, 33, 7), (8, 64, 3), (95, 80, 1100), (17, 50, 40)]
    extents += [(7, 96, 64), (96, 64, 40), (33, 600, 20), (32, 5, 30), (3, 3, 0)]
    for m, n, k in extents:
        for number, (left, right, out) in enumerate(((0, 0, 0), (1, 2, 2), (3, 0, 1), (0, 1, 0))):
            shapes = (((m, k), left), ((k, n), right), ((m, n), out))
            a, b, c = (laid(rng, shape, how, dtype) for shape, how in shapes)
            beta = dtype((0, 1, 0.5, 1)[number])
            exact = a.astype(wide) @ b.astype(wide) + beta * c.astype(wide)
            sizes = np.abs(a).astype(wide) @ np.abs(b).astype(wide) + np.abs(c)
            if not beta:
                c[:] = np.nan
            multiply_fetching(isa, a, b, c, beta, ranges[: number + 1])
            room = 2 * np.sqrt(k + 3) * np.finfo(dtype).eps * sizes  # as of products with panels
            assert (np.abs(c - exact) <= room).all(), (m, n, k, number)
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("isa", SETS)
def test_short_inner_products_round_once(isa: str) -> None:
    rng = np.random.default_rng(3)
    longest = 2 * INSTRUCTION_SETS[isa].size // 4
    for k in range(9, longest + 1):
        a, b = (rng.standard_normal((k, 1)).astype(np.float32) for _ in range(2))
        exact = a.T.astype(float) @ b.astype(float)
        c = np.full((1, 1), np.nan, np.float32)
        multiply(isa, a.T, b, c)
        assert abs(c - exact) <= 0.5001 * np.spacing(np.abs(exact).astype(np.float32)), k


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_without_elements(isa: str, dtype: type) -> None:
    for beta, expected in ((0.0, 0.0), (1.0, 3.0), (0.5, 1.5)):
        c = np.full((3, 5), np.nan if beta == 0 else 3.0, dtype)
        multiply(isa, np.empty((3, 0), dtype), np.empty((0, 5), dtype), c, 1, beta)
        np.testing.assert_array_equal(c, expected)
    for m, n in ((0, 5), (3, 0)):
        around = np.full((4, 6), 7.0, dtype)
        multiply(isa, np.ones((m, 7), dtype), np.ones((7, n), dtype), around[:m, :n])
        assert (around == 7).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_special_values_as_in_numpy(isa: str, dtype: type) -> None:
    rng = np.random.default_rng(2)
    for m, n, k in ((3, 5, 7), (1, 17, 33), (17, 1, 33), (20, 33, 40), (2, 3, 90), (40, 2, 90)):
        for ta, tb in itertools.product((0, 1), repeat=2):
            a, b = laid(rng, (m, k), ta, dtype), laid(rng, (k, n), tb, dtype)
            a[rng.integers(m), rng.integers(k)] = np.inf
            b[rng.integers(k), rng.integers(n)] = np.nan
            b[:, rng.integers(n)] *= 0  # inf * 0 is NaN
            c = np.empty((m, n), dtype)
            multiply(isa, a, b, c)
            with np.errstate(invalid="ignore"):
                expected = a.astype(float) @ b.astype(float)
            np.testing.assert_array_equal(np.isnan(c), np.isnan(expected))
            np.testing.assert_array_equal(np.isinf(c), np.isinf(expected))


class Guarded:
    """Matrices that end where memory ends: pages behind them may not be touched."""

    def __init__(self, room: int) -> None:
        page = mmap.PAGESIZE
        self.room = -(-room // page) * page
        self.map = mmap.mmap(-1, self.room + page)
        self.whole = np.frombuffer(self.map, np.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if protect(self.whole.ctypes.data + self.room, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, values: np.ndarray) -> np.ndarray:
        """A copy whose last byte is the last that may be touched."""
        raw = self.whole[self.room - values.nbytes : self.room]
        copy = raw.view(values.dtype).reshape(values.shape)
        copy[:] = values
        return copy


@pytest.mark.skipif(os.name != "posix", reason="pages are protected by POSIX's mprotect")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_touches_nothing_behind_its_operands(isa: str, dtype: type) -> None:
    rng = np.random.default_rng(9)
    rooms = [Guarded(8 * 700 * 20) for _ in range(3)]
    shapes = [e for e, (*_, last) in cases() if not last] + [(1, 257, 3), (2, 700, 1), (5, 6, 700)]
    shapes += [(100, 97, 130), (112, 96, 117), (97, 129, 108), (1, 1, 31), (1, 2, 333), (3, 5, 333)]
    for m, n, k in shapes:
        if max(m * n, m * k, k * n) > 700 * 20:
            continue
        for ta, tb in itertools.product((0, 1), repeat=2):
            whole = rng.standard_normal((k, m) if ta else (m, k)).astype(dtype)
            other = rng.standard_normal((n, k) if tb else (k, n)).astype(dtype)
            a, b = rooms[0].put(whole), rooms[1].put(other)
            a, b = (x.T if turned else x for x, turned in ((a, ta), (b, tb)))
            c = rooms[2].put(np.full((m, n), np.nan, dtype))
            multiply(isa, a, b, c)
            assert np.isfinite(c).all(), (m, n, k, ta, tb)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", SETS)
def test_uses_the_vectors(isa: str, dtype: type) -> None:
    element = Element(short(dtype), INSTRUCTION_SETS[isa])
    module = llvm.parse_assembly(library.library_text(element))
    code = library.machine(element.isa).emit_assembly(module)
    letter = "s" if dtype is np.float32 else "d"
    if isa == "neon":
        assert "fmla" in code
    else:
        register = {"avx512": "%zmm", "avx2": "%ymm", "plain": "%xmm"}[isa]
        operation = f"vfmadd231p{letter}" if element.isa.fused else f"mulp{letter}"
        lines = [line for line in code.splitlines() if operation in line]
        assert sum(register in line for line in lines) > 100


@pytest.mark.parametrize("dtype", FLOATS)
def test_tiles_that_copy_stay_in_registers(dtype: type) -> None:
    if "avx512" not in available():
        pytest.skip("this processor has no avx512")
    element = Element(short(dtype), INSTRUCTION_SETS["avx512"])
    module = llvm.parse_assembly(library.library_text(element))
    code = library.machine(element.isa).emit_assembly(module)
    for vectors, sums in zip(element.copying, (16, 24), strict=True):
        tile = code.split(f"\n{copying_name(vectors)}:", 1)[1].split(".Lfunc_end", 1)[0]
        assert tile.count("vfmadd231p") > 4 * sums
        assert not spilled(tile)
        tile = code.split(f"\nfetching_tile_{vectors}:", 1)[1].split(".Lfunc_end", 1)[0]
        assert tile.count("prefetcht1") == 2 and tile.count("vfmadd231p") > 4 * sums
        assert not spilled(tile)


def spilled(code: str) -> list[str]:
    """Instructions that keep a vector on the stack; an argument may come from there."""
    lines = [x for x in code.splitlines() if "%zmm" in x and "(%rsp" in x]
    return [x for x in lines if "vpbroadcast" not in x]


def test_the_choice_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYMGRAD_VECTORS", raising=False)
    assert instruction_set().name == available()[0]
    monkeypatch.setenv("SYMGRAD_VECTORS", "plain")
    assert instruction_set().name == "plain"
    monkeypatch.setenv("SYMGRAD_VECTORS", "mmx")
    wrong = r"SYMGRAD_VECTORS='mmx': this processor runs .*plain; set one of these\."
    with pytest.raises(ValueError, match=wrong):
        instruction_set()
    asked = sg.input("x", (3,)) * 2
    with pytest.raises(sg.CompileError, match=rf"^compile: the environment has {wrong}"):
        sg.compile(asked)
    monkeypatch.setenv("SYMGRAD_VECTORS", "")
    monkeypatch.setenv("SYMGRAD_PRODUCTS", "mkl")
    wrong = "SYMGRAD_PRODUCTS='mkl': set one of own, blas"
    with pytest.raises(ValueError, match=wrong):
        settings.products_from()
    with pytest.raises(sg.CompileError, match=rf"^compile: the environment has {wrong}"):
        sg.compile(asked)
