"""Rows of different extents: training against each row alone, orders, streams, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph.errors import DataError, DataShapeError, DTypeError, LeafError, ShapeError
from symgrad.train.driver import Run
from symgrad.train.orders import STRETCH, RaggedOrders
from tests.test_train_driver import row_order

B, T = sg.dim("B"), sg.dim("T")
LENGTHS = [4, 1, 0, 7, 2, 4, 9, 1, 3, 7, 0, 5, 2, 8, 4, 1, 6]  # 17 rows
N, BATCH, RATE = len(LENGTHS), 5, 0.2


def made_data(lengths: list[int] = LENGTHS) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {
        "x": [rng.standard_normal((n, 2)) for n in lengths],
        "y": [rng.integers(0, 3, n).tolist() for n in lengths],
        "n": lengths,
    }


class Tagger:
    """A small recurrent tagger whose loss and metric are means over the steps that there are."""

    def __init__(self) -> None:
        self.x, self.y = sg.input("x", (B, T, 2), "float64"), sg.input("y", (B, T), "int32")
        self.n = n = sg.input("n", (B,), "int32")
        ys, _ = sg.nn.RNN(3, name="rnn").run(self.x, lengths=n)
        self.z = sg.nn.Dense(3, name="out")(ys)
        self.losses = sg.nn.sequence_cross_entropy(self.z, self.y, n)
        self.tags = sg.argmax(self.z, -1)
        self.right = (self.tags == self.y) & sg.nn.sequence_mask(n, T)
        steps = sg.maximum(n.sum(), 1)
        self.loss = self.losses.sum() / steps
        self.metrics = {"right": self.right.sum() / steps.astype("float64")}

    def trainer(self, **options: Any) -> sg.Trainer:
        options = {"optimizer": sg.optim.sgd(RATE), "metrics": self.metrics, "seed": 3} | options
        return sg.Trainer(self.loss, weight=self.n, **options)


def order_by_size(sizes: list[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The reference: batches of an epoch, in plain Python."""
    n = len(sizes)
    place = {row: k for k, row in enumerate(row_order(seed, epoch, n))}
    stretched = [(sizes[k] + 1) * (1 + STRETCH * (place[k] / n)) for k in range(n)]
    rows = sorted(range(n), key=lambda k: (stretched[k], k))
    whole, rest = divmod(n, batch)
    turns = row_order(~seed % 2**64, epoch, whole + 1)
    first = turns.index(whole) * batch
    partial = rows[first : first + rest]
    others = rows[:first] + rows[first + rest :]
    batches = [others[k * batch : (k + 1) * batch] for k in turns if k < whole]
    return [*batches, partial] if rest else batches


def each_row_alone(tagger: Tagger) -> Callable[..., list[np.ndarray]]:
    """Sums of losses, of right answers, and gradients, of one row without any padding."""
    total = tagger.losses.sum()
    return sg.compile([total, tagger.right.sum(), *sg.grad(total, sg.parameters(total))])


def by_hand(
    data: dict[str, Any], weights: dict[str, np.ndarray], epochs: list[list[list[int]]],
    clip: float | None = None,
) -> list[list[float]]:
    """Train the weights in place, row by row; loss, right answers and gradient norm per epoch."""
    tagger = Tagger()
    names = [p.name for p in sg.parameters(tagger.loss)]
    alone, figures = each_row_alone(tagger), []
    for batches in epochs:
        sums = np.zeros(3)
        for rows in batches:
            steps = max(sum(data["n"][k] for k in rows), 1)
            parts = [
                alone(x=data["x"][k][None], y=np.array([data["y"][k]], np.int32).reshape(1, -1),
                      n=[data["n"][k]], **weights)
                for k in rows
            ]  # fmt: skip
            loss, right, *gradients = (sum(column) / steps for column in zip(*parts, strict=True))
            norm = np.sqrt(sum((g**2).sum() for g in gradients))
            weight = sum(data["n"][k] for k in rows)
            sums += weight * np.array([loss, right, norm])
            for name, g in zip(names, gradients, strict=True):
                scale = 1.0 if clip is None else clip / max(norm, clip)
                weights[name] = weights[name] - RATE * scale * g
        figures.append((sums / sum(data["n"])).tolist())
    return figures


