"""Feature terms: the student's feature towards the bottleneck's mean, and the other way round (2.2, 3.5)."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses import wide


def feature_distance(feature: Tensor, mu: Tensor, clip: float | None = None, huber: float | None = None) -> Tensor:
    """Return the distance of each sample (N,): its entries' squares or Huber losses, summed over the code.

    Args:
        feature: The student's feature (N, D).
        mu: The bottleneck's mean (N, D); the caller detaches what is to be constant.
        clip: Largest size of the entries of ``mu``; None or 0 = as they are.
        huber: Where the loss turns from u^2/(2h) to |u| - h/2; None or 0 = u^2.

    Source:
        Specification of the ASIB benchmark, 3.5, FKD.
    """
    towards = wide(mu).clamp(-clip, clip) if clip else wide(mu)
    gap = wide(feature) - towards
    if not huber:
        return gap.square().sum(1)
    size = gap.abs()
    return (gap.square() / (2 * huber)).where(size < huber, size - huber / 2).sum(1)
