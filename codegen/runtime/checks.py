"""Indices that come from data: wrapped as in NumPy, proven in range, reported when they are not."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _checked(wrap):
    """Code for an index that is checked, and wrapped before where that is asked for."""

    def emit(context, builder, signature, arguments):
        index, extent, status, node, position = arguments
        zero = index.type(0)
        wrapped = index
        if wrap:
            negative = builder.icmp_signed("<", index, zero)
            wrapped = builder.select(negative, builder.add(index, extent), index)
        inside = builder.icmp_unsigned("<", wrapped, extent)
        with builder.if_then(builder.not_(inside), likely=False):
            report = builder.inttoptr(status, ir.IntType(64).as_pointer())
            first = builder.icmp_signed("==", builder.load(report), zero)
            with builder.if_then(first):
                builder.store(builder.add(node, zero.type(1)), report)
                for place, value in ((1, index), (2, extent), (3, position)):
                    builder.store(value, builder.gep(report, [ir.IntType(64)(place)]))
        return builder.select(inside, wrapped, zero)

    return types.int64(*[types.int64] * 5), emit


@intrinsic
def checked_index(typing_context, index, extent, status, node, position):
    """`index`, or `index + extent` where it is negative.

    Out of range, the place 0 is returned and the report at `status` (the address of four int64) is
    filled, unless it holds an earlier one: node + 1, the index, the extent, the position of the
    index in its own array.
    """
    return _checked(wrap=True)


@intrinsic
def checked_label(typing_context, index, extent, status, node, position):
    """`index`, as `checked_index` but never wrapped: a negative one is out of range."""
    return _checked(wrap=False)


@intrinsic
def clear_report(typing_context, status):
    """Forget an earlier report."""

    def emit(context, builder, signature, arguments):
        report = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store(ir.IntType(64)(0), report)
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def reported(typing_context, status):
    """The first number of the report: 0 when every index was in range."""

    def emit(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), emit
