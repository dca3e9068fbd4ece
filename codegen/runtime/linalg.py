"""Matrix products for generated kernels, by functions that programs call by name.

    C = alpha * op(A) @ op(B) + beta * C,      op(A): (m, k),  op(B): (k, n),  C: (m, n)

Matrices are row-major. The products are those of `products`, or BLAS through SciPy where
SYMGRAD_PRODUCTS=blas says so. BLAS is column-major and reads each matrix as its transpose, and
C^T = op(B)^T @ op(A)^T, so the operands change places and nothing is copied. Where C is one column
or one row, its matrix-vector routine is called, which is up to four times as fast.

A matrix B that is multiplied several times may be copied once into panels (`pack_f32`), in the
order in which `gemm_packed_f32` reads them: steps of a recurrence, panels of rows and the workers
of a team then share the copy. It takes `packed_length` elements.

The address of a function differs in every process. Compiled code that goes into a cache file must
not hold it: the address is registered with LLVM under a name and the code refers to the name.
"""

from __future__ import annotations

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
from codegen.runtime.packed import packed_size, product_symbol
from codegen.runtime.settings import products_from

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context
    from numba.core.typing.templates import Signature

    Values = Sequence[ir.Value]
    Typed = tuple[Signature, Callable[..., ir.Value]]

LETTER = ir.IntType(8)
COUNT = ir.IntType(32)
WHOLE = ir.IntType(64)


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
        _expect(f"{name}: operands", pointer, (a, b, c))
        _expect(f"{name}: alpha and beta", element, (alpha, beta))

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


def _pack_by_name(short: str, element: types.Type) -> Callable[..., object]:
    """The intrinsic `pack_f32(tb, k, n, B, ldb, P)`: P becomes the panels of op(B): (k, n).

    tb is 1 where B is stored transposed, else 0; ldb is the distance between its rows as stored. P
    begins with a line of memory and takes `packed_length` elements.
    """
    name = f"pack_{short}"

    def typer(
        typing_context: Context,
        tb: types.Type,
        k: types.Type,
        n: types.Type,
        b: types.Type,
        ldb: types.Type,
        panels: types.Type,
    ) -> Typed:
        pointer, integer = types.CPointer(element), types.int64
        _expect(f"{name}: matrices", pointer, (b, panels))

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            tb, k, n, b, ldb, panels = arguments
            row, column = _strides(builder, tb, ldb)
            _call_own(builder, short, "pack", [n, k, b, row, column, panels])
            return context.get_dummy_value()

        return types.void(integer, integer, integer, pointer, integer, pointer), emit

    typer.__name__ = name
    return intrinsic(typer)


def _gemm_packed(short: str, element: types.Type) -> Callable[..., object]:
    """The intrinsic `gemm_packed_f32(ta, m, n, k, alpha, A, lda, P, beta, C, ldc)`.

    As `gemm_f32`, but P holds the panels of op(B), as `pack_f32` makes them.
    """
    name = f"gemm_packed_{short}"

    def typer(
        typing_context: Context,
        ta: types.Type,
        m: types.Type,
        n: types.Type,
        k: types.Type,
        alpha: types.Type,
        a: types.Type,
        lda: types.Type,
        panels: types.Type,
        beta: types.Type,
        c: types.Type,
        ldc: types.Type,
    ) -> Typed:
        pointer, integer = types.CPointer(element), types.int64
        _expect(f"{name}: operands", pointer, (a, panels, c))
        _expect(f"{name}: alpha and beta", element, (alpha, beta))

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            ta, m, n, k, alpha, a, lda, panels, beta, c, ldc = arguments
            row, column = _strides(builder, ta, lda)
            given = [m, n, k, a, row, column, panels, c, ldc, WHOLE(1), alpha, beta]
            _call_own(builder, short, "packed", given)
            return context.get_dummy_value()

        takes = [*[integer] * 4, element, pointer, integer, pointer, element, pointer, integer]
        return types.void(*takes), emit

    typer.__name__ = name
    return intrinsic(typer)


def _gemm_fetching(short: str, element: types.Type) -> Callable[..., object]:
    """The intrinsic `gemm_fetching_f32(ta, tb, m, .., C, ldc, ranges, count)`.

    As `gemm_f32`; meanwhile the lines of so many ranges of memory are fetched, which `ranges_of`
    has listed.
    """
    name = f"gemm_fetching_{short}"

    def typer(typing_context: Context, *kinds: types.Type) -> Typed:
        pointer, integer = types.CPointer(element), types.int64
        takes = [*[integer] * 5, element, *[pointer, integer] * 2, element, pointer, integer]
        if list(kinds[5:13]) != takes[5:] or len(kinds) != 15:
            raise TypingError(f"{name}: {', '.join(map(str, takes))}, .. are needed, got {kinds}")

        def emit(
            context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values
        ) -> ir.Value:
            *product, ranges, count = arguments
            if products_from() == "own":
                place = builder.inttoptr(ranges, WHOLE.as_pointer())
                _own(builder, short, product, "fetching", [place, count])
            else:
                _blas(builder, short, product)
            return context.get_dummy_value()

        return types.void(*takes, integer, integer), emit

    typer.__name__ = name
    return intrinsic(typer)


def packed_length(short: str, k: int, n: int) -> int:
    """How many elements the panels of a matrix (k, n) take, on this processor.

    >>> packed_length("f32", 7, 64) >= 7 * 64
    True
    """
    return packed_size(Element(short, instruction_set()), k, n)


def _expect(what: str, kind: types.Type, operands: Sequence[types.Type]) -> None:
    for operand in operands:
        if operand != kind:
            raise TypingError(f"{what} must be {kind}, got {operand}")


def _strides(
    builder: ir.IRBuilder, transposed: ir.Value, stride: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Distances of rows and of columns of a matrix, of which a transpose is an exchange."""
    one = WHOLE(1)
    turned = builder.icmp_signed("!=", transposed, WHOLE(0))
    return builder.select(turned, one, stride), builder.select(turned, stride, one)


def _call_own(builder: ir.IRBuilder, short: str, routine: str, given: Sequence[ir.Value]) -> None:
    """Call a routine of our library by name."""
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
    link(short, instruction_set())
    name = product_symbol(Element(short, instruction_set()), routine)
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)


def _own(
    builder: ir.IRBuilder, short: str, arguments: Values, routine: str = "product",
    more: Values = (),
) -> None:
    """Call our product, to which a transpose is an exchange of distances."""
    ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
    left, right = _strides(builder, ta, lda), _strides(builder, tb, ldb)
    given = [m, n, k, a, *left, b, *right, c, ldc, WHOLE(1), alpha, beta]
    _call_own(builder, short, routine, [*given, *more])


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
gemm_fetching_f32 = _gemm_fetching("f32", types.float32)
gemm_fetching_f64 = _gemm_fetching("f64", types.float64)
gemm_packed_f32 = _gemm_packed("f32", types.float32)
gemm_packed_f64 = _gemm_packed("f64", types.float64)
pack_f32 = _pack_by_name("f32", types.float32)
pack_f64 = _pack_by_name("f64", types.float64)
