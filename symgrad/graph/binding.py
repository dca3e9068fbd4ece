"""From a caller's values to arrays and dims: what a graph asks of its data, checked once per call.

The evaluator and every compiled function bind through here, so that they accept and refuse the same
values with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from symgrad.graph import dims as dm
from symgrad.graph.dims import Dim, Extent, free_dims
from symgrad.graph.dtypes import BOOL, BOUNDS, DType, is_bool, is_float, is_int
from symgrad.graph.errors import DataError, DataShapeError, DataTypeError, LeafError
from symgrad.graph.folds import Fold
from symgrad.graph.graph import Graph, Guard
from symgrad.graph.leaves import initial_value
from symgrad.graph.nodes import Input, Node, Reduce, Reindex, describe
from symgrad.graph.streams import numbers, supplied

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Requirement:
    """An extent that must not be negative: a slice stays inside its axis, a maximum has a value."""

    extent: Extent
    node: Node


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the value of a dim comes from: `(extent of that axis - shift) / factor`."""

    dim: Dim
    leaf: int
    axis: int
    factor: int = 1
    shift: int = 0


class Binding:
    """What a graph asks of its values, worked out once.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (dm.dim("B"), 2))
    >>> arrays, dims = Binding(Graph.of([x]))({"x": np.zeros((3, 2), np.float32)})
    >>> dims
    {B: 3}
    """

    __slots__ = (
        "_checks",
        "_dims",
        "_fixed",
        "_sources",
        "graph",
        "guards",
        "leaves",
        "numbers",
        "requirements",
    )

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.leaves: tuple[Input, ...] = graph.inputs
        self.guards: tuple[Guard, ...] = graph.guards
        self.requirements: tuple[Requirement, ...] = requirements(graph)
        self._sources = _sources(graph)
        self._dims = _first_uses(graph)
        self.numbers = numbers(self.leaves)
        self._fixed = tuple(
            leaf.shape if all(type(e) is int for e in leaf.shape) else None for leaf in self.leaves
        )
        self._checks = tuple(
            (k, leaf, tuple((a, e) for a, e in enumerate(leaf.shape)))
            for k, leaf in enumerate(self.leaves)
            if self._fixed[k] is None
        )

    def __call__(
        self,
        values: Mapping[str, Any],
        seed: int = 0,
        step: int = 0,
        dims: Mapping[Dim, int] | None = None,
        draws: int = 0,
        training: bool = False,
    ) -> tuple[list[Array], dict[Dim, int]]:
        """Arrays in the order of the graph's leaves, and the values of the dims.

        Args:
            values: by name; a parameter left out takes its initial value.
            seed:   for initial values.
            step:   the value of a leaf of kind "step" that is left out.
            dims:   of dims that no leaf tells.
            draws:  the seed of random numbers.
            training: whether dropout drops.
        Returns: C-contiguous arrays of the leaves' dtypes, not copied where they fit, and the dims.
        Raises: LeafError for a missing leaf, DataError for values that do not fit.
        """
        arrays: list[Array | None] = []
        absent: list[int] = []
        for k, leaf in enumerate(self.leaves):
            if leaf.is_supplied:
                arrays.append(supplied(leaf, self.numbers, draws, training))
                continue
            value = values.get(leaf.label)
            if value is None:
                absent.append(k)
                arrays.append(None)
                continue
            if (
                type(value) is not np.ndarray
                or value.dtype is not leaf.dtype
                or not ((flags := value.flags).c_contiguous and flags.aligned)
            ):
                value = converted(leaf, value)
            if value.shape != self._fixed[k] and (
                self._fixed[k] is not None or value.ndim != len(leaf.shape)
            ):
                raise _wrong_shape(leaf, value, {})
            arrays.append(value)
        known: dict[Dim, int] = {}
        for source in self._sources:
            given = arrays[source.leaf]
            if given is not None and source.dim not in known:
                known[source.dim] = self._solved(source, given)
        if dims:
            known = {**dims, **known}
        if len(known) < len(self._dims):
            self._solve_products(arrays, known)
        known |= dm.derived_values((d for d, _ in self._dims if d not in known), known)
        for k in absent:
            arrays[k] = self._default(self.leaves[k], known, seed, step, values)
        bound: list[Array] = arrays  # type: ignore[assignment]
        if self._checks or self.guards or self.requirements or len(known) < len(self._dims):
            self._check(bound, known)
        return bound, known

    def _solved(self, source: _Source, array: Array) -> int:
        extent: int = array.shape[source.axis]
        if source.factor == 1 and source.shift == 0:
            return extent
        number, rest = divmod(extent - source.shift, source.factor)
        if rest or number < 0:
            raise _wrong_shape(self.leaves[source.leaf], array, {})
        return number

    def _solve_products(self, arrays: Sequence[Array | None], dims: dict[Dim, int]) -> None:
        """Dims that stand only beside others, `B*T` say: solved once the others are known."""
        waiting = True
        while waiting:
            waiting = False
            for k, _, extents in self._checks:
                given = arrays[k]
                for axis, extent in extents if given is not None else ():
                    unknown = [d for d in free_dims(extent) if d not in dims]
                    if len(unknown) != 1 or isinstance(extent, Dim) or given is None:
                        continue
                    known = {d: dims[d] for d in free_dims(extent) if d in dims}
                    poly = sympy.Poly(extent.subs(known), unknown[0])  # type: ignore[union-attr]
                    if poly.degree() == 1:
                        factor, shift = (int(c) for c in poly.all_coeffs())
                        source = _Source(unknown[0], k, axis, factor, shift)
                        dims[unknown[0]] = self._solved(source, given)
                        waiting = True

    def _default(
        self, leaf: Input, dims: dict[Dim, int], seed: int, step: int, values: Mapping[str, Any]
    ) -> Array:
        if leaf.kind == "step":
            return np.asarray(step, leaf.dtype)
        if leaf.kind == "bound":
            raise LeafError(
                f"scan: {leaf.name} of a step is used outside of the step\n  {describe(leaf)}\n"
                "  Return it from the step, as carry or as y, and use what scan returns."
            )
        if leaf.kind != "parameter":
            own = {x.name for x in self.leaves}
            odd = [dm.quoted(name) for name in values if name not in own]
            raise LeafError(
                f"no value for the input {dm.quoted(leaf.name)}\n  {describe(leaf)}\n"
                f"  Give one: {dm.keyword(leaf.name)}=..."
                + (f" Given and not read: {dm.listed(odd)}." if odd else "")
            )
        unknown = [d.name for d in free_dims(leaf.shape) if d not in dims]
        if unknown:
            raise LeafError(
                f"no value for the parameter {dm.quoted(leaf.name)}, and no other value tells "
                f"{', '.join(unknown)}\n  {describe(leaf)}"
            )
        return initial_value(leaf, seed, dims)

    def _check(self, arrays: Sequence[Array], dims: dict[Dim, int]) -> None:
        for k, leaf, extents in self._checks:
            shape = arrays[k].shape
            for axis, extent in extents:
                if type(extent) is int:
                    wanted = extent
                elif extent in dims:
                    wanted = dims[extent]
                else:
                    wanted = _value(extent, dims, leaf)
                if shape[axis] != wanted:
                    raise _wrong_shape(leaf, arrays[k], dims, self._tellers())
        for d, node in self._dims:
            if d not in dims:
                _value(d, dims, node)
        for guard in self.guards:
            left = _value(guard.left, dims, guard.node)
            right = _value(guard.right, dims, guard.node)
            if left != right:
                tellers = self._tellers()
                raise DataShapeError(
                    f"extents that must be equal differ: {_extent_text(guard.left, left, tellers)} "
                    f"and {_extent_text(guard.right, right, tellers)}\n  {_asking(guard.node)}\n"
                    "  Give values that agree there."
                )
        for need in self.requirements:
            if (spare := _value(need.extent, dims, need.node)) < 0:
                if isinstance(need.node, Reduce):
                    shape = dm.values(need.node.args[0].shape, dims)
                    empty = next(a for a in need.node.axes if shape[a] == 0)
                    raise DataShapeError(
                        f"{need.node.op}: axis {empty} is empty\n  {describe(need.node)}\n"
                        f"  got {dm.show(shape)}"
                    )
                raise DataShapeError(
                    f"a slice leaves its axis: {need.extent} must not be negative, got {spare}"
                    f"{_dims_text(dims)}\n  {describe(need.node)}"
                )


    def _tellers(self) -> dict[Dim, Input]:
        """The leaf that tells each dim, where one has it as an axis."""
        found: dict[Dim, Input] = {}
        for source in self._sources:
            found.setdefault(source.dim, self.leaves[source.leaf])
        return found


