"""The winner of one pair, or the set of those that may be best and every reason why it is not one method."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kdbench.stats.blocked import blocked_anova, complete_blocks
from kdbench.stats.bold import BoldSet, bold_set
from kdbench.stats.equivalence import ROPE
from kdbench.stats.families import ALPHA, Comparison, compare_with_baseline, with_stars
from kdbench.stats.images import within_image_noise
from kdbench.stats.planning import minimum_detectable
from kdbench.stats.values import Scores


@dataclass(frozen=True)
class Decision:
    """Who won.

    Args:
        winner: The method; None if anything speaks against it.
        candidates: Methods not shown worse than the best, best first.
        reasons: All that speaks against a winner; empty if there is one.
        mde: Smallest gain over a baseline that the runs could have shown with a power of .8, in points, or None.
    """

    winner: str | None
    candidates: tuple[str, ...]
    reasons: tuple[str, ...]
    mde: float | None

    @property
    def text(self) -> str:
        """One line for a table."""
        if self.winner:
            return f"winner: {self.winner}"
        names = f"{{{', '.join(self.candidates)}}}" if self.candidates else "nothing can be said"
        return f"no winner: {names}" + (f", MDE {self.mde:.2f} pt" if self.mde is not None else "")


def decide_pair(
    scores: Scores,
    baselines: Sequence[str],
    *,
    planned: int | None = None,
    unstable: Collection[str] = (),
    protocols: Collection[str] = (),
    se_crossed: Mapping[tuple[str, str], float] | None = None,
    rope: float = ROPE,
    alpha: float = ALPHA,
) -> Decision:
    """Name the winner of one pair only if everything holds.

    Five complete seeds for every method; equal protocols; a set of the best (blocked Tukey) of one stable method; and
    over every baseline: p < alpha after Holm, an interval above zero, a gain of at least the ROPE, and no dagger.

    Args:
        scores: Value by seed of each method in percent, diverged runs at chance.
        baselines: The student without a teacher and plain distillation; both must be among the methods.
        planned: Seeds planned for each method.
        unstable: Methods with a diverged run.
        protocols: Hashes of the runs' protocols; more than one and nothing is compared.
        se_crossed: Crossed standard error of a gain in points, by method and baseline, where it is known.
        rope: Smallest gain of interest, in points.
        alpha: Level of each family.

    Source:
        Section 8.
    """
    if len(set(protocols)) > 1:
        return Decision(None, (), (f"{len(set(protocols))} different protocols",), None)
    best = bold_set(scores, planned=planned, unstable=unstable, alpha=alpha)
    comparisons = [
        comparison
        for baseline in dict.fromkeys(baselines)
        if baseline in scores
        for comparison in with_stars(compare_with_baseline(scores, baseline, planned=planned, unstable=unstable), alpha)
    ]
    mde = detectable(scores, unstable, alpha)
    return decide(best, comparisons, baselines, mde, se_crossed=se_crossed, rope=rope, alpha=alpha)


def decide(
    best: BoldSet,
    comparisons: Sequence[Comparison],
    baselines: Sequence[str],
    mde: float | None,
    *,
    se_crossed: Mapping[tuple[str, str], float] | None = None,
    rope: float = ROPE,
    alpha: float = ALPHA,
) -> Decision:
    """Name the winner of one pair from what has been computed; see ``decide_pair``.

    Args:
        best: The methods not shown worse than the best.
        comparisons: Every method against every baseline that is there, corrected.
        baselines: All that a winner must beat.
        mde: What the runs could have shown, in points.
        se_crossed: Crossed standard error of a gain in points, by method and baseline, where it is known.
        rope: Smallest gain of interest, in points.
        alpha: Level of each family.
    """
    present = {comparison.baseline for comparison in comparisons}
    reasons = _against_the_set(best)
    reasons += [f"baseline {name} is missing" for name in baselines if name not in present]
    if not baselines:
        reasons.append("no baseline")
    if best.best in present:
        reasons.append(f"the best is the baseline {best.best}")
    for comparison in comparisons:
        if comparison.method == best.best:
            se = (se_crossed or {}).get((comparison.method, comparison.baseline))
            reasons += _against_the_gain(comparison, rope, alpha, se)
    return Decision(None if reasons else best.best, best.bold, tuple(dict.fromkeys(reasons)), mde)


def detectable(scores: Scores, unstable: Collection[str] = (), alpha: float = ALPHA) -> float | None:
    """Return the smallest gain over a baseline that one pair's runs can show with a power of .8, in points.

    With the pooled std of a difference, sqrt(2 MSE), and Holm's first step over the other methods; None without spread.

    Source:
        Sections 1.2 and 3: printed beside every set, since bold does not mean equal.
    """
    blocks = complete_blocks(scores, unstable)
    if min(blocks.values.shape) < 2:
        return None
    mse = blocked_anova(blocks).mse
    if not mse:
        return None
    return minimum_detectable(len(blocks.seeds), math.sqrt(2 * mse), alpha, len(blocks.methods) - 1)


def _against_the_set(best: BoldSet) -> list[str]:
    if best.reason:
        return [best.reason]
    if len(best.bold) > 1:
        return [f"{len(best.bold)} methods are not shown worse than the best"]
    return []


def _against_the_gain(comparison: Comparison, rope: float, alpha: float, se_crossed: float | None) -> list[str]:
    over, difference, p = f"over {comparison.baseline}", comparison.difference, comparison.p_holm
    if comparison.reason or p is None or difference.interval is None or difference.mean is None:
        return [f"no test {over}: {comparison.reason}"]
    found = []
    if not p < alpha:
        found.append(f"gain {over} not significant (Holm p = {p:.3g})")
    if not difference.interval.low > 0:
        found.append(f"interval of the gain {over} reaches zero")
    if difference.mean < rope:
        found.append(f"gain {over} below {rope:g} pt")
    if se_crossed is not None and within_image_noise(difference.mean, se_crossed):
        found.append(f"gain {over} within the noise of the test images")
    return found
