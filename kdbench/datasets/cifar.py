"""CIFAR-10 and CIFAR-100: 32x32 colour photographs, 50,000 to train and 10,000 to test.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The normalisation constants are those
that published training code divides by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdbench.datasets.base import Dataset, DatasetInfo
from kdbench.datasets.batch_pickle import PickledArray, read_batch
from kdbench.datasets.checks import bad, no_argument
from kdbench.datasets.torchvision_source import Archive, Layout, TorchvisionSource
from kdbench.hooks import hookimpl
from kdbench.types import StageShape

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@hookimpl
def kdbench_datasets() -> list[Dataset]:
    """Return CIFAR-10 and CIFAR-100."""
    return [
        Dataset("cifar10", open_cifar10, "60,000 photographs of 32x32 pixels, 10 classes; downloaded once"),
        Dataset("cifar100", open_cifar100, "60,000 photographs of 32x32 pixels, 100 classes; downloaded once"),
    ]


def open_cifar10(argument: str, root: Path) -> TorchvisionSource:
    """Open CIFAR-10 in the data root."""
    no_argument("cifar10", argument)
    constants = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return TorchvisionSource(_info("cifar10", _CIFAR10, constants), _layout("CIFAR10"), root)


def open_cifar100(argument: str, root: Path) -> TorchvisionSource:
    """Open CIFAR-100, with its 100 fine classes, in the data root."""
    no_argument("cifar100", argument)
    constants = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return TorchvisionSource(_info("cifar100", _CIFAR100, constants), _layout("CIFAR100"), root)


def _info(name: str, classes: str, normalisation: tuple[tuple[float, ...], tuple[float, ...]]) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        slug=name,
        classes=tuple(classes.split()),
        image=StageShape((3, 32, 32)),
        train_size=50_000,
        test_size=10_000,
        fingerprint=f"torchvision:{name}",
        normalisation=normalisation,
        balanced=True,
    )


def _layout(class_name: str) -> Layout:
    return Layout(class_name, _archives, _complete, _read)


def _archives(kind: Any, root: Path) -> list[Archive]:
    return [Archive(kind.url, root / kind.filename, kind.tgz_md5)]


def _complete(kind: Any, root: Path) -> bool:
    from torchvision.datasets.utils import check_integrity

    # torchvision itself downloads nothing when only the class names are missing, and then fails to read them.
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return all(check_integrity(root / kind.base_folder / name, md5) for name, md5 in files)


def _read(kind: Any, root: Path, train: bool) -> tuple[Any, Any]:
    """Return images (N, 3072) and labels (N,); CIFAR is published as pickles, and kdbench runs no code from files."""
    images, labels = [], []
    for name, _md5 in kind.train_list if train else kind.test_list:
        path = root / kind.base_folder / name
        tree = read_batch(kind.__name__, path, pixels=True)
        data, said = tree.get("data"), tree.get("fine_labels", tree.get("labels"))
        if not isinstance(data, PickledArray) or not isinstance(said, list):
            raise bad(kind.__name__, f"{name} has no images and labels", "Remove it, and it is downloaded again.")
        images.append(data.values())
        labels += said
    return np.concatenate(images), np.array(labels)
