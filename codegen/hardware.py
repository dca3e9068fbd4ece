"""What this core can do at best: fused multiply-adds per second, measured."""

from __future__ import annotations

import ctypes
import time

ACCUMULATORS = 12  # enough to hide the latency of two units, few enough for 16 registers


def fma_peak(seconds: float = 0.3) -> tuple[float, int]:
    """Measure the float32 multiply-add rate of one core.

    A loop over independent vector accumulators that never touches memory: `a_k = a_k * c + d`.

    Returns: operations per second (a multiply-add counts two) and the vector width in elements.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    width = 16 if features.get("avx512f") else 8 if features.get("avx") else 4
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3
    )
    module = llvm.parse_assembly(_assembly(width))
    module.verify()
    with llvm.create_mcjit_compiler(module, machine) as engine:
        engine.finalize_object()
        loop = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(
            engine.get_function_address("multiply_add")
        )
        count, best = 1 << 20, 0.0
        loop(count)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            loop(count)
            taken = time.perf_counter() - start
            best = max(best, 2.0 * width * ACCUMULATORS * count / taken)
    return best, width


def _assembly(width: int) -> str:
    """The loop as LLVM text."""
    vector = f"<{width} x float>"
    ks = range(ACCUMULATORS)
    phis = [
        f"  %a{k} = phi {vector} [ splat (float {k + 1}.0), %entry ], [ %n{k}, %loop ]" for k in ks
    ]
    steps = [
        f"  %n{k} = call {vector} @llvm.fma.v{width}f32({vector} %a{k}, "
        f"{vector} splat (float 0.5), {vector} splat (float 1.0))"
        for k in ks
    ]
    sums = [
        f"  %s{k} = fadd {vector} %n{k}, " + (f"%s{k - 1}" if k else "zeroinitializer") for k in ks
    ]
    return "\n".join(
        [
            f"declare {vector} @llvm.fma.v{width}f32({vector}, {vector}, {vector})",
            "define float @multiply_add(i64 %count) {",
            "entry:",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %entry ], [ %j, %loop ]",
            *phis,
            *steps,
            "  %j = add i64 %i, 1",
            "  %more = icmp slt i64 %j, %count",
            "  br i1 %more, label %loop, label %done",
            "done:",
            *sums,
            f"  %result = extractelement {vector} %s{ACCUMULATORS - 1}, i32 0",
            "  ret float %result",
            "}",
        ]
    )