# -- training ----------------------------------------------------------------------------------
@pytest.mark.parametrize("clip", [None, 0.3])
def test_against_each_row_alone(clip: float | None) -> None:
    data, trainer = made_data(), Tagger().trainer(clip_norm=clip)
    weights = trainer.parameters
    epochs = [order_by_size(LENGTHS, BATCH, 3, epoch) for epoch in range(4)]
    history = trainer.fit(data, 3, BATCH)
    again = trainer.fit(data, 1, BATCH)
    figures = by_hand(data, weights, epochs, clip)
    for name, value in trainer.parameters.items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-9, atol=1e-12, err_msg=name)
    records = [*history.records, *again.records]
    found = [[r.loss, r.metrics["right"], r.gradient_norm] for r in records]
    np.testing.assert_allclose(found, figures, rtol=1e-6)  # the metric is a float32 of its batch
    assert {r.rows for r in records} == {N} and {r.steps for r in records} == {4}


def test_rows_as_they_stand() -> None:
    data, trainer = made_data(), Tagger().trainer()
    weights = trainer.parameters
    rows = list(range(N))
    batches = [rows[k : k + BATCH] for k in range(0, N, BATCH)]
    trainer.fit(data, 2, BATCH, shuffle=False)
    by_hand(data, weights, [batches] * 2)
    for name, value in trainer.parameters.items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, results = [3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 2, 2, 2], []
    for steps in (1, 2, 1000):
        monkeypatch.setattr(Run, "_affordable", lambda self, steps=steps: steps)
        trainer = Tagger().trainer()
        history = trainer.fit(made_data(lengths), 3, 2)
        results.append((history.loss, {k: v.tobytes() for k, v in trainer.state.items()}))
    assert results[0] == results[1] == results[2]


def test_rows_of_one_extent_are_an_array() -> None:
    lists = made_data([4] * 12)
    arrays = {name: np.array(rows) for name, rows in lists.items()}
    trainers = [Tagger().trainer(), Tagger().trainer()]
    for trainer, data in zip(trainers, (lists, arrays), strict=True):
        trainer.fit(data, 2, BATCH)
    for name, value in trainers[0].state.items():
        assert value.tobytes() == trainers[1].state[name].tobytes()


def test_batches_without_any_step() -> None:
    trainer = Tagger().trainer()
    before = trainer.parameters
    lengths = [0] * 5 + [1]
    data = made_data(lengths)
    trainer.fit(data, 1, BATCH, shuffle=False)
    by_hand(data, before, [[list(range(5)), [5]]])
    for name, value in trainer.parameters.items():
        np.testing.assert_allclose(value, before[name], rtol=1e-12)


def test_words_and_their_letters() -> None:
    """Two ragged dims, one of them beside another extent of it."""
    L, k = sg.dim("L"), sg.parameter("k", (), dtype="float64")
    x = sg.input("x", (B, T + 1, L), "float64")
    y, n = sg.input("y", (B, T), "float64"), sg.input("n", (B,), "int32")
    steps = sg.nn.sequence_mask(n, T).astype("float64")
    error = sg.square(k + x[:, 1:].sum(-1) - x[:, :-1].sum(-1) - y) * steps
    rng = np.random.default_rng(7)
    shapes = [(3, 2), (1, 5), (2, 2), (4, 0), (3, 1)]
    data = {
        "x": [rng.standard_normal((t + 1, letters)) for t, letters in shapes],
        "y": [rng.standard_normal(t) for t, _ in shapes],
        "n": [t for t, _ in shapes],
    }
    trainer = sg.Trainer(error.sum(1), optimizer=sg.optim.sgd(0.05))
    value = trainer.parameters["k"]
    trainer.fit(data, 1, 2)
    for rows in order_by_size([sum(s) for s in shapes], 2, 0, 0):
        terms = [data["x"][r][1:].sum(1) - data["x"][r][:-1].sum(1) - data["y"][r] for r in rows]
        value = value - 0.05 * 2 * sum((value + t).sum() for t in terms) / len(rows)
    np.testing.assert_allclose(trainer.parameters["k"], value, rtol=1e-12)


