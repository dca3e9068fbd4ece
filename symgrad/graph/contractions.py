"""Contractions: products summed over shared labels, all of them one Einsum."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from symgrad.graph import functions as fn
from symgrad.graph.arithmetic import multiply, refuse_bool
from symgrad.graph.dims import Extent, same, show
from symgrad.graph.dtypes import promote
from symgrad.graph.errors import ShapeError
from symgrad.graph.functions import AXIS, P
from symgrad.graph.leaves import ArrayLike, as_node, cast, operands
from symgrad.graph.nodes import Map, Node, describe, einsum_node
from symgrad.graph.operators import verb
from symgrad.graph.shapes import expand_dims, one_axis, reshape

Labels = list[int]


def _factors(asked: str, *values: ArrayLike) -> tuple[Node, ...]:
    """Operands in one dtype."""
    nodes = operands(*values)
    dtype = promote(*(n.dtype for n in nodes))
    if len(nodes) > 1:
        refuse_bool(asked, *nodes)
    return tuple(cast(n, dtype) for n in nodes)


def _contract(asked: str, nodes: Sequence[Node], labels: Sequence[Labels], out: Labels) -> Node:
    """The Einsum, with the verb in front of its errors."""
    try:
        return einsum_node(nodes, labels, out)
    except ShapeError as error:
        raise ShapeError(f"{asked}: {error}") from None


@verb
def einsum(spec: str, *args: ArrayLike) -> Node:
    """A product summed over the labels that the output lacks, as in NumPy.

    Args:
        spec: `"bi,ij->bj"`; without `->` the output is every label that occurs once, sorted. `...`
              stands for further axes, right-aligned and broadcast. A label that stands twice in one
              operand reads its diagonal.
        args: one array per group of labels.
    Raises: ShapeError with the spec and the shapes.

    >>> einsum("ij,j->i", as_node([[1.0, 2.0], [3.0, 4.0]]), as_node([1.0, 1.0])).shape
    (2,)
    """
    if not isinstance(spec, str):
        raise ShapeError(f"einsum: the first argument must be a string, got {type(spec).__name__}.")
    nodes = _factors("einsum", *args)
    groups, out = _parse(spec, nodes)
    return _contract(f"einsum {spec!r}", *_joined(spec, nodes, groups, out))


def _wrong(spec: str, nodes: Sequence[Node], what: str) -> ShapeError:
    lines = "\n".join(f"  {describe(n)}" for n in nodes)
    return ShapeError(f"einsum {spec!r}: {what}\n{lines}")


def _parse(spec: str, nodes: Sequence[Node]) -> tuple[list[str], str]:
    """The groups of labels and the output's; `.` stands for an ellipsis."""
    text = spec.replace(" ", "").replace("...", ".")
    left, arrow, out = text.partition("->")
    groups = left.split(",")
    if len(groups) != len(nodes):
        raise _wrong(spec, nodes, f"{len(groups)} groups of labels for {len(nodes)} arrays.")
    for group in (*groups, out):
        strange = [c for c in group if not (c.isascii() and c.isalpha()) and c != "."]
        if strange or group.count(".") > 1:
            raise _wrong(
                spec, nodes, f"{group!r} is no group of labels. Use letters and one '...'."
            )
    if not arrow:
        counts = "".join(groups)
        out = "." if "." in counts else ""
        out += "".join(sorted(c for c in set(counts) - {"."} if counts.count(c) == 1))
    for label in out:
        if out.count(label) > 1:
            raise _wrong(spec, nodes, f"label {label!r} stands twice in the output.")
        if label != "." and not builtins.any(label in g for g in groups):
            raise _wrong(spec, nodes, f"label {label!r} of the output is in no operand.")
    return groups, out


