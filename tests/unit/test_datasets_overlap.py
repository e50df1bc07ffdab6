"""Parts of a dataset's classes: against the reference's numbers, and what a part keeps of the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.datasets.base import DatasetInfo, Split
from kdbench.datasets.cifar import open_cifar100
from kdbench.datasets.npz import open_npz
from kdbench.datasets.overlap import (
    classes_of,
    open_overlap,
    overlap_classes,
    part_name,
    student_name,
    teacher_names,
)
from kdbench.datasets.splits import cut_validation, per_class_subset
from kdbench.errors import ConfigError
from kdbench.opening import open_source, open_whole
from kdbench.registry import Registry
from kdbench.types import StageShape

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "asib"
# random.Random(3).shuffle of 0..5, as CPython has given since 3.2.
ORDER = [0, 2, 3, 5, 4, 1]


def save(folder: Path, classes: int = 6, per_class: int = 5) -> str:
    labels = np.arange(classes * per_class) % classes
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (len(labels), 8, 8, 1))
    test = np.arange(2 * classes) % classes
    np.savez(
        folder / "x.npz", train_images=images, train_labels=labels, test_images=images[: 2 * classes], test_labels=test
    )
    return f"npz:{folder / 'x.npz'}"


class Whole:
    """A dataset that is described and cannot be read."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def train(self) -> Split:
        raise AssertionError("read")

    test = train


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="needs the shared reference files")
@pytest.mark.parametrize("file", ["misc_11.npz", "misc_12.npz"])
def test_classes_against_the_reference(file: str) -> None:
    with np.load(GOLDENS / file) as archive:
        cases = json.loads(str(archive["overlap"]))
    assert len(cases) == 5
    for case in cases:
        first, second = overlap_classes(100, case["pct"], case["seed"])
        assert (list(first), list(second)) == (case["T1"], case["T2"])


def test_classes_by_hand() -> None:
    # 50 % of 6: the first three are common, of the other three each part gets one and the last belongs to neither.
    common, rest = ORDER[:3], ORDER[3:]
    first, second = overlap_classes(6, 50, 3)
    assert first == tuple(sorted([*common, rest[0]]))
    assert second == tuple(sorted([*common, rest[1]]))
    assert classes_of("union", 6, 50, 3) == tuple(sorted({*range(6)} - {rest[2]}))
    assert overlap_classes(6, 0, 3) == (tuple(sorted(ORDER[:3])), tuple(sorted(ORDER[3:])))
    assert overlap_classes(6, 100, 3) == (tuple(range(6)), tuple(range(6)))


@pytest.mark.parametrize("pct", range(0, 101, 9))
def test_parts_share_what_they_should(pct: int) -> None:
    first, second = (set(part) for part in overlap_classes(25, pct, 7))
    common = 25 * pct // 100
    assert len(first & second) == common
    assert len(first) == len(second) == common + (25 - common) // 2
    assert len(first | second) == 25 - (25 - common) % 2


def test_names_of_a_pair() -> None:
    assert teacher_names("cifar100", 50, 42) == ("overlap:50,42,1:cifar100", "overlap:50,42,2:cifar100")
    assert teacher_names("cifar100", 100, 42) == ("cifar100", "cifar100")
    assert student_name("cifar100", 50, 42, 100) == "cifar100"
    assert student_name("cifar100", 75, 42, 100) == "overlap:75,42,union:cifar100"
    assert student_name("cifar100", 100, 42, 100) == "cifar100"


def test_a_part_keeps_labels_names_and_memory(tmp_path: Path, registry: Registry) -> None:
    name = save(tmp_path)
    part = open_source(part_name(name, 50, 3, 1), registry, tmp_path)
    kept = sorted(ORDER[:4])
    info, whole = part.info, open_source(name, registry, tmp_path).info
    assert (info.name, info.classes, info.present) == (f"overlap:50,3,1:{name}", whole.classes, tuple(kept))
    assert (info.train_size, info.test_size, info.occurring) == (20, 8, 4)
    for split, each in ((part.train(), 5), (part.test(), 2)):
        assert torch.bincount(split.labels, minlength=6).tolist() == [each * (c in kept) for c in range(6)]
        assert split.images[:, 0, 0, 0].tolist() == split.labels.tolist()
        assert len(split.store) > len(split) == len(split.images)


def test_identity_of_a_part_follows_classes_and_whole(tmp_path: Path) -> None:
    base = open_npz(save(tmp_path).removeprefix("npz:"), tmp_path)
    infos = [open_overlap(text, base).info for text in ("50,3,1", "50,3,2", "50,3,union", "100,3,1", "50,4,1")]
    marks = [info.fingerprint for info in infos]
    assert len(set(marks)) == len(marks)
    assert open_overlap("50,3,1", base).info == infos[0]
    assert infos[0].slug == f"{base.info.slug}-overlap50-s3-1"
    other = Whole(replace(base.info, fingerprint="else", balanced=True))
    assert open_overlap("50,3,1", other).info.fingerprint not in marks
    long = Whole(replace(base.info, slug="x" * 64, balanced=True))
    slugs = [open_overlap(text, long).info.slug for text in ("50,3,1", "50,4,1")]
    assert [len(slug) for slug in slugs] == [64, 64]
    assert slugs[0] != slugs[1]


