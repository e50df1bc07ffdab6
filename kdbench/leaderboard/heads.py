"""The head of a column: one line where an output has no more, two where it can span neighbours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """What stands over a column, in plain text.

    Args:
        title: All of it in one line.
        own: Its own part below a head that it shares with its neighbours; empty = it shares none.
        over: The shared head.
    """

    title: str
    own: str = ""
    over: str = ""


def against(what: str, baseline: str, title: str = "") -> Head:
    """Return the head of a column that is about one baseline: ``p vs plain``, or ``p`` below ``vs plain``."""
    over = f"vs {baseline}"
    return Head(title or f"{what} {over}", what, over)
