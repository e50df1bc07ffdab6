"""Reading the Python pickles that image batches are published as, without running anything they hold.

A pickle is a program that may call whatever it names. Here it may name three kinds of things only, and each is a
stand-in that keeps what it is told: an array, its dtype, and the text coding of an array's bytes. Whatever else it
names is refused before it is looked up.
"""

from __future__ import annotations

import codecs
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdbench.datasets.checks import bad, readable

_MARGIN = 1 << 20  # labels and names are shorter, pixels longer
_FAULTS = (
    pickle.PickleError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error,
    MemoryError, RecursionError, NotImplementedError, AssertionError,
)  # fmt: skip
_CODE = re.compile(r"[biuf][1248]")
_HOW = "Get the original batch file again, or use the npz variant (train_data_batch_1.npz and so on)."


class _Type:
    """Stands for the class that a pickled array names."""


class _Dtype:
    """Stands for a dtype; only little-endian or single-byte numbers are understood."""

    def __init__(self, code: object, *_flags: object) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            what = code[:20] if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"an array of {what}, not of numbers")
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
        if not isinstance(content, str | bytes | bytearray):  # of a number, bytes() would make as many zeros
            raise pickle.UnpicklingError(f"an array whose bytes are a {type(content).__name__}")
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


# Sets hash what they hold, as keys do; the others make objects or ask the program for them.
_REFUSED = (
    pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX,
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
)  # fmt: skip


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

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        self._check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_dict()  # type: ignore[misc]

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it makes something that no batch holds")

    @staticmethod
    def _check_keys(keys: list[Any]) -> None:
        # The hash of a tuple that holds a tuple twice, which holds another one twice, and so on takes for ever.
        if not all(isinstance(key, str | bytes) for key in keys):
            raise pickle.UnpicklingError("it has keys that are no text")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        **dict.fromkeys((code[0] for code in _REFUSED), refuse),
    }


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
