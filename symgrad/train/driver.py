"""A run of epochs in chunks of compiled code, and what happens when a step fails.

A program runs steps without Python between them: whole epochs, or some batches of one. The driver
asks it for chunks of about 0.1 s, so that small models run at full speed while progress, Ctrl-C and
callbacks stay responsive; of more where copying a large state would cost more than a hundredth of
the chunk, up to 1 s. How a run is cut into chunks changes no bit of its result.

A chunk that fails changes nothing. The step at fault is then found by halving: half of the chunk is
run, and either that half fails, or the fault is behind it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from symgrad.train.orders import Orders

Array = npt.NDArray[Any]

#: Wall time of one chunk in seconds: short for a person, long beside Python's overhead.
CHUNK_SECONDS = 0.1
#: The same where the state is large: so much for each byte of it, since a chunk begins with a copy.
SECONDS_PER_BYTE, MOST_SECONDS = 100 / 8e9, 1.0


class Stop(IntEnum):
    """Why a chunk ended; any other status is the program's own."""

    DONE = 0
    NOT_FINITE = -1


class Program(Protocol):
    """What runs steps, over data and state of its own.

    outputs: how many numbers each step gives.
    state_bytes: how much a run copies before its first step.
    """

    outputs: int
    state_bytes: int

    def run(self, order: Array, rest: Array, begun: Array, fresh: bool) -> tuple[int, Array]:
        """Do steps over rows; when they fail, nothing has changed.

        Args:
            order: rows of the whole batches, (epochs, batches, rows of a batch).
            rest:  rows of the partial batches that end the epochs, (epochs, 0 or 1, rows).
            begun: sums of what was done of each epoch before, (outputs, epochs).
            fresh: whether the epochs begin with their first batches.
        Returns: a `Stop` or another status, and the sums afterwards, (outputs, epochs): each output
            times the rows of its batch, summed over the epoch.
        """

    def explain(self, rows: Sequence[int]) -> str:
        """What the last status meant, after a run of one batch of these rows."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that stopped a run: the rows of its batch, its outputs, and the program's reason."""

    rows: tuple[int, ...] = ()
    outputs: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """Whole epochs, or batches of one: in each `batches` whole ones and `rests` partial ones."""

    epochs: int
    batches: int
    rests: int

    @property
    def steps(self) -> int:
        """How many steps it is."""
        return self.epochs * (self.batches + self.rests)


class Run:
    """Epochs of a program over `n` rows: call `advance` until `epoch` reaches the number wanted.

    The order of the rows follows from shuffle and seed, unless `orders` gives it.

    Fields:
        epoch: whole epochs done in this run.
        start: row at which the next batch begins; 0 between epochs.
        steps: steps done.
        sums:  (epochs, outputs): each output times the rows of its batch, summed over the epoch.
        pace: seconds per row, as last measured; 0 where that is not known yet.
        failure: of the step that stopped it, if one did.
    """

    def __init__(
        self,
        program: Program,
        n: int,
        *,
        epochs: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        first_epoch: int = 0,
        pace: float = 0.0,
        orders: Orders | None = None,
    ) -> None:
        self.program, self.rows, self.batch_size = program, n, batch_size
        self.steps_per_epoch = -(-n // batch_size)
        self.sums = np.zeros((epochs, program.outputs))
        self.epoch = self.start = self.steps = 0
        self.failure = Failure()
        self._orders = Orders(n, shuffle, seed) if orders is None else orders
        self._first_epoch = first_epoch
        self.pace = pace
        self._seconds = max(
            CHUNK_SECONDS, min(program.state_bytes * SECONDS_PER_BYTE, MOST_SECONDS)
        )
        self._chunk = n if pace else 0

    def restart(self) -> None:
        """Forget what was done, to run once more."""
        self.epoch = self.start = self.steps = 0
        self.sums[...] = 0.0

    def advance(self, until: int) -> int:
        """Run for about `CHUNK_SECONDS` or longer, at least one step, and not past epoch `until`.

        Returns: 0, or a `Stop`, or the status of the program. When it is not 0, the step that
        failed has had no effect: state, sums and place are as they were before it.
        """
        limit, end = self._affordable(), 0
        while True:
            part = self._part(limit, until)
            began = time.perf_counter()
            status, sums = self._run(part, self.sums[self.epoch : self.epoch + part.epochs])
            if status != Stop.DONE:
                if part.steps == 1:
                    self.failure = self._describe(part, status)
                    return status
                end = self.steps + part.steps
            else:
                self.pace = (time.perf_counter() - began) / (part.steps * self.batch_size)
                self._pass(part, sums)
                if self.steps >= end:
                    return status
            limit = max(1, (end - self.steps) // 2)

    def _part(self, limit: int, until: int) -> _Part:
        """What comes next, at most `limit` steps: whole epochs where it can be."""
        whole, rests = divmod(self.rows, self.batch_size)
        done = self.start // self.batch_size
        alike = self._orders.alike(self._first_epoch + self.epoch, done)
        if alike is None and not done and limit >= self.steps_per_epoch:
            epochs = min(limit // self.steps_per_epoch, until - self.epoch)
            return _Part(epochs, whole, min(rests, 1))
        steps = min(limit, self.steps_per_epoch - done, alike or limit)
        batches = min(steps, whole - done)
        return _Part(1, batches, steps - batches)

    def _run(self, part: _Part, begun: Array) -> tuple[int, Array]:
        order, rest = self._rows(part)
        return self.program.run(order, rest, np.ascontiguousarray(begun.T), not self.start)

    def _rows(self, part: _Part) -> tuple[Array, Array]:
        epoch = self._first_epoch + self.epoch
        return self._orders.rows(
            epoch, part.epochs, self.start, part.batches, self.batch_size, part.rests
        )

    def _pass(self, part: _Part, sums: Array) -> None:
        """Enter a part that was done."""
        self.sums[self.epoch : self.epoch + part.epochs] = sums.T
        self.steps += part.steps
        self.epoch, steps = divmod(self.steps, self.steps_per_epoch)
        self.start = steps * self.batch_size

    def _describe(self, part: _Part, status: int) -> Failure:
        """The step that comes next, as it failed."""
        _, sums = self._run(part, np.zeros((1, self.program.outputs)))
        rows = [int(row) for array in self._rows(part) for row in array.flat]
        reason = "" if status == Stop.NOT_FINITE else self.program.explain(rows)
        return Failure(tuple(rows), tuple((sums[:, 0] / len(rows)).tolist()), reason)

    def _affordable(self) -> int:
        """Steps in one chunk: one at first, then as many as fit, growing at most eightfold."""
        fitting = self._seconds / max(self.pace * self.batch_size, 1e-9)
        self._chunk = max(1, int(min(fitting, 8.0 * self._chunk)))
        return self._chunk


def share(seconds: Array, spent: float, before: int, run: Run) -> None:
    """Share the wall time of a chunk among the epochs whose steps it did."""
    per_step = spent / max(run.steps - before, 1)
    for epoch in range(before // run.steps_per_epoch, run.epoch + 1):
        first = max(before, epoch * run.steps_per_epoch)
        last = min(run.steps, (epoch + 1) * run.steps_per_epoch)
        seconds[epoch] += per_step * max(last - first, 0)
