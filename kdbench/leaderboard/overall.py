"""All pairs of one protocol together: gains on these pairs, words about new pairs where allowed, and the winner."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from kdbench.leaderboard.judgement import OverallGain, OverallRow, Overview
from kdbench.leaderboard.model import MeanRanks, Row, Table
from kdbench.stats import (
    ALPHA,
    BAYES_DRAWS,
    ENOUGH_SEEDS,
    LEAST_DATASETS,
    LEAST_PAIRS,
    MOST_PAIRS,
    DifferencesByPair,
    StratifiedT,
    bayes_signed_rank,
    borda,
    crossed_error_over_pairs,
    decide_overall,
    differences_by_pair,
    gap_closed,
    holm,
    iqm,
    pair_means_t,
    paired_improvement,
    pairwise_wilcoxon,
    stratified_sign_flip,
    stratified_t,
    wilcoxon,
    within_image_noise,
)

FLIPS = 1000  # differences beyond which the sign-flip test only repeats the t test, and takes long
FEWEST_RANKED = 10  # pairs from which a diagram of mean ranks can tell anything apart
MOST_RANKED = 100  # pairs beyond which exact tests of all pairs of methods, cubic in the pairs, take minutes
ByPair = Mapping[str, Row]  # one method's row on each pair


def overviews(tables: Sequence[Table]) -> tuple[Overview, ...]:
    """Return an overview of each protocol that has more than one pair, of the closed division.

    Source:
        Statistics specification, sections 4 and 8.
    """
    closed: dict[str, list[Table]] = {}
    for table in tables:
        if table.division == "closed":
            closed.setdefault(table.anchor, []).append(table)
    return tuple(_overview(members) for _, members in sorted(closed.items()) if len(members) > 1)


def _overview(tables: Sequence[Table]) -> Overview:
    by_method = _by_method(tables)
    changed = tuple(method for method, rows in by_method.items() if len({_configuration(r) for r in rows.values()}) > 1)
    kept = {method: rows for method, rows in by_method.items() if method not in changed}
    datasets = {_name(table): table.dataset.label for table in tables}
    general = len(tables) >= LEAST_PAIRS and len(set(datasets.values())) >= LEAST_DATASETS
    baselines = tuple(dict.fromkeys(name for table in tables for name in table.baselines if name in kept))
    unstable = {method for method, rows in kept.items() if _unstable(rows)}
    gains = {name: _gains(kept, name, datasets, general, unstable) for name in baselines}
    order = _order(kept, tuple(datasets))
    rows = [_row(method, kept[method], gains, order, tables) for method in kept]
    scores = {method: {pair: row.scores for pair, row in rows.items()} for method, rows in kept.items()}
    overall = decide_overall(scores, datasets, unstable=unstable)
    against = [*_incomplete(kept, tuple(datasets)), *_without_baseline(tables, baselines, overall.leader)]
    against += [
        f"gain over {name} within the noise of the test images"
        for name, column in gains.items()
        if overall.leader in column and column[overall.leader].dagger
    ]
    if against:
        overall = replace(overall, winner=None, general=False, reasons=(*overall.reasons, *against))
    return Overview(
        anchor=tables[0].anchor,
        anchor_sha256=tables[0].anchor_sha256,
        pairs=tuple(datasets),
        datasets=tuple(sorted(set(datasets.values()))),
        baselines=baselines,
        rows=tuple(sorted(rows, key=lambda row: (row.mean_rank is None, row.mean_rank or 0.0, row.method))),
        families=tuple((name, len(kept) - 1) for name in baselines),
        overall=overall,
        changed=changed,
        general=general,
        shared=_shared(tables),
    )


def _by_method(tables: Sequence[Table]) -> dict[str, dict[str, Row]]:
    """Return each method's row on each pair; a pair on which all of its runs were skipped is none of its pairs."""
    found: dict[str, dict[str, Row]] = {}
    for table in tables:
        for row in table.rows:
            if row.method not in table.judgement.outside:
                found.setdefault(row.method, {})[_name(table)] = row
    return dict(sorted(found.items()))


def _name(table: Table) -> str:
    return f"{table.dataset.label} {table.pair}"


def _configuration(row: Row) -> str:
    return json.dumps([row.method_version, row.options], sort_keys=True)