def _value(extent: Extent, dims: dict[Dim, int], node: Node) -> int:
    if type(extent) is not int and not isinstance(extent, Dim):
        missing = [d for d in free_dims(extent) if d not in dims]
    else:
        missing = [extent] if isinstance(extent, Dim) and extent not in dims else []
    if missing:
        names = dm.listed(dm.quoted(d.name) for d in missing)
        raise LeafError(
            f"no value tells the dim {names}\n  {describe(node)}\n"
            "  A dim gets its value from the shape of an input that has it. Where the formula has "
            "no such\n  input, as a derivative may, give the dim by its name: "
            f"{dm.keyword(missing[0].name)}=..."
        )
    return dm.value(extent, dims)


def _extent_text(extent: Extent, value: int, tellers: Mapping[Dim, Input]) -> str:
    if type(extent) is int:
        return str(value)
    teller = tellers.get(extent) if isinstance(extent, Dim) else None
    of = f" of {dm.quoted(teller.name)}" if teller is not None else ""
    return f"{dm.printable(str(extent))} = {value}{of}"


def _asking(node: Node) -> str:
    """What asks for equal extents: an operation, or a recurrence over several sequences."""
    if isinstance(node, Fold):
        line = f"  {node.where}" if node.where is not None else ""
        return f"{node.origin or 'scan'}: sequences have one length, a carry its shape{line}"
    return describe(node)


