"""Recurrences whose derivatives have a budget of memory: `sg.scan(..., checkpoint="64 MB")`."""

from __future__ import annotations

import numpy as np
import pytest

import symgrad as sg
from symgrad import nn
from symgrad.graph.checkpoints import BudgetedChunk, as_bytes, exact_size, size_text
from symgrad.graph.dims import quotient_of, roots, value
from symgrad.graph.errors import DataShapeError, SymgradError
from tests.calculus_judges import real
from tests.test_scan_checkpoints import judged, symbolic

T, B = sg.dim("T"), sg.dim("B")


def lengths_chosen(f):
    """What the last call of a program chose."""
    return list(f.stages.chunks.last.values())


def drawn(steps, rows=4):
    rng = np.random.default_rng(steps)
    return {"x": rng.normal(size=(steps, rows, 3)), "h": rng.normal(size=(rows, 2)),
            "w": rng.normal(size=(2, 2)), "u": rng.normal(size=(3, 2))}  # fmt: skip


def test_derivatives_are_those_without_a_budget_at_any_length():
    """Forward and reversed; the gradient of gradients too; pieces from one to many."""
    leaves = symbolic()
    plain = [*judged(*leaves), *judged(*leaves, reverse=True)]
    f = sg.compile([*judged(*leaves, checkpoint="20 kB"),
                    *judged(*leaves, reverse=True, checkpoint="20 kB")])  # fmt: skip
    pieces = []
    for steps in (0, 1, 2, 7, 16, 50, 120):
        values = drawn(steps)
        for a, b in zip(f(**values), sg.evaluate(plain, values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
        (chosen,) = lengths_chosen(f)  # both directions share the budget
        assert chosen.kept <= chosen.budget == 20_000 and chosen.steps == steps
        assert chosen.chunks == steps // chosen.length
        pieces.append(chosen.chunks + 1)
    assert pieces[:5] == [1] * 5 and pieces[-1] > pieces[-2] > 1


def test_evaluating_keeps_nothing():
    leaves = [real("x", 7, 4, 3), real("h", 4, 2), real("w", 2, 2), real("u", 3, 2)]
    values = drawn(7)
    made = sg.evaluate(judged(*leaves, checkpoint="1 B"), values)
    for a, b in zip(made, sg.evaluate(judged(*leaves), values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def lstm(checkpoint, steps=T, rows=3, units=8, **options):
    x = sg.input("x", (steps, rows, 5))
    W, U = sg.parameter("W", (5, 4 * units)), sg.parameter("U", (units, 4 * units), init=0.1)

    def step(carry, now):
        h, c = carry
        i, f, g, o = sg.split(now @ W + h @ U, 4, axis=1)
        c = sg.sigmoid(f) * c + sg.sigmoid(i) * sg.tanh(g)
        h = sg.sigmoid(o) * sg.tanh(c)
        return (h, c), ()

    start = sg.zeros((rows, units))
    (h, _), _ = sg.scan(step, (start, start), x, checkpoint=checkpoint)
    return sg.compile([h.sum(), *sg.grad(h.sum(), [W, U])], **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_plan_keeps_stays_within_the_budget(threads):
    """At T = 100,000 the workspace is the budget and copies of the data at most."""
    f = lstm("2 MB", threads=threads)
    layouts = [f.stages.plan.layout, *([f.stages.team.plan.layout] if threads > 1 else [])]
    for steps in (10, 1000, 30_000, 100_000):
        dims = f.stages.chunks.settled({T: steps})
        (chosen,) = lengths_chosen(f)
        data = 4 * steps * 3 * 5
        assert all(layout.place(dims).total <= 2_000_000 + data + 20_000 for layout in layouts)
        assert chosen.kept <= 2_000_000 and (chosen.whole > 2_000_000) == (chosen.chunks > 0)
    assert chosen.kept > 0.7 * 2_000_000 and 50 * chosen.kept < chosen.whole


def test_as_few_steps_are_computed_again_as_the_budget_allows():
    f = lstm("300 kB")
    f.stages.chunks.settled({T: 1000})
    (chosen,) = lengths_chosen(f)
    (wide,) = (d for d in f.dims if isinstance(d, BudgetedChunk))
    whole = f.stages.chunks
    roomier = lstm("400 kB").stages.chunks
    roomier.settled({T: 1000})
    (more,) = roomier.last.values()
    assert more.length > chosen.length and more.chunks < chosen.chunks
    assert chosen.length == 1000 // (chosen.chunks + 1) + 1  # equal pieces
    assert whole.settled({T: 3})[wide] == 4  # one piece


def test_the_least_that_an_error_tells_is_enough():
    f = lstm("9 kB")
    with pytest.raises(DataShapeError) as caught:
        f(x=np.zeros((500, 3, 5)))
    text = str(caught.value)
    assert text.startswith('scan: checkpoint="9 kB" is less than the derivatives of 500 steps need')
    assert "test_scan_budget.py" in text and "T = 500" in text and "The least is" in text
    least = text.rsplit('checkpoint="', 1)[1].split('"')[0]
    again = lstm(least)
    again(x=np.zeros((500, 3, 5)))
    (chosen,) = lengths_chosen(again)
    assert as_bytes(least) - 1000 < chosen.kept <= as_bytes(least)
    with pytest.raises(DataShapeError, match="is less than"):
        lstm(f"{chosen.kept * 19 // 20} B")(x=np.zeros((500, 3, 5)))
    f(x=np.zeros((2, 3, 5)))  # what fits still runs


def test_a_budget_that_cannot_be_met_is_known_when_all_extents_are_numbers():
    with pytest.raises(DataShapeError, match=r"(?s)500 steps need.*The least is"):
        lstm("9 kB", steps=500)
    f = lstm("60 kB", steps=500)
    values = np.random.default_rng(0).normal(size=(500, 3, 5))
    wanted = lstm(None, steps=500)(x=values)
    for a, b in zip(f(x=values), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    assert lengths_chosen(f)[0].chunks > 0


def test_the_stages_say_that_and_why():
    f = lstm("60 kB")
    assert "chunks of chunk(T, 60 kB): as long as 60 kB allow, chosen when" in str(f.stages)
    f(x=np.zeros((500, 3, 5)))
    text = str(f.stages)
    assert "last call: 500 steps in chunks of" in text and "of 60 kB" in text
    assert "test_scan_budget.py" in text
    f(x=np.zeros((5, 3, 5)))
    assert "5 steps in one piece, nothing computed again" in str(f.stages)
    assert "T//9 chunks of 9: their derivatives keep the carry" in str(lstm(9).stages)
    assert "checkpoints  " not in str(lstm(None).stages)


def test_layers_hand_a_budget_on_and_share_it():
    x = sg.input("x", (B, T, 3))
    model = nn.Stacked([nn.Bidirectional(nn.GRU(5)), nn.LSTM(4)], name="deep")
    ys, _ = model.run(x, checkpoint="40 kB")
    plain, _ = model.run(x)
    parameters = sg.parameters(ys)
    assert len({d for d in sg.compile(ys).dims if isinstance(d, BudgetedChunk)}) == 1
    f = sg.compile(sg.grad((ys * ys).sum(), parameters))
    g = sg.compile(sg.grad((plain * plain).sum(), parameters))
    for steps in (4, 60):
        values = np.random.default_rng(0).normal(size=(2, steps, 3))
        for a, b in zip(f(x=values), g(x=values), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert lengths_chosen(f)[0].chunks > 0


def test_a_trainer_chooses_for_whole_batches_and_for_the_last_one():
    x, y = sg.input("x", (B, T, 3)), sg.input("y", (B,))

    def trained(checkpoint):
        ys, _ = nn.LSTM(4, name="cell").run(x, checkpoint=checkpoint)
        loss = sg.mse(ys[:, -1].sum(axis=1), y).mean()
        trainer = sg.Trainer(loss, optimizer=sg.optim.sgd(0.1), seed=1)
        rng = np.random.default_rng(0)
        data = {"x": rng.normal(size=(11, 40, 3)), "y": rng.normal(size=11)}
        trainer.fit(data, epochs=3, batch_size=4, progress=False)
        return trainer

    lean, plain = trained("30 kB"), trained(None)
    for name, array in plain.parameters.items():
        np.testing.assert_allclose(lean.parameters[name], array, rtol=1e-4, atol=1e-5)
    assert lengths_chosen(lean.program)[0].chunks > 0


def test_sizes():
    assert [as_bytes(t) for t in ("64 MB", "64mb", "1 KiB", "0.5 GB", "7B", " 2 TiB ")] == [
        64_000_000, 64_000_000, 1024, 500_000_000, 7, 2 << 40,
    ]  # fmt: skip
    assert [as_bytes(t) for t in ("64", "MB", "-1 MB", "1e3 MB", "1 iB", "1 PB", "٣ MB")] == [
        None] * 7  # fmt: skip
    assert exact_size(1_500_000_000) == "1500 MB" and exact_size(1001) == "1001 B"
    assert size_text(999_999) == "1e+03 kB" or size_text(999_999) == "1000 kB"
    chunk = BudgetedChunk(T, 64_000_000)
    assert str(chunk) == "chunk(T, 64 MB)" and roots(chunk) == (T,)
    assert chunk == BudgetedChunk(T, as_bytes("64 MB")) and chunk != BudgetedChunk(T, 64_000_001)
    assert value(quotient_of(T, chunk), {T: 9}) == 0
    assert value(quotient_of(T, chunk), {T: 9, chunk: 4}) == 2


@pytest.mark.parametrize("wrong", ["64", "0 MB", "0.1 B", "64 MX", "MB", "-3 MB", "sqr"])
def test_what_no_budget_can_be(wrong):
    with pytest.raises(SymgradError, match=r'checkpoint=.*budget of memory as text, "64 MB"'):
        sg.scan(lambda c, x: (c, ()), sg.constant(0.0), sg.ones((3,)), checkpoint=wrong)
