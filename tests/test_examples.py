"""Every chapter in `examples/` runs in its quick form and writes its figures."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

import symgrad as sg
from tests.conftest import ROOT

CHAPTERS = sorted((ROOT / "examples").glob("[0-9]*.py"))
FIGURES = {
    "01_function_approximation": {
        "likelihood.png",
        "network.svg",
        "network_backward.svg",
        "network_to_table.png",
        "tables.png",
    },
    "02_expressivity": {
        "deep_and_narrow.png",
        "one_hidden_layer.png",
        "too_narrow.png",
        "what_neurons_hold.png",
    },
    "03_backpropagation": {
        "graph_against_tree.png",
        "network_backward.svg",
        "network_flow.svg",
        "network_forward.svg",
        "neuron.svg",
        "reverse_against_forward.png",
    },
    "04_gradient_descent": {"bowl.png", "digits.png", "stochastic.png", "valley.png"},
    "05_pos_tagging": {"confusion.png", "taggers.png"},
    "06_recurrent_networks": {
        "gradient_by_lag.png",
        "products.png",
        "recall.png",
        "recurrence.svg",
        "unrolled.svg",
    },
    "07_character_model": {"loss.png", "surprise.png"},
}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_chapter_runs(chapter: Path, tmp_path, outside) -> None:
    done = subprocess.run(
        [sys.executable, str(chapter), "--quick", "--out", str(tmp_path / "figures")],
        cwd=tmp_path,
        env={**outside, "PYTHONWARNINGS": "error", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == FIGURES[chapter.stem]
    assert os.listdir(tmp_path) == ["figures"]
    for path in (tmp_path / "figures").iterdir():
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def examples(monkeypatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


def test_a_treebank_of_any_size(tmp_path, examples) -> None:
    chapter = examples("corpus")
    # a token of two words, and a word that is not written
    rows = ["# text", "1-2\tdon't\t_\t_", "1\tdo\tdo\tAUX", "1.1\tx\tx\tX", "2\tn't\tnot\tPART", ""]
    for part in ("train", "dev", "test"):
        (tmp_path / f"ud-{part}.conllu").write_text("\n".join(rows), encoding="utf-8")
    training, development, _ = chapter.treebank(tmp_path)
    assert training == [[("do", "AUX"), ("n't", "PART")]]
    assert chapter.tag_of_unknown(chapter.count(training), development) == "AUX"
    assert chapter.tag_of_unknown({"do": {}}, development) == "PART"
    (tmp_path / "ud-test.conllu").write_text("\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"--data: no sentence in .*ud-test\.conllu"):
        chapter.treebank(tmp_path)
    with pytest.raises(SystemExit, match="--data: no file"):
        chapter.treebank(ROOT)


def test_counting_of_characters_by_hand(examples) -> None:
    chapter = examples("07_character_model")
    text = chapter.Text("abacabadabaabacabad" + "ab")
    seen, nats = text.training, []
    for k in range(3):
        total = 0.0
        for place in range(len(seen), len(text.codes)):
            chance = 1 / 4
            for length in range(k + 1):
                before = text.codes[place - length : place].tolist()
                after = [
                    seen[t] for t in range(length, len(seen))
                    if seen[t - length : t].tolist() == before
                ]
                if after:
                    n, u = len(after), len(set(after))
                    chance = (after.count(text.codes[place]) + u * chance) / (n + u)
            total -= np.log(chance)
        nats.append(total / len(text.held_out))
    np.testing.assert_allclose(chapter.count(text, 2), nats, rtol=1e-12)


def test_streams_of_a_text_lose_nothing(examples) -> None:
    chapter = examples("07_character_model")
    text, entropy = chapter.small_language(3000)
    assert 0.2 < entropy < 0.3 and text.endswith(".\n")
    model = chapter.Model(chapter.Text(text), chapter.replace(chapter.SMALL, rows=3, units=5), 1)
    rows = model.streams(np.arange(22), 3)
    np.testing.assert_array_equal(rows, [[*range(8)], [*range(7, 15)], [*range(14, 22)]])
    tokens = sg.input("tokens", (1, 301), "int32")
    zeros = tuple(sg.zeros((1, 5)) for _ in range(2))
    codes = model.text.codes[:301]
    values = {"tokens": codes[None], **model.trainer.parameters}
    wanted = sg.evaluate(model.losses(tokens, zeros)[0], values)
    np.testing.assert_allclose(model.surprise(codes), wanted, rtol=1e-4)


def test_numbers_of_words_and_batches(examples) -> None:
    chapter = examples("05_pos_tagging")
    training = [[("The", "D"), ("cat", "N")], [("the", "D"), ("caterpillars", "N"), ("sat", "V")]]
    size = chapter.replace(chapter.SMALL, least=2, longest=4)
    numbers = chapter.Numbers(training, size)
    assert numbers.words == {"the": 2} and numbers.times.tolist() == [0, 0, 2]
    letters = numbers.letters
    assert numbers.of_letters("c?t") == [letters["c"], 1, letters["t"], 0, 0, 0, 0, 0]
    assert numbers.of_letters("caters") == [letters[x] for x in "cate"] + [0, 0] + [
        letters[x] for x in "rs"
    ]
    data = numbers.data(training)
    assert data["words"] == [[2, 1], [2, 1, 1]] and data["tags"] == [[0, 1], [0, 1, 2]]
    assert data["lengths"] == [2, 3] and [x.shape for x in data["letters"]] == [(2, 8), (3, 8)]
    # a tagger gives each sentence its own answers, in order
    words, hidden = sg.input("words", (400,), "int32"), np.full(400, 2)
    drawn = sg.evaluate(
        chapter.hidden(words, np.array([0, 0, 0.75])), {"words": hidden}, training=True
    )
    assert set(drawn.tolist()) == {1, 2} and 60 < (drawn == 1).sum() < 140  # a quarter
    np.testing.assert_array_equal(
        sg.evaluate(chapter.hidden(words, np.array([0, 0, 0.75])), {"words": hidden}), hidden
    )
    tagger = chapter.Tagger("RNN", numbers, 1, 1, 1)
    alone = [tagger.tag([sentence])[0] for sentence in training]
    assert tagger.tag(training[::-1]) == alone[::-1]
    assert [len(answers) for answers in alone] == [2, 3]
