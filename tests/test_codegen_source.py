"""Generated source: golden files, equal bytes everywhere, no text of a user's, saved programs."""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen.compiled import Compiled
from codegen.loading import run_module
from codegen.pipeline import compile
from codegen.runtime.object_files import optimized
from symgrad.graph.errors import SymgradError
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Input, Node, Scatter
from tests.codegen_cases import Case, call
from tests.ir_interpreter import interpreted

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


def whole(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


# -- golden files ----------------------------------------------------------------------------------
KERNELS: dict[str, Callable[[Case], None]] = {}


def kernel(maker: Callable[[Case], None]) -> Callable[[Case], None]:
    KERNELS[maker.__name__] = maker
    return maker


@kernel
def cross_entropy_rows(c: Case) -> None:
    n = c.dim()
    logits, y = c.input(whole(1, 5, 7), n, 7), c.input([3, 0, 6, 1, 2], n, dtype=np.int32)
    loss = sg.cross_entropy(logits, y).mean()
    c.out(loss, sg.grad(loss, logits))
    c.rtol, c.atol = 1e-5, 1e-6


@kernel
def layer_norm_rows(c: Case) -> None:
    x, scale = c.input(whole(1, 5, 7)), c.input(whole(2, 7))
    c.out((x - x.mean(1, keepdims=True)) / sg.sqrt(sg.var(x, 1, keepdims=True) + 1e-5) * scale)
    c.rtol, c.atol = 1e-5, 1e-6


@kernel
def dense_layer(c: Case) -> None:
    n = c.dim()
    x, w, b = c.input(whole(1, 5, 7), n, 7), c.input(whole(2, 7, 3)), c.input(whole(3, 3))
    c.out(sg.tanh(x @ w + b))
    c.rtol = 1e-6


@kernel
def column_sums(c: Case) -> None:
    x = c.input(whole(1, 5, 7), c.dim(), 7)
    c.out(x.sum(0), (x * x).sum())


@kernel
def batched_products(c: Case) -> None:
    a, b = c.input(whole(1, 2, 5, 3)), c.input(whole(2, 2, 7, 3))
    c.out(sg.einsum("bij,bkj->bik", a, b))


@kernel
def embedding_and_its_adjoint(c: Case) -> None:
    table, k = c.input(whole(1, 7, 3)), c.input([3, -1, 0, 3], dtype=np.int32)
    rows = table[k]
    c.out(rows, Scatter((rows * 2, k), (0, 1), ((0,),), (~0, 1), (7, 3)))


@kernel
def joined_pieces(c: Case) -> None:
    x, y = c.input(whole(1, 3, 5)), c.input(whole(2, 2, 5))
    c.out(sg.pad(sg.concatenate([x, y], 0), ((0, 1), (1, 0))))


@kernel
def turned_and_sliced(c: Case) -> None:
    x = c.input(whole(1, 5, 7))
    c.out(sg.transpose(x)[::-2, 1:] * 2)


@kernel
def places_of_maxima(c: Case) -> None:
    x = c.input(whole(1, 5, 7))
    c.out(sg.argmax(x, 1), sg.max(x, 0))


@kernel
def running_sums(c: Case) -> None:
    x = c.input(np.arange(15, dtype=np.int32).reshape(3, 5))
    c.out(sg.cumsum(x, 0), x * x + 1)


@kernel
def softmax_rows(c: Case) -> None:
    x = c.input(whole(1, 5, 7), c.dim(), 7)
    c.out(sg.softmax(x))
    c.rtol, c.atol = 1e-5, 1e-6


@kernel
def variance_rows(c: Case) -> None:
    c.out(sg.var(c.input(whole(1, 5, 7), c.dim(), 7), axis=1))
    c.rtol, c.atol = 1e-5, 1e-6


@kernel
def adam_update(c: Case) -> None:
    w, m, v, g = (c.input(whole(k, 5, 7) ** 2) for k in range(4))
    t = c.input(3.0, dtype=np.float32)
    m2, v2 = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = (m2 / (1 - 0.9**t)) / (sg.sqrt(v2 / (1 - 0.999**t)) + 1e-8)
    c.out(w - 0.01 * step, m2, v2)
    c.rtol, c.atol = 1e-5, 1e-6


@kernel
def rows_of_a_table_and_arithmetic(c: Case) -> None:
    table, k = c.input(whole(1, 7, 3)), c.input([3, -1, 0, 3], c.dim(), dtype=np.int32)
    c.out(sg.tanh(table[k]) * 2 + 1)
    c.rtol = 1e-6


@kernel
def recurrent_cell(c: Case) -> None:
    x, u = c.input(whole(1, 5, 3), c.dim(), 3), c.input(whole(2, 3, 3) / 8)
    h, hs = sg.scan(lambda h, e: (sg.tanh(h @ u + e),) * 2, sg.zeros((3,)), x)
    c.out(h, hs)
    c.rtol, c.atol = 1e-5, 1e-6


@pytest.mark.parametrize("name", KERNELS)
def test_golden(name: str, update_golden: bool) -> None:
    """`pytest tests/test_codegen_source.py --update-golden` writes the files anew."""
    case = Case(name)
    KERNELS[name](case)
    f = compile(case.outputs)
    case.check(case.outputs, call(f, case.values))
    path = GOLDEN / f"{name}.py.txt"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f.stages.source, encoding="utf-8")
    assert not changes(path, f.stages.source), changes(path, f.stages.source)


