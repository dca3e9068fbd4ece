"""Raw typed memory for generated kernels: pointers, loads and stores without index arithmetic.

A generated program is one C function of two addresses: `table`, an int64 array of data addresses
(workspace, leaves, outputs), and `dims`, an int64 array of extents. The intrinsics here turn
entries of these arrays into typed pointers and numbers, and read and write through the pointers:

    ld(p, i, s) = p[i]          st(p, i, v, s):  p[i] = v

Nothing wraps negative indices and nothing checks bounds: the memory plan proves them. Plain Numba
indexing `w[offset + i]` selects between `i` and `i + n` on every access, which keeps LLVM from
vectorising the loop (0.75 against 0.11 ns per element, Zen 4).

The last argument of `ld` and `st` is an alias scope. The plan gives every physical block of one
kernel a number in 0..31, blocks with different numbers do not overlap, and LLVM then vectorises
without run-time overlap tests. -1 makes no promise. The promise is about *one call* of a kernel:
two calls may bind the same numbers to other blocks, so a function whose accesses carry scopes must
never be inlined; those that `kernels.kernel` makes are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from codegen.runtime.names import SCOPES

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]

# Fast-math flags of all arithmetic: a product and the sum that takes it in may be rounded once.
# Others change results without bound: `reassoc` and `arcp` make a / (b c) of (a / b) / c, whose
# product may overflow, and `nsz`, `nnan`, `ninf` lose signs of zero, NaN and infinities. The order
# of sums is free where `vector_math.plus` says so.
FAST = {"contract"}

I8 = ir.IntType(8)
I64 = ir.IntType(64)


@intrinsic
def address(typing_context: Context, table: types.Type, k: types.Type) -> Typed:
    """The k-th entry of the address table, as an int64 address."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        entries = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.load(builder.gep(entries, [arguments[1]]))

    return types.int64(types.int64, types.int64), emit


@intrinsic
def extent(typing_context: Context, dims: types.Type, k: types.Type) -> Typed:
    """The k-th entry of the extents, an int64."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        entries = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.load(builder.gep(entries, [arguments[1]]))

    return types.int64(types.int64, types.int64), emit


def _typed_address(name: str, element: types.Type) -> Callable[..., object]:
    """The intrinsic `name(address, byte_offset)` that makes a pointer to `element`."""

    def typer(typing_context: Context, address: types.Type, byte_offset: types.Type) -> Typed:
        pointer = types.CPointer(element)

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            return builder.inttoptr(builder.add(*arguments), context.get_value_type(pointer))

        return pointer(types.int64, types.int64), emit

    typer.__name__ = name
    return intrinsic(typer)


at_f32 = _typed_address("at_f32", types.float32)
at_f64 = _typed_address("at_f64", types.float64)
at_i32 = _typed_address("at_i32", types.int32)
at_i64 = _typed_address("at_i64", types.int64)
at_b1 = _typed_address("at_b1", types.boolean)


def _typed_entry(name: str, element: types.Type) -> Callable[..., object]:
    """The intrinsic `name(table, k)`: the k-th address of the table as a pointer to `element`."""

    def typer(typing_context: Context, table: types.Type, k: types.Type) -> Typed:
        pointer = types.CPointer(element)

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            kind = context.get_value_type(pointer)
            entries = builder.inttoptr(arguments[0], I64.as_pointer())
            return builder.inttoptr(builder.load(builder.gep(entries, [arguments[1]])), kind)

        return pointer(types.int64, types.int64), emit

    typer.__name__ = name
    return intrinsic(typer)


pointer_f32 = _typed_entry("pointer_f32", types.float32)
pointer_f64 = _typed_entry("pointer_f64", types.float64)
pointer_i32 = _typed_entry("pointer_i32", types.int32)
pointer_i64 = _typed_entry("pointer_i64", types.int64)
pointer_b1 = _typed_entry("pointer_b1", types.boolean)


@intrinsic
def shift(typing_context: Context, pointer: types.Type, count: types.Type) -> Typed:
    """`pointer` moved by `count` elements."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer_type(pointer, "shift")(pointer, types.int64), emit


