"""Calculus and meaning of scalar bodies: derivatives, dtypes, NumPy values, adopted SymPy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import sympy

from symgrad.graph import functions as fn
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import BOOL, DEFAULT, INT64, DType, is_float, promote
from symgrad.graph.errors import DTypeError, SymgradError
from symgrad.graph.functions import AxisIndex, P as P, Placeholder, Y, function_of


@cache
def derivative(body: sympy.Expr, k: int) -> sympy.Expr | None:
    """D body / d p_k, in the placeholders and `y` (the body's own value); None when zero.

    >>> derivative(fn.tanh(fn.P[0]), 0)
    1 - y**2
    """
    result = body.diff(fn.placeholder(k))
    if result == 0:
        return None
    if not isinstance(body, (Placeholder, sympy.Number)):
        result = result.xreplace({body: Y})
    return result


@cache
def placeholders_in(expr: sympy.Expr) -> tuple[int, ...]:
    """The numbers k of the placeholders p_k that occur, ascending (`y` is not among them)."""
    return tuple(
        sorted(
            int(s.name[1:])
            for s in expr.free_symbols
            if isinstance(s, Placeholder) and s is not Y and s != Y
        )
    )


@cache
def uses_output(expr: sympy.Expr) -> bool:
    """Whether `y` occurs."""
    return Y in expr.free_symbols


# The kind of a number or of weak operands with a fraction among them: a float of any width.
_FRACTION: Final = "fraction"


def infer_dtype(body: sympy.Expr, arg_dtypes: Sequence[DType]) -> DType:
    """The dtype of a body whose placeholders have these dtypes; numbers, dims and indices are weak.

    A fraction makes a float of integers that it meets, and so does a quotient.

    Raises: DTypeError when a float function meets integers, or bool enters arithmetic.
    """
    found = _infer(body, tuple(arg_dtypes))
    if found is None:
        return INT64
    return DEFAULT if isinstance(found, str) else found


@cache
def _infer(expr: sympy.Expr, args: tuple[DType, ...]) -> DType | str | None:
    """A dtype; None for weak integers, `_FRACTION` for weak fractions."""
    if isinstance(expr, Placeholder):
        return args[int(expr.name[1:])] if expr != Y else None
    if not expr.args:
        return _FRACTION if expr.is_number and not expr.is_Integer else None
    parts = [_infer(arg, args) for arg in expr.args]
    function = function_of(expr)
    if function is not None:
        if function.result == "bool":
            return BOOL
        if function.result in ("cast", "draw"):
            return function.dtype
        if function.result == "select":
            parts = parts[1:]
    fraction = any(isinstance(p, str) for p in parts)
    if isinstance(expr, sympy.Pow) and expr.exp.is_negative:
        fraction = True
    known = [p for p in parts if p is not None and not isinstance(p, str)]
    if not known:
        return _FRACTION if fraction or (function and function.result == "float") else None
    dtype = promote(*known)
    if function is not None and function.result == "float" and not is_float(dtype):
        raise DTypeError(
            f"{function.name}: needs floats, got {dtype}. Cast first: astype(x, 'float32')."
        )
    if function is None and dtype == BOOL:
        raise DTypeError("arithmetic on bool. Cast first: astype(x, 'float32') or where(x, a, b).")
    return DEFAULT if fraction and not is_float(dtype) else dtype


# -- bodies as straight-line operations -----------------------------------------------------------
Kind = Literal[
    "argument", "output", "axis", "dim", "number", "add", "sub", "mul", "div", "neg", "call"
]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a body in postorder; `operands` are positions of earlier operations.

    payload: the number k for "argument" and "axis", the Dim, the Python number, or the name of the
    scalar function of a "call".
    """

    kind: Kind
    operands: tuple[int, ...] = ()
    payload: Any = None


@cache
def operations(body: sympy.Expr) -> tuple[Operation, ...]:
    """A body as straight-line code: every subterm once, division and subtraction restored.

    SymPy writes `a / b` as `a * b**-1` and `a - b` as `a + -1 * b`; here they are one operation
    again, so that the rounding is what the formula says.

    >>> [o.kind for o in operations(fn.P[0] / fn.P[1])]
    ['argument', 'argument', 'div']
    """
    writer = _Writer()
    writer.write(body)
    return tuple(writer.steps)


class _Writer:
    def __init__(self) -> None:
        self.steps: list[Operation] = []
        self.position: dict[Operation, int] = {}
        self.known: dict[sympy.Expr, int] = {}

    def emit(self, kind: Kind, operands: tuple[int, ...] = (), payload: Any = None) -> int:
        step = Operation(kind, operands, payload)
        tagged = Operation(kind, operands, (type(payload).__name__, repr(payload)))
        if tagged not in self.position:
            self.position[tagged] = len(self.steps)
            self.steps.append(step)
        return self.position[tagged]

    def write(self, body: sympy.Expr) -> None:
        """Write subterms first, on an explicit stack: bodies may be deep."""
        stack: list[tuple[sympy.Expr, bool]] = [(body, False)]
        while stack:
            expr, ready = stack.pop()
            if expr in self.known:
                continue
            if ready or not expr.args or _is_literal(expr):
                self.known[expr] = self.one(expr)
            else:
                stack.append((expr, True))
                stack.extend((a, False) for a in reversed(_subterms(expr)))

    def one(self, expr: sympy.Expr) -> int:
        if isinstance(expr, Placeholder):
            return (
                self.emit("output") if expr == Y else self.emit("argument", (), int(expr.name[1:]))
            )
        if isinstance(expr, AxisIndex):
            return self.emit("axis", (), int(expr.name[1:]))
        if isinstance(expr, Dim):
            return self.emit("dim", (), expr)
        if _is_literal(expr):
            return self.emit("number", (), number(expr))
        function = function_of(expr)
        if function is not None:
            return self.emit("call", tuple(self.known[a] for a in expr.args), function.name)
        if isinstance(expr, sympy.Add):
            return self.sum(expr)
        if isinstance(expr, (sympy.Mul, sympy.Pow)):
            return self.quotient(expr)
        raise SymgradError(
            f"elementwise: {type(expr).__name__} is no scalar function of symgrad. Use + - * / **, "
            f"or one of {', '.join(fn.FUNCTIONS)}."
        )

    def sum(self, expr: sympy.Expr) -> int:
        terms = [_signed(a) for a in expr.args]
        terms.sort(key=lambda t: t[0] < 0)  # stable: the positive terms first
        total = self.known[terms[0][1]]
        if terms[0][0] < 0:
            total = self.emit("neg", (total,))
        for sign, term in terms[1:]:
            total = self.emit("add" if sign > 0 else "sub", (total, self.known[term]))
        return total

    def quotient(self, expr: sympy.Expr) -> int:
        sign, above, below = _fraction(expr)
        top = self.product(above) if above else self.emit("number", (), 1)
        if below:
            top = self.emit("div", (top, self.product(below)))
        return self.emit("neg", (top,)) if sign < 0 else top

    def product(self, factors: Sequence[tuple[sympy.Expr, int]]) -> int:
        result: int | None = None
        for factor, power in factors:
            position = self.known[factor] if factor in self.known else self.one(factor)
            for _ in range(power):
                result = position if result is None else self.emit("mul", (result, position))
        assert result is not None
        return result


def _is_literal(expr: sympy.Expr) -> bool:
    """Whether an expression is a number that SymPy may work out; our own functions it may not."""
    return bool(expr.is_number) and not expr.has(fn.Applied)


def _signed(term: sympy.Expr) -> tuple[int, sympy.Expr]:
    if isinstance(term, sympy.Mul) and term.args[0] == -1:
        return -1, sympy.Mul(*term.args[1:])
    return 1, term


def _fraction(
    expr: sympy.Expr,
) -> tuple[int, list[tuple[sympy.Expr, int]], list[tuple[sympy.Expr, int]]]:
    """Sign, factors above and below the line, each with its power."""
    sign = 1
    above: list[tuple[sympy.Expr, int]] = []
    below: list[tuple[sympy.Expr, int]] = []
    for factor in expr.args if isinstance(expr, sympy.Mul) else (expr,):
        if isinstance(factor, sympy.Rational) and not isinstance(factor, sympy.Integer):
            sign = -sign if factor < 0 else sign
            if abs(factor.p) != 1:
                above.append((sympy.Integer(abs(factor.p)), 1))
            below.append((sympy.Integer(factor.q), 1))
        elif factor == -1:
            sign = -sign
        elif isinstance(factor, sympy.Pow) and factor.exp.is_Integer and not _is_literal(factor):
            side = above if factor.exp > 0 else below
            side.append((factor.base, abs(int(factor.exp))))
        else:
            above.append((factor, 1))
    return sign, above, below


def _subterms(expr: sympy.Expr) -> tuple[sympy.Expr, ...]:
    if isinstance(expr, sympy.Add):
        return tuple(_signed(a)[1] for a in expr.args)
    if isinstance(expr, (sympy.Mul, sympy.Pow)):
        _, above, below = _fraction(expr)
        return tuple(factor for factor, _ in above + below if factor != expr)
    return tuple(expr.args)


def number(expr: sympy.Expr) -> float | int:
    """A constant scalar expression as a Python number.

    >>> number(sympy.Rational(1, 2)), number(sympy.Integer(3))
    (0.5, 3)
    """
    return int(expr) if expr.is_Integer else float(sympy.N(expr, 30))


# -- NumPy meaning --------------------------------------------------------------------------------
def evaluate_scalar(
    body: sympy.Expr,
    args: Sequence[Any],
    shape: tuple[int, ...],
    dims: Mapping[Dim, int],
    dtype: DType,
    out: Any = None,
) -> Any:
    """The NumPy value of a body, broadcast to `shape`.

    Args:
        args:  arrays for p0, p1, .. that broadcast to `shape`.
        dims:  values of the dims that occur.
        dtype: of the result; for floats, axis indices take it. Literals and dims take the dtype of
               what they meet, or else this one.
        out:   value of `y` where the body uses it.
    """
    values: list[Any] = []
    for step in operations(body):
        operands = [values[o] for o in step.operands]
        if any(type(o) in _WEAK for o in operands):
            operands = _settled(operands, step.kind == "call", dtype)
        if step.kind == "argument":
            values.append(args[step.payload])
        elif step.kind == "axis":
            k = step.payload
            index = np.arange(shape[k]).reshape((-1,) + (1,) * (len(shape) - 1 - k))
            values.append(index.astype(dtype) if is_float(dtype) else index)
        elif step.kind == "call":
            values.append(fn.FUNCTIONS[step.payload].numpy(*map(np.asarray, operands)))
        elif step.kind in _ARITHMETIC:
            values.append(_ARITHMETIC[step.kind](*operands))
        elif step.kind == "output":
            values.append(out)
        else:
            values.append(int(dims[step.payload]) if step.kind == "dim" else step.payload)
    result = np.asarray(values[-1])
    if result.dtype != dtype:
        result = result.astype(dtype)
    return result if result.shape == shape else np.broadcast_to(result, shape)


_WEAK = (int, float)


def _settled(operands: list[Any], called: bool, dtype: DType) -> list[Any]:
    """Operands with Python's numbers in the dtype of the arrays they meet, else in `dtype`."""
    known = [o.dtype for o in operands if type(o) not in _WEAK and o.dtype != BOOL]
    if known and not called:
        return operands  # NumPy's own rule: a Python number is weak
    own = promote(*known) if known else dtype if is_float(dtype) else None
    if own is None or (not is_float(own) and any(type(o) is float for o in operands)):
        return [np.asarray(o) for o in operands]
    return [np.asarray(o, own) if type(o) in _WEAK else o for o in operands]


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
}


