"""Datasets in torchvision's own folders: read if they are whole, downloaded once, under a lock, if they are not."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from kdbench.datasets.base import DatasetInfo, Split
from kdbench.datasets.checks import bad
from kdbench.errors import ConfigError

_FAILED = (OSError, RuntimeError, ValueError, EOFError, HTTPException, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class Archive:
    """A file to download and unpack into the folder it lies in.

    Args:
        url: Where it is.
        path: Where it is put.
        md5: Checksum of the whole file.
    """

    url: str
    path: Path
    md5: str


@dataclass(frozen=True)
class Layout:
    """How torchvision keeps a family of datasets on disk.

    Args:
        class_name: Class of ``torchvision.datasets``.
        archives: Called with (that class, data root): the files to download.
        complete: Called with (that class, data root): whether all unpacked files are there and whole.
        read: Called with (that class, data root, whether to train): images and labels. None = as torchvision reads
            them, which is right for files that are no pickles.
    """

    class_name: str
    archives: Callable[[Any, Path], Sequence[Archive]]
    complete: Callable[[Any, Path], bool]
    read: Callable[[Any, Path, bool], tuple[Any, Any]] | None = None


class TorchvisionSource:
    """An opened dataset of torchvision.

    Args:
        info: Facts about the dataset; its fingerprint is its name, since the md5 sums of the archives are checked.
        layout: How it lies on disk.
        root: Data root, which holds torchvision's folder; created when it is needed.
    """

    def __init__(self, info: DatasetInfo, layout: Layout, root: Path) -> None:
        self._info = info
        self._layout = layout
        self._root = root

    @property
    def info(self) -> DatasetInfo:
        """Describe the dataset without reading or downloading anything."""
        return self._info

    def train(self) -> Split:
        """Read the training images, after downloading them if they are not there.

        Raises:
            ConfigError: If they cannot be had.
        """
        return self._split(train=True)

    def test(self) -> Split:
        """Read the test images, after downloading them if they are not there.

        Raises:
            ConfigError: If they cannot be had.
        """
        return self._split(train=False)

    def _split(self, *, train: bool) -> Split:
        from torchvision import datasets

        kind = getattr(datasets, self._layout.class_name)
        try:
            self._ensure(kind)
            found = (self._layout.read or _as_torchvision)(kind, self._root, train)
        except _FAILED as error:
            raise self._unavailable(kind, error) from error
        channels, height, width = self._info.image.dims
        images, labels = (torch.as_tensor(part) for part in found)
        return Split(images.to(torch.uint8).reshape(-1, channels, height, width), labels.to(torch.int64))

    def _ensure(self, kind: Any) -> None:
        """Download and unpack unless everything is there; what is there only in part is replaced."""
        from torchvision.datasets.utils import download_and_extract_archive

        if self._layout.complete(kind, self._root):
            return
        self._root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root / f".{self._info.slug}.lock"):
            # Another process may have finished the download while this one waited for the lock.
            if self._layout.complete(kind, self._root):
                return
            for archive in self._layout.archives(kind, self._root):
                download_and_extract_archive(
                    archive.url, archive.path.parent, filename=archive.path.name, md5=archive.md5
                )

    def _unavailable(self, kind: Any, error: Exception) -> ConfigError:
        """Return the one message for everything that keeps the dataset from being there."""
        from torchvision.datasets.utils import check_integrity

        name, got = self._info.name, " ".join(str(error).split()) or type(error).__name__
        archives = self._layout.archives(kind, self._root)
        folder = archives[0].path.parent
        if not (absent := [a for a in archives if not check_integrity(a.path, a.md5)]):
            problem = f"the archives in {folder} are whole, but could not be unpacked or read; got: {got}"
            return bad(name, problem, "Check free space and permissions of that folder and run again.")
        damaged = [a.path.name for a in absent if a.path.exists()]
        note = f" ({', '.join(damaged)} there is incomplete or damaged and was not used)" if damaged else ""
        problem = f"could not be downloaded into {folder}{note}: tried {absent[0].url}, got: {got}"
        files = ", ".join(a.path.name for a in absent)
        remedy = f"Run again with a network, or place {files} into {folder}, or use an own copy: --dataset npz:PATH"
        return bad(name, problem, remedy)


def _as_torchvision(kind: Any, root: Path, train: bool) -> tuple[Any, Any]:
    loaded = kind(root, train=train)
    return loaded.data, loaded.targets
