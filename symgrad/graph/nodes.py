"""The nodes: few, and closed under differentiation.

    Input     a binder: an input or a parameter. It has identity and is never interned.
    Constant  a literal or a small array
    Map       out[i..] = f(args..), elementwise with broadcasting
    Einsum    a product summed over the labels that are absent from the output
    Reduce    max, min, prod, argmax, argmin over axes; running sums, products and maxima
    Reindex   affine moves of sources into disjoint regions, zero elsewhere
    Gather    a data-dependent read
    Scatter   accumulation by index

The derivative of each is made of the same nodes. A recurrence and its results, Fold and Proj, stand
in `folds.py`, and with them the list of all classes.

Everything but `Input` is interned: equal nodes are one object, so equality is `is`. `==` builds an
expression. Shape, dtype and the user's line are derived at birth; provenance is outside equality.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import sympy

from symgrad.graph import dims as dm
from symgrad.graph.dims import Extent, Shape, same
from symgrad.graph.dtypes import INT32, SHORT, DType
from symgrad.graph.errors import DTypeError, ShapeError
from symgrad.graph.operators import Operators
from symgrad.graph.provenance import CONTEXT, SourceLine, caller
from symgrad.graph.scalars import infer_dtype

_TABLE: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()
_set = object.__setattr__


class _Interned(type):
    """Calling an interned class returns the living node with equal fields, if there is one."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        node = super().__call__(*args, **kwargs)
        key = node.intern_key()
        if key is None:
            return node
        with _LOCK:
            return _TABLE.setdefault(key, node)


class Node(Operators, metaclass=_Interned):
    """A tensor expression."""

    __slots__ = ("__weakref__", "backward_of", "dtype", "origin", "shape", "where")
    args: tuple[Node, ...]
    shape: Shape
    dtype: DType
    where: SourceLine | None
    origin: str | None
    backward_of: Node | None
    own_fields: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _set(self, "origin", CONTEXT.origin)
        _set(self, "backward_of", CONTEXT.backward_of)
        _set(self, "where", caller())
        self.derive()

    def derive(self) -> None:
        """Set shape and dtype from the fields."""
        raise TypeError(f"{type(self).__name__} does not derive its shape (symgrad/graph/nodes.py)")

    def intern_key(self) -> tuple[Any, ...] | None:
        """What makes two nodes equal; None for nodes that have identity."""
        fields = tuple(getattr(self, name) for name in self.own_fields)
        return (type(self), tuple(map(id, self.args)), *fields)

    def with_args(self, args: Sequence[Node]) -> Node:
        """The same node over other arguments."""
        cls: Any = type(self)
        made: Node = cls(tuple(args), **self._own())
        return made

    def _own(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.own_fields}

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def name(self) -> str:
        """The name of a leaf; of other nodes, what they do."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        extents = ",".join(dm.printable(str(e)) for e in self.shape)
        return f"<{type(self).__name__} {SHORT[self.dtype]}[{extents}]>"


def describe(node: Node) -> str:
    """A node for an error message: name, dtype, shape and the line that made it."""
    what = dm.quoted(node.name) if isinstance(node, Input) else node.name
    line = f"  {node.where}" if node.where is not None else ""
    return f"{what:<12} {node.dtype} {dm.show(node.shape)}{line}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Input(Node):
    """A binder: an input, a parameter, or what a run supplies (`streams.py`). Never interned."""

    label: str
    shape: Shape
    dtype: DType
    kind: Literal["input", "parameter", "step", "seed", "training", "random", "bound"] = "input"
    init: Any = None
    args: tuple[Node, ...] = ()

    def derive(self) -> None:
        """Nothing: shape and dtype are given."""

    def intern_key(self) -> None:
        """None: a binder has identity."""

    def with_args(self, args: Sequence[Node]) -> Node:
        """Itself: a leaf has no arguments."""
        return self

    @property
    def name(self) -> str:
        """The user's name of the leaf."""
        return self.label

    @property
    def is_supplied(self) -> bool:
        """Whether the run supplies the value, so that no user names the leaf."""
        return self.kind in ("seed", "training", "random")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Constant(Node):
    """A literal or a small array, copied and frozen."""

    value: np.ndarray[Any, Any]
    args: tuple[Node, ...] = ()

    def derive(self) -> None:
        """Copy the value, freeze it, and read shape and dtype from it."""
        value = np.array(self.value, order="C", copy=True)
        value.setflags(write=False)
        _set(self, "value", value)
        _set(self, "shape", value.shape)
        _set(self, "dtype", value.dtype)

    def intern_key(self) -> tuple[Any, ...]:
        """Class, dtype and raw bytes: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
        raw = self.value.tobytes()
        raw = raw if len(raw) <= 64 else hashlib.sha256(raw).digest()
        return (Constant, self.dtype, self.shape, raw)

    def with_args(self, args: Sequence[Node]) -> Node:
        """Itself: a constant has no arguments."""
        return self


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Map(Node):
    """Elementwise: `out[i..] = body(args..)`.

    Args:
        args:  broadcast to `shape` as in NumPy: right-aligned, extents of one stretched.
        body:  a scalar expression over p0, p1, .. (the arguments), i0, i1, .. (the position along
               an axis) and dims; see `functions.py`.
    """

    args: tuple[Node, ...]
    body: sympy.Expr
    shape: Shape
    dtype: DType
    own_fields: ClassVar[tuple[str, ...]] = ("body", "shape", "dtype")

    def derive(self) -> None:
        """Nothing: shape and dtype are given."""

    def with_args(self, args: Sequence[Node]) -> Node:
        """The same body over other arguments; shape and dtype follow when theirs changed."""
        args = tuple(args)
        pairs = list(zip(args, self.args, strict=True))
        unchanged = all(a.shape == b.shape for a, b in pairs)
        shape = self.shape if unchanged or not args else broadcast(args, "map")
        typed = all(a.dtype == b.dtype for a, b in pairs)
        dtype = self.dtype if typed else infer_dtype(self.body, [a.dtype for a in args])
        return Map(args, self.body, shape, dtype)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Einsum(Node):
    """`out[out labels] = sum over the other labels of the product of the arguments`.

    Labels are small integers numbered by first appearance (arguments in order, then `out`); each
    has its extent. No label stands twice in one argument. A label that only `out` has broadcasts.
    Built by `einsum_node`, which numbers the labels.
    """

    args: tuple[Node, ...]
    labels: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    extents: tuple[Extent, ...]
    own_fields: ClassVar[tuple[str, ...]] = ("labels", "out", "extents")

    def derive(self) -> None:
        """Shape from the extents of the output's labels."""
        _set(self, "shape", tuple(self.extents[label] for label in self.out))
        _set(self, "dtype", self.args[0].dtype)

    def with_args(self, args: Sequence[Node]) -> Node:
        """The same contraction over other arguments."""
        return einsum_node(args, self.labels, self.out, dict(enumerate(self.extents)))

    @property
    def summed(self) -> tuple[int, ...]:
        """The labels that are summed over."""
        return tuple(k for k in range(len(self.extents)) if k not in self.out)


