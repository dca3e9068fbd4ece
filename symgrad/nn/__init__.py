"""Layers, functions on expressions that bring their parameters along, and a table of their costs.

    model = sg.nn.Sequential([sg.nn.Dense(32, sg.tanh), sg.nn.Dense(10)], name="model")
    logits = model(x)
    print(sg.nn.summary(model, dims={B: 64}))

A layer is nothing more than the formula that it writes: what it returns is an expression like any
other. A new layer is a class of its own: see `Layer`.
"""

from symgrad.nn.layers import (
    Dense as Dense,
    Dropout as Dropout,
    Embedding as Embedding,
    Layer as Layer,
    LayerNorm as LayerNorm,
    Sequential as Sequential,
)
from symgrad.nn.tables import Row as Row, Summary as Summary, summary as summary

__all__ = [
    "Dense", "Dropout", "Embedding", "Layer", "LayerNorm", "Row", "Sequential", "Summary",
    "summary",
]
