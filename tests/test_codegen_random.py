"""Random programs, compiled, against `evaluate`, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codegen.pipeline import compile
from symgrad.graph.checker import check
from symgrad.graph.evaluator import evaluate
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Node
from tests.codegen_cases import call
from tests.ir_interpreter import interpreted
from tests.random_programs import Program, assert_equal, outputs_of, random_program


def program_of(seed: int, prefix: str = "") -> tuple[Program, list[Node]]:
    rng = np.random.default_rng(seed)
    program = random_program(seed, int(rng.integers(5, 40)), prefix, zeros=seed % 4 == 0)
    return program, outputs_of(program, everything=bool(rng.integers(2)))


def judge(program: Program, nodes: list[Node], got: list[Any]) -> None:
    expected = evaluate(nodes, program.values)
    for node, g, e in zip(nodes, got, expected, strict=True):
        assert_equal(g, e, repr(node))


@pytest.mark.parametrize("seed", range(150))
def test_interpreted(seed: int) -> None:
    program, nodes = program_of(seed)
    check(Graph.of(nodes))
    with interpreted():
        f = compile(nodes)
    check(f.stages.rewritten)
    judge(program, nodes, call(f, program.values))


def judge_compiled(seeds: range) -> None:
    """Several programs in one compilation, which costs half a second however small it is."""
    made = {str(seed): program_of(seed, f"{seed}.") for seed in seeds}
    f = compile({name: nodes for name, (_, nodes) in made.items()})
    values = {k: v for program, _ in made.values() for k, v in program.values.items()}
    got = call(f, values)
    for name, (program, nodes) in made.items():
        judge(program, nodes, got[name])


def test_compiled() -> None:
    judge_compiled(range(200, 203))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 4000, 100))
def test_many_interpreted(first: int) -> None:
    for seed in range(first, first + 100):
        test_interpreted(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1100, 10))
def test_many_compiled(first: int) -> None:
    judge_compiled(range(first, first + 10))
