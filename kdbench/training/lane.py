"""A lane: one student being trained. It owns everything its result depends on besides data and teachers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.backbones import freezing
from kdbench.backbones.base import Network
from kdbench.backbones.freezing import FreezeLevel
from kdbench.config.schema import Anchor
from kdbench.errors import FAULTS
from kdbench.evaluation import evaluate
from kdbench.method import (
    AnyMethod,
    Batch,
    Method,
    Mix,
    Options,
    Setup,
    Supervised,
    Viewed,
    checked_phases,
    total,
    trainable,
)
from kdbench.options import apply_deviations
from kdbench.records import EpochReport, StepReport
from kdbench.schedule import loss_protocol
from kdbench.seeds import stream
from kdbench.spec import RunSpec
from kdbench.training.average import Average
from kdbench.training.clock import clock_of
from kdbench.training.compiling import Forward, compiled
from kdbench.training.course import Course
from kdbench.training.inputs import Inputs
from kdbench.training.interludes import after_epoch, before_phase
from kdbench.training.looking import Onlooker
from kdbench.training.meters import Counters, Glimpse, Meters, Position, first_step, reportable
from kdbench.training.optimizer import Optimizers, set_rate, update
from kdbench.training.precision import Runner, loss_scaler
from kdbench.training.stopping import Best
from kdbench.training.team.members import ALONE, Team
from kdbench.training.team.work import Together
from kdbench.types import Context, Features

State = dict[str, Any]
SKIPPED = "skipped_steps"  # name of their count in an epoch's report


class Lane(Course):
    """One student, its method, optimizer and counters.

    Args:
        spec: What to train.
        method_type: Class of the method.
        student: The student network with its initial weights, on the device.
        context: What the method may know.
        device: Where to train.
        setup: What the method may look at before its first step.
        anchor: The protocol as it is computed; None = as the spec says.
        team: The processes that train this student together.
    """

    def __init__(
        self,
        spec: RunSpec,
        method_type: type[AnyMethod],
        student: Network,
        context: Context,
        device: torch.device,
        setup: Setup,
        anchor: Anchor | None = None,
        team: Team = ALONE,
    ) -> None:
        self.spec, self.device, self.context = spec, device, context
        self.anchor = anchor or apply_deviations(spec.anchor, spec.deviations)
        self.student, self.team = student, team
        self.together = Together(team, spec.seed, method_type.distributed, self.anchor.step.batch_norm)
        self.scaler = loss_scaler(self.anchor.step.precision, device)
        self.meters = Meters()
        self.counters = Counters()
        self.clock = clock_of(device)
        self.history: list[EpochReport] = []
        self.failure: BaseException | None = None
        self.failed_in = ""
        self.unsaved = 0  # checkpoints that could not be written
        self.diverged = ""
        self.looking = False  # whether the method is busy between epochs
        self._weights: dict[str, float | Tensor] = {}  # of the loss terms of the last step
        self._noted: list[tuple[str, Tensor | float, Tensor | float]] = []  # in the step that is under way
        self.run = Runner(lambda: self.precision, device)
        self._forward_pass: Forward = compiled(student) if self.anchor.step.compile else student
        setup = replace(setup, run=self.run)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(spec.seed, "method"))
                self._adopt(method_type(method_type.options_type.model_validate(spec.options), context), setup)
        except FAULTS as error:  # a plugin's fault ends its own lane, even this early
            self.fail(error, "its set-up")
            # Never trained: it completes the lane, so that it can be recorded.
            self._adopt(Supervised(Options(), context), setup)

    def _adopt(self, method: AnyMethod, setup: Setup) -> None:
        self.method = method.to(self.device)
        with torch.random.fork_rng(devices=[]):
            # What it draws there depends on the seed alone.
            torch.manual_seed(stream(self.spec.seed, "method", "prepare"))
            method.prepare(setup)
        self.phases = checked_phases(self.method)
        self.student_taps = self.method.taps.student.resolve(self.student.stage_count)
        of, teachers = self.method.taps.of_teacher, enumerate(self.context.teachers)
        self.teacher_taps = tuple(of(index).resolve(len(teacher.stages)) for index, teacher in teachers)
        decay = self.anchor.step.ema_decay
        self.average = Average(self.student, self.method, decay) if decay else None
        self.best = Best(self.anchor.stopping)
        self.position = Position()
        self.skip_empty_phases()
        self.optimizers = Optimizers(self.anchor.optimizer, trainable(self.student))
        self._trained = [*trainable(self.student), *trainable(self.method)]  # unless a phase says otherwise
        self.optimizer = self._phase_optimizer()

    def fail(self, error: BaseException, where: str = "") -> None:
        """End the lane for a fault of its method, by default in the running epoch."""
        self.failure = error
        self.failed_in = where or f"phase '{self.phase.name}', epoch {self.position.epoch + 1}"

    # --- epochs --------------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether there is more to train."""
        return not (self.finished or self.diverged or self.failure)

    def start_epoch(self, onlooker: Onlooker) -> None:
        """Set the epoch's learning rate and modes; needed after a resume as well."""
        if self.position.epoch == self.position.step == 0:
            before_phase(self, onlooker)
        set_rate(self.optimizer, self.rate())
        self.student.train(self.phase.student == "train")
        self.method.train()
        if any(phase.freeze for phase in self.phases):
            freezing.apply(self.student, self.phase.freeze or FreezeLevel())

    def end_epoch(self, onlooker: Onlooker, test_accuracy: float | None) -> EpochReport:
        """Report the epoch and step to the next one; a non-finite loss ends the lane as diverged."""
        shown = self.together.joined(self.meters)
        means, notes = shown.losses.means(), shown.notes.means()
        correct = means.pop("correct", None)
        if SKIPPED in notes:
            notes[SKIPPED] = round(notes[SKIPPED] * self.position.step)  # how many they were
        if not means or not all(map(math.isfinite, means.values())):  # none, where every step was left out
            self.diverged = f"non-finite loss in phase '{self.phase.name}', epoch {self.position.epoch + 1}"
        accuracy = self.together.by_leader(lambda: self._validation_accuracy(onlooker))
        self.settle()
        seconds = self.meters.seconds  # what the method does now is part of the run's cost, not of the epoch's speed
        rate = self.rate()  # nor does it change the rate of the epoch that is over
        own = {} if self.diverged else after_epoch(self, onlooker, {**means, **notes}, accuracy)
        report = EpochReport(
            run_id=self.spec.run_id,
            phase=self.phase.name,
            epoch=self.position.epoch,
            epochs=self.epochs,
            number=len(self.history),
            student_epoch=self.student_epoch if self.phase.is_main and self.phase.epochs is not None else None,
            learning_rate=rate,
            losses=reportable(means),
            metrics={**reportable(notes), **own},
            train_accuracy=None if correct is None else 100 * correct,
            validation_accuracy=accuracy,
            test_accuracy=test_accuracy,
            images_per_second=self.meters.images / max(seconds, 1e-9),
            seconds=seconds,
        )
        self.history.append(report)
        self.meters = Meters()
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        stopped = report.validation_accuracy is not None and self.best.ends(self.accuracies, self.modules())
        if stopped or self.position.epoch >= self.epochs:
            if self.phase.is_main:
                self.best.restore(self.modules())
            self.next_phase()
        return report

    def modules(self) -> list[nn.Module]:
        """Return all that has values of its own: student, method, and their average where there is one."""
        return [self.student, self.method, *([] if self.average is None else [self.average.model])]

    def next_phase(self) -> None:
        """Go on to the phase after this one."""
        self.position = Position(self.position.phase + 1)
        self.skip_empty_phases()
        self.optimizers.forget(self.phases[: self.position.phase], self.phases[self.position.phase :])
        if not self.finished:
            self.optimizer = self._phase_optimizer()
            if self.average is not None and self.phase.is_main and self.student_epoch == 0:
                # Weights from before the main phase, initial ones mostly, are no part of the average.
                self.average.restart()

    def _validation_accuracy(self, onlooker: Onlooker) -> float | None:
        if onlooker.validation is None or not self.phase.is_main:
            return None
        call = partial(evaluate, self.deployed(), onlooker.validation, self.device, onlooker.batch_size)
        return self.clock.timed("evaluation", call).accuracy

    # --- one step ----------------------------------------------------------------------------------------------

    def step(self, inputs: Inputs, teachers: Sequence[Features], views: Sequence[Glimpse] = ()) -> StepReport | None:
        """Do one optimizer step on a batch and return what the first one of a phase showed.

        Args:
            inputs: The batch.
            teachers: Their features of all its images.
            views: Further inputs, likewise.
        """
        self.clock.start()
        self.together.seed(self.stream_key, self.position.step)
        chunks = min(self.anchor.step.accumulate, len(inputs.labels))
        count = len(inputs.labels)
        if self.anchor.schedule.name == "onecycle":
            set_rate(self.optimizer, self.rate(self.position.step))
        self.optimizer.zero_grad(set_to_none=True)
        self._noted.clear()
        parts = []
        for part in range(chunks):  # as equal as possible, so that no part is down to one image
            rows = slice(part * count // chunks, (part + 1) * count // chunks)
            batch = self._forward(inputs, teachers, views, rows, whole=chunks == 1)
            parts.append((batch, self._backward(batch, share=(rows.stop - rows.start) / count)))
        sound = torch.stack([torch.isfinite(values["total"]) for _, values in parts]).all()
        sound = self.together.averaged(self.optimizer, sound)
        self._update(sound)
        self.clock.lap(self.phase.trains)
        with torch.no_grad():
            for batch, _ in parts:
                self.method.after_step(batch)
        self.clock.lap("method")
        self._meter(parts, sound)
        self._noted.clear()
        self.optimizer.zero_grad(set_to_none=True)  # lanes of a cohort would all hold theirs until their next step
        self.position.step += 1
        count *= self.team.size
        self.meters.images += count
        self.counters.images += count
        self.counters.student_forwards += count * (1 + len(views)) if self.phase.runs_student else 0
        self.counters.teacher_forwards += count * self.phase.own_forwards
        self.clock.lap(self.phase.trains)
        return self._opening() if self.position.epoch == 0 and self.position.step == 1 else None

    def _opening(self) -> StepReport:
        """Return what the phase's first step showed; reading it waits for the device, once a phase."""
        return first_step(self.spec.run_id, self.phase.name, self.together.joined(self.meters), self._weights)

    def settle(self, *, steps: bool = True) -> None:
        """Add the time that its clock has charged to the run and, that of steps, to the epoch; waits for the device."""
        training = self.counters.spend(self.clock.settled())
        self.meters.seconds += training if steps else 0.0

    def _forward(
        self,
        inputs: Inputs,
        teachers: Sequence[Features],
        views: Sequence[Glimpse],
        part: slice,
        *,
        whole: bool,
    ) -> Batch:
        images, mix = inputs.images, inputs.mix
        if not whole:
            images = images[part]
            mix = Mix(mix.labels[part], mix.share) if mix else None
            teachers = [features.rows(part) for features in teachers]
            views = [Glimpse(v.images[part], tuple(f.rows(part) for f in v.teachers)) for v in views]
        with self.together.student_runs(self.device, self.stream_key, self.position.step, part.start):
            student, *turned = self.run_student(images, [view.images for view in views])
        seen = tuple(Viewed(v.images, f, v.teachers) for v, f in zip(views, turned, strict=True))
        own = Inputs(images, inputs.labels[part], inputs.index[part], mix)
        return self.together.seen(self.batch_of(own, student, teachers, seen))

    def batch_of(
        self, inputs: Inputs, student: Features, teachers: Sequence[Features], views: tuple[Viewed, ...] = ()
    ) -> Batch:
        epoch, epochs = self.position.epoch, self.epochs
        main = (self.student_epoch, self.anchor.schedule.epochs) if self.phase.is_main else None
        count = len(inputs.labels)
        return Batch(
            images=inputs.images,
            labels=inputs.labels,
            index=inputs.index,
            student=student,
            teachers=tuple(teachers),
            protocol=loss_protocol(self.anchor, type(self.method), epoch, epochs, self.spec.teachers, main),
            epoch=epoch,
            progress=(epoch + self.position.step / self.context.steps_per_epoch) / epochs,
            mix=inputs.mix,
            views=views,
            notes=lambda name, value, weight: self._noted.append((name, value, weight * count)),
        )

    def run_student(self, images: Tensor, views: Sequence[Tensor]) -> list[Features]:
        """Return the student's features of the images and of each view, from one forward pass."""
        if not self.phase.runs_student:
            return [Features(images.new_empty(len(images), 0))] * (1 + len(views))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.phase.student == "train"):
            forward = self._forward_pass if self.student.training else self.student  # looks are not compiled
            features = self.run(forward, torch.cat([images, *views]) if views else images, self.student_taps)
        if not views:
            return [features]
        count = len(images)
        return [features.rows(slice(i * count, (i + 1) * count)) for i in range(1 + len(views))]

    def _backward(self, batch: Batch, *, share: float) -> dict[str, Tensor]:
        """Add a batch's gradient; return the values of the terms and of their sum, ``total``."""
        self.clock.lap(self.phase.trains)
        with self.together.losses_run():
            losses = (self.phase.losses or self.method.losses)(batch)
        loss = total(losses)
        self.clock.lap("method")
        scaled = loss * share if share < 1 else loss
        if self.phase.skips_nonfinite and self.scaler.is_enabled():
            # The scaler leaves out steps whose gradient is not finite; that of a term may be where its value is not.
            scaled = scaled * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
        self.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
        self._weights = {name: term.weight for name, term in losses.items()}
        return {**{name: term.value.detach() for name, term in losses.items()}, "total": loss.detach()}

    def _meter(self, parts: Sequence[tuple[Batch, dict[str, Tensor]]], sound: Tensor) -> None:
        """Add a step to the means of the epoch; where steps may be left out, what they show is no part of them."""
        skips = self.phase.skips_nonfinite
        if skips:
            self.meters.notes.add(SKIPPED, ~sound, 1.0)
        for batch, values in parts:
            weight = sound * float(len(batch.labels)) if skips else float(len(batch.labels))
            for name, value in values.items():
                self.meters.losses.add(name, value, weight)
            # Where something else than the student is deployed, the student's own logits say nothing of it.
            if batch.mix is None and self.phase.runs_student and type(self.method).deploy is Method.deploy:
                right = (batch.student.logits.argmax(1) == batch.labels).sum()
                self.meters.losses.count("correct", right, len(batch.labels))
        for name, number, share in self._noted:
            self.meters.notes.add(name, number, sound * share if skips else share)

    def _update(self, sound: Tensor) -> None:
        clip, skips = self.anchor.step.grad_clip_norm, self.phase.skips_nonfinite
        update(self.optimizer, self.scaler, clip, sound if skips else None)
        if self.average is not None:
            self.average.follow(trained=self.phase.student == "train")

    def deployed(self) -> nn.Module:
        """Return what is evaluated and exported: the method's deployment of the (averaged) student."""
        student, method = (self.student, self.method) if self.average is None else self.average.modules()
        return method.deploy(student)

    def _phase_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers.of(self.phase, self._trained, self.rate())

    # --- checkpoint --------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return everything the rest of the run depends on."""
        self.settle()
        return {
            "config_sha256": self.spec.config_sha256,
            "position": list(self.position.as_tuple()),
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizers": self.optimizers.state(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state(),
            "meters": self.together.kept(self.meters),
            "counters": vars(self.counters).copy(),
            "history": [report.model_dump_json() for report in self.history],
            "diverged": self.diverged,
            "best": self.best.state,
        }

    def load(self, state: State) -> None:
        """Continue from a state."""
        self.position = Position(*state["position"])
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizers.load(state["optimizers"], self.phases, self.position.phase, self._trained)
        if not self.finished:
            self.optimizer = self._phase_optimizer()
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load(state["average"])
        self.meters = Meters.of(self.together.own(state["meters"]), self.device)
        self.counters = Counters(**state["counters"])
        self.history = [EpochReport.model_validate_json(line) for line in state["history"]]
        self.diverged, self.best.state = state["diverged"], state["best"]