def changes(path: Path, source: str) -> str:
    """The lines that differ from a golden file; nothing where none does."""
    golden = path.read_text(encoding="utf-8").splitlines()
    lines = difflib.unified_diff(golden, source.splitlines(), path.name, "generated", lineterm="")
    told = "\n".join(lines)
    return told and f"{told}\nIf that is meant: pytest {Path(__file__).name} --update-golden"


def test_a_changed_golden_file_is_shown_as_a_diff(tmp_path: Path) -> None:
    path = tmp_path / "kernel.py.txt"
    path.write_text("a\nb\n")
    assert not changes(path, "a\nb\n")
    assert "-b\n+c\n" in changes(path, "a\nc\n") and "--update-golden" in changes(path, "c")


def test_golden_files_have_a_test_each() -> None:
    assert {path.name.removesuffix(".py.txt") for path in GOLDEN.iterdir()} == set(KERNELS)


# -- the same bytes --------------------------------------------------------------------------------
def network(names: str = "plain") -> tuple[list[Node], dict[Input, Node]]:
    """A small network with an optimiser; `names` are added to those of its leaves and dims."""
    n = sg.dim(f"n{names}")
    x, y = sg.input(f"x{names}", (n, 3)), sg.input(f"y{names}", (n,), "int32")
    w = sg.parameter(f"w{names}", (3, 5), whole(1, 3, 5) / 8)
    b = sg.parameter(f"b{names}", (5,), 0.0)
    loss = sg.cross_entropy(sg.tanh(x @ w + b), y).mean()
    gradients = sg.grad(loss, [w, b])
    updates = {p: p - 0.5 * g for p, g in zip([w, b], gradients, strict=True)}
    return [loss], updates


def source(names: str = "plain") -> str:
    outputs, updates = network(names)
    lazily = sys.modules["codegen.targets.cpu"]
    load = lazily.load_program
    try:  # the text only: nothing is compiled
        lazily.load_program = _nothing  # type: ignore[attr-defined]
        return compile(outputs, updates=updates).stages.source
    finally:
        lazily.load_program = load  # type: ignore[attr-defined]


def _nothing(text: str, key: str) -> Any:
    from types import ModuleType

    from codegen.loading import Loaded

    return Loaded(1, ModuleType("nothing"), None, False, 0.0)


EVIL = [
    '"];evil',
    "__import__('os')",
    "two\nlines",
    "sep\u2028ar\x85ated",
    "self",
    "values",
    "\\",
    "'''",
    '"""',
    "{names}",
    "%s",
    "np",
    "table",
    "# comment",
    "ünï",
    "\ud800",
]


def test_programs_that_differ_in_names_share_one_source() -> None:
    plain = source()
    for name in EVIL:
        assert source(name) == plain
    assert "plain" not in plain and plain.isascii()


def test_source_holds_no_text_of_the_user() -> None:
    text = source("".join(EVIL))
    tree = ast.parse(text)
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not words & {"evil", "os", "__import__", "ünï"}
    assert not any(word in text for word in ("evil", "__import__", "lines", "ated", "'''", "%s"))


def test_two_processes_write_the_same_source() -> None:
    program = (
        "import codegen.targets.cpu, hashlib\n"
        "from tests.test_codegen_source import source\n"
        "print(hashlib.sha256(source().encode()).hexdigest())"
    )
    made = set()
    for seed in ("1", "77"):
        child = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        made.add(child.stdout.strip())
    assert len(made) == 1


def test_equal_kernels_are_written_once() -> None:
    x = sg.input("x", (3, 5))
    for k in range(40):
        x = sg.tanh(x @ sg.parameter(f"w{k}", (5, 5), 0.1) + k)
    import codegen.targets.cpu as cpu

    with interpreted():
        f = compile(x)
    text = cpu.print_program(f.stages.plan, (), "")
    assert len(f.stages.plan.calls) == 80
    assert text.count("@kernel") <= 45  # one product, a kernel for each literal k, the table, `run`
    assert len(set(re.findall(r"def (kernel_\d+)", text))) == len(re.findall(r"def kernel", text))


# -- dtypes ----------------------------------------------------------------------------------------
def doubles(f: Compiled) -> list[str]:
    """Lines of LLVM's code that compute with float64."""
    code = str(optimized(run_module("sg_inspected", f.stages.source, "<inspected>").program))
    arithmetic = re.compile(
        r"= (?:tail )?(?:f(?:add|sub|mul|div|rem|neg|cmp|ptrunc|pext)|[su]itofp|select|load|call)"
        r"[^,(]*\bdouble\b"
    )
    return [line for line in code.splitlines() if arithmetic.search(line)]


