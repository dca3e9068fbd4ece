"""Compiled programs called many times without Python in between."""

from __future__ import annotations

import ctypes

import llvmlite.binding as llvm

from codegen.streams import least_time, machine

CALLER = """
define void @repeat(i64 %program, i64 %table, i64 %dims, i64 %count) {
entry:
  %f = inttoptr i64 %program to ptr
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
  %s = call i64 %f(i64 %table, i64 %dims)
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


class Repeated:
    """Calls a compiled program many times without Python in between."""

    def __init__(self) -> None:
        module = llvm.parse_assembly(CALLER)
        self.engine = llvm.create_mcjit_compiler(module, machine())
        self.engine.finalize_object()
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
        self.function = kind(self.engine.get_function_address("repeat"))

    def seconds(self, address: int, table: int, dims: int, seconds: float) -> float:
        """The least time of one call."""
        return least_time(lambda count: self.function(address, table, dims, count), seconds)
