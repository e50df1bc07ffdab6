"""A store of runs in memory, for fleets whose files no disk of a test machine has room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kdbench.execution import driver, held
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.store import RunFolder, RunStore


class MemoryFolder(RunFolder):
    """A run whose files are entries of dictionaries; its path does not exist."""

    specs: dict[Path, RunSpec]
    records: dict[Path, Record]

    def spec(self) -> RunSpec:
        return self.specs[self.path]

    def record(self) -> Record | None:
        return self.records.get(self.path)

    def peek(self) -> Record | None:
        return self.record()

    def write_spec(self, spec: RunSpec) -> None:
        self.specs[self.path] = spec

    def write_record(self, record: Record) -> None:
        self.records[self.path] = record

    def held(self) -> bool:
        return False

    def tidy(self) -> None:
        """Nothing is left behind."""

    def claimed(self) -> Any:
        return nullcontext()


class MemoryStore(RunStore):
    """Runs in memory, under the interface of the real store."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.kind = type("Folder", (MemoryFolder,), {"specs": {}, "records": {}})

    def folder(self, run_id: str) -> RunFolder:
        folder: RunFolder = self.kind(self.root / run_id)
        return folder

    def register(self, specs: Iterable[RunSpec]) -> None:
        for spec in specs:
            self.folder(spec.run_id).write_spec(spec)

    def runs(self) -> list[tuple[RunFolder, RunSpec]]:
        found = sorted(self.kind.specs.items())
        return [(self.kind(path), spec) for path, spec in found]


@contextmanager
def patched(store: Any) -> Iterator[None]:
    """Have the driver use this store wherever it opens one."""
    before = driver.RunStore
    driver.RunStore = held.RunStore = lambda _root: store  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        driver.RunStore = held.RunStore = before  # type: ignore[misc]
