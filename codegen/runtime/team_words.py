"""Where the words of a team's record and of a helper's mailbox lie; see `teams`."""

from __future__ import annotations

#: Words on one cache line; two lines, since processors fetch them in pairs.
LINE = 16
ARRIVED, ROUND, SIZE, SPINS = 0, LINE, 2 * LINE, 2 * LINE + 1
RECORD_WORDS = 3 * LINE
#: A mailbox: jobs so far, then the job; jobs done by the helper lie on a line of their own.
GO, PROGRAM, TABLE, DIMS, TEAM, WORKER, FLUSH = range(7)
SEEN = LINE
MAILBOX_WORDS = 2 * LINE
