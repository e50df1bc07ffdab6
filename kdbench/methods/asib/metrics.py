"""Metrics of a batch as tensors on its device, so that nothing waits for it."""

from __future__ import annotations

import torch
from torch import Tensor


def constant(value: float, like: Tensor) -> Tensor:
    """Return a number as a scalar beside ``like``; a fill, no copy from the host."""
    return torch.full((), value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def of_weights(weights: Tensor) -> dict[str, Tensor]:
    """Return mean, standard deviation and share below 1 of certainty weights (N,)."""
    below = (weights < 1).to(weights.dtype)
    return {"cw_mean": weights.mean(), "cw_std": weights.std(correction=0), "cw_below_one": below.mean()}
