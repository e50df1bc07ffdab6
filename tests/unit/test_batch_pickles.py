"""Pickled batches made to harm: nothing is run, nothing grows, nothing hangs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.datasets.batch_pickle import PickledArray, read_batch
from kdbench.datasets.imagenet32_files import Batch
from kdbench.errors import ConfigError

IMAGES = np.zeros((2, 3072), np.uint8)


class Calls:
    """What unpickling it would call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.said = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.said


def doubled(inner: Any = ()) -> Any:
    """Return a tuple of 2**60 leaves that takes a few hundred bytes."""
    for _ in range(60):
        inner = (inner, inner)
    return inner


# Python cannot make these: to build a key or a member of a set, it would hash the tuple first.
DOUBLING = b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))


HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "code": (lambda: pickle.dumps({"data": Calls(os.system, "touch owned")}, 2), "it names posix.system"),
    "zeros": (
        # numpy.core.numeric._frombuffer(10**12, dtype('u1'), (1,), 'C')
        lambda: b"\x80\x02}X\x04\x00\x00\x00datacnumpy.core.numeric\n_frombuffer\n(\x8a\x06\x00\x10\xa5\xd4\xe8\x00"
        b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85RK\x01\x85X\x01\x00\x00\x00CtRs.",
        "an array whose bytes are a int",
    ),
    "objects": (lambda: pickle.dumps({"data": np.array([None])}, 2), "an array of O8, not of numbers"),
    "set": (lambda: pickle.dumps({"data": {1}}, 4), "it makes something that no batch holds"),
    "number as key": (lambda: pickle.dumps({1: 2}, 2), "it has keys that are no text"),
    "endless key": (lambda: b"\x80\x02}" + DOUBLING + b"K\x01s.", "it has keys that are no text"),
    "endless keys": (lambda: b"\x80\x02}(" + DOUBLING + b"K\x01u.", "it has keys that are no text"),
    "endless mapping": (lambda: b"\x80\x02(" + DOUBLING + b"K\x01d.", "it has keys that are no text"),
    "endless member": (lambda: b"\x80\x04(" + DOUBLING + b"\x91.", "it makes something that no batch holds"),
    "cut number": (lambda: b"\x80\x02X\x04\x00", "is not a readable batch"),
    "deep": (lambda: b"]" * 5000 + b"a" * 4999 + b".", "holds list, not data and labels"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    make, message = HARMFUL[kind]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "val_data"
    path.write_bytes(make())
    for pixels in (False, True):
        with pytest.raises(ConfigError, match="val_data") as caught:
            read_batch("imagenet32:x", path, pixels=pixels)
        assert message in str(caught.value)
    assert not Path("owned").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("labels", [doubled(), [doubled()], [[1], [2]], {"a": 1}, "ab", [1.5, 2.5], [None, None]])
def test_labels_that_are_no_list_of_numbers(tmp_path: Path, labels: Any) -> None:
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps({"data": IMAGES, "labels": labels}, 2))
    with pytest.raises(ConfigError, match="has 2 images and labels that are not 2 integers"):
        Batch("imagenet32:x", path).size()


@pytest.mark.parametrize("protocol", range(6))
def test_good_batches(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps({"data": IMAGES + 7, "labels": [1, 1000], b"name": "x"}, protocol))
    found = read_batch("x", path, pixels=True)
    assert isinstance(found["data"], PickledArray)
    assert (found["data"].values() == 7).all()
    images, classes = Batch("imagenet32:x", path).read()
    assert images.shape == (2, 3, 32, 32)
    assert classes.tolist() == [0, 999]
