"""State that a program keeps: all right-hand sides read old values; the memory plan is safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.memory import Plan, kernels_of
from codegen.pipeline import compile
from codegen.recurrences import lower
from symgrad.graph.dims import free_dims, value
from symgrad.graph.errors import DataError, DTypeError, LeafError, ShapeError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Constant, Gather, Input, Node, Reindex, Scatter
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted
from tests.random_programs import Program, assert_equal, outputs_of, random_program

Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def parameters(**values: Array) -> list[Input]:
    return [sg.parameter(name, array.shape, array) for name, array in values.items()]


def judge(
    outputs: Sequence[Node],
    updates: Mapping[Input, Node],
    values: Mapping[str, Array],
    f: Compiled | None = None,
    calls: int = 2,
) -> Compiled:
    """Call a program and compare outputs, and the state after it, with old values."""
    if f is None:
        with interpreted():
            f = compile(list(outputs), updates=updates)
    given = {k: v.copy() for k, v in values.items()}
    for _ in range(calls):
        old = {k: v.copy() for k, v in f.state.items()}
        expected = evaluate([*outputs, *updates.values()], {**given, **old})
        got = call(f, given)
        for node, g, e in zip(outputs, got, expected, strict=False):
            assert_equal(g, e, repr(node))
        for leaf, e in zip(updates, expected[len(outputs) :], strict=True):
            assert_equal(f.state[leaf.name], e, leaf.name)
        for name, array in values.items():
            assert_equal(given[name], array, f"the input {name} was written to")
    return f


# -- right-hand sides read old values --------------------------------------------------------------
A, B_, C_ = numbers(3, 5), numbers(3, 5, seed=2), numbers(5, seed=3)


def test_two_leaves_swap() -> None:
    a, b = parameters(a=A, b=B_)
    f = judge([a.sum(), b], {a: b, b: a}, {})
    f.state["a"] = A
    f.state["b"] = B_
    call(f, {})
    assert_equal(f.state["a"], B_)
    assert_equal(f.state["b"], A)


def test_three_leaves_turn_round_through_expressions() -> None:
    a, b, c = parameters(a=A, b=B_, c=A - B_)
    judge([a, b, c], {a: b, b: c, c: a}, {}, calls=4)
    judge([a * b], {a: b + c, b: c + a, c: a + b}, {}, calls=2)


def test_swapping_leaves_under_another_shape() -> None:
    a, b, c = parameters(a=A, b=B_.reshape(5, 3), c=A.reshape(15))
    judge([], {a: b.reshape(3, 5), b: a.reshape(5, 3), c: a.reshape(15)}, {})
    judge([], {a: sg.transpose(b), b: sg.transpose(a), c: c[::-1]}, {})


def test_outputs_are_old_values() -> None:
    a, b = parameters(a=A, b=B_)
    judge([a, a.reshape(15), sg.transpose(a), a + 1, a[1:], a], {a: a + 1}, {})
    judge([a, b, b.reshape(5, 3)], {a: b, b: b * 2}, {})


def test_old_values_that_a_later_stage_reads() -> None:
    a, b, c = parameters(a=A, b=B_, c=C_)
    new = a * 2
    judge([(new @ sg.transpose(a)).sum(0), (a @ c) * new.sum()], {a: new, b: a + b}, {})
    judge([], {a: a + a.sum(0), b: sg.transpose(sg.transpose(b)[::-1])}, {})
    judge([a.max(1)], {c: c + a.sum(0), a: a - a.max(1, keepdims=True)}, {})


def test_one_expression_for_two_leaves_and_an_output() -> None:
    a, b = parameters(a=A, b=B_)
    new = a * b
    judge([new, new.reshape(15)], {a: new, b: new}, {})
    judge([], {a: sg.zeros((3, 5)), b: sg.constant(A * 2)}, {})


def test_carries_of_recurrences_are_written_over_their_leaves_where_that_is_safe() -> None:
    a, b = parameters(a=A, b=B_)
    times = sg.constant(np.array([1.0, -2.0, 3.0], np.float32))

    def step(c: tuple[Node, Node], t: Node) -> tuple[tuple[Node, Node], tuple[()]]:
        return (c[0] + t * c[1], c[1] - t), ()

    (p, q), _ = sg.scan(step, (a, b), times)
    (r, s), _ = sg.scan(step, (b, a), times)
    (u, v), _ = sg.scan(step, (p, q), times)
    for updates in ({a: p, b: q}, {a: q, b: p}, {a: r, b: s}, {a: s, b: r}, {a: u, b: v}):
        judge([], updates, {})
        judge([a - b, u], updates, {})
    judge([], {a: u, b: v + a}, {})
    judge([], {a: p, b: u}, {})

    f = judge([], {a: u, b: v}, {})  # two recurrences in the memory of the leaves, without a copy
    assert not [k for k in kernels_of(f.stages.plan.calls) if k.copied not in (None, 1)]


def test_the_leaf_itself_is_no_change() -> None:
    (a,) = parameters(a=A)
    f = judge([a], {a: a}, {})
    assert_equal(f.state["a"], A)


def test_inputs_and_whole_numbers_as_state() -> None:
    k = sg.input("k", (3,), "int32")
    seen = sg.input("seen", (), "bool")
    x = sg.input("x", (sg.dim("n"), 3))
    f = judge([k * 2], {k: k + 1, seen: ~seen}, {})
    assert f.state["k"].tolist() == [2, 2, 2]
    f = judge([x.sum()], {k: k + sg.argmax(x, 0)}, {"x": numbers(7, 3)})
    assert f.state["k"].dtype == np.int32


def test_embedding_rows_are_updated_in_place() -> None:
    (table,) = parameters(table=numbers(7, 5))
    k = sg.input("k", (4,), "int32")
    rows = table[k]
    change = Scatter((rows * 2, k), (0, 1), ((0,),), (~0, 1), (7, 5))
    judge([rows.sum()], {table: table - change}, {"k": np.array([3, -1, 3, 0], np.int32)})


# -- compiled --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained() -> Compiled:
    a, b, c = parameters(a=A, b=B_, c=C_)
    x, k = sg.input("x", (sg.dim("n"), 3)), sg.input("k", (sg.dim("n"),), "int32")
    outputs = {"loss": (x @ a).sum(), "a": a, "rows": a[k]}
    return compile(outputs, updates={a: b, b: a, c: c + (x @ a).sum(0)})


def values(n: int = 4) -> dict[str, Array]:
    return {"x": numbers(n, 3, seed=7), "k": np.arange(n, dtype=np.int32) % 3}


def reset(f: Compiled) -> None:
    for name, array in (("a", A), ("b", B_), ("c", C_)):
        f.state[name] = array


def test_state_is_kept_between_calls(trained: Compiled) -> None:
    reset(trained)
    for n in (4, 7, 1, 0):
        old = {name: array.copy() for name, array in trained.state.items()}
        got = trained(**values(n))
        total = values(n)["x"] @ old["a"]
        assert_equal(got["a"], old["a"])
        assert_equal(trained.state["a"], old["b"])
        assert_equal(trained.state["b"], old["a"])
        assert_equal(trained.state["c"], old["c"] + total.sum(0, dtype=np.float32))
        assert got["loss"] == total.sum()


def test_state_is_a_mapping(trained: Compiled) -> None:
    assert list(trained.state) == ["a", "b", "c"] and len(trained.state) == 3
    assert trained.state["a"].dtype == np.float32 and "float32(3, 5)" in repr(trained.state)
    trained.state["c"] = [1, 2, 3, 4, 5]
    assert trained.state["c"].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(LeafError, match=r"no leaf is named 'd'. There are: 'a', 'b', 'c'"):
        trained.state["d"] = 1.0
    with pytest.raises(LeafError, match="no leaf is named 'd'"):
        trained.state["d"]
    with pytest.raises(DataError, match=r"state 'c': shape \(5,\) is needed, got \(4,\)"):
        trained.state["c"] = [1, 2, 3, 4]
    with pytest.raises(LeafError, match="'a' cannot be deleted"):
        del trained.state["a"]


def test_state_takes_no_fractions_for_whole_numbers() -> None:
    k = sg.input("k", (), "int32")
    with interpreted():
        f = compile(k, updates={k: k + 1})
    f.state["k"] = 7
    with pytest.raises(DataError, match=r"input 'k' is int32, got float64"):
        f.state["k"] = 1.5
    assert f() == 7 and f.state["k"] == 8


def test_a_value_for_a_kept_leaf_is_copied_into_the_state(trained: Compiled) -> None:
    reset(trained)
    mine = A + 1
    before = mine.copy()
    assert_equal(trained(**values(), a=mine)["a"], before)
    assert_equal(mine, before, "the argument was written to")
    assert_equal(trained.state["b"], before)


def test_arguments_may_lie_in_the_state(trained: Compiled) -> None:
    reset(trained)
    inside = trained.state["a"][:, :3]
    same = np.ascontiguousarray(trained.state["a"][:1, :3])
    trained(x=trained.state["c"][:3].reshape(1, 3), k=[0])
    reset(trained)
    got = trained(x=inside, k=[0, 1, 2])
    assert got["loss"] == (A[:, :3] @ A).sum()
    reset(trained)
    trained(a=trained.state["b"], b=trained.state["a"], x=same, k=[0])
    assert_equal(trained.state["a"], A)
    assert_equal(trained.state["b"], B_)


def test_a_call_that_fails_changes_nothing(trained: Compiled) -> None:
    reset(trained)
    bad = {**values(), "k": np.array([0, 1, 3, 2], np.int32)}
    with pytest.raises(DataError, match="index 3 is out of range for extent 3"):
        trained(**bad)
    with pytest.raises(DataError):
        trained(x=np.zeros((4, 2), np.float32), k=[0, 0, 0, 0])
    for name, array in (("a", A), ("b", B_), ("c", C_)):
        assert_equal(trained.state[name], array)
    assert_equal(trained(**values())["rows"], A[[0, 1, 2, 0]])


# -- updates that do not fit -----------------------------------------------------------------------
def test_updates_that_do_not_fit() -> None:
    (a,) = parameters(a=A)
    x = sg.input("x", (sg.dim("n"),))
    with pytest.raises(ShapeError, match=r"a leaf keeps its shape\n.*'a'.*\(3, 5\).*\n.*\(5, 3\)"):
        compile(a, updates={a: sg.transpose(a)})
    with pytest.raises(DTypeError, match=r"updates: a leaf keeps its dtype\n.*'a'.*float32"):
        compile(a, updates={a: a.astype("int32")})
    with pytest.raises(LeafError, match=r"the key .* is no leaf"):
        compile(a, updates={a * 2: a})  # type: ignore[dict-item]
    with pytest.raises(LeafError, match="the key 'a' is no leaf"):
        compile(a, updates={"a": a})  # type: ignore[dict-item]
    with pytest.raises(ShapeError, match=r"symbolic shape cannot be kept.*\n.*'x'"):
        compile(a, updates={x: x * 2})


# -- the memory plan -------------------------------------------------------------------------------
def random_updates(program: Program, rng: np.random.Generator) -> dict[Input, Node]:
    """Right-hand sides for leaves that are read by no index and have numbers for a shape."""
    moves = [n for n in program.nodes if isinstance(n, (Gather, Scatter))]
    read = {index for node in moves for index in node.args[1:]}
    indices = set(Graph.of([*read]).nodes) if read else set()
    updates: dict[Input, Node] = {}
    for leaf in program.nodes:
        if isinstance(leaf, Input) and leaf not in indices and not free_dims(leaf.shape):
            fits = [n for n in program.nodes if n.dtype == leaf.dtype and n.shape == leaf.shape]
            if rng.random() < 0.8:
                updates[leaf] = fits[int(rng.integers(len(fits)))]
    return updates


def assert_slots_never_overlap(f: Compiled, dims: Mapping[Any, int]) -> None:
    """Judge a plan from its calls: what is in a slot is read before another is written there."""
    plan: Plan = f.stages.plan
    lowered = lower(f.stages.schedule)
    assert len(lowered) <= len(plan.calls)
    memory = {*plan.leaves, *plan.constants, *plan.results}
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    for k, (low, made) in enumerate(zip(lowered, plan.calls, strict=False)):
        entries = {place: entry for place, entry in enumerate(made.entries)}
        slots = [e - plan.first_slot for e in entries.values() if e >= plan.first_slot]
        for operand in low.operands:
            if operand not in memory:
                first.setdefault(operand, k)
                last[operand] = k
        assert len(set(slots)) == len(slots)
    placed = plan.layout.place(dims)
    bytes_of: dict[Any, int] = {}
    for operand, slot, begin, end in plan.lifetimes:
        nodes_or_rows = [o for o in first if o is operand or same_node(o, operand)]
        for o in nodes_or_rows:
            assert first[o] == begin
            assert last[o] <= end
        need = int(np.prod([value(e, dims) for e in operand.shape], initial=operand.dtype.itemsize))
        bytes_of[operand] = need
        assert need <= placed.sizes[slot]
        assert placed.offsets[slot] % 64 == 0
        assert placed.offsets[slot] + placed.sizes[slot] <= placed.total
    for operand, slot, begin, end in plan.lifetimes:
        for other, place, start, stop in plan.lifetimes:
            low, high = placed.offsets[slot], placed.offsets[place]
            apart = low + bytes_of[operand] <= high or high + bytes_of[other] <= low
            if operand is not other and not apart:
                # one ends where the other begins only when it is written over, element by element
                assert end <= start or stop <= begin
                if end == start or stop == begin:
                    assert operand.dtype == other.dtype and slot == place
    least = plan.live_bound(dims)
    assert least <= placed.total <= max(1.1 * least, least + 64)


def same_node(a: Any, b: Any) -> bool:
    """Rows are made anew by each lowering; they are the same when their node is."""
    return not isinstance(a, Node) and not isinstance(b, Node) and a.node is b.node


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_with_updates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(seed, int(rng.integers(5, 40)), zeros=seed % 4 == 0)
    updates = random_updates(program, rng)
    outputs = [o for o in outputs_of(program, bool(rng.integers(2))) if rng.random() < 0.6]
    outputs = [*program.nodes[:2], *outputs]
    with interpreted():
        f = compile(outputs, updates=updates)
    kept = {leaf.name for leaf in updates}
    for name in kept:
        f.state[name] = program.values[name]
    used = {leaf.name for leaf in f.leaves} - kept
    judge(outputs, updates, {k: v for k, v in program.values.items() if k in used}, f, calls=1)
    assert_slots_never_overlap(f, program.dims)


def test_plan_of_a_chain_needs_one_slot() -> None:
    n = sg.dim("n")
    x = sg.input("x", (n, 5))
    y = x
    for k in range(4):
        y = sg.cumsum(y + k, 0)
    with interpreted():
        f = compile(y.sum())
    assert len(f.stages.plan.slots) <= 2
    assert f.stages.plan.slot_offsets({n: 8})[1] <= 2 * 192


def test_an_update_needs_no_copy_where_nothing_reads_the_leaf_later() -> None:
    (a,) = parameters(a=A)
    with interpreted():
        f = compile([(a * a).sum()], updates={a: a * 0.5})
    assert not any(kernel.formula == "copy" for kernel in kernels_of(f.stages.plan.calls))
    assert not f.stages.plan.slots


def test_constants_are_shared_and_never_written() -> None:
    (a,) = parameters(a=A)
    table = sg.constant(B_)
    f = judge([table + a, table], {a: table}, {})
    (constant,) = f.stages.plan.constants
    assert isinstance(constant, Constant) and constant is table
    assert isinstance(Graph.of([a[1:]]).outputs[0], Reindex)