def test_all_classes_at_a_hundred_percent(tmp_path: Path) -> None:
    base = open_npz(save(tmp_path).removeprefix("npz:"), tmp_path)
    part = open_overlap("100,9,2", base)
    assert (part.info.train_size, part.info.test_size) == (30, 12)
    assert part.train().images.equal(base.train().images)
    assert part.train().labels.equal(base.train().labels)


def test_a_balanced_dataset_is_not_read_to_describe_a_part(tmp_path: Path) -> None:
    part = open_overlap("50,42,1", open_cifar100("", tmp_path / "none"))
    assert (part.info.train_size, part.info.test_size) == (37_500, 7_500)
    assert part.info.image == StageShape((3, 32, 32))
    assert not (tmp_path / "none").exists()


def test_a_part_of_a_part(tmp_path: Path, registry: Registry) -> None:
    name = save(tmp_path)
    inner = open_source(part_name(name, 50, 3, 1), registry, tmp_path)
    both = open_source(part_name(part_name(name, 50, 3, 1), 50, 3, 2), registry, tmp_path)
    common = sorted(ORDER[:3])
    assert both.info.present == tuple(common)
    assert sorted(both.train().labels.unique().tolist()) == common
    assert both.info.fingerprint != inner.info.fingerprint


def test_subsets_and_validation_of_a_part(tmp_path: Path) -> None:
    base = open_npz(save(tmp_path).removeprefix("npz:"), tmp_path)
    part = open_overlap("50,3,1", base)
    kept = [int(c in ORDER[:4]) for c in range(6)]
    subset = per_class_subset(part.train(), 3, part.info.classes)
    assert torch.bincount(subset.labels, minlength=6).tolist() == [3 * n for n in kept]
    train, validation = cut_validation(part.train(), 0.2, part.info.classes)
    assert validation is not None
    assert torch.bincount(validation.labels, minlength=6).tolist() == kept
    assert torch.bincount(train.labels, minlength=6).tolist() == [4 * n for n in kept]
    with pytest.raises(ConfigError, match=r"has 5 training images. Allowed: 1..5"):
        per_class_subset(part.train(), 6, part.info.classes)


@pytest.mark.parametrize("per_class", [None, 4])
def test_no_teacher_learns_from_the_students_validation_images(
    tmp_path: Path, registry: Registry, per_class: int | None
) -> None:
    whole = save(tmp_path, per_class=20)

    def cut(name: str) -> tuple[set[int], set[int]]:
        source = open_source(name, registry, tmp_path)
        train, classes = source.train(), source.info.classes
        kept = train if per_class is None else per_class_subset(train, per_class, classes)
        rest, validation = cut_validation(kept, 0.25, classes)
        assert validation is not None
        return tuple(set(part.places(torch.arange(len(part))).tolist()) for part in (rest, validation))  # type: ignore

    _, watched = cut(student_name(whole, 50, 3, 6))
    for teacher in teacher_names(whole, 50, 3):
        learnt, _ = cut(teacher)
        assert learnt
        assert not learnt & watched


def test_per_class_of_a_part_counts_its_own_classes(tmp_path: Path, registry: Registry) -> None:
    name = part_name(save(tmp_path), 50, 3, 1)
    assert open_whole(name, 5, registry, tmp_path).sizes(0.0) == (20, 0)
    with pytest.raises(ConfigError, match="has 20 training images in 4 classes, at most 5 each"):
        open_whole(name, 6, registry, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("overlap", "is made from another dataset; write overlap:PCT,SEED,PART:DATASET"),
        ("overlap:50,42,1", "is made from another dataset; write overlap:"),
        ("overlap:50,42,1:", "is made from another dataset; write overlap:"),
        ("overlap:50,42,1:digitz", "unknown dataset 'digitz'. Did you mean 'digits'?"),
        ("overlap:101,42,1:digits", "PCT is '101'. Write: overlap:PCT,SEED,PART:DATASET with PCT in 0..100"),
        ("overlap:-1,42,1:digits", "PCT is '-1'"),
        ("overlap:5.5,42,1:digits", "PCT is '5.5'"),
        ("overlap:50,x,1:digits", "SEED is 'x'"),
        ("overlap:50,42,3:digits", "PART is '3'"),
        ("overlap:50,42:digits", "PART is ''"),
        ("overlap:50,42,1,2:digits", "PART is '1,2'"),
    ],
)
def test_what_cannot_be_opened(name: str, said: str, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(name, registry, tmp_path)
    assert said in str(caught.value)


def test_a_part_needs_two_classes(tmp_path: Path) -> None:
    base = open_npz(save(tmp_path, classes=3).removeprefix("npz:"), tmp_path)
    with pytest.raises(ConfigError, match=r"1 of 3 classes are left\. At least 2 are needed: raise PCT"):
        _ = open_overlap("0,1,2", base).info


def test_a_wrapper_cannot_be_opened_alone(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="made from another one cannot be opened alone"):
        registry.datasets["overlap"].open("50,1,1", tmp_path)
