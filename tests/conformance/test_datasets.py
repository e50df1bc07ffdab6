"""What every registered dataset promises, on each that can be had without a network."""

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdbench.datasets
from kdbench.datasets.base import Dataset, DatasetInfo, Source
from kdbench.datasets.npz import open_npz
from kdbench.datasets.splits import channel_statistics, cut_validation, per_class_subset


def registered() -> dict[str, Dataset]:
    modules = [
        importlib.import_module(f"kdbench.datasets.{m.name}") for m in pkgutil.iter_modules(kdbench.datasets.__path__)
    ]
    hooks = [module.kdbench_datasets for module in modules if hasattr(module, "kdbench_datasets")]
    return {dataset.name: dataset for hook in hooks for dataset in hook()}


DATASETS = registered()


def make_npz(folder: Path, first_pixel: int) -> str:
    images = np.arange(12 * 8 * 8 * 3, dtype=np.int64).reshape(12, 8, 8, 3).astype(np.uint8)
    images[0, 0, 0, 0] = first_pixel
    labels = np.arange(12) % 3
    np.savez(folder / "x.npz", train_images=images, train_labels=labels, test_images=images[:6], test_labels=labels[:6])
    return str(folder / "x.npz")


def make_folder(folder: Path, first_pixel: int) -> str:
    for part, count in (("train", 4), ("test", 2)):
        for index in range(3 * count):
            file = folder / part / f"class{index % 3}" / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            # Noise: the size of a PNG depends on its pixels.
            pixels = np.random.Generator(np.random.PCG64([first_pixel, index])).integers(
                0, 1 + 5 * first_pixel, (8, 8, 3)
            )
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return str(folder)


MAKERS: dict[str, Callable[[Path, int], str]] = {
    "digits": lambda _folder, _pixel: "",
    "npz": make_npz,
    "folder": make_folder,
}


@pytest.fixture(params=sorted(MAKERS))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return DATASETS[request.param].open(MAKERS[request.param](tmp_path, 1), tmp_path / "root")


def check_info(info: DatasetInfo) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", info.slug)
    assert len(set(info.classes)) == len(info.classes) >= 2
    assert len(info.image.dims) == 3
    assert info.image.channels in (1, 3)
    assert info.train_size >= len(info.classes)
    assert info.fingerprint
    if info.normalisation:
        assert [len(values) for values in info.normalisation] == [info.image.channels] * 2
        assert all(0 < value < 1 for values in info.normalisation for value in values)


def test_all_built_in_datasets_are_registered() -> None:
    plain, from_path, wrapping = (
        {"cifar10", "cifar100", "digits", "fashion_mnist"},
        {"folder", "imagenet32", "npz"},
        {"overlap"},
    )
    assert set(DATASETS) >= plain | from_path | wrapping
    assert {name for name, dataset in DATASETS.items() if dataset.takes_path} >= from_path
    assert {name for name, dataset in DATASETS.items() if dataset.wrap} >= wrapping
    assert not any(DATASETS[name].takes_path or DATASETS[name].wrap for name in plain)


@pytest.mark.parametrize("name", sorted(name for name, dataset in DATASETS.items() if dataset.form == name))
def test_description_without_data(name: str, tmp_path: Path) -> None:
    info = DATASETS[name].open("", tmp_path / "root").info
    assert (info.name, info.slug) == (name, name)
    assert DATASETS[name].description
    check_info(info)
    assert not (tmp_path / "root").exists()


def test_info_agrees_with_the_splits(source: Source) -> None:
    info = source.info
    check_info(info)
    for split, size in ((source.train(), info.train_size), (source.test(), info.test_size)):
        assert split.images.dtype == torch.uint8
        assert split.images.is_contiguous()
        assert tuple(split.images.shape) == (size, *info.image.dims)
        assert split.labels.dtype == torch.int64
        assert tuple(split.labels.shape) == (size,)
        assert split.labels.unique().tolist() == list(range(len(info.classes)))


def test_loading_twice_is_equal(source: Source) -> None:
    for read in (source.train, source.test):
        first, second = read(), read()
        assert first.images.equal(second.images)
        assert first.labels.equal(second.labels)
        assert first.images.data_ptr() != second.images.data_ptr()


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"digits"}))
def test_fingerprint_and_slug_follow_the_content(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    opening, make = DATASETS[name].open, MAKERS[name]
    first, other = opening(make(tmp_path / "a", 1), tmp_path).info, opening(make(tmp_path / "b", 9), tmp_path).info
    again = opening(make(tmp_path / "a", 1), tmp_path).info
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.slug == again.slug != other.slug


def test_splits_apply(source: Source) -> None:
    info, split = source.info, source.train()
    train, validation = cut_validation(split, 0.25, info.classes)
    assert validation is not None
    assert len(train) + len(validation) == len(split)
    assert len(per_class_subset(train, 2, info.classes)) == 2 * len(info.classes)
    assert len(channel_statistics(train)[0]) == info.image.channels


def test_real_images(tmp_path: Path) -> None:
    unpack = Path(__file__).parents[3] / "shared" / "data" / "unpack.py"
    if not unpack.is_file():
        pytest.skip("needs the shared reference files")
    path = tmp_path / "cifar100.npz"
    subprocess.run([sys.executable, unpack, "cifar100", path], check=True)
    source = open_npz(str(path), tmp_path)
    info = source.info
    assert (info.train_size, info.test_size, str(info.image)) == (20_000, 10_000, "3x32x32")
    assert info.classes == DATASETS["cifar100"].open("", tmp_path).info.classes
    assert source.train().labels.bincount().tolist() == [200] * 100
    # The published constants are those of the full training set; 40 % of it come close.
    mean, std = channel_statistics(source.train())
    assert mean == pytest.approx((0.5071, 0.4867, 0.4408), abs=0.005)
    assert std == pytest.approx((0.2675, 0.2565, 0.2761), abs=0.005)
