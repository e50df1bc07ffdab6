"""What stands in for data and trained networks where only time matters: random images, weights that cost nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdbench.backbones.base import Backbone, Network
from kdbench.datasets.base import DatasetInfo, Split
from kdbench.types import StageShape

STORE = 512  # different images; a data set of any size repeats them


def noise(info: DatasetInfo, size: int) -> Split:
    """Return a split of so many random images like those of a dataset, in the memory of a few."""
    draws = torch.Generator().manual_seed(0)
    store = torch.randint(256, (min(size, STORE), *info.image.dims), dtype=torch.uint8, generator=draws)
    return Split(store, torch.arange(size) % len(info.classes), torch.arange(size) % len(store))


@dataclass(frozen=True)
class Noise:
    """A dataset of random images.

    Args:
        info: The dataset it stands for.
        tests: Test images.
    """

    info: DatasetInfo
    tests: int

    def train(self) -> Split:
        """Return as many images as the dataset has."""
        return noise(self.info, self.info.train_size)

    def test(self) -> Split:
        """Return as many images as were asked for."""
        return noise(self.info, self.tests)


def filled(backbone: Backbone, classes: int, image: StageShape, device: torch.device) -> Network:
    """Return a network whose weights cost nothing to draw and keep every activation finite and far from denormal."""
    network = backbone.on_meta(classes, image).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.fill_(len(parameter) / max(1, parameter.numel()))  # each output is the mean of its inputs
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, buffer in network.named_buffers():
            buffer.fill_(1 if name.endswith(("var", "std")) else 0)
    return network
