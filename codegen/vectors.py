"""Which kernels LLVM made vectors of: read off the optimised code, not hoped.

A kernel's loops are the strongly connected blocks of its control flow. What counts is the widest
vector that arithmetic, a load or a store of any loop works on; one of more bits than a register has
is several registers, and counts as one. A loop that LLVM left scalar has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from codegen.compiled import Compiled
from codegen.loading import seen

_DEFINITION = re.compile(r'^define [^@]*@"?(?P<name>[^"(]*\.(?P<short>kernel_\d+)\([^"]*)"?\(')
_LABEL = re.compile(r'^(?P<label>"[^"]+"|[\w.$-]+):')
_TARGET = re.compile(r'label %(?P<label>"[^"]+"|[\w.$-]+)')
_VECTOR = re.compile(r"<(?P<count>\d+) x (?P<element>float|double|i\d+|ptr)>")
_WORK = re.compile(
    r"= (tail )?(f(add|sub|mul|div|rem|neg|cmp)|add|sub|mul|icmp|select|load|call|and|or|xor) "
    r"|^ *store |^ *call "
)
_BITS = {"float": 32, "double": 64, "ptr": 64}


@dataclass(frozen=True, slots=True)
class KernelVectors:
    """What a kernel's loops work on.

    kernel:  its name in the source, `kernel_0`.
    formula: what it computes.
    loops:   how many loops its machine code has; 0 where all are unrolled.
    bits:    of the widest vector in them, or in straight-line code where there are none.
    """

    kernel: str
    formula: str
    loops: int
    bits: int

    def fills(self, register: int) -> bool:
        """Whether its vectors are as wide as a register of so many bits."""
        return self.bits >= register

    def __str__(self) -> str:
        width = f"{self.bits} bits" if self.bits else "scalar"
        return f"{self.kernel:<12} {width:<9} {self.formula}"


def vectors_of(f: Compiled) -> list[KernelVectors]:
    """The vectors in the loops of a program's kernels, in the order of the source.

    The program is compiled once more, since what the cache keeps is machine code.

    >>> import symgrad as sg
    >>> x = sg.input("x", (1000,))
    >>> [kernel.kernel for kernel in vectors_of(sg.compile(x * x + 1))]
    ['kernel_0']
    """
    formulas = dict(re.findall(r'^def (kernel_\d+)\(.*\):\n    """(.*)"""', f.stages.source, re.M))
    found = {}
    for name, body in _functions(seen(f.stages.source)):
        loops, bits = _widest(body)
        found[name] = KernelVectors(name, formulas.get(name, ""), loops, bits)
    return sorted(found.values(), key=lambda v: int(v.kernel.rsplit("_", 1)[1]))


def register_bits() -> int:
    """Of this processor's widest vector register."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return 512 if features.get("avx512f") else 256 if features.get("avx2") else 128


def _functions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of every kernel in LLVM's text."""
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        if match := _DEFINITION.match(line):
            name, lines = match["short"], []
        elif line == "}":
            if name:
                yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _widest(lines: list[str]) -> tuple[int, int]:
    """How many loops a function has, and the bits of the widest vector in them."""
    blocks: dict[str, list[str]] = {"entry": []}
    here = "entry"
    for line in lines:
        if match := _LABEL.match(line):
            here = match["label"]
            blocks[here] = []
        else:
            blocks[here].append(line)
    flow = nx.DiGraph()
    flow.add_nodes_from(blocks)
    for label, body in blocks.items():
        if body:
            flow.add_edges_from((label, target) for target in _TARGET.findall(" ".join(body[-8:])))
    inside: set[str] = set()
    loops = 0
    for part in nx.strongly_connected_components(flow):
        if len(part) > 1 or any(flow.has_edge(label, label) for label in part):
            inside |= part
            loops += 1
    chosen = inside or set(blocks)
    bits = (_bits(line) for label in blocks if label in chosen for line in blocks[label])
    return loops, max(bits, default=0)


def _bits(line: str) -> int:
    """Of the widest vector that an instruction works on."""
    if not _WORK.search(line):
        return 0
    widest = 0
    for count, element in _VECTOR.findall(line):
        if element != "i1":
            widest = max(widest, int(count) * (_BITS.get(element) or int(element[1:])))
    return min(widest, 512)
