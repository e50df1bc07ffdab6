"""NumPy archives that may be truncated, foreign or made to harm: headers first, sizes checked, never a pickle."""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

# What reading a damaged archive raises besides OSError.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    ValueError,
    TypeError,  # a header with names where numbers belong
    SyntaxError,
    tokenize.TokenError,
    RuntimeError,  # an encrypted member, an unknown compression, or a header nested without end
    MemoryError,  # the same, as Python's parser says it
    OverflowError,
)
LARGEST = 1 << 30  # bytes an archive of ours may unpack to: 8 bytes for each of a hundred million images


@dataclass(frozen=True)
class Header:
    """What an array says of itself, read without its values.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        needed: Bytes that header and values take.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    needed: int


def read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """Return the header of an array in an archive; raises one of :data:`UNREADABLE` if it has none."""
    with archive.open(member) as stream:
        shape, _, dtype = _parse(stream)
        return Header(shape, dtype, stream.tell() + math.prod(shape) * dtype.itemsize)


def read_arrays(path: Path, names: Sequence[str], largest: int = LARGEST) -> dict[str, NDArray[Any]]:
    """Return arrays of an archive.

    Args:
        path: The file.
        names: Which arrays; all must be there.
        largest: Bytes they may unpack to.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged or foreign; the text says in what.
    """
    try:
        # In one go: a reader of thousands of small files spends most of its time going back and forth in them.
        with zipfile.ZipFile(io.BytesIO(_content(path, largest))) as archive:
            members = _members(archive, names, largest)
            return {name: _array(name, archive.read(member)) for name, member in members.items()}
    except _Refused as error:
        raise ValueError(str(error)) from error
    except UNREADABLE as error:
        raise ValueError(f"half-written or foreign: {error or type(error).__name__}") from error


class _Refused(ValueError):
    """What an archive says cannot be believed."""


def _content(path: Path, largest: int) -> bytes:
    with path.open("rb") as stream:
        # A read makes room for all it is asked for: asked for the most that is allowed, it takes far longer.
        data = stream.read(min(os.fstat(stream.fileno()).st_size, largest) + 1)
    if len(data) > largest:
        raise _Refused(f"it has more than the {largest} bytes that are allowed")
    return data


def _members(archive: zipfile.ZipFile, names: Sequence[str], largest: int) -> dict[str, zipfile.ZipInfo]:
    members = {member.filename: member for member in archive.infolist()}
    if missing := [name for name in names if f"{name}.npy" not in members]:
        raise _Refused(f"it has no '{missing[0]}'")
    if (size := sum(member.file_size for member in members.values())) > largest:
        raise _Refused(f"it unpacks to {size} bytes; allowed is {largest}")
    return {name: members[f"{name}.npy"] for name in names}


def _array(name: str, data: bytes) -> NDArray[Any]:
    """Return the array of a member; boards read thousands whose headers are alike, so each is parsed once."""
    size = 2 if data[6:7] == b"\x01" else 4  # bytes that say how long the header is, in versions 1 and 2
    start = 8 + size + int.from_bytes(data[8 : 8 + size], "little")
    shape, columns_first, dtype = _parsed(data[:start])
    if dtype.hasobject or start + math.prod(shape) * dtype.itemsize != len(data):
        raise _Refused(f"its {name} is not what its header says: {dtype} {shape}")
    return np.ndarray(shape, dtype, buffer=data, offset=start, order="F" if columns_first else "C")


@lru_cache(maxsize=256)
def _parsed(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return _parse(io.BytesIO(start))


def _parse(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"npy format {version[0]}.{version[1]}")
