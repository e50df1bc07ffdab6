"""Timing a run: a few real steps of each of its phases, and one real end of an epoch, on random images."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from kdbench.config.schema import Anchor
from kdbench.evaluation import TestSet
from kdbench.rehearsal import host_generators
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.cohort import lane_of
from kdbench.training.data import CohortData
from kdbench.training.inputs import BatchStream
from kdbench.training.runtime import PhaseTime, RunTime
from kdbench.training.standins import Noise, filled, noise
from kdbench.training.trainer import Observer, Trainer, epochs_tested
from kdbench.training.watch import Seen, Watch
from kdbench.training.work import Work

STEPS = 4  # of each phase; the first one warms up


def time_run(work: Work, device: torch.device) -> RunTime:
    """Return how long a run will take on a device, from the code that trains it, in its precision, on random images.

    Raises:
        RuntimeError: If the memory does not suffice, or the method fails on random images.
    """
    with tempfile.TemporaryDirectory() as folder, host_generators(), torch.random.fork_rng(devices=[]):
        return Trial(work, device, CheckpointFolder(Path(folder))).time()


class Trial:
    """A run whose epochs are a few steps long.

    Args:
        work: The run.
        device: Where it runs.
        checkpoints: Where its checkpoints are written.
    """

    def __init__(self, work: Work, device: torch.device, checkpoints: CheckpointFolder) -> None:
        self.work, info = work, work.data
        self.images = work.step_images(device)
        self.validated = work.evaluated_images(device, work.validation)
        self.tested = work.evaluated_images(device, info.test_size)
        anchor = _shortened(work.anchor, self.images)
        started = time.perf_counter()
        validation = noise(info, self.validated) if self.validated else None
        test = TestSet(Noise(info, self.tested), device, anchor.evaluation.batch_size)
        grey = (0.5,) * info.image.channels
        train = noise(info, max(work.train, STEPS * self.images))  # of a real one there may be fewer steps
        data = CohortData(info, train, validation, test, mean=grey, std=grey)
        batches = BatchStream(train, anchor.data, work.spec.seed, device, mirror=info.mirror)
        student, *teachers = (filled(network, len(info.classes), info.image, device) for network in work.networks)
        for network, backbone in zip((student, *teachers), work.networks, strict=True):
            network.place(device, channels_last=anchor.step.channels_last and backbone.channels_last)
        for teacher in teachers:
            teacher.eval().requires_grad_(requires_grad=False)
        lane = lane_of(work.spec, work.method, student, teachers, work.pair, data, batches, anchor)
        self.around = time.perf_counter() - started
        batches.steps = STEPS
        self.watch = Watch(lane, checkpoints)
        observer = Observer(save=self.watch.save, epoch_ended=self.watch.epoch, should_stop=self.watch.step)
        self.trainer = Trainer([lane], batches, teachers, validation, test, observer)

    def time(self) -> RunTime:
        """Train, and return the time of the whole run.

        Raises:
            RuntimeError: If the method fails.
        """
        self.watch.start()
        self.trainer.run()
        if self.watch.lane.failure is not None:
            raise RuntimeError("the method fails on random images") from self.watch.lane.failure
        last = max(self._evaluation(seen) for seen in self.watch.seen) * self.work.data.test_size
        return RunTime(tuple(map(self._phase, self.watch.seen)), self.around + last)

    def _phase(self, seen: Seen) -> PhaseTime:
        """Return the time of all epochs of a phase from that of a short one."""
        work, ending = self.work, seen.ending
        step, shared = seen.step(work.passes.inputs)
        if not seen.phase.is_main:
            shared = 0.0  # lanes go through other phases one by one
        steps = seen.epochs * work.epoch_images / self.images
        look = work.validation / self.validated if self.validated else 1.0
        tests = work.data.test_size * epochs_tested(work.anchor) / work.anchor.schedule.epochs
        end = ending.rest + ending.method * look + self._evaluation(seen) * (work.validation + tests)
        return PhaseTime(seen.phase.name, seen.opening + steps * (step - shared) + seen.epochs * end, steps * shared)

    def _evaluation(self, seen: Seen) -> float:
        """Return the seconds of evaluating an image; 0 in a phase that is not evaluated."""
        return seen.ending.evaluation / (self.validated + self.tested)


def _shortened(anchor: Anchor, images: int) -> Anchor:
    """Return the protocol with steps of so many images, and an evaluation after each epoch."""
    sections = {"data": {"batch_size": images}, "evaluation": {"every": 1}}
    return anchor.model_copy(
        update={name: getattr(anchor, name).model_copy(update=values) for name, values in sections.items()}
    )
