"""Gradient flow: how large the gradient is at every node and layer, and whether it can be trusted.

The magnitude at a node v is the L2 norm of dL/dv. From the last layer back to the first these norms
should neither collapse nor blow up: a factor below `VANISHING` over the path is called vanishing, a
factor above `EXPLODING` exploding. For dense tanh layers the measured growth of the squared norm
stands beside the mean-field value that the layer's own weights imply (`mean_field.py`).

Sources: Hochreiter 1991, Bengio et al. 1994, Pascanu et al. 2013 (arXiv 1211.5063), Schoenholz et
al. 2017 (arXiv 1611.01232).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from symgrad.calculus.vjp import as_targets, grad
from symgrad.diagram.drawing import draw
from symgrad.diagram.formulas import formula_of
from symgrad.diagram.joint import joint
from symgrad.diagram.layers import Structure, structure_of
from symgrad.diagram.records import Diagram
from symgrad.graph.dims import printable
from symgrad.graph.dtypes import is_float
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Constant, Einsum, Input, Node, Reindex
from symgrad.graph.traversal import toposort
from symgrad.insight.dense_tanh import DenseTanh, dense_tanh_layers, mean_field_growth
from symgrad.insight.tables import html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VANISHING = 1e-6  # factor of the gradient's norm over the path, at or below which it has vanished
EXPLODING = 1e6  # factor over the path, at or above which it has exploded
State = Literal["vanishing", "healthy", "exploding"]


@dataclass(frozen=True, slots=True)
class FlowRow:
    """Magnitudes at one node, or at the output of one layer.

    Fields:
        level: "node" or "layer".
        name: the leaf's name, the node's formula, or the layer's title.
        kind: "input", "parameter", or the node's class; "layer" for layers.
        layer: the layer's number, 0 before the first.
        shape: in numbers.
        primal_norm: L2 norm of the value.
        gradient_norm: L2 norm of the gradient of the loss with respect to it.
        rms: gradient_norm divided by the square root of the number of elements.
        largest: the largest absolute entry of the gradient.
        zero_fraction: the share of entries of the gradient that are exactly zero.
        growth: of a layer, gradient_norm divided by that of the next layer; None for the last.
        chi_1: of a dense tanh layer, the measured factor by which its pullback multiplies the
            squared norm of the gradient.
        chi_1_theory: the mean-field value of that factor.
    """

    level: Literal["node", "layer"]
    name: str
    kind: str
    layer: int
    shape: tuple[int, ...]
    primal_norm: float
    gradient_norm: float
    rms: float
    largest: float
    zero_fraction: float
    growth: float | None = None
    chi_1: float | None = None
    chi_1_theory: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GradientFlow:
    """Measured gradients of a loss: a table, a plot, a picture and a verdict.

    Fields:
        table: one row per layer, then one per node.
        verdict: "vanishing: ..", "healthy: .." or "exploding: ..", one sentence with figures.
        state: the verdict's first word.
        factor: norm of the gradient at the first layer divided by that at the last.
        magnitudes: the norm of the gradient per forward node, of the cotangent per backward node.
    """

    loss: Node
    wrt: tuple[Node, ...]
    table: tuple[FlowRow, ...]
    state: State
    verdict: str
    factor: float
    magnitudes: Mapping[Node, float]

    @property
    def layers(self) -> tuple[FlowRow, ...]:
        """The rows of the layers, from the input to the output."""
        return tuple(row for row in self.table if row.level == "layer")

    @property
    def nodes(self) -> tuple[FlowRow, ...]:
        """The rows of the nodes, arguments before users."""
        return tuple(row for row in self.table if row.level == "node")

    def draw(self) -> Diagram:
        """The graph with its backward pass, magnitudes as colour and width."""
        return draw(self.loss, self.wrt, flow=self)

    def plot(self) -> Figure:
        """Norms per layer as a Matplotlib figure.

        Raises: SymgradError when Matplotlib is missing.
        """
        from symgrad.insight.plots import plot_flow

        return plot_flow(self)

    def __str__(self) -> str:
        parts = [self.verdict]
        if self.layers:
            parts.append(text_table(_LAYER_HEAD, [_layer_cells(r) for r in self.layers]))
        shown = self.nodes[:60]
        parts.append(text_table(_NODE_HEAD, [_node_cells(r) for r in shown]))
        if len(self.nodes) > len(shown):
            parts.append(f".. and {len(self.nodes) - len(shown)} nodes more, see .table")
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        layers = html_table(_LAYER_HEAD, [_layer_cells(r) for r in self.layers], self.verdict)
        nodes = html_table(_NODE_HEAD, [_node_cells(r) for r in self.nodes[:200]], "per node")
        return layers + nodes if self.layers else nodes


def gradient_flow(
    loss: Node, wrt: Node | Sequence[Node], values: Mapping[Any, Any]
) -> GradientFlow:
    """Measure the gradient of a scalar at every node and layer, on given values.

        magnitude(v) = ||dL/dv||_2

    Args:
        loss: a scalar expression.
        wrt: the parameters (or other nodes) that are trained; they say what the picture shows.
        values: node or name -> array, as for `evaluate`; a parameter left out takes its init.
    Returns: a GradientFlow; print it, or use `.table`, `.verdict`, `.plot()` and `.draw()`.
    Raises: GradError when the loss is no float scalar, LeafError for missing values.

    >>> from symgrad.graph.leaves import input, parameter
    >>> x, w = input("x", (3,)), parameter("w", (3,))
    >>> flow = gradient_flow((x * w).sum(), w, {"x": [3.0, 0.0, 4.0], "w": [1.0, 1.0, 1.0]})
    >>> [row.gradient_norm for row in flow.nodes if row.name == "w"]
    [5.0]
    """
    wanted = as_targets("gradient_flow", wrt)
    forward = toposort([loss])
    primal = [n for n in forward if is_float(n.dtype) and not isinstance(n, Constant)]
    drawn = _backward_half(loss, wanted, set(forward))
    gradients = grad(loss, primal)
    dense = dense_tanh_layers(forward)
    weights = [leaf for layer in dense for leaf in layer.leaves]
    everything = [*primal, *gradients, *drawn, *weights]
    arrays = iter(evaluate(everything, values))
    value = {node: np.asarray(next(arrays)) for node in primal}
    gradient = {node: np.asarray(next(arrays)) for node in primal}
    magnitudes = {node: _norm(g) for node, g in gradient.items()}
    magnitudes.update({node: _norm(np.asarray(next(arrays))) for node in drawn})
    value.update({leaf: np.asarray(next(arrays)) for leaf in weights})

    structure = structure_of([loss])
    nodes = tuple(_node_row(n, structure, value[n], gradient[n]) for n in primal)
    layers = _layer_rows(structure, value, gradient, dense)
    state, verdict, factor = _judge(layers, nodes)
    return GradientFlow(loss, wanted, (*layers, *nodes), state, verdict, factor, magnitudes)


def _backward_half(loss: Node, wrt: Sequence[Node], forward: set[Node]) -> list[Node]:
    """The cotangents among the nodes of the picture's backward half."""
    simplified, gradients = joint(loss, wrt)
    known = forward.union(toposort([simplified]))
    final = set(gradients)
    found: list[Node] = []
    for node in toposort(gradients):
        if node in known or isinstance(node, Constant):
            continue
        if node not in final and _only_moves(node) and node.args[0] in known:
            known.add(node)  # a residual that was stretched or reshaped
        elif node in final or _is_cotangent(node):
            found.append(node)
    return found


