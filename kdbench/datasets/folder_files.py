"""Listing and decoding image files: one size, RGB or grey, and the name of the file at fault in every message."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdbench.datasets.checks import bad, shown
from kdbench.errors import ConfigError
from kdbench.types import StageShape

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class Listing:
    """The image files of a split.

    Args:
        classes: Folder names, sorted.
        files: Class by class, sorted by name within a class.
        labels: Class index of each file.
    """

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def lines(self, part: str) -> Iterator[bytes]:
        """Yield what a fingerprint covers of each file: split, class, name and size in bytes."""
        for file, label in zip(self.files, self.labels, strict=True):
            yield f"{part}/{self.classes[label]}/{file.name}\0{file.stat().st_size}\n".encode()


def list_images(where: str, folder: Path) -> Listing:
    """Return the images in the class folders of a split; hidden entries and other files are left out.

    Raises:
        ConfigError: If there are no class folders, or one has no images.
    """
    folders = sorted((e for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)
    if not folders:
        remedy = f"Put one folder of images per class into it: {folder.name}/CLASS/*.png"
        raise bad(where, f"{folder.name}/ has no class folders", remedy)
    files: list[Path] = []
    labels: list[int] = []
    for label, entry in enumerate(folders):
        names = sorted(file.name for file in entry.iterdir() if not file.name.startswith("."))
        images = [entry / name for name in names if Path(name).suffix.lower() in SUFFIXES]
        if not images:
            kind = "training" if folder.name == "train" else "test"
            remedy = f"The folder {folder.name}/{entry.name} holds {shown(names)}. Allowed: {', '.join(SUFFIXES)}."
            raise bad(where, f"no {kind} images of class '{entry.name}'", remedy)
        files.extend(images)
        labels.extend([label] * len(images))
    return Listing(tuple(entry.name for entry in folders), tuple(files), tuple(labels))


def image_shape(where: str, root: Path, file: Path) -> StageShape:
    """Return the shape (C,H,W) of an image from its header.

    Raises:
        ConfigError: If the file is not an image, or neither RGB nor grey.
    """
    with _decoding(where, root, file), Image.open(file) as image:
        return _shape(where, root, file, image)


def read_images(where: str, root: Path, files: Sequence[Path], shape: StageShape, model: Path) -> Tensor:
    """Return the images as uint8 (N,C,H,W).

    Args:
        where: Dataset as the user wrote it.
        root: Folder that messages give file names relative to.
        files: Image files, N >= 1.
        shape: Shape every image must have.
        model: File that has this shape, for the message.

    Raises:
        ConfigError: On the first file that is damaged or has another shape.
    """
    try:
        pixels = np.empty((len(files), *shape.dims), dtype=np.uint8)
    except MemoryError as error:
        needed = len(files) * math.prod(shape.dims) / 2**30
        problem = f"{len(files)} images of {shape} (CxHxW) take {needed:.1f} GiB of memory"
        raise bad(where, problem, "Resize the images, or take fewer.") from error
    for row, file in zip(pixels, files, strict=True):
        with _decoding(where, root, file), Image.open(file) as image:
            found = _shape(where, root, file, image)
            if found != shape:
                problem = f"{_relative(root, file)} is {found} (CxHxW), but {_relative(root, model)} is {shape}"
                raise bad(where, problem, "All images need one size and one mode: resize or convert them first.")
            row[:] = np.asarray(image).reshape(shape.height, shape.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _shape(where: str, root: Path, file: Path, image: Image.Image) -> StageShape:
    if image.mode not in _CHANNELS:
        remedy = "Allowed: RGB and L (grey, 8 bits). Convert the images first."
        raise bad(where, f"{_relative(root, file)} has colour mode {image.mode}", remedy)
    return StageShape((_CHANNELS[image.mode], image.height, image.width))


def _relative(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


@contextmanager
def _decoding(where: str, root: Path, file: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        # Decoders raise almost anything on damaged bytes (OSError, SyntaxError, struct.error, ...): no common base.
        remedy = "It is damaged or not an image: replace it or remove it."
        raise bad(where, f"{_relative(root, file)} cannot be read as an image", remedy) from error
