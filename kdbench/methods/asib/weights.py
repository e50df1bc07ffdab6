"""Weights of samples: how certain the bottleneck is of each, whether the teachers disagree on it (2.2, 3.5, 7.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.methods.asib.bridge import certainty

_LEAST_MEAN = 1e-8


def certainty_in_a(logvar: Tensor, least: float) -> Tensor:
    """Return the A-Step's constant weights (N,) of log variances (N, D): the certainty in [least, 1], never raised.

    Args:
        logvar: The bottleneck's.
        least: ``min_cw``.

    Source:
        Specification of the ASIB benchmark, 2.2, cw.
    """
    # A least weight above 1 would turn clamp's ends around; 1 is the cap, as in max-then-min.
    return certainty(logvar.detach()).clamp(min=least).clamp(max=1.0)


def certainty_in_b(logvar: Tensor, least: float, largest: float) -> Tensor:
    """Return the B-Step's constant weights (N,): the certainty relative to the batch's mean, in [least, largest].

    Args:
        logvar: The bottleneck's, (N, D).
        least: ``min_cw``.
        largest: ``max_cw``.

    Source:
        Specification of the ASIB benchmark, 3.5, cw_i.
    """
    found = certainty(logvar.detach())
    return (found / (found.mean() + _LEAST_MEAN)).clamp(min=least).clamp(max=largest)


def disagreement(logits: tuple[Tensor, ...], labels: Tensor, mode: str) -> Tensor:
    """Return on which samples (N,), bool, the teachers disagree.

    Args:
        logits: One (N, C) tensor per teacher.
        labels: Class indices (N,).
        mode: ``pred``: not all predict the same; ``both_wrong``: all are wrong; ``any_wrong``: at least one is;
            ``none``: never.

    Raises:
        ValueError: If the mode is anything else.

    Source:
        Specification of the ASIB benchmark, 7.3.
    """
    predicted = torch.stack([one.argmax(1) for one in logits])  # (K, N)
    if mode == "pred":
        return (predicted != predicted[0]).any(0)
    if mode == "both_wrong":
        return (predicted != labels).all(0)
    if mode == "any_wrong":
        return (predicted != labels).any(0)
    if mode == "none":
        return torch.zeros_like(labels, dtype=torch.bool)
    raise ValueError(
        f"disagree_mode - '{mode}' is unknown - allowed are pred, both_wrong, any_wrong and none - write one of them"
    )


def disagreement_weights(where: Tensor, high: float, low: float, like: Tensor) -> Tensor:
    """Return ``disagree_lambda_high`` where teachers disagree (N,), else ``disagree_lambda_low``, typed as ``like``."""
    return torch.full_like(like, low).masked_fill(where, high)


@dataclass(frozen=True)
class Rate:
    """On how many of ``samples`` images teachers disagree, in percent; NaN of none."""

    percent: float
    samples: int


def disagreement_rate(
    batches: Iterable[tuple[tuple[Tensor, ...], Tensor]], mode: str, max_samples: int, max_batches: int
) -> Rate:
    """Return the share of images on which the teachers disagree; no batch is asked for beyond the limits.

    Args:
        batches: Teachers' logits, K of (N, C), and labels (N,) of one batch after the other.
        mode: As of :func:`disagreement`.
        max_samples: Images that are looked at, whichever limit comes first.
        max_batches: Batches that are looked at.
    """
    found = samples = 0
    if max_batches < 1 or max_samples < 1:
        return Rate(float("nan"), 0)
    for number, (logits, labels) in enumerate(batches, 1):
        where = disagreement(logits, labels, mode)[: max_samples - samples]
        found, samples = found + int(where.sum()), samples + len(where)
        if samples >= max_samples or number >= max_batches:
            break
    return Rate(100 * found / samples if samples else float("nan"), samples)
