"""A program as data: leaves, lines of verbs, outputs, and the numbers that it runs on.

A program is what a user would write, line by line, so it builds expressions through the face of
symgrad alone, and prints itself as a script. It can be changed like data too, which is how a
failing one is made small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sympy

import symgrad as sg
from symgrad.graph.nodes import Input, Node

Array = np.ndarray[Any, Any]
Term = Any
"""A name, a literal, a slice, a scalar function, or a tuple, list or dict of terms."""

INFIX = ("+", "-", "*", "/", "//", "%", "**", "@", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^")
PREFIX = ("~", "neg")


@dataclass(frozen=True, slots=True)
class Name:
    """A variable of the program."""

    text: str


@dataclass(frozen=True, slots=True)
class Scalar:
    """A function for `sg.elementwise`, and its text."""

    text: str
    function: Callable[..., Any] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Step:
    """A function for `sg.scan`: of `carry` and `x`, with lines of its own and what it returns."""

    name: str
    carry: str
    x: str
    lines: tuple[Line, ...]
    result: Term


@dataclass(frozen=True, slots=True)
class Line:
    """`target = function(*args, **options)`.

    function: an operator, "[]", ".method", or a dotted name that begins with sg or np.
    """

    target: str
    function: str
    args: tuple[Term, ...] = ()
    options: tuple[tuple[str, Term], ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """An input or a parameter with its data.

    kind: "input", "parameter" (whose initial value is the data), or "constant".
    """

    name: str
    shape: tuple[int | str, ...]
    data: Array = field(compare=False)
    kind: str = "input"


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that one random program is.

    dims:    symbolic extents and their values.
    lines:   in order; each reads names above it.
    outputs: names of what is computed.
    updates: (name of a leaf, name of its next value).
    equal:   pairs of names that mean the same: a naive form and the verb for it.
    smooth:  whether central differences may judge it.
    stable:  whether its values as written are finite, before `stabilize`.
    """

    dims: tuple[tuple[str, int], ...]
    leaves: tuple[Leaf, ...]
    lines: tuple[Line, ...]
    outputs: tuple[str, ...]
    updates: tuple[tuple[str, str], ...] = ()
    equal: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    training: bool = False
    smooth: bool = True
    stable: bool = True

    @property
    def values(self) -> dict[str, Array]:
        """The data of the inputs, by name; parameters have theirs as initial values."""
        return {leaf.name: leaf.data for leaf in self.leaves if leaf.kind == "input"}

    @property
    def every_value(self) -> dict[str, Array]:
        """The data of inputs and parameters, by name."""
        return {leaf.name: leaf.data for leaf in self.leaves if leaf.kind != "constant"}

    @property
    def tellers(self) -> tuple[str, ...]:
        """A leaf for each dim, the first that has it."""
        found = (
            next(leaf.name for leaf in self.leaves if name in leaf.shape) for name, _ in self.dims
        )
        return tuple(dict.fromkeys(found))

    def numbers(self, leaf: Leaf) -> tuple[int, ...]:
        """The shape of a leaf in numbers."""
        dims = dict(self.dims)
        return tuple(dims[e] if isinstance(e, str) else e for e in leaf.shape)

    def tidy(self) -> Program:
        """Without the lines, leaves and dims that nothing needs."""
        wanted = {*self.outputs, *(n for pair in self.updates for n in pair)}
        wanted.update(n for pair in self.equal for n in pair)
        lines: list[Line] = []
        for line in reversed(self.lines):
            if line.target in wanted:
                lines.append(line)
                wanted.update(names_in(line))
        leaves = tuple(leaf for leaf in self.leaves if leaf.name in wanted)
        wanted.update(e for leaf in leaves for e in leaf.shape if isinstance(e, str))
        for name, _ in self.dims:
            if name in wanted and not any(name in leaf.shape for leaf in leaves):
                leaves += tuple(leaf for leaf in self.leaves if name in leaf.shape)[:1]
        wanted.update(e for leaf in leaves for e in leaf.shape if isinstance(e, str))
        dims = tuple((name, n) for name, n in self.dims if name in wanted)
        return replace(self, dims=dims, leaves=leaves, lines=tuple(reversed(lines)))


