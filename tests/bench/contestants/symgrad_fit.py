"""symgrad: the loss as an expression, trained by `Trainer.fit` with its compiled epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.bench.contestants.symgrad_attention import attention_loss
from tests.bench.contestants.symgrad_recurrent import recurrent_loss
from tests.bench.contestants.symgrad_tagger import tagger_loss
from tests.bench.workloads import Attention, Hessian, Recurrent, Tagger, Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    return trained(workload, loss_of(workload))


def loss_of(workload: Workload) -> Any:
    """The mean loss of a batch."""
    if isinstance(workload.specification, Attention):
        return attention_loss(workload)
    if isinstance(workload.specification, Recurrent):
        return recurrent_loss(workload)
    if isinstance(workload.specification, Tagger):
        return tagger_loss(workload)
    return _dense_loss(workload)


def trainer_of(workload: Workload, loss: Any) -> Any:
    """A trainer of a loss, as the workload wants it."""
    import symgrad as sg

    spec = workload.specification
    assert not isinstance(spec, Hessian)
    clip = spec.clip if isinstance(spec, Recurrent) else None
    optimizer = {"sgd": sg.optim.sgd, "adam": sg.optim.adam}[spec.optimizer]
    return sg.Trainer(
        loss, optimizer=optimizer(spec.rate), clip_norm=clip, threads=workload.threads
    )


def trained(workload: Workload, loss: Any) -> Callable[[int], list[float]]:
    """Return a function that trains a loss of x and y, and of lengths where there are any."""
    spec = workload.specification
    assert not isinstance(spec, Hessian)
    trainer = trainer_of(workload, loss)
    names = {"x": "X", "y": "y", "lengths": "lengths"}
    data = {name: workload.data[own] for name, own in names.items() if own in workload.data}

    def train(epochs: int) -> list[float]:
        history = trainer.fit(data, epochs=epochs, batch_size=spec.batch, progress=False)
        return [float(loss) for loss in history.loss][-epochs:]

    return train


def _dense_loss(workload: Workload) -> Any:
    import symgrad as sg

    spec = workload.training
    batch = sg.dim("B")
    x = sg.input("x", (batch, spec.layers[0]))
    y = sg.input("y", (batch,), dtype="int32")
    *hidden, last = [
        (sg.parameter(f"W{i}", w.shape, init=w), sg.parameter(f"b{i}", b.shape, init=b))
        for i, (w, b) in enumerate(workload.weights)
    ]
    activation = {"tanh": sg.tanh, "relu": sg.relu}[spec.activation]
    h = x
    for w, b in hidden:
        h = activation(h @ w + b)
    return sg.cross_entropy(h @ last[0] + last[1], y).mean()
