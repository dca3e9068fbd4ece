"""`python -m tests.bench NAME [--peers numpy,jax,torch,pytensor] [--rounds N]`: print one table.

NAME is a workload, `speed` for all of them in one short table, or what grows: `chain`, `layers`,
`import`.
"""

from __future__ import annotations

import argparse

from tests.bench import growth
from tests.bench.race import PEERS, race, speed
from tests.bench.workloads import SPECIFICATIONS

GROWTH = {"chain": growth.chain, "layers": growth.layers, "import": growth.importing}


def main() -> None:
    """Read the command line and print what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", choices=[*SPECIFICATIONS, "speed", *GROWTH])
    parser.add_argument(
        "--peers",
        default="",
        metavar="LIST",
        help=f"comma-separated, of: {', '.join(PEERS)}; those not installed are left out",
    )
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each contestant")
    arguments = parser.parse_args()
    if arguments.name in GROWTH:
        print(GROWTH[arguments.name]())
        return
    peers = [peer for peer in arguments.peers.split(",") if peer]
    if unknown := sorted(set(peers) - set(PEERS)):
        parser.error(f"unknown peers {', '.join(unknown)}; known: {', '.join(PEERS)}")
    if arguments.name == "speed":
        print(speed(peers, arguments.rounds))
    else:
        print(race(arguments.name, peers, arguments.rounds))


if __name__ == "__main__":
    main()