def _only_moves(node: Node) -> bool:
    sums = isinstance(node, Einsum) and bool(node.summed)
    return len(node.args) == 1 and isinstance(node, (Einsum, Reindex)) and not sums


def _is_cotangent(node: Node) -> bool:
    """Whether a backward node has the shape of something that its primal reads or is.

    The others are by-products, such as an index that was wrapped.
    """
    primal = node.backward_of
    if primal is None or not is_float(node.dtype):
        return False
    return any(node.shape == p.shape for p in (primal, *primal.args) if is_float(p.dtype))


# -- rows --------------------------------------------------------------------------------------
def _norm(array: np.ndarray) -> float:
    """L2 norm in float64, so that a large float32 gradient does not overflow in its square."""
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.sum(np.square(array.astype(np.float64)))))


def _node_row(node: Node, structure: Structure, value: np.ndarray, gradient: np.ndarray) -> FlowRow:
    kind = node.kind if isinstance(node, Input) else type(node).__name__.lower()
    norm = _norm(gradient)
    return FlowRow(
        level="node",
        name=printable(node.name) if isinstance(node, Input) else formula_of(node).label,
        kind=kind,
        layer=structure.layer[node],
        shape=tuple(gradient.shape),
        primal_norm=_norm(value),
        gradient_norm=norm,
        rms=norm / math.sqrt(max(gradient.size, 1)),
        largest=float(np.max(np.abs(gradient), initial=0.0)),
        zero_fraction=float(np.mean(gradient == 0)) if gradient.size else 0.0,
    )


def layer_outputs(structure: Structure) -> dict[int, Node]:
    """Per layer the last node that another layer reads: what the layer hands on."""
    found: dict[int, Node] = {}
    place = {node: k for k, node in enumerate(structure.nodes)}
    for node in structure.nodes:
        for arg in node.args:
            number = structure.layer.get(arg, 0)
            leaves = isinstance(arg, (Input, Constant)) or not is_float(arg.dtype)
            if leaves or number in (0, structure.layer[node], structure.loss):
                continue
            if number not in found or place[found[number]] < place[arg]:
                found[number] = arg
    if structure.nodes:
        last = structure.nodes[-1]
        number = structure.layer[last]
        if number not in (0, structure.loss):
            found.setdefault(number, last)
    return dict(sorted(found.items()))


