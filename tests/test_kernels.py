"""The language of generated functions: what it computes, and what it refuses."""

from __future__ import annotations

import re
from itertools import count
from textwrap import indent
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba.core.errors import TypingError

from codegen import loading
from codegen.runtime.linking import linked
from codegen.runtime.object_files import _written, optimized, program_code

HEAD = """
import numpy as np

from codegen.runtime.kernels import kernel
from codegen.runtime.loops import interleaved
from codegen.runtime.memory import address, extent, ld, pointer_f32, shift, st
from codegen.runtime.vector_math import cast_int64, exp, maximum

f32, f64, i32, i64 = np.float32, np.float64, np.int32, np.int64
nan, half, most = np.nan, 0.5, 9
TABLE = np.array([[7, -1, 5], [30, 2**40, 9]], np.int64)


@kernel
def twice(x):
    return x + x


@kernel
def add(p, q, n):
    for i in range(n):
        st(p, i, ld(p, i, 0) + ld(q, i, 1), 0)
"""
numbers = count()


def program(body: str) -> Any:
    """A program with this body, of n = 3 and of p, q float32[4]."""
    read = "n = extent(dims, 0)\np = pointer_f32(table, 0)\nq = pointer_f32(table, 1)\n"
    text = f"{HEAD}\n\n@kernel\ndef program(table, dims):\n{indent(read + body, '    ')}\n"
    name = f"kernels_{next(numbers)}"
    return loading.run_module(name, text, f"<{name}>").program


def run(body: str) -> tuple[int, list[float]]:
    """What a program returns, and what it leaves in p, which begins as 1, 2, 3, 4."""
    machine_code = linked(program_code(program(body)))
    p, q = np.arange(1, 5, dtype=np.float32), np.array([10, 20, 30, 40], np.float32)
    table, dims = np.array([p.ctypes.data, q.ctypes.data]), np.array([3])
    return machine_code(table.ctypes.data, dims.ctypes.data), p.tolist()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("n * 7 - 2 + 1", 20),
        ("-n", -3),
        ("n + i64(n > 2)", 4),
        ("twice(n) + twice(5)", 16),
        ("most + 1", 10),
        ("TABLE[1, n - 2] + TABLE[0, 0]", 2**40 + 7),
        ("5 if n == 3 else 6", 5),
        ("5 if n != 3 else 6", 6),
        ("i64(i32(2147483647) + i32(1))", 2**31),  # sums are int64
        ("i64(i32(2147483648))", -(2**31)),
        ("i64((n > 2) & (n < 3))", 0),
        ("i64((n > 2) | (n < 3))", 1),
        ("i64((n > 2) ^ (n >= 3))", 0),
        ("i64(n > 2 and n <= 3 and not n == 4)", 1),
        ("i64(n < 2 or n > 5)", 0),
        ("6 ^ n", 5),
        ("cast_int64(f64(n) * half / f64(4.0) * 1000.0)", 375),
        ("cast_int64(f32(n) / f32(8) * f32(1000.0))", 375),
        ("i64(f32(nan) == f32(nan)) + 2 * i64(f32(nan) != f32(nan))", 2),
        ("cast_int64(-f32(n) + maximum(f32(2.5), f32(1.5)) * f32(2))", 2),
        ("cast_int64(ld(shift(p, n), 0, -1) + ld(p, 1, -1))", 6),
    ],
)
def test_values(value: str, expected: int) -> None:
    assert run(f"if n < 0:\n    return 0\nreturn {value}") == (expected, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("body", "result", "expected"),
    [
        ("add(p, q, n)\nadd(p, q, 1)\nreturn 0", 0, [21, 22, 33, 4]),
        ("add(p, p, 0)\nadd(p, q, -5)\nreturn 0", 0, [1, 2, 3, 4]),
        ("for i in range(3, 0, -2):\n    st(p, i, f32(i), 0)\nreturn 1", 1, [1, 1, 3, 3]),
        ("for i in range(1, 3):\n    st(p, i, f32(0.1), 0)\nreturn 1", 1, [1, 0.1, 0.1, 4]),
        ("for i in interleaved(4, n):\n    st(p, i, f32(i), 0)\nreturn 1", 1, [0, 1, 2, 4]),
        ("for i in interleaved(2, 1, n):\n    st(p, i, f32(i), 0)\nreturn 1", 1, [1, 1, 2, 4]),
        ("for i in interleaved(2, 5, n):\n    st(p, i, f32(i), 0)\nreturn 1", 1, [1, 2, 3, 4]),
        ("s = 0\nfor i in range(n):\n    for j in range(i):\n        s += 9 * j\nreturn s", 9, []),
        ("a = 1\nb = 2\nfor i in range(n):\n    c = a\n    a = b\n    b = c + b\nreturn b", 8, []),
        ("if n > 5:\n    a = 1\nelif n > 2:\n    a = 2\nelse:\n    a = 3\nreturn a", 2, []),
        ("for i in range(n):\n    if i == 1:\n        return 40 + i\nreturn 0", 41, []),
        (
            "k = 0\nwhile k < 9:\n    k += 1\n    if k < 8:\n        continue\n    return k\nreturn 0",  # noqa: E501
            8,
            [],
        ),
        ("s = 0\nfor i in range(5):\n    if i != n:\n        s += i\nreturn s", 7, []),
        (
            "s = 0\nfor i in range(5):\n    if i == n:\n        continue\n    s += i\nreturn s",
            7,
            [],
        ),
        # a name that one loop counts with and another computes
        (
            "t = 0\nfor s in range(2):\n    t = 5 - s\n    add(p, q, 1)\n"
            "for t in range(2):\n    st(p, t, f32(t), 0)\nreturn t",
            1,
            [0, 1, 3, 4],
        ),
        (
            "for i in range(n):\n    pass\nfor i in range(2):\n    add(p, q, i)\nreturn 0",
            0,
            [11, 2, 3, 4],
        ),
    ],
)
def test_statements(body: str, result: int, expected: list[float]) -> None:
    returned, p = run(body)
    assert returned == result
    assert p == np.array(expected or [1, 2, 3, 4], np.float32).tolist()


