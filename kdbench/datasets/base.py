"""What every dataset is: a description that costs nothing, a training split and a test split of uint8 images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.types import StageShape

RESIDENT_SHARE = 0.3  # of a GPU's free memory that images may take


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
        present: Labels that have images, sorted; None = all of them.
        balanced: Whether it is known, without reading, that all present classes have equally many images.
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
    present: tuple[int, ...] | None = None
    balanced: bool = False

    @property
    def occurring(self) -> int:
        """Number of classes that have images."""
        return len(self.classes) if self.present is None else len(self.present)


@dataclass(frozen=True)
class Split:
    """Labels in memory, and images that may lie in a file: a selection of the rows of a store that splits share.

    Args:
        store: uint8 (M, C, H, W), in memory or mapped from a file; nothing here copies it as a whole.
        labels: int64 (N,), in [0, classes).
        rows: Rows of the store that are this split's images, int64 (N,); None = all, in order.
    """

    store: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image(self) -> StageShape:
        """Shape (C, H, W) of one image."""
        return StageShape(tuple(self.store.shape[1:]))

    @property
    def images(self) -> Tensor:
        """All images (N, C, H, W): the store itself, or, of a selection, a copy. For sets that fit in memory."""
        return self.store if self.rows is None else self.store[self.rows]

    def gather(self, index: Tensor) -> Tensor:
        """Return the images (K, C, H, W) at ``index`` (K,), copied."""
        return self.store[self.places(index)]

    def places(self, index: Tensor) -> Tensor:
        """Return the rows of the store (K,) that hold the images at ``index`` (K,)."""
        return index if self.rows is None else self.rows[index]

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, (at most size, C, H, W) at a time; those of a whole store are not copied."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.store[part] if self.rows is None else self.store[self.rows[part]]

    def select(self, index: Tensor) -> Split:
        """Return the split of the images at ``index`` (K,); it shares the store."""
        return Split(self.store, self.labels[index], self.places(index))

    def fits(self, device: torch.device) -> bool:
        """Return whether all images may live on a device: networks need the greater part of a GPU's free memory."""
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        return len(self) * self.store[:1].nbytes <= RESIDENT_SHARE * free

    def on(self, device: torch.device) -> Split:
        """Return the split with its images on a device; in main memory they stay where they are, mapped or not."""
        return self if device.type == "cpu" else Split(self.images.to(device), self.labels)


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


def _needs_another(_argument: str, _root: Path) -> Source:
    raise ConfigError("a dataset that is made from another one cannot be opened alone; use kdbench.plan.open_source")


@dataclass(frozen=True)
class Dataset:
    """A registered dataset, a scheme such as ``npz`` that takes a path, or one made from another dataset.

    Args:
        name: Registered name.
        open: Called with (argument after the colon or "", data root); cheap, reads no images.
        description: One line for ``kdbench list datasets``.
        takes_path: Whether ``name:PATH`` is how it is used.
        wrap: For a dataset made from another, used as ``name:ARGUMENT:DATASET``: called with (argument, the other one
            opened) instead of ``open``; just as cheap.
        usage: What follows ``name:`` then, as help shows it, e.g. ``PCT,SEED,PART:DATASET``.
    """

    name: str
    open: Callable[[str, Path], Source] = field(default=_needs_another, repr=False)
    description: str = ""
    takes_path: bool = False
    wrap: Callable[[str, Source], Source] | None = field(default=None, repr=False)
    usage: str = ""

    @property
    def form(self) -> str:
        """How the dataset is written in a command, e.g. ``npz:PATH``."""
        usage = self.usage or ("ARGUMENT:DATASET" if self.wrap else "PATH" if self.takes_path else "")
        return f"{self.name}:{usage}" if usage else self.name
