"""What targets share when they print: loop IR as lines of Python.

A target derives its own `BodyPrinter`, says how a place in memory is read, and prints loops and
stores itself. Numbers and casts are written in the dtype of the name that they define, so that a
float32 kernel holds no float64 arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import sympy
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from codegen import loop_ir as ir
from codegen.loop_ir import Affine, Let, Load, Partition
from codegen.memory import Invoked, InvokedLoop
from symgrad.graph.dims import Dim, Extent, free_dims
from symgrad.graph.dtypes import BOOL, FLOAT64, INT32, INT64, SHORT, DType
from symgrad.graph.errors import CompileError

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {"less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
LOGIC = {"logical_and": "&", "logical_or": "|", "logical_xor": "^"}
# How a module of generated source defines the names of dtypes and of special numbers.
SCALARS = {
    "f32": "f32 = np.float32",
    "f64": "f64 = np.float64",
    "i32": "i32 = np.int32",
    "i64": "i64 = np.int64",
    "inf": "inf = np.inf",
    "nan": "nan = np.nan",
}


# How a program names an entry of its table, read as a dtype.
Place: TypeAlias = Callable[[int, DType], str]


@dataclass(slots=True)
class Function:
    """The text of a kernel apart from its name, and what it asks of its caller."""

    lines: list[str] = field(default_factory=list)
    extents: dict[Extent, str] = field(default_factory=dict)
    dims: dict[Dim, str] = field(default_factory=dict)
    uses: set[str] = field(default_factory=set)
    checks: dict[int, str] = field(default_factory=dict)
    shares: dict[Partition, tuple[str, str]] = field(default_factory=dict)
    status: bool = False
    meets: bool = False
    ranges: tuple[str, ...] = ()

    @property
    def team_and_status(self) -> list[str]:
        """The last arguments: where workers meet, and where bad indices are reported."""
        return [*(["team", "worker"] if self.meets else []), *(["status"] if self.status else [])]


class _Products(StrPrinter):  # type: ignore[misc]
    """Powers written as products: a power of an integer may be computed in floats."""

    def _print_Pow(self, power: sympy.Pow, rational: bool = False) -> str:
        factor = self.parenthesize(power.base, PRECEDENCE["Mul"], strict=True)
        return "*".join([factor] * int(power.exp))


def extent_text(extent: Extent, names: dict[Dim, str]) -> str:
    """An extent with these names for its dims."""
    if isinstance(extent, int):
        return str(extent)
    named = extent.xreplace({d: sympy.Symbol(names[d]) for d in extent.free_symbols})
    return str(_Products().doprint(named))


def memory_name(entry: int, dtype: DType) -> str:
    """What a program calls an entry of its table, read as this dtype."""
    return f"{dtype.kind}{entry}" if dtype.itemsize != 8 else f"{dtype.kind}{entry}_64"


def may_report(call: Invoked | InvokedLoop) -> bool:
    """Whether a call checks indices."""
    return call.loop.checks if isinstance(call, InvokedLoop) else call.kernel.checks


class BodyPrinter:
    """Prints values; collects the lines of one kernel and what they use.

    `primitives` are the scalar functions of the target's runtime, `room` is where they are written.
    """

    primitives: ClassVar[Collection[str]] = ()
    room: ClassVar[str] = ""
    # Dtypes whose numbers and positions need no cast: Python's own types have them.
    plain: ClassVar[tuple[DType, ...]] = (FLOAT64, INT64)

    def __init__(self) -> None:
        self.function = Function()
        self.loop_names: dict[str, str] = {}

    def put(self, line: str, depth: int) -> None:
        """Add a line."""
        self.function.lines.append("    " * depth + line)

    def extent(self, extent: Extent, shared: bool = False) -> str:
        """An extent in the kernel's words: a number, an argument, or a polynomial in dims."""
        if type(extent) is int and not shared:
            return str(extent)
        if shared:
            return self.function.extents.setdefault(extent, f"m{len(self.function.extents)}")
        for d in free_dims(extent):
            self.function.dims.setdefault(d, f"n{len(self.function.dims)}")
        return extent_text(extent, self.function.dims)

    def affine(self, affine: Affine) -> str:
        """A place, in elements."""
        parts = []
        for var, coefficient in affine.terms:
            var = self.loop_names.get(var, var)
            text = self.extent(coefficient)
            if text == "1":
                parts.append(var)
            elif text == "-1":
                parts.append(f"-{var}")
            else:
                parts.append(f"{var} * {text}" if text.isalnum() else f"{var} * ({text})")
        if not parts or affine.const != 0:
            parts.append(self.extent(affine.const))
        return " + ".join(parts).replace("+ -", "- ")

    def load(self, load: Load) -> str:
        """The element at a place in memory."""
        raise NotImplementedError

    def value(self, let: Let) -> str:
        """The right-hand side of a Let."""
        v = let.value
        if isinstance(v, Load):
            return self.load(v)
        if isinstance(v, ir.Copy):
            return v.name
        if isinstance(v, ir.Literal):
            return self.literal(v.number, let.dtype)
        if v.operation in ("index", "extent"):
            payload = v.payload
            text = self.affine(payload) if isinstance(payload, Affine) else self.extent(payload)
            return self.typed(text, let.dtype)
        return self.apply(v.operation, v.operands, let.dtype)

    def apply(self, operation: str, operands: tuple[str, ...], dtype: DType) -> str:
        """An operation whose result has this dtype."""
        if operation in OPERATORS:
            text = f"{operands[0]} {OPERATORS[operation]} {operands[1]}"
            return self.typed(text, dtype) if dtype == INT32 else text
        if operation == "neg":
            return self.typed(f"-{operands[0]}", dtype) if dtype == INT32 else f"-{operands[0]}"
        if operation in COMPARISONS:
            return f"{operands[0]} {COMPARISONS[operation]} {operands[1]}"
        if operation in LOGIC:
            return f"{operands[0]} {LOGIC[operation]} {operands[1]}"
        if operation == "logical_not":
            return f"not {operands[0]}"
        if operation == "stop_gradient":
            return operands[0]
        if operation not in self.primitives:
            raise CompileError(f"{operation}: no such primitive; add one in {self.room}")
        self.function.uses.add(operation)
        return f"{operation}({', '.join(operands)})"

    def typed(self, text: str, dtype: DType) -> str:
        """A number or a position as a dtype."""
        if dtype == BOOL:
            return f"({text}) != 0"
        if dtype == INT64 and dtype in self.plain:
            return text
        short = SHORT[dtype]
        self.function.uses.add(short)
        return f"{short}({text})"

    def literal(self, number: float | int | bool, dtype: DType) -> str:
        """A number, written so that it has this dtype."""
        if dtype == BOOL:
            return str(bool(number))
        text = repr(float(number) if dtype.kind == "f" else number)
        special = text.strip("-") in ("inf", "nan")
        if special:
            self.function.uses.add(text.strip("-"))
        if dtype in self.plain and (dtype == INT64 or not special):
            return text
        return self.typed(text, dtype)
