"""The batch files of ImageNet-32: where they are, what their headers say, and their images and labels one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdbench.datasets.batch_pickle import PickledArray, read_batch
from kdbench.datasets.checks import bad, readable, shown
from kdbench.datasets.npz_archive import read_array, read_headers

PartName = Literal["train", "val"]
CLASSES, SIDE = 1000, 32
PIXELS = 3 * SIDE * SIDE
_BATCHES = {"train": [f"train_data_batch_{number}" for number in range(1, 11)], "val": ["val_data"]}
_FOLDERS = {"train": "imagenet32_train_npz", "val": "imagenet32_val_npz"}
_ENDS = 1 << 16
_ALLOWED = f"Allowed: data uint8 [N,{PIXELS}] and labels [N] in 1..{CLASSES}."


@dataclass(frozen=True)
class Batch:
    """One file of images and labels.

    Args:
        where: Dataset as the user wrote it.
        path: The file, an ``.npz`` or a pickle without ending.
    """

    where: str
    path: Path

    @property
    def _packed(self) -> bool:
        return self.path.suffix == ".npz"

    def size(self) -> int:
        """Return the number of images from the headers.

        Raises:
            ConfigError: If the file is damaged, or holds other arrays than it should.
        """
        if self._packed:
            headers = read_headers(self._where, self.path, ("data", "labels"), ())
            self._check(headers["data"].shape, headers["data"].dtype)
            shape: tuple[int, ...] = headers["labels"].shape
            size = shape[0] if len(shape) == 1 or shape[1:] == (1,) else -1
            found, rows = (headers["labels"].dtype.kind in "iu", size), headers["data"].shape[0]
        else:
            tree = read_batch(self.where, self.path, pixels=False)
            data, labels = self._pickled(tree)
            self._check(data.shape, np.dtype(data.code))
            found, rows = (labels.dtype.kind in "iu", len(labels)), data.shape[0]
        if found != (True, rows):
            raise bad(self._where, f"has {rows} images and labels that are not {rows} integers", _ALLOWED)
        return rows

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return images (N, 3, 32, 32) and labels (N,) in 0..999.

        Raises:
            ConfigError: If the file is damaged, or holds other values than it should.
        """
        labels: NDArray[Any]
        if self._packed:
            data, labels = (read_array(self._where, self.path, name) for name in ("data", "labels"))
        else:
            pickled, labels = self._pickled(read_batch(self.where, self.path, pixels=True))
            with readable(self._where, ValueError, TypeError):
                data = pickled.values()
        self._check(data.shape, data.dtype)
        labels = labels.reshape(-1)
        outside = np.flatnonzero((labels < 1) | (labels > CLASSES))
        if outside.size:
            raise bad(self._where, f"labels[{outside[0]}] is {labels[outside[0]]}", _ALLOWED)
        return data.reshape(-1, 3, SIDE, SIDE), labels.astype(np.int64) - 1

    def identity(self) -> bytes:
        """Return bytes that change with the content: name, size, and the first and last 64 KiB.

        The end of an npz holds the checksums of its arrays; that of a pickle, its last pixels or labels.
        """
        with readable(self._where), self.path.open("rb") as file:
            size = file.seek(0, 2)
            start = (file.seek(0), file.read(_ENDS))[1]
            file.seek(max(0, size - _ENDS))
            return f"{self.path.name} {size} ".encode() + start + file.read()

    @property
    def _where(self) -> str:
        return f"{self.where}: {self.path.name}"

    def _pickled(self, tree: dict[str, Any]) -> tuple[PickledArray, NDArray[Any]]:
        for name in ("data", "labels"):
            if name not in tree:
                raise bad(self._where, f"'{name}' is missing; it has: {shown(sorted(tree))}", _ALLOWED)
        data, labels = tree["data"], tree["labels"]
        if not isinstance(data, PickledArray):
            raise bad(self._where, f"data is a {type(data).__name__}, not an array", _ALLOWED)
        with readable(self._where, ValueError, TypeError, OverflowError):
            np.dtype(data.code)
            if isinstance(labels, PickledArray):
                return data, labels.values()
            # NumPy would unfold a list of lists, which may hold one another many times.
            flat = isinstance(labels, list | tuple) and all(isinstance(label, int) for label in labels)
            return data, np.asarray(labels) if flat else np.empty((0, 0))

    def _check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if dtype != np.uint8 or len(shape) != 2 or shape[1] != PIXELS or shape[0] < 1:
            raise bad(self._where, f"data is {dtype} {list(shape)}", _ALLOWED)


def find_batches(where: str, folder: Path, part: PartName) -> list[Batch]:
    """Return the batches of a part, in order: the npz variant if any file of it is there, else the pickles.

    Raises:
        ConfigError: If some are missing, or all.
    """
    names = _BATCHES[part]
    places = [[folder / _FOLDERS[part] / f"{name}.npz" for name in names]]
    places += [[folder / f"{name}.npz" for name in names], [folder / name for name in names]]
    with readable(where):
        for paths in places:
            missing = [path for path in paths if not path.is_file()]
            if not missing:
                return [Batch(where, path) for path in paths]
            if len(missing) < len(paths):
                lost = shown([path.relative_to(folder).as_posix() for path in missing])
                remedy = f"All {len(paths)} belong to the {part} images: copy or download what is missing."
                raise bad(where, f"{len(missing)} of {len(paths)} batches are missing: {lost}", remedy)
        there = shown(sorted(entry.name for entry in folder.iterdir()))
    last = names[-1]
    raise bad(
        where,
        f"no {part} batches; it has: {there}",
        f"Needed: {names[0]}{f' to {last}' if len(names) > 1 else ''}, as the original files or as .npz, the latter "
        f"also in {_FOLDERS[part]}/.",
    )