@pytest.fixture(scope="module")
def trained() -> Compiled:
    outputs, updates = network()
    return compile(outputs, updates=updates)


def test_a_float32_program_computes_in_float32(trained: Compiled) -> None:
    assert not re.search(r"f64|float64|double", trained.stages.source)
    assert not doubles(trained)


def test_the_search_for_float64_finds_it() -> None:
    x = sg.input("x", (3,), "float64")
    f = compile(sg.tanh(x) * 2)
    assert doubles(f) and "f64" in f.stages.source


# -- saved programs --------------------------------------------------------------------------------
def run_alone(path: Path, program: str) -> Any:
    """Run Python in a process that finds neither symgrad nor codegen."""
    guard = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('symgrad', 'codegen'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.path.insert(0, {str(path.parent)!r})\n"
        "import json, numpy as np\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    child = subprocess.run(
        [sys.executable, "-c", guard + program],
        cwd=path.parent,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_a_saved_program_gives_the_same_numbers(tmp_path: Path) -> None:
    names = "".join(EVIL)
    outputs, updates = network(names)
    f = compile([*outputs, sg.constant([1.0, np.inf, -np.nan]) * 2], updates=updates)
    path = tmp_path / "kernels.py"
    f.save(path)
    ast.parse(path.read_text(encoding="utf-8"))
    data = {"x": whole(3, 4, 3), "y": np.array([0, 4, 1, 2], np.int32)}
    start = {name: array.copy() for name, array in f.state.items()}
    expected = [f(**{f"{k}{names}": v for k, v in data.items()}) for _ in range(2)]
    plain = [(k, v.tolist(), v.dtype.name) for k, v in data.items()]
    program = (
        "import kernels\n"
        f"data = {{k: np.array(v, t) for k, v, t in {plain!r}}}\n"
        f"start = [np.array(v, 'float32') for v in {[v.tolist() for v in start.values()]!r}]\n"
        "values = dict(zip(kernels.UPDATED, start))\n"
        "values |= {name: data[name[0]] for name in kernels.NAMES if name not in values}\n"
        "losses = [kernels.run(values, [4])[0].item() for _ in range(2)]\n"
        "print(json.dumps([kernels.NAMES, losses, [values[n].tolist() for n in kernels.UPDATED]]))"
    )
    found, losses, state = run_alone(path, program)
    assert found == [leaf.name for leaf in f.leaves]
    # LLVM may contract a product and a sum here and not there: some roundings of numbers below 2
    np.testing.assert_allclose(losses, [float(e[0]) for e in expected], rtol=0, atol=2**-22)
    for got, wanted in zip(state, f.state.values(), strict=True):
        np.testing.assert_allclose(np.array(got, np.float32), wanted, rtol=0, atol=2**-22)


def test_a_saved_program_runs_by_itself_and_checks_indices(tmp_path: Path) -> None:
    n = sg.dim("n")
    table, k = sg.input("table", (3, 2)), sg.input("k", (n,), "int32")
    f = compile([table[k] + sg.constant(whole(1, 2)), sg.argmax(table, 0)])
    path = tmp_path / "saved program.py"
    f.save(path)
    child = subprocess.run(
        [sys.executable, str(path), "4"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    program = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('saved', {str(path)!r})\n"
        "saved = importlib.util.module_from_spec(spec); spec.loader.exec_module(saved)\n"
        "values = {'table': np.ones((3, 2), 'float32'), 'k': np.array([0, 3], 'int32')}\n"
        "try:\n    saved.run(values, [2])\n"
        "except IndexError as error:\n    print(json.dumps(str(error)))"
    )
    assert "index 3 is out of range for extent 3" in run_alone(path, program)


def test_a_place_that_cannot_be_written(tmp_path: Path, trained: Compiled) -> None:
    with pytest.raises(SymgradError, match=r"save: .*missing.*Choose another place"):
        trained.save(tmp_path / "missing" / "kernels.py")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(SymgradError, match="cannot be written"):
        trained.save(tmp_path / "folder.py")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.py"]


def test_the_legend_names_leaves_on_one_line_each(trained: Compiled) -> None:
    outputs, updates = network("two\nlines\u2028")
    with interpreted():
        shown = compile(outputs, updates=updates).source
    legend = [line for line in shown.splitlines() if line.startswith("# table[")]
    assert any("wtwo\\nlines\\u2028" in line for line in legend)
    assert "wplain" in trained.source and trained.stages.source in trained.source


def test_evaluate_agrees_with_the_network() -> None:
    outputs, updates = network()
    with interpreted():
        f = compile(outputs, updates=updates)
    data = {"xplain": whole(3, 4, 3), "yplain": np.array([0, 4, 1, 2], np.int32)}
    wanted = evaluate([*outputs, *updates.values()], {**data, **f.state})
    np.testing.assert_allclose(call(f, data)[0], wanted[0], rtol=1e-6)
    for leaf, expected in zip(updates, wanted[1:], strict=True):
        np.testing.assert_allclose(f.state[leaf.name], expected, rtol=1e-5, atol=1e-7)
