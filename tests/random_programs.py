"""Random legal graphs over all node classes, with data on which floats are exact.

Leaves hold small whole numbers and every node keeps a bound on its values; where a bound leaves the
range in which whole floats are exact, values are clipped. So a compiled program must equal
`evaluate` to the last bit, in whatever order it sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from symgrad.graph import functions as fn
from symgrad.graph.dims import Dim, Extent, Shape, as_extent, dim, same, value
from symgrad.graph.dtypes import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    DType,
    is_bool,
    is_float,
    is_int,
)
from symgrad.graph.functions import AXIS, CAST, P
from symgrad.graph.nodes import (
    Constant,
    Gather,
    Input,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
    einsum_node,
    map_node,
    reshape_node,
)

EXACT = {FLOAT32: 2**22, FLOAT64: 2**50}
CLIP = 4
MOST = 1500  # elements of a node


@dataclass
class Program:
    """A random program and data for it."""

    seed: int
    prefix: str = ""
    zeros: bool = False  # whether extents may be 0
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    dims: dict[Dim, int] = field(default_factory=dict)
    bound: dict[Node, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.rng = np.random.default_rng(self.seed)
        least = 0 if self.zeros else 1
        self.symbols = [dim(f"{self.prefix}B"), dim(f"{self.prefix}C")]
        for symbol in self.symbols:
            self.dims[symbol] = int(rng.integers(least, 7))
        statics: list[Extent] = [2, 3, 5, 7, 1]
        if self.zeros and rng.random() < 0.3:
            statics.append(0)
        self.pool: list[Extent] = [*statics, *self.symbols, *self.symbols]
        self.floats = FLOAT32 if rng.random() < 0.7 else FLOAT64
        self.ints = INT32 if rng.random() < 0.7 else INT64
        # every dim is the extent of an input
        self.leaf((self.symbols[0], 3), self.floats)
        self.leaf((self.symbols[1],), self.floats)
        for _ in range(int(rng.integers(2, 5))):
            self.leaf(self.shape(), self.floats)
        self.leaf(self.shape(), self.ints)
        if rng.random() < 0.5:
            self.leaf(self.shape(), BOOL)
        if rng.random() < 0.3:
            self.leaf(self.shape(), FLOAT64 if self.floats == FLOAT32 else FLOAT32)

    # -- choosing ------------------------------------------------------------------------------
    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def shape(self) -> Shape:
        return tuple(self.pick(self.pool) for _ in range(int(self.rng.integers(0, 4))))

    def numbers(self, shape: Shape) -> tuple[int, ...]:
        return tuple(value(e, self.dims) for e in shape)

    def fits(self, shape: Shape) -> bool:
        return int(np.prod(self.numbers(shape), initial=1)) <= MOST

    def some(self, wanted: Callable[[Node], bool], otherwise: Node | None = None) -> Any:
        """A node that is wanted, the later ones more often."""
        options = [n for n in self.nodes if wanted(n)]
        if not options:
            return otherwise
        recent = options[-4:] if self.rng.random() < 0.6 else options
        return self.pick(recent)

    # -- building ------------------------------------------------------------------------------
    def leaf(self, shape: Shape, dtype: DType, high: int = CLIP) -> Node:
        while not self.fits(shape):
            shape = shape[1:]
        name = f"{self.prefix}x{len(self.values)}"
        size = self.numbers(shape)
        data = self.rng.integers(-high, high + 1, size)
        self.values[name] = (data > 0) if is_bool(dtype) else data.astype(dtype)
        return self.add(Input(name, shape, dtype), high)

    def add(self, node: Node, bound: float) -> Node:
        if is_float(node.dtype) and bound > EXACT[node.dtype]:
            return self.clipped(node)
        if node not in self.bound:
            self.nodes.append(node)
        self.bound[node] = min(bound, self.bound.get(node, bound))
        return node

    def clipped(self, node: Node) -> Node:
        low, high = Constant(np.asarray(-CLIP, node.dtype)), Constant(np.asarray(CLIP, node.dtype))
        body = fn.minimum(fn.maximum(P[0], P[1]), P[2])
        return self.add(map_node(body, (node, low, high)), CLIP)

    def safe(self, node: Node, bound: float) -> Node:
        """A node that may be used where values up to `bound` are multiplied or summed."""
        if is_float(node.dtype) and self.bound[node] > bound:
            return self.clipped(node)
        return node

    def step(self) -> None:
        """Add one node, or none where the choice does not fit."""
        kinds = [self.map, self.map, self.map, self.einsum, self.einsum, self.reduce]
        kinds += [self.reindex, self.gather, self.scatter]
        self.pick(kinds)()

    def argument(self, first: Node) -> Node:
        """An argument that broadcasts to the shape of the first; it, when there is no other."""
        shape, dtype = first.shape, first.dtype

        def goes(node: Node) -> bool:
            if node.dtype != dtype or node.ndim > len(shape):
                return False
            pairs = zip(reversed(node.shape), reversed(shape), strict=False)
            return all(same(a, b) is True or a == 1 for a, b in pairs)

        if self.rng.random() < 0.1:
            number = int(self.rng.integers(-3, 4))
            literal = Constant(np.asarray(number, dtype))
            self.bound[literal] = 3
            return literal
        return self.some(goes, first)

    def map(self) -> None:
        first = self.some(lambda n: True)
        second = self.argument(first)
        a, b = self.safe(first, 2**10), self.safe(second, 2**10)
        if self.rng.random() < 0.5:
            a, b = b, a
        if not self.fits(map_node(fn.equal(P[0], P[1]), (a, b)).shape):
            return
        x, y = self.bound[a], self.bound[b]
        if is_bool(a.dtype):
            body = self.pick(
                [fn.logical_and(P[0], P[1]), fn.logical_or(P[0], P[1]), fn.logical_xor(P[0], P[1]),
                 fn.logical_not(P[0]), CAST[self.floats](P[0]), CAST[self.ints](P[0]),
                 fn.maximum(P[0], P[1]), fn.minimum(P[0], P[1]), fn.equal(P[0], P[1])]
            )  # fmt: skip
            bodies = [(body, 1.0)]
        else:
            top = max(x, y)
            bodies = [
                (P[0] + P[1], x + y), (P[0] - P[1], x + y), (P[0] * P[1], x * y),
                (P[0] * P[1] - 2 * P[0], x * y + 2 * x), (-P[0], x), (P[0] ** 2 + P[1], x * x + y),
                (fn.maximum(P[0], P[1]), top), (fn.minimum(P[0], P[1]), top),
                (fn.abs_(P[0]), x), (fn.sign(P[0]) * P[1], y), (fn.less(P[0], P[1]), 1),
                (fn.equal(P[0], P[1]), 1), (fn.select(fn.less(P[0], P[1]), P[0], P[1]), top),
                (fn.select(fn.less_equal(P[0], 0), P[1], P[0] + 1), top + 1),
                (fn.mod(P[0], 3) + P[1], y + 3), (fn.floor_divide(P[0], 2), x + 1),
                (CAST[self.floats](P[0]), min(x, 2**20)), (CAST[BOOL](P[0]), 1),
                (fn.not_equal(P[0], P[1]), 1),
            ]  # fmt: skip
            if is_float(a.dtype):
                bodies += [(CAST[self.ints](P[0]), x), (fn.isnan(P[0]), 1), (fn.floor(P[0]), x)]
                bodies += [(fn.stop_gradient(P[0]) + P[1], x + y), (CAST[FLOAT64](P[0]) + 1, x + 1)]
                bodies += [(CAST[FLOAT32](P[0]) + 1, x + 1)]
        body, bound = self.pick(bodies)
        if CAST[self.floats] in {type(e) for e in (body,)} and is_int(a.dtype):
            body = CAST[self.floats](fn.mod(P[0], 7))  # whole numbers wrap, floats are clipped
            bound = 7
        args = (a, b) if P[1] in body.free_symbols else (a,)
        made = map_node(body, args)
        if made.ndim and self.rng.random() < 0.15 and not is_bool(made.dtype):
            k = int(self.rng.integers(made.ndim))
            body, bound = made.body + AXIS[k], bound + 7
            if self.rng.random() < 0.3:
                body, bound = body + self.symbols[0], bound + 7
            made = map_node(body, args)
        self.add(made, bound)

    def einsum(self) -> None:
        first = self.some(lambda n: True)
        dtype = first.dtype
        count = int(self.rng.choice([1, 2, 2, 2, 2, 3])) if not is_bool(dtype) else 1
        args = [first]
        args.extend(self.some(lambda n: n.dtype == dtype) for _ in range(count - 1))
        labels: list[tuple[int, ...]] = []
        extents: dict[int, Extent] = {}
        for arg in args:
            own: list[int] = []
            for e in arg.shape:
                known = [k for k, x in extents.items() if same(x, e) is True and k not in own]
                if known and self.rng.random() < 0.75:
                    own.append(self.pick(known))
                else:
                    own.append(len(extents))
                    extents[len(extents)] = e
            labels.append(tuple(own))
        every = list(extents)
        self.rng.shuffle(every)
        kept = [k for k in every if is_bool(dtype) or self.rng.random() < 0.5]
        if self.rng.random() < 0.2:
            extents[len(extents)] = self.pick(self.pool)
            kept.insert(int(self.rng.integers(len(kept) + 1)), len(extents) - 1)
        if not self.fits(tuple(extents.values())):
            return
        summed = [value(e, self.dims) for k, e in extents.items() if k not in kept]
        terms = max(float(np.prod(summed, initial=1.0)), 1.0)
        args = [self.safe(a, 2 ** (20 // count) / terms ** (1 / count)) for a in args]
        bound = terms * float(np.prod([self.bound[a] for a in args]))
        self.add(einsum_node(args, labels, kept, extents), bound)

    def reduce(self) -> None:
        arg = self.some(lambda n: n.ndim > 0)
        ops = ["max", "min", "max", "argmax", "argmin", "cummax"]
        if not is_bool(arg.dtype):
            ops += ["prod", "cumsum", "cumprod"]
        op = self.pick(ops)
        count = int(self.rng.integers(1, arg.ndim + 1)) if op in ("max", "min", "prod") else 1
        axes = tuple(sorted(int(a) for a in self.rng.choice(arg.ndim, count, replace=False)))
        terms = int(np.prod(self.numbers(tuple(arg.shape[a] for a in axes))))
        if op in ("max", "min", "argmax", "argmin") and terms == 0:
            return
        bound = self.bound[arg]
        if op in ("prod", "cumprod"):
            if CLIP**terms > 2.0**22:
                arg = self.add(map_node(fn.sign(P[0]), (arg,)), 1)
            else:
                arg = self.safe(arg, CLIP)
            bound = self.bound[arg] ** max(terms, 1)
        elif op == "cumsum":
            arg = self.safe(arg, 2**10)
            bound = self.bound[arg] * max(terms, 1)
        elif op.startswith("arg"):
            bound = terms
        self.add(Reduce((arg,), op, axes), max(bound, 1))

    # -- moves ---------------------------------------------------------------------------------
    def reindex(self) -> None:
        kind = self.pick([self.slice, self.slice, self.pad, self.concatenate, self.reshape,
                          self.reshape, self.dilate])  # fmt: skip
        kind()

    def slice(self) -> None:
        arg = self.some(lambda n: n.ndim > 0)
        start: list[Extent] = []
        step: list[int] = []
        count: list[Extent] = []
        for e in arg.shape:
            s, t, n = self.part(e)
            start.append(s)
            step.append(t)
            count.append(n)
        rank = arg.ndim
        piece = Piece(arg.shape, tuple(start), tuple(step), tuple(count), (0,) * rank, (1,) * rank)
        self.add(Reindex((arg,), (piece,), tuple(count)), self.bound[arg])

    def part(self, extent: Extent) -> tuple[Extent, int, Extent]:
        """Start, step and count inside an axis."""
        n = value(extent, self.dims)
        turn = self.rng.random()
        if turn < 0.4 or n == 0:
            return 0, 1, extent
        if turn < 0.6:
            return extent - 1, -1, extent
        if type(extent) is not int:
            return (1, 1, extent - 1) if n > 1 else (0, 1, extent)
        start = int(self.rng.integers(n))
        step = int(self.pick([1, 1, 2, -1, -2]))
        room = (n - 1 - start if step > 0 else start) // abs(step) + 1
        return start, step, int(self.rng.integers(1, room + 1))

    def pad(self) -> None:
        arg = self.some(lambda n: n.ndim > 0)
        before = [int(self.rng.integers(3)) for _ in arg.shape]
        after = [int(self.rng.integers(3)) for _ in arg.shape]
        shape = tuple(e + b + a for e, b, a in zip(arg.shape, before, after, strict=True))
        if not self.fits(shape):
            return
        rank = arg.ndim
        piece = Piece(arg.shape, (0,) * rank, (1,) * rank, arg.shape, tuple(before), (1,) * rank)
        self.add(Reindex((arg,), (piece,), shape), self.bound[arg])

    def dilate(self) -> None:
        """out[2 k] = arg[n - 1 - k] along one axis."""
        arg = self.some(lambda n: n.ndim > 0)
        axis = int(self.rng.integers(arg.ndim))
        if value(arg.shape[axis], self.dims) == 0:
            return
        rank = arg.ndim
        one, nothing = [1] * rank, [0] * rank
        shape = list(arg.shape)
        shape[axis] = 2 * arg.shape[axis]
        if not self.fits(tuple(shape)):
            return
        start: list[Extent] = list(nothing)
        start[axis] = arg.shape[axis] - 1
        step, stride = list(one), list(one)
        step[axis], stride[axis] = -1, 2
        piece = Piece(
            arg.shape, tuple(start), tuple(step), arg.shape, tuple(nothing), tuple(stride)
        )
        self.add(Reindex((arg,), (piece,), tuple(shape)), self.bound[arg])

    def concatenate(self) -> None:
        first = self.some(lambda n: n.ndim > 0)
        axis = int(self.rng.integers(first.ndim))

        def goes(n: Node) -> bool:
            return (
                n.dtype == first.dtype
                and n.ndim == first.ndim
                and all(
                    k == axis or same(a, b) is True
                    for k, (a, b) in enumerate(zip(n.shape, first.shape, strict=True))
                )
            )

        args = [first] + [self.some(goes, first) for _ in range(int(self.rng.integers(1, 3)))]
        pieces = []
        place: Extent = 0
        rank = first.ndim
        for arg in args:
            offset: list[Extent] = [0] * rank
            offset[axis] = place
            pieces.append(
                Piece(arg.shape, (0,) * rank, (1,) * rank, arg.shape, tuple(offset), (1,) * rank)
            )
            place = place + arg.shape[axis]
        shape = (*first.shape[:axis], place, *first.shape[axis + 1 :])
        if self.fits(shape):
            bound = max(self.bound[a] for a in args)
            self.add(Reindex(tuple(args), tuple(pieces), shape), bound)

    def reshape(self) -> None:
        arg = self.some(lambda n: True)
        shape = list(arg.shape)
        turn = self.rng.random()
        if turn < 0.35 and len(shape) > 1:
            k = int(self.rng.integers(len(shape) - 1))
            shape[k : k + 2] = [as_extent(shape[k] * shape[k + 1])]
        elif turn < 0.55:
            shape = [e for e in shape if e != 1]
        elif turn < 0.8:
            shape.insert(int(self.rng.integers(len(shape) + 1)), 1)
        elif len(shape) > 1:
            whole: Extent = 1
            for e in shape:
                whole = whole * e
            shape = [as_extent(whole)]
        if tuple(shape) == arg.shape:
            return
        if self.rng.random() < 0.2 and shape:
            self.viewed(arg, tuple(shape))
        else:
            self.add(reshape_node(arg, tuple(shape)), self.bound[arg])

    def viewed(self, arg: Node, view: Shape) -> None:
        """A move that reads its argument under another shape."""
        rank = len(view)
        parts = [self.part(e) for e in view]
        start, step, count = (tuple(x) for x in zip(*parts, strict=True))
        offset = tuple(int(self.rng.integers(2)) for _ in view)
        shape = tuple(n + o for n, o in zip(count, offset, strict=True))
        piece = Piece(view, start, step, count, offset, (1,) * rank)
        if self.fits(shape):
            self.add(Reindex((arg,), (piece,), shape), self.bound[arg])

    # -- reads and writes at computed places -------------------------------------------------------
    def index(self, extent: Extent, shape: Shape) -> Node | None:
        """Whole numbers in -extent .. extent-1, for a nonempty axis."""
        n = value(extent, self.dims)
        if n == 0:
            return None
        found = self.some(lambda x: is_int(x.dtype) and same_shape(x.shape, shape))
        if found is not None and self.rng.random() < 0.6:
            body, bound = fn.mod(P[0], 1), 0.0
            if type(extent) is int:
                body, bound = fn.mod(P[0], 2 * extent) - extent, float(extent)
            return self.add(map_node(body, (found,)), bound)
        if not self.fits(shape):
            return None
        leaf = self.leaf(shape, self.ints, 1)
        name = leaf.name
        data = self.rng.integers(-n, n, self.numbers(leaf.shape)).astype(leaf.dtype)
        self.values[name] = data
        self.bound[leaf] = float(n)
        return leaf

    def gather(self) -> None:
        source = self.some(lambda n: n.ndim > 0)
        axis = int(self.rng.integers(source.ndim))
        extents = {k: e for k, e in enumerate(source.shape) if k != axis}
        own: list[int] = []
        for _ in range(int(self.rng.integers(0, 3))):
            if extents and self.rng.random() < 0.5:
                k = self.pick([k for k in extents])
                if k not in own:
                    own.append(k)
                    continue
            new = 10 + len(extents)
            extents[new] = self.pick(self.pool)
            own.append(new)
        index = self.index(source.shape[axis], tuple(extents[k] for k in own))
        if index is None or index.ndim != len(own):
            return
        axes = tuple(~0 if k == axis else k for k in range(source.ndim))
        out = list(extents)
        self.rng.shuffle(out)
        number = {k: j for j, k in enumerate(dict.fromkeys([a for a in axes if a >= 0] + own))}
        if not self.fits(tuple(extents.values())):
            return
        node = Gather(
            (source, index),
            tuple(a if a < 0 else number[a] for a in axes),
            (tuple(number[k] for k in own),),
            tuple(number[k] for k in out),
        )
        self.add(node, self.bound[source])

    def scatter(self) -> None:
        updates = self.some(lambda n: not is_bool(n.dtype))
        every = list(range(updates.ndim))
        own = [k for k in every if self.rng.random() < 0.5]
        target = self.pick(self.pool)
        index = self.index(target, tuple(updates.shape[k] for k in own))
        if index is None or index.ndim != len(own):
            return
        axes = [k for k in every if k not in own or self.rng.random() < 0.3]
        place = int(self.rng.integers(len(axes) + 1))
        axes.insert(place, ~0)
        shape = tuple(target if a < 0 else updates.shape[a] for a in axes)
        if not self.fits(shape):
            return
        updates = self.safe(updates, 2**9)
        terms = int(np.prod(self.numbers(updates.shape), initial=1))
        node = Scatter((updates, index), tuple(every), (tuple(own),), tuple(axes), shape)
        self.add(node, self.bound[updates] * max(terms, 1))


def same_shape(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(same(x, y) is True for x, y in zip(a, b, strict=True))


def random_program(seed: int, steps: int, prefix: str = "", zeros: bool = False) -> Program:
    """A program of about `steps` nodes."""
    program = Program(seed, prefix, zeros)
    for _ in range(steps):
        program.step()
    return program


def outputs_of(program: Program, everything: bool) -> list[Node]:
    """All nodes that are no leaves, or those that no other node reads."""
    inner = [n for n in program.nodes if not isinstance(n, Input)]
    if not everything:
        read = {a for n in inner for a in n.args}
        inner = [n for n in inner if n not in read]
    return [*program.nodes[:2], *inner]  # the first leaves tell the dims


def assert_equal(got: Any, expected: Any, what: str = "") -> None:
    """Equal shapes, dtypes and numbers; NaN equals NaN."""
    assert got.dtype == expected.dtype, (what, got.dtype, expected.dtype)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    np.testing.assert_array_equal(got, expected, err_msg=what)
