"""Dry runs of methods on a pair: every shape of a run is met before anything is trained.

Networks and methods are built on torch's meta device, which knows shapes but holds no numbers, so a cell costs
milliseconds whatever its networks weigh. A method that needs numbers is tried again with real ones.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kdbench.backbones.base import Backbone, Network
from kdbench.backbones.freezing import trainable_names
from kdbench.config.schema import Anchor
from kdbench.errors import FAULTS, PluginError, Unsupported
from kdbench.evaluation import logits_of
from kdbench.kept import Kept
from kdbench.method import (
    AnyMethod,
    Batch,
    Method,
    Mix,
    Options,
    Phase,
    Setup,
    Viewed,
    checked_phases,
    total,
)
from kdbench.schedule import loss_protocol
from kdbench.types import Context, Features, NetworkInfo, StageShape, Taps

REAL_BATCH = 4  # images of the second try, with numbers


@dataclass(frozen=True)
class Burden:
    """What a method adds to the memory that the networks of a run need.

    Args:
        parameters: Scalars it trains besides the student, or holds as copies of teachers.
        buffer_bytes: Its buffers, such as a bank of embeddings.
        kept_bytes: Bytes per image that its losses keep for the backward pass, in the phase where they are most.
        taught_bytes: Bytes per image of the teachers' features it asks for.
    """

    parameters: int = 0
    buffer_bytes: int = 0
    kept_bytes: int = 0
    taught_bytes: int = 0


@dataclass(frozen=True)
class Passes:
    """How often a run passes each training image through the networks, and what it needs beside them.

    Args:
        student: Forward passes of the student over all epochs, views included.
        teacher: Forward passes of each teacher.
        inputs: Images the student sees at once for each one of the batch: itself and its views.
        cautions: What the method wants the user to know before.
        burden: What the method adds to the memory of the networks.
        phases: Name and epochs of each phase.
        taps: What it needs of each teacher besides the logits, resolved; empty if it does not ask the shared ones.
    """

    student: int
    teacher: int
    inputs: int = 1
    cautions: tuple[str, ...] = ()
    burden: Burden = Burden()
    phases: tuple[tuple[str, int], ...] = ()
    taps: tuple[Taps, ...] = field(default=(), compare=False)


class Extras:
    """The networks of all dry runs of a command, each built and asked once: even without numbers a pass takes time.

    Args:
        device: ``meta``, or ``cpu`` for real numbers.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._met: dict[tuple[object, ...], tuple[Network, Features]] = {}

    def meet(
        self, backbone: Backbone, info: NetworkInfo, images: Tensor, taps: Taps, *, training: bool
    ) -> tuple[Network, Features]:
        """Return a network in its mode, and what it says of the images."""
        key = (backbone, info.classes, tuple(images.shape), training, taps.pre_activation)
        if key not in self._met:
            network = backbone.build(info.classes, StageShape(tuple(images.shape[1:]))).train(training)
            if not training:
                network.requires_grad_(requires_grad=False)
            self._met[key] = network, network(images, Taps("all", taps.pre_activation, embedding=True))
        network, said = self._met[key]
        return network, said.narrow(taps.resolve(network.stage_count))


