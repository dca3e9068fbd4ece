"""Long chains of functions: several vectors of elements in a turn of the loop."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.loading import seen
from codegen.vectors import register_bits
from symgrad.graph.dims import Dim
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Node
from tests.scalar_kernels import has_wide_vectors
from tests.team_interpreter import everything_shared

TURN = 64
FUNCTIONS = ("tanh", "sigmoid", "sin", "exp", "log1p")


def chain(x: Node, length: int) -> Node:
    """Functions of functions of x."""
    for k in range(length):
        x = getattr(sg, FUNCTIONS[k % len(FUNCTIONS)])(0.5 * x)
    return x


def turns(*outputs: Node) -> Counter[str]:
    """How often the program's loops are `range` and `interleaved`."""
    return Counter(re.findall(r"^ +for i\d in (\w+)\(", sg.compile(list(outputs)).source, re.M))


@pytest.mark.parametrize("threads", [1, 2])
def test_values_at_every_rest(threads: int) -> None:
    """Turns of 64 elements, vectors and single elements of what is left, in both precisions."""
    nodes: list[Node] = []
    n = sg.dim("n")
    for dtype in ("float32", "float64"):
        x, y = (sg.input(f"{name}{dtype}", (n,), dtype=dtype) for name in "xy")
        z = sg.input(f"z{dtype}", (3, n), dtype=dtype)
        nodes += [chain(x, 2), chain(y, 7) - x, chain(z, 3).sum(1), sg.gelu(z), sg.erf(x) * y]
        nodes += [sg.grad((chain(z, 3) * z).sum(), z), sg.abs(x) ** (1.5 + sg.tanh(y))]
    with everything_shared():
        judge(nodes, sg.compile(nodes, threads=threads), n)


def judge(nodes: list[Node], f: Compiled, n: Dim) -> None:
    """Compare a program with `evaluate` for several n."""
    values: dict[str, Any] = {}
    assert "interleaved(" in (f.stages.team.source if f.stages.team else f.source)
    rng = np.random.default_rng(5)
    for count in (1, 3, 63, 64, 65, 150, 1000):
        for leaf in f.leaves:
            shape = tuple(count if e is n else e for e in leaf.shape)
            values[leaf.name] = rng.normal(size=shape).astype(leaf.dtype)
        results = f(**values)
        for node, got, wanted in zip(nodes, results, evaluate(nodes, values), strict=True):
            near = 64 * np.finfo(got.dtype).eps
            scale = max(1.0, float(np.abs(wanted).max(initial=0.0)), count**0.5)
            np.testing.assert_allclose(got, wanted, near, near * scale, err_msg=f"{node!r} {count}")


def test_long_chains_alone() -> None:
    """Two functions in a row are long; cheap operations, and functions side by side, are not."""
    n = sg.dim("n")
    x, y = sg.input("x", (n,)), sg.input("y", (n,))
    assert turns(chain(x, 2)) == turns(sg.erf(x)) == turns(sg.tanh(x) ** y) == {"interleaved": 1}
    assert turns(chain(x, 1)) == turns(sg.exp(x) * sg.sin(y) + sg.tanh(x - y)) == {"range": 1}
    cheap = x
    for k in range(30):
        cheap = cheap * y + float(k)
    assert turns(cheap) == {"range": 1}


def test_short_loops_stay_as_they_are() -> None:
    """Where the extent is known, few elements may be left over at the end of a loop."""
    kinds = {
        extent: turns(chain(sg.input("x", (extent,)), 3))
        for extent in (10, TURN - 1, TURN, TURN + 1, 2 * TURN, 5 * TURN - 5, 6 * TURN - 5, 1001)
    }
    long = {extent for extent, kind in kinds.items() if kind == {"interleaved": 1}}
    assert long == {TURN, 2 * TURN, 6 * TURN - 5, 1001}
    assert all(kinds[extent] == {"range": 1} for extent in kinds.keys() - long)


def test_a_loop_of_loops_is_none() -> None:
    """Rows, a first pass of functions, and a second one over what that left in memory."""
    y = chain(sg.input("z", (sg.dim("n"), 640)), 3)
    assert turns(y / sg.max(y, 1, keepdims=True)) == {"range": 2, "interleaved": 1}


@pytest.mark.skipif(not has_wide_vectors(), reason="this processor has no AVX2 or FMA")
def test_a_turn_writes_several_vectors() -> None:
    """Read off LLVM's code: four times as many in the loop of a chain as in that of a function."""
    written = {}
    for length in (1, 3):
        source = sg.compile(chain(sg.input("x", (sg.dim("n"),)), length)).source
        vector = f"store <{register_bits() // 32} x float>"
        written[length] = sum(
            vector in line for line in seen(source).splitlines() if "alloca" not in line
        )
    assert written[3] >= 4 * written[1] > 0
