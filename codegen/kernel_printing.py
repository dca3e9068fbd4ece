"""A kernel as text for the CPU: loops, rows of values side by side, and products.

Extents of plain loops and of products are arguments, so that kernels are shared between extents.
A float sum may be reordered and a division by what a loop does not change becomes a product with
its inverse; everything else is printed as it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from codegen import loop_ir as ir
from codegen.access import ZERO
from codegen.loop_ir import WORKER, For, Kernel, Let, Load, Partition, Statement, Store
from codegen.loops import FULL_VECTOR
from codegen.printing import Function
from codegen.row_printing import RowPrinter, across_rows, is_row, scope_of, takes_running_sums
from codegen.runtime.names import RUNTIME
from codegen.timing import CLOCK
from codegen.tune import interleaving, totals
from symgrad.graph.dtypes import INT64, SHORT, DType

# A single loop at least this long takes its extent as an argument, so that kernels are shared.
SHARED_FROM = 4


def print_kernel(kernel: Kernel, fetches: bool = False) -> Function:
    """The text of a kernel, and what a program must know to call it.

    fetches: whether it is a product that is told what to fetch meanwhile.
    """
    return _KernelPrinter(kernel, fetches).function


class _KernelPrinter(RowPrinter):
    primitives: ClassVar[Collection[str]] = RUNTIME["vector_math"] | RUNTIME["draws"] | {CLOCK}
    room: ClassVar[str] = "codegen/runtime/vector_math.py"

    def __init__(self, kernel: Kernel, fetches: bool) -> None:
        super().__init__()
        self.function.ranges = ("ranges", "count") if fetches else ()
        loops = [s for s in kernel.body if isinstance(s, For)]
        # kernels of plain loops and of products are shared between extents
        self.flat = all(not any(isinstance(s, For) for s in loop.body) for loop in loops)
        self.totals = frozenset(totals(kernel.body))
        self.shortest = FULL_VECTOR if across_rows(kernel.body) else 2
        self.depth = 1
        self.defined: dict[str, int] = {}
        self.steps: dict[str, tuple[DType, str]] = {}
        self.block(kernel.body, 1)

    def load(self, load: Load) -> str:
        if self.row is not None and load.offset.coefficient(self.row.var) != 0:
            return self.load_row(self.row, load)
        self.function.uses.add("ld")
        return f"ld({load.buffer.name}, {self.affine(load.offset)}, {scope_of(load.buffer)})"

    def value(self, let: Let) -> str:
        """The right-hand side of a Let.

        The order of a sum of floats is free; what divides all of a loop's values is inverted once.
        """
        if self.row is not None and let.name in self.totals:
            let = self.across(self.row, let)
        elif self.row is not None:
            let = self.running(self.row, let, self.depth)
        v = let.value
        if let.dtype.kind == "f" and isinstance(v, ir.Apply):
            steps = {"add": "plus", "mul": "times"} if let.name in self.totals else {}
            if v.operation == "div" and self.defined.get(v.operands[1], 0) < self.depth:
                steps["div"] = "ratio"
            if (operation := steps.get(v.operation)) is not None:
                self.function.uses.add(operation)
                return f"{operation}({', '.join(v.operands)})"
        return super().value(let)

    def block(self, body: Sequence[Statement], depth: int) -> None:
        self.depth = depth
        for s in body:
            if isinstance(s, For) and depth > 1 and is_row(s, self.totals, self.shortest):
                self.side_by_side(s, depth)
            elif isinstance(s, For) and self.row is None and takes_running_sums(s, self.totals):
                self.with_running_sums(s, depth)
                self.depth = depth
            elif isinstance(s, For):
                self.loop_names[s.var] = f"i{depth - 1}"
                if s.shared:
                    first, end = self.bounds(s.parts or (s.extent, 1))
                    self.head(s, f"{first}, {end}", depth)
                    self.block(s.body, depth + 1)
                    self.depth = depth
                    continue
                self.head(s, self.extent(s.extent, self.shares_extent(s)), depth)
                self.block(s.body, depth + 1)
                self.depth = depth
            elif isinstance(s, Let):
                self.defined[s.name] = depth
                if isinstance(s.value, ir.Apply):
                    self.steps[s.name] = s.dtype, s.value.operation
                self.put(f"{s.name} = {self.value(s)}", depth)
            elif isinstance(s, ir.Update):
                self.put(f"{s.name} = {self.updated(s)}", depth)
            elif isinstance(s, Store) and self.row is not None:
                self.put(self.store_row(self.row, s), depth)
            elif isinstance(s, Store):
                self.function.uses.add("st")
                place = f"{s.buffer.name}, {self.affine(s.offset)}"
                self.put(f"st({place}, {s.name}, {scope_of(s.buffer)})", depth)
            elif isinstance(s, ir.CheckIndex):
                self.function.uses.add("i64")
                self.function.status = True
                check = "checked_index" if s.wrap else "checked_label"
                self.function.uses.add(check)
                checks = self.function.checks
                number = checks.setdefault(s.node, f"c{len(checks)}")
                given = f"i64({s.index}), {self.extent(s.extent)}, status, {number}"
                self.put(f"{s.name} = {check}({given}, {self.affine(s.position)})", depth)
            elif isinstance(s, ir.Only):
                self.put(f"if {self.extent(WORKER)} == 0:", depth)
                self.block(s.body, depth + 1)
                self.depth = depth
            elif isinstance(s, ir.Wait):
                self.function.uses.add("meet")
                self.function.meets = True
                self.put("meet(team, worker)", depth)
            else:
                self.put(self.product(s), depth)

    def shares_extent(self, loop: For) -> bool:
        """Whether a loop's extent is an argument."""
        return self.flat and (type(loop.extent) is not int or loop.extent >= SHARED_FROM)

    def updated(self, s: ir.Update) -> str:
        """An accumulator's next value."""
        if self.row is None or not self.row.running:
            return s.value
        dtype, operation = self.steps[s.value]
        last = f"row_last({s.value}s, {self.row.width})"
        return self.apply(operation, (s.name, last), dtype)

    def head(self, loop: For, bounds: str, depth: int) -> None:
        """The first line of a loop."""
        count = interleaving(loop)
        if count == 1:
            self.put(f"for i{depth - 1} in range({bounds}):", depth)
            return
        self.function.uses.add("interleaved")
        self.put(f"for i{depth - 1} in interleaved({count}, {bounds}):", depth)

    def bounds(self, parts: Partition) -> tuple[str, str]:
        """The names of where a worker's part of a loop begins and ends."""
        shares = self.function.shares
        return shares.setdefault(parts, (f"a{len(shares)}", f"b{len(shares)}"))

    def apply(self, operation: str, operands: tuple[str, ...], dtype: DType) -> str:
        """An operation; whole numbers wrap around."""
        if dtype == INT64 and operation in ("add", "sub", "mul"):
            self.function.uses.add(f"whole_{operation}")
            return f"whole_{operation}({', '.join(operands)})"
        return super().apply(operation, operands, dtype)

    def product(self, call: ir.Call) -> str:
        short = SHORT[call.c.dtype]
        ranges = self.function.ranges
        name = f"gemm_fetching_{short}" if ranges else f"gemm_{short}"
        self.function.uses |= {name, short}
        m, n, k = (self.extent(e, True) for e in (call.m, call.n, call.k))
        left, right = map(int, call.transposed)
        lda, ldb, ldc = (self.extent(e, True) for e in call.rows)
        more = ("", "", "")
        if call.shared == "m":
            first, end = self.bounds(call.parts or (call.m, 1))
            m = f"({end} - {first})"
            more = (first if left else f"{first} * {lda}", "", f"{first} * {ldc}")
        elif call.shared == "n":
            first, end = self.bounds((call.n, 1))
            n = f"({end} - {first})"
            more = ("", f"{first} * {ldb}" if right else first, first)
        elif call.shared == "k":
            first, end = self.bounds(call.terms or (call.k, 1))
            k = f"({end} - {first})"
            more = (f"{first} * {lda}", f"{first} * {ldb}", "")
        buffers = []
        for buffer, offset, own in zip((call.a, call.b, call.c), call.offsets, more, strict=True):
            places = [*([self.affine(offset)] if offset != ZERO else []), *([own] if own else [])]
            if places:
                self.function.uses.add("shift")
                buffers.append(f"shift({buffer.name}, {' + '.join(places)})")
            else:
                buffers.append(buffer.name)
        a, b, c = buffers
        return (
            f"{name}({left}, {right}, {m}, {n}, {k}, {short}(1), {a}, {lda}, {b}, {ldb}, "
            f"{', '.join([f'{short}({int(call.adds)})', c, ldc, *ranges])})"
        )
