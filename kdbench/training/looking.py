"""What methods may look at between epochs: the validation split, through the same networks as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.backbones.base import Network
from kdbench.datasets.base import Split
from kdbench.training.networks import TeacherPass
from kdbench.types import Features, Taps


@dataclass(frozen=True)
class Sight:
    """A part of the validation split and what the teachers say of it.

    Args:
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        index: Position of each image in the validation split (N,).
        teachers: Each teacher's features.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    teachers: tuple[Features, ...]


@dataclass(frozen=True)
class Onlooker:
    """The validation split and the frozen teachers, as lanes may use them between epochs.

    Args:
        validation: The split, or None.
        teachers: Frozen networks on the device.
        device: Where they are.
        batch_size: Images per forward pass.
    """

    validation: Split | None
    teachers: tuple[Network, ...]
    device: torch.device
    batch_size: int

    def sights(self, taps: Sequence[Taps], first: int | None) -> Iterator[Sight]:
        """Yield the split in order, at most ``first`` batches of it, with the teachers' features.

        Args:
            taps: What is needed of each teacher, resolved; empty = no teacher runs.
            first: Number of batches; None = all.
        """
        if self.validation is None:
            return
        teach = TeacherPass(self.teachers, taps, "fp32", self.device) if taps else None
        labels, done = self.validation.labels.to(self.device), 0
        for number, part in enumerate(self.validation.chunks(self.batch_size)):
            if first is not None and number >= first:
                return
            images = part.to(self.device, non_blocking=True).float().div_(255)
            rows = torch.arange(done, done + len(images), device=self.device)
            done += len(images)
            yield Sight(images, labels[rows], rows, teach(images) if teach else ())
