"""Archives of arrays that are damaged or made to harm: one kind of error, and nothing is unpacked unless believed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.archives import read_arrays
from kdbench.errors import StoreError
from kdbench.evaluation import read_predicted

GOOD = np.arange(4, dtype=np.uint8)


def array(descr: str = "'|u1'", shape: str = "(4,)", body: bytes = b"\0\1\2\3", version: bytes = b"\1\0") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + body


def packed(member: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("a.npy", member)
    return out.getvalue()


def broken_stream() -> bytes:
    """Return an archive of which the first deflated bytes say something else; no checksum is reached."""
    data = packed(array(body=bytes(500), shape="(500,)"), zipfile.ZIP_DEFLATED)
    place = data.index(b"a.npy") + len("a.npy")
    return data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :]


HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"hello", "half-written or foreign: File is not a zip file"),
    "empty": (lambda: b"", "half-written or foreign: "),
    "one array": (array, "half-written or foreign: "),
    "cut": (lambda: packed(array())[:60], "half-written or foreign: "),
    "broken stream": (broken_stream, "half-written or foreign: Error -3 while decompressing"),
    "objects": (lambda: packed(array("'|O'", "(1,)", b"\0" * 8)), "its a is not what its header says"),
    "more than there is": (lambda: packed(array(shape="(9999999999,)")), "its a is not what its header says"),
    "product of shapes": (lambda: packed(array(shape="(2, 9223372036854775807)")), "its a is not what its header says"),
    "less than there is": (lambda: packed(array(shape="(2,)")), "its a is not what its header says"),
    "open bracket": (lambda: packed(array(shape="x(")), "half-written or foreign: "),
    "text as a shape": (lambda: packed(array(shape="'a'")), "half-written or foreign: "),
    "unknown dtype": (lambda: packed(array("'nothing'")), "half-written or foreign: "),
    "unknown version": (lambda: packed(array(version=b"\x09\0")), "half-written or foreign: "),
    "no header": (lambda: packed(b"PNG"), "half-written or foreign: "),
    "bomb": (lambda: packed(array(shape="(3000,)", body=bytes(3000)), 8), "it unpacks to 3128 bytes"),  # 8 = deflated
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_archive(tmp_path: Path, kind: str) -> None:
    make, message = HARMFUL[kind]
    path = tmp_path / "a.npz"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=r".") as caught:
        read_arrays(path, ("a",), largest=2000)
    assert str(caught.value).startswith(message)
    with pytest.raises(StoreError, match=r"a\.npz: not the predictions of a network"):
        read_predicted(path)


def test_good_archives(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", a=GOOD, b=np.int64(3))
        found = read_arrays(tmp_path / "a.npz", ("b", "a"))
        assert list(found) == ["b", "a"]
        assert found["b"] == 3
        assert (found["a"] == GOOD).all()
    with pytest.raises(ValueError, match="it has no 'c'"):
        read_arrays(tmp_path / "a.npz", ("c",))
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "b.npz", ("a",))


@pytest.mark.parametrize("predicted", [np.zeros((2, 2), int), np.zeros(3), np.int64(3)])
def test_predictions_that_are_no_classes(tmp_path: Path, predicted: np.ndarray) -> None:
    np.savez(tmp_path / "p.npz", predicted=predicted)
    with pytest.raises(StoreError, match=r"p\.npz: its predicted is .*, not one class for each image"):
        read_predicted(tmp_path / "p.npz")
