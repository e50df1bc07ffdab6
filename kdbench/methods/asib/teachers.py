"""Teachers as ASIB sees them: tokens and logits, from the shared frozen ones or from copies that it trains (1.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kdbench.adapters import DistillAdapters
from kdbench.backbones import freezing
from kdbench.backbones.base import Network
from kdbench.backbones.freezing import FreezeLevel
from kdbench.types import Features, Taps

EMBEDDING = Taps(embedding=True)
Run = Callable[[nn.Module, Tensor, Taps], Features]


@dataclass(frozen=True)
class Taught:
    """What all teachers say of a batch.

    Args:
        logits: (N, C) of each.
        tokens: (N, K, width), behind the adapters where there are some; None if their widths differ.
    """

    logits: tuple[Tensor, ...]
    tokens: Tensor | None


class OwnTeachers(nn.Module):
    """Copies of the teachers that the A-Step may train.

    Args:
        networks: The copies, frozen and in eval mode.
        run: Runs one of them in the precision of the phase.
    """

    def __init__(self, networks: Sequence[Network], run: Run) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._run = run
        for network in networks:
            network.requires_grad_(requires_grad=True)

    def pose(self, levels: Sequence[FreezeLevel] | None) -> None:
        """Make them ready for an A-Step with a level for each, or, with None, for looking on in eval mode."""
        for place, network in enumerate(self.networks):
            network.train(levels is not None)
            if levels is not None:
                freezing.apply(cast("Network", network), levels[place])

    def forward(self, images: Tensor) -> tuple[Features, ...]:
        """Return the features of each teacher, embedding included."""
        return tuple(self._run(network, images, EMBEDDING) for network in self.networks)


def taught(features: Sequence[Features], adapters: DistillAdapters | None, *, tokens: bool) -> Taught:
    """Return what teachers say.

    Args:
        features: Of each teacher, with embeddings.
        adapters: The adapters, or None.
        tokens: Whether tokens are wanted.
    """
    logits = tuple(one.logits for one in features)
    if not tokens:
        return Taught(logits, None)
    embeddings = [cast("Tensor", one.embedding) for one in features]
    if adapters is not None:
        embeddings = [adapter(one) for adapter, one in zip(adapters.teachers, embeddings, strict=True)]
    return Taught(logits, torch.stack(embeddings, dim=1))