def _gains(
    methods: Mapping[str, ByPair], baseline: str, datasets: Mapping[str, str], general: bool, unstable: set[str]
) -> dict[str, OverallGain]:
    """Return the gain of each method over one baseline, corrected for the number of methods."""
    pairs = tuple(datasets)
    others = [method for method in methods if method != baseline]
    held = {method: _differences(methods[method], methods[baseline]) for method in others}
    wild = set(others) if baseline in unstable else unstable
    tests = {method: stratified_t(held[method].values) for method in others if held[method].values}
    adjusted = holm([tests[method].p if method in tests and method not in wild else None for method in others])
    found = {}
    for method, p in zip(others, adjusted, strict=True):
        reason = "unstable" if method in wild else _unclaimed(methods[method], methods[baseline], held[method], pairs)
        gain = _gain(baseline, held[method], tests.get(method), p, reason)
        found[method] = _against_images(gain, _se_test(methods[method], held[method], baseline, datasets))
    complete = {
        method: held[method] for method in others if method not in wild and len(held[method].pairs) == len(pairs)
    }
    return found | _on_new_pairs(found, complete) if general else found


def _differences(ours: ByPair, theirs: ByPair) -> DifferencesByPair:
    return differences_by_pair(*({pair: row.scores for pair, row in rows.items()} for rows in (ours, theirs)))


def _gain(
    baseline: str, gap: DifferencesByPair, test: StratifiedT | None, p: float | None, unclaimed: str
) -> OverallGain:
    if test is None:
        return OverallGain(baseline, unclaimed=unclaimed)
    size = sum(map(len, gap.values))
    flip = stratified_sign_flip(gap.values) if size <= FLIPS and p is not None else None
    return OverallGain(
        baseline=baseline,
        mean=test.estimate,
        interval=test.interval if p is not None else None,
        p_holm=p,
        p_flip=flip.p_two_sided if flip else None,
        floor=flip.floor if flip else None,
        star=p is not None and p < ALPHA and not unclaimed,
        unclaimed=unclaimed or test.reason,
        improved=paired_improvement(gap.values),
        iqm=iqm(np.concatenate(gap.values)),
    )


def _se_test(ours: ByPair, gap: DifferencesByPair, baseline: str, datasets: Mapping[str, str]) -> float | None:
    """Return the crossed standard error of the mean gain; None if that of some pair is not known."""
    found: dict[str, list[float]] = {}
    for pair in gap.pairs:
        error = next((gain.se_test for gain in ours[pair].gains if gain.baseline == baseline), None)
        if error is None:
            return None
        found.setdefault(datasets[pair], []).append(error)
    return crossed_error_over_pairs(found) if found else None


def _against_images(gain: OverallGain, error: float | None) -> OverallGain:
    """Return the gain held against the noise of the test images, where that is known."""
    noise = gain.mean is not None and error is not None and within_image_noise(gain.mean, error)
    return replace(gain, se_test=error, dagger=gain.star and noise)


def _unclaimed(ours: ByPair, theirs: ByPair, gap: DifferencesByPair, pairs: tuple[str, ...]) -> str:
    """Return why nothing may be claimed on these pairs whatever p is; empty if something may."""
    if len(gap.pairs) < len(pairs):
        return f"{len(gap.pairs)} of {len(pairs)} pairs"
    for pair, values in zip(gap.pairs, gap.values, strict=True):
        needed = max(ENOUGH_SEEDS, ours[pair].planned, theirs[pair].planned)
        if len(values) < needed:
            return f"{len(values)} of {needed} seeds on {pair}"
    return ""


def _on_new_pairs(
    found: Mapping[str, OverallGain], complete: Mapping[str, DifferencesByPair]
) -> dict[str, OverallGain]:
    """Return the gains with what may be said of pairs that were not run: one value a pair, its mean over seeds."""
    means = {method: [fmean(values) for values in gap.values] for method, gap in complete.items()}
    raw = [wilcoxon(means[method]).p_two_sided if method in means else None for method in found]
    general = {}
    for (method, gain), p in zip(found.items(), holm(raw), strict=True):
        if method in means:
            values = means[method]
            posterior = bayes_signed_rank(values, draws=BAYES_DRAWS) if len(values) <= MOST_PAIRS else None
            general[method] = replace(
                gain,
                new_mean_interval=pair_means_t(complete[method].values).interval,
                p_new=p,
                p_above=posterior.above if posterior else None,
                p_inside=posterior.inside if posterior else None,
            )
    return general


def _row(
    method: str,
    rows: ByPair,
    gains: Mapping[str, Mapping[str, OverallGain]],
    order: Mapping[str, tuple[float, float]],
    tables: Sequence[Table],
) -> OverallRow:
    unstable = _unstable(rows)
    closed = (
        [] if unstable else [share for table in tables if (share := _gap(table, rows.get(_name(table)))) is not None]
    )
    rank, points = order.get(method, (None, None))
    return OverallRow(
        method=method,
        pairs=sum(row.scored is not None for row in rows.values()),
        gains=tuple(column.get(method) for column in gains.values()),
        mean_rank=rank,
        points=points,
        gap_closed=fmean(closed) if closed else None,
        gaps=len(closed),
        unstable=unstable,
    )


