"""``npz:PATH``: layouts, identity, and one message for every way to get the file wrong."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.datasets import npz_archive
from kdbench.datasets.npz import Npz, open_npz
from kdbench.errors import ConfigError

RNG = np.random.Generator(np.random.PCG64(0))
TRAIN = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
TEST = RNG.integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)


def arrays(**changes: Any) -> dict[str, Any]:
    """Return the arrays of a good file with changes; None removes one."""
    good = {
        "train_images": TRAIN,
        "train_labels": np.array([0, 1, 1, 0]),
        "test_images": TEST,
        "test_labels": np.array([1, 0]),
        "classes": np.array(["cat", "dog"]),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def save(path: Path, **changes: Any) -> Path:
    np.savez_compressed(path, **arrays(**changes))
    return path


def opened(path: Path) -> Npz:
    return open_npz(str(path), Path("unused"))


def test_reads_images_and_labels(tmp_path: Path) -> None:
    source = opened(save(tmp_path / "pets.npz"))
    assert source.train().images.numpy().tolist() == TRAIN.transpose(0, 3, 1, 2).tolist()
    assert source.train().labels.tolist() == [0, 1, 1, 0]
    assert source.test().images.numpy().tolist() == TEST.transpose(0, 3, 1, 2).tolist()
    assert source.test().labels.tolist() == [1, 0]
    assert source.info.classes == ("cat", "dog")
    assert source.info.image.dims == (3, 5, 6)


def test_name_slug_and_fingerprint(tmp_path: Path) -> None:
    path = save(tmp_path / "my pets (v2).npz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    info = opened(path).info
    assert info.name == f"npz:{path}"
    assert info.fingerprint == digest[:16]
    assert info.slug == f"npz-my-pets-v2-{digest[:8]}"


def test_channels_first_and_grey_are_read_alike(tmp_path: Path) -> None:
    last = opened(save(tmp_path / "a.npz")).train().images
    changes = {"train_images": TRAIN.transpose(0, 3, 1, 2), "test_images": TEST.transpose(0, 3, 1, 2)}
    assert opened(save(tmp_path / "b.npz", **changes)).train().images.equal(last)
    grey = opened(save(tmp_path / "c.npz", train_images=TRAIN[..., 0], test_images=TEST[..., 0]))
    assert grey.info.image.dims == (1, 5, 6)
    assert grey.train().images.equal(last[:, :1])


def test_info_does_not_read_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz")
    read: list[str] = []

    def reading(where: str, path: Path, name: str) -> Any:
        read.append(name)
        return npz_archive.read_array(where, path, name)

    monkeypatch.setattr("kdbench.datasets.npz.read_array", reading)
    assert opened(path).info.train_size == 4
    assert sorted(read) == ["classes", "test_labels", "train_labels"]


def test_classes_default_to_numbers(tmp_path: Path) -> None:
    assert opened(save(tmp_path / "a.npz", classes=None)).info.classes == ("0", "1")


LAYOUTS = r"Allowed: \[N,H,W,C\], \[N,C,H,W\] or, for one channel, \[N,H,W\]\."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_labels": None},
            r"the array 'train_labels' is missing\. It has: train_images, test_images, test_labels, classes\. "
            r"Did you mean 'train_images'\? Needed: train_images, train_labels, test_images, test_labels\.",
        ),
        ({"train_images": TRAIN / 255}, r"train_images has dtype float64\. Allowed: uint8 in 0\.\.255\. For values in"),
        ({"test_images": TEST.astype(object)}, r"test_images has dtype object\. Allowed: uint8"),
        ({"train_images": TRAIN[0, 0]}, rf"train_images has 2 axes: \[6, 3\]\. {LAYOUTS}"),
        (
            {"train_images": TRAIN[:, :, :, :2]},
            rf"train_images has neither 1 nor 3 channels: \[4, 5, 6, 2\]\. {LAYOUTS}",
        ),
        ({"test_images": TEST[:0]}, r"test_images is empty: \[0, 5, 6, 3\]"),
        ({"train_labels": np.zeros(4)}, r"train_labels has dtype float64\. Allowed: integers, e\.g\. int64"),
        ({"train_labels": np.zeros(4, bool)}, "train_labels has dtype bool"),
        ({"test_labels": np.zeros((2, 1), int)}, r"test_labels has 2 axes: \[2, 1\]\. Allowed: \[N\]"),
        ({"test_labels": np.arange(3)}, r"test_labels has 3 labels, but test_images has 2 images\. Give one label per"),
        ({"train_labels": np.array([0, 1, 2, 0])}, r"train_labels\[2\] is 2\. Allowed: 0\.\.1, as there are 2 classes"),
        ({"test_labels": np.array([0, -1])}, r"test_labels\[1\] is -1\. Allowed: 0\.\.1"),
        ({"train_labels": np.array([0, 0, 0, 0])}, r"no training images of class 'dog'\. Every class needs images"),
        ({"test_labels": np.array([1, 1])}, "no test images of class 'cat'"),
        ({"train_labels": np.array([0, 1, 3, 0]), "classes": None}, "no training images of class '2'"),
        (
            {"train_labels": np.array([0, 1, 10**12, 0]), "classes": None},
            r"train_labels\[2\] is 1000000000000\. Allowed",
        ),
        ({"classes": np.array([3, 4])}, r"classes has dtype int64 and shape \[2\]\. Allowed: \[C\] of strings"),
        ({"classes": np.array([["a", "b"]])}, r"classes has dtype <U1 and shape \[1, 2\]"),
        ({"classes": np.array(["cat", "cat"])}, r"the class name 'cat' is empty or used twice\. Give every class"),
        ({"classes": np.array(["cat", ""])}, "the class name '' is empty or used twice"),
        ({"classes": np.array(["cat"])}, r"has 1 classes: cat\. At least 2 are needed"),
        (
            {"test_images": TEST[:, :, :5]},
            r"training images are 3x5x6 \(CxHxW\), test images are 3x5x5\. Both need the same channels, height and",
        ),
    ],
)
def test_wrong_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "a.npz", **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        _ = opened(path).info
    assert str(caught.value).startswith(f"npz:{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save(tmp_path / "pets.npz")
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path / "pet.npz")
    assert str(caught.value) == (
        f"npz:{tmp_path}/pet.npz: no such file: '{tmp_path}' has no 'pet.npz'. "
        "Did you mean 'pets.npz'? Give the path of an existing file."
    )


def test_missing_folder_above_is_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    with pytest.raises(ConfigError, match=r"has no 'dataset'\. Did you mean 'datasets'\?"):
        opened(tmp_path / "dataset" / "x" / "pets.npz")


@pytest.mark.parametrize("argument", ["", "\0", "x" * 5000, "~no-such-user/a.npz"])
def test_impossible_paths(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"^npz:"):
        open_npz(argument, Path())


def test_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, not a file\. For class folders of images: --dataset folder:"):
        opened(tmp_path)


def test_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TRAIN)
    with pytest.raises(ConfigError, match=r"is a single \.npy array, not an \.npz archive\. Write the file with numpy"):
        _ = opened(tmp_path / "a.npy").info


def test_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("hello")
    with pytest.raises(ConfigError, match=r"a\.npz: is not an \.npz archive\. Write the file with numpy\.savez"):
        _ = opened(tmp_path / "a.npz").info


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = save(tmp_path / "a.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ConfigError, match=r"is a truncated \.npz: its end is missing\. Copy or download it again\."):
        _ = opened(path).info


def test_every_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    content = path.read_bytes()
    good = opened(path)
    expected = [good.train().images, good.test().images, good.train().labels, good.test().labels]
    refused = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        source = opened(path)
        try:
            _ = source.info
            found = [source.train().images, source.test().images, source.train().labels, source.test().labels]
        except ConfigError:
            refused += 1
        else:
            assert all(map(np.array_equal, found, expected))
    assert refused > 100


def test_declared_size_must_match_the_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", train_images=None)
    with zipfile.ZipFile(path, "a") as archive, archive.open("train_images.npy", "w") as member:
        np.lib.format.write_array(member, TRAIN)
        member.write(bytes(100))
    with pytest.raises(ConfigError, match=r"train_images declares 588 bytes, but its shape \[4, 5, 6, 3\] needs 488"):
        _ = opened(path).info


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_archive, "MAX_UNPACKED", 100_000)
    path = save(tmp_path / "a.npz", train_images=np.zeros((4, 256, 256, 3), np.uint8))
    with pytest.raises(
        ConfigError, match=r"declares 787,\d{3} bytes of arrays in a file of [\d,]+ bytes\. Allowed: up"
    ):
        _ = opened(path).info


def test_encrypted_member(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag 'encrypted' of the first entry in the directory
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be read: .*encrypted"):
        _ = opened(path).info


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", train_labels=np.array([0, 1, 1, 0], dtype=object))
    with pytest.raises(ConfigError, match="train_labels has dtype object"):
        _ = opened(path).info
