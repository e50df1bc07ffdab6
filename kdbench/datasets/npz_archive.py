"""Reading an .npz that may be truncated, foreign or hostile: headers first, sizes checked, never a pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdbench.archives import UNREADABLE, Header, read_header
from kdbench.datasets.checks import bad, readable, shown
from kdbench.errors import nearest

# An archive that unpacks to more than this, and to more than this many times its size, is not a set of photographs.
MAX_UNPACKED = 1 << 30
MAX_RATIO = 100

_HOW = "Write the file with numpy.savez or numpy.savez_compressed."


def read_headers(where: str, path: Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, Header]:
    """Return the headers of the wanted arrays that are there.

    Args:
        where: Dataset as the user wrote it.
        path: An existing file.
        required: Arrays that must be there.
        optional: Arrays that may be.

    Raises:
        ConfigError: If the file is not an npz, is damaged, lacks an array, or declares sizes that cannot be.
    """
    with readable(where, *UNREADABLE):
        _refuse_foreign(where, path)
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
            for name in required:
                if name not in members:
                    there = f"It has: {shown(list(members))}.{nearest(name, members)}"
                    raise bad(where, f"the array '{name}' is missing", f"{there} Needed: {', '.join(required)}.")
            wanted = {name: members[name] for name in (*required, *optional) if name in members}
            _refuse_bomb(where, path, wanted)
            return {name: _header(where, archive, name, member) for name, member in wanted.items()}


def read_array(where: str, path: Path, name: str) -> NDArray[Any]:
    """Return an array whose header was checked.

    Raises:
        ConfigError: If its data are damaged.
    """
    with readable(where, *UNREADABLE), np.load(path, allow_pickle=False) as archive:
        array: NDArray[Any] = archive[name]
    return array


def _refuse_foreign(where: str, path: Path) -> None:
    if zipfile.is_zipfile(path):
        return
    with path.open("rb") as file:
        start = file.read(6)
    if start == npy.MAGIC_PREFIX:
        raise bad(where, "is a single .npy array, not an .npz archive", _HOW)
    if start.startswith(b"PK"):
        raise bad(where, "is a truncated .npz: its end is missing", "Copy or download it again.")
    raise bad(where, "is not an .npz archive", _HOW)


def _refuse_bomb(where: str, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
    unpacked, packed = sum(member.file_size for member in members.values()), path.stat().st_size
    if unpacked > MAX_UNPACKED and unpacked > MAX_RATIO * packed:
        problem = f"declares {unpacked:,} bytes of arrays in a file of {packed:,} bytes"
        raise bad(where, problem, f"Allowed: up to {MAX_RATIO} times the size of the file. Check where it comes from.")


def _header(where: str, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> Header:
    header = read_header(archive, member)
    # Object arrays are pickles: their size says nothing, and their dtype is refused by every check that follows.
    if not header.dtype.hasobject and member.file_size != header.needed:
        shape, needed = list(header.shape), header.needed
        problem = f"{name} declares {member.file_size:,} bytes, but its shape {shape} needs {needed:,}"
        raise bad(where, problem, f"The file is damaged or forged. {_HOW}")
    return header
