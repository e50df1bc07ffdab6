"""The synergy as a network of its own: images to the logits of all teachers together (2.3, SynergyEnsemble)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kdbench.adapters import DistillAdapters
from kdbench.backbones.base import Network
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.synergy import ensemble_logits
from kdbench.methods.asib.teachers import EMBEDDING, taught
from kdbench.modes import evaluating


def query_of(embedding: Tensor, adapters: DistillAdapters | None, options: ASIBOptions) -> Tensor:
    """Return the student's query (N, q) of its embedding (N, D): behind its adapter, or as it is (``feat_kd_key``)."""
    if adapters is None or options.feat_kd_key == "feat_2d":
        return embedding
    query: Tensor = adapters.student(embedding)
    return query


class SynergyEnsemble(nn.Module):
    """Student, teachers, bridge and head together; each network runs once, in eval mode.

    Args:
        student: Gives the query.
        teachers: Give the tokens.
        bridge: The bridge.
        head: The synergy head.
        adapters: The adapters, or None.
        options: ``feat_kd_key``, ``ib_mbm_feature_norm``.
    """

    def __init__(
        self,
        student: Network,
        teachers: list[Network],
        bridge: nn.Module,
        head: nn.Module,
        adapters: DistillAdapters | None,
        options: ASIBOptions,
    ) -> None:
        super().__init__()
        self.student, self.teachers = student, nn.ModuleList(teachers)
        self.bridge, self.head, self.adapters, self.options = bridge, head, adapters, options

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the synergy logits (N, C) of images (N, C, H, W) in [0, 1]."""
        with evaluating(self):
            embedding = cast("Tensor", self.student(images, EMBEDDING).embedding)
            said = taught([teacher(images, EMBEDDING) for teacher in self.teachers], self.adapters, tokens=True)
            assert said.tokens is not None
            query = query_of(embedding, self.adapters, self.options)
            return ensemble_logits(self.bridge, self.head, query, said.tokens, self.options)
