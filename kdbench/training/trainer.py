"""The one training loop: for each batch of the stream one teacher pass, then each lane's own step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch

from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.datasets.base import Split
from kdbench.errors import FAULTS, KdbenchError, PluginError, StoreError
from kdbench.evaluation import TestSet
from kdbench.method import View
from kdbench.records import EpochReport, StepReport
from kdbench.storage.mirror import Swept
from kdbench.training.compiling import compiled
from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.lane import Lane
from kdbench.training.looking import Onlooker
from kdbench.training.meters import Glimpse
from kdbench.training.networks import Taught, TeacherPass
from kdbench.training.teacher_cache import TeacherCache
from kdbench.training.team.exchange import PeerLost
from kdbench.types import Features

# What a device says when lanes together, or one of them, ask too much of it; afterwards no lane can be trusted.
DEVICE_FAULTS = (torch.OutOfMemoryError, MemoryError, getattr(torch, "AcceleratorError", MemoryError))
CHANGED = "it changed its batch in place; the tensors are shared, copy before changing"
SCORED_EPOCHS = 5  # the last five are always evaluated: their mean is in every record


class Interrupted(KdbenchError):
    """Training was asked to stop; every lane has been saved."""

    exit_code = 75


class _TeamEnded(Exception):
    """A team's only lane has failed here: the other members do not go on, and must not be waited for."""


@dataclass(frozen=True)
class Progress:
    """Where a cohort stands, for whoever watches; ``done`` is the share of all its epochs that each run has done."""

    run_ids: tuple[str, ...]
    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    done: tuple[float, ...] = ()


@dataclass(frozen=True)
class Observer:
    """What the trainer calls while it works; it never calls back.

    Args:
        save: Writes a lane's checkpoint.
        phase_started: Sees the first step of each phase of each lane.
        epoch_ended: Sees each lane's report.
        progress: Sees progress about once a second.
        should_stop: Asked after every step.
    """

    save: Callable[[Lane], None]
    phase_started: Callable[[StepReport], None] = lambda _report: None
    epoch_ended: Callable[[EpochReport], None] = lambda _report: None
    progress: Callable[[Progress], None] = lambda _progress: None
    should_stop: Callable[[], bool] = lambda: False


