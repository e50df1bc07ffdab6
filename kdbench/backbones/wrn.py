"""Wide ResNets for CIFAR: pre-activation blocks, so that a stage ends in a raw sum and no activation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.backbones import layers
from kdbench.backbones.base import Backbone, Network, by_channels, head_at
from kdbench.backbones.division import Names
from kdbench.hooks import hookimpl
from kdbench.types import Source

SOURCE = Source("Wide Residual Networks", 2016, "https://arxiv.org/abs/1605.07146", "HobbitLong/RepDistiller@b84f547c")
SIZES = ((16, 1), (16, 2), (40, 1), (40, 2))


class Block(nn.Module):
    """BN, ReLU and 3x3 convolution, twice; where the width changes the shortcut starts behind the first BN-ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = layers.conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = layers.conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else layers.conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out


def normalise_only(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return ``norm(x)`` without touching its running statistics: the network itself will apply it to ``x`` again."""
    if norm.training:
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    out: Tensor = norm(x)
    return out


class WideResNet(Network):
    """Wide ResNet of depth 6n+4 with stages of 16k, 32k and 64k channels, strides 1, 2, 2.

    A stage's output is the raw sum of its last block; its pre-activation is the BN that comes next, applied to it.

    Args:
        depth: 6n+4 with n >= 1.
        widen: Width factor k.
        num_classes: Outputs of the head.
        in_channels: Channels of the images.
    """

    stage_count = 4
    head = head_at("fc")

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__(in_channels)
        blocks = (depth - 4) // 6
        self.embedding_dim = 64 * widen
        self.conv1 = layers.conv(in_channels, 16, 3)
        shapes = ((16, 16 * widen, 1), (16 * widen, 32 * widen, 2), (32 * widen, 64 * widen, 2))
        for number, (inputs, outputs, stride) in enumerate(shapes, start=1):
            stage = layers.stage(Block, inputs, outputs, blocks, stride)
            # The level "layer" has no other use than the key names of published checkpoints.
            self.add_module(f"block{number}", nn.Sequential(OrderedDict(layer=stage)))
        self.bn1 = nn.BatchNorm2d(self.embedding_dim)
        self.fc = nn.Linear(self.embedding_dim, num_classes)
        layers.initialise(self)

    def run_stage(self, index: int, x: Tensor, *, pre: bool) -> tuple[Tensor | None, Tensor]:
        if index == 0:
            x = self.conv1(x)
            return (x if pre else None), x
        x = getattr(self, f"block{index}")(x)
        return (normalise_only(self._norm_behind(index), x) if pre else None), x

    def _norm_behind(self, index: int) -> nn.BatchNorm2d:
        norm = self.bn1 if index == 3 else getattr(self, f"block{index + 1}").layer[0].bn1
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def freeze_blocks(self) -> tuple[Names, ...]:
        return ("conv1",), *((f"block{index}",) for index in range(1, self.stage_count))

    def final_layers(self) -> Sequence[nn.Module]:
        return self.bn1, nn.ReLU()


@hookimpl
def kdbench_backbones() -> Iterable[Backbone]:
    """Return the networks of this family."""
    for depth, widen in SIZES:
        yield Backbone(
            f"wrn_{depth}_{widen}", "wrn", by_channels(partial(WideResNet, depth, widen)), SOURCE, min_size=4
        )
