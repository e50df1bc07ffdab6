"""How much of the gap between the student alone and its teacher a method closes."""

from __future__ import annotations

from kdbench.leaderboard.model import Row, Table
from kdbench.leaderboard.plots.figure import Figure, drawable
from kdbench.leaderboard.plots.forest import Arm, forest
from kdbench.leaderboard.text import number

LEAST = 2.0  # percentage points: over a smaller gap the share says nothing but noise


def gap_figures(table: Table) -> tuple[Figure, ...]:
    """Return the picture if there is a student without teacher, and its gap is large enough.

    Source:
        Statistics specification, section 4, "gap closed".
    """
    alone = next((row for row in table.rows if not row.distilled and drawable(row)), None)
    if alone is None or alone.scored is None or not table.teachers:
        return ()
    teacher = max(table.teachers, key=lambda each: each.accuracy)
    low, gap = alone.scored.mean, teacher.accuracy - alone.scored.mean
    arms = [_arm(row, low, gap) for row in table.rows if row.distilled and drawable(row)]
    if gap < LEAST or not arms:
        return ()
    title = "Gap to the teacher closed"
    text = (
        f"0: {alone.method}, {number(low)} %; 100: teacher {teacher.name}, {number(teacher.accuracy)} %. Tick: mean; "
        "dots: seeds, against the same two."
    )
    return (Figure(title, forest(title, "percent of the gap", arms, [0.0, 100.0]), text),)


def _arm(row: Row, low: float, gap: float) -> Arm:
    def share(score: float) -> float:
        return 100 * (score - low) / gap

    mean = share(row.scored.mean) if row.scored else 0.0
    seeds = tuple(map(share, row.scores.values()))
    return Arm(row.method, mean, None, seeds)
