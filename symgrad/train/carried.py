"""State that passes from one minibatch to the next: long sequences, trained piece by piece.

    h <- init                    at the start of an epoch
    h <- h_next(h, x)            after each step, beside what the optimiser changes

Gradients end at `h`, which is a leaf: backpropagation through time, truncated at the borders of
minibatches. Williams and Peng 1990. The rows of a minibatch are lanes of a stream, each of which
goes on in the same row of the next: train them in order, shuffle=False, and give whole minibatches.

A stream in four lanes, in pieces of five steps:

>>> import symgrad as sg
>>> B, w = sg.dim("B"), sg.parameter("w", ())
>>> xs, h = sg.input("xs", (B, 5)), sg.input("h", (4,))
>>> last, sums = sg.scan(lambda h, x: (0.9 * h + w * x,) * 2, h, xs.T)
>>> loss = sg.square(sums[-1] - 1.0)
>>> trainer = sg.Trainer(loss, optimizer=sg.optim.sgd(1e-3), state={h: last})
>>> pieces = np.ones((7, 4, 5)).reshape(7 * 4, 5)  # piece after piece, each with its four lanes
>>> trainer.fit({"xs": pieces}, epochs=2, batch_size=4, shuffle=False).epochs
(1, 2)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from codegen.pipeline import checked_updates
from symgrad.graph.dims import free_dims, values
from symgrad.graph.errors import LeafError
from symgrad.graph.leaves import initial_value
from symgrad.graph.nodes import Input, Node, describe


def checked_state(state: Mapping[Input, Node] | None) -> dict[Input, Node]:
    """What becomes of each leaf of the state in a step.

    Raises: LeafError for what is no input or parameter; ShapeError and DTypeError where the leaf
        would change its shape or dtype.
    """
    found = dict(checked_updates({} if state is None else state, "Trainer: state"))
    for leaf in found:
        if leaf.kind not in ("input", "parameter"):
            raise LeafError(
                f"Trainer: state: only inputs and parameters are carried\n  {describe(leaf)}"
            )
    return found


def first_value(leaf: Input, seed: int) -> npt.NDArray[np.generic]:
    """What a leaf that is kept holds before the first step: a parameter's init, else zeros.

    Raises: LeafError when its shape is not in numbers.
    """
    if free_dims(leaf.shape):
        raise LeafError(
            f"Trainer: a parameter that is kept must have a shape in numbers\n  {describe(leaf)}\n"
            "  What has a value for each row is data: make it an input."
        )
    if leaf.kind in ("step", "input"):  # an input that is carried
        return np.zeros(values(leaf.shape, {}), leaf.dtype)
    return initial_value(leaf, seed)