@intrinsic
def copy_block(
    typing_context: Context, source: types.Type, target: types.Type, count: types.Type
) -> Typed:
    """`target[:count] = source[:count]`, which do not overlap or are one."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        source, target, count = arguments
        size = context.get_abi_sizeof(target.type.pointee)
        with builder.if_then(builder.icmp_unsigned("!=", source, target)):
            cgutils.raw_memcpy(builder, target, source, count, size)
        return context.get_dummy_value()

    pointers = (pointer_type(source, "copy_block"), pointer_type(target, "copy_block"))
    return types.void(*pointers, types.int64), emit


# Bytes of a line of memory.
LINE = 64


@intrinsic
def ranges_of(typing_context: Context, *kinds: types.Type) -> Typed:
    """The address of a list of ranges of memory: `pointer, count of elements, pointer, ..`.

    Each becomes two numbers, its address and how many lines of memory it has.
    """
    for kind in kinds[::2]:
        pointer_type(kind, "ranges_of")

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        room = cgutils.alloca_once(builder, I64, size=I64(len(arguments)))
        for k, (pointer, count) in enumerate(zip(arguments[::2], arguments[1::2], strict=True)):
            size = context.get_abi_sizeof(pointer.type.pointee)
            lines = builder.udiv(
                builder.add(builder.mul(count, I64(size)), I64(LINE - 1)), I64(LINE)
            )
            for place, value in ((2 * k, builder.ptrtoint(pointer, I64)), (2 * k + 1, lines)):
                builder.store(value, builder.gep(room, [I64(place)]))
        return builder.ptrtoint(room, I64)

    return types.int64(*kinds), emit


@intrinsic(prefer_literal=True)
def ld(typing_context: Context, pointer: types.Type, index: types.Type, scope: types.Type) -> Typed:
    """The element `pointer[index]`, read in alias scope `scope`. A bool is stored as one byte."""
    element = pointer_type(pointer, "ld").dtype
    number = scope_number(scope, "ld")

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        value = builder.load(builder.gep(arguments[0], [arguments[1]]))
        promise(builder, value, number)
        return builder.icmp_unsigned("!=", value, I8(0)) if element == types.boolean else value

    return element(pointer, types.int64, scope), emit


@intrinsic(prefer_literal=True)
def st(
    typing_context: Context,
    pointer: types.Type,
    index: types.Type,
    value: types.Type,
    scope: types.Type,
) -> Typed:
    """Write `value` to `pointer[index]` in alias scope `scope`.

    Floats must have the pointer's own precision, so that a float32 program cannot hold float64
    arithmetic unnoticed; integers of any width are cut or extended to the pointer's.
    """
    element = pointer_type(pointer, "st").dtype
    number = scope_number(scope, "st")
    given = types.unliteral(value)
    both_integers = isinstance(element, types.Integer) and isinstance(given, types.Integer)
    if given != element and not both_integers:
        raise TypingError(f"st: a {given} value into {element} memory; convert it first")

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        place, index, value, _ = arguments
        if element == types.boolean:
            value = builder.zext(value, I8)
        promise(builder, builder.store(value, builder.gep(place, [index])), number)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, element, scope), emit


def pointer_type(kind: types.Type, asker: str) -> types.CPointer:
    """`kind` itself, which must be a pointer."""
    if not isinstance(kind, types.CPointer):
        raise TypingError(f"{asker}: a typed pointer is needed, got {kind}")
    return kind


def scope_number(kind: types.Type, asker: str) -> int:
    """The value of a scope argument, which must be an integer literal in -1..31."""
    if not isinstance(kind, types.IntegerLiteral):
        raise TypingError(f"{asker}: the alias scope must be an integer literal, got {kind}")
    if not -1 <= kind.literal_value < SCOPES:
        raise TypingError(f"{asker}: alias scope {kind.literal_value} is not in -1..{SCOPES - 1}")
    return kind.literal_value


def promise(builder: ir.IRBuilder, access: ir.Instruction, scope: int) -> None:
    """Attach to a load or store: it lies in `scope` and overlaps no other scope.

    llvmlite keeps one copy of equal metadata per module, so all accesses share domain and scopes.
    """
    if scope < 0:
        return
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, "symgrad slots")])
    scopes = [
        module.add_metadata([ir.MetaDataString(module, f"symgrad slot {k}"), domain])
        for k in range(SCOPES)
    ]
    access.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    others = scopes[:scope] + scopes[scope + 1 :]
    access.set_metadata("noalias", module.add_metadata(others))
