"""Short rows as vectors, and places of extremes: compiled, against `evaluate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.places import places_by_value
from codegen.teamwork import TeamInvocation
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Node
from tests.team_interpreter import everything_shared

# Widths that fill vectors, and that do not; the last two are loops.
WIDTHS = (2, 10, 16, 17, 31, 64, 65)
ROWS = 5
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0)


def judged(nodes: list[Node], values: dict[str, Any], near: float) -> Compiled:
    f = sg.compile(nodes)
    for node, got, wanted in zip(nodes, f(**values), evaluate(nodes, values), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        if got.dtype.kind == "f":
            np.testing.assert_allclose(got, wanted, near, near, err_msg=f"{node!r} {node.shape}")
        else:
            np.testing.assert_array_equal(got, wanted, err_msg=f"{node!r} {node.shape}")
    return f


def leaves(width: int, dtype: Any, values: dict[str, Any]) -> tuple[Node, ...]:
    """Rows, a row, a column, and labels."""
    rng = np.random.default_rng(width)
    made = {
        "x": rng.normal(size=(ROWS, width)).astype(dtype),
        "r": rng.normal(size=width).astype(dtype),
        "c": rng.normal(size=(ROWS, 1)).astype(dtype),
        "k": rng.integers(-9, 9, (ROWS, width)).astype(np.int32),
        "y": rng.integers(width, size=ROWS).astype(np.int32),
    }
    values |= {f"{name}{width}": value for name, value in made.items()}
    return tuple(sg.input(f"{n}{width}", v.shape, dtype=v.dtype) for n, v in made.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_every_width(dtype: Any) -> None:
    values: dict[str, Any] = {}
    nodes: list[Node] = []
    for width in WIDTHS:
        x, r, c, k, y = leaves(width, dtype, values)
        loss = sg.cross_entropy(x, y).mean()
        middle = x - x.mean(1, keepdims=True)
        nodes += [
            x * r + c, sg.softmax(x * c), sg.logsumexp(x, 1), loss, sg.grad(loss, x),
            middle * sg.rsqrt((middle * middle).mean(1, keepdims=True) + 1e-5) * r,
            sg.max(x, 1), sg.min(x, 1), sg.prod(x * 0.5, 1), sg.tanh(x).sum(0), sg.max(x, 0),
            k.sum(1), sg.max(k, 1), sg.min(k, 1), sg.prod(k, 1), k * k - 3, sg.any(k > 6, 1),
            sg.all(k < 8, 1), sg.where((k > 0) & (x < r), x, -1.0), sg.astype(x > c, "int32"),
            sg.astype(k, dtype) / 7 + x, sg.astype(x * 3, "int32"), sg.sin(x) + r, sg.cumsum(x, 1),
            sg.astype(sg.arange(width), dtype) * x, sg.abs(x) ** 1.5, k // 3, k % 4, -x, x / c,
            sg.one_hot(y, width), sg.flip(x, 1) * 2, sg.astype(x, np.float64).sum(1),
        ]  # fmt: skip
    source = judged(nodes, values, 1e-5 if dtype is np.float32 else 1e-12).source
    assert "ld_row" in source and "row_sum" in source and "st_row" in source


def test_special_values_in_rows() -> None:
    """NaN wins, infinities are numbers, wherever in the row they stand."""
    values: dict[str, Any] = {}
    nodes: list[Node] = []
    for width in (3, 16, 17, 64, 100):
        rows = np.tile(np.linspace(-1, 1, width, dtype=np.float32), (3 * len(SPECIAL), 1))
        for n, number in enumerate(SPECIAL * 3):
            rows[n, (0, width // 2, width - 1)[n // len(SPECIAL)]] = number
        values[f"x{width}"] = rows
        x = sg.input(f"x{width}", rows.shape)
        nodes += [
            sg.max(x, 1), sg.min(x, 1), x.sum(1), sg.argmax(x, 1), sg.argmin(x, 1),
            sg.argmax(x, 0), sg.argmin(x), sg.softmax(x), sg.isnan(x), sg.max(x, 0),
        ]  # fmt: skip
    judged(nodes, values, 1e-6)


def test_the_first_place_wins() -> None:
    """Of equal elements, of zeros of either sign, of infinities."""
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 3, (7, 5, 33)).astype(np.float32)
    zeros = np.where(rng.random((4, 33)) < 0.5, 0.0, -0.0).astype(np.float32)
    low = np.full((2, 33), -np.inf, np.float32)
    x, z, u = (sg.input(n, v.shape) for n, v in zip("xzu", (whole, zeros, low), strict=True))
    k = sg.astype(x, "int32")
    nodes = [
        *(sg.argmax(n, axis) for n in (x, k, x > 1) for axis in (0, 1, 2, None)),
        *(sg.argmin(n, axis) for n in (x, k, x > 1) for axis in (0, 1, 2, None)),
        *(verb(n, 1) for verb in (sg.argmax, sg.argmin) for n in (z, u, -u)),
    ]
    judged(nodes, {"x": whole, "z": zeros, "u": low}, 0.0)
    for node, wanted in zip(places_by_value(nodes), nodes, strict=True):
        given = {"x": whole, "z": zeros, "u": low}
        np.testing.assert_array_equal(evaluate(node, given), evaluate(wanted, given))


def test_running_totals_in_pieces() -> None:
    """Along rows of every length, whole and left over, with work before them and after."""
    rng = np.random.default_rng(4)
    values: dict[str, Any] = {}
    nodes: list[Node] = []
    for width in (3, 4, 10, 16, 31, 32, 33, 47, 100):
        for dtype in ("float32", "float64", "int32", "int64"):
            name = f"{dtype}_{width}"
            numbers = rng.integers(-9, 9, (3, width))
            values[name] = (numbers / 7).astype(dtype) if dtype[0] == "f" else numbers.astype(dtype)
            x = sg.input(name, (3, width), dtype=dtype)
            nodes += [sg.cumsum(x, 1), sg.cumsum(2 * x - 1, 1) * 3, sg.cumsum(x * x, 1).sum(1)]
            nodes += [sg.cumprod(x if dtype[0] == "i" else 1 + x / 32, 1)]
    n = sg.dim("n")
    free = sg.input("free", (n,))
    nodes += [sg.cumsum(free), sg.softmax(sg.cumsum(free))]
    f = sg.compile(nodes)
    assert f.source.count("= running_sum(") >= 8 and f.source.count("= running_product(") >= 4
    for length in (1, 15, 16, 17, 31, 32, 33, 500):
        values["free"] = rng.normal(size=length).astype(np.float32)
        for node, got, wanted in zip(nodes, f(**values), evaluate(nodes, values), strict=True):
            assert got.dtype == wanted.dtype
            if got.dtype.kind == "i":
                np.testing.assert_array_equal(got, wanted)
                continue
            near = (1e-5 if got.dtype == np.float32 else 1e-13) * max(1.0, np.abs(wanted).max())
            np.testing.assert_allclose(got, wanted, 0, near, err_msg=f"{node!r}")


def test_running_totals_of_special_values() -> None:
    """NaN stays from where it stands; infinities of two signs make it; zeros keep their sign."""
    rows = np.tile(np.linspace(-1, 1, 40, dtype=np.float32), (4, 1))
    rows[0, 20] = np.nan
    rows[1, 17], rows[1, 35] = np.inf, -np.inf
    rows[2], rows[3] = -0.0, 0.0
    x = sg.input("x", rows.shape)
    nodes = [sg.cumsum(x, 1), sg.cumprod(x, 1)]
    for got, wanted in zip(sg.compile(nodes)(x=rows), evaluate(nodes, {"x": rows}), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-5, 1e-6)
        np.testing.assert_array_equal(np.signbit(got[2:]), np.signbit(wanted[2:]))


@pytest.mark.parametrize("threads", [1, 2])
def test_running_totals_down_columns(threads: int) -> None:
    """Along every axis, of nothing too, and by two workers."""
    rng = np.random.default_rng(3)
    shapes = {(300, 64): 0, (4, 30, 65): 1, (3, 7, 5): 0, (0, 4): 0, (5, 0): 0, (5, 1): 0}
    arrays = {f"x{k}": rng.uniform(0.9, 1.1, s).astype(np.float32) for k, s in enumerate(shapes)}
    nodes: list[Node] = []
    for (name, array), axis in zip(arrays.items(), shapes.values(), strict=True):
        x = sg.input(name, array.shape)
        nodes += [sg.cumsum(x, axis) * 2, sg.cumprod(x, axis), sg.cumsum(x * x, axis)]
    with everything_shared():
        f = sg.compile(nodes, threads=threads)
        found = f(**arrays)
    if threads > 1:
        assert isinstance(call := f.last_call(), TeamInvocation) and call.current.workers == threads
    for got, wanted in zip(found, evaluate(nodes, arrays), strict=True):
        np.testing.assert_allclose(got, wanted, 1e-4)
