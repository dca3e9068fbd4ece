"""The CUDA target: loop IR -> Python for numba-cuda.

Each launch of a kernel (`codegen/spreading.py`) is a function of arrays and extents; a program
launches them in order. Equal functions are printed once. Names are generated: no text of a user's
program gets into the source. Needs the extra `symgrad[cuda]` and an NVIDIA GPU, or, for tiny
arrays, Numba's simulator (NUMBA_ENABLE_CUDASIM=1).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import time
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from codegen.launches import Accumulate, Cooperate, Launch, Loop, Product, Spread, walk
from codegen.loading import Loaded, run_module
from codegen.loop_ir import CheckIndex, For, Kernel, Let, Load, Store, Update
from codegen.memory import Invoked, InvokedLoop, Plan
from codegen.printing import (
    LOGIC,
    OPERATORS,
    SCALARS,
    BodyPrinter,
    Place,
    extent_text,
    may_report,
    memory_name,
)
from codegen.program import Table
from codegen.runtime.export import DEVICE_MODULES, standalone
from codegen.spreading import spread
from codegen.state import Invocation, State
from codegen.workspace import ALIGNMENT
from symgrad.graph.dims import Dim, Extent, size
from symgrad.graph.dtypes import INT32, INT64, SHORT, DType, is_float
from symgrad.graph.errors import CompileError
from symgrad.graph.functions import FUNCTIONS
from symgrad.graph.nodes import Input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from codegen.state import Array

# What codegen/runtime/device_math.py offers; integers have functions of their own in OF_INTEGERS.
PRIMITIVES = frozenset({
    "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "abs", "sign", "floor", "sin", "cos", "tan",
    "tanh", "sinh", "cosh", "arctan", "sigmoid", "softplus", "erf", "maximum", "minimum",
    "greatest", "least", "pow",
    "floor_divide", "mod", "isnan", "isfinite", "cast_float32", "cast_float64", "cast_int32",
    "cast_int64", "cast_bool",
})  # fmt: skip
OF_INTEGERS = frozenset({"floor", "isfinite", "floor_divide", "mod", "pow"})
# codegen/runtime/device_draws.py
DRAWS = frozenset(name for name, function in FUNCTIONS.items() if function.result == "draw")
# Rows run side by side, so they cannot share a row of memory.
ROW_MEMORY = False
# Kernels cannot be timed one by one.
TIMED = False
# Programs are kept as source only.
KEEPS = False
# No extents are counted: every launch has those that the host knows.
UNPADS = False
ELSE = '`symgrad doctor` says what is missing; target="cpu" runs everywhere.'


def print_program(plan: Plan, dims: tuple[Dim, ...], key: str) -> str:
    """The source of a plan: kernels, `MEMORY`, and `program(memory, dims, report)`."""
    return _Printer(plan, dims).text()


# What a saved file ends with: how `program` is called.
EXECUTE = f'''
def upload(array):
    """A flat copy on the device, of one element at least."""
    return cuda.to_device(array.reshape(-1) if array.size else np.zeros(1, array.dtype))


def download(device, array):
    """Fill an array from the device."""
    if array.size:
        array.reshape(-1)[...] = device.copy_to_host()


def execute(leaves, results, n):
    """Run the program on a device; its report of a bad index. Leaves in UPDATED come back."""
    report = upload(np.zeros(4, np.int64))
    table = [report, *map(upload, leaves), *map(upload, CONSTANTS)]
    first = len(table)
    table += [cuda.device_array(max(r.size, 1), r.dtype) for r in results]
    offsets, sizes, total = place(workspace(n))
    memory = cuda.device_array(max(total, {ALIGNMENT}), np.uint8)
    table += [memory[a : a + size] for a, size in zip(offsets, sizes)]
    memory = [table[k] if table[k].dtype == name else table[k].view(name) for k, name in MEMORY]
    program(memory, [*n, 0], report)
    for k, (name, array) in enumerate(zip(NAMES, leaves), 1):
        if name in UPDATED:
            download(table[k], array)
    for k, array in enumerate(results, first):
        download(table[k], array)
    return report.copy_to_host()
'''


def stand_alone(source: str) -> str:
    """Source that holds the runtime too, for a saved file."""
    return standalone(source, DEVICE_MODULES)


def load_program(source: str, key: str) -> Loaded:
    """Compile source for the device of this machine.

    Raises: CompileError where numba-cuda or a device is missing.
    """
    check_device()
    start = time.perf_counter()
    digest = hashlib.sha256(f"{key}\0{source}".encode()).hexdigest()[:32]
    name = f"sg_cuda_{digest}"
    module = run_module(name, source, f"<{name}>")
    for kernel in module.KERNELS:
        kernel.load()
    return Loaded(0, module, None, False, time.perf_counter() - start)


def check_device() -> None:
    """See that CUDA programs can run here.

    Raises: CompileError that says what is missing.
    """
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return
    if not _installed():
        raise CompileError(
            "target 'cuda': the package numba-cuda is not installed. "
            f'Install the extra: pip install "symgrad[cuda]". {ELSE}'
        )
    if not devices():
        raise CompileError(
            "target 'cuda': no CUDA device can be used on this machine. "
            f"It needs an NVIDIA GPU and its driver. {ELSE}"
        )


def devices() -> list[str]:
    """The names of the devices that can be used; needs numba-cuda."""
    cuda = importlib.import_module("numba.cuda")
    if not cuda.is_available():
        return []
    names = (device.name for device in cuda.gpus)
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _installed() -> bool:
    return importlib.util.find_spec("numba_cuda") is not None


def prepare(plan: Table, dims: Sequence[Dim], loaded: Loaded, state: State) -> Invocation:
    """The memory of one thread's calls."""
    from codegen.device_memory import DeviceInvocation

    assert isinstance(loaded.module, ModuleType)
    return DeviceInvocation(plan, dims, loaded.module, state)


