"""Extents that a program finds while it runs, and when it reads them.

A dim that a program counts (`symgrad.graph.dims.Counted`) is the last element of a vector in
memory. Kernels are given its value as that of any other dim; before the first call that needs it,
and behind the call that writes the vector, the program reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from codegen.access import root_of
from codegen.loop_ir import Affine, Apply, Call, CheckIndex, For, Kernel, Let, Load, Store, walk
from symgrad.graph.dims import Counted, Extent, free_dims
from symgrad.graph.folds import counted_by
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Einsum, Map, Node, Reindex

if TYPE_CHECKING:
    from codegen.memory import Invoked, InvokedLoop

#: Dims, and the nodes whose last elements they are.
Tellers = dict[Counted, Node]


def tellers_of(graph: Graph) -> Tellers:
    """The dims that a graph tells, bodies left out, and the nodes whose memory holds them."""
    found: Tellers = {}
    for node in graph.nodes:
        if isinstance(node, Reindex) and (told := counted_by(node)) is not None:
            found[told] = root_of(node.args[0])
    return found


def counted(extents: Iterable[Extent]) -> frozenset[Counted]:
    """The dims among those of extents that a program counts."""
    symbolic = [e for e in extents if not isinstance(e, int)]
    return frozenset(d for d in free_dims(symbolic) if isinstance(d, Counted))


def counted_in_node(node: Node) -> frozenset[Counted]:
    """The dims that a program counts, of those that a node reads or has."""
    extents = [*node.shape, *(e for arg in node.args for e in arg.shape)]
    if isinstance(node, Map):
        extents.append(node.body)
    elif isinstance(node, Einsum):
        extents += node.extents
    return counted(extents)


def counted_in(kernel: Kernel) -> frozenset[Counted]:
    """The dims that a program counts, of those that a kernel is given."""
    return counted(_extents(kernel))


def counted_in_calls(calls: Iterable[Invoked | InvokedLoop]) -> frozenset[Counted]:
    """Those of calls, without what they read themselves."""
    found: set[Counted] = set()
    own: set[Counted] = set()
    for call in calls:
        own.update(d for d, _ in call.tells)
        found |= _of_call(call)
    return frozenset(found - own)


def _of_call(call: Invoked | InvokedLoop) -> frozenset[Counted]:
    loop = getattr(call, "loop", None)
    return counted_in(call.kernel) if loop is None else loop.counted  # type: ignore[union-attr]


def _extents(kernel: Kernel) -> Iterator[Extent]:
    for s in walk(kernel.body):
        places: list[Affine] = []
        if isinstance(s, For):
            yield from (s.extent, *(s.parts or ()))
        elif isinstance(s, CheckIndex):
            yield s.extent
            places.append(s.position)
        elif isinstance(s, Call):
            yield from (s.m, s.n, s.k, *s.rows, *(s.parts or ()), *(s.terms or ()))
            places += s.offsets
        elif isinstance(s, Store):
            places.append(s.offset)
        elif isinstance(s, Let) and isinstance(s.value, Load):
            places.append(s.value.offset)
        elif isinstance(s, Let) and isinstance(s.value, Apply):
            payload = s.value.payload
            if isinstance(payload, Affine):
                places.append(payload)
            elif payload is not None:
                yield payload
        for place in places:
            yield place.const
            yield from (c for _, c in place.terms)