def _gap(table: Table, row: Row | None) -> float | None:
    """Return the share of the gap that a row closes on one pair, or None where there is no gap to speak of."""
    alone = next((each for each in table.rows if not each.distilled and each.method in table.baselines), None)
    if (
        row is None
        or row.scored is None
        or alone is None
        or alone.scored is None
        or alone.unstable
        or not table.teachers
    ):
        return None
    if not row.distilled:
        return None
    return gap_closed(row.scored.mean, alone.scored.mean, max(teacher.accuracy for teacher in table.teachers))


def _unstable(rows: ByPair) -> bool:
    return any(row.unstable for row in rows.values())


def _means(methods: Mapping[str, ByPair], pairs: Sequence[str]) -> dict[str, list[float]]:
    """Return the mean on each pair of the stable methods that have a score on all of them."""
    found = {}
    for method, rows in methods.items():
        summaries = [rows[pair].scored for pair in pairs if pair in rows]
        values = [summary.mean for summary in summaries if summary]
        if len(values) == len(pairs) and not _unstable(rows):
            found[method] = values
    return found


def _order(methods: Mapping[str, ByPair], pairs: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return mean rank and Borda points of each method that has every pair: an order for display, no test."""
    means = _means(methods, pairs)
    if not means:
        return {}
    ranks = borda(means)
    return {m: (rank, points) for m, rank, points in zip(ranks.methods, ranks.mean_rank, ranks.points, strict=True)}


def _incomplete(methods: Mapping[str, ByPair], pairs: Sequence[str]) -> tuple[str, ...]:
    """Return which methods lack planned runs: one that is not finished may be better than the winner."""
    return tuple(
        f"{method} lacks planned runs"
        for method, rows in methods.items()
        if not _unstable(rows) and any(pair in rows and len(rows[pair].scores) < rows[pair].planned for pair in pairs)
    )


def _without_baseline(tables: Sequence[Table], baselines: tuple[str, ...], leader: str | None) -> Iterator[str]:
    absent = dict.fromkeys(name for table in tables for name in table.absent_baselines)
    yield from (f"baseline {name} is missing on some pair" for name in absent)
    if not baselines:
        yield "no baseline"
    if leader in baselines:
        yield f"the best is the baseline {leader}"


def _shared(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return what several pairs have in common, so that they are fewer independent cases than they seem."""
    kinds = {
        "dataset": [table.dataset.label for table in tables],
        "trained network": [table.student_backbone for table in tables],
        "teacher": [teacher.name for table in tables for teacher in table.teachers],
    }
    return tuple(
        f"{kind} {name} ({names.count(name)} pairs)"
        for kind, names in kinds.items()
        for name in sorted(set(names))
        if names.count(name) > 1
    )


def mean_ranks(tables: Sequence[Table]) -> MeanRanks | None:
    """Return ranks over the pairs with the sets of methods that Wilcoxon's tests after Holm do not tell apart.

    None below 10 or above 100 pairs, or for fewer than two stable methods with all pairs.

    Source:
        Statistics specification, section 4.
    """
    closed = [table for table in tables if table.division == "closed"]
    means = _means(_by_method(closed), [_name(table) for table in closed])
    if not FEWEST_RANKED <= len(closed) <= MOST_RANKED or len(means) < 2:
        return None
    ranks = borda(means)
    order = [method for _, method in sorted(zip(ranks.mean_rank, ranks.methods, strict=True))]
    tests = pairwise_wilcoxon({method: means[method] for method in order})
    apart = {frozenset(names) for names, p in zip(tests.names, tests.p_holm, strict=True) if p < ALPHA}
    together: list[tuple[str, ...]] = []
    for first in range(len(order)):
        group = [order[first]]
        for method in order[first + 1 :]:
            if any(frozenset((method, other)) in apart for other in group):
                break
            group.append(method)
        if len(group) > 1 and not (together and set(group) <= set(together[-1])):
            together.append(tuple(group))
    known = dict(zip(ranks.methods, ranks.mean_rank, strict=True))
    test = f"Wilcoxon over pair means, Holm over {len(tests.names)} comparisons, alpha {ALPHA:g}"
    return MeanRanks(len(closed), tuple((method, known[method]) for method in order), tuple(together), test)
