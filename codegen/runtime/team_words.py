"""Where the words of a team's record and of a helper's mailbox lie; see `teams`."""

from __future__ import annotations

#: Words on one cache line; two lines, since processors fetch them in pairs.
LINE = 16
#: The most workers of a team: mailboxes are made at once, and helpers keep theirs.
MOST = 64
ARRIVED, ROUND, SIZE, SPINS = 0, LINE, 2 * LINE, 2 * LINE + 1
SETTLE = 2 * LINE + 2
#: Of each worker a line: the core that it was last seen on, -1 while that is not known; and behind
#: it whether the worker keeps away from some cores.
SEEN_ON, KEPT = 3 * LINE, 1
#: Of each worker two lines: the cores that it may use, and those of them that it will.
ALLOWED, CHOSEN = SEEN_ON + MOST * LINE, SEEN_ON + MOST * LINE + LINE
RECORD_WORDS = SEEN_ON + 3 * MOST * LINE
#: A mailbox: jobs so far, then the job; jobs done by the helper lie on a line of their own.
GO, PROGRAM, TABLE, DIMS, TEAM, WORKER, FLUSH = range(7)
SEEN = LINE
MAILBOX_WORDS = 2 * LINE
