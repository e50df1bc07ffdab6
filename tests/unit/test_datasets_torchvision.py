"""CIFAR and Fashion-MNIST on a small stand-in for the internet: downloads that fail, stop half-way, or succeed."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from torchvision.datasets import utils

from kdbench.datasets.base import Source
from kdbench.datasets.cifar import open_cifar10, open_cifar100
from kdbench.datasets.fashion_mnist import open_fashion_mnist
from kdbench.errors import ConfigError

# tarfile announces a new default from Python 3.12 on; torchvision calls it.
pytestmark = pytest.mark.filterwarnings("ignore:.*extraction filter:DeprecationWarning")

CIFAR = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
FASHION = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = [3, 1, 0, 2, 1, 9]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Internet:
    """Files by name; ``broken`` decides what happens to a download."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.broken: Callable[[Path, bytes], None] | None = None

    def retrieve(self, url: str, path: str) -> None:
        name = url.rsplit("/", 1)[1]
        self.downloads.append(name)
        if self.broken:
            self.broken(Path(path), self.files[name])
        else:
            Path(path).write_bytes(self.files[name])


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    """Replace torchvision's network by files in memory, and its datasets by six images each."""
    net = Internet()
    monkeypatch.setattr(utils, "_urlretrieve", net.retrieve)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    pickles = {
        "train": pickle.dumps({"data": CIFAR[:4].reshape(4, -1), "fine_labels": LABELS[:4]}),
        "test": pickle.dumps({"data": CIFAR[4:].reshape(2, -1), "fine_labels": LABELS[4:]}),
        "meta": pickle.dumps({"fine_label_names": ["unused"]}),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in pickles.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    net.files["cifar-100-python.tar.gz"] = buffer.getvalue()

    class CIFAR100(torchvision.datasets.CIFAR100):
        tgz_md5 = md5(buffer.getvalue())
        train_list = [["train", md5(pickles["train"])]]  # noqa: RUF012
        test_list = [["test", md5(pickles["test"])]]  # noqa: RUF012
        meta = torchvision.datasets.CIFAR100.meta | {"md5": md5(pickles["meta"])}

    for part, images, labels in (("train", FASHION[:4], LABELS[:4]), ("t10k", FASHION[4:], LABELS[4:])):
        header = b"\0\0\x08\x03" + np.array(images.shape, ">i4").tobytes()
        net.files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(header + images.tobytes(), mtime=0)
        header = b"\0\0\x08\x01" + np.array([len(labels)], ">i4").tobytes()
        net.files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(header + bytes(labels), mtime=0)

    class FashionMNIST(torchvision.datasets.FashionMNIST):
        resources = [(name, md5(content)) for name, content in net.files.items() if name.endswith("ubyte.gz")]  # noqa: RUF012

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", CIFAR100)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", FashionMNIST)
    return net


def offline(_path: Path, _content: bytes) -> None:
    raise URLError("Network is unreachable")


def stops_half_way(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    raise ConnectionResetError("Connection reset by peer")


def ends_early(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])


def test_info_touches_neither_disk_nor_network(tmp_path: Path, internet: Internet) -> None:
    for opening, classes, image in (
        (open_cifar10, 10, "3x32x32"),
        (open_cifar100, 100, "3x32x32"),
        (open_fashion_mnist, 10, "1x28x28"),
    ):
        info = opening("", tmp_path / "data").info
        assert (len(info.classes), str(info.image), info.fingerprint) == (classes, image, f"torchvision:{info.name}")
    assert internet.downloads == []
    assert list(tmp_path.iterdir()) == []


def test_names_are_those_of_the_archives(shared_data: Path) -> None:
    for opening in (open_cifar10, open_cifar100):
        info = opening("", Path()).info
        assert list(info.classes) == json.loads((shared_data / info.name / "manifest.json").read_text())["classes"]


@pytest.fixture
def shared_data() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the shared reference files")
    return path


def test_cifar_is_downloaded_once_and_read(tmp_path: Path, internet: Internet) -> None:
    source = open_cifar100("", tmp_path / "data")
    train, test = source.train(), source.test()
    assert train.images.numpy().tolist() == CIFAR[:4].tolist()
    assert test.images.numpy().tolist() == CIFAR[4:].tolist()
    assert (train.labels.tolist(), test.labels.tolist()) == (LABELS[:4], LABELS[4:])
    assert internet.downloads == ["cifar-100-python.tar.gz"]
    assert (tmp_path / "data" / "cifar-100-python" / "train").is_file()


def test_fashion_mnist_is_downloaded_once_and_read(tmp_path: Path, internet: Internet) -> None:
    source = open_fashion_mnist("", tmp_path)
    train, test = source.train(), source.test()
    assert train.images[:, 0].numpy().tolist() == FASHION[:4].tolist()
    assert test.images[:, 0].numpy().tolist() == FASHION[4:].tolist()
    assert (train.labels.tolist(), test.labels.tolist()) == (LABELS[:4], LABELS[4:])
    assert len(internet.downloads) == 4
    assert source.info.mirror is True


