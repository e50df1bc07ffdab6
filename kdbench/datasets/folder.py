"""``folder:PATH``: the user's images as files in class folders, ``train/CLASS/*`` and ``test/CLASS/*``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.datasets.checks import bad, class_names, existing, readable, same_shape, shown
from kdbench.datasets.folder_files import Listing, image_shape, list_images, read_images
from kdbench.datasets.identity import fingerprint, slug
from kdbench.errors import nearest
from kdbench.hooks import hookimpl


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return the folder scheme."""
    return [Dataset("folder", open_folder, "image files in train/CLASS/ and test/CLASS/ (or val/)", takes_path=True)]


def open_folder(argument: str, _root: Path) -> Folder:
    """Open a folder; a relative path is relative to the working directory, not to the data root."""
    where = f"folder:{argument}"
    return Folder(where, existing(where, argument, "folder"))


class Folder:
    """Class folders of RGB or grey images of one size; classes and files are sorted by name.

    ``test/`` is used if it is there, else ``val/``. The fingerprint covers the relative path and the size in bytes of
    every image file, not the pixels: reading every file would make planning as slow as loading. Replacing images by
    others of equal names and sizes is therefore not noticed.

    Args:
        where: Dataset as the user wrote it.
        path: An existing folder.
    """

    def __init__(self, where: str, path: Path) -> None:
        self._where = where
        self._path = path

    @cached_property
    def info(self) -> DatasetInfo:
        """Describe the dataset from file names, file sizes and the first image of each split.

        Raises:
            ConfigError: If folders are missing or empty, or the classes or image shapes of the splits differ.
        """
        train, test = self._listings
        shape = image_shape(self._where, self._path, train.files[0])
        same_shape(self._where, shape, image_shape(self._where, self._path, test.files[0]))
        mark = fingerprint(line for part, files in (("train", train), ("test", test)) for line in files.lines(part))
        return DatasetInfo(
            name=self._where,
            slug=slug("folder", self._path.resolve().name, mark),
            classes=train.classes,
            image=shape,
            train_size=len(train.files),
            test_size=len(test.files),
            fingerprint=mark,
        )

    def train(self) -> Split:
        """Read the training images."""
        return self._split(self._listings[0])

    def test(self) -> Split:
        """Read the test images."""
        return self._split(self._listings[1])

    @cached_property
    def _listings(self) -> tuple[Listing, Listing]:
        """List (train, test) and check their classes against each other."""
        with readable(self._where):
            return self._list()

    def _list(self) -> tuple[Listing, Listing]:
        there = sorted(entry.name for entry in self._path.iterdir() if entry.is_dir())
        parts = ["train", "val" if "val" in there and "test" not in there else "test"]
        for part in parts:
            if part not in there:
                remedy = f"It has: {shown(there)}.{nearest(part, there)} Needed: train/ and test/ (or val/)."
                raise bad(self._where, f"the folder '{part}' is missing", remedy)
        train, test = (list_images(self._where, self._path / part) for part in parts)
        if different := sorted(set(train.classes) ^ set(test.classes)):
            name = different[0]
            has, lacks = parts if name in train.classes else parts[::-1]
            remedy = f"Both need the same class folders.{nearest(name, set(train.classes) & set(test.classes))}"
            raise bad(self._where, f"{has}/ has a class '{name}' that {lacks}/ lacks", remedy)
        class_names(self._where, train.classes)
        return train, test

    def _split(self, listing: Listing) -> Split:
        images = read_images(self._where, self._path, listing.files, self.info.image, self._listings[0].files[0])
        return Split(images, torch.tensor(listing.labels, dtype=torch.int64))
