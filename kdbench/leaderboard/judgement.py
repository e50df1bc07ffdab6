"""What numbers support: of one table, and of all pairs of one protocol together. Gains in percentage points."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.stats import ALPHA, ROPE, BoldSet, Decision, Interval, Level, Overall

NO_SET = BoldSet(None, (), "", 0, reason="not judged")
UNDECIDED = Decision(None, (), ("not judged",), None)


@dataclass(frozen=True)
class Judgement:
    """Of one table.

    Args:
        best: Methods not shown worse than the best, by which rule, or why nothing may be said.
        decision: The winner, or all that speaks against one.
        families: Comparisons corrected for together, by baseline.
        planned: Most seeds that a method of the table has planned.
        outside: Rows that are in no comparison since all their runs were skipped.
        std: Standard deviation of a paired difference, sqrt(2 MSE) of the blocked analysis; None without spread.
        advice: Gains, each with the seeds that would show it with a power of .8.
        rho: Median correlation of two methods over seeds; None for fewer than three seeds or without spread.
        unanswered: Comparisons without SE_test, since answers of some run are not known.
        level: Accuracy of one network as good as the best row's mean, with its Wilson interval; None without answers.
        images: Test images that it is of.
        alpha: Level of each family.
        rope: Half width of what is practically equal.
    """

    best: BoldSet = NO_SET
    decision: Decision = UNDECIDED
    families: tuple[tuple[str, int], ...] = ()
    planned: int = 0
    outside: tuple[str, ...] = ()
    std: float | None = None
    advice: tuple[tuple[float, int], ...] = ()
    rho: float | None = None
    unanswered: int = 0
    level: Level | None = None
    images: int = 0
    alpha: float = ALPHA
    rope: float = ROPE


@dataclass(frozen=True)
class OverallGain:
    """A method against one baseline over the pairs of an overview.

    Args:
        mean: Mean of the pairs' mean gains.
        interval: Stratified 95 % t interval: pairs fixed, seeds random; None without a test.
        p_holm: Its p after Holm over the methods.
        p_flip: Stratified sign-flip p, not corrected; None where not computed.
        floor: Smallest p that the sign-flip test could have given.
        star: Whether p_holm is below alpha and may be claimed.
        unclaimed: Why nothing may be claimed whatever p is; empty if something may.
        se_test: Crossed standard error over seeds and test images, in points; None where answers are not known.
        dagger: Whether a starred gain is within the noise of the test images.
        improved: Share of (pair, seed) with a positive difference, ties one half, every pair counting alike.
        iqm: Interquartile mean of all gains.
        new_mean_interval: 95 % t interval over pair means: pairs random; None unless general words are allowed.
        p_new: Wilcoxon's p over pair means after Holm over the methods; None unless general words are allowed.
        p_above: Posterior probability of a gain above the ROPE on a new pair; None unless allowed.
        p_inside: Posterior probability of a gain inside the ROPE on a new pair; None unless allowed.
    """

    baseline: str
    mean: float | None = None
    interval: Interval | None = None
    p_holm: float | None = None
    p_flip: float | None = None
    floor: float | None = None
    star: bool = False
    unclaimed: str = ""
    se_test: float | None = None
    dagger: bool = False
    improved: float | None = None
    iqm: float | None = None
    new_mean_interval: Interval | None = None
    p_new: float | None = None
    p_above: float | None = None
    p_inside: float | None = None


@dataclass(frozen=True)
class OverallRow:
    """One method of an overview.

    Args:
        pairs: Number of pairs on which it has a score.
        gains: One per baseline; None for the baseline's own row.
        mean_rank: Over the pairs, among the methods that have all of them; 1 is best. None for the others.
        points: Borda points of the same.
        gap_closed: Mean share of the gap from the student alone to its teacher, where that is 2 points or more.
        gaps: Number of such pairs.
        unstable: Whether any run diverged.
    """

    method: str
    pairs: int
    gains: tuple[OverallGain | None, ...]
    mean_rank: float | None = None
    points: float | None = None
    gap_closed: float | None = None
    gaps: int = 0
    unstable: bool = False


@dataclass(frozen=True)
class Overview:
    """All pairs of one protocol, closed division.

    Args:
        anchor: Label of the protocol.
        pairs: Dataset and pair of each table.
        datasets: Distinct datasets.
        baselines: In column order.
        rows: By mean rank, then those that lack a pair.
        families: Comparisons corrected for together, by baseline.
        overall: The winner on these pairs, or all that speaks against one.
        changed: Methods that are left out since their version or options differ between the pairs.
        general: Whether enough pairs and datasets are there to speak of new pairs.
        shared: What some pairs share, so that they count for fewer than they are.
    """

    anchor: str
    anchor_sha256: str
    pairs: tuple[str, ...]
    datasets: tuple[str, ...]
    baselines: tuple[str, ...]
    rows: tuple[OverallRow, ...]
    families: tuple[tuple[str, int], ...]
    overall: Overall
    changed: tuple[str, ...] = ()
    general: bool = False
    shared: tuple[str, ...] = ()
    alpha: float = ALPHA
    rope: float = ROPE
