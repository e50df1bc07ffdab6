"""What the entries of a file depend on: with another teacher, other images or other arithmetic it is another file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kdbench.config.schema import Section, canonical_sha256
from kdbench.spec import DatasetRef
from kdbench.training.teacher_cache.place import SUFFIX

Part = Literal["logits", "embedding"]
Kind = Literal["float32", "float16"]


class Arithmetic(Section):
    """In what a teacher's outputs may differ by their last bits.

    Args:
        precision: Of the networks.
        batch: Images of a whole batch: kernels are chosen by its shape.
        channels_last: Whether the teacher is laid out so.
        device: Type of the device.
        machine: Name of the GPU, or of the processor.
        threads: CPU threads.
        cudnn: Whether cuDNN is used.
        torch: Its version.
        kdbench: Its version: the networks are part of it.
    """

    precision: str
    batch: int
    channels_last: bool
    device: str
    machine: str
    threads: int
    cudnn: bool
    torch: str
    kdbench: str


class Teaching(Section):
    """Who says something, and of which images.

    Args:
        teacher: sha256 of the weights file.
        name: Of the artefact.
        backbone: Its network.
        mean, std: Its normalisation.
        dataset: Which images; their names do not count.
        validation_fraction: What is cut off before they are numbered.
        images: Number of training images.
        crops: Number of crops of each.
        crop_padding: Pixels, at the size of the images.
        padding_mode: What the padding holds.
    """

    teacher: str
    name: str
    backbone: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: DatasetRef
    validation_fraction: float
    images: int
    crops: int
    crop_padding: int
    padding_mode: str


class CacheKey(Section):
    """What identifies a file of entries.

    Args:
        teaching: Who and of what.
        arithmetic: Computed how.
        part: What is kept: logits or embeddings.
        width: Numbers of an entry.
        kind: Their type on disk.
    """

    schema_version: Literal[1] = 1
    teaching: Teaching
    arithmetic: Arithmetic
    part: Part
    width: int
    kind: Kind

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self.teaching.images * self.teaching.crops

    @property
    def sha256(self) -> str:
        """Hash of all of it but the names under which dataset and teacher go."""
        unnamed = {"dataset": {"name": True, "slug": True}, "name": True}
        return canonical_sha256(self.hashed({"teaching": unnamed}))

    def path(self, folder: Path) -> Path:
        """Return where the file lies in a cache."""
        teaching = self.teaching
        return folder / teaching.dataset.label / teaching.name / f"{self.part}-{self.sha256[:16]}{SUFFIX}"
