"""The footer of a table: what the numbers are, what they do not say, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator

from kdbench.leaderboard.model import Row, Table
from kdbench.leaderboard.text import escape, number, ranges

SHA_DIGITS = 12
_ENVIRONMENT = ("machine", "device", "threads", "precision", "torch", "python", "kdbench")


def notes(table: Table) -> list[str]:
    """Return the footer as Markdown list items without their bullets."""
    return [*_reading(table), *_unfinished(table), *_retried(table), *_deviations(table), *_sources(table)]


def _reading(table: Table) -> Iterator[str]:
    yield (
        f"Accuracy: top-1 on the test split after the last epoch ({table.epochs}), in percent: mean ± standard "
        "deviation over seeds (ddof = 1)."
    )
    if table.baselines:
        yield (
            "vs: gain in percentage points: mean of the paired differences over the seeds both methods completed, with "
            "its 95 % t interval, each for one comparison, not corrected for their number; (n=) where these seeds are "
            "fewer than planned."
        )
    for name in table.absent_baselines:
        division = "closed " if table.division == "open" else ""
        yield f"No gain over {escape(name)}: it has no {division}runs here."
    yield (
        "train s: mean seconds in training steps; params: deployed parameters; agreement: test images on which the "
        "network and its teacher predict the same class, in percent; all over the ok runs."
    )
    yield (
        f"Seeds {ranges(table.seeds)}; {_planned(table)}. Numbers are shown, nothing is claimed: no test, no winner; "
        "the order of rows (baselines, then by mean) is for display only."
    )
    if any(row.unstable for row in table.rows):
        yield (
            "unstable k/n: k of n finished runs diverged and count as chance (100 / classes) in the mean; "
            "ok only: the mean without them."
        )


def _planned(table: Table) -> str:
    counts = sorted({row.planned for row in table.rows})
    return f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} planned per method"


def _unfinished(table: Table) -> Iterator[str]:
    """Name every run that is not ok, so that none drops out of sight."""
    for row in table.rows:
        if failed := _failed(row):
            yield f"{escape(row.method)}: {failed}."


def _failed(row: Row) -> str:
    parts = []
    for outcome in row.outcomes:
        if outcome.status != "ok":
            reason = f" ({escape(outcome.reason)})" if outcome.reason else ""
            parts.append(f"seed {outcome.seed} {outcome.status}{reason}")
    return "; ".join(parts)


def _retried(table: Table) -> Iterator[str]:
    """Count the runs that stand here by their safe retry; it may be computed in another precision than its row."""
    retried = [(escape(row.method), seed) for row in table.rows for seed in row.safe_seeds]
    if retried:
        runs, them = ("1 run", "its") if len(retried) == 1 else (f"{len(retried)} runs", "their")
        named = ", ".join(f"{method} seed {seed}" for method, seed in retried)
        yield (
            f"{runs} finished in safe mode (fp32): {named}; {them} first attempt had ended by a non-finite loss or a "
            "device error."
        )


def _deviations(table: Table) -> Iterator[str]:
    if table.division == "open":
        if table.baselines:
            yield "The baselines are those of the closed division: each gain includes the effect of the deviations."
        for row in table.rows:
            for deviation in row.deviations:
                changed = f"{escape(deviation.key)} = {escape(deviation.value)}"
                yield f"{escape(row.method)} deviates from the anchor: {changed}: {escape(deviation.reason)}"


def _sources(table: Table) -> Iterator[str]:
    yield f"Anchor {escape(table.anchor)}, sha256 {table.anchor_sha256[:SHA_DIGITS]}."
    data = table.dataset
    yield f"Dataset {escape(data.name)} as {escape(data.label)}, fingerprint {escape(data.fingerprint[:SHA_DIGITS])}."
    yield f"Pair {escape(table.pair)}: trains {escape(table.student_backbone)}."
    for teacher in table.teachers:
        sha = escape(teacher.sha256[:SHA_DIGITS])
        yield f"Teacher {escape(teacher.name)}: {number(teacher.accuracy)} %, sha256 {sha}."
    known = [(key, table.environment.get(key, ())) for key in _ENVIRONMENT]
    said = "; ".join(f"{key} {', '.join(map(escape, values))}" for key, values in known if values)
    if said:
        yield f"Environment: {said}."
    if len(table.environment.get("machine", ())) > 1 or len(table.environment.get("device", ())) > 1:
        yield "Runs were made on more than one machine or device: their train s cannot be compared."
