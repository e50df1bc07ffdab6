"""CIFAR ResNets with projection shortcuts: the resnet8 .. resnet110 and x4 networks of the distillation literature."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

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
    "Shortcuts that change shape are 1x1 convolutions with BN (option B), where the paper's CIFAR nets have option A.",
)
SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    **{f"resnet{depth}": (depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": (8, (32, 64, 128, 256)),
    "resnet32x4": (32, (32, 64, 128, 256)),
    "resnet8_w4": (8, (4, 4, 8, 16)),
    "resnet14_w8": (14, (8, 8, 16, 32)),
}


class Block(layers.BasicBlock):
    """Basic block whose shortcut is a projection where the shape changes; returns the sum before ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.downsample = layers.projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.downsample(x)
        return self.residual(x) + shortcut


class CifarResNet(StagedNetwork):
    """ResNet of depth 6n+2 with three stages of n basic blocks, strides 1, 2, 2.

    Args:
        depth: 6n+2 with n >= 1.
        widths: Channels of the stem and of the three stages.
        num_classes: Outputs of the head.
        in_channels: Channels of the images.
    """

    head = head_at("fc")

    def __init__(self, depth: int, widths: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        blocks = (depth - 2) // 6
        shapes = zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        stages = [layers.stage(Block, inputs, outputs, blocks, stride) for inputs, outputs, stride in shapes]
        super().__init__(layers.conv(in_channels, widths[0], 3), stages, widths[-1], in_channels)
        self.fc = nn.Linear(widths[-1], num_classes)
        layers.initialise(self)


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    for name, size in SIZES.items():
        yield Backbone(name, "resnet-cifar", by_channels(partial(CifarResNet, *size)), SOURCE, min_size=4)
