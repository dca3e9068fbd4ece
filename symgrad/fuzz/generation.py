"""What random programs are drawn with: leaves, lines, scopes, and the values that lines have.

The values are known while a program is drawn, so every choice can look at them: a logarithm is
taken of what is positive, a floor where no element is near a whole number. What is drawn this way
is valid, finite, and far enough from every kink for central differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from symgrad.calculus.stabilization import stabilize
from symgrad.fuzz.programs import Array, Built, Leaf, Line, Name, Program, Step, Term
from symgrad.graph import streams
from symgrad.graph.dims import Dim, Extent, Shape, same, values as numbers_of
from symgrad.graph.evaluator import MEANING
from symgrad.graph.nodes import Input, Node

MOST = 300  # elements of a value
LARGEST = 50.0  # of floats
LARGEST_WHOLE = 10_000  # of integers
MARGIN = 0.02  # the least distance from a kink
LEAVES = 9


class Unfit(Exception):
    """What was drawn does not fit the values at hand; something else is drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """A name with its expression, and its value where that is known."""

    name: str
    node: Node
    value: Array | None

    @property
    def shape(self) -> Shape:
        """The shape, in extents."""
        return self.node.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.node.ndim

    @property
    def kind(self) -> str:
        """The kind of the dtype: f, i or b."""
        return self.node.dtype.kind


@dataclass(slots=True)
class Scope:
    """The lines of a program or of a step, and the variables that they make."""

    known: bool
    lines: list[Line] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)


