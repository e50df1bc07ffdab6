"""Reading the Python pickles that image batches are published as, without running anything they hold.

A pickle is a program that may call whatever it names. Here it may name three kinds of things only, and each is a
stand-in that keeps what it is told: an array, its dtype, and the text coding of an array's bytes. Whatever else it
names is refused before it is looked up.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdbench.datasets.checks import bad, readable

_MARGIN = 1 << 20  # labels and names are shorter, pixels longer
_FAULTS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, MemoryError, OverflowError,
)  # fmt: skip
_HOW = "Get the original batch file again, or use the npz variant (train_data_batch_1.npz and so on)."


class _Type:
    """Stands for the class that a pickled array names."""


class _Dtype:
    """Stands for a dtype; only little-endian or single-byte integers are understood."""

    def __init__(self, code: str, *_flags: object) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in {"<", "|", "="}:
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")


@dataclass
class PickledArray:
    """What a pickle says of an array.

    Args:
        shape: Its shape.
        code: Its dtype, e.g. ``u1``.
        content: Its bytes; none of a large array that was only described.
    """

    shape: tuple[int, ...] = ()
    code: str = ""
    content: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: tuple[Any, ...], order: str) -> None:
        """Keep what the pickle says; raises UnpicklingError if it is nothing that a batch holds."""
        if order != "C" or not isinstance(dtype, _Dtype) or not all(isinstance(length, int) for length in shape):
            raise pickle.UnpicklingError("an array that is not in C order or not of numbers")
        self.shape, self.code = tuple(shape), dtype.code
        # Python 2 pickled bytes as text.
        self.content = content.encode("latin1") if isinstance(content, str) else bytes(content)

    def values(self) -> NDArray[Any]:
        """Return the array; raises ValueError or TypeError if bytes, dtype and shape do not belong together."""
        return np.frombuffer(self.content, np.dtype(self.code)).reshape(self.shape)


def _reconstruct(_kind: object, _shape: object, _code: object) -> PickledArray:
    return PickledArray()


def _from_buffer(content: Any, dtype: Any, shape: tuple[Any, ...], order: str) -> PickledArray:
    array = PickledArray()
    array.fill(content, dtype, shape, order)
    return array


def _encode(text: str, coding: str = "latin1") -> bytes:
    if coding not in {"latin1", "latin-1", "iso-8859-1"}:
        raise pickle.UnpicklingError(f"coding {coding!r}")
    return codecs.latin_1_encode(text)[0]


_KNOWN: Mapping[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


# The unpickler in Python, not the one in C: it reads pixels through ``file.read``, where they can be skipped.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and kdbench runs no code from files")
        return _KNOWN[module, name]

    def load_build(self) -> None:
        # Of functions and classes, too, a pickle could otherwise set attributes.
        if not isinstance(self.stack[-2], _Dtype | PickledArray):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it sets the state of something that is no array")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


class _Skipping:
    """A file of which long parts read as nothing."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.readline = file.readline

    def read(self, size: int = -1) -> bytes:
        if size <= _MARGIN:
            return bytes(self._file.read(size))
        self._file.seek(size, 1)
        return b""


def read_batch(where: str, path: Path, *, pixels: bool) -> dict[str, Any]:
    """Return what a batch file holds under each key: plain values, and arrays as :class:`PickledArray`.

    Args:
        where: Dataset as the user wrote it.
        path: An existing file.
        pixels: Whether arrays of more than 1 MiB are read; else they are only described.

    Raises:
        ConfigError: If the file is damaged, holds more than arrays, or is no mapping.
    """
    with readable(f"{where}: {path.name}", OSError), path.open("rb") as file:
        try:
            tree = _Reader(file if pixels else _Skipping(file), encoding="latin1").load()
        except _FAULTS as error:
            detail = " ".join(str(error).split())[:120] or type(error).__name__
            raise bad(where, f"{path.name} is not a readable batch: {detail}", _HOW) from error
    if not isinstance(tree, dict):
        raise bad(where, f"{path.name} holds {type(tree).__name__}, not data and labels", _HOW)
    return {str(key): value for key, value in tree.items()}
