"""The manifest of a published board: which files it consists of, by hash, and how its tables were asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from kdbench import __version__
from kdbench.config.schema import Section
from kdbench.files import write_atomic

MANIFEST = "manifest.json"


class Manifest(Section):
    """What ``manifest.json`` says.

    Args:
        schema_version: Of this file.
        kdbench_version: Version that wrote the tables.
        baselines: Methods over which gains are shown, in the order of their columns.
        files: sha256 of every file of the board by its path below the board's folder, with ``/``.
    """

    schema_version: Literal[1] = 1
    kdbench_version: str
    baselines: tuple[str, ...]
    files: dict[str, str]


def write_manifest(out: Path, files: Iterable[Path], baselines: Sequence[str]) -> Path:
    """Write the manifest of a board and return its path; equal files give equal bytes.

    Args:
        out: Folder of the board.
        files: Its files, in any order, all below ``out``.
        baselines: Methods over which gains are shown, in order.

    Raises:
        StoreError: If it cannot be written.
    """
    hashes = {path.relative_to(out).as_posix(): digest(path) for path in files}
    manifest = Manifest(
        kdbench_version=__version__, baselines=tuple(baselines), files={name: hashes[name] for name in sorted(hashes)}
    )
    write_atomic(out / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return out / MANIFEST


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
