"""``npz:PATH``: the user's images as arrays in one NumPy archive."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kdbench.archives import Header
from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.datasets.checks import (
    bad,
    class_names,
    existing,
    image_layout,
    label_header,
    label_values,
    same_shape,
)
from kdbench.datasets.identity import file_fingerprint, slug
from kdbench.datasets.npz_archive import read_array, read_headers
from kdbench.hooks import hookimpl
from kdbench.types import StageShape

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return the npz scheme."""
    what = "arrays train_images, train_labels, test_images, test_labels and, optionally, classes"
    return [Dataset("npz", open_npz, what, takes_path=True)]


def open_npz(argument: str, _root: Path) -> Npz:
    """Open an archive; a relative path is relative to the working directory, not to the data root."""
    where = f"npz:{argument}"
    return Npz(where, existing(where, argument, "file"))


class Npz:
    """An archive with images uint8 [N,H,W,C], [N,C,H,W] or [N,H,W] and integer labels [N], for train and test.

    ``classes`` [C], of strings, names the classes; without it they are named 0, 1, ... up to the largest training
    label. The fingerprint is the start of the file's sha256.

    Args:
        where: Dataset as the user wrote it.
        path: The archive, an existing file.
    """

    def __init__(self, where: str, path: Path) -> None:
        self._where = where
        self._path = path

    @cached_property
    def info(self) -> DatasetInfo:
        """Describe the dataset from headers and labels.

        Raises:
            ConfigError: If the file is malformed.
        """
        headers = read_headers(self._where, self._path, REQUIRED, ["classes"])
        shapes = {}
        for part in ("train", "test"):
            images, labels = headers[f"{part}_images"], headers[f"{part}_labels"]
            _, shapes[part] = image_layout(self._where, f"{part}_images", images.shape, images.dtype)
            label_header(self._where, f"{part}_labels", labels.shape, labels.dtype, images.shape[0])
        same_shape(self._where, shapes["train"], shapes["test"])
        mark = file_fingerprint(self._path)
        return DatasetInfo(
            name=self._where,
            slug=slug("npz", self._path.stem, mark),
            classes=self._classes(headers),
            image=shapes["train"],
            train_size=headers["train_images"].shape[0],
            test_size=headers["test_images"].shape[0],
            fingerprint=mark,
        )

    def train(self) -> Split:
        """Read the training images."""
        return self._split("train", self.info.image)

    def test(self) -> Split:
        """Read the test images."""
        return self._split("test", self.info.image)

    def _classes(self, headers: dict[str, Header]) -> tuple[str, ...]:
        """Return the class names after checking them and both label arrays against them."""
        train, test = (read_array(self._where, self._path, f"{part}_labels") for part in ("train", "test"))
        top = int(train.max())
        # Every class needs a training image: a label of 10**12 must not become 10**12 names before it is refused.
        count = top + 1 if top < len(train) else len(np.unique(train))
        names = tuple(map(str, range(max(2, count))))
        if header := headers.get("classes"):
            if header.dtype.kind != "U" or len(header.shape) != 1:
                problem = f"classes has dtype {header.dtype} and shape {list(header.shape)}"
                raise bad(self._where, problem, "Allowed: [C] of strings, e.g. np.array(['cat', 'dog']).")
            names = tuple(read_array(self._where, self._path, "classes").tolist())
        class_names(self._where, names)
        for name, labels in (("train_labels", train), ("test_labels", test)):
            label_values(self._where, name, labels, names)
        return names

    def _split(self, part: str, image: StageShape) -> Split:
        images = read_array(self._where, self._path, f"{part}_images")
        labels = read_array(self._where, self._path, f"{part}_labels")
        layout, _ = image_layout(self._where, f"{part}_images", images.shape, images.dtype)
        if layout == "NHWC":
            images = images.transpose(0, 3, 1, 2)
        pixels = np.ascontiguousarray(images.reshape(len(images), *image.dims))
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
