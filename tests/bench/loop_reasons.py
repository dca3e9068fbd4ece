"""Why a loop stays below half of its limit: patterns of case and level, and the reason.

Read off the machine code and timed on an Intel Sapphire Rapids. "Units" are its two for vectors of
512 bits; only one of them moves elements between the lanes of a vector.
"""

from __future__ import annotations

import fnmatch

GATHERED = "sixteen rows at a time, one a lane: elements are gathered, eight by an instruction"
SCATTERED = "sixteen rows at a time, one a lane: gathered and scattered, eight by an instruction"
LANES = "the lanes of a short row's vector are merged: four moves between lanes, on one unit"
TWICE = "the lanes of a row are merged twice, the second time when the first total is known"
WAITS = "a row of ten is two loads joined to one vector, and waits for the row before"
EXTREME = "NaN must win: three instructions for a vector where a sum takes one"
PLACES = "two passes, value then place, and comparisons that see NaN: about ten instructions"
GATHERED_PLACES = "gathered as sixteen rows at a time; then five instructions for a place's vector"
PASSES = "two passes over a row: its mean first, so that no digits cancel"
CHAINED = "a row is one vector, merged twice, then a logarithm by itself: 114 instructions"
RUNNING = "four moves between lanes and four sums for a vector; the moves are on one unit"
SHORT_RUN = "a row of ten is a vector of its own, with four moves between its lanes"
IN_MEMORY = "the results of the columns are read and written again with each row"

# Cases, levels, reason; the first that fits counts.
REASONS: tuple[tuple[str, str, str], ...] = (
    ("elements to float64", "L1", "a conversion reads half a vector: twice as many loads"),
    ("elements short rows", "L1 L2", "a row of ten is two loads and two stores, which cross lines"),
    ("layer batch norm", "L1 L2 L3", "three passes over the array: mean, variance, result"),
    ("layer batch norm backward", "L1 L2 L3", "five passes over arrays; a pass is counted once"),
    ("layer cross entropy* 10", "L1 L2 L3", CHAINED),
    ("layer cross entropy* 64", "L1 L2 L3", CHAINED),
    ("layer softmax* 10", "L1 L2 L3", GATHERED),
    ("layer softmax* 64", "L1 L2 L3", LANES),
    ("layer norm backward 10", "L1 L2 L3", SCATTERED),
    ("layer norm 10", "L1 L2 L3", SCATTERED),
    ("layer norm 64", "L1 L2", LANES),
    ("layer norm backward 64", "L1 L2", LANES),
    ("layer norm 1000", "L1 L2", "three passes over a row: mean, variance, result"),
    ("layer norm backward 1000", "L1 L2", "four passes over a row, and sums of columns in memory"),
    ("rows logsumexp 16", "L1 L2 L3", CHAINED),
    ("rows logsumexp 64", "L1 L2 L3", CHAINED),
    ("rows argmax 10", "L1 L2 L3", GATHERED_PLACES),
    ("rows argmax 16", "L1 L2 L3", TWICE),
    ("rows argmax *", "L1 L2 L3", PLACES),
    ("columns argmax 10", "L1 L2 L3", WAITS),
    ("columns argmax *", "L1 L2 L3", PLACES),
    ("rows max 10", "L1 L2", GATHERED),
    ("rows min 10", "L1 L2", GATHERED),
    ("rows max *", "L1 L2", EXTREME),
    ("rows min *", "L1 L2", EXTREME),
    ("all max", "L1", EXTREME),
    ("rows sum 10", "L1 L2", GATHERED),
    ("rows mean 10", "L1 L2", GATHERED),
    ("rows var 10", "L1 L2", GATHERED),
    ("rows var 16", "L1 L2 L3", TWICE),
    ("rows var *", "L1 L2 L3", PASSES),
    ("rows sum 16", "L1 L2", LANES),
    ("rows mean 16", "L1 L2", LANES),
    ("rows sum 64", "L1", LANES),
    ("rows mean 64", "L1", LANES),
    ("rows sum 1000", "L1", LANES),
    ("rows mean 1000", "L1", LANES),
    ("columns logsumexp 10", "L1 L2 L3", "ten of the sixteen lanes of a vector are used"),
    ("columns max 10", "L1 L2 L3", WAITS),
    ("columns min 10", "L1 L2 L3", WAITS),
    ("columns var 10", "L1 L2 L3", WAITS),
    ("columns sum 10", "L1 L2", WAITS),
    ("columns mean 10", "L1 L2", WAITS),
    ("columns max *", "L1 L2", EXTREME),
    ("columns min *", "L1 L2", EXTREME),
    ("columns var *", "L1 L2 L3", "two passes over the array: the means first"),
    ("columns sum 1000", "L1", IN_MEMORY),
    ("columns mean 1000", "L1", IN_MEMORY),
    ("move elements of a table", "L1 L2 L3", "a check and a load for each element"),
    ("move an element of each row", "L1", "a check and a load for each element"),
    ("move rows of a table 64", "L1 L2", "256 bytes a row: a check, a load of its place, a copy"),
    ("move rows of a table 10", "L1 L2", "40 bytes a row: a check, a load of its place, a copy"),
    ("move scatter rows 64", "L1", "a check, and sums that are read and written for each row"),
    ("move scatter rows 10", "L1 L2", "a check, and sums that are read and written for each row"),
    ("move transpose", "L1 L2 L3", "elements are written one by one, each to a line of its own"),
    ("move sum with a transpose", "L1 L2", "elements are read one by one, each from its own line"),
    ("move pad", "L1 L2", "two passes: zeros everywhere, then the elements"),
    ("move differences", "L1", "loads that begin at any element cross cache lines"),
    ("move one hot", "L1 L2", "five instructions for a vector of truth values"),
    ("running sum rows 10", "L1 L2 L3", SHORT_RUN),
    ("running *", "L1", RUNNING),
)


def reason_for(name: str, level: str) -> str | None:
    """The reason for a case in a level, None where there is none."""
    for names, levels, reason in REASONS:
        if fnmatch.fnmatch(name, names) and level in levels.split():
            return reason
    return None