def hold(leaves: Sequence[Input], values: Sequence[Array]) -> State:
    """The state of a program, on the device between calls."""
    from codegen.device_memory import DeviceState

    return DeviceState(leaves, values)


class _Printer:
    def __init__(self, plan: Plan, dims: tuple[Dim, ...]) -> None:
        self.plan = plan
        self.dim_names = {d: f"n{k}" for k, d in enumerate(dims)}
        self.names: dict[str, str] = {}
        self.functions: list[str] = []
        self.uses: set[str] = {"kernel"}
        self.memory: dict[tuple[int, DType], None] = {}
        self.lines: list[str] = []

    def text(self) -> str:
        calls = self.plan.calls
        last = max((k for k, call in enumerate(calls) if may_report(call)), default=-1)
        self.block(calls[: last + 1], self.entry, 1)
        if last >= 0:  # no leaf is written before this place
            self.uses.add("reported")
            self.lines += ["    if reported(report):", "        return"]
        self.block(calls[last + 1 :], self.entry, 1)
        lines = ['"""A compiled graph: CUDA kernels, and the program that launches them."""', ""]
        scalars = sorted(name for name in self.uses if name in SCALARS)
        lines += ["import numpy as np", "from numba import cuda", ""]
        rooms: dict[str, list[str]] = {}
        for name in sorted(self.uses - set(scalars)):
            rooms.setdefault(_room(name), []).append(name)
        for room, names in sorted(rooms.items()):
            lines.append(f"from codegen.runtime.{room} import {', '.join(names)}")
        lines += ["", *(SCALARS[name] for name in scalars), ""]
        for function in self.functions:
            lines += ["", function]
        lines += ["", f"KERNELS = [{', '.join(self.names.values())}]"]
        lines.append("# What the program is given: entries of the table, and their dtypes.")
        lines.append(f"MEMORY = {[(entry, dtype.name) for entry, dtype in self.memory]}")
        lines += ["", "", "def program(memory, dims, report):"]
        lines.append('    """Launch the kernels in order; `report` takes a bad index."""')
        if self.memory:
            given = "".join(f"{memory_name(entry, dtype)}, " for entry, dtype in self.memory)
            lines.append(f"    {given}= memory")
        lines += [f"    n{k} = dims[{k}]" for k, _ in enumerate(self.dim_names)]
        return "\n".join([*lines, *self.lines]) + "\n"

    def entry(self, entry: int, dtype: DType) -> str:
        """The name of an entry of the table, which the program then asks for."""
        self.memory[entry, dtype] = None
        return memory_name(entry, dtype)

    def block(self, calls: Sequence[Invoked | InvokedLoop], place: Place, depth: int) -> None:
        """The calls of a program, or of a recurrence's body, with arrays from `place`."""
        pad = "    " * depth
        for call in calls:
            if isinstance(call, InvokedLoop):
                self.loop(call, place, depth)
                continue
            arrays = {
                buffer.name: place(entry, buffer.dtype)
                for entry, buffer in zip(call.entries, call.kernel.buffers, strict=True)
            }
            if call.kernel.formula:
                self.lines.append(f"{pad}# {call.kernel.formula}")
            for launch in spread(call.kernel):
                if isinstance(launch, Product):
                    self.lines.append(pad + self.product(launch, arrays))
                else:
                    self.lines.append(pad + self.launch(call.kernel, launch, arrays))

    def loop(self, call: InvokedLoop, place: Place, depth: int) -> None:
        """A recurrence: launches for each step, on arrays that move along the sequences."""
        loop, pad = call.loop, "    " * depth
        t, steps = f"t{depth - 1}", extent_text(loop.length, self.dim_names)
        order = f"reversed(range({steps}))" if loop.reverse else f"range({steps})"
        head = [f"{pad}for {t} in {order}:"]
        moved: dict[tuple[int, DType], str] = {}

        def inner(entry: int, dtype: DType) -> str:
            where = loop.places[entry]
            base = place(call.entries[where.operand], dtype)
            if type(where.step) is int and where.step == 0:
                return base
            if (entry, dtype) not in moved:
                moved[entry, dtype] = f"{base}_{len(moved)}{t}"
                self.uses.add("shift")
                step = extent_text(where.step, self.dim_names)
                head.append(f"{pad}    {moved[entry, dtype]} = shift({base}, {t} * ({step}))")
            return moved[entry, dtype]

        outer, self.lines = self.lines, []
        self.block(loop.calls, inner, depth + 1)
        self.lines = [*outer, *head, *(self.lines or [f"{pad}    pass"])]

    def launch(self, kernel: Kernel, launch: Launch, arrays: Mapping[str, str]) -> str:
        names = self.dim_names
        printed = _KernelPrinter(kernel, launch)
        function = printed.function
        self.uses |= function.uses
        used = [b for b in kernel.buffers if b.name in printed.touched]
        head = [b.name for b in used] + list(function.dims.values())
        types = [f"{b.dtype.name.replace('bool', 'boolean')}[::1]" for b in used]
        types += ["int64"] * len(function.dims)
        if function.status:
            head, types = [*head, "report"], [*types, "int64[::1]"]
        formula = f'    """{kernel.formula}"""\n' if kernel.formula else ""
        body = f"({', '.join(head)}):\n{formula}" + "\n".join(function.lines) + "\n"
        text = f'@kernel("void({", ".join(types)})")\ndef NAME{body}'
        if text not in self.names:
            self.names[text] = f"kernel_{len(self.names)}"
            self.functions.append(text.replace("NAME", self.names[text], 1))
        how = "blocks" if launch.blocks else "threads"
        self.uses.add(how)
        count = extent_text(size(e for _, e in launch.loops), names)
        given = [self.names[text], count]
        if launch.blocks:
            given.append(self.span(launch.body))
        given += [arrays[b.name] for b in used] + [names[d] for d in function.dims]
        return f"{how}({', '.join([*given, *(['report'] if function.status else [])])})"

    def span(self, body: Sequence[Spread]) -> str:
        """The most that a block has to share out at once."""
        spans = dict.fromkeys(
            extent_text(size(e for _, e in s.loops), self.dim_names)
            for s in walk(body)
            if isinstance(s, Cooperate)
        )
        return next(iter(spans)) if len(spans) == 1 else f"max({', '.join(spans)})"

    def product(self, launch: Product, arrays: Mapping[str, str]) -> str:
        call, names = launch.call, self.dim_names
        routine = f"gemm_{SHORT[call.c.dtype]}"
        self.uses |= {"product", routine}

        def row(extents: Sequence[Extent]) -> str:
            return f"({', '.join(extent_text(e, names) for e in extents)})"

        operands = ", ".join(arrays[b.name] for b in (call.a, call.b, call.c))
        flags = row([int(t) for t in call.transposed])
        given = [routine, f"({operands})", row([call.m, call.n, call.k]), flags]
        starts = [o.const for o in call.offsets]
        given.append(row(call.rows))
        if launch.loops or any(not (type(s) is int and s == 0) for s in starts):
            given.append(row(starts))
        for var, extent in launch.loops:
            given.append(extent_text(extent, names))
            given.append(row([o.coefficient(var) for o in call.offsets]))
        return f"product({', '.join(given)})"


