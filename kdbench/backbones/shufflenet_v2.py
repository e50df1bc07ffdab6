"""ShuffleNetV2 with a stem for small images: 1x1, stride 1, no max-pooling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones import layers
from kdbench.backbones.base import Backbone, by_channels, head_at
from kdbench.backbones.shufflenet_v1 import shuffle
from kdbench.backbones.staged import StagedNetwork
from kdbench.hooks import hookimpl
from kdbench.types import Source

SOURCE = Source(
    "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
    2018,
    "https://arxiv.org/abs/1807.11164",
    "HobbitLong/RepDistiller@b84f547c",
    "Stem of one 1x1 convolution without stride and pooling.",
)
STEM = 24
WIDTHS = (116, 232, 464)
DEPTHS = (3, 7, 3)
LAST_CHANNELS = 1024


class BasicBlock(nn.Module):
    """Keeps one half of the channels and convolves the other; returns (kept, convolved before ReLU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = layers.conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = layers.conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = layers.conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        return kept, self.bn3(self.conv3(out))


class DownBlock(nn.Module):
    """Halves the map in two branches of all channels; returns (left after ReLU, right before ReLU)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = layers.conv(inputs, inputs, 3, 2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = layers.conv(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = layers.conv(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = layers.conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = layers.conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        return left, self.bn5(self.conv5(right))


class ShuffleNetV2(StagedNetwork):
    """ShuffleNetV2 (1x) with stages of 116, 232 and 464 channels; the 1x1 convolution to 1024 belongs to the embedding.

    A stage's pre-activation is taken before the channel shuffle, its output behind it: their channel orders differ.
    """

    head = head_at("linear")

    def __init__(self, num_classes: int, in_channels: int) -> None:
        stages = [
            nn.Sequential(DownBlock(inputs, width), *(BasicBlock(width) for _ in range(depth)))
            for inputs, width, depth in zip((STEM, *WIDTHS[:-1]), WIDTHS, DEPTHS, strict=True)
        ]
        super().__init__(layers.conv(in_channels, STEM, 1), stages, LAST_CHANNELS, in_channels)
        self.conv2 = layers.conv(WIDTHS[-1], LAST_CHANNELS, 1)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)
        layers.initialise(self)

    def run_layer(self, blocks: nn.Sequential, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        before: Tensor | None = None
        for index, block in enumerate(blocks):
            kept, raw = block(x)
            if pre and index == len(blocks) - 1:
                before = torch.cat((kept, raw), dim=1)
            x = shuffle(torch.cat((kept, F.relu(raw)), dim=1), 2)
        return before, x

    def final_layers(self) -> Sequence[nn.Module]:
        return self.conv2, self.bn2, nn.ReLU()


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    return [Backbone("ShuffleV2", "shufflenet-v2", by_channels(ShuffleNetV2), SOURCE)]
