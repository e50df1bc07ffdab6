"""Verifying a published board: everything is computed anew from what was published with it, and nothing is written."""

from __future__ import annotations

from pathlib import Path

from kdbench.errors import StoreError
from kdbench.verification.bundle import open_bundle, read_runs
from kdbench.verification.epochs import check_epochs
from kdbench.verification.hashes import check_hashes
from kdbench.verification.identity import check_anchors, check_records
from kdbench.verification.predictions import check_accuracy
from kdbench.verification.report import Check
from kdbench.verification.tables import check_tables

__all__ = ["Check", "verify"]


def verify(folder: Path) -> tuple[Check, ...]:
    """Check a published board; no dataset, teacher or plugin is needed.

    Args:
        folder: What ``kdbench leaderboard RUNS --out FOLDER --records`` has written.

    Returns:
        Every check, with its problems; all is well if none has any.

    Raises:
        ConfigError: If the folder is no published board.
        StoreError: If it cannot be read.
    """
    try:
        return _checks(folder)
    except OSError as error:  # a file that vanishes, or may not be read: no verdict is possible
        raise StoreError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); verify again when it can"
        ) from error


def _checks(folder: Path) -> tuple[Check, ...]:
    bundle = open_bundle(folder)
    runs, found = read_runs(bundle)
    answers, accuracy = check_accuracy(bundle, runs)
    unread = [run for run in runs if run.record and run.record.accuracy and run.place not in answers]
    whole = len(runs) == len(bundle.run_folders) and not unread
    return (
        check_hashes(bundle),
        found,
        check_records(runs),
        check_anchors(runs),
        accuracy,
        check_epochs(bundle, runs, {place: len(answer.correct) for place, answer in answers.items()}),
        check_tables(bundle, runs, answers, whole=whole),
    )
