"""Functions of one element: exponentials, roots, angles, activations, and a user's own.

Each is one Map over a scalar body. What is declared at a kink stands in the docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import sympy
from sympy.logic.boolalg import Boolean

from symgrad.graph import functions as fn
from symgrad.graph.arithmetic import float_operands, unary, unary_same
from symgrad.graph.dims import Dim
from symgrad.graph.dtypes import FLOAT32, DType, is_float, is_int, promote
from symgrad.graph.errors import DTypeError, ShapeError
from symgrad.graph.functions import P, placeholder
from symgrad.graph.leaves import ArrayLike, as_node, cast, operands
from symgrad.graph.nodes import Map, Node, broadcast, describe, map_node
from symgrad.graph.operators import verb
from symgrad.graph.scalars import adopt, infer_dtype
from symgrad.graph.streams import as_flag

_RELU = fn.select(fn.less_equal(P[0], 0), 0, P[0])
_LEAKY = fn.select(fn.less_equal(P[0], 0), P[1] * P[0], P[0])
_ELU = fn.select(fn.less_equal(P[0], 0), P[1] * fn.expm1(P[0]), P[0])
_SILU = P[0] * fn.sigmoid(P[0])
_GELU = P[0] * (1 + fn.erf(P[0] / sympy.sqrt(2))) / 2
# (1 + tanh u) / 2 = sigmoid(2 u), which loses no digits where it is small
_GELU_TANH = P[0] * fn.sigmoid(
    sympy.sqrt(8 / sympy.pi) * (P[0] + sympy.Float(0.044715) * P[0] ** 3)
)


@verb
def exp(x: ArrayLike) -> Node:
    """`e^x`, elementwise; inf where it overflows.

    Derivative: `e^x`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.exp([0.0, 1000.0]))
    array([ 1., inf], dtype=float32)
    """
    return unary("exp", x)


@verb
def log(x: ArrayLike) -> Node:
    """The natural logarithm: -inf at 0, NaN below.

    Derivative: `1/x`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.log([1.0, 0.0, -1.0]))
    array([  0., -inf,  nan], dtype=float32)
    """
    return unary("log", x)


@verb
def log1p(x: ArrayLike) -> Node:
    """`log(1 + x)`, accurate near 0.

    Derivative: `1/(1 + x)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.log1p([0.0, 1e-20, -1.0]))
    array([0.e+00, 1.e-20,   -inf], dtype=float32)
    """
    return unary("log1p", x)


@verb
def expm1(x: ArrayLike) -> Node:
    """`e^x - 1`, accurate near 0.

    Derivative: `e^x`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.expm1([0.0, 1e-20]))
    array([0.e+00, 1.e-20], dtype=float32)
    """
    return unary("expm1", x)


@verb
def sqrt(x: ArrayLike) -> Node:
    """The square root, NaN below 0; `sqrt(-0.0)` is -0.0.

    Derivative: `1/(2 sqrt(x))`, infinite at 0. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.sqrt([4.0, 9.0]))
    array([2., 3.], dtype=float32)
    """
    return unary("sqrt", x)


@verb
def rsqrt(x: ArrayLike) -> Node:
    """`1 / sqrt(x)`.

    Derivative: `-rsqrt(x)^3 / 2`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.rsqrt([4.0, 0.0]))
    array([0.5, inf], dtype=float32)
    """
    return unary("rsqrt", x)


@verb
def sin(x: ArrayLike) -> Node:
    """The sine of radians; NaN of infinities.

    Derivative: `cos(x)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.sin(0.0))
    array(0., dtype=float32)
    """
    return unary("sin", x)


@verb
def cos(x: ArrayLike) -> Node:
    """The cosine of radians; NaN of infinities.

    Derivative: `-sin(x)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.cos(0.0))
    array(1., dtype=float32)
    """
    return unary("cos", x)


@verb
def tan(x: ArrayLike) -> Node:
    """The tangent of radians; NaN of infinities.

    Derivative: `1 + tan(x)^2`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.tan(0.0))
    array(0., dtype=float32)
    """
    return unary("tan", x)


@verb
def tanh(x: ArrayLike) -> Node:
    """The hyperbolic tangent.

    Derivative: `1 - tanh(x)^2`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.tanh([0.0, 100.0]))
    array([0., 1.], dtype=float32)
    """
    return unary("tanh", x)


@verb
def sinh(x: ArrayLike) -> Node:
    """The hyperbolic sine.

    Derivative: `cosh(x)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.sinh(0.0))
    array(0., dtype=float32)
    """
    return unary("sinh", x)


@verb
def cosh(x: ArrayLike) -> Node:
    """The hyperbolic cosine.

    Derivative: `sinh(x)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.cosh(0.0))
    array(1., dtype=float32)
    """
    return unary("cosh", x)


@verb
def arctan(x: ArrayLike) -> Node:
    """The inverse tangent, in radians.

    Derivative: `1/(1 + x^2)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.arctan([0.0, 1.0]))
    array([0.       , 0.7853982], dtype=float32)
    """
    return unary("arctan", x)


@verb
def erf(x: ArrayLike) -> Node:
    """The error function, `2/sqrt(pi) int_0^x e^(-t^2) dt`.

    Derivative: `2/sqrt(pi) e^(-x^2)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.erf([0.0, 9.0]))
    array([0., 1.], dtype=float32)
    """
    return unary("erf", x)


@verb
def sigmoid(x: ArrayLike) -> Node:
    """`s = 1 / (1 + e^-x)`, without overflow.

    Derivative: `s (1 - s)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.sigmoid([0.0, -1000.0]))
    array([0.5, 0. ], dtype=float32)
    """
    return unary("sigmoid", x)


@verb
def softplus(x: ArrayLike) -> Node:
    """`log(1 + e^x)`, without overflow.

    Derivative: `sigmoid(x)`. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.softplus([0.0, 1000.0]))
    array([6.931472e-01, 1.000000e+03], dtype=float32)
    """
    return unary("softplus", x)


@verb
def abs(x: ArrayLike) -> Node:
    """The absolute value, in the dtype of `x`.

    Derivative: `sign(x)`, so 0 at 0. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.abs([-2, 3]))
    array([2, 3], dtype=int32)
    """
    return unary_same("abs", x)


@verb
def sign(x: ArrayLike) -> Node:
    """-1, 0 or 1, in the dtype of `x`; NaN of NaN.

    Derivative: 0. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.sign([-2.0, 0.0, 3.0]))
    array([-1.,  0.,  1.], dtype=float32)
    """
    return unary_same("sign", x)


@verb
def floor(x: ArrayLike) -> Node:
    """The largest integer not above `x`, in the dtype of `x`.

    Derivative: 0. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.floor([-1.5, 1.5]))
    array([-2.,  1.], dtype=float32)
    """
    node = as_node(x)
    return node if is_int(node.dtype) else unary("floor", node)


@verb
def isnan(x: ArrayLike) -> Node:
    """Whether an element is NaN, as bool; False of integers.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.isnan([1.0, float("nan")]))
    array([False,  True])
    """
    return _test("isnan", x)


@verb
def isfinite(x: ArrayLike) -> Node:
    """Whether an element is neither NaN nor infinite, as bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.isfinite([1.0, float("inf")]))
    array([ True, False])
    """
    return _test("isfinite", x)


def _test(name: str, x: ArrayLike) -> Node:
    node = as_node(x)
    node = node if is_float(node.dtype) else cast(node, FLOAT32)
    return map_node(fn.FUNCTIONS[name].cls(P[0]), (node,))


@verb
def stop_gradient(x: ArrayLike) -> Node:
    """`x`, with the derivative 0.

    >>> import symgrad as sg
    >>> x = sg.input("x", ())
    >>> sg.evaluate(sg.grad(sg.stop_gradient(x) * x, x), {x: 3.0})
    array(3., dtype=float32)
    """
    node = as_node(x)
    if not is_float(node.dtype):
        return node
    return map_node(fn.stop_gradient(P[0]), (node,))


# -- activations ----------------------------------------------------------------------------------
@verb
def relu(x: ArrayLike) -> Node:
    """`max(x, 0)`, in the dtype of `x`; NaN of NaN.

    Derivative: 1 above 0, else 0. Raises: DTypeError for bool.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.relu([-1.0, 2.0]))
    array([0., 2.], dtype=float32)
    """
    node = as_node(x)
    if is_int(node.dtype):
        return Map((node,), _RELU, node.shape, node.dtype)
    return map_node(_RELU, float_operands("relu", node))


@verb
def leaky_relu(x: ArrayLike, negative_slope: ArrayLike = 0.01) -> Node:
    """`x` where positive, else `negative_slope x`; the slope broadcasts to `x`.

    Derivative: 1 above 0, else the slope. Raises: DTypeError for bool, ShapeError.
    Source: Maas et al. 2013.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.leaky_relu([-1.0, 2.0], 0.5))
    array([-0.5,  2. ], dtype=float32)
    """
    return map_node(_LEAKY, float_operands("leaky_relu", x, negative_slope), asked="leaky_relu")


@verb
def elu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Node:
    """`x` where positive, else `alpha (e^x - 1)`; alpha broadcasts to `x`.

    Derivative: 1 above 0, else `alpha e^x`. Raises: DTypeError for bool, ShapeError.
    Source: Clevert et al. 2016.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.elu([-100.0, 2.0]))
    array([-1.,  2.], dtype=float32)
    """
    return map_node(_ELU, float_operands("elu", x, alpha), asked="elu")


@verb
def silu(x: ArrayLike) -> Node:
    """`x sigmoid(x)`.

    Derivative: `s + x s (1 - s)`, s the sigmoid. Raises: DTypeError for bool.
    Source: Elfwing et al. 2018.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.silu([0.0, 50.0]))
    array([ 0., 50.], dtype=float32)
    """
    return map_node(_SILU, float_operands("silu", x))


@verb
def gelu(x: ArrayLike, approximate: bool = False) -> Node:
    """`x (1 + erf(x / sqrt 2)) / 2`.

    When `approximate`, `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`. Far below 0 the exact
    form cancels: its error is then small beside x, not beside the result, which is 0 below -5.6 in
    float32; the approximate one keeps its digits.

    Raises: DTypeError for bool, SymgradError when `approximate` is neither True nor False.
    Source: Hendrycks and Gimpel 2016.

    >>> import symgrad as sg
    >>> sg.evaluate(sg.gelu([0.0, 50.0]))
    array([ 0., 50.], dtype=float32)
    """
    tanh_form = as_flag("gelu: approximate", approximate)
    return map_node(_GELU_TANH if tanh_form else _GELU, float_operands("gelu", x))


# -- a user's own ---------------------------------------------------------------------------------
@verb
def elementwise(f: Callable[..., object] | sympy.Expr, *args: ArrayLike) -> Node:
    """A new scalar function, written inline with SymPy.

        out[i..] = f(args[i..]..)

    Args:
        f:    a Python function on SymPy scalars, or a SymPy expression: then its free symbols,
              sorted by name, are the arguments.
        args: arrays that broadcast, one per argument of `f`.
    Raises: ShapeError, DTypeError; SymgradError for a SymPy function without a counterpart.
    Cotangent: the derivative that SymPy finds. SymPy simplifies while `f` is written: what it takes
        for granted, `x/x = 1` say, holds for NaN too.

    >>> x = as_node([0.5, 1.5])
    >>> elementwise(lambda t: t * sympy.tanh(t), x).body
    p0*tanh(p0)
    """
    nodes = operands(*args)
    if not nodes:
        raise ShapeError("elementwise: give at least one argument after the function.")
    body = _body(f, len(nodes))
    dtype = promote(*(n.dtype for n in nodes))
    if is_int(dtype) and _divides(body):
        dtype = FLOAT32
    try:
        result = infer_dtype(body, [_meeting(n, dtype) for n in nodes])
    except DTypeError:
        if not is_int(dtype):
            lines = "\n".join(f"  {describe(n)}" for n in nodes)
            raise DTypeError(
                f"elementwise: {body} is not defined for these dtypes\n{lines}\n"
                "  Cast first: astype(x, 'float32')."
            ) from None
        dtype = FLOAT32
        result = infer_dtype(body, [_meeting(n, dtype) for n in nodes])
    nodes = tuple(cast(n, _meeting(n, dtype)) for n in nodes)
    return Map(nodes, body, broadcast(nodes, "elementwise"), result)


def _meeting(node: Node, dtype: DType) -> DType:
    """Numbers meet in one dtype; bool stays, for conditions."""
    return dtype if node.dtype.kind in "if" else node.dtype


def _body(f: Callable[..., object] | sympy.Expr, count: int) -> sympy.Expr:
    if isinstance(f, (sympy.Expr, Boolean)):
        free = sorted((s for s in f.free_symbols if not isinstance(s, Dim)), key=lambda s: s.name)
        if len(free) != count:
            names = ", ".join(s.name for s in free)
            raise ShapeError(
                f"elementwise: the expression has {len(free)} free symbols ({names}), "
                f"got {count} arguments. Give one array per symbol, sorted by name."
            )
        return adopt(f.xreplace({s: placeholder(k) for k, s in enumerate(free)}))
    if not callable(f):
        raise DTypeError(
            f"elementwise: f must be a function or a SymPy expression, got {type(f).__name__}."
        )
    try:
        made = f(*(placeholder(k) for k in range(count)))
    except TypeError as error:
        raise DTypeError(
            f"elementwise: the function failed on SymPy scalars: {error}\n"
            f"  It takes {count} scalars here. Choose with sympy.Piecewise or sympy.Max, not `if`."
        ) from error
    if isinstance(made, (bool, int, float)):
        made = sympy.sympify(made)
    if not isinstance(made, (sympy.Expr, Boolean)):
        raise DTypeError(
            f"elementwise: the function returned {type(made).__name__}, not a SymPy expression."
        )
    strange = [s.name for s in made.free_symbols if not isinstance(s, (fn.Placeholder, Dim))]
    if strange:
        raise DTypeError(
            f"elementwise: the expression has symbols that are no arguments: {', '.join(strange)}. "
            "Pass their values as further arguments."
        )
    if made.has(sympy.I, sympy.zoo, sympy.nan):
        raise DTypeError(
            f"elementwise: {made} is no real number; expressions hold real numbers only."
        )
    return adopt(made)


@lru_cache(maxsize=1024)
def _divides(body: sympy.Expr) -> bool:
    """Whether a division or a fraction occurs."""
    return any(
        (isinstance(e, sympy.Pow) and e.exp.could_extract_minus_sign())
        or (isinstance(e, (sympy.Float, sympy.Rational)) and not e.is_Integer)
        for e in sympy.preorder_traversal(body)
    )
