"""What both PyTensor contestants share: its Numba mode, and float32 throughout."""

from __future__ import annotations

import os
from typing import Any


def prepare() -> Any:
    """Configure PyTensor and return its module of tensors and its module itself."""
    flags = "floatX=float32,cast_policy=numpy+floatX"
    if folder := os.environ.get("BENCH_PYTENSOR_CACHE"):
        flags += f",base_compiledir={folder}"
    os.environ["PYTENSOR_FLAGS"] = flags
    import pytensor

    return pytensor
