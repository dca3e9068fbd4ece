"""Extents: how long an axis is, as a number or as a polynomial in named dims.

A static extent is a plain `int`; a symbolic one is a SymPy expression in `Dim` symbols. Two extents
are compared by `expand(a - b)`: zero means equal, a non-zero number means different, and anything
else is undecided and becomes a guard that is checked when values arrive.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

import sympy

from symgrad.graph.errors import LeafError, ShapeError

Extent: TypeAlias = int | sympy.Expr
Shape: TypeAlias = tuple[Extent, ...]
#: The most characters of a name or an extent in a message.
LONGEST = 40
#: The number that stands for a symbolic dim where costs are compared before values are known.
TYPICAL_EXTENT = 64


class Dim(sympy.Symbol):  # type: ignore[misc]  # SymPy ships no types
    """A named symbolic extent, a nonnegative integer."""

    __slots__ = ()

    def __new__(cls, name: str) -> Dim:
        """Return the dim of that name; equal names are the same dim."""
        made: Dim = super().__new__(cls, name, integer=True, nonnegative=True)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        return (self.name,), {}


class DerivedDim(Dim):
    """A dim whose value others tell: the whole parts of an extent, or how many make a square.

    Fields:
        of:    the extent.
        every: how long a part is; None: the number itself is the square root, rounded up.
    """

    __slots__ = ("every", "of")

    of: Extent
    every: Extent | None

    def __new__(cls, of: Extent, every: Extent | None) -> DerivedDim:
        """Return the dim of that extent; equal extents have the same."""
        whole, part = (str(e) if isinstance(e, (int, Dim)) else f"({e})" for e in (of, every))
        made = super().__new__(cls, f"sqrt({of})" if every is None else f"{whole}//{part}")
        assert isinstance(made, DerivedDim)
        made.of, made.every = of, every
        return made

    @property
    def arguments(self) -> tuple[Extent | None, ...]:
        """What it is made of: equal ones make the same dim."""
        return self.of, self.every

    def __getnewargs_ex__(self) -> tuple[tuple[Extent | None, ...], dict[str, object]]:  # type: ignore[override]
        return self.arguments, {}

    def number(self, dims: Mapping[Dim, int]) -> int:
        """Its value."""
        whole = value(self.of, dims)
        if self.every is None:
            return math.isqrt(max(whole - 1, 0)) + 1
        return whole // max(value(self.every, dims), 1)


class Counted(Dim):
    """A dim whose value a program finds while it runs: at most `most`, for which memory is made.

    Of a vector `v` of `most + 1` int64, the move `[0:n] = v[0:n]` tells n, its last element.

    Fields:
        most: the extent that it never exceeds.
    """

    __slots__ = ("most",)

    most: Extent

    def __new__(cls, name: str, most: Extent) -> Counted:
        """Return the dim of that name and bound; equal ones are the same."""
        made = super().__new__(cls, f"{name} <= {most}")
        assert isinstance(made, Counted)
        made.most = most
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str, Extent], dict[str, object]]:  # type: ignore[override]
        return (self.label, self.most), {}

    @property
    def label(self) -> str:
        """Its name without its bound."""
        return str(self.name.rsplit(" <= ", 1)[0])

    def number(self, dims: Mapping[Dim, int]) -> int:
        """The most that it can be."""
        return value(self.most, dims)


def quotient_of(of: Extent, every: Extent) -> Extent:
    """How many whole parts of `every` steps an extent has.

    >>> quotient_of(7, 3), value(quotient_of(dim("T"), 3), {dim("T"): 7})
    (2, 2)
    """
    return of // every if isinstance(of, int) and isinstance(every, int) else DerivedDim(of, every)


def ceil_sqrt(of: Extent) -> Extent:
    """The square root of an extent, rounded up, at least 1.

    >>> ceil_sqrt(17), ceil_sqrt(16), ceil_sqrt(0), value(ceil_sqrt(dim("T")), {dim("T"): 17})
    (5, 4, 1, 5)
    """
    return math.isqrt(max(of - 1, 0)) + 1 if isinstance(of, int) else DerivedDim(of, None)


def derived_values(dims: Iterable[Dim], known: Mapping[Dim, int]) -> dict[Dim, int]:
    """The values of dims that others tell, where these are known."""
    found: dict[Dim, int] = {}
    for d in dims:
        if isinstance(d, DerivedDim) and all(b in known for b in roots(d)):
            found[d] = d.number(known)
    return found


def roots(extent: Extent) -> tuple[Dim, ...]:
    """The dims that an extent depends on in the end, sorted by name."""
    found: set[Dim] = set()
    for d in free_dims(extent):
        if isinstance(d, DerivedDim):
            found.update(*(roots(a) for a in d.arguments if a is not None))
        elif isinstance(d, Counted):
            found.update(roots(d.most))
        else:
            found.add(d)
    return tuple(sorted(found, key=lambda d: d.name))


def dim(name: str) -> Dim:
    """Make a symbolic extent `>= 0`; programs do not recompile when its value changes.

    Args:
        name: any non-empty string; the same name is the same dim.
    Raises: LeafError when the name is empty or no string.

    >>> dim("B") is dim("B") or dim("B") == dim("B")
    True
    """
    if not isinstance(name, str) or not name:
        raise LeafError(f'dim: the name must be a non-empty string, got {name!r}. Write dim("B").')
    return Dim(name)


def as_extent(value: object, asked: str = "shape") -> Extent:
    """Normalise an extent: integers become `int`, symbolic ones are expanded.

    Raises: ShapeError when it is negative, fractional, or no extent at all.

    >>> as_extent(sympy.Integer(3))
    3
    """
    if type(value) is int:
        if value < 0:
            raise ShapeError(f"{asked}: an extent cannot be negative, got {value}.")
        return value
    if isinstance(value, Dim):
        return value
    if isinstance(value, bool) or value is None:
        raise ShapeError(f"{asked}: an extent must be an integer or a dim, got {value!r}.")
    if isinstance(value, sympy.Expr):
        return _normalise(value, asked)
    try:
        number = value.__index__()  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise ShapeError(
            f"{asked}: an extent must be an integer or a dim, got {value!r} "
            f'({type(value).__name__}). Make a symbolic one with dim("B").'
        ) from None
    return as_extent(int(number), asked)


@lru_cache(maxsize=4096)
def _normalise(value: sympy.Expr, asked: str) -> Extent:
    expanded = sympy.expand(value)
    if expanded.is_Integer:
        return as_extent(int(expanded), asked)
    strange = [s for s in expanded.free_symbols if not isinstance(s, Dim)]
    polynomial = expanded.is_polynomial() and not expanded.has(sympy.zoo, sympy.oo, sympy.nan)
    if strange or not expanded.free_symbols or not polynomial:
        raise ShapeError(
            f"{asked}: {expanded} is no extent. Use integers and dims made by dim(name)."
        )
    return expanded


def integers(asked: str, what: str, values: object) -> list[int]:
    """A sequence of integers.

    Raises: ShapeError, naming `what` they are for.

    >>> integers("transpose", "axes", (2, 0, 1))
    [2, 0, 1]
    """
    try:
        return [operator.index(v) for v in values]  # type: ignore[attr-defined]
    except TypeError:
        raise ShapeError(f"{asked}: {what} must be integers, got {values!r:.60}.") from None


def as_shape(values: object, asked: str = "shape") -> Shape:
    """Normalise a shape given as one extent or as a sequence of extents.

    >>> as_shape((2, 3)), as_shape(4)
    ((2, 3), (4,))
    """
    if isinstance(values, (tuple, list)):
        return tuple(as_extent(v, asked) for v in values)
    return (as_extent(values, asked),)


def same(a: Extent, b: Extent) -> bool | None:
    """Whether two extents are equal; None when that depends on the values of dims.

    >>> B = dim("B")
    >>> same(3, 3), same(B + 1, B), same(B, 3)
    (True, False, None)
    """
    if a is b:
        return True
    if type(a) is int and type(b) is int:
        return a == b
    return _same(a, b)


@lru_cache(maxsize=16384)
def _same(a: Extent, b: Extent) -> bool | None:
    difference = sympy.expand(a - b)
    if difference == 0:
        return True
    return False if difference.is_number else None


def size(shape: Iterable[Extent]) -> Extent:
    """Number of elements of a shape.

    >>> size((2, 3)), size((dim("B"), 4))
    (6, 4*B)
    """
    total: Extent = 1
    for extent in shape:
        total = total * extent
    return total if type(total) is int else _normalise(sympy.sympify(total), "size")


@lru_cache(maxsize=4096)
def dims_in(expression: sympy.Expr) -> tuple[Dim, ...]:
    """The dims that occur in an extent or in a scalar body, sorted by name."""
    found = [s for s in expression.free_symbols if isinstance(s, Dim)]
    return tuple(sorted(found, key=lambda d: d.name))


def free_dims(extents: Extent | Iterable[Extent]) -> tuple[Dim, ...]:
    """The dims that occur, sorted by name."""
    if isinstance(extents, (int, sympy.Expr)):
        extents = (extents,)
    found = {d for e in extents if not isinstance(e, int) for d in dims_in(e)}
    return tuple(sorted(found, key=lambda d: d.name)) if found else ()


def is_counted(*extents: Extent) -> bool:
    """Whether a program finds some of these while it runs, so that nothing else can check them."""
    return any(isinstance(d, Counted) for d in free_dims(extents))


def at_most(extent: Extent) -> Extent:
    """An extent with the most that each dim can be which a program counts.

    >>> at_most(Counted("words", dim("T") * dim("B")) * 2)
    2*B*T
    """
    if isinstance(extent, int) or not is_counted(extent):
        return extent
    most = {d: d.most for d in free_dims(extent) if isinstance(d, Counted)}
    return at_most(as_extent(extent.xreplace(most)))


def value(extent: Extent, dims: Mapping[Dim, int]) -> int:
    """The number that an extent is once its dims are known.

    >>> value(dim("B") * 2, {dim("B"): 5})
    10
    """
    if isinstance(extent, int):
        return extent
    if isinstance(extent, Dim):
        if isinstance(extent, (DerivedDim, Counted)) and extent not in dims:
            return extent.number(dims)
        return int(dims[extent])
    known = {d: sympy.Integer(n) for d, n in dims.items()}
    for d in free_dims(extent):
        if isinstance(d, (DerivedDim, Counted)) and d not in known:
            known[d] = sympy.Integer(d.number(dims))
    return int(extent.xreplace(known))


def typical(extent: Extent) -> int:
    """The number that an extent is where every dim of a user has the typical one.

    >>> typical(dim("B") * 2), typical(ceil_sqrt(dim("T"))), typical(7)
    (128, 8, 7)
    """
    return extent if isinstance(extent, int) else value(extent, typical_values(roots(extent)))


def typical_values(dims: Iterable[Dim]) -> dict[Dim, int]:
    """Dims with typical values; derived ones follow from theirs."""
    return {d: typical(d) if isinstance(d, DerivedDim) else TYPICAL_EXTENT for d in dims}


def values(shape: Shape, dims: Mapping[Dim, int]) -> tuple[int, ...]:
    """A shape in numbers."""
    return tuple(value(extent, dims) for extent in shape)


def show(shape: Shape) -> str:
    """A shape as text.

    >>> show((dim("B"), 64)), show((3,))
    ('(B, 64)', '(3,)')
    """
    inner = ", ".join(_shortened(printable(str(extent))) for extent in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def quoted(name: object) -> str:
    """A name as a literal on one line, shortened where it is long.

    >>> quoted("x"), len(quoted("x" * 1000))
    ("'x'", 40)
    """
    return _shortened(printable(repr(name)))


def keyword(name: str) -> str:
    """A name as the keyword of a call, where it can be one.

    >>> keyword("x"), keyword("layer 1")
    ('x', "'layer 1'")
    """
    return _shortened(name) if name.isidentifier() else quoted(name)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def listed(texts: Iterable[str], most: int = 8) -> str:
    """Texts with commas between them; of many the first.

    >>> listed("abc"), listed("abcdefg", most=3)
    ('a, b, c', 'a, b, c, .. and 4 more')
    """
    found = list(texts)
    shown = [*found[:most], f".. and {len(found) - most} more"] if len(found) > most else found
    return ", ".join(shown)


def first_lines(lines: Iterable[str], most: int) -> str:
    """Lines as one text; of many the first, and how many more there are.

    >>> print(first_lines(["a", "b", "c", "d"], most=2))
    a
    b
    .. and 2 more
    """
    found = list(lines)
    hidden = len(found) - most
    return "\n".join([*found[:most], f".. and {hidden} more"] if hidden > 0 else found)


def printable(text: str) -> str:
    """Text on one line: control characters and unicode line separators are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