class Meaning:
    """Values of nodes at the data of a program, each computed once.

    The number of a random stream depends on the whole graph, so what is drawn here is a sample.
    """

    def __init__(self, dims: dict[Dim, int], training: bool) -> None:
        self.dims = dims
        self.training = training
        self.values: dict[Node, Any] = {}
        self.drawn: set[Node] = set()

    def __call__(self, node: Node) -> Array:
        """The value of a node whose leaves have values."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self.values:
                stack.pop()
                continue
            missing = [a for a in top.args if a not in self.values]
            if missing:
                stack += missing
                continue
            stack.pop()
            if isinstance(top, Input):
                self.values[top] = self.supplied(top)
                if top.kind == "random":
                    self.drawn.add(top)
                continue
            with np.errstate(all="ignore"):
                self.values[top] = MEANING[type(top)](top, [self.values[a] for a in top.args],
                                                      self.dims)  # fmt: skip
            if any(a in self.drawn for a in top.args):
                self.drawn.add(top)
        value: Array = self.values[node]
        return value

    def supplied(self, leaf: Input) -> Array:
        """What the run supplies."""
        if leaf.kind == "step":
            return np.zeros((), leaf.dtype)
        return streams.supplied(leaf, {leaf: len(self.drawn)}, 0, self.training)


class Generator:
    """A program while it is drawn."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.floats = "float32" if rng.random() < 0.7 else "float64"
        self.other = "float64" if self.floats == "float32" else "float32"
        self.ints = "int32" if rng.random() < 0.7 else "int64"
        least = 0 if rng.random() < 0.06 else 1
        self.dims = (("B", int(rng.integers(least, 6))), ("C", int(rng.integers(least, 4))))
        self.training = bool(rng.random() < 0.5)
        self.random = bool(rng.random() < 0.3)  # draws, or else stop_gradient: see judges
        self.smooth = self.stable = True
        self.equal: list[tuple[str, str]] = []
        self.leaves: list[Leaf] = []
        self.built = Built(Program(self.dims, (), (), ()))
        self.symbols: dict[Any, str] = {self.built.env[name]: name for name, _ in self.dims}
        self.meaning = Meaning(
            {self.built.env[name]: n for name, n in self.dims}, self.training
        )
        self.scopes = [Scope(known=True)]
        self.count = 0
        statics: list[int] = [int(n) for n in rng.permutation([2, 3, 5, 4])[:2]]
        if rng.random() < 0.5:
            statics.append(1)
        if rng.random() < 0.04:
            statics.append(0)
        self.pool: list[int | str] = [*statics, *statics[:2], "B", "C"]

    # -- choosing ---------------------------------------------------------------------------------
    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        if not options:
            raise Unfit
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def number(self, low: float = -2.0, high: float = 2.0) -> float:
        """A short number, not 0."""
        x = round(float(self.rng.uniform(low, high)), 2)
        return x if x else 0.5

    def whole(self, low: int, high: int) -> int:
        """An integer in low..high."""
        return int(self.rng.integers(low, high + 1))

    def shape_terms(self, most: int = 3) -> tuple[int | str, ...]:
        """A shape for a leaf."""
        while True:
            shape = tuple(self.pick(self.pool) for _ in range(self.whole(0, most)))
            if self.size(shape) <= MOST // 4:
                return shape

    def size(self, shape: Sequence[int | str]) -> int:
        """How many elements a shape has."""
        dims = dict(self.dims)
        return int(np.prod([dims[e] if isinstance(e, str) else e for e in shape], dtype=int))

    @property
    def scope(self) -> Scope:
        """Where lines are written."""
        return self.scopes[-1]

    def every(self) -> list[Variable]:
        """The variables in sight, the innermost last."""
        return [v for scope in self.scopes for v in scope.variables]

    def some(self, wanted: Callable[[Variable], bool]) -> Variable:
        """A variable that is wanted, later ones more often."""
        options = [v for v in self.every() if wanted(v)]
        own = [v for v in self.scope.variables if wanted(v)]
        if own and self.chance(0.7):
            options = own
        found: Variable = self.pick(options[-4:] if self.chance(0.6) else options)
        return found

    def some_float(self, least: int = 0) -> Variable:
        """A float variable of at least so many axes."""
        return self.some(lambda v: v.kind == "f" and v.ndim >= least)

    def some_int(self) -> Variable:
        """An integer variable, a new leaf where there is none."""
        try:
            return self.some(lambda v: v.kind == "i")
        except Unfit:
            return self.leaf(self.shape_terms(), self.ints)

    def some_bool(self) -> Variable:
        """A variable of truth values, a new leaf where there is none."""
        try:
            return self.some(lambda v: v.kind == "b")
        except Unfit:
            return self.leaf(self.shape_terms(), "bool")

    def partner(self, first: Variable, stretch: bool = True) -> Variable:
        """A variable of the first one's dtype that broadcasts to its shape, or to which it does."""

        def goes(v: Variable) -> bool:
            if v.node.dtype != first.node.dtype:
                return False
            pairs = list(zip(reversed(v.shape), reversed(first.shape), strict=False))
            fits = all(same(a, b) is True or (stretch and 1 in (a, b)) for a, b in pairs)
            return fits and (stretch or v.ndim == first.ndim)

        return self.some(goes)

    def terms(self, shape: Shape) -> tuple[int | str, ...]:
        """A shape in numbers and names of dims.

        Raises: Unfit where an extent is a formula.
        """
        for e in shape:
            if type(e) is not int and e not in self.symbols:
                raise Unfit
        return tuple(e if type(e) is int else self.symbols[e] for e in shape)

    def like(self, shape: Shape, dtype: str) -> Variable:
        """A variable of this shape and dtype, or a new leaf."""
        def goes(v: Variable) -> bool:
            return v.node.dtype == dtype and equal_shapes(v.shape, shape)

        if self.chance(0.6):
            try:
                return self.some(goes)
            except Unfit:
                pass
        return self.leaf(self.terms(shape), dtype)

    def axis(self, v: Variable) -> int:
        """An axis, from either end."""
        if not v.ndim:
            raise Unfit
        return self.whole(-v.ndim, v.ndim - 1)

    def axes(self, v: Variable) -> Any:
        """All axes, one, or several."""
        turn = self.rng.random()
        if turn < 0.2 or not v.ndim:
            return None
        if turn < 0.75 or v.ndim == 1:
            return self.axis(v)
        count = self.whole(1, v.ndim)
        return tuple(int(a) for a in self.rng.choice(v.ndim, count, replace=False))

    # -- leaves -----------------------------------------------------------------------------------
    def leaf(
        self, shape: Sequence[int | str], dtype: str, low: int = -4, high: int = 4
    ) -> Variable:
        """A new leaf: floats apart from each other and from 0, integers in low..high."""
        if len(self.leaves) >= LEAVES:
            raise Unfit
        shape = tuple(shape)
        dims = dict(self.dims)
        extents = tuple(dims[e] if isinstance(e, str) else e for e in shape)
        n = int(np.prod(extents, dtype=int))
        if n > MOST // 2:
            raise Unfit
        if dtype == "bool":
            data = self.rng.random(extents) < 0.5
        elif dtype.startswith("int"):
            data = self.rng.integers(low, high + 1, extents).astype(dtype)
        else:
            grid = (np.arange(n) + self.rng.uniform(0.2, 0.8)) / max(n, 1) * 1.8 + 0.15
            signs = np.where(self.rng.random(n) < 0.5, -1.0, 1.0)
            data = np.round(self.rng.permutation(grid * signs), 4).reshape(extents).astype(dtype)
        kind = "input"
        static = all(isinstance(e, int) for e in shape)
        if static and self.chance(0.35):
            kind = "parameter" if dtype.startswith("float") and self.chance(0.8) else "constant"
        return self.add_leaf(Leaf(f"{'wxc'[kind != 'parameter']}{len(self.leaves)}", shape, data,
                                  kind))  # fmt: skip

    def add_leaf(self, leaf: Leaf) -> Variable:
        """Make a leaf, outermost wherever it is asked for."""
        self.built.add_leaf(leaf)
        self.leaves.append(leaf)
        node = self.built.node(leaf.name)
        self.meaning.values[node] = leaf.data
        made = Variable(leaf.name, node, leaf.data)
        self.scopes[0].variables.append(made)
        return made

    # -- lines ------------------------------------------------------------------------------------
    def fresh(self) -> str:
        """A name that no line has."""
        self.count += 1
        return f"v{self.count}"

    def write(self, function: str, *args: Any, **options: Any) -> tuple[str, Any]:
        """Write a line, whatever it makes."""
        terms = tuple(term_of(a) for a in args)
        line = Line(self.fresh(), function, terms,
                    tuple((k, term_of(v)) for k, v in options.items()))  # fmt: skip
        made = self.built.add(line)
        self.scope.lines.append(line)
        return line.target, made

    def emit(self, function: str, *args: Any, hidden: bool = False, **options: Any) -> Variable:
        """Write a line that makes one expression; later lines may read it unless it is hidden."""
        name, node = self.write(function, *args, **options)
        if node.dtype == np.float32 and not hidden and self.from_integers(args):
            name, node = self.write(".astype", Name(name), self.floats)  # widens with the rest
        return self.keep(name, node, hidden)

    def from_integers(self, args: Sequence[Any]) -> bool:
        """Whether a line reads integers only: then its float32 is symgrad's choice."""
        read = [a for a in args if isinstance(a, Variable)]
        return bool(read) and all(v.kind != "f" for v in read)

    def item(self, structure: str, key: Any) -> Variable:
        """One expression of a structure that a line made."""
        name, node = self.write("[]", Name(structure), key)
        return self.keep(name, node)

    def keep(self, name: str, node: Node, hidden: bool = False, stable: bool = False) -> Variable:
        """Take a value into account.

        Raises: Unfit when it is too large, or not finite.
        """
        value: Array | None = None
        if self.scope.known:
            if stable:
                self.meaning.values[node] = self.meaning(stabilize(node))
            found = self.meaning(node)
            if not hidden:
                self.check(found)
            value = None if node in self.meaning.drawn else found
        variable = Variable(name, node, value)
        if not hidden:
            self.scope.variables.append(variable)
        return variable

    def check(self, value: Array) -> None:
        """Refuse what is too large."""
        if value.size > MOST:
            raise Unfit
        if not value.size or value.dtype.kind == "b":
            return
        most = LARGEST if value.dtype.kind == "f" else LARGEST_WHOLE
        if not np.all(np.abs(value) <= most):
            raise Unfit

    def value(self, v: Variable) -> Array:
        """The value of a variable, as float64.

        Raises: Unfit where it is not known: in a step, or of random numbers.
        """
        if v.value is None:
            raise Unfit
        return np.asarray(v.value, np.float64)

    def require(self, condition: Any) -> None:
        """Refuse what does not hold."""
        if not np.all(condition):
            raise Unfit

    def apart(self, values: Array) -> None:
        """Refuse numbers near 0."""
        self.require(np.abs(values) > MARGIN)

    @contextmanager
    def inner(self) -> Iterator[Scope]:
        """The scope of a step, whose values differ from step to step."""
        scope = Scope(known=False)
        self.scopes.append(scope)
        try:
            yield scope
        finally:
            self.scopes.pop()

    def attempt(self, production: Callable[[Generator], None]) -> bool:
        """Draw by a production; what it wrote is taken back when it does not fit."""
        lines, variables = len(self.scope.lines), len(self.scope.variables)
        leaves = len(self.leaves)
        flags = self.smooth, self.stable, len(self.equal)
        try:
            production(self)
        except Unfit:
            del self.scope.lines[lines:]
            gone = {leaf.name for leaf in self.leaves[leaves:]}
            del self.leaves[leaves:]
            del self.scope.variables[variables:]
            outer = self.scopes[0].variables
            outer[:] = [v for v in outer if v.name not in gone]
            for name in gone:
                self.built.leaves.pop(name, None)
            self.smooth, self.stable = flags[:2]
            del self.equal[flags[2] :]
            return False
        return True


def term_of(value: Any) -> Term:
    """An argument as a term: variables become their names."""
    if isinstance(value, Variable):
        return Name(value.name)
    if isinstance(value, (tuple, list)):
        return type(value)(term_of(v) for v in value)
    if isinstance(value, dict):
        return {term_of(k): term_of(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(term_of(v) for v in (value.start, value.stop, value.step)))
    return value


def equal_shapes(a: Shape, b: Shape) -> bool:
    """Whether two shapes are equal whatever their dims are."""
    return len(a) == len(b) and all(same(x, y) is True for x, y in zip(a, b, strict=True))


def numbers(g: Generator, extents: Sequence[Extent]) -> tuple[int, ...]:
    """Extents as numbers."""
    return numbers_of(tuple(extents), g.meaning.dims)


__all__ = [
    "MARGIN", "Generator", "Scope", "Step", "Unfit", "Variable", "equal_shapes", "numbers",
]  # fmt: skip