@dataclass(frozen=True)
class Rehearsal:
    """One pair under one protocol, on which methods are tried.

    Args:
        student: The student's backbone.
        teachers: The teachers' backbones.
        context: What methods are told; its batch size is that of the dry run.
        anchor: The protocol as it holds for the method.
        extras: Shared networks, on the device of the dry run.
    """

    student: Backbone
    teachers: tuple[Backbone, ...]
    context: Context
    anchor: Anchor
    extras: Extras

    def passes(self, method: type[AnyMethod], options: Options) -> Passes:
        """Return how often a run of the method passes each image through the networks, if all its shapes fit.

        Raises:
            Unsupported: If the method declines.
            PluginError: If it breaks, with real numbers too.
        """
        try:
            with host_generators(), torch.random.fork_rng(devices=[]), torch.device(self.extras.device):
                torch.manual_seed(0)
                return self._run(method(options, self.context))
        except Unsupported:
            raise
        except FAULTS as error:
            if self.extras.device == "meta":
                few = replace(self.context, batch_size=min(self.context.batch_size, REAL_BATCH))
                return replace(self, context=few, extras=Extras("cpu")).passes(method, options)
            raise PluginError(
                f"method '{method.name}' breaks in a dry run on pair '{self.context.pair.name}': "
                f"{type(error).__name__}: {error}. Try: kdbench plugin check {method.name}"
            ) from error

    def _run(self, method: AnyMethod) -> Passes:
        info, count = self.context.pair, self.context.batch_size
        if info.image.height != info.image.width and any(view.quarter_turns % 2 for view in method.views):
            raise Unsupported(f"its views turn images by 90 degrees, so they must be square; these are {info.image}")
        images = torch.rand(count, *info.image.dims)
        student, said = self.extras.meet(self.student, info.student, images, method.taps.student, training=True)
        taught = [
            self.extras.meet(backbone, teacher, images, method.taps.of_teacher(index), training=False)
            for index, (backbone, teacher) in enumerate(zip(self.teachers, info.teachers, strict=True))
            if method.uses_teacher
        ]
        labels = torch.arange(self.context.train_size) % info.student.classes
        method.train().prepare(Setup(labels, tuple(network for network, _ in taught)))
        data = self.anchor.data
        batch = Batch(
            images=images,
            labels=labels[:count],
            index=torch.arange(count),
            student=said,
            teachers=tuple(features for _, features in taught),
            protocol=loss_protocol(self.anchor, type(method), 0, self.context.epochs, [b.name for b in self.teachers]),
            mix=Mix(labels[:count].flip(0), 0.7) if data.mixup_alpha or data.cutmix_alpha else None,
        )
        phases = checked_phases(method)
        epochs = [self._rehearse(method, phase, batch, student) for phase in phases]
        self._deploy(method, student, images)
        inputs = 1 + len(method.views)
        ours, theirs, kept = zip(*epochs, strict=True)
        return Passes(
            student=inputs * sum(ours),
            teacher=inputs * sum(theirs),
            inputs=inputs,
            cautions=tuple(method.cautions()),
            burden=_burden(method, batch, max(kept), inputs),
            phases=tuple((phase.name, self._epochs(phase)) for phase in phases),
            taps=self._taps(method),
        )

    def _taps(self, method: AnyMethod) -> tuple[Taps, ...]:
        asks = method.uses_teacher and any(phase.teachers for phase in checked_phases(method))
        teachers = enumerate(self.context.teachers if asks else ())
        return tuple(method.taps.of_teacher(index).resolve(len(teacher.stages)) for index, teacher in teachers)

    def _epochs(self, phase: Phase) -> int:
        return self.context.epochs if phase.epochs is None else phase.epochs

    def _rehearse(self, method: AnyMethod, phase: Phase, batch: Batch, student: Network) -> tuple[int, int, int]:
        """Try one step of a phase; return the epochs in which student and teachers run, and what its losses keep."""
        epochs = self._epochs(phase)
        if epochs == 0:
            return 0, 0, 0  # left out in training, too
        frozen = phase.freeze if phase.freeze is not None and phase.freeze.level >= 0 else None
        if frozen and not self.context.freezing:
            raise Unsupported(
                f"phase '{phase.name}' freezes parts of the student (level {frozen.level}), but the anchor has "
                "freezing.use_partial_freeze false; take an anchor that allows it"
            )
        if frozen:
            trainable_names(student, student.freeze_division(), frozen)  # a level beyond its blocks is refused
        said = batch.student if phase.runs_student else Features(torch.empty(len(batch.images), 0))
        views = tuple(Viewed(view.turned(batch.images), said, batch.teachers) for view in method.views)
        mix = batch.mix if phase.mixes else None
        batch = replace(batch, student=said, views=views, mix=mix, teachers=batch.teachers if phase.teachers else ())
        with Kept() as kept:
            total((phase.losses or method.losses)(batch))
        with torch.no_grad():
            method.after_step(batch)
        per_teacher = phase.own_forwards / max(1, len(self.teachers)) + (method.uses_teacher and phase.teachers)
        size = kept.bytes_without([*_tensors(batch), *method.parameters(), *method.buffers()]) // len(batch.images)
        return epochs if phase.runs_student else 0, round(epochs * per_teacher), size

    def _deploy(self, method: AnyMethod, student: Network, images: Tensor) -> None:
        if type(method).deploy is Method.deploy:
            return
        deployed = method.deploy(copy.deepcopy(student))  # other methods are tried on this one
        with torch.no_grad():
            logits = logits_of(deployed.eval()(images))
        if logits.shape != (len(images), self.context.student.classes):
            raise ValueError(f"what it deploys returns {tuple(logits.shape)}, not one logit for each class")


def _burden(method: AnyMethod, batch: Batch, kept: int, inputs: int) -> Burden:
    taught = sum(t.numel() * t.element_size() for features in batch.teachers for t in features.tensors())
    return Burden(
        parameters=sum(parameter.numel() for parameter in method.parameters()),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in method.buffers()),
        kept_bytes=kept,
        taught_bytes=inputs * taught // len(batch.images),
    )


def _tensors(batch: Batch) -> list[Tensor]:
    """Return what a step has in memory before any loss: the batch, and what networks say of it and of its views."""
    viewed = [features for view in batch.views for features in (view.student, *view.teachers)]
    said = (batch.student, *batch.teachers, *viewed)
    return [batch.images, batch.labels, batch.index, *(tensor for features in said for tensor in features.tensors())]


@contextmanager
def host_generators() -> Iterator[None]:
    """Give back the states of Python's and NumPy's global generators: a dry run must not change what comes after."""
    python, array = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