def names_in(term: Term) -> Iterator[str]:
    """The names that a term or a line reads, those inside steps included."""
    if isinstance(term, Name):
        yield term.text
    elif isinstance(term, Line):
        yield from names_in((term.args, term.options))
    elif isinstance(term, Step):
        own = {term.carry, term.x, *(line.target for line in term.lines)}
        yield from (n for n in names_in((term.lines, term.result)) if n not in own)
    elif isinstance(term, (tuple, list)):
        for t in term:
            yield from names_in(t)
    elif isinstance(term, dict):
        yield from names_in((*term, *term.values()))
    elif isinstance(term, slice):
        yield from names_in((term.start, term.stop, term.step))


# -- changing -------------------------------------------------------------------------------------
def mapped(change: Callable[[Term], Term], term: Term) -> Term:
    """A term with `change` done to every name and literal in it, those of steps included."""
    if isinstance(term, Line):
        return replace(term, args=mapped(change, term.args), options=mapped(change, term.options))
    if isinstance(term, Step):
        return replace(
            term, lines=mapped(change, term.lines), result=mapped(change, term.result)
        )
    if isinstance(term, (tuple, list)):
        return type(term)(mapped(change, t) for t in term)
    if isinstance(term, dict):
        return {mapped(change, k): mapped(change, t) for k, t in term.items()}
    if isinstance(term, slice):
        return slice(*(mapped(change, t) for t in (term.start, term.stop, term.step)))
    return change(term)


def widened(program: Program, frozen: Mapping[str, Array] | None = None) -> Program:
    """The program in float64, so that differences can be taken.

    frozen: lines that become constants of these values.
    """

    def wide(term: Term) -> Term:
        return "float64" if isinstance(term, str) and term == "float32" else term

    leaves = tuple(
        replace(leaf, data=leaf.data.astype(np.float64)) if leaf.data.dtype == np.float32 else leaf
        for leaf in program.leaves
    )
    lines = tuple(mapped(wide, line) for line in program.lines)
    if frozen:
        lines = tuple(
            Line(line.target, "sg.constant", (frozen[line.target],))
            if line.target in frozen else line
            for line in lines
        )  # fmt: skip
    return replace(program, leaves=leaves, lines=lines)


