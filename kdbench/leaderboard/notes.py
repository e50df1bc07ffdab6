"""The footer of a table: what the numbers are, what they do not say, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdbench.leaderboard.columns import Group, Quote, groups
from kdbench.leaderboard.judged_text import background, verdict
from kdbench.leaderboard.model import Row, Table
from kdbench.leaderboard.text import escape, number, ranges

SHA_DIGITS = 12
_ENVIRONMENT = ("machine", "device", "threads", "precision", "torch", "python", "kdbench")


def notes(table: Table, quote: Quote = escape) -> list[str]:
    """Return the footer, one sentence or more a note.

    Args:
        table: What it stands under.
        quote: How foreign text is made fit for the output; the default is for Markdown.
    """
    return [*reading(table, quote), *circumstances(table, quote)]


def reading(table: Table, quote: Quote = escape) -> list[str]:
    """Return the part of the footer that says what the numbers are, and what they are not."""
    return [quote(verdict(table)), *explained(groups(table), quote), *grounds(table, quote)]


def explained(parts: Iterable[Group], quote: Quote = escape) -> list[str]:
    """Return what groups of columns say of themselves."""
    return [note for group in parts for note in group.notes(quote)]


def grounds(table: Table, quote: Quote = escape) -> list[str]:
    """Return what the whole table rests on: its seeds, and what holds for all of its tests."""
    return [*_seeds(table), *background(table, quote)]


def circumstances(table: Table, quote: Quote = escape) -> list[str]:
    """Return the part of the footer that says what went wrong, and where the numbers come from."""
    return [
        *_unfinished(table, quote),
        *_contested(table, quote),
        *_retried(table, quote),
        *_deviations(table, quote),
        *_sources(table, quote),
    ]


def _seeds(table: Table) -> Iterator[str]:
    yield (
        f"Seeds {ranges(table.seeds)}; {_planned(table)}. The order of rows (baselines, then by mean) is for display "
        "only."
    )
    if any(row.unstable for row in table.rows):
        yield (
            "unstable k/n: k of n finished runs diverged and count as chance (100 / classes) in the mean; "
            "ok only: the mean without them."
        )


def _planned(table: Table) -> str:
    counts = sorted({row.planned for row in table.rows})
    return f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} planned per method"


def _unfinished(table: Table, quote: Quote) -> Iterator[str]:
    """Name every run that is not ok, so that none drops out of sight."""
    for row in table.rows:
        if failed := _failed(row, quote):
            yield f"{quote(row.method)}: {failed}."


def _failed(row: Row, quote: Quote) -> str:
    parts = []
    for outcome in row.outcomes:
        if outcome.status != "ok":
            reason = f" ({quote(outcome.reason)})" if outcome.reason else ""
            parts.append(f"seed {outcome.seed} {outcome.status}{reason}")
    return "; ".join(parts)


def _contested(table: Table, quote: Quote) -> Iterator[str]:
    """Name every run that was found to end in two ways: one of its results must be wrong."""
    for row in table.rows:
        for outcome in row.outcomes:
            if names := ", ".join(map(quote, outcome.conflicts)):
                yield (
                    f"{quote(row.method)} seed {outcome.seed}: was computed more than once, with different results; "
                    f"the first one stands here, others are beside its record: {names}."
                )


def _retried(table: Table, quote: Quote) -> Iterator[str]:
    """Count the runs that stand here by their safe retry; it may be computed in another precision than its row."""
    retried = [(quote(row.method), seed) for row in table.rows for seed in row.safe_seeds]
    if retried:
        runs, them = ("1 run", "its") if len(retried) == 1 else (f"{len(retried)} runs", "their")
        named = ", ".join(f"{method} seed {seed}" for method, seed in retried)
        yield (
            f"{runs} finished in safe mode (fp32): {named}; {them} first attempt had ended by a non-finite loss or a "
            "device error."
        )


def _deviations(table: Table, quote: Quote) -> Iterator[str]:
    if table.division == "open":
        if table.baselines:
            yield "The baselines are those of the closed division: each gain includes the effect of the deviations."
        for row in table.rows:
            for deviation in row.deviations:
                changed = f"{quote(deviation.key)} = {quote(deviation.value)}"
                yield f"{quote(row.method)} deviates from the anchor: {changed}: {quote(deviation.reason)}"


def _sources(table: Table, quote: Quote) -> Iterator[str]:
    yield f"Anchor {quote(table.anchor)}, sha256 {table.anchor_sha256[:SHA_DIGITS]}."
    data = table.dataset
    yield f"Dataset {quote(data.name)} as {quote(data.label)}, fingerprint {quote(data.fingerprint[:SHA_DIGITS])}."
    yield f"Pair {quote(table.pair)}: trains {quote(table.student_backbone)}."
    for teacher in table.teachers:
        sha = quote(teacher.sha256[:SHA_DIGITS])
        yield f"Teacher {quote(teacher.name)}: {number(teacher.accuracy)} %, sha256 {sha}."
    known = [(key, table.environment.get(key, ())) for key in _ENVIRONMENT]
    said = "; ".join(f"{key} {', '.join(map(quote, values))}" for key, values in known if values)
    if said:
        yield f"Environment: {said}."
    if (devices := table.environment.get("world_size", ())) not in {(), ("1",)}:
        several = "; their train s cannot be compared" if len(devices) > 1 else ""
        yield (
            f"Devices per run: {', '.join(devices)}{several}. On any number of them the images of each step are the "
            "same, and sums are rounded otherwise."
        )
    if len(table.environment.get("machine", ())) > 1 or len(table.environment.get("device", ())) > 1:
        yield "Runs were made on more than one machine or device: their train s cannot be compared."
