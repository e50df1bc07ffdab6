"""A lane: one student being trained. It owns everything its result depends on besides data and teachers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.config.schema import Anchor
from kdbench.datasets.base import Split
from kdbench.evaluation import evaluate
from kdbench.method import (
    AnyMethod,
    Batch,
    Method,
    Mix,
    Options,
    Phase,
    Setup,
    Supervised,
    Viewed,
    checked_phases,
    total,
    trainable,
)
from kdbench.options import apply_deviations
from kdbench.records import EpochReport
from kdbench.schedule import Within, loss_protocol, phase_rate
from kdbench.seeds import stream
from kdbench.spec import RunSpec
from kdbench.training.inputs import Inputs
from kdbench.training.meters import Counters, Glimpse, Meters, Position
from kdbench.training.optimizer import make_optimizer
from kdbench.training.precision import autocast, in_float32, loss_scaler
from kdbench.training.stopping import Best
from kdbench.types import Context, Features

State = dict[str, Any]


class Lane:
    """One student, its method, optimizer and counters.

    Args:
        spec: What to train.
        method_type: Class of the method.
        student: The student network with its initial weights, on the device.
        context: What the method may know.
        device: Where to train.
        setup: What the method may look at before its first step.
        anchor: The protocol as it is computed; None = as the spec says.
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
    ) -> None:
        self.spec, self.device, self.context = spec, device, context
        self.anchor = anchor or apply_deviations(spec.anchor, spec.deviations)
        self.student = student
        self.scaler = loss_scaler(self.anchor.step.precision, device)
        self.meters = Meters()
        self.counters = Counters()
        self.history: list[EpochReport] = []
        self.failure: Exception | None = None
        self.failed_in = ""
        self.unsaved = 0  # checkpoints that could not be written
        self.diverged = ""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stream(spec.seed, "method"))
                self._adopt(method_type(method_type.options_type.model_validate(spec.options), context), setup)
        except Exception as error:  # a plugin's fault ends its own lane, even this early
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
        self.average = self._new_average()
        self.best = Best(self.anchor.stopping)
        self.position = Position()
        self._skip_empty_phases()
        self.optimizer = self._new_optimizer()

    def fail(self, error: Exception, where: str = "") -> None:
        """End the lane for a fault of its method, by default in the running epoch."""
        self.failure = error
        self.failed_in = where or f"phase '{self.phase.name}', epoch {self.position.epoch + 1}"

    # --- phases and epochs -------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The running phase."""
        return self.phases[self.position.phase]

    @property
    def epochs(self) -> int:
        """Epochs of the running phase."""
        return self.anchor.schedule.epochs if self.phase.epochs is None else self.phase.epochs

    @property
    def finished(self) -> bool:
        """Whether all phases are done."""
        return self.position.phase >= len(self.phases)

    @property
    def active(self) -> bool:
        """Whether there is more to train."""
        return not (self.finished or self.diverged or self.failure)

    @property
    def stream_key(self) -> int | str:
        """Key of the epoch's data order: the main phase's is the same for all methods."""
        return self.position.epoch if self.phase.is_main else f"{self.phase.name}:{self.position.epoch}"

    def rate(self, step: int = 0) -> float:
        """Return the learning rate of the running epoch, at its first step or another one."""
        base = self.anchor.learning_rate_of(self.spec.student)
        within = Within(step, self.context.steps_per_epoch, self.accuracies)
        return phase_rate(self.anchor.schedule, self.phase, base, self.position.epoch, self.epochs, within)

    @property
    def accuracies(self) -> list[float]:
        """Validation accuracies of the main phase so far, in percent."""
        return [r.validation_accuracy for r in self.history if r.validation_accuracy is not None]

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def start_epoch(self) -> None:
        """Set the epoch's learning rate and train mode; needed after a resume as well."""
        self._set_rate(self.rate())
        self.student.train()
        self.method.train()

    def end_epoch(self, validation: Split | None, test_accuracy: float | None) -> EpochReport:
        """Report the epoch and step to the next one; a non-finite loss ends the lane as diverged."""
        means = self.meters.means()
        accuracy = means.pop("correct", None)
        if not all(map(math.isfinite, means.values())):
            self.diverged = f"non-finite loss in phase '{self.phase.name}', epoch {self.position.epoch + 1}"
        report = EpochReport(
            run_id=self.spec.run_id,
            phase=self.phase.name,
            epoch=self.position.epoch,
            epochs=self.epochs,
            learning_rate=self.rate(),
            losses={name: value if math.isfinite(value) else None for name, value in means.items()},
            train_accuracy=None if accuracy is None else 100 * accuracy,
            validation_accuracy=self._accuracy_on(validation),
            test_accuracy=test_accuracy,
            images_per_second=self.meters.images / max(self.meters.seconds, 1e-9),
            seconds=self.meters.seconds,
        )
        self.history.append(report)
        self.meters = Meters()
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        stopped = report.validation_accuracy is not None and self.best.ends(self.accuracies, self._kept())
        if stopped or self.position.epoch >= self.epochs:
            if self.phase.is_main:
                self.best.restore(self._kept())
            self._next_phase()
        return report

    def _kept(self) -> list[nn.Module]:
        return [self.student, self.method, *([] if self.average is None else [self.average])]

    def _next_phase(self) -> None:
        self.position = Position(self.position.phase + 1)
        self._skip_empty_phases()
        if not self.finished:
            self.optimizer = self._new_optimizer()
            if self.average is not None and self.phase.is_main:
                # Weights from before the main phase, initial ones mostly, are no part of the average.
                self.average.n_averaged.zero_()

    def _skip_empty_phases(self) -> None:
        while not self.finished and self.epochs == 0:
            self.position.phase += 1

    def _accuracy_on(self, split: Split | None) -> float | None:
        if split is None or not self.phase.is_main:
            return None
        return evaluate(self.deployed(), split, self.device, self.anchor.evaluation.batch_size).accuracy

    # --- one step ----------------------------------------------------------------------------------------------

    def step(self, inputs: Inputs, teachers: Sequence[Features], views: Sequence[Glimpse] = ()) -> None:
        """Do one optimizer step on a batch; teachers' features and views are those of the whole batch."""
        started = time.perf_counter()
        # Every step starts its own stream, so dropout needs no saved state and is the same alone and in a cohort.
        torch.manual_seed(stream(self.spec.seed, "dropout", self.stream_key, self.position.step))
        chunks = min(self.anchor.step.accumulate, len(inputs.labels))
        count = len(inputs.labels)
        if self.anchor.schedule.name == "onecycle":
            self._set_rate(self.rate(self.position.step))
        self.optimizer.zero_grad(set_to_none=True)
        batches = []
        for part in range(chunks):  # as equal as possible, so that no part is down to one image
            rows = slice(part * count // chunks, (part + 1) * count // chunks)
            batch = self._forward(inputs, teachers, views, rows, whole=chunks == 1)
            self._backward(batch, share=len(batch.labels) / count)
            batches.append(batch)
        self._update()
        with torch.no_grad():
            for batch in batches:
                self.method.after_step(batch)
        self.position.step += 1
        self.meters.images += count
        self.counters.images += count
        self.counters.student_forwards += count * (1 + len(views)) if self.phase.runs_student else 0
        self.spend(time.perf_counter() - started)

    def spend(self, seconds: float) -> None:
        """Add to the training time of the epoch and the run."""
        self.meters.seconds += seconds
        self.counters.train_seconds += seconds

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
        student, *turned = self._student(images, [view.images for view in views])
        epoch, epochs = self.position.epoch, self.epochs
        return Batch(
            images=images,
            labels=inputs.labels[part],
            index=inputs.index[part],
            student=student,
            teachers=tuple(teachers),
            protocol=loss_protocol(self.anchor, type(self.method), epoch, epochs, self.spec.teachers),
            epoch=epoch,
            progress=(epoch + self.position.step / self.context.steps_per_epoch) / epochs,
            mix=mix,
            views=tuple(Viewed(v.images, f, v.teachers) for v, f in zip(views, turned, strict=True)),
        )

    def _student(self, images: Tensor, views: Sequence[Tensor]) -> list[Features]:
        """Return the student's features of the images and of each view, from one forward pass."""
        if not self.phase.runs_student:
            return [Features(images.new_empty(len(images), 0))] * (1 + len(views))
        with autocast(self.anchor.step.precision, self.device):
            features = self.student(torch.cat([images, *views]) if views else images, self.student_taps)
        features = in_float32(features)
        if not views:
            return [features]
        count = len(images)
        return [features.rows(slice(i * count, (i + 1) * count)) for i in range(1 + len(views))]

    def _backward(self, batch: Batch, *, share: float) -> None:
        losses = (self.phase.losses or self.method.losses)(batch)
        loss = total(losses)
        self.scaler.scale(loss * share if share < 1 else loss).backward()  # type: ignore[no-untyped-call]
        count = len(batch.labels)
        for name, term in losses.items():
            self.meters.add(name, term.value, count)
        self.meters.add("total", loss, count)
        # Where something else than the student is deployed, the student's own logits say nothing of it.
        if batch.mix is None and self.phase.runs_student and type(self.method).deploy is Method.deploy:
            self.meters.add("correct", (batch.student.logits.argmax(1) == batch.labels).sum())

    def _update(self) -> None:
        clip = self.anchor.step.grad_clip_norm
        if clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self._follow(self.average)

    def _follow(self, average: torch.optim.swa_utils.AveragedModel) -> None:
        """Bring the average up to date; in a phase without the student, the method's part alone, as it is."""
        if self.phase.runs_student:
            average.update_parameters(self._averaged())
        else:
            cast("nn.ModuleList", average.module)[1].load_state_dict(self.method.state_dict())

    # --- what is evaluated -------------------------------------------------------------------------------------

    def deployed(self) -> nn.Module:
        """Return what is evaluated and exported: the method's deployment of the (averaged) student."""
        if self.average is None:
            return self.method.deploy(self.student)
        student, method = cast("nn.ModuleList", self.average.module)
        return cast("AnyMethod", method).deploy(student)

    def _averaged(self) -> nn.Module:
        return nn.ModuleList([self.student, self.method])

    def _new_average(self) -> torch.optim.swa_utils.AveragedModel | None:
        decay = self.anchor.step.ema_decay
        if not decay:
            return None
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        return torch.optim.swa_utils.AveragedModel(self._averaged(), multi_avg_fn=average, use_buffers=True)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        choose: Callable[[], Any] | None = self.phase.parameters
        chosen = list(choose()) if choose else [*trainable(self.student), *trainable(self.method)]
        return make_optimizer(self.anchor.optimizer, chosen, self.rate())

    # --- checkpoint --------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return everything the rest of the run depends on."""
        return {
            "config_sha256": self.spec.config_sha256,
            "position": list(self.position.as_tuple()),
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "meters": {"sums": dict(self.meters.sums), "images": self.meters.images, "seconds": self.meters.seconds},
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
        if not self.finished:
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        meters = state["meters"]
        sums = {name: value.to(self.device) for name, value in meters["sums"].items()}
        self.meters = Meters(sums, meters["images"], meters["seconds"])
        self.counters = Counters(**state["counters"])
        self.history = [EpochReport.model_validate_json(line) for line in state["history"]]
        self.diverged, self.best.state = state["diverged"], state["best"]