class Trainer:
    """Trains lanes that share seed, data and teachers.

    Args:
        lanes: One or more; a lane's result is the same alone and in company.
        batches: The batch stream all of them see.
        teachers: Frozen teachers, shared.
        validation: Validation split, or None.
        test: Test set; only its accuracy per epoch is reported.
        observer: Saves and watches.
        cache: What the teachers said before, or None.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        batches: BatchStream,
        teachers: Sequence[Network],
        validation: Split | None,
        test: TestSet,
        observer: Observer,
        cache: TeacherCache | None = None,
    ) -> None:
        self.lanes, self.batches, self.teachers = tuple(lanes), batches, tuple(teachers)
        self.test, self.observer, self.cache = test, observer, cache
        compiles = lanes[0].anchor.step.compile
        self._teaching = [compiled(teacher) if compiles else teacher for teacher in teachers]
        size = lanes[0].anchor.evaluation.batch_size
        self.onlooker = Onlooker(validation, self.teachers, batches.device, size)
        self._last_progress = 0.0
        self.team = lanes[0].team

    def run(self) -> None:
        """Train all lanes to their end.

        Lanes in the main phase at the same position go together; every other phase is run lane by lane.

        Raises:
            Interrupted: After saving, if the observer asks to stop.
        """
        try:
            while group := self._next_group():
                self._run_epoch(group)
        except _TeamEnded:
            return
        except PeerLost as error:
            self.lanes[0].fail(self.team.blamed(error), "training on several devices")  # a team has one lane
        finally:
            self.batches.close()

    def _next_group(self) -> list[Lane]:
        active = [lane for lane in self.lanes if lane.active]
        if alone := [lane for lane in active if not lane.phase.is_main]:
            return alone[:1]
        if not active:
            return []
        # After an interruption lanes may stand apart: those behind catch up first.
        behind = min((lane.student_epoch, lane.position.step) for lane in active)
        return [lane for lane in active if (lane.student_epoch, lane.position.step) == behind]

    def _run_epoch(self, group: list[Lane]) -> None:
        first = group[0]
        teach = self._teacher_pass(group)
        for lane in group:
            self._start_epoch(lane)
        started, done = time.perf_counter(), 0
        for step in range(first.position.step, self.batches.steps):
            group = [lane for lane in group if lane.active]
            if not group:
                return
            self._run_step(group, teach, step)
            done += self.batches.batch_size
            self._show(group, step, done / (time.perf_counter() - started))
            if self.team.anyone(self.observer.should_stop()):
                for lane in self.lanes:
                    if lane.active:
                        self._save(lane, must=True)
                self.team.wait()  # who leaves first is told on: the others are ended, even while they save
                raise Interrupted("stopped; every run was saved and continues with the same command")
        if self.batches.device.type == "cuda":
            torch.cuda.synchronize()  # once per epoch, so that the epoch's time is its own
        for lane in group:
            if lane.active:
                self._end_epoch(lane)

    def _teacher_pass(self, group: Sequence[Lane]) -> TeacherPass | None:
        wanted = [lane.teacher_taps for lane in group if lane.taught]
        if not wanted or not self.teachers:
            return None
        # Per teacher: stage -1 is another one in each.
        unions = [reduce(or_, taps) for taps in zip(*wanted, strict=True)]
        live = TeacherPass(self._teaching, unions, group[0].teacher_precision, self.batches.device)
        return self.cache.before(live, wanted) if self.cache else live

    def _run_step(self, group: Sequence[Lane], teach: TeacherPass | None, step: int) -> None:
        inputs, features = self._shared(group, teach, step)
        for lane in group:
            marks = _versions(inputs, features)
            self._step_lane(lane, inputs, features if lane.taught else (), teach)
            if _versions(inputs, features) != marks:
                self._fail(lane, PluginError(CHANGED))
                inputs, features = self._shared(group, teach, step)  # the lanes after it must not see that

    def _shared(
        self, group: Sequence[Lane], teach: TeacherPass | None, step: int
    ) -> tuple[Inputs, tuple[Features, ...]]:
        """Return the batch and the teachers' features, charged to the lanes that use them."""
        now = group[0].clock.now
        started = now()
        inputs = self.batches.batch(group[0].stream_key, step, mixed=group[0].phase.mixes)
        ready = now()
        said = teach.of_batch(inputs) if teach else Taught()
        done = now()
        taught = [lane for lane in group if lane.taught] if teach else []
        for lane in group:
            lane.clock.charge("data", started, ready, 1 / len(group))
        for lane in taught:
            lane.clock.charge("teacher", ready, done, 1 / len(taught))
            lane.counters.teacher_forwards += self.team.size * said.run / len(taught)
            lane.counters.teacher_cached += self.team.size * said.recalled / len(taught)
        return inputs, said.features

    def _step_lane(self, lane: Lane, inputs: Inputs, features: Sequence[Features], teach: TeacherPass | None) -> None:
        try:
            views = [self._glimpse(lane, view, teach) for view in lane.method.views]
            # A lane that is not taught has no features to narrow.
            narrowed = [f.narrow(taps) for f, taps in zip(features, lane.teacher_taps, strict=False)]
            opening = lane.step(inputs, narrowed, views)
        except FAULTS as error:
            self._blame(lane, error)
        else:
            if opening is not None:
                self.observer.phase_started(opening)

    def _glimpse(self, lane: Lane, view: View, teach: TeacherPass | None) -> Glimpse:
        """Return a view of the lane's batch; made for this lane alone, so it bears the whole cost."""
        lane.clock.start()
        images = self.batches.view(view, lane.stream_key, lane.position.step, mixed=lane.phase.mixes)
        lane.clock.lap("data")
        features: tuple[Features, ...] = ()
        if teach and lane.taught:
            features = teach.of(lane.teacher_taps)(images)
            lane.counters.teacher_forwards += self.team.size * len(images) * len(features)
            lane.clock.lap("teacher")
        return Glimpse(images, features)

    def _blame(self, lane: Lane, error: BaseException) -> None:
        """End a lane for a plugin's fault, while the others go on."""
        if isinstance(error, PeerLost):
            raise error
        if isinstance(error, DEVICE_FAULTS) and len(self.lanes) > 1:
            raise error  # nobody's fault alone: the driver tries each run in a worker of its own
        self._fail(lane, error)

    def _fail(self, lane: Lane, error: BaseException, where: str = "") -> None:
        lane.fail(self.team.blamed(error), where)
        if not self.team.alone:
            raise _TeamEnded from error

    def _end_epoch(self, lane: Lane) -> None:
        try:
            lane.together.agree(lane.modules())
            report = lane.end_epoch(self.onlooker, self._test_accuracy(lane))
        except FAULTS as error:
            self._blame(lane, error)
            return
        self.observer.epoch_ended(report)
        self._save(lane)

    def _start_epoch(self, lane: Lane) -> None:
        try:
            lane.start_epoch(self.onlooker)
        except FAULTS as error:
            self._blame(lane, error)

    def _save(self, lane: Lane, *, must: bool = False) -> None:
        try:
            self.observer.save(lane)
        except StoreError as error:
            if must or isinstance(error, Swept):  # then its result could not be kept either
                raise
            # The older checkpoints are untouched and training needs none: a full disk costs no run.
            lane.unsaved += 1
            logging.getLogger(__name__).warning("%s: checkpoint not saved: %s", lane.spec.run_id, error)
        except KdbenchError:
            raise
        except FAULTS as error:
            self._fail(lane, error, "saving its state")

    def _test_accuracy(self, lane: Lane) -> float | None:
        if not (self.team.leads and lane.phase.is_main and is_tested(lane.student_epoch, lane.anchor)):
            return None
        return lane.clock.timed("evaluation", lambda: self.test.predict(lane.deployed())).accuracy

    def _show(self, group: Sequence[Lane], step: int, rate: float) -> None:
        now = time.perf_counter()
        if now - self._last_progress < 1.0:
            return
        self._last_progress = now
        first, steps = group[0], self.batches.steps
        ids = tuple(lane.spec.run_id for lane in group)
        done = tuple(lane.share((step + 1) / steps) for lane in group)
        self.observer.progress(
            Progress(ids, first.phase.name, first.position.epoch, first.epochs, step + 1, steps, rate, done)
        )


def is_tested(epoch: int, anchor: Anchor) -> bool:
    """Return whether the student is evaluated on the test split after an epoch of its (from 0)."""
    return (epoch + 1) % anchor.evaluation.every == 0 or epoch >= anchor.schedule.epochs - SCORED_EPOCHS


def epochs_tested(anchor: Anchor) -> int:
    """Return after how many epochs a student is evaluated on the test split."""
    return sum(is_tested(epoch, anchor) for epoch in range(anchor.schedule.epochs))


def _versions(inputs: Inputs, features: Sequence[Features]) -> list[int]:
    """Return how often each shared tensor was changed in place; reading it does not wait for the device."""
    mixed = [inputs.mix.labels] if inputs.mix else []
    taught = [tensor for found in features for tensor in found.tensors()]
    return [tensor._version for tensor in (inputs.images, inputs.labels, inputs.index, *mixed, *taught)]
