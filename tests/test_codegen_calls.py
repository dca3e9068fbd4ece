"""Calling a compiled program: what it takes, what it returns, what it refuses, and from where."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.pipeline import compile
from codegen.schedule import MOST_LINES
from symgrad.graph.errors import CompileError, DataError, LeafError, SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Input
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted

n = sg.dim("n")
x = sg.input("x", (n, 3))
k = sg.input("k", (n,), "int32")
scale = sg.parameter("scale", (3,), np.array([1, 2, 3], np.float32))
table = sg.input("table", (7, 3))
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)
PLACES = np.array([0, 6, -7, 3, -1], np.int32)
TABLE = np.arange(21, dtype=np.float32).reshape(7, 3)


@pytest.fixture(scope="module")
def f() -> Compiled:
    return compile({"rows": x * scale, "sum": (x * scale).sum(), "read": table[k], "twice": [x, x]})


def expected(**changed: Any) -> dict[str, Any]:
    values = {"x": ROWS, "k": PLACES, "table": TABLE, **changed}
    outputs = {"rows": x * scale, "sum": (x * scale).sum(), "read": table[k], "x": x}
    return evaluate(outputs, values)


# -- values ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "given",
    [
        ROWS.astype(np.float64),
        ROWS.tolist(),
        ROWS.astype(np.int64),
        np.asfortranarray(ROWS),
        np.repeat(ROWS, 2, axis=1)[:, ::2],
        ROWS[::-1][::-1],
        np.lib.stride_tricks.as_strided(ROWS[0], (4, 3), (0, 4)),
        ROWS.astype(">f4"),
        np.frombuffer(b"\0" + ROWS.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 3),
        ROWS[:0],
        ROWS[:1],
    ],
    ids=[
        "f64",
        "list",
        "i64",
        "fortran",
        "strided",
        "turned",
        "stuck",
        "big",
        "odd",
        "none",
        "one",
    ],
)
def test_values_of_other_layouts_and_dtypes(f: Compiled, given: Any) -> None:
    size = len(given)
    got = f(x=given, k=PLACES[:size], table=TABLE)
    wanted = expected(x=np.asarray(given, np.float32), k=PLACES[:size])
    for name in ("rows", "sum", "read"):
        np.testing.assert_array_equal(got[name], wanted[name])
    np.testing.assert_array_equal(got["twice"][1], wanted["x"])


def test_a_parameter_left_out_takes_its_initial_value(f: Compiled) -> None:
    got = f(x=ROWS, k=PLACES, table=TABLE, scale=[0, 0, 1])
    np.testing.assert_array_equal(got["rows"], ROWS * np.array([0, 0, 1], np.float32))
    np.testing.assert_array_equal(f(x=ROWS, k=PLACES, table=TABLE)["rows"], expected()["rows"])


def test_results_are_fresh_and_arguments_are_never_written(f: Compiled) -> None:
    given = {"x": ROWS.copy(), "k": PLACES.copy(), "table": TABLE.copy()}
    for array in given.values():
        array.setflags(write=False)
    first, second = f(**given), f(**given)
    arrays = [first["rows"], first["sum"], first["read"], *first["twice"]]
    arrays += [second["rows"], second["sum"], second["read"], *second["twice"]]
    for j, array in enumerate(arrays):
        assert isinstance(array, np.ndarray) and array.flags.writeable
        others = [*arrays[:j], *arrays[j + 1 :], *given.values()]
        assert not any(np.shares_memory(array, other) for other in others)
    first["rows"][...] = 0
    np.testing.assert_array_equal(f(**given)["rows"], expected()["rows"])


def test_one_array_for_two_leaves() -> None:
    a, b = sg.input("a", (3, 5)), sg.input("b", (3, 5))
    both = np.arange(15, dtype=np.float32).reshape(3, 5)
    with interpreted():
        g = compile([a + b, a @ sg.transpose(b)])
    got = call(g, {"a": both, "b": both})
    np.testing.assert_array_equal(got[0], both + both)


def test_outputs_keep_their_structure() -> None:
    a = sg.input("a", (3,))
    with interpreted():
        g = compile({"p": (a, [a + 1]), "q": {"r": a * 2, "s": 2.0}})
    got = g(a=[1, 2, 3])
    assert isinstance(got["p"], tuple) and got["p"][1][0].tolist() == [2, 3, 4]
    assert got["q"]["r"].tolist() == [2, 4, 6] and got["q"]["s"] == 2.0
    with interpreted():
        assert compile(a)(a=[1, 2, 3]).tolist() == [1, 2, 3]
        assert compile([])() == []


# -- what is refused -------------------------------------------------------------------------------
def test_names(f: Compiled) -> None:
    with pytest.raises(
        LeafError, match=r"no leaf is named 'z'. Leaves: 'k', 'scale', 'table', 'x'"
    ):
        f(x=ROWS, k=PLACES, table=TABLE, z=1)
    with pytest.raises(LeafError, match=r"no value for the input 'table'\n.*table"):
        f(x=ROWS, k=PLACES)


def test_names_of_leaves_that_simplification_drops() -> None:
    a, b = sg.input("a", (3,)), sg.input("b", (3,))
    with interpreted():
        g = compile(a + sg.where(sg.constant(True), 0.0, 0.0) + (b - b) * 0)
        assert g(a=[1, 2, 3], b=[1, 1, 1]).tolist() == [1, 2, 3]
        with pytest.raises(LeafError, match="no value for the input 'b'"):
            g(a=[1, 2, 3])


def test_shapes(f: Compiled) -> None:
    with pytest.raises(DataError, match=r"'x' has the wrong shape\n.*\(n, 3\).*\n.*\(5, 4\)"):
        f(x=np.zeros((5, 4), np.float32), k=PLACES, table=TABLE)
    with pytest.raises(DataError, match="'x' has the wrong shape"):
        f(x=np.zeros(3, np.float32), k=PLACES, table=TABLE)
    with pytest.raises(DataError, match=r"'k' has the wrong shape\n.*\(n,\).* for n = 5\n.*\(4,\)"):
        f(x=ROWS, k=PLACES[:4], table=TABLE)


def test_dtypes(f: Compiled) -> None:
    with pytest.raises(DataError, match="'k' is int32, got float64"):
        f(x=ROWS, k=PLACES.astype(np.float64), table=TABLE)
    with pytest.raises(DataError, match="'k' is int32, got 4294967296"):
        f(x=ROWS, k=np.array([0, 0, 0, 0, 2**32]), table=TABLE)
    with pytest.raises(DataError, match=r"'x' is float32, got .*U"):
        f(x=[["a", "b", "c"]], k=[0], table=TABLE)


@pytest.mark.parametrize("wrong", [7, -8, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_names_the_line(f: Compiled, wrong: int) -> None:
    places = PLACES.copy()
    places[3] = wrong
    with pytest.raises(DataError, match=rf"index {wrong} is out of range for extent 7") as caught:
        f(x=ROWS, k=places, table=TABLE)
    assert "test_codegen_calls.py:" in str(caught.value)
    assert "at (3,) of  'k'" in str(caught.value)
    np.testing.assert_array_equal(f(x=ROWS, k=PLACES, table=TABLE)["read"], TABLE[PLACES])


def test_labels_out_of_range_name_the_loss() -> None:
    logits, y = sg.input("logits", (n, 3)), sg.input("y", (n,), "int32")
    loss = sg.cross_entropy(logits, y).mean()
    with interpreted():
        g = compile([loss, sg.grad(loss, logits)])
        values = {"logits": ROWS, "y": np.array([0, 1, 2, 3, 0], np.int32)}
        alone = compile(sg.grad(loss, logits))  # its Scatter became a comparison
        for bad in (3, -1, -3):
            values["y"][3] = bad
            for made in (g, alone):
                match = rf"cross_entropy: label {bad} .*extent 3\n.*test_codegen_calls"
                with pytest.raises(DataError, match=match) as caught:
                    made(**values)
                assert "at (3,) of  'y'" in str(caught.value)
                assert "Labels must lie in 0..2." in str(caught.value)
        values["y"][3] = 0
        call(g, values)


def test_a_bad_index_behind_views_names_the_leaf() -> None:
    table, k = sg.input("table", (7, 3)), sg.input("k", (2, n), "int32")
    read = table[k.T[1:][::-1].reshape(n * 2 - 2)]
    with interpreted():
        g = compile(read)
    places = np.array([[0, 6, 3, 2], [1, 0, 9, 5]], np.int32)
    with pytest.raises(DataError, match="index 9 is out of range for extent 7") as caught:
        g(table=TABLE, k=places)
    assert "at (1, 2) of  'k'" in str(caught.value)


def test_an_empty_axis_has_no_maximum() -> None:
    a = sg.input("a", (n, 3))
    for verb in (sg.max, sg.min, sg.argmax, sg.argmin):
        with interpreted():
            g = compile(verb(a, 0))
        with pytest.raises(DataError, match="axis 0 is empty"):
            g(a=ROWS[:0])
        assert g(a=ROWS).shape == (3,)


def test_a_dim_that_no_leaf_tells() -> None:
    with interpreted():
        g = compile(sg.arange(sg.dim("m")) + sg.input("a", ()))
    with pytest.raises(LeafError, match="no value tells the dim 'm'"):
        g(a=1.0)


def test_dims_that_must_be_equal() -> None:
    a, b = sg.input("a", (sg.dim("p"),)), sg.input("b", (sg.dim("q"),))
    with interpreted():
        g = compile(a + b)
    with pytest.raises(DataError, match=r"extents that must be equal differ: .*p = 3.*q = 5"):
        g(a=np.zeros(3), b=np.zeros(5))
    assert g(a=np.ones(3), b=np.ones(3)).tolist() == [2, 2, 2]


def test_initial_values_do_not_depend_on_the_seed() -> None:
    w = sg.parameter("w", (3, 5))
    with interpreted():
        first, other = (compile(w * 1, seed=seed) for seed in (0, 2))
        state = compile([], updates={w: w * 2}, seed=1).state["w"]
    np.testing.assert_array_equal(first(), sg.evaluate(w))
    np.testing.assert_array_equal(first(), state)
    np.testing.assert_array_equal(first(), other())


def test_a_step_counts_calls() -> None:
    step = Input("step", (), np.dtype(np.float32), "step")
    with interpreted():
        g = compile(step + 0.5)
    assert [float(g()) for _ in range(3)] == [0.5, 1.5, 2.5]


def test_what_compile_refuses() -> None:
    with pytest.raises(CompileError, match=r"target 'tpu' does not exist. Choose one of: cpu"):
        compile(x, target="tpu")
    with pytest.raises(CompileError, match="threads=-1"):
        compile(x, threads=-1)
    with pytest.raises(SymgradError, match="expected expressions, got str"):
        compile("x")
    with pytest.raises(LeafError, match=r"two leaves have one name\n.*'a'.*\n.*'a'"):
        compile(sg.input("a", (3,)) + sg.input("a", (3,)))


# -- threads ---------------------------------------------------------------------------------------
def test_threads_call_one_program_at_the_same_time(f: Compiled) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            rows = rng.standard_normal((int(rng.integers(0, 300)), 3)).astype(np.float32)
            places = rng.integers(-7, 7, len(rows)).astype(np.int32)
            got = f(x=rows, k=places, table=TABLE)
            if not np.array_equal(got["read"], TABLE[places]):
                wrong.append("read")
            if not np.array_equal(got["rows"], rows * np.array([1, 2, 3], np.float32)):
                wrong.append("rows")
            if not np.array_equal(got["twice"][0], rows):
                wrong.append("twice")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_update_one_state_one_after_the_other() -> None:
    count = sg.parameter("count", (1000,), 0.0)
    g = compile(count[0], updates={count: count + 1})
    seen: list[float] = []

    def work() -> None:
        seen.extend(float(g()) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(200))
    assert (g.state["count"] == 200).all()


# -- looking at it ---------------------------------------------------------------------------------
def test_what_a_program_tells_of_itself(f: Compiled) -> None:
    report = f.report()
    assert "simplify" in report and "kernel calls" in report and "workspace" in report
    assert "stages; slots of memory" in str(f.stages)
    assert "loops" in str(f.stages.schedule) and "kernel stage_1" in str(f.stages.kernels[0])
    assert repr(f).startswith("<compiled f(") and "<details>" in f._repr_html_()
    assert set(f.bench(x=ROWS, k=PLACES, table=TABLE)) >= {"compile", "first", "median"}
    assert [leaf.name for leaf in f.leaves] == ["x", "scale", "table", "k"]
    assert f.dims == (n,)


def test_large_programs_print_a_screen_of_each_stage() -> None:
    h, W = sg.input("h", (3, 3)), sg.input("W", (3, 3))
    kept = []
    for _ in range(100):
        h = sg.tanh(h @ W + 1.0).max(axis=0) + h
        kept.append(h)
    stages = sg.compile(sum(kept[1:], kept[0])).stages
    for shown, count in (
        (stages.schedule, len(stages.schedule.stages)), (stages.plan, len(stages.plan.slots))
    ):
        lines = str(shown).splitlines()
        assert len(lines) == MOST_LINES + 1 and lines[-1] == f".. and {count - MOST_LINES} more"
    assert len(str(stages).splitlines()) < 120
