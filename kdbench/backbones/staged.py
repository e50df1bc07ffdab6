"""The shape most families share: stem, stages of blocks that end in a ReLU, mean pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones.base import Network
from kdbench.backbones.division import Names
from kdbench.backbones.layers import run_blocks


class StagedNetwork(Network):
    """Stem ``conv1, bn1, ReLU``, then ``layer1``, ``layer2``, ...; a subclass adds the classifier.

    Every block returns its value before ReLU. The stem's value counts as its own pre-activation, as in the
    implementations whose numbers are published: methods that want pre-activations compare the stages behind it.

    Args:
        stem: First convolution, of the normalised images.
        stages: Blocks of each stage, shallow to deep.
        embedding_dim: Channels of the deepest stage.
        in_channels: Channels of the images.
    """

    def __init__(self, stem: nn.Conv2d, stages: Sequence[nn.Sequential], embedding_dim: int, in_channels: int) -> None:
        super().__init__(in_channels)
        self.stage_count = len(stages) + 1
        self.embedding_dim = embedding_dim
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        for number, blocks in enumerate(stages, start=1):
            self.add_module(f"layer{number}", blocks)

    def freeze_blocks(self) -> tuple[Names, ...]:
        return ("conv1", "bn1"), *((f"layer{number}",) for number in range(1, self.stage_count))

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        if index == 0:
            x = F.relu(self.bn1(self.conv1(x)))
            return (x if pre else None), x
        return self.run_layer(getattr(self, f"layer{index}"), x, pre=pre)

    def run_layer(self, blocks: nn.Sequential, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        """Run the blocks of one stage behind the stem; see :meth:`run_stage`."""
        before, x = run_blocks(blocks, x)
        return (before if pre else None), x
