"""The face: every name is there, means what it says, and costs nothing until it is used."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import symgrad as sg
from tests.conftest import ROOT

LEAVES = "dim input parameter constant init Node"
VERBS = """
exp log log1p expm1 sqrt rsqrt abs sign floor sin cos tan tanh sinh cosh arctan maximum minimum
where clip square reciprocal power isnan isfinite stop_gradient astype
sum mean prod max min var std argmax argmin
einsum matmul reshape transpose concatenate take zeros ones
sigmoid softplus relu softmax log_softmax logsumexp one_hot cross_entropy elementwise
"""
TRANSFORMS = """
grad value_and_grad vjp jvp jacobian hessian hvp simplify stabilize substitute derive cost
parameters inputs latex to_networkx to_sympy
"""
VALUES = """
evaluate compile Trainer EarlyStopping CsvLog Checkpoint nn optim draw gradient_flow
explain_nan random dropout
"""
ERRORS = "SymgradError ShapeError DTypeError LeafError GradError CompileError DataError"
NAMES = [*LEAVES.split(), *VERBS.split(), *TRANSFORMS.split(), *VALUES.split(), *ERRORS.split()]


def run(program: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_name_is_reachable(name: str) -> None:
    assert name in dir(sg)
    value = getattr(sg, name)
    if name in ERRORS.split():
        assert issubclass(value, sg.SymgradError)
    else:
        assert callable(value) or name in ("init", "nn", "optim", "random")


def test_every_name_resolves_and_unknown_ones_are_refused() -> None:
    assert sg.__all__ == sorted(sg.__all__)
    for name in sg.__all__:
        getattr(sg, name)
    with pytest.raises(AttributeError, match="no attribute 'gradd'"):
        sg.gradd  # noqa: B018  # read for its error
    with pytest.raises(AttributeError) as caught:
        sg.sofmax  # noqa: B018  # read for its error
    assert caught.value.name == "sofmax" and caught.value.obj is sg  # Python asks for softmax


def test_no_submodule_replaces_a_name_of_the_face() -> None:
    before = {name: getattr(sg, name) for name in sg.__all__}
    import codegen

    for package in (sg, codegen):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("pygraphviz_child"):
                importlib.import_module(module.name)
    for name, value in before.items():
        assert getattr(sg, name) is value, name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(sg.__file__).read_text(encoding="utf-8"))
    seen = {"__version__"}
    for node in tree.body:
        if isinstance(node, ast.If):
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom):
                    assert all(name.asname == name.name for name in statement.names)
                    seen |= {name.name for name in statement.names}
    assert seen == set(sg.__all__)


def test_import_loads_neither_numba_nor_scipy(tmp_path, outside) -> None:
    program = (
        "import sys, symgrad as sg\n"
        "heavy = {'numba', 'llvmlite', 'scipy', 'sympy', 'numpy', 'matplotlib', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "x = sg.input('x', (3, 5))\n"
        "sg.grad(sg.tanh(x).sum(), x)\n"
        "print(sorted({'numba', 'llvmlite', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)))\n"
    )
    done = run(program, tmp_path, outside)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize("use", ["import symgrad", "from symgrad.graph import dims"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_users_codegen_is_named_in_a_clear_error(use, as_folder, tmp_path, outside) -> None:
    shadow = tmp_path / "codegen" / "__init__.py" if as_folder else tmp_path / "codegen.py"
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("answer = 42\n")
    for first in ("", "import codegen; "):
        done = run(first + use, tmp_path, outside)
        assert done.returncode == 1
        last = done.stderr.split("ImportError: ")[-1]
        assert done.stderr.count("Traceback") == 1
        assert "'codegen' is hidden by another module" in last
        assert str(shadow) in last
        assert str(ROOT / "codegen") in last
        assert "Rename" in last


def test_outside_the_checkout_without_a_shadow_all_is_well(tmp_path, outside) -> None:
    done = run("import symgrad as sg; print(sg.__version__)", tmp_path, outside)
    assert done.stdout.strip() == sg.__version__
