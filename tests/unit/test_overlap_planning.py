"""Overlapping classes from pair file to specs: which dataset each teacher and the student get, and what is hashed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.config.pairs import load_pair
from kdbench.config.schema import canonical_sha256
from kdbench.datasets.base import Dataset, DatasetInfo, Split
from kdbench.errors import ProblemList
from kdbench.leaderboard.publishing import without_folder
from kdbench.plan import Plan, Request, make_plan
from kdbench.registry import Registry
from kdbench.spec import DatasetRef, RunSpec
from kdbench.training.cohort import cohort_key
from kdbench.training.teachers import recipes_of
from kdbench.types import StageShape

KNOWN = {"resnet8": None, "resnet20": None}
BASE = "name: p\nstudent: resnet8\nteachers: [resnet20, resnet8]\ndataset: digits\n"
REQUEST = Request(("student", "vanilla_kd"), ("half",), (0, 1), "fair_baseline_smoke")


class Sealed:
    """A balanced dataset that may be described, and must not be read: 10 classes of 4 training images."""

    def __init__(self, _argument: str, _root: Path) -> None:
        names = tuple("0123456789")
        self.info = DatasetInfo("sealed", "sealed", names, StageShape((1, 8, 8)), 40, 20, "f", balanced=True)

    def train(self) -> Split:
        raise AssertionError("images were read")

    test = train


@pytest.fixture
def known(with_plugin: Callable[..., Registry], tmp_path: Path) -> Registry:
    keys = {
        "half": "overlap_pct: 50",
        "odd": "overlap_pct: 10\noverlap_seed: 3",
        "whole": "overlap_pct: 100",
        "plain": "",
    }
    files = []
    for name, more in keys.items():
        files.append(tmp_path / f"{name}.yaml")
        text = f"name: {name}\nstudent: resnet8_w4\nteachers: [resnet14_w8, resnet8_w4]\ndataset: sealed\n{more}\n"
        files[-1].write_text(text, encoding="utf-8")
    return with_plugin(kdbench_datasets=lambda: [Dataset("sealed", Sealed)], kdbench_pairs=lambda: files)


def planned(known: Registry, pair: str, **changes: object) -> Plan:
    return make_plan(replace(REQUEST, pairs=(pair,), **changes), known)  # type: ignore[arg-type]


def names(spec: RunSpec) -> list[str]:
    return [dataset.name for dataset in spec.teacher_datasets]


def test_teachers_of_half_the_classes(known: Registry) -> None:
    plan = planned(known, "half", per_class=3)
    taught, alone = ([s for s in plan.runs if bool(s.teachers) is wanted] for wanted in (True, False))
    assert [len(taught), len(alone)] == [2, 2]
    # 50 % of 10 are 5 common classes; of the other five each teacher gets two, and one belongs to neither.
    parts = ["overlap:50,42,1:sealed", "overlap:50,42,2:sealed"]
    assert all(names(spec) == parts for spec in taught)
    assert all(spec.dataset.name == "overlap:50,42,union:sealed" for spec in plan.runs)
    assert all(spec.teacher_datasets == () for spec in alone)
    assert {d.per_class for spec in taught for d in (spec.dataset, *spec.taught_on)} == {3}
    assert plan.train_sizes["half"] == 2 * 9
    assert [(r.backbone, r.dataset.name) for r in recipes_of(plan.runs)] == [
        ("resnet14_w8", parts[0]),
        ("resnet8_w4", parts[1]),
    ]
    assert taught[0].run_id == "fair_baseline_smoke-v1/sealed-overlap50-s42-union-3pc/half/vanilla_kd/seed0"


def test_an_even_rest_leaves_no_class_out_and_parts_nest(known: Registry) -> None:
    plan = planned(known, "half", dataset="overlap:100,1,1:cifar100")  # 100 classes: 50 common, 25 each
    assert {spec.dataset.name for spec in plan.runs} == {"overlap:100,1,1:cifar100"}
    assert names(plan.runs[-1])[0] == "overlap:50,42,1:overlap:100,1,1:cifar100"


def test_another_seed_divides_otherwise(known: Registry) -> None:
    spec = planned(known, "odd").runs[-1]
    assert names(spec) == ["overlap:10,3,1:sealed", "overlap:10,3,2:sealed"]


def test_all_classes_in_common_is_the_plain_dataset(known: Registry) -> None:
    shared, plain = (planned(known, pair).runs[-1] for pair in ("whole", "plain"))
    assert shared.teacher_datasets == plain.teacher_datasets == ()
    assert shared.taught_on == plain.taught_on == (plain.dataset, plain.dataset)
    assert recipes_of([shared]) == recipes_of([plain])
    assert cohort_key(shared) != cohort_key(plain)


def test_too_many_per_class_is_one_message(known: Registry) -> None:
    with pytest.raises(ProblemList) as caught:
        planned(known, "half", per_class=5)
    (said,) = caught.value.problems
    assert "--per-class 5: dataset 'sealed' has 40 training images in 10 classes, at most 4 each" in said


def test_hash_covers_what_teachers_saw_and_not_where_it_lies(spec: RunSpec) -> None:
    tree = spec.model_dump(mode="json")
    assert tree.pop("teacher_datasets") == []
    assert tree.pop("variant") == ""
    for section, keys in (("dataset", ("name", "slug")), ("plugin", ("version", "file_sha256"))):
        for key in keys:
            del tree[section][key]
    del tree["teacher_names"]
    tree["anchor"] = spec.anchor.hashed({"description": True})
    assert spec.config_sha256 == canonical_sha256(tree), "without parts, hashes are what they always were"
    one, moved, other = (
        spec.model_copy(update={"teacher_datasets": (DatasetRef(name=name, slug="a", fingerprint=mark),)})
        for name, mark in (("npz:/x.npz", "f1"), ("npz:/y.npz", "f1"), ("npz:/x.npz", "f2"))
    )
    assert one.config_sha256 == moved.config_sha256
    assert len({spec.config_sha256, one.config_sha256, other.config_sha256}) == 3
    assert RunSpec.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(("pct", "seed"), [(0, 0), (50, 7), (100, 42)])
def test_pair_file(pct: int, seed: int, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"{BASE}overlap_pct: {pct}\noverlap_seed: {seed}\n")
    pair = load_pair(tmp_path / "p.yaml", KNOWN, {"digits": None})
    assert (pair.overlap_pct, pair.overlap_seed) == (pct, seed)
    (tmp_path / "p.yaml").write_text(BASE)
    pair = load_pair(tmp_path / "p.yaml", KNOWN, {"digits": None})
    assert (pair.overlap_pct, pair.overlap_seed) == (None, 42)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{BASE}overlap_pct: 101\n", "overlap_pct is 101: input should be less than or equal to 100"),
        (f"{BASE}overlap_pct: -1\n", "overlap_pct is -1: input should be greater than or equal to 0"),
        (f"{BASE}overlap_pct: on\n", "overlap_pct is True: input should be a valid integer"),
        (f"{BASE}overlap_pct: 12.5\n", "overlap_pct is 12.5: input should be a valid integer"),
        (f"{BASE}overlap_pct: 50\noverlap_seed: -1\n", "overlap_seed is -1"),
        (f"{BASE}overlap_seed: 3\n", "overlap_seed: has no effect without overlap_pct; add overlap_pct, or remove it"),
        (
            BASE.replace(", resnet8]", "]") + "overlap_pct: 50\n",
            "overlap_pct: divides the classes between exactly two teachers, but there are 1",
        ),
        (
            BASE.replace("8]", "8, resnet8]") + "overlap_pct: 100\n",
            "overlap_pct: divides the classes between exactly two teachers, but there are 3",
        ),
    ],
)
def test_wrong_pair_files(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ProblemList) as caught:
        load_pair(tmp_path / "p.yaml", KNOWN, {"digits": None})
    (message,) = caught.value.problems
    assert message.startswith(f"{tmp_path / 'p.yaml'}: ")
    assert said in message


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("digits", "digits"),
        ("npz:/home/me/x.npz", "npz:x.npz"),
        ("npz:a:b/x.npz", "npz:x.npz"),
        ("npz:2024,me:x/y.npz", "npz:y.npz"),
        ("overlap:50,42,1:cifar100", "overlap:50,42,1:cifar100"),
        ("overlap:50,42,union:npz:/home/me/x.npz", "overlap:50,42,union:npz:x.npz"),
        ("overlap:50,42,1:overlap:0,1,2:folder:me/pictures", "overlap:50,42,1:overlap:0,1,2:folder:pictures"),
    ],
)
def test_published_names_hold_no_paths(name: str, public: str) -> None:
    assert without_folder(DatasetRef(name=name, slug="s", fingerprint="f")).name == public
