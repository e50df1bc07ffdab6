"""Files made to harm, or damaged: nothing in them is run, nothing is believed, and one message says why."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import failure

from kdbench.errors import ConfigError
from kdbench.registry import load
from kdbench.training.foreign import read_checkpoint
from kdbench.types import StageShape

STATE = load().backbones["resnet8_w4"].build(10, StageShape((1, 32, 32))).state_dict()


class Touch:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def saved(tree: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def compressed(data: bytes, extra: int) -> bytes:
    """Pack a checkpoint again, compressed and with ``extra`` zero bytes in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
        new.writestr("archive/data/999", bytes(extra))
    return out.getvalue()


def flipped(data: bytes) -> bytes:
    """Flip one bit of the first weights, which torch itself would not notice."""
    place = data.index(STATE["conv1.weight"].numpy().tobytes()[:64]) + 3
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def cyclic() -> dict[str, object]:
    tree: dict[str, object] = {}
    tree["model"] = tree
    return tree


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "code": (lambda: saved({"state_dict": STATE, "x": Touch()}), "holds more than tensors (posix.system), and kdbench"),
    "code, old format": (lambda: saved([Touch()], legacy=True), "holds more than tensors (posix.system), and kdbench"),
    "bare pickle": (lambda: pickle.dumps(Touch(), 2), "n.pt: "),
    "whole model": (lambda: saved(torch.nn.Linear(2, 2)), "holds more than tensors (torch.nn.modules.linear.Linear)"),
    "bomb": (lambda: compressed(saved(STATE), 2**26), "a checkpoint with compressed entries is not one torch wrote"),
    "flipped bit": (lambda: flipped(saved(STATE)), "damaged: checksum of archive/data/0 is wrong; get the file again"),
    "claims": (
        lambda: saved({"w": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}),
        "w: claims (1000000, 1000000), more than the file holds; refused",
    ),
    "meta": (lambda: saved({"w": torch.empty(9, device="meta")}), "w: not a plain dense tensor"),
    "sparse": (lambda: saved({"w": torch.eye(3).to_sparse()}), "n.pt: "),
    "holds itself": (lambda: saved(cyclic()), "no state dict in it (found: model); known wrappers: state_dict, "),
    "list": (lambda: saved([1, 2]), "no state dict in it (found: list)"),
    "empty dict": (lambda: saved({}), "no state dict in it (found: )"),
    "truncated": (lambda: saved(STATE)[:5000], "not a readable checkpoint (damaged or foreign): "),
    "truncated, old": (lambda: saved(STATE, legacy=True)[:-9], "not a readable checkpoint (damaged or foreign): "),
    "empty": (lambda: b"", "not a readable checkpoint (damaged or foreign): EOFError"),
    "text": (lambda: b"hello world\n" * 10, "not a readable checkpoint (damaged or foreign): "),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(250)), "not a readable checkpoint (damaged or foreign): "),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file(kind: str) -> None:
    make, message = HOSTILE[kind]
    Path("n.pt").write_bytes(make())
    found = failure("teacher", "import", "n.pt", "--dataset", "digits", "--threads", 1)
    assert found.startswith("n.pt: ")
    assert message in found
    assert "\n" not in found
    assert not Path("owned").exists()
    assert not Path("teachers").exists()


@pytest.mark.parametrize("data", [b"", b"{}" * 50, saved(STATE)], ids=["empty", "text", "zip"])
def test_a_false_safetensors_file(data: bytes) -> None:
    Path("n.safetensors").write_bytes(data)
    found = failure("teacher", "import", "n.safetensors", "--dataset", "digits", "--threads", 1)
    assert found.startswith("n.safetensors: not a readable checkpoint (damaged or foreign): ")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
def test_any_damage_is_one_kind_of_error(legacy: bool) -> None:
    data, rng = saved(STATE, legacy=legacy), random.Random(0)
    path = Path("n.pt")
    refused = 0
    for _ in range(150):
        place = rng.randrange(len(data))
        flip = data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        for damaged in (data[:place], flip):
            path.write_bytes(damaged)
            try:
                read_checkpoint(path)
            except ConfigError:
                refused += 1
    assert refused > 150  # every truncation, and flips besides
