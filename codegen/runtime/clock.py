"""A clock for programs that time their own kernels: the system's monotonic one.

As with BLAS, its address differs in every process, so compiled code refers to it by a name that is
registered with LLVM.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import TYPE_CHECKING

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    from codegen.runtime.memory import Typed, Values

I32 = ir.IntType(32)
I64 = ir.IntType(64)
SYMBOL = "symgrad_clock"
BILLION = 1_000_000_000

if sys.platform == "win32":
    _kernel = ctypes.windll.kernel32
    _routine = _kernel.QueryPerformanceCounter
    _frequency = ctypes.c_int64()
    _kernel.QueryPerformanceFrequency(ctypes.byref(_frequency))
    #: Seconds of one tick of `now`.
    TICK = 1.0 / _frequency.value
else:
    _routine = ctypes.CDLL(None).clock_gettime
    TICK = 1e-9
llvm.add_symbol(SYMBOL, ctypes.cast(_routine, ctypes.c_void_p).value)


@intrinsic
def now(typing_context: Context) -> Typed:
    """The time in ticks, an int64."""

    def emit(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
    ) -> ir.Value:
        posix = sys.platform != "win32"
        place = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
        given = [builder.bitcast(place, I64.as_pointer())]
        if posix:
            given.insert(0, ir.Constant(I32, time.CLOCK_MONOTONIC))
        kind = ir.FunctionType(I32, [argument.type for argument in given])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, SYMBOL), given)
        first, second = (
            builder.load(builder.gep(place, [ir.Constant(I32, 0), ir.Constant(I32, k)]))
            for k in range(2)
        )
        if not posix:
            return first
        return builder.add(builder.mul(first, ir.Constant(I64, BILLION)), second)

    return types.int64(), emit
