"""PyTorch as in `torch_eager`; a tagger packs the words of a batch, without padding."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.contestants import torch_eager
from tests.bench.workloads import Workload


def run(workload: Workload) -> Callable[[int], list[float]]:
    """Return a function that trains that many epochs and gives their mean losses."""
    return torch_eager.run(workload, packed=True)