def _joined(
    spec: str, nodes: Sequence[Node], groups: Sequence[str], out: str
) -> tuple[list[Node], list[Labels], Labels]:
    """Operands with integer labels, ellipses written out, diagonals masked."""
    hidden = [n.ndim - len(g.replace(".", "")) for n, g in zip(nodes, groups, strict=True)]
    for node, group, extra in zip(nodes, groups, hidden, strict=True):
        if extra < 0 or (extra > 0 and "." not in group):
            raise _wrong(
                spec, nodes, f"{group.replace('.', '...')!r} does not fit {node.ndim} axes."
            )
    width = builtins.max((e for e, g in zip(hidden, groups, strict=True) if "." in g), default=0)
    number = {c: width + k for k, c in enumerate(sorted(set("".join(groups)) - {"."}))}
    fresh = width + len(number)
    made: list[Node] = []
    labels: list[Labels] = []
    stretched = _common(nodes, groups, hidden, width)
    for node, group, extra in zip(nodes, groups, hidden, strict=True):
        own: Labels = []
        for c in group:
            own += range(width - extra, width) if c == "." else [number[c]]
        for axis, label in enumerate(own):
            # an axis of one under an ellipsis is stretched: a label of its own, summed over one
            one = label < width and same(node.shape[axis], 1) is True
            if (one and stretched[label]) or label in own[:axis]:
                if not one or not stretched[label]:
                    node = _diagonal(node, own.index(label), axis, spec, nodes)
                own[axis], fresh = fresh, fresh + 1
        made.append(node)
        labels.append(own)
    result: Labels = []
    for c in out:
        result += range(width) if c == "." else [number[c]]
    return made, labels, result


def _common(
    nodes: Sequence[Node], groups: Sequence[str], hidden: Sequence[int], width: int
) -> list[bool]:
    """For each axis under the ellipsis, whether some operand has an extent other than one."""
    wide = [False] * width
    for node, group, extra in zip(nodes, groups, hidden, strict=True):
        if "." in group:
            first = group.index(".")
            for k in range(extra):
                if same(node.shape[first + k], 1) is not True:
                    wide[width - extra + k] = True
    return wide


def _diagonal(node: Node, a: int, b: int, spec: str, nodes: Sequence[Node]) -> Node:
    """`x` where the positions on axes a and b agree, else 0: its sum over b is the diagonal."""
    if same(node.shape[a], node.shape[b]) is False:
        raise _wrong(
            spec, nodes, f"a repeated label meets extents {node.shape[a]} and {node.shape[b]}."
        )
    return Map((node,), fn.select(fn.equal(AXIS[a], AXIS[b]), P[0], 0), node.shape, node.dtype)


@verb
def matmul(a: ArrayLike, b: ArrayLike) -> Node:
    """The matrix product, as in NumPy: leading axes broadcast, a vector is a row or a column.

        out[.., i, k] = sum_j a[.., i, j] b[.., j, k]

    Raises: ShapeError with both shapes.

    >>> matmul(as_node([[1.0, 2.0, 3.0]]), as_node([1.0, 0.0, 1.0])).shape
    (1,)
    """
    x, y = _factors("matmul", a, b)
    if not x.ndim or not y.ndim:
        raise ShapeError(
            f"matmul: needs at least one axis\n  {describe(x)}\n  {describe(y)}\n  Multiply with *."
        )
    inner = x.shape[-1], y.shape[-2 if y.ndim > 1 else 0]
    if same(*inner) is False:
        raise ShapeError(
            f"matmul: inner extents differ: {inner[0]} and {inner[1]}\n"
            f"  {describe(x)}\n  {describe(y)}\n  Transpose one, or check the order."
        )
    i, j, k = 0, 1, 2
    left, right = ([i, j] if x.ndim > 1 else [j]), ([j, k] if y.ndim > 1 else [j])
    out = left[:-1] + right[1:]
    batch = _batch("matmul", x, y)
    width = len(batch)
    xs, ys = (_batch_labels(n, batch, 3 + m * width) for n, m in ((x, 1), (y, 2)))
    return _contract("matmul", (x, y), (xs + left, ys + right), [*range(3, 3 + width), *out])


def _batch(asked: str, x: Node, y: Node) -> list[Extent]:
    shapes = (x.shape[:-2], y.shape[:-2])
    width = builtins.max(len(s) for s in shapes)
    one, two = ((1,) * (width - len(s)) + s for s in shapes)
    result: list[Extent] = []
    for a, b in zip(one, two, strict=True):
        if same(a, 1) is True or same(b, 1) is True:
            result.append(b if same(a, 1) is True else a)
        elif same(a, b) is False:
            raise ShapeError(
                f"{asked}: leading axes do not broadcast: {show(shapes[0])} and {show(shapes[1])}\n"
                f"  {describe(x)}\n  {describe(y)}"
            )
        else:
            result.append(a if type(a) is int else b)
    return result


