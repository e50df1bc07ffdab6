"""Merging stores: the runs of several machines in one store, each once, and nothing in the sources changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import ConfigError, ProblemList
from kdbench.merging.choosing import Choice, choose
from kdbench.merging.copying import copy_run, one_merge, restore
from kdbench.merging.reading import read_store
from kdbench.store import RunStore

__all__ = ["Choice", "merge"]


def merge(stores: Sequence[Path], out: Path, *, with_unfinished: bool = False, dry_run: bool = False) -> Choice:
    """Copy the runs of several stores into one.

    Args:
        stores: Folders of runs, stores or parts of them; of equal runs the first one is taken.
        out: The store they are copied to; it may exist, and doing it again changes nothing.
        with_unfinished: Copy unfinished runs, too, with their checkpoints.
        dry_run: Only find out what would be done.

    Returns:
        What was done, or would be.

    Raises:
        ConfigError: If a folder holds no runs or lies inside the target, or runs contradict each other; nothing is
            copied then.
        StoreError: If a file cannot be read or written; what was copied before is complete, and a new start goes on.
    """
    folders: dict[Path, Path] = {}
    for path in stores:
        folders.setdefault(path.resolve(), path)
    folders.pop(out.resolve(), None)  # its runs stay anyway
    for folder in folders.values():
        _check_apart(folder, out)
    sources = [read_store(folder) for folder in folders.values()]
    if empty := [source.root for source in sources if not source.runs and not source.damaged]:
        raise ConfigError(f"{empty[0]}: no runs there; give a folder that kdbench run --out has written")
    if not dry_run:
        restore(out)
    choice = choose(sources, read_store(out, whole=True), with_unfinished=with_unfinished)
    if choice.conflicts:
        raise ProblemList(choice.conflicts)
    if choice.copy and not dry_run:
        with one_merge(out):
            for run in choice.copy.values():
                copy_run(run, RunStore(out))
    return choice


def _check_apart(folder: Path, out: Path) -> None:
    here, there = folder.resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(f"--out {out}: one of it and {folder} lies inside the other; choose another --out")
