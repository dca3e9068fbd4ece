"""Mathematics that writes LLVM: a value with the operators of arithmetic and of bits.

`Lane` wraps one LLVM value. Formulas over lanes read as formulas and emit straight-line code with
no branch and no call, which LLVM's loop vectoriser turns into code for whole vectors.

Numba adds a caller's fast-math flags only to operations without flags. Every operation here has the
flag `arcp`, which says nothing about sums and products, so that a formula whose correctness rests
on its operations as they stand, such as (x + 1.5 * 2^23) - 1.5 * 2^23 or the error of a product, is
neither reassociated nor contracted, whatever its caller permits. `muladd` and `fused` say where to
fuse; calls keep no flags at all, since a contractible `llvm.fma` is no longer fused on processors
without that instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir.instructions import FastMathFlags
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]

_KEEP_ORDER = ("arcp",)
_KEEP_QUOTIENT = ("contract",)
_FLOATS = {"float": ("f32", 32), "double": ("f64", 64)}


class _FixedFlags(FastMathFlags):  # type: ignore[misc]  # llvmlite ships no types
    """The flags of a call to which Numba adds none."""

    def __init__(self, names: Sequence[str]) -> None:
        set.__init__(self, names)

    def add(self, name: str) -> None:
        """Leave the call as it is."""


class Format(NamedTuple):
    """A float format.

    Fields:
        mantissa: stored bits of the significand.
        bias:     of the exponent.
        tiny:     the smallest normal number.
        magic:    1.5 * 2^mantissa: adding it leaves round(x) in the low bits of the sum.
    """

    mantissa: int
    bias: int
    tiny: float
    magic: float


FORMATS = {
    32: Format(23, 127, 2.0**-126, 1.5 * 2.0**23),
    64: Format(52, 1023, 2.0**-1022, 1.5 * 2.0**52),
}


class Row(types.Type):  # type: ignore[misc, unused-ignore]  # Numba ships no types
    """Several values side by side: a whole short row of an array, in one vector of LLVM's.

    The vector has `lanes` elements, a number that suits processors; those beyond `width` hold
    anything.
    """

    def __init__(self, element: types.Type, width: int) -> None:
        self.element = element
        self.width = width
        super().__init__(name=f"row({element}, {width})")

    @property
    def lanes(self) -> int:
        """How many elements the vector has."""
        if self.width > 16:
            return -(-self.width // 16) * 16
        return 1 << max(self.width - 1, 1).bit_length()

    def of(self, element: types.Type) -> Row:
        """As many values of another type."""
        return Row(element, self.width)


def element_of(kind: types.Type) -> types.Type:
    """What a row is a row of; a scalar type itself."""
    return kind.element if isinstance(kind, Row) else kind


def each(like: types.Type, element: types.Type) -> types.Type:
    """A row of `element` where `like` is a row, else `element`."""
    return like.of(element) if isinstance(like, Row) else element


def part_of(kind: ir.Type) -> ir.Type:
    """The type of a vector's elements; a scalar type itself."""
    return kind.element if isinstance(kind, ir.VectorType) else kind


def _shaped(like: ir.Type, element: ir.Type) -> ir.Type:
    """A vector of `element` with as many as `like` has, or `element` itself."""
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def suffix(kind: ir.Type) -> str:
    """A type as it ends the names of LLVM's intrinsics: f32, i64, v16f32."""
    element = part_of(kind)
    text = _FLOATS[str(element)][0] if str(element) in _FLOATS else str(element)
    return f"v{kind.count}{text}" if isinstance(kind, ir.VectorType) else text


