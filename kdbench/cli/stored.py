"""Finding the runs that a command is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.storage.places import Where

if TYPE_CHECKING:
    from kdbench.spec import RunSpec
    from kdbench.store import RunFolder


def stored_runs(folders: Sequence[Where]) -> list[tuple[RunFolder, RunSpec]]:
    """Return all planned runs under the folders or URLs, or under ``runs`` if there are none.

    Raises:
        ConfigError: If a folder holds no run.
        StoreError: If a spec cannot be read.
    """
    from kdbench.errors import ConfigError
    from kdbench.store import RunStore

    found = []
    for folder in folders or (Path("runs"),):
        here = RunStore(folder).runs()
        if not here:
            raise ConfigError(f"{folder}: no runs there; make some with kdbench run --out {folder}")
        found += here
    return found
