"""The synergy head: from the bottleneck's code to the logits of all teachers together (1.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses import wide

_LEAST_TEMPERATURE = 1e-4


class SynergyHead(nn.Module):
    """LayerNorm, GELU, dropout and one linear layer; its logits may have a learnt temperature.

    Args:
        width: Width of the code.
        classes: Number of classes.
        dropout: Share of dropped entries in train mode, in [0, 1).
        learnable: Whether the logits are divided by a learnt temperature; without it there is no such parameter.
        log_temp: First value of the temperature's logarithm.

    Source:
        Specification of the ASIB benchmark, 1.3.
    """

    def __init__(
        self, width: int, classes: int, dropout: float = 0.0, *, learnable: bool = False, log_temp: float = 0.0
    ) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)
        self.log_temp = nn.Parameter(torch.tensor(float(log_temp))) if learnable else None

    def forward(self, code: Tensor) -> Tensor:
        """Return the logits (N, classes) of codes (N, width)."""
        return self.classify(self.drop(self.activate(code)))

    def activate(self, code: Tensor) -> Tensor:
        """Return what is classified, before dropout: GELU (exact) of the normalised code (N, width)."""
        return F.gelu(self.ln(code))

    def classify(self, activation: Tensor) -> Tensor:
        """Return the logits (N, classes) of activations (N, width)."""
        logits: Tensor = wide(self.fc(activation))
        return logits if self.log_temp is None else logits / self.log_temp.exp().clamp(min=_LEAST_TEMPERATURE)
