"""What one table supports: corrected p, stars, the set of the best, tie groups, and a winner or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from kdbench.leaderboard.answers import TableAnswers, se_test
from kdbench.leaderboard.judgement import Judgement
from kdbench.leaderboard.model import Division, Gain, Row
from kdbench.stats import (
    ALPHA,
    ROPE,
    BlockedAnova,
    BoldSet,
    Comparison,
    Decision,
    Level,
    blocked_anova,
    bold_set,
    complete_blocks,
    decide,
    holm,
    minimum_detectable,
    pooled_p,
    seeds_needed,
    tie_groups,
    tost,
    unclaimable,
    wilson,
)

OPEN = "open division: its rows follow different protocols"
ADVICE = (0.3, 0.5)  # points: gains that papers report
LEAST_FOR_SPREAD = 3  # seeds: two tell next to nothing of a spread
STD_DIGITS = 2
STABLE_DIGITS = 9


def judge(
    rows: Sequence[Row],
    baselines: Mapping[str, Row],
    wanted: Sequence[str],
    division: Division,
    answers: tuple[TableAnswers, TableAnswers],
) -> tuple[list[Row], Judgement]:
    """Return the rows with what may be claimed of each, and what the whole table supports.

    Args:
        rows: Of one table, with their gains.
        baselines: Those the gains are over, of the closed division.
        wanted: Names of all baselines that a winner must beat, present or not.
        division: Of the table. Rows of the open one deviate from the protocol, each in its own way: no test then.
        answers: Of this table's runs and of the closed division's.

    Source:
        Statistics specification, sections 2, 3, 5, 6 and 8.
    """
    outside = tuple(row.method for row in rows if row.count("skipped") == row.planned)
    part = [row for row in rows if row.method not in outside]
    if division == "open":
        silent = BoldSet(None, (), "", 0, reason=OPEN)
        return [_without_claims(row, answers) for row in rows], Judgement(silent, Decision(None, (), (OPEN,), None))
    scores = {row.method: row.scores for row in part}
    unstable = {row.method for row in part if row.unstable}
    planned = max((row.planned for row in part), default=0)
    best = bold_set(scores, planned=planned, unstable=unstable)
    anova = _anova(scores, unstable)
    gains = _gains(part, baselines, best, anova, answers)
    mde = minimum_detectable(anova.n, std, ALPHA, len(anova.methods) - 1) if (std := _std(anova)) and anova else None
    decision = _decision(part, gains, best, wanted, mde)
    letters: Mapping[str, str] = {}
    if anova is not None and best.hsd is not None:
        letters = tie_groups(dict(zip(anova.methods, anova.means.tolist(), strict=True)), best.hsd)
    judged = [
        replace(
            row, gains=gains.get(row.method, row.gains), bold=row.method in best.bold, ties=letters.get(row.method, "")
        )
        for row in rows
    ]
    families = tuple((name, sum(row.method != name for row in part)) for name in baselines)
    level, images = _level(part, answers[0])
    return judged, Judgement(
        level=level,
        images=images,
        best=best,
        decision=decision,
        families=families,
        planned=planned,
        outside=outside,
        std=_std(anova),
        advice=_advice(anova, len(part) - 1),
        rho=_rho(scores, unstable),
        unanswered=sum(_unanswered(gain) for row in judged for gain in row.gains),
    )


def _level(rows: Sequence[Row], answers: TableAnswers) -> tuple[Level | None, int]:
    """Return the accuracy of one network as good as the best row's mean, and its images, where they are known."""
    sizes = answers.sizes
    means = [row.scored.mean for row in rows if row.scored]
    if len(sizes) != 1 or not means:
        return None, 0
    (images,) = sizes
    return (wilson(round(max(means) * images / 100), images), images) if images else (None, 0)


def _unanswered(gain: Gain) -> bool:
    return gain.se_test is None and gain.difference is not None and gain.difference.interval is not None


