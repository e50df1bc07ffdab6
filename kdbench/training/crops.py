"""The ways in which an image may be cropped and flipped, numbered: without mixing there are no other inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kdbench.config.schema import Data

REFERENCE_SIZE = 32  # crop_padding is given for this image size


@dataclass(frozen=True)
class Crops:
    """All crops of a padded image, straight and, where images are flipped, mirrored.

    Args:
        padding: Pixels on each side, >= 0.
        flips: Whether images are mirrored at all.
    """

    padding: int
    flips: bool

    @classmethod
    def of(cls, data: Data, height: int, *, mirror: bool) -> Self:
        """Return the crops of images of a height in pixels, of a dataset that may be mirrored or not."""
        return cls(round(data.crop_padding * height / REFERENCE_SIZE), data.mirror and mirror)

    @property
    def side(self) -> int:
        """Number of offsets on one axis."""
        return 2 * self.padding + 1

    @property
    def count(self) -> int:
        """Number of crops of one image."""
        return self.side**2 * (2 if self.flips else 1)

    def numbers(self, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """Return the number of each crop, int64 (N,) in [0, count).

        Args:
            offsets: Down and across, in [0, side), int64 (2, N).
            mirrored: bool (N,).
        """
        straight = offsets[0] * self.side + offsets[1]
        return straight * 2 + mirrored.long() if self.flips else straight

    def parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets (2, N) and whether it is mirrored (N,), of each number (N,)."""
        straight = numbers // 2 if self.flips else numbers
        mirrored = numbers % 2 == 1 if self.flips else torch.zeros_like(numbers, dtype=torch.bool)
        return torch.stack([straight // self.side, straight % self.side]), mirrored
