"""`sg.random`: arrays of random numbers, new at every step.

    uniform(shape)        in [0, 1)
    normal(shape)         mean 0, variance 1
    bernoulli(p, shape)   True with probability p

Each is an expression. Its values are made of the seed and the step of `evaluate`, `compile` or
`Trainer`, the call here that made it, and the place of the element, and of nothing else; see
`symgrad/graph/streams.py`.
"""

from __future__ import annotations

from symgrad.graph.streams import bernoulli as bernoulli, normal as normal, uniform as uniform

__all__ = ["bernoulli", "normal", "uniform"]
