"""One row: the outcomes of a method's seeds, their summaries, and the paired gains over the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from kdbench.leaderboard.model import Cell, Gain, Outcome, Row
from kdbench.records import Record
from kdbench.stats import mean_std, paired_difference


def make_row(cells: Sequence[Cell]) -> Row:
    """Return the row of one method's cells, still without gains."""
    ordered = sorted(cells, key=lambda cell: cell.spec.seed)
    outcomes = tuple(_outcome(cell) for cell in ordered)
    ok = [cell.record for cell in ordered if cell.record and cell.record.status == "ok"]
    scores = [outcome.score for outcome in outcomes if outcome.score is not None]
    accuracies = [outcome.accuracy for outcome in outcomes if outcome.accuracy is not None]
    spec = ordered[0].spec
    return Row(
        method=spec.row,
        method_version=spec.method_version,
        plugins=tuple(sorted({f"{c.spec.plugin.distribution} {c.spec.plugin.version}" for c in ordered})),
        options=spec.options,
        deviations=spec.deviations,
        outcomes=outcomes,
        scored=mean_std(scores) if scores else None,
        ok_only=mean_std(accuracies) if accuracies else None,
        gains=(),
        train_seconds=_mean(ok, lambda record: record.cost.train_seconds if record.cost else None),
        deployed_parameters=tuple(sorted({record.cost.deployed_parameters for record in ok if record.cost})),
        agreement=_mean(ok, lambda record: record.agreement_with_teacher),
        safe_seeds=tuple(c.spec.seed for c in ordered if c.record and c.record.safe_mode),
        distilled=bool(spec.teachers),
    )


def with_gains(row: Row, baselines: Sequence[Row]) -> Row:
    """Return the row with its gain over each baseline row."""
    return replace(row, gains=tuple(_gain(row, baseline) for baseline in baselines))


def _outcome(cell: Cell) -> Outcome:
    record = cell.record
    ok = record if record and record.status == "ok" else None
    accuracy = ok.accuracy.last if ok and ok.accuracy else None
    # A diverged run is the method's result, not a gap: it counts as a guess (section 5, rule 2).
    score = 100 / record.classes if record and record.status == "diverged" else accuracy
    return Outcome(
        seed=cell.spec.seed,
        status=cell.status,
        accuracy=accuracy,
        score=score,
        reason=record.reason if record else "",
        run_id=cell.spec.run_id,
        config_sha256=cell.config_sha256,
        train_seconds=ok.cost.train_seconds if ok and ok.cost else None,
        deployed_parameters=ok.cost.deployed_parameters if ok and ok.cost else None,
        agreement=ok.agreement_with_teacher if ok else None,
        curve=cell.curve,
        cost=ok.cost if ok else None,
        conflicts=cell.conflicts,
    )


def _gain(row: Row, baseline: Row) -> Gain:
    if row is baseline:
        return Gain(baseline.method, None)
    difference = paired_difference(row.scores, baseline.scores)
    show_n = difference.n not in (row.planned, 0) or difference.n not in (baseline.planned, 0)
    diverged = {o.seed for r in (row, baseline) for o in r.outcomes if o.status == "diverged"}
    if diverged & set(difference.seeds):
        # One guess moves a mean by ten points and more: no interval means anything then, the flag does (section 5).
        difference = replace(difference, interval=None, t=None, p=None, reason="unstable")
    return Gain(baseline.method, difference, show_n)


def _mean(records: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    known = [number for record in records if (number := value(record)) is not None]
    return fmean(known) if known else None
