"""Copying the records a board was made from, so that anyone can rebuild it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from kdbench.config.schema import Section
from kdbench.files import write_atomic
from kdbench.records import Record, parse_json
from kdbench.spec import DatasetRef
from kdbench.store import CONFLICT, EPOCH_TABLE, EPOCHS, PREDICTIONS, RECORD, SPEC, RunFolder, RunStore

FOLDER = "runs"
FILES = (SPEC, RECORD, EPOCHS, EPOCH_TABLE, PREDICTIONS)  # of a published run; all but the first may be missing
_CONFLICT = re.compile(rf"{re.escape(CONFLICT)}[0-9a-f]{{8}}\.json")
# A dataset made from another: kind, numbers and words separated by commas, then the other one. No path looks like it.
_WRAPPED = re.compile(r"([A-Za-z0-9._-]+:\d+(,\w+)+:)+(?=[A-Za-z][A-Za-z0-9._-]*(:|$))")


def publish(folders: Iterable[RunFolder], out: Path) -> RunStore:
    """Copy spec, record, epochs and predictions of runs to ``out/runs`` and return that store.

    Dataset paths are reduced to file names: where somebody keeps their data is nobody's business, and the fingerprint
    identifies it. A file without them keeps its bytes, whichever version wrote it, and one that is there already is not
    touched. Weights stay where they are.
    """
    for folder in folders:
        spec = folder.spec()
        target = out / FOLDER / spec.run_id
        taught_on = tuple(map(without_folder, spec.teacher_datasets))
        named = spec.model_copy(update={"dataset": without_folder(spec.dataset), "teacher_datasets": taught_on})
        _copy(folder.path, target, SPEC, named if named != spec else None)
        for path in filter(Path.exists, (folder.path / RECORD, *folder.conflicts())):
            found = parse_json(Record, path)
            copied = found.model_copy(update={"dataset_ref": without_folder(found.dataset_ref)})
            _copy(folder.path, target, path.name, copied if copied != found else None)
        for name in (EPOCHS, EPOCH_TABLE, PREDICTIONS):
            if (folder.path / name).exists():
                _copy(folder.path, target, name)
    return RunStore(out / FOLDER)


def is_published(name: str) -> bool:
    """Return whether a file of this name may be part of a published run."""
    return name in FILES or _CONFLICT.fullmatch(name) is not None


def _copy(source: Path, target: Path, name: str, instead: Section | None = None) -> None:
    """Copy a file, or write what stands in its place, unless the same bytes are there."""
    data = (source / name).read_bytes() if instead is None else f"{instead.model_dump_json(indent=2)}\n".encode()
    if not (target / name).exists() or (target / name).read_bytes() != data:
        write_atomic(target / name, data)


def without_folder(dataset: DatasetRef) -> DatasetRef:
    """Return the reference with the path in its name reduced to the last part; what it is a part of is kept."""
    wrapped = _WRAPPED.match(dataset.name)
    start = wrapped.end() if wrapped else 0
    kind, colon, path = dataset.name[start:].partition(":")
    return dataset.model_copy(update={"name": f"{dataset.name[:start]}{kind}{colon}{PurePath(path).name}"})
