"""Autocast and loss scaling for one precision key of the anchor."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from kdbench.types import Features

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