# -- SymPy of a user, made our own ----------------------------------------------------------------
_SYMPY: dict[Any, str] = {
    sympy.exp: "exp",
    sympy.log: "log",
    sympy.sin: "sin",
    sympy.cos: "cos",
    sympy.tan: "tan",
    sympy.tanh: "tanh",
    sympy.sinh: "sinh",
    sympy.cosh: "cosh",
    sympy.atan: "arctan",
    sympy.erf: "erf",
    sympy.Abs: "abs",
    sympy.sign: "sign",
    sympy.floor: "floor",
    sympy.Mod: "mod",
    sympy.StrictLessThan: "less",
    sympy.LessThan: "less_equal",
    sympy.Eq: "equal",
    sympy.Ne: "not_equal",
    sympy.Not: "logical_not",
}
_CHAINS: dict[Any, str] = {
    sympy.Max: "maximum",
    sympy.Min: "minimum",
    sympy.And: "logical_and",
    sympy.Or: "logical_or",
    sympy.Xor: "logical_xor",
}


def adopt(expr: sympy.Expr) -> sympy.Expr:
    """A user's SymPy expression over placeholders, with our own functions in place of SymPy's.

    Raises: SymgradError for a SymPy function without a counterpart.

    >>> adopt(sympy.tanh(fn.P[0]) * sympy.Abs(fn.P[1])).args
    (abs(p1), tanh(p0))
    """
    done: dict[sympy.Basic, sympy.Expr] = {}
    for sub in sympy.postorder_traversal(expr):
        if sub not in done:
            done[sub] = _adopt(sub, [done[a] for a in sub.args if a in done])
    return done[expr]