ReduceOp = Literal["max", "min", "prod", "argmax", "argmin", "cumsum", "cumprod", "cummax"]
RUNNING = ("cumsum", "cumprod", "cummax")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reduce(Node):
    """A reduction over `axes` that is no sum, or a running one along a single axis (shape kept)."""

    args: tuple[Node, ...]
    op: ReduceOp
    axes: tuple[int, ...]
    own_fields: ClassVar[tuple[str, ...]] = ("op", "axes")

    def derive(self) -> None:
        """Drop the axes, unless the reduction is running."""
        (arg,) = self.args
        kept = tuple(e for k, e in enumerate(arg.shape) if k not in self.axes)
        _set(self, "shape", arg.shape if self.op in RUNNING else kept)
        _set(self, "dtype", INT32 if self.op in ("argmax", "argmin") else arg.dtype)


@dataclass(frozen=True, slots=True)
class Piece:
    """One affine move: `out[offset + stride k] = source.reshape(view)[start + step k]`, k in count.

    All tuples have the rank of the output; step and stride are nonzero and may be negative.
    """

    view: Shape
    start: Shape
    step: tuple[int, ...]
    count: Shape
    offset: Shape
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reindex(Node):
    """Affine moves of sources into disjoint regions of zeros: one `Piece` per argument."""

    args: tuple[Node, ...]
    pieces: tuple[Piece, ...]
    shape: Shape
    own_fields: ClassVar[tuple[str, ...]] = ("pieces", "shape")

    def derive(self) -> None:
        """The dtype is the sources'."""
        _set(self, "dtype", self.args[0].dtype)

    def intern_key(self) -> tuple[Any, ...]:
        """Pieces are compared by their fields."""
        return (Reindex, tuple(map(id, self.args)), self.pieces, self.shape, self.dtype)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gather(Node):
    """`out[out labels] = source[axes]`: an axis is a label, or is indexed by an integer expression.

    Args:
        args:         the source, then the indices.
        source_axes:  per axis of the source a label `>= 0`, or `~k`: read at `args[1 + k]`.
        index_labels: the labels of each index expression.
        out:          the labels of the result.
        wrap:         negative indices count from the end, as in NumPy; else they are out of range.
    """

    args: tuple[Node, ...]
    source_axes: tuple[int, ...]
    index_labels: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    wrap: bool = True
    own_fields: ClassVar[tuple[str, ...]] = ("source_axes", "index_labels", "out", "wrap")

    def derive(self) -> None:
        """Extents from the source's labelled axes and from the indices."""
        extents = label_extents(
            [(self.source_axes, self.args[0]), *zip(self.index_labels, self.args[1:], strict=True)]
        )
        _set(self, "shape", tuple(extents[label] for label in self.out))
        _set(self, "dtype", self.args[0].dtype)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scatter(Node):
    """`out = zeros(shape); out[axes] += updates`: the adjoint of Gather.

    Args:
        args:          the updates, then the indices.
        update_labels: the labels of the updates.
        index_labels:  the labels of each index expression.
        target_axes:   per axis of the output a label, or `~k`: written at `args[1 + k]`.
        wrap:          as for Gather.
    """

    args: tuple[Node, ...]
    update_labels: tuple[int, ...]
    index_labels: tuple[tuple[int, ...], ...]
    target_axes: tuple[int, ...]
    shape: Shape
    wrap: bool = True
    own_fields: ClassVar[tuple[str, ...]] = (
        "update_labels",
        "index_labels",
        "target_axes",
        "shape",
        "wrap",
    )

    def derive(self) -> None:
        """The dtype is the updates'."""
        _set(self, "dtype", self.args[0].dtype)


