"""How far rounding may carry a result: measured, not assumed.

A graph is evaluated again with every rounded value moved by a random part of two units in the last
place, as in stochastic arithmetic (Vignes 1993), which is what another exponential or a fused
multiplication do to it. A sum is moved by as much of the sum of the absolute values, which is what
another order of summation does; a scalar function reads arguments that are moved too, for what
cancels inside of it. The largest of `SAMPLES` movements of an element,
`n`, stands for the size of its rounding error: that all of them fall below a tenth of the typical
one has a chance of about (1/12)^4. So results may differ by

    8 n + 4 eps |x| + eps max |x|

where the last two terms are the rounding of the result itself and of what it was summed from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import sympy

from symgrad.fuzz.programs import Array
from symgrad.graph.binding import Binding
from symgrad.graph.evaluator import MEANING, Dims, named_values, run_fold
from symgrad.graph.folds import Fold
from symgrad.graph.functions import Placeholder, function_of
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Einsum, Input, Map, Node, Reduce, Scatter

SAMPLES = 4
PART = 2.0  # of the distance from 1 to the next number
EXACT = {
    "abs", "sign", "floor", "maximum", "minimum", "select", "less", "less_equal", "equal",
    "not_equal", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isfinite",
    "stop_gradient",
}  # fmt: skip


@lru_cache(maxsize=4096)
def rounds(body: sympy.Expr) -> bool:
    """Whether a scalar function rounds: choices, comparisons, signs and draws do not."""
    for part in sympy.preorder_traversal(body):
        function = function_of(part)
        if function is not None:
            if function.name not in EXACT and function.result not in ("draw", "cast"):
                return True
        elif part.is_Add or part.is_Pow:
            return bool(part.has(Placeholder))
        elif part.is_Mul and part.has(Placeholder) and part.args[0] != -1:
            return True
    return False


def is_rounded(node: Node) -> bool:
    """Whether the values of a node are rounded results."""
    if node.dtype.kind != "f":
        return False
    if isinstance(node, Map):
        return rounds(node.body)
    if isinstance(node, Einsum):
        return len(node.args) > 1 or bool(node.summed)
    if isinstance(node, Reduce):
        return node.op in ("prod", "cumsum", "cumprod")
    return isinstance(node, Scatter)


@lru_cache(maxsize=4096)
def is_smooth(body: sympy.Expr) -> bool:
    """Whether a scalar function decides nothing, so that its arguments may be moved a little."""
    found = (function_of(part) for part in sympy.preorder_traversal(body))
    return all(f is None or (f.name not in EXACT and f.result == "float") for f in found)


class Shaken:
    """A graph at given data, evaluated exactly or with shaken values."""

    def __init__(
        self, nodes: Sequence[Node], values: Mapping[str, Array], seed: int, training: bool,
        step: int = 0,
    ) -> None:
        self.graph = Graph.of(nodes)
        named, dims = named_values(self.graph, values)
        arrays, self.dims = Binding(self.graph)(
            named, dims=dims, draws=seed, training=training, step=step
        )
        self.arrays: dict[Input, Array] = dict(zip(self.graph.inputs, arrays, strict=True))

    def __call__(self, rng: np.random.Generator | None = None) -> list[Array]:
        """The outputs' values; shaken where `rng` is given."""
        with np.errstate(all="ignore"):
            return evaluated(self.graph, self.arrays, self.dims, rng)

    def noise(self, samples: int = SAMPLES) -> list[Array]:
        """The largest movement of each element of each output, in float64."""
        rng = np.random.default_rng(0)
        exact = [wide(x) for x in self()]
        most = [np.zeros(x.shape) for x in exact]
        for _ in range(samples):
            with np.errstate(invalid="ignore"):
                for m, x, e in zip(most, self(rng), exact, strict=True):
                    np.maximum(m, np.nan_to_num(np.abs(wide(x) - e), nan=0.0), out=m)
        return most


def evaluated(
    graph: Graph, arrays: Mapping[Input, Array], dims: Dims, rng: np.random.Generator | None
) -> list[Array]:
    """The values of a graph's outputs; those of every step of a recurrence are shaken too."""
    found: dict[Node, Any] = {}
    for node in graph.nodes:
        args = [found[a] for a in node.args]
        if isinstance(node, Input):
            found[node] = arrays[node]
        elif rng is not None and isinstance(node, Fold):
            found[node] = run_fold(
                node, args, dims, lambda body, given, n: evaluated(body, given, n, rng)
            )
        elif rng is not None and is_rounded(node):
            found[node] = moved(node, args, dims, rng)
        else:
            found[node] = MEANING[type(node)](node, args, dims)
    return [np.asarray(found[n]) for n in graph.outputs]


def moved(node: Node, args: list[Array], dims: Dims, rng: np.random.Generator) -> Array:
    """A rounded value, moved."""
    meaning = MEANING[type(node)]
    if isinstance(node, Map) and is_smooth(node.body):
        args = [shaken(a, rng) if a.dtype.kind == "f" else a for a in args]
    value: Array = meaning(node, list(args), dims)  # which it may change
    size = np.abs(value)
    if isinstance(node, (Einsum, Scatter)) or (isinstance(node, Reduce) and node.op != "prod"):
        size = meaning(node, [np.abs(a) if a.dtype.kind == "f" else a for a in args], dims)
    return shaken(value, rng, size)


def shaken(value: Array, rng: np.random.Generator, size: Array | None = None) -> Array:
    """A value moved by a part of its last place, or by that of `size`."""
    unit = PART * np.finfo(value.dtype).eps
    move = unit * rng.uniform(-1, 1, np.shape(value)) * (value if size is None else size)
    return np.asarray(value + move, value.dtype)


def wide(x: Array) -> Array:
    """Floats as float64, the rest as it is, in numbers that can be subtracted."""
    return np.asarray(x, np.float64)


def allowed(expected: Array, noise: Array) -> Array:
    """How much an element may differ."""
    if expected.dtype.kind != "f":
        return np.zeros(expected.shape)
    eps = float(np.finfo(expected.dtype).eps)
    size = np.nan_to_num(np.abs(wide(expected)), nan=0.0, posinf=0.0)
    return np.asarray(8 * noise + 4 * eps * size + eps * size.max(initial=0.0))
