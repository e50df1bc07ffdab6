"""Learning curves: read from a run's epochs, thinned, and averaged over the seeds of a row."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from kdbench.errors import StoreError
from kdbench.leaderboard.model import Curve, Row
from kdbench.records import EpochReport
from kdbench.store import EPOCHS

POINTS = 30  # per curve: more are not seen in a plot, and a page of a thousand rows stays small


def read_curve(folder: Path) -> Curve:
    """Return the test accuracy over the student's epochs of a run; empty if it left no epochs.

    Args:
        folder: Where the run's files are.

    Returns:
        At most :data:`POINTS` points, evenly spaced, the first and the last epoch among them.

    Raises:
        StoreError: If the file cannot be read or is damaged.
    """
    path = folder / EPOCHS
    if not path.exists():
        return ()
    points: dict[int, float] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            report = EpochReport.model_validate_json(line)
            if report.test_accuracy is not None:
                epoch = report.epoch if report.student_epoch is None else report.student_epoch
                points[epoch + 1] = report.test_accuracy
    except (OSError, ValueError) as error:
        what = "not a list of epochs" if isinstance(error, ValidationError) else str(error)
        raise StoreError(f"{path}: {what}; restore it, or remove it to leave its curve out") from error
    return thinned(tuple(sorted(points.items())))


def thinned(curve: Curve, points: int = POINTS) -> Curve:
    """Return evenly spaced points of a curve, its ends among them; which ones depends on its length alone."""
    last = len(curve) - 1
    if last < points:
        return curve
    return tuple(curve[round(index * last / (points - 1))] for index in range(points))


def mean_curve(row: Row) -> Curve:
    """Return the mean over the seeds that are ok, at the epochs that all of them have."""
    curves = [dict(outcome.curve) for outcome in row.outcomes if outcome.status == "ok" and outcome.curve]
    shared = set.intersection(*map(set, curves)) if curves else set()
    return tuple((epoch, fmean(curve[epoch] for curve in curves)) for epoch in sorted(shared))
