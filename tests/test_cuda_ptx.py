"""CUDA programs compiled to PTX for sm_90, which needs the extra `symgrad[cuda]` but no device."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest

import symgrad as sg
from codegen.loading import Loaded, run_module
from codegen.pipeline import compile
from symgrad.graph.nodes import Node
from tests import cuda_programs, test_codegen_functions as functions, test_codegen_nodes as nodes

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("numba_cuda") is None
        or importlib.util.find_spec("nvidia") is None,
        reason="the extra symgrad[cuda] is not installed",
    ),
    pytest.mark.skipif(
        os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"),
        reason="the simulator compiles nothing",
    ),
]

CAPABILITY = (9, 0)
# CUDA's own float32 functions that reduce a large angle in float64.
ANGLES = {"sin", "cos", "tan"}


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are imported, and not compiled for a device."""
    from codegen.targets import cuda

    def load(source: str, key: str) -> Loaded:
        name = f"sg_ptx_{len(source)}"
        return Loaded(0, run_module(name, source, f"<{name}>"), None, False, 0.0)

    monkeypatch.setattr(cuda, "load_program", load)


def module_of(outputs: Any, updates: Any = None) -> ModuleType:
    return compile(outputs, updates, target="cuda").loaded.module


def ptx_of(module: ModuleType) -> list[str]:
    return [kernel.ptx(CAPABILITY) for kernel in module.KERNELS]


def assert_single(texts: list[str]) -> None:
    """No float64 arithmetic: no conversion to it, and no operation on it."""
    for text in texts:
        assert ".target sm_90" in text
        assert not re.findall(r"^.*\.f64\b.*$", text, re.MULTILINE)


SINGLE = {
    name: node
    for name, node in functions.APPLICATIONS.items()
    if name.endswith("-float32") and not name.startswith("cast_float64")
}
OTHERS = {name: node for name, node in functions.APPLICATIONS.items() if name not in SINGLE}


def test_functions_of_float32_stay_float32(unloaded: None) -> None:
    chosen = [node for name, node in SINGLE.items() if name.partition("-")[0] not in ANGLES]
    texts = ptx_of(module_of(chosen))
    assert texts
    assert_single(texts)


@pytest.mark.parametrize("function", sorted(ANGLES))
def test_angles(function: str, unloaded: None) -> None:
    (text,) = ptx_of(module_of([SINGLE[f"{function}-float32"]]))
    assert "fma.rn.f32" in text


def test_functions_of_other_dtypes(unloaded: None) -> None:
    by_dtype: dict[str, list[Node]] = {}
    for name, node in OTHERS.items():
        by_dtype.setdefault(name.partition("-")[2], []).append(node)
    for chosen in by_dtype.values():
        assert ptx_of(module_of(chosen))


def of_cases(names: Iterable[str]) -> list[str]:
    """PTX of cases in one program, each different kernel once."""
    outputs = [node for name in names for node in nodes.cases.case(name).outputs]
    return ptx_of(module_of(outputs))


def test_few_node_cases(unloaded: None) -> None:
    chosen = {"running-1", "places_with_nan", "gathers", "scatters", "softmaxes-f32", "truth"}
    assert chosen <= set(nodes.cases.makers)
    assert of_cases(sorted(chosen))


@pytest.mark.slow
def test_every_node_case(unloaded: None) -> None:
    assert len(of_cases(nodes.cases.makers)) > 50


def test_a_training_step(monkeypatch: pytest.MonkeyPatch, unloaded: None) -> None:
    f, _ = cuda_programs.perceptron("cuda")
    texts = ptx_of(f.loaded.module)
    assert_single(texts)
    assert any("bar.sync" in text for text in texts)  # a tree over shared memory
    assert "from codegen.runtime.device import" in f.source


@pytest.mark.parametrize("element", ["f32", "f64"])
def test_products(element: str, unloaded: None) -> None:
    from codegen.runtime import device

    text = getattr(device, f"gemm_{element}").ptx(CAPABILITY)
    assert "fma.rn." + element in text and ".shared" in text and "bar.sync" in text
    if element == "f32":
        assert_single([text])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_additions_into_memory_are_atomic_where_nothing_is_kept(dtype: str, unloaded: None) -> None:
    x, places = sg.input("x", (7,), dtype), sg.input("places", (7,), "int32")
    histogram = _scattered(x, places)
    module = module_of([histogram])
    assert "cuda.atomic.add" in compile([histogram], target="cuda").source
    assert any("atom." in text or "red." in text for text in ptx_of(module))


def _scattered(x: Node, places: Node) -> Node:
    from symgrad.graph.nodes import Scatter

    return Scatter((x, places), (0,), ((0,),), (~0,), (5,))


def test_primitives_are_all_there() -> None:
    from codegen.runtime import device_math
    from codegen.targets import cuda

    for name in cuda.PRIMITIVES:
        assert hasattr(device_math, name)
    for name in cuda.OF_INTEGERS:
        assert hasattr(device_math, f"{name}_int")


def test_without_a_device_the_error_says_what_to_do() -> None:
    from numba import cuda

    if cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(sg.CompileError, match=r"no CUDA device.*symgrad\[cuda\].*symgrad doctor"):
        compile(sg.input("x", (3,)) + 1, target="cuda")
