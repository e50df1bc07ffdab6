"""The four-stage ResNets of ImageNet with a stem for small images: 3x3, stride 1, no max-pooling."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones import layers
from kdbench.backbones.base import Backbone, by_channels, head_at
from kdbench.backbones.staged import StagedNetwork
from kdbench.hooks import hookimpl
from kdbench.types import Source

SOURCE = Source(
    "Deep Residual Learning for Image Recognition",
    2016,
    "https://arxiv.org/abs/1512.03385",
    "HobbitLong/RepDistiller@b84f547c",
    "Stem of one 3x3 convolution with stride 1 and no max-pooling, for 32x32 images.",
)


class Block(layers.BasicBlock):
    """Two 3x3 convolutions; returns the sum before ReLU."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.shortcut = layers.projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        return self.residual(x) + shortcut


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolution, a quarter as wide inside; returns the sum before ReLU."""

    expansion = 4

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // self.expansion
        self.conv1 = layers.conv(inputs, middle, 1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = layers.conv(middle, middle, 3, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = layers.conv(middle, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = layers.projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        total: Tensor = self.bn3(self.conv3(out)) + self.shortcut(x)
        return total


class ImageNetResNet(StagedNetwork):
    """Four stages of 64, 128, 256 and 512 channels times the block's expansion, strides 1, 2, 2, 2."""

    head = head_at("linear")

    def __init__(
        self, block: type[Block | Bottleneck], depths: tuple[int, ...], num_classes: int, in_channels: int
    ) -> None:
        widths = (64, *(width * block.expansion for width in (64, 128, 256, 512)))
        stages = [
            layers.stage(block, *shape) for shape in zip(widths[:-1], widths[1:], depths, (1, 2, 2, 2), strict=True)
        ]
        super().__init__(layers.conv(in_channels, 64, 3), stages, widths[-1], in_channels)
        self.linear = nn.Linear(widths[-1], num_classes)
        layers.initialise(self)


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    for name, build in (
        ("ResNet18", partial(ImageNetResNet, Block, (2, 2, 2, 2))),
        ("ResNet50", partial(ImageNetResNet, Bottleneck, (3, 4, 6, 3))),
    ):
        yield Backbone(name, "resnet-imagenet", by_channels(build), SOURCE)
