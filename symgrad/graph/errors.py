"""The kinds of error a user of symgrad can meet.

Every message says what was asked, what was got (names, shapes, the user's line) and what to do.
Each kind is also the built-in exception that a Python user would catch.
"""

from __future__ import annotations

#: The most lines of a message, and the most characters of one.
SCREEN, LINE = 40, 400


class SymgradError(Exception):
    """Base of all errors that symgrad raises on purpose. A message never exceeds one screen."""

    def __init__(self, message: str = "") -> None:
        lines = [x if len(x) <= LINE else f"{x[: LINE - 3]}..." for x in message.split("\n")]
        if len(lines) > SCREEN:
            last = lines[-1]
            more = len(lines) - SCREEN + 1
            lines = [*lines[: SCREEN - 2], f"  .. and {more} lines more", last]
        super().__init__("\n".join(lines))


class ShapeError(SymgradError, ValueError):
    """Shapes, axes or extents do not fit together."""


class DTypeError(SymgradError, TypeError):
    """An operation is not defined for the dtypes that it was given."""


class LeafError(SymgradError, ValueError):
    """Names of leaves: missing, unknown, or used twice."""


class LeafTypeError(LeafError, TypeError):
    """A call that does not name the leaves of its values."""


class GradError(SymgradError, ValueError):
    """A derivative was asked for that does not exist."""


class CompileError(SymgradError, RuntimeError):
    """A legal graph could not be turned into a running program."""


class DataError(SymgradError, ValueError):
    """Values given to a program do not fit its leaves.

    rows: of the data, those of the batch at which a run of training stopped.
    """

    rows: tuple[int, ...] = ()


class DataShapeError(DataError, ShapeError):
    """An array's shape does not fit its leaf, or two arrays do not fit each other."""


class DataTypeError(DataError, DTypeError):
    """An array's dtype does not fit its leaf."""
