"""What may happen after every epoch: stop early, log to a file, save.

A callback is any function of an `EpochRecord`; when it returns True or "stop", training ends. Those
here also want to know the trainer: `fit` tells them when it begins and when it has ended.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from symgrad.graph.dims import printable
from symgrad.graph.errors import DataError, SymgradError
from symgrad.train.history import EpochRecord

if TYPE_CHECKING:
    from symgrad.train.trainer import Trainer

FilePath = str | os.PathLike[str]


class Callback:
    """A callback that is told about the trainer; a subclass overrides what it needs."""

    def begin(self, trainer: Trainer) -> None:
        """`fit` begins."""

    def __call__(self, record: EpochRecord) -> object:
        """An epoch has ended; True or "stop" ends training."""

    def end(self) -> None:
        """`fit` has ended: all epochs are done, a callback said stop, or Ctrl-C was pressed."""


Listener = Callback | Callable[[EpochRecord], object]


class EarlyStopping(Callback):
    """Ends training when a figure has not improved for some epochs, and takes the best state back.

    Args:
        monitor:      "loss", "gradient_norm", the name of a metric, or one of those that the
                      validation data give, "validation loss"; default: the validation loss where
                      there are validation data, else the loss.
        patience:     epochs in a row without improvement after which training ends.
        min_delta:    an improvement is larger than this.
        mode:         "min" or "max": which way is better. NaN is never better.
        restore_best: whether the trainer goes back, when `fit` ends for whatever reason but an
                      error, to the state after the best epoch: parameters, the optimiser's state
                      and the step count.

    After `fit`: `.best` (the figure), `.best_epoch`, and `.stopped`, whether it ended training.

    >>> stop = EarlyStopping(patience=2)
    >>> losses = enumerate([3.0, 2.0, 4.0, 5.0], start=1)
    >>> [stop(EpochRecord(k, loss, {}, 1.0, {}, 0.1, 8, 2)) for k, loss in losses]
    [False, False, False, True]
    >>> stop.best, stop.best_epoch
    (2.0, 2)
    """

    def __init__(
        self,
        monitor: str | None = None,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "min",
        restore_best: bool = True,
    ) -> None:
        self.patience = _count("EarlyStopping", "patience", patience)
        self.restore_best = restore_best
        self._best = _Best("EarlyStopping", monitor, mode, min_delta)
        self._trainer: Trainer | None = None
        self._state: dict[str, npt.NDArray[Any]] | None = None
        self._waited, self.stopped = 0, False

    def __repr__(self) -> str:
        return f"<EarlyStopping at {self._best}, patience {self.patience}>"

    @property
    def best(self) -> float:
        """The best figure so far, NaN before the first."""
        return self._best.value

    @property
    def best_epoch(self) -> int | None:
        """The epoch that had it."""
        return self._best.epoch

    def begin(self, trainer: Trainer) -> None:
        """Forget earlier calls of `fit`."""
        self._best.forget()
        self._trainer, self._state = trainer, None
        self._waited, self.stopped = 0, False

    def __call__(self, record: EpochRecord) -> bool:
        """Whether patience is at its end."""
        if self._best.improved(record):
            self._waited = 0
            if self.restore_best and self._trainer is not None:
                self._state = self._trainer.state
        else:
            self._waited += 1
        self.stopped = self._waited >= self.patience
        return self.stopped

    def end(self) -> None:
        """Take the best state back."""
        if self._state is not None and self._trainer is not None:
            self._trainer.restore(self._state)
        self._trainer = self._state = None


class CsvLog(Callback):
    """Writes one line per epoch into a CSV file: epoch, loss, metrics, validation, seconds.

    Args:
        path:   the file. It is flushed after every epoch, so that others can read along.
        append: go on with an existing file of the same columns; without, it is written anew when
                the first `fit` begins, and further calls of `fit` go on.
    Raises: DataError when an existing file has other columns; OSError when it cannot be written.
    """

    def __init__(self, path: FilePath, append: bool = False) -> None:
        self.path, self.append = Path(path), append
        self._columns: list[str] | None = None

    def begin(self, trainer: Trainer) -> None:
        """Begin the file, unless it is gone on with."""
        if self._columns is None and not self.append:
            self.path.write_text("", encoding="utf-8")

    def __repr__(self) -> str:
        return f"<CsvLog {printable(str(self.path))}>"

    def __call__(self, record: EpochRecord) -> None:
        """Write the line of an epoch, the first time below a line of names."""
        figures = {"epoch": record.epoch, **figures_of(record)}
        figures |= {"seconds": record.seconds, "rows": record.rows, "steps": record.steps}
        names = list(figures)
        if self._columns is None:
            self._columns = self._present()
        empty = not self._columns
        if empty:
            self._columns = names
        elif self._columns != names:
            raise DataError(
                f"CsvLog: {self.path} has other columns\n"
                f"  file   {', '.join(map(printable, self._columns))}\n"
                f"  epoch  {', '.join(map(printable, names))}\n  Log into another file."
            )
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if empty:
                writer.writerow(names)
            writer.writerow(figures.values())

    def _present(self) -> list[str]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])


class Checkpoint(Callback):
    """Saves the trainer after epochs: `Trainer.load` goes on from there bit for bit.

    Args:
        path:    the file; `{epoch}` in it becomes the number of the epoch, otherwise each save
                 replaces the one before.
        every:   save after every so many epochs.
        monitor: save only when this figure is better than at every save before; see EarlyStopping.
        mode:    "min" or "max": which way is better.
    Raises: OSError when the file cannot be written.
    """

    def __init__(
        self, path: FilePath, every: int = 1, monitor: str | None = None, mode: str = "min"
    ) -> None:
        self.path, self.every = os.fspath(path), _count("Checkpoint", "every", every)
        self._best = None if monitor is None else _Best("Checkpoint", monitor, mode, 0.0)
        self._trainer: Trainer | None = None

    def __repr__(self) -> str:
        when = f"every {self.every} epochs" if self.every > 1 else "every epoch"
        best = "" if self._best is None else f" at {self._best}"
        return f"<Checkpoint {printable(self.path)} {when}{best}>"

    def begin(self, trainer: Trainer) -> None:
        """Remember whom to save."""
        self._trainer = trainer

    def __call__(self, record: EpochRecord) -> None:
        """Save, when it is time."""
        trainer, due = self._trainer, record.epoch % self.every == 0
        if trainer is not None and due and (self._best is None or self._best.improved(record)):
            trainer.save(self.path.replace("{epoch}", str(record.epoch)))

    def end(self) -> None:
        """Forget the trainer."""
        self._trainer = None


# -- what they share -------------------------------------------------------------------------------
class _Best:
    """The best value of a figure so far."""

    def __init__(self, asked: str, monitor: str | None, mode: str, min_delta: float) -> None:
        if mode not in ("min", "max"):
            raise SymgradError(f'{asked}: mode must be "min" or "max", got {mode!r}.')
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise SymgradError(
                f"{asked}: min_delta must be finite and at least 0, got {min_delta!r}."
            )
        self.asked, self.monitor, self.mode, self.min_delta = asked, monitor, mode, min_delta
        self.forget()

    def forget(self) -> None:
        self.value, self.epoch = math.nan, None

    def __str__(self) -> str:
        figure = "the loss" if self.monitor is None else printable(repr(self.monitor))
        so_far = "" if self.epoch is None else f", {self.value:.4g} in epoch {self.epoch}"
        return f"the {self.mode}imum of {figure}{so_far}"

    value: float
    epoch: int | None

    def improved(self, record: EpochRecord) -> bool:
        """Whether this epoch is better than all before; then it is the best."""
        figures = figures_of(record)
        name = self.monitor
        if name is None:
            name = "validation loss" if "validation loss" in figures else "loss"
        if name not in figures:
            raise DataError(
                f"{self.asked}: no epoch has a figure {printable(repr(name))}. "
                f"There are {', '.join(printable(repr(k)) for k in figures)}."
            )
        value = float(figures[name])
        gain = self.value - value if self.mode == "min" else value - self.value
        better = gain > self.min_delta or (math.isnan(self.value) and not math.isnan(value))
        if better:
            self.value, self.epoch = value, record.epoch
        return better


def figures_of(record: EpochRecord) -> dict[str, float]:
    """What an epoch measured, by the names that are monitored, logged and shown.

    >>> record = EpochRecord(0, 0.5, {"accuracy": 0.75}, 1.25, {"loss": 0.6}, 0.1, 100, 4)
    >>> list(figures_of(record))
    ['loss', 'accuracy', 'gradient_norm', 'validation loss']
    """
    figures = {"loss": record.loss, **record.metrics, "gradient_norm": record.gradient_norm}
    return figures | {f"validation {name}": value for name, value in record.validation.items()}


def listeners_of(callbacks: Iterable[Listener]) -> tuple[Listener, ...]:
    """Callbacks, checked.

    Raises: DataError when they are no sequence of functions.
    """
    listeners: Sequence[Any] = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if isinstance(callbacks, Mapping) or not all(map(callable, listeners)):
        raise DataError(
            "fit: callbacks must be a sequence of functions that take an EpochRecord, got "
            f"{callbacks!r:.80}."
        )
    return tuple(listeners)


def _count(asked: str, name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise SymgradError(f"{asked}: {name} must be an integer of at least 1, got {value!r}.")
    return int(value)
