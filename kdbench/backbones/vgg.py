"""VGG networks for CIFAR: batch normalisation, mean pooling and one linear layer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones import layers
from kdbench.backbones.base import Backbone, Network, by_channels, head_at
from kdbench.backbones.division import Names
from kdbench.hooks import hookimpl
from kdbench.types import Source

SOURCE = Source(
    "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    2015,
    "https://arxiv.org/abs/1409.1556",
    "HobbitLong/RepDistiller@b84f547c",
    "BN behind every convolution, mean pooling and one linear layer; the last max-pooling from 64 pixels on only.",
)
WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def make_block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Return ``depth`` times 3x3 convolution, BN and ReLU, without the last ReLU."""
    modules: list[nn.Module] = []
    for index in range(depth):
        modules += [
            layers.conv(outputs if index else inputs, outputs, 3, bias=True),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*modules[:-1])


class VGG(Network):
    """Five blocks, of which all but the first start with a 2x2 max-pooling.

    The last block pools only maps of 8x8 and more, that is, images of 64x64 and more; smaller ones keep their 4x4.

    Args:
        depths: Convolutions of each block.
        num_classes: Outputs of the head.
        in_channels: Channels of the images.
    """

    stage_count = 5
    embedding_dim = WIDTHS[-1]
    head = head_at("classifier")

    def __init__(self, depths: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        for index, shape in enumerate(zip((in_channels, *WIDTHS[:-1]), WIDTHS, depths, strict=True)):
            self.add_module(f"block{index}", make_block(*shape))
        self.classifier = nn.Linear(self.embedding_dim, num_classes)
        layers.initialise(self)

    def freeze_blocks(self) -> tuple[Names, ...]:
        return tuple((f"block{index}",) for index in range(self.stage_count))

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        if 1 <= index <= 3 or (index == 4 and min(x.shape[2:]) >= 8):
            x = F.max_pool2d(x, 2)
        before: Tensor = getattr(self, f"block{index}")(x)
        x = F.relu(before)
        if not pre:
            return None, x
        # The stem's value counts as its own pre-activation, as in every family with published numbers.
        return (before if index else x), x


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    for name, depths in DEPTHS.items():
        yield Backbone(name, "vgg", by_channels(partial(VGG, depths)), SOURCE)
