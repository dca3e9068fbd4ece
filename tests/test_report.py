"""`f.report()`: what is counted, what is timed, what bounds a kernel, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen import benching, machine as machines
from codegen.benching import Bench
from codegen.compiled import Compiled
from codegen.counting import counts_of, operations_of
from codegen.machine import Level, Machine, this_machine
from codegen.memory import Invoked
from codegen.pipeline import compile
from codegen.reporting import KernelReport, Report, entries_of, kernels_of
from codegen.timing import MEETINGS
from symgrad.graph.dims import Dim
from symgrad.graph.errors import LeafError
from tests.ir_interpreter import interpreted
from tests.team_interpreter import everything_shared

RNG = np.random.default_rng(5)
B = Dim("B")
STEPS, ROWS = 9, 6
# A round machine: 100 operations and 10 bytes a second near by, 1 byte a second far away.
ROUND = Machine("round", 100.0, 4, (Level("L1", 1000, 10.0), Level("memory", 0, 1.0)), 1.0)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Peaks are not measured again and again."""
    monkeypatch.setattr("codegen.reporting.this_machine", lambda: ROUND)
    yield


def counted(outputs: Any, updates: Any = None, **extents: int) -> tuple[KernelReport, ...]:
    """The rows of a program's report on the round machine, without times."""
    with interpreted():
        f = compile(outputs, updates=updates)
    dims = {d: extents[d.name] for d in f.dims}
    return kernels_of(entries_of(f, dims), dims, ROUND, None)[0]


def test_operations_and_bytes_of_a_product() -> None:
    x, W = sg.input("x", (B, 5)), sg.parameter("W", (5, 7))
    (row,) = counted(x @ W, B=3)
    assert row.operations == 2 * 3 * 5 * 7
    assert row.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    (row,) = counted(x.T @ x, B=3)
    assert (row.operations, row.bytes) == (2 * 5 * 3 * 5, 4 * (3 * 5 + 5 * 5))
    a, b = sg.input("a", (2, 3, 5)), sg.input("b", (2, 5, 7))
    (row,) = counted(a @ b)
    assert row.operations == 2 * 2 * 3 * 5 * 7
    assert row.bytes == 4 * 2 * (3 * 5 + 5 * 7 + 3 * 7)


def test_operations_and_bytes_of_loops() -> None:
    x, y = sg.input("x", (B, 5)), sg.input("y", (5,))
    (row,) = counted(x * y + x, B=3)
    assert (row.operations, row.bytes) == (2 * 15, 4 * (15 + 5 + 15))
    (row,) = counted(x.sum(), B=3)
    assert (row.operations, row.bytes) == (15, 4 * (15 + 1))
    (row,) = counted(sg.softmax(x, axis=1), B=3)  # in passes, which share a row of memory
    assert row.bytes == 4 * (15 + 15 + 5 + 5)
    exp = operations_of("exp", "float32")
    (row,) = counted(sg.exp(x), B=3)
    assert row.operations == 15 * exp and 10 < exp < 60
    z = sg.input("z", (4, 3), dtype="float64")
    (row,) = counted(z[1:3] * 2.0)
    assert (row.operations, row.bytes) == (6, 8 * 12)
    (row,) = counted(sg.cumsum(sg.transpose(x), 1), B=3)
    assert row.bytes == 4 * 30


def test_a_gather_reads_no_more_rows_than_there_are() -> None:
    table, k = sg.input("table", (100, 5)), sg.input("k", (B,), dtype="int32")
    few, many = (counted(sg.take(table, k, axis=0), B=n)[0].bytes for n in (3, 1000))
    assert few == 4 * (3 + 3 * 5 + 3 * 5)
    assert many == 4 * (1000 + 100 * 5 + 1000 * 5)


def test_copies_are_counted() -> None:
    a, b = sg.parameter("a", (5, 3)), sg.parameter("b", (5, 3))
    rows = counted([], {a: b, b: a})
    assert {r.formula for r in rows} == {"copy", "%1 = b"}
    assert sum(r.bytes for r in rows) == 3 * 2 * 60 and sum(r.operations for r in rows) == 0


