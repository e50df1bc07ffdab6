"""Dry runs of methods on a pair: every shape of a run is met before anything is trained.

Networks and methods are built on torch's meta device, which knows shapes but holds no numbers, so a cell costs
milliseconds whatever its networks weigh. A method that needs numbers is tried again with real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from kdbench.types import Context, Features, NetworkInfo, Taps

EVERYTHING = Taps("all", pre_activation=True, embedding=True)
REAL_BATCH = 4  # images of the second try, with numbers


@dataclass(frozen=True)
class Passes:
    """How often a run passes each training image through the student and through each teacher, over all its epochs."""

    student: int
    teacher: int


class Extras:
    """The networks of all dry runs of a command, each built and asked once: even without numbers a pass takes time.

    Args:
        device: ``meta``, or ``cpu`` for real numbers.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._met: dict[tuple[object, ...], tuple[Network, Features]] = {}

    def meet(
        self, backbone: Backbone, info: NetworkInfo, images: Tensor, *, training: bool
    ) -> tuple[Network, Features]:
        """Return a network in its mode, and all it says of the images."""
        key = (backbone, info.classes, tuple(images.shape), training)
        if key not in self._met:
            network = backbone.build(info.classes, images.shape[1]).train(training)
            if not training:
                network.requires_grad_(requires_grad=False)
            self._met[key] = network, network(images, EVERYTHING)
        return self._met[key]


@dataclass(frozen=True)
class Rehearsal:
    """One pair under one protocol, on which methods are tried.

    Args:
        student: The student's backbone.
        teachers: The teachers' backbones.
        context: What methods are told; its batch size is that of the dry run.
        loss: The anchor's loss section.
        extras: Shared networks, on the device of the dry run.
    """

    student: Backbone
    teachers: tuple[Backbone, ...]
    context: Context
    loss: Loss
    extras: Extras

    def passes(self, method: type[AnyMethod], options: Options) -> Passes:
        """Return how often a run of the method passes each image through the networks, if all its shapes fit.

        Raises:
            Unsupported: If the method declines.
            PluginError: If it breaks, with real numbers too.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device(self.extras.device):
                torch.manual_seed(0)
                return self._run(method(options, self.context))
        except Unsupported:
            raise
        except Exception as error:
            if self.extras.device == "meta":
                return replace(self, extras=Extras("cpu")).passes(method, options)
            raise PluginError(
                f"method '{method.name}' breaks in a dry run on pair '{self.context.pair.name}': "
                f"{type(error).__name__}: {error}. Try: kdbench plugin check {method.name}"
            ) from error

    def _run(self, method: AnyMethod) -> Passes:
        info, size = self.context.pair, self.context.batch_size
        images = torch.rand(size if self.extras.device == "meta" else min(size, REAL_BATCH), *info.image.dims)
        student, said = self.extras.meet(self.student, info.student, images, training=True)
        taught = [
            self.extras.meet(backbone, teacher, images, training=False)
            for backbone, teacher in zip(self.teachers, info.teachers, strict=True)
            if method.uses_teacher
        ]
        labels = torch.arange(self.context.train_size) % info.student.classes
        method.train().prepare(Setup(labels, tuple(network for network, _ in taught)))
        batch = Batch(
            images=images,
            labels=labels[: len(images)],
            index=torch.arange(len(images)),
            student=said.narrow(method.taps.student.resolve(student.stage_count)),
            teachers=tuple(f.narrow(method.taps.teachers.resolve(n.stage_count)) for n, f in taught),
            protocol=self._protocol(),
        )
        epochs = [self._rehearse(method, phase, batch) for phase in checked_phases(method)]
        self._deploy(method, student, images)
        inputs = 1 + len(method.views)
        return Passes(*(inputs * sum(column) for column in zip(*epochs, strict=True)))

    def _protocol(self) -> LossProtocol:
        loss = self.loss
        return LossProtocol(
            ce_weight=loss.ce_alpha,
            kd_weight=loss.kd_alpha,
            tau=loss.tau,
            label_smoothing=loss.ce_label_smoothing,
            kd_target=loss.kd_target,
            teacher_index=loss.kd_teacher_index,
            teacher_weights=loss.teacher_weights,
        )

    def _rehearse(self, method: AnyMethod, phase: Phase, batch: Batch) -> tuple[int, int]:
        """Try one step of a phase; return the epochs in which student and teachers run."""
        said = batch.student if phase.runs_student else Features(torch.empty(len(batch.images), 0))
        views = tuple(Viewed(view.turned(batch.images), said, batch.teachers) for view in method.views)
        batch = replace(batch, student=said, views=views)
        total((phase.losses or method.losses)(batch))
        with torch.no_grad():
            method.after_step(batch)
        epochs = self.context.epochs if phase.epochs is None else phase.epochs
        return epochs if phase.runs_student else 0, epochs if method.uses_teacher else 0

    def _deploy(self, method: AnyMethod, student: Network, images: Tensor) -> None:
        deployed = method.deploy(student)
        if deployed is student:
            return
        with torch.no_grad():
            logits = logits_of(deployed.eval()(images))
        student.train()
        if logits.shape != (len(images), self.context.student.classes):
            raise ValueError(f"what it deploys returns {tuple(logits.shape)}, not one logit for each class")
