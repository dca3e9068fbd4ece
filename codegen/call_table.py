"""Long runs of kernel calls as rows of a table, since a compiler's time grows with every statement.

A row of CALLS holds the kernel's number, places in the program's table of addresses, and extents: a
number that is known when the program runs has a negative code. In a team a row also tells whether
all workers meet before the call (1) and whether worker 0 does it alone (2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from codegen.loop_ir import WORKER, WORKERS, Kernel, Partition
from codegen.memory import Invoked
from codegen.printing import Function, extent_text
from codegen.runtime.team_words import SIZE
from symgrad.graph.dims import Dim, Extent
from symgrad.graph.dtypes import SHORT

# So many calls in a row, and more, become rows of the table.
TABLE_FROM = 64
# Kernels of that table that one function chooses from.
GROUP = 64
MEET, ALONE = 1, 2

#: An extent, or where a worker's part of some rows begins (0) or ends (1).
Code: TypeAlias = Extent | tuple[int, Partition]


class CallTable:
    """The rows of a program.

    Args:
        dims: of the program.
        team: whether it is for several workers.
        uses: what the program needs of the runtime; this adds to it.
    """

    def __init__(self, dims: Sequence[Dim], team: bool, uses: set[str]) -> None:
        self.dims, self.team, self.uses = dims, team, uses
        self.rows: list[tuple[list[int], str]] = []
        self.codes: dict[Code, int] = {}
        self.kernels: dict[str, tuple[Kernel, Function]] = {}

    def add(self, call: Invoked, name: str, function: Function, places: Sequence[int]) -> None:
        """A row for a call of the kernel of that name."""
        codes: list[Code] = [*function.extents, *function.dims]
        codes += [(side, parts) for parts in function.shares for side in (0, 1)]
        codes += function.checks
        kernel = call.kernel
        who = [MEET * call.meet + ALONE * bool(kernel.alone)] if self.team else []
        row = [_number(name), *who, *places, *map(self.code_of, codes)]
        self.rows.append((row, kernel.formula))
        self.kernels.setdefault(name, (kernel, function))

    def run(self, first: int) -> str:
        """The statement that runs the rows from `first` on."""
        own = ", team, worker" if self.team else ""
        return f"run_calls(table, dims, {first}, {len(self.rows)}{own})"

    def code_of(self, extent: Code) -> int:
        """An extent in a row: itself, or -1, -2, .. for one that is known when the program runs."""
        if type(extent) is int:
            return extent
        return -1 - self.codes.setdefault(extent, len(self.codes))

    def lines(self, checks: bool) -> list[str]:
        """The table, and the functions that run rows of it.

        Args:
            checks: whether kernels report bad indices.
        """
        if not self.rows:
            return []
        wide = max(len(row) for row, _ in self.rows)
        who = ", who" if self.team else ""
        lines = [
            "", f"# kernel{who}, places in the table of addresses, extents (negative: see size_of)"
        ]  # fmt: skip
        lines.append("CALLS = np.array([")
        for row, formula in self.rows:
            padded = row + [0] * (wide - len(row))
            lines.append(f"    {padded},  # {formula}")
        lines += ["], np.int64)", "", "", "@kernel"]
        own = ", worker, workers" if self.team else ""
        lines.append(f"def size_of(code, dims{own}):")
        for code, k in self.codes.items():
            lines += [f"    if code == {-1 - k}:", f"        return {self.text_of(code)}"]
        lines += ["    return code", "", ""]
        return [*lines, *self.dispatch(checks)]

    def text_of(self, code: Code) -> str:
        """What a code stands for."""
        self.uses.add("extent")
        names = {d: f"extent(dims, {j})" for j, d in enumerate(self.dims)}
        names |= {WORKER: "worker", WORKERS: "workers"} if self.team else {}
        if not isinstance(code, tuple):
            return extent_text(code, names)
        side, (rows, each) = code
        self.uses.add("first_of")
        worker = "worker + 1" if side else "worker"
        first = f"first_of({extent_text(rows, names)}, {worker}, workers)"
        return f"{first} * ({extent_text(each, names)})"

    def dispatch(self, checks: bool) -> list[str]:
        """`run_calls`, which runs rows of the table, by groups of kernels."""
        head, own = "@kernel", ", team, worker" if self.team else ""
        lines: list[str] = []
        tests: list[str] = []
        tabled = sorted(self.kernels.items(), key=lambda item: _number(item[0]))
        for first in range(0, len(tabled), GROUP):
            group = tabled[first : first + GROUP]
            name = f"run_{first // GROUP}"
            lines += [head, f"def {name}(kernel, r, table, dims, status{own}):"]
            lines += self.workers()
            for kernel, (made, function) in group:
                lines.append(f"    if kernel == {_number(kernel)}:")
                lines.append(f"        {kernel}({', '.join(self.arguments(made, function))})")
            lines += ["", ""]
            below = f"if kernel <= {_number(group[-1][0])}"
            tests.append(f"{'el' if tests else ''}{below}:")
            tests.append(f"    {name}(kernel, r, table, dims, status{own})")
        lines += [head, f"def run_calls(table, dims, first, last{own}):"]
        lines.append(f"    status = {'address(table, 0)' if checks else 'table'}")
        lines += ["    for r in range(first, last):", "        kernel = CALLS[r, 0]"]
        self.uses |= {"address"} if checks else set()
        pad = "        "
        if self.team:
            self.uses.add("meet")
            lines += [f"{pad}who = CALLS[r, 1]", f"{pad}if (who & {MEET}) != 0:"]
            lines.append(f"{pad}    meet(team, worker)")
            lines.append(f"{pad}if worker == 0 or (who & {ALONE}) == 0:")
            pad += "    "
        return [*lines, *(pad + test for test in tests)]

    def workers(self) -> Iterator[str]:
        """The number of workers, in a team."""
        if self.team:
            self.uses.add("address")
            yield f"    workers = address(team, {SIZE})"

    def arguments(self, kernel: Kernel, function: Function) -> list[str]:
        """What a kernel of the table is called with."""
        shorts = [SHORT[b.dtype] for b in kernel.buffers]
        self.uses.update(f"pointer_{short}" for short in shorts)
        begin = 2 if self.team else 1
        arguments = [
            f"pointer_{short}(table, CALLS[r, {k}])" for k, short in enumerate(shorts, begin)
        ]
        count = len(function.extents) + len(function.dims) + 2 * len(function.shares)
        own = ", worker, workers" if self.team else ""
        arguments += [
            f"size_of(CALLS[r, {begin + len(shorts) + k}], dims{own})"
            for k in range(count + len(function.checks))
        ]
        return [*arguments, *function.team_and_status]


def _number(name: str) -> int:
    """The number in a kernel's name."""
    return int(name.rsplit("_", 1)[1])
