"""How an overview reads: a grid for these pairs, one for pairs that were not run, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from kdbench.leaderboard.heads import Head, against
from kdbench.leaderboard.judgement import OverallGain, OverallRow, Overview
from kdbench.leaderboard.text import DAGGER, NOT_AVAILABLE, STAR, escape, number, probability
from kdbench.stats import ENOUGH_SEEDS, LEAST_DATASETS, LEAST_PAIRS, Interval

Quote = Callable[[object], str]


ON_THESE, ON_NEW = "On these pairs", "On pairs that were not run"


@dataclass(frozen=True)
class Grid:
    """Heads and cells in plain text; the first column is left-aligned and foreign, heads are foreign."""

    heads: tuple[Head, ...]
    cells: tuple[tuple[str, ...], ...]


def title(view: Overview) -> str:
    """Return the heading."""
    return f"All {len(view.pairs)} pairs, {view.anchor}, closed division"


def overview_markdown(view: Overview) -> str:
    """Return the section in Markdown."""
    parts = [f"## {escape(title(view))}", f"### {ON_THESE}", _markdown(on_these(view))]
    if view.general:
        parts += [f"### {ON_NEW}", _markdown(on_new(view))]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in overview_notes(view, escape))])


def _markdown(grid: Grid) -> str:
    align = ["left", *["right"] * (len(grid.heads) - 1)]
    cells = [[escape(row[0]), *row[1:]] for row in grid.cells]
    return tabulate(
        cells, [escape(head.title) for head in grid.heads], tablefmt="pipe", colalign=align, disable_numparse=True
    )


def on_these(view: Overview) -> Grid:
    """Return the gains on the pairs that were run: pairs fixed, seeds random."""
    heads = [Head("method"), Head("pairs")]
    for name in view.baselines:
        heads += [against(head, name) for head in ("mean gain", "p", "sign-flip p", "improved %", "IQM")]
    heads += [Head("gap closed %"), Head("mean rank"), Head("Borda")]
    return Grid(tuple(heads), tuple(_line(row, len(view.pairs)) for row in view.rows))


def _line(row: OverallRow, pairs: int) -> tuple[str, ...]:
    cells = [row.method, f"{row.pairs}/{pairs}"]
    for gain in row.gains:
        cells += _gain(gain) if gain else ["-"] * 5
    over = f" ({_several(row.gaps, 'pair')})"
    closed = NOT_AVAILABLE if row.gap_closed is None else number(100 * row.gap_closed, 0) + over
    return (*cells, closed, number(row.mean_rank), number(row.points, 1))


def _gain(gain: OverallGain) -> list[str]:
    if gain.mean is None:
        return [f"{NOT_AVAILABLE} ({gain.unclaimed})", *[NOT_AVAILABLE] * 4]
    doubt = f" ({gain.unclaimed})" if gain.unclaimed else ""
    return [
        f"{number(gain.mean, signed=True)} [{_ends(gain.interval)}]{STAR * gain.star}{DAGGER * gain.dagger}{doubt}",
        probability(gain.p_holm),
        NOT_AVAILABLE if gain.p_flip is None else f"{probability(gain.p_flip)} (floor {probability(gain.floor)})",
        number(None if gain.improved is None else 100 * gain.improved, 0),
        number(gain.iqm, signed=True),
    ]


def on_new(view: Overview) -> Grid:
    """Return what the pairs say about pairs like them: pairs random, one value a pair."""
    heads = [Head("method")]
    for name in view.baselines:
        heads += [against(head, name) for head in ("mean gain", "Wilcoxon p", "P(gain > ROPE)", "P(within ROPE)")]
    return Grid(tuple(heads), tuple(_new_line(row) for row in view.rows))


def _new_line(row: OverallRow) -> tuple[str, ...]:
    cells = [row.method]
    for gain in row.gains:
        if gain is None:
            cells += ["-"] * 4
        elif gain.p_new is None:
            cells += [NOT_AVAILABLE] * 4
        else:
            interval = f"{number(gain.mean, signed=True)} [{_ends(gain.new_mean_interval)}]"
            cells += [interval, probability(gain.p_new), _share(gain.p_above), _share(gain.p_inside)]
    return tuple(cells)


def _several(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def _share(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.2f}"


def _ends(interval: Interval | None) -> str:
    if interval is None:
        return NOT_AVAILABLE
    return f"{number(interval.low, signed=True)}, {number(interval.high, signed=True)}"


def overview_notes(view: Overview, quote: Quote) -> list[str]:
    """Return what the section rests on, with the verdict first."""
    return [quote(verdict(view)), *_reading(view, quote), *_limits(view, quote)]


def verdict(view: Overview) -> str:
    """Return the winner on these pairs, or everything that speaks against one, in plain text."""
    overall = view.overall
    if overall.winner is None:
        lead = f" Highest mean: {overall.leader}." if overall.leader else ""
        return f"Verdict: no winner on these pairs.{lead} Against a winner: {'; '.join(overall.reasons)}."
    general = "; generally better, pairs like these included" if overall.general else ""
    return (
        f"Verdict: winner on these pairs: {overall.winner}: shown better on average than every rival (Holm), and on no "
        f"pair worse by {number(view.rope)} pt{general}."
    )


def _reading(view: Overview, quote: Quote) -> Iterator[str]:
    families = ", ".join(f"m = {size} with {quote(name)}" for name, size in view.families)
    yield (
        "On these pairs: is the mean gain on exactly these pairs above zero? Pairs are fixed, seeds are random: mean "
        f"of the pairs' means with its stratified 95 % t interval; p: its two-sided test after Holm ({families}); "
        "sign-flip p: exact or sampled over all differences, not corrected, with the smallest that it could be."
    )
    if any(gain and gain.star for row in view.rows for gain in row.gains):
        yield (
            f"{quote(STAR)}: p < {view.alpha:g}, with at least {ENOUGH_SEEDS} seeds, and all that were planned, on "
            "every pair."
        )
    yield from _images([gain for row in view.rows for gain in row.gains if gain and gain.mean is not None])
    yield (
        "improved: share of all pairs and seeds on which the method is better, ties one half. IQM: mean of the middle "
        "half of all gains in points. mean rank, Borda: an order for display, no test. gap closed: share of the way to "
        "the teacher, over the pairs where that is 2 points or more."
    )
    if view.general:
        yield (
            "On pairs that were not run: one value a pair, its mean over seeds: t interval over pairs; exact Wilcoxon "
            f"p after Holm; posterior probabilities of a gain above and within ±{number(view.rope)} pt (ROPE) on "
            "another pair, a claim from 0.95 on."
        )


def _images(gains: Sequence[OverallGain]) -> Iterator[str]:
    if any(gain.dagger for gain in gains):
        yield (
            f"{DAGGER}: significant over seeds, but below 1.96 SE_test, in which errors of pairs on one dataset add "
            "up: shown for these test images, not for others of their kind. It makes no winner."
        )
    if any(gain.star and gain.se_test is None for gain in gains):
        yield "Predictions of some runs are not there: whether their gains hold for other test images is not known."


def _limits(view: Overview, quote: Quote) -> Iterator[str]:
    if not view.general:
        yield (
            f"Nothing is said about pairs that were not run: {len(view.pairs)} pairs on "
            f"{_several(len(view.datasets), 'dataset')}; that takes {LEAST_PAIRS} pairs on {LEAST_DATASETS} datasets."
        )
    elif not view.overall.general:
        yield f"No method is called generally better: {quote('; '.join(view.overall.not_general) or 'no winner')}."
    if view.overall.left_out:
        yield f"Cannot win, since a pair is missing or a run diverged: {', '.join(map(quote, view.overall.left_out))}."
    if view.changed:
        yield f"Left out, since version or options differ between pairs: {', '.join(map(quote, view.changed))}."
    if view.shared:
        yield f"Pairs are not independent, so they count for fewer: {quote('; '.join(view.shared))}."
    yield "Everything is conditional on the one teacher of each pair."
    yield (
        f"Pairs: {quote('; '.join(view.pairs))}. Anchor {quote(view.anchor)}, sha256 {view.anchor_sha256[:12]}; alpha "
        f"{view.alpha:g}; ROPE ±{number(view.rope)} pt."
    )
