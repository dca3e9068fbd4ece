"""The command line: what it prints, what it refuses, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import symgrad
from symgrad import cli, demo, doctor
from symgrad.diagram import rendering


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
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fuzz", "--programs", "many"])
    assert "argument --programs: must be an integer, got 'many'" in capsys.readouterr().err


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


FILES = {
    "forward.svg",
    "backprop.svg",
    "gradient_flow.svg",
    "explosion.svg",
    "derivation.html",
    "kernels.py",
    "training.png",
}


def test_demo_from_the_command_line(tmp_path, outside) -> None:
    """One run for all that a newcomer sees: it learns, speaks JSON only, and writes its folder."""
    out = tmp_path / "deep" / "folder"
    done = command(
        *("demo", "--quick", "--json", "--threads", "2", "--out", str(out)),
        folder=tmp_path,
        environment=outside,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["test_accuracy"] >= 0.97
    assert result["steps_per_second"] > 0
    assert result["compile_seconds"] == pytest.approx(sum(result["passes"].values()))
    assert result["notes"] == []
    assert {os.path.relpath(path, out) for path in result["files"]} == FILES
    assert set(os.listdir(out)) == FILES

    for name in FILES:
        content = (out / name).read_bytes()
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        elif name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
    page = (out / "derivation.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<math" in page
    assert "http" not in page.replace("http://www.w3.org/1998/Math/MathML", "")
    kernels = (out / "kernels.py").read_text(encoding="utf-8")
    assert "import symgrad" not in kernels and "import codegen" not in kernels
    done = subprocess.run(
        [sys.executable, "-I", str(out / "kernels.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_five_seeds_reach_their_accuracy_on_average() -> None:
    network = demo.write_network()
    accuracies = [
        demo.fit(network, demo.load_digits(seed), demo.EPOCHS, seed=seed).test["accuracy"]
        for seed in range(5)
    ]
    assert sum(accuracies) / 5 >= 0.965, accuracies


def test_digits_are_split_without_overlap() -> None:
    digits = demo.load_digits()
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_test.shape == (360, 64)
    assert digits.x_train.dtype == np.float32
    assert digits.y_train.dtype == np.int32
    np.testing.assert_allclose(digits.x_train.mean(axis=0), 0, atol=1e-6)
    again = demo.load_digits()
    np.testing.assert_array_equal(again.y_test, digits.y_test)
    rows = np.concatenate([digits.x_train, digits.x_test])
    assert len(np.unique(rows, axis=0)) == 1797


@pytest.mark.parametrize("given", ["-1", "two", "1.5"])
def test_threads_of_the_demo_are_a_number(tmp_path, capsys, given: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--threads", given, "--out", str(tmp_path)])
    assert "--threads: must" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        assert cli.main(["demo", "--quick", "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"symgrad: {out}: ")
        assert captured.err.count("\n") == 1


def test_demo_without_scikit_learn(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert 'pip install "symgrad[demo]"' in capsys.readouterr().err


def test_pictures_that_cannot_be_rendered_are_saved_as_dot(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rendering, "available_renderers", lambda: ())
    gallery = demo.Gallery(tmp_path)
    gallery.draw("forward", "a picture", symgrad.draw(symgrad.input("x", (3,)) * 2.0))
    assert [path.name for path in gallery.files] == ["forward.dot"]
    assert (tmp_path / "forward.dot").read_text(encoding="utf-8").startswith("digraph")
    assert 'pip install "symgrad[viz]"' in gallery.notes[0]
    assert os.listdir(tmp_path) == ["forward.dot"]


def test_the_summary_names_every_file(tmp_path) -> None:
    result = demo.Result(
        test_accuracy=0.975,
        test_loss=0.1,
        epochs=3,
        steps=135,
        train_seconds=0.5,
        compile_seconds=2.5,
        passes={"simplify": 0.5, "load": 2.0},
        files={tmp_path / "forward.svg": "the network"},
        notes=("nothing can render",),
    )
    text = result.summary()
    for part in ("97.50%", "270 steps per second", "simplify 500", "load 2000", "forward.svg"):
        assert part in text
    assert "note: nothing can render" in text
    assert set(result.as_json()) >= {
        "test_accuracy",
        "steps_per_second",
        "compile_seconds",
        "files",
    }
