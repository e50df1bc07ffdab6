"""How a dataset the user brings is identified: a fingerprint of its content and a name that is safe in paths."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

_BLOCK = 1 << 20
_STEM = 40


def fingerprint(blocks: Iterable[bytes]) -> str:
    """Return the first 16 hex digits of the sha256 of the blocks, one after the other."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return the first 16 hex digits of the sha256 of a file, as ``sha256sum`` gives them."""
    with path.open("rb") as file:
        return fingerprint(iter(lambda: file.read(_BLOCK), b""))


def slug(scheme: str, stem: str, mark: str) -> str:
    """Return ``scheme-stem-mark`` for paths: letters, digits, '.', '_' and '-', at most 64 characters.

    Args:
        scheme: ``npz`` or ``folder``.
        stem: File or folder name; other characters become '-', and it is cut to 40.
        mark: Fingerprint, of which 8 digits tell datasets with equal names apart.
    """
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:_STEM].strip("-.") or "data"
    return f"{scheme}-{clean}-{mark[:8]}"
