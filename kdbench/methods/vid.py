"""Variational information distillation: predict the teacher's features from the student's, with learned variances."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.errors import Unsupported
from kdbench.hooks import hookimpl
from kdbench.losses import wide
from kdbench.maps import paired_shapes, taps_behind_stem, to_smaller, unpaired
from kdbench.method import AnyMethod, Batch, Losses, Method, Options, TapRequest
from kdbench.types import Context, LossWeights, PairInfo, Source, Term


class VIDOptions(Options):
    """Weight of the term, and where the variances start and end."""

    weight: float = Field(1.0, ge=0, description="weight of the variational term")
    init_pred_var: float = Field(5.0, gt=0, description="initial variance of every teacher channel; larger than eps")
    eps: float = Field(1e-5, gt=0, description="smallest variance")


class VID(Method[VIDOptions]):
    """Cross-entropy plus the negative log-likelihood of the teacher's maps at all stages behind the stem."""

    name = "vid"
    source = Source(
        title="Variational Information Distillation for Knowledge Transfer",
        year=2019,
        url="https://arxiv.org/abs/1904.05835",
        code="HobbitLong/RepDistiller@b84f547",
        deviations="As in the reference, a mean over channels and positions instead of the sum, without the constant.",
    )
    options_type = VIDOptions
    published = LossWeights(ce=1.0, kd=0.0)
    distributed = "slices"

    def __init__(self, options: VIDOptions, context: Context) -> None:
        super().__init__(options, context)
        if options.init_pred_var <= options.eps:
            raise Unsupported(
                f"init_pred_var is {options.init_pred_var:g}, but no variance can be {options.eps:g} (eps) or less"
            )
        self.taps = TapRequest(taps_behind_stem(context.student), taps_behind_stem(context.teachers[0]))
        self.predictors = nn.ModuleList(
            Predictor(ours.channels, theirs.channels, init_pred_var=options.init_pred_var, eps=options.eps)
            for ours, theirs in paired_shapes(context.pair)
        )

    @classmethod
    def supports(cls, pair: PairInfo) -> str | None:
        """Decline stages that cannot be paired."""
        return unpaired(pair)

    def losses(self, batch: Batch) -> Losses:
        stages = zip(self.predictors, batch.student.stages, batch.teacher.stages, strict=True)
        value = torch.stack([predictor(ours, theirs) for predictor, ours, theirs in stages]).sum()
        return {"ce": batch.supervised(), "kd": batch.kd(), "vid": Term(value, self.options.weight)}


class Predictor(nn.Module):
    """Normal distribution of a teacher map given a student map: a mean at each position, a variance per channel.

    Args:
        student: Channels of the student's map.
        teacher: Channels of the teacher's map.
        init_pred_var: Initial variance, > eps.
        eps: Smallest variance, > 0.
    """

    def __init__(self, student: int, teacher: int, *, init_pred_var: float, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(student, teacher, 1, bias=False)
        self.conv2 = nn.Conv2d(teacher, teacher, 1, bias=False)
        self.conv3 = nn.Conv2d(teacher, teacher, 1, bias=False)
        # log(exp(v) - 1), the inverse of softplus, in a form that overflows nowhere.
        variance = init_pred_var - eps
        self.log_scale = nn.Parameter(torch.full((teacher,), variance + math.log(-math.expm1(-variance))))
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return :func:`vid_loss` of maps (N, C, H, W), the larger ones averaged to the size of the smaller."""
        ours, theirs = to_smaller(wide(student), wide(teacher).detach())
        mean = self.conv3(F.relu(self.conv2(F.relu(self.conv1(ours)))))
        return vid_loss(mean, theirs, self.log_scale, eps=self.eps)


def vid_loss(mean: Tensor, teacher: Tensor, log_scale: Tensor, *, eps: float) -> Tensor:
    """Return the negative log-likelihood of a teacher map in nats per element, without log(2 pi)/2; can be negative.

    Args:
        mean: Predicted teacher map (N, C, H, W).
        teacher: (N, C, H, W), a constant.
        log_scale: (C,); the variance of a channel is log(1 + exp(log_scale)) + eps.
        eps: Smallest variance, > 0.

    Source:
        Ahn et al. 2019, arXiv:1904.05835, section 2, averaged over all elements as in the reference code.
    """
    # By default softplus is the identity from 20 on, which float64 can tell from the function.
    variance = F.softplus(wide(log_scale), threshold=40) + eps
    error = (wide(mean) - wide(teacher).detach()).square().mean((0, 2, 3))
    return (error / variance + variance.log()).mean() / 2


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register VID."""
    return [VID]
