"""Why a loop stays below half of its limit: patterns of case and level, and the reason."""

from __future__ import annotations

import fnmatch

REASONS: tuple[tuple[str, str, str], ...] = ()


def reason_for(name: str, level: str) -> str | None:
    """The reason for a case in a level, None where there is none."""
    for names, levels, reason in REASONS:
        if fnmatch.fnmatch(name, names) and level in levels.split():
            return reason
    return None
