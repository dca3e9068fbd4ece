"""Products with rows of a table, read by index, when the table has fewer rows than are read.

With O (n, v) the matrix that reads row i[k] of a table at k, E[i] is O E, a Gather, and O' a sum of
rows by index, a Scatter. Products are associative:

    E[i] W          = (O E) W    ->    O (E W)      = (E W)[i]
    scatter(i, d W) = O' (d W)   ->    (O' d) W     = scatter(i, d) W
    E[i]' d         = (O E)' d   ->    E' (O' d)    = E' scatter(i, d)

Each product then has the v rows of the table, not the n rows that are read. An embedding that is
followed by a projection becomes a look-up in the projected table, and its gradients sum rows first.

keeps: values, the last two up to rounding, for rows are added first. The last one multiplies rows
       of E that nothing read with zeros: it is for what differentiation made, as all rewrites that
       hold for finite values only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from symgrad.calculus.building import is_extent_one
from symgrad.calculus.einsum_rules import inner_einsum
from symgrad.calculus.loop_parts import Moved, Notes
from symgrad.calculus.map_rules import derived
from symgrad.graph.dims import Extent, Shape, printable, size, typical
from symgrad.graph.dtypes import is_float
from symgrad.graph.folds import Fold, with_outputs
from symgrad.graph.nodes import Einsum, Gather, Node, Scatter, einsum_node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import rebuild, reconnect

# Multiplications of a product that take as long as reading or adding up one element by index, on a
# Xeon with AVX-512.
ELEMENT = 16


@rewrites
def read_tables(
    outputs: Sequence[Node], notes: Notes | None = None, steps: Extent | None = None
) -> list[Node]:
    """rewrite: a product with rows read by index -> rows of the table's product; see the module.

    Args:
        notes: told which products.
        steps: of the recurrence whose body the outputs are.

    >>> import symgrad as sg
    >>> E, W = sg.input("E", (4, 40)), sg.input("W", (40, 3))
    >>> z = E[sg.input("words", (50, 7), "int32")] @ W
    >>> type(z).__name__, type(read_tables([z])[0]).__name__
    ('Einsum', 'Gather')
    """
    kept: Notes = [] if notes is None else notes

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        node = reconnect(node, args)
        if isinstance(node, Fold):
            with own_provenance():
                return with_outputs(
                    node, read_tables(node.body.outputs, kept, node.structure.length)
                )
        if isinstance(node, Einsum) and len(node.args) == 2 and is_float(node.dtype):
            product = _direct(node)
            tried = (form(product, k) for k in (0, 1) for form in (_projected, _collected))
            made = next((made for made in tried if made is not None), None)
        elif isinstance(node, Scatter) and isinstance(node.args[0], Einsum):
            made = _scattered(node)
        else:
            made = None
        if made is None:
            return node
        kept.append(_noted(node, made, steps))
        return made

    return rebuild(outputs, rule)


def _direct(node: Einsum) -> Einsum:
    """A product without transposing, for layers put the batch before time and recurrences time.

        sum_k E[i]'[t, b, k] W[k, n]    ->    sum_k E[i][b, t, k] W[k, n]
        (sum_k d[t, b, k] W[n, k])'     ->    sum_k d[t, b, k] W[n, k]   as (b, t, n)
    """
    if len(node.args) == 1 and not node.summed:
        node = _einsum(inner_einsum(node, lambda _: True), node)
    while isinstance(made := inner_einsum(node, lambda _: False), Einsum) and len(made.args) == 2:
        node = made
    return node


def _einsum(made: Node | None, node: Einsum) -> Einsum:
    return made if isinstance(made, Einsum) else node


def _noted(node: Node, made: Node, steps: Extent | None) -> Moved:
    """The product as it was, and how many rows it has now."""
    how: Literal["looked up", "added by rows"]
    rows: Gather | Scatter
    if isinstance(made, Gather):
        how, rows = "looked up", made
        labels, extents = rows.out, rows.shape
    else:
        how, rows = "added by rows", next(n for n in made.args if isinstance(n, Scatter))
        labels, extents = rows.update_labels, rows.args[0].shape
    table = size(e for k, e in zip(*_table(rows), strict=True) if k < 0)
    index = {k for own in rows.index_labels for k in own}
    read = size(e for e, k in zip(extents, labels, strict=True) if k in index)
    return Moved(
        how, node, steps,
        f"a product of the {_number(table)} rows of a table, not of {_number(read)} that are read",
    )


def _number(extent: Extent) -> str:
    return printable(str(extent))


def _pays(read: int, rows: int, inner: int, width: int) -> bool:
    """Whether a product of `rows` rows is cheaper than one of those that are read.

    Args:
        inner, width: of the product; a row of the new look-up is `width` wide.
    """
    return (read - rows) * inner * width > read * width * ELEMENT


def _count(node: Node, labels: Sequence[int], chosen: set[int]) -> int:
    """Elements along the axes of some labels."""
    own = [e for e, k in zip(node.shape, labels, strict=True) if k in chosen]
    return typical(size(own))


def _table(node: Gather | Scatter) -> tuple[tuple[int, ...], Shape]:
    """The axes of the table that is read or added to, and its shape."""
    if isinstance(node, Gather):
        return node.source_axes, node.args[0].shape
    return node.target_axes, node.shape


def _read_places(node: Gather | Scatter) -> set[int] | None:
    """The labels of the indices; None where the table has one of them too."""
    axes, _ = _table(node)
    places = {k for own in node.index_labels for k in own}
    return None if places & set(axes) or not places else places


def _rows_of(node: Gather | Scatter) -> int:
    """How many rows the table has."""
    axes, shape = _table(node)
    return typical(size(e for e, k in zip(shape, axes, strict=True) if k < 0))


def _summed_rows(
    node: Gather | Scatter, name: Mapping[int, int], given: Node, labels: Sequence[int],
    extents: Mapping[int, Extent], base: int,
) -> tuple[Node, list[int]]:
    """scatter(i, given), with a node's indices, and its labels: rows have those from `base` on.

    Args:
        name:    the node's labels -> those of `given`.
        extents: of the labels of `given`.
    """
    rows = [(m, e) for m, e in zip(*_table(node), strict=True) if m < 0]
    indices = tuple(tuple(name[m] for m in own) for own in node.index_labels)
    index = {m for own in indices for m in own}
    kept = [m for m in labels if m not in index]
    place = {m: k for k, m in enumerate(labels)}  # equal sums are one node
    made = Scatter(
        (given, *node.args[1:]), tuple(place.values()),
        tuple(tuple(place[m] for m in own) for own in indices),
        (*(m for m, _ in rows), *(place[m] for m in kept)),
        (*(e for _, e in rows), *(extents[m] for m in kept)), node.wrap,
    )
    return made, [*(base + ~m for m, _ in rows), *kept]


def _projected(node: Einsum, k: int) -> Node | None:
    # E[i] W -> (E W)[i]
    read, other = node.args[k], node.args[1 - k]
    if not isinstance(read, Gather) or (places := _read_places(read)) is None:
        return None
    name = dict(zip(read.out, node.labels[k], strict=True))
    index = {name[p] for p in places}
    if not index <= set(node.out) or index & set(node.labels[1 - k]):
        return None
    kept = [m for m in node.out if m not in index]
    inner = _count(read, node.labels[k], set(node.labels[k]) - set(node.out))
    if not any(not is_extent_one(node.extents[m]) for m in node.summed) or not _pays(
        _count(read, node.labels[k], index), _rows_of(read), inner,
        typical(size(node.extents[m] for m in kept)),
    ):
        return None
    base = len(node.extents)
    source, *indices = read.args
    rows = tuple(base + ~m for m in read.source_axes if m < 0)
    table = einsum_node(
        [source, other],
        [[name[m] if m >= 0 else base + ~m for m in read.source_axes], node.labels[1 - k]],
        (*rows, *kept),
    )
    return Gather(
        (table, *indices), (*(~(m - base) for m in rows), *kept),
        tuple(tuple(name[m] for m in own) for own in read.index_labels), node.out, read.wrap,
    )


def _collected(node: Einsum, k: int) -> Node | None:
    # E[i]' d -> E' scatter(i, d)
    read, other = node.args[k], node.args[1 - k]
    if not derived(node) or not isinstance(read, Gather):
        return None
    if (places := _read_places(read)) is None:
        return None
    name = dict(zip(read.out, node.labels[k], strict=True))
    index, labels = {name[p] for p in places}, node.labels[1 - k]
    if index & set(node.out) or not index <= set(labels):
        return None
    width = typical(size(e for e, m in zip(other.shape, labels, strict=True) if m not in index))
    read_, inner = _count(other, labels, index), _count(read, node.labels[k], set(node.out))
    if not _pays(read_, _rows_of(read), inner, width):
        return None
    base = len(node.extents)
    extents = dict(zip(labels, other.shape, strict=True))
    summed, sums = _summed_rows(read, name, other, labels, extents, base)
    table = [name[m] if m >= 0 else base + ~m for m in read.source_axes]
    return einsum_node(
        [read.args[0], summed], [table, sums], node.out, dict(enumerate(node.extents))
    )


def _scattered(node: Scatter) -> Node | None:
    # scatter(i, d W) -> scatter(i, d) W
    assert isinstance(node.args[0], Einsum)
    product = _direct(node.args[0])
    if len(product.args) != 2 or (places := _read_places(node)) is None:
        return None
    name = dict(zip(node.update_labels, product.out, strict=True))
    index = {name[p] for p in places}
    targets = {name[m] for m in node.target_axes if m >= 0}
    for k in (0, 1):
        labels, fixed = product.labels[k], product.labels[1 - k]
        if not index <= set(labels) or index & set(fixed):
            continue
        if set(product.out) - index - targets or not set(labels) & set(fixed):
            continue
        kept = [m for m in labels if m not in index]
        given = product.args[k]
        width = typical(size(product.extents[m] for m in kept))
        inner = typical(size(product.extents[m] for m in fixed if m not in labels))
        if not _pays(_count(given, labels, index), _rows_of(node), inner, width):
            continue
        base = len(product.extents)
        extents = dict(enumerate(product.extents))
        summed, sums = _summed_rows(node, name, given, labels, extents, base)
        out = [name[m] if m >= 0 else base + ~m for m in node.target_axes]
        return einsum_node([summed, product.args[1 - k]], [sums, fixed], out)
    return None
