"""symgrad with its attention written by `einsum`, trained by `Trainer.fit`."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.contestants.symgrad_attention import attention_loss
from tests.bench.contestants.symgrad_fit import trained
from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    return trained(workload, attention_loss(workload, by_einsum=True))
