"""The joint graph of a loss and its gradients, simplified together: what `draw` shows with wrt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from symgrad.calculus.simplification import simplify
from symgrad.calculus.vjp import grad
from symgrad.graph.nodes import Node


def joint(loss: Node, wrt: Sequence[Node]) -> tuple[Node, tuple[Node, ...]]:
    """The loss and its gradients after simplification, sharing what they can.

    Args:
        loss: a scalar expression.
        wrt: nodes to differentiate with respect to.
    Raises: GradError when the loss is no float scalar.

    >>> from symgrad.graph.leaves import input, parameter
    >>> x, w = input("x", (3,)), parameter("w", (3,))
    >>> joint((x * w).sum(), [w])[1][0] is x
    True
    """
    return _joint(loss, tuple(wrt))


@lru_cache(maxsize=4)  # what was measured is drawn: bodies of recurrences have identity
def _joint(loss: Node, wrt: tuple[Node, ...]) -> tuple[Node, tuple[Node, ...]]:
    first, *gradients = simplify((loss, *grad(loss, wrt)))
    return first, tuple(gradients)