# -- building -------------------------------------------------------------------------------------
class Built:
    """The expressions of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.leaves: dict[str, Input] = {}
        self.env: dict[str, Any] = {name: sg.dim(name) for name, _ in program.dims}
        for leaf in program.leaves:
            self.add_leaf(leaf)
        for line in program.lines:
            self.add(line)

    def add_leaf(self, leaf: Leaf) -> None:
        """Make a leaf of the program."""
        shape = tuple(self.env[e] if isinstance(e, str) else e for e in leaf.shape)
        data = leaf.data
        if leaf.kind == "constant":
            self.env[leaf.name] = sg.constant(data)
            return
        made = (
            sg.input(leaf.name, shape, data.dtype)
            if leaf.kind == "input"
            else sg.parameter(leaf.name, shape, init=data, dtype=data.dtype)
        )
        self.env[leaf.name] = self.leaves[leaf.name] = made

    def add(self, line: Line) -> Any:
        """Run a line."""
        self.env[line.target] = self.run(line, self.env)
        return self.env[line.target]

    def run(self, line: Line, env: Mapping[str, Any]) -> Any:
        """The value of a line where the names mean `env`."""
        args = [self.term(a, env) for a in line.args]
        options = {k: self.term(v, env) for k, v in line.options}
        return applied(line.function, args, options)

    def term(self, term: Term, env: Mapping[str, Any]) -> Any:
        """What a term means."""
        if isinstance(term, Name):
            return env[term.text]
        if isinstance(term, (tuple, list)):
            return type(term)(self.term(t, env) for t in term)
        if isinstance(term, dict):
            return {self.term(k, env): self.term(t, env) for k, t in term.items()}
        if isinstance(term, slice):
            return slice(*(self.term(t, env) for t in (term.start, term.stop, term.step)))
        if isinstance(term, Scalar):
            return term.function
        if isinstance(term, Step):
            return lambda c, x: self.stepped(term, {**env, term.carry: c, term.x: x})
        return term

    def stepped(self, step: Step, env: dict[str, Any]) -> Any:
        """What a step returns."""
        for line in step.lines:
            env[line.target] = self.run(line, env)
        return self.term(step.result, env)

    def node(self, name: str) -> Node:
        """The expression of a name."""
        node: Node = self.env[name]
        return node

    @property
    def outputs(self) -> list[Node]:
        """The expressions of the outputs."""
        return [self.node(name) for name in self.program.outputs]

    @property
    def tellers(self) -> list[Node]:
        """The leaves that tell the dims."""
        return [self.node(name) for name in self.program.tellers]

    @property
    def float_leaves(self) -> list[Input]:
        """The leaves by which can be differentiated."""
        return [n for n in self.leaves.values() if n.dtype.kind == "f"]


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b, "//": lambda a, b: a // b, "%": lambda a, b: a % b,
    "**": lambda a, b: a**b, "@": lambda a, b: a @ b, "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "&": lambda a, b: a & b,
    "|": lambda a, b: a | b, "^": lambda a, b: a ^ b, "[]": lambda a, b: a[b],
}  # fmt: skip


def applied(function: str, args: list[Any], options: dict[str, Any]) -> Any:
    """`function(*args, **options)`, the function by its name in a line."""
    if function in _OPERATORS:
        return _OPERATORS[function](*args)
    if function == "~":
        return ~args[0]
    if function == "neg":
        return -args[0]
    if function.startswith("."):
        found = getattr(args[0], function[1:])
        return found(*args[1:], **options) if callable(found) else found
    root, *path = function.split(".")
    found = {"sg": sg, "np": np}[root]
    for part in path:
        found = getattr(found, part)
    return found(*args, **options)


# -- printing -------------------------------------------------------------------------------------
def script(program: Program) -> list[str]:
    """The lines of a script that builds the program's expressions."""
    text = [f'{name} = sg.dim("{name}")  # {n}' for name, n in program.dims]
    text += [_leaf_text(leaf) for leaf in program.leaves]
    for line in program.lines:
        text += line_text(line, "")
    return text


def values_text(values: Mapping[str, Array]) -> list[str]:
    """A dictionary of arrays."""
    return ["values = {", *(f'    "{k}": {term_text(v)},' for k, v in values.items()), "}"]


def needs_sympy(program: Program) -> bool:
    """Whether a scalar function of the program names SymPy."""
    return any("sympy." in text for line in program.lines for text in _scalars(line))


def _scalars(term: Term) -> Iterator[str]:
    if isinstance(term, Scalar):
        yield term.text
    elif isinstance(term, Line):
        yield from _scalars(term.args)
    elif isinstance(term, Step):
        yield from _scalars(term.lines)
    elif isinstance(term, (tuple, list)):
        for t in term:
            yield from _scalars(t)


def _leaf_text(leaf: Leaf) -> str:
    if leaf.kind == "constant":
        return f"{leaf.name} = sg.constant({term_text(leaf.data)})"
    shape = ", ".join(map(str, leaf.shape)) + ("," if len(leaf.shape) == 1 else "")
    init = f", init={term_text(leaf.data)}" if leaf.kind == "parameter" else ""
    dtype = f'dtype="{leaf.data.dtype}"'
    return f'{leaf.name} = sg.{leaf.kind}("{leaf.name}", ({shape}), {dtype}{init})'


