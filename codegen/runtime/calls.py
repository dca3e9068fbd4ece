"""Calling a compiled program by address, and moving bytes: what a loop around a program needs."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I8 = ir.IntType(8)
I64 = ir.IntType(64)


@intrinsic
def call_program(typing_context, program, table, dims):
    """`program(table, dims)`, a C function int64(int64, int64) known by its address."""

    def emit(context, builder, signature, arguments):
        program, table, dims = arguments
        kind = ir.FunctionType(I64, [I64, I64])
        return builder.call(builder.inttoptr(program, kind.as_pointer()), [table, dims])

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def copy_bytes(typing_context, target, source, count):
    """Copy `count` bytes from address `source` to address `target`; they do not overlap."""

    def emit(context, builder, signature, arguments):
        target, source, count = arguments
        pointer = I8.as_pointer()
        cgutils.raw_memcpy(
            builder, builder.inttoptr(target, pointer), builder.inttoptr(source, pointer), count, 1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit
