"""Files of the teacher cache: what was kept comes back to the bit, and nothing else is ever taken for an entry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.files import TEMPORARY
from kdbench.spec import DatasetRef
from kdbench.training.teacher_cache import CachePlace
from kdbench.training.teacher_cache.entries import HEADER, Entries, row_type, size_of
from kdbench.training.teacher_cache.key import Arithmetic, CacheKey, Teaching
from kdbench.training.teacher_cache.opening import opened, replaced
from kdbench.training.teacher_cache.place import SUFFIX

IMAGES, CROPS, WIDTH = 40, 9, 5
ALL = np.arange(IMAGES * CROPS)


def key_of(
    kind: str = "float32", width: int = WIDTH, arithmetic: dict[str, Any] | None = None, **teaching: Any
) -> CacheKey:
    """Return a key, changed where a test says so."""
    said = {
        "teacher": "a" * 64, "name": "big", "backbone": "resnet14_w8", "mean": (0.5,), "std": (0.25,),
        "dataset": DatasetRef(name="digits", slug="digits", fingerprint="f" * 16), "validation_fraction": 0.0,
        "images": IMAGES, "crops": CROPS, "crop_padding": 1, "padding_mode": "zeros",
    }  # fmt: skip
    done = {
        "precision": "fp32", "batch": 8, "channels_last": True, "device": "cpu", "machine": "here", "threads": 1,
        "cudnn": True, "torch": "2", "kdbench": "0",
    }  # fmt: skip
    return CacheKey.model_validate(
        {
            "teaching": Teaching(**{**said, **teaching}),
            "arithmetic": Arithmetic(**{**done, **(arithmetic or {})}),
            "part": "logits",
            "width": width,
            "kind": kind,
        }
    )


def values_of(numbers: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Return values that tell which entry they are of, as sixteen bits can hold them."""
    return (numbers[:, None] + np.arange(width) / 8).astype(np.float16).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path) -> CachePlace:
    return CachePlace(tmp_path / "cache", 2**20)


@pytest.fixture
def file(place: CachePlace) -> Iterator[Entries]:
    made = opened(place, key_of())
    assert made is not None
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_what_is_kept_comes_back_to_the_bit(place: CachePlace, kind: str) -> None:
    file, key = opened(place, key_of(kind)), key_of(kind)
    assert file is not None
    numbers = np.array([7, 3, 4, 5, 359, 0])
    file.write(numbers, values_of(numbers))
    again = opened(place, key)
    assert again is not None
    found, there = again.read(ALL)
    assert np.flatnonzero(there).tolist() == sorted(numbers.tolist())
    assert found[there].tobytes() == values_of(np.sort(numbers)).tobytes()
    assert file.path.stat().st_size == size_of(key) == HEADER + len(ALL) * (WIDTH * (2 if kind == "float16" else 4) + 4)


def test_bits_that_are_no_usual_numbers_are_kept_too(file: Entries) -> None:
    odd = np.array([[np.nan, np.inf, -np.inf, -0.0, np.float32(1e-45)]], np.float32)
    file.write(np.array([2]), odd)
    assert file.read(np.array([2]))[0].tobytes() == odd.tobytes()


def test_every_flipped_bit_makes_an_entry_absent(file: Entries) -> None:
    file.write(ALL, values_of(ALL))
    length = row_type(file.key).itemsize
    for bit in range(8 * length):
        number = bit % len(ALL)
        at = HEADER + number * length + bit // 8
        flip(file.path, at, bit % 8)
        _, there = file.read(ALL)
        assert np.flatnonzero(~there).tolist() == [number], bit
        flip(file.path, at, bit % 8)
    assert file.damaged == 8 * length
    assert file.read(ALL)[1].all()


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(at)
        (byte,) = handle.read(1)
        handle.seek(at)
        handle.write(bytes([byte ^ 1 << bit]))