def _dims_text(dims: Mapping[Dim, int]) -> str:
    text = ", ".join(f"{dm.printable(d.name)} = {n}" for d, n in dims.items())
    return f" for {text}" if text else ""


def _wrong_shape(
    leaf: Input, array: Array, dims: Mapping[Dim, int], tellers: Mapping[Dim, Input] | None = None
) -> DataShapeError:
    own = {d: n for d, n in dims.items() if d in free_dims(leaf.shape)}
    others = {d: t for d, t in (tellers or {}).items() if d in own and t is not leaf}
    names = dm.listed(dict.fromkeys(dm.quoted(t.name) for t in others.values()))
    on = dm.listed(d.name for d in others)
    agree = f"\n  It must agree with {names} on {on}." if others else ""
    return DataShapeError(
        f"{leaf.kind} {dm.quoted(leaf.name)} has the wrong shape\n  asked  {describe(leaf)}"
        f"{_dims_text(own)}\n  got    {array.dtype} {dm.show(array.shape)}{agree}"
    )


def _sources(graph: Graph) -> tuple[_Source, ...]:
    """Ways to each dim: axes that are the dim itself first, then `factor * dim + shift`."""
    plain: list[_Source] = []
    linear: list[_Source] = []
    for k, leaf in enumerate(graph.inputs):
        for axis, extent in enumerate(leaf.shape):
            if isinstance(extent, Dim):
                plain.append(_Source(extent, k, axis))
            elif type(extent) is not int and len(found := free_dims(extent)) == 1:
                poly = sympy.Poly(extent, found[0])
                if poly.degree() == 1:
                    factor, shift = (int(c) for c in poly.all_coeffs())
                    linear.append(_Source(found[0], k, axis, factor, shift))
    return (*plain, *linear)


def _first_uses(graph: Graph) -> tuple[tuple[Dim, Node], ...]:
    """Each dim with the first node that has it, for the message when nothing tells it."""
    first: dict[Dim, Node] = {}
    for node in graph.nodes:
        for extent in node.shape:
            if type(extent) is not int:
                for d in free_dims(extent):
                    if not dm.is_counted(d):
                        first.setdefault(d, node)
    for d in graph.dims:
        first.setdefault(d, graph.outputs[0])
    return tuple(first.items())


def requirements(graph: Graph) -> tuple[Requirement, ...]:
    """Extents that must not be negative when values arrive.

    Symbolic slices stay inside axes, and the axes of a maximum or minimum are not empty.
    """
    found: dict[Extent, Requirement] = {}
    for node in graph.every_node():
        if isinstance(node, Reindex):
            for piece in node.pieces:
                for view, start, step, count in zip(
                    piece.view, piece.start, piece.step, piece.count, strict=True
                ):
                    _inside(found, node, view, start, step, count)
                for extent, start, step, count in zip(
                    node.shape, piece.offset, piece.stride, piece.count, strict=True
                ):
                    _inside(found, node, extent, start, step, count)
        elif isinstance(node, Reduce) and node.op in ("max", "min", "argmax", "argmin"):
            for axis in node.axes:
                extent = node.args[0].shape[axis]
                if type(extent) is not int or extent == 0:
                    found.setdefault(extent - 1, Requirement(extent - 1, node))
        for extent in node.shape:
            if type(extent) is not int and not isinstance(extent, Dim):
                _need(found, node, extent)
    return tuple(need for need in found.values() if not dm.is_counted(need.extent))


