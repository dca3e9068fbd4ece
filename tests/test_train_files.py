"""Trainer files: bit-exact resume, and clear words about files that are not what they should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from symgrad import optim
from symgrad.graph.errors import DataError, LeafError, SymgradError
from symgrad.graph.leaves import parameter
from symgrad.graph.reductions import mean
from symgrad.graph.traversal import replace
from symgrad.optim import step
from symgrad.train import checkpoint
from symgrad.train.trainer import Trainer
from tests.test_train import Net

FIT = """
import numpy as np
import symgrad as sg
rng = np.random.default_rng(0)
B = sg.dim("B")
x, y = sg.input("x", (B, 64)), sg.input("y", (B,), dtype="int32")
w1, w2 = sg.parameter("W1", (64, 32)), sg.parameter("W2", (32, 10))
b = sg.parameter("b", (32,), init=0.0)
loss = sg.cross_entropy(sg.tanh(x @ w1 + b) @ w2, y).mean()
trainer = sg.Trainer(loss, optimizer=sg.optim.adam(0.1))
trainer.fit({"x": rng.normal(size=(32, 64)), "y": rng.integers(0, 10, 32)}, 5, 32)
print({name: value.tobytes().hex() for name, value in trainer.parameters.items()})
"""


def test_a_process_that_compiles_and_one_that_loads_give_the_same_bits(
    tmp_path: Path, outside: dict[str, str]
) -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", FIT],
            env={**outside, "SYMGRAD_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout
        for _ in range(2)
    ]
    assert told[0] and told[0] == told[1]


@pytest.mark.parametrize("optimizer", [optim.adam(0.05), optim.sgd(0.2, momentum=0.9)])
def test_resume_is_bit_exact(optimizer: optim.Optimizer, tmp_path: Path) -> None:
    whole, parts, again = Net(), Net(), Net()
    path = tmp_path / "model.safetensors"
    rest = {"clip_norm": 0.5, "seed": 9}
    full = remade(optimizer)
    a = whole.trainer(full, **rest)
    history = a.fit(whole.data, 5, 8)
    b = parts.trainer(remade(optimizer), **rest)
    b.fit(parts.data, 3, 8)
    b.save(path)
    c = Trainer.load(path, mean(again.rows), metrics={"accuracy": again.hit})
    assert (c.epoch, c.seed, c.clip_norm) == (3, 9, 0.5)
    assert c.history.loss == history.loss[:3]
    assert c.optimizer.to_json() == optimizer.to_json()
    c.fit(again.data, 2, 8)
    assert c.history.loss == history.loss
    assert c.history.metrics == history.metrics
    for name, value in c.parameters.items():
        assert value.tobytes() == a.parameters[name].tobytes()


def remade(optimizer: optim.Optimizer) -> optim.Optimizer:
    return optim.Optimizer.from_json(optimizer.to_json())


def test_only_the_trained_parameters_stay_trained(tmp_path: Path) -> None:
    net, again = Net(), Net()
    trainer = net.trainer(wrt=net.W2)
    trainer.fit(net.data, 1, 8)
    trainer.save(tmp_path / "m")
    loaded = Trainer.load(tmp_path / "m", mean(again.rows))
    assert [p.name for p in loaded.objective.trained] == ["W2"]
    np.testing.assert_array_equal(loaded.parameters["W1"], trainer.parameters["W1"])


def test_a_rate_that_is_an_expression_is_given_again(tmp_path: Path) -> None:
    net, again = Net(), Net()
    trainer = net.trainer(optim.sgd(0.5 / (step + 1)))
    trainer.fit(net.data, 1, 8)
    trainer.save(tmp_path / "m")
    with pytest.raises(SymgradError, match="learning rate was an expression"):
        Trainer.load(tmp_path / "m", mean(again.rows))
    loaded = Trainer.load(tmp_path / "m", mean(again.rows), optimizer=optim.sgd(0.5 / (step + 1)))
    one, two = trainer.fit(net.data, 1, 8), loaded.fit(net.data, 1, 8)
    assert one.loss == two.loss


def test_the_file_is_plain_safetensors_and_names_are_free(tmp_path: Path) -> None:
    arrays = {
        'W"];evil\n': np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "\u2028": np.array(7, np.int32),
        "__metadata__": np.zeros((0, 2)),
    }
    checkpoint.write(tmp_path / "f", arrays, {"a": 1})
    with safetensors.safe_open(tmp_path / "f", framework="numpy") as file:
        assert sorted(file.keys()) == ["0", "1", "2"]
    got, record = checkpoint.read(tmp_path / "f")
    assert record == {"a": 1} and list(got) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
    assert os.listdir(tmp_path) == ["f"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Net().trainer()
    path = tmp_path / "m"
    trainer.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        trainer.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("name", ["no/such/folder/m", "."])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(OSError, match="save: cannot write the file") as caught:
        Net().trainer().save(path)
    assert caught.value.filename == str(path) and os.listdir(tmp_path) == []


def test_files_that_are_something_else(tmp_path: Path) -> None:
    net = Net()
    net.trainer().save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    loss = mean(net.rows)
    cases = {
        "empty": b"",
        "short": good[: len(good) // 2],
        "header": good[:20],
        "text": b"hello, I am no model file at all",
        "pickle": b"\x80\x04\x95" + bytes(40),
        "flipped": good.replace(b'\\"epoch\\"', b'\\"epoxh\\"'),
        "a weight": good[:-5] + bytes([good[-5] ^ 1]) + good[-4:],
        "a figure": good.replace(b'\\"seed\\": 0', b'\\"seed\\": 1'),
    }
    assert len(set(cases.values())) == len(cases) and good not in cases.values()
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"(?s)load: .*{name}"):
            Trainer.load(tmp_path / name, loss)
    safetensors.numpy.save_file({"W": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(DataError, match=r"not one that Trainer.save wrote"):
        Trainer.load(tmp_path / "foreign", loss)
    header = {"format": checkpoint.FORMAT, "version": 99, "names": [], "record": {}}
    safetensors.numpy.save_file(
        {"0": np.zeros(3)}, tmp_path / "later", metadata={"symgrad": json.dumps(header)}
    )
    with pytest.raises(DataError, match="version 99"):
        Trainer.load(tmp_path / "later", loss)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Trainer.load(tmp_path / "nowhere", loss)


def test_leaves_that_differ_are_shown_from_both_sides(tmp_path: Path) -> None:
    net = Net()
    net.trainer(optim.adam()).save(tmp_path / "m")
    with pytest.raises(LeafError, match=r"has no parameter 'W2', 'b2', which .*m trains"):
        Trainer.load(tmp_path / "m", mean(net.x @ net.W1 + net.b1))
    wide = parameter("W1", (9, 7))
    with pytest.raises(LeafError) as error:
        Trainer.load(tmp_path / "m", replace([mean(net.rows)], {net.W1: wide[:5]})[0])
    assert "'W1' float32 (9, 7)" in str(error.value) and "'W1' float32 (5, 7)" in str(error.value)
    with pytest.raises(LeafError) as error:
        Trainer.load(tmp_path / "m", mean(net.rows), optimizer=optim.sgd(0.1))
    text = str(error.value)
    assert "in the trainer only\n    none" in text and "'adam.m/W1' float32 (5, 7)" in text
