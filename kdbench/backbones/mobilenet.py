"""MobileNetV2 at half width, as the distillation literature uses it on CIFAR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from torch import Tensor, nn

from kdbench.backbones import layers
from kdbench.backbones.base import Backbone, Network, by_channels, head_at
from kdbench.backbones.division import Names
from kdbench.hooks import hookimpl
from kdbench.types import Source

SOURCE = Source(
    "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    2018,
    "https://arxiv.org/abs/1801.04381",
    "HobbitLong/RepDistiller@b84f547c",
    "ReLU instead of ReLU6, an expansion layer in the first group too, and stride 1 in the second group.",
)
# Expansion, channels at full width, blocks and stride of each group.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Groups of each stage behind the stem.
STAGES = ((0, 1), (2,), (3, 4), (5, 6))
LAST_CHANNELS = 1280


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return convolution, BN and ReLU."""
    return [layers.conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU()]


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project without activation; a shortcut where the shape stays."""

    def __init__(self, expansion: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn_relu(inputs, middle, 1),
            *conv_bn_relu(middle, middle, 3, stride, groups=middle),
            layers.conv(middle, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(Network):
    """Stem and four stages of linear bottlenecks; the 1x1 convolution to 1280 channels belongs to the embedding.

    Bottleneck outputs have no activation, so a stage's pre-activation is the stage itself.

    Args:
        width: Factor on the channels of every layer but the last.
        num_classes: Outputs of the head.
        in_channels: Channels of the images.
    """

    stage_count = 5
    embedding_dim = LAST_CHANNELS
    head = head_at("classifier.0")

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*conv_bn_relu(in_channels, channels, 3, stride=2))
        self.blocks = nn.ModuleList()
        for expansion, full, depth, stride in GROUPS:
            outputs = int(full * width)
            self.blocks.append(layers.stage(partial(InvertedResidual, expansion), channels, outputs, depth, stride))
            channels = outputs
        self.conv2 = nn.Sequential(*conv_bn_relu(channels, LAST_CHANNELS, 1))
        self.classifier = nn.Sequential(nn.Linear(LAST_CHANNELS, num_classes))
        layers.initialise(self)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        if index == 0:
            x = self.conv1(x)
        else:
            for group in STAGES[index - 1]:
                x = self.blocks[group](x)
        return (x if pre else None), x

    def freeze_blocks(self) -> tuple[Names, ...]:
        """Return the stem and each group of equal bottlenecks: smaller parts than stages."""
        return ("conv1",), *((f"blocks.{index}",) for index in range(len(self.blocks)))

    def final_layers(self) -> Sequence[nn.Module]:
        return (self.conv2,)


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    return [Backbone("MobileNetV2", "mobilenet-v2", by_channels(partial(MobileNetV2, 0.5)), SOURCE, min_size=16)]