def test_an_entry_written_in_part_is_absent_and_is_written_again(file: Entries) -> None:
    file.write(ALL, values_of(ALL))
    length = row_type(file.key).itemsize
    whole = file.path.read_bytes()
    for kept in range(length):  # a writer that was killed after so many bytes of a place that was empty
        with file.path.open("r+b") as handle:
            handle.seek(HEADER + 5 * length + kept)
            handle.write(bytes(length - kept))
        assert not file.read(np.array([5]))[1].any(), kept
        file.write(np.array([5]), values_of(np.array([5])))
    assert file.path.read_bytes() == whole


def test_an_entry_of_another_place_or_another_file_is_absent(place: CachePlace, file: Entries) -> None:
    other = opened(place, key_of(teacher="b" * 64))
    assert other is not None
    file.write(ALL, values_of(ALL))
    length, data = row_type(file.key).itemsize, file.path.read_bytes()[HEADER:]
    other.path.write_bytes(other.path.read_bytes()[:HEADER] + data)
    assert not other.read(ALL)[1].any(), "what another teacher said"
    file.path.write_bytes(file.path.read_bytes()[:HEADER] + data[length:] + data[:length])
    assert not file.read(ALL)[1].any(), "moved by one"


CHANGES: list[dict[str, Any]] = [
    {"teacher": "b" * 64}, {"backbone": "resnet8_w4"}, {"mean": (0.4,)}, {"std": (0.2,)}, {"crops": 18, "images": 20},
    {"dataset": DatasetRef(name="digits", slug="digits", fingerprint="e" * 16)}, {"validation_fraction": 0.1},
    {"dataset": DatasetRef(name="digits", slug="digits", fingerprint="f" * 16, per_class=4)}, {"crop_padding": 2},
    {"padding_mode": "reflect"}, {"width": 6}, {"kind": "float16"}, {"arithmetic": {"precision": "bf16"}},
    {"arithmetic": {"batch": 9}}, {"arithmetic": {"channels_last": False}}, {"arithmetic": {"device": "cuda"}},
    {"arithmetic": {"machine": "there"}}, {"arithmetic": {"threads": 2}}, {"arithmetic": {"cudnn": False}},
    {"arithmetic": {"torch": "3"}}, {"arithmetic": {"kdbench": "1"}},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_could_change_an_entry_is_another_file(change: dict[str, Any]) -> None:
    assert key_of(**change).sha256 != key_of().sha256


def test_names_of_dataset_and_teacher_do_not_count() -> None:
    renamed = DatasetRef(name="npz:/elsewhere/x.npz", slug="x", fingerprint="f" * 16)
    assert key_of(name="other", dataset=renamed).sha256 == key_of().sha256


@pytest.mark.parametrize("damage", ["header", "shorter", "longer"])
def test_a_file_that_is_not_what_its_name_says_is_set_aside(place: CachePlace, file: Entries, damage: str) -> None:
    file.write(ALL, values_of(ALL))
    data = file.path.read_bytes()
    changed = {"header": b"x" + data[1:], "shorter": data[:-1], "longer": data + b"0"}[damage]
    file.path.unlink()  # who has it open keeps the old one
    file.path.write_bytes(changed)
    made = opened(place, file.key)
    assert made is not None
    assert not made.read(ALL)[1].any()
    assert [path.read_bytes() for path in file.path.parent.glob("*.corrupt")] == [changed]


def test_two_that_find_a_file_wrong_set_it_aside_once(place: CachePlace, caplog: pytest.LogCaptureFixture) -> None:
    one, two = opened(place, key_of()), opened(place, key_of())
    assert one is not None
    assert two is not None
    first, second = replaced(place, one), replaced(place, two)
    assert first is not None
    assert second is not None
    assert first.path.stat().st_ino == second.path.stat().st_ino
    assert len(list(first.path.parent.glob("*.corrupt"))) == len(caplog.records) == 1


def test_no_file_is_made_beyond_the_limit(place: CachePlace, caplog: pytest.LogCaptureFixture) -> None:
    one, other = key_of(), key_of(teacher="b" * 64)
    small = CachePlace(place.folder, 2 * size_of(one) - 1)
    assert opened(small, one) is not None
    assert opened(small, other) is None
    (warning,) = caplog.messages
    assert "raise --cache-size, or remove files there; teacher 'big' runs live" in warning
    assert opened(small, one) is not None, "what is there is used"
    assert opened(CachePlace(place.folder, 2 * size_of(one)), other) is not None


def test_what_a_killed_process_left_half_made_is_swept_and_not_counted(place: CachePlace) -> None:
    one, other = key_of(), key_of(teacher="b" * 64)
    full = CachePlace(place.folder, 2 * size_of(one))
    made = opened(full, one)
    assert made is not None
    left = other.path(full.folder)
    left = left.with_name(f"{TEMPORARY}{os.getpid()}-{left.name}")  # the number may be another process's by now
    left.parent.mkdir(parents=True, exist_ok=True)
    left.touch()
    os.truncate(left, size_of(other))
    assert opened(full, other) is not None
    assert not left.exists()
    assert made.is_at_its_path()


def test_what_somebody_else_left_half_made_is_in_nobodys_way(
    place: CachePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    (place.folder / "a").mkdir(parents=True)
    (place.folder / "a" / f"{TEMPORARY}1-b{SUFFIX}").touch()
    monkeypatch.setattr("kdbench.training.teacher_cache.place.sweep_temporary", refuse)
    assert opened(place, key_of()) is not None


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    assert opened(CachePlace(tmp_path / "taken", 2**20), key_of()) is None
    assert "cannot be used" in caplog.messages[0]


WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from kdbench.training.teacher_cache import CachePlace
from kdbench.training.teacher_cache.entries import HEADER, size_of
from kdbench.training.teacher_cache.key import CacheKey
from kdbench.training.teacher_cache.opening import opened

key, order = CacheKey.model_validate_json(sys.argv[2]), int(sys.argv[3])
file = opened(CachePlace(Path(sys.argv[1]), 2**20), key)
print("ready", flush=True)
sys.stdin.readline()
while True:
    for numbers in np.array_split(np.arange(key.entries)[::order], 60):
        values = (numbers[:, None] + np.arange(key.width) / 8).astype(np.float16)
        file.write(numbers, values.astype(np.float32))
    if not sys.argv[4:]:
        break
    os.ftruncate(file._file, HEADER)  # and all over again
    os.ftruncate(file._file, size_of(key))
"""


def writer(place: CachePlace, order: int, *more: str) -> subprocess.Popen[str]:
    """Start a process that fills a file once it is told to."""
    words = [str(place.folder), key_of().model_dump_json(), str(order), *more]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", WRITER, *words], **pipes)  # type: ignore[call-overload,no-any-return]


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def is_ready(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "ready\n"


def test_two_processes_that_fill_one_file_fill_it(place: CachePlace) -> None:
    writers = [writer(place, order) for order in (1, -1)]
    assert all(map(is_ready, writers))
    for each in writers:
        go(each)
    assert [end(each) for each in writers] == [0, 0]
    file = opened(place, key_of())
    assert file is not None
    found, there = file.read(ALL)
    assert there.all()
    assert found.tobytes() == values_of(ALL).tobytes()


@pytest.mark.parametrize("wait", [0.0, 0.02, 0.05])
def test_a_writer_that_is_killed_leaves_whole_entries_or_none(place: CachePlace, wait: float) -> None:
    process = writer(place, 1, "for ever")
    assert is_ready(process)
    go(process)
    time.sleep(wait)
    process.kill()
    assert end(process) == -signal.SIGKILL
    path = key_of().path(place.folder)
    os.truncate(path, size_of(key_of()))  # it may have been killed between its two
    file = opened(place, key_of())
    assert file is not None
    found, there = file.read(ALL)
    assert found[there].tobytes() == values_of(ALL[there]).tobytes()
