"""LLVM's vectors in the loops of standard kernels: as wide as this processor's registers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import symgrad as sg
from codegen.vectors import KernelVectors, register_bits, vectors_of
from symgrad.graph.nodes import Node
from tests.scalar_kernels import has_wide_vectors

pytestmark = pytest.mark.skipif(not has_wide_vectors(), reason="this processor has no AVX2 or FMA")


class Inputs:
    """Inputs of a kernel of its own, so that no two kernels are fused."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *rest: int, dtype: str = "float32") -> Node:
        self.count += 1
        n = sg.dim(f"n{self.count}")
        return sg.input(f"x{self.count}", (n, *rest), dtype=dtype)


def gradient_of_cross_entropy(a: Inputs) -> Node:
    x = a(1000)
    y = sg.input(f"y{a.count}", (x.shape[0],), dtype="int32")
    return sg.grad(sg.cross_entropy(x, y).mean(), x)


def labels_of_short_rows(a: Inputs) -> Node:
    x = a(10)
    y = sg.input(f"y{a.count}", (x.shape[0],), dtype="int32")
    return sg.cross_entropy(x, y)


# One kernel each, in float32 where nothing else is said.
KERNELS: dict[str, Callable[[Inputs], Node]] = {
    "multiply-add": lambda a: a() * 2.0 + 1.0,
    "division": lambda a: 1.0 / a(),
    "float64": lambda a: a(dtype="float64") * 2.0 + 1.0,
    "integers": lambda a: a(dtype="int32") * 3 + 1,
    "select": lambda a: (lambda x: sg.where(x > 0, x, 0.1 * x))(a()),
    "exp": lambda a: sg.exp(a()),
    "tanh": lambda a: sg.tanh(a()),
    "sin": lambda a: sg.sin(a()),
    "pow": lambda a: sg.abs(a()) ** 1.7,
    "gelu": lambda a: sg.gelu(a()),
    "sum": lambda a: a().sum(),
    "row sums": lambda a: a(1000).sum(1),
    "row maxima": lambda a: sg.max(a(1000), 1),
    "places of row maxima": lambda a: sg.argmax(a(1000), 1),
    "column sums": lambda a: a(1000).sum(0),
    "column maxima": lambda a: sg.max(a(1000), 0),
    "places of column maxima": lambda a: sg.argmax(a(1000), 0),
    "running products": lambda a: sg.cumprod(a(), 0),
    "running sums down columns": lambda a: sg.cumsum(a(1000), 0),
    "softmax": lambda a: sg.softmax(a(1000)),
    "softmax of short rows": lambda a: sg.softmax(a(16)),
    "sums of short rows": lambda a: a(16).sum(1),
    "short rows and biases": lambda a: a(16) + sg.input(f"b{a.count}", (16,)),
    "cross entropy of short rows": labels_of_short_rows,
    "gradient of cross entropy": gradient_of_cross_entropy,
    "layer norm": lambda a: (lambda x: (x - x.mean(1, keepdims=True)) * sg.rsqrt(
        sg.var(x, 1, keepdims=True) + 1e-5))(a(1000)),
}  # fmt: skip


def test_standard_kernels_are_vectors() -> None:
    inputs = Inputs()
    made = {name: make(inputs) for name, make in KERNELS.items()}
    found = vectors_of(sg.compile(made))
    assert len(found) >= len(made) - 2  # kernels of the same text are one
    narrow = [str(v) for v in found if not v.fills(register_bits())]
    assert not narrow, "\n".join(narrow)


def test_a_serial_loop_is_none() -> None:
    """What adds to places that data name, perhaps twice to one, is scalar and is reported so."""
    n = sg.dim("n")
    x, rows = sg.input("x", (n,)), sg.input("rows", (n,), dtype="int32")
    table = sg.parameter("table", (7,), init=0.0)
    (found,) = vectors_of(sg.compile(sg.grad((table[rows] * x).sum(), table)))
    assert isinstance(found, KernelVectors)
    assert found.bits == 0 and found.loops > 0 and "scalar" in str(found)