# -- streams -----------------------------------------------------------------------------------
def test_the_last_piece_of_a_stream_is_shorter() -> None:
    """Twenty-three steps in two lanes, seven at a time: the carry goes on into the last two."""
    lanes, steps, piece = 2, 23, 7
    stream = np.random.default_rng(8).standard_normal((lanes, steps))
    starts = range(0, steps, piece)
    pieces = [lane[k : k + piece] for k in starts for lane in stream]
    x, h = sg.input("x", (B, T), "float64"), sg.input("h", (lanes,), "float64")
    w = sg.parameter("w", (), init=0.4, dtype="float64")
    last, hs = sg.scan(lambda c, v: (sg.tanh(w * c + v),) * 2, h, x.T)
    loss = sg.square(hs - 0.5).mean()
    trainer = sg.Trainer(loss, optimizer=sg.optim.sgd(0.1), state={h: last})
    runs = []
    program = trainer._bound

    def counted(*given: Any) -> Any:
        bound = program(*given)
        run = bound.run

        def noted(order: Any, *rest: Any) -> Any:
            runs.append(order.shape[1])
            return run(order, *rest)

        bound.run = noted
        return bound

    trainer._bound = counted  # type: ignore[method-assign]
    history = trainer.fit({"x": pieces}, 3, lanes, shuffle=False)
    assert sum(runs) == 3 * 4 and max(runs) == 3  # whole pieces run together
    gradient = sg.compile([loss, last, *sg.grad(loss, [w])])
    value, losses = np.float64(0.4), []
    for _ in range(3):
        state, total = np.zeros(lanes), 0.0
        for k in starts:
            found, state, g = gradient(x=stream[:, k : k + piece], h=state, w=value)
            value, total = value - 0.1 * g, total + float(found)
        losses.append(total / 4)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-9)
    np.testing.assert_allclose(trainer.parameters["w"], value, rtol=1e-9)
    np.testing.assert_allclose(trainer.state["h"], state, rtol=1e-9)
    measured, state, total = trainer.evaluate({"x": pieces})["loss"], np.zeros(lanes), 0.0
    for k in starts:
        found, state, _ = gradient(x=stream[:, k : k + piece], h=state, w=value)
        total += float(found)
    assert measured == pytest.approx(total / 4, rel=1e-9)


# -- orders ------------------------------------------------------------------------------------
def test_orders_are_those_of_the_reference() -> None:
    for sizes, batch in ((LENGTHS, 5), (LENGTHS, 4), (LENGTHS[:15], 5), ([3] * 7, 7), ([1, 2], 1)):
        extents = np.array(sizes)[:, None]
        orders = RaggedOrders(extents, batch, True, 11, by_size=True)
        whole, rest = divmod(len(sizes), batch)
        for epoch in (0, 1, 0, 5):
            rows, last = orders.rows(epoch, 1, 0, whole, batch, min(rest, 1))
            assert [*rows[0].tolist(), *last[0].tolist()] == order_by_size(sizes, batch, 11, epoch)
            part, none = orders.rows(epoch, 1, batch, whole - 1, batch, 0)
            assert part.tolist() == rows[:, 1:].tolist() and none.shape[1] == 0


def test_batches_are_of_like_size_and_come_in_any_order() -> None:
    sizes = np.random.default_rng(1).integers(0, 60, (400, 1))
    orders = RaggedOrders(sizes, 8, True, 2, by_size=True)
    firsts, together = set(), set()
    for epoch in range(8):
        batches = sizes[orders.order(epoch)].reshape(-1, 8)
        assert (8 * batches.max(1)).sum() < 1.1 * batches.sum()  # little is padded
        assert np.corrcoef(batches[:-1].max(1), batches[1:].max(1))[0, 1] < 0.6
        firsts.add(int(batches[0].max()))
        together.add(frozenset(next(b for b in orders.order(epoch).reshape(-1, 8) if 7 in b)))
    assert len(firsts) > 4 and len(together) == 8


def test_how_many_batches_are_alike() -> None:
    sizes = np.array([[3], [3], [3], [1], [2], [3], [4], [4], [1]])
    orders = RaggedOrders(sizes, 2)
    assert [orders.alike(0, done) for done in range(5)] == [3, 2, 1, 1, 1]
    assert orders.order(3).tolist() == list(range(9))
    # padded to 3, 3, 3 and 4; the last row on its own
    assert RaggedOrders(sizes[:6], 2).alike(0, 0) == 3


