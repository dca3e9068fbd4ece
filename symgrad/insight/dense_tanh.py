"""Dense tanh layers inside a graph, h' = tanh(h W + b), and the growth that theory gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from symgrad.graph.functions import P, tanh
from symgrad.graph.nodes import Einsum, Input, Map, Node
from symgrad.insight.mean_field import growth


@dataclass(frozen=True, slots=True, eq=False)
class DenseTanh:
    """One layer tanh(source W + bias); `transposed` when the weight is stored as (out, in)."""

    source: Node
    weight: Input
    bias: Input | None
    output: Node
    transposed: bool

    @property
    def leaves(self) -> tuple[Input, ...]:
        """The parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def dense_tanh_layers(nodes: Sequence[Node]) -> tuple[DenseTanh, ...]:
    """Find the dense tanh layers among nodes, in their order."""
    found = []
    for node in nodes:
        if isinstance(node, Map) and len(node.args) == 1 and node.body == tanh(P[0]):
            layer = _layer(node)
            if layer is not None:
                found.append(layer)
    return tuple(found)


def _layer(output: Map) -> DenseTanh | None:
    before = output.args[0]
    product, bias = before, None
    if isinstance(before, Map) and len(before.args) == 2 and before.body == P[0] + P[1]:
        sides = [a for a in before.args if isinstance(a, Einsum)]
        leaves = [a for a in before.args if isinstance(a, Input) and a.kind == "parameter"]
        if len(sides) != 1 or len(leaves) != 1:
            return None
        product, bias = sides[0], leaves[0]
    if not isinstance(product, Einsum) or len(product.args) != 2 or len(product.summed) != 1:
        return None
    (inner,) = product.summed
    for k, arg in enumerate(product.args):
        weight, turned = _matrix(arg)
        labels = product.labels[k]
        if weight is not None and len(labels) == 2:
            stored_last = (labels[1] == inner) is not turned
            return DenseTanh(product.args[1 - k], weight, bias, output, stored_last)
    return None


def _matrix(node: Node) -> tuple[Input | None, bool]:
    """The parameter behind an argument, and whether it is read transposed."""
    turned = False
    if isinstance(node, Einsum) and len(node.args) == 1 and node.out == (1, 0):
        node, turned = node.args[0], True
    if isinstance(node, Input) and node.kind == "parameter" and node.ndim == 2:
        return node, turned
    return None, turned


def mean_field_growth(layer: DenseTanh, value: Mapping[Node, np.ndarray]) -> float:
    """chi_1 = sigma_w^2 E[tanh'(z)^2], z Gaussian with the variance that the layer should have.

        sigma_w^2 = fan_in var(W),   var(z) = sigma_w^2 mean(h^2) + var(b)

    Args:
        layer: one layer.
        value: arrays of its source and parameters.
    """
    weight = value[layer.weight].astype(np.float64)
    fan_in = weight.shape[1 if layer.transposed else 0]
    sigma_w2 = fan_in * float(np.mean(weight**2))
    sigma_b2 = 0.0
    if layer.bias is not None:
        sigma_b2 = float(np.mean(value[layer.bias].astype(np.float64) ** 2))
    source = value[layer.source].astype(np.float64)
    return growth(sigma_w2 * float(np.mean(source**2)) + sigma_b2, sigma_w2)
