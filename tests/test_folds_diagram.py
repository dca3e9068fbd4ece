"""Pictures of recurrences: cells with loops, steps unrolled, forward beside backward."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad.diagram.cells import in_cells
from symgrad.diagram.records import Diagram
from symgrad.graph.folds import Fold
from symgrad.graph.leaves import input, parameter
from symgrad.graph.scanning import scan
from symgrad.graph.traversal import toposort
from tests.calculus_judges import V

T = sg.dim("T")


def rnn(steps, reverse=False):
    x, W, U = input("x", (steps, 5, 3)), parameter("W", (4, 4)), parameter("U", (3, 4))

    def step(c, x):
        h = V["tanh"](c["h"] @ W + x @ U)
        return {"h": h}, h

    last, ys = scan(step, {"h": V["zeros"]((5, 4))}, x, reverse)
    return last["h"], ys, (W, U)


def labels(picture: Diagram) -> list[str]:
    return [box.label for box in picture.boxes]


def cluster_of(picture: Diagram, label: str) -> list[str]:
    (box,) = [b.id for b in picture.boxes if b.label == label]
    return [c.label for c in picture.clusters if box in c.boxes]


def edges(picture: Diagram, **wanted):
    name = {b.id: b.label for b in picture.boxes}
    return [
        (name[e.tail], name[e.head])
        for e in picture.edges
        if all(getattr(e, key) == value for key, value in wanted.items())
    ]


def test_a_recurrence_is_a_cell_with_a_loop():
    last, _, _ = rnn(T)
    picture = sg.draw(last)
    assert [c.label for c in picture.clusters] == ["t = 0 … T−1"]
    assert edges(picture, loop=True) == [("tanh", "h[t]")]
    (loop,) = [e for e in picture.edges if e.loop]
    assert loop.label == "t → t+1"
    assert ("x", "x[t]") in edges(picture) and ("tanh", "h[T]") in edges(picture)
    assert cluster_of(picture, "h[t]·W") == ["t = 0 … T−1"] and cluster_of(picture, "W") == []
    assert "T" in picture.dot and 'constraint=false' in picture.dot


def test_the_reversed_cell_counts_down():
    last, ys, _ = rnn(7, reverse=True)
    picture = sg.draw((last, ys))
    assert [c.label for c in picture.clusters] == ["t = 6 … 0"]
    assert {"h[0]", "h[t]"} <= set(labels(picture))
    assert [e.label for e in picture.edges if e.loop] == ["t → t−1"]


def test_forward_and_backward_cells_with_residuals_between_them():
    last, ys, wrt = rnn(T)
    picture = sg.draw(V["sum"](last * last) + V["sum"](ys), wrt)
    assert [c.label for c in picture.clusters] == ["t = 0 … T−1", "t = T−1 … 0"]
    half = {b.id: b.half for b in picture.boxes}
    forward, backward = ({half[b] for b in c.boxes} for c in picture.clusters)
    assert forward == {"forward"} and backward == {"backward"}
    assert ("h[t]", "h[t]") in edges(picture, kind="residual")
    assert ("x[t]", "x[t]") in edges(picture, kind="residual")
    assert {"∂L/∂W", "∂L/∂U", "∂h[t]", "∂W[t]"} <= set(labels(picture))
    loops = edges(picture, loop=True)
    assert {head for _, head in loops} == {"h[t]", "∂h[t]", "∂W[t]", "∂U[t]"}


@pytest.mark.parametrize(("steps", "titles"), [
    (3, ["t = 0", "t = 1", "t = 2"]), (6, [f"t = {k}" for k in range(6)]),
    (7, ["t = 0", "t = 1", "t = 6"]), (T, ["t = 0", "t = 1", "t = T−1"]), (1, ["t = 0"]),
])  # fmt: skip
def test_unrolled_steps(steps, titles):
    last, _, wrt = rnn(steps)
    picture = sg.draw(last, level="unrolled")
    assert [c.label for c in picture.clusters] == titles
    assert labels(picture).count("tanh") == len(titles)
    assert ("⋯" in labels(picture)) == (steps in (7, T))
    assert not any(e.loop for e in picture.edges)
    both = sg.draw(V["sum"](last), wrt, level="unrolled")
    assert [c.label for c in both.clusters] == titles
    assert both.dot.count("subgraph cluster_") >= 3 * len(titles)  # each step has both halves


def test_no_step_at_all_is_drawn_as_its_start():
    last, _, _ = rnn(0)
    assert "tanh" not in labels(sg.draw(last, level="unrolled"))


def test_a_cell_in_a_cell():
    z, w = input("z", (5, 3)), parameter("w", (3, 3))

    def outer(c, x):
        d, ys = scan(lambda d, v: ((new := V["tanh"](d @ w + v * c)), new), c * x, z)
        return d + c, V["sum"](ys, axis=0)

    last, ys = scan(outer, parameter("h0", (3,)), input("a", (T, 3)))
    picture = sg.draw((last, ys))
    inner, around = [c for c in picture.clusters if c.parent], picture.clusters[0]
    assert [c.label for c in inner] == ["s = 0 … 4"] and inner[0].parent == around.id
    assert {e.label for e in picture.edges if e.loop} == {"s → s+1", "t → t+1"}
    outside = picture.dot.index("s = 0")
    assert picture.dot.index("subgraph cluster_cell0") < outside
    unrolled = sg.draw((last, ys), level="unrolled")
    assert sum(c.label == "s = 2" for c in unrolled.clusters) == 3
    nested = sg.draw(V["sum"](last) + V["sum"](ys), w)
    assert sum(bool(c.parent) for c in nested.clusters) == 3  # forward, recomputed, backward


def test_large_bodies_and_levels():
    def deep(c, x):
        for _ in range(200):
            c = V["sin"](c + x)
        return c, ()

    last, _ = scan(deep, input("h", (3,)), input("x", (T, 3)))
    assert "fold over T" in labels(sg.draw(last))
    assert len(labels(sg.draw(last, level="nodes"))) > 400
    assert "fold over T" in labels(sg.draw(last, level="layers"))
    with pytest.raises(sg.SymgradError, match='"unrolled"'):
        sg.draw(last, level="rolled")


def test_names_of_users_are_escaped():
    x = input("x", (T, 3))
    start = {'<b>"\\N': V["zeros"](3)}
    last, _ = scan(lambda c, x: ({k: v * x for k, v in c.items()}, ()), start, x)
    picture = sg.draw(last)
    assert "&lt;b&gt;&quot;\\\\N[t]" in picture.dot
    assert "<b>" not in picture.svg


def test_gradient_flow_colours_what_leads_to_and_from_the_cells():
    last, _, wrt = rnn(T)
    loss = V["sum"](last * last)
    flow = sg.gradient_flow(loss, wrt, {"x": np.ones((6, 5, 3), "f4")})
    assert [n.name for n in flow.nodes if n.kind == "proj"] == ["carry 0"]
    picture = flow.draw()
    shown = {b.label: b.tooltip for b in picture.boxes}
    assert "magnitude" in shown["∂L/∂W"] and "magnitude" in shown["∂L/∂U"]


def test_pictures_have_no_fold_and_the_same_text_each_time():
    last, ys, _ = rnn(T)
    for unrolled in (False, True):
        drawn, cells = in_cells([last, ys], unrolled)
        assert not any(isinstance(n, Fold) for n in toposort(drawn))
        assert set(cells.home.values()) == set(cells.titles)
    assert sg.draw((last, ys)).dot == sg.draw((last, ys)).dot


def test_carries_without_a_key_are_numbered():
    x = input("x", (T, 3))
    (last, _), ys = scan(lambda c, x: ((c[0] * c[1], x), c[0]), (x[0], x[1]), x)
    assert {"carry0[t]", "carry1[t]"} <= set(labels(sg.draw([last, ys])))
    (a, _), _ = scan(lambda c, x: (x, ()), (x[0], {"h": x[1]}), (x, {"h": x}))
    names = [leaf.name for leaf in a.args[0].body.inputs]
    assert names[:4] == ["carry0", "carry1.h", "x0", "x1.h"]
