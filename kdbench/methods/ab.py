"""Activation boundaries: before its main training, the student learns on which side of zero the teacher's units are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import Connector, paired_shapes, taps_behind_stem, unconnectable, unpaired
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, Phase, TapRequest
from kdbench.types import Context, LossWeights, PairInfo, Source, StageShape, Term

_SCALE = 3 / 1000  # of the authors' code


class ABOptions(Options):
    """Length and loss of the initialisation."""

    init_share: float = Field(
        30 / 240,
        ge=0,
        le=1,
        description="epochs of the initialisation as a share of the anchor's, on top of them; 0: none",
    )
    margin: float = Field(1.0, gt=0, description="how far beyond zero a unit must be to count as on the right side")
    # Published weights of the main phase multiply a loss that is 0 there. fair_baseline's values, attention_weight 1
    # and feature_weight 0.5, have no counterpart beyond this weight, so the first is its default already.
    weight: float = Field(
        1.0, gt=0, description="weight of the loss in the initialisation, its only term; the main phase does not use it"
    )


class AB(Method[ABOptions]):
    """An initialisation by the boundary loss alone, then CE (and the anchor's KD) alone."""

    name = "ab"
    source = Source(
        title="Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        year=2019,
        url="https://arxiv.org/abs/1811.03233",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, stages of equal channels and height have no connector, where the authors' "
        "code always has one; the initialisation is a share of the epochs (30 of the published 240).",
    )
    options_type = ABOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"

    def __init__(self, options: ABOptions, context: Context) -> None:
        super().__init__(options, context)
        self.taps = TapRequest(
            taps_behind_stem(context.student, pre_activation=True),
            taps_behind_stem(context.teachers[0], pre_activation=True),
        )
        self.connectors = nn.ModuleList(make_connector(*shapes) for shapes in paired_shapes(context.pair))

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline networks whose stages do not pair up, and sizes that no connector fits."""
        if reason := unpaired(pair):
            return reason
        shapes = [both for both in paired_shapes(pair) if needs_connector(*both)]
        return next((reason for both in shapes if (reason := unconnectable(*both))), None)

    def phases(self) -> tuple[Phase, ...]:
        epochs = self.context.epochs_for(self.options.init_share)
        # The classifier is no exception by name: the loss has no gradient for it, so it stays as it is.
        return Phase("init", epochs, self.boundary_losses, rate_factor=lambda _: 1.0), Phase()

    def boundary_losses(self, batch: Batch) -> Losses:
        """Return the loss of the initialisation."""
        maps = batch.student.pre_stages
        connected = [connect(one) for connect, one in zip(self.connectors, maps, strict=True)]
        return {"ab": Term(ab_loss(connected, batch.teacher.pre_stages, self.options.margin), self.options.weight)}

    def losses(self, batch: Batch) -> Losses:
        return {"ce": batch.supervised(), "kd": batch.kd()}


def needs_connector(student: StageShape, teacher: StageShape) -> bool:
    """Return whether a student map must be converted before it is compared with the teacher's."""
    return student.dims != teacher.dims


def make_connector(student: StageShape, teacher: StageShape) -> nn.Module:
    """Return the module from a student map to the teacher's shape: identity if they agree, else convolution and BN."""
    return Connector(student, teacher, relu=False) if needs_connector(student, teacher) else nn.Identity()


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Return the squared distances by which student units miss the teacher's side of zero, summed over all units.

    Args:
        student: Pre-activation map (N, C, H, W), behind the connector.
        teacher: Pre-activation map (N, C, H, W), a constant; at 0 or below a unit counts as inactive.
        margin: How far beyond zero a unit must be to cost nothing.

    Source:
        Heo et al. 2019, arXiv:1811.03233, the alternative loss of section 3.
    """
    student, active = wide(student), teacher.detach() > 0
    return F.relu(torch.where(active, margin - student, margin + student)).square().sum()


def stage_weights(count: int) -> list[float]:
    """Return the weights of the stages, shallow to deep: 1 for the deepest, half of the next one's for each other."""
    return [2.0 ** (index - count + 1) for index in range(count)]


def ab_terms(students: Sequence[Tensor], teachers: Sequence[Tensor], margin: float) -> list[Tensor]:
    """Return the weighted loss of each stage, per image; their sum is :func:`ab_loss`, where the arguments are."""
    pairs = zip(stage_weights(len(students)), students, teachers, strict=True)
    return [weight * _SCALE / len(ours) * boundary_loss(ours, theirs, margin) for weight, ours, theirs in pairs]


def ab_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], margin: float) -> Tensor:
    """Return the activation boundary loss: over stages, the weighted :func:`boundary_loss` per image times 3 / 1000.

    Args:
        students: Pre-activation maps (N, C, H, W) behind their connectors, shallow to deep.
        teachers: The teacher's, of the same shapes; constants.
        margin: How far beyond zero a unit must be to cost nothing.

    Source:
        RepDistiller@b84f547, distiller_zoo/AB.py; weights and scale are those of the authors' code.
    """
    return torch.stack(ab_terms(students, teachers, margin)).sum()


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register AB."""
    return [AB]
