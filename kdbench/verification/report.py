"""What a verification found: one line per check, and the problems, each a message of its own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """One check of a published board.

    Args:
        name: What was looked at, one word.
        said: What was counted, for the reader; without a verdict.
        problems: One message each: file - what was found - what was expected - what to do.
    """

    name: str
    said: str
    problems: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The check and its verdict on one line."""
        count = len(self.problems)
        verdict = "ok" if not count else "1 problem" if count == 1 else f"{count} problems"
        return f"{self.name}: {self.said}: {verdict}"


def counted(number: int, word: str) -> str:
    """Return a number with its noun, e.g. ``1 run``, ``2 runs``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
