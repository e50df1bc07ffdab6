"""Claimed and reproduced: what others have published of a table's rows, beside ours; never ranked or averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kdbench.leaderboard.checks import group_by
from kdbench.leaderboard.claim_files import ClaimedPair, ClaimFile, claims_of
from kdbench.leaderboard.model import Cell, Claim, Claims, Row, Verdict
from kdbench.records import TeacherUsed
from kdbench.spec import RunSpec
from kdbench.stats import Interval, t_interval

FEWEST_SEEDS = 3
# A published accuracy has two decimals, and other hardware turns a handful of 10,000 images; other weights turn more.
SAME_TEACHER = 0.05
_SHA_DIGITS = 12


def claimed(cells: Sequence[Cell], rows: Iterable[Row], files: Iterable[ClaimFile]) -> Claims:
    """Return the claims for a table's rows, in their order, or why they are withheld.

    Args:
        cells: The table's runs: of one anchor, dataset, pair and division.
        rows: Its rows, in the order shown.
        files: Whose claims; those of other protocols than the anchor's family say nothing here.

    Source:
        Statistics specification, section 7: claims carry the epoch they are of and are never tested against ours.
    """
    spec, by_row = cells[0].spec, group_by(cells, lambda cell: cell.spec.row)
    shown: list[Claim] = []
    withheld: list[str] = []
    relevant = [(f, p) for f, p in claims_of(spec.pair, files) if f.anchor == spec.anchor.family]
    for row in rows:
        for file, pair in relevant:
            if row.method not in pair.accuracies:
                continue
            if reason := _other_protocol(file, spec):
                withheld.append(reason)
            else:
                shown.append(_claim(file, pair, row, by_row[row.method]))
    return Claims(tuple(shown), tuple(dict.fromkeys(withheld)))


def _other_protocol(file: ClaimFile, spec: RunSpec) -> str:
    """Return why runs like this one cannot stand beside a file's claims, or an empty string."""
    anchor = spec.anchor
    if (anchor.sha256, anchor.schedule.epochs) != (file.anchor_sha256, file.epochs):
        theirs = f"{file.anchor} in {file.epochs} epochs (sha256 {file.anchor_sha256[:_SHA_DIGITS]})"
        ours = f"{anchor.label} in {anchor.schedule.epochs} (sha256 {anchor.sha256[:_SHA_DIGITS]})"
        return f"they are for {theirs}, this table is of {ours}"
    if spec.dataset.label != file.dataset:
        return f"they are for all of {file.dataset}, this table is of {spec.dataset.label}"
    return (
        "they are for the protocol as it is, and the methods of this table deviate from it" if spec.deviations else ""
    )


def _claim(file: ClaimFile, pair: ClaimedPair, row: Row, cells: Sequence[Cell]) -> Claim:
    scores = tuple(row.scores.values())
    # One guess moves a mean by ten points and more: an interval around it means nothing (section 5).
    interval = None if row.unstable else t_interval(scores)
    accuracy = pair.accuracies[row.method]
    teachers = {teacher for cell in cells if cell.record for teacher in cell.record.teachers}
    reasons = "; ".join([*_unsettled(row), *_other_teacher(pair.teacher, teachers)])
    return Claim(
        method=row.method,
        by=file.name,
        source=file.source,
        epoch_rule=file.epoch_rule,
        runs=file.runs,
        accuracy=accuracy,
        teacher=pair.teacher,
        note=pair.note,
        n=len(scores),
        mean=row.scored.mean if row.scored else None,
        interval=interval,
        verdict="cannot tell" if reasons or interval is None else _verdict(interval, accuracy),
        reason=reasons,
    )


def _verdict(interval: Interval, accuracy: float) -> Verdict:
    if accuracy < interval.low:
        return "above"
    return "below" if accuracy > interval.high else "within"


def _unsettled(row: Row) -> Iterator[str]:
    """Say what our own runs leave open."""
    n = len(row.scores)
    if n < row.planned:
        yield f"{n} of {row.planned} runs finished"
    if row.unstable:
        yield f"{row.count('diverged')} of {n} runs diverged"
    if n < FEWEST_SEEDS:
        yield f"fewer than {FEWEST_SEEDS} seeds"
    elif len(set(row.scores.values())) < 2:
        yield "zero variance"


def _other_teacher(published: float | None, teachers: Iterable[TeacherUsed]) -> Iterator[str]:
    """Say that ours was taught by another network than the claim's; a row without teachers has nothing to say."""
    if published is None:
        return
    for ours in sorted({teacher.accuracy for teacher in teachers}):
        if round(abs(ours - published), 6) > SAME_TEACHER:
            yield f"other teacher: {ours:.2f} %, published {published:.2f} %"