def _room(name: str) -> str:
    """The module of the runtime that defines a name."""
    if name in DRAWS:
        return "device_draws"
    of_math = name in PRIMITIVES or name.removesuffix("_int") in OF_INTEGERS
    return "device_math" if of_math else "device"


class _KernelPrinter(BodyPrinter):
    """One launch as the body of a CUDA kernel."""

    primitives = PRIMITIVES | DRAWS
    room: ClassVar[str] = "codegen/runtime/device_math.py"
    plain: ClassVar[tuple[DType, ...]] = ()

    def __init__(self, kernel: Kernel, launch: Launch) -> None:
        super().__init__()
        self.dtypes: dict[str, DType] = {}
        self.touched: set[str] = set()
        self.together = launch.blocks
        self.cells: dict[str, None] = {}
        self.place(launch)
        self.block(launch.body, 1)
        if self.function.lines[-1:] == ["    cuda.syncthreads()"]:
            self.function.lines.pop()
        self.function.lines[:0] = [f"    {line}" for line in self.cells]

    def place(self, launch: Launch) -> None:
        """Which index this thread or block has."""
        loops = launch.loops
        if launch.blocks:
            self.unfold("cuda.blockIdx.x", loops, 1)
            return
        name = loops[0][0] if len(loops) == 1 else "place"
        self.put(f"{name} = cuda.grid(1)", 1)
        self.put(f"if {name} >= {self.extent(size(e for _, e in loops))}:", 1)
        self.put("return", 2)
        if name == "place":
            self.unfold("place", loops, 1)

    def unfold(self, place: str, loops: Sequence[Loop], depth: int) -> None:
        """The loop variables, row-major, from one number."""
        if len(loops) > 1 and place != "place":
            self.put(f"place = {place}", depth)
            place = "place"
        for k, (var, extent) in reversed(list(enumerate(loops))):
            if k == 0:
                self.put(f"{var} = {place}", depth)
            else:
                text = self.extent(extent)
                text = text if text.isalnum() else f"({text})"
                self.put(f"{var} = place % {text}", depth)
                self.put(f"place = place // {text}", depth)

    def load(self, load: Load) -> str:
        self.touched.add(load.buffer.name)
        return f"{load.buffer.name}[{self.affine(load.offset)}]"

    def apply(self, operation: str, operands: tuple[str, ...], dtype: DType) -> str:
        if operation == "select":
            return f"{operands[1]} if {operands[0]} else {operands[2]}"
        if operation in OF_INTEGERS and not is_float(self.dtypes.get(operands[0], dtype)):
            self.function.uses.add(f"{operation}_int")
            text = f"{operation}_int({', '.join(operands)})"
            return self.typed(text, dtype) if dtype in (INT32, INT64) else text
        text = super().apply(operation, operands, dtype)
        return self.typed(text, dtype) if dtype == INT64 and operation in OPERATORS else text

    def block(self, body: Sequence[Spread], depth: int, together: bool | None = None) -> None:
        together = self.together if together is None else together
        for s in body:
            if isinstance(s, Cooperate):
                self.cooperate(s, depth)
            elif isinstance(s, For):
                self.put(f"for {s.var} in range({self.extent(s.extent)}):", depth)
                self.block(s.body, depth + 1, together)
            elif isinstance(s, Let):
                self.dtypes[s.name] = s.dtype
                self.put(f"{s.name} = {self.value(s)}", depth)
            elif isinstance(s, Update):
                self.put(f"{s.name} = {s.value}", depth)
            elif isinstance(s, (Store, Accumulate)):
                if together:
                    if self.function.lines[-1].strip() != "cuda.syncthreads()":
                        self.put("cuda.syncthreads()", depth)
                    self.put("if cuda.threadIdx.x == 0:", depth)
                    self.put(self.write(s), depth + 1)
                    self.put("cuda.syncthreads()", depth)
                else:
                    self.put(self.write(s), depth)
            elif isinstance(s, CheckIndex):
                check = "checked_index" if s.wrap else "checked_label"
                self.function.uses |= {check, "i64"}
                self.function.status = True
                self.dtypes[s.name] = INT64
                given = f"i64({s.index}), {self.extent(s.extent)}, report, {s.node}"
                self.put(f"{s.name} = {check}({given}, {self.affine(s.position)})", depth)
            else:
                raise CompileError(f"no CUDA form for {type(s).__name__} (codegen/targets/cuda.py)")

    def cooperate(self, s: Cooperate, depth: int) -> None:
        """The threads of a block take turns along the loops; then they merge what they have."""
        total = self.extent(size(e for _, e in s.loops))
        var = s.loops[0][0] if len(s.loops) == 1 else "place"
        self.put(f"for {var} in range(cuda.threadIdx.x, {total}, cuda.blockDim.x):", depth)
        if len(s.loops) > 1:
            self.unfold("place", s.loops, depth + 1)
        self.block(s.body, depth + 1, together=False)
        for t in s.totals:
            merge, cells = f"merge_{t.operation}", f"cells_{SHORT[t.dtype]}"
            self.function.uses |= {merge, "WIDTH"}
            self.cells[f'{cells} = cuda.shared.array(WIDTH, "{t.dtype.name}")'] = None
            self.put(f"{t.name} = {merge}({t.name}, {cells})", depth)
        if any(isinstance(t, (Store, Accumulate)) for t in walk(s.body)):
            self.put("cuda.syncthreads()", depth)

    def write(self, s: Store | Accumulate) -> str:
        self.touched.add(s.buffer.name)
        offset = self.affine(s.offset)
        place = f"{s.buffer.name}[{offset}]"
        if isinstance(s, Store):
            return f"{place} = {s.name}"
        if s.atomic:
            return f"cuda.atomic.add({s.buffer.name}, {offset}, {s.value})"
        symbol = {**OPERATORS, **LOGIC}.get(s.operation)
        if symbol is not None:
            return f"{place} = {place} {symbol} {s.value}"
        self.function.uses.add(s.operation)
        return f"{place} = {s.operation}({place}, {s.value})"
