"""Lines that move elements: shapes, parts, joins, reads and writes by index, and new arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from symgrad.fuzz.generation import Generator, Unfit, Variable, equal_shapes
from symgrad.fuzz.programs import Name
from symgrad.graph.dims import same

ANY = "fib"


def of_rank(g: Generator, least: int = 1) -> Variable:
    """A variable of any dtype, floats more often."""
    kinds = "f" if g.chance(0.7) else ANY
    return g.some(lambda v: v.kind in kinds and v.ndim >= least)


def permuted(g: Generator) -> None:
    """`transpose`, `.T`, `swapaxes`, `moveaxis`."""
    x = of_rank(g)
    name = g.pick(["transpose", ".transpose", ".T", "swapaxes", "moveaxis"])
    order = tuple(int(a) for a in g.rng.permutation(x.ndim))
    if name == ".T" or (name == "transpose" and g.chance(0.3)):
        g.emit(".T", x) if name == ".T" else g.emit("sg.transpose", x)
    elif name == "transpose":
        g.emit("sg.transpose", x, order)
    elif name == ".transpose":
        g.emit(".transpose", x, *order)
    else:
        g.emit(f"sg.{name}", x, g.axis(x), g.axis(x))


def reshaped(g: Generator) -> None:
    """`reshape`, with -1 or extents that multiply to the same."""
    x = of_rank(g, 0)
    shape = [Name(e) if isinstance(e, str) else e for e in g.terms(x.shape)]
    turn = g.rng.random()
    if turn < 0.4 and x.ndim > 1:
        k = g.whole(0, x.ndim - 2)
        others = x.shape[:k] + x.shape[k + 2 :]
        g.require(g.size(g.terms(others)) > 0)
        shape[k : k + 2] = [-1]
    elif turn < 0.7 and all(isinstance(e, int) for e in x.shape):
        n = g.size(g.terms(x.shape))
        divisors = [d for d in range(1, n + 1) if n % d == 0]
        d = g.pick(divisors)
        shape = [d, n // d]
    else:
        shape.insert(g.whole(0, x.ndim), 1)
    g.emit(g.pick(["sg.reshape", ".reshape"]), x, tuple(shape))


def of_one(g: Generator) -> None:
    """`expand_dims`, `squeeze`."""
    x = of_rank(g, 0)
    ones = [k for k, e in enumerate(x.shape) if same(e, 1) is True]
    if ones and g.chance(0.6):
        g.emit("sg.squeeze", x, g.pick([None, g.pick(ones), tuple(ones)]))
    else:
        g.require(x.ndim < 4)
        g.emit("sg.expand_dims", x, g.whole(-x.ndim - 1, x.ndim))


def stretched(g: Generator) -> None:
    """`broadcast_to`, `repeat`, `tile`."""
    x = of_rank(g, 0)
    name = g.pick(["broadcast_to", "repeat", "tile"])
    if name == "broadcast_to":
        g.require(x.ndim < 4)
        shape = list(g.terms(x.shape))
        shape = [g.pick(g.pool) if e == 1 else e for e in shape]
        front = [g.pick(g.pool)] if g.chance(0.6) else []
        g.emit("sg.broadcast_to", x, tuple(Name(e) if isinstance(e, str) else e
                                           for e in (*front, *shape)))  # fmt: skip
    elif name == "repeat":
        g.require(x.ndim > 0)
        g.emit("sg.repeat", x, g.whole(1, 3), axis=g.pick([g.axis(x), None]))
    else:
        g.emit("sg.tile", x, g.pick([2, (2, 1), (1, 3)]))


def joined(g: Generator) -> None:
    """`concatenate`, `stack`."""
    x = of_rank(g, 0)
    if g.chance(0.4) or not x.ndim:
        others = [g.like(x.shape, str(x.node.dtype)) for _ in range(g.whole(1, 2))]
        g.emit("sg.stack", [x, *others], axis=g.whole(-x.ndim - 1, x.ndim))
        return
    axis = g.axis(x)
    k = axis % x.ndim

    def goes(v: Variable) -> bool:
        return v.kind == x.kind and v.ndim == x.ndim and all(
            j == k or same(a, b) is True
            for j, (a, b) in enumerate(zip(v.shape, x.shape, strict=True))
        )  # fmt: skip

    others = [g.some(goes) for _ in range(g.whole(1, 2))]
    g.emit(g.pick(["sg.concatenate", "np.concatenate"]), [x, *others], axis=axis)


def cut(g: Generator) -> None:
    """`split`, into equal parts or at places."""
    x = of_rank(g)
    axes = [k for k, e in enumerate(x.shape) if type(e) is int and e > 1]
    axis = g.pick(axes)
    n = int(x.shape[axis])
    if g.chance(0.5):
        parts: Any = g.pick([d for d in range(2, n + 1) if n % d == 0])
        count = parts
    else:
        parts = (g.whole(1, n - 1),)
        count = 2
    name, _ = g.write("sg.split", x, parts, axis=axis)
    for k in range(count)[:3]:
        g.item(name, k)


def padded(g: Generator) -> None:
    """`pad`, with zeros or a value."""
    x = of_rank(g)
    widths: Any = tuple((g.whole(0, 2), g.whole(0, 2)) for _ in range(x.ndim))
    if g.chance(0.3):
        widths = 1
    if x.kind == "f" and g.chance(0.4):
        g.emit("sg.pad", x, widths, g.number())
    else:
        g.emit("sg.pad", x, widths)


def turned(g: Generator) -> None:
    """`flip`, `tril`, `triu`."""
    x = of_rank(g)
    if x.ndim > 1 and g.chance(0.5):
        g.require(x.kind in "fi")
        name, k = g.pick(["sg.tril", "sg.triu"]), g.whole(-1, 1)
        g.emit(name, x, k) if k else g.emit(name, x)
    else:
        g.emit("sg.flip", x, g.axes(x))


def sliced(g: Generator) -> None:
    """`x[1:, ::-1, None, ..., -1]`."""
    x = of_rank(g)
    shape = g.terms(x.shape)
    key: list[Any] = []
    for e in shape:
        n = g.size((e,))
        turn = g.rng.random()
        if turn < 0.3 or n == 0:
            key.append(slice(None))
        elif turn < 0.45:
            key.append(slice(None, None, -1))
        elif turn < 0.6:
            key.append(g.whole(-n, n - 1))
        elif turn < 0.75 and n > 1:
            key.append(slice(1, None) if g.chance(0.5) else slice(None, -1))
        elif isinstance(e, int):
            key.append(slice(g.whole(0, n - 1), None, g.pick([1, 2, 3])) if g.chance(0.5)
                       else slice(None, None, g.pick([-2, 2])))  # fmt: skip
        else:
            key.append(slice(None))
    while key and g.chance(0.3) and key[-1] == slice(None):
        key.pop()
    if g.chance(0.2):
        key.insert(g.whole(0, len(key)), None)
    elif g.chance(0.2):
        key.insert(len(key), Ellipsis)
    g.require(key)
    g.emit("[]", x, tuple(key) if len(key) != 1 else key[0])


# -- by index -------------------------------------------------------------------------------------
def indices(g: Generator, n: int, shape: tuple[int | str, ...]) -> Variable:
    """Positions in -n..n-1: a leaf, or integers of the program modulo n."""
    g.require(n > 0)

    def goes(v: Variable) -> bool:
        if v.kind != "i" or v.value is None or v.value.size > 20:
            return False
        return bool(np.all((v.value >= -n) & (v.value < n)))

    if g.chance(0.3):
        return g.some(lambda v: goes(v) and v.ndim <= 2)
    if g.chance(0.3):
        found = g.some(lambda v: v.kind == "i" and v.ndim <= 2)
        return g.emit("-", g.emit("%", found, n), g.whole(0, n))
    return g.leaf(shape, g.ints, -n, n - 1)


def extents(g: Generator, v: Variable) -> tuple[int, ...]:
    """The shape of a variable as numbers."""
    return tuple(g.size((term,)) for term in g.terms(v.shape))


def taken(g: Generator) -> None:
    """`take`, `x[i]`, `x[i, j]`, `take_along_axis`."""
    x = of_rank(g)
    shape = g.terms(x.shape)
    axis = g.axis(x)
    n = g.size((shape[axis],))
    turn = g.rng.random()
    if turn < 0.2:
        g.require(n > 0)
        own = list(shape)
        own[axis] = g.pick(g.pool)
        g.emit("sg.take_along_axis", x, g.leaf(tuple(own), g.ints, -n, n - 1), axis)
        return
    index = indices(g, n, g.shape_terms(2))
    if turn < 0.5:
        g.emit("sg.take", x, index, axis=axis)
    elif turn < 0.6:
        flat = g.size(shape)
        g.emit("sg.take", x, indices(g, flat, g.shape_terms(1)))
    elif turn < 0.8 or x.ndim < 2:
        key = [slice(None)] * (axis % x.ndim) + [index]
        if len(key) < x.ndim and g.chance(0.3):
            key.append(slice(None, None, -1))
        g.emit("[]", x, tuple(key))
    else:
        first = indices(g, g.size(shape[:1]), ())
        second = indices(g, g.size(shape[1:2]), ())
        pairs = zip(reversed(extents(g, first)), reversed(extents(g, second)), strict=False)
        g.require(all(1 in pair or pair[0] == pair[1] for pair in pairs))  # also of other dims
        g.emit("[]", x, (first, second))


def accumulated(g: Generator) -> None:
    """Writes by index that accumulate: what pulls a cotangent back through a read."""
    u = g.some_float(1)
    n = g.pick([2, 3, 4])
    shape = g.terms(u.shape)
    index = g.leaf(shape[:1], g.ints, -n, n - 1)
    z = g.leaf((n, *shape[1:]), str(u.node.dtype))
    read = g.emit("sg.take", z, index, axis=0)
    g.require(equal_shapes(read.shape, u.shape))
    if g.chance(0.5):
        name, _ = g.write("sg.vjp", read, [z], [u])
        g.item(name, 0)
    else:
        g.emit("sg.grad", g.emit("sg.sum", g.emit("*", read, u)), z)


# -- new arrays -----------------------------------------------------------------------------------
def made(g: Generator) -> None:
    """`zeros`, `ones`, `full`, `eye`, `arange`, the likes of others, `one_hot`, constants."""
    name = g.pick(["zeros", "ones", "full", "eye", "arange", "zeros_like", "ones_like", "one_hot",
                   "constant"])  # fmt: skip
    extents = [Name(e) if isinstance(e, str) else e for e in g.shape_terms(2)]
    shape = tuple(extents)
    dtype = g.pick([g.floats, g.floats, g.ints])
    if name in ("zeros", "ones"):
        g.emit(f"sg.{name}", shape, dtype=dtype)
    elif name == "full":
        value = g.number() if dtype.startswith("f") else g.whole(-2, 3)
        g.emit("sg.full", shape, value, dtype=dtype)
    elif name == "eye":
        g.emit("sg.eye", *(extents or [3])[:2], k=g.whole(-1, 1), dtype=g.floats)
    elif name == "arange":
        if g.chance(0.5):
            g.emit("sg.arange", g.pick([Name("B"), Name("C"), 3, 5]), dtype=dtype)
        else:
            g.emit("sg.arange", g.whole(-3, 3), g.whole(4, 6), g.whole(1, 3))
    elif name == "one_hot":
        index = g.some(lambda v: v.kind == "i" and v.ndim < 3)
        g.emit("sg.one_hot", index, g.pick([2, 3, Name("B")]), dtype=g.floats)
    elif name == "constant":
        g.emit("sg.constant", g.number() if g.chance(0.5) else [g.number(), g.number()],
               dtype=g.floats)  # fmt: skip
    else:
        g.emit(f"sg.{name}", g.some(lambda v: v.kind in "fi"))


__all__ = [
    "Unfit", "accumulated", "cut", "joined", "made", "of_one", "padded", "permuted", "reshaped",
    "sliced", "stretched", "taken", "turned",
]  # fmt: skip
