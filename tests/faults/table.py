"""The table of a campaign: fault x times x outcome."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

EQUAL = "as if nothing had happened"


@dataclass
class Row:
    """One kind of fault.

    Args:
        fault: What was done.
        outcomes: How often it ended how.
        lost: What went wrong, in words; empty = nothing.
    """

    fault: str
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def add(self, outcome: str, problem: str = "", times: int = 1) -> None:
        """Count outcomes; one with a problem is lost."""
        self.outcomes[f"LOST: {problem}" if problem else outcome] += times
        if problem:
            self.lost.append(f"{self.fault}: {problem}")

    @property
    def times(self) -> int:
        """How often it was done."""
        return sum(self.outcomes.values())


def to_markdown(rows: list[Row]) -> str:
    """Return the table, and under it the sum."""
    lines = ["| fault | times | outcome |", "|---|---:|---|"]
    for row in rows:
        said = "; ".join(
            outcome if len(row.outcomes) == 1 else f"{count} x {outcome}" for outcome, count in row.outcomes.items()
        )
        lines.append(f"| {row.fault} | {row.times} | {said.replace('|', '/') or '-'} |")
    total, lost = sum(row.times for row in rows), sum(len(row.lost) for row in rows)
    return "\n".join([*lines, "", f"{total} faults, {lost} with a loss."]) + "\n"
