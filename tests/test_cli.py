"""The command line: what it prints, what it refuses, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import symgrad
from symgrad import cli, doctor


def command(*arguments: str, folder, environment, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "symgrad.cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_version_and_usage(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"symgrad {symgrad.__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train"])
    assert "invalid choice: 'train'" in capsys.readouterr().err


def test_doctor_says_what_works(capsys) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["python", "packages", "cpu", "blas", "compiler", "graphviz", "demo", "cuda", "cache"]
    assert [line.split()[1] for line in lines] == names
    assert all(line.startswith(("ok", "--")) for line in lines)


def test_doctor_as_json(capsys) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["compiler"]["works"] is True
    assert report["python"]["optional"] is False


def test_doctor_says_what_to_install(monkeypatch) -> None:
    present = doctor._version
    absent = {"pygraphviz", "scikit-learn", "matplotlib", "numba-cuda", "numba"}
    monkeypatch.setattr(doctor, "_version", lambda p: None if p in absent else present(p))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = {finding.name: finding for finding in doctor.examine()}
    assert 'pip install "symgrad[viz]"' in str(found["graphviz"])
    assert 'pip install "symgrad[demo]"' in str(found["demo"])
    assert str(found["graphviz"]).startswith("--")
    assert str(found["packages"]).startswith("NO")
    assert "pip install numba" in str(found["packages"])


def test_doctor_goes_on_after_a_failure(monkeypatch, capsys) -> None:
    def _broken() -> doctor.Finding:
        raise RuntimeError("the compiler is on strike")

    monkeypatch.setattr(doctor, "_EXAMINATIONS", (_broken, *doctor._EXAMINATIONS[:2]))
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NO") and "on strike" in lines[0]
    assert len(lines) == 3


def test_doctor_without_any_extra(tmp_path, outside) -> None:
    """A child process in which every optional package is absent."""
    extras = ["pygraphviz", "sklearn", "matplotlib", "numba_cuda", "pytest", "hypothesis"]
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nfor name in {extras!r}:\n    sys.modules[name] = None\n"
    )
    outside["PYTHONPATH"] = os.pathsep.join([str(tmp_path), outside["PYTHONPATH"]])
    done = command("doctor", folder=tmp_path, environment=outside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 9


def test_cache_clear(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SYMGRAD_CACHE_DIR", str(tmp_path))
    ours = tmp_path / f"sg_{'0' * 32}.py"
    ours.write_text("x = 1\n")
    (tmp_path / "mine.txt").write_text("not symgrad's")
    assert cli.main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path), "files": 1, "bytes": 6}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 0 files")


def test_errors_are_one_message_and_status_2(monkeypatch, capsys) -> None:
    def _fail(error: BaseException):
        def run() -> None:
            raise error

        return run

    for error, status, message in (
        (symgrad.ShapeError("matmul: (3, 5) by (7,)"), 2, "symgrad: matmul: (3, 5) by (7,)\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "symgrad: out: Permission denied\n"),
        (OSError("the disk is full"), 2, "symgrad: the disk is full\n"),
        (ImportError("demo: install scikit-learn"), 2, "symgrad: demo: install scikit-learn\n"),
        (KeyboardInterrupt(), 130, "symgrad: interrupted\n"),
    ):
        monkeypatch.setattr(doctor, "examine", _fail(error))
        assert cli.main(["doctor"]) == status
        captured = capsys.readouterr()
        assert captured.err == message
        assert captured.out == ""
