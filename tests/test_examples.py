"""Every chapter in `examples/` runs in its quick form and writes its figures."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

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


def test_a_treebank_of_any_size(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    chapter = importlib.import_module("01_function_approximation")
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
