"""NumPy archives that may be truncated, foreign or made to harm: headers first, sizes checked, never a pickle."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
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
        shape, dtype = _parse(stream)
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
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            _check_sizes(archive, names, largest)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in names}
    except _Refused as error:
        raise ValueError(str(error)) from error
    except UNREADABLE as error:
        raise ValueError(f"half-written or foreign: {error or type(error).__name__}") from error


class _Refused(ValueError):
    """What an archive says cannot be believed."""


def _check_sizes(archive: zipfile.ZipFile, names: Sequence[str], largest: int) -> None:
    members = {member.filename: member for member in archive.infolist()}
    if missing := [name for name in names if f"{name}.npy" not in members]:
        raise _Refused(f"it has no '{missing[0]}'")
    if (size := sum(member.file_size for member in members.values())) > largest:
        raise _Refused(f"it unpacks to {size} bytes; allowed is {largest}")
    for name in names:
        member = members[f"{name}.npy"]
        header = read_header(archive, member)
        if header.dtype.hasobject or header.needed != member.file_size:
            raise _Refused(f"its {name} is not what its header says: {header.dtype} {header.shape}")


def _parse(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy format {version[0]}.{version[1]}")
    return shape, dtype
