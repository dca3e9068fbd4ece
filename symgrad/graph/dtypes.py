"""Element types and how they combine.

float32 stays float32: Python and NumPy scalars are weak (they take the type of what they meet), and
an integer that meets a float takes the float's type, whatever its width.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from symgrad.graph.errors import DTypeError

DType: TypeAlias = np.dtype[np.generic]
DTypeLike: TypeAlias = npt.DTypeLike

FLOAT32: DType = np.dtype("float32")
FLOAT64: DType = np.dtype("float64")
INT32: DType = np.dtype("int32")
INT64: DType = np.dtype("int64")
BOOL: DType = np.dtype("bool")
DEFAULT = FLOAT32
ALL: tuple[DType, ...] = (BOOL, INT32, INT64, FLOAT32, FLOAT64)
SHORT = {FLOAT32: "f32", FLOAT64: "f64", INT32: "i32", INT64: "i64", BOOL: "b1"}
BOUNDS = {d: (-(2 ** (8 * d.itemsize - 1)), 2 ** (8 * d.itemsize - 1) - 1) for d in (INT32, INT64)}
_RANK = {dtype: rank for rank, dtype in enumerate(ALL)}


def as_dtype(value: DTypeLike) -> DType:
    """The dtype that is meant, one of `ALL`.

    Raises: DTypeError for any other type.

    >>> as_dtype("float32") == FLOAT32
    True
    """
    try:
        dtype = np.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype not in _RANK:
        names = ", ".join(str(d) for d in ALL)
        raise DTypeError(f"dtype: {value!r:.40} is not supported. Use one of {names}.")
    return dtype


def promote(*dtypes: DType) -> DType:
    """The dtype in which operands of these dtypes meet: the highest of bool < int < float.

    >>> promote(INT64, FLOAT32) == FLOAT32, promote(BOOL, INT32) == INT32
    (True, True)
    """
    return max(dtypes, key=_RANK.__getitem__)


def is_float(dtype: DType) -> bool:
    """Whether it is float32 or float64."""
    return dtype.kind == "f"


def is_int(dtype: DType) -> bool:
    """Whether it is int32 or int64."""
    return dtype.kind == "i"


def is_bool(dtype: DType) -> bool:
    """Whether it is bool."""
    return dtype.kind == "b"
