"""Equal graphs with fewer nodes: rules by node class, applied from the leaves to the end.

Each rule stands with its equation in `map_rules.py`, `einsum_rules.py` or `move_rules.py`; the list
below says which are tried, in which order. A rule returns a node of the same shape and dtype, or
None. What holds for every value (NaN, infinity, -0.0) is applied everywhere; what holds for finite
values only is applied to nodes that differentiation made, so that a user's own `0.0 * x` stays.

Every rule removes a node, a label, an argument or a stretched extent, or moves a broadcast or a
scalar factor towards the end; sweeps repeat until nothing changes, at most `SWEEPS` times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload
from weakref import WeakSet

from symgrad.calculus import einsum_rules, map_rules, move_rules
from symgrad.calculus.fold_merging import merge_folds
from symgrad.calculus.fold_rules import tidy_folds
from symgrad.graph.dims import same, show
from symgrad.graph.errors import DTypeError, LeafError, ShapeError
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import ArrayLike, as_node
from symgrad.graph.nodes import Einsum, Map, Node, Reindex, Scatter, describe
from symgrad.graph.passes import rewrites
from symgrad.graph.provenance import provenance
from symgrad.graph.traversal import outputs_of, reconnect, replace, toposort

SWEEPS = 8
ATTEMPTS = 64  # rules that may fire on one node in one sweep
_SIMPLE: WeakSet[Graph] = WeakSet()  # bodies that are simple already

Once = Callable[[Node], bool]
Rule = Callable[[Any, Once], Node | None]  # a rule takes the class under which it is listed

RULES: Mapping[type[Node], tuple[Rule, ...]] = {
    Map: (
        map_rules.identity,
        map_rules.cast_of_cast,
        map_rules.negation_of_negation,
        map_rules.equal_arguments,
        map_rules.stretched_argument,
        map_rules.number_argument,
        map_rules.settled_condition,
        map_rules.sum_of_maps,
        map_rules.stretched_result,
    ),
    Einsum: (
        einsum_rules.inner_einsum,
        einsum_rules.inner_product,
        einsum_rules.inner_sum_of_deltas,
        einsum_rules.delta,
        einsum_rules.zero_operand,
        einsum_rules.scalar_operands,
        einsum_rules.identity,
        einsum_rules.private_sum,
        einsum_rules.broadcast_last,
        einsum_rules.elementwise,
    ),
    Reindex: (
        move_rules.identity,
        move_rules.axes_of_one,
        move_rules.move_of_move,
        move_rules.move_of_scalar,
    ),
    Scatter: (move_rules.scatter_without_sum,),
}


@overload
def simplify(e: Node) -> Node: ...
@overload
def simplify(e: Sequence[Node]) -> tuple[Node, ...]: ...
@rewrites
def simplify(e: Node | Sequence[Node]) -> Node | tuple[Node, ...]:
    """An equal expression with fewer nodes, or several that share what they can.

    rewrite: every node by the first rule of `RULES` that fits, from the leaves to the end, until
             none does; recurrences by `fold_rules.py`, and their bodies like the whole.
    keeps:   shapes, dtypes, values for finite data, NaN and infinity of what the user wrote, and
             the line and primal of each node.

    >>> from symgrad.graph.leaves import input
    >>> x = input("x", (3, 5))
    >>> simplify(x.T.T) is x
    True
    """
    outputs = outputs_of("simplify", e)
    bodies: dict[Graph, Graph] = {}

    def simplified(body: Graph) -> Graph:
        if body in _SIMPLE:
            return body
        if body not in bodies:
            made = simplify(body.outputs)
            unchanged = all(a is b for a, b in zip(made, body.outputs, strict=True))
            bodies[body] = body if unchanged else Graph(body.inputs, made)
            _SIMPLE.add(bodies[body])
        return bodies[body]

    for _ in range(SWEEPS):
        outputs, tidied = tidy_folds(merge_folds(outputs), simplified)
        outputs, changed = sweep(outputs)
        if not changed and not tidied:
            break
    return outputs[0] if isinstance(e, Node) else tuple(outputs)


def sweep(outputs: Sequence[Node]) -> tuple[list[Node], bool]:
    """One walk from the leaves to the end; and whether a rule fired."""
    order = toposort(outputs)
    reads: dict[Node, int] = dict.fromkeys(order, 0)
    for node in order:
        for arg in node.args:
            reads[arg] += 1
    for output in outputs:
        reads[output] += 1
    made: dict[Node, Node] = {}
    uses: dict[Node, int] = {}

    def once(node: Node) -> bool:
        return uses.get(node, 1) <= 1

    changed = False
    for node in order:
        new = node
        if node.args or type(node) is Map:
            rules = RULES.get(type(node))
            args = tuple([made[a] for a in node.args])
            with provenance(node.origin, node.backward_of, node.where):
                new = reconnect(node, args)
                if rules is not None:
                    first = new
                    new = improve(new, once)
                    changed = changed or new is not first
        made[node] = new
        uses[new] = uses.get(new, 0) + reads[node]
    return [made[output] for output in outputs], changed


def improve(node: Node, once: Once) -> Node:
    """Apply the rules of a node's class until none fits."""
    for _ in range(ATTEMPTS):
        for rule in RULES.get(type(node), ()):
            new = rule(node, once)
            if new is not None and new is not node:
                node = new
                break
        else:
            return node
    return node


@overload
def substitute(e: Node, mapping: Mapping[Node, ArrayLike]) -> Node: ...
@overload
def substitute(e: Sequence[Node], mapping: Mapping[Node, ArrayLike]) -> tuple[Node, ...]: ...
def substitute(
    e: Node | Sequence[Node], mapping: Mapping[Node, ArrayLike]
) -> Node | tuple[Node, ...]:
    """The expression with nodes replaced, wherever they occur, all at once.

    Args:
        mapping: {node: replacement}; replacements have the node's shape and dtype, and are not
                 searched for further nodes. Python scalars take the node's dtype.
    Raises: ShapeError, DTypeError, LeafError.

    >>> from symgrad.graph.leaves import input
    >>> x, y = input("x", (3,)), input("y", (3,))
    >>> substitute(x * x, {x: y}) is (y * y)
    True
    """
    if not isinstance(mapping, Mapping):
        raise LeafError(
            f"substitute: expected {{node: replacement}}, got {type(mapping).__name__}."
        )
    known: dict[Node, Node] = {}
    for node, value in mapping.items():
        if not isinstance(node, Node):
            raise ShapeError(
                f"substitute: keys are expressions, got {type(node).__name__}. "
                "Pass {node: replacement}."
            )
        new = as_node(value, node.dtype)
        if new.ndim != node.ndim or any(
            same(a, b) is False for a, b in zip(new.shape, node.shape, strict=True)
        ):
            raise ShapeError(
                f"substitute: the replacement has shape {show(new.shape)}\n  {describe(node)}\n"
                f"  {describe(new)}\n  Reshape or broadcast it first."
            )
        if new.dtype != node.dtype:
            raise DTypeError(
                f"substitute: the replacement is {new.dtype}\n  {describe(node)}\n"
                f"  {describe(new)}\n  Convert it with astype(x, '{node.dtype}')."
            )
        known[node] = new
    made = replace(outputs_of("substitute", e), known)
    return made[0] if isinstance(e, Node) else tuple(made)
