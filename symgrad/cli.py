"""The command line: `symgrad demo`, `symgrad doctor`, `symgrad fuzz`, `symgrad cache clear`.

Results go to standard output; errors go to standard error as one message, with exit status 2. With
`--json` standard output holds one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from symgrad._version import __version__
from symgrad.graph.errors import SymgradError

Arguments = argparse.Namespace


def _demo(arguments: Arguments) -> int:
    from symgrad.demo import run

    result = run(
        Path(arguments.out), arguments.quick, quiet=arguments.json, threads=arguments.threads
    )
    if arguments.json:
        print(json.dumps(result.as_json()))
    else:
        print(result.summary())
    return 0


def _doctor(arguments: Arguments) -> int:
    from symgrad.doctor import examine

    findings = examine()
    if arguments.json:
        print(json.dumps({finding.name: finding.as_json() for finding in findings}))
    else:
        print("\n".join(str(finding) for finding in findings))
    return 0 if all(finding.works or finding.optional for finding in findings) else 1


def _fuzz(arguments: Arguments) -> int:
    from symgrad.fuzz.campaign import Found, run

    def show(found: Found) -> None:
        print(f"{found.script}\n")

    summary = run(
        arguments.programs,
        arguments.seed,
        arguments.compiled_every,
        arguments.simulated_every,
        arguments.time,
        shown=False if arguments.json else None,
        show=None if arguments.json else show,
    )
    print(json.dumps(summary.as_json()) if arguments.json else summary)
    return 1 if summary.failures else 0


def _count(text: str) -> int:
    """A number of things, not negative."""
    try:
        n = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if n < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {n}")
    return n


def _cache_clear(arguments: Arguments) -> int:
    from codegen.cache import clear, configured

    files, size = clear()
    folder = str(configured())
    if arguments.json:
        print(json.dumps({"folder": folder, "files": files, "bytes": size}))
    else:
        print(f"removed {files} files ({size / 1e6:.1f} MB) of compiled programs from {folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line; `run` in its result is the command to call."""
    top = argparse.ArgumentParser(
        prog="symgrad",
        description="Networks written as mathematics, differentiated, drawn, compiled and trained.",
    )
    top.add_argument("--version", action="version", version=f"symgrad {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON object, nothing else")

    demo = commands.add_parser(
        "demo",
        parents=[as_json],
        help="train a network on handwritten digits and draw what happens",
        description="Train a 64-32-10 network on handwritten digits; write its pictures, its "
        "derivation and its generated kernels into a folder.",
    )
    demo.add_argument(
        "--out", default="symgrad-demo", metavar="DIR", help="where to write (default %(default)s)"
    )
    demo.add_argument("--quick", action="store_true", help="fewer epochs and smaller pictures")
    demo.add_argument(
        "--threads",
        type=_count,
        default=1,
        metavar="N",
        help="that training may use; work as small as this stays on one (default %(default)s)",
    )
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser(
        "doctor", parents=[as_json], help="say what works on this machine and what to install"
    )
    doctor.set_defaults(run=_doctor)

    _add_fuzz(commands, as_json)

    cache = commands.add_parser("cache", help="manage the folder of compiled programs")
    actions = cache.add_subparsers(title="actions", required=True, metavar="ACTION")
    clear = actions.add_parser("clear", parents=[as_json], help="delete all compiled programs")
    clear.set_defaults(run=_cache_clear)
    return top


def _add_fuzz(commands: Any, as_json: argparse.ArgumentParser) -> None:
    fuzz = commands.add_parser(
        "fuzz",
        parents=[as_json],
        help="judge random programs; a failing one is made small and printed as a script",
        description="Draw random valid programs and judge each: its values as written, stabilised "
        "and simplified; first and second derivatives against central differences; some compiled, "
        "a few on the CUDA target in Numba's simulator. A failing program is made small and "
        "printed as a script that fails alike. The same seeds give the same programs.",
    )
    for name, default, text in (
        ("programs", 100, "how many"),
        ("seed", 0, "of the first program; the others follow"),
        ("compiled-every", 10, "compile every N-th program, 0 for none"),
        ("simulated-every", 100, "run every N-th in the CUDA simulator, 0 for none"),
    ):
        text = f"{text} (default %(default)s)"
        fuzz.add_argument(f"--{name}", type=_count, default=default, metavar="N", help=text)
    fuzz.add_argument("--time", type=float, metavar="SECONDS", help="when to stop")
    fuzz.set_defaults(run=_fuzz)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: the arguments without the program's name; default those of this process.
    Returns: 0 when all went well, 1 when `doctor` found something broken or `fuzz` a failure, 2 on
        an error, 130 when interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (SymgradError, OSError) as error:
        print(f"symgrad: {_message(error)}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"symgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("symgrad: interrupted", file=sys.stderr)
        return 130
    return status


def _message(error: Exception) -> str:
    """Say what went wrong in words that name the file, for errors of the operating system too."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return str(error)


if __name__ == "__main__":
    raise SystemExit(main())
