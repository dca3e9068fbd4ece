"""Which layer a node belongs to, and which half: what turns a graph into a picture of a network.

A layer begins at a contraction with a parameter (an Einsum that sums over an axis of something made
of parameters alone, or a Gather from it) and holds what follows up to the next such contraction.
What follows the last layer's own affine map and activations is the loss. A backward node joins the
layer of the primal that it is the backward of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from symgrad.diagram.cells import Cells
from symgrad.diagram.formulas import extent_text, is_literal
from symgrad.diagram.records import Half
from symgrad.graph.dims import size
from symgrad.graph.nodes import Constant, Einsum, Gather, Input, Map, Node
from symgrad.graph.streams import is_draw
from symgrad.graph.traversal import toposort

SEGMENTS = 16  # parts that a graph without layers is cut into when it is too large to draw


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """Nodes of a picture with half and layer.

    nodes:   what is drawn, arguments first, forward before backward; no literals, and not what
             random numbers are made of.
    half:    "forward" or "backward" of each.
    layer:   0 before the first layer, then 1, 2, ..; the loss is one above the last layer.
    titles:  a name per layer.
    loss:    the number of the loss, or None.
    """

    nodes: tuple[Node, ...]
    half: Mapping[Node, Half]
    layer: Mapping[Node, int]
    titles: Mapping[int, str]
    loss: int | None


def structure_of(
    outputs: Sequence[Node],
    gradients: Sequence[Node] = (),
    cells: Cells | None = None,
) -> Structure:
    """Find halves and layers.

    Args:
        outputs: the roots of the forward half.
        gradients: the roots of the backward half; without any, nodes that differentiation made
            are taken for it.
        cells: the recurrences among them; the ends of their loops are drawn too.
    """
    cells = cells or Cells()
    ends = [(loop.tail, loop.head) for loop in cells.loops]
    order = toposort([*outputs, *gradients, *(tail for tail, _ in ends)])
    primal = set(order)
    if gradients:
        primal = set(toposort(outputs))
        primal = set(toposort([*outputs, *(tail for tail, head in ends if head in primal)]))
    half: dict[Node, Half] = {}
    for node in order:
        after = any(half[a] == "backward" for a in node.args)  # an update reads a gradient
        apart = node not in primal or (not gradients and (after or _is_backward(node)))
        half[node] = "backward" if apart else "forward"
    forward = [n for n in order if half[n] == "forward"]
    backward = [n for n in order if half[n] == "backward"]
    layer, titles, loss = _forward_layers(forward, outputs)
    _place_backward(backward, layer, loss, cells.new)
    roots = set(outputs)
    hidden = {n for n in order if is_literal(n)} | _behind_draws(order)
    drawn = tuple(n for n in (*forward, *backward) if n not in hidden or n in roots)
    return Structure(drawn, half, layer, titles, loss)


def _behind_draws(order: Sequence[Node]) -> set[Node]:
    """What only random numbers read, and the leaf that tells dropout to drop."""
    inside = {arg for node in order if is_draw(node) for arg in node.args}
    outside = {arg for node in order if not is_draw(node) for arg in node.args}
    supplied = {node for node in order if isinstance(node, Input) and node.is_supplied}
    return (inside - outside) | supplied


def _is_backward(node: Node) -> bool:
    return node.backward_of is not None and not isinstance(node, (Input, Constant))


# -- forward --------------------------------------------------------------------------------------
def _forward_layers(
    forward: Sequence[Node], outputs: Sequence[Node]
) -> tuple[dict[Node, int], dict[int, str], int | None]:
    weight = _weights(forward)
    layer: dict[Node, int] = {}
    begins: dict[int, list[Node]] = {}
    for node in forward:
        depth = max((layer[a] for a in node.args if a not in weight), default=0)
        if node not in weight and _weight_of(node, weight) is not None:
            depth += 1
            begins.setdefault(depth, []).append(node)
        layer[node] = depth
    begins = _late(forward, layer, begins, weight)
    last = max(begins, default=0)
    loss = _cut_loss(forward, layer, weight, begins[last], last) if last else None
    _place_weights(forward, layer, weight, loss)
    titles = {k: _title(k, nodes, weight) for k, nodes in begins.items()}
    if loss is not None:
        titles[loss] = "loss" if all(o.shape == () for o in outputs) else "output"
    return layer, titles, loss


def _weights(forward: Sequence[Node]) -> set[Node]:
    """Nodes made of parameters, constants and random numbers alone."""
    found: set[Node] = set()
    for node in forward:
        if isinstance(node, Input):
            if node.kind == "parameter" or node.is_supplied:
                found.add(node)
        elif isinstance(node, Constant) or is_draw(node) or (
            bool(node.args) and all(a in found for a in node.args)):
            found.add(node)
    return found


def _weight_of(node: Node, weight: set[Node]) -> Node | None:
    """The parameter that a node contracts with, if it begins a layer."""
    if isinstance(node, Gather):
        source = node.args[0]
        return source if source in weight and not isinstance(source, Constant) else None
    if not isinstance(node, Einsum):
        return None
    summed = set(node.summed)
    for arg, labels in zip(node.args, node.labels, strict=True):
        if arg in weight and not isinstance(arg, Constant) and summed.intersection(labels):
            return arg
    return None


def _late(
    forward: Sequence[Node],
    layer: dict[Node, int],
    begins: Mapping[int, Sequence[Node]],
    weight: set[Node],
) -> dict[int, list[Node]]:
    """Move contractions of an input alone to where they are used: x_t U joins its time step."""
    started = {node for nodes in begins.values() for node in nodes}
    first: dict[Node, int] = {}
    moved: dict[int, list[Node]] = {}
    for node in reversed(forward):
        if node in started:
            if all(isinstance(a, Input) or a in weight for a in node.args):
                layer[node] = max(layer[node], first.get(node, 0))
            moved.setdefault(layer[node], []).insert(0, node)
        for arg in node.args:
            first[arg] = min(first.get(arg, layer[node]), layer[node])
    return dict(sorted(moved.items()))


def _cut_loss(
    forward: Sequence[Node],
    layer: dict[Node, int],
    weight: set[Node],
    begins: Sequence[Node],
    last: int,
) -> int | None:
    """Move what follows the last layer into the loss.

    Its own are Maps of its shape, unless they read an input that nothing before them reads: a
    target.
    """
    shapes = {node.shape for node in begins}
    started = set(begins)
    early: set[Node] = set()
    for node in forward:
        if layer[node] < last or node in started:
            early.update(node.args)
    found = None
    for node in forward:
        if layer[node] != last or node in weight or node in started:
            continue
        others = [a for a in node.args if a not in weight]
        own = (
            isinstance(node, Map)
            and node.shape in shapes
            and all(layer[a] <= last and (a in early or not isinstance(a, Input)) for a in others)
        )
        if not own:
            layer[node] = found = last + 1
    return found


def _place_weights(
    forward: Sequence[Node], layer: dict[Node, int], weight: set[Node], loss: int | None
) -> None:
    """A parameter, or an input that only the loss reads, stands in its first user's layer."""
    first: dict[Node, int] = {}
    for node in reversed(forward):
        if node in weight or (isinstance(node, Input) and first.get(node) == loss):
            layer[node] = first.get(node, layer[node])
        for arg in node.args:
            first[arg] = min(first.get(arg, layer[node]), layer[node])