class Lane:
    """One element of a vector loop: a float, an integer or a truth value under construction.

    Or a whole vector of them: the operators are those of its elements.
    """

    __slots__ = ("builder", "value")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    @property
    def is_float(self) -> bool:
        """Whether this is a float; else it is an integer or a truth value."""
        return str(part_of(self.value.type)) in _FLOATS

    @property
    def format(self) -> Format:
        """What the bits of a float mean."""
        return FORMATS[self.width]

    @property
    def width(self) -> int:
        """Bits of a float: 32 or 64."""
        return _FLOATS[str(part_of(self.value.type))][1]

    def of(self, number: Lane | float) -> Lane:
        """`number` as a constant of this lane's type."""
        if isinstance(number, Lane):
            return number
        return Lane(self.builder, ir.Constant(self.value.type, number))

    def _pair(self, floats: str, integers: str, left: Lane, right: Lane) -> Lane:
        build = self.builder
        if self.is_float:
            flags = _KEEP_QUOTIENT if floats in ("fdiv", "frem") else _KEEP_ORDER
            value = getattr(build, floats)(left.value, right.value, flags=flags)
        else:
            value = getattr(build, integers)(left.value, right.value)
        return Lane(build, value)

    def __add__(self, other: Lane | float) -> Lane:
        return self._pair("fadd", "add", self, self.of(other))

    def __radd__(self, other: float) -> Lane:
        return self._pair("fadd", "add", self.of(other), self)

    def __sub__(self, other: Lane | float) -> Lane:
        return self._pair("fsub", "sub", self, self.of(other))

    def __rsub__(self, other: float) -> Lane:
        return self._pair("fsub", "sub", self.of(other), self)

    def __mul__(self, other: Lane | float) -> Lane:
        return self._pair("fmul", "mul", self, self.of(other))

    def __rmul__(self, other: float) -> Lane:
        return self._pair("fmul", "mul", self.of(other), self)

    def __truediv__(self, other: Lane | float) -> Lane:
        return self._pair("fdiv", "sdiv", self, self.of(other))

    def __rtruediv__(self, other: float) -> Lane:
        return self._pair("fdiv", "sdiv", self.of(other), self)

    def __mod__(self, other: Lane | float) -> Lane:
        """The remainder with the sign of the dividend, as in C."""
        return self._pair("frem", "srem", self, self.of(other))

    def __neg__(self) -> Lane:
        build = self.builder
        return Lane(build, build.fneg(self.value) if self.is_float else build.neg(self.value))

    def __and__(self, other: Lane | float) -> Lane:
        return Lane(self.builder, self.builder.and_(self.value, self.of(other).value))

    def __or__(self, other: Lane | float) -> Lane:
        return Lane(self.builder, self.builder.or_(self.value, self.of(other).value))

    def __xor__(self, other: Lane | float) -> Lane:
        return Lane(self.builder, self.builder.xor(self.value, self.of(other).value))

    def __lshift__(self, count: Lane | int) -> Lane:
        return Lane(self.builder, self.builder.shl(self.value, self.of(count).value))

    def __rshift__(self, count: int) -> Lane:
        """Shift right, filling with zeros."""
        return Lane(self.builder, self.builder.lshr(self.value, self.of(count).value))

    def compare(self, relation: str, other: Lane | float) -> Lane:
        """The truth of `self relation other`; false where either is NaN, except for '!='."""
        left, right, build = self.value, self.of(other).value, self.builder
        if not self.is_float:
            truth = part_of(left.type) == ir.IntType(1)  # as a signed number, true is -1
            ask = build.icmp_unsigned if truth else build.icmp_signed
            return Lane(build, ask(relation, left, right))
        ask = build.fcmp_unordered if relation == "!=" else build.fcmp_ordered
        return Lane(build, ask(relation, left, right))

    def __lt__(self, other: Lane | float) -> Lane:
        return self.compare("<", other)

    def __le__(self, other: Lane | float) -> Lane:
        return self.compare("<=", other)

    def __gt__(self, other: Lane | float) -> Lane:
        return self.compare(">", other)

    def __ge__(self, other: Lane | float) -> Lane:
        return self.compare(">=", other)

    def where(self, yes: Lane | float, no: Lane | float) -> Lane:
        """`yes` where this truth value holds, else `no`; at least one of them is a lane."""
        like = yes if isinstance(yes, Lane) else no
        assert isinstance(like, Lane)
        chosen = (like.of(yes).value, like.of(no).value)
        return Lane(self.builder, self.builder.select(self.value, *chosen))

    def bits(self) -> Lane:
        """The bit pattern of a float as an integer of its width."""
        kind = _shaped(self.value.type, ir.IntType(self.width))
        return Lane(self.builder, self.builder.bitcast(self.value, kind))

    def as_float(self, like: Lane) -> Lane:
        """The float of `like`'s type with this bit pattern."""
        return Lane(self.builder, self.builder.bitcast(self.value, like.value.type))

    def as_double(self) -> Lane:
        """A float32 as a float64; a float64 itself."""
        if self.width == 64:
            return self
        kind = _shaped(self.value.type, ir.DoubleType())
        return Lane(self.builder, self.builder.fpext(self.value, kind))

    def rounded_to(self, like: Lane) -> Lane:
        """A float64 as the nearest float of `like`'s type."""
        if like.width == 64:
            return self
        return Lane(self.builder, self.builder.fptrunc(self.value, like.value.type))

    def resized(self, bits: int) -> Lane:
        """A nonnegative integer in so many bits; higher ones are cut."""
        kind, build = _shaped(self.value.type, ir.IntType(bits)), self.builder
        wider = bits > part_of(self.value.type).width
        return Lane(build, (build.zext if wider else build.trunc)(self.value, kind))

    def as_number(self, like: Lane) -> Lane:
        """A nonnegative integer as the nearest float of `like`'s type."""
        return Lane(self.builder, self.builder.uitofp(self.value, like.value.type))

    def leading_zeros(self) -> Lane:
        """How many zeros stand before the first one of an integer's bits."""
        return Lane(self.builder, self.builder.ctlz(self.value, ir.IntType(1)(0)))

    def call(self, name: str, *others: Lane | float, flags: Sequence[str] = ()) -> Lane:
        """LLVM's intrinsic `name` of this lane's type, such as `llvm.sqrt`."""
        lanes = [self, *(self.of(other) for other in others)]
        kind = self.value.type
        symbol = f"{name}.{suffix(kind)}"
        module = self.builder.module
        function = module.globals.get(symbol)
        if function is None:
            function = ir.Function(module, ir.FunctionType(kind, [kind] * len(lanes)), symbol)
        result = self.builder.call(function, [lane.value for lane in lanes])
        result.fastmath = _FixedFlags(flags)
        return Lane(self.builder, result)


