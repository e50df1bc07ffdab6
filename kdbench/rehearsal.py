"""Dry runs of methods on a pair: every shape of a run is met before anything is trained.

Networks and methods are built on torch's meta device, which knows shapes but holds no numbers, so a cell costs
milliseconds whatever its networks weigh. A method that needs numbers is tried again with real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kdbench.backbones.base import Backbone, Network
from kdbench.config.schema import Loss
from kdbench.errors import PluginError, Unsupported
from kdbench.evaluation import logits_of
from kdbench.method import (
    AnyMethod,
    Batch,
    LossProtocol,
    Options,
    Phase,
    Setup,
    Viewed,
    checked_phases,
    total,
)
from kdbench.types import Context, Features, Taps

EVERYTHING = Taps("all", pre_activation=True, embedding=True)
REAL_BATCH = 4  # images of the second try, with numbers


@dataclass(frozen=True)
class Passes:
    """How often a run passes each training image through the student and through each teacher, over all its epochs."""

    student: int
    teacher: int


@dataclass
class Rehearsal:
    """The networks of a pair and what they say, on one kind of device.

    Args:
        student: The student's backbone.
        teachers: The teachers' backbones.
        context: What methods are told; its batch size is that of the dry run.
        loss: The anchor's loss section.
        device: ``meta``, or ``cpu`` for real numbers.
    """

    student: Backbone
    teachers: tuple[Backbone, ...]
    context: Context
    loss: Loss
    device: str = "meta"
    _features: dict[int, list[Features]] = field(default_factory=dict)

    def passes(self, method: type[AnyMethod], options: Options) -> Passes:
        """Return how often a run of the method passes each image through the networks, if all its shapes fit.

        Raises:
            Unsupported: If the method declines.
            PluginError: If it breaks, with real numbers too.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device(self.device):
                torch.manual_seed(0)
                return self._run(method(options, self.context))
        except Unsupported:
            raise
        except Exception as error:
            if self.device == "meta":
                return self._with_numbers.passes(method, options)
            raise PluginError(
                f"method '{method.name}' breaks in a dry run on pair '{self.context.pair.name}': "
                f"{type(error).__name__}: {error}. Try: kdbench plugin check {method.name}"
            ) from error

    @cached_property
    def _with_numbers(self) -> Rehearsal:
        return Rehearsal(self.student, self.teachers, self.context, self.loss, "cpu")

    @cached_property
    def _networks(self) -> tuple[Network, tuple[Network, ...]]:
        info, channels = self.context.pair, self.context.pair.image.channels
        student = self.student.build(info.student.classes, channels).train()
        made = [b.build(i.classes, channels) for b, i in zip(self.teachers, info.teachers, strict=True)]
        return student, tuple(teacher.eval().requires_grad_(requires_grad=False) for teacher in made)

    @cached_property
    def _images(self) -> Tensor:
        size = self.context.batch_size if self.device == "meta" else min(self.context.batch_size, REAL_BATCH)
        return torch.rand(size, *self.context.pair.image.dims)

    def _seen_by(self, network: Network) -> Features:
        """Return all a network says of the images, asked for once."""
        if id(network) not in self._features:
            self._features[id(network)] = [network(self._images, EVERYTHING)]
        return self._features[id(network)][0]

    def _run(self, method: AnyMethod) -> Passes:
        student, teachers = self._networks
        labels = torch.arange(self.context.train_size) % self.context.student.classes
        method.train().prepare(Setup(labels, teachers if method.uses_teacher else ()))
        student_epochs = teacher_epochs = 0
        for phase in checked_phases(method):
            epochs = self.context.epochs if phase.epochs is None else phase.epochs
            student_epochs += epochs if phase.runs_student else 0
            teacher_epochs += epochs if method.uses_teacher else 0
            batch = self._batch(method, phase, labels)
            total((phase.losses or method.losses)(batch))
            with torch.no_grad():
                method.after_step(batch)
        with torch.no_grad():
            logits = logits_of(method.deploy(student).eval()(self._images))
        student.train()
        if logits.shape != (len(self._images), self.context.student.classes):
            raise ValueError(f"what it deploys returns {tuple(logits.shape)}, not one logit for each class")
        inputs = 1 + len(method.views)
        return Passes(student_epochs * inputs, teacher_epochs * inputs)

    def _batch(self, method: AnyMethod, phase: Phase, labels: Tensor) -> Batch:
        student, teachers = self._networks
        count = len(self._images)
        said = self._seen_by(student).narrow(method.taps.student.resolve(student.stage_count))
        taught = tuple(
            self._seen_by(teacher).narrow(method.taps.teachers.resolve(teacher.stage_count))
            for teacher in (teachers if method.uses_teacher else ())
        )
        if not phase.runs_student:
            said = Features(torch.empty(count, 0))
        loss = self.loss
        return Batch(
            images=self._images,
            labels=labels[:count],
            index=torch.arange(count),
            student=said,
            teachers=taught,
            protocol=LossProtocol(loss.ce_alpha, loss.kd_alpha, loss.tau, loss.ce_label_smoothing, loss.kd_target),
            views=tuple(Viewed(view.turned(self._images), said, taught) for view in method.views),
        )