# -- measuring and predicting ------------------------------------------------------------------
def test_evaluate_and_predict_keep_the_order_of_the_data() -> None:
    tagger, data = Tagger(), made_data()
    trainer = tagger.trainer()
    trainer.fit(data, 2, BATCH, validation=data)
    alone = each_row_alone(tagger)
    losses, right, tags = 0.0, 0.0, []
    answer = sg.compile(tagger.tags)
    weights = trainer.parameters
    for x, y, n in zip(data["x"], data["y"], data["n"], strict=True):
        row = {"x": x[None], "n": [n], **weights}
        found = alone(y=np.array([y], np.int32).reshape(1, -1), **row)
        losses, right = losses + float(found[0]), right + float(found[1])
        tags.append(answer(**row)[0].tolist())
    wanted = {"loss": losses / sum(LENGTHS), "right": right / sum(LENGTHS)}
    for size in (None, 1, 4, 100):
        assert trainer.evaluate(data, batch_size=size) == pytest.approx(wanted, rel=1e-6)
        found = trainer.predict({"tags": tagger.tags, "n": tagger.n * 2}, data, batch_size=size)
        assert [row.tolist() for row in found["tags"]] == tags
        assert found["n"].tolist() == [2 * n for n in LENGTHS]
    assert trainer.history.records[-1].validation == pytest.approx(wanted, rel=1e-6)
    together = trainer.predict(tagger.right.sum(), data)  # not one value per row
    assert int(together) == int(right)
    without = {name: value for name, value in data.items() if name != "y"}
    assert len(trainer.predict(tagger.z, without)[6]) == 9


def test_saved_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    data, tagger = made_data(), Tagger()
    trainer = tagger.trainer(optimizer=sg.optim.adam(0.01))
    stop = sg.EarlyStopping(monitor="validation right", mode="max", patience=50)
    log = tmp_path / "log.csv"
    trainer.fit(data, 3, BATCH, callbacks=[sg.CsvLog(log), stop], validation=data, progress=False)
    assert log.read_text(encoding="utf-8").splitlines()[0].startswith("epoch,loss,right")
    trainer.save(tmp_path / "run.safetensors")
    other = Tagger()
    again = sg.Trainer.load(
        tmp_path / "run.safetensors", other.loss, metrics=other.metrics, weight=other.n
    )
    for t in (trainer, again):
        t.fit(data, 2, BATCH)
    assert again.history.loss == trainer.history.loss
    for name, value in trainer.state.items():
        assert value.tobytes() == again.state[name].tobytes()


def test_a_report_of_one_batch() -> None:
    trainer, data = Tagger().trainer(), made_data()
    before = trainer.state
    assert "T=7" in str(trainer.report(data, BATCH))  # the first five rows
    for name, value in trainer.state.items():
        np.testing.assert_array_equal(value, before[name])


