"""What a trainer refuses, and in which words: data, NaN, losses, parameters, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symgrad import init, optim
from symgrad.graph.dims import dim
from symgrad.graph.elementwise import exp, sqrt
from symgrad.graph.errors import (
    DataError,
    DTypeError,
    LeafError,
    ShapeError,
    SymgradError,
)
from symgrad.graph.leaves import input, parameter
from symgrad.graph.reductions import mean
from symgrad.train.trainer import Trainer
from tests.test_train import B, N, Net


# -- data -------------------------------------------------------------------------------------
def test_memory_mapped_and_converted_data(tmp_path: Path) -> None:
    net = Net()
    expected = net.trainer().fit(net.data, 2, 8).loss
    files = {}
    for name, array in net.data.items():
        array.tofile(tmp_path / name)
        files[name] = np.memmap(tmp_path / name, array.dtype, "r", shape=array.shape)
    kinds = [
        files,
        {"x": net.data["x"].astype(np.float64), "y": net.data["y"].astype(np.int64)},
        {"x": np.asfortranarray(net.data["x"]), "y": np.repeat(net.data["y"], 2)[::2]},
        {"x": net.data["x"].tolist(), "y": net.data["y"].astype(np.uint8)},
    ]
    for data in kinds:
        other = Net()
        assert other.trainer().fit(data, 2, 8).loss == expected


def test_data_are_never_written() -> None:
    net = Net()
    for array in net.data.values():
        array.setflags(write=False)
    net.trainer().fit(net.data, 2, 8)


BAD_DATA: dict[str, tuple[Any, type[Exception], str]] = {
    "missing": (lambda d: {"x": d["x"]}, LeafError, r"(?s)missing.*'y'.*inputs are 'x', 'y'"),
    "unknown": (lambda d: {**d, "z": 1}, LeafError, r"(?s)unknown.*'z'"),
    "length": (lambda d: {**d, "y": d["y"][:-1]}, DataError, "(?s)different length.*23.*22"),
    "empty": (lambda d: {k: v[:0] for k, v in d.items()}, DataError, "the data are empty.*0 rows"),
    "rank": (lambda d: {**d, "y": d["y"][:, None]}, ShapeError, "'y' has 1 axes, its data 2"),
    "extent": (lambda d: {**d, "x": d["x"][:, :4]}, ShapeError, r"(?s)'x'.*\(B, 5\).*\(.*, 4\)"),
    "floats": (lambda d: {**d, "y": d["y"] * 1.0}, DTypeError, "(?s)'y' is int32, got float64"),
    "range": (lambda d: {**d, "y": d["y"].astype("int64") + 2**40}, DataError, "does not fit"),
    "words": (lambda d: {**d, "x": np.full((N, 5), "a")}, DTypeError, "'x' is float32"),
    "list": (lambda d: [d["x"], d["y"]], DataError, "data must be a dictionary"),
    "label": (lambda d: {**d, "y": d["y"] + 1}, DataError, "(?s)3 is out of range.*epoch 1, step"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case: str) -> None:
    net = Net()
    change, error, text = BAD_DATA[case]
    trainer = net.trainer()
    before = trainer.parameters
    with pytest.raises(error, match=text):
        trainer.fit(change(net.data), 1, 8 if case != "label" else N)
    for name, value in trainer.parameters.items():
        np.testing.assert_array_equal(value, before[name])
    assert isinstance(trainer.fit(net.data, 1, 8).loss[0], float)


@pytest.mark.parametrize("batch_size", [0, -1, 24, 2.5, True, "8"])
def test_bad_batch_size(batch_size: Any) -> None:
    net = Net()
    with pytest.raises(DataError, match=r"batch_size must be an integer from 1 to .* 23; got"):
        net.trainer().fit(net.data, 1, batch_size)


def test_label_out_of_range_in_evaluate() -> None:
    net = Net()
    with pytest.raises(DataError, match=r"(?s)evaluate: .*3 is out of range.*rows"):
        net.trainer().evaluate({**net.data, "y": net.data["y"] + 1})


def test_label_out_of_range_names_the_row_of_the_data() -> None:
    net = Net()
    trainer = net.trainer()
    labels = net.data["y"].copy()
    labels[13] = -1
    for shuffle in (True, False):
        with pytest.raises(DataError, match="label -1 is out of range for extent 3") as caught:
            trainer.fit({**net.data, "y": labels}, 3, 8, shuffle=shuffle)
        assert "at row 13 of  'y'" in str(caught.value)


def test_a_failed_fit_burns_no_epoch() -> None:
    net = Net()
    trainer = net.trainer()
    with pytest.raises(DataError, match="epoch 1, step"):
        trainer.fit({**net.data, "y": net.data["y"] + 1}, 3, N)
    assert trainer.epoch == 0
    assert trainer.fit(net.data, 2, 8).records[-1].epoch == trainer.epoch == 2


def test_label_out_of_range_in_validation_is_found_before_training() -> None:
    net = Net()
    trainer = net.trainer()
    before = trainer.parameters
    with pytest.raises(DataError, match=r"(?s)fit: validation: .*3 is out of range.*rows"):
        trainer.fit(net.data, 3, 8, validation={**net.data, "y": net.data["y"] + 1})
    assert trainer.epoch == len(trainer.history.loss) == 0
    for name, value in trainer.parameters.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("callbacks", [print, [3], 0.2])
def test_callbacks_are_functions(callbacks: Any) -> None:
    net = Net()
    with pytest.raises(DataError, match="callbacks must be a sequence of functions"):
        net.trainer().fit(net.data, 1, 8, callbacks=callbacks)


def test_a_metric_may_have_any_name() -> None:
    net = Net()
    trainer = Trainer(mean(net.rows), optim.sgd(0.1), metrics={"|g|": mean(net.x)})
    history = trainer.fit(net.data, 1, 8)
    assert history.records[0].metrics["|g|"] == pytest.approx(net.data["x"].mean(), abs=1e-6)


# -- NaN --------------------------------------------------------------------------------------
def test_nan_in_data_raises_before_it_changes_anything() -> None:
    net, clean = Net(), Net()
    net.data["x"][17, 2] = np.nan
    trainer = net.trainer()
    with pytest.raises(DataError, match=r"(?s)loss is nan in epoch 1, step 3.*'x'.*rows: 17") as e:
        trainer.fit(net.data, 3, 8, shuffle=False)
    assert 'on_nan="continue"' in str(e.value)
    other = clean.trainer()
    other.fit({k: v[:16] for k, v in clean.data.items()}, 1, 8, shuffle=False)
    for name, value in trainer.parameters.items():
        assert value.tobytes() == other.parameters[name].tobytes()
    assert len(trainer.history) == 0


def test_nan_may_pass() -> None:
    net = Net()
    net.data["x"][17, 2] = np.nan
    history = net.trainer(on_nan="continue").fit(net.data, 3, 8)
    assert len(history) == 3 and np.isnan(history.loss).all()


def test_a_gradient_that_is_not_finite_changes_nothing_either() -> None:
    x, w = input("x", (B,)), parameter("w", ())
    trainer = Trainer(sqrt(w * x), optim.sgd(0.1))  # at 0 the slope of the root is infinite
    with pytest.raises(DataError, match=r"loss is 0.0 but the norm of its gradient (inf|nan)"):
        trainer.fit({"x": np.ones(N)}, 3, 8)
    assert trainer.parameters["w"] == 0.0


def test_divergence_says_the_epoch() -> None:
    net = Net()
    trainer = Trainer(mean(exp(net.rows * net.rows)), optim.sgd(1e3))
    with pytest.raises(DataError, match=r"(inf|nan) in epoch \d+, step \d+") as e:
        trainer.fit(net.data, 100, 8)
    assert "data of this batch are finite" in str(e.value)


# -- asking and looking -----------------------------------------------------------------------
def test_all_rows_are_the_most_that_are_computed_at_a_time() -> None:
    net = Net()
    trainer = net.trainer()
    whole = trainer.predict(net.logits, net.data)
    np.testing.assert_array_equal(trainer.predict(net.logits, net.data, 1000), whole)
    assert trainer.evaluate(net.data, 1000) == trainer.evaluate(net.data, N)
    for ask in (trainer.evaluate, lambda *given: trainer.predict(net.logits, *given)):
        for wrong in (0, -1, 2.5, "8", True):
            with pytest.raises(DataError, match="batch_size must be an integer"):
                ask(net.data, wrong)


def test_what_only_updates_read_is_no_matter_of_evaluate() -> None:
    net = Net()
    trainer = Trainer(mean(net.rows), optim.sgd(input("rate")))
    with pytest.raises(LeafError, match=r"(?s)fit: .*missing  'rate'"):
        trainer.fit(net.data, 1, 8)
    trainer.fit({**net.data, "rate": 0.1}, 1, 8, validation=net.data)
    assert trainer.evaluate(net.data) == trainer.evaluate({**net.data, "rate": 0.1})
    with pytest.raises(LeafError, match=r"(?s)evaluate: .*unknown  'rat'"):
        trainer.evaluate({**net.data, "rat": 0.1})


def test_messages_show_what_the_user_gave() -> None:
    net = Net()
    trainer = net.trainer(optim.adam())
    with pytest.raises(ShapeError, match=r"(?s)'y' has 1 axes.*int32 \(23, 1\).*\[\.\.\., 0\]"):
        trainer.fit({**net.data, "y": net.data["y"][:, None]}, 1, 8)
    with pytest.raises(ShapeError, match=r"(?s)'x' has 5 elements along axis 1, its data 4.*23, 4"):
        trainer.fit({**net.data, "x": net.data["x"][:, :4]}, 1, 8)
    with pytest.raises(LeafError, match=r"(?s)no value for.*'V'.*It has 'W1', 'b1', 'W2', 'b2'\."):
        trainer.predict(net.x @ parameter("V", (5,)), net.data)
    with pytest.raises(LeafError, match=r"(?s)'W1'.*Its own is another leaf of that name.*'W1'"):
        trainer.predict(net.x @ parameter("W1", (5, 7)), net.data)
    with pytest.raises(LeafError, match="predict: expected expressions, got str"):
        trainer.predict("logits", net.data)


def test_a_trainer_says_what_it_is() -> None:
    trainer = Net().trainer(optim.sgd(0.5))
    assert repr(trainer).startswith("<Trainer of W1, b1, W2, b2 with sgd(learning_rate=0.5")
    assert repr(trainer).endswith("after 0 epochs>")


# -- making one -------------------------------------------------------------------------------
def test_bad_trainers() -> None:
    net = Net()
    loss, sgd = mean(net.rows), optim.sgd(0.1)
    with pytest.raises(SymgradError, match="needs an optimizer, got none"):
        Trainer(loss)
    with pytest.raises(SymgradError, match="needs an optimizer, got str"):
        Trainer(loss, "adam")  # type: ignore[arg-type]
    with pytest.raises(SymgradError, match='on_nan must be "raise" or "continue"'):
        Trainer(loss, sgd, on_nan="ignore")
    with pytest.raises(SymgradError, match="clip_norm must be a positive number, got 0"):
        Trainer(loss, sgd, clip_norm=0)
    with pytest.raises(SymgradError, match="clip_norm must be a positive number, got 'a'"):
        Trainer(loss, sgd, clip_norm="a")  # type: ignore[arg-type]
    with pytest.raises(SymgradError, match=r"metrics must be a dictionary .* got list"):
        Trainer(loss, sgd, metrics=[net.hit])  # type: ignore[arg-type]
    with pytest.raises(SymgradError, match="seed must be"):
        Trainer(loss, sgd, seed=-1)
    with pytest.raises(SymgradError, match="cannot be called 'loss'"):
        Trainer(loss, sgd, metrics={"loss": net.hit})
    with pytest.raises(LeafError, match=r"(?s)only parameters can be trained.*'x'"):
        Trainer(loss, sgd, wrt=[net.W1, net.x])
    with pytest.raises(LeafError, match=r"(?s)loss does not depend on.*'U'"):
        Trainer(loss, sgd, wrt=parameter("U", (3,)))
    with pytest.raises(LeafError, match="wrt is empty"):
        Trainer(loss, sgd, wrt=[])
    with pytest.raises(LeafError, match="wrt holds 'W1'"):
        Trainer(loss, sgd, wrt=["W1"])  # type: ignore[list-item]
    with pytest.raises(LeafError, match="no parameters to train"):
        Trainer(mean(net.x), sgd)
    with pytest.raises(DTypeError, match="only floats can be trained"):
        n = parameter("n", (), init=2, dtype="int32")
        Trainer(mean(net.x * n), sgd, wrt=n)
    with pytest.raises(ShapeError, match=r"(?s)'loss' must be a scalar or have one value per row"):
        Trainer(net.logits, sgd)
    with pytest.raises(LeafError, match=r"(?s)shape in numbers.*'V'.*make it an input"):
        Trainer(mean(net.rows) + mean(net.x * parameter("V", (B, 5))), sgd)
    with pytest.raises(DTypeError, match="the loss must be a float"):
        Trainer(mean(net.rows) > 0, sgd)
    with pytest.raises(ShapeError, match="no input has a batch dim"):
        Trainer(mean(input("v", (3,)) * net.b2), sgd)
    with pytest.raises(ShapeError, match="which dim is the batch, B or T"):
        Trainer(mean(net.rows) * mean(input("t", (dim("T"),))), sgd)
    with pytest.raises(ShapeError, match="must be the first axis and only that"):
        Trainer(mean(net.rows) + mean(input("q", (4, B))), sgd)
    with pytest.raises(LeafError, match=r"(?s)two leaves have one name.*'x'"):
        Trainer(mean(net.rows) + mean(input("x", (B,))), sgd)


def test_a_loss_per_row_decides_which_dim_is_the_batch() -> None:
    net = Net()
    t = input("t", (dim("T"),))
    trainer = Trainer(net.rows * mean(t), optim.sgd(0.1))
    assert trainer.objective.batch == B
    history = trainer.fit({**net.data, "t": np.ones(4)}, 1, 8)
    assert np.isfinite(history.loss[0])


def test_strange_names_work() -> None:
    names = ['x"];evil', "__import__('os')", "a\nb\u2028c", "self", "{0}%s"]
    x, y, w, b = (
        input(names[0], (B, 5)), input(names[1], (B,)),
        parameter(names[2], (5,), init=init.normal()), parameter(names[3], ()),
    )
    error = x @ w + b - y
    trainer = Trainer(error * error, optim.adam(), metrics={names[4]: error})
    rng = np.random.default_rng(0)
    data = {names[0]: rng.standard_normal((N, 5)), names[1]: rng.standard_normal(N)}
    history = trainer.fit(data, 2, 8)
    assert list(trainer.parameters) == [names[2], names[3]] and names[4] in history.metrics
    assert "\u2028" not in str(history)
    with pytest.raises(LeafError) as e:
        trainer.fit({names[0]: data[names[0]]}, 1, 8)
    assert "__import__" in str(e.value)
    assert trainer.predict(error, data).shape == (N,)
