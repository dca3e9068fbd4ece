"""Matrix products for generated kernels: BLAS through SciPy, called by symbol name.

    C = alpha * op(A) @ op(B) + beta * C,      op(A): (m, k),  op(B): (k, n),  C: (m, n)

Matrices are row-major. BLAS is column-major and reads each as its transpose, and
C^T = op(B)^T @ op(A)^T, so the operands change places and nothing is copied.

The address of a BLAS routine differs in every process. Compiled code that goes into a cache file
must not hold it: the address is registered with LLVM under a name and the code refers to the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import get_cython_function_address, intrinsic

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]


def _blas_symbol(routine: str) -> str:
    """The name under which SciPy's `routine` is known to LLVM in this process."""
    symbol = f"symgrad_{routine}"
    llvm.add_symbol(symbol, get_cython_function_address("scipy.linalg.cython_blas", routine))
    return symbol


def _gemm(name: str, symbol: str, element: types.Type, scalar: ir.Type) -> Callable[..., object]:
    """The intrinsic `name(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc)`."""

    def typer(
        typing_context: Context,
        ta: types.Type,
        tb: types.Type,
        m: types.Type,
        n: types.Type,
        k: types.Type,
        alpha: types.Type,
        a: types.Type,
        lda: types.Type,
        b: types.Type,
        ldb: types.Type,
        beta: types.Type,
        c: types.Type,
        ldc: types.Type,
    ) -> Typed:
        pointer, integer = types.CPointer(element), types.int64
        for operand in (a, b, c):
            if operand != pointer:
                raise TypingError(f"{name}: operands must be {pointer}, got {operand}")
        for factor in (alpha, beta):
            if factor != element:
                raise TypingError(f"{name}: alpha and beta must be {element}, got {factor}")

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
            flag, number = ir.IntType(8), ir.IntType(32)

            def option(transposed: ir.Value) -> ir.Value:
                """The address of 't' or 'n'."""
                yes = builder.icmp_signed("!=", transposed, transposed.type(0))
                letter = builder.select(yes, flag(ord("t")), flag(ord("n")))
                return cgutils.alloca_once_value(builder, letter)

            def count(value: ir.Value) -> ir.Value:
                """The address of an extent as the 32-bit integer of BLAS."""
                return cgutils.alloca_once_value(builder, builder.trunc(value, number))

            def stride(value: ir.Value) -> ir.Value:
                """The address of a leading dimension: at least 1, even of an empty matrix."""
                positive = builder.icmp_signed(">", value, value.type(0))
                return count(builder.select(positive, value, value.type(1)))

            def factor(value: ir.Value) -> ir.Value:
                return cgutils.alloca_once_value(builder, value)

            of = [p.as_pointer() for p in (flag, number, scalar)]
            kinds = [of[i] for i in (0, 0, 1, 1, 1, 2, 2, 1, 2, 1, 2, 2, 1)]
            routine = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), kinds), symbol
            )
            builder.call(
                routine,
                [
                    *(option(tb), option(ta), count(n), count(m), count(k), factor(alpha)),
                    *(b, stride(ldb), a, stride(lda), factor(beta), c, stride(ldc)),
                ],
            )
            return context.get_dummy_value()

        extents = [integer] * 5
        signature = types.void(
            *extents, element, pointer, integer, pointer, integer, element, pointer, integer
        )
        return signature, emit

    typer.__name__ = name
    return intrinsic(typer)


gemm_f32 = _gemm("gemm_f32", _blas_symbol("sgemm"), types.float32, ir.FloatType())
gemm_f64 = _gemm("gemm_f64", _blas_symbol("dgemm"), types.float64, ir.DoubleType())