def _adopt(expr: Any, args: list[Any]) -> Any:
    if isinstance(expr, (fn.Applied, sympy.Symbol)) or not expr.args:
        if expr in (sympy.true, sympy.false):
            return fn.CAST[BOOL](sympy.Integer(int(bool(expr))))
        return expr.func(*args) if isinstance(expr, fn.Applied) else expr
    if isinstance(expr, (sympy.Add, sympy.Mul)):
        return expr.func(*args)
    if isinstance(expr, sympy.Pow):
        base, exponent = args
        if exponent.is_Integer or (base.is_number and exponent.is_number):
            return base**exponent
        if exponent == sympy.Rational(1, 2):
            return fn.sqrt(base)
        if exponent == -sympy.Rational(1, 2):
            return fn.rsqrt(base)
        return fn.exp(exponent) if base == sympy.E else fn.pow_(base, exponent)
    if isinstance(expr, (sympy.GreaterThan, sympy.StrictGreaterThan)):
        return _own("less" if isinstance(expr, sympy.StrictGreaterThan) else "less_equal")(
            *args[::-1]
        )
    if isinstance(expr, sympy.Piecewise):
        return _piecewise(expr, args)
    if isinstance(expr, sympy.functions.elementary.piecewise.ExprCondPair):
        return sympy.Tuple(*args)
    if type(expr) in _SYMPY and len(args) == fn.FUNCTIONS[_SYMPY[type(expr)]].arity:
        return _own(_SYMPY[type(expr)])(*args)
    if type(expr) in _CHAINS:
        cls = _own(_CHAINS[type(expr)])
        result = args[0]
        for arg in args[1:]:
            result = cls(result, arg)
        return result
    if expr.is_number:
        return expr
    known = ", ".join(sorted({c.__name__ for c in (*_SYMPY, *_CHAINS)}))
    raise SymgradError(
        f"elementwise: the SymPy function {type(expr).__name__} is not supported. "
        f"Supported: + - * / **, {known}, Piecewise."
    )


def _own(name: str) -> Any:
    return fn.FUNCTIONS[name].cls


def _piecewise(expr: Any, pairs: list[Any]) -> Any:
    result: Any = None
    for pair in reversed(pairs):
        value, condition = pair
        always = condition == fn.CAST[BOOL](sympy.Integer(1))
        result = (
            value
            if always
            else fn.select(condition, value, sympy.nan if result is None else result)
        )
    return result
