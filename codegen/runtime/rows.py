"""Whole short rows in registers: loads, stores, and what is summed across a row.

    ld_row(p, i, w, s)    p[i], .., p[i + w - 1] side by side       st_row(p, i, v, w, s)
    places(w)             0, .., w - 1
    row_sum(v, w)         v[0] + .. + v[w - 1], of truth values their `or`; and likewise
                          row_product, row_max, row_min
    running_sum(v, w)     v[0], v[0] + v[1], .., v[0] + .. + v[w - 1]; likewise running_product
    row_last(v, w)        v[w - 1]

LLVM unrolls a loop over a short row before it vectorises, and what remains is scalar code. As one
vector a row needs no loop: softmax over ten classes is a load, a few instructions and a store. The
arithmetic between is that of `kernels`, the functions are those of `vector_math`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from codegen.runtime.lanes import Row, element_of, suffix
from codegen.runtime.memory import I8, pointer_type, promise, scope_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]


def row_width(kind: types.Type) -> int:
    """The value of a width, which must be a literal."""
    if not isinstance(kind, types.IntegerLiteral) or kind.literal_value < 1:
        raise TypingError(f"a row's width must be a positive integer literal, got {kind}")
    return int(kind.literal_value)


def row_resized(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """A vector of the first `count` elements, and zeros where it had fewer."""
    have = value.type.count
    if have == count:
        return value
    zeros = ir.Constant(value.type, 0 if isinstance(value.type.element, ir.IntType) else 0.0)
    taken = [k if k < have else have for k in range(count)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), count), taken)
    return builder.shuffle_vector(value, zeros, mask)


@intrinsic(prefer_literal=True)
def ld_row(
    typing_context: Context,
    pointer: types.Type,
    index: types.Type,
    width: types.Type,
    scope: types.Type,
) -> Typed:
    """The row of `width` elements from `pointer[index]` on, read in alias scope `scope`."""
    row = Row(pointer_type(pointer, "ld_row").dtype, row_width(width))
    number = scope_number(scope, "ld_row")

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        place = builder.gep(arguments[0], [arguments[1]])
        element = place.type.pointee
        place = builder.bitcast(place, ir.VectorType(element, row.width).as_pointer())
        value = builder.load(place, align=context.get_abi_sizeof(element))
        promise(builder, value, number)
        value = row_resized(builder, value, row.lanes)
        if row.element == types.boolean:
            return builder.icmp_unsigned("!=", value, ir.Constant(value.type, 0))
        return value

    return row(pointer, types.int64, width, scope), emit


@intrinsic(prefer_literal=True)
def st_row(
    typing_context: Context,
    pointer: types.Type,
    index: types.Type,
    value: types.Type,
    width: types.Type,
    scope: types.Type,
) -> Typed:
    """Write the row `value`, or one number everywhere, from `pointer[index]` on."""
    row = Row(pointer_type(pointer, "st_row").dtype, row_width(width))
    number = scope_number(scope, "st_row")
    given = element_of(types.unliteral(value))
    if given != row.element:
        raise TypingError(f"st_row: {given} values into {row.element} memory; convert them first")

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        place, index, value, _, _ = arguments
        if row.element == types.boolean:
            value = builder.zext(value, ir.VectorType(I8, row.lanes))
        value = row_resized(builder, value, row.width)
        place = builder.gep(place, [index])
        size = context.get_abi_sizeof(place.type.pointee)
        place = builder.bitcast(place, value.type.as_pointer())
        promise(builder, builder.store(value, place, align=size), number)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, row, width, scope), emit


@intrinsic(prefer_literal=True)
def places(typing_context: Context, width: types.Type) -> Typed:
    """The row 0, 1, .., width - 1."""
    row = Row(types.int64, row_width(width))

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return ir.Constant(ir.VectorType(ir.IntType(64), row.lanes), [*range(row.lanes)])

    return row(width), emit


def merged_across(
    name: str,
    floats: tuple[str, float],
    integers: tuple[str, Callable[[int], int]],
    truths: tuple[str, int],
) -> Callable[..., object]:
    """The intrinsic `name(v, width)` that merges a row's elements into one, in any order.

    Args:
        name: for messages.
        floats, integers, truths: what LLVM calls the operation on each, and what elements beyond
            the width count as; for integers that is a function of their bits.
    """

    def typer(typing_context: Context, value: types.Type, width: types.Type) -> Typed:
        count = row_width(width)
        element = element_of(types.unliteral(value))
        row = Row(element, count)
        is_float = isinstance(element, types.Float)
        operation = (floats if is_float else truths if element == types.boolean else integers)[0]

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            vector = arguments[0]
            kind, one = vector.type, vector.type.element
            if is_float:
                number = one(floats[1])
            else:
                number = one(truths[1] if element == types.boolean else integers[1](one.width))
            if count < kind.count:
                inside = [ir.IntType(1)(k < count) for k in range(kind.count)]
                mask = ir.Constant(ir.VectorType(ir.IntType(1), kind.count), inside)
                vector = builder.select(mask, vector, ir.Constant(kind, number))
            start = [number] if operation in ("fadd", "fmul") else []
            symbol = f"llvm.vector.reduce.{operation}.{suffix(kind)}"
            function = builder.module.globals.get(symbol)
            if function is None:
                given = [*(n.type for n in start), kind]
                function = ir.Function(builder.module, ir.FunctionType(one, given), symbol)
            if start or not is_float:
                flags = ("reassoc", "contract") if start else ()
                return builder.call(function, [*start, vector], fastmath=flags)
            # NaN is looked for apart from the extreme, which is one instruction a step without it
            strange = builder.fcmp_unordered("uno", vector, vector)
            strange = builder.bitcast(strange, ir.IntType(kind.count))
            found = builder.icmp_unsigned("!=", strange, strange.type(0))
            best = builder.call(function, [vector], fastmath=("nnan", "nsz"))
            return builder.select(found, one(math.nan), best)

        return element(row, width), emit

    typer.__name__ = name
    return intrinsic(prefer_literal=True)(typer)


row_sum = merged_across("row_sum", ("fadd", -0.0), ("add", lambda bits: 0), ("or", 0))
row_product = merged_across("row_product", ("fmul", 1.0), ("mul", lambda bits: 1), ("and", 1))
row_max = merged_across(
    "row_max", ("fmax", -math.inf), ("smax", lambda bits: -(2 ** (bits - 1))), ("or", 0)
)
row_min = merged_across(
    "row_min", ("fmin", math.inf), ("smin", lambda bits: 2 ** (bits - 1) - 1), ("and", 1)
)


def running_along(name: str, floats: tuple[str, float], integers: str) -> Callable[..., object]:
    """The intrinsic `name(v, width)` that merges each element with all before it.

    Each step merges with what lies 1, 2, 4, .. places before (Hillis and Steele 1986).

    Args:
        name: for messages.
        floats, integers: the operation on each; its neutral element, which integers have too.
    """

    def typer(typing_context: Context, value: types.Type, width: types.Type) -> Typed:
        count = row_width(width)
        row = types.unliteral(value)
        element = element_of(row)
        if row != Row(element, count) or element == types.boolean:
            raise TypingError(f"{name}: a row of {count} numbers is needed, got {row}")
        operation, neutral = floats

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            vector = arguments[0]
            kind = vector.type
            is_float = isinstance(element, types.Float)
            nothing = ir.Constant(kind, neutral if is_float else int(neutral))
            merge = getattr(builder, operation if is_float else integers)
            step = 1
            while step < count:
                taken = [k - step if k >= step else kind.count for k in range(kind.count)]
                mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), taken)
                vector = merge(builder.shuffle_vector(vector, nothing, mask), vector)
                step *= 2
            return vector

        return row(row, width), emit

    typer.__name__ = name
    return intrinsic(prefer_literal=True)(typer)


running_sum = running_along("running_sum", ("fadd", -0.0), "add")
running_product = running_along("running_product", ("fmul", 1.0), "mul")


@intrinsic(prefer_literal=True)
def row_last(typing_context: Context, value: types.Type, width: types.Type) -> Typed:
    """The last element of a row of `width`."""
    count, row = row_width(width), types.unliteral(value)

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return builder.extract_element(arguments[0], ir.IntType(32)(count - 1))

    return element_of(row)(row, width), emit