def _inside(
    found: dict[Extent, Requirement],
    node: Node,
    view: Extent,
    start: Extent,
    step: int,
    count: Extent,
) -> None:
    """`start + step k` stays in `0..view-1` for k in `count`."""
    if all(type(e) is int for e in (view, start, count)):
        return
    last = start + step * (count - 1)
    low, high = (start, last) if step > 0 else (last, start)
    if type(count) is not int:
        _need(found, node, count)
    elif count == 0:
        return
    _need(found, node, low)
    _need(found, node, view - 1 - high)


def _need(found: dict[Extent, Requirement], node: Node, extent: Any) -> None:
    if type(extent) is int:
        return
    extent = sympy.expand(extent)
    if extent.is_nonnegative:
        return
    found.setdefault(extent, Requirement(extent, node))


# -- values ---------------------------------------------------------------------------------------
def converted(leaf: Input, value: Any) -> Array:
    """A value as a C-contiguous array of the leaf's dtype.

    float64 becomes float32, int64 becomes int32 where it fits, integers become floats; floats never
    become integers.
    Raises: DataError.
    """
    if isinstance(value, Node):
        raise DataError(f"the value of {dm.quoted(leaf.name)} is an expression, not an array.")
    if np.ma.is_masked(value):
        masked = int(np.sum(np.ma.getmaskarray(value)))
        raise DataError(
            f"{leaf.kind} {dm.quoted(leaf.name)}: {masked} values are masked\n"
            f"  {describe(leaf)}\n  Fill them: .filled(0), or drop those rows."
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"the value of {dm.quoted(leaf.name)} is no array: {error}") from None
    if array.dtype != leaf.dtype:
        array = _cast(leaf, array, leaf.dtype)
    if array.dtype is not leaf.dtype:
        array = array.astype(leaf.dtype)
    return np.require(array, requirements=("C", "A")).reshape(array.shape)


def _cast(leaf: Input, array: Array, dtype: DType) -> Array:
    kind = array.dtype.kind
    allowed = "fiu" if is_float(dtype) else "iu" if is_int(dtype) else "b"
    if kind == "b" and dtype != BOOL:
        allowed += "b"
    if kind not in allowed and not (array.size == 0 and kind == "f" and not is_bool(dtype)):
        raise DataTypeError(
            f"{leaf.kind} {dm.quoted(leaf.name)} is {dtype}, "
            f"got {array.dtype} {dm.show(array.shape)}\n  {describe(leaf)}\n"
            f"  Convert it: .astype({str(dtype)!r})."
        )
    if is_int(dtype) and array.size and kind in "iu":
        low, high = array.min(), array.max()
        least, most = BOUNDS[dtype]
        if low < least or high > most:
            worst = high if high > most else low
            raise DataError(
                f"{leaf.kind} {dm.quoted(leaf.name)} is {dtype}, got {worst}, which does not fit\n"
                f"  {describe(leaf)}"
            )
    with np.errstate(all="ignore"):
        made = array.astype(dtype)
    if kind == "f" and array.dtype.itemsize > dtype.itemsize and not np.isfinite(made).all():
        lost = np.isfinite(array) & ~np.isfinite(made)
        if lost.any():
            worst = f"{array[lost].flat[0]}"
            if array.ndim:
                worst += f" at {tuple(int(k[0]) for k in np.nonzero(lost))}"
            raise DataError(
                f"{leaf.kind} {dm.quoted(leaf.name)} is {dtype}, got {worst}, which does not fit\n"
                f'  {describe(leaf)}\n  Scale the data, or declare the leaf with dtype="float64".'
            )
    return made


def bind(
    graph: Graph, values: Mapping[str, Any], seed: int = 0, step: int = 0
) -> tuple[list[Array], dict[Dim, int]]:
    """`Binding(graph)(values)`, for one call."""
    return Binding(graph)(values, seed, step)