def line_text(line: Line, indent: str) -> list[str]:
    """A line as Python, after the steps that it needs."""
    before: list[str] = []
    for arg in line.args:
        if isinstance(arg, Step):
            before.append(f"{indent}def {arg.name}({arg.carry}, {arg.x}):")
            for inner in arg.lines:
                before += line_text(inner, indent + "    ")
            before.append(f"{indent}    return {term_text(arg.result)}")
    return [*before, f"{indent}{line.target} = {_call_text(line)}"]


def _call_text(line: Line) -> str:
    args = [term_text(a) for a in line.args]
    options = [f"{k}={term_text(v)}" for k, v in line.options]
    function = line.function
    if function in INFIX:
        return f"{args[0]} {function} {args[1]}"
    if function == "[]":
        return f"{args[0]}[{key_text(line.args[1])}]"
    if function in PREFIX:
        return f"{'~' if function == '~' else '-'}{args[0]}"
    if function == ".T":
        return f"{args[0]}.T"
    if function.startswith("."):
        return f"{args[0]}{function}({', '.join([*args[1:], *options])})"
    return f"{function}({', '.join([*args, *options])})"


def key_text(key: Term) -> str:
    """An index, without the parentheses of a tuple."""
    if isinstance(key, tuple):
        return ", ".join(map(key_text, key)) + ("," if len(key) == 1 else "") if key else "()"
    if isinstance(key, slice):
        ends = ["" if e is None else term_text(e) for e in (key.start, key.stop)]
        return ":".join(ends) + ("" if key.step is None else f":{term_text(key.step)}")
    return "..." if key is Ellipsis else term_text(key)


def term_text(term: Term) -> str:
    """A term as Python."""
    if isinstance(term, Name):
        return term.text
    if isinstance(term, (Scalar, Step)):
        return term.text if isinstance(term, Scalar) else term.name
    if isinstance(term, tuple):
        return "(" + ", ".join(map(term_text, term)) + ("," if len(term) == 1 else "") + ")"
    if isinstance(term, list):
        return "[" + ", ".join(map(term_text, term)) + "]"
    if isinstance(term, dict):
        return "{" + ", ".join(f"{term_text(k)}: {term_text(v)}" for k, v in term.items()) + "}"
    if isinstance(term, np.ndarray):
        return _array_text(term)
    if isinstance(term, str):
        return f'"{term}"'
    return repr(term)


def _array_text(array: Array) -> str:
    body = repr(array.tolist()).replace("inf", "np.inf").replace("nan", "np.nan")
    text = f'np.array({body}, "{array.dtype}")'
    if array.size:
        return text
    return f'np.zeros({array.shape}, "{array.dtype}")'


SCALARS: tuple[Scalar, ...] = (
    Scalar("lambda a, b: a * b / (1 + a**2)", lambda a, b: a * b / (1 + a**2)),
    Scalar("lambda a, b: a - b * a + 2", lambda a, b: a - b * a + 2),
    Scalar("lambda a: a**3 / (2 + a**2)", lambda a: a**3 / (2 + a**2)),
    Scalar("lambda a: a * sympy.tanh(a)", lambda a: a * sympy.tanh(a)),
    Scalar(
        "lambda a: a * sympy.tanh(sympy.log(1 + sympy.exp(a)))",
        lambda a: a * sympy.tanh(sympy.log(1 + sympy.exp(a))),
    ),
    Scalar(
        "lambda a, b: sympy.sin(a) * sympy.exp(-b**2)",
        lambda a, b: sympy.sin(a) * sympy.exp(-(b**2)),
    ),
    Scalar(
        "lambda a: sympy.Piecewise((a, a > 0), (sympy.exp(a) - 1, True))",
        lambda a: sympy.Piecewise((a, a > 0), (sympy.exp(a) - 1, True)),
    ),
)
"""Functions that random programs give to `sg.elementwise`; the last has a kink at 0."""
