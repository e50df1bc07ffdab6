"""Decoupled knowledge distillation: the target-class and the non-target-class part of KD, weighted separately."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.hooks import hookimpl
from kdbench.losses import warmup_factor, wide
from kdbench.method import AnyMethod, Batch, Losses, Method, Options
from kdbench.types import LossWeights, Pair, Source, Term

# Published beta per (teacher, student), from the reference's configuration files; alpha is 1 everywhere.
_PUBLISHED_BETA = {
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("resnet32x4", "resnet8x4"): 8.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("resnet32x4", "ShuffleV1"): 8.0,
    ("wrn_40_2", "ShuffleV1"): 8.0,
    ("vgg13", "MobileNetV2"): 6.0,
    ("ResNet50", "MobileNetV2"): 8.0,
    ("resnet32x4", "ShuffleV2"): 8.0,
}


class DKDOptions(Options):
    """Weights of the two parts."""

    alpha: float = Field(1.0, ge=0, description="weight of the target-class part (TCKD)")
    beta: float = Field(8.0, ge=0, description="weight of the non-target-class part (NCKD)")
    warmup: float = Field(20 / 240, ge=0, le=1, description="share of the epochs over which the DKD term grows")


class DKD(Method[DKDOptions]):
    """Cross-entropy plus alpha * TCKD + beta * NCKD at the anchor's temperature."""

    name = "dkd"
    source = Source(
        title="Decoupled Knowledge Distillation",
        year=2022,
        url="https://arxiv.org/abs/2203.08679",
        code="megvii-research/mdistiller@a08d46f",
        deviations="Log space throughout, so it stays finite where the reference overflows; with mixed images the "
        "share-weighted sum over both target classes; the warm-up is a share of the epochs (20 of the published 240).",
    )
    options_type = DKDOptions
    published = LossWeights(ce=1.0, kd=1.0)
    distributed = "slices"

    @classmethod
    def recommended(cls, anchor: str, pair: Pair) -> Mapping[str, object]:
        """Return the published beta of the pair under ``crd``, and beta 2 under ``fair_baseline``."""
        if anchor == "crd":
            beta = _PUBLISHED_BETA.get((pair.teachers[0], pair.student)) if pair.teachers else None
            return {} if beta is None else {"beta": beta}
        return {"beta": 2.0} if anchor == "fair_baseline" else {}

    def losses(self, batch: Batch) -> Losses:
        target, o = batch.kd_target(), self.options
        value = batch.over_labels(
            lambda labels: dkd_loss(batch.student.logits, target, labels, alpha=o.alpha, beta=o.beta, tau=batch.tau)
        )
        ramp = warmup_factor(batch.epoch, o.warmup * self.context.epochs)
        return {"ce": batch.supervised(), "dkd": Term(value, batch.kd_weight * ramp)}


def dkd_parts(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return (TCKD, NCKD) in nats, each times tau^2 and averaged over the batch.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C), a constant.
        labels: Target classes (N,), in [0, C).
        tau: Temperature, > 0.

    Source:
        Zhao et al. 2022, arXiv:2203.08679, Eq. (6) and (7).
    """
    student, teacher = wide(student) / tau, wide(teacher).detach() / tau
    rest_student, rest_teacher = _others(student, labels), _others(teacher, labels)
    two_student = _two_way(student, rest_student, labels)
    two_teacher = _two_way(teacher, rest_teacher, labels)
    tckd = F.kl_div(two_student, two_teacher, reduction="batchmean", log_target=True)
    log_student, log_teacher = rest_student.log_softmax(1), rest_teacher.log_softmax(1)
    nckd = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return tau**2 * tckd, tau**2 * nckd


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the non-target logits (N, C-1); by gather, since a boolean mask would wait for the device."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(labels), -1)
    return logits.gather(1, columns + (columns >= labels[:, None]).long())


def _two_way(logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Return log (p_target, 1 - p_target) (N, 2) without ever forming a probability."""
    target = logits.gather(1, labels[:, None])
    return torch.cat([target, others.logsumexp(1, keepdim=True)], 1).log_softmax(1)


def dkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float, beta: float, tau: float) -> Tensor:
    """Return alpha * TCKD + beta * NCKD in nats; arguments as in :func:`dkd_parts`."""
    tckd, nckd = dkd_parts(student, teacher, labels, tau)
    return alpha * tckd + beta * nckd


@hookimpl
def kdbench_methods() -> list[type[AnyMethod]]:
    """Register DKD."""
    return [DKD]
