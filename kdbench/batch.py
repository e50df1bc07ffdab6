"""What a method sees of one batch: images, labels, what the networks say of them, and the anchor's loss terms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.losses import combine_teachers, cross_entropy, kd_loss
from kdbench.types import Features, Taps, Term


@dataclass(frozen=True)
class Mix:
    """Input mixing of a batch: image = share * own + (1 - share) * partner, and so with the labels.

    Args:
        labels: Labels of the partners, int64 (N,).
        share: Share of the own image, in [0, 1].
    """

    labels: Tensor
    share: float


@dataclass(frozen=True)
class LossProtocol:
    """The anchor's loss settings as they hold for one method and epoch; ``base_tau`` is its tau without a schedule."""

    ce_weight: float
    kd_weight: float
    tau: float
    base_tau: float = 4.0
    label_smoothing: float = 0.0
    kd_target: str = "avg"
    teacher_index: int = 0
    teacher_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class View:
    """An extra input made of every image: mirrored like the image itself, turned, and cropped anew.

    Each costs a forward pass of the student and of every teacher, which the record counts. Views are mixed like the
    images, with the same partners and share.

    Args:
        quarter_turns: Counter-clockwise turns by 90 degrees, 0..3; images must be square.
    """

    quarter_turns: int

    def __post_init__(self) -> None:
        if self.quarter_turns not in range(4):
            raise ValueError(f"quarter_turns {self.quarter_turns}: 0, 1, 2 or 3")

    def turned(self, images: Tensor) -> Tensor:
        """Return images (N, C, S, S) turned counter-clockwise."""
        return torch.rot90(images, self.quarter_turns, (2, 3))


@dataclass(frozen=True)
class Viewed:
    """What student and teachers say of one view of the batch; row i belongs to image i.

    Args:
        images: (N, C, H, W) in [0, 1].
        student: The student's features; it sees images and views in one forward pass, so BN mixes them.
        teachers: Each teacher's features.
    """

    images: Tensor
    student: Features
    teachers: tuple[Features, ...]

    @property
    def teacher(self) -> Features:
        """The first teacher's features."""
        return self.teachers[0]


def _as_it_is(network: nn.Module, images: Tensor, taps: Taps) -> Features:
    said: Features = network(images, taps)
    return said


@dataclass(frozen=True)
class Setup:
    """What a method may look at once, before its first step.

    Args:
        labels: Training labels (N,), int64; a copy, the method's own.
        networks: The teachers as all runs share them; methods use ``teachers``.
        run: Runs a network of the method's own on images (N, C, H, W) in [0, 1], with taps, as the trainer runs its
            networks: in the precision of the phase, features in float32. A method may keep it.
    """

    labels: Tensor
    networks: tuple[Network, ...] = field(default=(), repr=False)
    run: Callable[[nn.Module, Tensor, Taps], Features] = field(default=_as_it_is, repr=False)

    @cached_property
    def teachers(self) -> tuple[Network, ...]:
        """Copies of the frozen teacher networks in eval mode, the method's own; empty for methods without one."""
        return copy.deepcopy(self.networks)


Note = Callable[[str, Tensor | float, Tensor | float], None]


def _unheard(_name: str, _value: Tensor | float, _weight: Tensor | float) -> None:
    """Take no note: batches that nobody reports on."""


@dataclass(frozen=True)
class Batch:
    """One batch as a method sees it. Features are float32, teachers' are constants; nothing in it may be changed.

    Args:
        images: (N, C, H, W) in [0, 1], augmented and mixed.
        labels: Class indices (N,).
        index: Position of each image in the training split (N,).
        student: What the student says.
        teachers: What each teacher says, logits alone from the second one on unless ``taps.every_teacher``; empty for
            methods without one.
        protocol: The anchor's loss settings.
        epoch: 0-based epoch of the phase.
        progress: Share of the phase done, in [0, 1); 1 in a look after its last epoch.
        mix: Partners of the mixed images, or None.
        views: What the networks say of each view in the method's ``views``.
        notes: Where :meth:`note` goes.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    student: Features
    teachers: tuple[Features, ...]
    protocol: LossProtocol
    epoch: int = 0
    progress: float = 0.0
    mix: Mix | None = None
    views: tuple[Viewed, ...] = ()
    notes: Note = field(default=_unheard, repr=False)

    def note(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Report a number of the method's own; the epoch's report has its mean over the images.

        Args:
            name: Key in ``EpochReport.metrics``.
            value: Scalar of this batch.
            weight: Share of the batch that it speaks of, >= 0; with 0 throughout, the epoch has no such number.
        """
        self.notes(name, value, weight)

    @property
    def teacher(self) -> Features:
        """The first teacher's features, which methods on features use; all teachers' logits are in ``kd_target``."""
        return self.teachers[0]

    @property
    def tau(self) -> float:
        """The anchor's temperature in this epoch."""
        return self.protocol.tau

    @property
    def kd_weight(self) -> float:
        """Weight of the KD term, for methods whose own logit loss takes its place."""
        return self.protocol.kd_weight

    def kd_target(self) -> Tensor:
        """Return the logits (N, C) that all teachers together teach, as the anchor combines them."""
        p = self.protocol
        logits = tuple(teacher.logits for teacher in self.teachers)
        return combine_teachers(logits, p.kd_target, index=p.teacher_index, weights=p.teacher_weights, tau=p.tau)

    def over_labels(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``loss(labels)``, or with mixed images the share-weighted sum over both sets of labels."""
        if self.mix is None:
            return loss(self.labels)
        return self.mix.share * loss(self.labels) + (1 - self.mix.share) * loss(self.mix.labels)

    def supervised(self, logits: Tensor | None = None) -> Term:
        """Return the anchor's supervised term on the student's logits (or on others in their place)."""
        given = self.student.logits if logits is None else logits
        smoothing = self.protocol.label_smoothing
        value = self.over_labels(lambda labels: cross_entropy(given, labels, label_smoothing=smoothing))
        return Term(value, self.protocol.ce_weight)

    def kd(self, target: Tensor | None = None) -> Term:
        """Return the anchor's KD term towards ``target`` logits (N, C), by default the teachers' combined ones."""
        towards = self.kd_target() if target is None else target
        return Term(kd_loss(self.student.logits, towards, self.tau), self.protocol.kd_weight)
