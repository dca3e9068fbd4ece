"""What one more program costs in memory: `python -m tests.bench programs --peers jax,torch`.

Each library in a process of its own makes, runs and drops programs that differ: the value and the
gradient of a small softmax layer of another width. The first one brings the library's own code into
memory; what the others add to the resident size is told.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from tests.bench.contestant import resident_memory
from tests.bench.race import ROOT

PROGRAMS = 20


def programs(peers: Sequence[str]) -> str:
    """The table, one row for each library."""
    lines = ["library            | first program MB | each further one MB"]
    with tempfile.TemporaryDirectory(prefix="symgrad-bench-") as folder:
        kinds = [("symgrad", "symgrad, compiled"), ("symgrad", "symgrad, from cache")]
        kinds += [(peer, peer) for peer in peers if peer in MAKERS and find_spec(peer)]
        for library, title in kinds:
            child = subprocess.run(
                [sys.executable, "-m", "tests.bench.programs", library],
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
                env={**os.environ, "SYMGRAD_CACHE_DIR": folder},
            )
            first, further = map(float, child.stdout.split())
            lines.append(f"{title:<19}| {first:16.1f} | {further:19.2f}")
    return "\n".join(lines)


def measure(library: str) -> tuple[float, float]:
    """MB that the first program adds to the resident size, and each further one."""
    make = MAKERS[library]
    sizes = [resident_memory()]
    for k in range(PROGRAMS):
        make(7 + k, 1.0 + k / 7)()
        gc.collect()
        sizes.append(resident_memory())
    return sizes[1] - sizes[0], (sizes[-1] - sizes[1]) / (PROGRAMS - 1)


def _symgrad(width: int, factor: float) -> Callable[[], object]:
    import symgrad as sg

    x = sg.input("x", (sg.dim("B"), width))
    W, b = sg.parameter("W", (width, 5)), sg.parameter("b", (5,))
    y = sg.softmax(sg.tanh(x @ W + b) * factor, axis=1)
    loss = (y * y * sg.exp(-y)).mean()
    f = sg.compile([loss, *sg.grad(loss, [W, b])])
    return lambda: f(x=np.ones((3, width), np.float32))


def _jax(width: int, factor: float) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    def loss(W: object, b: object, x: object) -> object:
        y = jax.nn.softmax(jnp.tanh(x @ W + b) * factor, axis=1)  # type: ignore[operator]
        return (y * y * jnp.exp(-y)).mean()

    f = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    leaves = np.zeros((width, 5), "f4"), np.zeros(5, "f4"), np.ones((3, width), "f4")
    return lambda: jax.block_until_ready(f(*leaves))


def _torch(width: int, factor: float) -> Callable[[], object]:
    import torch

    W, b = torch.zeros(width, 5, requires_grad=True), torch.zeros(5, requires_grad=True)

    def run() -> None:
        y = torch.softmax(torch.tanh(torch.ones(3, width) @ W + b) * factor, 1)
        (y * y * torch.exp(-y)).mean().backward()

    return run


MAKERS: dict[str, Callable[[int, float], Callable[[], object]]] = {
    "symgrad": _symgrad,
    "jax": _jax,
    "torch": _torch,
}

if __name__ == "__main__":
    print(*measure(sys.argv[1]))