def _layer_rows(
    structure: Structure,
    value: Mapping[Node, np.ndarray],
    gradient: Mapping[Node, np.ndarray],
    dense: Sequence[DenseTanh],
) -> tuple[FlowRow, ...]:
    outputs = layer_outputs(structure)
    numbers = list(outputs)
    measured = {layer.output: layer for layer in dense}
    rows = []
    for k, number in enumerate(numbers):
        node = outputs[number]
        row = _node_row(node, structure, value[node], gradient[node])
        growth = chi = theory = None
        if k + 1 < len(numbers):
            growth = _ratio(row.gradient_norm, _norm(gradient[outputs[numbers[k + 1]]]))
        layer = measured.get(node)
        if layer is not None:
            theory = mean_field_growth(layer, value)
            if layer.source in gradient:
                chi = _ratio(_norm(gradient[layer.source]), row.gradient_norm) ** 2
        rows.append(
            FlowRow(
                level="layer",
                name=structure.titles.get(number, f"layer {number}"),
                kind="layer",
                layer=number,
                shape=row.shape,
                primal_norm=row.primal_norm,
                gradient_norm=row.gradient_norm,
                rms=row.rms,
                largest=row.largest,
                zero_fraction=row.zero_fraction,
                growth=growth,
                chi_1=chi,
                chi_1_theory=theory,
            )
        )
    return tuple(rows)


def _ratio(above: float, below: float) -> float:
    if below == 0.0:
        return math.nan if above == 0.0 else math.inf
    return above / below


# -- verdict -----------------------------------------------------------------------------------
def _judge(layers: Sequence[FlowRow], nodes: Sequence[FlowRow]) -> tuple[State, str, float]:
    """Compare the two ends of the path: the layers, or without layers the computed nodes."""
    broken = next((row for row in nodes if not math.isfinite(row.primal_norm)), None)
    if broken is not None:
        return "exploding", f"exploding: the value of {broken.name} is not finite", math.nan
    broken = next((row for row in reversed(nodes) if not math.isfinite(row.gradient_norm)), None)
    if broken is not None:
        return "exploding", f"exploding: the gradient at {broken.name} is not finite", math.nan
    path = list(layers)
    if len(path) < 2:
        path = [row for row in nodes if row.kind not in ("input", "parameter")] or list(nodes)
    steps = max(len(path) - 1, 1)
    what = f"{steps} layer{'s' if steps > 1 else ''}" if len(layers) > 1 else f"{steps} nodes"
    factor = _ratio(path[0].gradient_norm, path[-1].gradient_norm)
    if path[0].gradient_norm == 0.0:
        return "vanishing", f"vanishing: the gradient at {path[0].name} is exactly zero", 0.0
    each = factor ** (1.0 / steps)
    walk = f"back over {what} the gradient's norm changes by a factor {factor:.3g}"
    walk += f" ({each:.3f} per step)" if steps > 1 else ""
    if factor <= VANISHING:
        return "vanishing", f"vanishing: {walk}, below the warning level {VANISHING:g}", factor
    if factor >= EXPLODING:
        return "exploding", f"exploding: {walk}, above the warning level {EXPLODING:g}", factor
    return "healthy", f"healthy: {walk}{_outlook(each, steps, len(layers) > 1)}", factor


def _outlook(each: float, steps: int, layered: bool) -> str:
    """Where a steady trend would lead, when it would lead out of bounds within 1000 layers."""
    if steps < 4 or not layered or each == 1.0:
        return ""
    level = VANISHING if each < 1.0 else EXPLODING
    depth = math.ceil(math.log(level) / math.log(each))
    return f"; at this rate it would reach {level:g} after {depth} layers" if depth < 1000 else ""


# -- text --------------------------------------------------------------------------------------
_LAYER_HEAD = ("layer", "shape", "|value|", "|grad|", "rms", "max", "zeros", "growth", "chi_1",
               "theory")  # fmt: skip
_NODE_HEAD = ("node", "kind", "layer", "shape", "|value|", "|grad|", "rms", "max", "zeros")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _layer_cells(row: FlowRow) -> tuple[str, ...]:
    shape = "×".join(map(str, row.shape)) or "scalar"
    figures = (row.primal_norm, row.gradient_norm, row.rms, row.largest)
    ratios = (row.growth, row.chi_1, row.chi_1_theory)
    return (row.name, shape, *map(_figure, figures), f"{row.zero_fraction:.0%}",
            *map(_figure, ratios))  # fmt: skip


def _node_cells(row: FlowRow) -> tuple[str, ...]:
    shape = "×".join(map(str, row.shape)) or "scalar"
    figures = (row.primal_norm, row.gradient_norm, row.rms, row.largest)
    return (row.name, row.kind, str(row.layer), shape, *map(_figure, figures),
            f"{row.zero_fraction:.0%}")  # fmt: skip