def wide_vectors(x: Lane) -> None:
    """Let the function in which x stands use vectors of 512 bits where the processor has them.

    LLVM's choice for most such processors is 256 bits. Long formulas are worth more: their chains
    of operations that wait for one another, not the arithmetic units, set the pace.
    """
    set.add(x.builder.function.attributes, '"prefer-vector-width"="512"')


def muladd(a: Lane, b: Lane | float, c: Lane | float) -> Lane:
    """The value a * b + c, rounded once where the processor can."""
    return a.call("llvm.fmuladd", b, c)


def fused(a: Lane, b: Lane | float, c: Lane | float) -> Lane:
    """The value a * b + c, rounded once on every processor."""
    return a.call("llvm.fma", b, c)


@cache
def fuses() -> bool:
    """Whether this processor has an instruction for `fused`; without it that is a slow call."""
    if not llvm.get_process_triple().startswith(("x86", "i386", "i686")):
        return True
    return bool(llvm.get_host_cpu_features().get("fma"))


def polynomial(x: Lane, coefficients: Sequence[float]) -> Lane:
    """The polynomial in x with `coefficients` from the highest power down.

    Horner's rule in x^2 over pairs, p(x) = (c0 + c1 x) + x^2 ((c2 + c3 x) + x^2 (..)): no operation
    more than in x, and half as many that wait for one another.
    """
    low_first = coefficients[::-1]
    pairs = [
        muladd(x, pair[1], x.of(pair[0])) if len(pair) == 2 else x.of(pair[0])
        for pair in (low_first[k : k + 2] for k in range(0, len(low_first), 2))
    ]
    square = x * x
    result = pairs.pop()
    while pairs:
        result = muladd(result, square, pairs.pop())
    return result