def _gains(
    rows: Sequence[Row],
    baselines: Mapping[str, Row],
    best: BoldSet,
    anova: BlockedAnova | None,
    answers: tuple[TableAnswers, TableAnswers],
) -> dict[str, tuple[Gain, ...]]:
    """Return the gains of each row with everything that depends on the other rows."""
    columns: list[dict[str, Gain]] = []
    for index, (name, baseline) in enumerate(baselines.items()):
        family = [(row, row.gains[index]) for row in rows if row.method != name]
        pooled = pooled_p(anova, name) if anova and not best.reason and name in anova.methods else {}
        adjusted = holm([gain.difference.p if gain.difference else None for _, gain in family])
        columns.append(
            {
                row.method: _claimed(row, gain, baseline, p, pooled.get(row.method), answers)
                for (row, gain), p in zip(family, adjusted, strict=True)
            }
        )
    return {
        row.method: tuple(column.get(row.method, row.gains[index]) for index, column in enumerate(columns))
        for row in rows
    }


def _claimed(
    row: Row,
    gain: Gain,
    baseline: Row,
    p: float | None,
    pooled: float | None,
    answers: tuple[TableAnswers, TableAnswers],
) -> Gain:
    difference = gain.difference
    if difference is None:
        return gain
    reason = unclaimable(difference, max(row.planned, baseline.planned))
    near = difference.mean is not None and abs(difference.mean) < ROPE
    return replace(
        gain,
        p_holm=p,
        p_pooled=pooled,
        star=p is not None and p < ALPHA and not reason,
        unclaimed=reason,
        se_test=se_test(row, baseline.method, difference.seeds, *answers),
        equal=near and not reason and bool(tost(difference.values).equal),
    )


def _without_claims(row: Row, answers: tuple[TableAnswers, TableAnswers]) -> Row:
    gains = (
        replace(gain, unclaimed=OPEN, se_test=se_test(row, gain.baseline, gain.difference.seeds, *answers))
        if gain.difference
        else gain
        for gain in row.gains
    )
    return replace(row, gains=tuple(gains))


def _decision(
    rows: Sequence[Row],
    gains: Mapping[str, tuple[Gain, ...]],
    best: BoldSet,
    wanted: Sequence[str],
    mde: float | None,
) -> Decision:
    """Return the winner; one whose gain cannot be held against the noise of the test images is none."""
    held = [(row.method, gain) for row in rows for gain in gains[row.method] if gain.difference]
    comparisons = [
        Comparison(method, gain.baseline, gain.difference, gain.p_holm, len(rows) - 1, gain.star, gain.unclaimed)
        for method, gain in held
        if gain.difference
    ]
    known = {(method, gain.baseline): gain.se_test for method, gain in held if gain.se_test is not None}
    decision = decide(best, comparisons, wanted, mde, se_crossed=known)
    unknown = tuple(
        f"SE_test of the gain over {gain.baseline} is not known"
        for method, gain in held
        if method == best.best and gain.star and gain.se_test is None
    )
    if not unknown:
        return decision
    return replace(decision, winner=None, reasons=decision.reasons + unknown)


def _anova(scores: Mapping[str, Mapping[int, float]], unstable: set[str]) -> BlockedAnova | None:
    blocks = complete_blocks(scores, unstable)
    return blocked_anova(blocks) if min(blocks.values.shape) >= 2 else None


def _std(anova: BlockedAnova | None) -> float | None:
    """Return the standard deviation of a paired difference; two seeds tell too little of it."""
    return math.sqrt(2 * anova.mse) if anova and anova.mse and anova.n >= LEAST_FOR_SPREAD else None


def _advice(anova: BlockedAnova | None, family: int) -> tuple[tuple[float, int], ...]:
    std = _std(anova)
    rounded = round(std, STD_DIGITS) if std else 0.0
    return tuple((gain, seeds_for(gain, rounded, family)) for gain in ADVICE) if rounded else ()


@lru_cache(maxsize=4096)
def seeds_for(gain: float, std: float, family: int) -> int:
    """Return the seeds that a gain needs; spreads are rounded first, so that tables share what takes long."""
    return seeds_needed(gain, std, ALPHA, family)


def _rho(scores: Mapping[str, Mapping[int, float]], unstable: set[str]) -> float | None:
    """Return the median correlation of two methods over the seeds that all have."""
    values = np.round(complete_blocks(scores, unstable).values, 6)
    varied = values[np.ptp(values, axis=1) > 0] if values.size else values
    if len(varied) < 2 or values.shape[1] < LEAST_FOR_SPREAD:
        return None
    correlations = np.asarray(np.corrcoef(varied))
    # Of a sum that cancels to nothing, no digit is the same on two machines.
    return round(float(np.median(correlations[np.triu_indices(len(varied), 1)])), STABLE_DIGITS)
