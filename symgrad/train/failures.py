"""The errors for runs that stopped: what was met, in which step, among which rows of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from symgrad.graph.errors import DataError
from symgrad.train.data import Bound, not_finite
from symgrad.train.driver import Failure, Run, Stop


def stopped(run: Run, status: int, bound: Bound, epoch: int) -> DataError:
    """The error for training that stopped in an epoch, at a step that has changed nothing."""
    failure = run.failure
    where = f"epoch {epoch}, step {run.start // run.batch_size + 1}"
    if status == Stop.NOT_FINITE:
        found = not_finite(failure.rows, bound.rows)
        data = "\n".join(found) or "  the data of this batch are finite"
        loss, norm = failure.outputs[0], failure.outputs[-1]
        what = f"the loss is {loss}"
        if math.isfinite(loss):
            what += f" but the norm of its gradient {norm}"
        error = DataError(
            f"fit: {what} in {where}\n{data}\n"
            "  The parameters are those before this step. Lower the learning rate, clip the "
            'gradient (clip_norm=1.0), clean the data, or train on with on_nan="continue".\n'
            "  Which node makes it, in which time step:\n"
            "  sg.explain_nan(loss, {**trainer.parameters, **batch}), with the data's rows "
            "error.rows."
        )
    else:
        error = DataError(
            f"fit: {failure.reason}\n  in {where}, among the rows {_some(failure.rows)}\n"
            "  The parameters are those before this step."
        )
    error.rows = failure.rows
    return error


def not_measured(asked: str, failure: Failure) -> DataError:
    """The error for an evaluation that stopped; `asked` names the verb."""
    return DataError(f"{asked}: {failure.reason}\n  among the rows {_some(failure.rows)}")


def _some(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:5])) + (", .." if len(rows) > 5 else "")
