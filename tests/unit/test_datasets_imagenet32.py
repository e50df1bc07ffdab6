"""ImageNet-32: every form its batches come in gives the same mapped images; nothing in a pickle is run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.config.schema import Data, Evaluation
from kdbench.datasets.base import Split
from kdbench.datasets.batch_pickle import read_batch
from kdbench.datasets.imagenet32 import ImageNet32, open_imagenet32
from kdbench.datasets.imagenet32_files import Batch
from kdbench.errors import ConfigError, StoreError
from kdbench.opening import dataset_ref, open_source
from kdbench.registry import Registry
from kdbench.training.data import load_data
from kdbench.training.inputs import BatchStream

EACH, TESTED = 4, 6
Write = Callable[[Path, str, Any, Any], None]


def content(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.Generator(np.random.PCG64(seed))
    labels = draws.integers(1, 1001, count)
    labels[:2] = 1, 1000
    return draws.integers(0, 256, (count, 3072), dtype=np.uint8), labels


BATCHES = {f"train_data_batch_{n}": content(n, EACH + (n == 10)) for n in range(1, 11)} | {
    "val_data": content(0, TESTED)
}
TRAIN = np.concatenate([BATCHES[f"train_data_batch_{n}"][0] for n in range(1, 11)]).reshape(-1, 3, 32, 32)
LABELS = np.concatenate([BATCHES[f"train_data_batch_{n}"][1] for n in range(1, 11)]) - 1


def npz(folder: Path, name: str, data: Any, labels: Any) -> None:
    np.savez(folder / f"{name}.npz", data=data, labels=labels)


def packed(folder: Path, name: str, data: Any, labels: Any) -> None:
    np.savez_compressed(folder / f"{name}.npz", data=data, labels=labels[:, None])


def in_folders(folder: Path, name: str, data: Any, labels: Any) -> None:
    place = folder / ("imagenet32_val_npz" if name == "val_data" else "imagenet32_train_npz")
    place.mkdir(exist_ok=True)
    npz(place, name, data, labels)


def pickled(protocol: int, *, listed: bool = True) -> Write:
    def write(folder: Path, name: str, data: Any, labels: Any) -> None:
        tree = {"data": data, "labels": labels.tolist() if listed else labels, "mean": data.sum(0) / EACH}
        (folder / name).write_bytes(pickle.dumps(tree, protocol))

    return write


def python2(folder: Path, name: str, data: Any, labels: Any) -> None:
    """As cPickle of Python 2 wrote it: keys and pixels are byte strings, which Python 3 calls BINSTRING."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    shape = b"(" + number(len(data)) + number(3072) + b"t"
    array += b"(" + number(1) + shape + dtype + number(0) + text(data.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels.tolist())) + b"e"
    program = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."
    (folder / name).write_bytes(program)


FORMS: dict[str, Write] = {
    "npz": npz,
    "compressed": packed,
    "npz in folders": in_folders,
    "pickle 2": pickled(2),
    "pickle 4": pickled(4),
    "pickle 5 with arrays": pickled(5, listed=False),
    "python 2": python2,
}


def written(folder: Path, write: Write = npz) -> Path:
    folder.mkdir()
    for name, (data, labels) in BATCHES.items():
        write(folder, name, data, labels)
    return folder


@pytest.fixture(params=FORMS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ImageNet32:
    return open_imagenet32(str(written(tmp_path / "data", FORMS[request.param])), tmp_path / "root")


def test_description_and_images(source: ImageNet32, tmp_path: Path) -> None:
    info = source.info
    assert not (tmp_path / "root").exists(), "describing joins nothing"
    assert (info.train_size, info.test_size, str(info.image)) == (10 * EACH + 1, TESTED, "3x32x32")
    assert (info.classes[0], info.classes[999], len(info.classes), info.mirror) == ("0", "999", 1000, True)
    assert info.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.slug == f"imagenet32-{info.fingerprint[:8]}"
    train, test = source.train(), source.test()
    assert np.array_equal(train.images.numpy(), TRAIN)
    assert train.labels.tolist() == LABELS.tolist()
    assert np.array_equal(test.images.numpy().reshape(-1, 3072), BATCHES["val_data"][0])
    assert test.labels.tolist() == (BATCHES["val_data"][1] - 1).tolist()
    assert train.labels.dtype == torch.int64
    assert (int(train.labels.min()), int(train.labels.max())) == (0, 999)


@pytest.mark.parametrize("form", [name for name in FORMS if name.startswith("p")])
def test_pixels_are_not_read_to_describe_a_batch(form: str, tmp_path: Path) -> None:
    data, labels = content(1, 400)  # 1.2 MB, more than any list of labels in a real batch
    FORMS[form](tmp_path, "batch", data, labels)
    described, whole = (read_batch("x", tmp_path / "batch", pixels=pixels) for pixels in (False, True))
    assert (described["data"].shape, described["data"].code, described["data"].content) == ((400, 3072), "u1", b"")
    assert np.array_equal(whole["data"].values(), data)
    assert Batch("x", tmp_path / "batch").size() == 400


def file_of(store: torch.Tensor) -> str:
    """Return the file that the memory of a tensor is mapped from, or nothing."""
    address = store.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_training_stays_on_the_mapped_file(tmp_path: Path, registry: Registry) -> None:
    name, cpu = f"imagenet32:{written(tmp_path / 'data')}", torch.device("cpu")
    source = open_source(name, registry, tmp_path / "root")
    data = load_data(source, dataset_ref(source.info, None), Data(batch_size=8), Evaluation(), cpu)
    stream = BatchStream(data.train, Data(batch_size=8), 0, cpu, mirror=True)
    folder = tmp_path / "root" / f"imagenet32-{source.info.fingerprint}"
    store, _ = stream._pixels.of(0, torch.arange(8))
    assert file_of(store) == str(folder / "train" / "images.npy")
    assert file_of(data.test.split.store) == str(folder / "val" / "images.npy")
    assert data.mean == (0.485, 0.456, 0.406)
    before = (folder / "train" / "images.npy").read_bytes()
    store.zero_()  # a private copy of the pages: the file belongs to all processes
    assert (folder / "train" / "images.npy").read_bytes() == before


def test_batches_are_joined_once_and_again_if_the_result_is_not_whole(tmp_path: Path) -> None:
    path, root = written(tmp_path / "data"), tmp_path / "root"
    first = open_imagenet32(str(path), root)
    first.train()
    (images,) = root.rglob("train/images.npy")
    stamp = images.stat().st_mtime_ns
    open_imagenet32(str(path), root).train()
    assert images.stat().st_mtime_ns == stamp
    images.write_bytes(images.read_bytes()[:-1])
    (images.parent / ".tmp-1-images.npy").write_bytes(b"left by a killed process")
    assert np.array_equal(open_imagenet32(str(path), root).train().images.numpy(), TRAIN)
    assert sorted(file.name for file in images.parent.iterdir() if file.suffix != ".lock") == [
        "images.npy",
        "labels.npy",
    ]


def test_other_images_have_another_fingerprint(tmp_path: Path) -> None:
    path = written(tmp_path / "data")
    before = open_imagenet32(str(path), tmp_path).info
    data, labels = (part.copy() for part in BATCHES["train_data_batch_5"])
    data[2, 100] ^= 1
    npz(path, "train_data_batch_5", data, labels)
    after = open_imagenet32(str(path), tmp_path).info
    assert after.fingerprint != before.fingerprint
    assert after.slug != before.slug


def test_an_interrupted_joining_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, root = written(tmp_path / "data"), tmp_path / "root"
    full = OSError(28, "No space left on device")

    def fails(*_arguments: object) -> Any:
        raise full

    monkeypatch.setattr("numpy.ascontiguousarray", fails)
    with pytest.raises(StoreError, match="No space left on device"):
        open_imagenet32(str(path), root).train()
    assert not [file for file in root.rglob("*") if file.is_file() and file.suffix != ".lock"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/kdbench-must-not-exist"),)


def setting_attributes() -> bytes:
    """A program that gives a known function an attribute."""
    return b"\x80\x02c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b."


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (pickle.dumps({"data": Evil(), "labels": []}), "it names pathlib"),
        (pickle.dumps({"data": print, "labels": []}), "it names builtins.print, and kdbench runs no code from files"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "it names os.system"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "coding 'zlib'"),
        (setting_attributes(), "sets the state of something that is no array"),
        (pickle.dumps([1, 2]), "holds list, not data and labels"),
        (pickle.dumps({"data": [1], "labels": [1]}), "data is a list, not an array"),
        (pickle.dumps({"labels": [1]}), "'data' is missing; it has: labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), ">i2"), "labels": [1, 2]}), "byte order '>'"),
        (pickle.dumps({"data": np.zeros((2, 3072), "<i2"), "labels": [1, 2]}), "data is int16 [2, 3072]"),
        (pickle.dumps({"data": np.zeros((2, 3072), "u1"), "labels": [1, 2]})[:-900], "is not a readable batch"),
        (b"", "is not a readable batch"),
        (b"not a pickle", "is not a readable batch"),
    ],
)
def test_a_pickle_runs_nothing(program: bytes, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "data", pickled(2))
    (path / "train_data_batch_3").write_bytes(program)
    with pytest.raises(ConfigError) as caught:
        _ = open_imagenet32(str(path), tmp_path / "root").info
    assert said in str(caught.value)
    assert "train_data_batch_3" in str(caught.value)
    assert not Path("/tmp/kdbench-must-not-exist").exists()


@pytest.mark.parametrize("write", [npz, pickled(4)])
@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (np.zeros((2, 3071), np.uint8), np.array([1, 2]), "data is uint8 [2, 3071]"),
        (np.zeros((2, 3072), np.float32), np.array([1, 2]), "data is float32 [2, 3072]"),
        (np.zeros((2, 3072), np.uint8), np.array([1, 2, 3]), "has 2 images and labels that are not 2 integers"),
        (np.zeros((2, 3072), np.uint8), np.array([0.5, 1.0]), "has 2 images and labels that are not 2 integers"),
        (np.zeros((0, 3072), np.uint8), np.array([], np.int64), "data is uint8 [0, 3072]"),
    ],
)
def test_wrong_arrays(write: Write, data: Any, labels: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "data", write)
    write(path, "train_data_batch_7", data, labels)
    with pytest.raises(ConfigError) as caught:
        _ = open_imagenet32(str(path), tmp_path).info
    assert str(caught.value).startswith(f"imagenet32:{path}: train_data_batch_7")
    assert said in str(caught.value)
    assert "Allowed: data uint8 [N,3072] and labels [N] in 1..1000." in str(caught.value)


@pytest.mark.parametrize("write", [npz, pickled(2)])
@pytest.mark.parametrize("label", [0, 1001, -5])
def test_wrong_labels(write: Write, label: int, tmp_path: Path) -> None:
    path = written(tmp_path / "data", write)
    write(path, "val_data", np.zeros((3, 3072), np.uint8), np.array([1, label, 2]))
    with pytest.raises(ConfigError, match=rf"labels\[1\] is {label}. Allowed"):
        open_imagenet32(str(path), tmp_path / "root").test()


def test_missing_files(tmp_path: Path) -> None:
    path = written(tmp_path / "data")
    (path / "train_data_batch_3.npz").unlink()
    (path / "train_data_batch_8.npz").unlink()
    with pytest.raises(ConfigError) as caught:
        _ = open_imagenet32(str(path), tmp_path).info
    assert str(caught.value) == (
        f"imagenet32:{path}: 2 of 10 batches are missing: train_data_batch_3.npz, train_data_batch_8.npz. "
        "All 10 belong to the train images: copy or download what is missing."
    )
    empty = tmp_path / "empty"
    (empty / "else").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no train batches; it has: else. Needed: train_data_batch_1 to train_data"):
        _ = open_imagenet32(str(empty), tmp_path).info
    (written(tmp_path / "other") / "val_data.npz").unlink()
    with pytest.raises(ConfigError, match=r"no val batches; .* Needed: val_data, as the original"):
        _ = open_imagenet32(str(tmp_path / "other"), tmp_path).info
    with pytest.raises(ConfigError, match="no such folder"):
        open_imagenet32(str(tmp_path / "gone"), tmp_path)


def test_a_damaged_npz(tmp_path: Path) -> None:
    path = written(tmp_path / "data")
    file = path / "train_data_batch_2.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"train_data_batch_2\.npz: is a truncated \.npz"):
        _ = open_imagenet32(str(path), tmp_path).info


def test_a_selection_of_mapped_images(tmp_path: Path) -> None:
    train = open_imagenet32(str(written(tmp_path / "data")), tmp_path / "root").train()
    part: Split = train.select(torch.tensor([40, 3]))
    assert np.array_equal(part.images.numpy(), TRAIN[[40, 3]])
    assert part.store.data_ptr() == train.store.data_ptr()
