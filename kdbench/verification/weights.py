"""The weights beside a record: whole, and those that the record says."""

from __future__ import annotations

import os

from safetensors import SafetensorError, safe_open

from kdbench.artefacts import sha256_of
from kdbench.records import Record
from kdbench.store import WEIGHTS, RunFolder


def weights_problem(folder: RunFolder, record: Record) -> str | None:
    """Return what is wrong with the deployed weights of a finished run; None if nothing is, or they are not there.

    Records of older versions have no checksum of them; then only the file's size is held against its own header.

    Args:
        folder: Of the run.
        record: Its record.
    """
    path = folder.path / WEIGHTS
    if not path.exists():
        return None
    try:
        with safe_open(os.fspath(path), framework="numpy"):  # compares its size with what its header says
            pass
        found = sha256_of(path) if record.weights_sha256 else ""
    except (SafetensorError, OSError) as error:
        return f"{path}: not the weights of a run ({error})"
    if found == record.weights_sha256:
        return None
    return (
        f"{path}: damaged: its sha256 is {found[:12]}.., the record says {record.weights_sha256[:12]}..; bring back "
        "the file as it was written"
    )
