"""Lines that combine elements: reductions, contractions, losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from symgrad.fuzz.generation import MARGIN, Generator, Unfit, Variable, numbers
from symgrad.graph.dims import same


def reduced(ndim: int, axes: Any) -> tuple[int, ...]:
    """The axes that an argument `axis` names."""
    if axes is None:
        return tuple(range(ndim))
    return axes if isinstance(axes, tuple) else (axes,)


def length(g: Generator, x: Variable, axes: Any) -> int:
    """How many elements are reduced to one."""
    shape = numbers(g, x.shape)
    return int(np.prod([shape[a] for a in reduced(x.ndim, axes)], dtype=int))


def called(g: Generator, name: str, x: Variable, **options: Any) -> Variable:
    """A reduction, as a verb or as a method."""
    if options.get("keepdims") is False and g.chance(0.5):
        del options["keepdims"]
    methods = ("sum", "mean", "max", "min")
    if name in methods and g.chance(0.3):
        return g.emit(f".{name}", x, **options)
    return g.emit(f"sg.{name}", x, **options)


def summed(g: Generator) -> None:
    """`sum`, `mean`, `prod`, `var`, `std`."""
    name = g.pick(["sum", "sum", "mean", "prod", "var", "std"])
    x = g.some(lambda v: v.kind in ("fi" if name in ("sum", "mean", "prod") else "f"))
    options: dict[str, Any] = {"axis": g.axes(x), "keepdims": g.chance(0.4)}
    n = length(g, x, options["axis"])
    if name in ("mean", "var", "std"):
        g.require(n > 0)
    if name in ("var", "std"):
        g.require(n > 1)
        if g.chance(0.3):
            options["ddof"] = 1
    if name == "std":
        axes = options["axis"]
        g.require(np.var(g.value(x), axis=axes) > 0.05)
    if name == "prod":
        g.require(n < 9)
    called(g, name, x, **options)


def extremum(g: Generator) -> None:
    """`max`, `min`, `argmax`, `argmin` where no two elements are close."""
    name = g.pick(["max", "min", "argmax", "argmin"])
    x = g.some(lambda v: v.kind in "fi" and v.ndim > 0)
    position = name.startswith("arg")
    axes = g.pick([None, g.axis(x)]) if position else g.axes(x)
    g.require(length(g, x, axes) > 0)
    if x.kind == "f":
        separate(g, g.value(x), axes)
    called(g, name, x, axis=axes, keepdims=g.chance(0.4))


def separate(g: Generator, values: np.ndarray[Any, Any], axes: Any) -> None:
    """Refuse elements that nearly tie for the first or last place along the axes."""
    g.require(values.size > 0)
    picked = [a % values.ndim for a in reduced(values.ndim, axes)]
    last = np.moveaxis(values, picked, range(-len(picked), 0))
    rows = np.sort(last.reshape((*last.shape[: values.ndim - len(picked)], -1)), axis=-1)
    if rows.shape[-1] > 1:
        g.require(rows[..., -1] - rows[..., -2] > MARGIN)
        g.require(rows[..., 1] - rows[..., 0] > MARGIN)


def running(g: Generator) -> None:
    """`cumsum` and `cumprod`."""
    name = g.pick(["cumsum", "cumsum", "cumprod"])
    x = g.some(lambda v: v.kind in "fi" and v.ndim > 0)
    g.emit(f"sg.{name}", x, axis=g.pick([g.axis(x), g.axis(x), None]))


def normalised(g: Generator) -> None:
    """`softmax`, `log_softmax`, `logsumexp`."""
    x = g.some_float(1)
    name = g.pick(["softmax", "log_softmax", "logsumexp"])
    axes = g.axis(x) if g.chance(0.7) else g.axes(x)
    g.require(length(g, x, axes) > 0)
    options = {"keepdims": True} if name == "logsumexp" and g.chance(0.5) else {}
    g.emit(f"sg.{name}", x, axis=axes, **options)


# -- contractions ---------------------------------------------------------------------------------
def product(g: Generator) -> None:
    """`a @ b`, with a matching variable or leaf."""
    a = g.some_float(1)
    dtype = str(a.node.dtype)
    if g.chance(0.5):

        def goes(v: Variable) -> bool:
            inner = v.shape[-2] if v.ndim > 1 else v.shape[0] if v.ndim else None
            return (
                v.node.dtype == dtype and v.ndim in (1, 2) and same(inner, a.shape[-1]) is True
            )

        b = g.some(goes)
    else:
        (inner,) = g.terms(a.shape[-1:])
        b = g.leaf((inner, g.pick(g.pool)) if g.chance(0.7) else (inner,), dtype)
    name = g.pick(["@", "@", "sg.matmul", "sg.dot"])
    g.emit(name, a, b)


def tensordot(g: Generator) -> None:
    """`tensordot`, `outer`."""
    a = g.some_float()
    b = g.some(lambda v: v.node.dtype == a.node.dtype)
    if g.chance(0.4) or not a.ndim or not b.ndim:
        g.emit("sg.outer", a, b)
        return
    pairs = [
        (i, j) for i, x in enumerate(a.shape) for j, y in enumerate(b.shape) if same(x, y) is True
    ]
    i, j = g.pick(pairs)
    g.emit("sg.tensordot", a, b, axes=((i,), (j,)))


def einsum(g: Generator) -> None:
    """A random product of up to three variables, diagonals included."""
    first = g.some_float(1)
    count = int(g.pick([1, 2, 2, 3]))
    args = [first]
    args += [
        g.some(lambda v: v.node.dtype == first.node.dtype and v.ndim > 0) for _ in range(count - 1)
    ]
    letters: list[tuple[str, Any]] = []
    specs: list[str] = []
    for arg in args:
        own = ""
        for e in arg.shape:
            equal = [c for c, x in letters if same(x, e) is True]
            known = [c for c in equal if c not in own or g.chance(0.1)]
            if known and g.chance(0.7):
                own += g.pick(known)
            else:
                letters.append(("ijklmnopq"[len(letters)], e))
                own += letters[-1][0]
            g.require(len(letters) < 8)
        specs.append(own)
    names = [c for c, _ in letters]
    out = "".join(str(c) for c in g.rng.permutation(names) if g.chance(0.5))
    g.emit("sg.einsum", f"{','.join(specs)}->{out}", *args)


def diagonal(g: Generator) -> None:
    """`trace`, `diag`."""
    if g.chance(0.4):
        g.emit("sg.diag", g.some(lambda v: v.kind == "f" and v.ndim == 1))
        return
    x = g.some_float(2)
    if same(x.shape[0], x.shape[1]) is not True:
        shape = g.terms(x.shape[:1])
        x = g.leaf((*shape, *shape), g.floats)
    g.emit("sg.diag" if x.ndim == 2 and g.chance(0.5) else "sg.trace", x)


# -- losses ---------------------------------------------------------------------------------------
def loss(g: Generator) -> None:
    """`cross_entropy`, `mse`, `binary_cross_entropy`."""
    x = g.some_float()
    turn = g.rng.random()
    if turn < 0.3:
        g.emit("sg.mse", x, g.partner(x))
    elif turn < 0.6:
        target = g.leaf(g.terms(x.shape), g.pick([g.ints, g.floats]), 0, 1)
        g.emit("sg.binary_cross_entropy", x, target)
    else:
        g.require(x.ndim > 0)
        classes = g.size(g.terms(x.shape[-1:]))
        g.require(classes > 0)
        labels = g.leaf(g.terms(x.shape[:-1]), g.ints, 0, classes - 1)
        g.emit("sg.cross_entropy", x, labels)


__all__ = ["Unfit", "diagonal", "einsum", "extremum", "loss", "normalised", "product", "running",
           "summed", "tensordot"]  # fmt: skip
