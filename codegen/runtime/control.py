"""The processor's floating-point control word."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    from codegen.runtime.memory import Typed, Values

#: Bit of MXCSR: a result that would be subnormal is 0 (Intel 64 manual, volume 1, 10.2.3.3).
FLUSH_TO_ZERO = 1 << 15
HAS_MXCSR = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic
def flush_to_zero(typing_context: Context, on: types.Type) -> Typed:
    """Make subnormal results of this thread 0, or not. Returns what was; where not x86, `on`."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        if not HAS_MXCSR:
            return arguments[0]
        word = ir.IntType(32)
        place = cgutils.alloca_once(builder, word)
        pointer = builder.bitcast(place, cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t])
        store, load = (
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
            for name in ("stmxcsr", "ldmxcsr")
        )
        builder.call(store, [pointer])
        before = builder.load(place)
        bit = ir.Constant(word, FLUSH_TO_ZERO)
        cleared = builder.and_(before, builder.not_(bit))
        wanted = builder.select(
            builder.icmp_signed("!=", arguments[0], ir.Constant(arguments[0].type, 0)),
            builder.or_(before, bit), cleared,
        )  # fmt: skip
        builder.store(wanted, place)
        builder.call(load, [pointer])
        was_on = builder.icmp_unsigned("!=", builder.and_(before, bit), ir.Constant(word, 0))
        return builder.zext(was_on, ir.IntType(64))

    return types.int64(types.int64), emit
