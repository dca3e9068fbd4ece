"""Whole derivatives as one expression: Jacobians, Hessians, and Hessians times a vector.

A Jacobian is a vjp whose cotangent is the unit tensor (`i0 == i1` in a Map), or a jvp whose tangent
is. Simplification then takes the unit tensors out of the contractions, so that the Hessian of x'Ax
is A + A', for symbolic sizes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from symgrad.calculus.building import converted, unit_seed
from symgrad.calculus.jvp import push_forward
from symgrad.calculus.simplification import simplify
from symgrad.calculus.vjp import (
    as_targets,
    as_vectors,
    check_float,
    check_vectors,
    gradients,
    pull_back,
)
from symgrad.graph.dims import Shape, size, typical
from symgrad.graph.errors import GradError
from symgrad.graph.leaves import ArrayLike
from symgrad.graph.nodes import Node, einsum_node
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import outputs_of


def jacobian(out: Node | Sequence[Node], wrt: Node | Sequence[Node]) -> Any:
    """All partial derivatives of an expression.

        J[o.., i..] = d out[o..] / d wrt[i..],   of shape out.shape + wrt.shape

    Args:
        out: a float node, or several: then the result is a tuple over them.
        wrt: a float node, or several: then each Jacobian is a tuple over them.
    Raises: GradError.

    >>> from symgrad.graph.leaves import input
    >>> A, x = input("A", (2, 3)), input("x", (3,))
    >>> jacobian(A @ x, x) is A
    True
    """
    targets = as_targets("jacobian", wrt)
    outs = outputs_of("jacobian", out)
    rows: list[Node] = []
    for one in outs:
        check_float("jacobian", "an output", one)
        rows.extend(_row(one, targets))
    made = simplify(rows)
    width = len(targets)
    table = [made[k * width : (k + 1) * width] for k in range(len(outs))]
    result = [row[0] if isinstance(wrt, Node) else row for row in table]
    return result[0] if isinstance(out, Node) else tuple(result)


def _row(out: Node, targets: Sequence[Node]) -> list[Node]:
    """The Jacobians of one output, by the mode that carries fewer leading elements."""
    made: list[Node] = []
    for target in targets:
        if _backward(out.shape, target.shape):
            with provenance("vjp"):
                seed = unit_seed(out.shape, out.dtype)
            made += pull_back([(out, seed)], [target], out.ndim)
        else:
            with provenance("jvp"):
                seed = unit_seed(target.shape, target.dtype)
            (pushed,) = push_forward([out], [(target, seed)], target.shape)
            made.append(_lead_last(pushed, target.ndim))
    return made


def _backward(out: Shape, wrt: Shape) -> bool:
    # B x T of an output against n of a target: dims count as typical ones
    return typical(size(out)) <= typical(size(wrt))


def _lead_last(x: Node, lead: int) -> Node:
    """`x` with its leading axes behind the others."""
    if lead in (0, x.ndim):
        return x
    with provenance("jvp"):
        axes = tuple(range(x.ndim))
        return einsum_node((x,), (axes,), axes[lead:] + axes[:lead])


def hessian(loss: Node, wrt: Node | Sequence[Node]) -> Any:
    """All second derivatives of a scalar.

        H[i.., j..] = d^2 loss / d wrt[i..] d wrt[j..],   of shape wrt.shape + wrt.shape

    A sequence `wrt` gives a tuple of tuples.
    Raises: ShapeError when the loss is no scalar, GradError.

    >>> from symgrad.graph.leaves import input
    >>> A, x = input("A", (3, 3)), input("x", (3,))
    >>> hessian(x @ A @ x, x).body
    p0 + p1
    """
    targets = as_targets("hessian", wrt)
    table = jacobian(simplify(gradients("hessian", loss, targets)[1]), targets)
    return table[0][0] if isinstance(wrt, Node) else table


@overload
def hvp(loss: Node, wrt: Node, vectors: ArrayLike) -> Node: ...
@overload
def hvp(loss: Node, wrt: Sequence[Node], vectors: Sequence[ArrayLike]) -> tuple[Node, ...]: ...
def hvp(
    loss: Node, wrt: Node | Sequence[Node], vectors: ArrayLike | Sequence[ArrayLike]
) -> Node | tuple[Node, ...]:
    """The Hessian times vectors, without the Hessian: forward mode over reverse.

        out[k] = sum over j of (d^2 loss / d wrt[k] d wrt[j]) vectors[j]

    Args:
        vectors: one per node of `wrt`, of its shape; all may have the same leading axes more.
    Returns: one expression, or a tuple, in the structure of `wrt`, of the vectors' shapes.
    Raises: ShapeError, GradError.  Pearlmutter 1994.

    >>> from symgrad.graph.leaves import input
    >>> x, v = input("x", (3,)), input("v", (3,))
    >>> hvp((x * x * x).sum(), x, v).shape
    (3,)
    """
    targets = as_targets("hvp", wrt)
    given = (vectors,) if isinstance(wrt, Node) else tuple(vectors)  # type: ignore[arg-type]
    if len(given) != len(targets):
        raise GradError(
            f"hvp: {len(targets)} nodes in wrt, but {len(given)} vectors. Give one for each."
        )
    tangents = as_vectors(given, targets)
    batch = check_vectors("hvp", "vector", targets, tangents)
    lead = tangents[0].shape[:batch] if tangents else ()
    slopes = simplify(gradients("hvp", loss, targets)[1])
    pairs = [(t, converted(v, t.dtype)) for t, v in zip(targets, tangents, strict=True)]
    made = simplify(push_forward(slopes, pairs, lead))
    return made[0] if isinstance(wrt, Node) else made