def test_what_bounds_a_kernel() -> None:
    n = Dim("n")
    x, W = sg.input("x", (n, n)), sg.input("W", (n, n))
    (product,) = counted(x @ W, n=64)  # 2 n^3 / 100 against 12 n^2 at 1 byte a second
    assert product.bound == "memory"
    (product,) = counted(x @ W, n=1024)
    assert product.bound == "compute"
    (product,) = counted(x @ W, n=5)  # 300 bytes lie near by: 30 s against 2.5 s
    assert product.bound == "memory"
    (sums,) = counted(x + W, n=1024)
    assert sums.bound == "memory"
    (exps,) = counted(sg.exp(sg.exp(sg.exp(sg.exp(x)))), n=10)
    assert exps.bound == "compute"


def test_equal_kernels_are_one_row_and_long_programs_fit_a_screen() -> None:
    h = sg.input("x", (3, 8))
    for k in range(60):
        h = sg.tanh(h @ sg.parameter(f"W{k}", (8, 8)))
    rows = counted(h)
    assert [r.calls for r in rows] == [60, 59, 1]  # the last one writes the result
    h = sg.input("x", (2,))
    for k in range(50):
        h = h @ sg.parameter(f"W{k}", (2 + k, 3 + k))
    with interpreted():
        f = compile(h)
    report = f.report(
        **{"x": np.zeros(2), **{f"W{k}": np.zeros((2 + k, 3 + k)) for k in range(50)}}
    )
    assert len(report.kernels) == 50 and len(report.splitlines()) < 48
    assert "19 more kernels" in report and "timed on the target 'cpu' only" in report


# -- measured --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained() -> Compiled:
    x, W = sg.input("x", (STEPS, B, 4)), sg.parameter("W", (4, 4), init=0.3)
    seen = sg.parameter("seen", (), init=0.0)

    def step(h: Any, row: Any) -> tuple[Any, Any]:
        h = sg.tanh(h @ W + row)
        return h, h

    last, _ = sg.scan(step, sg.zeros((B, 4)), x)
    loss = (last * last).mean()
    return sg.compile(loss, updates={W: W - 0.1 * sg.grad(loss, W), seen: seen + 1})


def test_before_the_first_call_it_says_what_to_do(trained: Compiled) -> None:
    report = trained.report()
    assert "Not measured: call the function first, or ask f.report(x=...)." in report
    assert "simplify" in report and "workspace" in report and not report.kernels
    static = sg.compile(sg.input("x", (3, 5)).sum())
    (row,) = static.report().kernels
    assert row.seconds is None and row.bytes == 64


def test_kernels_are_timed_where_they_stand(trained: Compiled) -> None:
    x = RNG.normal(size=(STEPS, ROWS, 4)).astype(np.float32)
    report = trained.report(x=x)
    assert isinstance(report, str) and isinstance(report, Report) and repr(report) == str(report)
    assert report.dims == {"B": ROWS}
    products = [r for r in report.kernels if "einsum ab,bc->ac" in r.formula]
    steps = STEPS * len(products[0].stages)  # h @ W again where its value was not kept
    assert [r.calls for r in products] == [steps] and "." in products[0].stages[0]
    assert products[0].operations == steps * 2 * ROWS * 4 * 4
    assert all(r.seconds is not None and r.seconds >= 0 for r in report.kernels)
    assert report.seconds is not None and report.seconds > 0
    assert report.live <= report.workspace <= 1.1 * report.live
    text = str(report)
    assert f"workspace {report.workspace} bytes at B={ROWS}" in text
    assert "its kernels together" in text and "medians of" in text
    assert json.loads(json.dumps(report)) == text


