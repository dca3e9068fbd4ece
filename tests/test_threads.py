"""Several threads: the workers, how kernels are shared between them, and what stays as with one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen import sharing, teamwork, workers
from codegen.compiled import Compiled
from codegen.loading import load
from codegen.pipeline import compile
from codegen.runtime import teams
from codegen.runtime.system import TELLS_CORES
from codegen.runtime.team_words import LINE, SEEN_ON
from symgrad.graph.errors import CompileError, DataError
from symgrad.graph.evaluator import evaluate
from tests import test_codegen_folds, test_codegen_nodes
from tests.codegen_cases import Case, call
from tests.ir_interpreter import interpreted
from tests.team_interpreter import everything_shared, first_row, teams_interpreted
from tests.test_codegen_random import judge, program_of

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(11)
HAS_FORK = hasattr(os, "fork")

# -- the workers -----------------------------------------------------------------------------------
MEETINGS = """\
from codegen.runtime.kernels import kernel
from codegen.runtime.memory import extent, ld, pointer_i64, st
from codegen.runtime.teams import meet


@kernel
def program(table, dims, team, worker):
    own = pointer_i64(table, 0)
    workers = extent(dims, 1)
    for r in range(extent(dims, 0)):
        st(own, worker, r + 1 + worker, -1)
        meet(team, worker)
        total = 0
        for w in range(workers):
            total += ld(own, w, -1) - w
        if total != workers * (r + 1):
            return 1 + r
        meet(team, worker)
    return 0
"""

FIRSTS = MEETINGS.split("@kernel")[0].replace("meet", "first_of") + """\
@kernel
def program(table, dims, team, worker):
    own = pointer_i64(table, 0)
    workers = extent(dims, 1)
    for w in range(workers + 1):
        st(own, w, first_of(extent(dims, 0), w, workers), -1)
    return 0
"""


def meet_often(size: int, rounds: int) -> int:
    """How a program ends in which each worker reads what the others wrote before each meeting."""
    program = load(MEETINGS, "meetings")  # as long as it is held, its code is there
    address = program.address
    own = np.zeros(64, np.int64)
    table, dims = np.array([own.ctypes.data]), np.array([rounds, size])
    return workers.team().run(size, address, table.ctypes.data, dims.ctypes.data)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_workers_meet(size: int) -> None:
    for rounds in (0, 1, 2, 300):
        assert meet_often(size, rounds) == 0


def test_python_threads_take_turns() -> None:
    ends: list[int] = []
    sizes = (2, 3, 2, 4)
    threads = [
        threading.Thread(target=lambda n=n: ends.extend(meet_often(n, 50) for _ in range(20)))
        for n in sizes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [0] * 80


def test_workers_park_and_come_back() -> None:
    assert meet_often(2, 3) == 0
    helpers = workers.team()._helpers
    for _ in range(400):
        if all(helper.parked for helper in helpers):
            break
        threading.Event().wait(0.005)
    assert all(helper.parked for helper in helpers)
    assert meet_often(3, 3) == 0


@pytest.mark.skipif(
    not TELLS_CORES or workers.cores() < 2, reason="needs two cores, and a system that tells them"
)
def test_workers_on_one_core_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are brought to one core; the helper leaves it, and afterwards may use all again."""
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert meet_often(2, 3) == 0
    team, mine = workers.team(), os.sched_getaffinity(0)
    helper = team._helpers[0].thread.native_id
    assert helper is not None
    theirs = os.sched_getaffinity(helper)
    try:
        for one in sorted(mine)[:2]:
            for thread in (0, helper):
                os.sched_setaffinity(thread, {one})
            os.sched_setaffinity(helper, theirs)
            assert meet_often(2, 3000) == 0
            leader, other = team._record[[SEEN_ON, SEEN_ON + LINE]].tolist()
            assert leader == one and other in theirs - {one}
            assert os.sched_getaffinity(0) == {one} and os.sched_getaffinity(helper) == theirs
    finally:
        os.sched_setaffinity(helper, theirs)
        os.sched_setaffinity(0, mine)


