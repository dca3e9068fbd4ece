"""Launches run by Python in random order, each access checked: what `codegen/spreading.py` claims.

Each thread or block of a launch runs for itself, in an order drawn by chance; within a block the
loops that its threads share run in random order too, in parts with accumulators of their own. Every
access is remembered, so that races are found (`tests/races.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from codegen import loop_ir as ir
from codegen.launches import Accumulate, Cooperate, Launch, Loop, Product, Spread, walk
from codegen.spreading import spread
from symgrad.graph.dims import Dim, value
from tests.ir_interpreter import ARITHMETIC, Translator, Typed, made
from tests.races import Watch


class Watched:
    """Memory whose accesses are remembered."""

    def __init__(self, memory: Typed, watch: Watch) -> None:
        self.memory, self.watch = memory, watch

    def load(self, place: int) -> Any:
        self.watch.touch((self.memory.block.address, place), "read")
        return self.memory.load(place)

    def store(self, place: int, item: Any) -> None:
        self.watch.touch((self.memory.block.address, place), "write")
        self.memory.store(place, item)

    def add(self, place: int, item: Any) -> None:
        self.watch.touch((self.memory.block.address, place), "atomic")
        self.memory.store(place, self.memory.dtype.type(self.memory.load(place) + item))


class LaunchTranslator(Translator):
    """The body of a launch as Python."""

    def __init__(self, dims: Mapping[Dim, int], blocks: bool) -> None:
        super().__init__(dims)
        self.blocks = blocks
        self.shared = False

    def block(self, body: Sequence[Spread], depth: int) -> None:  # type: ignore[override]
        pad = "    " * depth
        for s in body:
            if isinstance(s, Cooperate):
                self.cooperate(s, depth)
            elif isinstance(s, (Accumulate, ir.Store)):
                uniform = self.blocks and not self.shared
                barrier = [f"{pad}watch.barrier()"] if uniform else []
                self.lines += barrier
                if isinstance(s, ir.Store):
                    super().block((s,), depth)
                else:
                    self.lines.append(pad + self.accumulate(s))
                self.lines += barrier
            else:
                super().block((s,), depth)  # type: ignore[arg-type]

    def accumulate(self, s: Accumulate) -> str:
        name, place = s.buffer.name, self.affine(s.offset)
        if s.atomic:
            return f"{name}.add({place}, {s.value})"
        new = self.merged(s.operation, f"{name}.load({place})", s.value)
        return f"{name}.store({place}, T.{s.buffer.dtype.name}({new}))"

    def merged(self, operation: str, a: str, b: str) -> str:
        if operation in ARITHMETIC:
            return ARITHMETIC[operation].format(a, b)
        return f"F[{operation!r}]({a}, {b})"

    def cooperate(self, s: Cooperate, depth: int) -> None:
        pad = "    " * depth
        for t in s.totals:
            self.lines.append(f"{pad}start_{t.name} = whole_{t.name} = {t.name}")
        self.lines.append(f"{pad}for part in parts({self.extents(s.loops)}):")
        self.lines += [f"{pad}    {t.name} = start_{t.name}" for t in s.totals]
        self.lines.append(f"{pad}    for watch.thread, ({self.variables(s.loops)}) in part:")
        self.shared = True
        self.block(s.body, depth + 2)
        self.shared = False
        for t in s.totals:
            new = self.merged(t.operation, f"whole_{t.name}", t.name)
            self.lines.append(f"{pad}    whole_{t.name} = T.{t.dtype.name}({new})")
        self.lines += [f"{pad}{t.name} = whole_{t.name}" for t in s.totals]
        self.lines.append(f"{pad}watch.thread = None")
        if s.totals or any(isinstance(t, (ir.Store, Accumulate)) for t in walk(s.body)):
            self.lines.append(f"{pad}watch.barrier()")

    def extents(self, loops: Sequence[Loop]) -> str:
        return f"[{', '.join(str(value(e, self.dims)) for _, e in loops)}]"

    def variables(self, loops: Sequence[Loop]) -> str:
        return "".join(f"{v}, " for v, _ in loops)


def launched(kernel: ir.Kernel, dims: Mapping[Dim, int]) -> Any:
    """A kernel as a function of its buffers and the report: its launches, one after the other."""
    launches = [_launch(kernel, launch, dims) for launch in spread(kernel)]

    def run(buffers: Mapping[str, Typed], report: Any) -> None:
        for launch, plain in launches:
            watch = Watch()
            given = {k: b if plain else Watched(b, watch) for k, b in buffers.items()}
            launch(given, report, watch)

    return run


def _launch(
    kernel: ir.Kernel, launch: Launch | Product, dims: Mapping[Dim, int]
) -> tuple[Any, bool]:
    if isinstance(launch, Product):
        body: tuple[ir.Statement, ...] = (launch.call,)
        for loop in reversed(launch.loops):
            body = (ir.For(*loop, body),)
        launch = Launch((), body, False)
        plain = True
    else:
        plain = False
    writer = LaunchTranslator(dims, launch.blocks)
    lines = ["def run(buffers, report, watch):"]
    lines += [f"    {b.name} = buffers[{b.name!r}]" for b in kernel.buffers]
    extents, variables = writer.extents(launch.loops), writer.variables(launch.loops)
    lines.append(f"    for _, ({variables}) in indices({extents}):")
    lines.append("        watch.begin()")
    writer.block(launch.body, 2)
    return made([*lines, *writer.lines], writer, indices=_indices, parts=_parts), plain


_rng = np.random.default_rng(0)


def _indices(extents: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """All index tuples, numbered, in random order."""
    found = list(enumerate(product(*(range(e) for e in extents))))
    _rng.shuffle(found)  # type: ignore[arg-type]
    return found


def _parts(extents: Sequence[int]) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """All index tuples in up to three parts."""
    found = _indices(extents)
    count = max(1, -(-len(found) // 3))
    for k in range(0, len(found), count):
        yield found[k : k + count]
