"""Matrix products for generated kernels, by functions that programs call by name.

    C = alpha * op(A) @ op(B) + beta * C,      op(A): (m, k),  op(B): (k, n),  C: (m, n)

Matrices are row-major. The products are those of `products`, or BLAS through SciPy where
SYMGRAD_PRODUCTS=blas says so. BLAS is column-major and reads each matrix as its transpose, and
C^T = op(B)^T @ op(A)^T, so the operands change places and nothing is copied. Where C is one column
or one row, its matrix-vector routine is called, which is up to four times as fast.

The address of a function differs in every process. Compiled code that goes into a cache file must
not hold it: the address is registered with LLVM under a name and the code refers to the name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from codegen.runtime.instruction_sets import Element, instruction_set
from codegen.runtime.library import link
from codegen.runtime.linking import blas_symbol
from codegen.runtime.products import product_symbol

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]

LETTER = ir.IntType(8)
COUNT = ir.IntType(32)
WHOLE = ir.IntType(64)


PRODUCTS = ("own", "blas")


def products_from() -> str:
    """Whose products programs call: "own", or "blas" where SYMGRAD_PRODUCTS says so.

    Raises: ValueError for anything else.
    """
    chosen = os.environ.get("SYMGRAD_PRODUCTS") or PRODUCTS[0]
    if chosen not in PRODUCTS:
        raise ValueError(f"SYMGRAD_PRODUCTS={chosen!r}: set one of {', '.join(PRODUCTS)}.")
    return chosen


def _call_blas(builder: ir.IRBuilder, symbol: str, *arguments: ir.Value) -> None:
    """Call a BLAS routine, which takes the address of every argument; int64 become int32."""
    places = []
    for argument in arguments:
        if isinstance(argument.type, ir.PointerType):
            places.append(argument)
            continue
        is_count = argument.type == ir.IntType(64)
        value = builder.trunc(argument, COUNT) if is_count else argument
        places.append(cgutils.alloca_once_value(builder, value))
    kind = ir.FunctionType(ir.VoidType(), [place.type for place in places])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, symbol), places)


def _gemm(short: str, element: types.Type) -> Callable[..., object]:
    """The intrinsic `gemm_f32(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc)`.

    ta and tb are 1 where A or B is stored transposed, else 0; lda, ldb and ldc are the distances
    between rows as they are stored. With beta = 0, C is not read.
    """
    name = f"gemm_{short}"

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
            write = _own if products_from() == "own" else _blas
            write(builder, short, arguments)
            return context.get_dummy_value()

        extents = [integer] * 5
        signature = types.void(
            *extents, element, pointer, integer, pointer, integer, element, pointer, integer
        )
        return signature, emit

    typer.__name__ = name
    return intrinsic(typer)


def _own(builder: ir.IRBuilder, short: str, arguments: Values) -> None:
    """Call our product, to which a transpose is an exchange of distances."""
    ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
    one = WHOLE(1)
    matrices: list[ir.Value] = []
    for transposed, matrix, stride in ((ta, a, lda), (tb, b, ldb)):
        turned = builder.icmp_signed("!=", transposed, WHOLE(0))
        row, column = builder.select(turned, one, stride), builder.select(turned, stride, one)
        matrices += [matrix, row, column]
    given = [m, n, k, *matrices, c, ldc, one, alpha, beta]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
    link(short, instruction_set())
    name = product_symbol(Element(short, instruction_set()))
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)


def _blas(builder: ir.IRBuilder, short: str, arguments: Values) -> None:
    """Call BLAS, its matrix-vector routine where C is one row or column."""
    letter = "s" if short == "f32" else "d"
    matrix, vector = blas_symbol(f"{letter}gemm"), blas_symbol(f"{letter}gemv")
    one, zero = WHOLE(1), WHOLE(0)
    ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
    # a distance of 0, as of an empty matrix, is refused by BLAS
    lda, ldb, ldc = (
        builder.select(builder.icmp_signed(">", stride, zero), stride, one)
        for stride in (lda, ldb, ldc)
    )
    ta, tb = (builder.icmp_signed("!=", transposed, zero) for transposed in (ta, tb))
    column, row = (builder.icmp_signed("==", extent, one) for extent in (n, m))
    thin = builder.and_(builder.or_(column, row), builder.icmp_signed(">", k, zero))
    with builder.if_else(thin) as (then, otherwise):
        with then:
            # one column: op(A) b;  one row: op(B)^T a
            turned = builder.select(column, ta, builder.not_(tb))
            length = builder.select(column, m, n)
            step = builder.select(
                column, builder.select(tb, one, ldb), builder.select(ta, lda, one)
            )
            result_step = builder.select(column, ldc, one)
            factor = _cleared(builder, c, length, result_step, beta)
            _call_blas(
                *(builder, vector, _option(builder, builder.not_(turned))),
                *(builder.select(turned, length, k), builder.select(turned, k, length)),
                *(alpha, builder.select(column, a, b), builder.select(column, lda, ldb)),
                *(builder.select(column, b, a), step, factor, c, result_step),
            )
        with otherwise:
            options = (_option(builder, tb), _option(builder, ta))
            operands = (b, ldb, a, lda, beta, c, ldc)
            _call_blas(builder, matrix, *options, n, m, k, alpha, *operands)


def _option(builder: ir.IRBuilder, transposed: ir.Value) -> ir.Value:
    """BLAS's letter: 't' for transposed, 'n' for not."""
    return builder.select(transposed, LETTER(ord("t")), LETTER(ord("n")))


def _cleared(
    builder: ir.IRBuilder, vector: ir.Value, length: ir.Value, step: ir.Value, beta: ir.Value
) -> ir.Value:
    """Fill the vector with zeros where beta is 0, and return the factor to use then: 1, else beta.

    Some versions of OpenBLAS multiply the old contents by 0 in gemv, which keeps a NaN.
    """
    nothing = builder.fcmp_ordered("==", beta, beta.type(0.0))
    with builder.if_then(nothing), cgutils.for_range(builder, length) as loop:
        place = builder.gep(vector, [builder.mul(loop.index, step)])
        builder.store(beta.type(0.0), place)
    return builder.select(nothing, beta.type(1.0), beta)


gemm_f32 = _gemm("f32", types.float32)
gemm_f64 = _gemm("f64", types.float64)
