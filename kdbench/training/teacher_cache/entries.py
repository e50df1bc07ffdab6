"""A file of entries: a fixed place for each, and a checksum; an entry is what its checksum says, or it is absent.

So a killed writer, a flipped bit or a block of zeros leaves nothing that could be taken for an entry, and writers need
no lock: those of one entry write the same bytes.
"""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdbench.files import TEMPORARY, set_aside
from kdbench.training.teacher_cache.key import CacheKey

HEADER = 4096  # bytes before the first entry
CHECKSUM = np.dtype("<u4")
Numbers = NDArray[np.int64]
Values = NDArray[np.float32]


class Entries:
    """A file of entries, mapped for reading.

    Args:
        path: The file, made by :meth:`create`.
        key: What it holds.

    Raises:
        OSError: If it cannot be opened for reading and writing.
        ValueError: If it holds something else.
    """

    def __init__(self, path: Path, key: CacheKey) -> None:
        self.path, self.key = path, key
        self.damaged = 0  # entries that were there but had another checksum
        self.reported = False  # whether somebody was told of them
        self._row = row_type(key)
        self._seed = zlib.crc32(key.sha256.encode())
        self._file = os.open(path, os.O_RDWR)
        self._identity = _identity(os.fstat(self._file))
        if not self._is_whole():
            self.close()
            raise ValueError(f"{path}: is no file of entries of its name, or not a whole one")
        self._rows = np.memmap(path, self._row, mode="r", offset=HEADER, shape=(key.entries,))

    def _is_whole(self) -> bool:
        marked = os.pread(self._file, HEADER, 0).startswith(_mark(self.key))
        return marked and os.fstat(self._file).st_size == size_of(self.key)

    @classmethod
    def open(cls, path: Path, key: CacheKey) -> Self:
        """Return the file of a key, made empty if it is missing; one that holds something else is set aside.

        The caller holds the lock of the cache.

        Raises:
            OSError: If it cannot be read or written.
        """
        if not path.exists():
            create(path, key)
        try:
            return cls(path, key)
        except ValueError:
            set_aside(path)
            create(path, key)
            return cls(path, key)

    @property
    def writable(self) -> bool:
        """Whether entries are still kept."""
        return self._file >= 0

    def close(self) -> None:
        """Write no more."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def is_at_its_path(self) -> bool:
        """Return whether the file is still the one under its name."""
        try:
            return self._identity == _identity(self.path.stat())
        except FileNotFoundError:
            return False

    def read(self, numbers: Numbers) -> tuple[Values, NDArray[np.bool_]]:
        """Return values (N, width) and which of them are there (N,); the others mean nothing."""
        rows = self._rows[numbers]  # a copy: what is checked is what is used
        found = rows["check"] != 0
        there = found & (rows["check"] == self._checksums(numbers, rows["values"]))
        self.damaged += int(found.sum() - there.sum())
        return rows["values"].astype(np.float32), there

    def write(self, numbers: Numbers, values: Values) -> None:
        """Keep values (N, width) as entries; there is at least one.

        Raises:
            OSError: If the disk is full; what was written remains.
        """
        rows = np.empty(len(numbers), self._row)
        rows["values"] = values
        rows["check"] = self._checksums(numbers, rows["values"])
        # Neighbours go in one piece. Written, not mapped: on a full disk a mapping would end the process.
        for piece in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1):
            data, at = rows[piece].tobytes(), HEADER + int(numbers[piece[0]]) * self._row.itemsize
            if os.pwrite(self._file, data, at) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def filled(self, numbers: Numbers) -> Numbers:
        """Return those of some entries that seem to be there; their checksums are not computed."""
        there: NDArray[np.bool_] = self._rows["check"][numbers] != 0
        return numbers[there]

    def _checksums(self, numbers: Numbers, values: NDArray[np.generic]) -> NDArray[np.uint32]:
        """Return the checksum of each entry, bound to file and place; 0 stands for one that is not there."""
        data, length = values.tobytes(), self.key.width * values.itemsize
        sums = [
            zlib.crc32(data[place * length : (place + 1) * length], (self._seed + number) & 0xFFFFFFFF)
            for place, number in enumerate(numbers.tolist())
        ]
        return np.array(sums, np.uint32)


def row_type(key: CacheKey) -> np.dtype[np.void]:
    """Return how an entry lies in the file."""
    return np.dtype([("values", np.dtype(key.kind).newbyteorder("<"), (key.width,)), ("check", CHECKSUM)])


def entry_bytes(width: int, item: int) -> int:
    """Return the bytes of an entry of so many numbers of so many bytes, checksum included."""
    return width * item + CHECKSUM.itemsize


def size_of(key: CacheKey) -> int:
    """Return the size of a file in bytes; of the disk it takes what was written."""
    return HEADER + key.entries * row_type(key).itemsize


def header_of(key: CacheKey) -> bytes:
    """Return the first bytes of a file: the hash of its key, and the key for people."""
    text = _mark(key) + key.model_dump_json(indent=1).encode()
    return text[: HEADER - 1].ljust(HEADER - 1) + b"\n"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _mark(key: CacheKey) -> bytes:
    return f"kdbench teacher cache 1\n{key.sha256}\n".encode()


def create(path: Path, key: CacheKey) -> None:
    """Make an empty file, whole at once under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(header_of(key))
            file.truncate(size_of(key))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
