"""What lies where in a laid out picture: titles, lines of text and boxes keep clear."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import symgrad as sg
from symgrad.diagram.drawing import draw
from symgrad.graph.nodes import Node

SVG = "{http://www.w3.org/2000/svg}"
B, T = sg.dim("B"), sg.dim("T")


def parts(svg: str, kind: str) -> list[ElementTree.Element]:
    return [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class") == kind]


def texts(part: ElementTree.Element) -> list[tuple[str, float, float, float]]:
    """Visible text, x of its beginning, y of its base line, size."""
    found = [t for t in part.iter(f"{SVG}text") if (t.text or "").strip()]
    return [
        (t.text or "", float(t.get("x", "")), float(t.get("y", "")), float(t.get("font-size", "")))
        for t in found
    ]


def curves(svg: str) -> list[np.ndarray]:
    """Points on the Bezier curves of all edges."""
    s = np.linspace(0, 1, 40)[:, None]
    found = []
    for path in (p for g in parts(svg, "edge") for p in g.iter(f"{SVG}path")):
        at = np.array(re.findall(r"-?[\d.]+", path.get("d", "")), float).reshape(-1, 2)
        for k in range(0, len(at) - 3, 3):
            a, b, c, d = at[k : k + 4]
            found.append(
                (1 - s) ** 3 * a + 3 * (1 - s) ** 2 * s * b + 3 * (1 - s) * s**2 * c + s**3 * d
            )
    return found


def crossed_titles(svg: str) -> list[str]:
    lines = np.concatenate(curves(svg))
    crossed = []
    for text, x, y, size in (t for g in parts(svg, "cluster") for t in texts(g)):
        across = (lines[:, 0] > x) & (lines[:, 0] < x + 0.5 * size * len(text))
        if (across & (lines[:, 1] > y - 0.7 * size) & (lines[:, 1] < y)).any():
            crossed.append(text)
    return crossed


def network(sizes: tuple[int, ...]) -> tuple[Node, list[Node]]:
    x, y = sg.input("x", (B, sizes[0])), sg.input("y", (B,), dtype="int32")
    hidden, leaves = x, []
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        w, b = sg.parameter(f"W{k}", (before, after)), sg.parameter(f"b{k}", (after,))
        leaves += [w, b]
        hidden = (sg.tanh(hidden) if k else hidden) @ w + b
    return sg.cross_entropy(hidden, y).mean(), leaves


def looked_up() -> tuple[Node, list[Node]]:
    word, tag = sg.input("word", (B,), dtype="int32"), sg.input("tag", (B,), dtype="int32")
    w = sg.parameter("W", (53, 8))
    return sg.cross_entropy(sg.one_hot(word, 53) @ w, tag).sum(), [w]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "made",
    [network((3, 5, 2)), network((4, 5, 6, 7, 3)), looked_up()],
    ids=["two layers", "four layers", "one-hot"],
)
def test_no_edge_crosses_the_title_of_a_layer(made, backward: bool) -> None:
    loss, leaves = made
    svg = draw(loss, wrt=leaves if backward else None).svg
    assert len(parts(svg, "cluster")) >= 2
    assert crossed_titles(svg) == []


def test_the_second_line_keeps_clear_of_descenders() -> None:
    """A descender reaches 0.25 of the size below its line, a capital 0.75 above."""
    svg = draw((sg.input("y", (B,)) * sg.parameter("gap", (B,))).sum()).svg
    pairs = [texts(g) for g in parts(svg, "node") if len(texts(g)) == 2]
    assert {"y", "gap"} <= {above[0] for above, _ in pairs}
    for (_, _, upper, large), (_, _, lower, small) in pairs:
        assert lower - 0.75 * small > upper + 0.25 * large


def test_steps_left_out_have_a_box_around_their_text() -> None:
    x = sg.input("x", (T, B, 3))
    last, _ = sg.scan(lambda c, x: (sg.tanh(c + x), ()), sg.zeros((B, 3)), x)
    svg = draw(last, level="unrolled").svg
    (left_out,) = [g for g in parts(svg, "node") if any(t[0] == "⋯" for t in texts(g))]
    outline = next(left_out.iter(f"{SVG}path")).get("d", "")
    across = np.array(re.findall(r"-?[\d.]+", outline), float)[::2]
    ((text, begin, _, size),) = [t for t in texts(left_out) if t[0] != "⋯"]
    assert across.min() + 4 < begin and begin + 0.5 * size * len(text) < across.max() - 4


def test_the_legend_stays_together_over_a_wide_bar() -> None:
    loss, leaves = network((3, 5, 2))
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=(7, 3)), "y": rng.integers(0, 2, 7)}
    svg = draw(loss, wrt=leaves, flow=sg.gradient_flow(loss, leaves, values)).svg
    place = {t[0]: t[1] for g in parts(svg, "graph") for t in texts(g)}
    assert 0 < place["parameter"] - place["input"] < 80