def _title(number: int, begins: Sequence[Node], weight: set[Node]) -> str:
    if len(begins) == 1 and isinstance(node := begins[0], Einsum):
        matrix = _weight_of(node, weight)
        assert matrix is not None
        labels = node.labels[[a is matrix for a in node.args].index(True)]
        inner = size([node.extents[k] for k in labels if k in node.summed])
        outer = size([node.extents[k] for k in labels if k in node.out])
        return f"layer {number} · {extent_text(inner)} → {extent_text(outer)}"
    return f"layer {number}"


# -- backward -------------------------------------------------------------------------------------
def _place_backward(
    backward: Sequence[Node],
    layer: dict[Node, int],
    loss: int | None,
    drawn_as: Mapping[Node, Node],
) -> None:
    top = max(layer.values(), default=0)
    made = set(backward)
    for node in backward:
        primal = node.backward_of
        while primal is not None and drawn_as.get(primal, primal) not in layer:
            primal = primal.backward_of
        if primal is not None:
            layer[node] = layer[drawn_as.get(primal, primal)]
        else:
            # It reads a cotangent of this layer or the one above, and primals of this layer.
            inner = [a for a in node.args if not isinstance(a, (Input, Constant))]
            layer[node] = min((layer[a] for a in inner), default=top)
        # A pullback reads primals of its own layer or before it: what reads a later one, as the
        # softmax minus one-hot that simplification made, is that layer's.
        for arg in node.args:
            if arg not in made and not isinstance(arg, (Input, Constant)):
                layer[node] = max(layer[node], layer[arg])


def segmented(structure: Structure) -> Structure:
    """The same nodes cut into consecutive segments, for a graph that has no layers."""
    forward = [n for n in structure.nodes if structure.half[n] == "forward"]
    backward = [n for n in structure.nodes if structure.half[n] == "backward"]
    step = max(1, -(-len(forward) // SEGMENTS))
    layer = {node: 1 + k // step for k, node in enumerate(forward)}
    _place_backward(backward, layer, None, {})
    count = max(layer.values(), default=0)
    titles = {
        k: f"nodes {(k - 1) * step + 1}–{min(k * step, len(forward))}" for k in range(1, count + 1)
    }
    return Structure(structure.nodes, structure.half, layer, titles, None)
