"""Layers, functions on expressions that bring their parameters along, and a table of their costs.

    model = sg.nn.Sequential([sg.nn.Dense(32, sg.tanh), sg.nn.Dense(10)], name="model")
    logits = model(x)
    print(sg.nn.summary(model, dims={B: 64}))

    ys, carry = sg.nn.LSTM(128).run(x)                  # x (rows, time, features)

A layer is nothing more than the formula that it writes: what it returns is an expression like any
other. A new layer is a class of its own: see `Layer`.
"""

from symgrad.nn.combined import Bidirectional as Bidirectional, Stacked as Stacked
from symgrad.nn.layers import (
    Dense as Dense,
    Dropout as Dropout,
    Embedding as Embedding,
    Layer as Layer,
    LayerNorm as LayerNorm,
    Sequential as Sequential,
)
from symgrad.nn.recurrent import (
    GRU as GRU,
    LSTM as LSTM,
    RNN as RNN,
    Recurrent as Recurrent,
)
from symgrad.nn.sequences import (
    generate as generate,
    last_step as last_step,
    sample as sample,
    sequence_cross_entropy as sequence_cross_entropy,
    sequence_mask as sequence_mask,
    shifted as shifted,
)
from symgrad.nn.tables import Row as Row, Summary as Summary, summary as summary
from symgrad.nn.torch_layout import from_torch as from_torch, to_torch as to_torch

__all__ = [
    "GRU", "LSTM", "RNN", "Bidirectional", "Dense", "Dropout", "Embedding", "Layer", "LayerNorm",
    "Recurrent", "Row", "Sequential", "Stacked", "Summary", "from_torch", "generate", "last_step",
    "sample", "sequence_cross_entropy", "sequence_mask", "shifted", "summary", "to_torch",
]
