"""What other commands on the same folders are at: their runs and teachers are left to them, and waited for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kdbench.artefacts import TeacherStore
from kdbench.execution.jobs import Job, Settings, runs_job
from kdbench.store import RunStore
from kdbench.training.teachers import training_folder

LOOK_AGAIN_SECONDS = 2.0


def left(job: Job, settings: Settings) -> list[str]:
    """Return the runs of a job that have no record and are still wanted."""
    folders = {run_id: RunStore(settings.store).folder(run_id) for run_id in job.run_ids}
    return [run_id for run_id, folder in folders.items() if folder.result() is None and not folder.cancelled]


def parts(job: Job, settings: Settings) -> tuple[Job | None, Job | None]:
    """Return what of a job can be started, and what another process holds; neither, if it has been done meanwhile."""
    if job.recipe is not None:
        store = TeacherStore(settings.teachers)
        if store.exists(job.recipe.dataset, job.recipe.name):
            return None, None
        return (None, job) if training_folder(job.recipe, store).held() else (job, None)
    undone = left(job, settings)
    held = [run_id for run_id in undone if RunStore(settings.store).folder(run_id).held()]
    free = [run_id for run_id in undone if run_id not in held]
    if free == list(job.run_ids):
        return job, None
    return (runs_job(free, settings.store) if free else None), (runs_job(held, settings.store) if held else None)


def wait_for_others(jobs: Sequence[Job], settings: Settings) -> None:
    """Wait until something of the jobs can be started or has been done by the process that held it."""
    if not _all_held(jobs, settings):
        return
    names = ", ".join(job.name for job in jobs)
    logging.getLogger(__name__).warning("another command is at %s; waiting for it", names)
    while _all_held(jobs, settings):
        time.sleep(LOOK_AGAIN_SECONDS)


def _all_held(jobs: Sequence[Job], settings: Settings) -> bool:
    cut = [parts(job, settings) for job in jobs]
    return bool(cut) and all(free is None and held is not None for free, held in cut)
