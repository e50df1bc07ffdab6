"""Epoch reports as a table for spreadsheets and data frames: one line per value, the same columns for every method."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

from kdbench.records import EpochReport

COLUMNS = ("run_id", "phase", "epoch", "name", "value")


def epoch_table(reports: Iterable[EpochReport]) -> str:
    """Return the reports as CSV.

    One line per value: losses and metrics differ between methods and phases, and files of different runs can still be
    joined line by line.

    Args:
        reports: Epochs in the order they were done.

    Returns:
        A header and the lines; numbers with nine significant digits, nothing for None and NaN, as in JSON.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for report in reports:
        place = (report.run_id, report.phase, report.epoch)
        writer.writerows((*place, name, _cell(value)) for name, value in report.named().items())
    return file.getvalue()


def _cell(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or not math.isfinite(value) else f"{value:.9g}"
