"""Scalar bodies of Maps as straight-line operations with a dtype each.

Numbers, axis indices and dims are weak: they take the dtype of what they meet. Operands of
different dtypes are cast to the common one, so that a float32 kernel holds no float64 arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from codegen.access import Index
from codegen.loop_ir import Affine
from symgrad.graph.dims import Extent
from symgrad.graph.dtypes import BOOL, DEFAULT, INT64, DType, is_bool, is_float, promote
from symgrad.graph.functions import FUNCTIONS
from symgrad.graph.nodes import Map
from symgrad.graph.scalars import operations


class Sink(Protocol):
    """Where operations are written."""

    def literal(self, number: float | int | bool, dtype: DType) -> str:
        """The name of a number."""

    def apply(
        self,
        operation: str,
        operands: tuple[str, ...],
        dtype: DType,
        payload: Affine | Extent | None = None,
    ) -> str:
        """The name of an operation's result."""


@dataclass(frozen=True, slots=True)
class _Weak:
    """A number, an axis position or an extent whose dtype is not settled yet."""

    kind: str
    payload: float | int | Affine | Extent


_Part = tuple[str, DType] | _Weak


class BodyWriter:
    """Writes the bodies of Maps into a sink."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def write(self, node: Map, names: Sequence[str], index: Index) -> str:
        """The name of the Map's value, given the names of its arguments' values."""
        parts: list[_Part] = []
        for step in operations(node.body):
            operands = [parts[o] for o in step.operands]
            if step.kind == "argument":
                parts.append((names[step.payload], node.args[step.payload].dtype))
            elif step.kind in ("number", "dim"):
                parts.append(_Weak(step.kind, step.payload))
            elif step.kind == "axis":
                parts.append(_Weak("axis", index[step.payload]))
            elif step.kind == "call":
                parts.append(self.call(step.payload, operands, node.dtype))
            else:
                parts.append(self.arithmetic(step.kind, operands, node.dtype))
        return self.settle(parts[-1], node.dtype)

    def settle(self, part: _Part, dtype: DType) -> str:
        """A part as a name of this dtype."""
        if isinstance(part, _Weak):
            if part.kind == "number":
                number = part.payload
                assert isinstance(number, (int, float))
                if is_bool(dtype):
                    return self.sink.literal(bool(number), dtype)
                return self.sink.literal(float(number) if is_float(dtype) else int(number), dtype)
            operation = "index" if part.kind == "axis" else "extent"
            return self.sink.apply(operation, (), dtype, part.payload)
        name, have = part
        return name if have == dtype else self.sink.apply(f"cast_{dtype.name}", (name,), dtype)

    def common(self, parts: Sequence[_Part], wanted: DType) -> DType:
        """The dtype in which operands meet; weak ones alone take the Map's."""
        strong = [p[1] for p in parts if not isinstance(p, _Weak)]
        fraction = any(isinstance(p, _Weak) and isinstance(p.payload, float) for p in parts)
        if strong:
            dtype = promote(*strong)
            if fraction and not is_float(dtype):
                return wanted if is_float(wanted) else DEFAULT
            return dtype
        if fraction and not is_float(wanted):
            return DEFAULT
        return INT64 if is_bool(wanted) else wanted

    def arithmetic(self, kind: str, parts: Sequence[_Part], wanted: DType) -> _Part:
        """One of add sub mul div neg, on operands cast to their common dtype."""
        dtype = self.common(parts, wanted)
        if kind == "div" and not is_float(dtype):
            dtype = wanted if is_float(wanted) else DEFAULT
        operands = tuple(self.settle(p, dtype) for p in parts)
        return self.sink.apply(kind, operands, dtype), dtype

    def call(self, name: str, parts: Sequence[_Part], wanted: DType) -> _Part:
        """A scalar function; comparisons and logic give bool."""
        function = FUNCTIONS[name]
        if function.result == "cast":
            assert function.dtype is not None
            (part,) = parts
            if isinstance(part, _Weak) and part.kind == "number":
                number = np.asarray(part.payload).astype(function.dtype)
                return self.sink.literal(number.item(), function.dtype), function.dtype
            have = INT64 if isinstance(part, _Weak) else part[1]
            return self.settle((self.settle(part, have), have), function.dtype), function.dtype
        if function.result == "select":
            dtype = self.common(parts[1:], wanted)
            operands = (self.settle(parts[0], BOOL), *(self.settle(p, dtype) for p in parts[1:]))
            return self.sink.apply(name, operands, dtype), dtype
        if name.startswith("logical_"):
            operands = tuple(self.settle(p, BOOL) for p in parts)
            return self.sink.apply(name, operands, BOOL), BOOL
        dtype = self.common(parts, wanted)
        if function.result == "float" and not is_float(dtype):
            dtype = DEFAULT
        operands = tuple(self.settle(p, dtype) for p in parts)
        out = BOOL if function.result == "bool" else dtype
        return self.sink.apply(name, operands, out), out
