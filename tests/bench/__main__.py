"""`python -m tests.bench NAME [--peers numpy,jax,torch,pytensor] [--rounds N] [--threads N]`.

Prints one table. NAME is a workload, raced on one thread unless told, `speed` for all of them in
one short table, what grows: `chain`, `layers`, `kernels`, `steps`, `import`, `compile` for the wait
before the first step, `programs` for the memory of one more program, `checkpoints` for that of a
gradient through many steps, `vector_math` for the scalar functions, `threads` for the same training
on one core and on several (`--threads N`, two unless told), `gemm` for matrix products, or `loops`
for everything but those: it ends with status 1 where a loop is slow without a known reason.
"""

from __future__ import annotations

import argparse

from tests.bench import checkpoints, compiling, gemm, growth, loops, threads, vector_math
from tests.bench.programs import programs
from tests.bench.race import PEERS, race, speed
from tests.bench.workloads import SPECIFICATIONS

GROWTH = {
    "chain": growth.chain,
    "layers": growth.layers,
    "kernels": growth.kernels,
    "import": growth.importing,
    "compile": compiling.compiling,
    "steps": growth.steps,
}
OTHERS = ("checkpoints", "vector_math", "threads", "gemm", "loops", "programs")


def main() -> None:
    """Read the command line and print what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", choices=[*SPECIFICATIONS, "speed", *GROWTH, *OTHERS])
    parser.add_argument(
        "--peers",
        default="",
        metavar="LIST",
        help=f"comma-separated, of: {', '.join(PEERS)}; those not installed are left out",
    )
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each contestant")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of every contestant, on as many cores: 1 unless told; with `threads` 2",
    )
    parser.add_argument(
        "--prototype",
        metavar="FILE",
        help="with vector_math: a Python file of functions for Numba, vexp, vlog, .., to compare",
    )
    parser.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="with loops or threads: the cases whose names match, such as 'rows *'",
    )
    parser.add_argument("--quick", action="store_true", help="with gemm: fewer products")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument(
        "--plot", default="", metavar="FILE", help="with gemm or checkpoints: a PNG or SVG file"
    )
    arguments = parser.parse_args()
    if arguments.name == "gemm":
        print(gemm.table(arguments.dtype, arguments.plot, quick=arguments.quick))
        return
    if arguments.name == "checkpoints":
        print(checkpoints.curve(arguments.plot))
        return
    if arguments.name == "vector_math":
        print(vector_math.speeds(arguments.prototype, arguments.rounds))
        return
    if arguments.name == "threads":
        print(threads.scaling(arguments.only, arguments.threads or 2, arguments.rounds))
        return
    if arguments.name == "loops":
        table, explained = loops.sweep(arguments.only)
        print(table)
        raise SystemExit(not explained)
    if arguments.name in GROWTH:
        print(GROWTH[arguments.name]())
        return
    peers = [peer for peer in arguments.peers.split(",") if peer]
    if unknown := sorted(set(peers) - set(PEERS)):
        parser.error(f"unknown peers {', '.join(unknown)}; known: {', '.join(PEERS)}")
    if arguments.name == "programs":
        print(programs(peers))
    elif arguments.name == "speed":
        print(speed(peers, arguments.rounds, arguments.threads or 1))
    else:
        print(race(arguments.name, peers, arguments.rounds, arguments.threads or 1))


if __name__ == "__main__":
    main()
