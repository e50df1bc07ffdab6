"""The one training loop: for each batch of the stream one teacher pass, then each lane's own step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch

from kdbench.backbones.base import Network
from kdbench.datasets.base import Split
from kdbench.errors import KdbenchError
from kdbench.evaluation import TestSet
from kdbench.records import EpochReport
from kdbench.training.inputs import BatchStream, Inputs
from kdbench.training.lane import Lane
from kdbench.training.networks import TeacherPass
from kdbench.types import Features

SCORED_EPOCHS = 5  # the last five are always evaluated: their mean is in every record


class Interrupted(KdbenchError):
    """Training was asked to stop; every lane has been saved."""

    exit_code = 75


@dataclass(frozen=True)
class Progress:
    """Where a cohort stands, for whoever watches."""

    run_ids: tuple[str, ...]
    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float


@dataclass(frozen=True)
class Observer:
    """What the trainer calls while it works; it never calls back.

    Args:
        save: Writes a lane's checkpoint.
        epoch_ended: Sees each lane's report.
        progress: Sees progress about once a second.
        should_stop: Asked after every step.
    """

    save: Callable[[Lane], None]
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
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        batches: BatchStream,
        teachers: Sequence[Network],
        validation: Split | None,
        test: TestSet,
        observer: Observer,
    ) -> None:
        self.lanes, self.batches, self.teachers = tuple(lanes), batches, tuple(teachers)
        self.validation, self.test, self.observer = validation, test, observer
        self._last_progress = 0.0

    def run(self) -> None:
        """Train all lanes to their end.

        Lanes in the main phase at the same position go together; every other phase is run lane by lane.

        Raises:
            Interrupted: After saving, if the observer asks to stop.
        """
        while group := self._next_group():
            self._run_epoch(group)

    def _next_group(self) -> list[Lane]:
        active = [lane for lane in self.lanes if lane.active]
        if alone := [lane for lane in active if not lane.phase.is_main]:
            return alone[:1]
        if not active:
            return []
        # After an interruption lanes may stand apart: those behind catch up first.
        behind = min((lane.position.epoch, lane.position.step) for lane in active)
        return [lane for lane in active if (lane.position.epoch, lane.position.step) == behind]

    def _run_epoch(self, group: list[Lane]) -> None:
        first = group[0]
        teach = self._teacher_pass(group)
        for lane in group:
            lane.start_epoch()
        started, done = time.perf_counter(), 0
        for step in range(first.position.step, self.batches.steps):
            self._run_step(group, teach, step)
            group = [lane for lane in group if lane.active]
            if not group:
                return
            done += self.batches.batch_size
            self._show(group, step, done / (time.perf_counter() - started))
            if self.observer.should_stop():
                for lane in self.lanes:
                    if lane.active:
                        self._save(lane)
                raise Interrupted("stopped; every run was saved and continues with the same command")
        if self.batches.device.type == "cuda":
            torch.cuda.synchronize()  # once per epoch, so that the epoch's time is its own
        for lane in group:
            self._end_epoch(lane)

    def _teacher_pass(self, group: Sequence[Lane]) -> TeacherPass | None:
        wanted = [lane.teacher_taps for lane in group if lane.method.uses_teacher]
        if not wanted or not self.teachers:
            return None
        # Per teacher: stage -1 is another one in each.
        unions = [reduce(or_, taps) for taps in zip(*wanted, strict=True)]
        return TeacherPass(self.teachers, unions, group[0].anchor.step.precision, self.batches.device)

    def _run_step(self, group: Sequence[Lane], teach: TeacherPass | None, step: int) -> None:
        started = time.perf_counter()
        inputs = self.batches.batch(group[0].stream_key, step)
        taught = [lane for lane in group if lane.method.uses_teacher] if teach else []
        features = teach(inputs.images) if teach else ()
        share = (time.perf_counter() - started) / len(group)
        for lane in group:
            lane.spend(share)
            if lane in taught:
                lane.counters.teacher_forwards += len(inputs.labels) * len(features) / len(taught)
            self._step_lane(lane, inputs, features if lane in taught else ())

    def _step_lane(self, lane: Lane, inputs: Inputs, features: Sequence[Features]) -> None:
        try:
            # A lane that is not taught has no features to narrow.
            lane.step(inputs, [f.narrow(taps) for f, taps in zip(features, lane.teacher_taps, strict=False)])
        except Exception as error:  # a plugin's fault ends its own lane; the others go on
            lane.fail(error)

    def _end_epoch(self, lane: Lane) -> None:
        try:
            report = lane.end_epoch(self.validation, self._test_accuracy(lane))
        except Exception as error:
            lane.fail(error)
            return
        self.observer.epoch_ended(report)
        self._save(lane)

    def _save(self, lane: Lane) -> None:
        try:
            self.observer.save(lane)
        except KdbenchError:
            raise  # the store's fault, not the method's
        except Exception as error:
            lane.fail(error, "saving its state")

    def _test_accuracy(self, lane: Lane) -> float | None:
        epoch, epochs = lane.position.epoch, lane.epochs
        due = (epoch + 1) % lane.anchor.evaluation.every == 0 or epoch >= epochs - SCORED_EPOCHS
        return self.test.predict(lane.deployed()).accuracy if lane.phase.is_main and due else None

    def _show(self, group: Sequence[Lane], step: int, rate: float) -> None:
        now = time.perf_counter()
        if now - self._last_progress < 1.0:
            return
        self._last_progress = now
        first = group[0]
        ids = tuple(lane.spec.run_id for lane in group)
        self.observer.progress(
            Progress(ids, first.phase.name, first.position.epoch, first.epochs, step + 1, self.batches.steps, rate)
        )
