"""Simplification rules of Map. Each takes a Map and a test whether a node is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from symgrad.calculus import bodies
from symgrad.calculus.building import axes_of_one, delta_body, is_extent_one, zeros_node
from symgrad.graph import functions as fn
from symgrad.graph.dims import Dim, Shape
from symgrad.graph.dtypes import DType, is_bool, is_float
from symgrad.graph.functions import P, function_of, placeholder
from symgrad.graph.nodes import Constant, Einsum, Map, Node, broadcast, einsum_node
from symgrad.graph.scalars import evaluate_scalar, placeholders_in

COMPOSED_WEIGHT = 16  # operations of a composed body at most: beyond, it is cheaper to name values
STRETCHED_WEIGHT = 2  # operations that may be repeated along an axis to save a node

Once = Callable[[Node], bool]


def derived(node: Node) -> bool:
    """Whether differentiation made the node."""
    return node.origin in ("vjp", "jvp")


def is_zero(node: Node) -> bool:
    """Whether a node is zeros that differentiation made."""
    if not derived(node):
        return False
    if isinstance(node, Map):
        return bool(node.body == 0)
    return isinstance(node, Einsum) and len(node.args) == 1 and _value(node.args[0]) == 0


def _value(node: Node) -> float | None:
    """The value of a scalar constant."""
    return float(node.value) if isinstance(node, Constant) and not node.shape else None


def build(
    body: sympy.Expr, args: Sequence[Node], shape: Shape, dtype: DType
) -> Node:
    """A Map without the arguments that its body does not read, each argument once."""
    first: dict[Node, int] = {}
    for arg in args:
        first.setdefault(arg, len(first))
    unique = list(first)
    if len(unique) < len(args):
        body = bodies.shift(body, tuple(first[a] for a in args), ())
        body = bodies.collect(body)
    body, used = bodies.packed(body)
    if body == 0:
        return zeros_node(shape, dtype)
    return Map(tuple(unique[k] for k in used), body, shape, dtype)


# -- rules that hold for every value ---------------------------------------------------------------
def identity(node: Map, once: Once) -> Node | None:
    """rewrite: f(x) = x:  map f(x) -> x."""
    if len(node.args) != 1:
        return None
    (arg,) = node.args
    if arg.shape != node.shape or arg.dtype != node.dtype:
        return None
    if node.body == P[0] or node.body == fn.CAST[node.dtype](P[0]):
        return arg
    return None


def cast_of_cast(node: Map, once: Once) -> Node | None:
    """rewrite: float32(float64(x)) -> x  for float32 x: widening loses nothing."""
    (inner,) = node.args if len(node.args) == 1 else (None,)
    if not isinstance(inner, Map) or len(inner.args) != 1 or inner.shape != node.shape:
        return None
    (x,) = inner.args
    wider = is_float(x.dtype) and is_float(inner.dtype) and inner.dtype.itemsize > x.dtype.itemsize
    if not wider or x.dtype != node.dtype or x.shape != node.shape:
        return None
    casts = node.body == fn.CAST[node.dtype](P[0]) and inner.body == fn.CAST[inner.dtype](P[0])
    return x if casts else None


def negation_of_negation(node: Map, once: Once) -> Node | None:
    """rewrite: -(-x) -> x."""
    inner = node.args[0] if node.body == -P[0] else None
    if not isinstance(inner, Map) or inner.body != -P[0]:
        return None
    return inner.args[0] if inner.args[0].shape == node.shape else None


def equal_arguments(node: Map, once: Once) -> Node | None:
    """rewrite: f(x, x) -> g(x), as x + x -> 2 x.

    requires: x is still read; a user's x - x and x / x stay.
    """
    if len(set(node.args)) == len(node.args):
        return None
    first: dict[Node, int] = {}
    for arg in node.args:
        first.setdefault(arg, len(first))
    body = bodies.shift(node.body, tuple(first[a] for a in node.args), ())
    if not derived(node) and len(placeholders_in(body)) < len(first):
        return None
    return build(body, list(first), node.shape, node.dtype)


def stretched_argument(node: Map, once: Once) -> Node | None:
    """rewrite: f(broadcast x) -> f(x): a Map stretches its arguments itself."""
    args = [_narrow(arg) for arg in node.args]
    if all(a is b for a, b in zip(args, node.args, strict=True)):
        return None
    return Map(tuple(args), node.body, node.shape, node.dtype)


def _narrow(arg: Node) -> Node:
    if not isinstance(arg, Einsum) or len(arg.args) != 1:
        return arg
    own = arg.labels[0]
    free = [k for k, label in enumerate(arg.out) if label not in own]
    if not free or any(not is_extent_one(arg.extents[k]) for k in arg.summed):
        return arg
    lead = 0
    while lead < arg.ndim and (lead in free or is_extent_one(arg.shape[lead])):
        lead += 1
    if lead == 0 and all(is_extent_one(arg.shape[k]) for k in free):
        return arg
    extents = {
        label: 1 if k in free else arg.shape[k] for k, label in enumerate(arg.out)
    }
    out = arg.out[lead:]
    if own == out:
        return arg.args[0]
    return einsum_node(arg.args, arg.labels, out, extents)


def stretched_result(node: Map, once: Once) -> Node | None:
    """rewrite: f(x) stretched -> broadcast f(x): compute once what is equal along an axis."""
    if bodies.uses_axes(node.body):
        return None
    shape: Shape = broadcast(node.args, "map") if node.args else ()
    if shape == node.shape:
        return None
    lead = node.ndim - len(shape)
    core = tuple(e for e in shape if not is_extent_one(e))
    kept = [lead + k for k, e in enumerate(shape) if not is_extent_one(e)]
    if any(shape[k - lead] != node.shape[k] for k in kept):
        return None  # extents that only the data can prove equal
    small: Node = Map(node.args, node.body, shape, node.dtype)
    moved = axes_of_one(small, core)
    assert moved is not None
    labels = range(node.ndim)
    return einsum_node((moved,), (kept,), labels, dict(zip(labels, node.shape, strict=True)))


def number_argument(node: Map, once: Once) -> Node | None:
    """rewrite: f(x, n) -> g(x) for a dim n, 1 in a product, and 0, 1, -1 of differentiation."""
    names: dict[sympy.Expr, sympy.Expr] = {}
    plain = bodies.monomial(node.body)
    for k, arg in enumerate(node.args):
        if arg.args or arg.shape or not is_float(arg.dtype) or arg.dtype != node.dtype:
            if is_zero(arg) and derived(node):
                names[placeholder(k)] = sympy.S.Zero
            continue
        if isinstance(arg, Map) and not arg.body.is_number:
            names[placeholder(k)] = arg.body
        elif _value(arg) == 1.0 and (plain is not None or derived(node)):
            names[placeholder(k)] = sympy.S.One
        elif _value(arg) == -1.0 and derived(node):
            names[placeholder(k)] = sympy.S.NegativeOne
    if names:
        body = bodies.collect(node.body.xreplace(names))
        left = len(placeholders_in(node.body)) - len(names)
        if derived(node) or len(placeholders_in(body)) == left:
            return build(body, node.args, node.shape, node.dtype)
    return _folded(node) if derived(node) and not node.shape else None


def settled_condition(node: Map, once: Once) -> Node | None:
    """rewrite: select(True, a, b) -> a;  select(False, a, b) -> b."""
    body = node.body
    for k, arg in enumerate(node.args):
        if isinstance(arg, Constant) and not arg.shape and is_bool(arg.dtype):
            body = bodies.decided(body, k, bool(arg.value))
    return None if body is node.body else build(body, node.args, node.shape, node.dtype)


def _folded(node: Map) -> Node | None:
    # f(n) with literals only -> the literal f(n); a sign is left for the sum that it ends in
    if node.body == -P[0]:
        return None
    if not all(isinstance(arg, Constant) for arg in node.args):
        return None
    if any(isinstance(s, Dim) for s in node.body.free_symbols) or bodies.uses_axes(node.body):
        return None
    values = [arg.value for arg in node.args if isinstance(arg, Constant)]
    return Constant(evaluate_scalar(node.body, values, (), {}, node.dtype))


# -- composition, of what differentiation made -----------------------------------------------------
def sum_of_maps(node: Map, once: Once) -> Node | None:
    """rewrite: f(x) + g(y) -> (f + g)(x, y), and h(f(x)) -> (h f)(x) where f is small.

    requires: all were made by differentiation: there terms may cancel.
    """
    if not derived(node):
        return None
    wide = sum(bool(arg.shape) for arg in node.args)
    sums = bodies.linear(node.body) is not None or wide == 1
    picked = {
        k: inner for k, arg in enumerate(node.args)
        if (inner := _inner(node, arg, once, sums)) is not None
    }
    return _composed(node, picked) if picked else None


def _inner(node: Map, arg: Node, once: Once, sums: bool) -> tuple[Map, Node] | None:
    """The Map under an argument that may be composed, and the argument."""
    inner = arg
    if isinstance(arg, Einsum) and _only_adds_ones(arg) and once(arg):
        inner = arg.args[0]
    if not isinstance(inner, Map) or not derived(inner) or inner.dtype != node.dtype:
        return None
    if not is_float(inner.dtype) or (function_of(inner.body) is not None and _is_cast(inner)):
        return None
    if inner.body == -P[0]:
        return inner, arg
    if not once(inner):
        return None
    if arg.shape == node.shape:
        return (inner, arg) if sums else None
    if bodies.calls(inner.body) or bodies.weight(inner.body) > STRETCHED_WEIGHT:
        return None
    return inner, arg


def _is_cast(node: Map) -> bool:
    function = function_of(node.body)
    return function is not None and function.result == "cast" and bool(node.args)


def _only_adds_ones(node: Einsum) -> bool:
    if len(node.args) != 1:
        return False
    own = node.labels[0]
    return tuple(k for k in node.out if k in own) == own and all(
        is_extent_one(node.extents[k]) for k in node.out if k not in own
    )


def _composed(node: Map, picked: dict[int, tuple[Map, Node]]) -> Node | None:
    args: list[Node] = []
    places: list[int] = []
    inner: list[tuple[int, sympy.Expr]] = []
    for k, arg in enumerate(node.args):
        places.append(len(args))
        if k not in picked:
            args.append(arg)
            continue
        made, _ = picked[k]
        spread = [_under(a, made, arg) for a in made.args]
        if any(a is None for a in spread):
            return None
        axes = _axes(made, arg, node.ndim)
        numbers = tuple(range(len(args), len(args) + len(spread)))
        inner.append((k, bodies.shift(made.body, numbers, axes)))
        args += [a for a in spread if a is not None]
    body = bodies.compose(node.body, tuple(places), tuple(inner))
    if bodies.weight(body) > COMPOSED_WEIGHT:
        return None
    return build(body, args, node.shape, node.dtype)


def _under(arg: Node, inner: Map, outer: Node) -> Node | None:
    """An argument of `inner` where `outer` adds axes of one to it."""
    if outer is inner or not arg.shape:
        return arg
    assert isinstance(outer, Einsum)
    lead = inner.ndim - arg.ndim
    own = outer.labels[0][lead:]
    first = min((outer.out.index(k) for k in own), default=0)
    out = [k for k in outer.out[first:] if k in own or k not in outer.labels[0]]
    if any(k not in own for k in outer.out[first:] if k in outer.labels[0]):
        return None
    extents = {k: 1 if k not in own else outer.extents[k] for k in out}
    if tuple(out) == tuple(own):
        return arg
    return einsum_node((arg,), (own,), out, extents)


def _axes(inner: Map, outer: Node, rank: int) -> tuple[int | None, ...]:
    """Where the axes of `inner` lie in a result of that rank."""
    if outer is inner:
        return tuple(
            None if is_extent_one(e) else rank - inner.ndim + k for k, e in enumerate(inner.shape)
        )
    assert isinstance(outer, Einsum)
    lead = rank - outer.ndim
    return tuple(lead + outer.out.index(k) for k in outer.labels[0])


_MASKED_ONE = fn.select(fn.equal(fn.AXIS[0], fn.AXIS[1]), 1, 0)  # in derivatives of a trace


def is_delta(node: Node) -> bool:
    """Whether a node is the unit matrix."""
    return (
        isinstance(node, Map)
        and not node.args
        and node.ndim == 2
        and is_float(node.dtype)
        and node.body in (delta_body(node.dtype), _MASKED_ONE)
        and node.shape[0] == node.shape[1]
    )
