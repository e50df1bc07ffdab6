"""Units of work that any engine can run: a teacher to make, or a cohort of runs to train."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.storage.places import Where
from kdbench.training.teacher_cache.place import GIB, CachePlace
from kdbench.training.teachers import Recipe

DONE, FAILED, STOPPED = 0, 65, 75


@dataclass(frozen=True)
class Settings:
    """Where and how jobs run; nothing here changes a result but device type and thread count.

    Args:
        store: Where the runs are.
        teachers: Where the teacher artefacts are.
        data: Folder of the datasets.
        devices: ``cpu`` alone, or ``cuda:N``, each once; every worker has one of them. With several devices per run
            each is a list of so many, with commas between them.
        threads: CPU threads of each worker, and of each of its devices.
        without: Plugins left out.
        cache: Where outputs of teachers are kept; None = nowhere.
        devices_per_run: Devices that train a run together; a teacher is made on the first one.
    """

    store: Where
    teachers: Where
    data: Path
    devices: tuple[str, ...]
    threads: int
    without: tuple[str, ...] = ()
    cache: CachePlace | None = None
    devices_per_run: int = 1


@dataclass(frozen=True)
class Job:
    """One unit of work.

    Args:
        name: For people.
        arguments: Of the ``kdbench`` command that does it, without where and how.
        run_ids: Runs it trains; empty for a teacher.
        recipe: The teacher it makes, or None.
    """

    name: str
    arguments: tuple[str, ...]
    run_ids: tuple[str, ...] = ()
    recipe: Recipe | None = None

    def command(self, settings: Settings, device: str) -> list[str]:
        """Return the command line of a worker process on one of the devices."""
        plugins = [word for name in settings.without for word in ("--no-plugin", name)]
        device = device if self.run_ids else device.partition(",")[0]
        where = [
            "--teachers", str(settings.teachers), "--data", str(settings.data), "--device", device,
            "--threads", str(settings.threads), "--events",
        ]  # fmt: skip
        if self.run_ids:  # what makes a teacher asks none
            where += _cache_words(settings.cache)
            where += ["--devices-per-run", str(settings.devices_per_run)] if settings.devices_per_run > 1 else []
        return [sys.executable, "-m", "kdbench", *plugins, *self.arguments, *where]


@dataclass(frozen=True)
class Ended:
    """A job that ended. The exit code is a hint; the store says what was done.

    Args:
        job: The job.
        exit_code: Of its process; negative = the signal that ended it.
        error: Last lines of its standard error.
    """

    job: Job
    exit_code: int
    error: str


def _cache_words(cache: CachePlace | None) -> list[str]:
    if cache is None:
        return ["--teacher-cache", "off"]
    return ["--cache", str(cache.folder), "--cache-size", repr(cache.size / GIB)]


def teacher_job(recipe: Recipe, anchor: str) -> Job:
    """Return the job that trains a teacher."""
    subset = ["--per-class", str(recipe.dataset.per_class)] if recipe.dataset.per_class else []
    arguments = (
        "teacher", "train", recipe.backbone, "--dataset", recipe.dataset.name, "--anchor", anchor,
        "--seed", str(recipe.seed), *subset,
    )  # fmt: skip
    return Job(f"teacher {recipe.name}", arguments, recipe=recipe)


def runs_job(run_ids: Sequence[str], store: Where) -> Job:
    """Return the job that trains runs together."""
    words = [word for run_id in run_ids for word in ("--run", run_id)]
    name = f"run {run_ids[0]}" + (f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else "")
    return Job(name, ("run-one", "--store", str(store), *words), tuple(run_ids))