def test_measuring_leaves_the_state_as_it_was(trained: Compiled) -> None:
    x = RNG.normal(size=(STEPS, ROWS, 4)).astype(np.float32)
    trained(x=x)
    before = {name: array.copy() for name, array in trained.state.items()}
    expected = sg.evaluate(trained._outputs, {"x": x, **before})
    trained.report()
    trained.report(x=x[:, :2])
    for name, array in trained.state.items():
        np.testing.assert_array_equal(array, before[name])
    assert before["seen"] == 1
    np.testing.assert_allclose(trained(x=x), expected[0], rtol=1e-5)


def test_a_timed_program_computes_the_same(trained: Compiled) -> None:
    x = RNG.normal(size=(STEPS, ROWS, 4)).astype(np.float32)
    timed = trained.timed()
    arrays, dims = trained._bound({"x": x})
    plain, call, cells = timed.prepared(arrays, dims)
    for _ in range(2):
        assert call.run() == 0 == plain.run()
        np.testing.assert_array_equal(call.outputs[0], plain.outputs[0])
    for timed_leaf, leaf in zip(call.arrays, plain.arrays, strict=True):
        np.testing.assert_array_equal(timed_leaf, leaf)
    laps = cells[1 + MEETINGS + 1 :, 0, 1].tolist()
    assert set(laps) == {2, 2 * STEPS}  # two runs; every kernel of the recurrences once a step
    kernels = [e.call for e in entries_of(trained, dims)]
    assert len(laps) == len(kernels) and all(isinstance(k, Invoked) for k in kernels)


# -- the machine -----------------------------------------------------------------------------------
def test_peaks_are_kept_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SYMGRAD_CACHE_DIR", str(tmp_path))
    found: list[Machine] = []

    def measured() -> Machine:
        found.append(ROUND)
        return ROUND

    monkeypatch.setattr(machines, "measured", measured)
    for _ in range(2):
        this_machine.cache_clear()
        assert this_machine() == ROUND
    assert len(found) == 1
    (path,) = tmp_path.glob("*.json")
    for damaged in ("", "{}", '{"name": 1, "flops": 0, "lanes": 1, "levels": []}', "[1]"):
        path.write_text(damaged)
        this_machine.cache_clear()
        assert this_machine() == ROUND
    assert len(found) == 5
    this_machine.cache_clear()
    assert "0 GFLOP/s" in str(ROUND) and ROUND.level(2000).name == "memory"


def test_peaks_that_are_measured_make_sense() -> None:
    found = machines.measured(0.002)
    assert found.flops > 1e8 and found.lanes in (4, 8, 16)
    assert [x.name for x in found.levels][:3] == ["L1", "L2", "L3"]
    assert all(x.rate > 1e7 for x in found.levels)
    for name in ("exp", "log", "tanh", "sigmoid", "sin", "erf"):
        assert 8 < operations_of(name, "float32") <= operations_of(name, "float64") < 100
    assert operations_of("add", "float32") == operations_of("maximum", "int32") == 1
    with interpreted():
        f = compile(sg.tanh(sg.input("x", (3,), dtype="float64")))
    assert counts_of(f.stages.kernels[0], {}).itemsize == 8


# -- bench -----------------------------------------------------------------------------------------
def test_bench_tells_compiling_warming_up_and_calling_apart(
    trained: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "BLOCK_SECONDS", 0.002)
    x = RNG.normal(size=(STEPS, ROWS, 4)).astype(np.float32)
    trained(x=x)
    before = {name: array.copy() for name, array in trained.state.items()}
    steps = trained._steps
    for found in (trained.bench(x=x[:, :2]), trained.bench()):  # the last call's values
        assert found["least"] <= found["lower"] <= found["median"] <= found["upper"]
        assert found["program"] > 0 and found["compile"] > 0 and found["busy"] > 0
        assert found["first"] <= found["warm_up"] and found["calls"] >= 21
        assert found["spread"] == (found["upper"] - found["lower"]) / found["median"]
        lines = repr(found).splitlines()
        assert [line.split()[0] for line in lines][:4] == ["compile", "warm-up", "call", "program"]
    assert trained._steps == steps
    for name, array in trained.state.items():
        np.testing.assert_array_equal(array, before[name])


