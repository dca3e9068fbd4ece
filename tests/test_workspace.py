"""The workspace against the least that it can be, and what may lie where."""

from __future__ import annotations

import importlib.util
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.pipeline import compile
from codegen.runtime.packing import bound, pack, place
from codegen.workspace import Block, Layout, laid_out
from symgrad.graph.dims import Dim, Extent
from tests.ir_interpreter import interpreted


def meet(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> bool:
    return any(f <= t and g <= e for f, e in a for g, t in b)


@pytest.mark.parametrize("seed", range(40))
def test_blocks_that_are_needed_at_one_time_lie_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, spans = [], []
    for _ in range(int(rng.integers(1, 30))):
        sizes.append(64 * int(rng.integers(1, 40)))
        ends = sorted(
            int(t)
            for t in rng.choice(25, 2 + 2 * int(rng.integers(0, 1 + seed % 2)), replace=False)
        )
        spans.append(list(zip(ends[::2], ends[1::2], strict=True)))
    offsets, total = pack(sizes, spans)
    for a, b in combinations(range(len(sizes)), 2):
        apart = offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
        assert apart or not meet(spans[a], spans[b])
    assert total == max(o + s for o, s in zip(offsets, sizes, strict=True))
    live = [
        sum(s for s, own in zip(sizes, spans, strict=True) if meet(own, [(t, t)]))
        for t in range(26)
    ]
    least = bound(([*zip(sizes, spans, strict=True)], []))
    assert least == max(live) <= total
    assert seed % 2 or total <= 1.2 * least  # a jumble, harder than the lifetimes of a program


def test_the_memory_of_a_recurrence_is_one_block() -> None:
    inner = ([(128, [(0, 1)]), (64, [(1, 2)]), (128, [(2, 3)])], [(0, 0), (1, 0), (2, 0)])
    outer = ([(640, [(0, 0)]), (inner, [(1, 1)])], [(1, 2), (0, 0), (1, 1), (1, 0)])
    offsets, sizes, total = place(outer)
    assert (total, bound(outer)) == (640, 640) and sizes == [128, 640, 64, 128]
    third, _, second, first = offsets
    assert third == first and {second, first} in ({0, 128}, {0, 64})


def test_extents_decide_where_blocks_lie_when_they_are_known() -> None:
    n = Dim("n")
    blocks = [Block(4 * n, [(0, 1)]), Block(1024, [(1, 2)]), Block(4 * n, [(2, 3)])]
    layout, slots = laid_out(blocks, [(0, 0), (1, 0), (2, 0)])
    assert slots == [0, 1, 0] and len(layout.blocks) == 2
    for extent, wide in ((1, 64), (100, 448), (1000, 4032)):
        assert layout.place({n: extent}).total == layout.bound({n: extent}) == wide + 1024


LAYERS = {
    "small": (64, 32, 10),
    "mid": (64, 256, 256, 10),
    "large": (784, 1024, 1024, 10),
    "deep": (64,) * 10 + (10,),
    "deep and uneven": (*(16 * (1 + 7 * k % 9) for k in range(20)), 10),
}


def network(layers: tuple[int, ...], rows: Extent) -> tuple[Any, list[Any]]:
    x, y = sg.input("x", (rows, layers[0])), sg.input("y", (rows,), dtype="int32")
    weights, h = [], x
    for k, (a, b) in enumerate(pairwise(layers)):
        weights += [sg.parameter(f"W{k}", (a, b)), sg.parameter(f"b{k}", (b,))]
        h = h @ weights[-2] + weights[-1]
        h = sg.relu(h) if k < len(layers) - 2 else h
    return sg.cross_entropy(h, y).mean(), weights


def trained(loss: Any, weights: list[Any], optimizer: Any) -> Layout:
    with interpreted():
        f = compile(loss, updates=optimizer.updates(weights, sg.grad(loss, weights)))
    return f.stages.plan.layout


@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_needs_little_more_than_what_lives(name: str) -> None:
    B = Dim("B")
    for optimizer in (sg.optim.sgd(0.1), sg.optim.adam(0.1)):
        fixed = trained(*network(LAYERS[name], 256), optimizer)
        assert fixed.place({}).total <= 1.1 * fixed.bound({})
        layout = trained(*network(LAYERS[name], B), optimizer)
        for rows in (7, 256):
            assert layout.place({B: rows}).total <= 1.1 * layout.bound({B: rows})
    # the activations of all layers live where the backward pass begins
    activations = sum(4 * 256 * width for width in LAYERS[name][1:-1])
    assert fixed.bound({}) >= activations


def test_attention_and_a_recurrent_cell_need_little_more_than_what_lives() -> None:
    T, d = 24, 40
    x = sg.input("x", (5, T, d))
    weights = [sg.parameter(f"W{k}", (d, d)) for k in range(4)]
    q, k, v = (x @ w for w in weights[:3])
    heads = sg.softmax(q @ sg.swapaxes(k, -1, -2) / np.sqrt(d), axis=-1) @ v
    loss = ((x + heads @ weights[3]) ** 2).mean()
    layout = trained(loss, weights, sg.optim.adam(0.1))
    assert 4 * 5 * T * d * 4 <= layout.bound({}) <= layout.place({}).total <= 1.1 * layout.bound({})

    U, V = sg.parameter("U", (d, 3 * d)), sg.parameter("V", (d, 3 * d))

    def step(h: Any, row: Any) -> Any:
        z = row @ U + h @ V
        gate, other = sg.sigmoid(z[:, :d]), sg.sigmoid(z[:, d : 2 * d])
        h = gate * h + (1 - gate) * sg.tanh(other * z[:, 2 * d :])
        return h, h

    last, _ = sg.scan(step, sg.zeros((5, d)), sg.swapaxes(x, 0, 1))
    layout = trained((last * last).mean(), [U, V], sg.optim.sgd(0.1))
    assert any(isinstance(block.content, Layout) for block in layout.blocks)
    assert layout.bound({}) <= layout.place({}).total <= 1.1 * layout.bound({})


def test_a_saved_recurrence_finds_its_memory(tmp_path: Path) -> None:
    T, B = Dim("T"), Dim("B")
    x, W = sg.input("x", (T, B, 3)), sg.parameter("W", (3, 3))

    def step(h: Any, row: Any) -> Any:
        z = sg.softmax(h @ W + row) @ W
        return sg.cumsum(z, 0) @ W, z

    f = sg.compile(sg.scan(step, sg.zeros((B, 3)), x))
    f.save(tmp_path / "kernels.py")
    generator = np.random.default_rng(0)
    values = {"x": generator.normal(size=(4, 5, 3)), "W": generator.normal(size=(3, 3))}
    values = {name: array.astype(np.float32) for name, array in values.items()}
    spec = importlib.util.spec_from_file_location("saved_kernels", tmp_path / "kernels.py")
    assert spec is not None and spec.loader is not None
    saved = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(saved)
    order = [{"T": 4, "B": 5}[name] for name in saved.EXTENTS]
    for got, wanted in zip(saved.run(values, order), f(**values), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
