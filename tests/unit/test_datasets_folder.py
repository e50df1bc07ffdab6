"""``folder:PATH``: order, identity, and one message for every way to get the folder wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.datasets.folder import Folder, open_folder
from kdbench.errors import ConfigError


def paint(path: Path, value: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> None:
    """Save an image of (width, height) whose first pixel has the value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size)
    image.putpixel((0, 0), value if mode != "RGB" else (value, 2 * value, 3 * value))
    image.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "pets"
    for value, name in enumerate(["cat/b.png", "cat/a.PNG", "dog/z.bmp", "dog/y.webp"], start=1):
        paint(path / "train" / name, value)
    paint(path / "test" / "cat" / "c.png", 7)
    paint(path / "test" / "dog" / "d.ppm", 8)
    return path


def opened(path: Path) -> Folder:
    return open_folder(str(path), Path("unused"))


def test_classes_and_files_are_sorted_by_name(root: Path) -> None:
    source = opened(root)
    train = source.train()
    assert source.info.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.images[[0, 1, 3], 0, 0, 0].tolist() == [2, 1, 3]  # a.PNG, b.png, (y.webp is lossy), z.bmp
    assert train.images[0, :, 0, 0].tolist() == [2, 4, 6]
    assert train.images.shape == (4, 3, 5, 6)
    assert source.test().images[:, 0, 0, 0].tolist() == [7, 8]
    assert source.info.slug == f"folder-pets-{source.info.fingerprint[:8]}"


def test_val_stands_in_for_test(root: Path) -> None:
    before = opened(root).info
    (root / "test").rename(root / "val")
    after = opened(root)
    assert after.info.fingerprint == before.fingerprint
    assert after.test().labels.tolist() == [0, 1]


def test_other_and_hidden_files_are_left_out(root: Path) -> None:
    before = opened(root).info.fingerprint
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / ".hidden.png").write_text("x")
    (root / "train" / ".cache").mkdir()
    assert opened(root).info.fingerprint == before


def test_fingerprint_covers_names_and_sizes_but_not_the_place(root: Path) -> None:
    before = opened(root).info.fingerprint
    shutil.copytree(root, root.parent / "moved")
    assert opened(root.parent / "moved").info.fingerprint == before
    (root / "train" / "cat" / "b.png").rename(root / "train" / "cat" / "c.png")
    renamed = opened(root).info.fingerprint
    assert renamed != before
    with (root / "train" / "cat" / "c.png").open("ab") as file:
        file.write(b"\0")
    assert opened(root).info.fingerprint not in (before, renamed)


def test_grey(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            paint(tmp_path / part / name / "a.png", 9, mode="L")
    source = opened(tmp_path)
    assert source.info.image.dims == (1, 5, 6)
    assert source.train().images[0, 0].numpy().tolist() == np.pad([[9]], ((0, 4), (0, 5))).tolist()


def test_missing_folder(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder: '.*' has no 'pet'\. Did you mean 'pets'\? Give the path"):
        opened(root.parent / "pet")


def test_file_instead_of_folder(root: Path) -> None:
    (root / "x.npz").write_text("")
    with pytest.raises(ConfigError, match=r"is a file, not a folder\. For an npz file: --dataset npz:.*x\.npz"):
        opened(root / "x.npz")


def test_missing_split(root: Path) -> None:
    (root / "train").rename(root / "training")
    with pytest.raises(ConfigError) as caught:
        _ = opened(root).info
    assert str(caught.value) == (
        f"folder:{root}: the folder 'train' is missing. It has: test, training. Did you mean 'training'? "
        "Needed: train/ and test/ (or val/)."
    )


def test_missing_test(root: Path) -> None:
    shutil.rmtree(root / "test")
    with pytest.raises(ConfigError, match=r"the folder 'test' is missing\. It has: train\."):
        _ = opened(root).info


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder 'train' is missing\. It has: nothing\."):
        _ = opened(tmp_path).info


def test_no_class_folders(root: Path) -> None:
    shutil.rmtree(root / "train")
    paint(root / "train" / "a.png")
    with pytest.raises(ConfigError, match=r"train/ has no class folders\. Put one folder of images per class into it"):
        _ = opened(root).info


def test_class_without_images(root: Path) -> None:
    shutil.rmtree(root / "train" / "dog")
    (root / "train" / "dog").mkdir()
    (root / "train" / "dog" / "a.gif").write_text("")
    message = r"no training images of class 'dog'\. The folder train/dog holds a\.gif\. Allowed: \.png, \.jpg"
    with pytest.raises(ConfigError, match=message):
        _ = opened(root).info


def test_different_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "dogs")
    with pytest.raises(ConfigError, match=r"train/ has a class 'dog' that test/ lacks\. Both need the same class"):
        _ = opened(root).info
    shutil.rmtree(root / "train" / "dog")
    with pytest.raises(ConfigError, match="test/ has a class 'dogs' that train/ lacks"):
        _ = opened(root).info


def test_one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "test" / "dog")
    with pytest.raises(ConfigError, match=r"has 1 classes: cat\. At least 2 are needed"):
        _ = opened(root).info


def test_first_file_of_another_size_is_named(root: Path) -> None:
    paint(root / "train" / "dog" / "y.webp", size=(8, 5))
    with pytest.raises(ConfigError) as caught:
        opened(root).train()
    assert str(caught.value) == (
        f"folder:{root}: train/dog/y.webp is 3x5x8 (CxHxW), but train/cat/a.PNG is 3x5x6. "
        "All images need one size and one mode: resize or convert them first."
    )


def test_grey_among_colours_is_named(root: Path) -> None:
    paint(root / "test" / "dog" / "d.png", mode="L")
    with pytest.raises(ConfigError, match=r"test/dog/d\.png is 1x5x6 \(CxHxW\), but train/cat/a\.PNG is 3x5x6"):
        opened(root).test()


def test_splits_of_different_size(root: Path) -> None:
    paint(root / "test" / "cat" / "c.png", size=(7, 5))
    with pytest.raises(ConfigError, match=r"training images are 3x5x6 \(CxHxW\), test images are 3x5x7\."):
        _ = opened(root).info


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "I;16"])
def test_other_colour_modes(root: Path, mode: str) -> None:
    Image.new(mode, (6, 5)).save(root / "train" / "cat" / "a.PNG")
    with pytest.raises(ConfigError, match=rf"train/cat/a\.PNG has colour mode {mode}\. Allowed: RGB and L"):
        _ = opened(root).info


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "foreign", "truncated"])
def test_damaged_image_is_named(root: Path, content: bytes | None) -> None:
    path = root / "train" / "dog" / "z.bmp"
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    message = r"train/dog/z\.bmp cannot be read as an image\. It is damaged or not an image: replace it or remove it\."
    with pytest.raises(ConfigError, match=message):
        opened(root).train()


def test_damaged_first_image(root: Path) -> None:
    (root / "train" / "cat" / "a.PNG").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ConfigError, match=r"train/cat/a\.PNG cannot be read as an image"):
        _ = opened(root).info
