"""What is trained, as expressions: loss, metrics, gradient norm, clipping and updates.

    |g|    = sqrt(sum_k sum(g_k^2))          over all parameters together
    g_k   <- g_k c / max(|g|, c)             with clip_norm = c; no division by zero, whatever g is
    leaf  <- optimizer.updates(wrt, g)

Clipping by the global norm: Pascanu et al. 2013 (arXiv 1211.5063).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Real

from symgrad.calculus.vjp import value_and_grad
from symgrad.graph.arithmetic import add, maximum, square
from symgrad.graph.dims import Dim, free_dims, same, show
from symgrad.graph.dtypes import DEFAULT, FLOAT64, is_float
from symgrad.graph.elementwise import sqrt
from symgrad.graph.errors import DTypeError, LeafError, ShapeError, SymgradError
from symgrad.graph.graph import Graph
from symgrad.graph.leaves import as_node, cast, parameters
from symgrad.graph.nodes import Input, Node, describe
from symgrad.graph.reductions import mean, sum
from symgrad.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Objective:
    """Loss and metrics as scalars, and how a batch changes the leaves.

    Fields:
        outputs:    "loss", the metrics, by name: float scalars, means over the batch.
        norm:       of the gradient before clipping.
        updates:    leaf -> what it becomes.
        state:      those of the updates that only carry something to the next step; an epoch
                    starts with their first values.
        trained:    the parameters that move.
        leaves:     every leaf of outputs, updates and weight, in order of first use.
        batch:      the dim of the rows.
        weight:     what a batch counts in means, a float64 scalar; None: its rows.
    """

    outputs: dict[str, Node]
    norm: Node
    updates: dict[Input, Node]
    state: dict[Input, Node]
    trained: tuple[Input, ...]
    leaves: tuple[Input, ...]
    batch: Dim
    weight: Node | None = None

    @property
    def measured(self) -> list[Node]:
        """What figures of a batch are made of: outputs, and what they count."""
        return [*self.outputs.values(), *([] if self.weight is None else [self.weight])]

    @property
    def rows(self) -> tuple[Input, ...]:
        """The inputs whose leading axis is the batch: one row of data per row."""
        return tuple(x for x in self.inputs if x.shape and x.shape[0] == self.batch)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The leaves that data are for."""
        return tuple(x for x in self.leaves if x.kind == "input" and x not in self.state)

    @property
    def kept(self) -> tuple[Input, ...]:
        """The leaves whose values live in the trainer: parameters, their state, the step count."""
        return tuple(
            x for x in self.leaves
            if x in self.state or (x.kind != "input" and not x.is_supplied)
        )


def make_objective(
    loss: Node,
    optimizer: Optimizer,
    wrt: Node | Sequence[Node] | None,
    clip_norm: float | None,
    metrics: Mapping[str, Node],
    state: dict[Input, Node],
    weight: Node | None = None,
) -> Objective:
    """Differentiate the loss and write down one step of training.

    Raises: SymgradError and its kinds, for everything about the arguments that cannot work.
    """
    loss = as_node(loss)
    if not isinstance(metrics, Mapping):
        raise SymgradError(
            "Trainer: metrics must be a dictionary of expressions by name, such as "
            f'{{"accuracy": hits}}, got {type(metrics).__name__}.'
        )
    if "loss" in metrics:
        raise SymgradError("Trainer: a metric cannot be called 'loss', that is the loss itself.")
    if clip_norm is not None and not _is_positive(clip_norm):
        raise SymgradError(f"Trainer: clip_norm must be a positive number, got {clip_norm!r}.")
    measured = {"loss": loss, **{str(name): as_node(m) for name, m in metrics.items()}}
    leaves = Graph.of(list(measured.values())).inputs
    batch = batch_dim([x for x in leaves if x not in state], measured)
    outputs = {name: _mean(name, node, batch, bool(state)) for name, node in measured.items()}
    if not is_float(loss.dtype):
        raise DTypeError(f"Trainer: the loss must be a float, got\n  {describe(loss)}")
    trained = _trained(loss, wrt, state)
    outputs["loss"], grads = value_and_grad(outputs["loss"], trained)
    norm = sqrt(reduce(add, (sum(square(g)) for g in grads)))
    if clip_norm is not None:
        scale = clip_norm / maximum(norm, clip_norm)
        grads = tuple(g * cast(scale, g.dtype) for g in grads)
    updates = {**optimizer.updates(trained, grads), **state}
    weighed = None if weight is None else _weight(as_node(weight), batch)
    goal = Objective(outputs, norm, updates, state, trained, (), batch, weighed)
    every = Graph.of([*goal.measured, norm, *updates, *updates.values()]).inputs
    return replace(goal, leaves=every)


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and float(value) > 0


