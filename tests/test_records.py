"""Programs found by the graph as written: what a key tells apart, and what a record gives back."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy

import symgrad as sg
from codegen import cache, records, road, targets
from codegen.compiled import Compiled
from codegen.program import Program, Table
from codegen.request import Request
from codegen.workspace import Layout
from symgrad.graph.dims import Counted, DerivedDim, Dim
from symgrad.graph.dtypes import FLOAT32, FLOAT64
from symgrad.graph.folds import NODES, Chain, Fold, Proj, Rows, binder
from symgrad.graph.functions import P
from symgrad.graph.graph import Graph
from symgrad.graph.keys import exact_key
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Piece,
    Reduce,
    Reindex,
    Scatter,
)
from symgrad.graph.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent

X, Y = sg.input("x", (3, 5)), sg.input("y", (3, 5))
FIRST, SECOND = sg.input("i", (3,), "int32"), sg.input("j", (3,), "int32")
CARRY, ELEMENT = binder("c", (3,), FLOAT32), binder("e", (3,), FLOAT32)
BODY = Graph((CARRY, ELEMENT), (CARRY + ELEMENT, CARRY * ELEMENT))
OTHER_BODY = Graph((CARRY, ELEMENT), (CARRY - ELEMENT, CARRY * ELEMENT))
START, SEQUENCE = sg.input("start", (3,)), sg.input("sequence", (5, 3))
FOLD = Fold((START, SEQUENCE), BODY, Chain(5), 1, 1)
PIECE = Piece((3, 5), (0, 0), (1, 1), (2, 2), (0, 0), (1, 1))

FIND = records.find  # other tests lead every program through all passes

# A node of each class by its fields, and for each field another value.
CASES: dict[type[Node], tuple[dict[str, Any], dict[str, Any]]] = {
    Input: (
        {"label": "x", "shape": (3, 5), "dtype": FLOAT32, "kind": "input"},
        {"label": "z", "shape": (5, 3), "dtype": FLOAT64, "kind": "parameter"},
    ),
    Constant: ({"value": np.float32([0.0, 1.0])}, {"value": np.float32([-0.0, 1.0])}),
    Map: (
        {"args": (X, Y), "body": P[0] + P[1], "shape": (3, 5), "dtype": FLOAT32},
        {"args": (Y, X), "body": P[0] * P[1], "shape": (1, 3, 5), "dtype": FLOAT64},
    ),
    Einsum: (
        {"args": (X, Y), "labels": ((0, 1), (0, 1)), "out": (0,), "extents": (3, 5)},
        {"args": (Y, X), "labels": ((0, 1), (1, 0)), "out": (1,), "extents": (3, 7)},
    ),
    Reduce: ({"args": (X,), "op": "max", "axes": (0,)}, {"args": (Y,), "op": "min", "axes": (1,)}),
    Reindex: (
        {"args": (X,), "pieces": (PIECE,), "shape": (7, 7)},
        {"args": (Y,), "pieces": (PIECE, PIECE), "shape": (7, 11)},
    ),
    Gather: (
        {"args": (X, FIRST, SECOND), "source_axes": (~0, ~1), "index_labels": ((0,), (1,)),
         "out": (0, 1), "wrap": True},
        {"args": (X, SECOND, FIRST), "source_axes": (~1, ~0), "index_labels": ((1,), (0,)),
         "out": (1, 0), "wrap": False},
    ),
    Scatter: (
        {"args": (X[:, :3], FIRST, SECOND), "update_labels": (0, 1), "index_labels": ((0,), (1,)),
         "target_axes": (~0, ~1), "shape": (5, 7), "wrap": True},
        {"args": (X[:, :3], SECOND, FIRST), "update_labels": (1, 0), "index_labels": ((1,), (0,)),
         "target_axes": (~1, ~0), "shape": (7, 5), "wrap": False},
    ),
    Fold: (
        {"args": (START, SEQUENCE), "body": BODY, "structure": Chain(5), "carries": 1,
         "sequences": 1},
        {"args": (SEQUENCE, START), "body": OTHER_BODY, "structure": Chain(7), "carries": 2,
         "sequences": 0},
    ),
    Proj: ({"args": (FOLD,), "place": 0}, {"args": (Proj((FOLD,), 0),), "place": 1}),
}  # fmt: skip
# What is no part of a program: initial values, and the arguments that leaves do not have.
OUTSIDE = {(Input, "init"), (Input, "args"), (Constant, "args"), (Proj, "args")}


def key(*outputs: Node) -> str:
    return exact_key(Graph.of(outputs))


@pytest.mark.parametrize("cls", NODES, ids=lambda cls: cls.__name__)
def test_every_field_of_a_node_changes_the_key(cls: type[Node]) -> None:
    own, others = CASES[cls]
    first = cls(**own)
    assert key(first) == key(cls(**own))
    for field in fields(cls):  # type: ignore[arg-type]
        if (cls, field.name) not in OUTSIDE:
            changed = cls(**(own | {field.name: others[field.name]}))
            assert key(changed) != key(first), field.name


@pytest.mark.parametrize("record", [PIECE, Chain(5)], ids=["Piece", "Chain"])
def test_every_field_of_a_record_in_a_node_changes_the_key(record: Any) -> None:
    n = Dim("n")

    def holder(value: Any) -> Node:
        if isinstance(value, Piece):
            return Reindex((X,), (value,), (7, 7))
        return Fold((START, SEQUENCE), BODY, value, 1, 1)

    for field in fields(record):
        value = getattr(record, field.name)
        changed = (value[0] + 1, *value[1:]) if isinstance(value, tuple) else n
        changed = not value if isinstance(value, bool) else changed
        if field.name == "rows":
            changed = Rows(Counted("now", 3), Counted("all", 15))
        assert key(holder(replace(record, **{field.name: changed}))) != key(holder(record))


def test_names_dims_order_and_how_a_node_was_made_change_the_key() -> None:
    def program(a: str = "a", b: str = "b", x: str = "x") -> Node:
        leaf = sg.input(x, (sg.dim(a), sg.dim(b)))
        return sg.tanh(leaf).sum(axis=1)

    told = {key(program()), key(program(x="z")), key(program(a="c")), key(program("b", "a"))}
    assert len(told) == 4 and key(program()) in told
    assert Graph.of([program()]).key == Graph.of([program("c", "d", "z")]).key
    assert key(X, Y) != key(Y, X) != key(Y)
    a, b = sg.dim("a"), sg.dim("b")
    derived = [DerivedDim(*fields) for fields in ((a, 3), (a, b), (a, None), (a + b, 3))]
    assert len({key(sg.input("x", (d,))) for d in (*derived, Dim(derived[0].name))}) == 5
    counted = [Counted(*fields) for fields in (("c", a), ("c", b), ("d", a), ("c", a + b))]
    assert len({key(sg.input("x", (d,))) for d in (*counted, Dim(counted[0].name))}) == 5
    body = P[0] * 3.0 + 0.125
    keys = {key(Map((X,), body, (3, 5), FLOAT32))}
    # equal nodes are one object while they live, so each is made after the one before has gone
    for origin in ("vjp", "mine"):
        with provenance(origin):
            keys.add(key(Map((X,), body, (3, 5), FLOAT32)))
    with provenance("vjp", X):
        keys.add(key(Map((X,), body, (3, 5), FLOAT32)))
    assert len(keys) == 4
    initial = [sg.parameter("w", (3,), init=value) for value in (0.0, 1.0)]
    assert key(initial[0]) == key(initial[1])


def test_options_and_what_is_updated_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    w, back = sg.parameter("w", (3,)), targets.find("cpu")
    graph = Graph.of([w * 2, w])
    base = Request(graph, (w * 2, w), (), "cpu", back, 1, False)
    changed = [
        replace(base, outputs=(w * 2,), updates=((w, w),)),
        replace(base, target="other"),
        replace(base, threads=2),
        replace(base, training=True),
    ]
    keys = {records.key_of(request) for request in (base, *changed)}
    monkeypatch.setattr(records, "_compiler", lambda: "another text")
    keys.add(records.key_of(base))
    monkeypatch.setattr(cache, "fingerprint", lambda: "another processor")
    keys.add(records.key_of(base))
    assert len(keys) == 7


def test_the_text_of_all_that_compiles_is_in_the_key() -> None:
    code = "import sys, codegen.road; print(*(m.__file__ for n, m in sys.modules.items() "
    code += "if n.split('.')[0] in ('symgrad', 'codegen')))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    rooms = {str(Path(file).resolve().parent.relative_to(ROOT)) for file in told.stdout.split()}
    # `symgrad` itself holds names only; the text of `codegen/runtime` is in the fingerprint
    assert rooms - {"symgrad", "codegen/runtime"} == set(records.ROOMS)


def test_versions_of_what_the_passes_ask_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package that a pass imports, besides those in the fingerprint of machine code."""
    imported = set()
    for path in (path for room in records.ROOMS for path in (ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"symgrad", "codegen"}
    assert others - {"numba", "llvmlite", "numpy", "scipy"} == set(records.ASKED)
    before, version = records._compiler(), metadata.version
    for asked in records.ASKED:
        with monkeypatch.context() as context:
            context.setattr(
                metadata, "version", lambda n, asked=asked: "9" if n == asked else version(n)
            )
            assert records._compiler.__wrapped__() != before, asked
    assert records._compiler.__wrapped__() == before


# -- records ---------------------------------------------------------------------------------------
@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder of this test."""
    monkeypatch.setenv("SYMGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "find", FIND)
    yield tmp_path / "cache"


def found(outputs: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Compiled:
    """The program as the cache gives it: no pass may run."""

    def refused(*_: object) -> None:
        raise AssertionError("a program that is in the cache was compiled")

    with monkeypatch.context() as context:
        context.setattr(road, "make", refused)
        return sg.compile(outputs, **options)


def _rows() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    b = sg.dim("b")
    x, w = sg.input("x", (b, 3)), sg.parameter("w", (3, 5), init=0.5)
    h = sg.softmax(x @ w, axis=1)
    pairs = sg.einsum("ij,kj->ik", h, h)
    return [h, pairs, h.T, pairs.sum(), x], {}, {"x": np.arange(21.0).reshape(7, 3)}


def _constants() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    x = sg.input("x", (3,))
    table = sg.constant(np.linspace(-1, 1, 200, dtype=np.float32))
    return {"all": x + table[:3], "one": sg.constant(2.0), "leaf": x}, {}, {"x": np.ones(3)}


def _updates() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    x, w = sg.input("x", (sg.dim("b"), 3)), sg.parameter("w", (3,), init=1.0)
    loss = sg.square(x @ w).mean()
    return loss, {"updates": {w: w - 0.25 * sg.grad(loss, w)}}, {"x": np.arange(15.0).reshape(5, 3)}


def _recurrence() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    xs, b = sg.input("xs", (sg.dim("t"), 3)), sg.parameter("b", (3,), init=0.5)
    last, ys = sg.scan(lambda c, x: (sg.tanh(c + x * b),) * 2, b * 0.0, xs)
    return [last, ys, sg.grad(ys.sum(), b)], {}, {"xs": np.linspace(-1, 1, 21).reshape(7, 3)}


def _checkpoints(kind: str = "sqrt") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    xs, b = sg.input("xs", (sg.dim("t"), 3)), sg.parameter("b", (3,), init=0.5)
    _, ys = sg.scan(lambda c, x: (sg.tanh(c + x * b),) * 2, b * 0.0, xs, checkpoint=kind)
    return [ys, sg.grad(ys.sum(), b)], {}, {"xs": np.linspace(-1, 1, 33).reshape(11, 3)}


def _budget() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    return _checkpoints("2 kB")


def _dropout() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    x = sg.input("x", (5, 7))
    return sg.dropout(x, 0.5) + 1.0, {"training": True, "seed": 3}, {"x": np.ones((5, 7))}


PROGRAMS: list[Callable[[], tuple[Any, dict[str, Any], dict[str, Any]]]] = [
    _rows, _constants, _updates, _recurrence, _checkpoints, _budget, _dropout,
]  # fmt: skip


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
def test_a_program_that_was_found_is_the_one_that_was_compiled(
    make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, options, values = make()
    first = sg.compile(outputs, **options)
    again = found(outputs, monkeypatch, **options)
    for _ in range(3):  # calls change the state, and draw anew
        a, b = first(**values), again(**values)
        flat = [list(v.values()) if isinstance(v, dict) else v for v in (a, b)]
        for one, other in zip(*(v if isinstance(v, list) else [v] for v in flat), strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)
    for name, value in first.state.items():
        assert np.array_equal(value, again.state[name])
    assert str(again.stages) == str(first.stages) and again.source == first.source
    assert "key" in again.stages.seconds and "stabilize" not in again.stages.seconds
    sizes = dict.fromkeys(first.dims, 7)
    assert again._table.slot_offsets(sizes) == first.stages.plan.slot_offsets(sizes)
    assert "kernel" in again.report(**values)


def test_a_bad_index_is_explained_as_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, k = sg.input("x", (sg.dim("n"), 3)), sg.input("k", (sg.dim("m"),), "int32")
    values = {"x": np.ones((5, 3)), "k": [0, 7]}
    told = []
    for f in (sg.compile(x[k]), found(x[k], monkeypatch)):
        with pytest.raises(sg.DataError) as error:
            f(**values)
        told.append(str(error.value))
    assert told[0] == told[1] and "7 is out of range" in told[0]


def test_damaged_records_and_missing_code_are_made_again(folder: Path) -> None:
    x = sg.input("x", (3,))

    def compiled() -> bool:
        f = sg.compile(sg.tanh(x) * 3.0)
        assert np.allclose(f(x=[1.0, 2.0, 3.0]), np.tanh([1.0, 2.0, 3.0]) * 3)
        return "stabilize" in f.stages.seconds

    assert compiled() and not compiled()
    (file,) = folder.glob("sg_*.json")
    intact = file.read_bytes()
    record = json.loads(intact[32:])
    other = [{**record, "name": "sg_" + "0" * 32}, {**record, "layout": None}, {}, [], 3]
    for damaged in (b"", intact[:40], intact[:-1], intact[:60] + b"\xff" + intact[61:]):
        file.write_bytes(damaged)
        assert compiled() and not compiled()
    for value in other:
        cache.write_sealed(file, json.dumps(value).encode())
        assert compiled() and not compiled()
    assert file.read_bytes() == intact


def test_what_a_record_cannot_hold_is_compiled_each_time(folder: Path) -> None:
    x = sg.input("x", (3,))
    f = sg.compile(x * 2.0)
    graph, table = f.stages.graph, f._table
    large = Constant(np.arange(records.MOST_BYTES, dtype=np.int64))
    d = Dim("elsewhere")
    for strange in (
        Program(table, (("value", 0),), (large,)),
        Program(Table(table.leaves, (), (x.sum() * 0, sg.input("z", (d,))), table.layout), (), ()),
        Program(Table(table.leaves, (), (), Layout((), ())), (("value", 0),), (large,)),
    ):
        records.keep("0" * 32, graph, strange, f.loaded)
    assert not (folder / f"sg_{'0' * 32}.json").exists()


def test_extents_and_layouts_come_back_as_they_were() -> None:
    a, b = sg.dim("a"), sg.dim("b")
    graph = Graph.of([sg.input("x", (a, b))])
    writer, reader = records._Writer(graph), records._Reader(graph)
    for extent in (0, 7, a, 4 * a * b**2 + 3 * b - 5, sympy.expand((a + b) ** 3), -a + 2):
        assert reader.extent(json.loads(json.dumps(writer.extent(extent)))) == extent
    for strange in (a / 2, sympy.sqrt(a), sg.dim("c")):
        with pytest.raises(records._NotKept):
            writer.extent(strange)


def test_a_warm_process_makes_no_passes(tmp_path: Path) -> None:
    """Also under another seed of Python's hashes; what is looked at is made then."""
    code = """
import sys
import numpy as np
import symgrad as sg

B = sg.dim("B")
x, y = sg.input("x", (B, 3)), sg.input("y", (B,), "int32")
w = sg.parameter("w", (3, 5), init=0.25)
loss = sg.cross_entropy(x @ w, y).mean()
trainer = sg.Trainer(loss, optimizer=sg.optim.adam(0.1))
rows = np.linspace(-1, 1, 63).reshape(21, 3)
history = trainer.fit({"x": rows, "y": np.arange(21) % 5}, epochs=3, batch_size=8)
heavy = [m for m in ("codegen.road", "codegen.lowering", "numba", "scipy") if m in sys.modules]
print(*map(float.hex, history.loss), float(trainer.parameters["w"].sum()).hex())
print(trainer.program.loaded.from_cache, *heavy)
import hashlib
text = trainer.program.source + str(trainer.program.stages)
print(hashlib.sha256(text.encode()).hexdigest(), "codegen.road" in sys.modules)
"""
    told = []
    for seed in ("1", "2"):
        child = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={**os.environ, "SYMGRAD_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": seed,
                 "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert child.returncode == 0, child.stderr
        told.append(child.stdout.splitlines())
    (figures, first, text), (again, second, same) = told
    assert figures == again and text == same and text.endswith("True")
    assert first.startswith("False codegen.road codegen.lowering numba") and second == "True"
