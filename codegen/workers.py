"""The threads that run programs together with the thread that calls them.

Helpers are Python threads that stay in compiled code: one takes a job from its mailbox, runs its
part of the program without the interpreter's lock, and looks for the next job for a short time;
then it parks, waiting for a lock of Python, and costs nothing. Calls from several Python threads
take turns: a call has all of its workers or waits for them, so that its bits never depend on what
else happens. A child process after a fork has helpers of its own, made when it first needs them;
at the end of the interpreter they are told to end.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import suppress
from functools import cache
from typing import Any, Protocol

import numpy as np

from codegen.runtime.team_words import (
    GO,
    MAILBOX_WORDS,
    MOST,
    RECORD_WORDS,
    SEEN,
    SIZE,
    SPINS as SPINS_WORD,
)

#: Looks of a helper for its next job, and of a wait in a program before it gives its core away:
#: about 100 us and 4 ms where a pause takes 40 ns (Sapphire Rapids). The second is as long as a
#: system lets one process run while another waits for the core: who gives away its core earlier
#: has to wait for so long, and lets all others wait. Nobody spins where there are more workers
#: than cores.
PATIENCE, SPINS = 2500, 100_000
SERVE, POST, LEAD = range(3)
SOURCE = '''\
"""What helpers and their leader do; see codegen/workers.py and codegen/runtime/teams.py."""

from codegen.runtime.kernels import kernel
from codegen.runtime.teams import lead, post, serve


@kernel
def program(what, a, b, c, d, e):
    if what == 0:
        return serve(a, b)
    if what == 1:
        return post(a, b, c, d, e)
    return lead(a, b, c, d)
'''


class _Control(Protocol):
    def __call__(self, what: int, /, *arguments: int) -> int: ...


@cache
def _control() -> _Control:
    """The compiled functions: (SERVE, mailbox, patience), (POST, ..), (LEAD, ..)."""
    from codegen.loading import load

    call = load(SOURCE, "workers").function(6)

    def control(what: int, /, *arguments: int) -> int:
        status: int = call(what, *arguments, *[0] * (5 - len(arguments)))
        return status

    return control


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _aligned(words: int) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    """Zeros that begin a cache line, and their address."""
    memory = np.zeros(words + 16, np.int64)
    skip = -(memory.ctypes.data // 8) % 16
    words_there = memory[skip : skip + words]
    return words_there, words_there.ctypes.data


class _Helper:
    """A thread and its mailbox."""

    def __init__(self, number: int, box: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.box, self.parked, self.wake = box, False, threading.Lock()
        self.wake.acquire()
        self.thread = threading.Thread(
            target=self._work, name=f"symgrad worker {number}", daemon=True
        )
        self.thread.start()

    def _work(self) -> None:
        control = _control()
        while not control(SERVE, self.box.ctypes.data, PATIENCE if cores() > 1 else 0):
            self.parked = True  # before it looks: who posts a job looks at this afterwards
            if self.box[GO] == self.box[SEEN]:
                self.wake.acquire()
            self.parked = False

    def call(self) -> None:
        """Wake the thread if it is parked."""
        if self.parked:
            self.parked = False
            with suppress(RuntimeError):  # it saw the job by itself, and is owed a wake already
                self.wake.release()


class Team:
    """The workers of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helpers: list[_Helper] = []
        self._record, self._team = _aligned(RECORD_WORDS)
        boxes, self._boxes = _aligned(MOST * MAILBOX_WORDS)
        self._mail = boxes.reshape(MOST, MAILBOX_WORDS)

    def run(self, workers: int, program: int, table: int, dims: int) -> int:
        """Run a program on `workers` threads, this one among them; returns its status.

        Args:
            workers: 1 to MOST.
            program: address of int64 program(int64 table, int64 dims, int64 team, int64 worker).
        """
        control = _control()
        with self._lock:
            while len(self._helpers) < workers - 1:
                k = len(self._helpers)
                self._helpers.append(_Helper(k + 1, self._mail[k]))
            self._record[SIZE] = workers
            self._record[SPINS_WORD] = SPINS if workers <= cores() else 0
            control(POST, self._boxes, program, table, dims, self._team)
            for helper in self._helpers[: workers - 1]:
                helper.call()
            return control(LEAD, program, table, dims, self._team)

    def end(self) -> None:
        """Tell all helpers to end, and wait until they have."""
        with self._lock:
            if not self._helpers:
                return
            self._record[SIZE] = len(self._helpers) + 1
            _control()(POST, self._boxes, 0, 0, 0, self._team)
            for helper in self._helpers:
                helper.call()
            for helper in self._helpers:
                helper.thread.join(timeout=1.0)
            self._helpers.clear()


@cache
def team() -> Team:
    """The team of this process."""
    made = Team()
    atexit.register(made.end)
    return made


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=team.cache_clear)