def test_a_function_is_compiled_once_for_each_type() -> None:
    text = str(optimized(program("return twice(n) + twice(n + 1) + twice(i32(n))")))
    assert text.count("define internal") == 3  # the body, and twice of int64 and of int32


def test_each_loop_has_its_own_advice() -> None:
    """To LLVM, loops whose advice is one node are one loop; that node is its own first part."""
    loop = "for i in interleaved(8, n):\n    st(p, i, exp(ld(q, i, 1)), 0)\n"
    text = str(llvm.parse_assembly(_written(program(2 * loop + "return 0"))))
    told = re.findall(r"!llvm.loop (!\d+)", text)
    assert len(set(told)) == len(told) == 2
    (wish,) = re.findall(r'(!\d+) = !{!"llvm.loop.interleave.count", i32 8}', text)
    assert all(f"{loop} = distinct !{{{loop}, {wish}}}" in text for loop in told)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("del n\nreturn 0", "del n.*no statement of the language"),
        ("if n > 2:\n    return 0", "it may end without a return"),
        ("return [n]", r"`\[n\]`: no value of the language"),
        ("return n // 2", "n // 2.*no such operation on int64"),
        ("return n / 2", "no such operation on int64"),
        ("return unknown", "unknown has no value here"),
        ("return i64(ld(p, 0, 0) + 1.5)", "float32 meets float64"),
        ("return i64(f64(n) + n)", "float64 meets int64"),
        ("a = 1\na = f32(2)\nreturn 0", "a was int64 before, and is float32 now"),
        ("table = 1\nreturn 0", "the argument table is assigned"),
        ("for i in range(0, 5, n):\n    pass\nreturn 0", "the step of a loop is a number"),
        ("for i in (1, 2):\n    pass\nreturn 0", "loops run over range"),
        ("for i in interleaved(n, 5):\n    pass\nreturn 0", "no number of vectors"),
        ("for i in interleaved(4):\n    pass\nreturn 0", "no bounds"),
        ("return len(p)", "not a call of an intrinsic, a kernel or a dtype"),
        ("return TABLE[0]", "a table has two axes"),
        ("st(p, 0, 1.5, 0)\nreturn 0", "a float64 value into float32 memory"),
        ("return exp(p)", "exp: arguments of one type are needed"),
        ("a = b = 1\nreturn 0", "one name is assigned at a time"),
        ("return 1 < n < 2", "no comparison of two values"),
    ],
)
def test_what_is_not_in_the_language_is_refused(body: str, message: str) -> None:
    with pytest.raises(TypingError, match=message):
        program_code(program(body))
