"""The library of matrix products: its text, its machine code, and its place in this process.

It is compiled once for a processor and kept as machine code beside the programs, which call it by
name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import llvmlite.binding as llvm

from codegen.runtime.copying import copying_text
from codegen.runtime.fetching import fetching_text
from codegen.runtime.inner_products import inner_products_text
from codegen.runtime.instruction_sets import Element, InstructionSet, available
from codegen.runtime.microkernels import tiles_text
from codegen.runtime.packed import ROUTINES, packed_text, product_symbol
from codegen.runtime.products import products_text


def library_text(element: Element) -> str:
    """The module of all functions of one element type."""
    parts = (
        copying_text, tiles_text, inner_products_text, products_text, packed_text, fetching_text,
    )  # fmt: skip
    return "\n".join([element.declarations(), *(part(element) for part in parts)])


def _nowhere(name: str, make: Callable[[], bytes]) -> bytes:
    return make()


# How machine code is fetched by name, or made and kept.
fetch: Callable[[str, Callable[[], bytes]], bytes] = _nowhere


def machine(isa: InstructionSet) -> llvm.TargetMachine:
    """This processor, or the least one with a set that is narrower than its own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    own = isa.name == available()[0]
    cpu = llvm.get_host_cpu_name() if own else isa.processor
    features = llvm.get_host_cpu_features().flatten() if own else ""
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=features, opt=2, jit=True)


def object_code(element: Element) -> bytes:
    """The machine code of one element type."""
    module = llvm.parse_assembly(library_text(element))
    return machine(element.isa).emit_object(module)


_engines: dict[str, llvm.ExecutionEngine] = {}


@functools.cache
def link(short: str, isa: InstructionSet) -> int:
    """Make the products of one element type known to LLVM in this process; the address.

    short: "f32" or "f64".
    """
    element = Element(short, isa)
    name = product_symbol(element)
    code = fetch(name, lambda: object_code(element))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine(isa))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    for routine in ROUTINES:
        symbol = product_symbol(element, routine)
        llvm.add_symbol(symbol, engine.get_function_address(symbol))
    _engines[name] = engine
    return int(engine.get_function_address(name))
