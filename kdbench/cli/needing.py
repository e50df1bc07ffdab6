"""What jobs ask of other machines: estimated, since nothing can be measured there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import click

from kdbench.cli.expecting import NOMINAL_FLOPS, by_run
from kdbench.cli.workers import Workers, room_for
from kdbench.engine import GIB, Needs, ResourceOptions
from kdbench.execution.jobs import Job, runs_job
from kdbench.memory import network_cost, spoken_size, training_memory
from kdbench.training.budget import nominal
from kdbench.training.forecast import works_of
from kdbench.training.runtime import RunTime, together
from kdbench.training.teachers import recipes_of
from kdbench.training.work import Work

HALF_AN_HOUR = 1800.0
TIMES = 4.0  # the estimated time: speeds of other machines are not known; a job that gets less saves and goes on later
OVERHEAD = 2 * GIB  # of main memory for libraries, and for what estimates leave out
COPIES = 2  # of the images in main memory: as read, and as they are fed to a GPU


def print_needs(plan: Any, asked: Any, how: Any, registry: Any) -> None:
    """Print what jobs of a plan would ask for at most."""
    workers = how.workers(asked)
    room = room_for(workers, plan, registry)
    needing = Needing(plan, workers, room, registry)
    jobs = [runs_job([spec.run_id for spec in cohort], asked.out) for cohort in room.cohorts(plan.runs)]
    most = Needs.largest([needing(job) for job in jobs])
    if isinstance(how.engine_options, ResourceOptions):
        most = how.engine_options.over(most)
    click.echo(
        f"each job asks for at most {most.gpus} GPUs, {most.cpus} cores, {spoken_size(most.memory)} and "
        f"{most.seconds / 60:g} minutes; --executor-option says otherwise"
    )


class Needing:
    """Estimates what jobs of a plan need; the same job always needs the same.

    Args:
        plan: The plan.
        workers: Who does the jobs: their device and threads.
        room: Estimates the memory of cohorts.
        registry: Loaded plugins.
    """

    def __init__(self, plan: Any, workers: Workers, room: Any, registry: Any) -> None:
        self.plan, self.workers, self.room, self.registry = plan, workers, room, registry
        self._specs = {spec.run_id: spec for spec in plan.runs}
        self._gpu = workers.devices[0].type == "cuda"

    def __call__(self, job: Job) -> Needs:
        """Return what a job needs."""
        memory = OVERHEAD + (self._beside_gpu(job) if self._gpu else self._on_cpu(job))
        halves = max(1, math.ceil(TIMES * self._seconds(job) / HALF_AN_HOUR))
        whole = math.ceil(memory / GIB) * GIB
        devices = self.workers.per_run if job.recipe is None else 1
        return Needs(int(self._gpu) * devices, self.workers.threads * devices, whole * devices, halves * HALF_AN_HOUR)

    def _on_cpu(self, job: Job) -> int:
        if job.recipe is None:
            estimated: int = self.room.estimator.cohort([self._specs[run_id] for run_id in job.run_ids])
            return estimated
        work = self._work(job)
        cost = network_cost(work.networks[0], work.pair.student.classes, work.pair.image)
        return training_memory(cost, (), work.anchor) + self._images(work)

    def _beside_gpu(self, job: Job) -> int:
        return COPIES * self._images(self._work(job))

    def _seconds(self, job: Job) -> float:
        names = job.run_ids if job.recipe is None else (job.recipe.spec().run_id,)
        return together([self._times[name] for name in names])

    def _work(self, job: Job) -> Work:
        if job.recipe is not None:
            return self._works["", job.recipe.name]
        spec = self._specs[job.run_ids[0]]
        return self._works[spec.pair, spec.row]

    @staticmethod
    def _images(work: Work) -> int:
        """Return the bytes of the training images of a dataset."""
        return (work.train + work.validation) * math.prod(work.pair.image.dims)

    @cached_property
    def _recipes(self) -> list[Any]:
        return recipes_of(self.plan.runs)

    @cached_property
    def _works(self) -> Mapping[Any, Work]:
        return works_of(self.plan, self._recipes, self.registry)

    @cached_property
    def _times(self) -> Mapping[str, RunTime]:
        rough = nominal(self._works, NOMINAL_FLOPS[self.workers.devices[0].type])
        return by_run(self.plan.runs, self._recipes, rough)
