"""Two accesses of one place that nothing orders: a race, whoever runs the threads."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Visit:
    """One access: by which block, by which of its threads (None: all), after how many barriers."""

    unit: int
    thread: int | None
    barriers: int
    kind: str


class Watch:
    """Remembers who touched what in one launch: kinds are read, write and atomic.

    Two accesses of one place, not both reads and not both atomic, must come from one thread, or
    from one block with a barrier between them.
    """

    def __init__(self) -> None:
        self.unit = -1
        self.thread: int | None = None
        self.barriers = 0
        self.visits: dict[Hashable, set[Visit]] = {}

    def begin(self) -> None:
        """The next block, or thread without a block."""
        self.unit += 1
        self.thread, self.barriers = None, 0

    def barrier(self) -> None:
        self.thread = None
        self.barriers += 1

    def touch(self, place: Hashable, kind: str) -> None:
        own = Visit(self.unit, self.thread, self.barriers, kind)
        visits = self.visits.setdefault(place, set())
        if own in visits:
            return
        for other in visits:
            if own.kind == other.kind and own.kind in ("read", "atomic"):
                continue
            assert own.unit == other.unit, f"{own} meets {other} in {place}"
            if own.barriers == other.barriers:
                assert own.thread == other.thread, f"{own} meets {other} in {place}"
        visits.add(own)
