"""What a distillation method is: options, the losses of one batch, and optional phases, helpers and deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdbench.batch import Batch, LossProtocol, Mix, Setup, View, Viewed
from kdbench.phases import Group, Interlude, Losses, Phase, check_phases
from kdbench.types import Context, Deviation, LossWeights, Pair, PairInfo, Source, Taps, Term

__all__ = [
    "AnyMethod",
    "Batch",
    "Group",
    "Interlude",
    "LossProtocol",
    "Losses",
    "Method",
    "Mix",
    "Options",
    "Phase",
    "Setup",
    "Supervised",
    "TapRequest",
    "View",
    "Viewed",
    "checked_phases",
    "total",
    "trainable",
]


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
    # How several devices train a run together. "slices": every loss is a mean over images of what each gives alone, so
    # each device computes it of its own images. "gathered": losses compare images, or remember them; each device sees
    # the features of the whole batch. None: not looked into, so runs on several devices are refused.
    distributed: ClassVar[Literal["slices", "gathered"] | None] = None
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

    def cautions(self) -> tuple[str, ...]:
        """Return what the user should know of these options before anything is trained, a sentence each."""
        return ()

    def phases(self) -> tuple[Phase, ...]:
        """Return the training stages in order; one is the main phase, or several are its parts."""
        return (Phase(),)

    def prepare(self, setup: Setup) -> None:
        """See labels and teachers once, before the first step of a run that starts or resumes."""

    def losses(self, batch: Batch) -> Losses:
        """Return the named terms of the loss; the trainer sums ``weight * value``."""
        raise NotImplementedError

    def after_step(self, batch: Batch) -> None:
        """Update memory banks and the like after the optimizer step; runs without gradients."""

    def before_phase(self, interlude: Interlude) -> None:
        """Look at the validation split, or set something up, before a phase's first step; runs without gradients."""

    def after_epoch(self, interlude: Interlude) -> Mapping[str, float | str]:  # noqa: ARG002
        """Measure, keep or restore something after an epoch; runs without gradients.

        Returns:
            Numbers and words for the epoch's report (``EpochReport.metrics``).
        """
        return {}

    def deploy(self, student: nn.Module) -> nn.Module:
        """Return the module that is evaluated and exported; it maps images to Features or logits."""
        return student


AnyMethod = Method[Any]


class Supervised(Method[Options]):
    """Cross-entropy alone: how teachers are trained, and the baseline that has none."""

    name = "supervised"
    source = Source("Deep Residual Learning for Image Recognition", 2015, "https://arxiv.org/abs/1512.03385")
    uses_teacher = False
    distributed = "slices"

    def losses(self, batch: Batch) -> Losses:
        # Without a teacher there is nothing to balance: the whole weight, ce_alpha + kd_alpha = 1, is supervised.
        return {"ce": Term(batch.supervised().value, 1.0)}


def checked_phases(method: AnyMethod) -> tuple[Phase, ...]:
    """Return a method's phases.

    Raises:
        ValueError: If they do not make one training of the student, of the anchor's length.
    """
    phases = tuple(method.phases())
    check_phases(phases, method.context.epochs)
    return phases


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that take a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of the terms, in float32 or wider."""
    parts = [term.weight * term.value for term in losses.values()]
    wide = torch.promote_types(torch.float32, parts[0].dtype)
    return torch.stack([part.to(wide) for part in parts]).sum()
