"""The names that a generated program may use, by the module of the runtime that defines them.

Printing needs the names alone; the modules load Numba.
"""

from __future__ import annotations

#: Alias scopes that one kernel may use.
SCOPES = 32
_NAMES = {
    "checks": "checked_index checked_label clear_report reported",
    "clock": "now",
    "draws": "second_float32 second_float64 uniform_float32 uniform_float64",
    "kernels": "kernel",
    "linalg": """
        gemm_f32 gemm_f64 gemm_fetching_f32 gemm_fetching_f64 gemm_packed_f32
        gemm_packed_f64 pack_f32 pack_f64
    """,
    "loops": "interleaved",
    "memory": """
        address at_b1 at_f32 at_f64 at_i32 at_i64 copy_block extent ld pointer_b1
        pointer_f32 pointer_f64 pointer_i32 pointer_i64 ranges_of shift st
    """,
    "rows": """
        ld_row places row_last row_max row_min row_product row_sum running_product
        running_sum st_row
    """,
    "teams": "first_of meet",
    "vector_math": """
        abs arctan cast_bool cast_float32 cast_float64 cast_int32 cast_int64 copysign
        cos cosh erf exp expm1 floor floor_divide fma greatest isfinite isnan least log
        log1p maximum minimum mod plus pow ratio rsqrt select sigmoid sign sin sinh
        softplus sqrt tan tanh times whole_add whole_mul whole_sub
    """,
}
RUNTIME = {module: frozenset(names.split()) for module, names in _NAMES.items()}
