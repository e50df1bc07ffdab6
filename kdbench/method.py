"""What a distillation method is: options, the losses of one batch, and optional phases, helpers and deployment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.losses import combine_teachers, cross_entropy, kd_loss
from kdbench.types import Context, Deviation, Features, LossWeights, Pair, PairInfo, Source, Taps, Term

Losses = Mapping[str, Term]


class Options(BaseModel):
    """Base of a method's options: each a ``Field`` with type, range, default and description, its only home."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


O = TypeVar("O", bound=Options)  # noqa: E741 (the options, as in Method[O])


@dataclass(frozen=True)
class TapRequest:
    """What a method needs from student and teachers besides their logits.

    Args:
        student: Taps of the student.
        teachers: Taps of the first teacher.
        every_teacher: Whether ``teachers`` holds for all teachers; else the others give their logits alone, so they may
            be of any kind and depth.
    """

    student: Taps = Taps()
    teachers: Taps = Taps()
    every_teacher: bool = False

    def of_teacher(self, index: int) -> Taps:
        """Return what is needed of a teacher besides its logits, 0 = the first."""
        return self.teachers if index == 0 or self.every_teacher else Taps()


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


@dataclass(frozen=True)
class Setup:
    """What a method may look at once, before its first step.

    Args:
        labels: Training labels (N,), int64; a copy, the method's own.
        networks: The teachers as all runs share them; methods use ``teachers``.
    """

    labels: Tensor
    networks: tuple[Network, ...] = field(default=(), repr=False)

    @cached_property
    def teachers(self) -> tuple[Network, ...]:
        """Copies of the frozen teacher networks in eval mode, the method's own; empty for methods without one."""
        return copy.deepcopy(self.networks)


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
        progress: Share of the phase done, in [0, 1).
        mix: Partners of the mixed images, or None.
        views: What the networks say of each view in the method's ``views``.
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


@dataclass(frozen=True)
class Phase:
    """One training stage of a method. The default is a single main phase with the anchor's schedule.

    Args:
        name: Unique within the method.
        epochs: Epochs; None = the anchor's, which only the main phase has.
        losses: The phase's loss; None = the method's ``losses``.
        parameters: What is trained; None = the student and the method's own parameters.
        learning_rate: Initial rate; None = the anchor's.
        rate_factor: Factor on the initial rate as a function of the share of the phase done, in [0, 1); None = the
            anchor's schedule, over the epochs of the phase.
        runs_student: Whether the student runs, in train mode. If not, nothing of it changes, its features are empty
            (0 classes), and it costs nothing: for phases that train a helper on the teacher's features.
    """

    name: str = "main"
    epochs: int | None = None
    losses: Callable[[Batch], Losses] | None = None
    parameters: Callable[[], Iterable[nn.Parameter]] | None = None
    learning_rate: float | None = None
    rate_factor: Callable[[float], float] | None = None
    runs_student: bool = True

    def __post_init__(self) -> None:
        # The name is part of the keys of the phase's random streams.
        if not self.name.replace("_", "").isalnum():
            raise ValueError(f"phase name '{self.name}': letters, digits and '_' only")
        if self.is_main and (self.learning_rate is not None or self.rate_factor is not None):
            raise ValueError("the main phase has the anchor's learning rate; declare a Deviation to change it")
        if self.is_main and not self.runs_student:
            raise ValueError("the main phase trains the student, so it must run it")

    @property
    def is_main(self) -> bool:
        """Whether this is the phase that trains the student under the anchor's schedule."""
        return self.epochs is None


class Method(nn.Module, Generic[O]):
    """Base class of distillation methods.

    A method sets the class attributes and implements :meth:`losses`. Helpers with weights (projections, heads) are
    ordinary submodules made in ``__init__`` from the shapes in ``context``: they are moved, trained with the student
    and kept in the checkpoint without further calls; so are buffers. The trainer guarantees that teachers are in eval
    mode and without gradients, equal initial weights and data order for equal seeds, and one backward per step.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when results change; leaderboards never mix versions
    source: ClassVar[Source]
    options_type: ClassVar[type[Options]] = Options
    published: ClassVar[LossWeights] = LossWeights(ce=1.0, kd=0.0)
    deviations: ClassVar[tuple[Deviation, ...]] = ()
    owns: ClassVar[tuple[str, ...]] = ()  # anchor keys that are this method's own business, e.g. loss.kd_target
    uses_teacher: ClassVar[bool] = True
    baseline: ClassVar[bool] = False  # whether leaderboards print every method's gain over this one
    taps: TapRequest = TapRequest()
    views: tuple[View, ...] = ()  # extra inputs; each costs a forward pass of every network

    def __init__(self, options: O, context: Context) -> None:
        """Make the helpers.

        Raises:
            Unsupported: If options and context do not fit, e.g. a batch of one; ``kdbench plan`` shows the reason.
        """
        super().__init__()
        self.options = options
        self.context = context

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:  # noqa: ARG003
        """Return option values for an anchor family where they differ from the defaults, e.g. published ones."""
        return {}

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:  # noqa: ARG003
        """Return why the method cannot train this pair, or None if it can."""
        return None

    def phases(self) -> tuple[Phase, ...]:
        """Return the training stages in order; names are unique and exactly one has ``epochs=None``."""
        return (Phase(),)

    def prepare(self, setup: Setup) -> None:
        """See labels and teachers once, before the first step of a run that starts or resumes."""

    def losses(self, batch: Batch) -> Losses:
        """Return the named terms of the loss; the trainer sums ``weight * value``."""
        raise NotImplementedError

    def after_step(self, batch: Batch) -> None:
        """Update memory banks and the like after the optimizer step; runs without gradients."""

    def deploy(self, student: nn.Module) -> nn.Module:
        """Return the module that is evaluated and exported; it maps images to Features or logits."""
        return student


AnyMethod = Method[Any]


class Supervised(Method[Options]):
    """Cross-entropy alone: how teachers are trained, and the baseline that has none."""

    name = "supervised"
    source = Source("Deep Residual Learning for Image Recognition", 2015, "https://arxiv.org/abs/1512.03385")
    uses_teacher = False

    def losses(self, batch: Batch) -> Losses:
        # Without a teacher there is nothing to balance: the whole weight, ce_alpha + kd_alpha = 1, is supervised.
        return {"ce": Term(batch.supervised().value, 1.0)}


def checked_phases(method: AnyMethod) -> tuple[Phase, ...]:
    """Return a method's phases.

    Raises:
        ValueError: If names repeat or there is not exactly one main phase: its epochs are the anchor's, once.
    """
    phases = tuple(method.phases())
    mains = sum(phase.is_main for phase in phases)
    if mains != 1 or len({phase.name for phase in phases}) < len(phases):
        names = [phase.name for phase in phases]
        raise ValueError(f"phases {names}: need unique names and one main phase (epochs=None), here {mains}")
    return phases


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that take a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of the terms, in float32 or wider."""
    parts = [term.weight * term.value for term in losses.values()]
    wide = torch.promote_types(torch.float32, parts[0].dtype)
    return torch.stack([part.to(wide) for part in parts]).sum()
