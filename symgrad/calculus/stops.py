"""Cuts in the flow of derivatives, once everything is differentiated.

rewrite:  select(c, stop_gradient(x), x)  ->  x
requires: nothing is differentiated any more
keeps:    values, shapes, dtypes

A carry that truncated backpropagation cuts (`truncation.py`) so costs nothing on the way forward,
and the flags that tell where are read only on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence

from symgrad.graph.folds import Fold, with_outputs
from symgrad.graph.nodes import Map, Node
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import own_provenance
from symgrad.graph.traversal import rebuild, reconnect
from symgrad.graph.truncation import CUT


@rewrites
def without_cuts(outputs: Sequence[Node]) -> list[Node]:
    """The same values, without the cuts; see the module.

    >>> import symgrad as sg
    >>> x = sg.input("x", (5,))
    >>> cut, _ = sg.scan(lambda c, x: (c * x, ()), sg.constant(1.0), x, truncate=2)
    >>> "stop_gradient" in str(cut), "stop_gradient" in str(without_cuts([cut])[0])
    (True, False)
    """

    def rule(node: Node, args: tuple[Node, ...]) -> Node:
        if isinstance(node, Map) and node.body == CUT and args[1].shape == node.shape:
            return args[1]
        node = reconnect(node, args)
        if isinstance(node, Fold):
            with own_provenance():
                inner = without_cuts(node.body.outputs)
            return with_outputs(node, inner)
        return node

    return rebuild(outputs, rule)
