"""Kernels of one scalar function each, with the flags of generated code; and their machine code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numba.core import types

from codegen.runtime import vector_math
from codegen.runtime.memory import FAST

FLOATS = (np.float32, np.float64)


@cache
def compiled(name: str, arity: int = 1) -> Callable[..., None]:
    """A kernel out[i] = name(x[i], ..) with the flags of generated code."""
    f = vector_math.PRIMITIVES[name]
    options = {"fastmath": FAST, "error_model": "numpy"}
    if arity == 1:

        @njit(**options)
        def one(x, out):
            for i in range(x.size):
                out[i] = f(x[i])

        return one

    @njit(**options)
    def two(x, y, out):
        for i in range(x.size):
            out[i] = f(x[i], y[i])

    return two


def apply(name: str, *arrays: np.ndarray, dtype: object = None) -> np.ndarray:
    """The function's values on arrays."""
    out = np.empty(arrays[0].shape, dtype or arrays[0].dtype)
    compiled(name, len(arrays))(*arrays, out)
    return out


def machine_code(name: str, dtype: Any = np.float32, arity: int = 1) -> str:
    """The assembly of the kernel for one precision."""
    kernel: Any = compiled(name, arity)
    kernel(*(np.ones(3, dtype) for _ in range(arity + 1)))
    element = types.float32 if dtype is np.float32 else types.float64
    signature = next(s for s in kernel.signatures if s[0].dtype == element)
    return str(kernel.inspect_asm(signature))


def has_wide_vectors() -> bool:
    """Whether the processor has AVX2 and fused multiplication."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return bool(features.get("avx2") and features.get("fma"))
