"""What two finished runs of one configuration have in common: a result, or only a name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from kdbench.artefacts import sha256_of
from kdbench.merging.reading import Found
from kdbench.records import disagreements
from kdbench.store import PREDICTIONS, WEIGHTS


def differences(one: Found, other: Found) -> list[str]:
    """Return in words in which results two runs differ; empty = both found the same.

    When, where, how fast and from which folder of data they were made may differ. A file that only one of them has (a
    published run has no weights) is no difference.
    """
    assert one.record is not None
    assert other.record is not None
    found = disagreements(one.record, other.record)
    weights = one.folder.path / WEIGHTS, other.folder.path / WEIGHTS
    if all(path.exists() for path in weights) and sha256_of(weights[0]) != sha256_of(weights[1]):
        found.append(WEIGHTS)
    predictions = one.folder.path / PREDICTIONS, other.folder.path / PREDICTIONS
    if all(path.exists() for path in predictions) and not _same_arrays(*predictions):
        found.append(PREDICTIONS)
    return found


def _same_arrays(one: Path, other: Path) -> bool:
    """Return whether two archives hold the same arrays; another version of zlib packs them into other bytes."""
    if one.read_bytes() == other.read_bytes():
        return True
    try:
        with np.load(one, allow_pickle=False) as a, np.load(other, allow_pickle=False) as b:
            return set(a.files) == set(b.files) and all(np.array_equal(a[name], b[name]) for name in a.files)
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
