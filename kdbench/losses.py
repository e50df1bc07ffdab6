"""The two losses every method may use, supervised cross-entropy and logit distillation, and their common precision.

Both work in float32 or wider whatever the network's precision, and stay finite for logits of any finite size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider: losses of half-precision features overflow or lose their gradient."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of the labels in nats, averaged over the batch.

    Args:
        logits: (N, C), before softmax.
        labels: Class indices (N,), in [0, C).
        label_smoothing: Share of the target mass spread evenly over all C classes, in [0, 1).
    """
    return F.cross_entropy(wide(logits), labels, label_smoothing=label_smoothing)


def kd_loss(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return tau^2 * KL(softmax(teacher/tau) || softmax(student/tau)) in nats, averaged over the batch.

    Args:
        student: Student logits (N, C).
        teacher: Teacher logits (N, C), a constant.
        tau: Temperature, > 0.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; KL instead of cross-entropy with soft targets
        (they differ by the teacher's entropy, which has no gradient).
    """
    log_student = F.log_softmax(wide(student) / tau, dim=1)
    log_teacher = F.log_softmax(teacher.detach().to(log_student.dtype) / tau, dim=1)
    return tau**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def warmup_factor(epoch: int, length: float) -> float:
    """Return the factor of a loss that rises over the first epochs: min((epoch + 1) / length, 1), or 1 without a rise.

    Args:
        epoch: From 0.
        length: Epochs of the rise, >= 0.
    """
    return min((epoch + 1) / length, 1.0) if length > 0 else 1.0


def combine_teachers(
    logits: tuple[Tensor, ...], how: str, *, index: int, weights: tuple[float, ...] | None, tau: float
) -> Tensor:
    """Return the KD target (N, C) made from the logits of K teachers.

    Args:
        logits: One (N, C) tensor per teacher.
        how: ``teacher`` picks one; ``avg`` is the weighted mean of the logits; ``weighted_conf`` weighs each sample's
            teachers by their largest softmax probability at ``tau``.
        index: Which teacher ``teacher`` picks; clamped to the last one.
        weights: Weights of ``avg``, one per teacher, normalised to sum 1; None = equal.
        tau: Temperature, > 0.
    """
    if how == "teacher" or len(logits) == 1:
        return logits[min(index, len(logits) - 1) if how == "teacher" else 0]
    if how == "avg":
        shares = weights or (1.0,) * len(logits)
        # Python numbers: a tensor of them would be copied to the device, which waits, in every step.
        return torch.stack([share / sum(shares) * one for share, one in zip(shares, logits, strict=True)]).sum(0)
    stacked = torch.stack(logits)  # (K, N, C)
    return torch.einsum("kn,knc->nc", confidence_weights(stacked, tau), stacked)


def confidence_weights(logits: Tensor, tau: float) -> Tensor:
    """Return each teacher's share (K, N) in each sample's target: its largest softmax probability over their sum.

    Args:
        logits: (K, N, C).
        tau: Temperature, > 0.
    """
    confidence = F.softmax(logits / tau, dim=2).amax(dim=2)
    return confidence / confidence.sum(dim=0)
