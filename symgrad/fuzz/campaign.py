"""Many programs: every one evaluated and differentiated, some compiled, a few simulated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import symgrad as sg
from symgrad.fuzz import simulation
from symgrad.fuzz.drawing import random_program
from symgrad.fuzz.judges import JUDGES, Failure, Seen, judged
from symgrad.fuzz.minimisation import minimised
from symgrad.fuzz.programs import Line, Program, Step
from symgrad.fuzz.scripts import runnable
from symgrad.train.progress import progress_bar

BATCH = 10  # programs in one process of the simulator
MOST = 5  # failures that are shown; then the campaign ends


@dataclass(frozen=True, slots=True)
class Found:
    """A failure: the seed of its program, its kind, and a script that shows it."""

    seed: int
    kind: str
    message: str
    script: str


@dataclass(slots=True)
class Summary:
    """What a campaign did.

    programs: how many were judged; `first` is the seed of the first.
    seen:     nodes by kind, and programs by judge.
    verbs:    lines by function.
    skipped:  why no program was simulated, if none was.
    """

    first: int
    programs: int = 0
    seconds: float = 0.0
    seen: Seen = field(default_factory=Seen)
    verbs: Counter[str] = field(default_factory=Counter)
    failures: list[Found] = field(default_factory=list)
    skipped: str = ""

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "seed": self.first,
            "programs": self.programs,
            "seconds": round(self.seconds, 1),
            "judged": dict(self.seen.judged),
            "nodes": dict(self.seen.nodes),
            "verbs": dict(self.verbs),
            "unseen": missing_verbs(self.verbs),
            "failures": [
                {"seed": f.seed, "kind": f.kind, "message": f.message, "script": f.script}
                for f in self.failures
            ],
        }

    def __str__(self) -> str:
        last = self.first + self.programs - 1
        judges = ", ".join(f"{name} {n}" for name, n in self.seen.judged.items())
        nodes = ", ".join(f"{name} {n}" for name, n in self.seen.nodes.most_common())
        verbs = ", ".join(f"{name} {n}" for name, n in self.verbs.most_common())
        unseen = missing_verbs(self.verbs)
        lines = [
            f"{self.programs} programs, seeds {self.first} to {last}, {self.seconds:.0f} s: "
            + (f"{len(self.failures)} failed" if self.failures else "no failure"),
            f"judged  {judges}" + (f" (simulator: {self.skipped})" if self.skipped else ""),
            f"nodes   {nodes}",
            f"verbs   {verbs}",
        ]
        if unseen:
            lines.append(f"unseen  {', '.join(unseen)}")
        lines += [f"seed {f.seed}: {f.kind}: {f.message.splitlines()[0]}" for f in self.failures]
        return "\n".join(lines)


def functions_of(lines: tuple[Line, ...]) -> Iterator[str]:
    """The functions of lines, those in steps included."""
    for line in lines:
        yield line.function
        for arg in line.args:
            if isinstance(arg, Step):
                yield from functions_of(arg.lines)


def missing_verbs(verbs: Counter[str]) -> list[str]:
    """The verbs of the face that no program had."""
    used = {name.rpartition(".")[2] for name in verbs}
    return sorted(name for name in verbs_of_face() if name not in used)


#: Names of the face that make expressions, but no lines of a program.
OTHERS = {
    "dim", "input", "inputs", "parameter", "parameters", "evaluate", "latex", "cost", "derive",
    "draw", "gradient_flow", "explain_nan", "to_networkx", "to_sympy", "compile",
}  # fmt: skip


def verbs_of_face() -> list[str]:
    """The functions of the face that make expressions from expressions."""
    return [
        name for name in sg.__all__
        if name[0].islower() and name not in OTHERS and callable(getattr(sg, name))
    ]  # fmt: skip


def run(
    programs: int = 100,
    seed: int = 0,
    compiled_every: int = 10,
    simulated_every: int = 100,
    seconds: float | None = None,
    shrink: float = 60.0,
    shown: bool | None = None,
    show: Callable[[Found], None] | None = None,
) -> Summary:
    """Judge the programs of the seeds `seed`, `seed + 1`, ..

    Args:
        programs:        how many.
        compiled_every:  every which one is compiled; 0 is none.
        simulated_every: every which one runs in the CUDA simulator; 0 is none.
        seconds:         when to stop; None is when all are done.
        shrink:          how many seconds a failing program is made smaller.
        shown:           whether a progress bar is; None is when standard error is a terminal.
        show:            told of every failure as it is found.
    """
    start = time.monotonic()
    summary = Summary(seed)
    waiting: list[int] = []
    if simulated_every and not simulation.is_available():
        summary.skipped = "this Numba has none; install symgrad[cuda]"
    with progress_bar(programs, shown) as report:
        for k in range(programs):
            over = seconds is not None and time.monotonic() - start > seconds
            if over or len(summary.failures) >= MOST:
                break
            program = random_program(seed + k)
            summary.programs += 1
            summary.verbs.update(functions_of(program.lines))
            names = ["evaluated", "differentiated"]
            if compiled_every and k % compiled_every == 0:
                names.append("compiled")
            _judge(program, names, summary, shrink, show)
            if simulated_every and k % simulated_every == 0 and not summary.skipped:
                waiting.append(seed + k)
            if len(waiting) == BATCH:
                _simulate(waiting, summary, shrink, show)
            report(k + 1, lambda k=k: f"seed {seed + k}, {len(summary.failures)} failed")  # type: ignore[misc]
        if waiting:
            _simulate(waiting, summary, shrink, show)
    summary.seconds = time.monotonic() - start
    return summary


Show = Callable[[Found], None] | None


def _judge(program: Program, names: list[str], summary: Summary, shrink: float, show: Show) -> None:
    for name in names:
        failure = judged(JUDGES[name], program, summary.seen)
        if failure is None:
            continue
        small, small_failure = minimised(program, failure, shrink)
        _add(summary, program.seed, small_failure, runnable(small, small_failure), show)
        return


def _add(summary: Summary, seed: int, failure: Failure, script: str, show: Show) -> None:
    found = Found(seed, failure.kind, failure.message, script)
    summary.failures.append(found)
    if show is not None:
        show(found)


def _simulate(waiting: list[int], summary: Summary, shrink: float, show: Show) -> None:
    """Judge what waits for the simulator, in one process."""
    for seed, what in simulation.verdicts(waiting, shrink).items():
        summary.seen.judged["simulated"] += 1
        if what is not None:
            _add(summary, seed, Failure(what["kind"], what["message"]), what["script"], show)
    waiting.clear()
