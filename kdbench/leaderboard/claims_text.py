"""How the section "Claimed and reproduced" reads: its columns, sentences, Markdown, and its columns in the CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tabulate import tabulate

from kdbench.leaderboard.model import Claim, Claims, Leaderboard
from kdbench.leaderboard.text import NOT_AVAILABLE, escape, number

TITLE = "Claimed and reproduced"
NEVER = "Claimed accuracies are never ranked, never tested against ours, and in no mean."
HEADERS = ("method", "claimed %", "by", "epoch", "runs", "ours % [95 % t interval]", "n", "ours - claimed", "verdict")
ALIGN = ("left", "right", "left", "left", "right", "right", "right", "right", "left")
Quote = Callable[[object], str]


def claims_markdown(claims: Claims) -> str:
    """Return the section that follows a table's notes, with the blank line before it; nothing without claims."""
    if not claims:
        return ""
    cells = [claim_cells(claim) for claim in claims.shown]
    grid = tabulate(cells, HEADERS, tablefmt="pipe", colalign=ALIGN, disable_numparse=True)
    notes = "\n".join(f"- {note}" for note in claim_notes(claims))
    return "\n\n" + "\n\n".join([f"### {TITLE}", *([grid] if cells else []), notes])


def claim_notes(claims: Claims, quote: Quote = escape) -> list[str]:
    """Return what a reader needs to judge the section, a sentence or a few each; ``quote`` is for foreign text."""
    return [*_reading(claims), *_sources(claims, quote), *_withheld(claims, quote)]


def claim_cells(claim: Claim, quote: Quote = escape) -> list[str]:
    """Return the line of a claim, under :data:`HEADERS`; ``quote`` is for foreign text."""
    return [
        quote(claim.method),
        number(claim.accuracy),
        quote(claim.by),
        claim.epoch_rule,
        NOT_AVAILABLE if claim.runs is None else str(claim.runs),
        _ours(claim),
        str(claim.n),
        number(claim.difference, signed=True),
        verdict(claim),
    ]


def _ours(claim: Claim) -> str:
    interval = claim.interval
    ends = f"{number(interval.low)}, {number(interval.high)}" if interval else NOT_AVAILABLE
    return NOT_AVAILABLE if claim.mean is None else f"{number(claim.mean)} [{ends}]"


def verdict(claim: Claim) -> str:
    """Return the verdict, with the reason where there is none."""
    return f"{claim.verdict}: {claim.reason}" if claim.reason else claim.verdict


def _reading(claims: Claims) -> Iterator[str]:
    if not claims.shown:
        return
    yield f"{NEVER} The order of rows is that of the table above."
    yield (
        "ours: mean over the seeds, last epoch, with the two-sided 95 % t interval of the mean. Verdict: the claim is "
        "within our interval, or all of our interval is above or below the claim; cannot tell: fewer than three seeds, "
        "unfinished or diverged runs, equal scores, or a teacher whose accuracy is not that of the source's. It covers "
        "the spread of our seeds, not that of the source's runs, and is for one claim, not corrected for their number."
    )
    yield (
        "Not checked: whether our options are those of the source. The table's runs have them in their records, and "
        "kdbench show METHOD tells which values are recommended under this anchor."
    )
    if any(claim.epoch_rule != "last" for claim in claims.shown):
        yield (
            "epoch: ours is the last; best-test is the best by the test images themselves, about 0.3 points higher in "
            "public logs of such trainings, so that such a claim is too high beside ours; unknown may be either."
        )


def _sources(claims: Claims, quote: Quote) -> Iterator[str]:
    for by in dict.fromkeys(claim.by for claim in claims.shown):
        mine = [claim for claim in claims.shown if claim.by == by]
        source, teacher = mine[0].source, mine[0].teacher
        code = f", {quote(source.code)}" if source.code else ""
        taught = "its teacher's accuracy is not stated" if teacher is None else f"its teacher has {number(teacher)} %"
        yield f"{quote(by)}: {quote(source.title)}, {quote(source.url)}{code}; {taught}."
        for note in dict.fromkeys(claim.note for claim in mine if claim.note):
            yield f"{quote(by)}: {quote(note)}."


def _withheld(claims: Claims, quote: Quote) -> Iterator[str]:
    for reason in claims.withheld:
        yield f"Accuracies of methods of this table have been published, but {quote(reason)}: none of them is shown."


def claim_names(board: Leaderboard) -> list[str]:
    """Return the sources whose claims any table shows, for the columns of the CSV."""
    return sorted({claim.by for table in board.tables for claim in table.claims.shown})


def claim_columns(claims: Claims, method: str, names: list[str]) -> dict[str, str | float | None]:
    """Return a row's columns of the CSV: none without claims, else our interval and four of each source.

    Args:
        claims: Of the row's table.
        method: Of the row.
        names: Sources of the whole board, so that all lines have the same columns.
    """
    mine = {claim.by: claim for claim in claims.shown if claim.method == method}
    if not names:
        return {}
    interval = next((claim.interval for claim in mine.values()), None)
    columns: dict[str, str | float | None] = {
        "accuracy_t95_low": interval.low if interval else None,
        "accuracy_t95_high": interval.high if interval else None,
    }
    for name in names:
        claim = mine.get(name)
        columns |= {
            f"claimed_{name}": claim.accuracy if claim else None,
            f"claimed_{name}_epoch": claim.epoch_rule if claim else "",
            f"claimed_{name}_difference": claim.difference if claim else None,
            f"claimed_{name}_verdict": verdict(claim) if claim else "",
        }
    return columns
