"""The 1797 handwritten digits that scikit-learn ships: 8x8, one channel, nothing to download."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.datasets.checks import no_argument
from kdbench.datasets.identity import fingerprint
from kdbench.datasets.splits import first_of_each, permutation, take
from kdbench.hooks import hookimpl
from kdbench.seeds import numpy_generator
from kdbench.types import StageShape

_CLASSES = tuple("0123456789")
_FILE = "sklearn/datasets/data/digits.csv.gz"


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return the digits dataset."""
    return [Dataset("digits", open_digits, "1,797 digits of 8x8 pixels from scikit-learn; no download")]


def open_digits(argument: str, _root: Path) -> Digits:
    """Open the digits; they have no place of their own, so the data root is not used."""
    no_argument("digits", argument)
    return Digits()


@cache
def _load() -> tuple[Split, Split]:
    """Return (train, test), see :class:`Digits`."""
    table = _table()
    images: NDArray[np.uint8] = np.rint(table[:, :64].reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    labels: NDArray[np.int64] = table[:, 64].astype(np.int64)
    counts = [round(count / 3) for count in np.bincount(labels).tolist()]
    order = permutation(numpy_generator(0, "split", "digits"), len(labels))
    test = first_of_each(labels, order, counts)
    train = np.setdiff1d(np.arange(len(labels)), test)
    everything = Split(torch.from_numpy(images), torch.from_numpy(labels))
    return _copy(take(everything, train)), _copy(take(everything, test))


def _table() -> NDArray[np.float64]:
    """Return what scikit-learn ships, one row of 64 pixels and a label per image.

    Its file is read where it lies: every worker would import the library, and pandas with it, for nothing else.
    """
    try:
        return np.loadtxt(str(metadata.distribution("scikit-learn").locate_file(_FILE)), delimiter=",")
    except (metadata.PackageNotFoundError, OSError):  # it has moved
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return np.column_stack((bunch.data, bunch.target))


class Digits:
    """Digits with a fixed, class-balanced split.

    Pixel values 0..16 become ``round(x * 255 / 16)``. Of a class with n images, ``round(n / 3)`` are test images: the
    first in a permutation keyed by ``numpy_generator(0, "split", "digits")``; both splits keep the original order.

    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """

    @property
    def info(self) -> DatasetInfo:
        """Describe the digits."""
        train, test = _load()
        content = [part.numpy().tobytes() for part in (train.images, train.labels, test.images, test.labels)]
        return DatasetInfo(
            name="digits",
            slug="digits",
            classes=_CLASSES,
            image=StageShape((1, 8, 8)),
            train_size=len(train),
            test_size=len(test),
            fingerprint=fingerprint(content),
            mirror=False,
        )

    def train(self) -> Split:
        """Return the training images, a copy of the caller's own."""
        return _copy(_load()[0])

    def test(self) -> Split:
        """Return the test images, a copy of the caller's own."""
        return _copy(_load()[1])


def _copy(split: Split) -> Split:
    return Split(split.images.clone(memory_format=torch.contiguous_format), split.labels.clone())
