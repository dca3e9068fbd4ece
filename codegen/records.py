"""Records of compiled programs in the cache folder, found by the graph as written.

A record holds what calls need (`codegen/program.py`) and the name of the machine code, as JSON
behind its checksum. Its key is a hash of the written graph, the options, and everything that turns
one into machine code: the text of the compiler, the versions of what it uses, the processor, and
settings of the environment. So a warm process goes from the graph to its code without the passes.
Leaves are told by their number in the graph, dims by theirs; a program with an extent that is no
polynomial in dims, or with large constants of its own, has no record.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import sympy

from codegen import cache, loading
from codegen.loading import Loaded
from codegen.program import Array, Program, Table
from codegen.request import Request
from codegen.workspace import Block, Layout, Slot
from symgrad.graph.dims import Dim, Extent
from symgrad.graph.graph import Graph
from symgrad.graph.keys import exact_key
from symgrad.graph.nodes import Constant

# What turns a graph into source: the text of these rooms.
ROOMS = ("codegen", "codegen/targets", "symgrad/graph", "symgrad/calculus")
# And packages that the passes ask: for algebra, bounds of errors, cuts, and contraction orders.
ASKED = ("sympy", "mpmath", "networkx", "opt_einsum")
# Constants that no node of the written graph is are kept in a record up to so many bytes.
MOST_BYTES = 1 << 16


class _NotKept(Exception):
    """Something that a record has no words for."""


def key_of(request: Request) -> str:
    """What a program is found by: no other request has it, and it is the same in every process."""
    parts = (
        exact_key(request.written),
        len(request.outputs),
        len(request.updates),
        request.target,
        request.threads,
        request.training,
        _compiler(),
        cache.fingerprint(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def find(key: str, written: Graph) -> tuple[Program, Loaded] | None:
    """The program of this key, ready to run; None where it is missing or damaged."""
    place = cache.folder().path
    found = None if place is None else cache.read_sealed(_file(place, key))
    if found is None:
        return None
    try:
        record = json.loads(found)
        program = _Reader(written).program(record)
        name = str(record["name"])
    except (ValueError, KeyError, TypeError, IndexError):  # of another making
        return None
    loaded = loading.find(name)
    return None if loaded is None else (program, loaded)


def keep(key: str, written: Graph, program: Program, loaded: Loaded) -> None:
    """Write the record of a program whose machine code is kept."""
    place = cache.folder().path
    if place is None or loaded.path is None:
        return
    with contextlib.suppress(_NotKept, OSError):
        record = {"name": loaded.path.stem, **_Writer(written).program(program)}
        cache.write_sealed(_file(place, key), json.dumps(record).encode())


def _file(folder: Path, key: str) -> Path:
    return folder / f"sg_{key}.json"


@functools.cache
def _compiler() -> str:
    """A hash of the compiler's text, and of the versions of what its passes ask."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for room in ROOMS:
        for path in sorted((root / room).glob("*.py")):
            digest.update(path.read_bytes())
    digest.update(" ".join(f"{name} {metadata.version(name)}" for name in ASKED).encode())
    return digest.hexdigest()


def _constants(written: Graph) -> list[Constant]:
    """The constants of the written graph, bodies included, in order."""
    return list(dict.fromkeys(n for n in written.every_node() if isinstance(n, Constant)))


class _Writer:
    """A program as JSON's values."""

    def __init__(self, written: Graph) -> None:
        self.written = written
        self.dims = {d: k for k, d in enumerate(written.dims)}
        self.constants = {c: k for k, c in enumerate(_constants(written))}
        self.bytes = 0

    def program(self, program: Program) -> dict[str, Any]:
        table = program.table
        if table.leaves != self.written.inputs:
            raise _NotKept
        return {
            "places": program.places,
            "values": [self.constant(c) for c in program.values],
            "constants": [self.constant(c) for c in table.constants],
            "results": [[self.shape(n.shape), n.dtype.str] for n in table.results],
            "layout": self.layout(table.layout),
        }

    def constant(self, constant: Constant) -> Any:
        if constant in self.constants:
            return self.constants[constant]
        value = constant.value
        self.bytes += value.nbytes
        if self.bytes > MOST_BYTES:
            raise _NotKept
        return [base64.b64encode(value.tobytes()).decode(), value.dtype.str, value.shape]

    def shape(self, shape: Sequence[Extent]) -> list[Any]:
        return [self.extent(e) for e in shape]

    def extent(self, extent: Extent) -> Any:
        """A number, or terms: a factor, then numbers of dims with their powers."""
        if isinstance(extent, int):
            return extent
        terms: list[Any] = []
        for term in sympy.Add.make_args(sympy.expand(extent)):
            factor, rest = term.as_coeff_Mul()
            if not factor.is_Integer:
                raise _NotKept
            terms.append([int(factor)])
            for power in () if rest == 1 else sympy.Mul.make_args(rest):
                base, exponent = power.as_base_exp()
                if base not in self.dims or not exponent.is_Integer or exponent < 1:
                    raise _NotKept
                terms[-1] += [self.dims[base], int(exponent)]
        return terms

    def layout(self, layout: Layout) -> list[Any]:
        blocks = [
            [
                {"inner": self.layout(block.content)}
                if isinstance(block.content, Layout)
                else self.extent(block.content),
                block.spans,
            ]
            for block in layout.blocks
        ]
        return [blocks, [[slot.number, slot.block, slot.inside] for slot in layout.slots]]


class _Reader:
    """The same backwards."""

    def __init__(self, written: Graph) -> None:
        self.written = written
        self.dims: tuple[Dim, ...] = written.dims
        self.constants = _constants(written)

    def program(self, record: dict[str, Any]) -> Program:
        table = Table(
            self.written.inputs,
            tuple(map(self.constant, record["constants"])),
            tuple(Array(self.shape(shape), np.dtype(dtype)) for shape, dtype in record["results"]),
            self.layout(record["layout"]),
        )
        places = tuple((kind, number) for kind, number in record["places"])
        return Program(table, places, tuple(map(self.constant, record["values"])))

    def constant(self, record: Any) -> Constant:
        if isinstance(record, int):
            return self.constants[record]
        content, dtype, shape = record
        value = np.frombuffer(base64.b64decode(content), np.dtype(dtype))
        return Constant(value.reshape(shape))

    def shape(self, record: Sequence[Any]) -> tuple[Extent, ...]:
        return tuple(map(self.extent, record))

    def extent(self, record: Any) -> Extent:
        if isinstance(record, int):
            return record
        total: Extent = sympy.Integer(0)
        for factor, *powers in record:
            dims = zip(powers[::2], powers[1::2], strict=True)
            total += sympy.Mul(factor, *(self.dims[k] ** n for k, n in dims))
        return total

    def layout(self, record: Sequence[Any]) -> Layout:
        blocks, slots = record
        return Layout(
            tuple(
                Block(
                    self.layout(content["inner"])
                    if isinstance(content, dict)
                    else self.extent(content),
                    [(first, last) for first, last in spans],
                )
                for content, spans in blocks
            ),
            tuple(Slot(*slot) for slot in slots),
        )