# -- building -------------------------------------------------------------------------------------
def broadcast(args: Sequence[Node], asked: str) -> Shape:
    """The common shape of arguments, right-aligned, extents of one stretched.

    Raises: ShapeError naming every argument.
    """
    first = args[0].shape
    if all(a.shape == first for a in args):
        return first
    rank = max(a.ndim for a in args)
    shape: list[Extent] = []
    for axis in range(-rank, 0):
        extent: Extent = 1
        for arg in args:
            other = arg.shape[axis] if -axis <= arg.ndim else 1
            if type(other) is int and other == 1:
                continue
            if type(extent) is int and extent == 1:
                extent = other
            elif (fits := same(extent, other)) is False:
                lines = "\n".join(f"  {describe(a)}" for a in args)
                raise ShapeError(
                    f"{asked}: shapes do not broadcast: extent {extent} meets {other} "
                    f"at axis {axis}\n{lines}\n"
                    "  Extents must be equal or 1, aligned from the right. "
                    "Reshape or transpose one."
                )
            elif fits is None and type(other) is int:
                extent = other
        shape.append(extent)
    return tuple(shape)


def map_node(
    body: sympy.Expr, args: Sequence[Node], dtype: DType | None = None, asked: str = "map"
) -> Map:
    """A Map whose shape is the broadcast of its arguments and whose dtype follows from the body."""
    if dtype is None:
        dtype = infer_dtype(body, [a.dtype for a in args])
    return Map(tuple(args), body, broadcast(args, asked) if args else (), dtype)


def label_extents(axes: Iterable[tuple[Sequence[int], Node]]) -> dict[int, Extent]:
    """The extent of each label; where two are not known to be equal, a number wins.

    Raises: ShapeError when two extents of one label differ.
    """
    extents: dict[int, Extent] = {}
    owner: dict[int, Node] = {}
    for labels, node in axes:
        for label, extent in zip(labels, node.shape, strict=True):
            if label < 0:
                continue
            if label not in extents:
                extents[label], owner[label] = extent, node
            elif same(extents[label], extent) is False:
                raise ShapeError(
                    f"extents {extents[label]} and {extent} meet\n"
                    f"  {describe(owner[label])}\n  {describe(node)}\n"
                    "  Axes that are matched must have equal extents. Transpose or slice one."
                )
            elif type(extent) is int:
                extents[label] = extent
    return extents


def einsum_node(
    args: Sequence[Node],
    labels: Sequence[Sequence[int]],
    out: Sequence[int],
    extents: Mapping[int, Extent] | None = None,
) -> Einsum:
    """An Einsum with its labels numbered by first appearance.

    Args:
        args, labels: arguments of one dtype and the labels of their axes (any integers >= 0).
        out:          labels of the result.
        extents:      of labels that only `out` has; those of the arguments are read from them.
    Raises: ShapeError when extents of a label differ, DTypeError when dtypes do.
    """
    known = label_extents(zip(labels, args, strict=True))
    for label in out:
        if label not in known:
            known[label] = (extents or {})[label]
    if any(a.dtype != args[0].dtype for a in args):
        lines = "\n".join(f"  {describe(a)}" for a in args)
        raise DTypeError(f"einsum: arguments of different dtypes\n{lines}\n  Cast with astype.")
    number: dict[int, int] = {}
    for group in (*labels, out):
        for label in group:
            number.setdefault(label, len(number))
    return Einsum(
        tuple(args),
        tuple(tuple(number[k] for k in group) for group in labels),
        tuple(number[k] for k in out),
        tuple(known[k] for k in number),
    )


def whole(shape: Shape) -> Piece:
    """The piece that moves a source of this shape, or of this size, to everywhere."""
    rank = len(shape)
    return Piece(shape, (0,) * rank, (1,) * rank, shape, (0,) * rank, (1,) * rank)


def adjoint_of(piece: Piece, shape: Shape) -> Piece:
    """The move backwards, from an output of this shape to a source of shape `piece.view`."""
    return Piece(shape, piece.offset, piece.stride, piece.count, piece.start, piece.step)


def reshape_node(x: Node, shape: Shape) -> Node:
    """`x` with another shape of the same size, row-major; itself when the shape is the same."""
    if x.shape == shape:
        return x
    if isinstance(x, Reindex) and is_reshape(x):
        return reshape_node(x.args[0], shape)
    return Reindex((x,), (whole(shape),), shape)


def is_reshape(node: Node) -> bool:
    """Whether a node is a pure reshape."""
    return (
        isinstance(node, Reindex) and len(node.pieces) == 1 and node.pieces[0] == whole(node.shape)
    )
