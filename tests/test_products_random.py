"""Random chains of products, permutations and loops, merged and strided, against `evaluate`."""

from __future__ import annotations

import numpy as np

import symgrad as sg
from codegen import loop_ir as ir
from codegen.compiled import Compiled
from codegen.pipeline import compile
from symgrad.graph.graph import Graph
from symgrad.graph.nodes import Input, Node
from tests.ir_interpreter import interpreted

EXTENTS = {"b": 3, "h": 2, "t": 4, "s": 5, "d": 7, "e": 6}
STEPS = 7


class Chain:
    """Arrays of labelled axes, each made of earlier ones."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dims = {
            k: sg.dim(f"{k.upper()}{seed}") if self.rng.random() < 0.3 else e
            for k, e in EXTENTS.items()
        }
        self.values: dict[Input, np.ndarray] = {}
        self.made: list[tuple[str, Node]] = []
        for _ in range(3):
            self.made.append(self.leaf("bhts" if self.rng.random() < 0.5 else "bhtd"))
        for _ in range(STEPS):
            self.step()

    def shuffled(self, labels: str) -> str:
        return "".join(self.rng.permutation(list(labels)))

    def leaf(self, labels: str) -> tuple[str, Node]:
        labels = self.shuffled(labels)
        node = sg.input(f"x{len(self.values)}", tuple(self.dims[k] for k in labels))
        value = self.rng.normal(size=[EXTENTS[k] for k in labels])
        self.values[node] = value.astype(np.float32)
        return labels, node

    def step(self) -> None:
        labels, node = self.made[self.rng.integers(len(self.made))]
        kind = self.rng.integers(6)
        if kind == 3:
            self.made.append((labels, sg.tanh(node)))
        elif kind == 4:
            self.made.append((labels, sg.softmax(node / 2)))
        elif kind == 5:
            turned = self.shuffled(labels)
            self.made.append((turned, sg.einsum(f"{labels}->{turned}", node)))
        else:
            self.product(labels, node)

    def product(self, labels: str, node: Node) -> None:
        others, other = self.made[self.rng.integers(len(self.made))]
        if self.rng.random() < 0.5:
            count = int(self.rng.integers(2, 5))
            others, other = self.leaf("".join(self.rng.choice(list(EXTENTS), count, replace=False)))
        shared = [k for k in labels if k in others]
        if shared:
            summed = self.rng.choice(shared)
            out = "".join(k for k in dict.fromkeys(labels + others) if k != summed)[:4]
            out = self.shuffled(out) if self.rng.random() < 0.5 else out
            self.made.append((out, sg.einsum(f"{labels},{others}->{out}", node, other)))

    def outputs(self) -> list[Node]:
        """The last three and the gradients of a function of them."""
        last = [node for _, node in self.made[-3:]]
        total = sum((sg.sin(node).sum() for node in last), start=sg.constant(0.0))
        return [*last, *sg.grad(total, list(Graph.of(last).inputs))]


def merged(f: Compiled) -> int:
    """Kernels with a product and something else."""
    found = 0
    for kernel in f.stages.kernels:
        statements = list(ir.walk(kernel.body))
        calls = sum(isinstance(s, ir.Call) for s in statements)
        found += calls > 1 or (calls == 1 and any(isinstance(s, ir.Store) for s in statements))
    return found


def test_random_chains() -> None:
    count = 0
    for seed in range(20):
        chain = Chain(seed)
        nodes = chain.outputs()
        leaves = {leaf: chain.values[leaf] for leaf in Graph.of(nodes).inputs}
        with interpreted():
            f = compile(nodes)
        results = f(**{leaf.name: value for leaf, value in leaves.items()})
        for got, wanted in zip(results, sg.evaluate(nodes, leaves), strict=True):
            scale = max(1e-3, float(np.abs(wanted).max()))
            np.testing.assert_allclose(got, wanted, atol=3e-5 * scale, err_msg=f"seed {seed}")
        count += merged(f)
    assert count >= 5  # else nothing was tested
