"""Small programs by name, judged by `evaluate`: each by the IR interpreter, all in one compilation.

A compilation costs half a second however small the graph is, so the cases of a module are outputs
of one program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from codegen.compiled import Compiled
from codegen.pipeline import compile
from symgrad.graph.dims import Dim, Extent, dim
from symgrad.graph.evaluator import evaluate
from symgrad.graph.nodes import Input, Node
from tests.ir_interpreter import failures, interpreted

Array = np.ndarray[Any, Any]


def whole(seed: int, *shape: int, dtype: Any = np.float32, high: int = 4) -> Array:
    """Whole numbers in -high..high."""
    return np.random.default_rng(seed).integers(-high, high + 1, shape).astype(dtype)


def real(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@dataclass
class Case:
    """Expressions, values of their leaves, and how far the numbers may be off.

    outputs: judged in both ways.
    further: like others of the outputs to a compiler, so judged by the interpreter alone.
    """

    name: str
    values: dict[str, Array] = field(default_factory=dict)
    outputs: list[Node] = field(default_factory=list)
    further: list[Node] = field(default_factory=list)
    rtol: float = 0.0
    atol: float = 0.0

    def input(self, value: Any, *shape: Extent, dtype: Any = None) -> Input:
        """A leaf with this value; `shape` where it is symbolic."""
        array = np.asarray(value, dtype)
        name = f"{self.name}.{len(self.values)}"
        self.values[name] = array
        return Input(name, shape or array.shape, array.dtype)

    def dim(self, name: str = "n") -> Dim:
        return dim(f"{self.name}.{name}")

    def out(self, *nodes: Node) -> None:
        self.outputs.extend(nodes)

    def like_others(self, *nodes: Node) -> None:
        self.further.extend(nodes)

    def check(self, nodes: list[Node], got: list[Array]) -> None:
        expected = evaluate(nodes, self.values)
        for node, g, e in zip(nodes, got, expected, strict=True):
            assert g.dtype == e.dtype and g.shape == e.shape, (node, g.dtype, g.shape)
            if self.rtol or self.atol:
                np.testing.assert_allclose(g, e, self.rtol, self.atol, err_msg=repr(node))
            else:
                np.testing.assert_array_equal(g, e, err_msg=repr(node))


Maker = Callable[[Case], None]


class Cases:
    """The cases of one test module.

    >>> cases = Cases()
    >>> @cases.add
    ... def doubled(c: Case) -> None:
    ...     x = c.input([1.0, 2.0])
    ...     c.out(x + x)
    >>> cases.interpret("doubled")
    """

    def __init__(self) -> None:
        self.makers: dict[str, Maker] = {}
        self.results: dict[str, list[Array]] | BaseException | None = None
        self.case = cache(self._case)

    def add(self, maker: Maker, name: str | None = None) -> Maker:
        self.makers[name or maker.__name__] = maker
        return maker

    def add_each(self, options: Mapping[str, Any]) -> Callable[[Callable[..., None]], None]:
        """A case for each option."""

        def register(maker: Callable[..., None]) -> None:
            for name, option in options.items():
                self.add(lambda c, o=option: maker(c, o), f"{maker.__name__}-{name}")  # type: ignore[misc]

        return register

    def _case(self, name: str) -> Case:
        case = Case(name)
        self.makers[name](case)
        return case

    def interpret(self, name: str) -> None:
        """Judge one case, run by the IR interpreter."""
        case = self.case(name)
        nodes = [*case.outputs, *case.further]
        with interpreted():
            f = compile(nodes)
        case.check(nodes, call(f, case.values))

    def judge(self, name: str) -> None:
        """Judge one case, compiled with all others."""
        case = self.case(name)
        if self.results is None:  # once, also when it fails
            try:
                self.results = self._run()
            except Exception as error:
                self.results = error
        if isinstance(self.results, BaseException):
            raise self.results
        case.check(case.outputs, self.results[name])

    def _run(self) -> dict[str, list[Array]]:
        every = {name: self.case(name) for name in self.makers}
        f = compile({name: case.outputs for name, case in every.items()})
        values = {k: v for case in every.values() for k, v in case.values.items()}
        results: dict[str, list[Array]] = call(f, values)
        return results


def call(f: Compiled, values: Mapping[str, Array]) -> Any:
    """Run a program on those of the values that it has leaves for."""
    names = {leaf.name for leaf in f.leaves}
    result = f(**{k: v for k, v in values.items() if k in names})
    for failure in getattr(f.loaded.module, "failures", ()):
        raise failure
    return result


__all__ = ["Case", "Cases", "call", "failures"]
