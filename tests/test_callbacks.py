"""Early stopping, logs and checkpoints, alone and inside a trainer."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import symgrad as sg
from symgrad.train.callbacks import Callback, figures_of
from symgrad.train.history import EpochRecord

B = sg.dim("B")
NAN = float("nan")


def record(epoch: int, value: float, **validation: float) -> EpochRecord:
    return EpochRecord(epoch, value, {"accuracy": 1 - value}, 1.0, validation, 0.5, 35, 5)


def told(callback: Callback, losses: list[float]) -> list[object]:
    return [callback(record(k, loss)) for k, loss in enumerate(losses, 1)]


def make_trainer(rate: float | sg.optim.Rate = 0.1) -> tuple[sg.Trainer, dict[str, np.ndarray]]:
    x, y = sg.input("x", (B, 3)), sg.input("y", (B,))
    w = sg.parameter("w", (3,), init=0.0)
    error = x @ w - y
    trainer = sg.Trainer(
        sg.square(error), sg.optim.adam(rate), metrics={"off, by": sg.abs(error)}
    )
    rng = np.random.default_rng(4)
    points = rng.normal(size=(35, 3)).astype("float32")
    return trainer, {"x": points, "y": points @ np.array([1.0, -2.0, 0.5], "float32")}


# -- early stopping --------------------------------------------------------------------------------
def test_patience_counts_epochs_in_a_row() -> None:
    stop = sg.EarlyStopping(patience=2)
    assert told(stop, [5, 4, 4, 3, 3, 3]) == [False, False, False, False, False, True]
    assert (stop.best, stop.best_epoch, stop.stopped) == (3, 4, True)


def test_callbacks_show_what_they_watch() -> None:
    stop = sg.EarlyStopping(patience=2)
    assert repr(stop) == "<EarlyStopping at the minimum of the loss, patience 2>"
    assert told(stop, [3.0, 2.0, 4.0]) == [False] * 3
    assert repr(stop) == "<EarlyStopping at the minimum of the loss, 2 in epoch 2, patience 2>"
    best = sg.Checkpoint("a\nb", every=3, monitor="accuracy", mode="max")
    assert repr(best) == "<Checkpoint a\\nb every 3 epochs at the maximum of 'accuracy'>"
    assert repr(sg.Checkpoint("a")) == "<Checkpoint a every epoch>"
    assert repr(sg.CsvLog("log.csv")) == "<CsvLog log.csv>"


def test_min_delta_and_direction() -> None:
    stop = sg.EarlyStopping(patience=1, min_delta=0.5)
    assert told(stop, [5, 4, 3.75]) == [False, False, True]
    stop = sg.EarlyStopping("accuracy", patience=1, mode="max")
    assert told(stop, [0.5, 0.25, 0.5]) == [False, False, True]
    assert stop.best == 0.75


def test_nan_is_never_better_and_always_worse() -> None:
    stop = sg.EarlyStopping(patience=2)
    assert told(stop, [NAN, 5, NAN, NAN]) == [False, False, False, True]
    assert (stop.best, stop.best_epoch) == (5, 2)


def test_the_validation_loss_is_watched_where_there_is_one() -> None:
    stop = sg.EarlyStopping(patience=1)
    assert [stop(record(1, 5, loss=1)), stop(record(2, 4, loss=2))] == [False, True]
    with pytest.raises(sg.DataError, match=r"no epoch has a figure 'val_loss'\. There are 'loss'"):
        sg.EarlyStopping("val_loss")(record(1, 5))


def test_the_best_state_comes_back_and_training_goes_on_from_it() -> None:
    trainer, data = make_trainer(sg.optim.piecewise([15], [0.1, 5.0]))  # goes astray after 3 epochs
    stop = sg.EarlyStopping("loss", patience=3)
    history = trainer.fit(data, epochs=50, batch_size=7, callbacks=[stop])
    assert stop.stopped and len(history) == stop.best_epoch + 3
    other, _ = make_trainer(sg.optim.piecewise([15], [0.1, 5.0]))
    other.fit(data, epochs=stop.best_epoch, batch_size=7)
    for name, value in trainer.state.items():
        np.testing.assert_array_equal(value, other.state[name], err_msg=name)
    assert trainer.epoch == len(history)
    again = trainer.fit(data, epochs=1, batch_size=7)
    assert again.records[0].epoch == len(history) + 1


def test_without_restoring_the_last_state_stays() -> None:
    trainer, data = make_trainer()
    trainer.fit(data, epochs=4, callbacks=[sg.EarlyStopping(restore_best=False)])
    other, _ = make_trainer()
    other.fit(data, epochs=4)
    np.testing.assert_array_equal(trainer.parameters["w"], other.parameters["w"])


def test_each_fit_begins_anew() -> None:
    trainer, data = make_trainer()
    stop = sg.EarlyStopping(patience=2, min_delta=1e9)
    for _ in range(2):
        assert len(trainer.fit(data, epochs=9, callbacks=[stop])) == 3


# -- logs ------------------------------------------------------------------------------------------
def test_csv_log_holds_the_history(tmp_path) -> None:
    trainer, data = make_trainer()
    path = tmp_path / "log.csv"
    path.write_text("an older file\n")
    log = sg.CsvLog(path)
    trainer.fit(data, epochs=2, validation=data, callbacks=[log])
    trainer.fit(data, epochs=1, validation=data, callbacks=[log])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch", "loss", "off, by", "gradient_norm", "validation loss", "validation off, by",
        "seconds", "rows", "steps",
    ]
    assert [float(row["loss"]) for row in rows] == list(trainer.history.loss)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    more = sg.CsvLog(path, append=True)
    trainer.fit(data, epochs=1, validation=data, callbacks=[more])
    assert len(path.read_text().splitlines()) == 5
    with pytest.raises(sg.DataError, match="has other columns"):
        trainer.fit(data, epochs=1, callbacks=[sg.CsvLog(path, append=True)])


# -- checkpoints -----------------------------------------------------------------------------------
def test_training_resumes_from_a_checkpoint_bit_for_bit(tmp_path) -> None:
    trainer, data = make_trainer()
    path = tmp_path / "at {epoch}.safetensors"
    trainer.fit(data, epochs=6, batch_size=8, callbacks=[sg.Checkpoint(path, every=2)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"at {k}.safetensors" for k in (2, 4, 6)]
    x, y = sg.input("x", (B, 3)), sg.input("y", (B,))
    loss = sg.square(x @ sg.parameter("w", (3,), init=0.0) - y)
    again = sg.Trainer.load(tmp_path / "at 4.safetensors", loss)
    assert again.epoch == 4 and again.history.loss == trainer.history.loss[:4]
    again.fit(data, epochs=2, batch_size=8)
    np.testing.assert_array_equal(again.parameters["w"], trainer.parameters["w"])


def test_only_the_best_is_saved(tmp_path) -> None:
    class Saver:
        saved: list[str] = []  # noqa: RUF012  # shared on purpose

        def save(self, path: str) -> None:
            self.saved.append(path)

    check, saver = sg.Checkpoint("at {epoch}", monitor="loss"), Saver()
    check.begin(saver)
    told(check, [5, 6, 4, NAN, 4, 3])
    assert saver.saved == ["at 1", "at 3", "at 6"]
    check.end()
    told(check, [1])
    assert len(saver.saved) == 3


# -- the protocol ----------------------------------------------------------------------------------
def test_callbacks_are_told_when_fit_begins_and_ends() -> None:
    class Spy(Callback):
        def __init__(self) -> None:
            self.seen: list[object] = []

        def begin(self, trainer: sg.Trainer) -> None:
            self.seen.append(trainer)

        def __call__(self, record: EpochRecord) -> object:
            self.seen.append(record.epoch)
            return "stop" if record.epoch == 2 else None

        def end(self) -> None:
            self.seen.append("end")

    trainer, data = make_trainer()
    spy, plain = Spy(), []
    trainer.fit(data, epochs=5, callbacks=[spy, plain.append])
    assert spy.seen == [trainer, 1, 2, "end"] and len(plain) == 2
    assert Callback()(plain[0]) is None
    assert figures_of(plain[0])["off, by"] == plain[0].metrics["off, by"]


def test_state_is_a_copy_and_comes_back() -> None:
    trainer, data = make_trainer()
    before = trainer.state
    assert list(before) == ["w", "adam.m/w", "adam.v/w", "optim.step"]
    trainer.fit(data, epochs=1)
    assert trainer.state["optim.step"] == 2 and before["optim.step"] == 0
    trainer.restore(before)
    assert not trainer.parameters["w"].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.EarlyStopping(patience=0), "EarlyStopping: patience must be an integer of at"),
        (lambda: sg.EarlyStopping(mode="auto"), 'EarlyStopping: mode must be "min" or "max", got'),
        (lambda: sg.EarlyStopping(min_delta=NAN), "EarlyStopping: min_delta must be finite"),
        (lambda: sg.Checkpoint("x", every=1.5), "Checkpoint: every must be an integer"),
        (lambda: sg.Checkpoint("x", monitor="loss", mode="up"), "Checkpoint: mode must be"),
    ],
)
def test_wrong_settings_are_refused(make, message) -> None:
    with pytest.raises(sg.SymgradError, match=message):
        make()