def test_offline_is_one_message(tmp_path: Path, internet: Internet) -> None:
    internet.broken = offline
    with pytest.raises(ConfigError) as caught:
        open_cifar100("", tmp_path).train()
    assert str(caught.value) == (
        f"cifar100: could not be downloaded into {tmp_path}: tried "
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, got: <urlopen error Network is unreachable>. "
        f"Run again with a network, or place cifar-100-python.tar.gz into {tmp_path}, "
        "or use an own copy: --dataset npz:PATH"
    )


def test_offline_fashion_mnist_names_its_four_archives(tmp_path: Path, internet: Internet) -> None:
    internet.broken = offline
    with pytest.raises(ConfigError) as caught:
        open_fashion_mnist("", tmp_path).test()
    folder = tmp_path / "FashionMNIST" / "raw"
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    assert f"or place {', '.join(names)} into {folder}, or use" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [stops_half_way, ends_early])
@pytest.mark.parametrize("opening", [open_cifar100, open_fashion_mnist])
def test_partial_archive_is_reported_and_downloaded_again(
    tmp_path: Path, internet: Internet, opening: Callable[[str, Path], Source], broken: Callable[[Path, bytes], None]
) -> None:
    internet.broken = broken
    source = opening("", tmp_path)
    with pytest.raises(ConfigError, match=r"\([\w.-]+\.gz there is incomplete or damaged and was not used\)"):
        source.train()
    internet.broken = None
    assert source.train().labels.tolist() == LABELS[:4]


def test_archive_placed_by_hand_is_used(tmp_path: Path, internet: Internet) -> None:
    internet.broken = offline
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(internet.files["cifar-100-python.tar.gz"])
    assert open_cifar100("", tmp_path).test().labels.tolist() == LABELS[4:]
    assert internet.downloads == []


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["missing", "partial"])
def test_interrupted_unpacking_of_cifar_is_repeated(tmp_path: Path, internet: Internet, name: str, damage: str) -> None:
    source = open_cifar100("", tmp_path)
    source.train()
    internet.broken = offline
    path = tmp_path / "cifar-100-python" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "partial":
        path.write_bytes(content[:-10])
    assert source.train().images.numpy().tolist() == CIFAR[:4].tolist()
    assert source.test().images.numpy().tolist() == CIFAR[4:].tolist()


@pytest.mark.parametrize("keep", [0, 2, 10, 100])
def test_interrupted_unpacking_of_fashion_mnist_is_repeated(tmp_path: Path, internet: Internet, keep: int) -> None:
    source = open_fashion_mnist("", tmp_path)
    source.train()
    internet.broken = offline
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    assert source.train().images[:, 0].numpy().tolist() == FASHION[:4].tolist()


def test_unpacking_that_fails_is_not_blamed_on_the_network(
    tmp_path: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(internet.files["cifar-100-python.tar.gz"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "extract_archive", full)
    with pytest.raises(
        ConfigError, match=r"are whole, but could not be unpacked or read; got: .*No space left on device"
    ):
        open_cifar100("", tmp_path).train()


def test_complete_data_needs_no_lock(tmp_path: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    # A shared data folder is often read-only.
    source = open_cifar100("", tmp_path)
    source.train()
    (tmp_path / ".cifar100.lock").unlink(missing_ok=True)
    source.train()
    assert not (tmp_path / ".cifar100.lock").exists()


def test_waiting_process_does_not_download_again(
    tmp_path: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_cifar100("", tmp_path / "other").train()

    class Lock:
        """While this process waits for the lock, another one finishes the download."""

        def __init__(self, _path: Path) -> None: ...

        def __enter__(self) -> None:
            shutil.copytree(tmp_path / "other", tmp_path / "mine", dirs_exist_ok=True)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("kdbench.datasets.torchvision_source.FileLock", Lock)
    internet.downloads.clear()
    assert open_cifar100("", tmp_path / "mine").train().labels.tolist() == LABELS[:4]
    assert internet.downloads == []


def test_root_that_cannot_be_made(tmp_path: Path, internet: Internet) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(
        ConfigError, match=r"cifar100: could not be downloaded into .*data: tried .* got: .*File exists"
    ):
        open_cifar100("", tmp_path / "data").train()


@pytest.mark.parametrize("opening", [open_cifar10, open_cifar100, open_fashion_mnist])
def test_path_is_refused(opening: Callable[[str, Path], object]) -> None:
    with pytest.raises(ConfigError, match="takes no path"):
        opening("somewhere", Path())


class Touch:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": CIFAR, "fine_labels": Touch()}, r"train is not a readable batch: it names posix\.system"),
        ({"data": [1, 2], "fine_labels": [1]}, "train has no images and labels"),
        ({"data": CIFAR[:4].reshape(4, -1)}, "train has no images and labels"),
    ],
)
def test_a_batch_of_cifar_is_read_without_running_it(
    tmp_path: Path, internet: Internet, monkeypatch: pytest.MonkeyPatch, tree: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = open_cifar100("", tmp_path)
    source.train()
    content = pickle.dumps(tree)
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "train_list", [["train", md5(content)]])
    with pytest.raises(ConfigError, match=message):
        source.train()
    assert not Path("owned").exists()
