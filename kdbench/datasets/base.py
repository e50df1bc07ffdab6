"""What every dataset is: a description that costs nothing, a training split and a test split of uint8 images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from kdbench.types import StageShape


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before its images are read.

    Args:
        name: Name as the user writes it, e.g. ``cifar100`` or ``npz:/data/x.npz``.
        slug: Name as it stands in paths: letters, digits, '.', '_' and '-'.
        classes: Class names, in label order.
        image: (C, H, W) of one image.
        train_size: Training images, before a validation split is cut.
        test_size: Test images.
        fingerprint: Identifies the content; equal fingerprints mean equal images, labels and order.
        mirror: Whether a horizontally mirrored image keeps its label (false for digits and text).
        normalisation: Published per-channel (mean, std) in [0, 1] units; None = measured on the training images.
    """

    name: str
    slug: str
    classes: tuple[str, ...]
    image: StageShape
    train_size: int
    test_size: int
    fingerprint: str
    mirror: bool = True
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Split:
    """Images and labels in memory.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), in [0, classes).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Source(Protocol):
    """An opened dataset. ``test`` is read by ``kdbench.evaluation`` only."""

    @property
    def info(self) -> DatasetInfo:
        """Describe the dataset without reading its images; raises ConfigError if it is missing or malformed."""
        ...

    def train(self) -> Split:
        """Read (and, where that is how it is had, download) the training images."""
        ...

    def test(self) -> Split:
        """Read the test images."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A registered dataset, or a scheme such as ``npz`` that takes a path after a colon.

    Args:
        name: Registered name.
        open: Called with (argument after the colon or "", data root); cheap, reads no images.
        description: One line for ``kdbench list datasets``.
        takes_path: Whether ``name:PATH`` is how it is used.
    """

    name: str
    open: Callable[[str, Path], Source] = field(repr=False)
    description: str = ""
    takes_path: bool = False
