"""The README speaks the truth: its programs run, its files exist, its commands are real."""

from __future__ import annotations

import contextlib
import io
import operator
import re

import pytest

import symgrad as sg
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]


@pytest.mark.parametrize("program", PYTHON, ids=[f"block{i}" for i in range(len(PYTHON))])
def test_python_blocks_run(program: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__readme__"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "README.md", "exec"), names)
    assert out.getvalue()
    if "trainer" in names:
        result = names["trainer"].evaluate({"x": names["points"], "y": names["inside"]})
        assert result["accuracy"] > 0.95


def test_the_example_is_as_long_as_it_says() -> None:
    assert 20 <= sum(bool(line.strip()) for line in PYTHON[0].splitlines()) <= 28


def test_the_two_lines_stand_beside_their_windows_forms() -> None:
    unix = [text.strip() for language, text in BLOCKS if language == "sh"]
    windows = [text.strip() for language, text in BLOCKS if language == "bat"]
    assert unix == [
        'python3 -m venv .venv && .venv/bin/pip install -e ".[demo]" && .venv/bin/symgrad demo',
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest',
    ]
    translated = [
        line.replace("python3 -m", "py -m").replace(".venv/bin/", ".venv\\Scripts\\")
        for line in unix
    ]
    assert windows == translated


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"!?\[[^\]]*\]\((?!http)([^)]+)\)", README)))
)
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bsg((?:\.[A-Za-z]\w*)+)", README))))
def test_names_exist(name: str) -> None:
    operator.attrgetter(name[1:])(sg)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:symgrad|codegen|tests|examples)/[\w/.]*)`", README)))
)
def test_paths_exist(path: str) -> None:
    assert (ROOT / path).exists()