def test_where_the_system_tells_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "TELLS_CORES", False)
    program = load(MEETINGS + "# nobody knows where it is\n", "meetings")
    address = program.address
    own = np.zeros(64, np.int64)
    table, dims = np.array([own.ctypes.data]), np.array([300, 3])
    assert workers.team().run(3, address, table.ctypes.data, dims.ctypes.data) == 0


CHILD = """\
import os
import numpy as np
import symgrad as sg
from tests.team_interpreter import everything_shared
from tests.test_threads import meet_often

x = sg.input("x", (sg.dim("B"), 5))
values = np.arange(35.0).reshape(7, 5) / 35
with everything_shared():
    f = sg.compile([sg.tanh(x @ x.T), (x * x).sum(0)], threads=2)
    expected = f(x=values)
    assert meet_often(3, 5) == 0
    child = os.fork()
    same = all(np.array_equal(a, b) for a, b in zip(f(x=values), expected))
    assert f._invocation().current.workers == 2
    if child == 0:
        os._exit(meet_often(3, 5) + 10 * meet_often(2, 5) + 100 * (not same))
    assert os.waitpid(child, 0)[1] == 0 and same
    assert meet_often(3, 5) == 0
print("well")
"""


@pytest.mark.skipif(not HAS_FORK, reason="this system has no fork")
def test_a_child_process_has_workers_of_its_own(outside: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD], env=outside, capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "well\n", "")


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 31, 64, 100, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_rows_are_shared_whole_and_fairly(rows: int, size: int) -> None:
    own = np.zeros(2 * (size + 1), np.int64)
    table, dims = np.array([own.ctypes.data]), np.array([rows, size])
    program = load(FIRSTS, "firsts")
    address = program.address
    assert workers.team().run(1, address, table.ctypes.data, dims.ctypes.data) == 0
    firsts = own[: size + 1].tolist()
    assert firsts == [first_row(rows, w, size) for w in range(size + 1)]
    assert firsts[0] == 0 and firsts[-1] == rows
    parts = np.diff(firsts)
    assert (parts >= 0).all() and parts.max() - parts.min() <= (31 if rows >= 32 * size else 1)


# -- what is shared, run by Python: no access races ------------------------------------------------
def judge_case(case: Case, seed: int) -> None:
    nodes = [*case.outputs, *case.further]
    with teams_interpreted(seed, small=seed % 4 == 0) as failures:
        got = call(sg.compile(nodes, threads=2 + seed % 2), case.values)
        assert not failures, failures[0]
    case.check(nodes, got)


@pytest.mark.parametrize("name", test_codegen_nodes.cases.makers)
def test_nodes(name: str) -> None:
    judge_case(test_codegen_nodes.cases.case(name), len(name))


@pytest.mark.parametrize("name", list(test_codegen_folds.cases.makers)[::2])
def test_folds(name: str) -> None:
    judge_case(test_codegen_folds.cases.case(name), len(name))


@pytest.mark.parametrize("seed", range(600, 660))
def test_random_programs(seed: int) -> None:
    program, nodes = program_of(seed)
    with teams_interpreted(seed) as failures:
        got = call(sg.compile(nodes, threads=2 + seed % 3), program.values)
        assert not failures, failures[0]
    judge(program, nodes, got)


def attention() -> tuple[list[Any], dict[str, Array]]:
    """Gradients of two heads of attention over sequences of 5, and values of the leaves."""
    width, own = 6, 3
    a = sg.input("a", (B, 5, width))
    w, o = sg.parameter("w", (width, 3 * width)), sg.parameter("o", (width, width))
    parts = (a @ w).reshape((B, 5, 3, 2, own))
    q, k, v = (sg.swapaxes(parts[:, :, i], 1, 2) for i in range(3))
    mixed = sg.softmax(q @ sg.swapaxes(k, -1, -2) / 1.7) @ v
    loss = ((sg.swapaxes(mixed, 1, 2).reshape((B, 5, width)) @ o) ** 2).mean()
    values = {
        "a": RNG.normal(size=(7, 5, width)),
        "w": RNG.normal(size=(width, 3 * width)),
        "o": RNG.normal(size=(width, width)),
    }
    return list(sg.grad(loss, [w, o, a])), {n: x.astype(np.float32) for n, x in values.items()}


