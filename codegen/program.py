"""What calls of a compiled program need to know of it: much less than its compilation made.

The table of addresses that a program is given: the report of a bad index, leaves, constants,
results, slots of the workspace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from codegen.workspace import Layout, Slot
from symgrad.graph.dims import Dim, Shape
from symgrad.graph.dtypes import DType
from symgrad.graph.nodes import Constant, Input, Node

#: Where the value of an output is found, and its number there: among the program's results (itself,
#: or in another shape), among the leaves, among `Program.values`.
Place: TypeAlias = tuple[Literal["result", "reshaped", "leaf", "value"], int]


class Array(NamedTuple):
    """What a result is: a node of the plan, or this."""

    shape: Shape
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What the entries of a program's table are.

    Fields:
        leaves:    all that the program may be given.
        constants: that it reads.
        results:   shape and dtype of each array that it writes for the caller.
        layout:    where the slots lie.
    """

    leaves: tuple[Input, ...]
    constants: tuple[Constant, ...]
    results: tuple[Node | Array, ...]
    layout: Layout

    @property
    def first_result(self) -> int:
        """The entry of result 0."""
        return 1 + len(self.leaves) + len(self.constants)

    @property
    def first_slot(self) -> int:
        """The entry of slot 0."""
        return self.first_result + len(self.results)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What the last entries point to."""
        return self.layout.slots

    @property
    def length(self) -> int:
        """How many entries there are."""
        return self.first_slot + len(self.slots)

    def slot_offsets(self, dims: Mapping[Dim, int]) -> tuple[tuple[int, ...], int]:
        """Byte offsets of the slots, and the size of the workspace."""
        placed = self.layout.place(dims)
        return placed.offsets, placed.total


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A compiled program without its code.

    Fields:
        table:  what it is given.
        places: of each output.
        values: of the outputs that are constants.
    """

    table: Table
    places: tuple[Place, ...]
    values: tuple[Constant, ...]
