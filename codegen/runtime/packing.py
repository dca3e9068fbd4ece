"""Where blocks lie in one workspace: blocks that are needed at the same time never overlap.

Finding the smallest workspace is NP-hard (dynamic storage allocation, Garey and Johnson 1979,
problem SR2). Blocks are placed one after the other, each into the smallest gap that fits between
those in place that it meets in time (best fit); orders by size, by size and time, and by time are
tried, and the smallest workspace is taken. Saved programs hold this file's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

# The calls, (first, last), that need a block.
Spans: TypeAlias = Sequence[tuple[int, int]]
# A workspace this near to the least that can be is not improved any more; so many exchanges of
# two blocks are tried for one that is not, fewer where there are many blocks.
NEAR, TRIES = 1.05, 200
# A workspace in numbers: blocks, each with its size in bytes or the workspace that lies in it, and
# its spans; and slots, each a block and a slot of what lies in it.
Workspace: TypeAlias = tuple[Sequence[tuple[Any, Spans]], Sequence[tuple[int, int]]]


def place(workspace: Workspace) -> tuple[list[int], list[int], int]:
    """Offsets and sizes of the slots of a workspace, and its size, all in bytes.

    >>> blocks = [(128, [(0, 1)]), (64, [(1, 2)]), (192, [(2, 3)])]
    >>> place((blocks, [(0, 0), (1, 0), (2, 0)]))
    ([0, 192, 0], [128, 64, 192], 256)
    """
    blocks, slots = workspace
    inner = {k: place(b[0]) for k, b in enumerate(blocks) if not isinstance(b[0], int)}
    sizes = [inner[k][2] if k in inner else block[0] for k, block in enumerate(blocks)]
    offsets, total = pack(sizes, [spans for _, spans in blocks])
    where: list[int] = []
    widths: list[int] = []
    for block, k in slots:
        where.append(offsets[block] + (inner[block][0][k] if block in inner else 0))
        widths.append(inner[block][1][k] if block in inner else sizes[block])
    return where, widths, total


def bound(workspace: Workspace) -> int:
    """The most bytes that are needed at once: no workspace can be smaller."""
    blocks, _ = workspace
    sizes = [content if isinstance(content, int) else bound(content) for content, _ in blocks]
    return most_live(sizes, [spans for _, spans in blocks])


def most_live(sizes: Sequence[int], spans: Sequence[Spans]) -> int:
    """The largest sum of the sizes of blocks that one call needs."""
    end = max((last for own in spans for _, last in own), default=-1) + 2
    change = np.zeros(end, np.int64)
    for size, own in zip(sizes, spans, strict=True):
        for first, last in own:
            change[first] += size
            change[last + 1] -= size
    return int(change.cumsum().max(initial=0))


def pack(sizes: Sequence[int], spans: Sequence[Spans]) -> tuple[list[int], int]:
    """An offset for each block, and the end of the last one."""
    least = most_live(sizes, spans)
    long = [sum(last - first + 1 for first, last in own) for own in spans]
    keys = (
        lambda k: (-sizes[k], -long[k], spans[k]),
        lambda k: (spans[k], -sizes[k]),
        lambda k: (-sizes[k] * long[k], spans[k]),
        lambda k: (-long[k], -sizes[k], spans[k]),
        lambda k: (-spans[k][-1][1], -sizes[k]),
    )
    best: tuple[int, list[int], list[int]] | None = None
    for key in keys:
        order = sorted(range(len(sizes)), key=key)
        offsets, end = fitted(order, sizes, spans)
        if best is None or end < best[0]:
            best = end, order, offsets
        if end <= least:
            break
    assert best is not None
    draws = np.random.default_rng(0)
    for _ in range(min(TRIES, TRIES * 64 // max(len(sizes), 1))):
        if best[0] <= NEAR * least:
            break
        order = list(best[1])
        a, b = (int(k) for k in draws.integers(len(order), size=2))
        order[a], order[b] = order[b], order[a]
        offsets, end = fitted(order, sizes, spans)
        if end <= best[0]:
            best = end, order, offsets
    return best[2], best[0]


def fitted(
    order: Sequence[int], sizes: Sequence[int], spans: Sequence[Spans]
) -> tuple[list[int], int]:
    """Offsets when blocks are placed in this order, each into the smallest gap that fits."""
    count = sum(map(len, spans))
    first, last, low, high = (np.zeros(count, np.int64) for _ in range(4))
    done = 0
    offsets, end = [0] * len(sizes), 0
    for k in order:
        meets = np.zeros(done, bool)
        for a, b in spans[k]:
            meets |= (first[:done] <= b) & (last[:done] >= a)
        begins, stops = low[:done][meets], high[:done][meets]
        along = np.lexsort((stops, begins))
        tops = np.maximum.accumulate(np.append(0, stops[along]))  # of those before each gap
        free = begins[along] - tops[:-1]
        fits = np.flatnonzero(free >= sizes[k])
        offsets[k] = int(tops[fits[free[fits].argmin()]] if len(fits) else tops[-1])
        end = max(end, offsets[k] + sizes[k])
        for a, b in spans[k]:
            first[done], last[done] = a, b
            low[done], high[done] = offsets[k], offsets[k] + sizes[k]
            done += 1
    return offsets, end
