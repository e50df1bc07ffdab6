"""ShuffleNet with a stem for small images: 1x1, stride 1, no max-pooling."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones import layers
from kdbench.backbones.base import Backbone, by_channels, head_at
from kdbench.backbones.staged import StagedNetwork
from kdbench.hooks import hookimpl
from kdbench.types import Source

SOURCE = Source(
    "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    2018,
    "https://arxiv.org/abs/1707.01083",
    "HobbitLong/RepDistiller@b84f547c",
    "Stem of one 1x1 convolution without stride and pooling, and a ReLU behind the depthwise convolution.",
)
GROUPS = 3
STEM = 24
WIDTHS = (240, 480, 960)
DEPTHS = (4, 8, 4)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups: 0 1 2 3 4 5 in two groups becomes 0 3 1 4 2 5."""
    count, channels, height, width = x.shape
    return x.view(count, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


class Block(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; with stride the pooled input is appended instead of added.

    Returns the value before ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.pools = stride == 2
        branch = outputs - inputs if self.pools else outputs
        middle = branch // 4
        # Too few channels come from the stem to be worth grouping.
        self.groups = 1 if inputs == STEM else GROUPS
        self.conv1 = layers.conv(inputs, middle, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = layers.conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = layers.conv(middle, branch, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.cat((out, F.avg_pool2d(x, 3, 2, padding=1)), dim=1) if self.pools else out + x


class ShuffleNet(StagedNetwork):
    """ShuffleNet of three groups with stages of 240, 480 and 960 channels, each of which halves the map first."""

    head = head_at("linear")

    def __init__(self, num_classes: int, in_channels: int) -> None:
        shapes = zip((STEM, *WIDTHS[:-1]), WIDTHS, DEPTHS, strict=True)
        stages = [layers.stage(Block, *shape, stride=2) for shape in shapes]
        super().__init__(layers.conv(in_channels, STEM, 1), stages, WIDTHS[-1], in_channels)
        self.linear = nn.Linear(WIDTHS[-1], num_classes)
        layers.initialise(self)


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    return [Backbone("ShuffleV1", "shufflenet-v1", by_channels(ShuffleNet), SOURCE)]
