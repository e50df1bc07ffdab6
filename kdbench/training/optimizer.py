"""The anchor's optimizer over student and helper parameters alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdbench.config.schema import Optimizer


def make_optimizer(config: Optimizer, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return the optimizer; fused kernels, since they do the same arithmetic in one pass over the weights.

    Args:
        config: The anchor's optimizer section.
        parameters: What is trained; weight decay holds for all of it.
        rate: Initial learning rate.
    """
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
