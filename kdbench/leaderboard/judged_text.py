"""How a table's judgement reads: the verdict, what its symbols mean, and what the tests rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kdbench.leaderboard.model import Table
from kdbench.leaderboard.text import DAGGER, STAR, number
from kdbench.stats import ENOUGH_SEEDS

Quote = Callable[[object], str]


def verdict(table: Table) -> str:
    """Return who won, or the set of those that may be best with all that speaks against a winner, in plain text."""
    return f"Verdict: {found(table)} {why(table)}"


def found(table: Table) -> str:
    """Return who won, or that nobody has and who may be best: the first that a reader wants to know."""
    decision = table.judgement.decision
    return f"{decision.text} on this pair:" if decision.winner else f"{decision.text}."


def why(table: Table) -> str:
    """Return what the verdict rests on."""
    decision = table.judgement.decision
    if decision.winner:
        return (
            "shown better than every other method; its gains over the baselines are at least "
            f"{number(table.judgement.rope)} pt, and hold for other test images of their kind."
        )
    advice = "".join(f"; a gain of {gain:g} pt needs {seeds} seeds" for gain, seeds in table.judgement.advice)
    spread = f" Standard deviation of a paired difference {number(table.judgement.std)} pt{advice}." if advice else ""
    return f"Against a winner: {'; '.join(decision.reasons)}.{spread}"


def bold(table: Table) -> tuple[str, ...]:
    """Return what bold means here, or why nothing is bold."""
    best, mde = table.judgement.best, table.judgement.decision.mde
    if best.reason:
        return (f"Nothing is bold, and no row has a rank: {best.reason}.",)
    distance = f", honest difference {number(best.hsd)} pt" if best.hsd is not None else ""
    doubt = f"gains below {number(mde)} pt would mostly be missed (MDE)" if mde is not None else "it may be missed"
    return (
        f"Bold: not shown worse than the best ({best.rule}, n = {best.n}{distance}). Not bold is shown worse; bold is "
        f"not shown equal: {doubt}.",
    )


def tests(table: Table, quote: Quote) -> tuple[str, ...]:
    """Return what the tests of the gains are, and what their symbols mean."""
    return tuple(_tests(table, quote))


def _tests(table: Table, quote: Quote) -> Iterator[str]:
    judgement = table.judgement
    if table.division == "open":
        yield "No test, no star, no bold, no winner: the rows of an open division follow different protocols."
        return
    alpha = f"{judgement.alpha:g}"
    families = ", ".join(f"m = {size} with {quote(name)}" for name, size in judgement.families)
    yield (
        "p: two-sided paired t test after Holm over all comparisons with that baseline in this table alone "
        f"({families}); (n=) where that is too small to claim anything."
    )
    gains = [gain for row in table.rows for gain in row.gains if gain.difference]
    if any(gain.star for gain in gains):
        yield f"{quote(STAR)}: p < {alpha}, from at least {ENOUGH_SEEDS} seeds, and all that were planned."
    else:
        yield f"No star: {_no_star(table)}."
    if any(gain.dagger for gain in gains):
        yield (
            f"{DAGGER}: significant over seeds, but below 1.96 SE_test: shown for these test images, not for others of "
            "their kind."
        )
    yield from _pooled(table)
    yield from _images(table)
    for name, _ in judgement.families:
        equal = [row.method for row in table.rows for gain in row.gains if gain.baseline == name and gain.equal]
        if equal:
            yield (
                f"Practically equal to {quote(name)}, since the 90 % t interval lies within the ROPE (each for one "
                f"comparison): {', '.join(map(quote, equal))}."
            )


def _no_star(table: Table) -> str:
    gains = [gain for row in table.rows for gain in row.gains if gain.difference]
    reasons = dict.fromkeys(gain.unclaimed for gain in gains if gain.unclaimed)
    if len(gains) > sum(bool(gain.unclaimed) for gain in gains):
        return "no gain is significant" + "".join(f"; {reason}" for reason in reasons)
    return "; ".join(reasons) or "nothing to compare"


def _pooled(table: Table) -> Iterator[str]:
    best = table.judgement.best
    if any(gain.p_pooled is not None for row in table.rows for gain in row.gains):
        yield (
            "After the slash: the same from the error of the whole table (methods by seeds), which has more power and "
            f"assumes equal variances: largest over median residual spread {number(best.guard_ratio)}, allowed up to "
            "2.5."
        )
    elif not best.reason:
        yield (
            f"No pooled p: variances are too unequal (largest over median residual spread {number(best.guard_ratio)}, "
            "allowed up to 2.5)."
        )


def _images(table: Table) -> Iterator[str]:
    unanswered = table.judgement.unanswered
    if any(gain.se_test is not None for row in table.rows for gain in row.gains):
        yield "SE_test: standard error of the gain in points over seeds and test images together (crossed)."
    if unanswered:
        yield (
            f"{unanswered} gains without SE_test: predictions of their runs are not there; whether they hold for other "
            "test images is not known, and none of them makes a winner."
        )


def background(table: Table, quote: Quote) -> tuple[str, ...]:
    """Return what the tests rest on."""
    judgement = table.judgement
    rho = "not known" if judgement.rho is None else f"{judgement.rho:.2f}"
    outside = [f"In no comparison, since all runs were skipped: {', '.join(map(quote, judgement.outside))}."]
    return (
        f"alpha {judgement.alpha:g}; ROPE ±{number(judgement.rope)} pt; both are kdbench's, the same for every board. "
        f"Pairing: rho {rho} (median correlation of two methods over seeds).",
        *_level(table),
        *(outside if judgement.outside else ()),
    )


def _level(table: Table) -> Iterator[str]:
    """Say how well a level is known; it is no error of a difference, since all networks answer the same images."""
    level, images = table.judgement.level, table.judgement.images
    if level:
        ends = f"{number(level.interval.low)} to {number(level.interval.high)} %"
        yield (
            f"Level: one network with {number(level.accuracy)} % of {images:,} test images right, which is the highest "
            f"mean, has a 95 % Wilson interval of {ends}: of a level, not of a difference, since all methods answer "
            "the same images."
        )
