"""Fashion-MNIST: 28x28 grey photographs of clothes, 60,000 to train and 10,000 to test.

Source: Xiao, Rasul & Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kdbench.datasets.base import Dataset, DatasetInfo
from kdbench.datasets.checks import no_argument
from kdbench.datasets.torchvision_source import Archive, Layout, TorchvisionSource
from kdbench.hooks import hookimpl
from kdbench.types import StageShape

_INFO = DatasetInfo(
    name="fashion_mnist",
    slug="fashion_mnist",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    image=StageShape((1, 28, 28)),
    train_size=60_000,
    test_size=10_000,
    fingerprint="torchvision:fashion_mnist",
    mirror=True,  # unlike a digit, a mirrored shoe is a shoe
    normalisation=((0.2860,), (0.3530,)),
    balanced=True,
)


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return Fashion-MNIST."""
    what = "70,000 grey photographs of 28x28 pixels, 10 classes; downloaded once"
    return [Dataset("fashion_mnist", open_fashion_mnist, what)]


def open_fashion_mnist(argument: str, root: Path) -> TorchvisionSource:
    """Open Fashion-MNIST in the data root."""
    no_argument("fashion_mnist", argument)
    return TorchvisionSource(_INFO, Layout("FashionMNIST", _archives, _complete), root)


def _archives(kind: Any, root: Path) -> list[Archive]:
    folder = root / kind.__name__ / "raw"
    return [Archive(kind.mirrors[0] + name, folder / name, md5) for name, md5 in kind.resources]


def _complete(kind: Any, root: Path) -> bool:
    # torchvision checks the archives only: a file whose unpacking was interrupted passes for the whole one.
    return all(_whole(archive.path.with_suffix("")) for archive in _archives(kind, root))


def _whole(path: Path) -> bool:
    """Return whether an idx file has as many bytes as its header says: magic with the number of axes, then lengths."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        axes = (file.read(4) or b"\0")[-1]
        lengths = [int.from_bytes(file.read(4), "big") for _ in range(axes)]
    return axes > 0 and path.stat().st_size == 4 + 4 * axes + math.prod(lengths)