def test_attention_stays_in_its_sequences() -> None:
    """Float32 against float64: sums of at most 35 products of order 1."""
    nodes, values = attention()
    with teams_interpreted(3) as failures:
        f = sg.compile(nodes, threads=3)
        got = f(**values)
        assert not failures, failures[0]
    for g, e in zip(got, sg.evaluate(nodes, values), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-6)
    assert f.stages.team is not None
    calls = f.stages.team.plan.calls
    shares = [teamwork.sharing_of(c) for c in calls]
    assert not any(text.startswith("worker 0") for text in shares), shares
    sums = [k for k, text in enumerate(shares) if "shared: rows of B" not in text]
    assert len(sums) < len(calls) - 4 and not any(c.meet for c in calls[: sums[0]])


# -- what is shared, compiled ----------------------------------------------------------------------
B, K = sg.dim("B"), 5
x, y = sg.input("x", (B, 7)), sg.input("y", (B,), dtype="int32")
W, b = sg.parameter("W", (7, K)), sg.parameter("b", (K,))
table = sg.parameter("table", (11, 7))
U = sg.parameter("U", (7, 7))


def test_long_sums_are_shared_by_their_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A^T B with more terms than places, of no row too."""
    monkeypatch.setattr(sharing, "LONG", 4)
    monkeypatch.setattr(sharing, "LONGER", 1)
    B = sg.dim("B")
    x, y = sg.input("x", (B, 7, 3), "float64"), sg.input("y", (B, 7, 5), "float64")
    nodes = [sg.einsum("btm,btn->mn", x, y), x.sum()]

    def judge_all(f: Compiled) -> None:
        assert f.stages.team is not None and "terms of B" in str(f.stages.team)
        for rows in (0, 1, 2, 9):
            values = {"x": RNG.normal(size=(rows, 7, 3)), "y": RNG.normal(size=(rows, 7, 5))}
            for got, wanted in zip(f(**values), evaluate(nodes, values), strict=True):
                np.testing.assert_allclose(got, wanted, 1e-12, 1e-12)
            assert f(**values)[0].tobytes() == f(**values)[0].tobytes()

    for threads in (2, 3):
        with teams_interpreted(seed=threads):
            judge_all(sg.compile(nodes, threads=threads))
    with everything_shared():
        judge_all(sg.compile(nodes, threads=2))



def outputs() -> dict[str, Any]:
    """Expressions over a batch; in some of them its rows meet in the middle."""
    h = sg.tanh(x @ W + b)
    loss = sg.cross_entropy(h, y).mean()
    centred = x - x.mean(0)
    normed = centred / sg.sqrt((centred**2).mean(0) + 1e-3)
    with_statistics = sg.cross_entropy(normed @ W, y).mean()
    embedded = (table[y] * x).sum()
    _, states = sg.scan(lambda c, r: (sg.tanh(c @ U + r),) * 2, x, sg.stack([x, 2 * x, x - 1]))
    scores = sg.softmax(sg.einsum("bi,jk->bij", x, W) / 3)
    one_more = sg.concatenate([x, -sg.ones((1, 7))])  # no rows have no largest one
    return {
        "rows": h,
        "loss": loss,
        "gradients": sg.grad(loss, [W, b, x]),
        "batch norm": sg.grad(with_statistics, [W, x]),
        "embedding": sg.grad(embedded, table),
        "recurrence": [states, *sg.grad((states**2).mean(), [U, x])],
        "columns": [one_more.max(0), x.sum(0), sg.cumsum(x, 0), sg.argmax(x, 1), one_more.min()],
        "moves": [sg.concatenate([x, -x]), sg.pad(x, ((1, 2), (0, 3))), sg.flip(x, 0), x.T],
        "batched": sg.einsum("bij,bkj->bik", scores, 2 * scores + 1),
        "dropout": sg.dropout(x, 0.25),
    }


SIZES = (2, 3, 4)


@pytest.fixture(scope="module")
def compiled() -> dict[int, Compiled]:
    """The same program for one thread and for teams that share all they can."""
    made = {1: sg.compile(outputs(), training=True)}
    with everything_shared():
        return made | {n: sg.compile(outputs(), threads=n, training=True) for n in SIZES}


@pytest.fixture
def programs(compiled: dict[int, Compiled]) -> Iterator[dict[int, Compiled]]:
    """The same, used by teams however small the work."""
    with everything_shared():
        yield compiled


def values_for(rows: int) -> dict[str, Array]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.normal(size=(rows, 7)).astype(np.float32),
        "y": rng.integers(0, K, rows).astype(np.int32),
        "W": rng.normal(size=(7, K)).astype(np.float32),
        "b": rng.normal(size=K).astype(np.float32),
        "table": rng.normal(size=(11, 7)).astype(np.float32),
        "U": 0.3 * rng.normal(size=(7, 7)).astype(np.float32),
    }


def leaves_of(found: Any) -> list[Array]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return [a for part in found for a in leaves_of(part)]
    return [found]


@pytest.mark.filterwarnings("ignore:.*empty.*")
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 37, 200])
@pytest.mark.parametrize("size", SIZES)
def test_threads_give_what_one_gives(
    programs: dict[int, Compiled], size: int, rows: int
) -> None:
    """Sums of at most 600 numbers of order 1, in another order: a relative 600 eps and less."""
    values = values_for(rows)
    f = programs[size]
    f._steps = programs[1]._steps = 0  # the same dropout
    expected, got = leaves_of(programs[1](**values)), leaves_of(f(**values))
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=2e-5, atol=2e-5)
    f._steps = 0
    for first, again in zip(got, leaves_of(f(**values)), strict=True):
        np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(got[-1], expected[-1])  # the same mask
    assert f._invocation().current.workers == size


def test_batch_statistics_against_the_oracle(programs: dict[int, Compiled]) -> None:
    values = values_for(41)
    expected = sg.evaluate(outputs()["batch norm"], values)
    for size in SIZES:
        got = programs[size](**values)["batch norm"]
        for e, g in zip(expected, got, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-6)


def test_a_bad_index_is_told_as_with_one_thread(programs: dict[int, Compiled]) -> None:
    values = values_for(64)
    values["y"][[50, 20, 63]] = [77, 88, 99]
    texts = []
    for f in programs.values():
        with pytest.raises(DataError, match="88 is out of range") as caught:
            f(**values)
        texts.append(str(caught.value))
    assert texts == texts[:1] * (1 + len(SIZES))


def test_calls_from_two_python_threads(programs: dict[int, Compiled]) -> None:
    expected = {rows: leaves_of(programs[2](**values_for(rows))["gradients"]) for rows in (3, 37)}
    wrong: list[int] = []

    def work(rows: int) -> None:
        values = values_for(rows)
        for _ in range(20):
            got = leaves_of(programs[2](**values)["gradients"])
            if any(not np.array_equal(g, e) for g, e in zip(got, expected[rows], strict=True)):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (3, 37, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_stages_tell_what_is_shared_and_why_not(programs: dict[int, Compiled]) -> None:
    text = str(programs[2].stages)
    assert "threads=2" in text
    assert "shared: rows of B" in text and "all meet" in text
    assert "worker 0: no loop" in text
    assert "team" not in str(programs[1].stages) and programs[1].stages.team is None


def test_stages_tell_copies_and_deep_numbers() -> None:
    """Copies that begin a recurrence are one line of their own; numbers keep their column."""
    x = sg.input("x", (5, B, 6))
    carries = sg.input("a", (6,)), sg.input("b", (6,))

    def step(carry: Any, h: Any) -> Any:
        for k in range(6):
            h = sg.tanh(h) / h.mean(0) if k % 2 else h * h.sum(0)
        return (carry[0] + h.sum(0), carry[1] * h.sum(0)), ()

    (a, b), _ = sg.scan(step, carries, x)
    with interpreted(), everything_shared():
        stages = compile([a, b], threads=2).stages
    told = str(stages.team).splitlines()
    assert "  copy       shared: rows of 6  x 2" in told
    assert sum(line.startswith("  stage_1 ") for line in told) <= 1
    rows = [line for line in str(stages).splitlines() if re.match(r" *1\.1\d?  ", line)]
    assert len(rows) > 1 and len({line.index("(") for line in rows}) == 1


def test_rows_of_a_table_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of layers whose calls are rows of a table: some shared, some met for, some alone."""
    from codegen import program_printing

    h, layers = x, [sg.parameter(f"u{k}", (7, 7), init=sg.init.normal(0.4)) for k in range(5)]
    for u in layers:
        h = sg.tanh(h @ u)
        h = h - h.mean(0) + sg.cumsum(h.sum(0))
    asked = [h, *sg.grad((h**2).mean(), layers)]
    values = {"x": values_for(23)["x"]}
    expected = sg.compile(asked)(**values)
    monkeypatch.setattr(program_printing, "TABLE_FROM", 2)
    with everything_shared():
        f = sg.compile(asked, threads=2)
        got, again = f(**values), f(**values)
    assert "run_calls(table, dims, 0" in f.stages.team.source  # type: ignore[union-attr]
    for e, g, a in zip(expected, got, again, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(g, a)


# -- choosing --------------------------------------------------------------------------------------
def test_small_work_stays_on_one_thread() -> None:
    n = sg.dim("n")
    a, w = sg.input("a", (n, 64)), sg.parameter("w", (64, 64))
    f = sg.compile(sg.tanh(a @ w), threads=2)
    team = f.stages.team
    assert team is not None
    assert not team.is_worth({n: 32}) and team.is_worth({n: 100_000})
    assert f.source == sg.compile(sg.tanh(a @ w)).source


def test_which_threads_may_be_asked_for() -> None:
    for bad in (0, -1, 1.5, "2", True, None, 65, np.True_, np.float32(2), np.array([1, 2])):
        with pytest.raises(CompileError, match=r"compile: threads=.*: needs a whole number from 1"):
            sg.compile(x + 1, threads=bad)  # type: ignore[arg-type]
        with pytest.raises(CompileError, match=r"Trainer: threads=.*: needs a whole number from 1"):
            sg.Trainer(sg.mse(x @ W, 0.0), sg.optim.sgd(0.1), threads=bad)  # type: ignore[arg-type]
    for good in (np.int64(2), np.uint8(2), np.array(2)):
        team = sg.compile(x + 1, threads=good).stages.team
        assert team is not None and team.workers == 2 and type(team.workers) is int
    with pytest.raises(CompileError, match=r'threads=2 is for target="cpu"'):
        sg.compile(x + 1, threads=2, target="cuda")


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    f = sg.compile(x + 1, threads=3)
    assert "They have 2 cores and take turns." in str(f.stages)


# -- training --------------------------------------------------------------------------------------
def trained(threads: int, target: Any = None) -> tuple[Any, list[float]]:
    rng = np.random.default_rng(5)
    data = {
        "x": rng.normal(size=(83, 7)).astype(np.float32),
        "y": rng.integers(0, K, 83).astype(np.int32),
    }
    w0 = sg.parameter("w0", (7, 13), init=sg.init.normal(0.5))
    w1 = sg.parameter("w1", (13, K), init=sg.init.normal(0.5))
    hidden = sg.dropout(sg.relu(x @ w0), 0.2)
    trainer = sg.Trainer(
        sg.cross_entropy(hidden @ w1, y), sg.optim.adam(0.01), clip_norm=1.0, threads=threads
    )
    history = trainer.fit(data, epochs=3, batch_size=20, progress=False)
    return trainer, list(history.loss)


def test_names_of_shares_and_of_memory_differ() -> None:
    """The first entries of the table are bool, and loops over other extents are shared."""
    leaves = [sg.input(f"m{n}", (n,), dtype="bool") for n in (40, 50, 60)]
    written = [sg.where(m, 1.5, sg.exp(sg.arange(m.shape[0]) / 60.0)) for m in leaves]
    values = {m.name: np.arange(m.shape[0]) % 3 == 0 for m in leaves}
    with everything_shared():
        found = sg.compile(written, threads=2)(**values)
    for a, b in zip(found, evaluate(written, values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_training() -> None:
    """83 rows in batches of 20 and one of 3, which is as many as there are workers."""
    alone, losses = trained(1)
    with everything_shared():
        team, shared = trained(3)
        again, _ = trained(3)
        np.testing.assert_allclose(shared, losses, rtol=1e-4)
        for name, value in alone.parameters.items():
            np.testing.assert_allclose(team.parameters[name], value, rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(team.parameters[name], again.parameters[name])
        assert teamwork.TeamProgram.is_worth(team.program.stages.team)
