"""A kernel and all that it calls as an object file.

Numba lends its types and its intrinsics. Its own road from a function to machine code optimises
each module three times; here one module of the whole program is optimised once.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import llvmlite.binding as llvm
import numba.cpython.numbers  # registers constants
from llvmlite import ir
from numba import types
from numba.core import cgutils, fastmathpass
from numba.core.compiler_lock import global_compiler_lock
from numba.core.imputils import builtin_registry
from numba.core.registry import cpu_target

from codegen.runtime.linking import PROGRAM, target_machine
from codegen.runtime.memory import FAST


def object_code(program: Any, slp: bool = True) -> bytes:
    """The machine code for this processor of a kernel `program(table, dims)`, and what it calls.

    Args:
        program: made by `kernels.kernel`.
        slp:     let LLVM also vectorise straight-line code, such as short unrolled rows.

    Raises: TypingError for what is not in the language of kernels.
    """
    code: bytes = target_machine().emit_object(optimized(program, slp))
    return code


def optimized(program: Any, slp: bool = True) -> llvm.ModuleRef:
    """LLVM's code of a kernel `program(table, dims)` and of all that it calls."""
    with global_compiler_lock:
        module = _written(program)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization, options.slp_vectorization = True, slp
    passes = llvm.create_pass_builder(target_machine(), options)
    passes.getModulePassManager().run(module, passes)
    return module


def _written(program: Any) -> llvm.ModuleRef:
    """The same before LLVM's passes."""
    context = cpu_target.target_context
    context.install_registry(builtin_registry)  # for constants; the rest is loaded when needed
    library = context.codegen().create_library(PROGRAM)
    module = library.create_ir_module(PROGRAM)
    word = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(word, [word, word]), PROGRAM)
    builder = ir.IRBuilder(function.append_basic_block())
    signature, emit = program._defn(cpu_target.typing_context, types.int64, types.int64)
    with context.push_code_library(library):
        builder.ret(emit(context, builder, signature, function.args))
    fastmathpass.rewrite_module(module, SimpleNamespace(flags=FAST))
    made = llvm.parse_assembly(cgutils.normalize_ir_text(str(module)))
    for used in library._linking_libraries:  # Numba's own functions, such as integer powers
        made.link_in(used._get_module_for_linking(), preserve=True)
    return made
