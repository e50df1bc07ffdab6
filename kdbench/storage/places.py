"""Where runs and teachers are kept: in a folder, or at a URL such as ``s3://bucket/runs``."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdbench.errors import ConfigError

SCRATCH_VARIABLE = "KDBENCH_SCRATCH"  # folder on a local disk where things at URLs are worked on


@dataclass(frozen=True)
class Url:
    """A place that fsspec reaches.

    Args:
        text: The URL, without a slash at its end.
    """

    text: str

    def __str__(self) -> str:
        return self.text


Where = Path | Url


def where(text: str) -> Where:
    """Return the place that a user names."""
    return Url(text.rstrip("/")) if "://" in text else Path(text)


def scratch() -> Path:
    """Return this user's local folder for copies of what lies at URLs.

    Raises:
        ConfigError: If it belongs to somebody else, who could change what is read from it.
    """
    named = os.environ.get(SCRATCH_VARIABLE)
    return _own(Path(named).resolve() if named else Path(tempfile.gettempdir()) / f"kdbench-{os.getuid()}")


@cache
def _own(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be used for copies of what lies at URLs ({error.strerror}); name a local folder in "
            f"{SCRATCH_VARIABLE}"
        ) from error
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder}: belongs to somebody else; name a folder of your own in {SCRATCH_VARIABLE}")
    return folder
