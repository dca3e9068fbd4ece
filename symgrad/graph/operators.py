"""Operators and methods of expressions.

A node does not know the verbs: verb modules register themselves here with `@verb`, and the
operators look them up. So the nodes stay the lowest room and imports run one way.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import sympy

from symgrad.graph.errors import DTypeError, SymgradError

if TYPE_CHECKING:
    from symgrad.graph.dims import Extent
    from symgrad.graph.nodes import Node

F = TypeVar("F", bound=Callable[..., Any])
ROOMS = (
    "arithmetic", "elementwise", "reductions", "contractions", "shapes", "indexing", "losses",
    "leaves", "text", "latex",
)


class _Verbs(dict[str, Callable[..., Any]]):
    """The verbs by name; the rooms that hold them are imported when the first is missed."""

    def __missing__(self, name: str) -> Callable[..., Any]:
        load_verbs()
        if name in self:
            return self[name]
        raise SymgradError(f"{name}: no such operation on expressions.")


VERBS: dict[str, Callable[..., Any]] = _Verbs()


def load_verbs() -> None:
    """Import every module that registers verbs."""
    for room in ROOMS:
        importlib.import_module(f"symgrad.graph.{room}")


def verb(function: F) -> F:
    """Register a verb under its name, for operators, methods and NumPy ufuncs."""
    VERBS[function.__name__.rstrip("_")] = function
    return function


def _node(name: str, *args: Any, **options: Any) -> Node:
    """The expression that a verb makes."""
    made: Node = VERBS[name](*args, **options)
    return made


# NumPy's name of a ufunc where it is not the verb's own
_UFUNCS = {
    "true_divide": "divide",
    "absolute": "abs",
    "fabs": "abs",
    "remainder": "mod",
    "conjugate": "positive",
    "float_power": "power",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "invert": "logical_not",
}


class Operators:
    """What Python's operators, NumPy's ufuncs and the usual array methods mean on an expression."""

    __slots__ = ()
    __array_priority__ = 1000

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Node:
        """NumPy's ufuncs build expressions: `np.tanh(x)` is `sg.tanh(x)`."""
        name = _UFUNCS.get(ufunc.__name__, ufunc.__name__)
        if name not in VERBS:
            load_verbs()
        if method != "__call__" or kwargs or name not in VERBS:
            raise DTypeError(
                f"numpy.{ufunc.__name__}: no such operation on expressions"
                + (f" with {method!r} or options {sorted(kwargs)}." if name in VERBS else ".")
                + " Use the verbs of symgrad."
            )
        return _node(name, *inputs)

    def __array_function__(
        self, function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """NumPy's other functions build expressions too, where a verb has their name.

        Without this NumPy would take an expression for a list of its elements.
        """
        name: str = function.__name__
        if name in ("shape", "ndim"):
            return getattr(self, name)
        if name not in VERBS:
            load_verbs()
        if name not in VERBS or function.__module__ != "numpy":
            raise DTypeError(
                f"{function.__module__}.{name}: no such operation on expressions. "
                "Use the verbs of symgrad."
            )
        try:
            inspect.signature(VERBS[name]).bind(*args, **kwargs)
        except TypeError as error:
            raise DTypeError(f"numpy.{name} on an expression: {error}.") from None
        return VERBS[name](*args, **kwargs)

    def __copy__(self) -> Node:
        """Itself: an expression never changes, and is told from others by its identity."""
        return self  # type: ignore[return-value]

    def __deepcopy__(self, memo: Any) -> Node:
        """Itself, as `__copy__`."""
        return self  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """No pickle: an expression is made again by the code that wrote it."""
        raise DTypeError(
            "pickle: expressions are not pickled. Keep the code that makes them, and the values "
            "of the parameters with Trainer.save or numpy.savez."
        )

    def __add__(self, other: Any) -> Node:
        return _node("add", self, other)

    def __radd__(self, other: Any) -> Node:
        return _node("add", other, self)

    def __sub__(self, other: Any) -> Node:
        return _node("subtract", self, other)

    def __rsub__(self, other: Any) -> Node:
        return _node("subtract", other, self)

    def __mul__(self, other: Any) -> Node:
        return _node("multiply", self, other)

    def __rmul__(self, other: Any) -> Node:
        return _node("multiply", other, self)

    def __truediv__(self, other: Any) -> Node:
        return _node("divide", self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return _node("divide", other, self)

    def __floordiv__(self, other: Any) -> Node:
        return _node("floor_divide", self, other)

    def __rfloordiv__(self, other: Any) -> Node:
        return _node("floor_divide", other, self)

    def __mod__(self, other: Any) -> Node:
        return _node("mod", self, other)

    def __rmod__(self, other: Any) -> Node:
        return _node("mod", other, self)

    def __pow__(self, other: Any) -> Node:
        return _node("power", self, other)

    def __rpow__(self, other: Any) -> Node:
        return _node("power", other, self)

    def __matmul__(self, other: Any) -> Node:
        return _node("matmul", self, other)

    def __rmatmul__(self, other: Any) -> Node:
        return _node("matmul", other, self)

    def __neg__(self) -> Node:
        return _node("negative", self)

    def __pos__(self) -> Node:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Node:
        return _node("abs", self)

    def __eq__(self, other: object) -> Node:  # type: ignore[override]
        return _node("equal", self, other)

    def __ne__(self, other: object) -> Node:  # type: ignore[override]
        return _node("not_equal", self, other)

    def __lt__(self, other: Any) -> Node:
        return _node("less", self, other)

    def __le__(self, other: Any) -> Node:
        return _node("less_equal", self, other)

    def __gt__(self, other: Any) -> Node:
        return _node("greater", self, other)

    def __ge__(self, other: Any) -> Node:
        return _node("greater_equal", self, other)

    def __and__(self, other: Any) -> Node:
        return _node("logical_and", self, other)

    def __rand__(self, other: Any) -> Node:
        return _node("logical_and", other, self)

    def __or__(self, other: Any) -> Node:
        return _node("logical_or", self, other)

    def __ror__(self, other: Any) -> Node:
        return _node("logical_or", other, self)

    def __xor__(self, other: Any) -> Node:
        return _node("logical_xor", self, other)

    def __rxor__(self, other: Any) -> Node:
        return _node("logical_xor", other, self)

    def __invert__(self) -> Node:
        return _node("logical_not", self)

    def __getitem__(self, key: Any) -> Node:
        return _node("getitem", self, key)

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __bool__(self) -> NoReturn:
        raise DTypeError(
            "bool: an expression has no truth value before it is evaluated. Choose between values "
            "with where(condition, a, b); compare nodes themselves with `is`."
        )

    def __len__(self) -> int:
        shape: tuple[Extent, ...] = self.shape  # type: ignore[attr-defined]
        if shape and type(shape[0]) is int:
            return shape[0]
        what = f"axis 0 has the extent {shape[0]}" if shape else "the expression is a scalar"
        raise DTypeError(f"len: {what}. Use x.shape[0] in formulas.")

    def __iter__(self) -> Any:
        n = len(self)
        return (self[k] for k in range(n))

    def __float__(self) -> NoReturn:
        raise DTypeError("float: an expression has no value yet. Use sg.evaluate(expr, values).")

    def __int__(self) -> NoReturn:
        raise DTypeError("int: an expression has no value yet. Use sg.evaluate(expr, values).")

    def __array__(self, *options: Any, **named: Any) -> NoReturn:
        """Without this NumPy would make an array of one object."""
        raise DTypeError("array: an expression has no value yet. Use sg.evaluate(expr, values).")

    __index__ = None  # a node is no integer

    def _sympy_(self) -> NoReturn:
        """SymPy asks before it combines a dim with an expression: no, the expression's turn."""
        raise sympy.SympifyError(f"{self!r} is no SymPy expression")

    @property
    def T(self) -> Node:  # NumPy's name
        """The expression with its axes reversed."""
        return _node("transpose", self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Node:
        """See `symgrad.sum`."""
        return _node("sum", self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Node:
        """See `symgrad.mean`."""
        return _node("mean", self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Node:
        """See `symgrad.max`."""
        return _node("max", self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Node:
        """See `symgrad.min`."""
        return _node("min", self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: Any) -> Node:
        """See `symgrad.reshape`; the shape may be one tuple or several extents."""
        one = len(shape) == 1 and isinstance(shape[0], (tuple, list))
        return _node("reshape", self, shape[0] if one else shape)

    def transpose(self, *axes: Any) -> Node:
        """See `symgrad.transpose`."""
        one = len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list)))
        return _node("transpose", self, axes[0] if one else axes or None)

    def astype(self, dtype: Any) -> Node:
        """See `symgrad.astype`."""
        return _node("astype", self, dtype)

    def __str__(self) -> str:
        shown: str = VERBS["text"](self)
        return shown

    def _repr_latex_(self) -> str:
        shown: str = VERBS["latex"](self)
        return "$\\displaystyle " + shown + "$"
