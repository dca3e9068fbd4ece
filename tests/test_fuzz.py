"""`symgrad fuzz`: what it draws, that it finds a planted mistake, makes it small, and prints it."""

from __future__ import annotations

import json
import runpy
from collections import Counter

import numpy as np
import pytest

from symgrad import cli
from symgrad.calculus import vjp
from symgrad.fuzz import campaign, simulation
from symgrad.fuzz.campaign import functions_of, missing_verbs, verbs_of_face
from symgrad.fuzz.drawing import random_program
from symgrad.fuzz.judges import Failure, Seen, compared, differentiated, evaluated, judged
from symgrad.fuzz.minimisation import minimised, size_of
from symgrad.fuzz.programs import Built, Program, script, widened
from symgrad.fuzz.rounding import Shaken
from symgrad.fuzz.scripts import runnable
from symgrad.graph.folds import NODES
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Reindex


def test_a_few_programs() -> None:
    summary = campaign.run(20, seed=100, compiled_every=20, simulated_every=0, shown=False)
    assert not summary.failures, "\n".join(f.script for f in summary.failures)
    assert summary.programs == 20
    judged_ = summary.seen.judged
    assert judged_["evaluated"] == 20 and judged_["compiled"] == 1
    assert judged_["second order"] >= 18 and judged_["adjoint"] >= 19


@pytest.fixture(scope="module")
def many() -> list[Program]:
    return [random_program(seed) for seed in range(500)]


def test_every_verb_and_every_node_is_drawn(many: list[Program]) -> None:
    verbs: Counter[str] = Counter()
    kinds: set[str] = set()
    for program in many:
        verbs.update(functions_of(program.lines))
        if program.seed < 60:
            graph = Graph.of(Built(program).outputs)
            kinds |= {type(node).__name__ for node in graph.every_node()}
    assert not missing_verbs(verbs)
    assert "softmax" in verbs_of_face() and "einsum" in verbs_of_face()
    assert kinds == {cls.__name__ for cls in NODES}


def test_what_programs_hold(many: list[Program]) -> None:
    dtypes = {leaf.data.dtype.name for p in many for leaf in p.leaves}
    assert dtypes == {"float32", "float64", "int32", "int64", "bool"}
    extents = {n for p in many for leaf in p.leaves for n in leaf.data.shape}
    assert {0, 1, 2, 3, 4, 5} <= extents
    assert any(p.updates for p in many) and any(p.equal for p in many)
    assert any(p.training for p in many) and any(not p.stable for p in many)
    texts = ["\n".join(script(p)) for p in many]
    for option in ("reverse=True", "lengths=", "truncate=", "checkpoint="):
        assert any(f", {option}" in text for text in texts), option
    assert any("    def step" in text for text in texts)  # a recurrence in a recurrence
    lengths = {leaf.data.shape[:1] for p in many for leaf in p.leaves}
    assert (0,) in lengths


def test_a_program_is_the_same_in_every_process() -> None:
    a, b = random_program(11), random_program(11)
    assert script(a) == script(b)
    assert script(a) != script(random_program(12))


@pytest.fixture
def wrong_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cotangent of a move is too large by a tenth."""
    right = vjp.RULES[Reindex]

    def wrong(node, ct, batch, needs):
        return [None if part is None else part * 1.1 for part in right(node, ct, batch, needs)]

    monkeypatch.setitem(vjp.RULES, Reindex, wrong)


def planted() -> tuple[Program, Failure]:
    for seed in range(500, 1500):
        program = random_program(seed)
        if [line.function for line in program.lines].count("sg.flip") == 1:
            failure = judged(differentiated, program)
            if failure is not None:
                return program, failure
    raise AssertionError("no program found the mistake")


def test_a_planted_mistake_is_found_made_small_and_printed(
    wrong_flip: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, failure = planted()
    assert failure.judge == "differentiated"
    small, found = minimised(program, failure, 30.0)
    assert found.kind == failure.kind
    assert size_of(small) < size_of(program)
    (line,) = small.lines
    assert line.function in ("sg.flip", "sg.stack", "sg.pad", "sg.concatenate", "[]", "sg.reshape")
    assert sum(leaf.data.size for leaf in small.leaves) == 1
    text = runnable(small, found)
    assert {line for line in text.splitlines() if line.startswith("import")} == {
        "import numpy as np", "import symgrad as sg",
    }  # fmt: skip
    path = tmp_path / "failure.py"
    path.write_text(text)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        runpy.run_path(str(path))
    monkeypatch.undo()
    runpy.run_path(str(path))  # without the mistake the script says nothing


def test_numbers_of_another_type_or_value_are_failures() -> None:
    a = np.array([1.0, 2.0], np.float32)
    none = np.zeros(2)
    assert compared("k", [a], [a.copy()], [none]) is None
    assert compared("k", [a.astype(np.float64)], [a], [none]).kind == "k: type"
    assert compared("k", [a * np.float32(1 + 1e-5)], [a], [none]).kind == "k"
    assert compared("k", [a * np.float32(1 + 1e-5)], [a], [none + 1e-5]) is None
    nan = np.array([1.0, np.nan], np.float32)
    assert compared("k", [nan], [a], [none]).kind == "k"


def test_the_noise_of_a_cancellation_is_measured() -> None:
    import symgrad as sg

    x = sg.input("x", (3,))
    nodes = [sg.exp(x) * 1e4 + x - sg.exp(x) * 1e4, sg.maximum(x, 0.5)]
    shaken = Shaken(nodes, {"x": np.array([0.1, 0.7, 1.3], np.float32)}, 0, False)
    lost, exact = shaken.noise()
    assert (lost > 1e-4).all() and (lost < 1e-1).all()
    assert not exact.any()


def test_scripts_of_programs_run(tmp_path) -> None:
    for seed in range(40, 52):
        program = random_program(seed)
        for judge, kind in (("evaluated", "simplified"), ("differentiated", "gradient")):
            path = tmp_path / f"{judge}{seed}.py"
            path.write_text(runnable(program, Failure(kind, "text\nof two lines", 1e3, judge)))
            runpy.run_path(str(path))


@pytest.mark.skipif(not simulation.is_available(), reason="Numba has no CUDA simulator here")
def test_the_simulator_judges_in_its_own_process() -> None:
    assert simulation.verdicts([3], 5.0) == {3: None}


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--programs", "3", "--seed", "5", "--compiled-every", "0", "--simulated-every", "0"]
    assert cli.main(["fuzz", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 programs, seeds 5 to 7") and "no failure" in out
    assert cli.main(["fuzz", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["programs"] == 3 and report["failures"] == []
    assert cli.main(["fuzz", *options, "--time", "0"]) == 0
    assert capsys.readouterr().out.startswith("0 programs")


def test_command_line_shows_failures(
    wrong_flip: None, capsys: pytest.CaptureFixture[str]
) -> None:
    program, _ = planted()
    options = ["--programs", "1", "--seed", str(program.seed), "--compiled-every", "0"]
    assert cli.main(["fuzz", *options, "--simulated-every", "0"]) == 1
    out = capsys.readouterr().out
    assert "import symgrad as sg" in out and "sg.grad" in out and "1 failed" in out


@pytest.mark.parametrize("wrong", [["--programs", "-1"], ["--time", "soon"]])
def test_command_line_refuses(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fuzz", *wrong])


def test_a_wide_program_has_no_narrow_floats() -> None:
    for seed in range(20):
        program = widened(random_program(seed))
        assert all(leaf.data.dtype != np.float32 for leaf in program.leaves)
        assert '"float32"' not in "\n".join(script(program))
        assert judged(evaluated, program, Seen()) is None