# -- what is refused ---------------------------------------------------------------------------
def changed(data: dict[str, Any], name: str, row: int, value: Any) -> dict[str, Any]:
    rows = list(data[name])
    rows[row] = value
    return {**data, name: rows}


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "rows disagree": (
        lambda d: changed(d, "y", 3, [1] * 6), DataShapeError,
        r"(?s)fit: row 3: .*'y' has the wrong shape.*int32 \(B, T\).* T = 7.*\(1, 6\)",
    ),
    "axes": (
        lambda d: changed(d, "x", 4, np.zeros(2)), DataShapeError,
        r"(?s)fit: 'x' has 2 axes in each row, row 4 has 1.*float64 \(B, T, 2\)",
    ),
    "an empty row": (
        lambda d: changed(d, "x", 2, []), DataShapeError,
        r"(?s)row 2 has 1.*An empty row is np.zeros\(\(0, 2\)\)",
    ),
    "columns": (
        lambda d: changed(d, "x", 4, np.zeros((2, 3))), DataShapeError,
        r"(?s)'x' has 2 elements along axis 2, row 4 has 3",
    ),
    "floats": (
        lambda d: changed(d, "y", 5, np.full(4, 0.5)), DTypeError,
        r"(?s)fit: row 5: input 'y' is int32, got float64 \(4,\)",
    ),
    "text": (lambda d: changed(d, "x", 0, "word"), DataShapeError, "has 2 axes in each row, row 0"),
    "ragged rows": (
        lambda d: changed(d, "x", 1, [[1.0], [1.0, 2.0]]), DataError,
        "(?s)fit: row 1 of 'x' is no array",
    ),
    "length": (
        lambda d: {**d, "y": d["y"][:-1]}, DataError, "(?s)different length.*'y': 16 rows",
    ),
    "lengths": (
        lambda d: changed(d, "n", 3, 99), DataError, r"(?s)fit: .*99",
    ),
    "label": (
        lambda d: changed(d, "y", 3, [0, 1, 2, 3, 0, 0, 0]), DataError,
        r"(?s)label 3 is out of range.*at row 3, \(3,\), of  'y'.*epoch 1, step",
    ),
    "nan": (
        lambda d: changed(d, "x", 8, np.full((3, 2), np.nan)), DataError,
        r"(?s)loss is nan in epoch 1, step .*'x' is not finite in 1 of this batch's rows: 8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case: str) -> None:
    change, error, text = BAD[case]
    with pytest.raises(error, match=text):
        Tagger().trainer().fit(change(made_data()), 1, BATCH)


def test_rows_of_fixed_extents_must_fit() -> None:
    x, w = sg.input("x", (B, 3)), sg.parameter("w", ())
    trainer = sg.Trainer(sg.square(w - x.sum(1)), optimizer=sg.optim.sgd(0.1))
    with pytest.raises(DataShapeError, match=r"(?s)3 elements along axis 1, row 1 has 2.*dim\("):
        trainer.fit({"x": [[1.0, 2.0, 3.0], [1.0, 2.0]]}, 1, 2)


def test_a_failure_leaves_the_state_before_the_step() -> None:
    data = made_data()
    batches = order_by_size(LENGTHS, BATCH, 3, 0)
    worst = next(k for k in batches[2] if LENGTHS[k])
    trainer, fine = Tagger().trainer(), Tagger().trainer()
    bad = changed(data, "x", worst, np.full((LENGTHS[worst], 2), np.nan))
    with pytest.raises(DataError, match="epoch 1, step 3"):
        trainer.fit(bad, 1, BATCH)
    rows = [k for batch in batches[:2] for k in batch]
    fine.fit({k: [v[r] for r in rows] for k, v in data.items()}, 1, BATCH, shuffle=False)
    for name, value in fine.state.items():
        np.testing.assert_allclose(value, trainer.state[name], rtol=1e-12)


def test_an_input_that_is_whole_cannot_share_a_ragged_dim() -> None:
    x, p, w = sg.input("x", (B, T)), sg.input("p", (T,)), sg.parameter("w", ())
    trainer = sg.Trainer((w * x * p).sum(1), optimizer=sg.optim.sgd(0.1))
    with pytest.raises(DataShapeError, match=r"(?s)fit: row 1: .*'p'"):
        trainer.fit({"x": [[1.0, 2.0], [1.0]], "p": [1.0, 2.0]}, 1, 1)


def test_weights_are_one_number_per_row() -> None:
    tagger = Tagger()
    for weight in (tagger.n.sum(), tagger.x, sg.constant([1.0, 2.0])):
        with pytest.raises(ShapeError, match=r"Trainer: weight must have one number per row.*\(B,"):
            sg.Trainer(tagger.loss, optimizer=sg.optim.sgd(0.1), weight=weight)
    trainer = sg.Trainer(tagger.loss, optimizer=sg.optim.sgd(0.1), weight=tagger.n)
    with pytest.raises(LeafError, match=r"(?s)missing.*'n'"):
        trainer.evaluate({name: v for name, v in made_data().items() if name != "n"})


def test_weights_of_dense_rows() -> None:
    x, m, w = sg.input("x", (B,)), sg.input("m", (B,)), sg.parameter("w", (), init=2.0)
    loss = sg.square(w - x)
    trainer = sg.Trainer(loss, optimizer=sg.optim.sgd(0.0), metrics={"x": x}, weight=m)
    xs, ms = np.arange(7.0), np.array([0, 2, 1, 0, 5, 1, 1.0])
    history = trainer.fit({"x": xs, "m": ms}, 1, 2, shuffle=False)
    parts = [slice(k, k + 2) for k in range(0, 7, 2)]
    means = [sum(f(xs[p]).mean() * ms[p].sum() for p in parts) / ms.sum()
             for f in (lambda v: (2 - v) ** 2, lambda v: v)]  # fmt: skip
    assert (history.loss[0], history.metrics["x"][0]) == pytest.approx(means)
    nothing = trainer.evaluate({"x": xs, "m": ms * 0})
    assert np.isnan(nothing["loss"]) and np.isnan(nothing["x"])
