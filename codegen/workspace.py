"""The workspace: blocks of memory, when they are needed, and where they lie once dims are known.

A block holds one buffer, or several of one size that take turns, or all the memory of a recurrence.
Blocks that are needed at the same time never overlap; others may, in any way. A slot is what a
program is given an address of: a block, or a part of a recurrence's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from codegen.runtime.packing import Workspace, bound, place
from symgrad.graph.dims import Dim, Extent, free_dims, same, typical_values, value

# Bytes to which blocks are aligned, and which they have at least: one cache line.
ALIGNMENT = 64
# Layouts that are remembered, since dims come and go: batches of sentences have many lengths.
REMEMBERED = 256

Span: TypeAlias = tuple[int, int]


@dataclass(slots=True, eq=False)
class Block:
    """Memory of one piece: its size in bytes, or what lies in it, and the calls that need it."""

    content: Extent | Layout
    spans: list[Span]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """What one entry of a program's table points to: a block, or a slot of what lies in it."""

    number: int
    block: int
    inside: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where slots lie: offsets and sizes in bytes, and the size of the whole workspace."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    total: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The blocks of a workspace, its slots, and the dims that their sizes depend on."""

    blocks: tuple[Block, ...]
    slots: tuple[Slot, ...]
    dims: tuple[Dim, ...] = field(init=False)
    _known: dict[tuple[int, ...], Placement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", free_dims(self.extents()))

    def extents(self) -> Iterator[Extent]:
        """The sizes of all blocks, of those of recurrences too."""
        for block in self.blocks:
            if isinstance(block.content, Layout):
                yield from block.content.extents()
            else:
                yield block.content

    def place(self, dims: Mapping[Dim, int]) -> Placement:
        """Where the slots lie for these dims."""
        key = tuple(dims[d] for d in self.dims)
        found = self._known.get(key)
        if found is None:
            offsets, sizes, total = place(self.numbers(dims))
            found = Placement(tuple(offsets), tuple(sizes), total)
            while len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = found
        return found

    def bound(self, dims: Mapping[Dim, int]) -> int:
        """The most bytes that live at once, in whole cache lines; no layout can be smaller."""
        return bound(self.numbers(dims))

    def numbers(self, dims: Mapping[Dim, int]) -> Workspace:
        """The blocks and slots in numbers."""
        blocks = [
            (
                block.content.numbers(dims)
                if isinstance(block.content, Layout)
                else aligned(value(block.content, dims)),
                block.spans,
            )
            for block in self.blocks
        ]
        return blocks, [(slot.block, slot.inside) for slot in self.slots]


def aligned(count: int) -> int:
    """Bytes in whole cache lines, at least one."""
    return max(-(-count // ALIGNMENT), 1) * ALIGNMENT


def laid_out(blocks: Sequence[Block], slots: Sequence[tuple[int, int]]) -> tuple[Layout, list[int]]:
    """A layout in which few slots serve, and the slot that each of the given slots became.

    Blocks of one size become one block when they lie at one place for typical dims.

    Args:
        slots: a block, and a slot of what lies in it, for each.
    """
    first = Layout(tuple(blocks), tuple(Slot(k, *slot) for k, slot in enumerate(slots)))
    placed = first.place(typical_values(first.dims))
    merged: list[Block] = []
    at: dict[int, list[int]] = {}  # offset -> merged blocks that begin there
    became: dict[int, int] = {}
    for (block, _), offset in zip(slots, placed.offsets, strict=True):
        if block in became:
            continue
        own = blocks[block]
        for k in at.get(offset, ()):
            if _alike(merged[k].content, own.content):
                merged[k].spans.extend(own.spans)
                became[block] = k
                break
        else:
            became[block] = len(merged)
            at.setdefault(offset, []).append(len(merged))
            merged.append(Block(own.content, list(own.spans)))
    new: dict[tuple[int, int], int] = {}
    numbers = [new.setdefault((became[block], inside), len(new)) for block, inside in slots]
    return Layout(tuple(merged), tuple(Slot(k, *slot) for slot, k in new.items())), numbers


def _alike(a: Extent | Layout, b: Extent | Layout) -> bool:
    """Whether two blocks are known to be of one size."""
    return not isinstance(a, Layout) and not isinstance(b, Layout) and same(a, b) is True
