"""Losses of each sample: temperature KL and cross-entropy, in float32 or wider (0)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses import wide
from kdbench.method import Mix


def sample_kl(target: Tensor, learner: Tensor, tau: float) -> Tensor:
    """Return tau^2 * KL(softmax(target/tau) || softmax(learner/tau)) in nats of each sample (N,).

    Args:
        target: Logits (N, C); a constant unless the caller wants its gradient.
        learner: Logits (N, C).
        tau: Temperature, > 0.

    Source:
        Specification of the ASIB benchmark, 0, KL_tau.
    """
    log_target, log_learner = (F.log_softmax(wide(logits) / tau, dim=1) for logits in (target, learner))
    return tau**2 * F.kl_div(log_learner, log_target, reduction="none", log_target=True).sum(1)


def sound_kl(target: Tensor, learner: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return :func:`sample_kl` towards a constant with 0 where it is not finite, and where that was (N,), bool.

    Rows with logits that are not finite are taken out before the KL is computed: a zero put in afterwards would leave
    NaN in the gradient of the learner's other terms.
    """
    constant = target.detach()
    sound = (constant.isfinite() & learner.detach().isfinite()).all(1)
    kept = sound.unsqueeze(1)
    kl = sample_kl(constant.where(kept, 0.0), learner.where(kept, 0.0), tau)
    sound = sound & kl.detach().isfinite()
    return kl.where(sound, 0.0), ~sound


def sample_ce(logits: Tensor, labels: Tensor, smoothing: float = 0.0, mix: Mix | None = None) -> Tensor:
    """Return the cross-entropy in nats of each sample (N,); of mixed images the share-weighted sum over both labels.

    Args:
        logits: (N, C), before softmax.
        labels: Class indices (N,).
        smoothing: Share of the target mass spread evenly over all classes, in [0, 1).
        mix: Partners' labels and the share of the own image, or None.

    Source:
        Specification of the ASIB benchmark, 0 and 3.5.
    """
    own = F.cross_entropy(wide(logits), labels, label_smoothing=smoothing, reduction="none")
    if mix is None:
        return own
    other = F.cross_entropy(wide(logits), mix.labels, label_smoothing=smoothing, reduction="none")
    return mix.share * own + (1 - mix.share) * other


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over the batch of values (N,) times constant weights (N,)."""
    return torch.mean(weights.detach() * values)
