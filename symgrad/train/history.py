"""What training has seen: one record per epoch, and the history that collects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from symgrad.graph.dims import printable


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch in figures; losses and metrics are means weighted by rows.

    Fields:
        epoch:         its number, from 1, counted over all calls of `fit`.
        loss:          mean over the batches, each before its own update.
        metrics:       likewise, by name.
        gradient_norm: norm of the whole gradient before clipping, mean over the batches.
        validation:    loss and metrics on the validation data after the epoch; empty without.
        seconds:       wall time of its steps.
        rows, steps:   rows and batches that were seen; fewer than all only in an interrupted epoch.
    """

    epoch: int
    loss: float
    metrics: Mapping[str, float]
    gradient_norm: float
    validation: Mapping[str, float]
    seconds: float
    rows: int
    steps: int

    def to_json(self) -> dict[str, Any]:
        """The record as a dictionary of numbers."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}


@dataclass(frozen=True, slots=True, repr=False)
class History:
    """Records of the epochs of one `fit`, or of all of them.

    Fields:
        records:     one per epoch.
        interrupted: whether Ctrl-C ended it; the last record may then be of a part of an epoch.

    >>> record = EpochRecord(0, 0.5, {"accuracy": 0.75}, 1.25, {}, 0.1, 100, 4)
    >>> history = History((record,))
    >>> history.loss, history.metrics["accuracy"], history.gradient_norm
    ((0.5,), (0.75,), (1.25,))
    """

    records: tuple[EpochRecord, ...] = field(default=())
    interrupted: bool = False

    @property
    def epochs(self) -> tuple[int, ...]:
        """The number of each epoch."""
        return tuple(record.epoch for record in self.records)

    @property
    def loss(self) -> tuple[float, ...]:
        """Loss per epoch."""
        return tuple(record.loss for record in self.records)

    @property
    def metrics(self) -> dict[str, tuple[float, ...]]:
        """Each metric per epoch."""
        return _columns([record.metrics for record in self.records])

    @property
    def gradient_norm(self) -> tuple[float, ...]:
        """Gradient norm before clipping, per epoch."""
        return tuple(record.gradient_norm for record in self.records)

    @property
    def validation(self) -> dict[str, tuple[float, ...]]:
        """Loss and metrics on the validation data, per epoch."""
        return _columns([record.validation for record in self.records])

    @property
    def seconds(self) -> tuple[float, ...]:
        """Wall time of the steps, per epoch."""
        return tuple(record.seconds for record in self.records)

    @property
    def steps(self) -> int:
        """Batches in all."""
        return sum(record.steps for record in self.records)

    @property
    def steps_per_second(self) -> float:
        """Batches per second of stepping; 0 when nothing ran."""
        total = sum(self.seconds)
        return self.steps / total if total else 0.0

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        if not self.records:
            return "<History of 0 epochs>"
        return f"<History of {len(self)} epochs: loss {self.loss[0]:.4g} to {self.loss[-1]:.4g}>"

    def __str__(self) -> str:
        """A table of at most twenty epochs, evenly spread, the first and the last among them."""
        metrics, validation = list(self.metrics), list(self.validation)
        names = ["loss", *metrics, "gradient norm", *(f"validation {k}" for k in validation)]
        rows = [["epoch", *map(printable, names)]]
        last = len(self.records) - 1
        shown = sorted({round(k * last / 19) for k in range(20)}) if last > 19 else range(last + 1)
        for record in (self.records[k] for k in shown):
            figures = [
                record.loss,
                *(record.metrics[k] for k in metrics),
                record.gradient_norm,
                *(record.validation.get(k, float("nan")) for k in validation),
            ]
            rows.append([str(record.epoch), *(f"{value:.6g}" for value in figures)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        note = ["interrupted"] if self.interrupted else []
        return "\n".join([*lines, *note])


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: tuple(row.get(name, float("nan")) for row in rows) for name in names}
