"""A progress bar on standard error; nothing at all where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Report(Protocol):
    """Called after every chunk with the steps done so far and a way to the latest figures."""

    def __call__(self, steps: int, text: Callable[[], str]) -> None:
        """Show them."""


@contextmanager
def progress_bar(total: int, shown: bool | None) -> Iterator[Report]:
    """A bar for `total` steps.

    Args:
        total: steps in all.
        shown: True, False, or None: only when standard error is a terminal.
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda steps, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    percent = TextColumn("{task.percentage:>3.0f}%")
    figures = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    with Progress(BarColumn(), percent, TimeRemainingColumn(), figures, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda steps, text: bar.update(task, completed=steps, description=text())
