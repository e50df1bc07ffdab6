"""``imagenet32:PATH``: ImageNet-1k at 32x32 pixels, from its original batch files or their npz variant.

The batches are joined once into one array under the data root, which is then mapped, not read: 4 GB of images need not
fit in memory, and processes share them.

Source: Chrabaszcz, Loshchilov & Hutter, A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets,
arXiv:1707.08819.
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.datasets.checks import existing, readable
from kdbench.datasets.identity import fingerprint
from kdbench.datasets.imagenet32_files import CLASSES, SIDE, Batch, PartName, find_batches
from kdbench.files import TEMPORARY, cannot_write, sweep_temporary
from kdbench.hooks import hookimpl
from kdbench.types import StageShape

_NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return ImageNet-32."""
    what = "ImageNet-1k at 32x32 pixels: a folder of train_data_batch_1..10 and val_data, original files or .npz"
    return [Dataset("imagenet32", open_imagenet32, what, takes_path=True)]


def open_imagenet32(argument: str, root: Path) -> ImageNet32:
    """Open a folder of batches; a relative path is relative to the working directory, not to the data root."""
    where = f"imagenet32:{argument}"
    return ImageNet32(where, existing(where, argument, "folder"), root)


class ImageNet32:
    """ImageNet-32 in its batches.

    The fingerprint covers name, size, first and last 64 KiB of every batch file: reading all of them would take longer
    than planning may. Classes are named by their number, as the batches name none.

    Args:
        where: Dataset as the user wrote it.
        path: An existing folder.
        root: Data root; the joined arrays are kept below it.
    """

    def __init__(self, where: str, path: Path, root: Path) -> None:
        self._where, self._path, self._root = where, path, root

    @cached_property
    def info(self) -> DatasetInfo:
        """Describe the dataset from the headers of its files.

        Raises:
            ConfigError: If batches are missing, damaged, or hold other arrays than they should.
        """
        parts = self._train, self._val
        mark = fingerprint(batch.identity() for part in parts for batch in part)
        train, test = (sum(batch.size() for batch in part) for part in parts)
        return DatasetInfo(
            name=self._where,
            slug=f"imagenet32-{mark[:8]}",
            classes=tuple(map(str, range(CLASSES))),
            image=StageShape((3, SIDE, SIDE)),
            train_size=train,
            test_size=test,
            fingerprint=mark,
            normalisation=_NORMALISATION,
        )

    def train(self) -> Split:
        """Map the training images, after joining the batches if that was not done before."""
        return self._split("train", self._train, self.info.train_size)

    def test(self) -> Split:
        """Map the validation images, on which results are reported: the labels of the test set are not public."""
        return self._split("val", self._val, self.info.test_size)

    @cached_property
    def _train(self) -> list[Batch]:
        return find_batches(self._where, self._path, "train")

    @cached_property
    def _val(self) -> list[Batch]:
        return find_batches(self._where, self._path, "val")

    def _split(self, part: PartName, batches: list[Batch], size: int) -> Split:
        folder = self._root / f"imagenet32-{self.info.fingerprint}" / part
        images, labels = folder / "images.npy", folder / "labels.npy"
        shape = (size, 3, SIDE, SIDE)
        if not _joined(images, labels, shape):
            with cannot_write(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / "join.lock"):
                    # Another process may have joined them while this one waited for the lock.
                    if not _joined(images, labels, shape):
                        sweep_temporary(folder)
                        _join(batches, images, labels, shape)
        with readable(self._where, ValueError):
            # Copy-on-write: nobody can change the file, and torch takes it without complaint.
            store = np.load(images, mmap_mode="c", allow_pickle=False)
            return Split(torch.from_numpy(store), torch.from_numpy(np.load(labels, allow_pickle=False)))


def _joined(images: Path, labels: Path, shape: tuple[int, ...]) -> bool:
    return _whole(images, shape, 1) and _whole(labels, shape[:1], 8)


def _whole(path: Path, shape: tuple[int, ...], width: int) -> bool:
    """Return whether a joined array is there with all its bytes; only whole ones get their name."""
    return path.is_file() and path.stat().st_size == len(_header(shape, width)) + width * int(np.prod(shape))


def _header(shape: tuple[int, ...], width: int) -> bytes:
    """Return the start of an .npy file of bytes or of int64."""
    buffer = io.BytesIO()
    kind = np.dtype("|u1" if width == 1 else "<i8")
    npy.write_array_header_1_0(buffer, {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _join(batches: list[Batch], images: Path, labels: Path, shape: tuple[int, ...]) -> None:
    """Write the joined arrays, a batch at a time, and give them their names when they are whole."""
    found: list[NDArray[np.int64]] = []
    with _Writing(images) as file:
        file.write(_header(shape, 1))
        for pixels, numbers in (batch.read() for batch in batches):  # one at a time: all may not fit in memory
            file.write(np.ascontiguousarray(pixels).data)
            found.append(numbers)
    with _Writing(labels) as file:
        file.write(_header(shape[:1], 8))
        file.write(np.concatenate(found).astype("<i8").data)


class _Writing:
    """A file that appears under its name when all of it has been written, or not at all."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")

    def __enter__(self) -> Any:
        self._file = self._temporary.open("wb")
        return self._file

    def __exit__(self, kind: object, *_rest: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)
