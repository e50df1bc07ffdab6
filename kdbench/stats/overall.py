"""The winner over several pairs, and whether words about pairs that were not run are allowed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean

from kdbench.stats.describing import t_interval
from kdbench.stats.equivalence import ROPE, bayes_signed_rank
from kdbench.stats.families import ALPHA, ENOUGH_SEEDS, holm
from kdbench.stats.paired import NO_COMMON_SEED
from kdbench.stats.pairs import StratifiedT, stratified_t
from kdbench.stats.signed_ranks import wilcoxon
from kdbench.stats.values import DifferencesByPair, Scores, differences_by_pair

LEAST_PAIRS = 6
MOST_PAIRS = 50  # beyond, a signed-rank test lacks no power, and the posterior's squares of pairs grow large
LEAST_DATASETS = 2
SURE = 0.95
BAYES_DRAWS = 10_000


@dataclass(frozen=True)
class Rivalry:
    """The leading method against one other over the pairs.

    Args:
        on_these: Stratified test on these pairs; p_holm is its p after Holm over the rivals.
        p_holm: Or None without a test.
        p_general: Wilcoxon's p over pair means after Holm over the rivals.
        p_above: Posterior probability of more than the ROPE on pairs like these; None below 6 or above 50 pairs.
        worst: Lowest end of the intervals of the single pairs, in points; None where a pair has no interval.
    """

    rival: str
    on_these: StratifiedT
    p_holm: float | None
    p_general: float | None
    p_above: float | None
    worst: float | None


@dataclass(frozen=True)
class Overall:
    """The winner on these pairs.

    Args:
        winner: The method; None if anything speaks against it.
        leader: Method with the highest mean of pair means.
        general: Whether "generally better" may be written; never without a winner.
        rivalries: The leader against every other method.
        left_out: Methods that lack a pair, or are unstable.
        reasons: All that speaks against a winner.
        not_general: All that speaks against general words.
    """

    winner: str | None
    leader: str | None
    general: bool
    rivalries: tuple[Rivalry, ...]
    left_out: tuple[str, ...]
    reasons: tuple[str, ...]
    not_general: tuple[str, ...]


def decide_overall(
    scores: Mapping[str, Scores],
    datasets: Mapping[str, str],
    *,
    unstable: Collection[str] = (),
    rope: float = ROPE,
    alpha: float = ALPHA,
) -> Overall:
    """Name the winner on these pairs only if it beats every rival there and is nowhere worse than the ROPE allows.

    A method must beat all others, so correcting for the rivals of the observed leader is enough: the chance of a
    false winner is largest with two equal leaders, where the two-sided test keeps it at alpha.

    Args:
        scores: Of each method, of each pair, value by seed in percent.
        datasets: Dataset of each pair.
        unstable: Methods with a diverged run on any pair.
        rope: Largest loss on a single pair: each pair's 95 % interval must lie above -rope.
        alpha: Level of each family.

    Source:
        Section 8, overall winner; section 4 for (A) these pairs and (B) pairs like these.
    """
    complete = {
        method: pairs
        for method, pairs in scores.items()
        if method not in unstable and all(pairs.get(pair) for pair in datasets)
    }
    left_out = tuple(method for method in scores if method not in complete)
    if len(complete) < 2 or not datasets:
        reason = ("fewer than two methods with runs on every pair",)
        return Overall(None, None, False, (), left_out, reason, reason)
    means = {method: fmean(fmean(pairs[pair].values()) for pair in datasets) for method, pairs in complete.items()}
    leader = max(means, key=lambda method: means[method])
    ours = {pair: complete[leader][pair] for pair in datasets}
    gaps = {
        rival: differences_by_pair(ours, {pair: pairs[pair] for pair in datasets})
        for rival, pairs in complete.items()
        if rival != leader
    }
    rivalries = _rivalries(gaps, rope)
    reasons = [reason for one in rivalries for reason in _against(one, gaps[one.rival], rope, alpha)]
    doubts = _doubts(rivalries, datasets, alpha)
    winner = None if reasons else leader
    return Overall(
        winner, leader, winner is not None and not doubts, rivalries, left_out, tuple(reasons), tuple(doubts)
    )


def _rivalries(gaps: Mapping[str, DifferencesByPair], rope: float) -> tuple[Rivalry, ...]:
    on_these = [
        stratified_t(gap.values) if gap.values else StratifiedT(0, 0.0, reason=NO_COMMON_SEED) for gap in gaps.values()
    ]
    means = [[fmean(values) for values in gap.values] for gap in gaps.values()]
    general = holm([wilcoxon(values).p_two_sided if values else None for values in means])
    found = []
    for index, (rival, p) in enumerate(zip(gaps, holm([test.p for test in on_these]), strict=True)):
        intervals = [t_interval(values) for values in gaps[rival].values]
        lows = [interval.low for interval in intervals if interval]
        worst = min(lows) if lows and len(lows) == len(intervals) else None
        # Below six pairs the posterior is sure of too much; where it is asked, a hundredth is precise enough.
        asked = LEAST_PAIRS <= len(means[index]) <= MOST_PAIRS
        above = bayes_signed_rank(means[index], rope, BAYES_DRAWS).above if asked else None
        found.append(Rivalry(rival, on_these[index], p, general[index], above, worst))
    return tuple(found)


def _against(one: Rivalry, gap: DifferencesByPair, rope: float, alpha: float) -> list[str]:
    few = min((len(values) for values in gap.values), default=0)
    if gap.left_out or few < ENOUGH_SEEDS:
        return [f"{0 if gap.left_out else few} of {ENOUGH_SEEDS} seeds in common with {one.rival} on some pair"]
    found = []
    if one.p_holm is None:
        found.append(f"no test against {one.rival}: {one.on_these.reason}")
    elif not (one.p_holm < alpha and one.on_these.estimate > 0):
        found.append(f"not shown better than {one.rival} (Holm p = {one.p_holm:.3g})")
    if one.worst is None:
        found.append(f"no interval against {one.rival} on some pair")
    elif one.worst <= -rope:
        found.append(f"may be worse than {one.rival} by more than {rope:g} pt on some pair")
    return found


def _doubts(rivalries: tuple[Rivalry, ...], datasets: Mapping[str, str], alpha: float) -> list[str]:
    found = []
    if len(datasets) < LEAST_PAIRS:
        found.append(f"{len(datasets)} of {LEAST_PAIRS} pairs")
    if len(set(datasets.values())) < LEAST_DATASETS:
        found.append(f"{len(set(datasets.values()))} of {LEAST_DATASETS} datasets")
    for one in rivalries:
        by_ranks = one.p_general is not None and one.p_general < alpha
        if not by_ranks and not (one.p_above is not None and one.p_above >= SURE):
            found.append(f"not shown for other pairs against {one.rival}")
    return found
