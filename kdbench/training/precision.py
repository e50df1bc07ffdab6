"""Autocast and loss scaling for one precision key of the anchor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor

from kdbench.types import Features, Taps

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which networks run forward."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler; it does nothing unless the precision is fp16."""
    return torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=precision == "fp16")


def in_float32(features: Features) -> Features:
    """Return the features as losses see them: float32, so that no method has to care about autocast."""
    return Features(
        features.logits.float(),
        None if features.embedding is None else features.embedding.float(),
        tuple(stage.float() for stage in features.stages),
        tuple(stage.float() for stage in features.pre_stages),
        features.indices,
    )


class Runner:
    """Runs networks as a lane does.

    Args:
        precision: Says in which precision, at the time.
        device: Where.
    """

    def __init__(self, precision: Callable[[], str], device: torch.device) -> None:
        self._precision, self._device = precision, device

    def __call__(self, network: Callable[[Tensor, Taps], Features], images: Tensor, taps: Taps) -> Features:
        """Return a network's features of images (N, C, H, W) in [0, 1], in float32."""
        with autocast(self._precision(), self._device):
            said = network(images, taps)
        return in_float32(said)

    def __deepcopy__(self, _memo: object) -> Self:
        """Return itself: a method that keeps it may be copied, but not the lane behind it."""
        return self