def test_bench_without_inputs_that_tell_the_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "BLOCK_SECONDS", 0.0005)
    with interpreted():
        f = compile(sg.zeros((B, 3)) + sg.parameter("W", (3,), init=2.0))
    with pytest.raises(LeafError, match=r"B=\.\.\."):
        f.bench()
    f(B=2)
    assert f.bench()["median"] > 0 and f.bench(B=4)["median"] > 0


def test_a_noisy_machine_is_told() -> None:
    quiet = Bench(
        compile=1.5, first=0.1, warm_up=0.2, median=0.02, lower=0.0199, upper=0.0201, least=0.0198,
        program=0.019, calls=42, spread=0.01, busy=1.02,
    )  # fmt: skip
    assert not quiet.warning and "noisy" not in repr(quiet)
    assert "20 ms median, 19.9 ms to 20.1 ms between quartiles (1.0%)" in str(quiet)
    noisy = Bench({**quiet, "busy": 1.9})
    assert "wall / CPU time 1.90" in noisy.warning and noisy.warning in repr(noisy)
    assert "differ by 40%" in Bench({**quiet, "spread": 0.4}).warning


# -- training --------------------------------------------------------------------------------------
def test_the_report_of_a_trainer() -> None:
    x, y, w = sg.input("x", (B, 3)), sg.input("y", (B,)), sg.parameter("w", (3,), init=0.5)
    trainer = sg.Trainer(sg.mse(x @ w, y), optimizer=sg.optim.sgd(0.1))
    assert "trainer.report(data, batch_size=32)" in trainer.report()
    data = {"x": RNG.normal(size=(23, 3)), "y": RNG.normal(size=23)}
    report = trainer.report(data, batch_size=5)
    told = {"B": 5, "B_rest": 3, "batches": 4, "rests": 1, "epochs": 1}
    assert told.items() <= report.dims.items()
    (gather,) = [r for r in report.kernels if "gather(x" in r.formula and "B_rest" not in r.over]
    assert gather.calls == 4 and gather.bytes == 4 * 4 * (5 + 15 + 15)
    assert report.seconds and all(r.seconds is not None for r in report.kernels)
    np.testing.assert_array_equal(trainer.parameters["w"], np.full(3, 0.5, np.float32))
    assert trainer.epoch == 0 and not trainer.history.loss
    picture = sg.draw(trainer.program, level="kernels")
    assert "measured at" in picture.caption and "B=5" in picture.caption
    with pytest.raises(sg.DataError, match="report"):
        trainer.report({"x": data["x"], "y": data["y"][:7]})


def test_the_report_of_a_team() -> None:
    """What runs is listed and timed: kernels that are shared, their balance, and waiting."""
    x, W = sg.input("x", (B, 40)), sg.parameter("W", (40, 40), init=0.1)
    y = sg.tanh(x @ W)
    with everything_shared():
        f = sg.compile([y - y.mean(0), y[0] + 1.0], threads=2)
        report = f.report(x=RNG.normal(size=(64, 40)))
        picture = sg.draw(f, level="kernels")
        assert report.workers == 2 and len(report.waiting) == 2
        assert report.seconds is not None
        assert all(0 <= w <= report.seconds for w in report.waiting)
        plan = f.stages.team.plan  # type: ignore[union-attr]
        assert len(report.times) == len(plan.calls) == sum(r.calls for r in report.kernels)
        timed = f.timed(f.stages.team)
        plain, laps, cells = timed.prepared(*f._bound({"x": RNG.normal(size=(64, 40))}))
        for call in (plain, laps):
            assert call.run() == 0
    for a, b in zip(plain.outputs, laps.outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    shared = [r for r in report.kernels if r.workers == 2]
    assert shared and all(0 < r.balance <= 1 for r in shared if r.balance is not None)
    assert (cells[1 + MEETINGS + 1 :, :, 1] == 1).all()  # each worker, each kernel, once
    assert "run by 2 workers" in report and "wait for each other" in report
    assert any("2 workers" in box.detail for box in picture.boxes)
