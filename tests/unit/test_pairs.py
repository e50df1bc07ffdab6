"""Pair files: every shipped one loads and fits its dataset; a name that is not registered fails when it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.backbones.cost import flops_of
from kdbench.config.pairs import load_pair
from kdbench.errors import ConfigError, ProblemList
from kdbench.registry import Registry
from kdbench.types import Pair, StageShape

# student, teacher, dataset
SHIPPED = {
    "res56he_shuv2": ("ShuffleV2", "resnet56_he", "cifar10"),
    "res110_res32": ("resnet32", "resnet110", "cifar100"),
    "res20_res8": ("resnet8", "resnet20", "cifar100"),
    "res32x4_res8x4": ("resnet8x4", "resnet32x4", "cifar100"),
    "res32x4_shuv2": ("ShuffleV2", "resnet32x4", "cifar100"),
    "res56_res20": ("resnet20", "resnet56", "cifar100"),
    "tiny": ("resnet8_w4", "resnet14_w8", "digits"),
    "vgg13_mbv2": ("MobileNetV2", "vgg13", "cifar100"),
    "vgg13_vgg8": ("vgg8", "vgg13", "cifar100"),
    "wrn40_2_wrn16_2": ("wrn_16_2", "wrn_40_2", "cifar100"),
}
KNOWN = {"resnet20": None, "resnet56": None}
DATA = {"digits": None, "npz": None}


def problems(text: str, folder: Path) -> tuple[str, ...]:
    (folder / "p.yaml").write_text(text)
    with pytest.raises(ProblemList) as caught:
        load_pair(folder / "p.yaml", KNOWN, DATA)
    return caught.value.problems


def test_shipped_pairs(registry: Registry) -> None:
    ours = {n: p for n, p in registry.pairs.as_mapping().items() if registry.pairs.owner(n).distribution == "kdbench"}
    assert {n: (p.student, *p.teachers, p.dataset) for n, p in ours.items()} == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_networks_of_a_pair_take_its_images_and_the_teacher_computes_more(registry: Registry, name: str) -> None:
    pair = registry.pairs[name]
    image = StageShape((1, 8, 8)) if pair.dataset == "digits" else StageShape((3, 32, 32))
    student, teacher = (registry.backbones[backbone] for backbone in (pair.student, *pair.teachers))
    assert student.unfit(image) is None
    assert teacher.unfit(image) is None
    # Operations, not parameters: grouped convolutions have many parameters for little arithmetic.
    ours, theirs = (flops_of(b.build(10, image).to("meta"), image) for b in (student, teacher))
    assert ours < theirs


def test_all_that_is_unknown_at_once(tmp_path: Path) -> None:
    said = problems("name: p\nstudent: resnet22\nteachers: [resnet56, vgg]\ndataset: digitz\n", tmp_path)
    file = tmp_path / "p.yaml"
    assert said == (
        f"{file}: student: unknown backbone 'resnet22'. Did you mean 'resnet20'? All: kdbench list backbones",
        f"{file}: teachers[1]: unknown backbone 'vgg'. All: kdbench list backbones",
        f"{file}: dataset: unknown dataset 'digitz'. Did you mean 'digits'? All: kdbench list datasets",
    )


def test_wrong_keys(tmp_path: Path) -> None:
    said = problems("name: ../p\nstudnet: resnet20\nteachers: []\ndataset: digits\n", tmp_path)
    where = f"{tmp_path / 'p.yaml'}: "
    assert len(said) == 4
    assert any(text.startswith(f"{where}studnet: unknown key. Did you mean 'student'?") for text in said)
    assert any(text.startswith(f"{where}teachers is []: ") for text in said)
    assert any(text.startswith(f"{where}name is '../p': ") for text in said)
    assert f"{where}student: required, but missing" in said


def test_dataset_with_a_path_and_several_teachers(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\nstudent: resnet20\nteachers: [resnet56, resnet20]\ndataset: npz:/a/b.npz\n"
    )
    pair = load_pair(tmp_path / "p.yaml", KNOWN, DATA)
    assert pair == Pair("p", "resnet20", ("resnet56", "resnet20"), "npz:/a/b.npz")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pair(tmp_path / "gone.yaml", KNOWN, DATA)
