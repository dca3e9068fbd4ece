"""Object files: a kernel and all that it calls as machine code.

Numba lends its types and its intrinsics. Its own road from a function to machine code optimises
each module three times; here one module of the whole program is optimised once.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, fastmathpass
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from codegen.runtime.linking import PROGRAM, target_machine
from codegen.runtime.memory import FAST


def program_code(program: Any, slp: bool = True) -> bytes:
    """The machine code for this processor of a kernel of addresses and numbers, and what it calls.

    Args:
        program: made by `kernels.kernel`; all its arguments are int64.
        slp:     let LLVM also vectorise straight-line code, such as short unrolled rows.

    Raises: TypingError for what is not in the language of kernels.
    """
    code: bytes = target_machine().emit_object(optimized(program, slp))
    return code


def optimized(program: Any, slp: bool = True) -> llvm.ModuleRef:
    """LLVM's code of such a kernel and of all that it calls."""
    target = target_machine()
    with global_compiler_lock:  # types and constants go with the context: LLVM's own keeps them
        module = llvm.parse_assembly(_written(program), llvm.create_context())
    module.data_layout = str(target.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization, options.slp_vectorization = True, slp
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    return module


def _written(program: Any) -> str:
    """The same before LLVM's passes, as text."""
    module = ir.Module(PROGRAM)
    module.triple = llvm.get_process_triple()
    kinds = [types.int64] * (len(inspect.signature(program._defn).parameters) - 1)
    words = [ir.IntType(64)] * len(kinds)
    function = ir.Function(module, ir.FunctionType(ir.IntType(64), words), PROGRAM)
    builder = ir.IRBuilder(function.append_basic_block())
    signature, emit = program._defn(cpu_target.typing_context, *kinds)
    builder.ret(emit(cpu_target.target_context, builder, signature, function.args))
    fastmathpass.rewrite_module(module, SimpleNamespace(flags=FAST))
    return str(cgutils.normalize_ir_text(str(module)))
