"""CIFAR ResNets of the original paper: shortcuts without parameters (option A)."""

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
    "akamaster/pytorch_resnet_cifar10",
)
DEPTHS = (20, 32, 44, 56, 110)


class Block(layers.BasicBlock):
    """Basic block whose shortcut drops every other pixel and pads the new channels with zeros, half on each side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return self.residual(x) + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))


class HeResNet(StagedNetwork):
    """ResNet of depth 6n+2 (n >= 1) with stages of 16, 32 and 64 channels, strides 1, 2, 2."""

    head = head_at("linear")

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        blocks = (depth - 2) // 6
        shapes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        stages = [layers.stage(Block, inputs, outputs, blocks, stride) for inputs, outputs, stride in shapes]
        super().__init__(layers.conv(in_channels, 16, 3), stages, 64, in_channels)
        self.linear = nn.Linear(64, num_classes)
        layers.initialise(self)


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    for depth in DEPTHS:
        yield Backbone(f"resnet{depth}_he", "resnet-he", by_channels(partial(HeResNet, depth)), SOURCE, min_size=4)