def _batch_labels(node: Node, batch: list[Extent], fresh: int) -> Labels:
    """Labels of the leading axes; a stretched axis of one has a label of its own."""
    own = node.shape[:-2]
    first = len(batch) - len(own)
    return [
        fresh + k if same(e, 1) is True and same(batch[first + k], 1) is not True else 3 + first + k
        for k, e in enumerate(own)
    ]


@verb
def dot(a: ArrayLike, b: ArrayLike) -> Node:
    """NumPy's dot: sums over the last axis of `a` and the last but one of `b`.

        out[i.., j..] = sum_k a[i.., k] b[.., k, j]       a scalar multiplies

    Raises: ShapeError where those extents differ.

    >>> import symgrad as sg
    >>> sg.dot(sg.ones((3, 5)), sg.ones((2, 5, 7))).shape
    (3, 2, 7)
    """
    x, y = _factors("dot", a, b)
    if not x.ndim or not y.ndim:
        return multiply(x, y)
    return tensordot(x, y, ((x.ndim - 1,), (builtins.max(y.ndim - 2, 0),)))


@verb
def tensordot(a: ArrayLike, b: ArrayLike, axes: int | Sequence[int | Sequence[int]] = 2) -> Node:
    """Sum over paired axes: the last n of `a` with the first n of `b`, or two sequences of axes.

    The other axes of `a` come first, then those of `b`.

    Raises: ShapeError when paired extents differ.

    >>> import symgrad as sg
    >>> sg.tensordot(sg.ones((3, 5, 7)), sg.ones((7, 5, 2)), ((1, 2), (1, 0))).shape
    (3, 2)
    """
    x, y = _factors("tensordot", a, b)
    if isinstance(axes, int):
        first: list[int] = list(range(x.ndim - axes, x.ndim))
        second = list(range(axes))
    else:
        first, second = ([*p] if isinstance(p, Sequence) else [p] for p in axes)
    first = [one_axis("tensordot", k, x.ndim, x) for k in first]
    second = [one_axis("tensordot", k, y.ndim, y) for k in second]
    if len(first) != len(second):
        raise ShapeError(
            f"tensordot: {len(first)} axes meet {len(second)}\n  {describe(x)}\n  {describe(y)}"
        )
    xs = list(range(x.ndim))
    ys = list(range(x.ndim, x.ndim + y.ndim))
    for p, q in zip(first, second, strict=True):
        ys[q] = xs[p]
    out = [k for k in xs if k not in ys] + [k for k in ys if k not in xs]
    return _contract("tensordot", (x, y), (xs, ys), out)


@verb
def outer(a: ArrayLike, b: ArrayLike) -> Node:
    """`out[i, j] = a[i] b[j]`, of the flattened arrays.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.outer([1, 2], [3, 4, 5]))
    array([[ 3,  4,  5],
           [ 6,  8, 10]], dtype=int32)
    """
    x, y = (reshape(n, (-1,)) for n in _factors("outer", a, b))
    return _contract("outer", (x, y), ([0], [1]), [0, 1])


@verb
def trace(x: ArrayLike) -> Node:
    """The sum of the diagonal of the first two axes: `out[..] = sum_i x[i, i, ..]`.

    Raises: ShapeError where they differ, or are missing.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.trace([[1, 2], [3, 4]]))
    array(5, dtype=int32)
    """
    node = as_node(x)
    if node.ndim < 2:
        raise ShapeError(f"trace: needs two axes\n  {describe(node)}")
    return einsum("ii...->...", node)


@verb
def diag(x: ArrayLike) -> Node:
    """The diagonal of a matrix; of a vector, the matrix that has it and else zeros.

    Raises: ShapeError for other numbers of axes, or where the extents differ.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.diag([1, 2]))
    array([[1, 0],
           [0, 2]], dtype=int32)
    """
    node = as_node(x)
    if node.ndim == 2:
        return einsum("ii->i", node)
    if node.ndim != 1:
        raise ShapeError(f"diag: needs one axis or two\n  {describe(node)}")
    (n,) = node.shape
    body = fn.select(fn.equal(AXIS[0], AXIS[1]), P[0], 0)
    return Map((expand_dims(node, 1),), body, (n, n), node.dtype)
