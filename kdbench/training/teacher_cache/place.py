"""Where a machine keeps what teachers said, and how much of it; no result depends on either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdbench.files import TEMPORARY, sweep_temporary

GIB = 2**30
SUFFIX = ".entries"


@dataclass(frozen=True)
class CachePlace:
    """A folder and its limit.

    Args:
        folder: Root of the cache; it need not exist.
        size: Most bytes of all files of entries together, each counted as if it were full.
    """

    folder: Path
    size: int

    def sweep(self) -> None:
        """Remove what processes left that were killed while they made a file; the caller holds the lock of the cache.

        Raises:
            OSError: If it cannot be removed.
        """
        for folder in {path.parent for path in self.folder.rglob(f"{TEMPORARY}*{SUFFIX}")}:
            sweep_temporary(folder)

    def room(self, beside: Path) -> int:
        """Return how many bytes a file may have, next to all others."""
        others = (path for path in self.folder.rglob(f"*{SUFFIX}") if path != beside)
        return self.size - sum(path.stat().st_size for path in others)


def gibibytes(size: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