def common_type(name: str, kinds: Sequence[types.Type]) -> types.Type:
    """The type in which `name` computes: one float type, or the widest integer type.

    Floats of two precisions, or a float and an integer, are an error: a generated program says
    each conversion.
    """
    if rows := [kind for kind in kinds if isinstance(kind, Row)]:
        return rows[0].of(common_type(name, [element_of(kind) for kind in kinds]))
    plain = [types.unliteral(kind) for kind in kinds]
    if all(isinstance(kind, types.Integer) for kind in plain):
        widest: types.Type = max(plain, key=lambda kind: kind.bitwidth)
        return widest
    first: types.Type = plain[0]
    if all(kind == first for kind in plain) and isinstance(first, types.Float | types.Boolean):
        return first
    raise TypingError(f"{name}: arguments of one type are needed, got {', '.join(map(str, plain))}")


Formula = Callable[..., Lane]


def elementwise(
    name: str, formula: Formula, arity: int = 1, *, truth: bool = False
) -> Callable[..., object]:
    """The intrinsic `name` of `arity` scalars that emits `formula` of as many lanes.

    Args:
        name:    for messages.
        formula: lanes -> lane, of one type; for float32, float64 and, if it can, integers.
        arity:   1, 2 or 3.
        truth:   whether the result is a truth value rather than of the arguments' type.
    """

    def signature_and_code(*kinds: types.Type) -> Typed:
        kind = common_type(name, kinds)

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            return formula(*(Lane(builder, argument) for argument in arguments)).value

        result = each(kind, types.boolean) if truth else kind
        return result(*[kind] * arity), emit

    def one(typing_context: Context, x: types.Type) -> Typed:
        return signature_and_code(x)

    def two(typing_context: Context, x: types.Type, y: types.Type) -> Typed:
        return signature_and_code(x, y)

    def three(typing_context: Context, x: types.Type, y: types.Type, z: types.Type) -> Typed:
        return signature_and_code(x, y, z)

    typer = (one, two, three)[arity - 1]
    typer.__name__ = name
    return intrinsic(typer)


def selection(name: str) -> Callable[..., object]:
    """The intrinsic `name(condition, yes, no)`: both values are computed, one is taken."""

    def typer(
        typing_context: Context, condition: types.Type, yes: types.Type, no: types.Type
    ) -> Typed:
        kind = common_type(name, (yes, no))
        if isinstance(condition, Row):
            kind = condition.of(element_of(kind))

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            return builder.select(*arguments)

        return kind(each(kind, types.boolean), kind, kind), emit

    typer.__name__ = name
    return intrinsic(typer)


def conversion(name: str, target: types.Type) -> Callable[..., object]:
    """The intrinsic `name(x)`: x as a number of type `target`.

    A float becomes the nearest integer towards zero, or the nearest that there is; NaN becomes 0.
    Anything but zero becomes True.
    """

    def typer(typing_context: Context, x: types.Type) -> Typed:
        whole = types.unliteral(x)
        given = element_of(whole)
        if not isinstance(given, types.Integer | types.Float | types.Boolean):
            raise TypingError(f"{name}: a number or truth value is needed, got {given}")

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            return converted(builder, arguments[0], given, target, context.get_value_type(target))

        return each(whole, target)(whole), emit

    typer.__name__ = name
    return intrinsic(typer)


def converted(
    builder: ir.IRBuilder, x: ir.Value, given: types.Type, target: types.Type, kind: ir.Type
) -> ir.Value:
    """The LLVM value x of type `given` as one of type `target`, which LLVM calls `kind`.

    A vector of such values becomes one of the others.
    """
    if given == target:
        return x
    element, kind = kind, _shaped(x.type, kind)
    if target == types.boolean:
        return Lane(builder, x).compare("!=", 0).value
    if given == types.boolean:
        is_float = isinstance(target, types.Float)
        return builder.uitofp(x, kind) if is_float else builder.zext(x, kind)
    if isinstance(given, types.Float) and isinstance(target, types.Float):
        return (builder.fpext if target == types.float64 else builder.fptrunc)(x, kind)
    if isinstance(given, types.Integer) and isinstance(target, types.Integer):
        wider = element.width > part_of(x.type).width
        return (builder.sext if wider else builder.trunc)(x, kind)
    if isinstance(given, types.Integer):
        return builder.sitofp(x, kind)
    symbol = f"llvm.fptosi.sat.{suffix(kind)}.{suffix(x.type)}"
    function = builder.module.globals.get(symbol)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(kind, [x.type]), symbol)
    return builder.call(function, [x])
