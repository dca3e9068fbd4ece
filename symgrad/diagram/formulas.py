"""Short mathematics for a box: `tanh`, `+ b1`, `x·W1`, `exp(a − b)`.

A Map's body is printed with its operands in place: a leaf by its name, a scalar constant by its
value, anything else by a letter that also stands on the edge. Simple bodies shrink to their
operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from symgrad.diagram.moments import Moment, is_named
from symgrad.graph.dims import Dim, Extent, Shape
from symgrad.graph.folds import Fold, Proj
from symgrad.graph.functions import AxisIndex, Placeholder, function_of
from symgrad.graph.nodes import (
    Constant,
    Einsum,
    Gather,
    Input,
    Map,
    Node,
    Reduce,
    Reindex,
    Scatter,
    is_reshape,
)
from symgrad.graph.streams import is_draw

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_INFIX = {
    "less": "<", "less_equal": "≤", "equal": "=", "not_equal": "≠", "logical_and": "∧",
    "logical_or": "∨", "logical_xor": "⊕", "mod": "mod", "floor_divide": "//",
}  # fmt: skip
_SHORT = {
    "maximum": "max", "minimum": "min", "logical_not": "not", "isfinite": "finite",
    "stop_gradient": "stop",
}  # fmt: skip
_AXES = "ijklmnopqrstuvw"
_OPERANDS = "abcdefgh"
# How tightly a printed form holds together: parentheses go round what is looser than its place.
_SUM, _PRODUCT, _POWER, _ATOM = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Formula:
    """What stands in a box.

    label: one line of mathematics.
    detail: a smaller second line.
    letters: per argument the letter it bears in the label, empty where none is needed.
    """

    label: str
    detail: str = ""
    letters: tuple[str, ...] = ()


def shape_text(shape: Shape) -> str:
    """A shape on an edge.

    >>> from symgrad.graph.dims import dim
    >>> shape_text((dim("B"), 64)), shape_text(())
    ('B×64', 'scalar')
    """
    return "×".join(extent_text(extent) for extent in shape) or "scalar"


def extent_text(extent: Extent) -> str:
    """An extent: a number, a dim, or a polynomial in dims."""
    if isinstance(extent, (int, Dim)):
        return str(extent)
    return "(" + str(extent).replace("**", "^").replace("*", "·") + ")"


def number_text(value: object) -> str:
    """A number in at most four digits; integers without a point.

    >>> number_text(2.0), number_text(0.3333333), number_text(1e-9)
    ('2', '0.3333', '1e-09')
    """
    number = float(value)  # type: ignore[arg-type]
    return f"{number:.4g}".replace("-", "−") if number < 0 else f"{number:.4g}"


def is_literal(node: Node) -> bool:
    """Whether a node is a constant of one element, which is printed instead of drawn."""
    return isinstance(node, Constant) and node.value.size == 1


def formula_of(node: Node) -> Formula:
    """The formula of any node; node classes it does not know show their name."""
    if isinstance(node, Input):
        return Formula(node.name, shape_text(node.shape))
    if isinstance(node, Constant):
        value = number_text(node.value.reshape(-1)[0]) if node.value.size == 1 else "const"
        return Formula(value, shape_text(node.shape) if node.shape else "")
    if isinstance(node, Moment):
        return Formula(node.label, node.detail or shape_text(node.shape))
    if isinstance(node, Fold):
        inner = sum(not isinstance(n, (Input, Constant)) for n in node.body.nodes)
        return Formula(f"fold over {extent_text(node.structure.length)}", f"{inner} nodes per step")
    if isinstance(node, Proj):
        return Formula(node.name, shape_text(node.shape))
    if isinstance(node, Map):
        return _map(node)
    if isinstance(node, Einsum):
        return _einsum(node)
    if isinstance(node, Reduce):
        axes = ", ".join(str(a) for a in node.axes)
        return Formula(node.op, f"axis {axes}" if len(node.axes) == 1 else f"axes {axes}")
    if isinstance(node, Reindex):
        return _reindex(node)
    if isinstance(node, Gather):
        return Formula("gather", _gather_form(node.source_axes, node.index_labels, node.out))
    if isinstance(node, Scatter):
        target = node.target_axes
        return Formula("scatter", _gather_form(target, node.index_labels, node.update_labels))
    return Formula(type(node).__name__.lower(), shape_text(node.shape))


# -- Map ------------------------------------------------------------------------------------------
def _map(node: Map) -> Formula:
    if is_draw(node):
        return Formula("uniform", "", ("",) * len(node.args))
    names, letters = _operands(node)
    unknown = [k for k, letter in enumerate(letters) if letter]
    short = _short(node, names, unknown)
    if short is not None:
        return Formula(short, "", ("",) * len(letters))
    text = _print(node.body, names)
    return Formula(text, "", letters if len(unknown) > 1 else ("",) * len(letters))


def _operands(node: Map) -> tuple[dict[sympy.Basic, str], tuple[str, ...]]:
    """The text of each placeholder and axis index, and the letters given out."""
    names: dict[sympy.Basic, str] = {}
    letters: list[str] = []
    given: dict[Node, str] = {}
    for k, arg in enumerate(node.args):
        letter = ""
        if is_named(arg):
            text = arg.name
        elif is_literal(arg):
            text = number_text(arg.value.reshape(-1)[0])  # type: ignore[attr-defined]
        else:
            if arg not in given:
                given[arg] = _OPERANDS[len(given) % 8] + "′" * (len(given) // 8)
            letter = text = given[arg]
        letters.append(letter)
        names[_placeholder(k)] = text
    return names, tuple(letters)


def _placeholder(k: int) -> sympy.Basic:
    from symgrad.graph.functions import placeholder

    return placeholder(k)


def _short(node: Map, names: dict[sympy.Basic, str], unknown: Sequence[int]) -> str | None:
    """`tanh` for tanh(a), `+ b1` for a + b1, `+` for a + b, `×` for a b; None for the rest."""
    body = node.body
    function = function_of(body)
    arguments = body.args
    if function is not None and len(arguments) == 1 and isinstance(arguments[0], Placeholder):
        if function.name.startswith("cast_"):
            return "as " + function.name[5:]
        return None if is_named(node.args[0]) else function.name
    plain = all(isinstance(a, Placeholder) for a in arguments) and len(arguments) == 2
    if not plain or not isinstance(body, (sympy.Add, sympy.Mul)):
        return None
    sign = "+" if isinstance(body, sympy.Add) else "×"
    known = [names[a] for a in arguments if not _has_letter(a, node)]
    if len(known) == 1:
        return f"{sign} {known[0]}"
    return sign if not known else None


def _has_letter(symbol: sympy.Basic, node: Map) -> bool:
    for k, arg in enumerate(node.args):
        if symbol == _placeholder(k):
            return not is_named(arg) and not is_literal(arg)
    return True


def _print(expr: sympy.Basic, names: dict[sympy.Basic, str]) -> str:
    """A scalar body as text. Bodies are small; the recursion is as deep as the body."""
    return _walk(expr, names)[0]


def _walk(expr: sympy.Basic, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    if isinstance(expr, (Placeholder, AxisIndex)):
        if isinstance(expr, AxisIndex):
            return _AXES[int(str(expr)[1:]) % len(_AXES)], _ATOM
        text = names.get(expr, str(expr))
        return text, _ATOM
    if isinstance(expr, sympy.Symbol):
        return str(expr), _ATOM
    if isinstance(expr, sympy.Add):
        return _sum(expr, names), _SUM
    if isinstance(expr, sympy.Mul):
        return _product(expr, names)
    if isinstance(expr, sympy.Pow):
        return _power(expr, names)
    if expr.is_number:
        return _number(expr)
    return _application(expr, names)


def _at(expr: sympy.Basic, names: dict[sympy.Basic, str], place: int) -> str:
    text, tight = _walk(expr, names)
    return text if tight >= place else f"({text})"


def _number(expr: sympy.Basic) -> tuple[str, int]:
    if isinstance(expr, sympy.Rational) and not isinstance(expr, sympy.Integer):
        if expr == sympy.Rational(1, 2):
            return "½", _ATOM
        return f"{expr.p}/{expr.q}".replace("-", "−"), _PRODUCT
    text = number_text(expr)
    return text, _SUM if text.startswith("−") else _ATOM


def _sum(expr: sympy.Basic, names: dict[sympy.Basic, str]) -> str:
    positive: list[sympy.Expr] = []
    negative: list[sympy.Expr] = []
    for term in expr.args:
        coefficient, _ = term.as_coeff_Mul()
        (negative if coefficient.is_negative else positive).append(term)
    # Variables before numbers, but `1 − y²` rather than `−y² + 1`.
    positive.sort(key=lambda t: (bool(t.is_number), sympy.default_sort_key(t)))
    negative.sort(key=lambda t: (bool(t.is_number), sympy.default_sort_key(t)))
    text = " + ".join(_at(t, names, _PRODUCT) for t in positive)
    for term in negative:
        part = _at(-term, names, _PRODUCT)
        text = f"{text} − {part}" if text else f"−{part}"
    return text


def _product(expr: sympy.Basic, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    coefficient, rest = expr.as_coeff_Mul()
    if coefficient.is_negative:
        return "−" + _at(-expr, names, _PRODUCT), _SUM
    above, below = [], []
    factors = sympy.Mul.make_args(rest)
    for factor in sorted(factors, key=lambda f: (isinstance(f, sympy.Add), str(f))):
        base, exponent = factor.as_base_exp()
        if exponent.is_number and exponent.is_negative and not function_of(factor):
            below.append(base**-exponent)
        else:
            above.append(factor)
    top, bottom = _fraction_parts(coefficient)
    upper = [top] if top != "1" or not above else []
    upper += [_at(f, names, _PRODUCT if len(above) + len(upper) == 1 else _POWER) for f in above]
    lower = [bottom] if bottom != "1" else []
    lower += [_at(f, names, _POWER) for f in below]
    text = " ".join(upper)
    if lower:
        under = lower[0] if len(lower) == 1 else f"({' '.join(lower)})"
        text = f"{text} / {under}"
    return text, _PRODUCT


def _fraction_parts(coefficient: sympy.Basic) -> tuple[str, str]:
    if isinstance(coefficient, sympy.Rational):
        return str(coefficient.p), str(coefficient.q)
    return number_text(coefficient), "1"


def _power(expr: sympy.Basic, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    base, exponent = expr.args
    if exponent == -1:
        return f"1 / {_at(base, names, _POWER)}", _PRODUCT
    if exponent == sympy.Rational(1, 2):
        return f"√{_at(base, names, _ATOM)}", _POWER
    if isinstance(exponent, sympy.Integer):
        return _at(base, names, _ATOM) + str(exponent).translate(_SUPERSCRIPT), _POWER
    return f"{_at(base, names, _ATOM)}^{_at(exponent, names, _ATOM)}", _POWER


def _application(expr: sympy.Basic, names: dict[sympy.Basic, str]) -> tuple[str, int]:
    function = function_of(expr)
    name = function.name if function is not None else type(expr).__name__
    if name.startswith("cast_"):
        return _walk(expr.args[0], names)
    if name in _INFIX and len(expr.args) == 2:
        left, right = (_at(a, names, _PRODUCT) for a in expr.args)
        return f"[{left} {_INFIX[name]} {right}]", _ATOM
    if name == "abs":
        return f"|{_walk(expr.args[0], names)[0]}|", _ATOM
    if name == "sqrt":
        return f"√{_at(expr.args[0], names, _ATOM)}", _POWER
    if name == "pow":
        base, exponent = (_at(a, names, _ATOM) for a in expr.args)
        return f"{base}^{exponent}", _POWER
    if name == "select":
        test, yes, no = (_walk(a, names)[0] for a in expr.args)
        return f"{yes} if {test} else {no}", _SUM
    short = _SHORT.get(name, name)
    return f"{short}({', '.join(_walk(a, names)[0] for a in expr.args)})", _ATOM


# -- Einsum ---------------------------------------------------------------------------------------
def einsum_form(node: Einsum) -> str:
    """The einsum in letters: a dim lends its own (`b` for B), other labels are i, j, k, ..

    For x[B,64] @ W[64,32] it is `bi,ij→bj`.
    """
    letters = _letters(node.extents)
    left = ",".join("".join(letters[k] for k in group) for group in node.labels)
    return f"{left}→{''.join(letters[k] for k in node.out)}"


def _letters(extents: Sequence[Extent]) -> list[str]:
    taken: set[str] = set()
    found: list[str] = []
    for extent in extents:
        own = str(extent).lower() if isinstance(extent, Dim) else ""
        letter = own if len(own) == 1 and "a" <= own <= "h" and own not in taken else ""
        if not letter:
            letter = next(c for c in (*_AXES, *"xyzabcdefgh", "?") if c not in taken or c == "?")
        taken.add(letter)
        found.append(letter)
    return found


def _einsum(node: Einsum) -> Formula:
    form = einsum_form(node)
    literal = [k for k, arg in enumerate(node.args) if is_literal(arg)]
    rest = [k for k in range(len(node.args)) if k not in literal]
    factor = "".join(f"{formula_of(node.args[k]).label} " for k in literal)
    if not rest:
        return Formula(f"{factor.strip()} everywhere", shape_text(node.shape))
    none = ("",) * len(node.args)
    if len(rest) == 1:
        return Formula(factor + _single(node, rest[0]), form, none)
    names, letters = _factors(node, rest)
    if len(rest) == 2 and (product := _matrix_product(node, rest, names)) is not None:
        return Formula(factor + product, form, letters)
    sign = "·" if node.summed else "×"
    return Formula(factor + sign.join(names[k] for k in rest), form, letters)


def _single(node: Einsum, k: int) -> str:
    labels = node.labels[k]
    name = f" {node.args[k].name}" if is_named(node.args[k]) else ""
    if any(label not in node.out for label in labels):
        return f"sum{name}"
    if len(node.out) > len(labels):
        return f"broadcast{name}"
    return f"transpose{name}" if labels != node.out else f"copy{name}"


def _factors(node: Einsum, rest: Sequence[int]) -> tuple[dict[int, str], tuple[str, ...]]:
    names: dict[int, str] = {}
    letters = [""] * len(node.args)
    for k in rest:
        arg = node.args[k]
        if is_named(arg):
            names[k] = arg.name
        else:
            used = sum(1 for letter in letters if letter)
            names[k] = letters[k] = _OPERANDS[used % 8]
    if sum(1 for letter in letters if letter) < 2:
        letters = [""] * len(node.args)
    return names, tuple(letters)


def _matrix_product(node: Einsum, rest: Sequence[int], names: dict[int, str]) -> str | None:
    """`a·W2ᵀ` when two matrices are contracted over one label into a matrix."""
    first, second = rest
    sides = (node.labels[first], node.labels[second])
    if any(len(side) != 2 for side in sides) or len(node.out) != 2 or len(node.summed) != 1:
        return None
    row, column = node.out
    (inner,) = node.summed
    if row not in sides[0]:
        (first, second), sides = (second, first), (sides[1], sides[0])
    if row not in sides[0] or column not in sides[1] or inner not in sides[0]:
        return None
    left = names[first] + ("" if sides[0] == (row, inner) else "ᵀ")
    right = names[second] + ("" if sides[1] == (inner, column) else "ᵀ")
    return f"{left}·{right}"


# -- moves ----------------------------------------------------------------------------------------
def _reindex(node: Reindex) -> Formula:
    source = shape_text(node.args[0].shape)
    if is_reshape(node):
        return Formula("reshape", f"{source} → {shape_text(node.shape)}")
    if len(node.pieces) > 1:
        return Formula("join", f"{len(node.pieces)} pieces → {shape_text(node.shape)}")
    (piece,) = node.pieces
    placed = any(o != 0 for o in piece.offset) or any(s != 1 for s in piece.stride)
    smaller = piece.count != node.shape
    if placed or smaller:
        return Formula("pad", f"{source} → {shape_text(node.shape)}")
    if any(s < 0 for s in piece.step):
        return Formula("flip", source)
    return Formula("slice", f"{source} → {shape_text(node.shape)}")


def _gather_form(
    axes: Sequence[int], index_labels: Sequence[Sequence[int]], out: Sequence[int]
) -> str:
    count = max((*axes, *out, *(k for group in index_labels for k in group)), default=-1) + 1
    letters = [_AXES[k % len(_AXES)] for k in range(count)]
    indexed = []
    for axis in axes:
        if axis >= 0:
            indexed.append(letters[axis])
        else:
            indexed.append("n[" + "".join(letters[k] for k in index_labels[~axis]) + "]")
    return f"a[{', '.join(indexed)}]"