def batch_dim(leaves: Sequence[Input], measured: Mapping[str, Node]) -> Dim:
    """The dim of the rows: it leads the data inputs, and whatever is given per row.

    Raises: ShapeError when no dim leads an input, several do and nothing decides, or the batch dim
        stands elsewhere than first in an input.
    """
    inputs = [x for x in leaves if x.kind == "input"]
    leading = [x.shape[0] for x in inputs if x.shape]
    found = list(dict.fromkeys(extent for extent in leading if isinstance(extent, Dim)))
    per_row = [m.shape[0] for m in measured.values() if m.shape and m.shape[0] in found]
    lines = "\n".join(f"  {describe(x)}" for x in inputs)
    if not found:
        raise ShapeError(
            "Trainer: no input has a batch dim as its first axis\n"
            f"{lines or '  there are no inputs'}\n"
            '  Declare data as input("x", (B, ...)) with B = dim("B").'
        )
    if len(found) > 1 and not per_row:
        raise ShapeError(
            f"Trainer: which dim is the batch, {' or '.join(map(str, found))}?\n{lines}\n"
            "  Give the loss per row, with the shape (batch,): the trainer takes its mean."
        )
    batch: Dim = per_row[0] if per_row else found[0]
    for x in inputs:
        elsewhere = x.shape[1:] if x.shape and x.shape[0] == batch else x.shape
        if batch in free_dims(elsewhere):
            raise ShapeError(
                f"Trainer: the batch dim {batch} must be the first axis and only that\n"
                f"  {describe(x)}\n  Reorder the data so that each row is one example."
            )
    return batch


def _mean(name: str, node: Node, batch: Dim, carries: bool) -> Node:
    """A measured expression as a float scalar; what is carried may have a number of rows."""
    if not is_float(node.dtype):
        node = cast(node, DEFAULT)
    if not node.shape:
        return node
    per_row = same(node.shape[0], batch)
    if node.ndim > 1 or not (per_row or (carries and per_row is None)):
        raise ShapeError(
            f"Trainer: {name!r} must be a scalar or have one value per row, shape ({batch},), "
            f"got {show(node.shape)}\n  {describe(node)}\n  Reduce it with mean()."
        )
    return mean(node)


def _weight(node: Node, batch: Dim) -> Node:
    """The sum of what each row counts."""
    if node.ndim != 1 or not same(node.shape[0], batch):
        raise ShapeError(
            f"Trainer: weight must have one number per row, shape ({batch},), such as the lengths "
            f"of the rows, got {show(node.shape)}\n  {describe(node)}"
        )
    return sum(cast(node, FLOAT64))


def _trained(
    loss: Node, wrt: Node | Sequence[Node] | None, state: Mapping[Input, Node]
) -> tuple[Input, ...]:
    """The parameters to train, checked."""
    known = [p for p in parameters(loss) if p not in state]
    if wrt is None:
        chosen: Sequence[Node] = tuple(p for p in known if is_float(p.dtype))
        if not chosen:
            raise LeafError(
                "Trainer: the loss has no parameters to train. "
                "Make them with parameter(name, shape)."
            )
    else:
        if isinstance(wrt, (Set, Mapping)) or not isinstance(wrt, (Node, Iterable)):
            raise LeafError(
                "Trainer: wrt must be a parameter, or a list or tuple of them, "
                f"got {type(wrt).__name__}."
            )
        chosen = (wrt,) if isinstance(wrt, Node) else tuple(wrt)
        if not chosen:
            raise LeafError("Trainer: wrt is empty. Leave it out to train all parameters.")
    result = []
    for node in chosen:
        if not isinstance(node, Node):
            raise LeafError(
                f"Trainer: wrt holds {node!r}, not a parameter. Give the leaves themselves."
            )
        if not isinstance(node, Input) or node.kind != "parameter":
            raise LeafError(
                f"Trainer: only parameters can be trained, got\n  {describe(node)}\n"
                "  Make it with parameter(name, shape)."
            )
        if not any(node is p for p in known):
            raise LeafError(f"Trainer: the loss does not depend on\n  {describe(node)}")
        if not is_float(node.dtype):
            raise DTypeError(f"Trainer: only floats can be trained, got\n  {describe(node)}")
        result.append(node)
    return tuple(result)
